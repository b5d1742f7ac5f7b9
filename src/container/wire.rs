//! Frames over our own unix sockets: one request, one answer, again and again on a connection; descriptors
//! beside a frame where it says so.
//!
//! Invariants: a socket is mode 0600 in a 0700 directory, and a peer that is neither root nor of our own
//! user is turned away; every call has a deadline; a socket file is replaced by rename, so that there is
//! no moment without one; a socket is reached through its directory's descriptor, so that the length of its
//! path is no matter.

use keelway_deploy::frame::{self, FrameError};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

/// Most descriptors beside a frame.
const MAX_FDS: usize = 3;
/// What descriptors ride on.
const CARRIER: u8 = b'+';
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
    let (_dir, short) = short(&new)?;
    let listener = UnixListener::bind(short)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&new, path)?;
    Ok(listener)
}

/// A name for a socket that fits the 108 bytes of an address, whatever its path; good while the directory
/// is held open.
fn short(path: &Path) -> io::Result<(File, PathBuf)> {
    let bad = || io::Error::new(io::ErrorKind::InvalidInput, "a socket needs a directory and a name");
    let (dir, name) = path.parent().zip(path.file_name()).ok_or_else(bad)?;
    let dir = File::open(dir)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    Ok((dir, short))
}

/// Connects to a socket of ours.
pub async fn connect(path: &Path) -> Result<UnixStream, CallError> {
    let no_answer = |source| CallError::NoAnswer { path: path.into(), source };
    let (_dir, short) = short(path).map_err(no_answer)?;
    UnixStream::connect(short).await.map_err(no_answer)
}

/// Sends descriptors to whoever reads frames at the other end and expects them there.
pub async fn send_fds(stream: &UnixStream, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
            }
            sendmsg(stream, &[IoSlice::new(&[CARRIER])], &mut control, SendFlags::NOSIGNAL)?;
            Ok(())
        })
        .await
}

/// Receives exactly `count` descriptors.
pub async fn receive_fds(stream: &UnixStream, count: usize) -> io::Result<Vec<OwnedFd>> {
    let fds = stream
        .async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut byte = [0];
            let got =
                recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
            let mut fds = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = message {
                    fds.extend(received);
                }
            }
            if got.bytes != 1 || byte != [CARRIER] {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no descriptors came"));
            }
            Ok(fds)
        })
        .await?;
    if fds.len() != count {
        let text = format!("{} descriptors came, not {count}", fds.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(fds)
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
        let mut stream = connect(path).await?;
        let broken = |source| CallError::Broken { path: path.into(), source };
        frame::write(&mut stream, request).await.map_err(broken)?;
        frame::read(&mut stream).await.map_err(broken)?.ok_or_else(|| broken(FrameError::Cut))
    };
    match tokio::time::timeout(deadline, work).await {
        Ok(done) => done,
        Err(_) => Err(CallError::TimedOut { path: path.into(), deadline }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    #[tokio::test]
    async fn frames_and_descriptors_over_a_socket_with_a_long_path() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let path = deep.join("sock");
        let listener = listen(&path).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let far = tokio::spawn(async move {
            let mut stream = accept(&listener).await;
            let word: Option<String> = frame::read(&mut stream).await.unwrap();
            let mut fds = receive_fds(&stream, 1).await.unwrap();
            frame::write(&mut stream, &"taken").await.unwrap();
            let mut pipe = File::from(fds.remove(0));
            pipe.write_all(word.unwrap().as_bytes()).unwrap();
        });
        let mut stream = connect(&path).await.unwrap();
        frame::write(&mut stream, &"over the pipe").await.unwrap();
        send_fds(&stream, &[writer.as_fd()]).await.unwrap();
        drop(writer);
        assert_eq!(frame::read::<String>(&mut stream).await.unwrap().as_deref(), Some("taken"));
        far.await.unwrap();
        let mut text = String::new();
        std::fs::File::from(OwnedFd::from(reader)).read_to_string(&mut text).unwrap();
        assert_eq!(text, "over the pipe");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn nobody_at_a_socket_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        drop(listen(&path).unwrap());
        let answer = call::<_, String>(&path, &"hello", Duration::from_secs(5)).await;
        assert!(matches!(answer, Err(CallError::NoAnswer { .. })), "{answer:?}");
    }
}
