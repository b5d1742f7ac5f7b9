//! All containers of a state directory that were made by hand.
//!
//! ```text
//! containers/                 mode 0700
//!   lock                      held while a container is made or removed
//!   trash/                    what is being deleted
//!   ID/                       one container: see [`crate::record`]
//! ```
//!
//! There is no daemon. Whoever looks sees by the locks who lives, and [`Containers::mend`] puts right what a
//! killed keeper left: its end is written down, and who shall be started again by its policy is.

use crate::files;
use crate::names::{ContainerId, ContainerName};
use crate::policy::{Ended, RestartPolicy};
use crate::record::{
    self, Asked, ContainerFiles, EndRecord, Health, Record, RunRecord, VERSION, Want, Watch,
};
use keelway_disk::{Lock, LockError, Trash};
use keelway_model::clock::SystemClock;
use keelway_model::{Clock, Digest};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// For the lock of all containers, held for moments.
const LOCK: Duration = Duration::from_secs(10);
/// For deleting a container's files; what is left goes with the next one.
const DELETE: Duration = Duration::from_secs(20);
/// Names that are tried where none is given.
const NAMES: usize = 40;
/// How a container ends whose keeper was killed: as by SIGKILL.
const KILLED: u8 = 137;

/// Why something about containers failed.
#[derive(Debug, thiserror::Error)]
pub enum ContainersError {
    /// The disk.
    #[error("cannot {what}: {source}")]
    Io {
        /// What failed.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Somebody else is at it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// There is none.
    #[error("no such container: {0}; `keelway container ls -a` lists all")]
    Unknown(String),
    /// Several begin so.
    #[error("{word} is the beginning of {count} containers' ids: write more of it")]
    Ambiguous {
        /// What was asked for.
        word: String,
        /// So many.
        count: usize,
    },
    /// The name is taken.
    #[error(
        "the container name {name} is in use by container {by}: remove that one (keelway container rm {name}), or choose another name"
    )]
    Taken {
        /// The name.
        name: ContainerName,
        /// Its short id.
        by: String,
    },
    /// It runs.
    #[error("container {0} is running: stop it first, or use rm -f")]
    Running(ContainerName),
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> ContainersError {
    let what = what.into();
    move |source| ContainersError::Io { what, source }
}

/// The containers of a state directory.
#[derive(Debug, Clone)]
pub struct Containers {
    dir: PathBuf,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub record: Record,
    /// Its files.
    pub files: ContainerFiles,
}

/// One that shall be made.
#[derive(Debug, Clone)]
pub struct New {
    /// Its name; one is chosen where none is given.
    pub name: Option<ContainerName>,
    /// The image as it was asked for.
    pub image: String,
    /// The image's manifest.
    pub digest: Digest,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// What stops it, as the kernel numbers it.
    pub stop_signal: i32,
    /// Everything else.
    pub asked: Asked,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Made; its process has never run.
    Created,
    /// Its process runs.
    Running,
    /// Ended, and will be started again.
    Restarting,
    /// Ended.
    Exited,
}

/// A container as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Where it is in its life.
    pub phase: Phase,
    /// Its current run, or the last one.
    pub run: Option<RunRecord>,
    /// How the last run ended.
    pub end: Option<EndRecord>,
    /// What its supervisor knows.
    pub watch: Watch,
}

impl Look {
    /// Its health, while it runs.
    pub fn health(&self) -> Option<Health> {
        self.watch.health.filter(|_| self.phase == Phase::Running)
    }
}

impl Entry {
    /// As it is.
    pub fn look(&self) -> io::Result<Look> {
        let kept = self.files.is_kept();
        let (run, end, watch) = (self.files.run()?, self.files.end()?, self.files.watch()?);
        let end = match (kept, &run, end) {
            (_, _, Some(end)) => Some(end),
            (false, Some(run), None) => Some(killed(Some(run))),
            _ => None,
        };
        let stopped = self.files.want()?.is_some_and(|want| want.is_stopped_now());
        let comes_back = self.record.asked.restart != RestartPolicy::No && !watch.over && !stopped;
        let phase = match (kept, &run, &end) {
            (true, Some(_), None) => Phase::Running,
            (_, None, None) if watch.restarts > 0 && comes_back => Phase::Restarting,
            (_, None, None) => Phase::Created,
            (_, _, Some(_)) if comes_back && self.files.is_supervised() => Phase::Restarting,
            (_, None, Some(_)) | (_, Some(_), _) => Phase::Exited,
        };
        Ok(Look { phase, run, end, watch })
    }
}

