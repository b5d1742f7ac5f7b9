//! A hermetic environment for one test: HOME, TMPDIR, store, a clean process environment, the binary; and a
//! guard that sees what a run left behind.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long one command may run.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(300);

/// The binary under test: what `KEELWAY_BIN` names, else the path that the caller was compiled with
/// (`option_env!("CARGO_BIN_EXE_keelway")`).
pub fn binary(compiled: Option<&str>) -> Option<PathBuf> {
    std::env::var_os("KEELWAY_BIN")
        .map(PathBuf::from)
        .or_else(|| compiled.map(PathBuf::from))
        .filter(|p| p.is_file())
}

/// Where tests make their folders: what `KEELWAY_TEST_DIR` names, else /dev/shm. A kernel before 6.3 cannot translate
/// user ids on a tmpfs, so there it names a folder on a disk.
pub fn place() -> PathBuf {
    std::env::var_os("KEELWAY_TEST_DIR").map_or_else(|| PathBuf::from("/dev/shm"), PathBuf::from)
}

/// A home of one test in [`place`], removed when dropped.
pub struct Env {
    dir: TempDir,
    bin: PathBuf,
    vars: Vec<(String, String)>,
}

/// What a command did.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// The exit code; -1 when a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }
    /// Panics with everything it said unless it ended with this code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code(),
            code,
            "{:?}\n--- stdout\n{}--- stderr\n{}",
            self.status,
            self.stdout,
            self.stderr
        );
        self
    }
}

impl Env {
    /// An empty home, store and TMPDIR for this binary.
    pub fn new(bin: &Path) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("keelway-test-").tempdir_in(place())?;
        for name in ["home", "tmp", "store", "work"] {
            fs::create_dir(dir.path().join(name))?;
        }
        Ok(Self { dir, bin: bin.to_owned(), vars: Vec::new() })
    }

    /// The folder of everything.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
    /// `HOME`.
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }
    /// `TMPDIR`.
    pub fn tmp(&self) -> PathBuf {
        self.dir.path().join("tmp")
    }
    /// Where Keelway keeps its state: `KEELWAY_STATE`.
    pub fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }
    /// An empty folder to work in.
    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }
    /// One more variable for every command.
    #[must_use]
    pub fn with_var(mut self, name: &str, value: &str) -> Self {
        self.vars.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A command of any program in this environment, in the work folder: nothing of the caller's environment.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.home())
            .env("TMPDIR", self.tmp())
            .env("KEELWAY_STATE", self.store())
            .env("LANG", "C.UTF-8")
            .env("TZ", "UTC")
            .env("NO_COLOR", "1")
            .envs(self.vars.iter().map(|(n, v)| (n, v)))
            .current_dir(self.work())
            .stdin(Stdio::null());
        command
    }

    /// Runs the binary in the work folder.
    pub fn keelway<S: AsRef<OsStr>>(&self, args: &[S]) -> Output {
        self.keelway_in(&self.work(), args)
    }

    /// Runs the binary in a folder.
    pub fn keelway_in<S: AsRef<OsStr>>(&self, dir: &Path, args: &[S]) -> Output {
        let mut command = self.command(&self.bin);
        command.args(args).current_dir(dir);
        run(&mut command, COMMAND_DEADLINE).expect("the binary starts and ends in time")
    }

    /// A text without what differs from run to run: see [`normalise`].
    pub fn normalise(&self, text: &str) -> String {
        normalise(text, &[(&self.dir.path().to_string_lossy(), "[DIR]")])
    }
}

/// Sends a signal (`SIGINT`) to a process.
pub fn signal(pid: u32, name: &str) -> io::Result<()> {
    send(i32::try_from(pid).map_err(io::Error::other)?, name)
}

/// Sends a signal to a process group, as a terminal does at Ctrl-C.
pub fn signal_group(leader: u32, name: &str) -> io::Result<()> {
    send(-i32::try_from(leader).map_err(io::Error::other)?, name)
}

fn send(to: i32, name: &str) -> io::Result<()> {
    let signal: nix::sys::signal::Signal = name.parse().map_err(io::Error::from)?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(to), signal).map_err(io::Error::from)
}

