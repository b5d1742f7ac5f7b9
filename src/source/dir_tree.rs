//! A plain directory as a tree: a build context of the command line, or a work tree as it lies there.
//!
//! Paths are resolved beneath the directory's descriptor (openat2); a symlink is an entry, never a way.

use crate::SourceError;
use keelway_disk::near::Place;
use keelway_disk::{Near, NodeKind, Root, Stat};
use keelway_model::{Stamp, Tree, TreeEntry, TreeError, TreeKind, TreePath};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// A directory. Modes are the disk's; owners are 0:0, since a context carries none; extended attributes are left out.
#[derive(Debug)]
pub struct DirTree {
    near: Near,
    without_git: bool,
}

impl DirTree {
    /// Opens a directory.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let root =
            Root::open(path).map_err(|e| SourceError::io(format!("cannot open {}", path.display()), e))?;
        Ok(Self { near: Near::new(root), without_git: false })
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

    /// The directory that holds an entry, and its name there; `None` when the way leads through a link or no directory.
    fn place<'p>(&self, path: &'p TreePath) -> Result<Option<Place<'p>>, TreeError> {
        if self.hidden(path) {
            return Ok(None);
        }
        self.near.parent(path.as_bytes()).map_err(|e| failed(path, e))
    }

    /// The regular file at `path`.
    fn file(&self, path: &TreePath) -> Result<File, TreeError> {
        let missing = || TreeError::NotFound { path: path.clone() };
        let (dir, name) = self.place(path)?.ok_or_else(missing)?;
        match dir.open_file_nofollow(name) {
            Ok(file) => Ok(file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(missing()),
            // Opened first and asked afterwards: almost everything that is asked for is a file.
            Err(e) => match dir.stat(name).map_err(|e| failed(path, e))? {
                Some(s) if s.kind == NodeKind::File => Err(failed(path, e)),
                Some(_) => Err(TreeError::WrongKind { path: path.clone(), wanted: "a regular file" }),
                None => Err(missing()),
            },
        }
    }

    fn describe(dir: &Root, name: &[u8], stat: &Stat) -> io::Result<TreeEntry> {
        let kind = match stat.kind {
            NodeKind::File => TreeKind::File { size: stat.size },
            NodeKind::Directory => TreeKind::Directory,
            NodeKind::Symlink => TreeKind::Symlink { target: dir.read_link(name)? },
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
        let Some((dir, name)) = self.place(path)? else { return Ok(None) };
        let stat = dir.stat(name).map_err(|e| failed(path, e))?;
        stat.map(|stat| Self::describe(&dir, name, &stat).map_err(|e| failed(path, e))).transpose()
    }

    fn list(&self, path: &TreePath) -> Result<Vec<TreeEntry>, TreeError> {
        let dir = match self.hidden(path) {
            true => None,
            false => self.near.dir(path.as_bytes()).map_err(|e| failed(path, e))?,
        };
        let Some(dir) = dir else {
            return Err(match self.entry(path)? {
                Some(_) => TreeError::WrongKind { path: path.clone(), wanted: "a directory" },
                None => TreeError::NotFound { path: path.clone() },
            });
        };
        let mut out = Vec::new();
        for item in dir.list(b"").map_err(|e| failed(path, e))? {
            let Some(at) = path.join(&item.name) else { continue };
            if self.hidden(&at) {
                continue;
            }
            // An entry that went away since is not there.
            if let Some(stat) = dir.stat(&item.name).map_err(|e| failed(&at, e))? {
                out.push(Self::describe(&dir, &item.name, &stat).map_err(|e| failed(&at, e))?);
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

    fn stamp(&self, path: &TreePath) -> Result<Option<Stamp>, TreeError> {
        let Some((dir, name)) = self.place(path)? else { return Ok(None) };
        let stat = dir.stat(name).map_err(|e| failed(path, e))?;
        Ok(stat.filter(|s| s.kind == NodeKind::File).map(|s| Stamp {
            device: s.id.0,
            inode: s.id.1,
            size: s.size,
            modified: (s.mtime, s.mtime_nsec),
            changed: s.ctime,
        }))
    }
}
