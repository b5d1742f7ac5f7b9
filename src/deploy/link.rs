//! How a deployer talks to one host: [`HostLink`] for whoever gives orders, [`Session`] for a pair of byte streams
//! that lead to a `keelway __host`.
//!
//! Invariants: every call ends by its deadline; calls run side by side, answers are matched by id; when the stream
//! ends, every waiting call ends with it, and so does the session (it is not repaired, a new one is opened).

use crate::frame::{self, FrameError};
use crate::protocol::{Greeting, Hello, Order, Outcome, Refusal, Reply, Request, Response, VERSION, Welcome};
use crate::rollout::OrderError;
use async_trait::async_trait;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

/// Why there is no connection to a host. Each message ends with what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The host's key is not in `known_hosts`.
    #[error(
        "{host}: its ssh host key is not known; compare it with what the host shows, then add it: ssh-keyscan {name} >> ~/.ssh/known_hosts (or connect once by hand: ssh {host})", name = bare(host)
    )]
    HostKeyUnknown {
        /// The host.
        host: String,
    },
    /// The host's key is another one than before.
    #[error(
        "{host}: its ssh host key has CHANGED since it was recorded; if the host was not reinstalled, somebody may be in between. If it was: ssh-keygen -R {name}, then record the new key", name = bare(host)
    )]
    HostKeyChanged {
        /// The host.
        host: String,
    },
    /// The host refuses the user or the key.
    #[error("{host}: ssh was refused ({said}); check with: ssh -o BatchMode=yes {host} true")]
    Auth {
        /// The host.
        host: String,
        /// What ssh said.
        said: String,
    },
    /// No route, no answer, no such name.
    #[error("{host}: cannot be reached ({said}); check with: ssh {host} true")]
    Unreachable {
        /// The host.
        host: String,
        /// What ssh said.
        said: String,
    },
    /// Not root, and no `sudo -n`.
    #[error(
        "{host}: the login {user} is not root and `sudo -n` asks for a password; allow it: echo '{user} ALL=(root) NOPASSWD: ALL' | sudo tee /etc/sudoers.d/keelway, or log in as root"
    )]
    NoRoot {
        /// The host.
        host: String,
        /// Login there.
        user: String,
    },
    /// The host's processor is another one than our binary's.
    #[error(
        "{host}: is a {theirs} machine, and this keelway is built for {ours}; deploy with a keelway built for {theirs}"
    )]
    Architecture {
        /// The host.
        host: String,
        /// `uname -m` there.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// The binary could not be brought there.
    #[error(
        "{host}: keelway could not be copied to {path}: {said}; check free space and permissions there with: ssh {host} df -h /var/lib"
    )]
    Bring {
        /// The host.
        host: String,
        /// Where to.
        path: String,
        /// What failed.
        said: String,
    },
    /// The host will not talk to us.
    #[error("{host}: {said}")]
    Refused {
        /// The host.
        host: String,
        /// Why not, and what to do.
        said: String,
    },
    /// Something else answers, or nothing sensible.
    #[error(
        "{host}: the far end does not speak the host protocol: {said}; check with: ssh {host} true (it must print nothing)"
    )]
    Protocol {
        /// The host.
        host: String,
        /// What it said.
        said: String,
    },
    /// ssh itself could not be started.
    #[error(
        "{host}: {program} could not be started: {said}; install it with: apt-get install openssh-client"
    )]
    NoSsh {
        /// The host.
        host: String,
        /// Which program.
        program: String,
        /// What failed.
        said: String,
    },
}

/// Without the login.
fn bare(host: &str) -> &str {
    host.rsplit('@').next().unwrap_or(host)
}

/// A way to one host.
#[async_trait]
pub trait HostLink: Send + Sync {
    /// The host, as the target names it.
    fn name(&self) -> &str;
    /// Connects, unless it is connected, and says what the host said of itself.
    async fn connect(&self) -> Result<Welcome, ConnectError>;
    /// One order, one answer, by the deadline; connects again first where the connection was lost.
    async fn call(&self, order: Order, deadline: Duration) -> Result<Reply, OrderError>;
}

