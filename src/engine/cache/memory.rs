//! A cache in memory, for tests of the engine. It promises what the store's does, within one process.

use super::{CacheError, Claim, StepCache};
use keelway_model::{CacheKey, Digest, KeyPart, Output};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

/// A cache in memory. Clones share one content.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryCache(Arc<Mutex<Memory>>);

#[derive(Debug, Default)]
struct Memory {
    outputs: HashMap<Digest, Output>,
    parts: HashMap<Digest, Vec<(KeyPart, Digest)>>,
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
    fn put(&self, key: &CacheKey, output: &Output) -> Result<(), CacheError> {
        let mut memory = self.lock();
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
