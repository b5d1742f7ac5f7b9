//! What is remembered of a container made by hand: what it is, what it shall do, how it is, how it ended.
//!
//! Each file has one writer: `container.json` whoever made the container, once; `want.json` the verbs that
//! start and stop; `run.json` and `end.json` its keeper; `watch.json` its supervisor. Every file is replaced
//! as a whole. Two locks tell who lives: `keeper.lock` and `supervisor.lock` are free when their process is
//! dead, however it died.

use crate::files;
use crate::names::{ContainerId, ContainerName};
use crate::policy::RestartPolicy;
use crate::publish::Publish;
use keelway_disk::{Faults, Lock, LockError, Sync, publish};
use keelway_model::plan::UserSpec;
use keelway_model::{Bytes, Digest, Limits, Timestamp};
use keelway_sandbox::cgroup::{self, Layout, ParentName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Version of the records.
pub const VERSION: u32 = 1;

const RECORD: &str = "container.json";
const WANT: &str = "want.json";
const RUN: &str = "run.json";
const END: &str = "end.json";
const WATCH: &str = "watch.json";
const CGROUP: &str = "cgroup";
/// Bytes of a cgroup's name.
const MAX_NAME: u64 = 4096;

/// The network that a container asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// Only a loopback.
    None,
    /// The machine's.
    Host,
    /// One of its own that reaches out through NAT.
    Private,
}

/// A directory or file of the machine, seen in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// On the machine, absolute.
    pub source: PathBuf,
    /// In the container, absolute.
    pub target: PathBuf,
    /// Whether it may be written.
    pub writable: bool,
}

/// An empty directory in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Where, absolute.
    pub target: PathBuf,
    /// At most so much.
    pub size: Bytes,
    /// Its mode.
    pub mode: u32,
}

/// A command that says whether the container is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCommand {
    /// Program and arguments; exit code 0 is well.
    pub argv: Vec<String>,
    /// Between two checks.
    pub interval: Duration,
    /// A check that takes longer has failed.
    pub timeout: Duration,
    /// So many failures in a row make it unhealthy.
    pub retries: u32,
    /// Failures do not count for so long after a start.
    pub start_period: Duration,
}

/// Everything that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Instead of the image's ENTRYPOINT; empty takes it away.
    pub entrypoint: Option<Vec<String>>,
    /// Instead of the image's CMD.
    pub command: Vec<String>,
    /// Over the image's environment.
    pub env: Vec<(String, String)>,
    /// Instead of the image's working directory.
    pub cwd: Option<String>,
    /// Instead of the image's user.
    pub user: Option<UserSpec>,
    /// Instead of the id.
    pub hostname: Option<String>,
    /// Its network.
    pub network: NetworkMode,
    /// Ports of the machine that lead into it.
    pub publish: Vec<Publish>,
    /// Bounds.
    pub limits: Limits,
    /// Whether the root cannot be written.
    pub read_only: bool,
    /// In memory.
    pub tmpfs: Vec<Tmpfs>,
    /// From the machine.
    pub binds: Vec<Bind>,
    /// Capabilities beyond the usual ones, by name.
    pub cap_add: Vec<String>,
    /// Capabilities fewer than the usual ones, by name; `ALL` is all.
    pub cap_drop: Vec<String>,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Whether its input is held open.
    pub input: bool,
    /// Whether it goes when it ends.
    pub remove: bool,
    /// Whether it outlives the command that started it.
    pub detached: bool,
    /// What follows its end.
    pub restart: RestartPolicy,
    /// How to see whether it is well.
    pub health: Option<HealthCommand>,
    /// Instead of the image's.
    pub stop_signal: Option<String>,
    /// From the stop signal to SIGKILL.
    pub stop_timeout: Option<Duration>,
    /// Words about it.
    pub labels: BTreeMap<String, String>,
}

/// For the lock of a container that nobody keeps: who looks at it, or puts something right, holds it for a moment.
pub const MOMENT: Duration = Duration::from_secs(2);
/// What stops a container where nobody says otherwise.
const SIGTERM: i32 = 15;

/// From the stop signal to SIGKILL where nothing is said.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);