/// The end of a run whose keeper was killed, also before its process ran.
pub(crate) fn killed(run: Option<&RunRecord>) -> EndRecord {
    let how = match run {
        Some(_) => "its keeper was killed, and it died with its keeper",
        None => "its keeper was killed before it began",
    };
    EndRecord {
        code: KILLED,
        out_of_memory: false,
        error: Some(how.into()),
        started: run.map(|run| run.started),
        ended: SystemClock.now(),
    }
}

/// What [`Containers::mend`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It shall be started again by its policy: a supervisor is needed.
    Restart(ContainerId),
    /// It died with its keeper and stays as it is.
    Died(ContainerName),
    /// It died with its keeper and was to be removed then.
    Removed(ContainerName),
}

impl Containers {
    /// Those below this state directory.
    pub fn of(state: &Path) -> Self {
        Self { dir: state.join("containers") }
    }
    /// The files of one.
    pub fn files(&self, id: &ContainerId) -> ContainerFiles {
        ContainerFiles::at(self.dir.join(id.as_str()))
    }

    fn locked(&self) -> Result<Lock, ContainersError> {
        files::private_dir(&self.dir).map_err(failed(format!("make {}", self.dir.display())))?;
        Ok(Lock::take(&self.dir.join("lock"), Instant::now() + LOCK, &|| false)?)
    }

    /// Makes one; nothing of it runs yet.
    pub fn create(&self, new: New) -> Result<Entry, ContainersError> {
        let _lock = self.locked()?;
        self.forget_unfinished()?;
        let have = self.list()?;
        let taken = |name: &ContainerName| have.iter().find(|e| e.record.name == *name);
        let random = failed("choose an id");
        let id = ContainerId::random().map_err(random)?;
        let name = match new.name {
            Some(name) => match taken(&name) {
                Some(other) => {
                    return Err(ContainersError::Taken { name, by: other.record.id.short().to_owned() });
                }
                None => name,
            },
            None => {
                let free =
                    (0..NAMES).find_map(|_| ContainerName::random().ok().filter(|n| taken(n).is_none()));
                // The id is nobody else's.
                let by_id = || format!("container-{}", id.short()).parse().ok();
                free.or_else(by_id)
                    .ok_or_else(|| failed("choose a name")(io::Error::other("none is free")))?
            }
        };
        let files = self.files(&id);
        let record = Record {
            version: VERSION,
            id,
            name,
            created: SystemClock.now(),
            image: new.image,
            digest: new.digest,
            argv: new.argv,
            asked: new.asked,
            stop_signal: Some(new.stop_signal),
        };
        let make = || {
            files.save(&record)?;
            files.save_want(&Want::now(false))?;
            make_upper(&files)
        };
        if let Err(error) = make() {
            let _ = self.discard(&files);
            return Err(failed(format!("make container {}", record.name))(error));
        }
        Ok(Entry { record, files })
    }

    /// Removes what a command left that was killed while it made a container. Only for who holds the lock.
    fn forget_unfinished(&self) -> Result<(), ContainersError> {
        for files in self.folders()? {
            if files.is_unfinished() {
                self.discard(&files).map_err(failed("remove what a killed command left"))?;
            }
        }
        Ok(())
    }

    /// All of them, newest first. What is no container, or is being made, is passed over.
    pub fn list(&self) -> Result<Vec<Entry>, ContainersError> {
        let mut entries = Vec::new();
        for files in self.folders()? {
            let whose = || format!("read the container in {}", files.dir().display());
            if let Some(record) = files.load().map_err(|e| failed(whose())(e))? {
                entries.push(Entry { record, files });
            }
        }
        entries.sort_by(|a, b| b.record.created.cmp(&a.record.created).then(a.record.id.cmp(&b.record.id)));
        Ok(entries)
    }

