//! `keelway watch`: every new commit of a branch, once, in order.
//!
//! Each round fetches, records what is new (in one transaction with how far the branch was seen), then runs what is
//! recorded. A commit leaves the queue when its run is over; one that was interrupted becomes the next attempt of
//! its run. So the watcher may be killed at any moment and started again. A commit whose definition is not valid is a
//! run that failed. Commits are run in order: what keeps one from being run (the disk, another watcher of the same
//! branch) ends the round, and the next round begins with that commit again.

use crate::perform::Workspace;
use crate::run::{begin, execute_begun, new_run, prepare};
use crate::settings::Settings;
use crate::source::{Pinned, at_commit, fetching};
use crate::{RunnerError, blocking, lower};
use keelway_engine::{CancelToken, Failure};
use keelway_ledger::{Ledger, NewRun, QueuedCommit};
use keelway_model::{CommitId, EventSink, Outcome, RunId, StageName};
use keelway_pipeline::{Event, Selection};
use keelway_source::{Advance, GitSettings, Mirror, RepoUrl, SourceError};
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
    /// A commit whose definition is not valid, or asks for what this machine refuses; recorded as a failed run.
    fn refused(&self, commit: &CommitId, run: &RunId, why: &RunnerError);
    /// Where the events of a run go.
    fn sink(&self, run: &RunId) -> Box<dyn EventSink>;
}

/// Watches until it is cancelled or its rounds are over. A look that fails (the server is down) is told and tried
/// again; a run that fails is recorded and the next commit is run.
///
/// # Errors
/// The last round failed, where rounds are counted.
pub async fn watch(
    settings: &Settings,
    workspace: &Workspace,
    ledger: &Ledger,
    watch: Watch,
    watcher: &dyn Watcher,
    cancel: CancelToken,
) -> Result<(), RunnerError> {
    let mut round = 0u64;
    let mut wait = watch.every;
    let watching = Watching { settings, workspace, ledger, watch: &watch, watcher, cancel: &cancel };
    watching.begin().await?;
    while !cancel.is_cancelled() {
        let result = watching.round().await;
        if cancel.is_cancelled() {
            break;
        }
        round += 1;
        if watch.rounds.is_some_and(|most| round >= most) {
            return result;
        }
        wait = match result {
            Ok(()) => watch.every,
            Err(e) => {
                let longer = (wait * 2).min(Duration::from_secs(300)).max(watch.every);
                watcher.say(&format!("{e}; trying again in {}", keelway_model::format_duration(longer)));
                longer
            }
        };
        tokio::select! {
            _ = cancel.cancelled() => break,
            () = tokio::time::sleep(wait) => {}
        }
    }
    Ok(())
}

/// The parts of one watcher.
struct Watching<'a> {
    settings: &'a Settings,
    workspace: &'a Workspace,
    ledger: &'a Ledger,
    watch: &'a Watch,
    watcher: &'a dyn Watcher,
    cancel: &'a CancelToken,
}

