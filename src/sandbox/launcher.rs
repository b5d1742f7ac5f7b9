//! The owner's side: starts init from a sealed copy of the own binary and talks to it.
//!
//! Invariants: the owner never forks. It spawns (posix_spawn) a memfd that holds its own binary, sealed
//! against any change (CVE-2019-5736), with the control socket as descriptor 0; everything else happens in
//! that process. The socket's end is how init learns that its owner died.

use crate::binary;
use crate::cgroup::{Layout, ParentName, Plan, disk_of, remove_everywhere, remove_parents};
use crate::error::{SetupError, SpawnError};
use crate::ids::{self, IDS, IdMap, Outer, Range};
use crate::proto::{self, Report, Request};
use crate::root::lacks_append;
use crate::running::Running;
use crate::spec::{RootFs, Spec};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio as ProcessStdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// First argument of a re-executed init; see [`crate::init_main`].
pub const INIT_ARGUMENT: &str = "__init";

/// How the root is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OverlayApi {
    /// The new mount interface where the kernel can do it, else mount(2).
    #[default]
    Auto,
    /// mount(2) by descriptor paths, as kernels before 6.8 need it; the same result.
    Legacy,
}

/// Whose ids sandboxes get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ids {
    /// Each a range that no other living sandbox of the machine has; where a file system cannot translate ids, the
    /// machine's own, with a warning. The directory holds a lock for each range.
    Own {
        /// The same for all owners of the machine; `None` is `/run/keelway/ids`.
        claims: Option<PathBuf>,
    },
    /// The caller's own, in a user namespace all the same. An owner that is not in the machine's user namespace has
    /// no others to give.
    Same,
}

/// What a [`Launcher`] needs to know once.
#[derive(Debug, Clone)]
pub struct LauncherConfig {
    /// The launcher's own cgroup path, for example `keelway/RUN`; no other living launcher may have it.
    pub cgroup_parent: ParentName,
    /// The binary that init is, whose `main` calls [`crate::init_main`] first; `None` is this one.
    pub init: Option<PathBuf>,
    /// The machine's cgroups; `None` looks.
    pub layout: Option<Layout>,
    /// How to mount.
    pub overlay: OverlayApi,
    /// User ids.
    pub ids: Ids,
}

impl LauncherConfig {
    /// The usual one.
    pub fn new(cgroup_parent: ParentName) -> Self {
        Self {
            cgroup_parent,
            init: None,
            layout: None,
            overlay: OverlayApi::Auto,
            ids: Ids::Own { claims: None },
        }
    }
}

/// Where the process reads and writes. Every descriptor is handed over as it is, so output of any size
/// flows without passing the owner.
#[derive(Debug)]
pub struct Stdio {
    /// Standard input.
    pub stdin: OwnedFd,
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
}

impl Stdio {
    /// Empty input, and both outputs into `output`.
    pub fn output_to(output: OwnedFd) -> io::Result<Self> {
        Ok(Self { stdin: null()?, stderr: output.try_clone()?, stdout: output })
    }
    /// Empty input, no output.
    pub fn null() -> io::Result<Self> {
        Ok(Self { stdin: null()?, stdout: null()?, stderr: null()? })
    }
}

/// How long building a sandbox may take; milliseconds unless the disk hangs.
const START: Duration = Duration::from_secs(120);

pub(crate) fn readable_within(fd: BorrowedFd<'_>, time: Duration) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    let end = Instant::now() + time;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(ready) => return ready > 0,
            Err(nix::errno::Errno::EINTR) => {}
            // The read that follows says why.
            Err(_) => return true,
        }
    }
}

fn null() -> io::Result<OwnedFd> {
    Ok(std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?.into())
}

/// Starts sandboxes; one a process is enough. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Launcher(Arc<Inner>);

/// What the supervisor gets beside the three descriptors.
#[derive(Clone, Copy)]
struct Held<'a> {
    gate: Option<&'a OwnedFd>,
    locks: &'a [BorrowedFd<'a>],
}

#[derive(Debug)]
struct Inner {
    config: LauncherConfig,
    layout: Layout,
    outer: Option<Outer>,
    binary: OnceLock<OwnedFd>,
    /// Why ids are not translated here, once that was seen.
    same_ids: OnceLock<String>,
    /// Whether the root is mounted by mount(2); asked once, at the first start.
    legacy_overlay: OnceLock<bool>,
    /// Whether another runtime was asked.
    foreign: AtomicBool,
}

