//! Our own terminal while a container's is seen through it, and the pumps between us and the container.

use crate::outcome::CommandError;
use keelway_container::console::{Input, Tee};
use keelway_model::LogStream;
use rustix::termios::{self, OptionalActions, Termios, Winsize};
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// Signals that are passed on, as the kernel numbers them.
const PASSED: [i32; 7] = [1, 2, 3, 10, 12, 14, 15];
/// Most that is read at once.
const BUFFER: usize = 16 << 10;
/// Between two looks at pumps whose process has ended.
const LOOK: Duration = Duration::from_millis(5);
/// So many looks at a pump with nothing to do are enough: what holds its stream open is not the process.
const IDLE_LOOKS: u32 = 100;
/// What the kernel may have of a stream beside what it says when asked: a terminal has two buffers.
const UNSEEN: u64 = 128 << 10;

/// Our terminal takes every key as it is until this is dropped.
pub struct Raw(Option<Termios>);

impl Raw {
    /// Where standard input is a terminal.
    pub fn begin() -> Self {
        let stdin = io::stdin();
        let Ok(before) = termios::tcgetattr(&stdin) else { return Self(None) };
        let mut raw = before.clone();
        raw.make_raw();
        match termios::tcsetattr(&stdin, OptionalActions::Now, &raw) {
            Ok(()) => Self(Some(before)),
            Err(_) => Self(None),
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Rows and columns of our terminal.
pub fn window() -> Option<(u16, u16)> {
    let of = |size: Winsize| (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col));
    [io::stdout().as_fd(), io::stdin().as_fd(), io::stderr().as_fd()]
        .into_iter()
        .find_map(|fd| termios::tcgetwinsize(fd).ok().and_then(of))
}

/// A container's terminal gets the size of ours.
fn resize(terminal: &OwnedFd) {
    if let Some((rows, columns)) = window() {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let _ = termios::tcsetwinsize(terminal, size);
    }
}

/// Keys are only typed into a terminal.
pub fn check(interactive: bool, tty: bool) -> Result<(), CommandError> {
    if interactive && tty && !io::stdin().is_terminal() {
        return Err(CommandError::usage("-t: the input is no terminal; leave -t out"));
    }
    Ok(())
}

/// Copies our standard input until it ends or nobody takes it.
fn pump_input(to: OwnedFd) {
    let Ok(from) = io::stdin().as_fd().try_clone_to_owned() else { return };
    let (mut from, mut to) = (File::from(from), File::from(to));
    // A thread that may never end: a read of a terminal cannot be called off. It ends with us.
    std::thread::spawn(move || {
        let mut buffer = vec![0; BUFFER];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) if to.write_all(&buffer[..n]).is_err() => break,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    });
}

/// Copies a container's output to ours.
fn write_output(stream: LogStream, bytes: &[u8]) -> io::Result<()> {
    match stream {
        LogStream::Stdout => {
            let mut out = io::stdout().lock();
            out.write_all(bytes).and_then(|()| out.flush())
        }
        LogStream::Stderr => io::stderr().lock().write_all(bytes),
    }
}

/// How far a pump is.
#[derive(Debug, Default)]
struct Progress {
    read: AtomicU64,
    written: AtomicU64,
    /// It waits for something to read.
    waits: AtomicBool,
    /// Nobody takes what it writes.
    deaf: AtomicBool,
}

/// A thread that copies a stream until it ends.
struct Pump {
    /// The thread's: when nobody takes what it writes it closes the stream, and the process learns of it.
    from: Weak<File>,
    progress: Arc<Progress>,
    thread: JoinHandle<()>,
}

impl Pump {
    fn begin(from: OwnedFd, mut to: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static) -> Self {
        let (stream, progress) = (Arc::new(File::from(from)), Arc::new(Progress::default()));
        let (from, seen) = (Arc::downgrade(&stream), Arc::clone(&progress));
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; BUFFER];
            loop {
                seen.waits.store(true, Ordering::SeqCst);
                let read = (&*stream).read(&mut buffer);
                seen.waits.store(false, Ordering::SeqCst);
                match read {
                    Ok(0) => break,
                    Ok(n) => {
                        seen.read.fetch_add(n as u64, Ordering::SeqCst);
                        if to(&buffer[..n]).is_err() {
                            seen.deaf.store(true, Ordering::SeqCst);
                            break;
                        }
                        seen.written.fetch_add(n as u64, Ordering::SeqCst);
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    // The other side of a terminal that nobody has open any more.
                    Err(_) => break,
                }
            }
        });
        Self { from, progress, thread }
    }

    /// Bytes that can be read.
    fn waiting(&self) -> u64 {
        self.from.upgrade().map_or(0, |from| rustix::io::ioctl_fionread(&*from).unwrap_or(0))
    }

    /// Waits until everything that its process had written when it ended is with our reader, however slow that is. What
    /// the process left running may hold the stream open for ever: nobody waits for what that writes.
    async fn end(self) {
        let owed = self.waiting() + self.progress.read.load(Ordering::SeqCst) + UNSEEN;
        let mut idle = 0;
        while !self.thread.is_finished()
            && !self.progress.deaf.load(Ordering::SeqCst)
            && self.progress.written.load(Ordering::SeqCst) < owed
            && idle < IDLE_LOOKS
        {
            tokio::time::sleep(LOOK).await;
            idle += u32::from(self.progress.waits.load(Ordering::SeqCst) && self.waiting() == 0);
        }
    }
}

