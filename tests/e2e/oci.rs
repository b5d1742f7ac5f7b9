//! Other runtimes: a stage of a pipeline under Debian's runc; and `keelway oci` as the runtime of others: each verb with its
//! exit code, and Debian's buildah on top of it.

use crate::build::{context, with_busybox};
use crate::pipeline::{commit, git};
use crate::{Ended, Test, World};
use keelway_tests::env::{Env, Output};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("oci::stages_run_under_another_runtime", stages_run_under_another_runtime),
    ("oci::every_verb_and_its_exit_code", every_verb_and_its_exit_code),
    ("oci::a_container_outlives_its_creator_and_not_its_supervisor", outlives_its_creator),
    ("oci::buildah_runs_a_container_under_us", buildah_runs_a_container_under_us),
];

/// Where Debian has it.
const RUNC: &str = "/usr/sbin/runc";

/// A repository with a build and a test of it; `isolation` is what both stages say of theirs.
fn repository(env: &Env, name: &str, isolation: &str) -> PathBuf {
    let dockerfile = "FROM busybox\nWORKDIR /data\nCOPY a /data/a\n\
        RUN <<EOF\nset -e\nid -u; grep Seccomp: /proc/self/status\ncat a > b; chown 7:8 b; rm /etc/group; mkdir -p /opt/new\n\
        test \"$(grep -c ' / overlay' /proc/mounts)\" = 1\nEOF\n";
    let pipeline = format!(
        "version: 1\nstages:\n  image:\n    build: {{}}\n    network: none\n    {isolation}\n  test:\n    needs: [image]\n    image: {{stage: image}}\n    network: none\n    {isolation}\n    \
         steps:\n      - {{name: one, run: 'stat -c %u:%g /data/b; echo from-one > /data/c; cat /proc/self/uid_map'}}\n      \
         - {{name: two, run: 'cat /data/c; hostname; ls -d /opt/new'}}\n"
    );
    let files = [("Dockerfile", dockerfile), ("a", "a\n"), ("keelway.yml", &pipeline)];
    let dir = context(env, name, &files);
    git(env, &dir, &["init", "-q", "-b", "main"]);
    commit(env, &dir, "first");
    dir
}

fn stages_run_under_another_runtime(world: &World) -> Ended {
    let env = with_busybox(world);
    let plain = repository(&env, "plain", "when: {}");
    let asked = repository(&env, "asked", "isolation: {runtime: harder}");
    // The file names it, the machine says what that is, and without a word of the machine nothing runs.
    let refused = env.keelway_in(&asked, &["run"]).expect(2);
    assert!(refused.stderr.contains("asks for the runtime \"harder\", which this machine does not know; say where it is with --runtime harder=PATH"), "{}", refused.stderr);
    let refused = env.keelway_in(&asked, &["run", "--runtime", "harder=/absent"]).expect(2);
    assert!(refused.stderr.contains("--runtime harder: /absent is not a file"), "{}", refused.stderr);
    let flag = format!("harder={RUNC}");
    let first = env.keelway_in(&asked, &["run", "--runtime", &flag]).expect(0);
    let logs = env.keelway(&["runs", "logs", "--stage", "test"]).expect(0).stdout;
    assert!(logs.contains("7:8") && logs.contains("from-one\nkeelway\n/opt/new\n"), "{logs}");
    let base: u32 = logs
        .lines()
        .find_map(|l| l.split_whitespace().nth(1).filter(|_| l.contains(" 65536"))?.parse().ok())
        .expect("a map");
    assert!(base >= 524_288, "{logs}");
    // The result is the same to the bit, so the key is: our own sandbox takes what runc made.
    let digest = |stderr: &str| {
        let at = stderr.find("sha256:").expect("a digest");
        stderr[at..at + 71].to_owned()
    };
    let second = env.keelway_in(&plain, &["run"]).expect(0);
    assert_eq!(digest(&first.stderr), digest(&second.stderr));
    let other = with_busybox(world);
    let fresh = repository(&other, "plain", "when: {}");
    let third = other.keelway_in(&fresh, &["run"]).expect(0);
    assert_eq!(digest(&first.stderr), digest(&third.stderr), "built by our own sandbox alone");
    // A failing step is one, with its code.
    let failing = context(
        &env,
        "failing",
        &[(
            "keelway.yml",
            "version: 1\nstages:\n  t:\n    image: busybox\n    network: none\n    isolation: {runtime: harder}\n    steps: [{name: bad, run: exit 9}]\n",
        )],
    );
    git(&env, &failing, &["init", "-q", "-b", "main"]);
    commit(&env, &failing, "first");
    let out = env.keelway_in(&failing, &["run", "--runtime", &flag]).expect(1);
    assert!(out.stderr.contains("step bad: exit code 9"), "{}", out.stderr);
    // A program that is no runtime.
    let out = env.keelway_in(&failing, &["run", "--runtime", "harder=/bin/false"]).expect(4);
    assert!(out.stderr.contains("the runtime \"/bin/false\" cannot create the container"), "{}", out.stderr);
    Ok(())
}

