//! `keelway __supervise`: the supervisor of a host, or the keeper of one replica.
//!
//! The supervisor holds what shall be, on disk, and keeps seeing to it: it starts keepers and balancers
//! that are not there, and answers `__host` sessions over its socket. It owns nothing that traffic needs:
//! when it dies, keepers and balancers go on, and the next one finds them by their locks and sockets.
//! There is exactly one for a state directory: it holds `supervisor.lock`.

mod apps;
mod balancers;
mod images;
mod orders;
mod preflight;
mod replicas;
mod state;

pub(crate) use apps::RELEASES;

use crate::settings::{Role, Settings, SuperviseSettings};
use crate::{keeper, process, record, wire};
use keelway_container::diary::Diary;
use keelway_deploy::frame::{self, FrameError};
use keelway_deploy::protocol::{Request, Response};
use keelway_disk::Lock;
use keelway_model::ExitCode;
use serde::{Deserialize, Serialize};
use state::Supervisor;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};

/// Connections of sessions at one time.
const MAX_PEERS: usize = 256;
/// A peer that says nothing for so long is let go.
const IDLE: Duration = Duration::from_secs(30);
/// How long a new supervisor waits for an old one that was told to go.
const TAKE_OVER: Duration = Duration::from_secs(5);

/// What a supervisor is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub(crate) enum Ask {
    /// Who are you?
    Hello,
    /// End; another binary takes over. Replicas and balancers are not touched.
    Retire,
    /// An order of a session.
    Order {
        /// As it came.
        request: Box<Request>,
    },
}

/// What it answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// Who it is.
    Hello {
        /// Its process.
        pid: u32,
        /// Device and inode of its binary.
        binary: (u64, u64),
    },
    /// It ends.
    Retiring,
    /// What came of an order.
    Done {
        /// As it goes back.
        response: Box<Response>,
    },
}

/// Why a supervisor ended.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// There is one already.
    #[error("another supervisor runs on this state directory (it holds {path})")]
    Running {
        /// Its lock.
        path: PathBuf,
    },
    /// The keeper.
    #[error(transparent)]
    Keeper(#[from] keeper::KeeperError),
    /// The store.
    #[error(transparent)]
    Store(#[from] keelway_store::OpenError),
    /// Anything else.
    #[error("{what}: {source}")]
    Io {
        /// What failed.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> SuperviseError {
    let what = what.into();
    move |source| SuperviseError::Io { what, source }
}

/// Runs until told to end, making its own runtime. The caller has not started one.
pub fn run(settings: SuperviseSettings) -> ExitCode {
    process::detach();
    let done = process::runtime("supervise").map_err(failed("cannot start")).and_then(|runtime| {
        let done = runtime.block_on(async {
            let diary = match &settings.role {
                Role::Supervisor => "supervisor",
                Role::Keeper { .. } => "keepers",
            };
            tokio::spawn(Diary::at(&record::diary(&settings.settings, diary)).keep());
            match &settings.role {
                Role::Supervisor => supervise(settings.settings.clone()).await,
                Role::Keeper { app, replica } => Ok(keeper::keep(&settings.settings, app, *replica).await?),
            }
        });
        // Blocking work that is under way is not waited for: everything on disk is whole at any moment.
        runtime.shutdown_timeout(Duration::from_millis(500));
        done
    });
    match done {
        Ok(()) => ExitCode::Done,
        Err(error) => {
            tracing::error!(%error, "ends");
            ExitCode::Outside
        }
    }
}

async fn supervise(settings: Settings) -> Result<(), SuperviseError> {
    record::make_dirs(&settings).map_err(failed(format!("cannot use {}", settings.state().display())))?;
    let path = settings.state().join("supervisor.lock");
    let wait = path.clone();
    let lock =
        tokio::task::spawn_blocking(move || Lock::take(&wait, Instant::now() + TAKE_OVER, &|| false)).await;
    let _lock = match lock {
        Ok(Ok(lock)) => lock,
        Ok(Err(keelway_disk::LockError::Io { source, .. })) => return Err(failed("cannot lock")(source)),
        Ok(Err(_)) => return Err(SuperviseError::Running { path }),
        Err(error) => return Err(failed("cannot lock")(io::Error::other(error))),
    };
    let supervisor = Supervisor::open(settings.clone()).await?;
    // The socket comes last: who reaches us finds everything loaded.
    let listener =
        wire::listen(&record::supervisor_socket(&settings)).map_err(failed("cannot make the socket"))?;
    let (retire, mut retired) = watch::channel(false);
    let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .map_err(failed("cannot wait for signals"))?;
    tokio::select! {
        () = listen(listener, supervisor, retire) => {}
        _ = retired.changed() => {}
        _ = end.recv() => {}
    }
    Ok(())
}

async fn listen(listener: UnixListener, supervisor: Arc<Supervisor>, retire: watch::Sender<bool>) {
    let room = Arc::new(Semaphore::new(MAX_PEERS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let stream = wire::accept(&listener).await;
        let (supervisor, retire) = (Arc::clone(&supervisor), retire.clone());
        tokio::spawn(async move {
            if let Err(error) = talk(stream, supervisor, retire).await {
                tracing::debug!(%error, "a session's connection ended");
            }
            drop(permit);
        });
    }
}

async fn talk(
    mut stream: UnixStream,
    supervisor: Arc<Supervisor>,
    retire: watch::Sender<bool>,
) -> Result<(), FrameError> {
    while let Ok(ask) = tokio::time::timeout(IDLE, frame::read(&mut stream)).await {
        let answer = match ask? {
            None => break,
            Some(Ask::Hello) => Answer::Hello {
                pid: std::process::id(),
                binary: process::own_binary().map_err(FrameError::Io)?,
            },
            Some(Ask::Retire) => {
                frame::write(&mut stream, &Answer::Retiring).await?;
                let _ = retire.send(true);
                break;
            }
            Some(Ask::Order { request }) => {
                // In a task of its own: an order that was begun is finished, also when its session is gone.
                let supervisor = Arc::clone(&supervisor);
                let id = request.id;
                let work = tokio::spawn(async move { supervisor.outcome(request.order).await });
                let outcome = work.await.map_err(|e| FrameError::Io(io::Error::other(e)))?;
                Answer::Done { response: Box::new(Response { id, outcome }) }
            }
        };
        frame::write(&mut stream, &answer).await?;
    }
    Ok(())
}
