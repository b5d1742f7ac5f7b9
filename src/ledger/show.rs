//! Runs for people: the list, one run in full, its events and logs.

use crate::error::LedgerError;
use crate::logs::{LogLine, LogLines};
use crate::open::{Ledger, Refusal};
use crate::runs::{AttemptState, known_run, no_run};
use keelway_model::{
    Attempt, CommitId, EventKind, ExitCode, MissReason, NodeId, Outcome, RunEvent, RunId, Timestamp,
};
use rusqlite::{Row, Transaction, params};
use std::collections::HashMap;
use std::iter::Peekable;

/// Which runs to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// At most so many.
    pub limit: u32,
    /// Of this repository only.
    pub repo: Option<String>,
    /// Of this branch only.
    pub branch: Option<String>,
}

impl Default for Filter {
    fn default() -> Self {
        Self { limit: 20, repo: None, branch: None }
    }
}

/// One run in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSummary {
    /// Its id.
    pub id: RunId,
    /// The repository.
    pub repo: String,
    /// The commit, where the source is one.
    pub commit: Option<CommitId>,
    /// The branch, where there is one.
    pub branch: Option<String>,
    /// What set it off.
    pub event: String,
    /// What it runs.
    pub definition: String,
    /// When it was recorded.
    pub created: Timestamp,
    /// Its last attempt; none when it is still to begin.
    pub last: Option<AttemptRecord>,
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRecord {
    /// Its number.
    pub attempt: Attempt,
    /// Where it is.
    pub state: AttemptState,
    /// Whose it is or was.
    pub pid: Option<u32>,
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Option<Timestamp>,
    /// The exit code, when it finished by itself.
    pub exit: Option<ExitCode>,
    /// Why it failed.
    pub message: Option<String>,
}

/// A whole run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunDetail {
    /// The run.
    pub run: RunSummary,
    /// Its attempts, in order.
    pub attempts: Vec<AttemptDetail>,
}

/// A whole attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct AttemptDetail {
    /// The attempt.
    pub attempt: AttemptRecord,
    /// Its nodes, as planned.
    pub nodes: Vec<NodeRecord>,
    /// What a person should know, with the node it is about.
    pub notices: Vec<(Vec<NodeId>, String)>,
}

/// A node, as its events tell.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeRecord {
    /// Its place.
    pub path: Vec<NodeId>,
    /// Its name.
    pub name: String,
    /// `build`, `exec`, ..
    pub kind: String,
    /// Where it is.
    pub state: NodeState,
    /// Why it missed the cache, where it did.
    pub miss: Option<MissReason>,
    /// What it gave, for people.
    pub result: Option<String>,
}

/// Where a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeState {
    /// It has not started.
    Pending,
    /// It runs, or was running when its process died.
    Running,
    /// It ended so, after so many milliseconds.
    Ended(Outcome, u64),
}

/// How many runs an ambiguous id names.
const NAMED: usize = 5;

const RUN_COLUMNS: &str = "id, repo, revision, branch, event, definition, created";

impl Ledger {
    /// Runs, newest first.
    pub fn runs(&self, filter: &Filter) -> Result<Vec<RunSummary>, LedgerError> {
        self.read("list runs", |tx| {
            let mut query = tx.prepare(&format!(
                "SELECT {RUN_COLUMNS} FROM runs WHERE (?1 IS NULL OR repo = ?1) AND (?2 IS NULL OR branch = ?2)
                 ORDER BY created DESC, rowid DESC LIMIT ?3"
            ))?;
            let rows = query.query_map(params![filter.repo, filter.branch, filter.limit], run_row)?;
            let rows = rows.collect::<Result<Vec<_>, _>>()?;
            rows.into_iter().map(|row| self.summary(tx, row)).collect()
        })
    }

