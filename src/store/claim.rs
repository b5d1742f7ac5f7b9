//! Claims: equal steps run once, across processes.

use crate::error::StoreError;
use crate::open::Store;
use keelway_disk::{Lock, LockError};
use keelway_model::Digest;
use std::time::Instant;

/// The right to perform the step with one key; dropping it, or dying, gives it back.
#[derive(Debug)]
pub struct Claim {
    lock: Lock,
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
    /// Takes the claim on a key, waiting until `deadline` or until `cancelled` says so. Blocking. After a
    /// wait, look the key up again: the other holder may have recorded its result.
    pub fn claim(
        &self,
        key: &Digest,
        deadline: Instant,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Claim, ClaimError> {
        todo!()
    }
    /// Takes the claim if it is free.
    pub fn try_claim(&self, key: &Digest) -> Result<Option<Claim>, ClaimError> {
        todo!()
    }
}
