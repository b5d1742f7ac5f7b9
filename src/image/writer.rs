//! Writing into a new layer over a chain, by descriptor, as an overlay would show it.
//!
//! Invariants: paths given here hold no link that is to be followed; the layer itself never holds a link that
//! leads out, because every path goes through [`Root`]; a directory of the chain that something is put into is
//! copied up with its mode, owner and attributes, so that the layer changes nothing it was not told to; and
//! no name becomes a whiteout by accident.

use crate::error::StepError;
use keelway_disk::{NodeKind, Root};
use keelway_model::{Tree, TreeEntry, TreeKind, TreePath};
use keelway_store::{View, is_for_images};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Write};

/// What an entry gets besides its content.
pub(crate) struct Meta {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What is at a path of the merged view.
pub(crate) enum There {
    Nothing,
    Directory,
    Symlink(Vec<u8>),
    Other,
}

pub(crate) struct Writer {
    upper: Root,
    below: View,
    /// Owner of directories that are made on the way; root where none is given.
    owner: (u32, u32),
    /// Directories known to be in the layer.
    made: HashSet<TreePath>,
    /// Those of them that the chain does not have: nothing of it can lie beneath.
    fresh: HashSet<TreePath>,
    /// Directories of the chain that a file has replaced: their content must not show again.
    hidden: HashSet<TreePath>,
    links: HashMap<(u64, u64), TreePath>,
}

impl Writer {
    pub(crate) fn new(upper: Root, below: View, owner: Option<(u32, u32)>) -> Self {
        let made = HashSet::from([TreePath::root()]);
        Self {
            upper,
            below,
            owner: owner.unwrap_or((0, 0)),
            made,
            fresh: HashSet::new(),
            hidden: HashSet::new(),
            links: HashMap::new(),
        }
    }

    /// What a process would find at `path`, no link followed.
    pub(crate) fn look(&self, path: &TreePath) -> Result<There, StepError> {
        if self.made.contains(path) {
            return Ok(There::Directory);
        }
        let stat = self.upper.stat(path.as_bytes()).map_err(wrong("look at", path))?;
        Ok(match stat.map(|s| s.kind) {
            Some(NodeKind::Directory) => There::Directory,
            Some(NodeKind::Symlink) => {
                There::Symlink(self.upper.read_link(path.as_bytes()).map_err(wrong("read the link", path))?)
            }
            Some(_) => There::Other,
            None if self.is_hidden(path) => There::Nothing,
            None => match self.below(path)?.map(|e| e.kind) {
                None => There::Nothing,
                Some(TreeKind::Directory) => There::Directory,
                Some(TreeKind::Symlink { target }) => There::Symlink(target),
                Some(_) => There::Other,
            },
        })
    }

    /// What the chain has at `path`.
    fn below(&self, path: &TreePath) -> Result<Option<TreeEntry>, StepError> {
        if path.parent().is_some_and(|p| self.fresh.contains(&p)) {
            return Ok(None);
        }
        Ok(self.below.entry(path)?)
    }

    fn is_hidden(&self, path: &TreePath) -> bool {
        if self.hidden.is_empty() {
            return false;
        }
        let mut at = Some(path.clone());
        while let Some(p) = at {
            if self.hidden.contains(&p) {
                return true;
            }
            at = p.parent();
        }
        false
    }

    pub(crate) fn is_directory(&self, path: &TreePath) -> Result<bool, StepError> {
        Ok(matches!(self.look(path)?, There::Directory))
    }

    /// Makes what is missing above `path`, each with mode 0755.
    pub(crate) fn parents(&mut self, path: &TreePath) -> Result<(), StepError> {
        let mut missing = Vec::new();
        let mut at = path.parent();
        while let Some(parent) = at.filter(|p| !self.made.contains(p)) {
            at = parent.parent();
            missing.push(parent);
        }
        for parent in missing.iter().rev() {
            self.directory(parent)?;
        }
        Ok(())
    }

