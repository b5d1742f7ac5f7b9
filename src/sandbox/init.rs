//! The supervisor: what the re-executed binary is outside the sandbox.
//!
//! It has one thread and holds no secret. Its control socket's end means that the owner is dead: it then
//! kills PID 1, and with it the pid namespace. It answers the owner only when every process of the sandbox
//! is dead, its cgroups are removed and the upper directory holds nothing but the process's work.

mod exec;
mod foreign;
mod gate;
mod guard;
mod interpreter;
mod join;
mod pid1;
pub(crate) mod terminal;

pub(crate) use interpreter::interpreter;

use self::guard::Guard;
use crate::cgroup::{Door, Group};
use crate::end::{ExitKind, Usage};
use crate::error::SetupError;
use crate::ids::Namespaces;
use crate::proto::{self, Inner, Order, Report, Request, Stub};
use crate::root;
use crate::spec::{ExecSpec, Network, RootFs};
use crate::sys::{self, Cloned};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// The whole life of a re-executed init. A binary that has a [`crate::Launcher`] calls this before anything
/// else (argument parsing, logging, threads) when its first argument is [`crate::INIT_ARGUMENT`].
pub fn init_main() -> ! {
    // Whatever else the owner had open without close-on-exec.
    let code = match sys::close_from(3).and_then(|()| sys::take_control_socket()) {
        Ok(control) => supervise(&control),
        Err(_) => 1,
    };
    sys::exit_now(code)
}

/// What the supervisor knows of the sandbox it keeps.
struct Kept {
    pid: i32,
    pidfd: OwnedFd,
    life: UnixStream,
    stubs: Vec<Stub>,
    failure: Option<SetupError>,
    started: bool,
    gate: Option<gate::Gate>,
    used: Option<Usage>,
    end: Option<ExitKind>,
}

fn supervise(control: &OwnedFd) -> i32 {
    // Descriptor 0 was the socket; /dev/null, which 1 is, takes its place. The terminal's signals are
    // for the owner.
    let _ = sys::place_fd(std::io::stdout().as_fd(), 0);
    let _ = nix::unistd::setsid();
    let (request, mut fds) = match proto::receive::<Request>(control.as_fd()) {
        Ok(Some(received)) => received,
        Ok(None) => return 1,
        Err(e) => return fail(control, SetupError::Protocol { detail: e.to_string() }),
    };
    // The lock of the id range, where there is one, and what else the owner wants held: until this process ends, after
    // every other.
    let mut kept = fds.split_off(fds.len().min(3)).into_iter();
    let gate = if request.gated { kept.next() } else { None };
    let _kept: Vec<OwnedFd> = kept.collect();
    // Nobody's directory is held busy.
    let _ = nix::unistd::chdir("/");
    let Ok(stdio) = <[OwnedFd; 3]>::try_from(fds) else {
        return fail(control, SetupError::Protocol { detail: "a spec without its three descriptors".into() });
    };
    let group = match request.cgroups.create() {
        Ok(group) => group,
        Err(e) => return fail(control, e),
    };
    match group.doors().and_then(|doors| start(control, &request, stdio, &doors)) {
        Ok(mut kept) => {
            kept.gate = gate.map(gate::Gate::new);
            let mut guard =
                Guard::new(&request.spec, &group, kept.pid, [control.as_raw_fd(), kept.life.as_raw_fd()]);
            kept.keep(control, &group, &request, &mut guard);
            finish(control, kept, guard, &group, &request)
        }
        Err(e) => {
            // Nobody is in it yet.
            let _ = group.remove();
            fail(control, e)
        }
    }
}