/// We, at the input and output of a container that runs in this process.
#[derive(Default)]
pub struct Here {
    interactive: bool,
    terminal: Arc<Mutex<Option<OwnedFd>>>,
    raw: Mutex<Option<Raw>>,
}

impl Here {
    pub fn new(interactive: bool) -> Self {
        Self { interactive, ..Self::default() }
    }
    /// The container's terminal, once it runs.
    pub fn terminal(&self) -> Arc<Mutex<Option<OwnedFd>>> {
        Arc::clone(&self.terminal)
    }
    /// Our terminal is as it was again.
    pub fn end(&self) {
        self.raw.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Tee for Here {
    fn started(&self, input: Input) {
        match input {
            Input::Closed => {}
            Input::Pipe(pipe) => pump_input(pipe),
            Input::Terminal(terminal) => {
                resize(&terminal);
                if self.interactive {
                    *self.raw.lock().unwrap_or_else(PoisonError::into_inner) = Some(Raw::begin());
                    if let Ok(keys) = terminal.try_clone() {
                        pump_input(keys);
                    }
                }
                *self.terminal.lock().unwrap_or_else(PoisonError::into_inner) = Some(terminal);
            }
        }
    }
    fn output(&self, stream: LogStream, bytes: &[u8]) -> io::Result<()> {
        write_output(stream, bytes)
    }
}

/// Passes signals on, and the size of our window to the terminal of the moment. Ends when it is aborted.
pub fn pass_signals(
    terminal: Arc<Mutex<Option<OwnedFd>>>,
    to: mpsc::Sender<i32>,
) -> io::Result<tokio::task::JoinSet<()>> {
    let mut tasks = tokio::task::JoinSet::new();
    for number in PASSED {
        let mut stream: Signal = signal(SignalKind::from_raw(number))?;
        let to = to.clone();
        tasks.spawn(async move {
            while stream.recv().await.is_some() {
                let _ = to.send(number).await;
            }
        });
    }
    let mut changes = signal(SignalKind::window_change())?;
    tasks.spawn(async move {
        while changes.recv().await.is_some() {
            if let Some(terminal) = &*terminal.lock().unwrap_or_else(PoisonError::into_inner) {
                resize(terminal);
            }
        }
    });
    Ok(tasks)
}

/// What a process in another process's container reads and writes: pipes of ours, never our own descriptors.
pub struct Pipes {
    /// For the process.
    pub theirs: [OwnedFd; 3],
    ours: Option<(Option<OwnedFd>, OwnedFd, OwnedFd)>,
}

impl Pipes {
    /// Nothing, for a process with a terminal.
    pub fn none() -> io::Result<Self> {
        let null = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from);
        Ok(Self { theirs: [null()?, null()?, null()?], ours: None })
    }
    /// Output and error, and input where it is asked for.
    pub fn new(interactive: bool) -> io::Result<Self> {
        let pipe = || io::pipe().map(|(r, w)| (OwnedFd::from(r), OwnedFd::from(w)));
        let (out, stdout) = pipe()?;
        let (err, stderr) = pipe()?;
        let (stdin, input) = match interactive {
            true => pipe().map(|(r, w)| (r, Some(w)))?,
            false => (File::open("/dev/null")?.into(), None),
        };
        Ok(Self { theirs: [stdin, stdout, stderr], ours: Some((input, out, err)) })
    }
}

/// The pumps of a process in another process's container.
pub struct Pumps {
    outputs: Vec<Pump>,
    _raw: Option<Raw>,
}

impl Pumps {
    /// Begins to copy; our ends of the pipes are taken, theirs closed.
    pub fn begin(
        pipes: Pipes,
        terminal: Option<OwnedFd>,
        interactive: bool,
        window: &Mutex<Option<OwnedFd>>,
    ) -> io::Result<Self> {
        drop(pipes.theirs);
        let spawn = |stream, from| Pump::begin(from, move |bytes: &[u8]| write_output(stream, bytes));
        if let Some(terminal) = terminal {
            resize(&terminal);
            let raw = interactive.then(Raw::begin);
            if interactive {
                pump_input(terminal.try_clone()?);
            }
            let outputs = vec![spawn(LogStream::Stdout, terminal.try_clone()?)];
            *window.lock().unwrap_or_else(PoisonError::into_inner) = Some(terminal);
            return Ok(Self { outputs, _raw: raw });
        }
        let mut outputs = Vec::new();
        if let Some((input, out, err)) = pipes.ours {
            if let Some(input) = input {
                pump_input(input);
            }
            outputs = vec![spawn(LogStream::Stdout, out), spawn(LogStream::Stderr, err)];
        }
        Ok(Self { outputs, _raw: None })
    }

