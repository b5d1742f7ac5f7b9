//! Cache mounts: directories that RUN instructions write to and that outlive their builds.
//!
//! One is `mounts/<name>/`, with the files in `fs` and a record in `meta.json`; the name is derived from the id, what it
//! was filled with and a number, so that no id is ever a path. Who uses one holds the lock `locks/mount-<name>`, shared
//! or alone, until every process that writes to it is dead; who removes one holds it alone, and moves the directory to
//! the trash. No key knows anything of them, and what a crash of the machine may have damaged is dropped.

use crate::error::StoreError;
use crate::hold::Thing;
use crate::open::{Store, is_unsynced};
use crate::record;
use crate::snapshot::{Upper, taken};
use crate::usage;
use keelway_disk::{Lock, LockError, Sync};
use keelway_model::mount::Sharing;
use keelway_model::{Digest, Hasher, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

/// The format of `meta.json`.
const META_VERSION: u32 = 1;
/// How large it is, in bytes of the disk: beside the record, but only while nobody uses it.
const SIZE: &str = "size.json";
/// Directories of one id that can be in use at the same time.
const MAX_SLOTS: u32 = 1_000;

/// What is recorded beside a cache mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheMountMeta {
    /// Format of this record.
    pub version: u32,
    /// The id, as the Dockerfile has it.
    pub id: String,
    /// Which of the directories of this id: 0 unless it is `sharing=private` and others were in use.
    pub slot: u32,
    /// When a RUN last began to use it.
    pub last_used: Timestamp,
}

/// A cache mount of the store, as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMountEntry {
    /// Its name in the store.
    pub name: String,
    /// Its files.
    pub fs: PathBuf,
    /// Its record.
    pub meta: CacheMountMeta,
}

/// A cache mount in use; dropping it, or dying, ends that.
pub struct CacheMount {
    store: Store,
    name: String,
    id: String,
    slot: u32,
    lock: Lock,
}

impl CacheMount {
    /// Its files; there are none before [`CacheMount::fill`] where it is new.
    pub fn fs(&self) -> PathBuf {
        self.store.mounts().join(&self.name).join("fs")
    }

    /// Whether nobody has filled it yet.
    pub fn is_new(&self) -> bool {
        !self.fs().is_dir()
    }

    /// Makes what was written to `upper` its files; where somebody else was sooner, theirs stay.
    pub fn fill(&self, upper: Upper) -> Result<(), StoreError> {
        upper.remember("meta.json", &self.meta())?;
        upper.move_to(&self.store.mounts().join(&self.name)).map(|_| ())
    }

    /// Records that it is used now.
    pub fn touch(&self) -> Result<(), StoreError> {
        let folder = self.store.mounts().join(&self.name);
        let bytes = record::encode(&self.meta()).map_err(|e| StoreError::io("write", &folder)(e.into()))?;
        self.store.publish(&folder, "meta.json", &bytes, Sync::No)
    }

    /// The lock, for a process that shall hold it longer than this one lives.
    pub fn lock(&self) -> &Lock {
        &self.lock
    }

    fn meta(&self) -> CacheMountMeta {
        let last_used = self.store.inner.clock.now();
        CacheMountMeta { version: META_VERSION, id: self.id.clone(), slot: self.slot, last_used }
    }
}

fn name_of(id: &str, seed: Option<&Digest>, slot: u32) -> String {
    let mut h = Hasher::new();
    h.field(b"keelway cache mount").field(id.as_bytes());
    h.field(seed.map_or(&b""[..], |s| s.as_bytes())).field(&slot.to_le_bytes());
    h.finish().hex()[..40].to_owned()
}

impl Store {
    fn mounts(&self) -> PathBuf {
        self.inner.root.join("mounts")
    }

    fn mount_lock(&self, name: &str) -> PathBuf {
        self.inner.root.join("locks").join(format!("mount-{name}"))
    }

