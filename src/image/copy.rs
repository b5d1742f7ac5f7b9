//! `COPY` and `ADD`. (skeleton)
use crate::error::StepError;
use crate::key::KeyContext;
use keelway_model::Output;
use keelway_model::plan::CopyOp;
use keelway_store::Upper;

/// Copies into a new layer over the chain of input 0; the caller freezes it ([`crate::extend`]).
pub fn run(op: &CopyOp, inputs: &[Output], cx: &KeyContext<'_>) -> Result<Upper, StepError> {
    let _ = (op, inputs, cx.store);
    todo!()
}
