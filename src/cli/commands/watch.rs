//! `keelway watch`.

use super::Context;
use crate::args::Names;
use crate::outcome::CommandError;
use crate::render::{self, Style};
use crate::settings;
use keelway_model::{Clock, CommitId, EventSink, RunId};
use keelway_runner::run::open_ledger;
use keelway_runner::watch::{Watch, Watcher, watch as run_watch};
use keelway_runner::{RunnerError, Workspace};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The flags of `watch`.
pub struct WatchArgs {
    pub repo: String,
    pub git_ssh_config: Option<PathBuf>,
    pub branch: String,
    pub every: Duration,
    pub once: bool,
}

struct Show {
    style: Style,
    quiet: bool,
    clock: Arc<dyn Clock>,
}

impl Watcher for Show {
    fn say(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(std::io::stderr(), "{} {}", self.clock.now(), render::clean(text));
        }
    }
    fn refused(&self, commit: &CommitId, run: &RunId, why: &RunnerError) {
        self.say(&format!(
            "{}: run {run} ended with exit code {}: its definition is not valid",
            commit.short(),
            why.exit().code()
        ));
        let text = match why {
            RunnerError::Definition(found) => render::diagnostics(found, &self.style),
            other => render::error(&other.to_string(), &self.style) + "\n",
        };
        // A terminal that is gone is no reason to stop.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
    fn sink(&self, _run: &RunId) -> Box<dyn EventSink> {
        render::events(&self.style, render::Record::Kept)
    }
}

/// Every new commit of a branch.
pub async fn watch(context: &Context, args: WatchArgs, names: &Names) -> Result<(), CommandError> {
    let mut settings = settings::settings(&context.global, names, &context.machine)?;
    settings.git.ssh.config = settings::git_ssh_config(args.git_ssh_config.as_deref())?;
    let url = settings::repo_url(&args.repo)?;
    let workspace = Workspace::open(&settings)?;
    let ledger = open_ledger(&settings, &|text| context.say(text))?;
    let show = Show {
        style: context.style.clone(),
        quiet: context.global.quiet,
        clock: Arc::clone(&settings.clock),
    };
    let wanted = Watch { url, branch: args.branch, every: args.every, rounds: args.once.then_some(1) };
    run_watch(&settings, &workspace, &ledger, wanted, &show, context.cancel.token()).await?;
    Ok(())
}