/// Runs a command to its end, or kills it at the deadline.
pub fn run(command: &mut Command, deadline: Duration) -> io::Result<Output> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let collect = |mut from: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut out = Vec::new();
            let _ = from.read_to_end(&mut out);
            String::from_utf8_lossy(&out).into_owned()
        })
    };
    let stdout = collect(Box::new(child.stdout.take().expect("piped above")));
    let stderr = collect(Box::new(child.stderr.take().expect("piped above")));
    let end = Instant::now() + deadline;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            let said = format!("still running after {deadline:?}\n{}{}", joined(stdout), joined(stderr));
            return Err(io::Error::new(io::ErrorKind::TimedOut, said));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Ok(Output { status, stdout: joined(stdout), stderr: joined(stderr) })
}

fn joined(thread: std::thread::JoinHandle<String>) -> String {
    thread.join().unwrap_or_default()
}

/// Replaces what differs from run to run: the given texts, digests (`sha256:[DIGEST]`), ports of 127.0.0.1
/// (`[PORT]`, also in ssh's words), durations (`[TIME]`: `850ms`, `4.2s`, `3m07s`, `2h05m`), RFC 3339 times (`[DATE]`), times of
/// day (`[CLOCK]`) and names of runs (`[RUN]`).
pub fn normalise(text: &str, replace: &[(&str, &str)]) -> String {
    let mut text = text.to_owned();
    for (from, to) in replace {
        text = text.replace(from, to);
    }
    let mut out = String::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let at_word =
            out.chars().next_back().is_none_or(|c| !(c.is_ascii_alphanumeric() || c == '.' || c == '_'));
        let (token, len) = if let Some(hex) = rest.strip_prefix("sha256:").map(hex_len).filter(|n| *n == 64) {
            ("sha256:[DIGEST]", 7 + hex)
        } else if let Some(port) = rest.strip_prefix("127.0.0.1:").map(digits_len).filter(|n| *n > 0) {
            ("127.0.0.1:[PORT]", 10 + port)
        } else if let Some(port) = rest.strip_prefix("127.0.0.1 port ").map(digits_len).filter(|n| *n > 0) {
            ("127.0.0.1 port [PORT]", 15 + port)
        } else if let Some(len) = shape_len(rest, b"00000000-000000-xxxxxx").filter(|_| at_word) {
            ("[RUN]", len)
        } else if let Some(len) = shape_len(rest, b"00:00:00 ").filter(|_| at_word) {
            ("[CLOCK] ", len)
        } else if let Some(len) = date_len(rest).filter(|_| at_word) {
            ("[DATE]", len)
        } else if let Some(len) = duration_len(rest).filter(|_| at_word) {
            ("[TIME]", len)
        } else {
            let len = rest.chars().next().map_or(1, char::len_utf8);
            (&rest[..len], len)
        };
        out.push_str(token);
        rest = &rest[len..];
    }
    out
}

fn digits_len(s: &str) -> usize {
    s.bytes().take_while(u8::is_ascii_digit).count()
}

fn hex_len(s: &str) -> usize {
    s.bytes().take_while(u8::is_ascii_hexdigit).count()
}

/// The length of a shape that `s` begins with: `0` is a digit, `x` a hexadecimal one, all else is itself.
fn shape_len(s: &str, shape: &[u8]) -> Option<usize> {
    let fits = |(s, b): (&u8, &u8)| match s {
        b'0' => b.is_ascii_digit(),
        b'x' => b.is_ascii_hexdigit(),
        _ => s == b,
    };
    (s.len() >= shape.len() && shape.iter().zip(s.as_bytes()).all(fits)).then_some(shape.len())
}

fn date_len(s: &str) -> Option<usize> {
    let b = s.as_bytes();
    let shape = b"0000-00-00T00:00:00";
    let fits = b.len() >= shape.len()
        && shape
            .iter()
            .zip(b)
            .all(|(s, b)| if *s == b'0' { b.is_ascii_digit() } else { s == b || (*s == b'T' && *b == b' ') });
    fits.then(|| {
        let tail = s[shape.len()..]
            .bytes()
            .take_while(|b| b.is_ascii_digit() || matches!(b, b'.' | b'Z' | b'+'))
            .count();
        shape.len() + tail
    })
}

