//! The seam where tests fail the Nth operation.
//!
//! Code that must survive a failing disk asks [`Faults::step`] before each write, sync and rename. In
//! production the handle is [`Faults::NONE`], one comparison with null. A test counts the steps of a run
//! with [`Faults::never`], then loops over `Faults::fail_at(n)`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is about to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A file or directory is created.
    Create,
    /// Bytes are written.
    Write,
    /// Data or a directory is synced.
    Sync,
    /// A name is changed: the publish point.
    Rename,
}

#[derive(Debug)]
struct Plan {
    fail_at: u64,
    seen: AtomicU64,
}

/// A handle on the seam; clones share one count.
#[derive(Debug, Clone, Default)]
pub struct Faults(Option<Arc<Plan>>);

impl Faults {
    /// Production: nothing fails, nothing is counted.
    pub const NONE: Faults = Faults(None);

    /// Fails step `n`, counted from 1, and every step after it, as a full or dead disk does.
    pub fn fail_at(n: u64) -> Self {
        Self(Some(Arc::new(Plan { fail_at: n, seen: AtomicU64::new(0) })))
    }
    /// Fails nothing, but counts.
    pub fn never() -> Self {
        Self::fail_at(u64::MAX)
    }
    /// How many steps were asked for.
    pub fn seen(&self) -> u64 {
        self.0.as_ref().map_or(0, |p| p.seen.load(Ordering::Relaxed))
    }
    /// To be called right before the operation itself.
    pub fn step(&self, step: Step) -> io::Result<()> {
        let Some(plan) = &self.0 else { return Ok(()) };
        let n = plan.seen.fetch_add(1, Ordering::Relaxed) + 1;
        if n >= plan.fail_at {
            return Err(io::Error::other(format!("injected fault at step {n} ({step:?})")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fails_from_the_nth_step_on() {
        let f = Faults::fail_at(2);
        let other = f.clone();
        assert!(f.step(Step::Write).is_ok());
        assert!(other.step(Step::Sync).is_err());
        assert!(f.step(Step::Rename).is_err());
        assert_eq!(f.seen(), 3);
        assert!(Faults::NONE.step(Step::Write).is_ok());
    }
}
