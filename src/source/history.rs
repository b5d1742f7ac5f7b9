//! What is new on a branch.

use keelway_model::CommitId;

/// How a branch went on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Advance {
    /// New commits along first parents, oldest first; just the tip where nothing was known before.
    Commits(Vec<CommitId>),
    /// The branch was rewritten: `new` does not stand on `old`.
    ForcePushed {
        /// The tip that was known.
        old: CommitId,
        /// The tip now.
        new: CommitId,
    },
    /// Nothing new.
    UpToDate,
}