    /// Makes sure that there is a directory at `path`, whose parents are in the layer; says whether it is new.
    pub(crate) fn directory(&mut self, path: &TreePath) -> Result<bool, StepError> {
        if self.made.contains(path) {
            return Ok(false);
        }
        checked(path)?;
        let stat = self.upper.stat(path.as_bytes()).map_err(wrong("look at", path))?;
        let there = match stat.map(|s| s.kind) {
            Some(NodeKind::Directory) => {
                self.made.insert(path.clone());
                return Ok(false);
            }
            Some(_) => Some(None),
            None => self.below(path)?.map(Some),
        };
        match there {
            _ if self.is_hidden(path) => {
                let message = format!(
                    "/{path} is a directory of the image that was replaced and is now made again: use two steps"
                );
                Err(StepError::Refused(message))
            }
            Some(Some(TreeEntry { kind: TreeKind::Directory, mode, uid, gid, xattrs, .. })) => {
                self.upper.mkdir(path.as_bytes(), 0o700).map_err(wrong("copy up the directory", path))?;
                self.made.insert(path.clone());
                self.set(path, &Meta { mode, owner: (uid, gid), xattrs })?;
                Ok(false)
            }
            Some(_) => Err(StepError::Refused(format!(
                "/{path} in the image is not a directory, and a directory is to be put there"
            ))),
            None => {
                self.upper.mkdir(path.as_bytes(), 0o755).map_err(wrong("make the directory", path))?;
                self.made.insert(path.clone());
                self.fresh.insert(path.clone());
                let (uid, gid) = self.owner;
                if (uid, gid) != (0, 0) {
                    self.upper
                        .set_owner(path.as_bytes(), uid, gid)
                        .map_err(wrong("set the owner of", path))?;
                    self.upper.set_mode(path.as_bytes(), 0o755).map_err(wrong("set the mode of", path))?;
                }
                Ok(true)
            }
        }
    }

    /// Makes room for anything but a directory.
    fn clear(&mut self, path: &TreePath) -> Result<(), StepError> {
        checked(path)?;
        match self.upper.stat(path.as_bytes()).map_err(wrong("look at", path))?.map(|s| s.kind) {
            Some(NodeKind::Directory) => Err(onto_directory(path)),
            Some(_) => self.upper.remove(path.as_bytes()).map_err(wrong("replace", path)),
            None if self.is_hidden(path) => Ok(()),
            None => match self.below(path)?.map(|e| e.kind) {
                Some(TreeKind::Directory) => Err(onto_directory(path)),
                _ => Ok(()),
            },
        }
    }

    /// Removes a directory that something else of an archive replaces.
    pub(crate) fn replace_directory(&mut self, path: &TreePath) -> Result<(), StepError> {
        if path.is_root() || !self.is_directory(path)? {
            return Ok(());
        }
        if self.upper.stat(path.as_bytes()).map_err(wrong("look at", path))?.is_some() {
            self.upper.remove_all(path.as_bytes()).map_err(wrong("replace", path))?;
        }
        let inside = [path.as_bytes(), b"/"].concat();
        let gone = |m: &TreePath| m == path || m.as_bytes().starts_with(&inside);
        self.made.retain(|m| !gone(m));
        self.fresh.retain(|m| !gone(m));
        if self.below(path)?.is_some() {
            self.hidden.insert(path.clone());
        }
        Ok(())
    }

    /// A regular file of `size` bytes; more or fewer is an error: it changed while it was read.
    pub(crate) fn file<R: Read + ?Sized>(
        &mut self,
        path: &TreePath,
        from: &mut R,
        size: u64,
        meta: &Meta,
    ) -> Result<(), StepError> {
        self.file_by(path, size, meta, |file| copy(from, file))
    }

    /// The same, written by `write`, which gives the size that came out.
    pub(crate) fn file_by(
        &mut self,
        path: &TreePath,
        size: u64,
        meta: &Meta,
        write: impl FnOnce(&mut File) -> io::Result<u64>,
    ) -> Result<(), StepError> {
        self.clear(path)?;
        let mut file = self.upper.create_file(path.as_bytes(), 0o600).map_err(wrong("create", path))?;
        let copied = write(&mut file).map_err(wrong("write", path))?;
        if copied != size {
            let message = format!(
                "{copied} bytes instead of {size}: the source is cut off, or changed while it was copied"
            );
            return Err(wrong("write", path)(io::Error::other(message)));
        }
        drop(file);
        self.set(path, meta)
    }

    pub(crate) fn symlink(&mut self, path: &TreePath, target: &[u8], meta: &Meta) -> Result<(), StepError> {
        self.clear(path)?;
        self.upper.symlink(target, path.as_bytes()).map_err(wrong("make the link", path))?;
        let (uid, gid) = meta.owner;
        self.upper.set_owner(path.as_bytes(), uid, gid).map_err(wrong("set the owner of", path))
    }

