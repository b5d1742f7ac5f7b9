//! A process that joined a running sandbox, seen by its owner.

use crate::end::ExitKind;
use crate::error::{SetupError, SpawnError, WaitError};
use crate::launcher::readable_within;
use crate::proto::{self, Order, Report};
use crate::spec::ExecSpec;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long joining may take; milliseconds unless the machine hangs.
const START: Duration = Duration::from_secs(60);

/// A process that joined a sandbox. Dropping it, or losing the process that has it, kills that process (not
/// what it left running in the background, which ends with the sandbox).
///
/// `as_fd` is a descriptor that becomes readable when the process has ended.
#[derive(Debug)]
pub struct Executed {
    channel: Arc<UnixStream>,
    ordering: Arc<Mutex<()>>,
    terminal: Option<OwnedFd>,
    pid: i32,
}

/// Signals it while another thread waits for it.
#[derive(Debug, Clone)]
pub struct ExecutedHandle {
    channel: Arc<UnixStream>,
    ordering: Arc<Mutex<()>>,
}

impl AsFd for Executed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl Executed {
    pub(crate) fn begun(channel: UnixStream, spec: &ExecSpec) -> Result<Self, SpawnError> {
        let lost = |detail: &str| SpawnError::InitLost { detail: detail.to_owned() };
        if !readable_within(channel.as_fd(), START) {
            return Err(lost("the sandbox does not answer"));
        }
        match proto::receive::<Report>(channel.as_fd()) {
            Ok(Some((Report::Started { pid, .. }, fds)))
                if fds.len() == usize::from(spec.terminal.is_some()) =>
            {
                let (channel, ordering) = (Arc::new(channel), Arc::default());
                Ok(Self { channel, ordering, terminal: fds.into_iter().next(), pid })
            }
            Ok(Some((Report::Failed(error), _))) => Err(SpawnError::Setup(error)),
            Ok(Some(_)) => Err(SetupError::Protocol { detail: "an end before a start".into() }.into()),
            Ok(None) => Err(lost("the sandbox has ended")),
            Err(e) => Err(lost(&e.to_string())),
        }
    }

    /// Its process id on this machine.
    pub fn pid(&self) -> i32 {
        self.pid
    }
    /// The other side of its terminal, once; see [`crate::Running::take_terminal`].
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }
    /// For other threads.
    pub fn handle(&self) -> ExecutedHandle {
        ExecutedHandle { channel: Arc::clone(&self.channel), ordering: Arc::clone(&self.ordering) }
    }
    /// Blocks until it has ended.
    pub fn wait(self) -> Result<ExitKind, WaitError> {
        match proto::receive::<Report>(self.channel.as_fd()) {
            Ok(Some((Report::Ended { kind, .. }, _))) => Ok(kind),
            // The sandbox died under it.
            Ok(_) => Ok(ExitKind::InitKilled),
            Err(source) => Err(WaitError::Io { action: "wait for the process in", source }),
        }
    }
}

impl Drop for Executed {
    fn drop(&mut self) {
        // A handle may still hold the socket: its end is what kills.
        let _ = self.channel.shutdown(Shutdown::Both);
    }
}

impl ExecutedHandle {
    /// Sends it a signal. One that has ended is no error.
    pub fn signal(&self, signal: i32) -> Result<(), WaitError> {
        let _one_at_a_time = self.ordering.lock().unwrap_or_else(PoisonError::into_inner);
        match proto::send(self.channel.as_fd(), &Order::Signal(signal), &[]) {
            Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                Ok(())
            }
            other => other.map_err(|source| WaitError::Io { action: "signal the process in", source }),
        }
    }
    /// Kills it.
    pub fn kill(&self) {
        let _ = self.channel.shutdown(Shutdown::Write);
    }
}
