//! One more process in a container that another process keeps: both ends of the conversation.
//!
//! The process reads and writes through the descriptors that came along; nothing of it passes the keeper. It
//! ends with whoever asked for it: the end of the connection kills it.

use crate::container::{NOT_STARTED, exit_code, start_code};
use crate::keeper::{Ask, IDLE};
use crate::wire::{self, CallError};
use keelway_deploy::frame::{self, FrameError};
use keelway_sandbox::{ExecSpec, Handle, Stdio};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// What the keeper says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "exec", rename_all = "kebab-case")]
pub enum Answer {
    /// It runs. Its terminal's other side follows where it has one.
    Started,
    /// It does not.
    Failed {
        /// Why.
        why: String,
        /// In the numbers that shells and docker use.
        code: u8,
    },
    /// It has ended.
    Ended {
        /// In the same numbers.
        code: u8,
    },
}

/// What it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Signal(i32);

/// Why a process did not run, or its end is not known.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The keeper cannot be talked to.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The connection broke.
    #[error("the keeper of the container ended: {0}")]
    Broken(#[from] FrameError),
    /// Descriptors did not get through.
    #[error("cannot hand descriptors over: {0}")]
    Descriptors(#[from] io::Error),
    /// It says why.
    #[error("{why}")]
    Failed {
        /// Why.
        why: String,
        /// In the numbers that shells and docker use.
        code: u8,
    },
}

impl ExecError {
    /// In the numbers that shells and docker use.
    pub const fn code(&self) -> u8 {
        match self {
            Self::Failed { code, .. } => *code,
            _ => NOT_STARTED,
        }
    }
}

/// The keeper's end. `place` is held for as long as the process lives; where there is none it does not begin.
pub(crate) async fn attend(
    mut stream: UnixStream,
    handle: Option<Handle>,
    spec: ExecSpec,
    place: Result<OwnedSemaphorePermit, String>,
) -> Result<(), FrameError> {
    let handed = tokio::time::timeout(IDLE, wire::receive_fds(&stream, 3)).await;
    let fds = handed.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let failed = |why: String, code| Answer::Failed { why, code };
    let _place = match place {
        Ok(place) => place,
        Err(why) => return frame::write(&mut stream, &failed(why, NOT_STARTED)).await,
    };
    let Some(handle) = handle else {
        return frame::write(&mut stream, &failed("the container is not running".into(), NOT_STARTED)).await;
    };
    let Ok([stdin, stdout, stderr]) = <[OwnedFd; 3]>::try_from(fds) else {
        return Err(FrameError::Cut);
    };
    let begun =
        tokio::task::spawn_blocking(move || handle.exec(&spec, Stdio { stdin, stdout, stderr })).await;
    let mut executed = match begun.map_err(io::Error::other)? {
        Ok(executed) => executed,
        Err(error) => {
            return frame::write(&mut stream, &failed(error.to_string(), start_code(&error))).await;
        }
    };
    frame::write(&mut stream, &Answer::Started).await?;
    if let Some(terminal) = executed.take_terminal() {
        wire::send_fds(&stream, &[terminal.as_fd()]).await?;
    }
    let (mut from, mut to) = stream.into_split();
    let orders = executed.handle();
    let obey = tokio::spawn(async move {
        while let Ok(Some(Signal(signal))) = frame::read(&mut from).await {
            let _ = orders.signal(signal);
        }
        orders.kill();
    });
    let ended = tokio::task::spawn_blocking(move || executed.wait()).await.map_err(io::Error::other)?;
    obey.abort();
    let answer = match ended {
        Ok(kind) => Answer::Ended { code: exit_code(&kind) },
        Err(error) => failed(error.to_string(), NOT_STARTED),
    };
    frame::write(&mut to, &answer).await
}

/// A process that runs.
#[derive(Debug)]
pub struct Session {
    terminal: Option<OwnedFd>,
    to: OwnedWriteHalf,
    ended: oneshot::Receiver<Result<Option<Answer>, FrameError>>,
}

/// Asks the keeper at this socket for a process.
pub async fn begin(socket: &Path, spec: &ExecSpec, stdio: &[OwnedFd; 3]) -> Result<Session, ExecError> {
    ask(socket, spec, stdio, false).await
}

/// The same for a look at the container's health, for which there is room when there is none for others.
pub async fn begin_check(socket: &Path, spec: &ExecSpec, stdio: &[OwnedFd; 3]) -> Result<Session, ExecError> {
    ask(socket, spec, stdio, true).await
}

async fn ask(
    socket: &Path,
    spec: &ExecSpec,
    stdio: &[OwnedFd; 3],
    check: bool,
) -> Result<Session, ExecError> {
    let mut stream = wire::connect(socket).await?;
    frame::write(&mut stream, &Ask::Exec { spec: Box::new(spec.clone()), check }).await?;
    wire::send_fds(&stream, &[stdio[0].as_fd(), stdio[1].as_fd(), stdio[2].as_fd()]).await?;
    match frame::read(&mut stream).await? {
        Some(Answer::Started) => {}
        Some(Answer::Failed { why, code }) => return Err(ExecError::Failed { why, code }),
        Some(Answer::Ended { .. }) | None => return Err(FrameError::Cut.into()),
    }
    let terminal = match spec.terminal {
        Some(_) => wire::receive_fds(&stream, 1).await?.pop(),
        None => None,
    };
    let (mut from, to) = stream.into_split();
    let (tell, ended) = oneshot::channel();
    tokio::spawn(async move { tell.send(frame::read(&mut from).await) });
    Ok(Session { terminal, to, ended })
}

impl Session {
    /// The other side of its terminal, once.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// Waits for its end, passing signals on. Dropping the future kills it.
    pub async fn wait(mut self, signals: &mut mpsc::Receiver<i32>) -> Result<u8, ExecError> {
        let mut open = true;
        loop {
            tokio::select! {
                ended = &mut self.ended => {
                    return match ended.unwrap_or(Err(FrameError::Cut))? {
                        Some(Answer::Ended { code }) => Ok(code),
                        Some(Answer::Failed { why, code }) => Err(ExecError::Failed { why, code }),
                        Some(Answer::Started) | None => Err(FrameError::Cut.into()),
                    };
                }
                signal = signals.recv(), if open => match signal {
                    Some(signal) => frame::write(&mut self.to, &Signal(signal)).await?,
                    None => open = false,
                },
            }
        }
    }
}
