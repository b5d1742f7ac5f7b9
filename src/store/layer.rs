//! Layers: snapshots as tar, and tar as snapshots.
//!
//! [`write`] walks a snapshot into a tar whose bytes depend on nothing but the snapshot, [`pipe`] hashes and
//! compresses it on the way into a blob, [`parse`] reads a foreign tar without believing it, [`unpack`]
//! makes a snapshot of it.

mod archive;
mod header;
pub(crate) mod parse;
mod pipe;
mod unpack;
mod write;
mod zstd;

pub use archive::TarWriter;
pub use zstd::Frames;

use crate::blob::CommitError;
use crate::claim::{Claim, ClaimError};
use crate::error::StoreError;
use crate::open::Store;
use crate::record;
use crate::snapshot::{Upper, layer_snapshot};
use keelway_disk::{LockError, Root, Sync};
use keelway_model::oci::{Descriptor, media};
use keelway_model::{Bytes, Digest, Hasher, SnapshotId};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// The form of a layer blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// A plain tar.
    None,
    /// gzip, in members of 1 MiB, so that its bytes do not depend on the number of cores.
    Gzip,
    /// zstd, in frames of 1 MiB.
    Zstd,
}

impl Compression {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::None, Self::Gzip, Self::Zstd];

    /// The form that a media type says.
    pub fn of_media_type(media_type: &str) -> Result<Self, UnpackError> {
        match media_type {
            media::LAYER | media::DOCKER_LAYER => Ok(Self::None),
            media::LAYER_GZIP | media::DOCKER_LAYER_GZIP => Ok(Self::Gzip),
            media::LAYER_ZSTD | media::DOCKER_LAYER_ZSTD => Ok(Self::Zstd),
            other => Err(UnpackError::MediaType { media_type: other.chars().take(200).collect() }),
        }
    }
    /// The media type that we give a layer of this form.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::None => media::LAYER,
            Self::Gzip => media::LAYER_GZIP,
            Self::Zstd => media::LAYER_ZSTD,
        }
    }
    /// Docker's name for it.
    pub const fn docker_media_type(self) -> &'static str {
        match self {
            Self::None => media::DOCKER_LAYER,
            Self::Gzip => media::DOCKER_LAYER_GZIP,
            Self::Zstd => media::DOCKER_LAYER_ZSTD,
        }
    }
    pub(crate) const fn record(self) -> &'static str {
        match self {
            Self::None => "layer-none.json",
            Self::Gzip => "layer-gzip.json",
            Self::Zstd => "layer-zstd.json",
        }
    }
}

/// A layer in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Entries, directories that only paths imply included.
    pub entries: u64,
    /// Plain bytes for each compressed byte, once [`ratio_free`](Self::ratio_free) plain bytes were read.
    pub ratio: u64,
    /// Plain bytes before the ratio counts. A file of zeros is honest and shrinks to a thousandth.
    pub ratio_free: Bytes,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        // Real layers stay below 20 to 1.
        Self { bytes: Bytes(64 << 30), entries: 2_000_000, ratio: 200, ratio_free: Bytes(8 << 30) }
    }
}

