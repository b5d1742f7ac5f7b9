//! `keelway watch`: every commit of a branch once, in order, whatever happens to the watcher or the server.

use crate::build::with_busybox;
use crate::{Ended, Test, World};
use keelway_tests::env::{Env, Leaks, Output};
use keelway_tests::git::{GitHttp, GitRepo};
use keelway_tests::server::{End, Reply, Server};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("watch::each_commit_once_and_in_order", each_commit_once_and_in_order),
    (
        "watch::a_killed_watcher_makes_attempt_2_of_the_same_run",
        a_killed_watcher_makes_attempt_2_of_the_same_run,
    ),
    ("watch::a_signal_ends_it_and_the_commit_stays", a_signal_ends_it_and_the_commit_stays),
    ("watch::two_watchers_of_a_branch_run_nothing_twice", two_watchers_of_a_branch_run_nothing_twice),
    ("watch::a_force_push_is_said", a_force_push_is_said),
    ("watch::a_broken_definition_does_not_block_the_next", a_broken_definition_does_not_block_the_next),
    ("watch::a_server_that_is_down_is_waited_for", a_server_that_is_down_is_waited_for),
    ("watch::a_server_that_hangs_keeps_nobody", a_server_that_hangs_keeps_nobody),
];

/// How long anything here may take.
const DEADLINE: Duration = Duration::from_secs(30);

const QUICK: &str = "version: 1\nstages:\n  image:\n    build: {context: .}\n";

/// A repository at `projects/web`; `Dockerfile` copies `greeting`.
fn repository(env: &Env, run: &str) -> GitRepo {
    let repo = GitRepo::init(&env.path().join("projects/web")).expect("git makes a repository");
    for (path, content) in [
        ("keelway.yml", QUICK),
        ("Dockerfile", &format!("FROM busybox\nCOPY greeting /greeting\n{run}")),
        ("greeting", "0\n"),
    ] {
        repo.write(path, content).expect("files can be written");
    }
    repo.commit("first").expect("git commits");
    repo
}

fn url(repo: &GitRepo) -> String {
    repo.path().to_str().expect("UTF-8").to_owned()
}

fn once(env: &Env, url: &str) -> Output {
    env.keelway(&["watch", "--repo", url, "--branch", "main", "--once", "--allow", "host-network"])
}

/// Commit, state and attempt of each run, oldest first.
fn runs(env: &Env) -> Vec<(String, String, u64)> {
    let out = env.keelway(&["runs", "ls", "--format", "json"]).expect(0).stdout;
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    let mut all: Vec<_> = out
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).expect("JSON"))
        .map(|v| (text(&v["commit"]), text(&v["state"]), v["attempt"].as_u64().unwrap_or(0)))
        .collect();
    all.reverse();
    all
}

fn done(commits: &[&String]) -> Vec<(String, String, u64)> {
    commits.iter().map(|c| ((*c).clone(), "succeeded".to_owned(), 1)).collect()
}

