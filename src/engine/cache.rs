//! What the engine needs of a store: look a step up, record it, and keep an equal step from running twice.
//!
//! All methods block for at most a few file operations; the engine calls them on the blocking pool. Waiting is
//! the engine's business, so [`StepCache::try_claim`] never waits.

use keelway_model::plan::Chain;
use keelway_model::{CacheKey, Digest, KeyPart, Output};
use keelway_store::{ClaimError, Store, StoreError};

#[cfg(test)]
pub(crate) mod memory;

/// Held while a step runs; dropping it, or dying, lets others run the step.
pub type Claim = Box<dyn std::any::Any + Send>;

/// The store failed. It says itself what failed, on what, and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A record could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The right to run a step could not be asked for.
    #[error(transparent)]
    Claim(#[from] ClaimError),
}

/// Results of steps by key.
pub trait StepCache: Send + Sync + 'static {
    /// The output recorded for a key, when all of it is still there.
    fn get(&self, key: &CacheKey) -> Result<Option<Output>, CacheError>;
    /// The output of the same step on a base of other snapshots that hold the same bytes.
    fn again(&self, key: &CacheKey, base: &Chain) -> Result<Option<Output>, CacheError>;
    /// Records an output, and what the step stood on.
    fn put(&self, key: &CacheKey, base: Option<&Chain>, output: &Output) -> Result<(), CacheError>;
    /// The parts of the last key recorded for the same step: [`CacheKey::identity`].
    fn last_parts(&self, identity: &Digest) -> Result<Option<Vec<(KeyPart, Digest)>>, CacheError>;
    /// The right to run the step with this key, or `None` while somebody else, in this or another process, has it.
    fn try_claim(&self, key: &Digest) -> Result<Option<Claim>, CacheError>;
}

impl StepCache for Store {
    fn get(&self, key: &CacheKey) -> Result<Option<Output>, CacheError> {
        Ok(self.cache_get(key))
    }
    fn again(&self, key: &CacheKey, base: &Chain) -> Result<Option<Output>, CacheError> {
        Ok(self.cache_again(key, base))
    }
    fn put(&self, key: &CacheKey, base: Option<&Chain>, output: &Output) -> Result<(), CacheError> {
        self.cache_put(key, output)?;
        match base {
            Some(base) => Ok(self.cache_ran(key, base, output)?),
            None => Ok(()),
        }
    }
    fn last_parts(&self, identity: &Digest) -> Result<Option<Vec<(KeyPart, Digest)>>, CacheError> {
        Ok(Store::last_parts(self, identity))
    }
    fn try_claim(&self, key: &Digest) -> Result<Option<Claim>, CacheError> {
        Ok(Store::try_claim(self, key)?.map(|c| Box::new(c) as Claim))
    }
}
