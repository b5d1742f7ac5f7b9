//! `WORKDIR`: a directory in a new layer.

use crate::copy::chain;
use crate::error::StepError;
use crate::user;
use crate::writer::Writer;
use keelway_model::plan::MkdirOp;
use keelway_model::{Output, TreePath};
use keelway_store::{Store, Upper};

/// Makes the directory in a new layer over the chain of input 0; links on the way are followed inside the
/// root. What is missing gets mode 0755 and the current user as its owner; what is there stays as it is, and
/// the layer is empty when all of it was there.
pub fn run(op: &MkdirOp, inputs: &[Output], store: &Store) -> Result<Upper, StepError> {
    let below = chain(inputs, 0, "mkdir")?;
    let view = store.view(&below.snapshots)?;
    let upper = store.begin()?;
    let wanted = TreePath::clamped(op.path.as_bytes())
        .ok_or_else(|| StepError::Refused("the working directory holds a NUL character".to_owned()))?;
    let path = view.resolve(&wanted)?;
    let owner = user::resolve(&view, &op.user)?;
    let mut writer = Writer::new(upper.root()?, view, Some((owner.uid, owner.gid)));
    if !writer.is_directory(&path)? {
        writer.parents(&path)?;
        writer.directory(&path)?;
    }
    Ok(upper)
}
