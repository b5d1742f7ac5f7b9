//! The parser. (skeleton)
use crate::ast::{Dockerfile, Instruction};
use keelway_model::{Diagnostics, SourceText};
/// Parses a Dockerfile.
pub fn parse(source: &SourceText) -> Result<Dockerfile, Diagnostics> {
    let _ = source;
    todo!()
}
/// Parses one trigger of a base image's `OnBuild`.
pub fn parse_trigger(source: &SourceText) -> Result<Instruction, Diagnostics> {
    let _ = source;
    todo!()
}
