//! Containers whose keeper, supervisor or owner is killed; restart policies and health.

use crate::container::{Yard, until};
use crate::{Ended, Test, World};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::process::Stdio;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("container_death::an_attached_one_dies_with_its_owner", an_attached_one_dies_with_its_owner),
    ("container_death::supervisors_and_keepers_are_killed", supervisors_and_keepers_are_killed),
    ("container_death::restart_policies", restart_policies),
    ("container_death::health", health),
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