    /// A FIFO or device node.
    pub(crate) fn node(&mut self, path: &TreePath, kind: &TreeKind, meta: &Meta) -> Result<(), StepError> {
        let kind = match *kind {
            TreeKind::Fifo => NodeKind::Fifo,
            // To an overlay that is not a device: it is the absence of a file.
            TreeKind::Device { character: true, major: 0, minor: 0 } => {
                return Err(StepError::Refused(format!(
                    "/{path} would be a device 0:0, which marks a deleted file"
                )));
            }
            TreeKind::Device { character, major, minor } => NodeKind::Device { character, major, minor },
            _ => return Err(StepError::Inputs { op: "copy", why: "an entry that is no node" }),
        };
        self.clear(path)?;
        self.upper.mknod(path.as_bytes(), kind, 0o600).map_err(wrong("make the node", path))?;
        self.set(path, meta)
    }

    /// A second name for a file of this layer.
    pub(crate) fn link(&mut self, first: &TreePath, path: &TreePath) -> Result<(), StepError> {
        if first == path {
            return Ok(());
        }
        self.clear(path)?;
        self.upper.hard_link(first.as_bytes(), path.as_bytes()).map_err(wrong("link", path))
    }

    /// Whether anything but a directory is at this path of the layer itself.
    pub(crate) fn in_layer(&self, path: &TreePath) -> Result<bool, StepError> {
        let stat = self.upper.stat(path.as_bytes()).map_err(wrong("look at", path))?;
        Ok(stat.is_some_and(|s| s.kind != NodeKind::Directory))
    }

    /// The path in this layer of the file that was copied from this inode.
    pub(crate) fn linked(&self, id: (u64, u64)) -> Option<TreePath> {
        self.links.get(&id).cloned()
    }
    pub(crate) fn remember_link(&mut self, id: (u64, u64), path: &TreePath) {
        self.links.insert(id, path.clone());
    }

    /// Owner, mode, attributes of what is in the layer, in the order in which they do not undo each other.
    pub(crate) fn set(&mut self, path: &TreePath, meta: &Meta) -> Result<(), StepError> {
        let at = path.as_bytes();
        let (uid, gid) = meta.owner;
        self.upper.set_owner(at, uid, gid).map_err(wrong("set the owner of", path))?;
        self.upper.set_mode(at, meta.mode & 0o7777).map_err(wrong("set the mode of", path))?;
        for (name, value) in &meta.xattrs {
            if is_for_images(name) {
                self.upper.set_xattr(at, name, value).map_err(wrong("set an extended attribute of", path))?;
            }
        }
        Ok(())
    }
}

/// Copies all bytes. Between two files `io::copy` leaves the work to the kernel.
fn copy<R: Read + ?Sized>(from: &mut R, to: &mut File) -> io::Result<u64> {
    let n = io::copy(from, to)?;
    to.flush()?;
    Ok(n)
}

/// Longest path in an image, in bytes: what the kernel takes.
const MAX_PATH: usize = 4095;

/// A path that was written by hand, as one inside the root.
pub(crate) fn inside(path: &str, what: &str) -> Result<TreePath, StepError> {
    let refused = |why: &str| StepError::Refused(format!("the {what} {why}"));
    if path.len() > MAX_PATH {
        return Err(refused(&format!("has {} bytes; a path may have {MAX_PATH}", path.len())));
    }
    TreePath::clamped(path.as_bytes()).ok_or_else(|| refused("holds a NUL character"))
}

/// A name that a layer cannot hold.
fn checked(path: &TreePath) -> Result<(), StepError> {
    match path.components().any(|c| c.starts_with(b".wh.")) {
        true => Err(StepError::Refused(format!(
            "/{path}: names that start with .wh. mark deleted files in image layers"
        ))),
        false => Ok(()),
    }
}

fn onto_directory(path: &TreePath) -> StepError {
    StepError::Refused(format!("cannot replace the directory /{path} with a file"))
}

pub(crate) fn wrong(what: &'static str, path: &TreePath) -> impl FnOnce(io::Error) -> StepError {
    let path = format!("/{path}");
    move |source| StepError::Write { what, path, source }
}