impl Watching<'_> {
    /// Says what is watched, from where on.
    async fn begin(&self) -> Result<(), RunnerError> {
        let (repo, branch) = (self.watch.url.to_string(), self.watch.branch.clone());
        let seen = self.with_ledger(move |l| l.branch(&repo, &branch)).await?;
        let from = match seen {
            Some(record) => format!("last seen at {}", record.last.short()),
            None => "never seen before: its newest commit is run, earlier ones are not".into(),
        };
        let every = match self.watch.rounds {
            Some(1) => "once".into(),
            _ => format!("every {}", keelway_model::format_duration(self.watch.every)),
        };
        let Watch { url, branch, .. } = self.watch;
        self.watcher.say(&format!("watching {branch} of {url}, {every}; {from}"));
        Ok(())
    }

    async fn round(&self) -> Result<(), RunnerError> {
        let mirror = self.look().await?;
        let repo = self.watch.url.to_string();
        let branch = self.watch.branch.clone();
        let queued = self.with_ledger(move |l| l.queued(&repo, &branch)).await?;
        if queued.is_empty() && self.watch.rounds.is_some() {
            self.watcher.say(&format!("nothing new on {}", self.watch.branch));
        }
        for entry in queued {
            if self.cancel.is_cancelled() {
                break;
            }
            self.run_one(&mirror, entry).await?;
        }
        Ok(())
    }

    async fn with_ledger<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Ledger) -> Result<T, keelway_ledger::LedgerError> + Send + 'static,
    ) -> Result<T, Failure> {
        let ledger = self.ledger.clone();
        blocking(move || work(&ledger).map_err(|e| Failure::outside(e.to_string()))).await
    }

    /// Fetches and records what is new.
    async fn look(&self) -> Result<Arc<Mirror>, RunnerError> {
        let (cache, url, branch) =
            (self.settings.mirrors.clone(), self.watch.url.clone(), self.watch.branch.clone());
        let ledger = self.ledger.clone();
        let task = move |git: &GitSettings| look(&cache, git, &url, &branch, &ledger);
        let (mirror, remarks) = fetching(self.settings.git.clone(), self.cancel, task).await?;
        for remark in remarks {
            self.watcher.say(&remark);
        }
        Ok(Arc::new(mirror))
    }

    async fn run_one(&self, mirror: &Arc<Mirror>, entry: QueuedCommit) -> Result<(), RunnerError> {
        let short = entry.commit.short().to_owned();
        let Some(pinned) = self.pin(mirror, &entry.commit).await? else {
            self.with_ledger(move |l| l.drop_queued(entry.position)).await?;
            self.watcher.say(&format!("{short}: no branch or tag has it any more; it is not run"));
            return Ok(());
        };
        for remark in &pinned.remarks {
            self.watcher.say(&format!("{short}: {remark}"));
        }
        let refused = NewRun {
            repo: pinned.repo.clone(),
            commit: pinned.subject.commit.clone(),
            branch: pinned.subject.branch.clone(),
            event: Event::Push.word().to_owned(),
            definition: format!("{}: not valid", keelway_pipeline::FILE_NAME),
        };
        let prepared = match prepare(self.settings, pinned, Event::Push, Selection::default()).await {
            Ok(p) => p,
            Err(RunnerError::NotTriggered(reason)) => {
                self.with_ledger(move |l| l.drop_queued(entry.position)).await?;
                self.watcher.say(&format!("{short}: not run: {reason}"));
                return Ok(());
            }
            Err(e) if e.is_of_the_commit() => return self.refuse(&entry, refused, e).await,
            Err(e) => return Err(e),
        };
        for line in lower::lines(&prepared.warnings) {
            self.watcher.say(&format!("{short}: {line}"));
        }
        let (new, position) = (new_run(&prepared), entry.position);
        let run = self.with_ledger(move |l| l.run_queued(position, &new)).await?;
        // Another watcher of this branch may be at it.
        let attempt = begin(self.ledger, &run).await?;
        if attempt.attempt().0 > 1 {
            self.watcher.say(&format!("{short}: its run {run} was interrupted; running it again"));
        }
        let (sink, cancel) = (self.watcher.sink(&run), self.cancel.clone());
        let workspace = self.workspace.clone();
        let workspace = blocking(move || workspace.session()).await?;
        let report = execute_begun(self.settings, &workspace, attempt, prepared, sink, cancel).await;
        drop(workspace);
        // Between two runs there is time to make room, though not for long.
        let (store, collection) = (self.workspace.store.clone(), self.settings.collection.clone());
        let tidied = tokio::task::spawn_blocking(move || collection.tidy(&store)).await;
        if let Ok(Err(e)) = tidied {
            self.watcher.say(&format!("the store is not made smaller: {e}"));
        }
        match report {
            Ok(report) => {
                self.watcher.say(&format!("{short}: run {run} ended with exit code {}", report.exit.code()));
                // It was stopped for this, so the commit is still to be run.
                if let Some(e) = report.sink_error {
                    return Err(RunnerError::outside(e));
                }
            }
            // Recorded as its end; the next commit may be better.
            Err(e) if e.is_of_the_commit() => self.watcher.refused(&entry.commit, &run, &e),
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// `None` when the branch was rewritten and nothing holds the commit.
    async fn pin(&self, mirror: &Arc<Mirror>, commit: &CommitId) -> Result<Option<Pinned>, Failure> {
        let (mirror, commit, branch) = (Arc::clone(mirror), commit.clone(), self.watch.branch.clone());
        blocking(move || match mirror.resolve(commit.as_str()) {
            Ok(found) => {
                at_commit(&mirror, keelway_source::Pinned { branch: Some(branch), ..found }).map(Some)
            }
            Err(SourceError::NotReachable { .. }) => Ok(None),
            Err(e) => Err(Failure::outside(e.to_string())),
        })
        .await
    }

    /// Records a run that failed before its first stage.
    async fn refuse(&self, entry: &QueuedCommit, new: NewRun, why: RunnerError) -> Result<(), RunnerError> {
        let (position, outcome) =
            (entry.position, Outcome::Failed { exit: why.exit().code(), message: why.to_string() });
        let run = self
            .with_ledger(move |l| {
                let run = l.run_queued(position, &new)?;
                l.begin_attempt(&run)?.finish(outcome)?;
                Ok(run)
            })
            .await?;
        self.watcher.refused(&entry.commit, &run, &why);
        Ok(())
    }
}

/// One look at the branch; blocking. The lines are for people.
fn look(
    cache: &std::path::Path,
    git: &GitSettings,
    url: &RepoUrl,
    branch: &str,
    ledger: &Ledger,
) -> Result<(Mirror, Vec<String>), Failure> {
    let outside = |e: &dyn std::fmt::Display| Failure::outside(e.to_string());
    let mirror = Mirror::open(cache, url).map_err(|e| outside(&e))?;
    mirror.fetch(git, &mut |_| {}).map_err(|e| outside(&e))?;
    let tip = mirror.resolve(&format!("refs/heads/{branch}")).map_err(|e| outside(&e))?.commit;
    let repo = url.to_string();
    let seen = ledger.branch(&repo, branch).map_err(|e| outside(&e))?.map(|b| b.last);
    let mut remarks = Vec::new();
    let commits: Vec<CommitId> =
        match mirror.first_parent_since(seen.as_ref(), &tip).map_err(|e| outside(&e))? {
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
    ledger.record_commits(&repo, branch, seen.as_ref(), &commits).map_err(|e| outside(&e))?;
    for commit in &commits {
        remarks.push(format!("{branch} is at {}: recorded", commit.short()));
    }
    Ok((mirror, remarks))
}

/// The stages that a command line names, checked for their form.
///
/// # Errors
/// A word that cannot be a stage's name.
pub fn stage_names(words: &[String]) -> Result<Selection, RunnerError> {
    for word in words {
        word.parse::<StageName>()
            .map_err(|e| RunnerError::Failed(Failure::new(keelway_model::ExitCode::Usage, e.to_string())))?;
    }
    Ok(Selection { stages: words.to_vec() })
}
