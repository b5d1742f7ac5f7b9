//! Composition: pin the source, plan, run.
//!
//! This crate knows how every [`Op`](keelway_model::Op) is done and which crate does it; it decides nothing that a lower
//! crate could decide. The way of a run: [`source`] pins a commit and gives its tree, `pipeline` makes the plan, `engine`
//! orders it, [`Performer`] does each node (a build is lowered to steps by `image`, each step runs in a `sandbox`),
//! `ledger` records it. Settings arrive typed; the environment is read by `cli` alone.

mod agent;
pub mod contexts;
pub mod deploy;
mod exec;
mod fetch;
mod git;
pub mod lower;
mod mounts;
mod perform;
mod pin;
mod push;
pub mod record;
mod remote;
mod room;
pub mod run;
pub mod settings;
pub mod source;
mod steps;
mod subtree;
pub mod watch;

pub use perform::{Performer, Subject, Workspace};
pub use remote::{CachePlace, CacheTo, Caches};
pub use settings::{Collection, Needed, Settings};

use keelway_engine::Failure;
use keelway_model::{Diagnostics, ExitCode, SkipReason};

/// Why there was nothing to run.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// The definition is not valid.
    #[error("{0}")]
    Definition(Diagnostics),
    /// Something failed before the first node.
    #[error("{0}")]
    Failed(Failure),
    /// The file does not want to be run for this.
    #[error("nothing to run: {0}")]
    NotTriggered(SkipReason),
}

impl RunnerError {
    /// The exit code it asks for.
    pub fn exit(&self) -> ExitCode {
        match self {
            Self::Definition(found) => found.exit(),
            Self::Failed(f) => f.exit,
            Self::NotTriggered(_) => ExitCode::Done,
        }
    }
    /// Whether nothing but another commit mends it.
    pub(crate) fn is_of_the_commit(&self) -> bool {
        matches!(self, Self::Definition(_)) || self.exit() == ExitCode::Usage
    }
    pub(crate) fn outside(e: impl std::fmt::Display) -> Self {
        Self::Failed(Failure::outside(e.to_string()))
    }
}

impl From<Failure> for RunnerError {
    fn from(f: Failure) -> Self {
        Self::Failed(f)
    }
}

impl From<Diagnostics> for RunnerError {
    fn from(d: Diagnostics) -> Self {
        Self::Definition(d)
    }
}

/// A blocking piece of work on the blocking pool. A panic in it is a bug of ours and says so.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Failure::bug(format!("a worker of Keelway failed: {e}"))),
    }
}
