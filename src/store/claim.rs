//! Claims: equal steps run once, across processes.

use crate::error::StoreError;
use crate::open::Store;
use keelway_disk::{Lock, LockError};
use keelway_model::Digest;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The right to perform the step with one key; dropping it, or dying, gives it back.
#[derive(Debug)]
pub struct Claim {
    lock: Lock,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Removed while held: who waits sees that the file it locks is gone and takes the next one. What
        // stays is swept when a store is opened.
        let _ = std::fs::remove_file(self.lock.path());
    }
}

/// Why a claim was not had.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Somebody else holds it, or waiting was cancelled.
    #[error("another keelway is performing the same step: {0}")]
    Lock(#[from] LockError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    pub(crate) fn claim_path(&self, key: &Digest) -> PathBuf {
        self.inner.root.join("locks").join(format!("{CLAIM}{}", key.hex()))
    }

    /// Takes the claim on a key, waiting until `deadline` or until `cancelled` says so. Blocking. After a
    /// wait, look the key up again: the other holder may have recorded its result.
    pub fn claim(
        &self,
        key: &Digest,
        deadline: Instant,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Claim, ClaimError> {
        Ok(Claim { lock: Lock::take(&self.claim_path(key), deadline, cancelled)? })
    }

    /// Takes the claim if it is free.
    pub fn try_claim(&self, key: &Digest) -> Result<Option<Claim>, ClaimError> {
        let path = self.claim_path(key);
        // Lost a race against a holder that just removed the file: free again, so try again.
        for _ in 0..TRIES {
            match Lock::try_take(&path)? {
                Some(lock) if lock.is_still_at(&path) => return Ok(Some(Claim { lock })),
                Some(_) => {}
                None => return Ok(None),
            }
        }
        Ok(None)
    }
}

const CLAIM: &str = "claim-";
const TRIES: usize = 100;

/// Removes the lock files that dead processes left.
pub(crate) fn sweep(locks: &Path) -> Result<(), StoreError> {
    for entry in std::fs::read_dir(locks).map_err(StoreError::io("list", locks))? {
        let path = entry.map_err(StoreError::io("list", locks))?.path();
        let is_claim = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(CLAIM));
        if is_claim
            && let Ok(Some(lock)) = Lock::try_take(&path)
            && lock.is_still_at(&path)
        {
            drop(Claim { lock });
        }
    }
    Ok(())
}
