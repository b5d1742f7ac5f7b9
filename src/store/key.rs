//! The one content key: a sha256 Merkle over normalised entries.

use crate::open::Store;
use keelway_model::{Digest, Tree, TreeEntry, TreeError, TreePath};

/// What a filter says of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It, and everything beneath it: memos may be used.
    Whole,
    /// It, and beneath it what the filter says.
    Partly,
    /// Not it; beneath it what the filter says. A directory counts when something beneath it does.
    OnlyBeneath,
    /// Nothing of it.
    Skip,
}

/// The filter that keeps all.
pub fn keep_everything(_: &TreePath, _: &TreeEntry) -> Verdict {
    Verdict::Whole
}

/// What of the entries counts, and as what.
pub struct KeyRules<'a> {
    /// Asked for every entry but the one at the start.
    pub filter: &'a dyn Fn(&TreePath, &TreeEntry) -> Verdict,
    /// Owner and group that every entry will get (`--chown`, or 0:0); `None` keeps each one's own.
    pub owner: Option<(u32, u32)>,
    /// Mode that every entry will get (`--chmod`); `None` keeps each one's own.
    pub mode: Option<u32>,
}

impl Store {
    /// The content key of what is at `path` in `tree`: names, kinds, modes, owners, extended attributes,
    /// link targets and bytes; never times, never the name of `path` itself. Digests of what the tree has
    /// memo ids for are remembered in the store.
    pub fn content_digest(
        &self,
        tree: &dyn Tree,
        path: &TreePath,
        rules: &KeyRules<'_>,
    ) -> Result<Digest, TreeError> {
        todo!()
    }
}
