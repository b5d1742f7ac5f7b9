//! `keelway watch`.

use super::Context;
use crate::args::Names;
use crate::outcome::CommandError;
use crate::render::{self, Style};
use crate::settings;
use keelway_model::{Clock, EventSink, RunId};
use keelway_runner::Workspace;
use keelway_runner::run::open_ledger;
use keelway_runner::watch::{Watch, Watcher, watch as run_watch};
use keelway_source::{Origin, RepoUrl};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

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
    fn sink(&self, _run: &RunId) -> Box<dyn EventSink> {
        render::events(&self.style, render::Record::Kept)
    }
}

/// Every new commit of a branch.
pub async fn watch(context: &Context, repo: &str, branch: String, every: Duration, once: bool, names: &Names) -> Result<(), CommandError> {
    let settings = settings::settings(&context.global, names, &context.machine)?;
    let url = RepoUrl::parse(repo, Origin::CommandLine).map_err(|e| CommandError::usage(format!("--repo: {e}")))?;
    let workspace = Workspace::open(&settings)?;
    let ledger = open_ledger(&settings)?;
    let show = Show { style: context.style.clone(), quiet: context.global.quiet, clock: Arc::clone(&settings.clock) };
    let wanted = Watch { url, branch, every, rounds: once.then_some(1) };
    run_watch(&settings, &workspace, &ledger, wanted, &show, context.cancel.token()).await?;
    Ok(())
}
