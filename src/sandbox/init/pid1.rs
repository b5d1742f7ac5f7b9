//! PID 1 of the sandbox: builds it, gives up every power, forks the main process and reaps.
//!
//! It shares nothing with the process but the kernel: it is not dumpable, so the process can neither trace
//! it nor read its memory or descriptors. When it ends, the kernel kills all others of the namespace.

use super::exec::{self, Streams};
use super::terminal::Terminal;
use crate::caps;
use crate::cgroup::{self, Door};
use crate::end::ExitKind;
use crate::error::{ExecError, SetupError};
use crate::ids::{IdMap, Namespaces};
use crate::proto::{self, Inner, Order, Request};
use crate::root;
use crate::seccomp;
use crate::spec::{CapProfile, Network, Resource, Rlimit, User};
use crate::sys::{self, Ended};
use keelway_model::limits::DEFAULT_PIDS;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource as Kind, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, umask};
use nix::unistd::{Gid, Uid, fchown, setgroups, setresgid, setresuid};
use std::io::{PipeReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// Open files where nothing else is said.
const OPEN_FILES: Rlimit = Rlimit { resource: Resource::OpenFiles, soft: 1024, hard: 524_288 };
const NO_CORE: Rlimit = Rlimit { resource: Resource::Core, soft: 0, hard: 0 };
/// Most orphans reaped before other work is looked at again.
const REAP_BATCH: usize = 1024;

/// Descriptors that the supervisor opened for it.
pub(super) struct Gifts<'a> {
    /// The namespaces to join.
    pub spaces: Namespaces,
    pub stdio: [OwnedFd; 3],
    pub doors: &'a [Door],
}

/// The life of PID 1.
pub(super) fn run(control: RawFd, life: UnixStream, request: &Request, gifts: Gifts<'_>) -> ! {
    let Gifts { spaces, stdio, doors } = gifts;
    // Of a created one the parent is not the supervisor; the end of the socket tells.
    if !request.gated {
        die_with_the_supervisor();
    }
    go_first();
    // Our copy of its own socket would hide its death from the owner.
    let _ = nix::unistd::close(control);
    let ready = cgroup::enter(doors).and_then(|()| set_up(&life, request, &spaces, &stdio));
    match ready.and_then(|ready| gate(&life, request, ready)).and_then(|ready| start(request, stdio, ready)) {
        Ok(Main { pid: main, warnings, terminal }) => {
            let fds: Vec<RawFd> = terminal.iter().map(AsRawFd::as_raw_fd).collect();
            let _ = proto::send(life.as_fd(), &Inner::Started { warnings }, &fds);
            // The owner is the only one who has it: with the owner the terminal ends.
            drop(terminal);
            let kind = watch(&life, main, |signal| _ = sys::kill(main, signal));
            let code = match kind {
                _ if !request.gated => 0,
                ExitKind::Code(code) => code,
                ExitKind::Signal(signal) => 128 + signal,
                _ => 1,
            };
            let _ = proto::send(life.as_fd(), &Inner::Ended(kind), &[]);
            sys::exit_now(code)
        }
        Err(error) => {
            let _ = proto::send(life.as_fd(), &Inner::Failed(error), &[]);
            sys::exit_now(1)
        }
    }
}

/// What was set up.
struct Ready {
    warnings: Vec<String>,
    terminal: Option<Terminal>,
}

/// The main process, which runs.
struct Main {
    pid: i32,
    warnings: Vec<String>,
    /// The owner's side.
    terminal: Option<OwnedFd>,
}

/// Waits until it is started, where that is not at once.
fn gate(life: &UnixStream, request: &Request, ready: Ready) -> Result<Ready, SetupError> {
    if !request.gated {
        return Ok(ready);
    }
    let warnings = ready.warnings.clone();
    let _ = proto::send(life.as_fd(), &Inner::Ready { warnings }, &[]);
    loop {
        match proto::receive::<Order>(life.as_fd()) {
            Ok(Some((Order::Start, _))) => return Ok(ready),
            Ok(Some(_)) => {}
            // The supervisor is dead.
            Ok(None) | Err(_) => sys::exit_now(1),
        }
    }
}

/// The supervisor has one thread, so its death is what this fires for; whether it died before is told by the end of
/// the socket. A change of user takes it away.
pub(super) fn die_with_the_supervisor() {
    let _ = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0);
}

fn step(action: &'static str) -> impl FnOnce(Errno) -> SetupError {
    move |errno| SetupError::Step { action: action.into(), errno: errno.into() }
}