    /// Waits until what was written before the end is with our reader. A signal ends the wait: there is nobody else to
    /// pass it on to.
    pub async fn end(self, signals: &mut mpsc::Receiver<i32>) {
        let pumps = async {
            for output in self.outputs {
                output.end().await;
            }
        };
        tokio::select! {
            () = pumps => {}
            Some(_) = signals.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::SyncSender;

    /// Longer than pumps with nothing to do are waited for.
    const LONG: Duration = Duration::from_secs(2);

    /// A pump of a pipe with 60,000 bytes in it whose reader takes each buffer when it is told to.
    fn pump() -> (Pump, io::PipeWriter, SyncSender<()>, Arc<AtomicU64>) {
        let (from, mut into) = io::pipe().unwrap();
        let (take, taking) = std::sync::mpsc::sync_channel(0);
        let taken = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&taken);
        let pump = Pump::begin(from.into(), move |bytes| {
            taking.recv().map_err(io::Error::other)?;
            count.fetch_add(bytes.len() as u64, Ordering::SeqCst);
            Ok(())
        });
        into.write_all(&[b'x'; 60_000]).unwrap();
        (pump, into, take, taken)
    }

    fn take_all(take: SyncSender<()>) {
        std::thread::spawn(move || while take.send(()).is_ok() {});
    }

    #[tokio::test]
    async fn a_slow_reader_gets_all_of_it() {
        let (pump, into, take, taken) = pump();
        drop(into);
        let end = pump.end();
        tokio::pin!(end);
        assert!(tokio::time::timeout(LONG, &mut end).await.is_err(), "it ends although nobody has read");
        take_all(take);
        end.await;
        assert_eq!(taken.load(Ordering::SeqCst), 60_000);
    }

    #[tokio::test]
    async fn who_else_has_the_stream_open_is_not_waited_for() {
        // One that says nothing.
        let (silent, _into, take, taken) = pump();
        take_all(take);
        silent.end().await;
        assert_eq!(taken.load(Ordering::SeqCst), 60_000);
        // One that does not stop talking.
        let (endless, mut into, take, _) = pump();
        std::thread::spawn(move || while into.write_all(b"and more\n").is_ok() {});
        take_all(take);
        endless.end().await;
        // One whose reader is gone.
        let (deaf, _into, take, _) = pump();
        drop(take);
        deaf.end().await;
    }
}
