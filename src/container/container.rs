//! The life of one container: start, check, end, start again, until told to stop.
//!
//! Invariants:
//! - every start has an empty upper layer of its own, and what a run wrote is gone with it, unless the
//!   container has a place where that is kept;
//! - [`Status`] says `Stopped` only when every process is dead and the whole log is written;
//! - after [`Stop`] nothing is started again; the grace is kept to whatever the process does;
//! - every wait ends: a start is bounded by the sandbox, a check by its timeout, a stop by its grace and
//!   the kernel's SIGKILL.

use crate::console::{Console, Tee};
use crate::health::{self, Row};
use crate::keeper::{Life, Order};
use crate::network::{NetworkError, Networks};
use crate::publish::{Publish, PublishError};
use crate::start::{self, Started};
use crate::{Backoff, CommandError, Image, Overrides, Process};
use keelway_image::user;
use keelway_model::clock::SystemClock;
use keelway_model::plan::Health;
use keelway_model::{Clock, Limits, Timestamp};
use keelway_sandbox::{
    BoxName, CapProfile, ExecError, ExitKind, Handle, Launcher, Mount, Network, RootFs, SetupError,
    SpawnError, Spec, User, Window,
};
use keelway_store::Store;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// For deleting what an earlier run wrote.
const TRASH: Duration = Duration::from_secs(10);
/// What [`Status::last_bad`] and [`Status::ended`] are cut to.
const MAX_REASON: usize = 500;

/// Where and how a container is checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthSpec {
    /// Its address and port, reachable from this process.
    pub address: SocketAddr,
    /// Path, interval and counts.
    pub rule: Health,
}

/// Everything about one container.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What runs.
    pub image: Image,
    /// Over the image's config.
    pub overrides: Overrides,
    /// Its host name.
    pub hostname: String,
    /// Its network; a joined namespace must be there already.
    pub network: Network,
    /// Bounds.
    pub limits: Limits,
    /// Its cgroup below the launcher's.
    pub cgroup: BoxName,
    /// Checks; without them it counts as healthy when it runs.
    pub health: Option<HealthSpec>,
    /// Directory of its log, which exists.
    pub log_dir: PathBuf,
    /// What sets a container made by hand apart from a replica.
    pub shape: Shape,
}

/// Where what a container writes into its root is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The overlay's upper directory, which exists.
    pub upper: PathBuf,
    /// Its work directory, beside it; made anew at each start.
    pub work: PathBuf,
}

/// What sets a container made by hand apart from a replica; the default is a replica's.
#[derive(Clone)]
pub struct Shape {
    /// Where what it writes is kept; else each start begins with the image.
    pub kept: Option<Kept>,
    /// Whether the root cannot be written.
    pub read_only: bool,
    /// Mounts beyond the usual ones.
    pub mounts: Vec<Mount>,
    /// Where a private network of its own comes from; [`Settings::network`] counts without one.
    pub networks: Option<Networks>,
    /// Ports of the machine that lead into its private network.
    pub ports: Vec<Publish>,
    /// Its capabilities.
    pub caps: CapProfile,
    /// Its input and output.
    pub console: Console,
    /// Who else gets them.
    pub tee: Option<Arc<dyn Tee>>,
    /// Whether it is started again when it ends by itself.
    pub again: bool,
    /// Whether what it uses is counted, also where nothing is bounded.
    pub counted: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            kept: None,
            read_only: false,
            mounts: Vec::new(),
            networks: None,
            ports: Vec::new(),
            caps: CapProfile::Step,
            console: Console::Log,
            tee: None,
            again: true,
            counted: false,
        }
    }
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shape")
            .field("console", &self.console)
            .field("again", &self.again)
            .finish_non_exhaustive()
    }
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is being started, or runs and has not had enough good checks in a row.
    Starting,
    /// Runs, and is well.
    Healthy,
    /// Runs, was well, and had too many bad checks in a row.
    Unhealthy,
    /// Ended by itself, or could not be started; will be started again.
    Exited,
    /// Was told to stop, and has not ended yet.
    Stopping,
    /// Was told to stop, and has ended.
    Stopped,
}

