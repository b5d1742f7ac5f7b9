//! What a step does to the machine has an end, and the end names the limit: a fork bomb, a memory hog, a disk filler,
//! endless output, a process that ignores SIGTERM.
//!
//! Each runs while a watcher starts a small process again and again: a machine that hangs would show there.

use crate::build::{build, context, with_busybox};
use crate::pipeline::{commit, git};
use crate::{Ended, Test, World};
use keelway_tests::env::Env;
use std::fs::{self, File};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("limits::x01_a_fork_bomb", a_fork_bomb),
    ("limits::x02_a_memory_hog", a_memory_hog),
    ("limits::x03_a_disk_filler", a_disk_filler),
    ("limits::x04_endless_output", endless_output),
    ("limits::x08_a_process_that_ignores_sigterm", a_process_that_ignores_sigterm),
    ("limits::of_builds_and_containers_by_hand", of_builds_and_containers_by_hand),
];

/// Longest that any of them takes, set-up included; most take a second.
const PATIENCE: Duration = Duration::from_secs(30);
/// A small process is started and over within it, whatever a step does.
const RESPONSIVE: Duration = Duration::from_secs(2);

/// How a run ended.
struct Said {
    code: i32,
    text: String,
    took: Duration,
    /// Most memory of keelway itself.
    peak: u64,
}

impl Said {
    #[track_caller]
    fn expect(&self, code: i32, words: &[&str]) {
        for word in words {
            assert!(self.text.contains(word), "{word:?} is not in\n{}", tail(&self.text));
        }
        assert_eq!(self.code, code, "{}", tail(&self.text));
    }
}

/// The end of a text that may be long.
fn tail(text: &str) -> &str {
    let from = text.len().saturating_sub(4000);
    &text[(from..).find(|i| text.is_char_boundary(*i)).unwrap_or(text.len())..]
}

/// Runs a stage of one step, and looks at the machine meanwhile.
fn run(world: &World, env: &Env, stage: &str, script: &str) -> Said {
    let dir = env.work().join("repo");
    fs::create_dir_all(&dir).expect("folders can be made");
    let file = format!(
        "version: 1\nstages:\n  test:\n    image: busybox\n    {stage}\n    steps:\n      - {{name: bad, run: \"{script}\"}}\n"
    );
    fs::write(dir.join("keelway.yml"), file).expect("files can be written");
    if !dir.join(".git").exists() {
        git(env, &dir, &["init", "-q", "-b", "main"]);
    }
    commit(env, &dir, "a step");
    let log = env.work().join("said");
    let to = File::create(&log).expect("files can be made");
    let mut command = env.command(&world.keelway);
    command.arg("run").current_dir(&dir);
    command.stderr(to.try_clone().expect("descriptors are there")).stdout(to);
    let (over, slowest) = (AtomicBool::new(false), AtomicU64::new(0));
    let begun = Instant::now();
    let (code, peak) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let one = Instant::now();
                let _ = Command::new("/bin/true").status();
                let took = u64::try_from(one.elapsed().as_millis()).unwrap_or(u64::MAX);
                slowest.fetch_max(took, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let mut child = command.spawn().expect("keelway starts");
        let mut peak = 0;
        let code = loop {
            peak = peak.max(peak_of(child.id()));
            if let Some(status) = child.try_wait().expect("it is our child") {
                break status.code().unwrap_or(-1);
            }
            if begun.elapsed() > PATIENCE {
                let _ = child.kill();
                let _ = child.wait();
                break -2;
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        over.store(true, Ordering::Relaxed);
        (code, peak)
    });
    let slowest = Duration::from_millis(slowest.into_inner());
    assert!(slowest < RESPONSIVE, "a small process took {slowest:?}");
    let text = String::from_utf8_lossy(&fs::read(&log).expect("the file is there")).into_owned();
    Said { code, text, took: begun.elapsed(), peak }
}

/// Most memory of a process so far, in bytes.
fn peak_of(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) << 10
}

fn a_fork_bomb(world: &World) -> Ended {
    let env = with_busybox(world);
    let said =
        run(world, &env, "limits: {pids: 60}", "b() { b | b & wait; }; b; while :; do sleep 60 & done");
    said.expect(1, &["step bad", "processes", "raise `limits.pids`"]);
    Ok(())
}

