//! Containers by the OCI runtime's life cycle: created from a bundle, started, killed, deleted, each by a process of its
//! own that ends at once.
//!
//! A container is a folder below the root with what it was made of and the socket of its supervisor, which is the only
//! process that stays and the only truth about its state: while it answers, the container lives. Blocking.

use keelway_sandbox::{
    ConfigError, Gate, Launcher, LauncherConfig, ParentName, Running, SpawnError, Stdio, WaitError, from_oci,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The largest `config.json`, in bytes.
const MAX_CONFIG: u64 = 8 << 20;
/// How long the end of a killed container may take.
const PATIENCE: Duration = Duration::from_secs(10);
const RECORD: &str = "state.json";
const SOCKET: &str = "socket";

/// Why something could not be done with a container.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// A name that no folder can have.
    #[error("{0:?} cannot name a container: letters, digits, '_', '+', '-' and '.', at most 200")]
    Name(String),
    /// There is one already.
    #[error("container {0:?} exists already: delete it, or choose another name")]
    Exists(String),
    /// There is none.
    #[error("container {0:?} does not exist")]
    Missing(String),
    /// Whoever created it was killed, or is still at it.
    #[error("container {0:?} was not created to its end: delete --force frees its name")]
    Unfinished(String),
    /// Its state does not allow that.
    #[error("container {id:?} is {is}, and {what} needs one that is {needed}")]
    State {
        /// Which.
        id: String,
        /// Its status.
        is: &'static str,
        /// What was asked for.
        what: &'static str,
        /// The status that it takes.
        needed: &'static str,
    },
    /// The bundle.
    #[error("{path:?}: {detail}")]
    Bundle {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// What the bundle asks for.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The sandbox.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The sandbox, later.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// A file of ours.
    #[error("cannot {action} container {id:?}: {source}")]
    Io {
        /// Which.
        id: String,
        /// What was tried.
        action: &'static str,
        /// How it failed.
        source: io::Error,
    },
}

/// What is known of a container beside its life.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    pid: i32,
    bundle: PathBuf,
    parent: ParentName,
    annotations: Value,
    version: String,
}

/// A container's state, as the specification has it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Version of the specification.
    pub oci_version: String,
    /// Its name.
    pub id: String,
    /// `created`, `running` or `stopped`.
    pub status: &'static str,
    /// Its first process, on this machine; 0 when it has ended.
    pub pid: i32,
    /// Absolute path of its bundle.
    pub bundle: PathBuf,
    /// As in `config.json`.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub annotations: Value,
}

/// A container that has just been created, and still ends with this process.
pub struct Created {
    /// The sandbox.
    pub running: Running,
    /// What was asked for and is not there.
    pub warnings: Vec<String>,
}

/// The containers below one folder.
#[derive(Debug, Clone)]
pub struct Containers {
    /// The folder; made when it is missing.
    pub root: PathBuf,
}

