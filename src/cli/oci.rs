//! The hidden verb `oci`: the command line of an OCI runtime, as runc has it, for outside suites and other engines.
//!
//! It has its own flags, exit codes (1 for every failure, as there) and log, and no state of a pipeline.

use clap::{Parser, Subcommand};
use keelway_container::oci::{Containers, Created, OciError};
use keelway_sandbox::{ExitKind, Stdio};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde_json::json;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "keelway oci", version)]
struct Cli {
    /// Where containers are
    #[arg(long, default_value = "/run/keelway/oci")]
    root: PathBuf,
    /// Where failures are written, too
    #[arg(long)]
    log: Option<PathBuf>,
    /// text or json
    #[arg(long, default_value = "text")]
    log_format: String,
    /// Changes nothing
    #[arg(long)]
    debug: bool,
    /// Refused
    #[arg(long)]
    systemd_cgroup: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Args)]
struct Making {
    #[arg(long, short, default_value = ".")]
    bundle: PathBuf,
    #[arg(long)]
    pid_file: Option<PathBuf>,
    #[arg(long)]
    console_socket: Option<PathBuf>,
    /// Changes nothing: there is no way without it
    #[arg(long)]
    no_pivot: bool,
    #[arg(long)]
    no_new_keyring: bool,
    #[arg(long, default_value_t = 0)]
    preserve_fds: u32,
    id: String,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// A container whose program waits
    Create(Making),
    /// Its program
    Start { id: String },
    /// Create and start
    Run {
        /// Do not wait for its end
        #[arg(long, short)]
        detach: bool,
        #[command(flatten)]
        making: Making,
    },
    /// What it is now
    State { id: String },
    /// A signal for it
    Kill {
        /// To everything in it: KILL does that in any case, other signals its program gets
        #[arg(long, short)]
        all: bool,
        id: String,
        #[arg(default_value = "TERM")]
        signal: String,
    },
    /// Away with it
    Delete {
        #[arg(long, short)]
        force: bool,
        id: String,
    },
    /// All there are
    List {
        #[arg(long, short, default_value = "table")]
        format: String,
        #[arg(long, short)]
        quiet: bool,
    },
    /// A config.json to begin with
    Spec {
        #[arg(long, short, default_value = ".")]
        bundle: PathBuf,
    },
    /// What is supported
    Features,
}

/// The whole command.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(std::iter::once(OsString::from("keelway oci")).chain(args)) {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    match run(&cli) {
        Ok(code) => code,
        Err(message) => {
            say(&cli, "error", &message);
            ExitCode::FAILURE
        }
    }
}

/// To standard error and the log.
fn say(cli: &Cli, level: &str, message: &str) {
    let message = crate::render::clean(message);
    let _ = writeln!(io::stderr(), "keelway oci: {message}");
    let Some(log) = &cli.log else { return };
    let Ok(mut file) = fs::OpenOptions::new().create(true).append(true).open(log) else { return };
    let _ = if cli.log_format == "json" {
        writeln!(file, "{}", json!({ "level": level, "msg": message }))
    } else {
        writeln!(file, "level={level} msg={}", json!(message))
    };
}

fn print(text: &str) {
    // A reader that is gone is no error.
    let _ = io::stdout().write_all(text.as_bytes());
}

fn text(e: OciError) -> String {
    e.to_string()
}

fn run(cli: &Cli) -> Result<ExitCode, String> {
    if cli.systemd_cgroup {
        return Err("--systemd-cgroup is not supported: cgroups are made directly".into());
    }
    let all = Containers { root: cli.root.clone() };
    let makes = matches!(cli.verb, Verb::Create(_) | Verb::Run { .. });
    if makes && !nix::unistd::geteuid().is_root() {
        return Err("containers of other engines need root: `keelway container run` does not".into());
    }
    match &cli.verb {
        Verb::Create(making) => {
            let created = create(cli, &all, making)?;
            created.running.release().map_err(|e| e.to_string())?;
        }
        Verb::Start { id } => all.start(id).map_err(text)?,
        Verb::Run { detach, making } => return run_whole(cli, &all, making, *detach),
        Verb::State { id } => {
            let state = all.state(id).map_err(text)?;
            print(&format!("{}\n", serde_json::to_string_pretty(&state).map_err(|e| e.to_string())?));
        }
        Verb::Kill { all: everything, id, signal } => {
            let number = number(signal)?;
            all.kill(id, number).map_err(text)?;
            if *everything && number != Signal::SIGKILL as i32 {
                say(cli, "warning", &format!("--all: {signal} was sent to the program of {id:?} alone"));
            }
        }
        Verb::Delete { force, id } => all.delete(id, *force).map_err(text)?,
        Verb::List { format, quiet } => {
            let states = all.list();
            if *quiet {
                states.iter().for_each(|s| print(&format!("{}\n", s.id)));
            } else if format == "json" {
                print(&format!("{}\n", serde_json::to_string(&states).map_err(|e| e.to_string())?));
            } else {
                print(&format!("{:<24} {:<8} {:<8} BUNDLE\n", "ID", "PID", "STATUS"));
                for s in &states {
                    print(&format!("{:<24} {:<8} {:<8} {}\n", s.id, s.pid, s.status, s.bundle.display()));
                }
            }
        }
        Verb::Spec { bundle } => spec(bundle)?,
        Verb::Features => print(&format!("{:#}\n", features())),
    }
    Ok(ExitCode::SUCCESS)
}

