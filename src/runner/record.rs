//! The record of what is done without the engine: a run of one node, written while it goes on.
//!
//! What is recorded here is done because hosts are in trouble, so a ledger that cannot be written does not stop it: the
//! caller is told at the end.

use crate::RunnerError;
use crate::deploy::Place;
use crate::settings::Settings;
use crate::source::Pinned;
use keelway_deploy::apply::{DeployEnd, DeployEvent, Emit};
use keelway_engine::CancelToken;
use keelway_ledger::{Ledger, LedgerError, NewRun};
use keelway_model::ids::AppName;
use keelway_model::{Clock, EventKind, ExitCode, LogStream, NodeId, Outcome, RunEvent, RunId};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Takes an app back to the release before this one ([`Place::rollback`]) and records that as a run with the event
/// `deploy`. Gives the run's id, too, where it was recorded; where not, `emit` hears why.
///
/// # Errors
/// As [`Place::rollback`].
pub async fn rollback(
    place: &Place,
    settings: &Settings,
    ledger: Ledger,
    pinned: &Pinned,
    app: &AppName,
    emit: Emit<'_>,
    cancel: &CancelToken,
) -> Result<(DeployEnd, Option<RunId>), RunnerError> {
    let new = NewRun {
        repo: pinned.repo.clone(),
        commit: pinned.subject.commit.clone(),
        branch: pinned.subject.branch.clone(),
        event: "deploy".into(),
        definition: format!("rollback of {app} on {}", place.name),
    };
    let recorder = Recorder::begin(ledger, new, "rollback", "deploy", Arc::clone(&settings.clock));
    let lines = recorder.lines();
    let both = move |event: DeployEvent| {
        lines.say(event.text());
        emit(event);
    };
    let result = place.rollback(settings, app, &both, cancel).await;
    let outcome = match &result {
        Ok(end) if end.exit == ExitCode::Done => Outcome::Succeeded,
        Ok(end) if end.exit == ExitCode::Cancelled => Outcome::Cancelled,
        Ok(end) => Outcome::Failed { exit: end.exit.code(), message: end.summary.clone() },
        Err(e) => Outcome::Failed { exit: e.exit().code(), message: e.to_string() },
    };
    let run = recorder.end(outcome).await.map_err(|why| {
        emit(DeployEvent::Note { text: format!("this rollback is not in the record of runs: {why}") });
    });
    Ok((result?, run.ok()))
}

/// Lines on their way to the ledger.
const LINES: usize = 256;

enum Said {
    Line(String),
    End(Outcome),
}

/// A run that is being recorded.
pub(crate) struct Recorder {
    said: mpsc::Sender<Said>,
    writer: JoinHandle<Result<RunId, LedgerError>>,
}

/// Tells a recorder what happens; never waits.
#[derive(Clone)]
pub(crate) struct Lines(mpsc::Sender<Said>);

impl Lines {
    /// One line. Where the queue is full, it is left out.
    pub fn say(&self, text: String) {
        let _ = self.0.try_send(Said::Line(text));
    }
}

impl Recorder {
    /// Records a new run with one node of this name and kind. Must be called on a tokio runtime.
    pub fn begin(ledger: Ledger, new: NewRun, node: &str, kind: &'static str, clock: Arc<dyn Clock>) -> Self {
        let (said, told) = mpsc::channel(LINES);
        let node = node.to_owned();
        let writer = tokio::task::spawn_blocking(move || write(&ledger, &new, &node, kind, &*clock, told));
        Self { said, writer }
    }

    /// Where its lines go.
    pub fn lines(&self) -> Lines {
        Lines(self.said.clone())
    }

    /// Records the end; gives the run's id, or why there is no whole record.
    pub async fn end(self, outcome: Outcome) -> Result<RunId, String> {
        // The writer is gone when it failed, and says why.
        let _ = self.said.send(Said::End(outcome)).await;
        match self.writer.await {
            Ok(written) => written.map_err(|e| e.to_string()),
            Err(e) => Err(format!("a worker of Keelway failed: {e}")),
        }
    }
}

fn write(
    ledger: &Ledger,
    new: &NewRun,
    name: &str,
    kind: &str,
    clock: &dyn Clock,
    mut told: mpsc::Receiver<Said>,
) -> Result<RunId, LedgerError> {
    let began = Instant::now();
    let run = ledger.create_run(new)?;
    let attempt = ledger.begin_attempt(&run)?;
    let mut sink = attempt.sink();
    let mut seq = 0;
    let mut put = |node: &[NodeId], kind: EventKind| {
        seq += 1;
        sink.record(&[RunEvent { at: clock.now(), seq, node: node.to_vec(), kind }])
    };
    let (node, name) = ([NodeId(0)], name.to_owned());
    let started =
        EventKind::RunStarted { run: run.clone(), attempt: attempt.attempt(), commit: new.commit.clone() };
    put(&[], started)?;
    put(&node, EventKind::Planned { name: name.clone(), kind: kind.to_owned() })?;
    put(&node, EventKind::Started { name: name.clone() })?;
    while let Some(said) = told.blocking_recv() {
        match said {
            Said::Line(text) => {
                put(&node, EventKind::Log { stream: LogStream::Stdout, text: format!("{text}\n") })?;
            }
            Said::End(outcome) => {
                let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                let whole = match &outcome {
                    Outcome::Failed { exit, .. } => {
                        Outcome::Failed { exit: *exit, message: format!("failed: {name}") }
                    }
                    other => other.clone(),
                };
                put(&node, EventKind::Finished { name, outcome, millis, result: None })?;
                put(&[], EventKind::RunFinished { outcome: whole, millis, interrupted: false })?;
                break;
            }
        }
    }
    Ok(run)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelway_ledger::AttemptState;
    use keelway_model::Timestamp;
    use keelway_model::clock::FixedClock;

    fn new() -> NewRun {
        NewRun {
            repo: "r".into(),
            commit: None,
            branch: None,
            event: "deploy".into(),
            definition: "rollback".into(),
        }
    }

    #[tokio::test]
    async fn what_is_told_is_a_run_that_can_be_read() {
        let clock: Arc<dyn Clock> = Arc::new(FixedClock(Timestamp(0)));
        let ledger = Ledger::in_memory(Arc::clone(&clock)).unwrap();
        let recorder = Recorder::begin(ledger.clone(), new(), "rollback", "deploy", clock);
        recorder.lines().say("step 1".into());
        let failed = Outcome::Failed { exit: 11, message: "host a does not answer".into() };
        let run = recorder.end(failed).await.unwrap();
        let detail = ledger.show(&run).unwrap();
        assert_eq!(detail.run.event, "deploy");
        let [attempt] = detail.attempts.as_slice() else { panic!("{detail:?}") };
        assert_eq!(attempt.attempt.state, AttemptState::Failed);
        assert_eq!(attempt.attempt.exit.map(|c| c.code()), Some(11));
        let lines: Vec<String> = ledger.logs(&run, None, None).unwrap().map(|l| l.unwrap().text).collect();
        assert_eq!(lines, ["step 1\n"]);
    }
}
