//! The cache index: from a step's key to its output.

use crate::error::StoreError;
use crate::open::Store;
use keelway_model::{CacheKey, Digest, KeyPart, Output};
use serde::{Deserialize, Serialize};

/// What a step with this key gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CacheRecord {
    /// Its output.
    pub output: Output,
}

impl Store {
    /// The record of a key. A record that is damaged, or whose snapshots, blobs or layers are gone, is a
    /// miss, never an error.
    pub fn cache_get(&self, key: &CacheKey) -> Option<CacheRecord> {
        todo!()
    }
    /// Records the output of a key, and the parts of the key as the last of its step.
    pub fn cache_put(&self, key: &CacheKey, record: &CacheRecord) -> Result<(), StoreError> {
        todo!()
    }
    /// The parts of the last key of the step with this identity, for [`CacheKey::explain`].
    pub fn last_parts(&self, identity: &Digest) -> Option<Vec<(KeyPart, Digest)>> {
        todo!()
    }
}
