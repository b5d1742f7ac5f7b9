//! Config and manifest. (skeleton)
use crate::error::StepError;
use keelway_model::plan::{AssembleOp, Chain, ImageOutput};
use keelway_model::{SnapshotId, Timestamp};
use keelway_store::{Layer, Store};

/// Makes the compressed layer of a snapshot, so that [`assemble()`] finds it remembered. May run while later steps do.
pub fn prepare_layer(store: &Store, snapshot: &SnapshotId) -> Result<Layer, StepError> {
    let _ = (store, snapshot);
    todo!()
}
/// Writes config and manifest over `chain`. `created` goes into config and history of the steps of this
/// build; the same inputs give the same manifest digest on any machine.
pub fn assemble(
    store: &Store,
    op: &AssembleOp,
    chain: &Chain,
    created: Timestamp,
) -> Result<ImageOutput, StepError> {
    let _ = (store, op, chain, created);
    todo!()
}
