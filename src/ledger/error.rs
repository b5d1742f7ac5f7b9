//! What can go wrong with the ledger, for people.

use keelway_model::{Attempt, RunId};
use std::path::PathBuf;

/// A call of the ledger failed.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A file or directory of the ledger cannot be used.
    #[error("the ledger cannot use {path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The database refused.
    #[error("the ledger {path} could not {doing}: {source}{}", mend(.path, .source))]
    Database {
        /// The database file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// The cause.
        #[source]
        source: rusqlite::Error,
    },
    /// Not a ledger.
    #[error("{path} is not a keelway ledger: move it away, or name another data directory")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Written by a later keelway.
    #[error("the ledger {path} has format {found}, this keelway knows up to {known}: use the newer keelway")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// A record does not read as what it should be.
    #[error("the ledger {path} is damaged: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// No such run.
    #[error("there is no run {run}: `keelway runs ls` shows those there are")]
    NoRun {
        /// As asked for.
        run: String,
    },
    /// A part of an id that several have.
    #[error("{text} fits more than one run: {}{}; write more of the id", ids.join(", "), if *more { ", .." } else { "" })]
    Ambiguous {
        /// As asked for.
        text: String,
        /// Some of those it fits.
        ids: Vec<String>,
        /// Whether there are others.
        more: bool,
    },
    /// No such attempt.
    #[error("run {run} has no attempt {attempt}: `keelway runs show {run}` shows those there are")]
    NoAttempt {
        /// The run.
        run: RunId,
        /// As asked for.
        attempt: Attempt,
    },
    /// Somebody runs it.
    #[error("run {run} is being run by another process{}: wait for its end, or end that process", pid.map(|p| format!(" ({p})")).unwrap_or_default())]
    Running {
        /// The run.
        run: RunId,
        /// The process, where the record names it.
        pid: Option<u32>,
    },
    /// Its time is over.
    #[error("attempt {attempt} of run {run} is over, nothing more can be recorded for it")]
    Fenced {
        /// The run.
        run: RunId,
        /// The attempt.
        attempt: Attempt,
    },
    /// Another process recorded commits of the branch meanwhile.
    #[error(
        "branch {branch} of {repo} was recorded by another process meanwhile: is a second `keelway watch` running?"
    )]
    BranchMoved {
        /// The repository.
        repo: String,
        /// The branch.
        branch: String,
    },
}

/// What to do about a database that cannot be read any more.
fn mend(path: &std::path::Path, source: &rusqlite::Error) -> String {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match (source.sqlite_error_code(), path.parent()) {
        (Some(DatabaseCorrupt | NotADatabase), Some(dir)) => format!(
            "; it is damaged. Move it aside (`mv {} {}.damaged`) and run again: a new ledger is begun, and the old \
             one can still be looked at with sqlite3's .recover",
            dir.display(),
            dir.display()
        ),
        _ => String::new(),
    }
}
