//! Cache keys of build steps. (skeleton)
use crate::error::StepError;
use keelway_dockerfile::Ignore;
use keelway_model::{CacheKey, Op, Output, Tree};
use keelway_store::Store;

/// What a key may look at.
pub struct KeyContext<'a> {
    /// The store.
    pub store: &'a Store,
    /// The build context, before the ignore patterns.
    pub context: &'a dyn Tree,
    /// The ignore patterns.
    pub ignore: &'a Ignore,
}

/// The key of a step; `None` for ops without one (`Base`, `Assemble`, and all ops of a pipeline).
/// `inputs` are the outputs of the node's needs, in order.
pub fn key(op: &Op, inputs: &[Output], cx: &KeyContext<'_>) -> Result<Option<CacheKey>, StepError> {
    let _ = (op, inputs, cx.store, cx.context, cx.ignore);
    todo!()
}