impl Asked {
    /// From the stop signal to SIGKILL.
    pub fn grace(&self) -> Duration {
        self.stop_timeout.unwrap_or(STOP_TIMEOUT)
    }
    /// Whether somebody must look after it while it lives and when it ends.
    pub fn is_supervised(&self) -> bool {
        self.restart != RestartPolicy::No || self.health.is_some()
    }
}

/// A container, as it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// Its id.
    pub id: ContainerId,
    /// Its name.
    pub name: ContainerName,
    /// When it was made.
    pub created: Timestamp,
    /// The image as it was asked for.
    pub image: String,
    /// The image's manifest.
    pub digest: Digest,
    /// Program and arguments, the image's part included.
    pub argv: Vec<String>,
    /// What was asked for.
    pub asked: Asked,
    /// What stops its process, as the kernel numbers it; missing in records of older versions.
    #[serde(default)]
    pub stop_signal: Option<i32>,
}

impl Record {
    /// What stops its process, as the kernel numbers it.
    pub fn stop_signal(&self) -> i32 {
        let asked = || self.asked.stop_signal.as_deref().and_then(crate::signal_number);
        self.stop_signal.or_else(asked).unwrap_or(SIGTERM)
    }
}

/// What a container shall do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// Whether it was stopped.
    pub stopped: bool,
    /// The boot of the machine in which that was said. Only commands of people write it: a supervisor that did would
    /// undo what was said a moment before.
    pub boot: String,
}

impl Want {
    /// Said now.
    pub fn now(stopped: bool) -> Self {
        Self { stopped, boot: boot() }
    }
    /// Whether it was stopped in this boot: then nobody starts it again, whatever its policy.
    pub fn is_stopped_now(&self) -> bool {
        self.stopped && self.boot == boot()
    }
}

/// Names this boot of the machine.
pub fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// A run of a container, written when its process runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Its keeper.
    pub keeper: u32,
    /// Its first process, on this machine.
    pub pid: i32,
    /// Since when.
    pub started: Timestamp,
    /// What the machine did not allow.
    pub warnings: Vec<String>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndRecord {
    /// As a shell would say it: the code, 128 and the signal, 125 to 127 where it did not start.
    pub code: u8,
    /// The memory limit ended it.
    pub out_of_memory: bool,
    /// Why it did not start, or what went wrong.
    pub error: Option<String>,
    /// When it had started, if it had.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub ended: Timestamp,
}

/// One look at a container's health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// When it began.
    pub start: Timestamp,
    /// When it ended.
    pub end: Timestamp,
    /// Its exit code; -1 where it took too long or could not run.
    pub code: i32,
    /// The beginning of what it said.
    pub output: String,
}

/// Whether a container is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Not known yet.
    Starting,
    /// Yes.
    Healthy,
    /// No.
    Unhealthy,
}

/// What the supervisor knows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Watch {
    /// How often it was started again since it was made.
    pub restarts: u32,
    /// Health, where it is checked.
    pub health: Option<Health>,
    /// Failed checks in a row.
    pub failing: u32,
    /// The last checks, oldest first.
    pub checks: Vec<Check>,
    /// Whether it ended for good by its policy: nobody starts it again.
    pub over: bool,
}

/// The files of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerFiles {
    dir: PathBuf,
}