impl Containers {
    fn folder(&self, id: &str) -> Result<PathBuf, OciError> {
        let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'+' | b'-' | b'.');
        if id.is_empty() || id.len() > 200 || id.starts_with('.') || !id.bytes().all(ok) {
            return Err(OciError::Name(id.chars().take(80).collect()));
        }
        Ok(self.root.join(id))
    }

    fn record(&self, id: &str) -> Result<(PathBuf, Record), OciError> {
        let folder = self.folder(id)?;
        let text = fs::read(folder.join(RECORD)).map_err(|_| match folder.is_dir() {
            true => OciError::Unfinished(id.into()),
            false => OciError::Missing(id.into()),
        })?;
        let record = serde_json::from_slice(&text)
            .map_err(|e| OciError::Bundle { path: folder.join(RECORD), detail: e.to_string() })?;
        Ok((folder, record))
    }

    /// Builds the container; its program waits for [`Containers::start`].
    pub fn create(&self, id: &str, bundle: &Path, stdio: Stdio) -> Result<Created, OciError> {
        let folder = self.folder(id)?;
        let failed = |action| move |source| OciError::Io { id: id.into(), action, source };
        let bundle = bundle
            .canonicalize()
            .map_err(|e| OciError::Bundle { path: bundle.to_owned(), detail: e.to_string() })?;
        let config = config(&bundle.join("config.json"))?;
        let bundled = from_oci(&config, &bundle, id)?;
        let private = |recursive| {
            let mut builder = fs::DirBuilder::new();
            builder.mode(0o700).recursive(recursive);
            builder
        };
        private(true).create(&self.root).map_err(failed("make a folder for"))?;
        match private(false).create(&folder) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(OciError::Exists(id.into())),
            other => other.map_err(failed("make a folder for"))?,
        }
        let made = || -> Result<Created, OciError> {
            let gate =
                within(&folder, |path| UnixListener::bind(path)).map_err(failed("make a socket for"))?;
            let launcher = Launcher::new(LauncherConfig::new(bundled.parent.clone()));
            let running = launcher.create(&bundled.spec, stdio, gate)?;
            let record = Record {
                pid: running.pid(),
                bundle: bundle.clone(),
                parent: bundled.parent.clone(),
                annotations: bundled.annotations.clone(),
                version: config["ociVersion"].as_str().unwrap_or("1.0.2").to_owned(),
            };
            let text = serde_json::to_vec(&record).map_err(|e| failed("write down")(e.into()))?;
            let (fresh, last) = (folder.join("state.new"), folder.join(RECORD));
            fs::write(&fresh, text).and_then(|()| fs::rename(fresh, last)).map_err(failed("write down"))?;
            let mut warnings = bundled.warnings.clone();
            warnings.extend(running.warnings().iter().cloned());
            Ok(Created { running, warnings })
        };
        made().inspect_err(|_| _ = fs::remove_dir_all(&folder))
    }

    /// Executes its program.
    pub fn start(&self, id: &str) -> Result<(), OciError> {
        let (folder, _) = self.record(id)?;
        if within(&folder, |path| Gate(path).start())? {
            return Ok(());
        }
        let is = self.state(id)?.status;
        Err(OciError::State { id: id.into(), is, what: "start", needed: "created" })
    }

    /// What it is now.
    pub fn state(&self, id: &str) -> Result<State, OciError> {
        let (folder, record) = self.record(id)?;
        let status = match within(&folder, |path| Gate(path).started()) {
            Some(true) => "running",
            Some(false) => "created",
            None => "stopped",
        };
        let pid = if status == "stopped" { 0 } else { record.pid };
        let (bundle, annotations, oci_version) = (record.bundle, record.annotations, record.version);
        Ok(State { oci_version, id: id.into(), status, pid, bundle, annotations })
    }

    /// Sends a signal to its program. One that was not started only knows those that end it.
    pub fn kill(&self, id: &str, signal: i32) -> Result<(), OciError> {
        let (folder, _) = self.record(id)?;
        let is = self.state(id)?.status;
        let done = within(&folder, |path| match (is, signal) {
            ("running", _) => Gate(path).signal(signal),
            ("created", 9 | 15) => Gate(path).kill(),
            _ => false,
        });
        let needed = "running, or created for KILL and TERM";
        if done { Ok(()) } else { Err(OciError::State { id: id.into(), is, what: "kill", needed }) }
    }

    /// Forgets one that has ended; with `force` ends it before, and one that is not there, or whose creator was killed, is
    /// no error.
    pub fn delete(&self, id: &str, force: bool) -> Result<(), OciError> {
        let (folder, record) = match self.record(id) {
            Err(OciError::Missing(_)) if force => return Ok(()),
            Err(OciError::Unfinished(_)) if force => return self.forget(id, &self.folder(id)?),
            other => other?,
        };
        let is = self.state(id)?.status;
        if is != "stopped" {
            if !force {
                return Err(OciError::State { id: id.into(), is, what: "delete", needed: "stopped" });
            }
            within(&folder, |path| Gate(path).kill());
        }
        self.forget(id, &folder)?;
        // Takes the empty parents of its cgroup along.
        drop(Launcher::new(LauncherConfig::new(record.parent)));
        Ok(())
    }

    /// Removes its folder once nobody has its socket: neither its supervisor, nor who is creating it.
    fn forget(&self, id: &str, folder: &Path) -> Result<(), OciError> {
        let end = Instant::now() + PATIENCE;
        while within(folder, |path| std::os::unix::net::UnixStream::connect(path)).is_ok() {
            if Instant::now() >= end {
                return Err(WaitError::Stuck { seconds: PATIENCE.as_secs() }.into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        match fs::remove_dir_all(folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|source| OciError::Io { id: id.into(), action: "remove", source }),
        }
    }

    /// All there are, by name.
    pub fn list(&self) -> Vec<State> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort();
        names.iter().filter_map(|id| self.state(id).ok()).collect()
    }
}

/// A socket's path has 107 bytes at most; by way of a descriptor every folder's has.
fn within<T>(folder: &Path, f: impl FnOnce(&Path) -> T) -> T {
    match File::open(folder) {
        Ok(open) => f(&PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", open.as_raw_fd()))),
        // Says itself that there is nothing.
        Err(_) => f(&folder.join(SOCKET)),
    }
}

fn config(path: &Path) -> Result<Value, OciError> {
    let wrong = |detail: String| OciError::Bundle { path: path.to_owned(), detail };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| wrong(e.to_string()))?;
    file.take(MAX_CONFIG + 1).read_to_end(&mut bytes).map_err(|e| wrong(e.to_string()))?;
    if bytes.len() as u64 > MAX_CONFIG {
        return Err(wrong(format!("it has more than {MAX_CONFIG} bytes")));
    }
    serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_creator_was_killed_has_a_name_that_can_be_freed() {
        let dir = tempfile::tempdir().unwrap();
        let all = Containers { root: dir.path().join("all") };
        let folder = all.root.join("one");
        // Killed before it had a socket, and with one.
        for bound in [false, true] {
            fs::create_dir_all(&folder).unwrap();
            if bound {
                drop(UnixListener::bind(folder.join(SOCKET)).unwrap());
            }
            assert!(all.list().is_empty());
            for result in [all.delete("one", false), all.start("one"), all.state("one").map(drop)] {
                assert!(matches!(&result, Err(OciError::Unfinished(id)) if id == "one"), "{result:?}");
            }
            all.delete("one", true).unwrap();
            assert!(!folder.exists());
        }
        all.delete("one", true).unwrap();
        assert!(matches!(all.delete("one", false), Err(OciError::Missing(_))));
        // Somebody is still at it, and ends.
        fs::create_dir_all(&folder).unwrap();
        let creating = UnixListener::bind(folder.join(SOCKET)).unwrap();
        let deleting = std::thread::spawn({
            let all = all.clone();
            move || all.delete("one", true)
        });
        // Its first look.
        drop(creating.accept().unwrap());
        assert!(folder.exists());
        drop(creating);
        deleting.join().unwrap().unwrap();
        assert!(!folder.exists());
    }
}
