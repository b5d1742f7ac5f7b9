//! Frames over the host's own unix sockets: one request, one answer, again and again on a connection.
//!
//! Invariants: a socket is mode 0600 in a 0700 directory, and a peer that is neither root nor of our own
//! user is turned away; every call has a deadline; a socket file is replaced by rename, so that there is
//! no moment without one.

use keelway_deploy::frame::{self, FrameError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};

/// After an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Why a call did not work.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens.
    #[error("nobody answers at {path}: {source}")]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The answer did not come.
    #[error("no answer from {path} within {deadline:?}")]
    TimedOut {
        /// The socket.
        path: PathBuf,
        /// How long we waited.
        deadline: Duration,
    },
    /// The connection ended or spoke nonsense.
    #[error("talking to {path}: {source}")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: FrameError,
    },
}

/// Binds a socket at `path`, replacing one that a dead process left. The caller holds the lock that makes
/// it the only one.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let mut name = path.as_os_str().to_owned();
    name.push("+");
    let new = PathBuf::from(name);
    match std::fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&new)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&new, path)?;
    Ok(listener)
}

/// Accepts the next peer that may talk to us. A failing accept (no descriptors, no memory) is tried again:
/// our processes do not end because of it.
pub async fn accept(listener: &UnixListener) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) if stream.peer_cred().is_ok_and(|c| is_ours(c.uid())) => return stream,
            Ok(_) => tracing::warn!("a stranger on our socket was turned away"),
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_ours(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw()
}

/// One request, one answer, on a connection of its own.
pub async fn call<Q: Serialize, A: DeserializeOwned>(
    path: &Path,
    request: &Q,
    deadline: Duration,
) -> Result<A, CallError> {
    let work = async {
        let mut stream = UnixStream::connect(path)
            .await
            .map_err(|source| CallError::NoAnswer { path: path.into(), source })?;
        let broken = |source| CallError::Broken { path: path.into(), source };
        frame::write(&mut stream, request).await.map_err(broken)?;
        frame::read(&mut stream).await.map_err(broken)?.ok_or_else(|| broken(FrameError::Cut))
    };
    match tokio::time::timeout(deadline, work).await {
        Ok(done) => done,
        Err(_) => Err(CallError::TimedOut { path: path.into(), deadline }),
    }
}
