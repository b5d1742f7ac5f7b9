//! `Op::Deploy`: the digest that a push of this run got its answer for, rolled out.

use crate::perform::Performer;
use keelway_engine::{Ctx, Failure, Performed};
use keelway_model::plan::DeployOp;
use keelway_model::{Node, Output};

pub(crate) async fn run(performer: &Performer, ctx: &Ctx, node: &Node, op: &DeployOp, inputs: &[Output]) -> Result<Performed, Failure> {
    let _ = (performer, ctx, op, inputs);
    Err(Failure::bug(format!("{}: deploy is not composed yet", node.name)))
}
