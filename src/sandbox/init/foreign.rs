//! PID 1 around another runtime's container: it prepares the bundle, asks the runtime to create and start, passes
//! signals on, and reports the end.
//!
//! It is PID 1 of a pid namespace in which everything of the runtime lives: when it ends, by whatever death, the kernel
//! kills the container and every helper of the runtime, and the mount namespace takes the bundle and the runtime's
//! state along. The container's own process is an orphan once `create` has returned, so PID 1 inherits it and reads its
//! end as it is. Groups of the container are removed by the supervisor, which outlives all this.

use super::pid1;
use crate::bundle::{self, Bundle};
use crate::end::ExitKind;
use crate::error::SetupError;
use crate::ids::Namespaces;
use crate::proto::{self, Inner, Request};
use crate::root::{self, Stage};
use crate::spec::DEFAULT_PATH;
use crate::sys;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, umask};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The container's name for the runtime; its state is this sandbox's alone.
const ID: &str = "keelway";
/// How long `kill` and `delete` may take; what is asked before is bounded by who waits for the start.
const PATIENCE: Duration = Duration::from_secs(10);
/// So much of the end of a runtime's log is read, in bytes.
const LOG_TAIL: u64 = 16 << 10;

/// Descriptors that the supervisor opened for it.
pub(super) struct Gifts {
    /// The user namespace, whose ids mounts are translated to, and the network to join.
    pub spaces: Namespaces,
    pub stdio: [OwnedFd; 3],
}

/// The life of PID 1.
pub(super) fn run(control: RawFd, life: UnixStream, request: &Request, runtime: &Path, gifts: Gifts) -> ! {
    pid1::die_with_the_supervisor();
    // Our copy of its own socket would hide its death from the owner.
    let _ = nix::unistd::close(control);
    match begin(&life, request, runtime, gifts) {
        Ok((container, main)) => {
            let _ = proto::send(life.as_fd(), &Inner::Started { warnings: Vec::new() }, &[]);
            let kind = container.watch(&life, main);
            // The runtime removes the groups, so they are read before.
            let _ = proto::send(life.as_fd(), &Inner::Used(request.cgroups.usage()), &[]);
            let _ = proto::send(life.as_fd(), &Inner::Ended(kind), &[]);
            container.delete();
            sys::exit_now(0)
        }
        Err(error) => {
            let _ = proto::send(life.as_fd(), &Inner::Failed(error), &[]);
            sys::exit_now(1)
        }
    }
}

/// A container of the runtime.
struct Container<'a> {
    runtime: &'a Path,
    stage: Stage,
}

fn step(action: &'static str) -> impl FnOnce(Errno) -> SetupError {
    move |errno| SetupError::Step { action: action.into(), errno: errno.into() }
}

fn begin<'a>(
    life: &UnixStream,
    request: &Request,
    runtime: &'a Path,
    gifts: Gifts,
) -> Result<(Container<'a>, i32), SetupError> {
    pid1::hide()?;
    umask(Mode::empty());
    let Gifts { spaces, stdio } = gifts;
    let how = root::How {
        legacy: request.legacy_overlay,
        ids: request.ids,
        user: spaces.user.as_fd(),
        rootless: false,
        warnings: std::cell::RefCell::default(),
    };
    let mut stubs = Vec::new();
    let staged = root::stage(&request.spec, &how, spaces.net.as_ref(), &mut stubs);
    if !stubs.is_empty() {
        let _ = proto::send(life.as_fd(), &Inner::Stubs(stubs), &[]);
    }
    let stage = staged?;
    umask(Mode::from_bits_truncate(0o022));
    pid1::give_stdio(&request.spec.user, request.ids, &stdio);
    let group = request.cgroups.path();
    let config = bundle::config(&request.spec, &Bundle::staged(&stage, request.ids, &group))
        .map_err(|e| SetupError::Step { action: e.to_string(), errno: Errno::EINVAL.into() })?;
    std::fs::write(stage.bundle.join("config.json"), config.to_string())
        .map_err(|e| SetupError::Step { action: "write config.json".into(), errno: e.into() })?;
    let container = Container { runtime, stage };
    let main = container.create(stdio)?;
    container.start()?;
    // Not before: the container would inherit it.
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&set), None).map_err(step("block signals"))?;
    Ok((container, main))
}

