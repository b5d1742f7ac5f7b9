//! The tables, and the steps from one version of them to the next.
//!
//! `user_version` counts the steps that were taken. A step is never edited once it was released; a change is a new
//! step at the end.

use crate::error::LedgerError;
use rusqlite::{Connection, TransactionBehavior};
use std::path::Path;

/// Marks the file as ours: "kwle".
const APPLICATION: i32 = 0x6b77_6c65;

/// From version n to n + 1.
pub(crate) const STEPS: &[&str] = &["
    CREATE TABLE runs (
        id TEXT PRIMARY KEY,
        repo TEXT NOT NULL,
        revision TEXT,
        branch TEXT,
        event TEXT NOT NULL,
        definition TEXT NOT NULL,
        created INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX runs_by_time ON runs (created DESC, id DESC);
    CREATE TABLE attempts (
        token INTEGER PRIMARY KEY AUTOINCREMENT,
        run TEXT NOT NULL REFERENCES runs (id),
        n INTEGER NOT NULL,
        state TEXT NOT NULL,
        pid INTEGER,
        boot TEXT,
        started INTEGER NOT NULL,
        finished INTEGER,
        exit INTEGER,
        message TEXT,
        UNIQUE (run, n)
    ) STRICT;
    CREATE INDEX attempts_running ON attempts (state) WHERE state = 'running';
    CREATE TABLE events (
        token INTEGER NOT NULL REFERENCES attempts (token),
        seq INTEGER NOT NULL,
        json TEXT NOT NULL,
        PRIMARY KEY (token, seq)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE branches (
        repo TEXT NOT NULL,
        branch TEXT NOT NULL,
        last TEXT NOT NULL,
        recorded INTEGER NOT NULL,
        PRIMARY KEY (repo, branch)
    ) STRICT;
    CREATE TABLE queue (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        repo TEXT NOT NULL,
        branch TEXT NOT NULL,
        revision TEXT NOT NULL,
        run TEXT REFERENCES runs (id),
        done INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX queue_waiting ON queue (repo, branch, position) WHERE done = 0;
    CREATE INDEX queue_by_run ON queue (run);
"];

/// Refuses a database that is not ours, without writing to it.
pub(crate) fn refuse_foreign(db: &Connection, path: &Path) -> Result<(), LedgerError> {
    let look = || -> rusqlite::Result<bool> {
        // One transaction: another process may be making the tables right now.
        let db = db.unchecked_transaction()?;
        let tables: u32 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
        let application = application(&db)?;
        Ok(application == APPLICATION || (application == 0 && version(&db)? == 0 && tables == 0))
    };
    match look() {
        Ok(true) => Ok(()),
        Ok(false) => Err(LedgerError::Foreign { path: path.into() }),
        Err(e) if e.sqlite_error_code() == Some(rusqlite::ErrorCode::NotADatabase) => {
            Err(LedgerError::Foreign { path: path.into() })
        }
        Err(source) => Err(LedgerError::Database { path: path.into(), doing: "be opened", source }),
    }
}

/// Brings the database to the newest version; refuses one that is newer. Safe with several processes.
pub(crate) fn upgrade(db: &mut Connection, path: &Path, steps: &[&str]) -> Result<(), LedgerError> {
    let failed = |source| LedgerError::Database { path: path.into(), doing: "be opened", source };
    let known = u32::try_from(steps.len()).unwrap_or(u32::MAX);
    if version(db).map_err(failed)? == known {
        return Ok(());
    }
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    // Looked at again under the lock: another process may just have done it.
    let found = version(&tx).map_err(failed)?;
    if found > known {
        return Err(LedgerError::Newer { path: path.into(), found, known });
    }
    for step in &steps[found as usize..] {
        tx.execute_batch(step).map_err(failed)?;
    }
    tx.pragma_update(None, "application_id", APPLICATION).map_err(failed)?;
    tx.pragma_update(None, "user_version", known).map_err(failed)?;
    tx.commit().map_err(failed)
}

fn version(db: &Connection) -> rusqlite::Result<u32> {
    db.query_row("PRAGMA user_version", [], |r| r.get(0))
}

fn application(db: &Connection) -> rusqlite::Result<i32> {
    db.query_row("PRAGMA application_id", [], |r| r.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_is_upgraded_step_by_step_and_newer_is_refused() {
        let path = Path::new("ledger.db");
        let mut db = Connection::open_in_memory().unwrap();
        let first = ["CREATE TABLE a (x INTEGER); INSERT INTO a VALUES (7);"];
        let both = [first[0], "ALTER TABLE a ADD COLUMN y INTEGER; UPDATE a SET y = x + 1;"];
        upgrade(&mut db, path, &first).unwrap();
        upgrade(&mut db, path, &both).unwrap();
        upgrade(&mut db, path, &both).unwrap();
        assert_eq!(db.query_row("SELECT y FROM a", [], |r| r.get::<_, i64>(0)).unwrap(), 8);
        let error = upgrade(&mut db, path, &first).unwrap_err();
        assert!(matches!(error, LedgerError::Newer { found: 2, known: 1, .. }), "{error}");
    }

    #[test]
    fn somebody_elses_database_is_left_alone() {
        let db = Connection::open_in_memory().unwrap();
        refuse_foreign(&db, Path::new("new.db")).unwrap();
        db.execute_batch("CREATE TABLE cookies (x INTEGER)").unwrap();
        let error = refuse_foreign(&db, Path::new("cookies.db")).unwrap_err();
        assert!(matches!(error, LedgerError::Foreign { .. }), "{error}");
        assert_eq!(
            db.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get::<_, i64>(0)).unwrap(),
            1
        );
    }

    #[test]
    fn a_failing_step_changes_nothing() {
        let mut db = Connection::open_in_memory().unwrap();
        assert!(upgrade(&mut db, Path::new("l"), &["CREATE TABLE a (x INTEGER)", "not sql"]).is_err());
        assert_eq!(version(&db).unwrap(), 0);
        upgrade(&mut db, Path::new("l"), STEPS).unwrap();
    }
}
