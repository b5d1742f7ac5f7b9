//! `COPY` and `ADD`: selected entries into a new layer, without a mount.
//!
//! The destination is resolved in the merged view of the chain, links followed inside the root; from there
//! on nothing is followed: a directory may not be copied onto a link or file, a file not onto a directory.
//! A directory that exists keeps its own mode and owner where it is the destination itself, and takes those of
//! the source where it is inside a copied directory, as in BuildKit.

use crate::error::StepError;
use crate::key::KeyContext;
use crate::select::{Selected, Source};
use crate::user;
use crate::writer::{Meta, Writer, inside};
use keelway_model::plan::{Chain, CopyFrom, CopyOp, Unpack};
use keelway_model::{Output, TreeEntry, TreeKind, TreePath};
use keelway_store::{Upper, Verdict, View};

/// Entries that one step looks at, at most: a git tree that names one folder again and again is small and has no
/// end (S10).
const MAX_ENTRIES: u64 = if cfg!(test) { 2_000 } else { 2_000_000 };

pub(crate) mod archive;
#[cfg(test)]
mod tests;

/// Copies into a new layer over the chain of input 0; the caller freezes it ([`crate::extend`]).
pub fn run(op: &CopyOp, inputs: &[Output], cx: &KeyContext<'_>) -> Result<Upper, StepError> {
    let below = chain(inputs, 0, "copy")?;
    let view = cx.store.view(&below.snapshots)?;
    let upper = cx.store.begin()?;
    let owner = owner(op, &view)?;
    let dest = view.resolve(&inside(&op.dest, "destination")?)?;
    let mut writer = Writer::new(upper.root()?, view, owner);
    let names_directory = op.dest.ends_with('/') || writer.is_directory(&dest)?;
    match &op.from {
        CopyFrom::Inline(files) => {
            for (name, content) in files {
                let to = target(&dest, name.as_bytes(), names_directory)?;
                let meta = Meta {
                    mode: op.chmod.unwrap_or(0o644),
                    owner: owner.unwrap_or((0, 0)),
                    xattrs: Vec::new(),
                };
                writer.parents(&to)?;
                writer.file(&to, &mut content.as_bytes(), content.len() as u64, &meta)?;
            }
        }
        CopyFrom::Context => {
            let source = Source::context(cx.context, cx.ignore);
            Copy { op, source, owner: Some(owner.unwrap_or((0, 0))), writer: &mut writer, entries: 0 }
                .all(&dest, names_directory)?;
        }
        CopyFrom::Stage => {
            let other = cx.store.view(&chain(inputs, 1, "copy")?.snapshots)?;
            let source = Source::chain(&other);
            Copy { op, source, owner, writer: &mut writer, entries: 0 }.all(&dest, names_directory)?;
        }
    }
    Ok(upper)
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

/// `--chown` in numbers, by the files of the chain that is copied into.
pub(crate) fn owner(op: &CopyOp, view: &View) -> Result<Option<(u32, u32)>, StepError> {
    op.chown.as_ref().map(|spec| user::resolve_owner(view, spec)).transpose().map_err(StepError::User)
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
    source: Source<'a>,
    /// Owner of everything copied; `None` keeps each one's own.
    owner: Option<(u32, u32)>,
    writer: &'w mut Writer,
    /// Looked at so far.
    entries: u64,
}

impl Copy<'_, '_> {
    fn all(&mut self, dest: &TreePath, names_directory: bool) -> Result<(), StepError> {
        let selected = self.source.select_all(&self.op.sources)?;
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
            if made {
                self.writer.set(dest, &self.meta(&one.entry))?;
            }
            return self.contents(&one.path, dest, 0);
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
            mode: self.op.chmod.unwrap_or(entry.mode),
            owner: self.owner.unwrap_or((entry.uid, entry.gid)),
            xattrs: entry.xattrs.clone(),
        }
    }

    fn contents(&mut self, from: &TreePath, to: &TreePath, depth: usize) -> Result<(), StepError> {
        // As deep as the content key goes.
        if depth > 256 {
            return Err(StepError::Refused(format!("{from} is nested more than 256 directories deep")));
        }
        for entry in self.list(from)? {
            let (Some(path), Some(target)) = (from.join(&entry.name), to.join(&entry.name)) else { continue };
            match self.source.verdict(&path, &entry) {
                Verdict::Skip => {}
                Verdict::OnlyBeneath if !self.holds_anything(&path, depth)? => {}
                _ if entry.kind == TreeKind::Directory => {
                    self.writer.directory(&target)?;
                    self.writer.set(&target, &self.meta(&entry))?;
                    self.contents(&path, &target, depth + 1)?;
                }
                _ => self.leaf(&path, &entry, &target)?,
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

    /// Whether something beneath a directory that is left out was taken back in.
    fn holds_anything(&mut self, dir: &TreePath, depth: usize) -> Result<bool, StepError> {
        if depth > 256 {
            return Ok(false);
        }
        for entry in self.list(dir)? {
            let Some(path) = dir.join(&entry.name) else { continue };
            let holds = match self.source.verdict(&path, &entry) {
                Verdict::Skip => false,
                Verdict::OnlyBeneath => self.holds_anything(&path, depth + 1)?,
                Verdict::Whole | Verdict::Partly => true,
            };
            if holds {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn leaf(&mut self, path: &TreePath, entry: &TreeEntry, to: &TreePath) -> Result<(), StepError> {
        let meta = self.meta(entry);
        match &entry.kind {
            TreeKind::File { size } => {
                if let Some(first) = entry.link_id.and_then(|id| self.writer.linked(id)) {
                    return self.writer.link(&first, to);
                }
                match self.source.tree.open_file(path)? {
                    Some(mut file) => self.writer.file(to, &mut file, *size, &meta)?,
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
                "{path} is a git submodule: submodules are not supported yet"
            ))),
            TreeKind::Directory => {
                Err(StepError::Inputs { op: "copy", why: "a directory where a file was expected" })
            }
        }
    }
}
