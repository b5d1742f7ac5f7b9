//! What does happen: one vocabulary for the terminal, pipes, `--format json` and the ledger.

use crate::cache::MissReason;
use crate::clock::Timestamp;
use crate::ids::{Attempt, CommitId, NodeId, RunId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// One event of a run. `seq` counts from 1 without a gap within a run's attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunEvent {
    /// When.
    pub at: Timestamp,
    /// Its place.
    pub seq: u64,
    /// Which node; none for the run itself. A sub-plan's nodes follow their parent: `[3, 1]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node: Vec<NodeId>,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum EventKind {
    /// A run began.
    RunStarted {
        /// Its id.
        run: RunId,
        /// 1, or more after an interruption.
        attempt: Attempt,
        /// The commit, where the source is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        commit: Option<CommitId>,
    },
    /// A node exists: sent for each before the first starts.
    Planned {
        /// Its name.
        name: String,
        /// `build`, `exec`, ..
        kind: String,
    },
    /// A node waits for something other than its needs.
    Waiting {
        /// For what.
        reason: WaitReason,
    },
    /// A node starts.
    Started {
        /// Its name.
        name: String,
    },
    /// A node's result was in the cache; it does not start.
    CacheHit {
        /// Its name.
        name: String,
    },
    /// A node must run.
    CacheMiss {
        /// Its name.
        name: String,
        /// Why.
        reason: MissReason,
    },
    /// Output of a process, whole lines where they end in time.
    Log {
        /// Which of its outputs.
        stream: LogStream,
        /// The text; bytes that are not UTF-8 are replaced.
        text: String,
    },
    /// Bytes or items done.
    Progress {
        /// What is counted, for example `pull sha256:0123456789ab`.
        what: String,
        /// So far.
        done: u64,
        /// In all, where it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        total: Option<u64>,
    },
    /// Something a person should know, because it may not be as they expect.
    Notice {
        /// One line.
        text: String,
    },
    /// Something that went as it should and is worth a line.
    News {
        /// One line.
        text: String,
    },
    /// A node ended.
    Finished {
        /// Its name.
        name: String,
        /// How.
        outcome: Outcome,
        /// After how many milliseconds.
        millis: u64,
        /// What it gave, for people: a digest, a tag, an address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        result: Option<String>,
    },
    /// The run ended.
    RunFinished {
        /// How.
        outcome: Outcome,
        /// After how many milliseconds.
        millis: u64,
        /// Whether it was stopped before all was done: somebody asked for it, or it could no longer be recorded. Such a
        /// run is still to be run, whatever its outcome says.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        interrupted: bool,
    },
}

/// Which output of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a node or a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Outcome {
    /// As it should.
    Succeeded,
    /// The result was in the cache.
    Cached,
    /// It did not run.
    Skipped {
        /// Why.
        reason: SkipReason,
    },
    /// It failed.
    Failed {
        /// The exit code of the command line that this failure asks for.
        exit: u8,
        /// What failed, on what, what to do next.
        message: String,
    },
    /// Somebody stopped it.
    Cancelled,
}

impl Outcome {
    /// Whether what needs it may run.
    pub const fn is_ok(&self) -> bool {
        matches!(self, Self::Succeeded | Self::Cached)
    }
}

/// Why something did not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "kebab-case")]
pub enum SkipReason {
    /// `when` did not match.
    When {
        /// In words: `branch is "dev", not main`.
        text: String,
    },
    /// Something it needs failed, was skipped or cancelled.
    Needs {
        /// The name of that node.
        name: String,
    },
    /// The command line asked for other stages.
    NotSelected,
    /// A dirty tree never pushes or deploys.
    DirtyTree,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::When { text } => f.write_str(text),
            Self::Needs { name } => write!(f, "{name} did not succeed"),
            Self::NotSelected => f.write_str("not asked for"),
            Self::DirtyTree => f.write_str("a tree as it lies there (--dirty) is never pushed or deployed"),
        }
    }
}

/// What something waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "for", rename_all = "kebab-case")]
pub enum WaitReason {
    /// Another process runs the same step.
    SameStepElsewhere,
    /// All places to run are taken.
    Slots,
}

/// Where the events of a run go: the ledger, a terminal, a pipe. Called on a thread of its own, in order,
/// every event exactly once.
pub trait EventSink: Send {
    /// Takes the events that gathered since the last call, in order of `seq`. When it returns `Ok`, a sink that
    /// records has recorded them. A slow sink slows the run down; it never loses events. After an error the run is
    /// cancelled, and later events are still offered: a sink of several parts goes on with those that work.
    fn events(&mut self, batch: &[RunEvent]) -> Result<(), SinkError>;
}

/// Why a sink can take no more events.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SinkError {
    /// What failed, on what, what to do next.
    pub message: String,
}