impl Container<'_> {
    /// One call of the runtime.
    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(self.runtime);
        command.arg("--root").arg(&self.stage.state).arg("--log").arg(self.log());
        command.args(["--log-format", "json", verb]);
        command.env_clear().env("PATH", DEFAULT_PATH).current_dir(&self.stage.bundle);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn log(&self) -> std::path::PathBuf {
        self.stage.bundle.join("log")
    }

    fn failed(&self, action: &str, detail: String) -> SetupError {
        SetupError::Runtime { runtime: self.runtime.to_owned(), action: action.to_owned(), detail }
    }

    /// What a call that ended badly wrote into its log, or else how it ended.
    fn why(&self, action: &str, status: ExitStatus) -> SetupError {
        self.failed(action, last_error(&self.log()).unwrap_or_else(|| status.to_string()))
    }

    /// The container with these streams; its process waits to be started. Gives the process.
    fn create(&self, stdio: [OwnedFd; 3]) -> Result<i32, SetupError> {
        let [stdin, stdout, stderr] = stdio;
        let pid_file = self.stage.bundle.join("pid");
        let mut command = self.command("create");
        command.arg("--bundle").arg(&self.stage.bundle).arg("--pid-file").arg(&pid_file).arg(ID);
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        let status = command.status().map_err(|e| self.failed("create", e.to_string()))?;
        // Our copies of the streams, which would keep a reader waiting.
        drop(command);
        if !status.success() {
            return Err(self.why("create", status));
        }
        let text = std::fs::read_to_string(&pid_file).unwrap_or_default();
        match text.trim().parse::<i32>() {
            Ok(pid) if is_ours(pid) => Ok(pid),
            _ => {
                let detail = format!(
                    "it leaves no process that can be waited for (its pid file says {:?})",
                    text.chars().take(40).collect::<String>()
                );
                Err(self.failed("create", detail))
            }
        }
    }

    fn start(&self) -> Result<(), SetupError> {
        let status =
            self.command("start").arg(ID).status().map_err(|e| self.failed("start", e.to_string()))?;
        if status.success() { Ok(()) } else { Err(self.why("start", status)) }
    }

    /// Until the container's process is dead.
    fn watch(&self, life: &UnixStream, main: i32) -> ExitKind {
        pid1::watch(life, main, |signal| within(self.command("kill").arg(ID).arg(signal.to_string())))
    }

    /// Lets the runtime clean up what it keeps outside; whatever it leaves inside ends with us.
    fn delete(&self) {
        within(self.command("delete").arg("--force").arg(ID));
    }
}

/// Runs a call to its end, or kills it.
fn within(command: &mut Command) {
    let Ok(mut child) = command.spawn() else { return };
    let end = Instant::now() + PATIENCE;
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() >= end {
            let _ = child.kill();
            let _ = child.wait();
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Is it an orphan that became our child?
fn is_ours(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in brackets may hold anything.
    stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)) == Some("1")
}

/// The last error of a runtime's log in JSON lines; else its last line.
fn last_error(log: &Path) -> Option<String> {
    let mut file = std::fs::File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes).ok()?;
    message(&String::from_utf8_lossy(&bytes))
}

fn message(log: &str) -> Option<String> {
    let lines = || log.lines().rev().filter(|l| !l.trim().is_empty());
    let said = |line: &str| -> Option<(bool, String)> {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        let text = |key: &str| value.get(key).and_then(serde_json::Value::as_str);
        Some((matches!(text("level"), Some("error" | "fatal")), text("msg")?.trim().to_owned()))
    };
    let error = lines().find_map(|l| said(l).filter(|(is_error, _)| *is_error).map(|(_, msg)| msg));
    let last = || lines().next().map(|l| said(l).map_or_else(|| l.trim().to_owned(), |(_, msg)| msg));
    error.or_else(last).map(|m| m.chars().filter(|c| !c.is_control()).take(1000).collect())
}

#[cfg(test)]
mod tests {
    use super::message;

    #[test]
    fn what_a_runtime_says_is_found_in_its_log() {
        let log = "{\"level\":\"warning\",\"msg\":\"old\"}\n{\"level\":\"error\",\"msg\":\"no such\\u001b[31m thing\"}\n{\"level\":\"debug\",\"msg\":\"bye\"}\n";
        assert_eq!(message(log).as_deref(), Some("no such[31m thing"));
        assert_eq!(message("{\"level\":\"warning\",\"msg\":\"w\"}\n\n").as_deref(), Some("w"));
        assert_eq!(message("plain\nlast words\n").as_deref(), Some("last words"));
        assert_eq!(message(""), None);
    }
}
