//! Output of nodes: one append-only file a node, a chunk an event.

use crate::error::LedgerError;
use keelway_disk::{ChunkLog, ChunkReader, Faults, sync_dir};
use keelway_model::{Attempt, EventKind, LogStream, NodeId, RunEvent, RunId, Timestamp};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A piece of output: whole lines where they ended in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When.
    pub at: Timestamp,
    /// Its place among the events of the attempt.
    pub seq: u64,
    /// The node.
    pub node: Vec<NodeId>,
    /// Which of its outputs.
    pub stream: LogStream,
    /// The text.
    pub text: String,
}

impl LogLine {
    /// Back as the event it was.
    pub fn into_event(self) -> RunEvent {
        let kind = EventKind::Log { stream: self.stream, text: self.text };
        RunEvent { at: self.at, seq: self.seq, node: self.node, kind }
    }
}

type MemoryLogs = Arc<Mutex<BTreeMap<(RunId, Attempt, Vec<NodeId>), Vec<RunEvent>>>>;

/// Where logs are kept.
#[derive(Clone)]
pub(crate) enum LogStore {
    Files(PathBuf),
    Memory(MemoryLogs),
}

impl LogStore {
    pub fn files(runs: PathBuf) -> Self {
        Self::Files(runs)
    }
    pub fn memory() -> Self {
        Self::Memory(Arc::default())
    }
    /// The writing end for one attempt.
    pub fn writer(&self, run: &RunId, attempt: Attempt) -> NodeLogs {
        let store = self.clone();
        NodeLogs { store, run: run.clone(), attempt, open: HashMap::new(), rooted: false }
    }
    /// The greatest number of a recorded piece of output, 0 where there is none, and when that was.
    pub fn last(&self, run: &RunId, attempt: Attempt) -> Result<(u64, Timestamp), LedgerError> {
        let mut last = (0, Timestamp(0));
        for line in self.lines(run, attempt, None)? {
            let line = line?;
            last = last.max((line.seq, line.at));
        }
        Ok(last)
    }
    /// What was recorded, of one node or of all, in order of `seq`.
    pub fn lines(
        &self,
        run: &RunId,
        attempt: Attempt,
        node: Option<&[NodeId]>,
    ) -> Result<LogLines, LedgerError> {
        let mut sources = Vec::new();
        match self {
            Self::Files(runs) => {
                let dir = attempt_dir(runs, run, attempt);
                for path in log_files(&dir, node)? {
                    let reader = ChunkReader::open(&path, 0)
                        .map_err(|source| LedgerError::Io { path: path.clone(), source })?;
                    sources.push(Source { next: None, from: From::File(reader, path) });
                }
            }
            Self::Memory(logs) => {
                let logs = logs.lock().unwrap_or_else(PoisonError::into_inner);
                for ((r, a, n), events) in logs.iter() {
                    if r == run && *a == attempt && node.is_none_or(|wanted| wanted == n.as_slice()) {
                        sources.push(Source { next: None, from: From::Memory(events.clone().into_iter()) });
                    }
                }
            }
        }
        for source in &mut sources {
            source.advance()?;
        }
        Ok(LogLines { sources, failed: None })
    }
}

/// `<runs>/<run>/<attempt>`.
fn attempt_dir(runs: &Path, run: &RunId, attempt: Attempt) -> PathBuf {
    runs.join(run.as_str()).join(attempt.to_string())
}

/// `3.1.log` of node [3, 1].
fn file_name(node: &[NodeId]) -> String {
    let ids: Vec<String> = node.iter().map(|n| n.0.to_string()).collect();
    format!("{}.log", ids.join("."))
}

fn log_files(dir: &Path, node: Option<&[NodeId]>) -> Result<Vec<PathBuf>, LedgerError> {
    let failed = |source| LedgerError::Io { path: dir.into(), source };
    if let Some(node) = node {
        let path = dir.join(file_name(node));
        return Ok(if path.try_exists().map_err(failed)? { vec![path] } else { Vec::new() });
    }
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|e| e == "log") {
            found.push(path);
        }
    }
    Ok(found)
}

