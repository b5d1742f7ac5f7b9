//! Opening a store, and the run directory that a process holds in it.
//!
//! What survives a crash of the machine: nothing in a store is synced when it is written, but a mark
//! (`synced`) is set after each [`Store::sync`], and its modification time says from when on writes may have been
//! lost. The first process that opens the store after a boot trusts nothing newer than the mark: it drops
//! those snapshots and hashes those blobs again. So a crash costs cache entries, never a wrong build.

use crate::error::{OpenError, StoreError};
use crate::hold::Holds;
use crate::key::Memos;
use keelway_disk::publish::TEMP_PREFIX;
use keelway_disk::{Faults, Lock, Step, Sync, Trash, publish_from};
use keelway_model::Clock;
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The format this code reads and writes.
pub(crate) const FORMAT: u32 = 1;

/// Opening is short, but hashing after a crash may not be.
const OPEN_WAIT: Duration = Duration::from_secs(600);

/// The folders of a store.
const FOLDERS: [&str; 11] = [
    "blobs/sha256",
    "snapshots",
    "refs",
    "cache/keys",
    "cache/last",
    "cache/steps",
    "cache/memo",
    "mounts",
    "locks",
    "runs",
    "trash",
];

/// An open store. Cheap to clone; the run directory lives until the last clone goes.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) root: PathBuf,
    pub(crate) run: PathBuf,
    pub(crate) reaped: Vec<ReapedRun>,
    pub(crate) faults: Faults,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) trash: Trash,
    pub(crate) memos: Mutex<Memos>,
    pub(crate) holds: Mutex<Holds>,
    /// Bytes by which the store has grown through us since it was opened, or since that was written down.
    pub(crate) grown: AtomicI64,
    /// Cache mounts that were used through us, and how large they were before where that was known.
    pub(crate) mounts: Mutex<BTreeMap<String, Option<u64>>>,
    notes: Mutex<File>,
    serial: AtomicU64,
    boot: String,
    _lock: Lock,
}

/// A run directory whose process had died, now moved to the trash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReapedRun {
    /// Its name.
    pub id: String,
    /// Cgroups that the process had recorded ([`Store::note_cgroup`]), oldest first: the caller ends what is
    /// in them and removes them.
    pub cgroups: Vec<String>,
}

impl Store {
    /// Opens the store at `path`, making it (mode 0700) when there is none, and takes a run directory.
    pub fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Store, OpenError> {
        Self::open_with(path, clock, Faults::NONE)
    }

    /// The same with a fault seam, for tests.
    pub fn open_with(path: &Path, clock: Arc<dyn Clock>, faults: Faults) -> Result<Store, OpenError> {
        make_dirs(path)?;
        let root = path.canonicalize().map_err(StoreError::io("find", path))?;
        check_format(&root, &faults)?;
        for folder in FOLDERS {
            make_dirs(&root.join(folder))?;
        }
        let opening = opening(&root)?;
        let (dead, reaped) = find_dead(&root)?;
        let mut inner = Inner::begin(root, faults, clock)?;
        // Ours to remember before theirs is thrown away: if we die now, the next process still learns of them.
        let notes = inner.notes.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        for name in reaped.iter().flat_map(|r| &r.cgroups) {
            writeln!(notes, "{name}").map_err(StoreError::io("write", inner.run.join("cgroups")))?;
        }
        if !dead.is_empty() {
            crate::usage::forget(&inner.root);
        }
        for (dir, lock) in dead {
            inner.trash.discard(&dir).map_err(StoreError::io("discard", &dir))?;
            drop(lock);
        }
        crate::claim::sweep(&inner.root.join("locks"))?;
        inner.reaped = reaped;
        let store = Store { inner: Arc::new(inner) };
        store.check_after_boot()?;
        drop(opening);
        Ok(store)
    }

    /// The same store with a run directory, and so with holds, of its own: for one piece of work of a process that lives
    /// long. It cleans up after nobody.
    pub fn session(&self) -> Result<Store, StoreError> {
        let Inner { root, faults, clock, .. } = &*self.inner;
        let opening = opening(root)?;
        let inner = Inner::begin(root.clone(), faults.clone(), Arc::clone(clock))?;
        drop(opening);
        Ok(Store { inner: Arc::new(inner) })
    }

    /// Where the store is, absolute.
    pub fn path(&self) -> &Path {
        &self.inner.root
    }
    /// This process's own directory: on the store's file system, gone after its death.
    pub fn run_dir(&self) -> &Path {
        &self.inner.run
    }
    /// What was left by dead processes and has been cleaned up on opening.
    pub fn reaped(&self) -> &[ReapedRun] {
        &self.inner.reaped
    }

