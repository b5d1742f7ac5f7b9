//! Opening a store, and the run directory that a process holds in it.

use crate::error::{OpenError, StoreError};
use keelway_disk::Faults;
use keelway_model::Clock;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open store. Cheap to clone; the run directory lives until the last clone goes.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) root: PathBuf,
    pub(crate) run: PathBuf,
    pub(crate) reaped: Vec<ReapedRun>,
    pub(crate) faults: Faults,
}

/// A run directory whose process had died, now moved to the trash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReapedRun {
    /// Its name.
    pub id: String,
    /// Cgroups that the process had recorded ([`Store::note_cgroup`]), oldest first: the caller ends what is
    /// in them and removes them.
    pub cgroups: Vec<String>,
}

impl Store {
    /// Opens the store at `path`, making it (mode 0700) when there is none, and takes a run directory.
    pub fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Store, OpenError> {
        Self::open_with(path, clock, Faults::NONE)
    }
    /// The same with a fault seam, for tests.
    pub fn open_with(path: &Path, clock: Arc<dyn Clock>, faults: Faults) -> Result<Store, OpenError> {
        todo!()
    }
    /// Where the store is, absolute.
    pub fn path(&self) -> &Path {
        &self.inner.root
    }
    /// This process's own directory: on the store's file system, gone after its death.
    pub fn run_dir(&self) -> &Path {
        &self.inner.run
    }
    /// What was left by dead processes and has been cleaned up on opening.
    pub fn reaped(&self) -> &[ReapedRun] {
        &self.inner.reaped
    }
    /// Records a cgroup before it is made, so that the next process can remove it if this one dies.
    pub fn note_cgroup(&self, name: &str) -> Result<(), StoreError> {
        todo!()
    }
    /// Everything written so far survives a crash of the machine once this returns.
    pub fn sync(&self) -> Result<(), StoreError> {
        todo!()
    }
    /// Deletes what is in the trash for at most `budget`; says whether it is empty now. For a quiet moment:
    /// after the result is shown.
    pub fn empty_trash(&self, budget: std::time::Duration) -> Result<bool, StoreError> {
        todo!()
    }
}