const DEADLINE: Duration = Duration::from_secs(60);

/// A folder of bundles and of containers; whatever still lives is killed at the end.
struct Bundles {
    env: Env,
    keelway: PathBuf,
}

impl Bundles {
    fn new(world: &World) -> Self {
        let env = world.env();
        let bundles = Self { env, keelway: world.keelway.clone() };
        let bin = bundles.path("rootfs/bin");
        fs::create_dir_all(&bin).expect("folders can be made");
        fs::create_dir_all(bundles.path("rootfs/etc")).expect("folders can be made");
        fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox can be copied");
        for name in ["sh", "cat", "sleep", "id", "hostname", "grep", "echo", "true", "touch", "ls"] {
            std::os::unix::fs::symlink("busybox", bin.join(name)).expect("links can be made");
        }
        bundles
    }
    fn path(&self, name: &str) -> PathBuf {
        self.env.work().join(name)
    }
    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.env.command(&self.keelway);
        command.arg("oci").arg("--root").arg(self.path("state")).args(words).current_dir(self.env.work());
        command
    }
    fn oci(&self, words: &[&str]) -> Output {
        keelway_tests::env::run(&mut self.command(words), DEADLINE).expect("it runs")
    }
    /// The same for a verb that leaves a container, which holds its streams: a pipe's end would not come before its.
    fn leaving(&self, words: &[&str]) -> Output {
        let said = self.path("said");
        let file = fs::File::create(&said).expect("a file can be made");
        let mut command = self.command(words);
        command.stdout(std::process::Stdio::null()).stderr(file);
        let status = command.status().expect("it runs");
        Output { status, stdout: String::new(), stderr: fs::read_to_string(&said).expect("it is there") }
    }
    /// A bundle whose program is this script, after a change of its configuration.
    fn bundle(&self, script: &str, change: impl FnOnce(&mut serde_json::Value)) {
        let _ = fs::remove_file(self.path("config.json"));
        self.oci(&["spec"]).expect(0);
        let text = fs::read_to_string(self.path("config.json")).expect("spec writes it");
        let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        config["process"]["args"] = serde_json::json!(["/bin/sh", "-c", script]);
        config["root"]["readonly"] = false.into();
        change(&mut config);
        fs::write(self.path("config.json"), config.to_string()).expect("it can be written");
    }
    fn state(&self, id: &str) -> serde_json::Value {
        serde_json::from_str(&self.oci(&["state", id]).expect(0).stdout).expect("JSON")
    }
    fn until(&self, id: &str, status: &str) {
        let end = Instant::now() + DEADLINE;
        while self.state(id)["status"] != status {
            assert!(Instant::now() < end, "{id} does not become {status}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Bundles {
    fn drop(&mut self) {
        for id in self.oci(&["list", "-q"]).stdout.lines() {
            self.oci(&["delete", "--force", id]);
        }
    }
}

fn every_verb_and_its_exit_code(world: &World) -> Ended {
    let b = Bundles::new(world);
    let features: serde_json::Value =
        serde_json::from_str(&b.oci(&["features"]).expect(0).stdout).expect("JSON");
    assert_eq!(features["linux"]["seccomp"]["enabled"], false);
    // run: output, input, exit code, limits, ids.
    b.bundle("cat; id -u; hostname; cat /etc/mark; touch /made; grep -E 'NoNewPrivs|^Seccomp:' /proc/self/status; exit 7", |c| {
        c["hostname"] = "given".into();
        fs::write(b.path("mark"), "marked\n").expect("it can be written");
        c["mounts"].as_array_mut().expect("a list").push(serde_json::json!({ "destination": "/etc/mark", "type": "bind", "source": "mark", "options": ["bind", "ro"] }));
    });
    let out = b.oci(&["run", "one"]).expect(7);
    assert_eq!(out.stdout, "0\ngiven\nmarked\nNoNewPrivs:\t1\nSeccomp:\t2\n", "{}", out.stderr);
    assert!(b.path("rootfs/made").exists(), "the root is the bundle's own");
    b.oci(&["state", "one"]).expect(1);
    // The life cycle.
    b.bundle("trap 'exit 3' TERM; echo up > /up; while :; do sleep 0.05; done", |c| {
        c["annotations"] = serde_json::json!({ "org.example": "x" });
        c["linux"]["resources"] =
            serde_json::json!({ "pids": { "limit": 50 }, "memory": { "limit": 67108864 } });
    });
    let work = b.env.work().display().to_string();
    b.leaving(&["create", "--bundle", &work, "--pid-file", "pid", "two"]).expect(0);
    let state = b.state("two");
    let pid = fs::read_to_string(b.path("pid")).expect("a pid file");
    assert_eq!((&state["status"], state["pid"].to_string()), (&"created".into(), pid));
    assert_eq!(
        (&state["id"], &state["annotations"]["org.example"], &state["ociVersion"]),
        (&"two".into(), &"x".into(), &"1.0.2".into())
    );
    assert_eq!(state["bundle"], work.as_str());
    assert!(!b.path("rootfs/up").exists(), "nothing runs before start");
    for (words, message) in [
        (&["create", "two"][..], "exists already"),
        (&["delete", "two"], "is created, and delete needs one that is stopped"),
        (&["start", "absent"], "does not exist"),
        (&["kill", "two", "USR1"], "is created, and kill needs"),
        (&["kill", "two", "NOPE"], "is no signal"),
        (&["create", "../x"], "cannot name a container"),
        (&["--systemd-cgroup", "list"], "not supported"),
    ] {
        let out = b.oci(words).expect(1);
        assert!(out.stderr.contains(message), "{words:?}: {}", out.stderr);
    }
    b.oci(&["start", "two"]).expect(0);
    assert_eq!(b.state("two")["status"], "running");
    b.oci(&["start", "two"]).expect(1);
    let end = Instant::now() + DEADLINE;
    while !b.path("rootfs/up").exists() {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(b.oci(&["list", "-q"]).expect(0).stdout, "two\n");
    b.oci(&["kill", "two", "TERM"]).expect(0);
    b.until("two", "stopped");
    assert_eq!(b.state("two")["pid"], 0);
    b.oci(&["kill", "two", "TERM"]).expect(1);
    b.oci(&["start", "two"]).expect(1);
    b.oci(&["delete", "two"]).expect(0);
    b.oci(&["delete", "two"]).expect(1);
    b.oci(&["delete", "--force", "two"]).expect(0);
    // An engine's way to end everything, and the end of a creator before its time: its name can be had again.
    b.bundle("while :; do sleep 0.05; done", |_| {});
    b.leaving(&["run", "-d", "all"]).expect(0);
    let out = b.oci(&["kill", "--all", "all", "HUP"]).expect(0);
    assert!(out.stderr.contains("was sent to the program"), "{}", out.stderr);
    b.oci(&["kill", "--all", "all", "KILL"]);
    b.until("all", "stopped");
    b.oci(&["delete", "all"]).expect(0);
    let null = std::process::Stdio::null;
    let mut child = b.command(&["create", "cut"]).stdout(null()).stderr(null()).spawn().expect("it starts");
    let end = Instant::now() + DEADLINE;
    while !b.path("state/cut").exists() {
        assert!(Instant::now() < end, "it has no folder");
    }
    child.kill().expect("our child can be killed");
    child.wait().expect("it was killed");
    // Killed later than meant it is a whole one, which has to be ended; either way `create` says what to do.
    let out = b.oci(&["create", "cut"]).expect(1);
    assert!(out.stderr.contains("exists already: delete it"), "{}", out.stderr);
    b.oci(&["delete", "--force", "cut"]).expect(0);
    b.leaving(&["create", "cut"]).expect(0);
    b.oci(&["delete", "--force", "cut"]).expect(0);
    // What is mounted below a bound directory is seen where it was asked for. The mount is of a namespace that goes.
    b.bundle("ls /one/sub; echo then; ls /all/sub", |c| {
        for (target, how) in [("/one", "bind"), ("/all", "rbind")] {
            let mount = serde_json::json!({ "destination": target, "type": "bind", "source": "outer", "options": [how, "ro"] });
            c["mounts"].as_array_mut().expect("a list").push(mount);
        }
    });
    fs::create_dir_all(b.path("outer/sub")).expect("folders can be made");
    let script = "mount -t tmpfs none outer/sub && touch outer/sub/below && exec \"$0\" \"$@\"";
    let run = b.command(&["run", "mounts"]);
    let mut command = b.env.command("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(run.get_program());
    command.args(run.get_args());
    let out = keelway_tests::env::run(&mut command, DEADLINE).expect("it runs").expect(0);
    assert_eq!(out.stdout, "then\nbelow\n", "{}", out.stderr);
    // What is not supported is refused by name, and written into the log.
    b.bundle("true", |c| c["hooks"] = serde_json::json!({ "prestart": [{ "path": "/bin/true" }] }));
    let out = b.oci(&["--log", "log", "--log-format", "json", "create", "three"]).expect(1);
    assert!(out.stderr.contains("hooks.prestart"), "{}", out.stderr);
    let log = fs::read_to_string(b.path("log")).expect("a log");
    assert!(log.contains("\"level\":\"error\"") && log.contains("hooks.prestart"), "{log}");
    // A program that is not there is told by start, and by run.
    b.bundle("true", |c| c["process"]["args"] = serde_json::json!(["/absent"]));
    b.leaving(&["create", "four"]).expect(0);
    let out = b.oci(&["start", "four"]).expect(1);
    assert!(out.stderr.contains("does not exist in the image"), "{}", out.stderr);
    b.oci(&["run", "five"]).expect(1);
    b.oci(&["delete", "--force", "four"]).expect(0);
    assert_eq!(b.oci(&["list", "--format", "json"]).expect(0).stdout, "[]\n");
    Ok(())
}

fn outlives_its_creator(world: &World) -> Ended {
    let b = Bundles::new(world);
    b.bundle("while :; do sleep 0.05; done", |_| {});
    b.leaving(&["run", "-d", "one"]).expect(0);
    assert_eq!(b.state("one")["status"], "running");
    let pid = b.state("one")["pid"].as_i64().expect("a pid");
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    b.oci(&["delete", "--force", "one"]).expect(0);
    assert!(!Path::new(&format!("/proc/{pid}/root/bin")).exists());
    for name in ["pids", "memory", "cpu", "unified", "."] {
        assert!(!Path::new("/sys/fs/cgroup").join(name).join("keelway-oci").exists(), "a cgroup in {name}");
    }
    Ok(())
}

fn buildah_runs_a_container_under_us(world: &World) -> Ended {
    let b = Bundles::new(world);
    let text = |path: PathBuf| path.to_str().expect("UTF-8").to_owned();
    let wrapper = b.path("runtime");
    let script =
        format!("#!/bin/sh\nexec {} oci --root {} \"$@\"\n", b.keelway.display(), b.path("state").display());
    fs::write(&wrapper, script).expect("it can be written");
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).expect("it can be made executable");
    let buildah = |words: &[&str]| {
        let mut command = b.env.command("/usr/bin/buildah");
        command
            .args([
                "--storage-driver",
                "vfs",
                "--root",
                &text(b.path("images")),
                "--runroot",
                &text(b.path("run")),
            ])
            .args(words);
        keelway_tests::env::run(&mut command, DEADLINE).expect("it runs")
    };
    let name = buildah(&["from", "--security-opt", "seccomp=unconfined", "scratch"]).expect(0).stdout;
    let name = name.trim();
    buildah(&["copy", name, &text(b.path("rootfs")), "/"]).expect(0);
    let wrapper = text(wrapper);
    let run = |script: &str| buildah(&["run", "--runtime", &wrapper, name, "--", "/bin/sh", "-c", script]);
    let out = run("echo from buildah; grep ^Seccomp: /proc/self/status; echo kept > /made").expect(0);
    assert!(out.stdout.contains("from buildah\nSeccomp:\t2\n"), "{}{}", out.stdout, out.stderr);
    let out = run("cat /made; exit 5").expect(5);
    assert!(out.stdout.contains("kept\n"), "{}", out.stdout);
    assert_eq!(b.oci(&["list", "-q"]).expect(0).stdout, "");
    Ok(())
}
