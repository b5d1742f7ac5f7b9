//! A container made by hand, kept in this process: its record, its keeper, its console, more processes, copies, its end.
//!
//! The binary is the test and, by its first argument, the init of its sandboxes.

#![allow(clippy::unwrap_used, reason = "clippy does not see that a test with a main of its own is one")]

use keelway_container::console::{Input, Tee};
use keelway_container::containers::{Containers, ContainersError, Entry, New, Phase};
use keelway_container::keeper::{self, Ask};
use keelway_container::keeping::{self, Attachment, Post};
use keelway_container::record::{Asked, EndRecord, NetworkMode, Want};
use keelway_container::{RestartPolicy, Status, copy, exec, wire};
use keelway_disk::Lock;
use keelway_model::clock::SystemClock;
use keelway_model::oci::{Descriptor, ImageConfig, Manifest, media};
use keelway_model::{Digest, Limits, LogStream, Platform};
use keelway_sandbox::{ExecSpec, archive};
use keelway_store::{Compression, Store};
use libtest_mimic::{Arguments, Trial};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Bound of every wait.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|a| a == keelway_sandbox::INIT_ARGUMENT) {
        keelway_sandbox::init_main();
    }
    let trial = |name: &str, test: fn()| Trial::test(name, move || run(test));
    let trials = vec![
        trial("from_its_record_to_its_end", from_its_record_to_its_end),
        trial("input_output_and_a_name_for_each", input_output_and_a_name_for_each),
        trial("what_cannot_start_says_why", what_cannot_start_says_why),
        trial("what_was_stopped_does_not_begin", what_was_stopped_does_not_begin),
        trial("who_only_looks_is_nobody_who_keeps", who_only_looks_is_nobody_who_keeps),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn run(test: fn()) -> Result<(), libtest_mimic::Failed> {
    std::panic::catch_unwind(test).map_err(|p| {
        let text = p.downcast_ref::<String>().cloned();
        text.or_else(|| p.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_else(|| "panicked".into())
            .into()
    })
}

/// A state directory whose store has a small image with busybox.
struct Yard {
    dir: TempDir,
    digest: Digest,
    runtime: tokio::runtime::Runtime,
}

impl Yard {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("keelway-container-").tempdir_in("/dev/shm").unwrap();
        let digest = image(dir.path());
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        Self { dir, digest, runtime }
    }
    fn containers(&self) -> Containers {
        Containers::of(self.dir.path())
    }
    fn create(
        &self,
        name: &str,
        script: &str,
        change: impl FnOnce(&mut Asked),
    ) -> Result<Entry, ContainersError> {
        let command: Vec<String> = ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec();
        let mut asked = Asked {
            entrypoint: None,
            command: command.clone(),
            env: Vec::new(),
            cwd: None,
            user: None,
            hostname: None,
            network: NetworkMode::None,
            publish: Vec::new(),
            limits: Limits::default(),
            read_only: false,
            tmpfs: Vec::new(),
            binds: Vec::new(),
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            terminal: false,
            input: false,
            remove: false,
            detached: false,
            restart: RestartPolicy::No,
            health: None,
            stop_signal: None,
            stop_timeout: None,
            labels: BTreeMap::new(),
        };
        change(&mut asked);
        let name = Some(name.parse().unwrap());
        self.containers().create(New {
            name,
            image: "small".into(),
            digest: self.digest,
            argv: command,
            stop_signal: 15,
            asked,
        })
    }
    fn post(&self, entry: &Entry) -> Post {
        Post { state: self.dir.path().to_owned(), id: entry.record.id.clone() }
    }
    fn until(&self, what: &str, mut happened: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !happened() {
            assert!(Instant::now() < end, "did not happen: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    /// Keeps a container in the background of this process.
    fn keep(&self, entry: &Entry, tee: Option<Arc<dyn Tee>>) -> tokio::task::JoinHandle<EndRecord> {
        let post = self.post(entry);
        self.runtime.spawn(async move {
            keeping::keep(&post, Attachment { tee, window: None }, keeper::desk()).await.unwrap()
        })
    }
}

fn image(root: &Path) -> Digest {
    let store = Store::open(&root.join("store"), Arc::new(SystemClock)).unwrap();
    let upper = store.begin().unwrap();
    for dir in ["bin", "tmp"] {
        std::fs::create_dir(upper.fs().join(dir)).unwrap();
    }
    std::fs::copy("/bin/busybox", upper.fs().join("bin/busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", upper.fs().join("bin/sh")).unwrap();
    let layer = store.layer_of(&upper.freeze().unwrap(), Compression::None).unwrap();
    let mut config = ImageConfig::scratch(Platform::host());
    config.rootfs.diff_ids = vec![layer.diff_id];
    let config = serde_json::to_vec(&config).unwrap();
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media::MANIFEST.into()),
        config: Descriptor::new(media::CONFIG, store.put_blob(&config).unwrap(), config.len() as u64),
        layers: vec![layer.descriptor],
        annotations: BTreeMap::new(),
        extra: BTreeMap::new(),
    };
    store.put_blob(&serde_json::to_vec(&manifest).unwrap()).unwrap()
}

/// What a container wrote, and a way to write to it.
#[derive(Default)]
struct Heard {
    text: Mutex<Vec<(LogStream, Vec<u8>)>>,
    input: Mutex<Option<OwnedFd>>,
}

impl Heard {
    fn of(&self, stream: LogStream) -> String {
        let text = self.text.lock().unwrap();
        let bytes: Vec<u8> = text.iter().filter(|(s, _)| *s == stream).flat_map(|(_, b)| b.clone()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Tee for Heard {
    fn started(&self, input: Input) {
        if let Input::Pipe(pipe) = input {
            *self.input.lock().unwrap() = Some(pipe);
        }
    }
    fn output(&self, stream: LogStream, bytes: &[u8]) -> std::io::Result<()> {
        self.text.lock().unwrap().push((stream, bytes.to_vec()));
        Ok(())
    }
}

fn from_its_record_to_its_end() {
    let yard = Yard::new();
    let entry = yard.create("life", "echo made > /made; exec busybox sleep 1000", |_| {}).unwrap();
    assert_eq!(entry.look().unwrap().phase, Phase::Created);
    let kept = yard.keep(&entry, None);
    yard.until("it runs", || entry.look().unwrap().phase == Phase::Running);
    assert!(matches!(yard.containers().remove(&entry), Err(ContainersError::Running(_))));
    // One more process, by the socket as others do.
    let (mut output, writer) = std::io::pipe().unwrap();
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let again = OwnedFd::from(writer.try_clone().unwrap());
    let stdio = [null(), OwnedFd::from(writer), again];
    let words = ["/bin/sh", "-c", "busybox cat /made; exit 3"].map(str::to_owned).to_vec();
    let code = yard.runtime.block_on(async {
        let session = exec::begin(&entry.files.socket(), &ExecSpec::new(words), &stdio).await.unwrap();
        drop(stdio);
        let (_nobody, mut signals) = tokio::sync::mpsc::channel(1);
        session.wait(&mut signals).await.unwrap()
    });
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!((code, text.as_str()), (3, "made\n"));
    // A copy out while it runs, and one in when it has ended.
    let post = yard.post(&entry);
    let copied = Arc::new(Mutex::new(Vec::new()));
    let to = Arc::clone(&copied);
    let take = move |mut tar: File| tar.read_to_end(&mut to.lock().unwrap()).map(drop);
    yard.runtime.block_on(copy::out_of(&post, &entry, "/made", take)).unwrap();
    assert!(copied.lock().unwrap().windows(5).any(|w| w == b"made\n"));
    let stop = Ask::Stop { grace: Duration::from_secs(10) };
    let socket = entry.files.socket();
    let told = wire::call::<_, Status>(&socket, &stop, Duration::from_secs(5));
    yard.runtime.block_on(told).unwrap();
    let end = yard.runtime.block_on(kept).unwrap();
    assert_eq!((end.code, end.error.clone()), (143, None));
    assert_eq!(entry.look().unwrap().phase, Phase::Exited);
    let bytes = copied.lock().unwrap().clone();
    let give = move |mut pipe: File| pipe.write_all(&bytes);
    let destination = archive::Destination { path: "/tmp/".into(), name: "made".into(), contents: false };
    yard.runtime.block_on(copy::into(&post, &entry, destination, give)).unwrap();
    assert_eq!(std::fs::read_to_string(entry.files.upper().join("tmp/made")).unwrap(), "made\n");
    assert!(yard.containers().mend().unwrap().is_empty());
    yard.containers().remove(&entry).unwrap();
    assert!(!entry.files.dir().exists() && yard.containers().list().unwrap().is_empty());
}

fn input_output_and_a_name_for_each() {
    let yard = Yard::new();
    let entry = yard.create("talk", "read x; echo got $x; echo err >&2; exit 9", |a| a.input = true).unwrap();
    // What a command left that was killed at this goes; what is there does not.
    let cut = entry.files.dir().with_file_name("a".repeat(64));
    std::fs::create_dir_all(cut.join("log")).unwrap();
    assert!(matches!(yard.create("talk", "true", |_| {}), Err(ContainersError::Taken { .. })));
    assert!(!cut.exists() && entry.files.dir().exists());
    let heard = Arc::new(Heard::default());
    let kept = yard.keep(&entry, Some(Arc::clone(&heard) as _));
    yard.until("it takes input", || heard.input.lock().unwrap().is_some());
    let pipe = heard.input.lock().unwrap().take().unwrap();
    File::from(pipe).write_all(b"words\n").unwrap();
    let end = yard.runtime.block_on(kept).unwrap();
    assert_eq!(end.code, 9);
    assert_eq!(
        (heard.of(LogStream::Stdout).as_str(), heard.of(LogStream::Stderr).as_str()),
        ("got words\n", "err\n")
    );
    // By name, id, and the beginning of the id; nothing else.
    let containers = yard.containers();
    for word in ["talk", entry.record.id.as_str(), entry.record.id.short()] {
        assert_eq!(containers.find(word).unwrap(), entry);
    }
    for word in ["", "tal", "../talk", "ffffffffffffffffffffff"] {
        assert!(matches!(containers.find(word), Err(ContainersError::Unknown(_))), "{word}");
    }
    containers.remove(&entry).unwrap();
}

fn what_cannot_start_says_why() {
    let yard = Yard::new();
    for (name, code, change) in [
        ("missing", 127, (|a: &mut Asked| a.command = vec!["no-such-program".into()]) as fn(&mut Asked)),
        ("denied", 126, |a| a.command = vec!["/tmp".into()]),
        ("nowhere", 126, |a| a.cwd = Some("/not/there".into())),
        ("stranger", 125, |a| a.user = Some(keelway_model::plan::UserSpec("stranger".into()))),
    ] {
        let entry = yard.create(name, "true", change).unwrap();
        let end = yard.runtime.block_on(yard.keep(&entry, None)).unwrap();
        assert_eq!((end.code, end.started), (code, None), "{name}: {end:?}");
        assert!(end.error.is_some_and(|e| !e.is_empty()), "{name}");
        assert_eq!(entry.look().unwrap().phase, Phase::Exited);
        yard.containers().remove(&entry).unwrap();
    }
}

/// Whoever stopped it before its keeper had the lock was told that nothing runs.
fn what_was_stopped_does_not_begin() {
    let yard = Yard::new();
    let entry = yard.create("late", "echo ran > /ran", |_| {}).unwrap();
    entry.files.save_want(&Want::now(true)).unwrap();
    let end = yard.runtime.block_on(yard.keep(&entry, None)).unwrap();
    assert_eq!((end.code, end.started), (125, None), "{end:?}");
    assert!(end.error.as_ref().is_some_and(|e| e.contains("stopped")), "{end:?}");
    assert_eq!(entry.files.end().unwrap().unwrap(), end);
    // It runs when it shall; and when it has ended and was stopped then, it still has that end.
    // Before the machine was booted is long ago: its policy has decided since.
    entry.files.save_want(&Want { stopped: true, boot: "another".into() }).unwrap();
    let ran = yard.runtime.block_on(yard.keep(&entry, None)).unwrap();
    assert_eq!(ran.code, 0);
    entry.files.save_want(&Want::now(true)).unwrap();
    std::fs::remove_file(entry.files.upper().join("ran")).unwrap();
    assert_eq!(yard.runtime.block_on(yard.keep(&entry, None)).unwrap(), ran);
    assert_eq!(entry.files.end().unwrap().unwrap(), ran);
    assert!(!entry.files.upper().join("ran").exists(), "it ran again");
    yard.containers().remove(&entry).unwrap();
}

/// `rm` beside others that look at the same containers all the time.
fn who_only_looks_is_nobody_who_keeps() {
    let yard = Yard::new();
    let over = AtomicBool::new(false);
    let seen = yard.create("seen", "true", |_| {}).unwrap();
    let look = Lock::try_share(&seen.files.keeper_lock()).unwrap().unwrap();
    assert!(!seen.files.is_kept(), "somebody else looks at it");
    drop(look);
    let entries: Vec<Entry> =
        (0..20).map(|n| yard.create(&format!("c{n}"), "true", |_| {}).unwrap()).collect();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    for entry in &entries {
                        entry.files.is_kept();
                    }
                }
            });
        }
        let removed: Vec<_> = entries.iter().map(|entry| yard.containers().remove(entry)).collect();
        over.store(true, Ordering::SeqCst);
        removed.into_iter().for_each(Result::unwrap);
    });
}
