//! A read-only tree of files: a commit, a plain directory, a snapshot.
//!
//! Paths are bytes, relative, normalised: no `.`, no `..`, no empty component, no leading slash.
//! A [`Tree`] never follows a symlink and never reads outside its root; who wants links followed
//! resolves them itself, inside the tree.

use crate::digest::Digest;
use std::fmt;
use std::io::Read;
use std::os::unix::fs::MetadataExt;

/// A normalised relative path; empty is the root.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TreePath(Vec<u8>);

impl TreePath {
    /// The root.
    pub const fn root() -> Self {
        Self(Vec::new())
    }
    /// Normalises: empty components and `.` go, `..` climbs and is clamped at the root (as Docker clamps
    /// a source path to its context). `None` when it holds a NUL.
    pub fn clamped(path: &[u8]) -> Option<Self> {
        if path.contains(&0) {
            return None;
        }
        let mut out: Vec<&[u8]> = Vec::new();
        for part in path.split(|&b| b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    out.pop();
                }
                p => out.push(p),
            }
        }
        Some(Self(out.join(&b'/')))
    }
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
    /// `self/name`. The name must be one component; `.`, `..`, an empty one, or one with a slash or NUL gives `None`.
    pub fn join(&self, name: &[u8]) -> Option<Self> {
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
            return None;
        }
        let mut out = self.0.clone();
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(name);
        Some(Self(out))
    }
    /// `self/rest`.
    #[must_use]
    pub fn join_path(&self, rest: &TreePath) -> Self {
        match (self.is_root(), rest.is_root()) {
            (true, _) => rest.clone(),
            (_, true) => self.clone(),
            _ => Self([&self.0[..], b"/", &rest.0[..]].concat()),
        }
    }
    /// The components, outermost first.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|c| !c.is_empty())
    }
    /// The last component.
    pub fn file_name(&self) -> Option<&[u8]> {
        self.components().next_back()
    }
    /// The path without its last component; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let cut = self.0.iter().rposition(|&b| b == b'/').unwrap_or(0);
        Some(Self(self.0[..cut].to_vec()))
    }
    /// As an `OsStr`-backed path, relative.
    pub fn to_path_buf(&self) -> std::path::PathBuf {
        use std::os::unix::ffi::OsStrExt;
        std::path::PathBuf::from(std::ffi::OsStr::from_bytes(&self.0))
    }
}