/// Pieces of output in order of `seq`, read as they are asked for. Of a run that is going on, what there is by now.
pub struct LogLines {
    sources: Vec<Source>,
    failed: Option<LedgerError>,
}

struct Source {
    next: Option<LogLine>,
    from: From,
}

enum From {
    File(ChunkReader, PathBuf),
    Memory(std::vec::IntoIter<RunEvent>),
}

impl Source {
    fn advance(&mut self) -> Result<(), LedgerError> {
        let event = match &mut self.from {
            From::Memory(events) => events.next(),
            From::File(reader, path) => {
                let chunk =
                    reader.next_chunk().map_err(|source| LedgerError::Io { path: path.clone(), source })?;
                let read = |bytes: Vec<u8>| serde_json::from_slice::<RunEvent>(&bytes);
                chunk
                    .map(read)
                    .transpose()
                    .map_err(|e| LedgerError::Damaged { path: path.clone(), what: e.to_string() })?
            }
        };
        self.next = event.and_then(|RunEvent { at, seq, node, kind }| match kind {
            EventKind::Log { stream, text } => Some(LogLine { at, seq, node, stream, text }),
            _ => None,
        });
        Ok(())
    }
}

impl Iterator for LogLines {
    type Item = Result<LogLine, LedgerError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        let seq = |s: &Source| s.next.as_ref().map(|l| l.seq);
        let first = self.sources.iter_mut().filter(|s| s.next.is_some()).min_by_key(|s| seq(s))?;
        let line = first.next.take()?;
        // A log that cannot be read on ends here, and the next call says why.
        self.failed = first.advance().err();
        Some(Ok(line))
    }
}

/// The writing end of one attempt's logs; a file is open while its node runs.
pub(crate) struct NodeLogs {
    store: LogStore,
    run: RunId,
    attempt: Attempt,
    open: HashMap<Vec<NodeId>, (ChunkLog, PathBuf)>,
    /// Whether the directories above those files last.
    rooted: bool,
}

impl std::fmt::Debug for NodeLogs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeLogs")
            .field("run", &self.run)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

impl NodeLogs {
    /// Appends a piece of output.
    pub fn append(&mut self, event: &RunEvent) -> Result<(), LedgerError> {
        let runs = match &self.store {
            LogStore::Files(runs) => runs,
            LogStore::Memory(logs) => {
                let mut logs = logs.lock().unwrap_or_else(PoisonError::into_inner);
                logs.entry((self.run.clone(), self.attempt, event.node.clone()))
                    .or_default()
                    .push(event.clone());
                return Ok(());
            }
        };
        if !self.open.contains_key(&event.node) {
            let dir = attempt_dir(runs, &self.run, self.attempt);
            crate::open::private_dir(&dir)?;
            let path = dir.join(file_name(&event.node));
            let log = ChunkLog::open(&path, Faults::default())
                .map_err(|source| LedgerError::Io { path: path.clone(), source })?;
            self.open.insert(event.node.clone(), (log, path));
        }
        if let Some((log, path)) = self.open.get_mut(&event.node) {
            let failed = |source| LedgerError::Io { path: path.clone(), source };
            let chunk = serde_json::to_vec(event).map_err(|e| failed(std::io::Error::other(e)))?;
            log.append(&chunk).map_err(failed)?;
        }
        Ok(())
    }

    /// The node ended: its log goes to disk before the event that says so.
    pub fn close(&mut self, node: &[NodeId]) -> Result<(), LedgerError> {
        let (Some((mut log, path)), LogStore::Files(runs)) = (self.open.remove(node), &self.store) else {
            return Ok(());
        };
        log.sync().map_err(|source| LedgerError::Io { path, source })?;
        // The names on the way to it, too: the file's, and once those of the attempt's and the run's directories.
        let run = runs.join(self.run.as_str());
        let attempt = attempt_dir(runs, &self.run, self.attempt);
        let new: &[&Path] = if self.rooted { &[&attempt] } else { &[&attempt, &run, runs] };
        for dir in new {
            sync_dir(dir).map_err(|source| LedgerError::Io { path: (*dir).into(), source })?;
        }
        self.rooted = true;
        Ok(())
    }
}
