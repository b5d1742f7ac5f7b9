//! From a commit to a rolling update, on the rig: what the README's first command shows, and what the
//! end-to-end tests build on.

use crate::base::{self, Base};
use crate::load::{self, Entry, Verdict};
use crate::rig::{self, Rig};
use nix::sys::signal::{SigSet, Signal};
use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The fewest requests that prove anything.
pub const FEWEST: usize = 2000;

/// Says what happens, on standard error: standard output ends with the verdict's line.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "==> {text}");
}

/// A rig with the bases pushed and a git repository of the example at /root/web on the deployer.
pub fn prepare(keelway: &Path, example: &Path) -> io::Result<Rig> {
    say("base images (made once, kept in the cache)");
    let python = base::oci_layout(Base::Python)?;
    say("the rig: three hosts, a registry, a deployer, a load generator");
    let rig = Rig::start(&rig::Options { hosts: 3, keelway: keelway.to_owned() })?;
    rig.push_base(&python, "base/python", "12")?;
    let own = rig.load.file("usr/local/bin/keelway-rig");
    fs::create_dir_all(own.parent().expect("it has a folder"))?;
    fs::copy(std::env::current_exe()?, own)?;
    rig::copy_dir(example, &rig.deployer.file("root/web"))?;
    commit(&rig, "first version")?;
    Ok(rig)
}

/// Commits everything of /root/web; the first time it makes the repository.
pub fn commit(rig: &Rig, message: &str) -> io::Result<String> {
    let git = |args: &[&str]| {
        let mut argv = vec![
            "git",
            "-C",
            "/root/web",
            "-c",
            "user.name=rig",
            "-c",
            "user.email=rig@rig.test",
            "-c",
            "init.defaultBranch=main",
        ];
        argv.extend(args);
        rig.deployer.run(&argv)
    };
    git(&["init", "-q"])?;
    git(&["add", "-A"])?;
    git(&["commit", "-q", "--allow-empty", "-m", message])?;
    Ok(git(&["rev-parse", "HEAD"])?.trim().to_owned())
}

/// Writes another version into the example and commits it.
pub fn new_version(rig: &Rig, version: &str) -> io::Result<String> {
    fs::write(rig.deployer.file("root/web/version.py"), format!("VERSION = \"{version}\"\n"))?;
    commit(rig, &format!("version {version}"))
}

/// The arguments of `keelway run` for the example on the rig.
pub const RUN: [&str; 9] = [
    "run",
    "--repo",
    "/root/web",
    "--commit",
    "main",
    "--ssh-config",
    "rig=/root/rig_ssh_config",
    "--registry-ca",
    "rig=/root/rig_ca.pem",
];

/// Runs the pipeline on the deployer, output to ours.
pub fn pipeline(rig: &Rig) -> io::Result<()> {
    let status = rig
        .deployer
        .command("keelway")
        .args(RUN)
        .stdout(Stdio::from(io::stderr()))
        .stderr(Stdio::inherit())
        .status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("keelway run ended with {status}"))) }
}

/// A running load generator.
#[derive(Debug)]
pub struct Sender {
    child: Child,
    out: Option<thread::JoinHandle<io::Result<String>>>,
}

impl Sender {
    /// Starts one in the load node: `rate` requests a second through every host's balancer, `most` in all.
    pub fn start(rig: &Rig, prefix: &str, rate: u32, most: u32) -> io::Result<Self> {
        let all: Vec<usize> = (0..rig.hosts.len()).collect();
        Self::through(rig, &all, prefix, rate, most)
    }

