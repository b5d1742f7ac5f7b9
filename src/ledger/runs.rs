//! Runs and their attempts: who runs what, and who no longer does.

use crate::error::LedgerError;
use crate::open::{Ledger, Owner, Refusal};
use crate::sink::LedgerSink;
use keelway_model::{Attempt, CommitId, EventKind, ExitCode, Outcome, RunEvent, RunId, Timestamp};
use rusqlite::{OptionalExtension, Transaction, params};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// How long [`Ledger::begin_attempt`] waits for a lock that is held only for a moment: by [`Ledger::interrupted`] of
/// another process, or by a child of this one between fork and exec.
const MOMENT: Duration = Duration::from_secs(1);

/// What is known of a run before it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRun {
    /// The repository, as the user named it, without a password.
    pub repo: String,
    /// The commit, where the source is one.
    pub commit: Option<CommitId>,
    /// The branch, where there is one.
    pub branch: Option<String>,
    /// What set it off: `push`, `manual`, ..
    pub event: String,
    /// One line on what it runs: `keelway.yml: image, test, publish`.
    pub definition: String,
}

/// Numbers attempts of all runs in the order they began; a write with the number of an attempt that is over is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(pub u64);

/// Where an attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttemptState {
    /// Somebody runs it.
    Running,
    /// Every stage that ran did what it should.
    Succeeded,
    /// Something failed.
    Failed,
    /// Somebody stopped it.
    Cancelled,
    /// Its process died.
    Interrupted,
}

impl AttemptState {
    const ALL: [Self; 5] = [Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled, Self::Interrupted];

    /// The word in the database and on the screen.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        }
    }
    /// Whether it is over.
    pub const fn is_over(self) -> bool {
        !matches!(self, Self::Running)
    }
}

impl FromStr for AttemptState {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|state| state.as_str() == s).ok_or(())
    }
}

impl fmt::Display for AttemptState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// An attempt whose process died.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interrupted {
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: Attempt,
    /// The commit, where the source is one.
    pub commit: Option<CommitId>,
}

/// The right to run an attempt; the run is ours until this and every sink made from it are dropped.
#[derive(Debug, Clone)]
pub struct AttemptHandle {
    ledger: Ledger,
    run: RunId,
    attempt: Attempt,
    token: FencingToken,
    _owner: Arc<Owner>,
}

impl AttemptHandle {
    /// The run.
    pub const fn run(&self) -> &RunId {
        &self.run
    }
    /// 1, or more after an interruption.
    pub const fn attempt(&self) -> Attempt {
        self.attempt
    }
    /// Its fencing token.
    pub const fn token(&self) -> FencingToken {
        self.token
    }
    /// Where the engine's events go. The attempt is over when it has recorded `RunFinished`.
    pub fn sink(&self) -> LedgerSink {
        LedgerSink::new(self.ledger.clone(), self.clone())
    }
    /// Ends an attempt that never got to the engine, or whose engine could not start: records `RunFinished` as its next
    /// event. Does nothing when the attempt is over already.
    pub fn finish(&self, outcome: Outcome) -> Result<(), LedgerError> {
        self.end(outcome, false)
    }
    /// The same for an attempt that was stopped before its end: a queued commit stays queued.
    pub fn finish_interrupted(&self, outcome: Outcome) -> Result<(), LedgerError> {
        self.end(outcome, true)
    }

    fn end(&self, outcome: Outcome, interrupted: bool) -> Result<(), LedgerError> {
        let ledger = &self.ledger;
        // Read before the transaction, which keeps others waiting: the attempt is ours, so nobody else adds to it.
        let (logged, _) = ledger.log_store().last(&self.run, self.attempt)?;
        ledger.write("end an attempt", |tx| {
            let state: String =
                tx.query_row("SELECT state FROM attempts WHERE token = ?1", [self.sql_token()], |r| {
                    r.get(0)
                })?;
            if state != AttemptState::Running.as_str() {
                return Ok(());
            }
            let kind = EventKind::RunFinished { outcome: outcome.clone(), millis: 0, interrupted };
            append(tx, self.sql_token(), logged, ledger.now(), kind)?;
            end_attempt(tx, self.sql_token(), ledger.now(), &outcome, interrupted)
        })
    }

    pub(crate) fn sql_token(&self) -> i64 {
        i64::try_from(self.token.0).unwrap_or(i64::MAX)
    }
}

impl Ledger {
    /// Records a run that is to be run.
    pub fn create_run(&self, new: &NewRun) -> Result<RunId, LedgerError> {
        self.write("record a run", |tx| self.insert_run(tx, new))
    }