#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A watcher in the background, killed when dropped.
struct Watching {
    child: Child,
    said: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Watching {
    fn start(env: &Env, world: &World, url: &str) -> Self {
        let mut child = env
            .command(&world.keelway)
            .args(["watch", "--repo", url, "--branch", "main", "--every", "100ms", "--allow", "host-network"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut stderr = child.stderr.take().expect("piped above");
        let said = Arc::new(Mutex::new(String::new()));
        let into = Arc::clone(&said);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = stderr.read(&mut buffer) {
                into.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        Self { child, said, reader: Some(reader) }
    }
    fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    #[track_caller]
    fn says(&self, text: &str) {
        let end = Instant::now() + DEADLINE;
        while !self.said().contains(text) {
            assert!(Instant::now() < end, "{text:?} was never said:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    /// Sends a signal by its name.
    fn signal(&self, env: &Env, name: &str) {
        let status = env.command("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }
    /// Waits for its end; everything it said.
    #[track_caller]
    fn ends(mut self) -> (ExitStatus, String) {
        let end = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                break status;
            }
            assert!(Instant::now() < end, "it does not end:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        };
        let _ = self.reader.take().map(JoinHandle::join);
        (status, self.said())
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server that a RUN asks, and that answers once it is opened.
fn gate() -> (Server, Arc<AtomicBool>) {
    let open = Arc::new(AtomicBool::new(false));
    let answers = Arc::clone(&open);
    let server = Server::start(None, move |_| match answers.load(Ordering::SeqCst) {
        true => Reply::bytes("go on\n"),
        false => Reply::bytes("wait").ending(End::Stall),
    });
    (server.expect("the server starts"), open)
}

fn each_commit_once_and_in_order(world: &World) -> Ended {
    let env = with_busybox(world);
    let repo = repository(&env, "");
    let url = url(&repo);
    repo.commit_file("greeting", "1\n").expect("git commits");
    let tip = repo.commit_file("greeting", "2\n").expect("git commits");
    // Nothing is known of the branch: the tip, and not what lies beneath it.
    once(&env, &url).expect(0);
    assert_eq!(runs(&env), done(&[&tip]));
    once(&env, &url).expect(0);
    assert_eq!(runs(&env), done(&[&tip]));
    // A side branch with two commits arrives by one merge: first parents are what is run.
    let three = repo.commit_file("greeting", "3\n").expect("git commits");
    repo.git(&["checkout", "-q", "-b", "side"]).expect("git branches");
    repo.commit_file("side", "1\n").expect("git commits");
    repo.commit_file("side", "2\n").expect("git commits");
    repo.git(&["checkout", "-q", "main"]).expect("git switches");
    repo.git(&["merge", "-q", "--no-ff", "-m", "merge", "side"]).expect("git merges");
    let merge = repo.head().expect("there is a commit");
    let last = repo.commit_file("greeting", "4\n").expect("git commits");
    let out = once(&env, &url).expect(0);
    assert_eq!(runs(&env), done(&[&tip, &three, &merge, &last]), "{}", out.stderr);
    // Recorded before anything of it runs.
    let recorded = out.stderr.find(&format!("main is at {}: recorded", &last[..12])).expect("it is said");
    let begun = out.stderr.find(&format!("commit {}", &three[..12])).expect("the first run is told");
    assert!(recorded < begun, "{}", out.stderr);
    Ok(())
}

fn a_killed_watcher_makes_attempt_2_of_the_same_run(world: &World) -> Ended {
    let leaks = Leaks::record();
    let env = with_busybox(world);
    let (server, open) = gate();
    let repo = repository(&env, &format!("RUN --network=host wget -q -O - http://{}/gate\n", server.host()));
    let url = url(&repo);
    let first = repo.head().expect("there is a commit");
    let second = {
        let watcher = Watching::start(&env, world, &url);
        until("the first step runs", || server.count("GET", "/gate") == 1);
        let second = repo.commit_file("greeting", "1\n").expect("git commits");
        watcher.signal(&env, "KILL");
        watcher.ends();
        second
    };
    open.store(true, Ordering::SeqCst);
    let watcher = Watching::start(&env, world, &url);
    watcher.says(&format!("{}: its run", &first[..12]));
    until("both are run", || runs(&env).iter().filter(|(_, state, _)| state == "succeeded").count() == 2);
    watcher.signal(&env, "TERM");
    watcher.ends();
    let expected = [(first.clone(), "succeeded".to_owned(), 2), (second, "succeeded".to_owned(), 1)];
    assert_eq!(runs(&env), expected);
    // The first step ran twice (its first attempt died in it), the second commit's once.
    assert_eq!(server.count("GET", "/gate"), 3);
    let ls = env.keelway(&["runs", "ls"]).expect(0).stdout;
    let id = ls
        .lines()
        .find(|l| l.contains(&first[..12]))
        .and_then(|l| l.split(' ').next())
        .expect("it is listed")
        .to_owned();
    let show = env.keelway(&["runs", "show", &id]).expect(0).stdout;
    for wanted in ["attempt 1: interrupted", "attempt 2: succeeded"] {
        assert!(show.contains(wanted), "{wanted:?} is not in\n{show}");
    }
    once(&env, &url).expect(0);
    assert_eq!(server.count("GET", "/gate"), 3, "nothing is run again");
    leaks.assert_none();
    Ok(())
}

fn a_signal_ends_it_and_the_commit_stays(world: &World) -> Ended {
    let leaks = Leaks::record();
    let env = with_busybox(world);
    let (server, open) = gate();
    let repo = repository(&env, &format!("RUN --network=host wget -q -O - http://{}/gate\n", server.host()));
    let url = url(&repo);
    let watcher = Watching::start(&env, world, &url);
    until("the step runs", || server.count("GET", "/gate") == 1);
    watcher.signal(&env, "INT");
    let (status, said) = watcher.ends();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("stopping in good order"), "{said}");
    leaks.assert_none();
    assert_eq!(runs(&env)[0].1, "cancelled");
    open.store(true, Ordering::SeqCst);
    let watcher = Watching::start(&env, world, &url);
    until("it is run", || runs(&env)[0].1 == "succeeded");
    // Idle, it ends at once.
    watcher.signal(&env, "TERM");
    let (status, said) = watcher.ends();
    assert_eq!(status.code(), Some(0), "{said}");
    assert_eq!(runs(&env), [(repo.head().expect("there is a commit"), "succeeded".to_owned(), 2)]);
    Ok(())
}

fn two_watchers_of_a_branch_run_nothing_twice(world: &World) -> Ended {
    let env = with_busybox(world);
    let (server, open) = gate();
    let repo = repository(&env, &format!("RUN --network=host wget -q -O - http://{}/gate\n", server.host()));
    let url = url(&repo);
    let watcher = Watching::start(&env, world, &url);
    until("the step runs", || server.count("GET", "/gate") == 1);
    let next = repo.commit_file("greeting", "1\n").expect("git commits");
    // The second one finds both commits in the queue, may not have the first, and does not overtake it.
    let out = once(&env, &url).expect(4);
    assert!(out.stderr.contains("is being run by another process"), "{}", out.stderr);
    assert!(!out.stderr.contains("interrupted"), "{}", out.stderr);
    assert_eq!(server.count("GET", "/gate"), 1);
    open.store(true, Ordering::SeqCst);
    // The stalled answer never ends; a fresh attempt gets through.
    watcher.signal(&env, "INT");
    watcher.ends();
    once(&env, &url).expect(0);
    let first = repo.git(&["rev-parse", "HEAD~1"]).expect("there is one");
    assert_eq!(runs(&env), [(first, "succeeded".to_owned(), 2), (next, "succeeded".to_owned(), 1)]);
    Ok(())
}

fn a_force_push_is_said(world: &World) -> Ended {
    let env = with_busybox(world);
    let repo = repository(&env, "");
    let url = url(&repo);
    let first = repo.commit_file("greeting", "1\n").expect("git commits");
    once(&env, &url).expect(0);
    repo.git(&["reset", "-q", "--hard", "HEAD~1"]).expect("git resets");
    repo.commit_file("greeting", "another\n").expect("git commits");
    let tip = repo.commit_file("greeting", "and another\n").expect("git commits");
    let out = once(&env, &url).expect(0);
    for wanted in ["main was rewritten", &first[..12], "going on from the new tip", &tip[..12]] {
        assert!(out.stderr.contains(wanted), "{wanted:?} is not in\n{}", out.stderr);
    }
    assert_eq!(runs(&env), done(&[&first, &tip]));
    let next = repo.commit_file("greeting", "2\n").expect("git commits");
    once(&env, &url).expect(0);
    assert_eq!(runs(&env), done(&[&first, &tip, &next]));
    Ok(())
}

fn a_broken_definition_does_not_block_the_next(world: &World) -> Ended {
    let env = with_busybox(world);
    let repo = repository(&env, "");
    let url = url(&repo);
    let first = repo.head().expect("there is a commit");
    once(&env, &url).expect(0);
    let broken = repo
        .commit_file("keelway.yml", "version: 1\nstages:\n  image:\n    buidl: {context: .}\n")
        .expect("git commits");
    repo.git(&["rm", "-q", "Dockerfile"]).expect("git removes");
    let no_dockerfile = repo.commit_file("keelway.yml", QUICK).expect("git commits");
    let strange = format!("{QUICK}registries:\n  r.example.com: {{ca: nobody-knows}}\n");
    repo.write("Dockerfile", "FROM busybox\nCOPY greeting /greeting\n").expect("files can be written");
    let strange = repo.commit_file("keelway.yml", &strange).expect("git commits");
    let elsewhere = repo
        .commit_file("keelway.yml", &format!("{QUICK}on: {{push: {{branches: [release]}}}}\n"))
        .expect("git commits");
    let mended = repo.commit_file("keelway.yml", QUICK).expect("git commits");
    let out = once(&env, &url).expect(0);
    for wanted in [
        "keelway.yml:4:5",
        "buidl",
        "build",
        "Dockerfile does not exist",
        "nobody-knows",
        "--registry-ca",
        "not run",
        &elsewhere[..12],
    ] {
        assert!(out.stderr.contains(wanted), "{wanted:?} is not in\n{}", out.stderr);
    }
    let failed = |c: &String| (c.clone(), "failed".to_owned(), 1);
    let ok = |c: &String| (c.clone(), "succeeded".to_owned(), 1);
    assert_eq!(
        runs(&env),
        [ok(&first), failed(&broken), failed(&no_dockerfile), failed(&strange), ok(&mended)],
        "{}",
        out.stderr
    );
    // Told once, not at every look.
    let again = once(&env, &url).expect(0);
    assert!(!again.stderr.contains("buidl"), "{}", again.stderr);
    let ls = env.keelway(&["runs", "ls"]).expect(0).stdout;
    assert_eq!(ls.matches("failed (2)").count(), 3, "{ls}");
    Ok(())
}

/// A port of loopback that leads to another, until it is closed.
struct Door {
    port: u16,
    stop: Arc<AtomicBool>,
    guests: Arc<Mutex<Vec<TcpStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl Door {
    fn open(port: u16, to: String) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        let port = listener.local_addr()?.port();
        let stop = Arc::new(AtomicBool::new(false));
        let guests = Arc::new(Mutex::new(Vec::new()));
        let (stopped, inside) = (Arc::clone(&stop), Arc::clone(&guests));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(stream) = stream {
                    inside.lock().unwrap_or_else(PoisonError::into_inner).extend(stream.try_clone());
                    let to = to.clone();
                    std::thread::spawn(move || join(stream, &to));
                }
            }
        });
        Ok(Self { port, stop, guests, thread: Some(thread) })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for a guest.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().map(JoinHandle::join);
        // Connections that are kept alive end with the server, too.
        for guest in self.guests.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = guest.shutdown(Shutdown::Both);
        }
    }
}

/// Copies both ways until one side is done; what a cut connection says is the other end's to judge.
fn join(guest: TcpStream, to: &str) {
    let Ok(server) = TcpStream::connect(to) else { return };
    let (Ok(mut from), Ok(mut into)) = (guest.try_clone(), server.try_clone()) else { return };
    let back = std::thread::spawn(move || {
        let (mut server, mut guest) = (server, guest);
        let _ = io::copy(&mut server, &mut guest);
        let _ = guest.shutdown(Shutdown::Both);
    });
    let _ = io::copy(&mut from, &mut into);
    let _ = into.shutdown(Shutdown::Both);
    let _ = back.join();
}

fn a_server_that_is_down_is_waited_for(world: &World) -> Ended {
    let env = with_busybox(world);
    let repo = repository(&env, "");
    let server = GitHttp::start(&env.path().join("projects"), None, None).expect("the server starts");
    let door = Door::open(0, server.server().host()).expect("a port is free");
    let port = door.port;
    let url = format!("http://127.0.0.1:{port}/web/.git");
    let first = repo.head().expect("there is a commit");
    let watcher = Watching::start(&env, world, &url);
    until("the first is run", || runs(&env).iter().any(|(_, state, _)| state == "succeeded"));
    drop(door);
    watcher.says("cannot reach");
    watcher.says("trying again in");
    // One look that must not wait says it with its exit code.
    let out = once(&env, &url).expect(4);
    assert!(out.stderr.contains("cannot reach") && out.stderr.contains("refused"), "{}", out.stderr);
    let second = repo.commit_file("greeting", "1\n").expect("git commits");
    let _door = Door::open(port, server.server().host()).expect("the port is free again");
    until("the second is run", || {
        runs(&env).iter().filter(|(_, state, _)| state == "succeeded").count() == 2
    });
    watcher.signal(&env, "TERM");
    watcher.ends();
    assert_eq!(runs(&env), done(&[&first, &second]));
    Ok(())
}

fn a_server_that_hangs_keeps_nobody(world: &World) -> Ended {
    let env = world.env();
    // It takes connections and never says a word.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let url = format!("http://{}/web.git", listener.local_addr().expect("it has an address"));
    for (verb, code) in [("watch", 0), ("run", 3)] {
        let mut child = env
            .command(&world.keelway)
            .args([verb, "--repo", &url])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let (mut guest, _) = listener.accept().expect("it connects");
        let mut request = [0; 16];
        guest.read_exact(&mut request).expect("it asks");
        let begun = Instant::now();
        let status = env.command("kill").args(["-INT", &child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
        until("it ends", || child.try_wait().is_ok_and(|s| s.is_some()));
        let status = child.wait().expect("it ended");
        assert_eq!(status.code(), Some(code), "{verb}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        let _ = guest.flush();
    }
    Ok(())
}
