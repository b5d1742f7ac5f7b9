//! Speaking to a sandbox whose owner let it go: over the socket that [`crate::Launcher::create`] was given.

use crate::error::{SetupError, SpawnError};
use crate::proto::{self, Order, Report};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long an answer may take; a start executes a program.
const PATIENCE: Duration = Duration::from_secs(60);

/// A sandbox that lives without its owner, by its socket.
#[derive(Debug)]
pub struct Gate<'a>(pub &'a Path);

impl Gate<'_> {
    fn order(&self, order: &Order) -> io::Result<Option<Report>> {
        let stream = UnixStream::connect(self.0)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        proto::send(stream.as_fd(), order, &[])?;
        Ok(proto::receive::<Report>(stream.as_fd())?.map(|(report, _)| report))
    }

    /// Whether its program was started; `None` when it has ended.
    pub fn started(&self) -> Option<bool> {
        match self.order(&Order::State) {
            Ok(Some(Report::State { started })) => Some(started),
            _ => None,
        }
    }

    /// Executes the program and returns when it was, or why not. False where that was asked before, or it has ended.
    pub fn start(&self) -> Result<bool, SpawnError> {
        match self.order(&Order::Start) {
            Ok(Some(Report::Failed(error))) => Err(SpawnError::Setup(error)),
            Ok(Some(Report::State { started })) => Ok(started),
            Ok(Some(_)) => Err(SetupError::Protocol { detail: "no answer to a start".into() }.into()),
            Ok(None) | Err(_) => Ok(false),
        }
    }

    /// Sends a signal to its program; false where none runs.
    pub fn signal(&self, signal: i32) -> bool {
        matches!(self.order(&Order::Signal(signal)), Ok(Some(_)))
    }

    /// Kills all of it; false where it has ended.
    pub fn kill(&self) -> bool {
        matches!(self.order(&Order::Kill), Ok(Some(_)))
    }
}
