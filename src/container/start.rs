//! One start of a container: root, input and output, process; and its end.
//!
//! Invariants: what is written is read to its end whatever becomes of the log, so that a full disk loses log
//! bytes and never the container; the end is told when every process is dead and the log is whole; a start
//! that fails leaves nothing behind.

use crate::console::{Console, Input, Tee};
use crate::container::{End, Settings, StartError, exit_code};
use crate::lines::{LineWriter, Splitter};
use crate::logs::{self, LogWriter};
use crate::network::{self, Attached, LOCALHOST, Networks};
use crate::publish::{Forwarder, Listening};
use keelway_disk::Root;
use keelway_model::clock::SystemClock;
use keelway_model::{Clock, LogStream};
use keelway_sandbox::{ExitKind, Launcher, Mount, MountKind, RootFs, Running, Spec, Stdio};
use keelway_store::{Store, Upper};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long the end of a log may come after the end of its processes.
const LOG_END: Duration = Duration::from_secs(5);
/// Most that is read from a container at once.
const BUFFER: usize = 64 << 10;

type Writers = Vec<JoinHandle<io::Result<()>>>;

/// A process that runs, and what must be done when it has ended.
pub(crate) struct Started {
    pub running: Running,
    pub finish: Finish,
}

/// What outlasts the process.
pub(crate) struct Finish {
    writers: Writers,
    upper: Option<Upper>,
    /// Held where nobody else has the other end of the container's input.
    input: Option<Input>,
    /// Its own network, which must outlast its processes.
    network: Option<Attached>,
    /// The machine's ports that lead into it.
    ports: Vec<Forwarder>,
    /// Whether somebody reads along, for whom we wait as any program waits for its reader.
    patient: bool,
}

/// Starts it. Blocking.
pub(crate) fn start(
    store: &Store,
    launcher: &Launcher,
    mut spec: Spec,
    settings: &Settings,
) -> Result<Started, StartError> {
    let (root, upper) = root(store, settings)?;
    spec.root = root;
    let network = settings.shape.networks.as_ref().map(Networks::private).transpose()?;
    let (hosts, resolv_conf) = match &network {
        Some(network) => {
            spec.network = network.network();
            (network.hosts(&settings.hostname), network.resolv_conf().to_vec())
        }
        None => {
            let hosts = format!("{LOCALHOST}127.0.1.1\t{}\n", settings.hostname);
            (hosts.into_bytes(), network::resolv_conf())
        }
    };
    let hostname = format!("{}\n", settings.hostname).into_bytes();
    for (target, content) in
        [("/etc/hosts", hosts), ("/etc/hostname", hostname), ("/etc/resolv.conf", resolv_conf)]
    {
        // A mount that was asked for there comes later and lies over it.
        spec.mounts.insert(
            0,
            Mount { target: target.into(), kind: MountKind::File { content, mode: 0o644, owner: (0, 0) } },
        );
    }
    let log_failed = |source| StartError::Log { path: settings.log_dir.clone(), source };
    let pipes = Pipes::of(settings.shape.console).map_err(log_failed)?;
    let Pipes { stdio, input, output, error } = pipes;
    let mut log = Log::open(settings).map_err(log_failed)?;
    // Before the process runs: a port that is taken is no reason to run it and kill it again.
    let ports = settings.shape.ports.iter().map(Listening::on).collect::<Result<Vec<_>, _>>()?;
    let mut running = launcher.spawn(&spec, stdio)?;
    let (input, output) = match running.take_terminal() {
        Some(terminal) => {
            let other = terminal.try_clone().map_err(log_failed)?;
            (Some(Input::Terminal(terminal)), Some(other))
        }
        None => (input.map(Input::Pipe), output),
    };
    let ports = match &network {
        Some(network) => {
            let (path, address) = (network.network(), network.address());
            let forward = |listening: Listening| listening.forward(&path, address);
            ports.into_iter().map(forward).collect::<Result<_, _>>()?
        }
        None => Vec::new(),
    };
    for warning in running.warnings() {
        tracing::warn!(warning, "the sandbox is less than asked for");
    }
    let mut writers = Vec::new();
    for (stream, from) in [(LogStream::Stdout, output), (LogStream::Stderr, error)] {
        if let Some(from) = from {
            writers.push(log.follow(stream, from).map_err(log_failed)?);
        }
    }
    let input = match (&settings.shape.tee, input) {
        (Some(tee), Some(input)) => {
            tee.started(input);
            None
        }
        (Some(tee), None) => {
            tee.started(Input::Closed);
            None
        }
        (None, input) => input,
    };
    let patient = settings.shape.tee.is_some();
    Ok(Started { running, finish: Finish { writers, upper, input, network, ports, patient } })
}

/// The root file system, and the layer that goes when the container has ended.
fn root(store: &Store, settings: &Settings) -> Result<(RootFs, Option<Upper>), StartError> {
    let lowers = store.lowers(&settings.image.chain);
    if settings.shape.read_only && !lowers.is_empty() {
        return Ok((RootFs::ReadOnly { lowers }, None));
    }
    match &settings.shape.kept {
        Some(kept) => {
            let failed = |path: &Path| {
                let path = path.to_owned();
                move |source| StartError::Kept { path, source }
            };
            fresh_dir(&kept.work).map_err(failed(&kept.work))?;
            let root = RootFs::Overlay { lowers, upper: kept.upper.clone(), work: kept.work.clone() };
            Ok((root, None))
        }
        None => {
            let upper = store.begin()?;
            let (fs, work) = (upper.fs().to_owned(), upper.work().to_owned());
            Ok((RootFs::Overlay { lowers, upper: fs, work }, Some(upper)))
        }
    }
}

