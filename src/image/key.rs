//! Cache keys of build steps.
//!
//! A key says what a step reads and how it runs, never where things lie or when they were made. Of a copy
//! it holds the content of what is selected with the mode and owner that it will have; the source path only
//! counts where it gives a file its name. Limits and undeclared proxies are no part of any key.

use crate::copy::{self, chain, owner};
use crate::error::StepError;
use crate::fetch;
use crate::select::{Source, Wanted, exclude};
use crate::writer::inside;
use keelway_dockerfile::Ignore;
use keelway_model::mount::{FileAccess, RunMount};
use keelway_model::plan::{Chain, CopyFrom, CopyOp, ExecOp, MkdirOp, Network, Unpack};
use keelway_model::{CacheKey, Digest, Hasher, KeyPart, Op, Output, Tree, TreeError, TreeKind};
use keelway_store::{KeyRules, Store, keep_everything};

/// What a key may look at.
pub struct KeyContext<'a> {
    /// The store.
    pub store: &'a Store,
    /// The build context, before the ignore patterns.
    pub context: &'a dyn Tree,
    /// The ignore patterns.
    pub ignore: &'a Ignore,
}

/// The key of a step; `None` for ops without one (`Base`, `Link`, `Assemble`, a `Fetch` without a checksum, and all ops of a pipeline),
/// and for `Git`, whose key is made where the commit is known ([`crate::git::key`]).
/// `inputs` are the outputs of the node's needs, in order.
pub fn key(op: &Op, inputs: &[Output], cx: &KeyContext<'_>) -> Result<Option<CacheKey>, StepError> {
    match op {
        Op::Exec(op) => exec(op, inputs, cx).map(Some),
        Op::Mkdir(op) => Ok(Some(mkdir(op, chain(inputs, 0, "mkdir")?))),
        Op::Copy(op) => copied(op, inputs, cx).map(Some),
        Op::Fetch(op) => Ok(fetch::key(op)),
        Op::Base(_)
        | Op::Git(_)
        | Op::Link
        | Op::Assemble(_)
        | Op::Build(_)
        | Op::Steps(_)
        | Op::Push(_)
        | Op::Deploy(_) => Ok(None),
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

fn exec(op: &ExecOp, inputs: &[Output], cx: &KeyContext<'_>) -> Result<CacheKey, StepError> {
    let below = chain(inputs, 0, "exec")?;
    let argv = list(op.argv.iter().map(|a| (a.as_str(), "")));
    let network: &[u8] = match op.network {
        Network::None => b"none",
        Network::Private => b"private",
        Network::Host => b"host",
    };
    // The order of variables does not change what a process sees.
    let mut env = op.env.clone();
    env.sort();
    let (mut scripts, mut mounts, mut files) = (Vec::new(), Vec::new(), Vec::new());
    for mount in &op.mounts {
        match mount {
            RunMount::Script { target, content } => scripts.push((target.clone(), content.clone())),
            RunMount::Bind { need, source, .. } => {
                files.push(bound(chain(inputs, *need, "exec")?, source, cx)?);
                mounts.push(mount_settings(mount));
            }
            _ => mounts.push(mount_settings(mount)),
        }
    }
    let mut settings = vec![op.cwd.as_bytes(), op.user.0.as_bytes(), network];
    settings.extend(mounts.iter().map(|m| m.as_bytes().as_slice()));
    let mut parts = vec![
        (KeyPart::Base, below.key),
        (KeyPart::Command, hash("exec", &[argv.as_bytes(), pairs(&scripts).as_bytes()])),
        (KeyPart::Environment, pairs(&env)),
        (KeyPart::Settings, hash("exec", &settings)),
    ];
    if !files.is_empty() {
        let files: Vec<&[u8]> = files.iter().map(|f| f.as_bytes().as_slice()).collect();
        parts.push((KeyPart::Files, hash("bound", &files)));
    }
    Ok(CacheKey::new(op.identity, parts))
}

/// The content of what a mount shows.
fn bound(from: &Chain, source: &str, cx: &KeyContext<'_>) -> Result<Digest, StepError> {
    let view = cx.store.view(&from.snapshots)?;
    let path = view.resolve(&inside(source, "source of a mount")?)?;
    if from.snapshots.is_empty() && path.is_root() {
        return Ok(Digest::of(b"keelway content: scratch"));
    }
    let rules = KeyRules { filter: &keep_everything, owner: None, mode: None };
    cx.store.content_digest(&view, &path, &rules).map_err(|e| match e {
        TreeError::NotFound { .. } => {
            StepError::Refused(format!("{source:?}, which a RUN --mount is from, is not there"))
        }
        other => other.into(),
    })
}

/// How a mount looks from inside. What a cache holds and which one it is, and what a secret is, are no part of it.
fn mount_settings(mount: &RunMount) -> Digest {
    let numbers = |a: &FileAccess| [a.mode, a.uid, a.gid].map(u32::to_le_bytes).concat();
    let flag = |on: bool| -> &[u8] { if on { b"yes" } else { b"no" } };
    match mount {
        RunMount::Script { target, content } => hash("script", &[target.as_bytes(), content.as_bytes()]),
        RunMount::Bind { target, writable, .. } => hash("bind", &[target.as_bytes(), flag(*writable)]),
        RunMount::Cache { target, read_only, access, .. } => {
            hash("cache", &[target.as_bytes(), flag(*read_only), &numbers(access)])
        }
        RunMount::Tmpfs { target, size } => {
            let size = size.map_or(Vec::new(), |s| s.0.to_le_bytes().to_vec());
            hash("tmpfs", &[target.as_bytes(), &size])
        }
        RunMount::Secret { target, id, required, access } => {
            hash("secret", &[target.as_bytes(), id.as_bytes(), flag(*required), &numbers(access)])
        }
        RunMount::SecretVariable { name, id, required } => {
            hash("secret variable", &[name.as_bytes(), id.as_bytes(), flag(*required)])
        }
        RunMount::Agent { target, id, required, access } => {
            hash("agent", &[target.as_bytes(), id.as_bytes(), flag(*required), &numbers(access)])
        }
    }
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

fn copied(op: &CopyOp, inputs: &[Output], cx: &KeyContext<'_>) -> Result<CacheKey, StepError> {
    let owner = owner(op, inputs, cx.store)?;
    let files = match &op.from {
        CopyFrom::Inline(files) => {
            let mode = op.chmod.as_ref().map_or(0o644, |m| m.apply(0o644, false));
            hash("inline", &[pairs(files).as_bytes(), &mode.to_le_bytes()])
        }
        CopyFrom::Context => {
            let source = Source::context(cx.context, cx.ignore);
            selected(op, &source, Some(owner.unwrap_or((0, 0))), cx.store)?
        }
        CopyFrom::Stage => {
            let view = cx.store.view(&copy::source(op, inputs)?.snapshots)?;
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
    // What --chmod and --exclude do is in the files part: how they say it does not matter.
    let parents: &[u8] = if op.parents { b"parents" } else { b"" };
    let owner = owner.map_or(Vec::new(), |(u, g)| [u.to_le_bytes(), g.to_le_bytes()].concat());
    let mut parts = vec![
        (KeyPart::Command, hash("copy", &[op.dest.as_bytes(), from, unpack, parents, &owner])),
        (KeyPart::Files, files),
    ];
    // A link stands on nothing; of the owner it is the number that counts, whoever knew it.
    if !op.link {
        parts.push((KeyPart::Base, copy::below(op, inputs)?.key));
    }
    Ok(CacheKey::new(op.identity, parts))
}

fn selected(
    op: &CopyOp,
    source: &Source<'_>,
    owner: Option<(u32, u32)>,
    store: &Store,
) -> Result<Digest, StepError> {
    let exclude = exclude(&op.exclude)?;
    let wanted = Wanted { sources: &op.sources, parents: op.parents, exclude: &exclude };
    let mut h = Hasher::new();
    h.field(b"selected");
    let mut nothing = true;
    for one in source.select_all(&wanted)? {
        let filter = |path: &_, entry: &_| source.verdict(&one, &exclude, path, entry);
        let rules = KeyRules { filter: &filter, owner, mode: op.chmod.as_ref() };
        if one.beneath.is_some() {
            // Of a starting point only what is copied of it counts, by its path.
            h.field(b"//");
            for entry in source.tree.list(&one.path)? {
                let Some(path) = one.path.join(&entry.name) else { continue };
                if let Some(digest) = store.content_if_any(source.tree, &path, &rules)? {
                    h.field(&entry.name).field(digest.as_bytes());
                    nothing = false;
                }
            }
            continue;
        }
        let name: &[u8] = match one.entry.kind {
            TreeKind::Directory => b"/",
            _ => &one.name,
        };
        h.field(name).field(store.content_digest(source.tree, &one.path, &rules)?.as_bytes());
    }
    if nothing && op.parents && exclude.is_empty() {
        return Err(source.nothing(&wanted));
    }
    Ok(h.finish())
}
