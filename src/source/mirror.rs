//! A bare copy of a repository under the cache folder.

use crate::{Advance, CommitTree, GitSettings, RepoUrl, SourceError};
use keelway_model::{CommitId, Timestamp};
use std::path::Path;

/// A mirror: one folder an address, shared by all processes of a machine, locked while it is written.
pub struct Mirror {
    url: RepoUrl,
}

/// What a fetch did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fetched {
    /// References that are new or moved forward.
    pub updated: usize,
    /// References that moved to a commit that does not stand on the old one: name, old, new.
    pub forced: Vec<(String, CommitId, CommitId)>,
    /// References that are gone.
    pub removed: usize,
    /// Bytes of the pack that came.
    pub bytes: u64,
}

/// A reference, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// The commit.
    pub commit: CommitId,
    /// The branch, when a branch was asked for (or HEAD, which is one).
    pub branch: Option<String>,
    /// The committer's time.
    pub time: Timestamp,
    /// The first line of the commit's message, cleaned for terminals.
    pub summary: String,
}

impl Mirror {
    /// Opens, or makes, the mirror of `url` under `cache`. No network.
    pub fn open(cache: &Path, url: &RepoUrl) -> Result<Self, SourceError> {
        let _ = cache;
        Ok(Self { url: url.clone() })
    }
    /// Whose mirror this is.
    pub fn url(&self) -> &RepoUrl {
        &self.url
    }
    /// Brings all branches and tags up to date.
    pub fn fetch(
        &self,
        settings: &GitSettings,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Fetched, SourceError> {
        let _ = (settings, progress);
        later()
    }
    /// Resolves a branch, tag, full reference, `HEAD`, commit or unique beginning of a commit, in the mirror as it is.
    pub fn resolve(&self, reference: &str) -> Result<Pinned, SourceError> {
        let _ = reference;
        later()
    }
    /// The files of a commit.
    pub fn tree(&self, commit: &CommitId) -> Result<CommitTree, SourceError> {
        let _ = commit;
        later()
    }
    /// Writes exactly the files of a commit into `dir`, which is made and must be empty.
    pub fn checkout(&self, commit: &CommitId, dir: &Path) -> Result<(), SourceError> {
        let _ = (commit, dir);
        later()
    }
    /// The first-parent commits from `old` (exclusive) to `tip`.
    pub fn first_parent_since(&self, old: Option<&CommitId>, tip: &CommitId) -> Result<Advance, SourceError> {
        let _ = (old, tip);
        later()
    }
}

pub(crate) fn later<T>() -> Result<T, SourceError> {
    Err(SourceError::Git { what: "source".into(), cause: "not written yet".into() })
}
