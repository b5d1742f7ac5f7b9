//! A directory of a chain as a writable layer of its own: what a cache mount holds when it is made.

use crate::copy;
use crate::error::StepError;
use crate::key::KeyContext;
use crate::writer::inside;
use keelway_dockerfile::Ignore;
use keelway_model::plan::{Chain, CopyFrom, CopyOp, Unpack};
use keelway_model::{Digest, Output, Tree, TreeKind};
use keelway_store::{Store, Upper};

/// Copies the directory at `source` in a chain, links followed inside it; names, modes and owners stay.
pub fn directory(store: &Store, chain: &Chain, source: &str) -> Result<Upper, StepError> {
    let view = store.view(&chain.snapshots)?;
    let path = view.resolve(&inside(source, "source of a mount")?)?;
    let found = view.entry(&path)?;
    if chain.snapshots.is_empty() && path.is_root() {
        return Ok(store.begin()?);
    }
    if found.is_none_or(|e| e.kind != TreeKind::Directory) {
        return Err(StepError::Refused(format!(
            "{source:?}, which a cache is filled from, is not a directory"
        )));
    }
    let op = CopyOp {
        sources: vec![literal(source)],
        from: CopyFrom::Stage,
        context: None,
        dest: "/".to_owned(),
        chown: None,
        chmod: None,
        exclude: Vec::new(),
        parents: false,
        link: false,
        unpack: Unpack::Never,
        identity: Digest::of(b"keelway seed"),
    };
    let empty = Chain { snapshots: Vec::new(), key: crate::base::chain_key(&[]) };
    let inputs = [Output::Chain(empty), Output::Chain(chain.clone())];
    copy::run(&op, &inputs, &KeyContext { store, context: &view, ignore: &Ignore::default() })
}

/// A path as a pattern that names nothing else.
pub(crate) fn literal(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}
