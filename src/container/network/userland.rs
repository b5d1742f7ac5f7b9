//! A way out for those who may not make interfaces of the machine: pasta(1), a program of the system.
//!
//! It carries what leaves a router as connections of this user's own, and so reaches what this user reaches. It
//! forwards nothing inwards, maps no address to the machine's loopback, and gives the router the machine's own
//! addresses, so that a packet to one of them never leaves the router. It dies with this process, however that ends:
//! it is started by a thread that lives as long as it does, with a parent-death signal.

use super::NetworkError;
use super::namespace::Namespace;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

/// What it is asked to be. Its standard input is the namespace, since a path of another process it may not open.
const ARGUMENTS: [&str; 20] = [
    "--foreground",
    "--quiet",
    "--netns-only",
    "--config-net",
    "--ipv4-only",
    "--no-map-gw",
    "--no-dhcp",
    "--no-dhcpv6",
    "--no-ndp",
    "--no-ra",
    "-t",
    "none",
    "-u",
    "none",
    "-T",
    "none",
    "-U",
    "none",
    "--netns",
    "/proc/self/fd/0",
];
/// How much of its complaints is kept.
const COMPLAINT: u64 = 2000;

/// A running pasta; dropping it ends it.
#[derive(Debug)]
pub(super) struct Pasta {
    child: Child,
    /// Its thread ends when this goes.
    _thread: mpsc::Sender<()>,
}

impl Pasta {
    /// Starts it for this namespace, in which its interface will have this name.
    pub(super) fn start(
        program: &Path,
        namespace: &Namespace,
        interface: &str,
    ) -> Result<Self, NetworkError> {
        let failed =
            |source| NetworkError::Userland { program: program.to_owned(), detail: format!("{source}") };
        let own = namespace.as_fd().try_clone_to_owned().map_err(failed)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program).args(ARGUMENTS).args(["--ns-ifname", interface]);
        command.stdin(Stdio::from(own)).stdout(Stdio::null()).stderr(Stdio::piped());
        // The signal comes when the thread that started it ends, so that one stays.
        let (give, given) = mpsc::sync_channel::<io::Result<Child>>(1);
        let (thread, stay) = mpsc::channel::<()>();
        let body = move || {
            let _ = give.send(command.spawn());
            let _ = stay.recv();
        };
        std::thread::Builder::new().name("pasta".into()).spawn(body).map_err(failed)?;
        let child = given.recv().map_err(|_| failed(io::ErrorKind::BrokenPipe.into()))?.map_err(failed)?;
        Ok(Self { child, _thread: thread })
    }

    /// Whether it is still there; else what it said.
    pub(super) fn check(&mut self, program: &Path) -> Result<(), NetworkError> {
        let ended = self.child.try_wait().map_err(NetworkError::kernel("look after pasta"))?;
        let Some(status) = ended else { return Ok(()) };
        let mut said = String::new();
        if let Some(stderr) = self.child.stderr.take() {
            let _ = stderr.take(COMPLAINT).read_to_string(&mut said);
        }
        // It complains about a syslog that is not there, too.
        let lines: Vec<&str> = said.lines().filter(|l| !l.contains("syslog")).collect();
        let detail = if lines.is_empty() { status.to_string() } else { lines.join("; ") };
        Err(NetworkError::Userland { program: program.to_owned(), detail })
    }
}

impl Drop for Pasta {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
