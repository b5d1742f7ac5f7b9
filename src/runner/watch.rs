//! `keelway watch`: every new commit of a branch, once, in order.
//!
//! Each round fetches, records what is new (in one transaction with how far the branch was seen), then runs what is
//! recorded. A commit leaves the queue when its run is over; one that was interrupted becomes the next attempt of
//! its run. So the watcher may be killed at any moment and started again.

use crate::perform::Workspace;
use crate::run::{execute, new_run, prepare};
use crate::settings::Settings;
use crate::source::at_commit;
use crate::{RunnerError, blocking};
use keelway_engine::{CancelToken, Failure};
use keelway_ledger::{Ledger, QueuedCommit};
use keelway_model::{CommitId, EventSink, RunId, StageName};
use keelway_pipeline::{Event, Selection};
use keelway_source::{Advance, Mirror, RepoUrl};
use std::sync::Arc;
use std::time::Duration;

/// What to watch.
#[derive(Debug, Clone)]
pub struct Watch {
    /// The repository.
    pub url: RepoUrl,
    /// The branch.
    pub branch: String,
    /// Between two looks.
    pub every: Duration,
    /// After how many rounds it ends; `None` is never. A round is a look and all runs that follow from it.
    pub rounds: Option<u64>,
}

/// What a watcher tells while it goes on.
pub trait Watcher: Send + Sync {
    /// One line for people.
    fn say(&self, text: &str);
    /// Where the events of a run go.
    fn sink(&self, run: &RunId) -> Box<dyn EventSink>;
}

/// Watches until it is cancelled or its rounds are over. A look that fails (the server is down) is told and tried
/// again; a run that fails is recorded and the next commit is run.
pub async fn watch(settings: &Settings, workspace: &Workspace, ledger: &Ledger, watch: Watch, watcher: &dyn Watcher, cancel: CancelToken) -> Result<(), RunnerError> {
    let mut round = 0u64;
    let mut wait = watch.every;
    while !cancel.is_cancelled() {
        match look(settings, ledger, &watch, watcher).await {
            Ok(mirror) => {
                wait = watch.every;
                run_queue(settings, workspace, ledger, &watch, &mirror, watcher, &cancel).await?;
            }
            Err(e) => {
                wait = (wait * 2).min(Duration::from_secs(300)).max(watch.every);
                watcher.say(&format!("{}: {e}; trying again in {}", watch.url, keelway_model::format_duration(wait)));
            }
        }
        round += 1;
        if watch.rounds.is_some_and(|most| round >= most) {
            break;
        }
        tokio::select! {
            _ = cancel.cancelled() => break,
            () = tokio::time::sleep(wait) => {}
        }
    }
    Ok(())
}

/// Fetches and records what is new.
async fn look(settings: &Settings, ledger: &Ledger, watch: &Watch, watcher: &dyn Watcher) -> Result<Arc<Mirror>, RunnerError> {
    let (cache, git, url, branch) = (settings.mirrors.clone(), settings.git.clone(), watch.url.clone(), watch.branch.clone());
    let ledger = ledger.clone();
    let (mirror, remarks) = blocking(move || {
        let outside = |e: &dyn std::fmt::Display| Failure::outside(e.to_string());
        let mirror = Mirror::open(&cache, &url).map_err(|e| outside(&e))?;
        mirror.fetch(&git, &mut |_| {}).map_err(|e| outside(&e))?;
        let tip = mirror.resolve(&format!("refs/heads/{branch}")).map_err(|e| outside(&e))?.commit;
        let repo = url.to_string();
        let seen = ledger.branch(&repo, &branch).map_err(|e| outside(&e))?.map(|b| b.last);
        let mut remarks = Vec::new();
        let commits: Vec<CommitId> = match mirror.first_parent_since(seen.as_ref(), &tip).map_err(|e| outside(&e))? {
            Advance::UpToDate => Vec::new(),
            Advance::Commits(commits) => commits,
            Advance::ForcePushed { old, new } => {
                remarks.push(format!(
                    "{branch} was rewritten: {} is no longer part of it; going on from the new tip {}",
                    old.short(),
                    new.short()
                ));
                vec![new]
            }
        };
        ledger.record_commits(&repo, &branch, seen.as_ref(), &commits).map_err(|e| outside(&e))?;
        for commit in &commits {
            remarks.push(format!("{branch} is at {}: recorded", commit.short()));
        }
        Ok((mirror, remarks))
    })
    .await?;
    for remark in remarks {
        watcher.say(&remark);
    }
    Ok(Arc::new(mirror))
}

