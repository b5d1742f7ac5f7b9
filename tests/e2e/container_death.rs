//! Containers whose keeper, supervisor or owner is killed; restart policies and health.

use crate::build::{build, context};
use crate::container::{Yard, until};
use crate::kill::kills;
use crate::{Ended, Test, World};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("container_death::an_attached_one_dies_with_its_owner", an_attached_one_dies_with_its_owner),
    ("container_death::supervisors_and_keepers_are_killed", supervisors_and_keepers_are_killed),
    ("container_death::restart_policies", restart_policies),
    ("container_death::health", health),
    ("container_death::at_random_moments", at_random_moments),
];

/// Processes of ours for a container, by their role.
fn ours(yard: &Yard, role: &str) -> Vec<i32> {
    let state = yard.env.store();
    let wanted = format!("__container\0{role}\0{}\0", state.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc is there").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(&wanted) {
            found.push(pid);
        }
    }
    found
}

fn end(pids: &[i32]) {
    for pid in pids {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
}

/// The process of a role, once there is exactly one that is not among `but`.
fn the(yard: &Yard, role: &str, but: &[i32]) -> i32 {
    let mut found = 0;
    until(&format!("there is a {role}"), || {
        let now: Vec<i32> = ours(yard, role).into_iter().filter(|p| !but.contains(p)).collect();
        found = now.first().copied().unwrap_or(0);
        now.len() == 1
    });
    found
}

fn state(yard: &Yard, name: &str) -> Value {
    yard.inspect(name)["State"].clone()
}

fn an_attached_one_dies_with_its_owner(world: &World) -> Ended {
    let yard = Yard::new(world);
    for (name, rm) in [("stays", None), ("goes", Some("--rm"))] {
        let words = ["run", "--network", "none", "--name", name];
        let command = ["busybox", "sh", "-c", "echo ready; exec sleep 1000"];
        let words: Vec<&str> = words.into_iter().chain(rm).chain(command).collect();
        let mut child = yard.command(&words).stdout(Stdio::null()).spawn().expect("it starts");
        until("it runs", || yard.container(&["logs", name]).stdout.contains("ready"));
        let pid = state(&yard, name)["Pid"].as_i64().expect("a number");
        child.kill().expect("our child can be killed");
        child.wait().expect("it was killed");
        until("its process is dead", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
        let out = yard.container(&["ls", "-a"]).expect(0);
        assert!(out.stderr.contains("its keeper was killed"), "{}", out.stderr);
        assert_eq!(out.stdout.contains("Exited (137)"), rm.is_none(), "{}", out.stdout);
        // It is said once.
        assert_eq!(yard.container(&["ls", "-a"]).expect(0).stderr, "");
        if rm.is_none() {
            yard.container(&["rm", name]).expect(0);
        }
    }
    yard.end();
    Ok(())
}

fn supervisors_and_keepers_are_killed(world: &World) -> Ended {
    let yard = Yard::new(world);
    let script = "echo run; echo was here >> /kept; exec sleep 1000";
    yard.run(&["-d", "--name", "alive", "--restart", "always", "busybox", "sh", "-c", script]).expect(0);
    yard.until_logged("alive", "run");
    let (keeper, supervisor) = (the(&yard, "keep", &[]), the(&yard, "supervise", &[]));
    let pid = state(&yard, "alive")["Pid"].clone();
    // The supervisor: the container does not notice, and there is another one soon.
    end(&[supervisor]);
    let second = the(&yard, "supervise", &[supervisor]);
    assert_eq!(state(&yard, "alive")["Pid"], pid);
    // The keeper: the container dies with it, and both come back.
    end(&[keeper]);
    let again = the(&yard, "keep", &[keeper]);
    until("it was started again", || yard.logs("alive") == "run\nrun\n");
    assert_eq!(yard.inspect("alive")["RestartCount"], 1);
    // What it wrote is there.
    assert_eq!(yard.container(&["exec", "alive", "cat", "/kept"]).expect(0).stdout, "was here\nwas here\n");
    // Both at once: whoever looks next puts it right, and says so. The supervisor first, and stopped before the keeper
    // can notice.
    let _ = kill(Pid::from_raw(again), Signal::SIGSTOP);
    end(&[second, again]);
    until("both are dead", || ours(&yard, "keep").is_empty() && ours(&yard, "supervise").is_empty());
    let out = yard.container(&["ls", "-a"]).expect(0);
    assert!(out.stderr.contains("started again by its restart policy"), "{}", out.stderr);
    until("it was started again", || yard.logs("alive") == "run\nrun\nrun\n");
    // Stopped is stopped.
    yard.container(&["stop", "-t", "0", "alive"]).expect(0);
    until("everybody is gone", || ours(&yard, "keep").is_empty() && ours(&yard, "supervise").is_empty());
    let out = yard.container(&["ls", "-a"]).expect(0);
    assert!(out.stdout.contains("Exited (") && out.stderr.is_empty(), "{}{}", out.stdout, out.stderr);
    // But not after a boot of the machine, and then again.
    let id = yard.inspect("alive")["Id"].as_str().expect("an id").to_owned();
    let want = yard.env.store().join("containers").join(id).join("want.json");
    let said: Value = serde_json::from_slice(&std::fs::read(&want).expect("it was stopped")).expect("JSON");
    let boot = said["boot"].as_str().expect("a boot").to_owned();
    let text = std::fs::read_to_string(&want).expect("it was stopped").replace(&boot, "the one before");
    std::fs::write(&want, text).expect("it is ours");
    let out = yard.container(&["ls", "-a"]).expect(0);
    assert!(out.stderr.contains("started again by its restart policy"), "{}", out.stderr);
    until("it was started again", || yard.logs("alive") == "run\nrun\nrun\nrun\n");
    yard.container(&["stop", "-t", "0", "alive"]).expect(0);
    until("everybody is gone", || ours(&yard, "keep").is_empty() && ours(&yard, "supervise").is_empty());
    let out = yard.container(&["ls", "-a"]).expect(0);
    assert!(out.stdout.contains("Exited (") && out.stderr.is_empty(), "{}{}", out.stdout, out.stderr);
    // Without a policy it is not started again, and is told once.
    yard.run(&["-d", "--name", "plain", "busybox", "sleep", "1000"]).expect(0);
    end(&[the(&yard, "keep", &[])]);
    until("its end is seen", || state(&yard, "plain")["Status"] == "exited");
    assert_eq!(state(&yard, "plain")["ExitCode"], 137);
    yard.end();
    Ok(())
}

fn restart_policies(world: &World) -> Ended {
    let yard = Yard::new(world);
    let run = |name: &str, policy: &str, script: &str| {
        yard.run(&["-d", "--name", name, "--restart", policy, "busybox", "sh", "-c", script]).expect(0);
    };
    run("fails", "on-failure:2", "echo run; exit 4");
    until("it has given up", || {
        let found = yard.inspect("fails");
        found["State"]["Status"] == "exited" && found["RestartCount"] == 2
    });
    assert_eq!(
        (yard.logs("fails").lines().count(), state(&yard, "fails")["ExitCode"].clone()),
        (3, 4.into())
    );
    run("works", "on-failure", "echo run; exit 0");
    until("it is over", || state(&yard, "works")["Status"] == "exited");
    assert_eq!(yard.logs("works"), "run\n");
    run("never", "no", "exit 1");
    until("it is over", || state(&yard, "never")["Status"] == "exited");
    run("ever", "unless-stopped", "echo run; sleep 0.1");
    until("it runs again and again", || yard.logs("ever").lines().count() >= 3);
    yard.container(&["stop", "-t", "0", "ever"]).expect(0);
    until("it is over", || state(&yard, "ever")["Status"] == "exited");
    until("nobody waits to start it", || ours(&yard, "supervise").is_empty());
    let runs = yard.logs("ever");
    yard.container(&["ls"]).expect(0);
    assert_eq!(yard.logs("ever"), runs);
    // What is meant to end it is not undone: its own stop signal, whoever names that. Another signal is no such word.
    let dir = context(&yard.env, "image", &[("Dockerfile", "FROM busybox\nSTOPSIGNAL USR2\n")]);
    build(&yard.env, &dir, &["-t", "named"]).expect(0);
    let script = "trap 'exit 3' TERM USR1 USR2; echo ready; while :; do sleep 0.02; done";
    for (name, flags, image, signal, again) in [
        ("usual", &[][..], "busybox", "TERM", false),
        ("asked", &["--stop-signal", "USR1"], "busybox", "USR1", false),
        ("image", &[], "named", "USR2", false),
        ("other", &[], "named", "TERM", true),
    ] {
        let words = ["-d", "--name", name, "--restart", "always"];
        yard.run(&[&words, flags, &[image, "sh", "-c", script]].concat()).expect(0);
        yard.until_logged(name, "ready");
        yard.container(&["kill", "-s", signal, name]).expect(0);
        match again {
            false => until("it is over", || state(&yard, name)["Status"] == "exited"),
            true => until("it runs again", || yard.logs(name) == "ready\nready\n"),
        }
        let found = yard.inspect(name);
        assert_eq!(found["RestartCount"], u32::from(again), "{name}");
        yard.container(&["rm", "-f", name]).expect(0);
    }
    // A policy that cannot be kept is refused.
    yard.run(&["--restart", "always", "busybox", "true"]).expect(125);
    yard.run(&["-d", "--rm", "--restart", "always", "busybox", "true"]).expect(125);
    // What cannot be started at all is not tried for ever.
    yard.run(&["-d", "--name", "wrong", "--restart", "always", "busybox", "no-such-program"]).expect(127);
    until("it is given up", || state(&yard, "wrong")["Status"] == "exited");
    yard.end();
    Ok(())
}

fn health(world: &World) -> Ended {
    let yard = Yard::new(world);
    let words = [
        "-d",
        "--name",
        "ill",
        "--health-cmd",
        "echo looked; test -f /well",
        "--health-interval",
        "100ms",
        "--health-retries",
        "2",
        "--health-timeout",
        "5s",
        "busybox",
        "sleep",
        "1000",
    ];
    yard.run(&words).expect(0);
    let is = |wanted: &str| until(wanted, || state(&yard, "ill")["Health"]["Status"] == wanted);
    is("unhealthy");
    assert!(yard.container(&["ls"]).expect(0).stdout.contains("(unhealthy)"));
    let log = state(&yard, "ill")["Health"]["Log"][0].clone();
    assert_eq!((&log["Output"], &log["ExitCode"]), (&Value::from("looked\n"), &Value::from(1)));
    yard.container(&["exec", "ill", "touch", "/well"]).expect(0);
    is("healthy");
    // A check that hangs has failed, and leaves nothing.
    yard.run(&[
        "-d",
        "--name",
        "slow",
        "--health-cmd",
        "sleep 77777",
        "--health-interval",
        "50ms",
        "--health-timeout",
        "100ms",
        "--health-retries",
        "1",
        "busybox",
        "sleep",
        "1000",
    ])
    .expect(0);
    until("it is unhealthy", || state(&yard, "slow")["Health"]["Status"] == "unhealthy");
    let checks = |yard: &Yard| {
        yard.container(&["exec", "slow", "sh", "-c", "ps -o args | grep -c '^sleep 7777[7]' || true"])
            .expect(0)
            .stdout
    };
    until("at most one check runs", || matches!(checks(&yard).trim(), "0" | "1"));
    yard.end();
    Ok(())
}

/// Kinds of containers, each with its flags. `PORT` is a port of this machine that is free.
const KINDS: [&[&str]; 6] = [
    &["-d", "--network", "none"],
    &["--network", "none"],
    &["-d", "--rm", "-p", "127.0.0.1:PORT:8080"],
    &["--rm"],
    &["-d", "--restart", "always", "--network", "none"],
    &["-d", "--restart", "always", "-p", "127.0.0.1:PORT:8080"],
];

/// A `container run` that is not awaited, and ends with this.
struct Begun(Child);

impl Begun {
    fn new(mut command: Command) -> Self {
        let null = Stdio::null;
        Self(command.stdin(null()).stdout(null()).stderr(null()).spawn().expect("the binary starts"))
    }
    fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("it is our child").is_some()
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The command that waits for a keeper to begin says at once that it is dead.
fn a_keeper_that_never_kept(yard: &Yard) {
    // A keeper may be quicker than we are.
    let said = (0..50).find_map(|_| {
        std::thread::scope(|scope| {
            let run = scope.spawn(|| yard.run(&["-d", "--rm", "busybox", "sleep", "1000"]));
            let begun = Instant::now();
            while !run.is_finished() {
                end(&ours(yard, "keep"));
                assert!(begun.elapsed() < Duration::from_secs(60), "the command waits for a dead keeper");
            }
            let out = run.join().expect("it does not panic");
            (out.code() != 0).then_some(out)
        })
    });
    let out = said.expect("a keeper can be killed before it begins").expect(125);
    assert!(
        out.stderr.contains("its keeper ended (signal: 9 (SIGKILL)) before the container began"),
        "{}",
        out.stderr
    );
    until("nothing is there", || yard.container(&["ls", "-aq"]).stdout.is_empty());
}

/// The command, the keeper or the supervisor is killed while a container begins or runs: whatever is there afterwards is
/// listed, stopped and removed like any other, the command ends, and nothing is left.
fn at_random_moments(world: &World) -> Ended {
    let yard = Yard::new(world);
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let links = || -> Vec<_> {
        let all = std::fs::read_dir("/sys/class/net").expect("it is there").flatten();
        let mut names: Vec<_> = all.map(|link| link.file_name()).collect();
        names.sort();
        names
    };
    let before = links();
    let begin = |name: &str, flags: &[&str]| {
        let flags: Vec<String> = flags.iter().map(|f| f.replace("PORT", &port.to_string())).collect();
        let mut command = yard.command(&["run", "--name", name]);
        Begun::new({
            command.args(flags).args(["busybox", "sh", "-c", "echo up; exec sleep 1000"]);
            command
        })
    };
    let all = || -> Vec<String> {
        let out = yard.container(&["ls", "-a", "--format", "json"]).expect(0).stdout;
        let name = |line: &str| {
            serde_json::from_str::<Value>(line).expect("JSON")["Names"].as_str().map(str::to_owned)
        };
        out.lines().filter_map(name).collect()
    };
    // Done, or the container has gone by itself meanwhile, as with --rm.
    let done = |words: &[&str], name: &str| {
        let out = yard.container(&[words, &[name]].concat());
        assert!(out.code() == 0 || !all().contains(&name.to_owned()), "{words:?} {name}: {}", out.stderr);
    };
    a_keeper_that_never_kept(&yard);
    // How long a beginning takes here, so that the moments fall all over it and a little beyond.
    let first = Instant::now();
    let mut whole = begin("whole", KINDS[5]);
    until("it has begun", || whole.has_ended());
    let span = first.elapsed().mul_f64(1.5);
    done(&["rm", "-f"], "whole");
    let mut random = std::process::id() | 1;
    let mut next = |below: u32| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 8) % below
    };
    for round in 0..kills() {
        let (name, kind) = (format!("c{round}"), KINDS[round as usize % KINDS.len()]);
        let mut command = begin(&name, kind);
        let moment = Instant::now() + span.mul_f64(f64::from(next(1000)) / 1000.0);
        while Instant::now() < moment {
            std::thread::sleep(Duration::from_millis(1));
        }
        match next(3) {
            0 => _ = command.0.kill(),
            1 => end(&ours(&yard, "keep")),
            _ => end(&ours(&yard, "supervise")),
        }
        // A command that is still at it may make its container after this.
        if kind.contains(&"-d") {
            until("the command says how it went", || command.has_ended());
        }
        until("all of it is stopped and removed, and the command has ended", || {
            let over = command.has_ended();
            let there = all();
            for name in &there {
                done(&["stop", "-t", "0"], name);
                done(&["rm"], name);
            }
            over && there.is_empty()
        });
    }
    until("everybody is gone", || ours(&yard, "keep").is_empty() && ours(&yard, "supervise").is_empty());
    // All of it works as before.
    let publish = format!("127.0.0.1:{port}:8080");
    let out = yard.container(&["run", "--rm", "-p", &publish, "busybox", "echo", "as before"]).expect(0);
    assert_eq!((out.stdout.as_str(), all()), ("as before\n", vec![]));
    let left: Vec<_> = std::fs::read_dir(yard.env.store().join("containers"))
        .expect("it is there")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !matches!(name.as_str(), "lock" | "trash"))
        .collect();
    assert!(left.is_empty(), "folders are left: {left:?}");
    until("its network is gone", || links() == before);
    yard.end();
    Ok(())
}
