//! What the engine needs of a store: look a step up, record it, and keep an equal step from running twice.
//!
//! All methods block for at most a few file operations; the engine calls them on the blocking pool. Waiting is
//! the engine's business, so [`StepCache::try_claim`] never waits.

use keelway_model::{CacheKey, Digest, KeyPart, Output};
use keelway_store::{CacheRecord, Store};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

/// Held while a step runs; dropping it, or dying, lets others run the step.
pub type Claim = Box<dyn std::any::Any + Send>;

/// The store failed: what failed, on what, what to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CacheError {
    /// The whole message.
    pub message: String,
}

/// Results of steps by key.
pub trait StepCache: Send + Sync + 'static {
    /// The output recorded for a key, when all of it is still there.
    fn get(&self, key: &CacheKey) -> Result<Option<Output>, CacheError>;
    /// Records an output.
    fn put(&self, key: &CacheKey, output: &Output) -> Result<(), CacheError>;
    /// The parts of the last key recorded for the same step: [`CacheKey::identity`].
    fn last_parts(&self, identity: &Digest) -> Result<Option<Vec<(KeyPart, Digest)>>, CacheError>;
    /// The right to run the step with this key, or `None` while somebody else, in this or another process, has it.
    fn try_claim(&self, key: &Digest) -> Result<Option<Claim>, CacheError>;
}

/// A cache in memory. Clones share one content.
#[derive(Debug, Clone, Default)]
pub struct MemoryCache(Arc<Mutex<Memory>>);

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
    pub fn new() -> Self {
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

impl StepCache for Store {
    fn get(&self, key: &CacheKey) -> Result<Option<Output>, CacheError> {
        Ok(self.cache_get(key).map(|record| record.output))
    }
    fn put(&self, key: &CacheKey, output: &Output) -> Result<(), CacheError> {
        let record = CacheRecord { output: output.clone() };
        self.cache_put(key, &record).map_err(|e| CacheError { message: e.to_string() })
    }
    fn last_parts(&self, identity: &Digest) -> Result<Option<Vec<(KeyPart, Digest)>>, CacheError> {
        Ok(Store::last_parts(self, identity))
    }
    fn try_claim(&self, key: &Digest) -> Result<Option<Claim>, CacheError> {
        match Store::try_claim(self, key) {
            Ok(claim) => Ok(claim.map(|c| Box::new(c) as Claim)),
            Err(e) => Err(CacheError { message: e.to_string() }),
        }
    }
}
