//! Doing what was planned, a few things at a time, and when to do it unasked.

use super::{Aim, Kind, Need, Plan, Step, Target};
use crate::census::{Census, Documents, Item, Name};
use crate::error::StoreError;
use crate::hold::{Thing, held};
use crate::open::Store;
use crate::usage::{self, Usage};
use crate::used::last_use;
use keelway_disk::{Lock, LockError, sync_dir};
use keelway_model::{Bytes, Timestamp};
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Things that are removed while holders wait: a rename each.
const BATCH: usize = 32;

/// For holders to leave the gate; each is there for microseconds.
const GATE_WAIT: Duration = Duration::from_secs(10);

/// Growth that makes another try worth it where the last one could not remove enough.
const GROWTH: u64 = 64 << 20;

/// The default cap, where half of the disk is more.
const MOST: u64 = 100 << 30;
/// The default of what stays free, where a tenth of the disk is more.
const FREE: u64 = 10 << 30;

/// Images that are needed by whoever is not a process that runs. Asked again and again: it reads small files, takes no
/// hold, and where it cannot tell, nothing is removed.
pub type NeedsFn<'a> = &'a dyn Fn() -> Result<Vec<Need>, String>;

/// Why nothing, or no more, was removed.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// A process that does not say what it uses.
    #[error(
        "a process of an older keelway works on this store and does not say what it uses ({runs}): nothing is removed \
         until it has ended"
    )]
    Silent {
        /// Its run directory, or several.
        runs: String,
    },
    /// Who needs what could not be read.
    #[error("nothing is removed, because it is not known what must stay: {0}")]
    Needs(String),
    /// Another one is at it.
    #[error("another keelway is removing things from this store: {0}")]
    Busy(LockError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a collection did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Things that were removed, records not counted that went with them.
    pub removed: usize,
    /// Bytes that they took.
    pub bytes: u64,
    /// Things that came into use after the plan was made, and stayed.
    pub spared: usize,
    /// Whether the whole plan was done; else time ran out.
    pub finished: bool,
    /// Bytes that the store takes now.
    pub after: u64,
    /// Bytes that it should not be above.
    pub aim: u64,
}

/// Room on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes in all.
    pub size: u64,
    /// Bytes that are free for us.
    pub free: u64,
}

impl Space {
    /// Where `path` is.
    pub fn at(path: &Path) -> Result<Self, StoreError> {
        let found =
            rustix::fs::statvfs(path).map_err(|e| StoreError::io("ask how full is", path)(e.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Self { size: bytes(found.f_blocks), free: bytes(found.f_bavail) })
    }
}

/// Bounds on a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that it may take.
    pub storage: u64,
    /// Bytes that stay free on its disk.
    pub free: u64,
    /// Bytes that it may take however full its disk is: where others fill it, a cache of nothing helps nobody.
    pub reserved: u64,
}

impl Limits {
    /// What is given, and else: half of the disk but at most 100 GiB; a tenth of the disk but at most 10 GiB free, and as
    /// much again reserved. Nothing is reserved where it is said how much shall be free.
    pub fn of(storage: Option<Bytes>, free: Option<Bytes>, space: Space) -> Self {
        let tenth = (space.size / 10).min(FREE);
        Self {
            storage: storage.map_or_else(|| (space.size / 2).min(MOST), |b| b.0),
            free: free.map_or(tenth, |b| b.0),
            reserved: if free.is_some() { 0 } else { tenth },
        }
    }
    /// Bytes that a store of this size may take, so that as much as shall be stays free.
    pub fn allowed(self, bytes: u64, space: Space) -> u64 {
        let missing = self.free.saturating_sub(space.free);
        self.storage.min(bytes.saturating_sub(missing).max(self.reserved))
    }
}

impl Store {
    /// Does what was planned, but leaves what is needed by now. `needs` is asked again before each few removals. Deletes
    /// nothing itself: what was removed is in the trash.
    pub fn prune(&self, plan: &Plan, needs: NeedsFn<'_>, deadline: Instant) -> Result<Collected, PruneError> {
        let path = self.path().join("locks/prune");
        let _one = Lock::take(&path, deadline, &|| false).map_err(PruneError::Busy)?;
        let mut done = Collected { after: plan.before, aim: plan.aim.keep, ..Collected::default() };
        let mut documents = Documents::default();
        for batch in plan.steps.chunks(BATCH) {
            if Instant::now() >= deadline {
                return Ok(done);
            }
            self.remove_some(plan, batch, needs, &mut documents, &mut done)?;
        }
        done.finished = true;
        Ok(done)
    }