    /// The run that a person means: its whole id, or the beginning or end of one that fits no other.
    pub fn find_run(&self, text: &str) -> Result<RunId, LedgerError> {
        self.read("look a run up", |tx| {
            let mut query = tx.prepare(
                "SELECT id FROM runs WHERE id = ?1 OR substr(id, 1, length(?1)) = ?1 OR substr(id, -length(?1)) = ?1
                 ORDER BY id = ?1 DESC, created DESC, rowid DESC LIMIT ?2",
            )?;
            let limit = u32::try_from(NAMED).unwrap_or(0) + 1;
            let ids = query.query_map(params![text, limit], |r| r.get::<_, String>(0))?;
            let ids = ids.collect::<Result<Vec<_>, _>>()?;
            match ids.as_slice() {
                [first, rest @ ..] if !text.is_empty() && (rest.is_empty() || first == text) => self.run_id(first),
                [] => Err(no_run(text).into()),
                _ if text.is_empty() => Err(no_run(text).into()),
                several => Err(LedgerError::Ambiguous {
                    text: text.chars().take(100).collect(),
                    ids: several.iter().take(NAMED).cloned().collect(),
                    more: several.len() > NAMED,
                }
                .into()),
            }
        })
    }

    /// A run with its attempts and their nodes.
    pub fn show(&self, run: &RunId) -> Result<RunDetail, LedgerError> {
        self.read("show a run", |tx| {
            known_run(tx, run)?;
            let row = tx.query_row(
                &format!("SELECT {RUN_COLUMNS} FROM runs WHERE id = ?1"),
                [run.as_str()],
                run_row,
            )?;
            let run = self.summary(tx, row)?;
            let mut attempts = Vec::new();
            for (token, attempt) in self.attempts(tx, &run.id)? {
                let (nodes, notices) = nodes_of(self.rows(tx, token)?);
                attempts.push(AttemptDetail { attempt, nodes, notices });
            }
            Ok(RunDetail { run, attempts })
        })
    }

    /// The output of an attempt (the last one where none is named), of one node or of all, in the order it came.
    pub fn logs(
        &self,
        run: &RunId,
        attempt: Option<Attempt>,
        node: Option<&[NodeId]>,
    ) -> Result<LogLines, LedgerError> {
        let (_, attempt) = self.read("look an attempt up", |tx| self.token(tx, run, attempt))?;
        self.log_store().lines(run, attempt, node)
    }

    /// All that was recorded of an attempt (the last one where none is named), output included, in order. Output is read
    /// as it is asked for: there may be more of it than fits in memory.
    pub fn events(&self, run: &RunId, attempt: Option<Attempt>) -> Result<RecordedEvents, LedgerError> {
        let (events, attempt) = self.read("read events", |tx| {
            let (token, attempt) = self.token(tx, run, attempt)?;
            Ok((self.rows(tx, token)?, attempt))
        })?;
        let lines = self.log_store().lines(run, attempt, None)?.peekable();
        Ok(RecordedEvents { events: events.into_iter().peekable(), lines })
    }

    fn token(
        &self,
        tx: &Transaction<'_>,
        run: &RunId,
        attempt: Option<Attempt>,
    ) -> Result<(i64, Attempt), Refusal> {
        known_run(tx, run)?;
        let attempts = self.attempts(tx, run)?;
        let found = match attempt {
            Some(wanted) => attempts.iter().find(|(_, a)| a.attempt == wanted),
            None => attempts.last(),
        };
        let missing = LedgerError::NoAttempt { run: run.clone(), attempt: attempt.unwrap_or(Attempt(1)) };
        found.map(|(token, a)| (*token, a.attempt)).ok_or_else(|| missing.into())
    }