    /// The same through the balancers of these hosts only.
    pub fn through(rig: &Rig, hosts: &[usize], prefix: &str, rate: u32, most: u32) -> io::Result<Self> {
        let mut command = rig.load.command("keelway-rig");
        command.args([load::VERB, prefix, &rate.to_string(), &most.to_string()]);
        for i in hosts {
            command.arg(format!("198.18.0.{}:80", 11 + i));
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut pipe = child.stdout.take().expect("standard output is piped");
        let out = thread::spawn(move || {
            let mut text = String::new();
            pipe.read_to_string(&mut text).map(|_| text)
        });
        Ok(Self { child, out: Some(out) })
    }

    /// Stops sending, waits for what is in flight and returns the book.
    pub fn stop(mut self) -> io::Result<Vec<Entry>> {
        drop(self.child.stdin.take());
        let text = self
            .out
            .take()
            .expect("taken once")
            .join()
            .map_err(|_| io::Error::other("the reader panicked"))??;
        self.child.wait()?;
        text.lines().map(Entry::from_json).collect()
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every id that any replica of any host logged, stopped replicas included.
pub fn logged_ids(rig: &Rig) -> io::Result<Vec<String>> {
    Ok(logged_ids_by_host(rig)?.concat())
}

/// The same, host by host.
pub fn logged_ids_by_host(rig: &Rig) -> io::Result<Vec<Vec<String>>> {
    let mut all = Vec::new();
    for host in &rig.hosts {
        let (mut logs, mut ids) = (Vec::new(), Vec::new());
        find_logs(&host.state_dir(), &mut logs)?;
        for log in logs {
            let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
            ids.extend(load::ids_of(&text));
        }
        all.push(ids);
    }
    Ok(all)
}

/// The log files of replicas: `*.log*` below a host's state, but nothing of a replica's own root.
fn find_logs(dir: &Path, out: &mut Vec<std::path::PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            if !matches!(name.as_str(), "snapshots" | "blobs" | "fs" | "upper" | "work") {
                find_logs(&entry.path(), out)?;
            }
        } else if name.contains(".log") || name == "log" {
            out.push(entry.path());
        }
    }
    Ok(())
}

/// How many requests the replicas have answered, by their logs.
pub fn answered(rig: &Rig) -> io::Result<usize> {
    logged_ids(rig).map(|ids| ids.len())
}

/// Waits until so many are answered in all: a load flows.
pub fn until_answered(rig: &Rig, total: usize) -> io::Result<()> {
    let enough = || answered(rig).is_ok_and(|n| n >= total);
    rig::wait_for(Duration::from_secs(60), &format!("the answer to request {total}"), enough)
}

/// Whether some request was in flight at the old version while the new one already answered.
pub fn swap_had_requests_in_flight(book: &[Entry], old: &str, new: &str) -> bool {
    let first_new = book.iter().filter(|e| e.result.as_deref() == Ok(new)).map(|e| e.done_ms).min();
    first_new.is_some_and(|t| {
        book.iter().any(|e| e.result.as_deref() == Ok(old) && e.sent_ms < t && e.done_ms > t)
    })
}

/// What must hold for a run to count, beside the zeros.
pub fn check(book: &[Entry], verdict: &Verdict) -> io::Result<()> {
    let fail = |text: String| Err(io::Error::other(text));
    if book.len() < FEWEST {
        return fail(format!(
            "only {} requests were sent; {FEWEST} are needed to prove anything",
            book.len()
        ));
    }
    for version in ["1", "2"] {
        if !verdict.versions.contains_key(version) {
            return fail(format!("version {version} answered no request"));
        }
    }
    if !swap_had_requests_in_flight(book, "1", "2") {
        return fail("no request was in flight during the swap".into());
    }
    if let Some(id) = verdict.unlogged.first() {
        return fail(format!(
            "{} ids were answered but stand in no log, {id} for one",
            verdict.unlogged.len()
        ));
    }
    if let Some(lost) = verdict.lost.first() {
        return fail(format!("lost {}: {:?}", lost.id, lost.result));
    }
    if let Some((id, times)) = verdict.duplicated.first() {
        return fail(format!("{id} was logged {times} times"));
    }
    Ok(())
}

/// The verb of the demonstration and its guard; two paths follow: the binary and the example.
pub const VERB: &str = "demo";
/// The verb of what is guarded.
const INNER: &str = "__demo";

/// Becomes the demonstration when the arguments say so; else returns at once.
#[expect(clippy::exit, reason = "these are processes of their own, whose end is their meaning")]
pub fn main_if_asked() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        [VERB, keelway, example] => guarded(keelway, example),
        // The mask of whoever waits for us was inherited; we are to be ended by them.
        [INNER, keelway, example] => ending_signals()
            .thread_unblock()
            .map_err(io::Error::from)
            .and_then(|()| run(Path::new(keelway), Path::new(example))),
        _ => return,
    };
    if let Err(e) = &result {
        let _ = writeln!(io::stderr(), "keelway-rig: {e}");
    }
    std::process::exit(i32::from(result.is_err()));
}

/// What ends a program from outside.
fn ending_signals() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals
}

/// Does the work in a child and cleans up after it however it ended: a Ctrl-C ends the child, not us.
fn guarded(keelway: &str, example: &str) -> io::Result<()> {
    ending_signals().thread_block()?;
    let mut child = Command::new(std::env::current_exe()?).args([INNER, keelway, example]).spawn()?;
    let status: ExitStatus = child.wait()?;
    rig::reap();
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("the demonstration ended with {status}")))
    }
}

/// The whole demonstration.
fn run(keelway: &Path, example: &Path) -> io::Result<()> {
    let begun = Instant::now();
    let rig = prepare(keelway, example)?;
    say("commit 1: build, test, push, deploy");
    pipeline(&rig)?;
    say("load: 200 requests a second through all three balancers");
    let sender = Sender::start(&rig, "demo", 200, 60_000)?;
    new_version(&rig, "2")?;
    until_answered(&rig, 300)?;
    say("commit 2: the same, under load");
    let updated = pipeline(&rig);
    // Enough requests must follow the swap, too, and enough be sent in all.
    until_answered(&rig, (answered(&rig)? + 400).max(FEWEST + 400))?;
    let book = sender.stop()?;
    updated?;
    let verdict = load::judge(&book, logged_ids(&rig)?);
    for (version, count) in &verdict.versions {
        say(&format!("version {version} answered {count}"));
    }
    let checked = check(&book, &verdict);
    drop(rig);
    say(&format!(
        "done in {:.0?}; kept: the Debian packages, target/ and {}",
        begun.elapsed(),
        base::cache_dir().display()
    ));
    writeln!(io::stdout(), "{}", verdict.line())?;
    checked
}
