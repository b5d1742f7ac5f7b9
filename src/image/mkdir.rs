//! `WORKDIR`. (skeleton)
use crate::error::StepError;
use keelway_model::Output;
use keelway_model::plan::MkdirOp;
use keelway_store::{Store, Upper};

/// Makes the directory in a new layer over the chain of input 0; empty where it is there already.
pub fn run(op: &MkdirOp, inputs: &[Output], store: &Store) -> Result<Upper, StepError> {
    let _ = (op, inputs, store);
    todo!()
}
