//! One process in a sandbox, its output as log lines, its end as a result.

use crate::{Workspace, room};
use keelway_container::network::{Attached, LOCALHOST, NetworkError};
use keelway_engine::{Ctx, Failure};
use keelway_model::limits::DEFAULT_LOG;
use keelway_model::plan::Network as PlanNetwork;
use keelway_model::{Bytes, Limits, LogStream, Redacted};
use keelway_sandbox::{
    Access, BoxName, CapProfile, Exit, ExitKind, Handle, Launcher, Mount, MountKind, Network, RootFs, Spec,
    Stdio, User,
};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// What is run.
pub(crate) struct Job {
    /// The root below: snapshots, then uppers of earlier steps of the same container, lowest first.
    pub lowers: Vec<PathBuf>,
    /// Where it writes: upper and work directory.
    pub upper: PathBuf,
    /// Overlayfs's own.
    pub work: PathBuf,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: String,
    pub user: keelway_image::User,
    pub network: PlanNetwork,
    pub limits: Limits,
    pub caps: CapProfile,
    /// The OCI runtime that isolates it; `None` is our own sandbox.
    pub runtime: Option<PathBuf>,
    /// What it has beyond its root and the files of its network.
    pub mounts: Vec<Mount>,
    /// Locks of what it writes to beyond its root: held until every process of it is dead.
    pub locks: Vec<OwnedFd>,
    /// What is not to be seen in its log.
    pub hidden: Vec<Redacted<String>>,
}

fn next_box() -> BoxName {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("box-{n}").parse().expect("letters, a dash and digits name a cgroup")
}

/// The spec of a job; `attached` is its network where that is a private one with a way out.
fn spec(job: Job, attached: Option<&Attached>) -> Spec {
    let root = RootFs::Overlay { lowers: job.lowers, upper: job.upper, work: job.work };
    let mut spec = Spec::new(root, job.argv, next_box());
    spec.env = job.env;
    if !spec.env.iter().any(|(k, _)| k == "HOME") {
        spec.env.push(("HOME".into(), job.user.home.clone().unwrap_or_else(|| "/".into())));
    }
    spec.cwd = PathBuf::from(job.cwd);
    spec.user = User { uid: job.user.uid, gid: job.user.gid, groups: job.user.groups };
    spec.limits = job.limits;
    spec.caps = job.caps;
    spec.runtime = job.runtime;
    let file = |target: &str, content: &[u8], mode| Mount {
        target: target.into(),
        kind: MountKind::File { content: content.into(), mode, owner: (0, 0) },
    };
    match (job.network, attached) {
        (PlanNetwork::Private, Some(attached)) => {
            spec.network = attached.network();
            spec.mounts.push(file("/etc/hosts", &attached.hosts(&spec.hostname), 0o644));
            spec.mounts.push(file("/etc/resolv.conf", attached.resolv_conf(), 0o644));
        }
        (PlanNetwork::None | PlanNetwork::Private, _) => {
            spec.network = Network::None;
            spec.mounts.push(file("/etc/hosts", LOCALHOST.as_bytes(), 0o644));
            spec.mounts.push(file("/etc/resolv.conf", b"", 0o644));
        }
        (PlanNetwork::Host, _) => {
            spec.network = Network::Host;
            // The files may be links (to systemd's): what they name is what is bound.
            for path in ["/etc/hosts", "/etc/resolv.conf"] {
                if let Ok(source) = Path::new(path).canonicalize() {
                    spec.mounts.push(Mount {
                        target: path.into(),
                        kind: MountKind::Bind { source, access: Access::ReadOnly, below: true },
                    });
                }
            }
        }
    }
    spec.mounts.extend(job.mounts);
    spec
}

