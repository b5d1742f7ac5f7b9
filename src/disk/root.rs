//! Paths inside a directory descriptor: hostile names cannot leave it.
//!
//! A path is bytes, absolute or relative, and always means "inside this root": `/x` is `x`, `..` stops
//! at the root, and a symlink met on the way is followed *inside the root* (openat2 with
//! RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS). Operations on an entry itself never follow a symlink in
//! its last component, but for [`Root::open_dir`] and [`Root::open_file`], which follow it inside the root.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

/// A directory as the root of paths.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
    /// A device node.
    Device {
        /// Character rather than block.
        character: bool,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// An entry's status, its symlink not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits, 07777.
    pub mode: u32,
    /// Owner on this disk.
    pub uid: u32,
    /// Group on this disk.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// Number of names.
    pub links: u64,
    /// File system and inode.
    pub id: (u64, u64),
    /// Time of last change of content, whole seconds since the epoch.
    pub mtime: i64,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirItem {
    /// The name, any bytes but `/` and NUL.
    pub name: Vec<u8>,
}

impl Root {
    /// Opens a trusted path of the host as a root; links in it are followed.
    pub fn open(path: &Path) -> io::Result<Root> {
        todo!()
    }
    /// A second handle on the same directory.
    pub fn try_clone(&self) -> io::Result<Root> {
        todo!()
    }
    /// A directory inside, as a root of its own; a link at the end is followed inside this root.
    pub fn open_dir(&self, path: &[u8]) -> io::Result<Root> {
        todo!()
    }
    /// A regular file inside, for reading; a link at the end is followed inside this root. Anything but a
    /// regular file is refused, without blocking on a FIFO.
    pub fn open_file(&self, path: &[u8]) -> io::Result<File> {
        todo!()
    }
    /// A new regular file with exactly this mode (no umask); fails when there is something.
    pub fn create_file(&self, path: &[u8], mode: u32) -> io::Result<File> {
        todo!()
    }
    /// A new directory with exactly this mode; fails when there is something.
    pub fn mkdir(&self, path: &[u8], mode: u32) -> io::Result<()> {
        todo!()
    }
    /// The directory and its missing parents, each missing one made with this mode; links on the way are
    /// followed inside the root.
    pub fn mkdir_all(&self, path: &[u8], mode: u32) -> io::Result<()> {
        todo!()
    }
    /// A symbolic link with any target bytes.
    pub fn symlink(&self, target: &[u8], path: &[u8]) -> io::Result<()> {
        todo!()
    }
    /// A second name `new` for `old`, both inside; a link at the end of `old` is linked itself.
    pub fn hard_link(&self, old: &[u8], new: &[u8]) -> io::Result<()> {
        todo!()
    }
    /// A FIFO or device node.
    pub fn mknod(&self, path: &[u8], kind: NodeKind, mode: u32) -> io::Result<()> {
        todo!()
    }
    /// Renames inside the root, replacing a file.
    pub fn rename(&self, from: &[u8], to: &[u8]) -> io::Result<()> {
        todo!()
    }
    /// Removes a file, link or empty directory.
    pub fn remove(&self, path: &[u8]) -> io::Result<()> {
        todo!()
    }
    /// Removes an entry with everything beneath it, without following a link or leaving the file system.
    pub fn remove_all(&self, path: &[u8]) -> io::Result<()> {
        todo!()
    }
    /// The same until `deadline`; says whether it is gone.
    pub fn remove_all_until(&self, path: &[u8], deadline: Instant) -> io::Result<bool> {
        todo!()
    }
    /// Status of an entry, `None` when it or a parent is not there.
    pub fn stat(&self, path: &[u8]) -> io::Result<Option<Stat>> {
        todo!()
    }
    /// Target of a symbolic link.
    pub fn read_link(&self, path: &[u8]) -> io::Result<Vec<u8>> {
        todo!()
    }
    /// Names of a directory inside (a link at the end is followed inside the root), sorted as bytes.
    pub fn list(&self, path: &[u8]) -> io::Result<Vec<DirItem>> {
        todo!()
    }
    /// Owner and group. Clears set-id bits, as chown does: set the mode afterwards.
    pub fn set_owner(&self, path: &[u8], uid: u32, gid: u32) -> io::Result<()> {
        todo!()
    }
    /// Permission bits, 07777; a symbolic link is refused (it has none).
    pub fn set_mode(&self, path: &[u8], mode: u32) -> io::Result<()> {
        todo!()
    }
    /// Access and modification time.
    pub fn set_mtime(&self, path: &[u8], seconds: i64, nanoseconds: u32) -> io::Result<()> {
        todo!()
    }
    /// Extended attributes, sorted by name.
    pub fn xattrs(&self, path: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        todo!()
    }
    /// Sets one extended attribute.
    pub fn set_xattr(&self, path: &[u8], name: &[u8], value: &[u8]) -> io::Result<()> {
        todo!()
    }
    /// Removes one extended attribute; one that is not there is fine.
    pub fn remove_xattr(&self, path: &[u8], name: &[u8]) -> io::Result<()> {
        todo!()
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