    fn rows(&self, tx: &Transaction<'_>, token: i64) -> Result<Vec<RunEvent>, Refusal> {
        let mut query = tx.prepare_cached("SELECT json FROM events WHERE token = ?1 ORDER BY seq")?;
        let rows = query.query_map([token], |r| r.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
        let read =
            |json: String| serde_json::from_str(&json).map_err(|e| self.damaged(format!("an event: {e}")));
        rows.into_iter().map(read).collect()
    }

    fn summary(&self, tx: &Transaction<'_>, row: RunRow) -> Result<RunSummary, Refusal> {
        let id = self.run_id(&row.id)?;
        let last = self.attempts(tx, &id)?.pop().map(|(_, attempt)| attempt);
        let commit = row
            .commit
            .map(|c| c.parse().map_err(|_| self.damaged(format!("commit id {c:?}"))))
            .transpose()?;
        let RunRow { repo, branch, event, definition, created, .. } = row;
        Ok(RunSummary { id, repo, commit, branch, event, definition, created: Timestamp(created), last })
    }

    fn run_id(&self, text: &str) -> Result<RunId, Refusal> {
        text.parse().map_err(|_| self.damaged(format!("run id {text:?}")))
    }

    fn attempts(&self, tx: &Transaction<'_>, run: &RunId) -> Result<Vec<(i64, AttemptRecord)>, Refusal> {
        let mut query = tx.prepare_cached(
            "SELECT token, n, state, pid, started, finished, exit, message FROM attempts WHERE run = ?1 ORDER BY n",
        )?;
        let mut rows = query.query([run.as_str()])?;
        let mut found = Vec::new();
        while let Some(r) = rows.next()? {
            let state: String = r.get(2)?;
            let state = state.parse().map_err(|()| self.damaged(format!("attempt state {state:?}")))?;
            let record = AttemptRecord {
                attempt: Attempt(r.get(1)?),
                state,
                pid: r.get(3)?,
                started: Timestamp(r.get(4)?),
                finished: r.get::<_, Option<i64>>(5)?.map(Timestamp),
                exit: r.get::<_, Option<u8>>(6)?.and_then(ExitCode::from_code),
                message: r.get(7)?,
            };
            found.push((r.get(0)?, record));
        }
        Ok(found)
    }
}

/// What was recorded of an attempt, in order of `seq`: see [`Ledger::events`].
pub struct RecordedEvents {
    events: Peekable<std::vec::IntoIter<RunEvent>>,
    lines: Peekable<LogLines>,
}

impl Iterator for RecordedEvents {
    type Item = Result<RunEvent, LedgerError>;

    fn next(&mut self) -> Option<Self::Item> {
        let line_first = match (self.events.peek(), self.lines.peek()) {
            (Some(event), Some(Ok(line))) => line.seq < event.seq,
            (_, line) => line.is_some(),
        };
        if line_first {
            self.lines.next().map(|line| line.map(LogLine::into_event))
        } else {
            self.events.next().map(Ok)
        }
    }
}

struct RunRow {
    id: String,
    repo: String,
    commit: Option<String>,
    branch: Option<String>,
    event: String,
    definition: String,
    created: i64,
}

fn run_row(r: &Row<'_>) -> rusqlite::Result<RunRow> {
    Ok(RunRow {
        id: r.get(0)?,
        repo: r.get(1)?,
        commit: r.get(2)?,
        branch: r.get(3)?,
        event: r.get(4)?,
        definition: r.get(5)?,
        created: r.get(6)?,
    })
}

fn nodes_of(events: Vec<RunEvent>) -> (Vec<NodeRecord>, Vec<(Vec<NodeId>, String)>) {
    let mut nodes: Vec<NodeRecord> = Vec::new();
    let mut places: HashMap<Vec<NodeId>, usize> = HashMap::new();
    let mut notices = Vec::new();
    for RunEvent { node: path, kind, .. } in events {
        if let EventKind::Planned { name, kind } = kind {
            places.insert(path.clone(), nodes.len());
            nodes.push(NodeRecord { path, name, kind, state: NodeState::Pending, miss: None, result: None });
            continue;
        }
        if let EventKind::Notice { text } | EventKind::News { text } = kind {
            notices.push((path, text));
            continue;
        }
        let Some(node) = places.get(&path).map(|&i| &mut nodes[i]) else { continue };
        match kind {
            EventKind::Started { .. } => node.state = NodeState::Running,
            EventKind::CacheMiss { reason, .. } => node.miss = Some(reason),
            EventKind::Finished { outcome, millis, result, .. } => {
                node.state = NodeState::Ended(outcome, millis);
                node.result = result;
            }
            _ => {}
        }
    }
    // A sub-plan's nodes were planned while the run went on; people read them beneath their parent.
    nodes.sort_by(|a, b| a.path.cmp(&b.path));
    (nodes, notices)
}
