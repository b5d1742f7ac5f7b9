//! The files of an image, as its containers see them: as a tar, or in a directory.

use super::ExportError;
use crate::error::StepError;
use crate::writer::{Meta, Writer};
use keelway_disk::Root;
use keelway_model::plan::Chain;
use keelway_model::{Tree, TreeEntry, TreeKind, TreePath};
use keelway_store::{Store, View};
use std::io::Write;
use std::path::Path;

/// Writes the files of a chain as a tar, with their owners, modes, times and attributes.
pub fn tar<W: Write>(store: &Store, chain: &Chain, out: W) -> Result<W, ExportError> {
    Ok(store.view(&chain.snapshots)?.write_tar(out)?)
}

/// Writes the files of a chain into a directory, which is made where there is none. What is there under other names
/// stays; a file takes the place of a file or link, never of a directory. With `owners` they belong to whom the image
/// says, else to who writes them, without the bits that would let them act for another. They have the time of writing.
/// No link is followed, neither of the image nor of the directory.
pub fn directory(store: &Store, chain: &Chain, owners: bool, dir: &Path) -> Result<(), ExportError> {
    let failed =
        |source| ExportError::Write { what: "the folder".into(), to: dir.display().to_string(), source };
    std::fs::create_dir_all(dir).map_err(failed)?;
    let root = Root::open(dir).map_err(failed)?;
    let view = store.view(&chain.snapshots)?;
    let mut copy = Copy { writer: Writer::new(root, store.view(&[])?, None), view: &view, owners };
    copy.all().map_err(|e| match e {
        StepError::Write { what, path, source } => {
            ExportError::Write { what: format!("{path} ({what})"), to: dir.display().to_string(), source }
        }
        StepError::Refused(why) => ExportError::Refused { dir: dir.to_owned(), why },
        e => e.into(),
    })
}

struct Copy<'a> {
    writer: Writer,
    view: &'a View,
    owners: bool,
}

impl Copy<'_> {
    fn all(&mut self) -> Result<(), StepError> {
        let mut todo = vec![TreePath::root()];
        // Modes of directories come last: one that may not be written must be filled first.
        let mut directories = Vec::new();
        while let Some(dir) = todo.pop() {
            for entry in self.view.list(&dir)? {
                let Some(path) = dir.join(&entry.name) else { continue };
                if entry.kind == TreeKind::Directory {
                    self.writer.directory(&path)?;
                    todo.push(path.clone());
                    directories.push((path, self.meta(&entry)));
                } else {
                    self.leaf(&path, &entry)?;
                }
            }
        }
        directories.iter().rev().try_for_each(|(path, meta)| self.writer.set(path, meta))
    }

    fn meta(&self, entry: &TreeEntry) -> Meta {
        match self.owners {
            true => Meta { mode: entry.mode, owner: (entry.uid, entry.gid), xattrs: entry.xattrs.clone() },
            false => Meta { mode: entry.mode & 0o1777, owner: (0, 0), xattrs: Vec::new() },
        }
    }

    fn leaf(&mut self, path: &TreePath, entry: &TreeEntry) -> Result<(), StepError> {
        let meta = self.meta(entry);
        match &entry.kind {
            TreeKind::File { size } => {
                if let Some(first) = entry.link_id.and_then(|id| self.writer.linked(id)) {
                    return self.writer.link(&first, path);
                }
                self.writer.file(path, &mut *self.view.open(path)?, *size, &meta)?;
                if let Some(id) = entry.link_id {
                    self.writer.remember_link(id, path);
                }
                Ok(())
            }
            TreeKind::Symlink { target } => self.writer.symlink(path, target, &meta),
            TreeKind::Fifo | TreeKind::Device { .. } => self.writer.node(path, &entry.kind, &meta),
            TreeKind::Socket | TreeKind::Submodule | TreeKind::Directory => Ok(()),
        }
    }
}
