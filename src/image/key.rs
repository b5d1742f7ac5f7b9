//! Cache keys of build steps.
//!
//! A key says what a step reads and how it runs, never where things lie or when they were made. Of a copy
//! it holds the content of what is selected with the mode and owner that it will have; the source path only
//! counts where it gives a file its name. Limits and undeclared proxies are no part of any key.

use crate::copy::{chain, owner};
use crate::error::StepError;
use crate::select::Source;
use keelway_dockerfile::Ignore;
use keelway_model::plan::{Chain, CopyFrom, CopyOp, ExecOp, MkdirOp, Network, Unpack};
use keelway_model::{CacheKey, Digest, Hasher, KeyPart, Op, Output, Tree, TreeKind};
use keelway_store::{KeyRules, Store};

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
    match op {
        Op::Exec(op) => Ok(Some(exec(op, chain(inputs, 0, "exec")?))),
        Op::Mkdir(op) => Ok(Some(mkdir(op, chain(inputs, 0, "mkdir")?))),
        Op::Copy(op) => copy(op, inputs, cx).map(Some),
        Op::Base(_) | Op::Assemble(_) | Op::Build(_) | Op::Steps(_) | Op::Push(_) | Op::Deploy(_) => Ok(None),
    }
}

fn hash(what: &str, fields: &[&[u8]]) -> Digest {
    let mut h = Hasher::new();
    h.field(what.as_bytes());
    for field in fields {
        h.field(field);
    }
    h.finish()
}

/// Lists are framed twice, so that no list runs into the next.
fn list<'a>(items: impl Iterator<Item = (&'a str, &'a str)>) -> Digest {
    let mut h = Hasher::new();
    for (a, b) in items {
        h.field(a.as_bytes()).field(b.as_bytes());
    }
    h.finish()
}

fn pairs(items: &[(String, String)]) -> Digest {
    list(items.iter().map(|(k, v)| (k.as_str(), v.as_str())))
}

fn exec(op: &ExecOp, below: &Chain) -> CacheKey {
    let argv = list(op.argv.iter().map(|a| (a.as_str(), "")));
    let network: &[u8] = match op.network {
        Network::None => b"none",
        Network::Private => b"private",
        Network::Host => b"host",
    };
    // The order of variables does not change what a process sees.
    let mut env = op.env.clone();
    env.sort();
    CacheKey::new(
        op.identity,
        vec![
            (KeyPart::Base, below.key),
            (KeyPart::Command, hash("exec", &[argv.as_bytes(), pairs(&op.scripts).as_bytes()])),
            (KeyPart::Environment, pairs(&env)),
            (KeyPart::Settings, hash("exec", &[op.cwd.as_bytes(), op.user.0.as_bytes(), network])),
        ],
    )
}

fn mkdir(op: &MkdirOp, below: &Chain) -> CacheKey {
    CacheKey::new(
        op.identity,
        vec![
            (KeyPart::Base, below.key),
            (KeyPart::Command, hash("mkdir", &[op.path.as_bytes()])),
            (KeyPart::Settings, hash("mkdir", &[op.user.0.as_bytes()])),
        ],
    )
}

fn copy(op: &CopyOp, inputs: &[Output], cx: &KeyContext<'_>) -> Result<CacheKey, StepError> {
    let below = chain(inputs, 0, "copy")?;
    let owner = match &op.chown {
        Some(_) => owner(op, &cx.store.view(&below.snapshots)?)?,
        None => None,
    };
    let files = match &op.from {
        CopyFrom::Inline(files) => hash("inline", &[pairs(files).as_bytes()]),
        CopyFrom::Context => {
            let source = Source::context(cx.context, cx.ignore);
            selected(op, &source, Some(owner.unwrap_or((0, 0))), cx.store)?
        }
        CopyFrom::Stage => {
            let view = cx.store.view(&chain(inputs, 1, "copy")?.snapshots)?;
            selected(op, &Source::chain(&view), owner, cx.store)?
        }
    };
    let from: &[u8] = match op.from {
        CopyFrom::Context => b"context",
        CopyFrom::Stage => b"stage",
        CopyFrom::Inline(_) => b"inline",
    };
    let unpack: &[u8] = match op.unpack {
        Unpack::Never => b"never",
        Unpack::Archives => b"archives",
    };
    let mode = op.chmod.map_or(Vec::new(), |m| m.to_le_bytes().to_vec());
    let owner = owner.map_or(Vec::new(), |(u, g)| [u.to_le_bytes(), g.to_le_bytes()].concat());
    Ok(CacheKey::new(
        op.identity,
        vec![
            (KeyPart::Base, below.key),
            (KeyPart::Command, hash("copy", &[op.dest.as_bytes(), from, unpack, &mode, &owner])),
            (KeyPart::Files, files),
        ],
    ))
}

fn selected(
    op: &CopyOp,
    source: &Source<'_>,
    owner: Option<(u32, u32)>,
    store: &Store,
) -> Result<Digest, StepError> {
    let filter = |path: &_, entry: &_| source.verdict(path, entry);
    let rules = KeyRules { filter: &filter, owner, mode: op.chmod };
    let mut h = Hasher::new();
    h.field(b"selected");
    for one in source.select_all(&op.sources)? {
        let name: &[u8] = match one.entry.kind {
            TreeKind::Directory => b"/",
            _ => &one.name,
        };
        h.field(name).field(store.content_digest(source.tree, &one.path, &rules)?.as_bytes());
    }
    Ok(h.finish())
}