    /// Records a cgroup before it is made, so that the next process can remove it if this one dies.
    pub fn note_cgroup(&self, name: &str) -> Result<(), StoreError> {
        let path = self.inner.run.join("cgroups");
        if name.is_empty() || name.contains('\n') {
            let source =
                io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is not a cgroup name"));
            return Err(StoreError::io("note in", path)(source));
        }
        let line = format!("{name}\n");
        let mut notes = self.inner.notes.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        notes.write_all(line.as_bytes()).map_err(StoreError::io("write", path))
    }

    /// Everything written so far survives a crash of the machine once this returns.
    pub fn sync(&self) -> Result<(), StoreError> {
        let mark = self.inner.run.join("synced");
        // Made before the sync begins: what is written meanwhile may miss it and must be newer than the mark.
        self.inner.faults.step(Step::Sync).map_err(StoreError::io("sync", &self.inner.root))?;
        File::create(&mark).map_err(StoreError::io("write", &mark))?;
        let root = File::open(&self.inner.root).map_err(StoreError::io("open", &self.inner.root))?;
        rustix::fs::syncfs(&root).map_err(|e| StoreError::io("sync", &self.inner.root)(e.into()))?;
        let done = self.inner.root.join("synced");
        std::fs::rename(&mark, &done).map_err(StoreError::io("write", done))
    }

    /// Deletes what is in the trash for at most `budget`; says whether it is empty now. For a quiet moment:
    /// after the result is shown.
    pub fn empty_trash(&self, budget: Duration) -> Result<bool, StoreError> {
        let trash = &self.inner.trash;
        trash.empty(Instant::now() + budget).map_err(StoreError::io("empty the trash of", &self.inner.root))
    }

    /// A new private path in the run directory.
    pub(crate) fn private(&self, kind: &str) -> PathBuf {
        self.inner.run.join(format!("{kind}-{}", self.inner.serial.fetch_add(1, Ordering::Relaxed)))
    }

    /// Publishes a small file under `folder` of the store.
    pub(crate) fn publish(
        &self,
        folder: &Path,
        name: &str,
        bytes: &[u8],
        sync: Sync,
    ) -> Result<(), StoreError> {
        publish_from(&self.inner.run, folder, name, bytes, sync, &self.inner.faults)
            .map_err(StoreError::io("write", folder.join(name)))
    }

    /// Moves something to the trash.
    pub(crate) fn discard(&self, path: &Path) -> Result<(), StoreError> {
        self.inner.trash.discard(path).map_err(StoreError::io("discard", path))
    }

    fn check_after_boot(&self) -> Result<(), StoreError> {
        let root = &self.inner.root;
        // A mark that cannot be read says nothing; in a new store there is nothing to check.
        if std::fs::read_to_string(root.join("boot")).is_ok_and(|last| last == self.inner.boot) {
            return Ok(());
        }
        let mark = std::fs::metadata(root.join("synced")).and_then(|m| m.modified()).ok();
        tracing::info!(store = %root.display(), "first start after a boot: checking what was not synced");
        self.drop_unsynced_snapshots(mark)?;
        self.drop_unsynced_mounts(mark)?;
        self.check_unsynced_blobs(mark)?;
        self.publish(root, "boot", self.inner.boot.as_bytes(), Sync::Yes)
    }
}

impl Inner {
    /// With a new run directory. The caller has the lock for opening.
    fn begin(root: PathBuf, faults: Faults, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let boot = boot_id()?;
        let (run, lock, notes) = make_run(&root, &faults)?;
        let (trash, memos) = (Trash::at(root.join("trash")), Mutex::new(Memos::new(&root)));
        let holds = Mutex::new(Holds::begin(&root, &lock)?);
        Ok(Self {
            root,
            run,
            reaped: Vec::new(),
            faults,
            clock,
            trash,
            memos,
            holds,
            grown: AtomicI64::new(0),
            mounts: Mutex::default(),
            notes: Mutex::new(notes),
            serial: AtomicU64::new(0),
            boot,
            _lock: lock,
        })
    }

    /// The store takes so many bytes more.
    pub(crate) fn grew(&self, by: u64) {
        self.grown.fetch_add(i64::try_from(by).unwrap_or(i64::MAX), Ordering::Relaxed);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        crate::usage::add(self);
        // Usually only our own two files are left. The lock goes after this; if all fails, the next process
        // reaps the directory.
        for name in ["cgroups", "lock"] {
            let _ = std::fs::remove_file(self.run.join(name));
        }
        if std::fs::remove_dir(&self.run).is_ok() {
            return;
        }
        if let Err(e) = self.trash.discard(&self.run) {
            tracing::debug!(run = %self.run.display(), "run directory stays for the next start: {e}");
        }
    }
}

