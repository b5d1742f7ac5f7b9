//! A cache in memory, for tests of the engine. It promises what the store's does, within one process.

use super::{CacheError, Claim, StepCache};
use keelway_model::plan::Chain;
use keelway_model::{CacheKey, Digest, KeyPart, Output, SnapshotId};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

/// A cache in memory. Clones share one content.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryCache(Arc<Mutex<Memory>>);

#[derive(Debug, Default)]
struct Memory {
    outputs: HashMap<Digest, Output>,
    parts: HashMap<Digest, Vec<(KeyPart, Digest)>>,
    /// By the step alone and its base: here equal snapshots are those of the same name.
    steps: HashMap<(Digest, Vec<SnapshotId>), Output>,
    claimed: HashSet<Digest>,
}

struct MemoryClaim {
    cache: MemoryCache,
    key: Digest,
}

impl Drop for MemoryClaim {
    fn drop(&mut self) {
        self.cache.lock().claimed.remove(&self.key);
    }
}

impl MemoryCache {
    /// Nothing recorded.
    pub(crate) fn new() -> Self {
        Self::default()
    }
    fn lock(&self) -> std::sync::MutexGuard<'_, Memory> {
        // Every change is one insertion or removal, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StepCache for MemoryCache {
    fn get(&self, key: &CacheKey) -> Result<Option<Output>, CacheError> {
        Ok(self.lock().outputs.get(&key.digest).cloned())
    }
    fn again(&self, key: &CacheKey, base: &Chain) -> Result<Option<Output>, CacheError> {
        Ok(key.step().and_then(|step| self.lock().steps.get(&(step, base.snapshots.clone())).cloned()))
    }
    fn put(&self, key: &CacheKey, base: Option<&Chain>, output: &Output) -> Result<(), CacheError> {
        let mut memory = self.lock();
        if let (Some(step), Some(base)) = (key.step(), base) {
            memory.steps.insert((step, base.snapshots.clone()), output.clone());
        }
        memory.outputs.insert(key.digest, output.clone());
        memory.parts.insert(key.identity, key.parts.clone());
        Ok(())
    }
    fn last_parts(&self, identity: &Digest) -> Result<Option<Vec<(KeyPart, Digest)>>, CacheError> {
        Ok(self.lock().parts.get(identity).cloned())
    }
    fn try_claim(&self, key: &Digest) -> Result<Option<Claim>, CacheError> {
        let free = self.lock().claimed.insert(*key);
        Ok(free.then(|| Box::new(MemoryClaim { cache: self.clone(), key: *key }) as Claim))
    }
}
