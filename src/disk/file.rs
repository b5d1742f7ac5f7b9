//! An open file: bytes into it from another, and what it is beside its bytes.
//!
//! By the descriptor that created it: nothing is looked up again, and no name can mean another file meanwhile.

use crate::root::no_owner;
use rustix::fs::{Gid, Mode, Timespec, Timestamps, Uid, copy_file_range, fchmod, fchown, futimens};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Write};

/// Copies what is left of one regular file into another, by the kernel where it can; returns how much it was.
/// `size` is what is expected: a file that has no more costs one call.
pub fn copy_bytes(from: &mut File, to: &mut File, size: u64) -> io::Result<u64> {
    let mut done = 0u64;
    loop {
        // One more than expected, so that a file that grew is seen.
        let want = usize::try_from(size.saturating_sub(done).saturating_add(1)).unwrap_or(usize::MAX);
        match copy_file_range(&*from, None, &*to, None, want.min(1 << 30)) {
            Ok(0) => return Ok(done),
            Ok(n) => done += n as u64,
            Err(Errno::INTR) => {}
            // Between two file systems, for example; every other error comes again.
            Err(_) => {
                let n = io::copy(from, to)?;
                to.flush()?;
                return Ok(done + n);
            }
        }
        if done >= size {
            return Ok(done);
        }
    }
}

/// Owner, permission bits (07777) and times of a file, in the order in which they do not undo each other.
pub fn set_attributes(file: &File, owner: (u32, u32), mode: u32, mtime: i64) -> io::Result<()> {
    set_owner(file, owner)?;
    fchmod(file, Mode::from_raw_mode(mode & 0o7777))?;
    set_times(file, mtime)
}

fn set_owner(file: &File, (uid, gid): (u32, u32)) -> io::Result<()> {
    if uid == u32::MAX || gid == u32::MAX {
        return Err(no_owner());
    }
    fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .map_err(|e| crate::root::owner_error(e, uid, gid))
}

fn set_times(file: &File, seconds: i64) -> io::Result<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Ok(futimens(file, &Timestamps { last_access: time, last_modification: time })?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Root;
    use std::io::{Read, Seek};

    #[test]
    fn all_of_a_file_is_copied_whatever_was_expected() {
        let dir = tempfile::tempdir().unwrap();
        // Another file system than the temporary folder's, where there is one.
        let other = tempfile::tempdir_in("/dev/shm").unwrap();
        for to in [dir.path(), other.path()] {
            for (length, expected) in
                [(0, 0), (1, 1), (100_000, 100_000), (100_000, 3), (5, 100), (7, u64::MAX)]
            {
                let bytes: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
                std::fs::write(dir.path().join("from"), &bytes).unwrap();
                let mut from = File::open(dir.path().join("from")).unwrap();
                let mut out = tempfile::tempfile_in(to).unwrap();
                let n = copy_bytes(&mut from, &mut out, expected).unwrap();
                let mut got = Vec::new();
                out.rewind().unwrap();
                out.read_to_end(&mut got).unwrap();
                // More than was expected is seen, though not all of it is copied.
                let whole = length as u64 <= expected;
                assert_eq!(n > expected, !whole, "{length} {expected}");
                assert_eq!(got.len() as u64, n);
                assert_eq!(got, &bytes[..got.len()]);
                assert!(!whole || got.len() == bytes.len());
            }
        }
    }

    #[test]
    fn a_file_is_as_it_was_told() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let file = root.create_new(b"f").unwrap();
        set_attributes(&file, (4, 5), 0o6751, 315_619_200).unwrap();
        let stat = root.stat(b"f").unwrap().unwrap();
        assert_eq!((stat.uid, stat.gid, stat.mode, stat.mtime), (4, 5, 0o6751, 315_619_200));
        assert!(set_attributes(&file, (u32::MAX, 0), 0o644, 0).is_err());
        assert!(root.create_new(b"f").is_err_and(|e| e.kind() == io::ErrorKind::AlreadyExists));
    }
}