/// An empty directory in the place of what was there.
fn fresh_dir(path: &Path) -> io::Result<()> {
    let bad = || io::Error::new(io::ErrorKind::InvalidInput, "no directory of its own");
    let (parent, name) = path.parent().zip(path.file_name()).ok_or_else(bad)?;
    let (parent, name) = (Root::open(parent)?, name.as_encoded_bytes());
    parent.remove_all(name)?;
    parent.mkdir(name, 0o700)
}

/// Both ends of everything.
struct Pipes {
    stdio: Stdio,
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    error: Option<OwnedFd>,
}

impl Pipes {
    fn of(console: Console) -> io::Result<Self> {
        let pipe = || io::pipe().map(|(r, w)| (OwnedFd::from(r), OwnedFd::from(w)));
        match console {
            Console::Log => {
                let (output, writer) = pipe()?;
                Ok(Self { stdio: Stdio::output_to(writer)?, input: None, output: Some(output), error: None })
            }
            Console::Terminal { .. } => {
                Ok(Self { stdio: Stdio::null()?, input: None, output: None, error: None })
            }
            Console::Lines { input } => {
                let (output, stdout) = pipe()?;
                let (error, stderr) = pipe()?;
                let (stdin, input) = match input {
                    true => pipe().map(|(r, w)| (r, Some(w)))?,
                    false => (File::open("/dev/null")?.into(), None),
                };
                let stdio = Stdio { stdin, stdout, stderr };
                Ok(Self { stdio, input, output: Some(output), error: Some(error) })
            }
        }
    }
}

/// Where output goes.
enum Log {
    Raw(Option<LogWriter>),
    Lines(Arc<Mutex<LineWriter>>, Option<Arc<dyn Tee>>),
}

impl Log {
    fn open(settings: &Settings) -> io::Result<Self> {
        Ok(match settings.shape.console {
            Console::Log => Self::Raw(Some(LogWriter::open(&settings.log_dir, logs::CAP)?)),
            Console::Lines { .. } | Console::Terminal { .. } => {
                let log = LineWriter::open(&settings.log_dir, logs::CAP)?;
                Self::Lines(Arc::new(Mutex::new(log)), settings.shape.tee.clone())
            }
        })
    }

    /// A thread that reads a stream to its end.
    fn follow(&mut self, stream: LogStream, from: OwnedFd) -> io::Result<JoinHandle<io::Result<()>>> {
        let thread = std::thread::Builder::new().name("log".into());
        let from = File::from(from);
        match self {
            Self::Raw(log) => {
                let mut log = log.take().ok_or_else(|| io::Error::other("one log for two streams"))?;
                thread.spawn(move || log.drain(from))
            }
            Self::Lines(log, tee) => {
                let (log, tee) = (Arc::clone(log), tee.clone());
                thread.spawn(move || drain(stream, from, &log, tee.as_deref()))
            }
        }
    }
}

fn drain(
    stream: LogStream,
    mut from: File,
    log: &Mutex<LineWriter>,
    tee: Option<&dyn Tee>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut records = Vec::new();
    let mut splitter = Splitter::new(stream);
    let mut first = Ok(());
    loop {
        let read = match from.read(&mut buffer) {
            // The other side of a terminal that nobody has open any more.
            Err(e) if e.raw_os_error() == Some(nix::libc::EIO) => 0,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return first.and(Err(e)),
            Ok(n) => n,
        };
        let now = SystemClock.now();
        match read {
            0 => splitter.end(now, &mut records),
            n => splitter.push(&buffer[..n], now, &mut records),
        }
        let done = log.lock().unwrap_or_else(PoisonError::into_inner).append(&records);
        records.clear();
        if first.is_ok() {
            first = done;
        }
        if read == 0 {
            return first;
        }
        if let Some(Err(e)) = tee.map(|tee| tee.output(stream, &buffer[..read])) {
            tracing::debug!("nobody reads {stream:?} of the container any more: {e}");
            let mut rest = Vec::new();
            splitter.end(now, &mut rest);
            let done = log.lock().unwrap_or_else(PoisonError::into_inner).append(&rest);
            return first.and(done);
        }
    }
}

impl Finish {
    /// Waits for the end of everything: processes, then the log. The upper layer goes last.
    pub(crate) fn wait(self, mut running: Running) -> End {
        let end = match running.wait() {
            Ok(exit) => {
                let out_of_memory = exit.kind == ExitKind::OutOfMemory;
                let ended = !matches!(exit.kind, ExitKind::Code(_) | ExitKind::Signal(_));
                let limit = exit.limit().filter(|_| ended).map(|_| exit.to_string());
                End { text: exit.to_string(), code: exit_code(&exit.kind), out_of_memory, limit }
            }
            Err(error) => End::without(error.to_string(), crate::container::NOT_STARTED),
        };
        drop((running, self.input, self.ports, self.network));
        // All writers of the pipes are dead, so their end is near; a log on a dead disk must not hold us.
        let deadline = Instant::now() + LOG_END;
        for writer in self.writers {
            while !writer.is_finished() && (self.patient || Instant::now() < deadline) {
                std::thread::sleep(Duration::from_millis(2));
            }
            if !writer.is_finished() {
                tracing::error!("the log is not complete: the disk does not answer");
            } else if let Ok(Err(error)) = writer.join() {
                tracing::error!(%error, "the log is not complete");
            }
        }
        drop(self.upper);
        end
    }
}
