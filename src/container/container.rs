//! The life of one container: start, check, end, start again, until told to stop.
//!
//! Invariants:
//! - every start has an empty upper layer of its own: what a run wrote is gone with it;
//! - [`Status`] says `Stopped` only when every process is dead and the whole log is written;
//! - after [`Stop`] nothing is started again; the grace is kept to whatever the process does;
//! - every wait ends: a start is bounded by the sandbox, a check by its timeout, a stop by its grace and
//!   the kernel's SIGKILL.

use crate::health::{self, Row};
use crate::logs::{self, LogWriter};
use crate::{Backoff, CommandError, Image, Overrides, Process};
use keelway_image::user;
use keelway_model::plan::Health;
use keelway_model::{Bytes, Limits};
use keelway_sandbox::{
    BoxName, ExitKind, Handle, Launcher, Mount, MountKind, Network, RootFs, Running, SpawnError, Spec, Stdio,
    User,
};
use keelway_store::{Store, Upper};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// How long the end of a log may come after the end of its processes.
const LOG_END: Duration = Duration::from_secs(5);
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
    /// How it last ended: `exit code 1`, `signal 9`, or why it did not start.
    pub ended: Option<String>,
    /// Its first process, on this machine.
    pub pid: Option<i32>,
    /// How long this run lasts.
    pub age: Duration,
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
    /// The log.
    #[error("cannot write the log in {path}: {source}; look at the disk")]
    Log {
        /// Where.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
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
    ended: JoinHandle<String>,
    since: Instant,
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

    /// Lives until a [`Stop`] comes (or its sender is gone, which stops at once), telling `status` all the
    /// way. Dropping the future kills the container.
    pub async fn run(&self, mut stop: mpsc::Receiver<Stop>, status: &watch::Sender<Status>) {
        let mut backoff = Backoff::default();
        let mut order = None;
        while order.is_none() {
            status.send_modify(|s| {
                *s = Status { restarts: s.restarts, ended: s.ended.take(), ..Status::default() };
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
                    status.send_modify(|s| s.pid = Some(run.pid));
                    let (ended, ordered) = self.attend(&mut run, &mut stop, status).await;
                    order = ordered;
                    ended
                }
                Err(error) => error.to_string(),
            };
            tracing::info!(ended, "the container ended");
            status.send_modify(|s| {
                s.state = State::Exited;
                s.ended = Some(ended.chars().take(MAX_REASON).collect());
                s.pid = None;
                s.age = Duration::ZERO;
            });
            if order.is_none() {
                let wait = backoff.after(begun.elapsed());
                tokio::select! {
                    ordered = stop.recv() => order = Some(ordered),
                    () = tokio::time::sleep(wait) => status.send_modify(|s| s.restarts += 1),
                }
            }
        }
        status.send_modify(|s| s.state = State::Stopped);
    }

    /// Watches a run to its end; gives how it ended, and the order to stop if there was one.
    async fn attend(
        &self,
        run: &mut Run,
        stop: &mut mpsc::Receiver<Stop>,
        status: &watch::Sender<Status>,
    ) -> (String, Option<Option<Stop>>) {
        let rule = self.settings.health.as_ref();
        if rule.is_none() {
            status.send_modify(|s| s.state = State::Healthy);
        }
        let check = self.check(run.since, status);
        tokio::pin!(check);
        let order = tokio::select! {
            ended = &mut run.ended => return (join(ended), None),
            order = stop.recv() => order,
            never = &mut check => match never {},
        };
        // Without its sender nobody could stop it later.
        let grace = order.map_or(Duration::ZERO, |o| o.grace);
        status.send_modify(|s| s.state = State::Stopping);
        let handle = run.handle.clone();
        let signal = self.process.stop_signal;
        if let Err(error) = handle.signal(signal) {
            tracing::warn!(%error, "cannot send the stop signal");
        }
        let ended = match tokio::time::timeout(grace, &mut run.ended).await {
            Ok(ended) => join(ended),
            Err(_) => {
                if let Err(error) = handle.kill() {
                    tracing::error!(%error, "cannot kill the container");
                }
                format!("{} after {grace:?} of grace", join((&mut run.ended).await))
            }
        };
        (ended, Some(order))
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
        let (spec, log_dir) = (self.spec(), self.settings.log_dir.clone());
        let chain = self.settings.image.chain.clone();
        let lowers: Vec<PathBuf> = chain.iter().map(|id| store.snapshot_dir(id)).collect();
        let started = tokio::task::spawn_blocking(move || -> Result<_, StartError> {
            let log = LogWriter::open(&log_dir, logs::CAP);
            let mut log = log.map_err(|source| StartError::Log { path: log_dir.clone(), source })?;
            let upper = store.begin()?;
            let mut spec = spec;
            spec.root =
                RootFs::Overlay { lowers, upper: upper.fs().to_owned(), work: upper.work().to_owned() };
            let (reader, stdio) =
                output().map_err(|source| StartError::Log { path: log_dir.clone(), source })?;
            let running = launcher.spawn(&spec, stdio)?;
            let writer = std::thread::Builder::new().name("log".into()).spawn(move || log.drain(reader));
            let writer = writer.map_err(|source| StartError::Log { path: log_dir, source })?;
            for warning in running.warnings() {
                tracing::warn!(warning, "the sandbox is less than asked for");
            }
            Ok((running, upper, writer))
        });
        let (running, upper, writer) = match started.await {
            Ok(started) => started?,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        let (handle, pid) = (running.handle(), running.pid());
        let ended = tokio::task::spawn_blocking(move || finish(running, upper, writer));
        Ok(Run { handle, pid, ended, since: Instant::now() })
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
        spec.mounts = vec![
            file(
                "/etc/hosts",
                format!("127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\t{}\n", s.hostname).into(),
            ),
            file("/etc/hostname", format!("{}\n", s.hostname).into()),
            file("/etc/resolv.conf", crate::network::resolv_conf()),
        ];
        spec.shm_size = Bytes(64 << 20);
        spec
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

fn join(ended: Result<String, tokio::task::JoinError>) -> String {
    ended.unwrap_or_else(|e| format!("lost: {e}"))
}

/// Waits for the end of everything: processes, then the log. The upper layer goes last.
fn finish(mut running: Running, upper: Upper, writer: std::thread::JoinHandle<io::Result<()>>) -> String {
    let ended = match running.wait() {
        Ok(exit) => match exit.kind {
            ExitKind::Code(code) => format!("exit code {code}"),
            ExitKind::Signal(signal) => format!("signal {signal}"),
            ExitKind::OutOfMemory => "out of memory: its limit was reached".to_owned(),
            ExitKind::InitKilled => "killed with its sandbox".to_owned(),
        },
        Err(error) => error.to_string(),
    };
    drop(running);
    // All writers of the pipe are dead, so its end is near; a log on a dead disk must not hold us.
    let end = Instant::now() + LOG_END;
    while !writer.is_finished() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(2));
    }
    if writer.is_finished() {
        if let Ok(Err(error)) = writer.join() {
            tracing::error!(%error, "the log is not complete");
        }
    } else {
        tracing::error!("the log is not complete: the disk does not answer");
    }
    drop(upper);
    ended
}

fn output() -> io::Result<(File, Stdio)> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    Ok((File::from(reader), Stdio::output_to(writer)?))
}

fn file(target: &str, content: Vec<u8>) -> Mount {
    Mount { target: target.into(), kind: MountKind::File { content, mode: 0o644 } }
}
