//! The files of a commit, straight from git's objects.

use keelway_model::{CommitId, Digest, Tree, TreeEntry, TreeError, TreePath};
use std::io::Read;

/// A commit as a tree.
pub struct CommitTree {
    commit: CommitId,
}

impl CommitTree {
    /// The commit.
    pub fn commit(&self) -> &CommitId {
        &self.commit
    }
}

impl Tree for CommitTree {
    fn entry(&self, path: &TreePath) -> Result<Option<TreeEntry>, TreeError> {
        Err(TreeError::NotFound { path: path.clone() })
    }
    fn list(&self, path: &TreePath) -> Result<Vec<TreeEntry>, TreeError> {
        Err(TreeError::NotFound { path: path.clone() })
    }
    fn open(&self, path: &TreePath) -> Result<Box<dyn Read + Send>, TreeError> {
        Err(TreeError::NotFound { path: path.clone() })
    }
    fn memo(&self, _path: &TreePath) -> Option<Digest> {
        None
    }
}