async fn run_queue(
    settings: &Settings,
    workspace: &Workspace,
    ledger: &Ledger,
    watch: &Watch,
    mirror: &Arc<Mirror>,
    watcher: &dyn Watcher,
    cancel: &CancelToken,
) -> Result<(), RunnerError> {
    let repo = watch.url.to_string();
    let queued = {
        let (ledger, repo, branch) = (ledger.clone(), repo.clone(), watch.branch.clone());
        blocking(move || ledger.queued(&repo, &branch).map_err(|e| Failure::outside(e.to_string()))).await?
    };
    for entry in queued {
        if cancel.is_cancelled() {
            break;
        }
        let commit = entry.commit.clone();
        match run_one(settings, workspace, ledger, watch, mirror, watcher, cancel, entry).await {
            Ok(()) => {}
            Err(e) => watcher.say(&format!("{}: {e}", commit.short())),
        }
    }
    Ok(())
}

#[allow(clippy::too_many_arguments, reason = "the parts of one watcher, handed on once")]
async fn run_one(
    settings: &Settings,
    workspace: &Workspace,
    ledger: &Ledger,
    watch: &Watch,
    mirror: &Arc<Mirror>,
    watcher: &dyn Watcher,
    cancel: &CancelToken,
    entry: QueuedCommit,
) -> Result<(), RunnerError> {
    let (mirror, commit, branch) = (Arc::clone(mirror), entry.commit.clone(), watch.branch.clone());
    let pinned = blocking(move || {
        let mut found = mirror.resolve(commit.as_str()).map_err(|e| Failure::outside(e.to_string()))?;
        found.branch = Some(branch);
        at_commit(&mirror, found)
    })
    .await;
    // A commit that can never be run leaves the queue; one that could not be run this time stays.
    let drop_it = |position| ledger.drop_queued(position).map_err(RunnerError::outside);
    let pinned = match pinned {
        Ok(p) => p,
        Err(e) => {
            // Rewritten away before it was run.
            drop_it(entry.position)?;
            return Err(e.into());
        }
    };
    let prepared = match prepare(settings, pinned, Event::Push, Selection::default()).await {
        Ok(p) => p,
        Err(RunnerError::NotTriggered(reason)) => {
            drop_it(entry.position)?;
            watcher.say(&format!("{}: not run: {reason}", entry.commit.short()));
            return Ok(());
        }
        Err(e @ RunnerError::Definition(_)) => {
            drop_it(entry.position)?;
            return Err(e);
        }
        Err(e) => return Err(e),
    };
    let run = {
        let (ledger, new, position) = (ledger.clone(), new_run(&prepared), entry.position);
        blocking(move || ledger.run_queued(position, &new).map_err(|e| Failure::outside(e.to_string()))).await?
    };
    if entry.run.is_some() {
        watcher.say(&format!("{}: its run {run} was interrupted; running it again", entry.commit.short()));
    }
    let report = execute(settings, workspace, ledger, &run, prepared, watcher.sink(&run), cancel.clone()).await?;
    watcher.say(&format!("{}: run {run} ended with exit code {}", entry.commit.short(), report.exit.code()));
    Ok(())
}

/// The stages that a command line names, checked for their form.
///
/// # Errors
/// A word that cannot be a stage's name.
pub fn stage_names(words: &[String]) -> Result<Selection, RunnerError> {
    for word in words {
        word.parse::<StageName>().map_err(|e| RunnerError::Failed(Failure::new(keelway_model::ExitCode::Usage, e.to_string())))?;
    }
    Ok(Selection { stages: words.to_vec() })
}
