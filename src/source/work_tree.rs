//! The checkout somebody stands in.

use crate::mirror::later;
use crate::{CommitTree, DirTree, Pinned, SourceError};
use std::path::{Path, PathBuf};

/// A work tree with its repository.
pub struct Checkout {
    /// The top of the work tree.
    pub root: PathBuf,
    /// HEAD: commit, branch (none when detached).
    pub head: Pinned,
    /// The address of `origin`, as configured, its password left out; none when there is none.
    pub remote: Option<String>,
    /// What differs from HEAD, at most [`Checkout::DIRTY_LIMIT`].
    pub dirty: Vec<DirtyFile>,
}

/// A file that differs from HEAD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirtyFile {
    /// Its path from the top of the work tree, escaped for terminals.
    pub path: String,
    /// `modified`, `new`, `deleted`, ..
    pub change: &'static str,
}

impl Checkout {
    /// How many dirty files are listed at most.
    pub const DIRTY_LIMIT: usize = 100;
    /// Finds the work tree that `path` is in.
    pub fn discover(path: &Path) -> Result<Self, SourceError> {
        let _ = path;
        later()
    }
    /// The files of HEAD.
    pub fn tree(&self) -> Result<CommitTree, SourceError> {
        later()
    }
    /// The files as they lie there (`--dirty`), without `.git`.
    pub fn dirty_tree(&self) -> Result<DirTree, SourceError> {
        later()
    }
}
