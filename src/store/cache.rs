//! The cache index: from a step's key to its output.
//!
//! One file a key, published whole. Reading never fails: whatever is not a whole record of things that are
//! still here is a miss, and the step runs again.

use crate::error::StoreError;
use crate::hold::Thing;
use crate::open::Store;
use crate::record;
use keelway_disk::Sync;
use keelway_model::oci::Manifest;
use keelway_model::plan::{Chain, ImageOutput};
use keelway_model::{CacheKey, Digest, KeyPart, Output, Timestamp};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Longest manifest read, in bytes: the bound of the distribution protocol.
const MAX_MANIFEST: u64 = 4 << 20;

/// What a record takes of most disks.
const RECORD: u64 = 4096;

/// What a step with this key gave.
#[derive(Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) key: Digest,
    /// When it was made.
    made: Timestamp,
    pub(crate) output: Output,
}

#[derive(Serialize, Deserialize)]
struct Last {
    identity: Digest,
    parts: Vec<(KeyPart, Digest)>,
}

impl Store {
    pub(crate) fn cache(&self, kind: &str) -> PathBuf {
        self.inner.root.join("cache").join(kind)
    }

    /// The output recorded for a key. A record that is damaged, or whose snapshots, blobs or layers are gone, is a
    /// miss, never an error.
    pub fn cache_get(&self, key: &CacheKey) -> Option<Output> {
        let path = self.cache("keys").join(key.digest.hex());
        let kept: Kept = record::read(&path)?;
        let here = kept.key == key.digest && self.is_here(&kept.output);
        if here {
            self.use_file(&path);
        }
        here.then_some(kept.output)
    }

    /// Records the output of a key, and the parts of the key as the last of its step.
    pub fn cache_put(&self, key: &CacheKey, output: &Output) -> Result<(), StoreError> {
        let kept = Kept { key: key.digest, made: self.inner.clock.now(), output: output.clone() };
        self.put_record("keys", &key.digest, &kept)?;
        let last = Last { identity: key.identity, parts: key.parts.clone() };
        self.put_record("last", &key.identity, &last)
    }

    /// The parts of the last key of the step with this identity, for [`CacheKey::explain`].
    pub fn last_parts(&self, identity: &Digest) -> Option<Vec<(KeyPart, Digest)>> {
        let last: Last = record::read(&self.cache("last").join(identity.hex()))?;
        (last.identity == *identity).then_some(last.parts)
    }

    pub(crate) fn put_record<T: Serialize>(
        &self,
        kind: &str,
        name: &Digest,
        value: &T,
    ) -> Result<(), StoreError> {
        let folder = self.cache(kind);
        let bytes = record::encode(value).map_err(|e| StoreError::io("write", &folder)(e.into()))?;
        self.inner.grew(RECORD);
        self.publish(&folder, &name.hex(), &bytes, Sync::No)
    }

    pub(crate) fn is_here(&self, output: &Output) -> bool {
        let chain = |c: &Chain| {
            // All at once: one line written, and not one for each.
            let things: Vec<Thing> = c.snapshots.iter().cloned().map(Thing::Snapshot).collect();
            match self.hold(&things) {
                Ok(_) => c.snapshots.iter().all(|s| self.has_snapshot(s)),
                Err(e) => {
                    tracing::warn!("{e}");
                    false
                }
            }
        };
        match output {
            Output::Nothing | Output::Pushed(_) => true,
            Output::Chain(c) => chain(c),
            Output::Image(ImageOutput { manifest, chain: c, .. }) => {
                chain(c) && self.has_image(&manifest.digest)
            }
        }
    }

    /// Whether a manifest is here with all that it names.
    fn has_image(&self, manifest: &Digest) -> bool {
        let Ok(bytes) = self.read_blob(manifest, MAX_MANIFEST) else { return false };
        let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) else { return false };
        // All at once: one line written, and not one for each.
        let parts: Vec<Thing> =
            manifest.layers.iter().chain([&manifest.config]).map(|d| Thing::Blob(d.digest)).collect();
        if let Err(e) = self.hold(&parts) {
            tracing::warn!("{e}");
            return false;
        }
        self.has_blob(&manifest.config.digest) && manifest.layers.iter().all(|l| self.has_blob(&l.digest))
    }
}