/// Waiting calls; `None` once the stream has ended.
type Pending = Mutex<Option<HashMap<u64, oneshot::Sender<Outcome>>>>;

fn locked(pending: &Pending) -> MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Outcome>>>> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running conversation with a `keelway __host`. Dropping it ends it.
pub struct Session {
    to_host: mpsc::Sender<Vec<u8>>,
    pending: Arc<Pending>,
    next_id: AtomicU64,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

/// Requests that wait to be written, at most.
const QUEUE: usize = 64;

/// Why a conversation did not begin.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The stream.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The host said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It ended before it began.
    #[error("it ended before it said anything")]
    Ended,
    /// Another version.
    #[error("it speaks version {0} of the protocol, this keelway speaks {VERSION}")]
    Version(u32),
}

impl Session {
    /// Skips a login shell's noise, greets the host, and starts to read its answers.
    pub async fn open<R, W>(mut from: R, mut to: W, hello: &Hello) -> Result<(Self, Welcome), OpenError>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        frame::skip_to_magic(&mut from).await?;
        frame::write(&mut to, hello).await?;
        let welcome = match frame::read::<Greeting>(&mut from).await?.ok_or(OpenError::Ended)? {
            Greeting::Welcome(w) if w.version == VERSION => w,
            Greeting::Welcome(w) => return Err(OpenError::Version(w.version)),
            Greeting::Refused(refusal) => return Err(refusal.into()),
        };
        let pending: Arc<Pending> = Arc::new(Mutex::new(Some(HashMap::new())));
        let (to_host, mut queue) = mpsc::channel::<Vec<u8>>(QUEUE);
        let ends = pending.clone();
        let writer = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt;
            while let Some(bytes) = queue.recv().await {
                if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
                    break;
                }
            }
            locked(&ends).take();
        });
        let waiting = pending.clone();
        let reader = tokio::spawn(async move {
            // A malformed answer ends the session: what follows it cannot be trusted either.
            while let Ok(Some(response)) = frame::read::<Response>(&mut from).await {
                let caller = locked(&waiting).as_mut().and_then(|p| p.remove(&response.id));
                if let Some(caller) = caller {
                    // A caller that gave up is fine.
                    let _ = caller.send(response.outcome);
                }
            }
            locked(&waiting).take();
        });
        Ok((Self { to_host, pending, next_id: AtomicU64::new(1), tasks: [writer, reader] }, welcome))
    }

    /// Whether the stream has not ended.
    pub fn is_open(&self) -> bool {
        locked(&self.pending).is_some()
    }

    /// One order, one answer.
    pub async fn call(&self, order: Order, deadline: Duration) -> Result<Reply, OrderError> {
        let lost = || OrderError::Unreachable("the connection was lost".into());
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        let bytes = frame::encode(&Request { id, deadline_ms, order })
            .map_err(|e| OrderError::Unreachable(format!("the order cannot be sent: {e}")))?;
        let (caller, answer) = oneshot::channel();
        locked(&self.pending).as_mut().ok_or_else(lost)?.insert(id, caller);
        let exchange = async {
            self.to_host.send(bytes).await.map_err(|_| lost())?;
            answer.await.map_err(|_| lost())
        };
        // The host answers by the deadline; a little more for the way.
        match tokio::time::timeout(deadline + Duration::from_millis(500), exchange).await {
            Ok(Ok(Outcome::Done(reply))) => Ok(reply),
            Ok(Ok(Outcome::Refused(refusal))) => Err(refusal.into()),
            Ok(Err(lost)) => Err(lost),
            Err(_) => {
                if let Some(pending) = locked(&self.pending).as_mut() {
                    pending.remove(&id);
                }
                Err(OrderError::Late)
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests;