impl ContainerFiles {
    /// Of the container whose directory this is.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }
    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
    /// Its keeper's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("sock")
    }
    /// Its log's directory.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }
    /// What it wrote into its root.
    pub fn upper(&self) -> PathBuf {
        self.dir.join("fs")
    }
    /// Overlayfs's own.
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }
    /// What its keeper and its supervisor say.
    pub fn diary(&self) -> PathBuf {
        self.dir.join("diary")
    }
    /// Held by its keeper.
    pub fn keeper_lock(&self) -> PathBuf {
        self.dir.join("keeper.lock")
    }
    /// Held by its supervisor.
    pub fn supervisor_lock(&self) -> PathBuf {
        self.dir.join("supervisor.lock")
    }
    /// Whether a keeper has it.
    pub fn is_kept(&self) -> bool {
        is_held(&self.keeper_lock())
    }
    /// Whether a supervisor looks after it.
    pub fn is_supervised(&self) -> bool {
        is_held(&self.supervisor_lock())
    }

    /// Takes the keeper's lock of one that nobody keeps. Blocking, for [`MOMENT`] at most.
    pub fn take_keeper_lock(&self) -> Result<Lock, LockError> {
        Lock::take(&self.keeper_lock(), Instant::now() + MOMENT, &|| false)
    }

    /// What it is; `None` for one that is not there.
    pub fn load(&self) -> io::Result<Option<Record>> {
        let record: Option<Record> = files::load(&self.dir.join(RECORD))?;
        match record {
            Some(r) if r.version > VERSION => Err(io::Error::other(format!(
                "{} was written by a newer keelway: use that one",
                self.dir.join(RECORD).display()
            ))),
            other => Ok(other),
        }
    }
    /// Whether it has a directory and no record: it is being made, or whoever made it was killed.
    pub fn is_unfinished(&self) -> bool {
        self.dir.is_dir() && std::fs::symlink_metadata(self.dir.join(RECORD)).is_err()
    }
    /// Writes what it is, its directories first.
    pub fn save(&self, record: &Record) -> io::Result<()> {
        for dir in [&self.dir, &self.log()] {
            files::private_dir(dir)?;
        }
        files::save(&self.dir, RECORD, record)
    }
    /// What it shall do.
    pub fn want(&self) -> io::Result<Option<Want>> {
        files::load(&self.dir.join(WANT))
    }
    /// Writes what it shall do.
    pub fn save_want(&self, want: &Want) -> io::Result<()> {
        files::save(&self.dir, WANT, want)
    }
    /// Its last run, if its process ever ran.
    pub fn run(&self) -> io::Result<Option<RunRecord>> {
        files::load(&self.dir.join(RUN))
    }
    /// Its process runs.
    pub fn save_run(&self, run: &RunRecord) -> io::Result<()> {
        files::save(&self.dir, RUN, run)
    }
    /// How it ended; `None` while it runs, and when its keeper was killed.
    pub fn end(&self) -> io::Result<Option<EndRecord>> {
        files::load(&self.dir.join(END))
    }
    /// It has ended.
    pub fn save_end(&self, end: &EndRecord) -> io::Result<()> {
        files::save(&self.dir, END, end)
    }
    /// Before another run: the last one is no news of it.
    pub fn forget_run(&self) -> io::Result<()> {
        for name in [END, RUN] {
            match std::fs::remove_file(self.dir.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
    /// The cgroup of the next run, before it is made. It does not outlive the machine, so nothing is synced.
    pub fn save_cgroup(&self, name: &ParentName) -> io::Result<()> {
        publish(&self.dir, CGROUP, name.as_str().as_bytes(), Sync::No, &Faults::NONE)
    }
    /// Removes the cgroup that a killed keeper left. Only for who holds the keeper's lock: what runs there dies.
    pub fn clear_cgroup(&self) -> io::Result<()> {
        let path = self.dir.join(CGROUP);
        let Some(name) = files::read_capped(&path, MAX_NAME)? else { return Ok(()) };
        if let Ok(name) = String::from_utf8_lossy(&name).parse::<ParentName>() {
            cgroup::reap(&Layout::detect(), &[name]).map_err(io::Error::other)?;
        }
        std::fs::remove_file(path)
    }
    /// What its supervisor knows.
    pub fn watch(&self) -> io::Result<Watch> {
        Ok(files::load(&self.dir.join(WATCH))?.unwrap_or_default())
    }
    /// Written by its supervisor.
    pub fn save_watch(&self, watch: &Watch) -> io::Result<()> {
        files::save(&self.dir, WATCH, watch)
    }
}

/// Whether somebody holds a lock. Who looks shares it, so that two who look do not take each other for a holder. An error is
/// no proof of a free lock, but for a directory that is gone.
fn is_held(path: &Path) -> bool {
    match Lock::try_share(path) {
        Ok(lock) => lock.is_none(),
        Err(LockError::Io { source, .. }) => source.kind() != io::ErrorKind::NotFound,
        Err(_) => true,
    }
}