/// Runs a job to its end; what it prints becomes log events. Cancelling asks with SIGTERM, killing kills.
pub(crate) async fn run(workspace: &Workspace, ctx: &Ctx, job: Job) -> Result<Exit, Failure> {
    let (launcher, networks) = (workspace.launcher.clone(), workspace.networks.clone());
    if job.network == PlanNetwork::Private && networks.is_none() {
        ctx.notice(NO_WAY_OUT).await;
    }
    let reports = ctx.clone();
    let (tell, told) = tokio::sync::oneshot::channel::<Handle>();
    let mut job = job;
    let (hidden, locks) = (std::mem::take(&mut job.hidden), std::mem::take(&mut job.locks));
    let mut waiting = tokio::task::spawn_blocking(move || {
        // Its network lives until every process in it is dead.
        let attached = match job.network {
            PlanNetwork::Private => networks.map(|n| n.private()).transpose().map_err(|e| no_network(&e))?,
            PlanNetwork::None | PlanNetwork::Host => None,
        };
        blocking_run(&launcher, &spec(job, attached.as_ref()), &locks, hidden, &reports, tell)
    });
    let Ok(handle) = told.await else {
        return joined(waiting.await);
    };
    let mut seen = None;
    loop {
        tokio::select! {
            done = &mut waiting => return joined(done),
            now = ctx.cancel.changed_from(seen) => {
                seen = Some(now);
                // An error means that it has just ended, which the other arm sees.
                let _ = if now.kill { handle.kill() } else { handle.signal(SIGTERM) };
            }
        }
    }
}

/// What an ordinary user is told.
const NO_WAY_OUT: &str = "its private network has no way out: `keelway doctor` says what an ordinary user's needs; with --network host, or \
                          `network: host` in a stage, it has this machine's";

fn no_network(e: &NetworkError) -> Failure {
    Failure::outside(format!("there is no private network for this step: {e}"))
}

const SIGTERM: i32 = 15;

fn joined(done: Result<Result<Exit, Failure>, tokio::task::JoinError>) -> Result<Exit, Failure> {
    done.unwrap_or_else(|e| Err(Failure::bug(format!("the thread that ran a sandbox failed: {e}"))))
}

fn blocking_run(
    launcher: &Launcher,
    spec: &Spec,
    locks: &[OwnedFd],
    hidden: Vec<Redacted<String>>,
    ctx: &Ctx,
    tell: tokio::sync::oneshot::Sender<Handle>,
) -> Result<Exit, Failure> {
    let pipe_failed =
        |e: std::io::Error| Failure::outside(format!("cannot make a pipe: {e}; are too many files open?"));
    let (out_read, out_write) = std::io::pipe().map_err(pipe_failed)?;
    let (err_read, err_write) = std::io::pipe().map_err(pipe_failed)?;
    let null =
        File::open("/dev/null").map_err(|e| Failure::outside(format!("cannot open /dev/null: {e}")))?;
    let stdio = Stdio { stdin: null.into(), stdout: out_write.into(), stderr: err_write.into() };
    let locks: Vec<_> = locks.iter().map(AsFd::as_fd).collect();
    let mut running = launcher.spawn_holding(spec, stdio, &locks).map_err(|e| spawn_failure(&e))?;
    for warning in running.warnings() {
        ctx.notice_blocking(warning.clone());
    }
    let _ = tell.send(running.handle());
    let output = Output::new(spec, running.handle(), hidden);
    thread::scope(|scope| {
        let stderr = scope.spawn(|| pump(err_read.into(), LogStream::Stderr, ctx, &output));
        pump(out_read.into(), LogStream::Stdout, ctx, &output);
        let _ = stderr.join();
    });
    running.wait().map(|exit| output.judge(exit)).map_err(|e| Failure::outside(e.to_string()))
}

fn spawn_failure(e: &keelway_sandbox::SpawnError) -> Failure {
    if e.is_the_images_fault() { Failure::failed(e.to_string()) } else { Failure::outside(e.to_string()) }
}

/// What a process prints, and how much it may.
struct Output {
    limit: Bytes,
    printed: AtomicU64,
    handle: Handle,
    /// Longest first, so that what is a part of another leaves nothing of it.
    hidden: Vec<Redacted<String>>,
}