/// A container as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Life.
    pub state: State,
    /// Good checks in a row.
    pub good: u32,
    /// Bad checks in a row.
    pub bad: u32,
    /// What the last bad check saw.
    pub last_bad: Option<String>,
    /// How often it was started again.
    pub restarts: u32,
    /// How it last ended: `exit code 1`, `ended by signal 9`, or why it did not start.
    pub ended: Option<String>,
    /// Its first process, on this machine.
    pub pid: Option<i32>,
    /// How long this run lasts.
    pub age: Duration,
    /// When this run, or the last one, began.
    #[serde(default)]
    pub started: Option<Timestamp>,
    /// How the last run ended, as a shell would say it; see [`exit_code`].
    #[serde(default)]
    pub code: Option<u8>,
    /// Whether the memory limit ended it.
    #[serde(default)]
    pub out_of_memory: bool,
    /// In words, where a limit ended it.
    #[serde(default)]
    pub limit: Option<String>,
    /// What the machine did not allow.
    #[serde(default)]
    pub warnings: Vec<String>,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            state: State::Starting,
            good: 0,
            bad: 0,
            last_bad: None,
            restarts: 0,
            ended: None,
            pid: None,
            age: Duration::ZERO,
            started: None,
            code: None,
            out_of_memory: false,
            limit: None,
            warnings: Vec::new(),
        }
    }
}

/// The order to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// From the stop signal to SIGKILL.
    pub grace: Duration,
}

