//! The checkout somebody stands in.
//!
//! Only reading: libgit2 runs no hook, filter, fsmonitor or helper, and the index is not rewritten. A repository of another
//! user is refused, as git itself refuses it, unless `safe.directory` of git's own settings allows it.

use crate::error::clean;
use crate::mirror::pinned;
use crate::{CommitTree, DirTree, Origin, Pinned, RepoUrl, SourceError};
use git2::{ErrorCode, Repository, Status, StatusOptions};
use std::path::{Path, PathBuf};

/// A work tree with its repository.
#[derive(Debug)]
pub struct Checkout {
    /// The top of the work tree.
    pub root: PathBuf,
    /// HEAD: commit, branch (none when detached); none where there is no commit yet.
    pub head: Option<Pinned>,
    /// The address of `origin`, its password left out; none when there is none that we can read.
    pub remote: Option<RepoUrl>,
    /// What differs from HEAD, at most [`Checkout::DIRTY_LIMIT`], sorted.
    pub dirty: Vec<DirtyFile>,
    git: PathBuf,
}

/// A file that differs from HEAD.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirtyFile {
    /// Its path from the top of the work tree, cleaned for terminals.
    pub path: String,
    /// `modified`, `new`, `deleted`, ..
    pub change: &'static str,
}

impl Checkout {
    /// How many dirty files are listed at most.
    pub const DIRTY_LIMIT: usize = 100;

    /// Finds the work tree that `path` is in.
    pub fn discover(path: &Path) -> Result<Self, SourceError> {
        let failed = |e: git2::Error| {
            SourceError::git(format!("cannot read the repository at {}", path.display()), &e)
        };
        let repo = Repository::discover(path).map_err(|e| match e.code() {
            ErrorCode::Owner => SourceError::Owner { path: path.into() },
            ErrorCode::NotFound => SourceError::NoCheckout { path: path.into() },
            _ => failed(e),
        })?;
        let here =
            path.canonicalize().map_err(|e| SourceError::io(format!("cannot open {}", path.display()), e))?;
        let root = repo.workdir().and_then(|w| w.canonicalize().ok());
        // A repository's own settings may name any folder as its work tree; only the one we stand in is meant.
        let Some(root) = root.filter(|r| here.starts_with(r)) else {
            return Err(SourceError::NoCheckout { path: path.into() });
        };
        let head = match repo.head() {
            Ok(head) => {
                let branch = head.shorthand().ok().filter(|_| head.is_branch()).map(str::to_owned);
                let commit = head.peel_to_commit().map_err(failed)?;
                Some(pinned(&repo, commit.id(), branch).map_err(failed)?)
            }
            Err(e) if matches!(e.code(), ErrorCode::UnbornBranch | ErrorCode::NotFound) => None,
            Err(e) => return Err(failed(e)),
        };
        let origin = repo.find_remote("origin").ok();
        let remote = origin
            .as_ref()
            .and_then(|r| r.url().ok())
            .and_then(|u| RepoUrl::parse(u, Origin::CommandLine).ok())
            .map(|u| u.without_password());
        let dirty = dirty(&repo).map_err(failed)?;
        let git = repo.path().to_path_buf();
        Ok(Self { root, head, remote, dirty, git })
    }

    /// The files of HEAD.
    pub fn tree(&self) -> Result<CommitTree, SourceError> {
        let repo = Repository::open(&self.git)
            .map_err(|e| SourceError::git(format!("cannot open {}", self.git.display()), &e))?;
        match &self.head {
            Some(head) => CommitTree::open(repo, &head.commit),
            None => Err(SourceError::Empty { path: self.root.clone() }),
        }
    }

    /// The files as they lie there (`--dirty`), without `.git`.
    pub fn dirty_tree(&self) -> Result<DirTree, SourceError> {
        Ok(DirTree::open(&self.root)?.without_git())
    }
}

fn dirty(repo: &Repository) -> Result<Vec<DirtyFile>, git2::Error> {
    let mut options = StatusOptions::new();
    options
        .include_untracked(true)
        .recurse_untracked_dirs(false)
        .include_ignored(false)
        .exclude_submodules(true)
        .no_refresh(true)
        .update_index(false);
    let statuses = repo.statuses(Some(&mut options))?;
    let mut out: Vec<DirtyFile> = statuses
        .iter()
        .filter_map(|entry| {
            let change = change(entry.status())?;
            Some(DirtyFile { path: clean(&String::from_utf8_lossy(entry.path_bytes()), 400), change })
        })
        .collect();
    out.sort();
    out.truncate(Checkout::DIRTY_LIMIT);
    Ok(out)
}

fn change(status: Status) -> Option<&'static str> {
    let has = |s: Status| status.intersects(s);
    Some(if has(Status::CONFLICTED) {
        "in conflict"
    } else if has(Status::WT_DELETED | Status::INDEX_DELETED) {
        "deleted"
    } else if has(Status::WT_NEW | Status::INDEX_NEW) {
        "new"
    } else if has(Status::WT_MODIFIED | Status::INDEX_MODIFIED | Status::WT_UNREADABLE) {
        "modified"
    } else if has(Status::WT_TYPECHANGE | Status::INDEX_TYPECHANGE) {
        "of another kind"
    } else if has(Status::WT_RENAMED | Status::INDEX_RENAMED) {
        "renamed"
    } else {
        return None;
    })
}
