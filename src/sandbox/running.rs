//! A sandbox that runs, and how it ended.

use crate::cgroup::Group;
use crate::end::{Exit, ExitKind, Usage};
use crate::error::{SpawnError, WaitError};
use crate::executed::Executed;
use crate::launcher::{Launcher, Stdio};
use crate::proto::{self, Order, Report};
use crate::spec::ExecSpec;
use crate::sys;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long the processes of a killed sandbox may take to die.
const DEATH: Duration = Duration::from_secs(30);
/// How often somebody who waits looks whether it was killed.
const LOOK: Duration = Duration::from_secs(5);

/// A running sandbox. Dropping it kills it and waits for its end.
///
/// `as_fd` is a descriptor that becomes readable when the sandbox has ended, for async callers:
/// [`Running::wait`] does not block for long then.
#[derive(Debug)]
pub struct Running {
    child: Child,
    shared: Arc<Shared>,
    pid: i32,
    warnings: Vec<String>,
    terminal: Option<OwnedFd>,
    exit: Option<Exit>,
    groups: Group,
    // The launcher removes its parent group when the last sandbox is gone.
    _launcher: Launcher,
}

#[derive(Debug)]
struct Shared {
    control: UnixStream,
    /// Held while an order is written, so that two do not mix; never while something is killed.
    ordering: Mutex<()>,
    /// PID 1 of the sandbox, once it runs.
    init: Mutex<Option<OwnedFd>>,
    /// When it was killed first.
    killed: OnceLock<Instant>,
}

/// Signals a sandbox while another thread waits for it. Cheap to clone; harmless after its end.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Shared>);

impl Handle {
    /// Sends a signal to the main process. A sandbox that has ended is no error.
    pub fn signal(&self, signal: i32) -> Result<(), WaitError> {
        let _one_at_a_time = self.0.ordering.lock().unwrap_or_else(PoisonError::into_inner);
        match proto::send(self.0.control.as_fd(), &Order::Signal(signal), &[]) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe || e.kind() == io::ErrorKind::ConnectionReset => {
                Ok(())
            }
            other => other.map_err(|source| WaitError::Io { action: "signal", source }),
        }
    }

    /// Starts one more process in the sandbox and returns when it runs (was executed), or why it does not.
    /// Blocks for some milliseconds. It ends with the sandbox, and with the returned value.
    pub fn exec(&self, spec: &ExecSpec, stdio: Stdio) -> Result<Executed, SpawnError> {
        spec.check()?;
        let launch = |action| move |source| SpawnError::Launch { action, source };
        let (ours, theirs) = UnixStream::pair().map_err(launch("make a socket for the process"))?;
        let fds =
            [stdio.stdin.as_raw_fd(), stdio.stdout.as_raw_fd(), stdio.stderr.as_raw_fd(), theirs.as_raw_fd()];
        let sent = {
            let _one_at_a_time = self.0.ordering.lock().unwrap_or_else(PoisonError::into_inner);
            proto::send(self.0.control.as_fd(), &Order::Exec(Box::new(spec.clone())), &fds)
        };
        drop((stdio, theirs));
        sent.map_err(launch("ask the sandbox for a process"))?;
        Executed::begun(ours, spec)
    }

    /// Kills all its processes at once, by killing PID 1 of its pid namespace.
    pub fn kill(&self) -> Result<(), WaitError> {
        self.0.killed.get_or_init(Instant::now);
        match &*self.0.init.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(pidfd) => match sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
                Err(e) => Err(WaitError::Io { action: "kill", source: e.into() }),
            },
            None => Ok(()),
        }
    }
}

impl AsFd for Running {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.control.as_fd()
    }
}

impl Running {
    pub(crate) fn new(child: Child, control: UnixStream, launcher: Launcher, groups: Group) -> Self {
        let shared = Arc::new(Shared {
            control,
            ordering: Mutex::new(()),
            init: Mutex::new(None),
            killed: OnceLock::new(),
        });
        let (warnings, terminal, exit) = (Vec::new(), None, None);
        Self { child, shared, pid: 0, warnings, terminal, exit, groups, _launcher: launcher }
    }

