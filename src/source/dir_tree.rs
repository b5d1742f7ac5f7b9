//! A plain directory as a tree: a build context of the command line, or a work tree as it lies there.
//!
//! Paths are resolved beneath the directory's descriptor (openat2); a symlink is an entry, never a way.

use crate::SourceError;
use keelway_disk::{NodeKind, Root, Stat};
use keelway_model::{Tree, TreeEntry, TreeError, TreeKind, TreePath};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// A directory. Modes are the disk's; owners are 0:0, since a context carries none; extended attributes are left out.
#[derive(Debug)]
pub struct DirTree {
    root: Root,
    without_git: bool,
}

impl DirTree {
    /// Opens a directory.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let root =
            Root::open(path).map_err(|e| SourceError::io(format!("cannot open {}", path.display()), e))?;
        Ok(Self { root, without_git: false })
    }

    /// Leaves the `.git` at the top out.
    #[must_use]
    pub(crate) fn without_git(mut self) -> Self {
        self.without_git = true;
        self
    }

    fn hidden(&self, path: &TreePath) -> bool {
        self.without_git && path.components().next() == Some(b".git")
    }

    /// Status of an entry, `None` when a parent is a link or no directory: a link would be followed otherwise.
    fn stat(&self, path: &TreePath) -> Result<Option<Stat>, TreeError> {
        if self.hidden(path) {
            return Ok(None);
        }
        let mut parent = TreePath::root();
        let names: Vec<&[u8]> = path.components().collect();
        for name in names.iter().take(names.len().saturating_sub(1)) {
            let Some(next) = parent.join(name) else { return Ok(None) };
            parent = next;
            match self.root.stat(parent.as_bytes()).map_err(|e| failed(path, e))? {
                Some(s) if s.kind == NodeKind::Directory => {}
                _ => return Ok(None),
            }
        }
        self.root.stat(path.as_bytes()).map_err(|e| failed(path, e))
    }

    /// The regular file at `path`.
    fn file(&self, path: &TreePath) -> Result<File, TreeError> {
        match self.stat(path)? {
            Some(s) if s.kind == NodeKind::File => {}
            Some(_) => return Err(TreeError::WrongKind { path: path.clone(), wanted: "a regular file" }),
            None => return Err(TreeError::NotFound { path: path.clone() }),
        }
        self.root.open_file_nofollow(path.as_bytes()).map_err(|e| failed(path, e))
    }

    fn describe(&self, path: &TreePath, name: &[u8], stat: &Stat) -> Result<TreeEntry, TreeError> {
        let kind = match stat.kind {
            NodeKind::File => TreeKind::File { size: stat.size },
            NodeKind::Directory => TreeKind::Directory,
            NodeKind::Symlink => TreeKind::Symlink {
                target: self.root.read_link(path.as_bytes()).map_err(|e| failed(path, e))?,
            },
            NodeKind::Fifo => TreeKind::Fifo,
            NodeKind::Socket => TreeKind::Socket,
            NodeKind::Device { character, major, minor } => TreeKind::Device { character, major, minor },
        };
        let link_id = (stat.kind == NodeKind::File && stat.links > 1).then_some(stat.id);
        let mode = if stat.kind == NodeKind::Symlink { 0o777 } else { stat.mode };
        Ok(TreeEntry { name: name.to_vec(), kind, mode, uid: 0, gid: 0, xattrs: Vec::new(), link_id })
    }
}

fn failed(path: &TreePath, source: io::Error) -> TreeError {
    TreeError::Io { path: path.clone(), source }
}

impl Tree for DirTree {
    fn entry(&self, path: &TreePath) -> Result<Option<TreeEntry>, TreeError> {
        let Some(stat) = self.stat(path)? else { return Ok(None) };
        self.describe(path, path.file_name().unwrap_or(b""), &stat).map(Some)
    }

    fn list(&self, path: &TreePath) -> Result<Vec<TreeEntry>, TreeError> {
        match self.stat(path)? {
            Some(s) if s.kind == NodeKind::Directory => {}
            Some(_) => return Err(TreeError::WrongKind { path: path.clone(), wanted: "a directory" }),
            None => return Err(TreeError::NotFound { path: path.clone() }),
        }
        let mut out = Vec::new();
        for item in self.root.list(path.as_bytes()).map_err(|e| failed(path, e))? {
            let Some(at) = path.join(&item.name) else { continue };
            if self.hidden(&at) {
                continue;
            }
            // An entry that went away since is not there.
            if let Some(stat) = self.root.stat(at.as_bytes()).map_err(|e| failed(&at, e))? {
                out.push(self.describe(&at, &item.name, &stat)?);
            }
        }
        out.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(out)
    }

    fn open(&self, path: &TreePath) -> Result<Box<dyn Read + Send>, TreeError> {
        Ok(Box::new(self.file(path)?))
    }

    fn open_file(&self, path: &TreePath) -> Result<Option<File>, TreeError> {
        self.file(path).map(Some)
    }
}