impl Output {
    fn new(spec: &Spec, handle: Handle, mut hidden: Vec<Redacted<String>>) -> Self {
        hidden.sort_by(|a, b| {
            let (a, b) = (a.reveal(), b.reveal());
            b.len().cmp(&a.len()).then_with(|| a.cmp(b))
        });
        hidden.dedup();
        let limit = spec.limits.log.unwrap_or(DEFAULT_LOG);
        Self { limit, printed: AtomicU64::new(0), handle, hidden }
    }

    /// What is shown of it: secrets are not.
    fn shown(&self, bytes: &[u8]) -> String {
        shown(bytes, &self.hidden)
    }

    /// Counts; what is beyond the limit ends the process, and goes nowhere.
    fn take(&self, bytes: usize) -> bool {
        let before = self.printed.fetch_add(bytes as u64, Ordering::Relaxed);
        let fits = before.saturating_add(bytes as u64) <= self.limit.0;
        if !fits && before <= self.limit.0 {
            // An error means that it has just ended.
            let _ = self.handle.kill();
        }
        fits
    }

    /// The end, which too much output is the cause of whatever it looked like.
    fn judge(&self, mut exit: Exit) -> Exit {
        if self.printed.load(Ordering::Relaxed) > self.limit.0 {
            exit.kind = ExitKind::TooMuchOutput { limit: self.limit };
        }
        exit
    }
}

fn shown(bytes: &[u8], hidden: &[Redacted<String>]) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    for secret in hidden {
        if text.contains(secret.reveal()) {
            text = text.replace(secret.reveal(), "***");
        }
    }
    text
}

/// Reads until every writer is gone; sends whole lines, and what is left after 16 KiB without one.
fn pump(from: OwnedFd, stream: LogStream, ctx: &Ctx, output: &Output) {
    const MOST: usize = 16 * 1024;
    let mut from = File::from(from);
    let (mut held, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        if !output.take(n) {
            continue;
        }
        held.extend_from_slice(&buffer[..n]);
        let whole = held.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
        let cut = if whole == 0 && held.len() >= MOST { whole_characters(&held) } else { whole };
        if cut > 0 {
            ctx.log_blocking(stream, &output.shown(&held[..cut]));
            held.drain(..cut);
        }
    }
    if !held.is_empty() {
        ctx.log_blocking(stream, &output.shown(&held));
    }
}

/// The length without a character that has only begun; output that is no UTF-8 is taken as it is.
fn whole_characters(bytes: &[u8]) -> usize {
    match bytes.utf8_chunks().last() {
        // A character has at most four bytes, so what is left over is short.
        Some(last) if (1..4).contains(&last.invalid().len()) && may_go_on(last.invalid()) => {
            bytes.len() - last.invalid().len()
        }
        _ => bytes.len(),
    }
}

/// Whether bytes are the beginning of a character.
fn may_go_on(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_none())
}

/// The failure of a process that did not end well, `what` in front where the node's name does not say it. What it wrote is still there: where it filled the disk
/// of the store, that is said.
pub(crate) fn unsuccessful(what: Option<&str>, exit: &Exit, store: &Path) -> Failure {
    let what = what.map(|w| format!("{w}: ")).unwrap_or_default();
    let failure = Failure::failed(format!("{what}{exit}"));
    if room::is_full(store) { room::advise(failure, store) } else { failure }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let hidden = ["s3cret-and-more", "s3cret"].map(|h| Redacted::new(h.to_owned()));
        assert_eq!(shown(b"a s3cret-and-more, s3cret\xff\n", &hidden), "a ***, ***\u{fffd}\n");
    }

    #[test]
    fn long_output_without_a_line_is_cut_between_characters() {
        let text = "a€𐍈".as_bytes();
        for (length, whole) in [(1, 1), (2, 1), (3, 1), (4, 4), (5, 4), (7, 4), (8, 8)] {
            assert_eq!(whole_characters(&text[..length]), whole, "{length} bytes");
        }
        // No UTF-8, and so never the beginning of anything.
        assert_eq!(whole_characters(b"a\xff"), 2);
        assert_eq!(whole_characters(b"a\xe2\x28"), 3);
    }
}