fn set_up(
    life: &UnixStream,
    request: &Request,
    spaces: &Namespaces,
    stdio: &[OwnedFd; 3],
) -> Result<Ready, SetupError> {
    let spec = &request.spec;
    hide()?;
    nix::unistd::sethostname(&spec.hostname).map_err(step("set the host name"))?;
    setns(&spaces.ipc, CloneFlags::CLONE_NEWIPC).map_err(step("join the ipc namespace"))?;
    if let Some(net) = &spaces.net {
        setns(net, CloneFlags::CLONE_NEWNET).map_err(|e| match &spec.network {
            Network::Join(path) => SetupError::JoinNetwork { path: path.clone(), errno: e.into() },
            Network::None | Network::Host => step("join the network namespace")(e),
        })?;
    }
    if spec.network == Network::None {
        sys::loopback_up().map_err(step("bring the loopback up"))?;
    }
    // The modes of what is made in the root are given, not masked.
    umask(Mode::empty());
    let mut stubs = Vec::new();
    let how = root::How {
        legacy: request.legacy_overlay,
        ids: request.ids,
        user: spaces.user.as_fd(),
        rootless: request.outer.is_some(),
        warnings: std::cell::RefCell::default(),
    };
    let entered = root::enter(spec, &how, &mut stubs);
    if !stubs.is_empty() {
        let _ = proto::send(life.as_fd(), &Inner::Stubs(stubs), &[]);
    }
    let terminal = entered?;
    umask(Mode::from_bits_truncate(0o022));
    root::change_directory(&spec.cwd)?;
    give_stdio(&spec.user, request.ids, stdio);
    let mut warnings = how.warnings.take();
    warnings.extend(limit_resources(&resource_limits(request))?);
    warnings.extend(request.cgroups.warnings());
    // It is in its groups: the namespace begins there.
    unshare(CloneFlags::CLONE_NEWCGROUP).map_err(step("make the cgroup namespace"))?;
    become_inner_root(spaces.user.as_fd(), !request.gated)?;
    Ok(Ready { warnings, terminal })
}

/// When the machine runs out of memory, what runs in a sandbox is ended before what looks after it: the kernel adds this
/// many thousandths of the memory to its size. Without the file it is as before.
pub(super) fn go_first() {
    const MORE: i32 = 100;
    const MOST: i32 = 1000;
    let path = "/proc/self/oom_score_adj";
    let now = std::fs::read_to_string(path).ok().and_then(|t| t.trim().parse::<i32>().ok());
    if let Some(now) = now {
        let _ = std::fs::write(path, (now.max(0) + MORE).min(MOST).to_string());
    }
}

/// Nothing of ours can be seen by whoever shares our user or our session.
pub(super) fn hide() -> Result<(), SetupError> {
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).map_err(step("hide init's memory"))?;
    match sys::new_session_keyring() {
        // A kernel without keyrings has none to hide.
        Ok(()) | Err(Errno::ENOSYS) => Ok(()),
        Err(e) => Err(step("make a session keyring")(e)),
    }
}

/// Into the user namespace (a descriptor of it, or of a process in it), from which no way leads back: root there, a
/// nobody outside.
pub(super) fn become_inner_root(user: BorrowedFd<'_>, with_parent: bool) -> Result<(), SetupError> {
    setns(user, CloneFlags::CLONE_NEWUSER).map_err(step("enter the user namespace"))?;
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    let without_groups = match setgroups(&[]) {
        // See exec: a user who may map only its own group.
        Err(Errno::EPERM) => Ok(()),
        other => other,
    };
    without_groups
        .and_then(|()| setresgid(gid, gid, gid))
        .and_then(|()| setresuid(uid, uid, uid))
        .map_err(step("become root of the user namespace"))?;
    // The change of user undid both.
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).map_err(step("hide init's memory"))?;
    if with_parent {
        die_with_the_supervisor();
    }
    Ok(())
}

