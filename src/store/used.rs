//! When something was used last: the access time of the file that stands for it.
//!
//! That file is looked at anyway before something is used, so a use costs nothing where one was noted within the last
//! [`GRAIN`], and one system call where not. Nothing is synced: a crash makes things look older than they are. The times
//! are set by us, so a file system mounted with `noatime` has them, too; our own reading never sets them
//! ([`open_quietly`]). Another program that reads the files of a store (a backup) does, where the file system notes
//! it: then more looks recent than was.

use crate::open::Store;
use keelway_model::Timestamp;
use rustix::fs::{AtFlags, CWD, OFlags, Timespec, Timestamps, UTIME_OMIT};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Uses closer together than this are one, in milliseconds.
const GRAIN: u64 = 3_600_000;

/// When what this file stands for was used last.
pub(crate) fn last_use(stat: &Metadata) -> Timestamp {
    Timestamp(stat.atime().saturating_mul(1000).saturating_add(stat.atime_nsec() / 1_000_000))
}

/// Bytes that a file takes of the disk.
pub(crate) fn on_disk(stat: &Metadata) -> u64 {
    stat.blocks().saturating_mul(512)
}

impl Store {
    /// The file's status, `None` when it is not there; it was used now.
    pub(crate) fn use_file(&self, path: &Path) -> Option<Metadata> {
        let stat = path.symlink_metadata().ok()?;
        let now = self.inner.clock.now();
        // Also one of the future, which a wrong clock made.
        if now.0.abs_diff(last_use(&stat).0) >= GRAIN
            && let Err(e) = set_last_use(path, now)
        {
            tracing::debug!("{}: its use is not noted: {e}", path.display());
        }
        Some(stat)
    }
}

pub(crate) fn set_last_use(path: &Path, at: Timestamp) -> io::Result<()> {
    let used = Timespec { tv_sec: at.seconds(), tv_nsec: at.0.rem_euclid(1000) * 1_000_000 };
    let times =
        Timestamps { last_access: used, last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT } };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Opens a file of the store for reading, which is no use of it.
pub(crate) fn open_quietly(path: &Path) -> io::Result<File> {
    let flags = i32::try_from(OFlags::NOATIME.bits()).unwrap_or(0);
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        // Somebody else's file.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => File::open(path),
        other => other,
    }
}
