//! Snapshots: frozen overlayfs uppers.

use crate::error::StoreError;
use crate::open::Store;
use keelway_disk::Root;
use keelway_model::{SnapshotId, Timestamp};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The modification time of everything that a step wrote: 1980-01-02 00:00:00 UTC.
pub const LAYER_TIME: Timestamp = Timestamp::from_seconds(315_619_200);

/// What is recorded beside a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMeta {
    /// Format of this record.
    pub version: u32,
    /// What was added to every owner on disk: the container's id is the disk's minus this.
    pub id_offset: u32,
}

/// A writable layer in this process's run directory. Dropping it discards it.
pub struct Upper {
    store: Store,
    dir: PathBuf,
}

impl Upper {
    /// The overlay's upper directory; mode 0755, owner 0:0 at first.
    pub fn fs(&self) -> &Path {
        todo!()
    }
    /// The overlay's work directory, on the same file system.
    pub fn work(&self) -> &Path {
        todo!()
    }
    /// The upper directory as a root for writing by descriptor.
    pub fn root(&self) -> Result<Root, StoreError> {
        todo!()
    }
    /// Freezes it: every entry gets [`LAYER_TIME`], overlay's private attributes go, and it becomes a snapshot.
    /// Nothing may write to it any more, and no overlay may still be mounted on it.
    pub fn freeze(self) -> Result<SnapshotId, StoreError> {
        todo!()
    }
}

impl Store {
    /// An empty writable layer.
    pub fn begin(&self) -> Result<Upper, StoreError> {
        todo!()
    }
    /// The directory of a snapshot, usable as an overlay's lower directory; read only by agreement.
    pub fn snapshot_dir(&self, id: &SnapshotId) -> PathBuf {
        todo!()
    }
    /// Whether the snapshot is here and can be trusted.
    pub fn has_snapshot(&self, id: &SnapshotId) -> bool {
        todo!()
    }
    /// Whether the snapshot holds no entry (its root's own mode and owner aside).
    pub fn snapshot_is_empty(&self, id: &SnapshotId) -> Result<bool, StoreError> {
        todo!()
    }
    /// What is recorded beside it.
    pub fn snapshot_meta(&self, id: &SnapshotId) -> Result<SnapshotMeta, StoreError> {
        todo!()
    }
}
