//! `COPY` and `ADD`: selected entries into a new layer, without a mount.
//!
//! The destination is resolved in the merged view of the chain, links followed inside the root; from there
//! on nothing is followed: a directory may not be copied onto a link or file, a file not onto a directory.
//! A directory that exists keeps its own mode and owner where it is the destination itself, and takes those of
//! the source where it is inside a copied directory, as in BuildKit.
//!
//! A link (`--link`) is copied into an empty root: it follows nothing of the chain, its key knows nothing of it, and
//! the directories on its way have mode 0755 in it, as in BuildKit.

use crate::error::StepError;
use crate::key::KeyContext;
use crate::select::{Selected, Source, Wanted, exclude};
use crate::user;
use crate::writer::{Meta, Writer, inside};
use keelway_dockerfile::Ignore;
use keelway_model::plan::{Chain, CopyFrom, CopyOp, Unpack};
use keelway_model::{Output, TreeEntry, TreeKind, TreePath};
use keelway_store::{Store, Upper, Verdict};

/// Entries that one step looks at, at most: a git tree that names one folder again and again is small and has no
/// end (S10).
const MAX_ENTRIES: u64 = if cfg!(test) { 2_000 } else { 2_000_000 };

pub(crate) mod archive;
pub(crate) mod codec;
#[cfg(test)]
mod tests;

/// Copies into a new layer over the chain of input 0; the caller freezes it ([`crate::extend`]).
pub fn run(op: &CopyOp, inputs: &[Output], cx: &KeyContext<'_>) -> Result<Upper, StepError> {
    let view = cx.store.view(&below(op, inputs)?.snapshots)?;
    let mut upper = cx.store.begin()?;
    let owner = owner(op, inputs, cx.store)?;
    let dest = view.resolve(&inside(&op.dest, "destination")?)?;
    let mut writer = Writer::new(upper.root()?, view, owner);
    let names_directory = op.dest.ends_with('/') || writer.is_directory(&dest)?;
    match &op.from {
        CopyFrom::Inline(files) => {
            for (name, content) in files {
                let to = target(&dest, name.as_bytes(), names_directory)?;
                let meta = Meta {
                    mode: op.chmod.as_ref().map_or(0o644, |m| m.apply(0o644, false)),
                    owner: owner.unwrap_or((0, 0)),
                    xattrs: Vec::new(),
                };
                writer.parents(&to)?;
                writer.file(&to, &mut content.as_bytes(), content.len() as u64, &meta)?;
            }
        }
        CopyFrom::Context => {
            let source = Source::context(cx.context, cx.ignore);
            Copy::new(op, source, Some(owner.unwrap_or((0, 0))), &mut writer)?.all(&dest, names_directory)?;
        }
        CopyFrom::Stage => {
            let other = cx.store.view(&source(op, inputs)?.snapshots)?;
            let source = Source::chain(&other);
            Copy::new(op, source, owner, &mut writer)?.all(&dest, names_directory)?;
        }
    }
    writer.finish(&mut upper)?;
    Ok(upper)
}

/// What a copy goes into: a link's root is empty.
pub fn below(op: &CopyOp, inputs: &[Output]) -> Result<Chain, StepError> {
    if op.link { Ok(crate::base::empty()) } else { chain(inputs, 0, "copy").cloned() }
}

/// The chain that is copied from, with [`CopyFrom::Stage`].
pub(crate) fn source<'a>(op: &CopyOp, inputs: &'a [Output]) -> Result<&'a Chain, StepError> {
    chain(inputs, usize::from(!op.link), "copy")
}

/// The chain among the inputs of a node.
pub(crate) fn chain<'a>(inputs: &'a [Output], at: usize, op: &'static str) -> Result<&'a Chain, StepError> {
    match inputs.get(at) {
        Some(Output::Chain(chain)) => Ok(chain),
        Some(Output::Image(image)) => Ok(&image.chain),
        Some(_) => Err(StepError::Inputs { op, why: "an input is not a root file system" }),
        None => Err(StepError::Inputs { op, why: "an input is missing" }),
    }
}

/// `--chown` in numbers. Names are looked up in what the copy stands on, of a link too: that is its last input then.
pub(crate) fn owner(op: &CopyOp, inputs: &[Output], store: &Store) -> Result<Option<(u32, u32)>, StepError> {
    let Some(spec) = &op.chown else { return Ok(None) };
    let at = match op.link {
        true => usize::from(op.from == CopyFrom::Stage),
        false => 0,
    };
    let known = if user::is_by_name(spec) {
        store.view(&chain(inputs, at, "copy")?.snapshots)?
    } else {
        store.view(&[])?
    };
    Ok(Some(user::resolve_owner(&known, spec)?))
}

fn target(dest: &TreePath, name: &[u8], names_directory: bool) -> Result<TreePath, StepError> {
    if !names_directory {
        return Ok(dest.clone());
    }
    dest.join(name).ok_or_else(|| {
        StepError::Refused(format!("{:?} cannot be a file name", String::from_utf8_lossy(name)))
    })
}

struct Copy<'a, 'w> {
    op: &'a CopyOp,
    exclude: Ignore,
    source: Source<'a>,
    /// Owner of everything copied; `None` keeps each one's own.
    owner: Option<(u32, u32)>,
    writer: &'w mut Writer,
    /// Looked at so far.
    entries: u64,
    /// Directories that are only there for what may come beneath them, from the top down.
    pending: Vec<(TreePath, Meta)>,
}

impl<'a, 'w> Copy<'a, 'w> {
    fn new(
        op: &'a CopyOp,
        source: Source<'a>,
        owner: Option<(u32, u32)>,
        writer: &'w mut Writer,
    ) -> Result<Self, StepError> {
        let exclude = exclude(&op.exclude)?;
        Ok(Self { op, exclude, source, owner, writer, entries: 0, pending: Vec::new() })
    }