    pub(crate) fn control(&self) -> BorrowedFd<'_> {
        self.shared.control.as_fd()
    }

    /// PID 1's descriptor comes first, then the terminal's, if there is one.
    pub(crate) fn started(&mut self, pid: i32, fds: Vec<OwnedFd>, warnings: Vec<String>) {
        self.pid = pid;
        self.warnings = warnings;
        let mut fds = fds.into_iter();
        *self.shared.init.lock().unwrap_or_else(PoisonError::into_inner) = fds.next();
        self.terminal = fds.next();
    }

    /// Init has said why it failed and is cleaning up: let it.
    pub(crate) fn failed(&mut self) {
        let _ = self.child.wait();
        self.exit = Some(Exit { kind: ExitKind::InitKilled, usage: Usage::default() });
    }

    /// It does not answer: kill it, and PID 1 dies with it (its parent-death signal).
    pub(crate) fn abandon(&mut self) {
        let _ = self.child.kill();
    }

    /// What is known of an init that ended without a word.
    pub(crate) fn post_mortem(&mut self) -> String {
        match self.child.wait() {
            Ok(status) => status.to_string(),
            Err(e) => e.to_string(),
        }
    }

    /// Lets one of [`crate::Launcher::create`] live on without this owner.
    pub fn release(mut self) -> Result<(), WaitError> {
        proto::send(self.shared.control.as_fd(), &Order::Release, &[])
            .map_err(|source| WaitError::Io { action: "let go of", source })?;
        self.exit = Some(Exit { kind: ExitKind::InitKilled, usage: Usage::default() });
        Ok(())
    }

    /// Process id, on this machine, of the sandbox's PID 1.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// What the machine did not allow but the sandbox can do without.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The other side of the process's terminal, once: what is read there it has shown, what is written it
    /// reads, and the window's size is set there. When it is closed the process gets SIGHUP.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// For other threads.
    pub fn handle(&self) -> Handle {
        Handle(self.shared.clone())
    }

    /// See [`Handle::signal`].
    pub fn signal(&self, signal: i32) -> Result<(), WaitError> {
        self.handle().signal(signal)
    }

    /// See [`Handle::kill`].
    pub fn kill(&self) -> Result<(), WaitError> {
        self.handle().kill()
    }

    /// Blocks until it has ended and everything of it is gone; the same answer again afterwards. Once it was killed that
    /// has a bound: a process that the kernel does not let die, because it waits for a disk or a server, is an error.
    pub fn wait(&mut self) -> Result<Exit, WaitError> {
        if let Some(exit) = &self.exit {
            return Ok(exit.clone());
        }
        self.hear_until_killed()?;
        let report = proto::receive::<Report>(self.shared.control.as_fd());
        let exit = match report {
            Ok(Some((Report::Ended { kind, usage }, _))) => {
                self.child.wait().map_err(|source| WaitError::Io { action: "wait for", source })?;
                Exit { kind, usage }
            }
            // The supervisor is gone: the kernel kills PID 1 with it, and with PID 1 all others.
            Ok(_) | Err(_) => self.bury()?,
        };
        self.exit = Some(exit.clone());
        Ok(exit)
    }

    /// Until there is something to be received, or [`DEATH`] has passed since it was killed.
    fn hear_until_killed(&self) -> Result<(), WaitError> {
        loop {
            let left = self.shared.killed.get().map(|at| DEATH.saturating_sub(at.elapsed()));
            // Another thread may kill it meanwhile.
            let patience = left.unwrap_or(LOOK).min(LOOK);
            let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.shared.control.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) if left.is_some_and(|l| l.is_zero()) => {
                    return Err(WaitError::Stuck { seconds: DEATH.as_secs() });
                }
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(e) => return Err(WaitError::Io { action: "wait for", source: e.into() }),
            }
        }
    }

    /// Makes sure that everything is dead and removed when the supervisor could not.
    fn bury(&mut self) -> Result<Exit, WaitError> {
        let io = |action| move |source| WaitError::Io { action, source };
        self.kill()?;
        if let Some(pidfd) = &*self.shared.init.lock().unwrap_or_else(PoisonError::into_inner) {
            let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(DEATH).unwrap_or(PollTimeout::MAX);
            if poll(&mut fds, timeout).map_err(|e| io("wait for")(e.into()))? == 0 {
                return Err(WaitError::Stuck { seconds: DEATH.as_secs() });
            }
        }
        // It may be alive and broken, not only dead.
        let _ = self.child.kill();
        self.child.wait().map_err(io("wait for"))?;
        self.groups.remove().map_err(io("remove the cgroups of"))?;
        Ok(Exit { kind: ExitKind::InitKilled, usage: Usage::default() })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.exit.is_some() {
            return;
        }
        // Where it has not started yet there is no pidfd: the end of the socket tells init.
        let _ = self.kill();
        let _ = self.shared.control.shutdown(std::net::Shutdown::Write);
        let _ = self.wait();
    }
}
