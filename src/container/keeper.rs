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
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

/// For the lock: the one who looks whether it is free holds it for a moment.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// Connections at one time, but for those of processes that joined.
const MAX_PEERS: usize = 64;
/// Processes that joined at one time; each takes a thread of ours.
const MAX_EXECS: usize = 128;
/// Health checks at one time. They have places of their own, so that no number of other processes makes a container ill.
const MAX_CHECKS: usize = 8;
/// A peer that says nothing for so long is let go.
pub(crate) const IDLE: Duration = Duration::from_secs(30);
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
        /// Whether it looks at the container's health.
        #[serde(default)]
        check: bool,
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
        let room = Room::new();
        loop {
            let Ok(place) = Arc::clone(&room.peers).acquire_owned().await else { return };
            let stream = wire::accept(&self.listener).await;
            let (desk, room) = (desk.clone(), room.clone());
            tokio::spawn(async move {
                if let Err(error) = talk(stream, &desk, &room, place).await {
                    tracing::debug!(%error, "a connection ended");
                }
            });
        }
    }
}

/// For how many there is room.
#[derive(Clone)]
struct Room {
    peers: Arc<Semaphore>,
    execs: Arc<Semaphore>,
    checks: Arc<Semaphore>,
}

impl Room {
    fn new() -> Self {
        let of = |most| Arc::new(Semaphore::new(most));
        Self { peers: of(MAX_PEERS), execs: of(MAX_EXECS), checks: of(MAX_CHECKS) }
    }
    /// A place among the processes that joined, or why there is none.
    fn join(&self, check: bool) -> Result<OwnedSemaphorePermit, String> {
        let (room, most, what) = match check {
            true => (&self.checks, MAX_CHECKS, "health checks"),
            false => (&self.execs, MAX_EXECS, "commands"),
        };
        let full = |_| {
            format!("{most} {what} run in the container beside its own, which is as many as may: end one")
        };
        Arc::clone(room).try_acquire_owned().map_err(full)
    }
}

async fn talk(
    mut stream: UnixStream,
    desk: &Desk,
    room: &Room,
    place: OwnedSemaphorePermit,
) -> Result<(), frame::FrameError> {
    while let Ok(ask) = tokio::time::timeout(IDLE, frame::read(&mut stream)).await {
        match ask? {
            None => break,
            Some(Ask::Status) => {}
            Some(Ask::Stop { grace }) => desk.order(Order::Stop(Stop { grace })),
            Some(Ask::Signal { signal }) => desk.order(Order::Signal(signal)),
            Some(Ask::Exec { spec, check }) => {
                let joined = room.join(check);
                // A process may live as long as its container. What is to be heard meanwhile needs the place.
                let _place = joined.is_err().then_some(place);
                return crate::exec::attend(stream, desk.handle(), *spec, joined).await;
            }
        }
        frame::write(&mut stream, &desk.status()).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::Answer;
    use keelway_sandbox::ExecSpec;
    use std::os::fd::{AsFd, OwnedFd};
    use std::path::Path;

    /// Asks for a process and hands nothing over, so that it takes its place and does not begin.
    async fn half(socket: &Path, check: bool) -> UnixStream {
        let mut stream = wire::connect(socket).await.unwrap();
        let spec = Box::new(ExecSpec::new(vec!["x".into()]));
        frame::write(&mut stream, &Ask::Exec { spec, check }).await.unwrap();
        stream
    }

    /// Why a process was not started.
    async fn refusal(socket: &Path, check: bool) -> String {
        let mut stream = half(socket, check).await;
        let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        wire::send_fds(&stream, &[null.as_fd(), null.as_fd(), null.as_fd()]).await.unwrap();
        match frame::read(&mut stream).await.unwrap() {
            Some(Answer::Failed { why, .. }) => why,
            other => panic!("{other:?}"),
        }
    }

    async fn until_refused(socket: &Path, check: bool, with: &str) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let why = refusal(socket, check).await;
            if why.contains(with) {
                return;
            }
            assert!(Instant::now() < end, "{why}");
        }
    }

    #[tokio::test]
    async fn however_many_joined_it_can_be_stopped_and_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("sock");
        let keeper = Keeper::begin(dir.path().join("lock"), socket.clone()).await.unwrap();
        let (desk, mut life) = desk();
        let kept = tokio::spawn(async move {
            let stopped = async { assert!(matches!(life.orders.recv().await, Some(Order::Stop(_)))) };
            keeper.keep(&desk, stopped).await
        });
        let mut joined = Vec::new();
        for _ in 0..MAX_EXECS {
            joined.push(half(&socket, false).await);
        }
        let full = format!("{MAX_EXECS} commands");
        until_refused(&socket, false, &full).await;
        assert_eq!(refusal(&socket, true).await, "the container is not running", "a check has its place");
        // Who goes makes room.
        drop(joined.pop());
        until_refused(&socket, false, "not running").await;
        let stop = Ask::Stop { grace: Duration::ZERO };
        wire::call::<_, Status>(&socket, &stop, Duration::from_secs(20)).await.unwrap();
        tokio::time::timeout(Duration::from_secs(20), kept).await.unwrap().unwrap();
    }
}
