//! A keeper: the one process that owns the sandbox of one container.
//!
//! Replicas of a host and containers made by hand are kept by the same code. There is one keeper for each
//! container, so that whoever decides about it may die and come back without touching it. It holds a lock, so
//! that its death is seen by everybody, and answers on a socket whoever may talk to it. The sandbox dies with
//! it. How the container ended is written by the caller, while the lock is still held.

use crate::container::{Status, Stop};
use crate::wire;
use keelway_deploy::frame;
use keelway_disk::Lock;
use keelway_sandbox::{ExecSpec, Handle};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};

/// For the lock: the one who looks whether it is free holds it for a moment.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// Connections at one time.
const MAX_PEERS: usize = 64;
/// A peer that says nothing for so long is let go.
const IDLE: Duration = Duration::from_secs(30);
/// Orders that wait for the container.
const MAX_ORDERS: usize = 64;

/// What a keeper is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Ask {
    /// How is it?
    Status,
    /// Stop it, and end yourself. Answered at once; the end is seen by the lock.
    Stop {
        /// From the stop signal to SIGKILL.
        grace: Duration,
    },
    /// Send its process a signal. Answered at once.
    Signal {
        /// Which.
        signal: i32,
    },
    /// Start one more process in it. Three descriptors follow; the answers are [`crate::exec::Answer`]s, and the
    /// connection is the process's from then on.
    Exec {
        /// What.
        spec: Box<ExecSpec>,
    },
}

/// What a container is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// To end.
    Stop(Stop),
    /// A signal for its process.
    Signal(i32),
}

/// The container's side of a [`Desk`].
#[derive(Debug)]
pub struct Life {
    pub(crate) orders: mpsc::Receiver<Order>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) handle: watch::Sender<Option<Handle>>,
}

impl Life {
    /// It cannot be run at all.
    pub fn unfit(&self, why: &str, code: u8) {
        self.status.send_modify(|s| {
            s.state = crate::State::Exited;
            s.ended = Some(why.to_owned());
            s.code = Some(code);
        });
    }
}

/// Where orders for a container are given, and where it is seen how it is.
#[derive(Debug, Clone)]
pub struct Desk {
    orders: mpsc::Sender<Order>,
    status: watch::Receiver<Status>,
    handle: watch::Receiver<Option<Handle>>,
}

/// Both sides.
pub fn desk() -> (Desk, Life) {
    let (status, seen) = watch::channel(Status::default());
    let (orders, ordered) = mpsc::channel(MAX_ORDERS);
    let (handle, current) = watch::channel(None);
    (Desk { orders, status: seen, handle: current }, Life { orders: ordered, status, handle })
}

impl Desk {
    /// As it is.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }
    /// Waits until it is otherwise; false when nothing will change any more.
    pub async fn changed(&mut self) -> bool {
        self.status.changed().await.is_ok()
    }
    /// Gives an order. One order to stop is enough: where there is no room the container has some already.
    pub fn order(&self, order: Order) {
        let _ = self.orders.try_send(order);
    }
    /// The sandbox, while there is one.
    pub fn handle(&self) -> Option<Handle> {
        self.handle.borrow().clone()
    }
}

/// Why a keeper does not keep.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// Another one has the container.
    #[error(transparent)]
    Lock(#[from] keelway_disk::LockError),
    /// The socket.
    #[error("cannot make the socket {path}: {source}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A thread failed.
    #[error("the keeper failed: {0}")]
    Failed(String),
}

/// A keeper that has its container to itself.
#[derive(Debug)]
pub struct Keeper {
    // Free when this is dropped, or the process dead.
    _lock: Lock,
    listener: UnixListener,
}

impl Keeper {
    /// Takes the lock and makes the socket.
    pub async fn begin(lock: PathBuf, socket: PathBuf) -> Result<Self, KeepError> {
        let taken = move || Lock::take(&lock, Instant::now() + LOCK_WAIT, &|| false);
        let lock =
            tokio::task::spawn_blocking(taken).await.map_err(|e| KeepError::Failed(e.to_string()))??;
        let listener = wire::listen(&socket).map_err(|source| KeepError::Socket { path: socket, source })?;
        Ok(Self { _lock: lock, listener })
    }

    /// Answers at the socket until `life`, which is the container, is over. The lock stays held.
    pub async fn keep(&self, desk: &Desk, life: impl Future<Output = ()>) -> Status {
        tokio::select! {
            () = life => {}
            () = self.listen(desk) => {}
        }
        desk.status()
    }

    async fn listen(&self, desk: &Desk) {
        let room = Arc::new(Semaphore::new(MAX_PEERS));
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            let stream = wire::accept(&self.listener).await;
            let desk = desk.clone();
            tokio::spawn(async move {
                if let Err(error) = talk(stream, &desk).await {
                    tracing::debug!(%error, "a connection ended");
                }
                drop(permit);
            });
        }
    }
}

async fn talk(mut stream: UnixStream, desk: &Desk) -> Result<(), frame::FrameError> {
    while let Ok(ask) = tokio::time::timeout(IDLE, frame::read(&mut stream)).await {
        match ask? {
            None => break,
            Some(Ask::Status) => {}
            Some(Ask::Stop { grace }) => desk.order(Order::Stop(Stop { grace })),
            Some(Ask::Signal { signal }) => desk.order(Order::Signal(signal)),
            Some(Ask::Exec { spec }) => return crate::exec::attend(stream, desk.handle(), *spec).await,
        }
        frame::write(&mut stream, &desk.status()).await?;
    }
    Ok(())
}
