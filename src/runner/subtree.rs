//! A folder of a tree as a tree of its own: the build context inside a repository.

use keelway_model::{Digest, Stamp, Tree, TreeEntry, TreeError, TreePath};
use std::io::Read;
use std::sync::Arc;

/// The part of `tree` below `at`, which was a directory when this was made.
pub(crate) struct Subtree {
    tree: Arc<dyn Tree>,
    at: TreePath,
}

impl Subtree {
    /// `Err` when `at` is no directory of `tree`.
    pub(crate) fn new(tree: Arc<dyn Tree>, at: TreePath) -> Result<Self, TreeError> {
        match tree.entry(&at)? {
            Some(TreeEntry { kind: keelway_model::TreeKind::Directory, .. }) => Ok(Self { tree, at }),
            Some(_) => Err(TreeError::WrongKind { path: at, wanted: "a directory" }),
            None => Err(TreeError::NotFound { path: at }),
        }
    }
}

impl Tree for Subtree {
    fn entry(&self, path: &TreePath) -> Result<Option<TreeEntry>, TreeError> {
        let found = self.tree.entry(&self.at.join_path(path))?;
        // The root of a tree has no name.
        Ok(found.map(|e| if path.is_root() { TreeEntry { name: Vec::new(), ..e } } else { e }))
    }
    fn list(&self, path: &TreePath) -> Result<Vec<TreeEntry>, TreeError> {
        self.tree.list(&self.at.join_path(path))
    }
    fn open(&self, path: &TreePath) -> Result<Box<dyn Read + Send>, TreeError> {
        self.tree.open(&self.at.join_path(path))
    }
    fn open_file(&self, path: &TreePath) -> Result<Option<std::fs::File>, TreeError> {
        self.tree.open_file(&self.at.join_path(path))
    }
    fn stamp(&self, path: &TreePath) -> Result<Option<Stamp>, TreeError> {
        self.tree.stamp(&self.at.join_path(path))
    }
    fn memo(&self, path: &TreePath) -> Option<Digest> {
        self.tree.memo(&self.at.join_path(path))
    }
}