    pub(crate) fn insert_run(&self, tx: &Transaction<'_>, new: &NewRun) -> Result<RunId, Refusal> {
        let now = self.now();
        let run = new_run_id(now)?;
        tx.execute(
            "INSERT INTO runs (id, repo, revision, branch, event, definition, created) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                run.as_str(),
                new.repo,
                new.commit.as_ref().map(CommitId::as_str),
                new.branch,
                new.event,
                new.definition,
                now.0
            ],
        )?;
        Ok(run)
    }

    /// Begins the next attempt of a run: 1, or one more than the last. An earlier attempt whose process died is marked
    /// interrupted first; refused while somebody runs the run.
    pub fn begin_attempt(&self, run: &RunId) -> Result<AttemptHandle, LedgerError> {
        // Before its directory is made.
        self.read("look a run up", |tx| known_run(tx, run))?;
        let Some(owner) = self.own_within(run, MOMENT)? else {
            let pid = self.read("look an attempt up", |tx| {
                let pid =
                    "SELECT pid FROM attempts WHERE run = ?1 AND state = 'running' ORDER BY n DESC LIMIT 1";
                Ok(tx.query_row(pid, [run.as_str()], |r| r.get::<_, Option<u32>>(0)).optional()?.flatten())
            })?;
            return Err(LedgerError::Running { run: run.clone(), pid });
        };
        self.mark_interrupted(run)?;
        let (attempt, token) = self.write("begin an attempt", |tx| {
            if self.dir().is_none() {
                // In memory there is no process that could have died.
                let running = "SELECT count(*) FROM attempts WHERE run = ?1 AND state = 'running'";
                if tx.query_row(running, [run.as_str()], |r| r.get::<_, u32>(0))? > 0 {
                    return Err(LedgerError::Running { run: run.clone(), pid: Some(std::process::id()) }.into());
                }
            }
            let last = "SELECT coalesce(max(n), 0) FROM attempts WHERE run = ?1";
            let n: u32 = tx.query_row(last, [run.as_str()], |r| r.get(0))?;
            let attempt = Attempt(n + 1);
            tx.execute(
                "INSERT INTO attempts (run, n, state, pid, boot, started) VALUES (?1, ?2, 'running', ?3, ?4, ?5)",
                params![run.as_str(), attempt.0, std::process::id(), boot_id(), self.now().0],
            )?;
            Ok((attempt, FencingToken(u64::try_from(tx.last_insert_rowid()).unwrap_or(0))))
        })?;
        Ok(AttemptHandle { ledger: self.clone(), run: run.clone(), attempt, token, _owner: Arc::new(owner) })
    }

    /// Finds the attempts whose process died, marks them, and returns those it marked, oldest first.
    pub fn interrupted(&self) -> Result<Vec<Interrupted>, LedgerError> {
        if self.dir().is_none() {
            return Ok(Vec::new());
        }
        let running: Vec<RunId> = self.read("look for interrupted runs", |tx| {
            let mut query =
                tx.prepare("SELECT DISTINCT run FROM attempts WHERE state = 'running' ORDER BY token")?;
            let ids = query.query_map([], |r| r.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
            ids.into_iter().map(|id| id.parse().map_err(|_| self.damaged(format!("run id {id:?}")))).collect()
        })?;
        let mut found = Vec::new();
        for run in running {
            // Held while the mark is made, so that nobody begins the run meanwhile.
            let Some(_owner) = self.try_own(&run)? else { continue };
            found.extend(self.mark_interrupted(&run)?);
        }
        Ok(found)
    }

    /// The caller holds the run's lock, so whatever is marked running there is not, and nobody else adds to its logs.
    fn mark_interrupted(&self, run: &RunId) -> Result<Vec<Interrupted>, LedgerError> {
        if self.dir().is_none() {
            // In memory there is no process that could have died.
            return Ok(Vec::new());
        }
        type Dead = (i64, u32, Option<u32>);
        let (commit, dead): (Option<String>, Vec<Dead>) =
            self.read("look for interrupted attempts", |tx| {
                let commit =
                    tx.query_row("SELECT revision FROM runs WHERE id = ?1", [run.as_str()], |r| r.get(0))?;
                let mut query =
                    tx.prepare("SELECT token, n, pid FROM attempts WHERE run = ?1 AND state = 'running'")?;
                let dead = query.query_map([run.as_str()], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
                Ok((commit, dead.collect::<Result<_, _>>()?))
            })?;
        let commit: Option<CommitId> = commit.and_then(|c| c.parse().ok());
        let mut found = Vec::new();
        for (token, n, pid) in dead {
            let attempt = Attempt(n);
            let process = pid.map_or_else(|| "its process".to_owned(), |p| format!("process {p}"));
            let text = format!("attempt {attempt} was interrupted: {process} ended without finishing it");
            let (logged, spoke) = self.log_store().last(run, attempt)?;
            self.write("mark an interrupted run", |tx| {
                let heard = last_heard(tx, token)?.map_or(spoke, |at| at.max(spoke));
                append(tx, token, logged, self.now(), EventKind::Notice { text })?;
                tx.execute(
                    "UPDATE attempts SET state = 'interrupted', finished = max(started, ?2) WHERE token = ?1",
                    params![token, heard.0],
                )?;
                Ok(())
            })?;
            found.push(Interrupted { run: run.clone(), attempt, commit: commit.clone() });
        }
        Ok(found)
    }
}

/// When the last event of an attempt was recorded in the database: it lasted at least so long.
fn last_heard(tx: &Transaction<'_>, token: i64) -> Result<Option<Timestamp>, Refusal> {
    let query = "SELECT json FROM events WHERE token = ?1 ORDER BY seq DESC LIMIT 1";
    let json: Option<String> = tx.query_row(query, [token], |r| r.get(0)).optional()?;
    Ok(json.and_then(|j| serde_json::from_str::<RunEvent>(&j).ok()).map(|e| e.at))
}

/// Appends an event that comes after all that was recorded, in the database or (`logged`) in log files.
fn append(
    tx: &Transaction<'_>,
    token: i64,
    logged: u64,
    at: Timestamp,
    kind: EventKind,
) -> Result<(), Refusal> {
    let last: i64 =
        tx.query_row("SELECT coalesce(max(seq), 0) FROM events WHERE token = ?1", [token], |r| r.get(0))?;
    let seq = logged.max(u64::try_from(last).unwrap_or(0)) + 1;
    insert_event(tx, token, &RunEvent { at, seq, node: Vec::new(), kind })
}

pub(crate) fn insert_event(tx: &Transaction<'_>, token: i64, event: &RunEvent) -> Result<(), Refusal> {
    let json = serde_json::to_string(event)
        .map_err(|e| Refusal::Database(rusqlite::Error::ToSqlConversionFailure(Box::new(e))))?;
    let seq = i64::try_from(event.seq).unwrap_or(i64::MAX);
    tx.prepare_cached("INSERT INTO events (token, seq, json) VALUES (?1, ?2, ?3)")?
        .execute(params![token, seq, json])?;
    Ok(())
}

/// Ends an attempt, and with it the queued commit it was run for. The commit of a run that was cancelled or interrupted
/// stays in the queue: nobody said that it shall not be run, and a rollout that was stopped half-way is to be resumed.
pub(crate) fn end_attempt(
    tx: &Transaction<'_>,
    token: i64,
    at: Timestamp,
    outcome: &Outcome,
    interrupted: bool,
) -> Result<(), Refusal> {
    let (state, exit, message) = match outcome {
        Outcome::Succeeded | Outcome::Cached | Outcome::Skipped { .. } => {
            (AttemptState::Succeeded, ExitCode::Done.code(), None)
        }
        Outcome::Failed { exit, message } => (AttemptState::Failed, *exit, Some(message)),
        Outcome::Cancelled => (AttemptState::Cancelled, ExitCode::Cancelled.code(), None),
    };
    tx.execute(
        "UPDATE attempts SET state = ?2, finished = ?3, exit = ?4, message = ?5 WHERE token = ?1",
        params![token, state.as_str(), at.0, exit, message],
    )?;
    if state != AttemptState::Cancelled && !interrupted {
        let done = "UPDATE queue SET done = 1 WHERE run = (SELECT run FROM attempts WHERE token = ?1)";
        tx.execute(done, [token])?;
    }
    Ok(())
}

pub(crate) fn known_run(tx: &Transaction<'_>, run: &RunId) -> Result<(), Refusal> {
    let known = tx.query_row("SELECT 1 FROM runs WHERE id = ?1", [run.as_str()], |_| Ok(())).optional()?;
    known.ok_or_else(|| no_run(run.as_str()).into())
}

pub(crate) fn no_run(run: &str) -> LedgerError {
    LedgerError::NoRun { run: run.chars().take(100).collect() }
}

/// `20261123-143509-3fa2c1`: sorts by time, and two ledgers of a machine never share one.
pub fn new_run_id(now: Timestamp) -> Result<RunId, LedgerError> {
    let mut random = [0u8; 3];
    getrandom::fill(&mut random).map_err(|e| LedgerError::Io {
        path: "/dev/urandom".into(),
        source: std::io::Error::other(e.to_string()),
    })?;
    let digits: String = now.to_string().chars().filter(char::is_ascii_digit).take(14).collect();
    let (day, time) = digits.split_at(digits.len().min(8));
    let id = format!("{day}-{time}-{:02x}{:02x}{:02x}", random[0], random[1], random[2]);
    Ok(id.parse().expect("digits, hexadecimal digits and '-' are a run id"))
}

/// Names this boot of the machine, for people who read the record.
fn boot_id() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}
