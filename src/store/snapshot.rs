//! Snapshots: frozen overlayfs uppers.
//!
//! A snapshot directory appears whole, by one rename, and is never written again. Its files carry the container's own
//! user ids: sandboxes translate where they mount it. Its id says nothing about
//! its content, but for a base layer's, which is derived from the layer's diff id.

use crate::error::StoreError;
use crate::hold::Thing;
use crate::open::{Store, is_unsynced, random_name};
use crate::record;
use crate::walk::{overlay, walk, walk_living};
use keelway_disk::{NodeKind, Root, Stat, Step};
use keelway_model::{Digest, SnapshotId, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

/// The modification time of everything that a step wrote: 1980-01-02 00:00:00 UTC.
///
/// Why this day: zip and jar cannot say anything before 1980-01-01 00:00 *local* time, so the second day is
/// right in every time zone; tar, cpio, FAT and 32-bit time can say it; a tool that takes 0 for "unset"
/// does not stumble.
///
/// What one constant time means to tools that compare times:
/// - `make` rebuilds what is *older* than its source. Equal times are up to date, so a later step does not
///   rebuild what an earlier step built. But sources that are copied over a base image that already holds
///   objects are older than those objects: clean first, or `make -B`.
/// - Python takes a `.pyc` for valid when it records exactly the source's time and length. What one step both
///   writes and compiles carries another time once it is frozen, and is compiled again at import (slower,
///   never wrong). A source replaced by one of equal length in a later layer does look unchanged: compile with
///   `--invalidation-mode checked-hash`, which is Python's default where `SOURCE_DATE_EPOCH` is set.
pub const LAYER_TIME: Timestamp = Timestamp::from_seconds(315_619_200);

/// The format of `meta.json`.
pub(crate) const META_VERSION: u32 = 1;

/// What is recorded beside a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMeta {
    /// Format of this record.
    pub version: u32,
    /// The layer that it was unpacked from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff_id: Option<Digest>,
    /// Bytes that its files take of the disk; not known of one that an older Keelway made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// Adds up what entries take of the disk, each file once however many names it has.
#[derive(Default)]
pub(crate) struct Size {
    pub(crate) bytes: u64,
    linked: HashSet<(u64, u64)>,
}

impl Size {
    pub(crate) fn add(&mut self, stat: &Stat) {
        let once = stat.kind == NodeKind::Directory || stat.links < 2 || self.linked.insert(stat.id);
        if once {
            self.bytes = self.bytes.saturating_add(stat.disk);
        }
    }
}

/// What the files beneath `dir` take of the disk; `None` when there was no time for all of them. What cannot be looked at
/// counts for nothing, and neither does what vanishes meanwhile.
pub(crate) fn taken(dir: &Path, deadline: Option<Instant>) -> Option<u64> {
    let (mut size, mut late) = (Size::default(), false);
    let looked = Root::open(dir).and_then(|root| {
        walk_living(&root, &mut |v| {
            size.add(&v.stat);
            late = deadline.is_some_and(|d| Instant::now() >= d);
            if late { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
        })
    });
    if let Err(e) = looked {
        tracing::debug!("{}: {e}", dir.display());
    }
    (!late).then_some(size.bytes)
}

/// A writable layer in this process's run directory. Dropping it discards it.
pub struct Upper {
    store: Store,
    dir: PathBuf,
    fs: PathBuf,
    work: PathBuf,
    published: bool,
    still: bool,
}

impl Upper {
    /// The overlay's upper directory; mode 0755, owner 0:0 at first.
    pub fn fs(&self) -> &Path {
        &self.fs
    }
    /// The overlay's work directory, on the same file system.
    pub fn work(&self) -> &Path {
        &self.work
    }
    /// The upper directory as a root for writing by descriptor.
    pub fn root(&self) -> Result<Root, StoreError> {
        Root::open(&self.fs).map_err(StoreError::io("open", &self.fs))
    }
    /// Says that every entry has [`LAYER_TIME`] already and that no overlay was ever mounted on it: freezing it need
    /// not look at each.
    pub fn is_still(&mut self) {
        self.still = true;
    }
    /// Freezes it: every entry gets [`LAYER_TIME`], overlay's private attributes go, and it becomes a snapshot.
    /// Nothing may write to it any more, and no overlay may still be mounted on it.
    pub fn freeze(self) -> Result<SnapshotId, StoreError> {
        // Looking at sizes alone is much less than making still.
        let size = match self.still {
            true => taken(&self.fs, None).unwrap_or_default(),
            false => self.make_still()?,
        };
        let id = named(&random_name("s")?)?;
        self.publish(&id, None, size)?;
        Ok(id)
    }

    /// Gives what its files take of the disk.
    fn make_still(&self) -> Result<u64, StoreError> {
        let root = self.root()?;
        let mut size = Size::default();
        let still = |dir: &Root, name: &[u8], kind: NodeKind| -> io::Result<()> {
            if matches!(kind, NodeKind::Directory | NodeKind::File) {
                overlay::clean(dir, name)?;
            }
            dir.set_mtime(name, LAYER_TIME.seconds(), 0)
        };
        walk(&root, &mut |v| {
            size.add(&v.stat);
            still(v.dir, v.name, v.stat.kind)
        })
        .and_then(|()| still(&root, b"", NodeKind::Directory))
        .map_err(StoreError::io("freeze", &self.fs))?;
        Ok(size.bytes)
    }

    /// Puts a record beside the snapshot that this becomes.
    pub(crate) fn remember<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StoreError> {
        let path = self.dir.join(name);
        let bytes = record::encode(value).map_err(|e| StoreError::io("write", &path)(e.into()))?;
        self.store.inner.faults.step(Step::Write).map_err(StoreError::io("write", &path))?;
        std::fs::write(&path, bytes).map_err(StoreError::io("write", path))
    }

    /// Makes it the snapshot `id`; when there is one of that name already, that one stays.
    pub(crate) fn publish(
        self,
        id: &SnapshotId,
        diff_id: Option<Digest>,
        size: u64,
    ) -> Result<(), StoreError> {
        let meta = SnapshotMeta { version: META_VERSION, diff_id, size: Some(size) };
        self.remember("meta.json", &meta)?;
        self.store.hold(&[Thing::Snapshot(id.clone())])?;
        let (store, to) = (self.store.clone(), self.store.snapshot_path(id));
        if self.move_to(&to)? {
            store.inner.grew(size);
        }
        Ok(())
    }

    /// Makes its directory, without the work directory, the one at `to`; when there is one already, that one stays.
    /// Says whether it is this one.
    pub(crate) fn move_to(mut self, to: &Path) -> Result<bool, StoreError> {
        // Overlayfs leaves an empty directory in it, of mode 0.
        let dir = Root::open(&self.dir).map_err(StoreError::io("open", &self.dir))?;
        dir.remove_all(b"work").map_err(StoreError::io("remove", &self.work))?;
        self.store.inner.faults.step(Step::Rename).map_err(StoreError::io("publish", to))?;
        match std::fs::rename(&self.dir, to) {
            Ok(()) => {
                self.published = true;
                Ok(true)
            }
            Err(_) if to.join("meta.json").exists() => Ok(false),
            Err(e) => Err(StoreError::io("publish", to)(e)),
        }
    }
}

impl Drop for Upper {
    fn drop(&mut self) {
        // What cannot be moved now goes with the run directory.
        if !self.published
            && let Err(e) = self.store.discard(&self.dir)
        {
            tracing::debug!("{e}");
        }
    }
}

fn named(name: &str) -> Result<SnapshotId, StoreError> {
    name.parse().map_err(|e| StoreError::io("name a snapshot", name)(io::Error::other(e)))
}

/// The snapshot of an unpacked layer. 192 bits of the digest, because an id has at most 63 characters; the
/// whole digest is in its record.
pub(crate) fn layer_snapshot(diff_id: &Digest) -> Result<SnapshotId, StoreError> {
    named(&format!("l-{}", &diff_id.hex()[..48]))
}

impl Store {
    pub(crate) fn snapshot_path(&self, id: &SnapshotId) -> PathBuf {
        self.inner.root.join("snapshots").join(id.as_str())
    }

    /// An empty writable layer.
    pub fn begin(&self) -> Result<Upper, StoreError> {
        let dir = self.private("upper");
        let (fs, work) = (dir.join("fs"), dir.join("work"));
        self.inner.faults.step(Step::Create).map_err(StoreError::io("make", &dir))?;
        let make = || -> io::Result<()> {
            std::fs::create_dir(&dir)?;
            let dir = Root::open(&dir)?;
            dir.mkdir(b"fs", 0o755)?;
            dir.mkdir(b"work", 0o700)
        };
        make().map_err(StoreError::io("make", &dir))?;
        Ok(Upper { store: self.clone(), dir, fs, work, published: false, still: false })
    }

    /// The directory of a snapshot, usable as an overlay's lower directory; read only by agreement.
    pub fn snapshot_dir(&self, id: &SnapshotId) -> PathBuf {
        self.snapshot_path(id).join("fs")
    }

    /// The directories of a chain for an overlay, lowest first. What is in the chain more than once is here once, at
    /// its highest place: no overlay takes a directory twice, and above itself a snapshot hides all that it gives.
    pub fn lowers(&self, chain: &[SnapshotId]) -> Vec<PathBuf> {
        let highest = |(at, id): &(usize, &SnapshotId)| !chain[at + 1..].contains(id);
        chain.iter().enumerate().filter(highest).map(|(_, id)| self.snapshot_dir(id)).collect()
    }

    /// Whether the snapshot is here; if so it stays, as long as this store is open. (One that may be damaged by a crash
    /// was dropped on opening.)
    pub fn has_snapshot(&self, id: &SnapshotId) -> bool {
        let meta = self.snapshot_path(id).join("meta.json");
        if self.use_file(&meta).is_none() {
            return false;
        }
        match self.hold(&[Thing::Snapshot(id.clone())]) {
            Ok(false) => true,
            // It may have gone before it was held.
            Ok(true) => meta.exists(),
            Err(e) => {
                tracing::warn!("{e}");
                false
            }
        }
    }

    /// What is recorded beside it.
    pub fn snapshot_meta(&self, id: &SnapshotId) -> Result<SnapshotMeta, StoreError> {
        self.existing(id)?;
        let path = self.snapshot_path(id).join("meta.json");
        let damaged = |why: String| StoreError::Damaged { path: path.clone(), why };
        let meta: SnapshotMeta =
            record::read(&path).ok_or_else(|| damaged("it is not a snapshot's record".into()))?;
        if meta.version > META_VERSION {
            return Err(damaged(format!("its format {} is newer than this keelway", meta.version)));
        }
        Ok(meta)
    }

    /// The directory of a snapshot that must be here.
    pub(crate) fn existing(&self, id: &SnapshotId) -> Result<PathBuf, StoreError> {
        if !self.has_snapshot(id) {
            return Err(StoreError::Missing { what: "snapshot", name: id.to_string() });
        }
        Ok(self.snapshot_dir(id))
    }

    /// Drops the snapshots that may have been lost in a crash.
    pub(crate) fn drop_unsynced_snapshots(&self, mark: Option<SystemTime>) -> Result<(), StoreError> {
        let top = self.inner.root.join("snapshots");
        for entry in std::fs::read_dir(&top).map_err(StoreError::io("list", &top))? {
            let dir = entry.map_err(StoreError::io("list", &top))?.path();
            if is_unsynced(&dir.join("meta.json"), mark) {
                self.discard(&dir)?;
            }
        }
        Ok(())
    }
}
