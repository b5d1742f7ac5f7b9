//! Files out of a container and into it, running or not.
//!
//! A process of ours inside the container's root packs or unpacks (see [`keelway_sandbox::archive`]): one more process
//! of the running sandbox, or the only one of a sandbox that is made over the files of a container that has ended.
//! Meanwhile nobody else can start that one.

use crate::containers::Entry;
use crate::exec;
use crate::image::Image;
use crate::keeping::{self, Post};
use keelway_disk::{LockError, Root};
use keelway_sandbox::{
    CapProfile, ExecSpec, ExitKind, Launcher, LauncherConfig, Network, RootFs, Spec, Stdio, Work,
};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;
use tokio::sync::mpsc;

/// Bytes of what the process says that are kept.
const MAX_WORDS: u64 = 4096;

/// Why nothing, or not everything, was copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The process says why.
    #[error("{0}")]
    Refused(String),
    /// It could not be started.
    #[error("cannot copy: {0}")]
    Start(String),
    /// Our own side.
    #[error("{0}")]
    Here(#[source] io::Error),
}

fn start(error: impl std::fmt::Display) -> CopyError {
    CopyError::Start(error.to_string())
}

/// What our own side does with the other end of the process's output or input.
type Ours = JoinHandle<io::Result<()>>;

/// Packs a path of the container; `take` reads the tar, in a thread of its own.
pub async fn out_of(
    post: &Post,
    entry: &Entry,
    path: &str,
    take: impl FnOnce(File) -> io::Result<()> + Send + 'static,
) -> Result<(), CopyError> {
    let (reader, writer) = io::pipe().map_err(CopyError::Here)?;
    let null = File::open("/dev/null").map_err(CopyError::Here)?;
    let ours = thread(move || take(File::from(OwnedFd::from(reader))))?;
    run(post, entry, Work::Pack { path: path.to_owned() }, null.into(), writer.into(), ours).await
}

/// Unpacks into the container what `give` writes.
pub async fn into(
    post: &Post,
    entry: &Entry,
    to: keelway_sandbox::archive::Destination,
    give: impl FnOnce(File) -> io::Result<()> + Send + 'static,
) -> Result<(), CopyError> {
    let (reader, writer) = io::pipe().map_err(CopyError::Here)?;
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null").map_err(CopyError::Here)?;
    let ours = thread(move || give(File::from(OwnedFd::from(writer))))?;
    run(post, entry, Work::Unpack { to }, reader.into(), null.into(), ours).await
}

fn thread(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<Ours, CopyError> {
    std::thread::Builder::new().name("copy".into()).spawn(work).map_err(CopyError::Here)
}

async fn run(
    post: &Post,
    entry: &Entry,
    work: Work,
    stdin: OwnedFd,
    stdout: OwnedFd,
    ours: Ours,
) -> Result<(), CopyError> {
    let (words, stderr) = io::pipe().map_err(CopyError::Here)?;
    let hear = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = words.take(MAX_WORDS).read_to_end(&mut text);
        String::from_utf8_lossy(&text).trim().to_owned()
    });
    let stdio = [stdin, stdout, OwnedFd::from(stderr)];
    let code = if entry.files.is_kept() {
        let mut spec = ExecSpec::new(vec!["keelway-cp".into()]);
        (spec.work, spec.caps) = (work, CapProfile::Build);
        let session = exec::begin(&entry.files.socket(), &spec, &stdio).await.map_err(start)?;
        drop(stdio);
        let (_nobody, mut signals) = mpsc::channel(1);
        session.wait(&mut signals).await.map_err(start)?
    } else {
        let (post, entry) = (post.clone(), entry.clone());
        let ended = tokio::task::spawn_blocking(move || over_its_files(&post, &entry, work, stdio)).await;
        ended.map_err(start)??
    };
    let joined = tokio::task::spawn_blocking(move || (ours.join(), hear.join())).await.map_err(start)?;
    let (ours, words) = joined;
    // What the process says is the cause, whatever our own side saw of it.
    match words {
        Ok(words) if code != 0 && !words.is_empty() => return Err(CopyError::Refused(words)),
        _ => {}
    }
    ours.unwrap_or_else(|_| Err(io::Error::other("the thread that copied failed")))
        .map_err(CopyError::Here)?;
    match code {
        0 => Ok(()),
        code => Err(CopyError::Start(format!("the copying process ended with {code}"))),
    }
}

/// A sandbox over the files of a container that nobody keeps.
fn over_its_files(post: &Post, entry: &Entry, work: Work, stdio: [OwnedFd; 3]) -> Result<u8, CopyError> {
    let (record, files) = (&entry.record, &entry.files);
    let _lock = files.take_keeper_lock().map_err(|e| match e {
        LockError::TimedOut { .. } => start("the container has just been started: try again"),
        other => start(other),
    })?;
    let store = keeping::open_store(&post.state).map_err(start)?;
    let image = Image::prepare(&store, record.digest).map_err(start)?;
    let lowers = store.lowers(&image.chain);
    let work_dir = files.work();
    let own = || io::Error::other("no name");
    let name = work_dir.file_name().ok_or_else(own).map_err(CopyError::Here)?.as_encoded_bytes();
    let dir = Root::open(files.dir()).map_err(CopyError::Here)?;
    dir.remove_all(name).and_then(|()| dir.mkdir(name, 0o700)).map_err(CopyError::Here)?;
    let root = RootFs::Overlay { lowers, upper: files.upper(), work: work_dir };
    let run = store.run_dir().file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let parent = format!("keelway/copy-{run}");
    store.note_cgroup(&parent).map_err(start)?;
    let launcher = Launcher::new(LauncherConfig::new(parent.parse().map_err(start)?));
    let mut spec = Spec::new(root, vec!["keelway-cp".into()], "copy".parse().map_err(start)?);
    (spec.work, spec.caps, spec.network) = (work, CapProfile::Build, Network::None);
    spec.mounts = keeping::binds(record);
    let [stdin, stdout, stderr] = stdio;
    let mut running = launcher.spawn(&spec, Stdio { stdin, stdout, stderr }).map_err(start)?;
    match running.wait().map_err(start)?.kind {
        ExitKind::Code(code) => Ok(u8::try_from(code & 0xff).unwrap_or(1)),
        _ => Err(CopyError::Start("the copying process was killed".into())),
    }
}
