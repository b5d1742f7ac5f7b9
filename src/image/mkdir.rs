//! `WORKDIR`: a directory in a new layer.

use crate::copy::chain;
use crate::error::StepError;
use crate::user;
use crate::writer::{Writer, inside};
use keelway_model::Output;
use keelway_model::plan::MkdirOp;
use keelway_store::{Store, Upper};

/// Makes the directory in a new layer over the chain of input 0; links on the way are followed inside the
/// root. What is missing gets mode 0755 and the current user as its owner; what is there stays as it is, and
/// the layer is empty when all of it was there.
pub fn run(op: &MkdirOp, inputs: &[Output], store: &Store) -> Result<Upper, StepError> {
    let below = chain(inputs, 0, "mkdir")?;
    let view = store.view(&below.snapshots)?;
    let mut upper = store.begin()?;
    let path = view.resolve(&inside(&op.path, "working directory")?)?;
    let owner = user::resolve(&view, &op.user)?;
    let mut writer = Writer::new(upper.root()?, view, Some((owner.uid, owner.gid)));
    if !writer.is_directory(&path)? {
        writer.parents(&path)?;
        writer.directory(&path)?;
    }
    writer.finish(&mut upper)?;
    Ok(upper)
}
