//! Holds: what this process was told is here stays here as long as its store is open.
//!
//! Every answer of the store that something is here (a snapshot, a blob, the output of a step), and everything that it
//! makes, is first written down in the process's own run directory, in the file whose lock says that the process lives.
//! So `kill -9` frees it, nobody can forget to hold anything, and nothing has to be given back. A process that lives
//! long works in sessions ([`Store::session`]): closing one gives back what it held.
//!
//! The order is what makes it right. Who needs something writes its hold and then looks whether the thing is here; who
//! collects reads the holds and then moves things away. Both sides pass one gate (`locks/gate`), holders together and
//! for microseconds, a collector alone and for a few moves. So either the collector sees the hold, or the holder
//! sees that the thing is gone, and that is a miss.

use crate::error::StoreError;
use crate::open::Store;
use keelway_disk::{Gate, Lock, LockError};
use keelway_model::{Digest, SnapshotId};
use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// The first line of the file. A living run directory without it is of a Keelway that held nothing yet, and whatever it
/// uses cannot be known.
const HEAD: &str = "keelway holds 1";

/// A collector is at it for milliseconds; one that is stopped half-way must not stop everybody for ever.
const GATE_WAIT: Duration = Duration::from_secs(60);

/// Something that can be held.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Thing {
    /// A snapshot.
    Snapshot(SnapshotId),
    /// A blob.
    Blob(Digest),
    /// A cache mount, by its name in the store.
    Mount(String),
}

impl Thing {
    fn line(&self) -> String {
        match self {
            Self::Snapshot(id) => format!("s {id}\n"),
            Self::Blob(digest) => format!("b {}\n", digest.hex()),
            Self::Mount(name) => format!("m {name}\n"),
        }
    }
    fn parse(line: &str) -> Option<Self> {
        let (kind, name) = line.split_once(' ')?;
        match kind {
            "s" => name.parse().ok().map(Self::Snapshot),
            "b" => Digest::from_hex(name).ok().map(Self::Blob),
            "m" => Some(Self::Mount(name.to_owned())),
            _ => None,
        }
    }
}

/// The holds of one open store.
pub(crate) struct Holds {
    gate: Gate,
    /// The lock file of the run directory; the lock itself is another handle's.
    file: File,
    held: HashSet<Thing>,
    /// What comes before the next lines: the head, where it is not written yet, and the end of a line that was torn.
    owed: String,
}

impl Holds {
    /// Those of the run directory whose lock this is.
    pub(crate) fn begin(root: &Path, lock: &Lock) -> Result<Self, StoreError> {
        let gate = root.join("locks/gate");
        let io = |e: LockError| StoreError::io("open", &gate)(io::Error::other(e));
        let gate = Gate::open(&gate).map_err(io)?;
        let file =
            File::options().append(true).open(lock.path()).map_err(StoreError::io("open", lock.path()))?;
        let mut holds = Self { gate, file, held: HashSet::new(), owed: format!("{HEAD}\n") };
        // A full disk is no reason not to open: whoever comes to make room must be able to.
        if let Err(e) = holds.write("") {
            tracing::debug!("{}: {e}", lock.path().display());
        }
        Ok(holds)
    }

    fn write(&mut self, lines: &str) -> io::Result<()> {
        let text = std::mem::take(&mut self.owed) + lines;
        let done = self.file.write_all(text.as_bytes());
        if done.is_err() {
            // What was not written whole is written again, on lines of its own.
            self.owed = format!("\n{HEAD}\n");
        }
        done
    }

    /// Holds what is not held yet; says whether that was anything.
    fn add(&mut self, things: &[Thing]) -> io::Result<bool> {
        let new: BTreeSet<Thing> = things.iter().filter(|t| !self.held.contains(*t)).cloned().collect();
        if new.is_empty() {
            return Ok(false);
        }
        let lines: String = new.iter().map(Thing::line).collect();
        self.pass(|holds| holds.write(&lines)).map_err(io::Error::other)??;
        self.held.extend(new);
        Ok(true)
    }

    /// Runs `work` while nobody collects.
    pub(crate) fn pass<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> Result<T, LockError> {
        self.gate.enter(Instant::now() + GATE_WAIT)?;
        let done = work(self);
        self.gate.leave();
        Ok(done)
    }
}

impl Store {
    /// Holds these things for as long as this store is open, whether they are here or not: look afterwards. Says
    /// whether any of them was not held before.
    pub fn hold(&self, things: &[Thing]) -> Result<bool, StoreError> {
        self.holds().add(things).map_err(StoreError::io("hold something in", &self.inner.run))
    }

    pub(crate) fn holds(&self) -> std::sync::MutexGuard<'_, Holds> {
        // A panic in between leaves a line that holds something for nobody, until the process ends.
        self.inner.holds.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// What living processes hold.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) things: HashSet<Thing>,
    /// Run directories of a Keelway that says nothing of what it uses.
    pub(crate) silent: Vec<String>,
}

impl Held {
    /// The silent but for this one, which is us and could not write.
    pub(crate) fn silent_others(&self, us: &Store) -> Vec<&str> {
        let own = us.inner.run.file_name().unwrap_or_default().to_string_lossy();
        self.silent.iter().map(String::as_str).filter(|run| *run != own).collect()
    }
}

/// Reads what every living process holds. For a collector that has the gate for itself. What was held by a process that
/// has died counts, too, until a store is opened the next time.
pub(crate) fn held(root: &Path) -> Result<Held, StoreError> {
    let mut out = Held::default();
    let mut unsure = Vec::new();
    let runs = root.join("runs");
    for entry in std::fs::read_dir(&runs).map_err(StoreError::io("list", &runs))? {
        let dir = entry.map_err(StoreError::io("list", &runs))?.path();
        if !read_run(&dir, &mut out)? {
            unsure.push(dir);
        }
    }
    if unsure.is_empty() {
        return Ok(out);
    }
    // One that is being opened right now has not written its head yet. Nobody opens or reaps while we have this lock, so
    // only now a lock may be tried without harm.
    let path = root.join("locks/open");
    let _opening = Lock::take(&path, Instant::now() + GATE_WAIT, &|| false)
        .map_err(|e| StoreError::io("lock", &path)(io::Error::other(e)))?;
    for dir in unsure {
        if !read_run(&dir, &mut out)?
            && dir.join("lock").exists()
            && matches!(Lock::try_take(&dir.join("lock")), Ok(None))
        {
            out.silent.push(dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default());
        }
    }
    Ok(out)
}

/// Adds what one run directory holds; false when it does not say.
fn read_run(dir: &Path, out: &mut Held) -> Result<bool, StoreError> {
    let path = dir.join("lock");
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        // It ends right now, or begins.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(StoreError::io("read", path)(e)),
    };
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines();
    if !lines.any(|line| line == HEAD) {
        return Ok(false);
    }
    out.things.extend(text.lines().filter_map(Thing::parse));
    Ok(true)
}