fn a_memory_hog(world: &World) -> Ended {
    let env = with_busybox(world);
    let said =
        run(world, &env, "limits: {memory: 32M}", "dd if=/dev/zero of=/dev/null bs=300M count=1; exit 7");
    said.expect(1, &["step bad", "out of memory; raise `limits.memory`"]);
    Ok(())
}

fn a_disk_filler(world: &World) -> Ended {
    let env = with_busybox(world);
    let said = run(world, &env, "limits: {disk: 20M}", "cat /dev/zero > /tmp/fill");
    said.expect(1, &["step bad", "too much disk", "its limit is 20.0 MiB; raise `limits.disk`"]);
    // A quota would say so to the program, which may cope; here it is ended.
    let said = run(world, &env, "limits: {files: 300}", "i=0; while :; do i=$((i+1)); : > /tmp/$i; done");
    said.expect(1, &["too many files", "its limit is 300; raise `limits.files`"]);
    // What fits is not touched.
    run(world, &env, "limits: {disk: 20M}", "head -c 10000000 /dev/zero > /tmp/fill").expect(0, &[]);
    Ok(())
}

fn endless_output(world: &World) -> Ended {
    let env = with_busybox(world);
    let quiet = run(world, &env, "limits: {log: 1M}", "echo hello").peak;
    let said = run(world, &env, "limits: {log: 1M}", "echo first; yes");
    said.expect(1, &["first", "too much output: more than 1.0 MiB; raise `limits.log`"]);
    assert!(said.peak < quiet + (64 << 20), "{} MiB, {} when nothing is said", said.peak >> 20, quiet >> 20);
    // Without an end of line nothing is kept for ever, either.
    let said = run(world, &env, "limits: {log: 1M}", "cat /dev/zero");
    said.expect(1, &["too much output: more than 1.0 MiB"]);
    Ok(())
}

fn a_process_that_ignores_sigterm(world: &World) -> Ended {
    let env = with_busybox(world);
    let said = run(world, &env, "timeout: 1s", "trap '' TERM; while :; do sleep 1; done");
    said.expect(1, &["not done after 1.0s, its time limit; raise `timeout`"]);
    assert!(said.took > Duration::from_secs(5), "it had its grace: {:?}", said.took);
    Ok(())
}

fn of_builds_and_containers_by_hand(world: &World) -> Ended {
    let env = with_busybox(world);
    let dir = context(&env, "filler", &[("Dockerfile", "FROM busybox\nRUN cat /dev/zero > /fill\n")]);
    let out = build(&env, &dir, &["--disk", "16m"]).expect(1);
    assert!(out.stderr.contains("too much disk") && out.stderr.contains("or --disk"), "{}", out.stderr);
    let dir = context(&env, "fine", &[("Dockerfile", "FROM busybox\nRUN test $(ulimit -n) = 99\n")]);
    build(&env, &dir, &["--ulimit", "nofile=99", "--disk", "16m"]).expect(0);
    let by_hand = |flags: &[&str], script: &str| {
        let mut args = vec!["container", "run", "--rm", "--network", "none"];
        args.extend(flags);
        args.extend(["busybox", "sh", "-c", script]);
        env.keelway(&args)
    };
    let out = by_hand(&["--disk", "16m"], "cat /dev/zero > /fill").expect(137);
    assert!(out.stderr.contains("too much disk") && out.stderr.contains("or --disk"), "{}", out.stderr);
    let out = by_hand(&["--memory", "16m"], "dd if=/dev/zero of=/dev/null bs=200M count=1").expect(137);
    assert!(out.stderr.contains("out of memory") && out.stderr.contains("or --memory"), "{}", out.stderr);
    let out =
        by_hand(&["--shm-size", "100k"], "head -c 1000000 /dev/zero > /dev/shm/x || echo full").expect(0);
    assert_eq!(out.stdout, "full\n");
    let out = env.keelway(&["container", "run", "--shm-size", "0", "busybox", "true"]).expect(2);
    assert!(out.stderr.contains("write more than 0"), "{}", out.stderr);
    Ok(())
}