    fn remove_some(
        &self,
        plan: &Plan,
        batch: &[Step],
        needs: NeedsFn<'_>,
        documents: &mut Documents,
        done: &mut Collected,
    ) -> Result<(), PruneError> {
        let path = self.path().join("locks/gate");
        let _alone = Lock::take(&path, Instant::now() + GATE_WAIT, &|| false).map_err(PruneError::Busy)?;
        let held = held(self.path())?;
        let silent = held.silent_others(self);
        if !silent.is_empty() {
            return Err(PruneError::Silent { runs: silent.join(", ") });
        }
        let needs = needs().map_err(PruneError::Needs)?;
        let mut census = Census { names: self.names(documents)?, ..Census::default() };
        // Who holds a snapshot holds what it stands on, but not the blob that it was unpacked from.
        for thing in &held.things {
            if let Thing::Snapshot(id) = thing
                && let Item::Here(item) = self.snapshot_item(&self.snapshot_path(id), None)
            {
                census.snapshots.insert(id.clone(), item);
            }
        }
        // A name that was given since keeps its image.
        let known = |n: &Name| plan.names.contains(&(n.user.path.clone(), n.inode));
        let soft = |n: &Name| plan.aim.is_soft(n) && known(n);
        let pins = super::pins(self, &census, documents, &held, &needs, &soft);
        let stays = |step: &Step| match &step.target {
            Target::Thing(thing, mass) => pins.has(thing) || self.was_used_since(thing, mass.used),
            Target::File(path, mass) => match census.names.iter().find(|n| n.user.path == *path) {
                Some(name) => !known(name) || pins.has(&Thing::Blob(name.manifest)),
                None => path.symlink_metadata().is_ok_and(|stat| last_use(&stat) > mass.used),
            },
            Target::Dead(_, missing) => self.last_use_of(missing).is_some(),
        };
        let mut go = Vec::new();
        for step in batch {
            match stays(step) {
                true => done.spared += 1,
                false => go.push(step),
            }
        }
        // Names first, and for good: after a crash none may be there whose image is gone.
        let mut names = false;
        for step in go.iter().filter(|s| s.shown.kind == Kind::Name) {
            if let Target::File(path, _) = &step.target {
                self.unlink(path)?;
                names = true;
            }
        }
        if names {
            let refs = self.path().join("refs");
            sync_dir(&refs).map_err(StoreError::io("sync", refs))?;
        }
        for step in go {
            for user in &step.users {
                self.unlink(user)?;
            }
            match &step.target {
                Target::Thing(Thing::Snapshot(id), _) => self.discard(&self.snapshot_path(id))?,
                Target::Thing(Thing::Blob(digest), _) => self.discard(&self.blob_path(digest))?,
                // Whose owner was killed a moment ago, it may still be in use.
                Target::Thing(Thing::Mount(name), _) => {
                    if !self.remove_cache_mount(name)? {
                        done.spared += 1;
                        continue;
                    }
                }
                Target::File(path, _) | Target::Dead(path, _) => self.unlink(path)?,
            }
            done.removed += 1;
            done.bytes = done.bytes.saturating_add(step.shown.bytes);
            done.after = done.after.saturating_sub(step.shown.bytes);
        }
        Ok(())
    }

    fn unlink(&self, path: &Path) -> Result<(), StoreError> {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(e)),
            _ => Ok(()),
        }
    }

    /// When a thing was used last, `None` when it is not here.
    fn last_use_of(&self, thing: &Thing) -> Option<Timestamp> {
        let path = match thing {
            Thing::Snapshot(id) => self.snapshot_path(id).join("meta.json"),
            Thing::Blob(digest) => self.blob_path(digest),
            Thing::Mount(name) => return self.mount_use(name),
        };
        path.symlink_metadata().ok().map(|stat| last_use(&stat))
    }

    fn was_used_since(&self, thing: &Thing, then: Timestamp) -> bool {
        self.last_use_of(thing).is_some_and(|at| at > then)
    }

    /// Removes what is too much, if the store is above its limits, for at most about `budget`. `None` where it is not.
    /// For a quiet moment, after the result is shown.
    pub fn collect(
        &self,
        given: (Option<Bytes>, Option<Bytes>),
        needs: NeedsFn<'_>,
        budget: Duration,
    ) -> Result<Option<Collected>, PruneError> {
        let deadline = Instant::now() + budget;
        let space = Space::at(self.path())?;
        let mut limits = Limits::of(given.0, given.1, space);
        // What is thrown away and not deleted yet will be free.
        if !self.inner.trash.is_empty().unwrap_or(false) {
            limits.free = 0;
        }
        self.settle_mounts(deadline);
        if let Some(known) = usage::read(self.path()) {
            let bytes = known.bytes.saturating_add_signed(self.inner.grown.load(Ordering::Relaxed));
            let stuck = known.stuck.is_some_and(|stuck| bytes <= stuck.saturating_add(GROWTH));
            if bytes <= limits.allowed(bytes, space) || stuck {
                return Ok(None);
            }
        }
        let needed = needs().map_err(PruneError::Needs)?;
        let mut documents = Documents::default();
        let held = held(self.path())?;
        // The next one goes on where this one had to stop.
        let Some(census) = self.census(&mut documents, Some(deadline))? else { return Ok(None) };
        let bytes = census.total();
        let allowed = limits.allowed(bytes, space);
        let (mut result, mut after) = (None, bytes);
        if bytes > allowed {
            // A little more than is needed, so that the next run need not do it again.
            let aim = Aim { keep: allowed - allowed / 10, unused_for: Duration::ZERO, names: false };
            let pins = super::pins(self, &census, &mut documents, &held, &needed, &|n| aim.is_soft(n));
            let plan = super::plan(&census, &pins, aim, self.inner.clock.now());
            let done = self.prune(&plan, needs, deadline)?;
            after = done.after;
            result = Some(done);
        }
        let stuck = (after > allowed && result.is_some_and(|d| d.finished)).then_some(after);
        usage::set(&self.inner, Usage { bytes: after, stuck })?;
        Ok(result)
    }
}
