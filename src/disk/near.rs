//! A root whose last used directory stays open.
//!
//! Trees are read and written one directory after another, and resolving the way to every file anew costs more than what is
//! done with it. Ways through links lead nowhere here. Who removes or replaces a directory must [`Near::forget`].

use crate::Root;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// A directory, and the name of an entry in it.
pub type Place<'p> = (Arc<Root>, &'p [u8]);

/// See the module.
#[derive(Debug)]
pub struct Near {
    root: Arc<Root>,
    last: Mutex<Option<(Vec<u8>, Arc<Root>)>>,
}

impl Near {
    /// Nothing is open yet but the root.
    pub fn new(root: Root) -> Self {
        Self { root: Arc::new(root), last: Mutex::new(None) }
    }

    /// A directory; `None` where there is none, or the way to it leads through a link.
    pub fn dir(&self, path: &[u8]) -> io::Result<Option<Arc<Root>>> {
        if path.is_empty() {
            return Ok(Some(Arc::clone(&self.root)));
        }
        // Replaced as a whole.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, dir)) = last.as_ref().filter(|(at, _)| at == path) {
            return Ok(Some(Arc::clone(dir)));
        }
        let Some(dir) = self.root.open_dir_by_names(path)? else { return Ok(None) };
        let dir = Arc::new(dir);
        *last = Some((path.to_vec(), Arc::clone(&dir)));
        Ok(Some(dir))
    }

    /// The directory that holds an entry, and the entry's name in it; the root holds itself under the empty name.
    pub fn parent<'p>(&self, path: &'p [u8]) -> io::Result<Option<Place<'p>>> {
        let (dir, name) = match path.iter().rposition(|&b| b == b'/') {
            Some(i) => (&path[..i], &path[i + 1..]),
            None => (&b""[..], path),
        };
        Ok(self.dir(dir)?.map(|dir| (dir, name)))
    }

    /// The last directory may not be what its path says any more.
    pub fn forget(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_leads_through_directories_alone() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        root.mkdir_all(b"a/b", 0o755).unwrap();
        root.create_file(b"a/b/f", 0o600).unwrap();
        root.symlink(b"a", b"link").unwrap();
        let near = Near::new(root.try_clone().unwrap());
        let stat = |path: &[u8]| {
            near.parent(path).unwrap().and_then(|(dir, name)| dir.stat(name).unwrap()).map(|s| s.kind)
        };
        for _ in 0..2 {
            assert_eq!(stat(b"a/b/f"), Some(crate::NodeKind::File));
            assert_eq!(stat(b"a/b"), Some(crate::NodeKind::Directory));
            assert_eq!(stat(b""), Some(crate::NodeKind::Directory));
            assert_eq!(stat(b"link"), Some(crate::NodeKind::Symlink));
        }
        for nowhere in [&b"link/b"[..], b"link/b/f", b"a/b/f/x", b"a/no/x", b"../x"] {
            assert_eq!(stat(nowhere), None);
        }
        assert!(near.dir(b"link").unwrap().is_none());
        // What replaces a directory is seen once the old one is forgotten.
        assert!(near.dir(b"a/b").unwrap().is_some());
        root.remove_all(b"a").unwrap();
        near.forget();
        assert_eq!(stat(b"a/b/f"), None);
    }
}
