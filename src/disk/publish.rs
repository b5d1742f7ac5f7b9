//! Write, then publish: readers see the old file or the new one, whole, never a part.

use crate::fault::{Faults, Step};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Whether the bytes must survive a crash of the machine once the call returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// fsync the file before, and its directory after the rename.
    Yes,
    /// Leave it to the kernel: a crash may lose it or leave an empty file.
    No,
}

/// Puts `bytes` at `dir/name`, replacing what was there, with mode 0600. `name` is one component. After an
/// error no temporary file is left and nothing was published, but for one case: with [`Sync::Yes`] the sync of
/// the directory comes after the rename, so when that fails the new file is there and may not last.
pub fn publish(dir: &Path, name: &str, bytes: &[u8], sync: Sync, faults: &Faults) -> io::Result<()> {
    publish_from(dir, dir, name, bytes, sync, faults)
}

/// The same, with the temporary file in `temp_dir` (same file system), so that a writer that dies leaves
/// nothing in `dir`.
pub fn publish_from(
    temp_dir: &Path,
    dir: &Path,
    name: &str,
    bytes: &[u8],
    sync: Sync,
    faults: &Faults,
) -> io::Result<()> {
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is not a file name")));
    }
    let temp = temp_dir.join(temp_name()?);
    let write = || -> io::Result<()> {
        faults.step(Step::Create)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp)?;
        faults.step(Step::Write)?;
        file.write_all(bytes)?;
        if sync == Sync::Yes {
            faults.step(Step::Sync)?;
            file.sync_data()?;
        }
        faults.step(Step::Rename)?;
        std::fs::rename(&temp, dir.join(name))
    };
    if let Err(e) = write() {
        // The first error is the one to tell; what cannot be removed is swept with the other temporaries.
        let _ = std::fs::remove_file(&temp);
        return Err(e);
    }
    if sync == Sync::Yes {
        faults.step(Step::Sync)?;
        sync_dir(dir)?;
    }
    Ok(())
}

/// fsync of a directory: makes renames in it last.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The prefix of every temporary file, so that a reader of a directory can pass over them.
pub const TEMP_PREFIX: &str = ".tmp-";

/// A name that no other process chooses.
pub fn temp_name() -> io::Result<String> {
    let mut raw = [0u8; 12];
    getrandom::fill(&mut raw).map_err(io::Error::other)?;
    let hex: String = raw.iter().map(|b| format!("{b:02x}")).collect();
    Ok(format!("{TEMP_PREFIX}{hex}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_leaves_the_old_or_the_new_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        publish(dir.path(), "x", b"old", Sync::Yes, &Faults::NONE).unwrap();
        for n in 1..100 {
            let faults = Faults::fail_at(n);
            let done = publish(dir.path(), "x", b"new", Sync::Yes, &faults);
            let names: Vec<_> =
                std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert_eq!(names, ["x"], "fault {n}");
            let now = std::fs::read(dir.path().join("x")).unwrap();
            // Only the last sync comes after the publish point.
            assert_eq!(now, if n >= 5 { b"new" } else { b"old" }, "fault {n}");
            if done.is_ok() {
                assert_eq!(n, 6);
                return;
            }
        }
        panic!("never without a fault");
    }

    #[test]
    fn a_name_is_one_component() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["", ".", "..", "a/b"] {
            assert!(publish(dir.path(), bad, b"", Sync::No, &Faults::NONE).is_err());
        }
    }
}
