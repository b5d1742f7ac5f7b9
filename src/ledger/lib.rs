//! The durable record of runs: attempts, events, logs.
//!
//! One SQLite file in WAL mode for state and events, one append-only log file a node (`keelway_disk::chunklog`) for
//! output, because logs in rows are what makes such databases slow. Layout of the ledger's directory:
//! `ledger.db`, `runs/<run>/owner.lock`, `runs/<run>/<attempt>/<node path>.log`.
//!
//! Invariants:
//! - a change of state and the event that tells of it are one transaction;
//! - whoever runs an attempt holds `owner.lock` of its run; an attempt is interrupted when that lock is free, and
//!   nobody else may say so. The lock dies with its process;
//! - every attempt has a fencing token; a write with the token of an attempt that is over is refused;
//! - a log line is in its file before an event with a greater number is in the database.
//!
//! Progress events are for watching and are not recorded. Nothing here prints or decides what runs. All calls block;
//! async callers use `spawn_blocking`.

mod branch;
mod error;
mod logs;
mod open;
mod runs;
mod schema;
mod show;
mod sink;

#[cfg(test)]
mod tests;

pub use branch::{BranchRecord, QueuedCommit};
pub use error::LedgerError;
pub use logs::{LogLine, LogLines};
pub use open::Ledger;
pub use runs::{AttemptHandle, AttemptState, FencingToken, Interrupted, NewRun, new_run_id};
pub use show::{
    AttemptDetail, AttemptRecord, Filter, NodeRecord, NodeState, RecordedEvents, RunDetail, RunSummary,
};
pub use sink::LedgerSink;