/// Whether something written at this time may have been lost in a crash.
pub(crate) fn is_unsynced(path: &Path, mark: Option<std::time::SystemTime>) -> bool {
    match (std::fs::symlink_metadata(path).and_then(|m| m.modified()), mark) {
        (Ok(written), Some(mark)) => written >= mark,
        _ => true,
    }
}

fn make_dirs(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(StoreError::io("make", path))
}

/// The lock of opening. One at a time: between making a run directory and locking it, others must not take it for dead.
fn opening(root: &Path) -> Result<Lock, StoreError> {
    let path = root.join("locks/open");
    Lock::take(&path, Instant::now() + OPEN_WAIT, &|| false)
        .map_err(|e| StoreError::io("lock", path)(io::Error::other(e)))
}

fn boot_id() -> Result<String, StoreError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    Ok(std::fs::read_to_string(path).map_err(StoreError::io("read", path))?.trim().to_owned())
}

/// Reads the format, or writes it into an empty folder.
fn check_format(root: &Path, faults: &Faults) -> Result<(), OpenError> {
    let path = root.join("version");
    let not_a_store = |why: String| OpenError::NotAStore { path: root.into(), why };
    match std::fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse::<u32>() {
            Ok(found) if found > FORMAT => Err(OpenError::TooNew { path: root.into(), found, known: FORMAT }),
            Ok(FORMAT) => Ok(()),
            _ => Err(not_a_store(format!(
                "its file 'version' says {:?}",
                text.chars().take(40).collect::<String>()
            ))),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            for entry in std::fs::read_dir(root).map_err(StoreError::io("list", root))? {
                let name = entry.map_err(StoreError::io("list", root))?.file_name();
                let name = name.to_string_lossy();
                // Another process may be making the same store right now.
                if name != "version"
                    && !name.starts_with(TEMP_PREFIX)
                    && !FOLDERS.iter().any(|f| f.starts_with(&*name))
                {
                    return Err(not_a_store(format!("it has no file 'version', but holds {name:?}")));
                }
            }
            let text = format!("{FORMAT}\n");
            keelway_disk::publish(root, "version", text.as_bytes(), Sync::Yes, faults)
                .map_err(StoreError::io("write", &path))?;
            Ok(())
        }
        Err(e) => Err(StoreError::io("read", path)(e).into()),
    }
}

type Dead = Vec<(PathBuf, Lock)>;

/// Run directories whose lock is free, with that lock held, and what was recorded in them.
fn find_dead(root: &Path) -> Result<(Dead, Vec<ReapedRun>), StoreError> {
    let runs = root.join("runs");
    let (mut dead, mut reaped) = (Dead::new(), Vec::new());
    for entry in std::fs::read_dir(&runs).map_err(StoreError::io("list", &runs))? {
        let dir = entry.map_err(StoreError::io("list", &runs))?.path();
        let lock = match Lock::try_take(&dir.join("lock")) {
            Ok(Some(lock)) => lock,
            Ok(None) => continue,
            // A process just ended and gave its directory away.
            Err(_) if !dir.is_dir() => continue,
            Err(e) => return Err(StoreError::io("lock", dir)(io::Error::other(e))),
        };
        let text = std::fs::read(dir.join("cgroups")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        // A last line without its end was torn, and its cgroup never made.
        let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        let id = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        reaped.push(ReapedRun { id, cgroups: whole.lines().map(str::to_owned).collect() });
        dead.push((dir, lock));
    }
    reaped.sort_by(|a, b| a.id.cmp(&b.id));
    Ok((dead, reaped))
}

fn make_run(root: &Path, faults: &Faults) -> Result<(PathBuf, Lock, File), StoreError> {
    let run = root.join("runs").join(random_name("r")?);
    faults.step(Step::Create).map_err(StoreError::io("make", &run))?;
    make_dirs(&run)?;
    let path = run.join("lock");
    let lock = Lock::try_take(&path)
        .map_err(|e| StoreError::io("lock", &path)(io::Error::other(e)))?
        .ok_or_else(|| StoreError::io("lock", &path)(io::Error::other("a new lock is held already")))?;
    let path = run.join("cgroups");
    let notes = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .map_err(StoreError::io("write", &path))?;
    Ok((run, lock, notes))
}

/// `prefix-` and 96 random bits: a name that no process has ever chosen.
pub(crate) fn random_name(prefix: &str) -> Result<String, StoreError> {
    let mut raw = [0u8; 12];
    getrandom::fill(&mut raw).map_err(|e| StoreError::io("read", "/dev/urandom")(io::Error::other(e)))?;
    let hex: String = raw.iter().map(|b| format!("{b:02x}")).collect();
    Ok(format!("{prefix}-{hex}"))
}
