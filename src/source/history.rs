//! What is new on a branch.

use crate::SourceError;
use crate::mirror::{Mirror, commit_id, oid_of};
use git2::Repository;
use keelway_model::CommitId;

/// New commits on a branch at most; a power of two.
const MAX_COMMITS: usize = 1 << 16;

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

impl Mirror {
    /// The first-parent commits from `old` (exclusive) to `tip`.
    pub fn first_parent_since(&self, old: Option<&CommitId>, tip: &CommitId) -> Result<Advance, SourceError> {
        let Some(old) = old else { return Ok(Advance::Commits(vec![tip.clone()])) };
        if old == tip {
            return Ok(Advance::UpToDate);
        }
        let commits = walk(&self.repo(), old, tip).map_err(|e| self.failed(&e))?;
        Ok(match commits {
            Some(commits) => Advance::Commits(commits),
            None => Advance::ForcePushed { old: old.clone(), new: tip.clone() },
        })
    }
}

/// `None` when `tip` does not stand on `old`.
fn walk(repo: &Repository, old: &CommitId, tip: &CommitId) -> Result<Option<Vec<CommitId>>, git2::Error> {
    let (old, tip) = (oid_of(old), oid_of(tip));
    if repo.find_commit(old).is_err() || !repo.graph_descendant_of(tip, old)? {
        return Ok(None);
    }
    // The chain of first parents may pass `old` by (it was merged as a second parent): then it ends at the first
    // commit that `old` already has. From there on it has all of them, so looking now and then is enough.
    let is_known = |at| Ok::<_, git2::Error>(at == old || repo.graph_descendant_of(old, at)?);
    let mut chain = vec![tip];
    while let Some(parent) =
        chain.last().map(|at| repo.find_commit(*at)).transpose()?.and_then(|c| c.parent_id(0).ok())
    {
        if parent == old || (chain.len().is_power_of_two() && is_known(parent)?) {
            break;
        }
        if chain.len() == MAX_COMMITS {
            return Err(git2::Error::from_str("more than 65536 new commits on one branch"));
        }
        chain.push(parent);
    }
    let (mut new, mut known) = (1, chain.len());
    while new < known {
        let middle = new.midpoint(known);
        if is_known(chain[middle])? { known = middle } else { new = middle + 1 }
    }
    Ok(Some(chain[..new].iter().rev().map(|c| commit_id(*c)).collect()))
}
