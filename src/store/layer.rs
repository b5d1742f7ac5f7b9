//! Layers: snapshots as tar, and tar as snapshots.

use crate::error::StoreError;
use crate::open::Store;
use keelway_model::oci::Descriptor;
use keelway_model::{Bytes, Digest, SnapshotId};

/// The form of a layer blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// A plain tar.
    None,
    /// gzip, in members of 1 MiB, so that its bytes do not depend on the number of cores.
    Gzip,
}

/// A layer in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the plain tar.
    pub diff_id: Digest,
    /// The blob.
    pub descriptor: Descriptor,
}

/// Bounds on unpacking, against archives made to fill a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Bytes of the plain tar.
    pub bytes: Bytes,
    /// Entries.
    pub entries: u64,
    /// Plain bytes for each compressed byte, once 100 MiB were read.
    pub ratio: u64,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        Self { bytes: Bytes(64 << 30), entries: 2_000_000, ratio: 1000 }
    }
}

/// Why a layer was not unpacked. Nothing of it is left then.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// The snapshot as a layer blob: made at most once per form, remembered beside the snapshot, the same
    /// bytes on every machine.
    pub fn layer_of(&self, id: &SnapshotId, compression: Compression) -> Result<Layer, StoreError> {
        todo!()
    }
    /// Unpacks a layer blob into a snapshot whose id is derived from `diff_id`; returns at once when it is
    /// there. The media type decides the compression; the digest of the plain tar must be `diff_id`.
    pub fn unpack(&self, layer: &Descriptor, diff_id: &Digest) -> Result<SnapshotId, UnpackError> {
        self.unpack_with(layer, diff_id, &UnpackLimits::default())
    }
    /// The same with other bounds.
    pub fn unpack_with(
        &self,
        layer: &Descriptor,
        diff_id: &Digest,
        limits: &UnpackLimits,
    ) -> Result<SnapshotId, UnpackError> {
        todo!()
    }
}
