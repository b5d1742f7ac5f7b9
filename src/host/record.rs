//! What a host remembers, and where: the layout of its state directory.
//!
//! ```text
//! host/                         mode 0700
//!   supervisor.lock             held by the supervisor
//!   network.json                the slot that was given out last
//!   sock/                       sockets, under short names
//!   diary/                      what our own processes say
//!   apps/APP/
//!     lease.json app.json releases.json
//!     balancer/{lock,pool.json}
//!     logs/REPLICA/{log,log.1}
//!     replicas/REPLICA/{lock,record.json,end.json}
//! ```
//!
//! Every file is replaced as a whole and synced before anything is done or answered because of it.

use crate::files;
use crate::network::Slot;
use crate::settings::Settings;
use keelway_container::Status;
use keelway_deploy::protocol::{ReplicaId, ReplicaSpec};
use keelway_model::ids::AppName;
use keelway_store::{OpenError, Store};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Version of the records.
pub const VERSION: u32 = 1;

/// What a replica shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Want {
    /// Run, and be started again when it ends.
    Running,
    /// Be stopped.
    Stopped,
}

/// A replica, as it shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaRecord {
    /// [`VERSION`].
    pub version: u32,
    /// What it is.
    pub spec: ReplicaSpec,
    /// Its place in the network.
    pub slot: Slot,
    /// What it shall do.
    pub want: Want,
}

/// The files of one replica.
#[derive(Debug, Clone)]
pub struct ReplicaFiles {
    /// Its directory.
    pub dir: PathBuf,
    /// Its log, which stays after it.
    pub log: PathBuf,
}

const RECORD: &str = "record.json";
const END: &str = "end.json";

impl ReplicaFiles {
    /// Of this replica.
    pub fn of(settings: &Settings, app: &AppName, replica: ReplicaId) -> Self {
        let app = app_dir(settings, app);
        Self {
            dir: app.join("replicas").join(replica.to_string()),
            log: app.join("logs").join(replica.to_string()),
        }
    }
    /// Held by its keeper.
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }
    /// What it shall be; `None` for a replica that is not there.
    pub fn load(&self) -> io::Result<Option<ReplicaRecord>> {
        let record: Option<ReplicaRecord> = files::load(&self.dir.join(RECORD))?;
        match record {
            Some(r) if r.version > VERSION => Err(newer(&self.dir.join(RECORD))),
            other => Ok(other),
        }
    }
    /// Writes what it shall be.
    pub fn save(&self, record: &ReplicaRecord) -> io::Result<()> {
        files::private_dir(&self.dir)?;
        files::private_dir(&self.log)?;
        files::save(&self.dir, RECORD, record)
    }
    /// How its last keeper left it.
    pub fn load_end(&self) -> Option<Status> {
        files::load(&self.dir.join(END)).ok().flatten()
    }
    /// Before another keeper is started.
    pub fn forget_end(&self) -> io::Result<()> {
        match std::fs::remove_file(self.dir.join(END)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
    /// Written by its keeper, last of all.
    pub fn save_end(&self, status: &Status) -> io::Result<()> {
        files::save(&self.dir, END, status)
    }
}

/// The socket of a replica's keeper. Slots are unique among the replicas of a host.
pub fn keeper_socket(settings: &Settings, slot: Slot) -> PathBuf {
    settings.sockets().join(format!("k{}", slot.0))
}

/// The supervisor's socket.
pub fn supervisor_socket(settings: &Settings) -> PathBuf {
    settings.sockets().join("supervisor")
}

/// The directory of an app.
pub fn app_dir(settings: &Settings, app: &AppName) -> PathBuf {
    settings.state().join("apps").join(app.as_str())
}

/// The file that a kind of process writes its own words to.
pub fn diary(settings: &Settings, who: &str) -> PathBuf {
    settings.state().join("diary").join(who)
}

/// Makes the directories that everybody needs.
pub fn make_dirs(settings: &Settings) -> io::Result<()> {
    for dir in
        [settings.state(), settings.sockets(), settings.state().join("diary"), settings.state().join("apps")]
    {
        files::private_dir(&dir)?;
    }
    Ok(())
}

fn newer(path: &Path) -> io::Error {
    io::Error::other(format!("{} was written by a newer keelway: use that one on this host", path.display()))
}

/// Opens the host's store, and ends what a keeper that was killed left in the cgroup tree. Blocking.
pub fn open_store(settings: &Settings) -> Result<Store, OpenError> {
    let store = Store::open(&settings.store(), Arc::new(keelway_model::clock::SystemClock))?;
    let dead: Vec<_> =
        store.reaped().iter().flat_map(|run| &run.cgroups).filter_map(|name| name.parse().ok()).collect();
    if !dead.is_empty() {
        let layout = keelway_sandbox::cgroup::Layout::detect();
        if let Err(error) = keelway_sandbox::cgroup::reap(&layout, &dead) {
            tracing::warn!(%error, "left over");
        }
    }
    Ok(store)
}
