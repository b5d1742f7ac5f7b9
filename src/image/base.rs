//! Chains: the root file system of a base, and what a step adds to it. (skeleton)
use crate::error::StepError;
use keelway_model::plan::{BaseOp, Chain};
use keelway_model::{CacheKey, Digest};
use keelway_store::{Store, Upper};

/// The chain of a pinned base whose layer blobs are in the store: unpacks what is not unpacked yet.
pub fn unpack(store: &Store, op: &BaseOp) -> Result<Chain, StepError> {
    let _ = (store, op);
    todo!()
}
/// The key that names a chain of base layers: equal layers give equal keys, whatever tag or config they came with.
pub fn chain_key(diff_ids: &[Digest]) -> Digest {
    let _ = diff_ids;
    todo!()
}
/// Freezes what a step wrote and puts it on top of the chain it stood on.
pub fn extend(below: &Chain, upper: Upper, key: &CacheKey) -> Result<Chain, StepError> {
    let _ = (below, upper, key);
    todo!()
}