fn duration_len(s: &str) -> Option<usize> {
    let mut len = 0;
    loop {
        let number = s[len..].bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let unit = ["ms", "s", "m", "h"].into_iter().find(|u| s[len + number..].starts_with(u));
        match unit {
            Some(unit) if number > 0 => len += number + unit.len(),
            _ => break,
        }
    }
    let ends = s[len..].chars().next().is_none_or(|c| !(c.is_ascii_alphanumeric() || c == '_'));
    (len > 0 && ends).then_some(len)
}

/// What of a machine a run of Keelway may leave behind: mounts, named network namespaces, cgroups of keelway,
/// processes of keelway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaks {
    things: BTreeSet<String>,
}

impl Leaks {
    /// What there is now.
    pub fn record() -> Self {
        let mut things = BTreeSet::new();
        for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let kind = fields.iter().position(|f| *f == "-").and_then(|i| fields.get(i + 1)).unwrap_or(&"?");
            things.insert(format!("mount {} ({kind})", fields.get(4).unwrap_or(&"?")));
        }
        for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
            things.insert(format!("network namespace {}", entry.file_name().to_string_lossy()));
        }
        cgroups(Path::new("/sys/fs/cgroup"), 0, &mut things);
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            if let Some(name) = process_of_keelway(&entry.path()) {
                things.insert(format!("process {} ({name})", entry.file_name().to_string_lossy()));
            }
        }
        Self { things }
    }

    /// What is there now and was not before, once it stays so until the deadline.
    pub fn new_since(&self, deadline: Duration) -> Vec<String> {
        let end = Instant::now() + deadline;
        loop {
            let now = Self::record();
            let new: Vec<String> = now.things.difference(&self.things).cloned().collect();
            if new.is_empty() || Instant::now() > end {
                return new;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Panics when something new stays for ten seconds.
    #[track_caller]
    pub fn assert_none(&self) {
        let new = self.new_since(Duration::from_secs(10));
        assert!(new.is_empty(), "left behind:\n{}", new.join("\n"));
    }
}

/// Every cgroup whose path contains `keelway`, in all hierarchies.
fn cgroups(dir: &Path, depth: usize, out: &mut BTreeSet<String>) {
    if depth > 8 {
        return;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            if entry.path().to_string_lossy().contains("keelway") {
                out.insert(format!("cgroup {}", entry.path().display()));
            }
            cgroups(&entry.path(), depth + 1, out);
        }
    }
}

/// The name of a process whose program is called exactly `keelway`, or runs from a memfd of that name (init).
fn process_of_keelway(proc: &Path) -> Option<String> {
    let comm = fs::read_to_string(proc.join("comm")).ok()?;
    let exe = fs::read_link(proc.join("exe")).ok();
    let name = exe
        .as_deref()
        .and_then(Path::file_name)
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let program = name.trim_end_matches(" (deleted)");
    // A zombie has no exe; its comm still tells.
    let is_ours = program == "keelway"
        || program.starts_with("memfd:keelway")
        || (exe.is_none() && comm.trim() == "keelway");
    is_ours.then(|| comm.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_replaced_and_nothing_else() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let text = format!(
            "{digest} at 127.0.0.1:4711 in 4.2s (3m07s), 850ms; 2026-11-23T10:00:00.5Z /x/y v1.2.3 10 m 12s3\n\
             10:00:07 | run 20261123-100007-0a1b2c: 127.0.0.1 port 4711: no"
        );
        assert_eq!(
            normalise(&text, &[("/x", "[DIR]")]),
            "sha256:[DIGEST] at 127.0.0.1:[PORT] in [TIME] ([TIME]), [TIME]; [DATE] [DIR]/y v1.2.3 10 m 12s3\n\
             [CLOCK] | run [RUN]: 127.0.0.1 port [PORT]: no"
        );
    }

    #[test]
    fn a_command_that_hangs_is_killed() {
        let started = Instant::now();
        let e = run(Command::new("sleep").arg("60"), Duration::from_millis(50)).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn the_environment_is_clean() {
        let env = Env::new(Path::new("/usr/bin/env")).unwrap();
        let out = env.keelway::<&str>(&[]).expect(0);
        let names: BTreeSet<&str> = out.stdout.lines().filter_map(|l| l.split('=').next()).collect();
        let want = ["HOME", "KEELWAY_STATE", "LANG", "NO_COLOR", "PATH", "TMPDIR", "TZ"];
        assert_eq!(names, want.into_iter().collect());
    }
}
