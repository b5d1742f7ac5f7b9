//! Locks that die with their holder: flock on an open file.
//!
//! The file stays when the lock is dropped, so that no two holders can lock two different inodes of one
//! name; who removes a lock file must hold it and must [`Lock::is_still_at`] after taking one.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A lock, exclusive unless it is taken by [`Lock::try_share`]; dropping it frees it.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process, or another part of this one, held it until the deadline.
    #[error("{path} was still locked by another process after {waited:?}: wait for it to end, or end it")]
    TimedOut {
        /// The lock file.
        path: PathBuf,
        /// How long we waited.
        waited: Duration,
    },
    /// The caller gave up.
    #[error("cancelled while waiting for the lock {path}")]
    Cancelled {
        /// The lock file.
        path: PathBuf,
    },
    /// The file could not be opened or locked.
    #[error("cannot lock {path}: {source}")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Between two tries. flock has no wait with a deadline, so a bounded wait must poll.
const POLL: Duration = Duration::from_millis(5);

/// The same at a gate, which is never shut for long.
const GATE_POLL: Duration = Duration::from_millis(1);

impl Lock {
    fn open(path: &Path) -> Result<File, LockError> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|source| LockError::Io { path: path.into(), source })
    }

    /// Takes the lock if it is free; `None` when somebody holds it.
    pub fn try_take(path: &Path) -> Result<Option<Lock>, LockError> {
        let file = Self::open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { file, path: path.into() })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(LockError::Io { path: path.into(), source }),
        }
    }

    /// Takes the lock together with others who share it, if nobody holds it alone; `None` when somebody does.
    pub fn try_share(path: &Path) -> Result<Option<Lock>, LockError> {
        let file = Self::open(path)?;
        match file.try_lock_shared() {
            Ok(()) => Ok(Some(Lock { file, path: path.into() })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(LockError::Io { path: path.into(), source }),
        }
    }

    /// Takes the lock, waiting until `deadline` or until `cancelled` says so.
    pub fn take(path: &Path, deadline: Instant, cancelled: &dyn Fn() -> bool) -> Result<Lock, LockError> {
        let begun = Instant::now();
        loop {
            // Opened anew each time: the holder may have removed the file.
            if let Some(lock) = Self::try_take(path)? {
                if lock.is_still_at(path) {
                    return Ok(lock);
                }
                continue;
            }
            if cancelled() {
                return Err(LockError::Cancelled { path: path.into() });
            }
            if Instant::now() >= deadline {
                return Err(LockError::TimedOut { path: path.into(), waited: begun.elapsed() });
            }
            std::thread::sleep(POLL);
        }
    }

    /// Whether the locked file is the one that `path` names now: false after somebody removed it.
    pub fn is_still_at(&self, path: &Path) -> bool {
        match (self.file.metadata(), std::fs::metadata(path)) {
            (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
            _ => false,
        }
    }

    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Lock {
    /// The lock lives as long as any copy of this descriptor, in whatever process.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A lock file that many pass at once, each for a moment, unless somebody has it alone ([`Lock`] on the same file).
#[derive(Debug)]
pub struct Gate {
    file: File,
    path: PathBuf,
}

impl Gate {
    /// Opens the file, which must never be removed.
    pub fn open(path: &Path) -> Result<Self, LockError> {
        Ok(Self { file: Lock::open(path)?, path: path.into() })
    }

    /// Comes in, once nobody has the lock alone, waiting for that until `deadline`. Whoever is in leaves soon.
    pub fn enter(&mut self, deadline: Instant) -> Result<(), LockError> {
        let begun = Instant::now();
        loop {
            match self.file.try_lock_shared() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(GATE_POLL);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(LockError::TimedOut { path: self.path.clone(), waited: begun.elapsed() });
                }
                Err(TryLockError::Error(source)) => {
                    return Err(LockError::Io { path: self.path.clone(), source });
                }
            }
        }
    }

    /// Goes out.
    pub fn leave(&mut self) {
        // It cannot fail for a lock that we have; and closing the file frees it, too.
        let _ = self.file.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_pass_a_gate_and_nobody_while_it_is_had_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("g");
        let (mut one, mut two) = (Gate::open(&path).unwrap(), Gate::open(&path).unwrap());
        let far = || Instant::now() + Duration::from_secs(60);
        one.enter(far()).unwrap();
        two.enter(far()).unwrap();
        one.leave();
        assert!(Lock::try_take(&path).unwrap().is_none());
        two.leave();
        let alone = Lock::try_take(&path).unwrap().unwrap();
        let soon = Instant::now() + Duration::from_millis(5);
        assert!(matches!(one.enter(soon), Err(LockError::TimedOut { .. })));
        drop(alone);
        one.enter(far()).unwrap();
    }

    #[test]
    fn one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let held = Lock::try_take(&path).unwrap().unwrap();
        assert!(Lock::try_take(&path).unwrap().is_none());
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(matches!(Lock::take(&path, soon, &|| false), Err(LockError::TimedOut { .. })));
        assert!(matches!(Lock::take(&path, soon, &|| true), Err(LockError::Cancelled { .. })));
        drop(held);
        assert!(Lock::try_take(&path).unwrap().is_some());
    }

    #[test]
    fn many_share_and_none_is_alone_among_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let (one, two) = (Lock::try_share(&path).unwrap().unwrap(), Lock::try_share(&path).unwrap().unwrap());
        assert!(Lock::try_take(&path).unwrap().is_none());
        drop(one);
        assert!(Lock::try_take(&path).unwrap().is_none());
        drop(two);
        let alone = Lock::try_take(&path).unwrap().unwrap();
        assert!(Lock::try_share(&path).unwrap().is_none());
        drop(alone);
        assert!(Lock::try_share(&path).unwrap().is_some());
    }

    #[test]
    fn a_removed_lock_file_is_not_a_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let held = Lock::try_take(&path).unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(!held.is_still_at(&path));
    }
}
