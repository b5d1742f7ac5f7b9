//! Tests of the store as its users see it; those of one file are beside it.

mod faults;
mod kill;
mod merged;
mod places;

use crate::{Compression, Store};
use keelway_disk::{Faults, Root};
use keelway_model::clock::FixedClock;
use keelway_model::{SnapshotId, Timestamp, Tree, TreeEntry, TreeKind, TreePath};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A temporary folder where overlayfs's attributes and many files are cheap.
pub(crate) fn temp() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { tempfile::tempdir().unwrap() }
}

pub(crate) fn clock() -> Arc<FixedClock> {
    Arc::new(FixedClock(Timestamp::from_seconds(1_800_000_000)))
}

pub(crate) fn open(path: &Path) -> Store {
    Store::open(path, clock()).unwrap()
}

/// A store in a temporary folder, and the folder.
pub(crate) fn rig() -> (tempfile::TempDir, Store) {
    let dir = temp();
    let store = open(&dir.path().join("store"));
    (dir, store)
}

pub(crate) fn with_faults(path: &Path, faults: Faults) -> Result<Store, crate::OpenError> {
    Store::open_with(path, clock(), faults)
}

/// Makes a snapshot of what `fill` puts into it.
pub(crate) fn snapshot(store: &Store, fill: impl FnOnce(&Root)) -> SnapshotId {
    let upper = store.begin().unwrap();
    fill(&upper.root().unwrap());
    upper.freeze().unwrap()
}

pub(crate) fn write(root: &Root, path: &str, bytes: &[u8]) {
    use std::io::Write;
    if let Some((dir, _)) = path.rsplit_once('/') {
        root.mkdir_all(dir.as_bytes(), 0o755).unwrap();
    }
    root.create_file(path.as_bytes(), 0o644).unwrap().write_all(bytes).unwrap();
}

/// A tree with the bytes of its files, hard links as the path of their first name.
pub(crate) type Contents = BTreeMap<Vec<u8>, (TreeEntry, Option<Vec<u8>>)>;

pub(crate) fn contents(tree: &dyn Tree) -> Contents {
    let mut out = Contents::new();
    let mut todo = vec![TreePath::root()];
    while let Some(dir) = todo.pop() {
        for mut entry in tree.list(&dir).unwrap() {
            let path = dir.join(&entry.name).unwrap();
            let mut bytes = None;
            match entry.kind {
                TreeKind::Directory => todo.push(path.clone()),
                TreeKind::File { .. } => {
                    let mut read = Vec::new();
                    tree.open(&path).unwrap().read_to_end(&mut read).unwrap();
                    bytes = Some(read);
                }
                _ => {}
            }
            // Which inode it is differs; whether it has other names does not.
            entry.link_id = entry.link_id.map(|_| (0, 0));
            assert_eq!(tree.entry(&path).unwrap().map(|e| e.name), Some(entry.name.clone()));
            out.insert(path.as_bytes().to_vec(), (entry, bytes));
        }
    }
    out
}

pub(crate) fn names(contents: &Contents) -> Vec<String> {
    contents.keys().map(|k| String::from_utf8_lossy(k).into_owned()).collect()
}

/// Every path beneath a folder of the host, but for the marks that each opening writes.
pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(at) = todo.pop() {
        for entry in std::fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                todo.push(path.clone());
            }
            out.push(path.strip_prefix(dir).unwrap().to_path_buf());
        }
    }
    out.sort();
    out
}

/// Nothing private is left: no run directory, no claim, no temporary file outside the trash.
pub(crate) fn assert_clean(store: &Path) {
    for path in files(store) {
        let text = path.to_string_lossy().into_owned();
        let private = text.starts_with("runs/")
            || text.starts_with("locks/claim-")
            || (text.contains(".tmp-") && !text.starts_with("trash/"));
        assert!(!private, "{text} is left");
    }
}

pub(crate) fn tar_of(store: &Store, id: &SnapshotId) -> Vec<u8> {
    let layer = store.layer_of(id, Compression::None).unwrap();
    store.read_blob(&layer.descriptor.digest, u64::MAX).unwrap()
}
