//! A chain of snapshots read as one tree, without a mount.

use crate::error::StoreError;
use crate::open::Store;
use keelway_model::{SnapshotId, Tree, TreeEntry, TreeError, TreePath};
use std::io::Read;
use std::path::PathBuf;

/// The merged view of a chain.
pub struct View {}

impl Store {
    /// The merged view of `chain`, lowest first; an empty chain is an empty root.
    pub fn view(&self, chain: &[SnapshotId]) -> Result<View, StoreError> {
        todo!()
    }
}

impl View {
    /// Follows every symbolic link in `path`, inside the root, as a process in it would. Components that do
    /// not exist are kept as they are written, so the answer may name something that is not there.
    /// Errors: more than 40 links (ELOOP).
    pub fn resolve(&self, path: &TreePath) -> Result<TreePath, TreeError> {
        todo!()
    }
    /// Where the entry at `path` (no link followed) lies on the host, for a fast copy; `None` when there is
    /// none. For a directory, the topmost of the merged ones.
    pub fn host_path(&self, path: &TreePath) -> Result<Option<PathBuf>, TreeError> {
        todo!()
    }
}

impl Tree for View {
    fn entry(&self, path: &TreePath) -> Result<Option<TreeEntry>, TreeError> {
        todo!()
    }
    fn list(&self, path: &TreePath) -> Result<Vec<TreeEntry>, TreeError> {
        todo!()
    }
    fn open(&self, path: &TreePath) -> Result<Box<dyn Read + Send>, TreeError> {
        todo!()
    }
}
