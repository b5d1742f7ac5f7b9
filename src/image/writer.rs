//! Writing into a new layer over a chain, by descriptor, as an overlay would show it.
//!
//! Invariants: paths given here hold no link that is to be followed; the layer itself never holds a link that
//! leads out, because every path goes through [`Root`]; a directory of the chain that something is put into is
//! copied up with its mode, owner and attributes, so that the layer changes nothing it was not told to; no name
//! becomes a whiteout by accident; and what is written carries [`LAYER_TIME`] from the start, a directory from
//! [`Writer::finish`] on, so that nobody need walk the layer again to freeze it.

use crate::error::StepError;
use keelway_disk::near::Place;
use keelway_disk::{Near, NodeKind, Root, copy_bytes, set_attributes};
use keelway_model::{Tree, TreeEntry, TreeKind, TreePath};
use keelway_store::{LAYER_TIME, Upper, View, is_for_images};
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
    upper: Near,
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
            upper: Near::new(upper),
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
        Ok(match self.kind(path)? {
            Some(NodeKind::Directory) => There::Directory,
            Some(NodeKind::Symlink) => {
                There::Symlink(self.at(path, "read the link", |dir, name| dir.read_link(name))?)
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

    /// What is at `path` in the layer itself.
    fn kind(&self, path: &TreePath) -> Result<Option<NodeKind>, StepError> {
        let look = |(dir, name): Place<'_>| dir.stat(name);
        let found = self.upper.parent(path.as_bytes()).and_then(|place| place.map_or(Ok(None), look));
        Ok(found.map_err(wrong("look at", path))?.map(|s| s.kind))
    }

    /// Does something to an entry whose parent is in the layer.
    fn at<T>(
        &self,
        path: &TreePath,
        what: &'static str,
        act: impl FnOnce(&Root, &[u8]) -> io::Result<T>,
    ) -> Result<T, StepError> {
        let place = self.upper.parent(path.as_bytes()).and_then(|place| place.ok_or_else(no_parent));
        place.and_then(|(dir, name)| act(&dir, name)).map_err(wrong(what, path))
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
        let there = match self.kind(path)? {
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
                self.at(path, "copy up the directory", |dir, name| dir.mkdir(name, 0o700))?;
                self.made.insert(path.clone());
                self.set(path, &Meta { mode, owner: (uid, gid), xattrs })?;
                Ok(false)
            }
            Some(_) => Err(StepError::Refused(format!(
                "/{path} in the image is not a directory, and a directory is to be put there"
            ))),
            None => {
                self.at(path, "make the directory", |dir, name| dir.mkdir(name, 0o755))?;
                self.made.insert(path.clone());
                self.fresh.insert(path.clone());
                let (uid, gid) = self.owner;
                if (uid, gid) != (0, 0) {
                    self.at(path, "set the owner of", |dir, name| dir.set_owner(name, uid, gid))?;
                    self.at(path, "set the mode of", |dir, name| dir.set_mode(name, 0o755))?;
                }
                Ok(true)
            }
        }
    }

    /// Makes room for anything but a directory.
    fn clear(&mut self, path: &TreePath) -> Result<(), StepError> {
        checked(path)?;
        match self.kind(path)? {
            Some(NodeKind::Directory) => Err(onto_directory(path)),
            Some(_) => self.at(path, "replace", Root::remove),
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
        if self.kind(path)?.is_some() {
            self.at(path, "replace", Root::remove_all)?;
            self.upper.forget();
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

    /// The same from an open file.
    pub(crate) fn file_from(
        &mut self,
        path: &TreePath,
        mut from: File,
        size: u64,
        meta: &Meta,
    ) -> Result<(), StepError> {
        self.file_by(path, size, meta, |file| copy_bytes(&mut from, file, size))
    }

    /// The same, written by `write`, which gives the size that came out.
    pub(crate) fn file_by(
        &mut self,
        path: &TreePath,
        size: u64,
        meta: &Meta,
        write: impl FnOnce(&mut File) -> io::Result<u64>,
    ) -> Result<(), StepError> {
        let mut file = self.create(path)?;
        let copied = write(&mut file).map_err(wrong("write", path))?;
        if copied != size {
            let message = format!(
                "{copied} bytes instead of {size}: the source is cut off, or changed while it was copied"
            );
            return Err(wrong("write", path)(io::Error::other(message)));
        }
        set_attributes(&file, meta.owner, meta.mode, LAYER_TIME.seconds())
            .map_err(wrong("set the owner and mode of", path))?;
        // Last, because a new owner takes a file's capabilities away.
        self.set_xattrs(path, meta)
    }

    /// A new file in the layer, in the place of whatever is there that it may replace.
    fn create(&mut self, path: &TreePath) -> Result<File, StepError> {
        let create = |w: &Self| {
            w.at(path, "create", |dir, name| match dir.create_new(name) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(None),
                other => other.map(Some),
            })
        };
        checked(path)?;
        // Almost always nothing is there: then one call says so and makes it.
        if path.parent().is_some_and(|p| self.fresh.contains(&p))
            && let Some(file) = create(self)?
        {
            return Ok(file);
        }
        self.clear(path)?;
        create(self)?.ok_or_else(|| wrong("create", path)(io::ErrorKind::AlreadyExists.into()))
    }

    pub(crate) fn symlink(&mut self, path: &TreePath, target: &[u8], meta: &Meta) -> Result<(), StepError> {
        self.clear(path)?;
        self.at(path, "make the link", |dir, name| dir.symlink(target, name))?;
        let (uid, gid) = meta.owner;
        self.at(path, "set the owner of", |dir, name| dir.set_owner(name, uid, gid))?;
        self.set_time(path)
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
        self.at(path, "make the node", |dir, name| dir.mknod(name, kind, 0o600))?;
        self.set(path, meta)?;
        self.set_time(path)
    }

    /// A second name for a file of this layer.
    pub(crate) fn link(&mut self, first: &TreePath, path: &TreePath) -> Result<(), StepError> {
        if first == path {
            return Ok(());
        }
        self.clear(path)?;
        let linked = self.upper.parent(first.as_bytes()).and_then(|from| {
            let (from, first) = from.ok_or_else(no_parent)?;
            let (to, name) = self.upper.parent(path.as_bytes())?.ok_or_else(no_parent)?;
            from.hard_link_to(first, &to, name)
        });
        linked.map_err(wrong("link", path))
    }

    /// Whether anything but a directory is at this path of the layer itself.
    pub(crate) fn in_layer(&self, path: &TreePath) -> Result<bool, StepError> {
        Ok(self.kind(path)?.is_some_and(|kind| kind != NodeKind::Directory))
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
        let (uid, gid) = meta.owner;
        self.at(path, "set the owner of", |dir, name| dir.set_owner(name, uid, gid))?;
        self.at(path, "set the mode of", |dir, name| dir.set_mode(name, meta.mode & 0o7777))?;
        self.set_xattrs(path, meta)
    }

    fn set_xattrs(&self, path: &TreePath, meta: &Meta) -> Result<(), StepError> {
        for (key, value) in meta.xattrs.iter().filter(|(key, _)| is_for_images(key)) {
            self.at(path, "set an extended attribute of", |dir, name| dir.set_xattr(name, key, value))?;
        }
        Ok(())
    }

    fn set_time(&self, path: &TreePath) -> Result<(), StepError> {
        self.at(path, "set the time of", |dir, name| dir.set_mtime(name, LAYER_TIME.seconds(), 0))
    }

    /// Gives the directories the time that all else has. Nothing can be written afterwards.
    pub(crate) fn finish(self, upper: &mut Upper) -> Result<(), StepError> {
        let mut made: Vec<_> = self.made.iter().collect();
        // Those in one directory after another.
        made.sort_unstable();
        for path in made {
            self.set_time(path)?;
        }
        upper.is_still();
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

fn no_parent() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the directory that it lies in is not there any more")
}

fn onto_directory(path: &TreePath) -> StepError {
    StepError::Refused(format!("cannot replace the directory /{path} with a file"))
}

pub(crate) fn wrong(what: &'static str, path: &TreePath) -> impl FnOnce(io::Error) -> StepError {
    let path = format!("/{path}");
    move |source| StepError::Write { what, path, source }
}
