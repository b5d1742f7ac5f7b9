//! A busybox root, a launcher, and short ways to run something.

use keelway_sandbox::{
    BoxName, Exit, Launcher, LauncherConfig, ParentName, RootFs, Running, SpawnError, Spec, Stdio,
};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Bound of every wait for an event.
pub const PATIENCE: Duration = Duration::from_secs(20);

struct Fixture {
    base: TempDir,
    launcher: Launcher,
}

static FIXTURE: OnceLock<Mutex<Option<Fixture>>> = OnceLock::new();
static NEXT: AtomicU32 = AtomicU32::new(0);

fn with<T>(f: impl FnOnce(&Fixture) -> T) -> T {
    let cell = FIXTURE.get_or_init(|| {
        let base = tempfile::Builder::new().prefix("keelway-sandbox-").tempdir_in(place()).unwrap();
        make_busybox(&base.path().join("busybox"));
        let launcher = Launcher::new(LauncherConfig::new(parent()));
        Mutex::new(Some(Fixture { base, launcher }))
    });
    f(cell.lock().unwrap().as_ref().expect("not cleaned yet"))
}

/// Where tests make their folders: what `KEELWAY_TEST_DIR` names, else /dev/shm. A kernel before 6.3 cannot translate
/// user ids on a tmpfs, so there it names a folder on a disk.
pub fn place() -> PathBuf {
    std::env::var_os("KEELWAY_TEST_DIR").map_or_else(|| PathBuf::from("/dev/shm"), PathBuf::from)
}

/// Removes everything; after all tests.
pub fn clean() {
    if let Some(cell) = FIXTURE.get() {
        cell.lock().unwrap().take();
    }
}

pub fn parent() -> ParentName {
    format!("keelway-test/run-{}", std::process::id()).parse().unwrap()
}

pub fn make_busybox(root: &Path) {
    for dir in ["bin", "etc", "tmp", "root", "var"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let list = std::process::Command::new("/bin/busybox").arg("--list").output().unwrap().stdout;
    for applet in String::from_utf8(list).unwrap().lines().filter(|a| *a != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
}

pub fn launcher() -> Launcher {
    with(|f| f.launcher.clone())
}

pub fn busybox() -> PathBuf {
    with(|f| f.base.path().join("busybox"))
}

/// A fresh directory.
pub fn fresh() -> PathBuf {
    let dir = with(|f| f.base.path().join(format!("d{}", NEXT.fetch_add(1, Ordering::Relaxed))));
    std::fs::create_dir(&dir).unwrap();
    dir
}

pub fn box_name() -> BoxName {
    format!("box-{}", NEXT.fetch_add(1, Ordering::Relaxed)).parse().unwrap()
}

/// A writable root over these layers.
pub fn over(lowers: Vec<PathBuf>) -> RootFs {
    let dir = fresh();
    let (upper, work) = (dir.join("upper"), dir.join("work"));
    std::fs::create_dir(&upper).unwrap();
    std::fs::create_dir(&work).unwrap();
    RootFs::Overlay { lowers, upper, work }
}

pub fn upper(spec: &Spec) -> PathBuf {
    match &spec.root {
        RootFs::Overlay { upper, .. } => upper.clone(),
        RootFs::ReadOnly { .. } | RootFs::Directory { .. } => panic!("no upper"),
    }
}

pub fn argv(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

/// `sh -c script` over busybox.
pub fn sh(script: &str) -> Spec {
    Spec::new(over(vec![busybox()]), argv(&["/bin/sh", "-c", script]), box_name())
}

/// A fresh upper for another run: overlayfs refuses a volatile one the second time.
pub fn renew(spec: &mut Spec) {
    if let RootFs::Overlay { lowers, .. } = &spec.root {
        spec.root = over(lowers.clone());
    }
}

/// This test binary inside a root that is this machine's.
pub fn probe(what: &[&str]) -> Spec {
    let exe = std::env::current_exe().unwrap();
    let mut words = argv(&[exe.to_str().unwrap(), "__probe"]);
    words.extend(argv(what));
    Spec::new(over(vec!["/".into()]), words, box_name())
}

pub struct Started {
    pub running: Running,
    pub output: std::io::PipeReader,
}

pub fn start(spec: &Spec) -> Result<Started, SpawnError> {
    let (output, write) = std::io::pipe().unwrap();
    let running = launcher().spawn(spec, Stdio::output_to(write.into()).unwrap())?;
    Ok(Started { running, output })
}

impl Started {
    /// Reads to the end of output, then waits.
    pub fn finish(mut self) -> (Exit, String) {
        let mut bytes = Vec::new();
        self.output.read_to_end(&mut bytes).unwrap();
        (self.running.wait().unwrap(), String::from_utf8_lossy(&bytes).into_owned())
    }
    /// Reads one line.
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while self.output.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }
}

pub fn run(spec: &Spec) -> (Exit, String) {
    start(spec).unwrap().finish()
}

/// Runs it, wants exit code 0, gives the output.
pub fn ok(spec: &Spec) -> String {
    let (exit, output) = run(spec);
    assert!(exit.success(), "{exit:?}: {output}");
    output
}

pub fn refused(spec: &Spec) -> String {
    match start(spec) {
        Err(e) => e.to_string(),
        Ok(s) => panic!("it started: {:?}", s.finish()),
    }
}

/// Waits for something that has no event of its own.
pub fn until(what: &str, mut f: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !f() {
        assert!(Instant::now() < end, "did not happen in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Processes of the machine whose command line holds the text.
pub fn processes_with(text: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(text) {
            found.push(pid);
        }
    }
    found
}

/// All paths below a directory, sorted.
pub fn tree(dir: &Path) -> Vec<String> {
    fn walk(base: &Path, dir: &Path, out: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            out.push(entry.path().strip_prefix(base).unwrap().to_string_lossy().into_owned());
            if entry.file_type().unwrap().is_dir() {
                walk(base, &entry.path(), out);
            }
        }
    }
    let mut out = Vec::new();
    walk(dir, dir, &mut out);
    out.sort();
    out
}

/// The group directories of these tests' own parent, in all hierarchies.
pub fn groups_below(parent: &ParentName) -> Vec<PathBuf> {
    let layout = keelway_sandbox::cgroup::Layout::detect();
    layout.places().into_iter().map(|p| p.root().join(parent.as_str())).filter(|p| p.exists()).collect()
}