impl Launcher {
    /// Looks at the machine; the binary is copied at the first [`Launcher::spawn`], so a run that needs no
    /// process pays nothing.
    pub fn new(config: LauncherConfig) -> Self {
        let layout = config.layout.clone().unwrap_or_else(Layout::detect);
        let outer = Outer::look();
        Self(Arc::new(Inner {
            config,
            layout,
            outer,
            binary: OnceLock::new(),
            same_ids: OnceLock::new(),
            legacy_overlay: OnceLock::new(),
            foreign: AtomicBool::new(false),
        }))
    }

    fn legacy_overlay(&self) -> bool {
        *self.0.legacy_overlay.get_or_init(|| match self.0.config.overlay {
            OverlayApi::Legacy => true,
            OverlayApi::Auto => lacks_append(),
        })
    }

    /// The cgroups found.
    pub fn layout(&self) -> &Layout {
        &self.0.layout
    }

    /// Builds the sandbox and returns before its program is executed, which [`crate::Gate::start`] of whoever is connected
    /// to the listening socket does. It may be let go: see [`Running::release`]. Neither a terminal nor another
    /// runtime is possible.
    pub fn create(
        &self,
        spec: &Spec,
        stdio: Stdio,
        gate: std::os::unix::net::UnixListener,
    ) -> Result<Running, SpawnError> {
        if spec.terminal.is_some() || spec.runtime.is_some() {
            return Err(crate::spec::SpecError::Runtime.into());
        }
        self.begin(spec, stdio, Some(gate.into()), &[])
    }

    /// Builds the sandbox and returns when its program runs (was executed), or why it does not. Blocks for
    /// some milliseconds.
    pub fn spawn(&self, spec: &Spec, stdio: Stdio) -> Result<Running, SpawnError> {
        self.begin(spec, stdio, None, &[])
    }

