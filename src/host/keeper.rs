//! The keeper of one replica: a process that owns its sandbox.
//!
//! There is one for each replica, so that the supervisor may die and come back without touching traffic.
//! The sandbox dies with the keeper; the supervisor sees that the keeper's lock is free and starts
//! another. A keeper ends when its replica was told to stop, or cannot be run at all; it leaves `end.json`.

use crate::record::{self, ReplicaFiles, ReplicaRecord};
use crate::settings::Settings;
use crate::wire;
use keelway_container::{Container, HealthSpec, Image, Overrides, State, Status, Stop, logs};
use keelway_deploy::frame;
use keelway_deploy::protocol::ReplicaId;
use keelway_disk::Lock;
use keelway_model::ids::AppName;
use keelway_sandbox::{Launcher, LauncherConfig, Network};
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};

/// For the lock: the one who looks whether it is free holds it for a moment.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// Connections at one time.
const MAX_PEERS: usize = 16;
/// A peer that says nothing for so long is let go.
const IDLE: Duration = Duration::from_secs(30);

/// What a keeper is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Ask {
    /// How is it?
    Status,
    /// Stop it, and end yourself. Answered at once; the end is seen by the lock.
    Stop {
        /// From the stop signal to SIGKILL.
        grace: Duration,
    },
}

/// Why a keeper ended early.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Another one has the replica.
    #[error(transparent)]
    Lock(#[from] keelway_disk::LockError),
    /// The replica is gone.
    #[error("replica {0} is not on this host")]
    Gone(ReplicaId),
    /// The disk.
    #[error("{what}: {source}")]
    Io {
        /// What failed.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It cannot be run.
    #[error("{0}")]
    Unfit(String),
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> KeeperError {
    move |source| KeeperError::Io { what, source }
}

fn unfit(error: impl std::fmt::Display) -> KeeperError {
    KeeperError::Unfit(error.to_string())
}

/// Keeps a replica until it is told to stop.
pub async fn keep(settings: &Settings, app: &AppName, replica: ReplicaId) -> Result<(), KeeperError> {
    let files = ReplicaFiles::of(settings, app, replica);
    let record = files.load().map_err(failed("cannot read the replica's record"))?;
    let record = record.ok_or(KeeperError::Gone(replica))?;
    let path = files.lock();
    let lock = tokio::task::spawn_blocking(move || Lock::take(&path, Instant::now() + LOCK_WAIT, &|| false));
    let _lock = lock.await.map_err(unfit)??;
    let listener = wire::listen(&record::keeper_socket(settings, record.slot));
    let listener = listener.map_err(failed("cannot make the socket"))?;

    let (status, seen) = watch::channel(Status::default());
    let (stop, stopped) = mpsc::channel(1);
    let room = Arc::new(Semaphore::new(MAX_PEERS));
    let container = prepare(settings, app, replica, &files, &record);
    let life = async {
        match container.await {
            Ok(container) => container.run(stopped, &status).await,
            // Nothing that a new start would change: the supervisor tries again, ever more slowly.
            Err(error) => status.send_modify(|s| {
                s.state = State::Exited;
                s.ended = Some(error.to_string());
            }),
        }
    };
    tokio::select! {
        () = life => {}
        () = listen(listener, room, seen, stop) => {}
    }
    let end = status.borrow().clone();
    files.save_end(&end).map_err(failed("cannot write how the replica ended"))
}

async fn prepare(
    settings: &Settings,
    app: &AppName,
    replica: ReplicaId,
    files: &ReplicaFiles,
    record: &ReplicaRecord,
) -> Result<Container, KeeperError> {
    let (settings, files, record) = (settings.clone(), files.clone(), record.clone());
    let hostname: String = format!("{app}-{replica}").chars().take(63).collect();
    let made = tokio::task::spawn_blocking(move || {
        let store = record::open_store(&settings).map_err(unfit)?;
        let image = Image::prepare(&store, record.spec.image.digest()).map_err(unfit)?;
        // The run directory's name is nobody else's, on this store or another of this machine.
        let run = store.run_dir().file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let parent = format!("keelway/host-{run}");
        store.note_cgroup(&parent).map_err(unfit)?;
        let launcher = Launcher::new(LauncherConfig::new(parent.parse().map_err(unfit)?));
        let spec = record.spec;
        let container = keelway_container::Settings {
            image,
            overrides: Overrides { env: spec.env },
            hostname,
            network: Network::Join(settings.network.namespace_path(record.slot)),
            limits: spec.limits,
            cgroup: replica.to_string().parse().map_err(unfit)?,
            health: Some(HealthSpec {
                address: settings.network.socket(record.slot, spec.port),
                rule: spec.health,
            }),
            log_dir: files.log,
        };
        Container::new(store, launcher, container).map_err(unfit)
    });
    made.await.map_err(unfit)?
}

async fn listen(
    listener: UnixListener,
    room: Arc<Semaphore>,
    status: watch::Receiver<Status>,
    stop: mpsc::Sender<Stop>,
) {
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let stream = wire::accept(&listener).await;
        let (status, stop) = (status.clone(), stop.clone());
        tokio::spawn(async move {
            if let Err(error) = talk(stream, status, stop).await {
                tracing::debug!(%error, "a connection ended");
            }
            drop(permit);
        });
    }
}

async fn talk(
    mut stream: UnixStream,
    status: watch::Receiver<Status>,
    stop: mpsc::Sender<Stop>,
) -> Result<(), frame::FrameError> {
    while let Ok(ask) = tokio::time::timeout(IDLE, frame::read(&mut stream)).await {
        match ask? {
            None => break,
            Some(Ask::Status) => {}
            // One order is enough: a second one finds the channel full, or the replica stopping.
            Some(Ask::Stop { grace }) => drop(stop.try_send(Stop { grace })),
        }
        let now = status.borrow().clone();
        frame::write(&mut stream, &now).await?;
    }
    Ok(())
}

/// The last lines of a replica's log. Blocking.
pub fn read_log(files: &ReplicaFiles, lines: u32) -> io::Result<Vec<String>> {
    logs::tail(&files.log, lines.min(keelway_deploy::protocol::MAX_LOG_LINES) as usize)
}