fn start(
    control: &OwnedFd,
    request: &Request,
    stdio: [OwnedFd; 3],
    doors: &[Door],
) -> Result<Kept, SetupError> {
    let step = |action: &str| {
        let action = action.to_owned();
        move |errno: Errno| SetupError::Step { action, errno: errno.into() }
    };
    let join = match &request.spec.network {
        Network::None | Network::Host => None,
        Network::Join(path) => {
            let fd = open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(|e| SetupError::JoinNetwork { path: path.clone(), errno: e.into() })?;
            Some(fd)
        }
    };
    let mut spaces = Namespaces::make(
        request.ids,
        request.outer.as_ref(),
        request.spec.network == Network::None && request.spec.runtime.is_none(),
    )?;
    spaces.net = spaces.net.or(join);
    let (life, theirs) = UnixStream::pair()
        .map_err(|e| SetupError::Step { action: "make PID 1's socket".into(), errno: e.into() })?;
    // These belong to the machine's user namespace: nobody inside has power over them.
    // Whoever keeps a container by its pid waits for it: its parent is ours, and then who adopts orphans.
    let sibling = if request.gated { libc::CLONE_PARENT } else { 0 };
    let namespaces = sibling | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS;
    match sys::clone_into(namespaces).map_err(step("make the namespaces"))? {
        Cloned::Child => {
            drop(life);
            if let Some(runtime) = &request.spec.runtime {
                foreign::run(control.as_raw_fd(), theirs, request, runtime, foreign::Gifts { spaces, stdio })
            }
            pid1::run(control.as_raw_fd(), theirs, request, pid1::Gifts { spaces, stdio, doors })
        }
        Cloned::Parent { pid, pidfd } => {
            let stubs = Vec::new();
            Ok(Kept {
                pid,
                pidfd,
                life,
                stubs,
                failure: None,
                started: false,
                gate: None,
                used: None,
                end: None,
            })
        }
    }
}

fn fail(control: &OwnedFd, error: SetupError) -> i32 {
    let _ = proto::send(control.as_fd(), &Report::Failed(error), &[]);
    1
}

impl Kept {
    fn kill(&self) {
        // Only fails when it is dead already.
        let _ = sys::pidfd_signal(self.pidfd.as_fd(), libc::SIGKILL);
    }