    /// The same; the descriptors, at most 64, are held open until every process of the sandbox is dead, also when this one
    /// dies sooner: locks of what it writes to.
    pub fn spawn_holding(
        &self,
        spec: &Spec,
        stdio: Stdio,
        held: &[BorrowedFd<'_>],
    ) -> Result<Running, SpawnError> {
        self.begin(spec, stdio, None, held)
    }

    fn begin(
        &self,
        spec: &Spec,
        stdio: Stdio,
        gate: Option<OwnedFd>,
        held: &[BorrowedFd<'_>],
    ) -> Result<Running, SpawnError> {
        if held.len() > proto::MAX_HELD {
            let source = io::Error::other(format!("{} are too many", held.len()));
            return Err(SpawnError::Launch { action: "hold locks for it", source });
        }
        let held = Held { gate: gate.as_ref(), locks: held };
        spec.check()?;
        spec.user.check(self.same().count)?;
        if let Some(runtime) = &spec.runtime {
            if self.0.outer.is_some() {
                let detail =
                    "only root can give it a container: run as root, or leave `isolation` out".to_owned();
                let action = "start".to_owned();
                return Err(SetupError::Runtime { runtime: runtime.clone(), action, detail }.into());
            }
            self.0.foreign.store(true, Ordering::Relaxed);
        }
        if self.0.config.ids == Ids::Same || self.0.outer.is_some() {
            return self.spawn_with(spec, &stdio, held, None, Vec::new());
        }
        if let Some(why) = self.0.same_ids.get() {
            return self.spawn_with(spec, &stdio, held, None, vec![why.clone()]);
        }
        match self.spawn_with(spec, &stdio, held, Some(self.claim()?), Vec::new()) {
            // Nothing ran and nothing was mounted yet.
            Err(SpawnError::Setup(SetupError::IdMap { path, errno })) => {
                let why = format!(
                    "root of this sandbox is the machine's own id 0, without its powers: the file system of {} cannot translate user ids ({errno})",
                    path.display()
                );
                // The next sandbox has the same kind of root.
                let _ = self.0.same_ids.set(why.clone());
                self.spawn_with(spec, &stdio, held, None, vec![why])
            }
            other => other,
        }
    }

    /// The owner's own ids.
    fn same(&self) -> IdMap {
        IdMap { base: 0, count: self.0.outer.as_ref().map_or(IDS, |o| o.count) }
    }

    fn claim(&self) -> Result<Range, SpawnError> {
        let directory = match &self.0.config.ids {
            Ids::Own { claims: Some(directory) } => directory.clone(),
            Ids::Own { claims: None } | Ids::Same => ids::default_directory(),
        };
        ids::claim(&directory).map_err(|source| SpawnError::Launch {
            action: "claim a range of user ids in /run/keelway/ids",
            source,
        })
    }

    fn spawn_with(
        &self,
        spec: &Spec,
        stdio: &Stdio,
        held: Held<'_>,
        range: Option<Range>,
        mut warnings: Vec<String>,
    ) -> Result<Running, SpawnError> {
        let device = match &spec.root {
            _ if !spec.limits.io.is_throttled() => None,
            RootFs::Overlay { upper, .. } => Some(disk_of(upper)?),
            RootFs::Directory { path, .. } => Some(disk_of(path)?),
            RootFs::ReadOnly { lowers } => lowers.last().map(|l| disk_of(l)).transpose()?,
        };
        let plan = Plan {
            device,
            layout: self.0.layout.clone(),
            parent: self.0.config.cgroup_parent.clone(),
            name: spec.cgroup.clone(),
            limits: spec.limits.clone(),
            counted: spec.counted,
            foreign: spec.runtime.is_some(),
        };
        let (control, child) = self.start_init()?;
        // From here on dropping it kills and reaps init.
        let mut running = Running::new(child, control, self.clone(), plan.groups());
        let request = Request {
            spec: spec.clone(),
            cgroups: plan,
            ids: range.as_ref().map_or(self.same(), |r| r.map),
            outer: self.0.outer.clone(),
            legacy_overlay: self.legacy_overlay(),
            gated: held.gate.is_some(),
        };
        let mut fds = vec![stdio.stdin.as_raw_fd(), stdio.stdout.as_raw_fd(), stdio.stderr.as_raw_fd()];
        fds.extend(held.gate.map(AsRawFd::as_raw_fd));
        fds.extend(range.as_ref().map(|r| r.lock.as_fd().as_raw_fd()));
        fds.extend(held.locks.iter().map(AsRawFd::as_raw_fd));
        let sent = proto::send(running.control(), &request, &fds);
        // The supervisor has a copy and holds the range from here on.
        drop(range);
        if let Err(source) = sent {
            return Err(SpawnError::Launch { action: "send it the spec", source });
        }
        if !readable_within(running.control(), START) {
            let detail = format!("it is not ready after {} s and was killed", START.as_secs());
            running.abandon();
            return Err(SpawnError::InitLost { detail });
        }
        match proto::receive::<Report>(running.control()) {
            Ok(Some((Report::Started { pid, warnings: more }, fds)))
                if fds.len() == 1 + usize::from(spec.terminal.is_some()) =>
            {
                warnings.extend(more);
                running.started(pid, fds, warnings);
                Ok(running)
            }
            Ok(Some((Report::Failed(error), _))) => {
                running.failed();
                Err(SpawnError::Setup(error))
            }
            Ok(Some(_)) => Err(SetupError::Protocol { detail: "an end before a start".into() }.into()),
            Ok(None) => Err(SpawnError::InitLost { detail: running.post_mortem() }),
            Err(e) => Err(SpawnError::InitLost { detail: e.to_string() }),
        }
    }

    fn start_init(&self) -> Result<(UnixStream, Child), SpawnError> {
        let launch = |action| move |source| SpawnError::Launch { action, source };
        let binary = self.binary().map_err(launch("copy this program into memory"))?;
        let (ours, theirs) = UnixStream::pair().map_err(launch("make its control socket"))?;
        let mut command = Command::new(format!("/proc/self/fd/{}", binary.as_raw_fd()));
        command.arg(INIT_ARGUMENT).env_clear();
        command.stdin(OwnedFd::from(theirs)).stdout(ProcessStdio::null()).stderr(ProcessStdio::null());
        let child = command.spawn().map_err(launch("execute it"))?;
        Ok((ours, child))
    }

    fn binary(&self) -> io::Result<BorrowedFd<'_>> {
        if let Some(fd) = self.0.binary.get() {
            return Ok(fd.as_fd());
        }
        let path = self.0.config.init.clone().unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
        let fd = binary::sealed_copy(&mut std::fs::File::open(path)?)?;
        Ok(self.0.binary.get_or_init(|| fd).as_fd())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        remove_parents(&self.layout, &self.config.cgroup_parent);
        if self.foreign.load(Ordering::Relaxed) {
            remove_everywhere(&self.config.cgroup_parent);
        }
    }
}
