//! Opening a ledger.

use crate::error::LedgerError;
use crate::logs::LogStore;
use crate::schema;
use keelway_disk::{Lock, LockError};
use keelway_model::{Clock, RunId, Timestamp};
use rusqlite::{Connection, Transaction, TransactionBehavior};
use std::fmt;
use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a call waits for another process's transaction.
const BUSY: Duration = Duration::from_secs(20);

/// A ledger. Clones share one connection; any number of processes may open the same directory.
#[derive(Clone)]
pub struct Ledger(Arc<Inner>);

struct Inner {
    db: Mutex<Connection>,
    path: PathBuf,
    /// None for a ledger in memory.
    dir: Option<PathBuf>,
    logs: LogStore,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ledger").field(&self.0.path).finish()
    }
}

impl Ledger {
    /// Opens or creates the ledger in a directory of its own.
    pub fn open(dir: &Path, clock: Arc<dyn Clock>) -> Result<Self, LedgerError> {
        let runs = dir.join("runs");
        private_dir(&runs)?;
        let path = dir.join("ledger.db");
        make_private(dir, &path)?;
        let failed = |source| LedgerError::Database { path: path.clone(), doing: "be opened", source };
        let db = Connection::open(&path).map_err(failed)?;
        Self::with(db, path.clone(), Some(dir.to_owned()), LogStore::files(runs), clock)
    }

    /// A ledger that is gone when its last clone is dropped: for tests, and for builds that keep no record.
    pub fn in_memory(clock: Arc<dyn Clock>) -> Result<Self, LedgerError> {
        let path = PathBuf::from(":memory:");
        let failed = |source| LedgerError::Database { path: path.clone(), doing: "be opened", source };
        let db = Connection::open_in_memory().map_err(failed)?;
        Self::with(db, path.clone(), None, LogStore::memory(), clock)
    }

    fn with(
        mut db: Connection,
        path: PathBuf,
        dir: Option<PathBuf>,
        logs: LogStore,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, LedgerError> {
        let failed = |source| LedgerError::Database { path: path.clone(), doing: "be opened", source };
        db.busy_timeout(BUSY).map_err(failed)?;
        // Looked at before anything is written, WAL mode included: what is not ours stays as it is.
        schema::refuse_foreign(&db, &path)?;
        db.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).map_err(failed)?;
        db.execute_batch("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON").map_err(failed)?;
        schema::upgrade(&mut db, &path, schema::STEPS)?;
        Ok(Self(Arc::new(Inner { db: Mutex::new(db), path, dir, logs, clock })))
    }

    /// The directory, unless it is in memory.
    pub fn dir(&self) -> Option<&Path> {
        self.0.dir.as_deref()
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    pub(crate) fn log_store(&self) -> &LogStore {
        &self.0.logs
    }

    /// Runs `change` in one transaction that is on disk when this returns.
    pub(crate) fn write<T>(
        &self,
        doing: &'static str,
        change: impl FnOnce(&Transaction<'_>) -> Result<T, Refusal>,
    ) -> Result<T, LedgerError> {
        self.write_with(Durable::Yes, doing, change)
    }

    /// [`Ledger::write`] with a choice: a transaction that may be lost by a crash of the machine, though not by the death
    /// of this process, saves the sync. The next durable transaction makes it durable, too.
    pub(crate) fn write_with<T>(
        &self,
        durable: Durable,
        doing: &'static str,
        change: impl FnOnce(&Transaction<'_>) -> Result<T, Refusal>,
    ) -> Result<T, LedgerError> {
        let mut db = self.0.db.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |source| LedgerError::Database { path: self.0.path.clone(), doing, source };
        let level = if durable == Durable::Yes { "FULL" } else { "NORMAL" };
        db.pragma_update(None, "synchronous", level).map_err(failed)?;
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        match change(&tx) {
            Ok(value) => tx.commit().map(|()| value).map_err(failed),
            Err(Refusal::Database(source)) => Err(failed(source)),
            Err(Refusal::Because(error)) => Err(*error),
        }
    }

    /// Reads in one transaction, so that what is read fits together.
    pub(crate) fn read<T>(
        &self,
        doing: &'static str,
        look: impl FnOnce(&Transaction<'_>) -> Result<T, Refusal>,
    ) -> Result<T, LedgerError> {
        let mut db = self.0.db.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |source| LedgerError::Database { path: self.0.path.clone(), doing, source };
        let tx = db.transaction_with_behavior(TransactionBehavior::Deferred).map_err(failed)?;
        match look(&tx) {
            Ok(value) => Ok(value),
            Err(Refusal::Database(source)) => Err(failed(source)),
            Err(Refusal::Because(error)) => Err(*error),
        }
    }

    pub(crate) fn damaged(&self, what: impl Into<String>) -> Refusal {
        Refusal::Because(Box::new(LedgerError::Damaged { path: self.0.path.clone(), what: what.into() }))
    }

    /// The lock of whoever runs a run; `None` while somebody has it. Always free in memory.
    pub(crate) fn try_own(&self, run: &RunId) -> Result<Option<Owner>, LedgerError> {
        self.own_within(run, Duration::ZERO)
    }

    /// The same, waiting so long for whoever has it.
    pub(crate) fn own_within(&self, run: &RunId, most: Duration) -> Result<Option<Owner>, LedgerError> {
        let Some(dir) = &self.0.dir else { return Ok(Some(Owner(None))) };
        let dir = dir.join("runs").join(run.as_str());
        private_dir(&dir)?;
        let path = dir.join("owner.lock");
        match Lock::take(&path, Instant::now() + most, &|| false) {
            Ok(lock) => Ok(Some(Owner(Some(lock)))),
            Err(LockError::TimedOut { .. }) => Ok(None),
            Err(e) => Err(LedgerError::Io { path, source: std::io::Error::other(e) }),
        }
    }
}

/// Makes a directory, and those above it, for nobody else: logs may hold what a step should not have printed.
pub(crate) fn private_dir(dir: &Path) -> Result<(), LedgerError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| LedgerError::Io { path: dir.into(), source })
}

/// The same for what an earlier keelway made readable, and for the database, whose other files get its mode.
fn make_private(dir: &Path, db: &Path) -> Result<(), LedgerError> {
    let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(db);
    opened.map_err(|source| LedgerError::Io { path: db.into(), source })?;
    for (path, mode) in [(dir, 0o700), (db, 0o600)] {
        let is = std::fs::metadata(path).map(|m| m.permissions().mode() & 0o777);
        if is.is_ok_and(|is| is & !mode != 0) {
            let narrowed = std::fs::set_permissions(path, Permissions::from_mode(mode));
            narrowed.map_err(|source| LedgerError::Io { path: path.into(), source })?;
        }
    }
    Ok(())
}

/// Held while a run is run.
#[derive(Debug)]
pub(crate) struct Owner(#[expect(dead_code, reason = "held for its drop")] Option<Lock>);

/// Whether a transaction is on disk when it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durable {
    Yes,
    Soon,
}

/// Why a transaction was not made.
pub(crate) enum Refusal {
    Database(rusqlite::Error),
    Because(Box<LedgerError>),
}

impl From<rusqlite::Error> for Refusal {
    fn from(e: rusqlite::Error) -> Self {
        Self::Database(e)
    }
}

impl From<LedgerError> for Refusal {
    fn from(e: LedgerError) -> Self {
        Self::Because(Box::new(e))
    }
}