    /// Relays until PID 1 is dead.
    fn keep(&mut self, control: &OwnedFd, group: &Group, request: &Request, guard: &mut Guard<'_>) {
        let mut owner_lives = true;
        let mut inner_talks = true;
        let mut released = false;
        loop {
            // A descriptor that is out of the game is asked for nothing and only wakes us if it is polled.
            let mut fds = vec![PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            if inner_talks {
                fds.push(PollFd::new(self.life.as_fd(), PollFlags::POLLIN));
            }
            if owner_lives {
                fds.push(PollFd::new(control.as_fd(), PollFlags::POLLIN));
            }
            let at_gate = self.gate.as_ref().map(|gate| {
                fds.push(PollFd::new(gate.as_fd(), PollFlags::POLLIN));
                fds.len() - 1
            });
            let own = fds.len();
            fds.extend(guard.fds());
            match poll(&mut fds, guard.patience()) {
                Ok(_) | Err(Errno::EINTR) => {}
                // Cannot be waited for, so it cannot be kept.
                Err(_) => {
                    self.kill();
                    break;
                }
            }
            let ready = |i: usize| fds[..own].get(i).is_some_and(|f| f.any().unwrap_or(false));
            let dead = ready(0);
            let from_inner = inner_talks && ready(1);
            let from_owner = owner_lives && ready(if inner_talks { 2 } else { 1 });
            let somebody = at_gate.is_some_and(ready);
            drop(fds);
            if from_inner {
                inner_talks = self.hear(control);
            }
            if dead {
                break;
            }
            if somebody && !dead {
                self.answer();
            }
            if self.started && guard.look() {
                self.kill();
            }
            if from_owner {
                match proto::receive::<Order>(control.as_fd()) {
                    Ok(Some((Order::Exec(spec), fds))) => self.exec(control, group, request, &spec, fds),
                    Ok(Some((Order::Release, _))) => released = self.gate.is_some(),
                    Ok(Some((order, _))) => {
                        let _ = proto::send(self.life.as_fd(), &order, &[]);
                    }
                    // The owner is dead or lets go.
                    Ok(None) | Err(_) => {
                        owner_lives = false;
                        if !released {
                            self.kill();
                        }
                    }
                }
            }
        }
        while inner_talks {
            inner_talks = self.hear(control);
        }
        self.drain();
    }

    /// Obeys somebody who came to the gate.
    fn answer(&mut self) {
        let started = self.started;
        let Some(gate) = &mut self.gate else { return };
        match gate.ask(started) {
            Some(Order::Kill) => self.kill(),
            Some(order) => {
                let _ = proto::send(self.life.as_fd(), &order, &[]);
            }
            None => {}
        }
    }

    /// Starts one more process. What becomes of it is its own affair, and of the socket that came along.
    fn exec(
        &self,
        control: &OwnedFd,
        group: &Group,
        request: &Request,
        spec: &ExecSpec,
        mut fds: Vec<OwnedFd>,
    ) {
        // The last one is the socket; without it nobody could be told anything.
        let Some(channel) = fds.pop() else { return };
        let refuse = |error: SetupError, channel: &OwnedFd| {
            let _ = proto::send(channel.as_fd(), &Report::Failed(error), &[]);
        };
        if let Some(runtime) = request.spec.runtime.clone() {
            let (action, detail) = ("start a process in".into(), "only our own sandbox can do that".into());
            return refuse(SetupError::Runtime { runtime, action, detail }, &channel);
        }
        let Ok(stdio) = <[OwnedFd; 3]>::try_from(fds) else {
            let detail = "a process without its three descriptors".into();
            return refuse(SetupError::Protocol { detail }, &channel);
        };
        let doors = match group.doors() {
            Ok(doors) => doors,
            Err(error) => return refuse(error, &channel),
        };
        let sandbox = join::Sandbox {
            pid1: self.pidfd.as_fd(),
            doors: &doors,
            ids: request.ids,
            rlimits: &pid1::resource_limits(request),
            private: [control.as_raw_fd(), self.life.as_raw_fd()],
        };
        // Nothing can be forked: the end of the socket tells.
        let _ = join::start(&sandbox, spec, stdio, channel);
    }

    /// Takes one message of PID 1; false at its end.
    fn hear(&mut self, control: &OwnedFd) -> bool {
        match proto::receive::<Inner>(self.life.as_fd()) {
            Ok(Some((message, fds))) => {
                match message {
                    Inner::Stubs(stubs) => self.stubs = stubs,
                    Inner::Failed(error) => {
                        if let Some(gate) = &mut self.gate {
                            gate.tell(&Report::Failed(error.clone()));
                        }
                        self.failure = Some(error);
                    }
                    Inner::Ready { warnings } => {
                        let report = Report::Started { pid: self.pid, warnings };
                        let _ = proto::send(control.as_fd(), &report, &[self.pidfd.as_raw_fd()]);
                    }
                    Inner::Started { .. } if self.gate.is_some() => {
                        self.started = true;
                        if let Some(gate) = &mut self.gate {
                            gate.tell(&Report::State { started: true });
                        }
                    }
                    Inner::Used(usage) => self.used = Some(usage),
                    Inner::Ended(kind) => self.end = Some(kind),
                    Inner::Started { warnings } => {
                        self.started = true;
                        let report = Report::Started { pid: self.pid, warnings };
                        let fds: Vec<_> =
                            std::iter::once(&self.pidfd).chain(&fds).map(AsRawFd::as_raw_fd).collect();
                        let _ = proto::send(control.as_fd(), &report, &fds);
                    }
                }
                true
            }
            Ok(None) | Err(_) => false,
        }
    }

    /// Reaps PID 1, which ends when all processes of its namespace are dead.
    fn drain(&self) {
        sys::reap(self.pid, true);
    }
}

fn finish(control: &OwnedFd, kept: Kept, guard: Guard<'_>, group: &Group, request: &Request) -> i32 {
    let mut usage = kept.used.clone().unwrap_or_else(|| group.usage());
    usage.cpu = sys::children_cpu();
    let removal = group.remove();
    if let RootFs::Overlay { upper, .. } = &request.spec.root {
        root::remove_stubs(upper, &kept.stubs);
    }
    let exceeded = guard.finish();
    let report = if kept.started {
        // Without a word of PID 1 it was killed, and the main process with it.
        let kind = kept.end.unwrap_or(ExitKind::Signal(libc::SIGKILL));
        let out_of_memory = usage.oom_kills > 0 && kind != ExitKind::Code(0);
        let kind = if out_of_memory { ExitKind::OutOfMemory } else { kind };
        // What it exceeded it exceeded, however it ended meanwhile.
        Report::Ended { kind: exceeded.unwrap_or(kind), usage }
    } else {
        Report::Failed(kept.failure.unwrap_or_else(|| SetupError::Step {
            action: if usage.oom_kills > 0 {
                "start within the memory limit: init itself was killed for want of memory".into()
            } else {
                "start PID 1, which was killed".into()
            },
            errno: Errno::ECHILD.into(),
        }))
    };
    let told = proto::send(control.as_fd(), &report, &[]);
    i32::from(removal.is_err() || told.is_err())
}
