//! What `keelway watch` must not forget: how far a branch was seen, and the commits that are still to be run.
//!
//! Commits are recorded, in order, in the same transaction that moves the branch on; so each is run once however
//! often the watcher dies. A commit leaves the queue in the transaction that records the end of its run; a run that
//! was interrupted or cancelled leaves it there, and it becomes the run's next attempt.

use crate::error::LedgerError;
use crate::open::{Ledger, Refusal};
use crate::runs::NewRun;
use keelway_model::{CommitId, RunId, Timestamp};
use rusqlite::{OptionalExtension, Row, Transaction, params};

/// How far a branch was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BranchRecord {
    /// The last commit recorded.
    pub last: CommitId,
    /// When.
    pub recorded: Timestamp,
}

/// A commit that is to be run, or whose run is not over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedCommit {
    /// Its place in the queue.
    pub position: u64,
    /// The commit.
    pub commit: CommitId,
    /// Its run, when that was begun before.
    pub run: Option<RunId>,
}

impl Ledger {
    /// How far a branch was seen; `None` when it never was.
    pub fn branch(&self, repo: &str, branch: &str) -> Result<Option<BranchRecord>, LedgerError> {
        self.read("look a branch up", |tx| self.branch_in(tx, repo, branch))
    }

    fn branch_in(
        &self,
        tx: &Transaction<'_>,
        repo: &str,
        branch: &str,
    ) -> Result<Option<BranchRecord>, Refusal> {
        let row = tx
            .query_row(
                "SELECT last, recorded FROM branches WHERE repo = ?1 AND branch = ?2",
                [repo, branch],
                |r| Ok((r.get::<_, String>(0)?, r.get(1)?)),
            )
            .optional()?;
        row.map(|(last, recorded)| {
            Ok(BranchRecord { last: self.commit(&last)?, recorded: Timestamp(recorded) })
        })
        .transpose()
    }

    /// Puts commits, oldest first, at the end of the branch's queue and moves the branch on to the last of them.
    /// `seen` is the branch's last commit as the caller read it; refused when it is another by now. No commits: nothing
    /// changes.
    pub fn record_commits(
        &self,
        repo: &str,
        branch: &str,
        seen: Option<&CommitId>,
        commits: &[CommitId],
    ) -> Result<(), LedgerError> {
        let Some(last) = commits.last() else { return Ok(()) };
        self.write("record commits of a branch", |tx| {
            if self.branch_in(tx, repo, branch)?.map(|b| b.last).as_ref() != seen {
                return Err(LedgerError::BranchMoved { repo: repo.into(), branch: branch.into() }.into());
            }
            for commit in commits {
                tx.execute(
                    "INSERT INTO queue (repo, branch, revision) VALUES (?1, ?2, ?3)",
                    params![repo, branch, commit.as_str()],
                )?;
            }
            tx.execute(
                "INSERT INTO branches (repo, branch, last, recorded) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET last = excluded.last, recorded = excluded.recorded",
                params![repo, branch, last.as_str(), self.now().0],
            )?;
            Ok(())
        })
    }

    /// The commits of a branch that are to be run, in order.
    pub fn queued(&self, repo: &str, branch: &str) -> Result<Vec<QueuedCommit>, LedgerError> {
        self.read("look for queued commits", |tx| {
            let mut query = tx.prepare(
                "SELECT position, revision, run FROM queue WHERE repo = ?1 AND branch = ?2 AND done = 0 ORDER BY position",
            )?;
            let rows = query.query_map([repo, branch], queue_row)?.collect::<Result<Vec<_>, _>>()?;
            rows.into_iter().map(|row| self.queued_commit(row)).collect()
        })
    }

    /// The run of a queued commit: the one it was given before, or a new one, tied to it for good.
    pub fn run_queued(&self, position: u64, new: &NewRun) -> Result<RunId, LedgerError> {
        self.write("record the run of a queued commit", |tx| {
            let query = "SELECT position, revision, run FROM queue WHERE position = ?1";
            let row = tx.query_row(query, [sql(position)], queue_row).optional()?;
            let row = row.ok_or_else(|| self.damaged(format!("no place {position} in the queue")))?;
            if let Some(run) = self.queued_commit(row)?.run {
                return Ok(run);
            }
            let run = self.insert_run(tx, new)?;
            tx.execute(
                "UPDATE queue SET run = ?2 WHERE position = ?1",
                params![sql(position), run.as_str()],
            )?;
            Ok(run)
        })
    }

    /// Takes a commit out of the queue without a run, or whatever its run says.
    pub fn drop_queued(&self, position: u64) -> Result<(), LedgerError> {
        self.write("drop a queued commit", |tx| {
            tx.execute("UPDATE queue SET done = 1 WHERE position = ?1", [sql(position)])?;
            Ok(())
        })
    }

    fn commit(&self, text: &str) -> Result<CommitId, Refusal> {
        text.parse().map_err(|_| self.damaged(format!("commit id {text:?}")))
    }

    fn queued_commit(&self, (position, commit, run): QueueRow) -> Result<QueuedCommit, Refusal> {
        let run = run.map(|id| id.parse().map_err(|_| self.damaged(format!("run id {id:?}")))).transpose()?;
        Ok(QueuedCommit {
            position: u64::try_from(position).unwrap_or(0),
            commit: self.commit(&commit)?,
            run,
        })
    }
}

type QueueRow = (i64, String, Option<String>);

fn queue_row(r: &Row<'_>) -> rusqlite::Result<QueueRow> {
    Ok((r.get(0)?, r.get(1)?, r.get(2)?))
}

fn sql(position: u64) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}
