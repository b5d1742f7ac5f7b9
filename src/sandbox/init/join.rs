//! One more process in a sandbox that runs.
//!
//! The supervisor forks a helper, which is nobody's child soon (so that the supervisor waits for nothing), joins the
//! sandbox's namespaces by PID 1's descriptor and forks the process. The helper stays outside the pid namespace: what
//! runs inside can neither see nor trace it. The process enters the cgroups, takes its directory inside the root by
//! descriptor, becomes root of the user namespace, gives up every power and loads the filter before it is
//! executed; it inherits no descriptor but its three. When PID 1 ends, the kernel kills it with all others; when
//! whoever asked for it is gone, the helper does.

use super::exec::{self, Program, Streams};
use super::{pid1, terminal};
use crate::caps;
use crate::cgroup::{self, Door};
use crate::end::{ExitKind, Usage};
use crate::error::SetupError;
use crate::ids::IdMap;
use crate::proto::{self, Order, Report};
use crate::root;
use crate::seccomp;
use crate::spec::{ExecSpec, Rlimit};
use crate::sys::{self, Ended};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// What joining needs of the sandbox.
pub(super) struct Sandbox<'a> {
    pub pid1: BorrowedFd<'a>,
    pub doors: &'a [Door],
    pub ids: IdMap,
    pub rlimits: &'a [Rlimit],
    /// The owner's socket and PID 1's, which nobody else may hold open.
    pub private: [RawFd; 2],
}

/// Starts it; whatever becomes of it is told over `channel`. Only what cannot be told there is an error.
pub(super) fn start(
    sandbox: &Sandbox<'_>,
    spec: &ExecSpec,
    stdio: [OwnedFd; 3],
    channel: OwnedFd,
) -> Result<(), Errno> {
    match sys::fork()? {
        Some(child) => {
            drop((stdio, channel));
            // It only forks the helper.
            sys::reap(child, true);
            Ok(())
        }
        None => {
            match sys::fork() {
                Ok(None) => {}
                Ok(Some(_)) => sys::exit_now(0),
                Err(e) => {
                    tell(&channel, &failed("fork a helper", e));
                    sys::exit_now(1)
                }
            }
            for fd in sandbox.private {
                let _ = nix::unistd::close(fd);
            }
            help(sandbox, spec, stdio, &channel)
        }
    }
}

fn step(action: &'static str) -> impl FnOnce(Errno) -> SetupError {
    move |errno| SetupError::Step { action: action.into(), errno: errno.into() }
}

fn failed(action: &'static str, errno: Errno) -> Report {
    Report::Failed(step(action)(errno))
}

fn tell(channel: &OwnedFd, report: &Report) {
    let _ = proto::send(channel.as_fd(), report, &[]);
}

/// The life of the helper.
fn help(sandbox: &Sandbox<'_>, spec: &ExecSpec, stdio: [OwnedFd; 3], channel: &OwnedFd) -> ! {
    match begin(sandbox, spec, stdio, channel) {
        Ok(process) => {
            let kind = watch(channel, process);
            tell(channel, &Report::Ended { kind, usage: Usage::default() });
            sys::exit_now(0)
        }
        Err(error) => {
            tell(channel, &Report::Failed(error));
            sys::exit_now(1)
        }
    }
}

fn begin(
    sandbox: &Sandbox<'_>,
    spec: &ExecSpec,
    stdio: [OwnedFd; 3],
    channel: &OwnedFd,
) -> Result<i32, SetupError> {
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWCGROUP;
    pid1::go_first();
    pid1::hide()?;
    setns(sandbox.pid1, namespaces).map_err(step("join the sandbox's namespaces"))?;
    umask(Mode::from_bits_truncate(0o022));
    let terminal = match spec.terminal {
        Some(window) => Some(terminal::open_inside(window, &spec.user, sandbox.ids)?),
        None => {
            pid1::give_stdio(&spec.user, sandbox.ids, &stdio);
            None
        }
    };
    let (streams, owner) = Streams::of(stdio, terminal);
    let filter = seccomp::program();
    let program = Program::new(&spec.argv, &spec.env);
    let (result, report) =
        std::io::pipe().map_err(|e| SetupError::Step { action: "make a pipe".into(), errno: e.into() })?;
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&set), None).map_err(step("block signals"))?;
    let Some(process) = sys::fork().map_err(step("fork the process"))? else {
        match enter(sandbox, spec, &filter) {
            Ok(()) => exec::become_program(&spec.user, spec.caps, &spec.work, &program, streams, report),
            Err(error) => exec::report(&error, report),
        }
    };
    drop((streams, report));
    // It kills and reaps the process, nothing else.
    caps::keep_kill_only().map_err(step("drop the helper's capabilities"))?;
    pid1::hear_of_exec(result, &spec.argv)?;
    let fds: Vec<RawFd> = owner.iter().map(AsRawFd::as_raw_fd).collect();
    let started = Report::Started { pid: process, warnings: Vec::new() };
    let _ = proto::send(channel.as_fd(), &started, &fds);
    Ok(process)
}

/// The process itself, in all namespaces but the user's.
fn enter(
    sandbox: &Sandbox<'_>,
    spec: &ExecSpec,
    filter: &[nix::libc::sock_filter],
) -> Result<(), SetupError> {
    cgroup::enter(sandbox.doors)?;
    root::change_directory(&spec.cwd)?;
    pid1::limit_resources(sandbox.rlimits)?;
    pid1::become_inner_root(sandbox.pid1, true)?;
    pid1::give_up_powers(spec.caps, filter)
}

/// Reaps and obeys until the process is dead.
fn watch(channel: &OwnedFd, process: i32) -> ExitKind {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    let kill = || {
        let _ = sys::kill(process, nix::libc::SIGKILL);
    };
    let Ok(children) = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK) else {
        kill();
        return ExitKind::InitKilled;
    };
    let mut wanted = true;
    loop {
        match sys::reap(process, false) {
            Some((_, Ended::Code(code))) => return ExitKind::Code(code),
            Some((_, Ended::Signal(signal))) => return ExitKind::Signal(signal),
            None => {}
        }
        let mut fds = vec![PollFd::new(children.as_fd(), PollFlags::POLLIN)];
        if wanted {
            fds.push(PollFd::new(channel.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => kill(),
        }
        let ordered = fds.get(1).is_some_and(|f| f.any().unwrap_or(false));
        let _ = children.read_signal();
        if ordered {
            match proto::receive::<Order>(channel.as_fd()) {
                Ok(Some((Order::Signal(signal), _))) => {
                    let _ = sys::kill(process, signal);
                }
                Ok(Some(_)) => {}
                // Whoever asked for it is gone.
                Ok(None) | Err(_) => {
                    wanted = false;
                    kill();
                }
            }
        }
    }
}