    fn all(&mut self, dest: &TreePath, names_directory: bool) -> Result<(), StepError> {
        let wanted = Wanted { sources: &self.op.sources, parents: self.op.parents, exclude: &self.exclude };
        let selected = self.source.select_all(&wanted)?;
        let files = selected.iter().filter(|s| s.entry.kind != TreeKind::Directory).count();
        if files > 1 && !names_directory {
            let message =
                format!("the sources name {files} files: the destination {} must end in /", self.op.dest);
            return Err(StepError::Refused(message));
        }
        for one in &selected {
            self.one(one, dest, names_directory)?;
        }
        Ok(())
    }

    fn one(&mut self, one: &Selected, dest: &TreePath, names_directory: bool) -> Result<(), StepError> {
        if one.entry.kind == TreeKind::Directory {
            self.writer.parents(dest)?;
            let made = self.writer.directory(dest)?;
            // A starting point gives its paths, not itself.
            if made && one.beneath.is_none() {
                self.writer.set(dest, &self.meta(&one.entry))?;
            }
            return self.contents(one, &one.path, dest, 0);
        }
        if self.op.unpack == Unpack::Archives && self.unpacked(one, dest)? {
            return Ok(());
        }
        let to = target(dest, &one.name, names_directory)?;
        self.writer.parents(&to)?;
        self.leaf(&one.path, &one.entry, &to)
    }

    /// Unpacks an archive; says whether it was one.
    fn unpacked(&mut self, one: &Selected, dest: &TreePath) -> Result<bool, StepError> {
        if !matches!(one.entry.kind, TreeKind::File { .. }) {
            return Ok(false);
        }
        let kind = archive::detect(&mut *self.source.tree.open(&one.path)?, &one.path)?;
        let Some(kind) = kind else { return Ok(false) };
        self.writer.parents(dest)?;
        self.writer.directory(dest)?;
        let owner = self.op.chown.as_ref().and(self.owner);
        archive::unpack(kind, self.source.tree.open(&one.path)?, self.writer, dest, owner, &one.path)?;
        Ok(true)
    }

    fn meta(&self, entry: &TreeEntry) -> Meta {
        Meta {
            mode: match &self.op.chmod {
                Some(chmod) => chmod.apply(entry.mode, entry.kind == TreeKind::Directory),
                None => entry.mode,
            },
            owner: self.owner.unwrap_or((entry.uid, entry.gid)),
            xattrs: entry.xattrs.clone(),
        }
    }

    fn contents(
        &mut self,
        one: &Selected,
        from: &TreePath,
        to: &TreePath,
        depth: usize,
    ) -> Result<(), StepError> {
        // As deep as the content key goes.
        if depth > 256 {
            return Err(StepError::Refused(format!("{from} is nested more than 256 directories deep")));
        }
        for entry in self.list(from)? {
            let (Some(path), Some(target)) = (from.join(&entry.name), to.join(&entry.name)) else { continue };
            let directory = entry.kind == TreeKind::Directory;
            match self.source.verdict(one, &self.exclude, &path, &entry) {
                Verdict::Skip => {}
                Verdict::OnlyBeneath if !directory => {}
                Verdict::OnlyBeneath => {
                    let known = self.pending.len();
                    self.pending.push((target.clone(), self.meta(&entry)));
                    self.contents(one, &path, &target, depth + 1)?;
                    self.pending.truncate(known);
                }
                Verdict::Whole | Verdict::Partly => {
                    for (dir, meta) in std::mem::take(&mut self.pending) {
                        self.writer.directory(&dir)?;
                        self.writer.set(&dir, &meta)?;
                    }
                    if directory {
                        self.writer.directory(&target)?;
                        self.writer.set(&target, &self.meta(&entry))?;
                        self.contents(one, &path, &target, depth + 1)?;
                    } else {
                        self.leaf(&path, &entry, &target)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn list(&mut self, dir: &TreePath) -> Result<Vec<TreeEntry>, StepError> {
        let entries = self.source.tree.list(dir)?;
        self.entries += entries.len() as u64;
        if self.entries > MAX_ENTRIES {
            let message = format!("there are more than {MAX_ENTRIES} files and directories to copy");
            return Err(StepError::Refused(message));
        }
        Ok(entries)
    }

    fn leaf(&mut self, path: &TreePath, entry: &TreeEntry, to: &TreePath) -> Result<(), StepError> {
        let meta = self.meta(entry);
        match &entry.kind {
            TreeKind::File { size } => {
                if let Some(first) = entry.link_id.and_then(|id| self.writer.linked(id)) {
                    return self.writer.link(&first, to);
                }
                match self.source.tree.open_file(path)? {
                    Some(file) => self.writer.file_from(to, file, *size, &meta)?,
                    None => self.writer.file(to, &mut *self.source.tree.open(path)?, *size, &meta)?,
                }
                if let Some(id) = entry.link_id {
                    self.writer.remember_link(id, to);
                }
                Ok(())
            }
            TreeKind::Symlink { target } => self.writer.symlink(to, target, &meta),
            TreeKind::Fifo | TreeKind::Device { .. } => self.writer.node(to, &entry.kind, &meta),
            // A socket means nothing without the process that listens on it.
            TreeKind::Socket => Ok(()),
            TreeKind::Submodule => Err(StepError::Refused(format!(
                "{path} is a git submodule: submodules are not supported yet (?submodules=false in the address of a \
                 repository leaves their folders empty)"
            ))),
            TreeKind::Directory => {
                Err(StepError::Inputs { op: "copy", why: "a directory where a file was expected" })
            }
        }
    }
}