fn create(cli: &Cli, all: &Containers, making: &Making) -> Result<Created, String> {
    if making.console_socket.is_some() {
        return Err("--console-socket is not supported: this runtime gives no terminals".into());
    }
    if making.preserve_fds > 0 {
        return Err("--preserve-fds is not supported: a container gets three descriptors".into());
    }
    let own =
        |fd: io::Result<std::os::fd::OwnedFd>| fd.map_err(|e| format!("cannot hand a stream over: {e}"));
    let stdio = Stdio {
        stdin: own(io::stdin().as_fd().try_clone_to_owned())?,
        stdout: own(io::stdout().as_fd().try_clone_to_owned())?,
        stderr: own(io::stderr().as_fd().try_clone_to_owned())?,
    };
    let created = all.create(&making.id, &making.bundle, stdio).map_err(text)?;
    for warning in &created.warnings {
        say(cli, "warning", warning);
    }
    if let Some(path) = &making.pid_file {
        let wrote = fs::write(path, created.running.pid().to_string());
        if let Err(e) = wrote {
            drop(created);
            let _ = all.delete(&making.id, true);
            return Err(format!("cannot write {}: {e}", path.display()));
        }
    }
    Ok(created)
}

/// What is passed on to the program of one in the foreground.
const PASSED: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

fn run_whole(cli: &Cli, all: &Containers, making: &Making, detach: bool) -> Result<ExitCode, String> {
    let signals: SigSet = PASSED.into_iter().collect();
    if !detach {
        signals.thread_block().map_err(|e| format!("cannot wait for signals: {e}"))?;
    }
    let created = create(cli, all, making)?;
    let mut running = created.running;
    if let Err(e) = all.start(&making.id) {
        drop(running);
        let _ = all.delete(&making.id, true);
        return Err(e.to_string());
    }
    if detach {
        running.release().map_err(|e| e.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let heard = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|e| format!("cannot wait for signals: {e}"))?;
    loop {
        let mut fds =
            [PollFd::new(running.as_fd(), PollFlags::POLLIN), PollFd::new(heard.as_fd(), PollFlags::POLLIN)];
        let polled = poll(&mut fds, PollTimeout::NONE);
        let (ended, asked) = (fds[0].any().unwrap_or(true), fds[1].any().unwrap_or(false));
        if polled.is_ok() && asked {
            while let Ok(Some(signal)) = heard.read_signal() {
                let _ = running.signal(i32::try_from(signal.ssi_signo).unwrap_or(0));
            }
        }
        if polled.is_ok() && ended {
            break;
        }
    }
    let exit = running.wait().map_err(|e| e.to_string())?;
    all.delete(&making.id, true).map_err(text)?;
    Ok(ExitCode::from(match exit.kind {
        ExitKind::Code(code) => u8::try_from(code).unwrap_or(1),
        ExitKind::Signal(signal) => u8::try_from(128 + signal).unwrap_or(1),
        _ => 137,
    }))
}

/// `9`, `KILL`, `SIGKILL`.
fn number(signal: &str) -> Result<i32, String> {
    let wrong = || format!("{signal:?} is no signal");
    if let Ok(number) = signal.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(wrong()) };
    }
    let upper = signal.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    name.parse::<Signal>().map(|s| s as i32).map_err(|_| wrong())
}

fn spec(bundle: &Path) -> Result<(), String> {
    use keelway_sandbox::{RootFs, Spec, oci_config};
    let path = bundle.join("config.json");
    let name = "spec".parse().map_err(|e| format!("{e}"))?;
    let root = RootFs::ReadOnly { lowers: vec!["/".into()] };
    let mut config = oci_config(&Spec::new(root, vec!["sh".into()], name), Path::new("rootfs"))
        .map_err(|e| e.to_string())?;
    // This runtime's filter is its own, and in the file it could only be refused.
    config["linux"].as_object_mut().map(|linux| linux.remove("seccomp"));
    let open = fs::OpenOptions::new().write(true).create_new(true).open(&path);
    open.and_then(|mut f| f.write_all(format!("{config:#}\n").as_bytes()))
        .map_err(|e| format!("cannot write {}: {e}", path.display()))
}

fn features() -> serde_json::Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": [],
        "mountOptions": ["bind", "rbind", "ro", "rw", "nosuid", "nodev", "private", "rprivate", "relatime", "exec", "size", "mode"],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
            "capabilities": [
                "CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
                "CAP_KILL", "CAP_LEASE", "CAP_MKNOD", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_RAW", "CAP_SETFCAP",
                "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE"
            ],
            "cgroup": { "v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": false },
            "seccomp": { "enabled": false },
            "apparmor": { "enabled": false },
            "selinux": { "enabled": false },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": false } }
        }
    })
}
