//! Lazy deletion: a tree is renamed into a trash directory and deleted when there is time.
//!
//! On an ext4 without a journal, creating files after a mass delete is ten times slower, and a walk of
//! a big tree takes seconds anywhere: neither belongs on the way of a build.

use crate::publish::temp_name;
use crate::root::Root;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A trash directory, on the file system of what is put into it.
#[derive(Debug, Clone)]
pub struct Trash {
    dir: PathBuf,
}

impl Trash {
    /// Uses `dir`, which must exist.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Moves `path` here in one rename. A path that is not there is fine.
    pub fn discard(&self, path: &Path) -> io::Result<()> {
        match std::fs::rename(path, self.dir.join(temp_name()?)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Whether there is something to delete.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(std::fs::read_dir(&self.dir)?.next().is_none())
    }

    /// Deletes what is here, until nothing is left or `deadline` passes; says whether nothing is left.
    /// Several processes may do so at once. Never follows a link; stays on this file system. What cannot be
    /// deleted does not keep the rest: the first error is returned at the end.
    pub fn empty(&self, deadline: Instant) -> io::Result<bool> {
        let root = Root::open(&self.dir)?;
        let mut first = None;
        for item in root.list(b"")? {
            if Instant::now() >= deadline {
                return first.map_or(Ok(false), Err);
            }
            match root.remove_all_until(&item.name, deadline) {
                Ok(true) => {}
                Ok(false) => return first.map_or(Ok(false), Err),
                Err(e) => first = first.or(Some(e)),
            }
        }
        first.map_or(Ok(true), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{IFlags, ioctl_setflags};
    use std::time::Duration;

    #[test]
    fn discarded_at_once_and_deleted_later() {
        let dir = tempfile::tempdir().unwrap();
        let (bin, tree) = (dir.path().join("trash"), dir.path().join("tree"));
        std::fs::create_dir(&bin).unwrap();
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        let trash = Trash::at(&bin);
        trash.discard(&tree).unwrap();
        trash.discard(&tree).unwrap();
        assert!(!tree.exists());
        assert!(!trash.is_empty().unwrap());
        assert!(!trash.empty(Instant::now()).unwrap());
        assert!(trash.empty(Instant::now() + Duration::from_secs(60)).unwrap());
        assert!(trash.is_empty().unwrap());
    }

    /// A file that not even root can unlink, while this lives.
    struct Immutable(std::fs::File);

    impl Immutable {
        fn make(path: &Path) -> Self {
            let file = std::fs::File::create(path).unwrap();
            ioctl_setflags(&file, IFlags::IMMUTABLE).unwrap();
            Self(file)
        }
    }

    impl Drop for Immutable {
        fn drop(&mut self) {
            ioctl_setflags(&self.0, IFlags::empty()).unwrap();
        }
    }

    #[test]
    fn what_cannot_be_deleted_does_not_keep_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let (stuck, later) = (dir.path().join("a"), dir.path().join("b"));
        let held = Immutable::make(&stuck);
        std::fs::write(&later, "").unwrap();
        let trash = Trash::at(dir.path());
        let error = trash.empty(Instant::now() + Duration::from_secs(60)).unwrap_err();
        assert!(!later.exists() && stuck.exists(), "{error}");
        drop(held);
        assert!(trash.empty(Instant::now() + Duration::from_secs(60)).unwrap());
    }
}