/// Why a layer was not unpacked. Nothing of it is left then.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// A form we do not read.
    #[error(
        "layers of type {media_type:?} are not supported: plain, gzip and zstd tars are; \
         push the image again with gzip layers"
    )]
    MediaType {
        /// What the manifest says.
        media_type: String,
    },
    /// The compressed stream is cut or damaged.
    #[error("layer {layer} cannot be decompressed: {source}; pull or push it again")]
    Compressed {
        /// The blob.
        layer: Digest,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Not a tar that we understand.
    #[error("layer {layer} is not a sound tar archive, at byte {offset}: {why}")]
    Malformed {
        /// The blob.
        layer: Digest,
        /// Where in the plain tar.
        offset: u64,
        /// What is wrong.
        why: String,
    },
    /// An entry that would be wrong or dangerous to make.
    #[error("layer {layer} holds an entry that is refused, {path}: {why}")]
    Entry {
        /// The blob.
        layer: Digest,
        /// Its name, escaped.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// Larger than allowed.
    #[error("layer {layer} is refused: {why}")]
    Limit {
        /// The blob.
        layer: Digest,
        /// Which bound.
        why: String,
    },
    /// The tar is not the one the image config promises.
    #[error(
        "layer {layer} unpacks to {found}, but the image says {expected}: the image is broken, build it again"
    )]
    DiffId {
        /// The blob.
        layer: Digest,
        /// Promised.
        expected: Digest,
        /// Found.
        found: Digest,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How long to wait for another process that makes the same layer; then we make it too, which is only
/// slower.
const PEER_WAIT: Duration = Duration::from_secs(600);

impl Store {
    /// The snapshot as a layer blob: made at most once per form, remembered beside the snapshot, the same
    /// bytes on every machine.
    pub fn layer_of(&self, id: &SnapshotId, compression: Compression) -> Result<Layer, StoreError> {
        if let Some(layer) = self.remembered(id, compression) {
            return Ok(layer);
        }
        let dir = self.existing(id)?;
        let _claim = self.alone(&format!("{id} {}", compression.record()))?;
        if let Some(layer) = self.remembered(id, compression) {
            return Ok(layer);
        }
        let meta = self.snapshot_meta(id)?;
        let layer = match meta.diff_id {
            // Unpacked from elsewhere: our tar of it would be another tar.
            Some(diff_id) => self.recompress(id, &diff_id, compression)?,
            None => {
                let root = Root::open(&dir).map_err(StoreError::io("open", &dir))?;
                pipe::run(self, compression, |blocks| {
                    write::write_tar(&root, blocks).map_err(StoreError::io("write a layer of", &dir))
                })?
            }
        };
        let others = Compression::ALL.into_iter().filter(|c| *c != compression);
        let mut known =
            others.filter_map(|o| record::read::<Layer>(&self.snapshot_path(id).join(o.record())));
        if let Some(known) = known.find(|known| known.diff_id != layer.diff_id) {
            let why = format!("its content was {} and now is {}", known.diff_id, layer.diff_id);
            return Err(StoreError::Damaged { path: dir, why });
        }
        let folder = self.snapshot_path(id);
        let bytes = record::encode(&layer).map_err(|e| StoreError::io("write", &folder)(e.into()))?;
        self.publish(&folder, compression.record(), &bytes, Sync::No)?;
        Ok(layer)
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
        let id = layer_snapshot(diff_id)?;
        if self.has_snapshot(&id) {
            return Ok(id);
        }
        let compression = Compression::of_media_type(&layer.media_type)?;
        let _claim = self.alone(&format!("{id} unpack"))?;
        if self.has_snapshot(&id) {
            return Ok(id);
        }
        let upper = self.begin()?;
        let size = unpack::unpack(self, &upper, layer, compression, diff_id, limits)?;
        let known = Layer { diff_id: *diff_id, descriptor: layer.clone() };
        upper.remember(compression.record(), &known)?;
        upper.publish(&id, Some(*diff_id), size)?;
        Ok(id)
    }

    /// The same, sure that this very blob holds the tar, and not only another that was unpacked before: it is then
    /// decompressed and hashed.
    pub fn unpack_verified(&self, layer: &Descriptor, diff_id: &Digest) -> Result<SnapshotId, UnpackError> {
        let compression = Compression::of_media_type(&layer.media_type)?;
        let there = self.has_snapshot(&layer_snapshot(diff_id)?);
        let id = self.unpack(layer, diff_id)?;
        let known = self.remembered(&id, compression);
        if there && known.is_none_or(|k| k.descriptor.digest != layer.digest) {
            unpack::verify(self, layer, compression, diff_id, &UnpackLimits::default())?;
        }
        Ok(id)
    }

    /// Unpacks a layer once more, to be looked at.
    pub(crate) fn unpack_again(
        &self,
        layer: &Descriptor,
        form: Compression,
        diff_id: &Digest,
    ) -> Result<Upper, UnpackError> {
        // What this holds is let go of at once.
        let session = self.session()?;
        let upper = session.begin()?;
        unpack::unpack(&session, &upper, layer, form, diff_id, &UnpackLimits::default())?;
        Ok(upper)
    }

    fn remembered(&self, id: &SnapshotId, compression: Compression) -> Option<Layer> {
        let layer: Layer = record::read(&self.snapshot_path(id).join(compression.record()))?;
        self.has_blob(&layer.descriptor.digest).then_some(layer)
    }

    /// Another form of a layer that was pulled, with the same tar inside.
    fn recompress(&self, id: &SnapshotId, diff_id: &Digest, to: Compression) -> Result<Layer, StoreError> {
        let missing = || StoreError::Missing { what: "layer", name: diff_id.to_string() };
        let (form, known) = Compression::ALL
            .into_iter()
            .find_map(|c| Some((c, self.remembered(id, c)?)))
            .ok_or_else(missing)?;
        let path = self.blob_path(&known.descriptor.digest);
        let blob = self.open_blob(&known.descriptor.digest)?;
        let layer = pipe::run(self, to, |blocks| {
            blocks.copy(&mut *unpack::decoder(blob, form)).map_err(StoreError::io("decompress", &path))
        })?;
        if layer.diff_id != *diff_id {
            return Err(StoreError::Damaged {
                path,
                why: format!("its tar is {}, not {diff_id}", layer.diff_id),
            });
        }
        Ok(layer)
    }

    /// Waits for another process that does the same work.
    fn alone(&self, what: &str) -> Result<Option<Claim>, StoreError> {
        let mut key = Hasher::new();
        key.field(b"keelway layer").field(what.as_bytes());
        match self.claim(&key.finish(), Instant::now() + PEER_WAIT, &|| false) {
            Ok(claim) => Ok(Some(claim)),
            Err(ClaimError::Lock(LockError::TimedOut { .. } | LockError::Cancelled { .. })) => Ok(None),
            Err(ClaimError::Lock(e @ LockError::Io { .. })) => {
                Err(StoreError::io("lock in", &self.inner.root)(io::Error::other(e)))
            }
            Err(ClaimError::Store(e)) => Err(e),
        }
    }
}

/// The digest of the tar that the tree in `dir` gives.
pub(crate) fn tar_digest(dir: &Path) -> io::Result<Digest> {
    let root = Root::open(dir)?;
    pipe::digest(|blocks| write::write_tar(&root, blocks))
}

impl From<CommitError> for StoreError {
    /// For commits that expect nothing, which cannot mismatch.
    fn from(e: CommitError) -> Self {
        match e {
            CommitError::Store(e) => e,
            e @ CommitError::Mismatch { .. } => Self::io("commit", "a blob")(io::Error::other(e)),
        }
    }
}

#[cfg(test)]
mod tests;