/// The process may open its own pipes again through /dev/stdout.
pub(super) fn give_stdio(user: &User, ids: IdMap, stdio: &[OwnedFd; 3]) {
    for fd in stdio {
        let is_pipe =
            fstat(fd).is_ok_and(|s| SFlag::from_bits_truncate(s.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO);
        if is_pipe {
            let _ = fchown(fd, Some(Uid::from_raw(ids.base + user.uid)), None);
            let _ = fchmod(fd, Mode::from_bits_truncate(0o600));
        }
    }
}

/// What every process of a sandbox gets, those that join it later too.
pub(super) fn resource_limits(request: &Request) -> Vec<Rlimit> {
    let mut all = request.spec.resource_limits();
    if request.cgroups.layout.pids.is_none() && !all.iter().any(|l| l.resource == Resource::Processes) {
        // What a user without cgroups can do: so many processes of each of the sandbox's users.
        let most = u64::from(request.spec.limits.pids.unwrap_or(DEFAULT_PIDS)) + 1;
        all.push(Rlimit { resource: Resource::Processes, soft: most, hard: most });
    }
    all
}

/// The usual limits, and these over them.
pub(super) fn limit_resources(rlimits: &[Rlimit]) -> Result<Vec<String>, SetupError> {
    let mut warnings = Vec::new();
    for default in [NO_CORE, OPEN_FILES] {
        if !rlimits.iter().any(|r| r.resource == default.resource) {
            limit_resource(default)?;
        }
    }
    for asked in rlimits {
        warnings.extend(limit_resource(*asked)?);
    }
    Ok(warnings)
}

/// Sets it, or what comes nearest; says so then.
fn limit_resource(limit: Rlimit) -> Result<Option<String>, SetupError> {
    let kind = match limit.resource {
        Resource::Core => Kind::RLIMIT_CORE,
        Resource::OpenFiles => Kind::RLIMIT_NOFILE,
        Resource::FileSize => Kind::RLIMIT_FSIZE,
        Resource::Stack => Kind::RLIMIT_STACK,
        Resource::LockedMemory => Kind::RLIMIT_MEMLOCK,
        Resource::Processes => Kind::RLIMIT_NPROC,
    };
    let soft = limit.soft.min(limit.hard);
    match setrlimit(kind, soft, limit.hard) {
        Ok(()) => Ok(None),
        Err(Errno::EPERM) => {
            let (_, hard) = getrlimit(kind).map_err(step("read a resource limit"))?;
            setrlimit(kind, soft.min(hard), hard).map_err(step("set a resource limit"))?;
            Ok(Some(format!(
                "the limit {:?} cannot be raised to {} on this machine: it is {hard}",
                limit.resource, limit.hard
            )))
        }
        Err(e) => Err(step("set a resource limit")(e)),
    }
}

/// Forks the main process and returns when it was executed.
fn start(request: &Request, stdio: [OwnedFd; 3], ready: Ready) -> Result<Main, SetupError> {
    let spec = &request.spec;
    let filter = seccomp::program();
    // What exec needs is made before: the child only makes system calls.
    let program = exec::Program::new(&spec.argv, &spec.env);
    let (result, report) =
        std::io::pipe().map_err(|e| SetupError::Step { action: "make a pipe".into(), errno: e.into() })?;
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&set), None).map_err(step("block signals"))?;
    if spec.no_new_privileges {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map_err(step("forbid new privileges"))?;
    }
    give_up_powers(spec.caps, &filter)?;
    let (streams, terminal) = Streams::of(stdio, ready.terminal);
    let Some(main) = sys::fork().map_err(step("fork the main process"))? else {
        exec::become_program(&spec.user, spec.caps, &spec.work, &program, streams, report)
    };
    drop((streams, report));
    caps::keep_kill_only().map_err(step("drop init's capabilities"))?;
    hear_of_exec(result, &spec.argv)?;
    Ok(Main { pid: main, warnings: ready.warnings, terminal })
}

/// All but the capabilities of the profile, and all system calls but the usual ones.
pub(super) fn give_up_powers(profile: CapProfile, filter: &[libc::sock_filter]) -> Result<(), SetupError> {
    if profile.new_privileges() {
        // Without no_new_privs only a namespace's root may load a filter: before it drops what it need not have.
        sys::seccomp(filter).map_err(step("load the seccomp filter"))?;
        return caps::restrict(profile).map_err(step("drop capabilities"));
    }
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map_err(step("forbid new privileges"))?;
    caps::restrict(profile).map_err(step("drop capabilities"))?;
    sys::seccomp(filter).map_err(step("load the seccomp filter"))
}

/// Waits until the child was executed, or says why it was not.
pub(super) fn hear_of_exec(mut result: PipeReader, argv: &[String]) -> Result<(), SetupError> {
    let mut answer = Vec::new();
    // The pipe ends with exec, or with the child.
    result
        .read_to_end(&mut answer)
        .map_err(|e| SetupError::Step { action: "hear from the process".into(), errno: e.into() })?;
    if answer.is_empty() {
        return Ok(());
    }
    Err(serde_json::from_slice::<SetupError>(&answer).unwrap_or_else(|_| {
        SetupError::Exec(ExecError::Other {
            program: argv.first().cloned().unwrap_or_default(),
            errno: Errno::EPROTO.into(),
        })
    }))
}

/// Reaps, and passes the owner's signals on by `signal`, until the main process is dead. SIGCHLD is blocked.
pub(super) fn watch(life: &UnixStream, main: i32, mut signal: impl FnMut(i32)) -> ExitKind {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    let Ok(children) = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK) else {
        sys::exit_now(1)
    };
    loop {
        // With more to reap, the wait below only looks.
        let mut patience = PollTimeout::ZERO;
        for _ in 0..REAP_BATCH {
            match sys::reap(-1, false) {
                Some((pid, Ended::Code(code))) if pid == main => return ExitKind::Code(code),
                Some((pid, Ended::Signal(signal))) if pid == main => return ExitKind::Signal(signal),
                Some(_) => {}
                None => {
                    patience = PollTimeout::NONE;
                    break;
                }
            }
        }
        let mut fds =
            [PollFd::new(children.as_fd(), PollFlags::POLLIN), PollFd::new(life.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, patience) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => sys::exit_now(1),
        }
        let ordered = fds[1].any().unwrap_or(false);
        // Whatever it says, the next round reaps.
        let _ = children.read_signal();
        if ordered {
            match proto::receive::<Order>(life.as_fd()) {
                Ok(Some((Order::Signal(number), _))) => signal(number),
                // Not for us.
                Ok(Some(_)) => {}
                // The supervisor is dead.
                Ok(None) | Err(_) => sys::exit_now(1),
            }
        }
    }
}
