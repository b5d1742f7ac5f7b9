//! The keeper of one replica: a process that owns its sandbox.
//!
//! There is one for each replica, so that the supervisor may die and come back without touching traffic.
//! The sandbox dies with the keeper; the supervisor sees that the keeper's lock is free and starts
//! another. A keeper ends when its replica was told to stop, or cannot be run at all; it leaves `end.json`.

use crate::record::{self, ReplicaFiles, ReplicaRecord};
use crate::settings::Settings;
pub use keelway_container::keeper::Ask;
use keelway_container::keeper::{self, KeepError, Keeper};
use keelway_container::{Container, HealthSpec, Image, NOT_STARTED, Overrides, Shape, logs};
use keelway_deploy::protocol::ReplicaId;
use keelway_model::ids::AppName;
use keelway_sandbox::{Launcher, LauncherConfig, Network};
use std::io;

/// Why a keeper ended early.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Another one has the replica, or it cannot be kept.
    #[error(transparent)]
    Keep(#[from] KeepError),
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
    let keeper = Keeper::begin(files.lock(), record::keeper_socket(settings, record.slot)).await?;
    let (desk, mut life) = keeper::desk();
    let container = prepare(settings, app, replica, &files, &record);
    let end = keeper.keep(&desk, async {
        match container.await {
            Ok(container) => container.run(&mut life).await,
            // Nothing that a new start would change: the supervisor tries again, ever more slowly.
            Err(error) => life.unfit(&error.to_string(), NOT_STARTED),
        }
    });
    let end = end.await;
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
            overrides: Overrides { env: spec.env, ..Overrides::default() },
            hostname,
            network: Network::Join(settings.network.namespace_path(record.slot)),
            limits: spec.limits,
            cgroup: replica.to_string().parse().map_err(unfit)?,
            health: Some(HealthSpec {
                address: settings.network.socket(record.slot, spec.port),
                rule: spec.health,
            }),
            log_dir: files.log,
            shape: Shape::default(),
        };
        Container::new(store, launcher, container).map_err(unfit)
    });
    made.await.map_err(unfit)?
}

/// The last lines of a replica's log. Blocking.
pub fn read_log(files: &ReplicaFiles, lines: u32) -> io::Result<Vec<String>> {
    logs::tail(&files.log, lines.min(keelway_deploy::protocol::MAX_LOG_LINES) as usize)
}