    /// The cache mount of an id, if the way it is shared allows it now: `Shared` with everybody, `Locked` alone, `Private`
    /// alone in the first directory of this id that is free. `seed` is the digest of what a new one is filled with: another
    /// one is another cache.
    pub fn try_cache_mount(
        &self,
        id: &str,
        seed: Option<&Digest>,
        sharing: Sharing,
    ) -> Result<Option<CacheMount>, StoreError> {
        let slots = if sharing == Sharing::Private { MAX_SLOTS } else { 1 };
        for slot in 0..slots {
            let name = name_of(id, seed, slot);
            let path = self.mount_lock(&name);
            let lock = match sharing {
                Sharing::Shared => Lock::try_share(&path),
                Sharing::Private | Sharing::Locked => Lock::try_take(&path),
            };
            if let Some(lock) = lock.map_err(lock_error(&path))? {
                self.uses_mount(&name)?;
                return Ok(Some(CacheMount { store: self.clone(), name, id: id.to_owned(), slot, lock }));
            }
        }
        Ok(None)
    }

    fn used_mounts(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Option<u64>>> {
        self.inner.mounts.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// From now on it stays, and nobody knows how large it is.
    fn uses_mount(&self, name: &str) -> Result<(), StoreError> {
        let folder = self.mounts().join(name);
        let size = folder.join(SIZE);
        self.used_mounts().entry(name.to_owned()).or_insert_with(|| match folder.exists() {
            true => record::read(&size),
            false => Some(0),
        });
        match std::fs::remove_file(&size) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(StoreError::io("remove", size)(e)),
            _ => {}
        }
        self.hold(&[Thing::Mount(name.to_owned())]).map(|_| ())
    }

    /// Bytes that a cache mount takes; `None` when there was no time to look.
    pub(crate) fn mount_size(&self, name: &str, deadline: Option<Instant>) -> Option<u64> {
        let folder = self.mounts().join(name);
        let (size, record) = (folder.join(SIZE), folder.join("meta.json"));
        if let Some(known) = record::read(&size) {
            return Some(known);
        }
        let meta: Option<CacheMountMeta> = record::read(&record);
        let bytes = taken(&folder.join("fs"), deadline)?;
        // Remembered unless it is in use, or was meanwhile.
        if let Ok(Some(_alone)) = Lock::try_take(&self.mount_lock(name))
            && record::read(&record) == meta
            && let Ok(text) = record::encode(&bytes)
            && let Err(e) = self.publish(&folder, SIZE, &text, Sync::No)
        {
            tracing::debug!("{e}");
        }
        Some(bytes)
    }

    /// Finds out how large those are that were used through this store, as far as there is time.
    pub(crate) fn settle_mounts(&self, deadline: Instant) {
        let names: Vec<String> = self.used_mounts().keys().cloned().collect();
        for name in names {
            let Some(now) = self.mount_size(&name, Some(deadline)) else { return };
            match self.used_mounts().remove(&name).flatten() {
                Some(before) => {
                    let grown =
                        i64::try_from(now).unwrap_or(i64::MAX) - i64::try_from(before).unwrap_or(i64::MAX);
                    self.inner.grown.fetch_add(grown, Ordering::Relaxed);
                }
                // Somebody else used it, too.
                None => usage::forget(&self.inner.root),
            }
        }
    }

    /// All cache mounts, by name.
    pub fn cache_mounts(&self) -> Result<Vec<CacheMountEntry>, StoreError> {
        let top = self.mounts();
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&top).map_err(StoreError::io("list", &top))? {
            let entry = entry.map_err(StoreError::io("list", &top))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            // Without a record it is removed like any other, sooner than all.
            let meta = record::read(&entry.path().join("meta.json")).unwrap_or(CacheMountMeta {
                version: META_VERSION,
                id: String::new(),
                slot: 0,
                last_used: Timestamp(0),
            });
            found.push(CacheMountEntry { fs: entry.path().join("fs"), name, meta });
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// When a cache mount was used last, `None` when it is not here.
    pub(crate) fn mount_use(&self, name: &str) -> Option<Timestamp> {
        let meta: CacheMountMeta = record::read(&self.mounts().join(name).join("meta.json"))?;
        Some(meta.last_used)
    }

    /// Removes a cache mount, unless it is in use; says whether it is gone.
    pub fn remove_cache_mount(&self, name: &str) -> Result<bool, StoreError> {
        if name.len() != 40 || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(StoreError::Missing { what: "cache mount", name: name.chars().take(80).collect() });
        }
        let path = self.mount_lock(name);
        let Some(_lock) = Lock::try_take(&path).map_err(lock_error(&path))? else { return Ok(false) };
        let directory = self.mounts().join(name);
        if directory.exists() {
            self.discard(&directory)?;
        }
        Ok(true)
    }

    /// Drops those that may have been damaged in a crash.
    pub(crate) fn drop_unsynced_mounts(&self, mark: Option<SystemTime>) -> Result<(), StoreError> {
        for entry in self.cache_mounts()? {
            if is_unsynced(&self.mounts().join(&entry.name).join("meta.json"), mark) {
                self.remove_cache_mount(&entry.name)?;
            }
        }
        Ok(())
    }
}

fn lock_error(path: &Path) -> impl FnOnce(LockError) -> StoreError {
    let path = path.to_owned();
    move |e| StoreError::io("lock", path)(io::Error::other(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{open, rig};

    fn take(store: &Store, id: &str, sharing: Sharing) -> Option<CacheMount> {
        store.try_cache_mount(id, None, sharing).unwrap()
    }

    fn fill(store: &Store, mount: &CacheMount) {
        mount.fill(store.begin().unwrap()).unwrap();
    }

    #[test]
    fn an_id_is_one_directory_and_never_a_path() {
        let (_dir, store) = rig();
        let hostile = "../../../../root/dir";
        let one = take(&store, hostile, Sharing::Shared).unwrap();
        assert!(one.is_new());
        fill(&store, &one);
        assert!(one.fs().starts_with(store.path().join("mounts")) && one.fs().is_dir());
        std::fs::write(one.fs().join("kept"), "x").unwrap();
        drop(one);
        let again = take(&store, hostile, Sharing::Shared).unwrap();
        assert!(!again.is_new() && again.fs().join("kept").exists());
        fill(&store, &again);
        assert!(again.fs().join("kept").exists(), "who was sooner stays");
        let other = store.try_cache_mount(hostile, Some(&Digest::of(b"seed")), Sharing::Shared).unwrap();
        assert!(other.unwrap().is_new(), "another seed is another cache");
        let entries = store.cache_mounts().unwrap();
        assert_eq!((entries.len(), entries[0].meta.id.as_str(), entries[0].meta.slot), (1, hostile, 0));
    }

    #[test]
    fn sharing_is_what_it_says() {
        let (dir, store) = rig();
        let other = open(&dir.path().join("store"));
        let (one, two) =
            (take(&store, "a", Sharing::Shared).unwrap(), take(&other, "a", Sharing::Shared).unwrap());
        assert_eq!(one.fs(), two.fs());
        fill(&store, &one);
        assert!(take(&other, "a", Sharing::Locked).is_none(), "others use it");
        let private = take(&other, "a", Sharing::Private).unwrap();
        assert_ne!(private.fs(), one.fs());
        fill(&other, &private);
        assert_ne!(take(&store, "a", Sharing::Private).unwrap().fs(), private.fs());
        drop((one, two));
        let locked = take(&other, "a", Sharing::Locked).unwrap();
        assert!(take(&store, "a", Sharing::Shared).is_none(), "it is locked");
        assert!(take(&store, "b", Sharing::Shared).is_some());
        drop(locked);
        let first = store.mounts().join(name_of("a", None, 0)).join("fs");
        assert_eq!(take(&store, "a", Sharing::Private).unwrap().fs(), first, "the first that is free");
    }

    #[test]
    fn what_is_in_use_is_not_removed() {
        let (_dir, store) = rig();
        let one = take(&store, "a", Sharing::Shared).unwrap();
        fill(&store, &one);
        let name = store.cache_mounts().unwrap()[0].name.clone();
        assert!(!store.remove_cache_mount(&name).unwrap());
        drop(one);
        assert!(store.remove_cache_mount(&name).unwrap());
        assert_eq!(store.cache_mounts().unwrap(), []);
        assert!(store.remove_cache_mount("../snapshots").is_err());
        assert!(take(&store, "a", Sharing::Locked).unwrap().is_new());
    }
}