impl From<&str> for TreePath {
    /// For literals and tests: clamps, and cuts at a NUL.
    fn from(s: &str) -> Self {
        Self::clamped(s.split('\0').next().unwrap_or("").as_bytes()).unwrap_or_default()
    }
}
impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            f.write_str(".")
        } else {
            write!(f, "{}", String::from_utf8_lossy(&self.0).escape_debug())
        }
    }
}
impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A path for a message: it may be thousands of characters long.
fn shown(path: &TreePath) -> String {
    let text = path.to_string();
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text,
    }
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreeKind {
    /// A regular file of this many bytes.
    File {
        /// Length in bytes.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link with its target, any bytes.
    Symlink {
        /// Where it points.
        target: Vec<u8>,
    },
    /// A FIFO.
    Fifo,
    /// A device node.
    Device {
        /// Character rather than block.
        character: bool,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A socket; copied by nobody.
    Socket,
    /// A git submodule (a commit of another repository): refused until submodules work.
    Submodule,
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeEntry {
    /// One component, any bytes but `/` and NUL.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: TreeKind,
    /// Permission bits (07777). A commit has 0644, 0755 for files and 0755 for directories.
    pub mode: u32,
    /// Owner, in the ids of the container (the snapshot's offset taken out).
    pub uid: u32,
    /// Group, likewise.
    pub gid: u32,
    /// Extended attributes that an image may carry, sorted by name; overlay's own are left out.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Device and inode where two entries may be hard links of one file.
    pub link_id: Option<(u64, u64)>,
}

/// What changes whenever the content of a file on a disk of this machine does: nothing but the kernel sets the time of the
/// last change of an inode. (A file that is written through a mapping shows it when the mapping goes.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The file system.
    pub device: u64,
    /// The inode.
    pub inode: u64,
    /// Length in bytes.
    pub size: u64,
    /// Last change of the content, seconds and nanoseconds since the epoch.
    pub modified: (i64, i64),
    /// Last change of the inode, likewise.
    pub changed: (i64, i64),
}

impl From<&std::fs::Metadata> for Stamp {
    fn from(m: &std::fs::Metadata) -> Self {
        Self {
            device: m.dev(),
            inode: m.ino(),
            size: m.size(),
            modified: (m.mtime(), m.mtime_nsec()),
            changed: (m.ctime(), m.ctime_nsec()),
        }
    }
}

/// Why a tree could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Nothing there.
    #[error("{} does not exist", shown(.path))]
    NotFound {
        /// The path inside the tree.
        path: TreePath,
    },
    /// Wrong kind of entry, for example a file where a directory is needed.
    #[error("{} is not {wanted}", shown(.path))]
    WrongKind {
        /// The path inside the tree.
        path: TreePath,
        /// `a directory`, `a regular file`, ..
        wanted: &'static str,
    },
    /// More than is read of one tree.
    #[error("{path}: {why}")]
    Limit {
        /// The path inside the tree.
        path: TreePath,
        /// Which bound.
        why: String,
    },
    /// The disk or the repository failed.
    #[error("cannot read {}: {source}", shown(.path))]
    Io {
        /// The path inside the tree.
        path: TreePath,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// A read-only tree.
pub trait Tree: Send + Sync {
    /// One entry, no link followed; `Ok(None)` when it, or a parent, is not there or a parent is no
    /// directory. The root is a directory with an empty name.
    fn entry(&self, path: &TreePath) -> Result<Option<TreeEntry>, TreeError>;
    /// The entries of a directory, sorted by name as bytes.
    fn list(&self, path: &TreePath) -> Result<Vec<TreeEntry>, TreeError>;
    /// The bytes of a regular file.
    fn open(&self, path: &TreePath) -> Result<Box<dyn Read + Send>, TreeError>;
    /// The regular file itself, opened without following a link, where the tree lies on a disk of this machine:
    /// lets a copy stay in the kernel. `Ok(None)` where only [`Tree::open`] will do.
    fn open_file(&self, _path: &TreePath) -> Result<Option<std::fs::File>, TreeError> {
        Ok(None)
    }
    /// The stamp of the regular file at `path`, without opening it, where the tree lies on a disk of this machine. What is
    /// read afterwards may be newer.
    fn stamp(&self, _path: &TreePath) -> Result<Option<Stamp>, TreeError> {
        Ok(None)
    }
    /// A digest that names the whole content at `path` (bytes, modes, names) without reading it, where
    /// the tree has one: a git tree or blob id. Equal memo, equal content; never the other way round.
    fn memo(&self, _path: &TreePath) -> Option<Digest> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_does_not_repeat_an_endless_path() {
        let path = TreePath::from(format!("{}a", "a/".repeat(1500)).as_str());
        let text = TreeError::NotFound { path }.to_string();
        assert!(text.len() < 250 && text.ends_with(".. does not exist"), "{text}");
    }

    #[test]
    fn paths_are_clamped() {
        for (given, want) in
            [("/a//b/./c", "a/b/c"), ("../../x", "x"), ("a/../../b", "b"), ("", "."), ("/", ".")]
        {
            assert_eq!(TreePath::from(given).to_string(), want, "{given}");
        }
        assert!(TreePath::clamped(b"a\0b").is_none());
        assert!(TreePath::root().join(b"..").is_none());
        assert_eq!(TreePath::from("a/b").parent(), Some(TreePath::from("a")));
        assert_eq!(TreePath::from("a").parent(), Some(TreePath::root()));
        assert_eq!(TreePath::root().parent(), None);
    }
}