/// Why a container did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The image says nothing that can be run.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] keelway_store::StoreError),
    /// The image's user.
    #[error(transparent)]
    User(#[from] user::UserError),
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SpawnError),
    /// Its network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A port that leads into it.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The log.
    #[error("cannot write the log in {path}: {source}; look at the disk")]
    Log {
        /// Where.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The place where what it writes is kept.
    #[error("cannot use {path}, where the container's files are: {source}; look at the disk")]
    Kept {
        /// Where.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// 125: the container did not start, by no doing of its program.
pub const NOT_STARTED: u8 = 125;
/// 126: the program cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// 127: there is no such program.
pub const NOT_FOUND: u8 = 127;

/// An end as a shell says it: the code, or 128 and the signal.
pub fn exit_code(kind: &ExitKind) -> u8 {
    match kind {
        ExitKind::Code(code) => u8::try_from(code & 0xff).unwrap_or(NOT_STARTED),
        ExitKind::Signal(signal) => u8::try_from(128 + (signal & 0x7f)).unwrap_or(u8::MAX),
        ExitKind::OutOfMemory
        | ExitKind::OutOfDisk { .. }
        | ExitKind::TooManyFiles { .. }
        | ExitKind::TooManyProcesses { .. }
        | ExitKind::TooMuchOutput { .. }
        | ExitKind::InitKilled => 128 + 9,
    }
}

/// Why a process was not started, in the numbers that shells and docker use.
pub const fn start_code(error: &SpawnError) -> u8 {
    match error {
        SpawnError::Setup(SetupError::Exec(ExecError::NotFound { .. })) => NOT_FOUND,
        SpawnError::Setup(SetupError::Exec(_) | SetupError::Cwd { .. }) => NOT_EXECUTABLE,
        _ => NOT_STARTED,
    }
}

impl StartError {
    /// In the numbers that shells and docker use.
    pub const fn code(&self) -> u8 {
        match self {
            Self::Sandbox(error) => start_code(error),
            _ => NOT_STARTED,
        }
    }
}

/// A container of this process.
pub struct Container {
    store: Store,
    launcher: Launcher,
    settings: Settings,
    process: Process,
    user: User,
}

/// One start of it.
struct Run {
    handle: Handle,
    pid: i32,
    warnings: Vec<String>,
    ended: JoinHandle<End>,
    since: Instant,
}

/// How a start, or the attempt, ended.
#[derive(Debug)]
pub(crate) struct End {
    pub text: String,
    pub code: u8,
    pub out_of_memory: bool,
    /// In words, where a limit ended it.
    pub limit: Option<String>,
}

impl End {
    /// One without a process.
    pub fn without(text: String, code: u8) -> Self {
        Self { text, code, out_of_memory: false, limit: None }
    }
}

impl Container {
    /// Checks what can be checked before the first start. Blocking.
    pub fn new(store: Store, launcher: Launcher, settings: Settings) -> Result<Self, StartError> {
        let mut process = Process::of(&settings.image.config.config, &settings.overrides)?;
        let view = store.view(&settings.image.chain)?;
        let user = user::resolve(&view, &process.user)?;
        if !process.env.iter().any(|(name, _)| name == "HOME") {
            process.env.push(("HOME".into(), user.home.unwrap_or_else(|| "/".into())));
        }
        let user = User { uid: user.uid, gid: user.gid, groups: user.groups };
        Ok(Self { store, launcher, settings, process, user })
    }

    /// What stops it, by the image.
    pub fn stop_signal(&self) -> i32 {
        self.process.stop_signal
    }

    /// Lives until a [`Stop`] comes (or its sender is gone, which stops at once), telling the status all the
    /// way; or until it ends, where it is not started again. Dropping the future kills the container.
    pub async fn run(&self, life: &mut Life) {
        let mut backoff = Backoff::default();
        let mut order = None;
        loop {
            life.status.send_modify(|s| {
                *s =
                    Status { restarts: s.restarts, ended: s.ended.take(), code: s.code, ..Status::default() };
            });
            // What the run before wrote, also one whose process was killed with its keeper. Not waited for.
            let store = self.store.clone();
            tokio::task::spawn_blocking(move || {
                if let Err(error) = store.empty_trash(TRASH) {
                    tracing::warn!(%error, "what an earlier run wrote is still there");
                }
            });
            let begun = Instant::now();
            let ended = match self.start().await {
                Ok(mut run) => {
                    let _ = life.handle.send(Some(run.handle.clone()));
                    life.status.send_modify(|s| {
                        s.pid = Some(run.pid);
                        s.started = Some(SystemClock.now());
                        s.warnings = std::mem::take(&mut run.warnings);
                    });
                    let (ended, ordered) = self.attend(&mut run, life).await;
                    order = ordered;
                    let _ = life.handle.send(None);
                    ended
                }
                Err(error) => End::without(error.to_string(), error.code()),
            };
            tracing::info!(ended = ended.text, "the container ended");
            life.status.send_modify(|s| {
                s.state = State::Exited;
                s.ended = Some(ended.text.chars().take(MAX_REASON).collect());
                s.code = Some(ended.code);
                s.out_of_memory = ended.out_of_memory;
                s.limit = ended.limit;
                s.pid = None;
                s.age = Duration::ZERO;
            });
            if order.is_some() {
                break;
            }
            if !self.settings.shape.again {
                return;
            }
            let wait = backoff.after(begun.elapsed());
            tokio::select! {
                ordered = next_stop(life) => {
                    order = Some(ordered);
                    break;
                }
                () = tokio::time::sleep(wait) => life.status.send_modify(|s| s.restarts += 1),
            }
        }
        let _ = order;
        life.status.send_modify(|s| s.state = State::Stopped);
    }

    /// Watches a run to its end; gives how it ended, and the order to stop if there was one.
    async fn attend(&self, run: &mut Run, life: &mut Life) -> (End, Option<Option<Stop>>) {
        let rule = self.settings.health.as_ref();
        if rule.is_none() {
            life.status.send_modify(|s| s.state = State::Healthy);
        }
        let order = {
            let check = self.check(run.since, &life.status);
            tokio::pin!(check);
            loop {
                tokio::select! {
                    ended = &mut run.ended => return (join(ended), None),
                    order = life.orders.recv() => match order {
                        Some(Order::Signal(signal)) => send_signal(&run.handle, signal),
                        Some(Order::Stop(stop)) => break Some(stop),
                        None => break None,
                    },
                    never = &mut check => match never {},
                }
            }
        };
        // Without its sender nobody could stop it later.
        let grace = order.map_or(Duration::ZERO, |o| o.grace);
        life.status.send_modify(|s| s.state = State::Stopping);
        let handle = run.handle.clone();
        send_signal(&handle, self.process.stop_signal);
        let end = tokio::time::Instant::now() + grace;
        let ended = loop {
            tokio::select! {
                ended = &mut run.ended => break join(ended),
                // A second order may be in more of a hurry, and signals are passed on as before.
                Some(order) = life.orders.recv() => match order {
                    Order::Signal(signal) => send_signal(&handle, signal),
                    Order::Stop(stop) if stop.grace.is_zero() => break self.kill(run, Duration::ZERO).await,
                    Order::Stop(_) => {}
                },
                () = tokio::time::sleep_until(end) => break self.kill(run, grace).await,
            }
        };
        (ended, Some(order))
    }

    async fn kill(&self, run: &mut Run, grace: Duration) -> End {
        if let Err(error) = run.handle.kill() {
            tracing::error!(%error, "cannot kill the container");
        }
        let mut end = join((&mut run.ended).await);
        if !grace.is_zero() {
            end.text = format!("{} after {grace:?} of grace", end.text);
        }
        end
    }

    /// Checks for ever, one check at a time.
    async fn check(&self, since: Instant, status: &watch::Sender<Status>) -> std::convert::Infallible {
        let Some(HealthSpec { address, rule }) = &self.settings.health else {
            return std::future::pending().await;
        };
        let mut row = Row::default();
        let mut well = false;
        loop {
            let result = health::probe(*address, &rule.http, rule.timeout).await;
            row.push(result.is_ok());
            if row.good >= rule.healthy {
                well = true;
            }
            let sick = well && row.bad >= rule.unhealthy;
            status.send_modify(|s| {
                s.good = row.good;
                s.bad = row.bad;
                s.age = since.elapsed();
                if let Err(error) = result {
                    s.last_bad = Some(error.to_string().chars().take(MAX_REASON).collect());
                }
                s.state = match (sick, well) {
                    (true, _) => State::Unhealthy,
                    // From unhealthy back to healthy takes as many good checks as the first time.
                    (false, true) if s.state != State::Unhealthy || row.good >= rule.healthy => {
                        State::Healthy
                    }
                    (false, true) => State::Unhealthy,
                    (false, false) => State::Starting,
                };
            });
            tokio::time::sleep(rule.interval).await;
        }
    }

    async fn start(&self) -> Result<Run, StartError> {
        let (store, launcher) = (self.store.clone(), self.launcher.clone());
        let (spec, settings) = (self.spec(), self.settings.clone());
        let started = tokio::task::spawn_blocking(move || start::start(&store, &launcher, spec, &settings));
        let Started { running, finish } = match started.await {
            Ok(started) => started?,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        let (handle, pid, warnings) = (running.handle(), running.pid(), running.warnings().to_vec());
        let ended = tokio::task::spawn_blocking(move || finish.wait(running));
        Ok(Run { handle, pid, warnings, ended, since: Instant::now() })
    }

    fn spec(&self) -> Spec {
        let s = &self.settings;
        // The root is set when the upper layer is there.
        let root = RootFs::ReadOnly { lowers: Vec::new() };
        let mut spec = Spec::new(root, self.process.argv.clone(), s.cgroup.clone());
        spec.env.clone_from(&self.process.env);
        spec.cwd.clone_from(&self.process.cwd);
        spec.user = self.user.clone();
        spec.hostname.clone_from(&s.hostname);
        spec.network = s.network.clone();
        spec.limits = s.limits.clone();
        spec.caps = s.shape.caps;
        spec.counted = s.shape.counted;
        spec.terminal = match s.shape.console {
            Console::Terminal { size: (rows, columns) } => Some(Window { rows, columns }),
            Console::Log | Console::Lines { .. } => None,
        };
        spec.mounts.extend(s.shape.mounts.iter().cloned());
        spec
    }
}

/// The next order to stop; signals have nobody to go to.
async fn next_stop(life: &mut Life) -> Option<Stop> {
    loop {
        match life.orders.recv().await {
            Some(Order::Signal(_)) => {}
            Some(Order::Stop(stop)) => return Some(stop),
            None => return None,
        }
    }
}

fn send_signal(handle: &Handle, signal: i32) {
    if let Err(error) = handle.signal(signal) {
        tracing::warn!(%error, signal, "cannot send the signal");
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // A blocking task cannot be cancelled: kill, and it ends.
        if !self.ended.is_finished() {
            let _ = self.handle.kill();
        }
    }
}

fn join(ended: Result<End, tokio::task::JoinError>) -> End {
    ended.unwrap_or_else(|e| End::without(format!("lost: {e}"), NOT_STARTED))
}