    fn folders(&self) -> Result<Vec<ContainerFiles>, ContainersError> {
        let items = match std::fs::read_dir(&self.dir) {
            Ok(items) => items,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(format!("list {}", self.dir.display()))(e)),
        };
        let id = |item: std::fs::DirEntry| item.file_name().to_str()?.parse::<ContainerId>().ok();
        Ok(items.flatten().filter_map(id).map(|id| self.files(&id)).collect())
    }

    /// The images that containers were made of, also those that do not run: a start must find them.
    pub fn needed(&self) -> Result<Vec<keelway_store::Need>, ContainersError> {
        let need = |e: Entry| keelway_store::Need {
            manifest: e.record.digest,
            who: format!("container {}", e.record.name),
        };
        Ok(self.list()?.into_iter().map(need).collect())
    }

    /// By name, id, or the unique beginning of an id.
    pub fn find(&self, word: &str) -> Result<Entry, ContainersError> {
        let entries = self.list()?;
        if let Some(entry) = entries.iter().find(|e| e.record.name.as_str() == word) {
            return Ok(entry.clone());
        }
        let unknown = || ContainersError::Unknown(word.chars().take(140).collect());
        if word.is_empty() {
            return Err(unknown());
        }
        let mut found = entries.into_iter().filter(|e| e.record.id.as_str().starts_with(word));
        let first = found.next().ok_or_else(unknown)?;
        match found.count() {
            0 => Ok(first),
            more => Err(ContainersError::Ambiguous { word: word.to_owned(), count: more + 1 }),
        }
    }

    /// Removes one that nobody keeps.
    pub fn remove(&self, entry: &Entry) -> Result<(), ContainersError> {
        let _lock = self.locked()?;
        // Whoever would start it again finds it taken, and then gone.
        match entry.files.take_keeper_lock() {
            Ok(_mine) => self.discard(&entry.files),
            Err(LockError::TimedOut { .. }) => {
                return Err(ContainersError::Running(entry.record.name.clone()));
            }
            Err(LockError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => return Err(e.into()),
        }
        .map_err(failed(format!("remove container {}", entry.record.name)))
    }

    /// Removes one whose keeper is the caller and has ended it.
    pub fn remove_own(&self, entry: &Entry) -> Result<(), ContainersError> {
        let _lock = self.locked()?;
        self.discard(&entry.files).map_err(failed(format!("remove container {}", entry.record.name)))
    }

    fn discard(&self, container: &ContainerFiles) -> io::Result<()> {
        container.clear_cgroup()?;
        let dir = self.dir.join("trash");
        files::private_dir(&dir)?;
        let trash = Trash::at(dir);
        trash.discard(container.dir())?;
        trash.empty(Instant::now() + DELETE).map(drop)
    }

    /// Puts right what killed keepers left. The caller starts a supervisor for each [`Found::Restart`].
    pub fn mend(&self) -> Result<Vec<(ContainerName, Found)>, ContainersError> {
        let mut found = Vec::new();
        for entry in self.list()? {
            let name = entry.record.name.clone();
            let what = self.mend_one(&entry);
            match what.map_err(failed(format!("look at container {name}")))? {
                Some(Found::Removed(_)) => {
                    self.remove(&entry)?;
                    found.push((name.clone(), Found::Removed(name)));
                }
                Some(what) => found.push((name, what)),
                None => {}
            }
        }
        Ok(found)
    }

    fn mend_one(&self, entry: &Entry) -> io::Result<Option<Found>> {
        let (files, asked) = (&entry.files, &entry.record.asked);
        if files.is_kept() || files.is_supervised() {
            return Ok(None);
        }
        let (run, end, watch) = (files.run()?, files.end()?, files.watch()?);
        if run.is_none() && end.is_none() && watch.restarts == 0 {
            // It was never started, or is being started.
            return Ok(None);
        }
        let want = files.want()?.unwrap_or_else(|| Want::now(false));
        let after = Ended {
            well: end.as_ref().is_some_and(|e| e.code == 0),
            stopped: want.stopped,
            booted: want.boot != record::boot(),
            restarts: watch.restarts,
        };
        if asked.detached && asked.restart.again(after) && (!watch.over || after.booted) {
            return Ok(Some(Found::Restart(entry.record.id.clone())));
        }
        let Some(run) = run.filter(|_| end.is_none()) else { return Ok(None) };
        // Only who holds the lock may say that it has ended.
        let Ok(_mine) = files.take_keeper_lock() else { return Ok(None) };
        if files.end()?.is_some() {
            return Ok(None);
        }
        files.clear_cgroup()?;
        files.save_end(&killed(Some(&run)))?;
        let name = entry.record.name.clone();
        Ok(Some(if asked.remove { Found::Removed(name) } else { Found::Died(name) }))
    }
}

/// What a container writes goes into an empty directory that belongs to root of the container.
fn make_upper(files: &ContainerFiles) -> io::Result<()> {
    let dir = keelway_disk::Root::open(files.dir())?;
    let upper = files.upper();
    let name = upper.file_name().ok_or_else(|| io::Error::other("no name"))?;
    dir.mkdir(name.as_encoded_bytes(), 0o755)
}
