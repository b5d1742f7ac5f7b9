//! An ordinary user builds, tests and pushes; what it builds is what root builds.
//!
//! The user exists only in a mount namespace of each command, where /etc/passwd and /etc/subuid name it.

use crate::container::until;
use crate::{Ended, Test, World, network};
use keelway_tests::base::{self, Base};
use keelway_tests::env::{Env, Leaks, Output, run};
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("rootless::a_user_builds_what_root_builds", same_image),
    ("rootless::a_user_without_ids_is_told", without_ids),
    ("rootless::a_user_has_mounts", mounts),
    ("rootless::a_pipeline_runs_and_keeps_its_runs", pipeline),
    ("rootless::ssh_runs_as_the_user_itself", ssh),
    ("rootless::a_private_network_by_pasta", by_pasta),
    ("rootless::the_doctor_says_what_is_missing", doctor),
    ("rootless::a_container_in_the_background", in_the_background),
];

const DEADLINE: Duration = Duration::from_secs(120);
const USER: u32 = 54_321;

/// A user of this test alone.
struct Ann {
    keelway: PathBuf,
    /// A folder that she may enter.
    env: Env,
}

impl Ann {
    fn new(world: &World, sub_ids: bool) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let env = world.env();
        fs::set_permissions(env.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
        let home = env.path().join("ann");
        let etc = env.path().join("etc");
        fs::create_dir_all(&etc).expect("folders");
        fs::create_dir_all(&home).expect("folders");
        chown(&home, Some(USER), Some(USER)).expect("its owner");
        let passwd = fs::read_to_string("/etc/passwd").expect("a user table");
        let line = format!("keelway-ann:x:{USER}:{USER}::{}:/bin/sh\n", home.display());
        fs::write(etc.join("passwd"), passwd + &line).expect("a user table");
        let range = if sub_ids { "keelway-ann:300000:65536\n" } else { "" };
        for name in ["subuid", "subgid"] {
            fs::write(etc.join(name), range).expect("a table of ids");
        }
        Self { keelway: world.keelway.clone(), env }
    }

    fn home(&self) -> PathBuf {
        self.env.path().join("ann")
    }

    /// A file or folder of hers.
    fn own(&self, path: &str, text: &str) {
        let path = self.home().join(path);
        let mut made = path.parent().expect("it is in her home");
        fs::create_dir_all(made).expect("folders");
        fs::write(&path, text).expect("a file");
        chown(&path, Some(USER), Some(USER)).expect("its owner");
        while made != self.home() {
            chown(made, Some(USER), Some(USER)).expect("its owner");
            made = made.parent().expect("it is in her home");
        }
    }

    fn command(&self, dir: &Path, program: &Path) -> Command {
        let script = "mount --make-rprivate / && for f in passwd subuid subgid; do \
             mount --bind \"$ANN/etc/$f\" /etc/$f || exit 9; done; \
             if [ -e \"$ANN/dev\" ]; then mount -t tmpfs dev \"$ANN/dev\" && mknod -m 666 \"$ANN/dev/tun\" c 10 200 && \
             mount --bind \"$ANN/dev/tun\" /dev/net/tun || exit 9; fi; cd \"$1\" || exit 9; shift; \
             exec setpriv --reuid 54321 --regid 54321 --clear-groups env -i HOME=\"$ANN/ann\" PATH=\"$PATH\" \"$@\"";
        let mut c = Command::new("unshare");
        c.args(["-m", "sh", "-c", script, "sh"]).arg(dir).arg(program).env("ANN", self.env.path());
        c
    }

    #[track_caller]
    fn keelway(&self, args: &[&str]) -> Output {
        let mut command = self.command(&self.home(), &self.keelway);
        run(command.args(args), DEADLINE).expect("it ends in time")
    }

    fn load(&self, base: Base, name: &str) {
        let layout = base::oci_layout(base).expect("the base can be made");
        self.keelway(&["image", "load", layout.to_str().expect("UTF-8"), name]).expect(0);
    }
}

/// Owners, set-id bits, capabilities, deleted and replaced directories, hard links.
const DOCKERFILE: &str = "\
FROM base/python:12
RUN mkdir /data && touch /data/a && chown 1000:33 /data/a && ln /data/a /data/b && chmod 4755 /data/a
RUN rm -rf /usr/share/doc && mkdir /usr/share/doc && echo new > /usr/share/doc/new
RUN rm -rf /usr/share/man && touch /usr/share/man
RUN python3 -c \"import os; open('/data/c','w'); os.setxattr('/data/c','security.capability',bytes.fromhex('0100000200040000'+'00'*12))\"
COPY --chown=33:34 given /given
RUN su -s /bin/sh nobody -c id | grep -q 'uid=65534'
USER 1000
WORKDIR /work
";

fn same_image(world: &World) -> Ended {
    let leaks = Leaks::record();
    let ann = Ann::new(world, true);
    ann.load(Base::Python, "base/python:12");
    ann.own("app/Dockerfile", DOCKERFILE);
    ann.own("app/given", "given\n");
    let theirs = ann.keelway(&["image", "build", "app"]).expect(0);

    let env = world.env();
    let layout = base::oci_layout(Base::Python).expect("the base can be made");
    env.keelway(&["image", "load", layout.to_str().expect("UTF-8"), "base/python:12"]).expect(0);
    let dir = ann.home().join("app");
    let ours = env.keelway(&["image", "build", dir.to_str().expect("UTF-8")]).expect(0);
    assert_eq!(theirs.stdout, ours.stdout, "{}\n{}", theirs.stderr, ours.stderr);
    assert!(theirs.stdout.starts_with("sha256:"), "{}", theirs.stdout);

    // Her store is hers, and what other ids own in it is in her range.
    let store = ann.home().join(".local/share/keelway/store");
    assert_eq!(fs::metadata(&store).expect("it is there").uid(), USER);
    // Nothing changed: no process is started.
    let again = ann.keelway(&["image", "build", "app"]).expect(0);
    assert!(!again.stderr.contains(": runs (") && again.stdout == theirs.stdout, "{}", again.stderr);
    leaks.assert_none();
    Ok(())
}

fn without_ids(world: &World) -> Ended {
    let ann = Ann::new(world, false);
    let layout = base::oci_layout(Base::Python).expect("the base can be made");
    let said = ann.keelway(&["image", "load", layout.to_str().expect("UTF-8"), "base/python:12"]).expect(4);
    assert!(said.stderr.contains("is not among the ids that this user may give to files"), "{}", said.stderr);
    assert!(said.stderr.contains("keelway doctor"), "{}", said.stderr);
    // What needs no other id works.
    ann.load(Base::Busybox, "base/busybox:1");
    ann.own("app/Dockerfile", "FROM base/busybox:1\nRUN id -u && echo x > /made\n");
    ann.keelway(&["image", "build", "app"]).expect(0);
    ann.own("b/Dockerfile", "FROM base/busybox:1\nUSER 1000\nRUN id -u\n");
    let said = ann.keelway(&["image", "build", "b"]).expect(1);
    assert!(said.stderr.contains("outside the sandbox, which has 1 ids"), "{}", said.stderr);
    Ok(())
}

fn mounts(world: &World) -> Ended {
    let leaks = Leaks::record();
    let ann = Ann::new(world, true);
    ann.load(Base::Busybox, "base/busybox:1");
    let text = |command: &str| {
        format!(
            "FROM base/busybox:1 AS tools\nRUN mkdir /opt && echo tool > /opt/t\nFROM base/busybox:1\n\
             RUN --mount=target=/ctx --mount=from=tools,source=/opt,target=/o,rw --mount=type=tmpfs,target=/m,size=64k \
             --mount=type=cache,target=/c,uid=5 --mount=type=secret,id=s,required,uid=33 <<EOF\n\
             set -e\ngrep tools /ctx/Dockerfile; cat /o/t; touch /o/new /m/x\n\
             if touch /ctx/no 2>/dev/null; then exit 1; fi\n\
             cat /run/secrets/s; stat -c '%u %a' /run/secrets/s\n{command}\nEOF\n\
             RUN test ! -e /c -a ! -e /o -a ! -e /run\n"
        )
    };
    ann.own("s", "her-own-secret\n");
    ann.own("app/Dockerfile", &text("echo one > /c/log; chown 7:8 /c/log; stat -c '%u' /c"));
    let args = ["image", "build", "--network", "none", "--secret", "id=s,src=s", "app"];
    let out = ann.keelway(&args).expect(0);
    for wanted in ["tool\n", "***\n", "33 400\n", "| 5\n"] {
        assert!(out.stderr.contains(wanted), "{wanted:?} in {}", out.stderr);
    }
    ann.own("app/Dockerfile", &text("stat -c 'kept %u:%g' /c/log; cat /c/log"));
    let out = ann.keelway(&args).expect(0);
    assert!(out.stderr.contains("kept 7:8\n") && out.stderr.contains("| one\n"), "{}", out.stderr);
    leaks.assert_none();
    Ok(())
}

fn pipeline(world: &World) -> Ended {
    let ann = Ann::new(world, true);
    ann.load(Base::Busybox, "base/busybox:1");
    ann.own("app/Dockerfile", "FROM base/busybox:1\nRUN echo built > /built\n");
    let file = "version: 1\nstages:\n  image:\n    build: {context: .}\n  test:\n    needs: [image]\n    image: {stage: image}\n    \
         network: none\n    limits: {pids: 50}\n    steps:\n      - {name: unit, run: 'cat /built && id -u'}\n";
    ann.own("app/keelway.yml", file);
    let mut init = ann.command(&ann.home().join("app"), Path::new("sh"));
    init.args(["-c", "git init -q . && git add . && git -c user.name=a -c user.email=a@b commit -qm one"]);
    run(&mut init, DEADLINE).expect("it ends").expect(0);
    let mut command = ann.command(&ann.home().join("app"), &ann.keelway);
    let out = run(command.arg("run"), DEADLINE).expect("it ends in time").expect(0);
    assert!(out.stderr.contains("built") || out.stdout.contains("built"), "{}{}", out.stdout, out.stderr);
    let ls = ann.keelway(&["runs", "ls"]).expect(0);
    assert!(ls.stdout.contains("done") || ls.stdout.contains("succeeded"), "{}", ls.stdout);
    Ok(())
}

fn ssh(world: &World) -> Ended {
    let ann = Ann::new(world, true);
    // In place of ssh: who asks?
    let script = "#!/bin/sh\necho \"asked by $(id -u) $(id -un)\" >&2; exit 255\n";
    ann.own("bin/ssh", script);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(ann.home().join("bin/ssh"), mode).expect("its mode");
    let mut command = ann.command(&ann.home(), Path::new("sh"));
    command.args(["-c", "PATH=$HOME/bin:$PATH exec \"$@\"", "sh"]).arg(&ann.keelway);
    command.args(["run", "--repo", "ssh://git@git.example.test/x.git", "--commit", "main"]);
    let out = run(&mut command, DEADLINE).expect("it ends in time").expect(4);
    assert!(out.stderr.contains("asked by 54321 keelway-ann"), "{}", out.stderr);
    Ok(())
}

fn by_pasta(world: &World) -> Ended {
    network::on_a_machine(world, |_| {
        let leaks = Leaks::record();
        let ann = Ann::new(world, true);
        ann.load(Base::Python, "base/python:12");
        ann.own("net/fetch", network::FETCH);
        let (outside, machine, aside) = (network::OUTSIDE, network::MACHINE, network::ASIDE);
        let run = format!("RUN python3 /fetch {outside} {machine} {aside} 127.0.0.1 169.254.169.254");
        ann.own("net/Dockerfile", &format!("FROM base/python:12\nCOPY fetch /fetch\n{run}\n"));
        // Without the device she is told, and it has its loopback.
        let out = ann.keelway(&["image", "build", "net"]).expect(0);
        assert!(out.stderr.contains("its private network has no way out"), "{}", out.stderr);
        assert!(out.stderr.contains(&format!("refused {outside}")), "{}", out.stderr);

        fs::create_dir(ann.env.path().join("dev")).expect("a folder");
        ann.own("net/Dockerfile", &format!("FROM base/python:12\nCOPY fetch /fetch\n{run} # again\n"));
        let out = ann.keelway(&["image", "build", "net"]).expect(0).stderr;
        assert!(out.contains(&format!("came {outside} from the outside")), "{out}");
        for closed in [machine, aside, "127.0.0.1", "169.254.169.254"] {
            assert!(out.contains(&format!("refused {closed} ")), "{closed}: {out}");
        }
        leaks.assert_none();
    });
    Ok(())
}

/// What `doctor` says of one thing: health, what was seen, what mends it.
fn said(out: &Output, check: &str) -> (String, String, String) {
    let lines = out.stdout.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).expect("JSON"));
    let found =
        lines.into_iter().find(|f| f["check"] == check).unwrap_or_else(|| panic!("{check}: {}", out.stdout));
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (text("health"), text("seen"), text("mend"))
}

fn doctor(world: &World) -> Ended {
    let leaks = Leaks::record();
    let env = world.env();
    let root = env.keelway(&["--format", "json", "doctor"]).expect(0);
    assert_eq!(said(&root, "a sandbox").0, "ok", "{}", root.stdout);
    assert_eq!(said(&root, "user namespaces").0, "ok");
    let people = env.keelway(&["doctor"]).expect(0).stdout;
    assert!(people.contains("as root:\n\nok "), "{people}");

    let ann = Ann::new(world, true);
    let hers = ann.keelway(&["--format", "json", "doctor"]);
    assert_eq!(said(&hers, "a sandbox").0, "ok", "{}", hers.stdout);
    assert!(said(&hers, "user ids").1.starts_with("65536 in each sandbox"));
    let (health, _, mend) = said(&hers, "limits");
    assert!(health == "ok" || mend.contains("systemd-run --user --scope"), "{mend}");
    assert!(!ann.home().join(".local/share/keelway").exists(), "it leaves nothing");

    let poor = Ann::new(world, false);
    let hers = poor.keelway(&["--format", "json", "doctor"]);
    let (health, _, mend) = said(&hers, "user ids");
    assert!(health == "warning" && mend.contains("usermod --add-subuids"), "{mend}");
    assert_eq!(said(&hers, "a sandbox").0, "ok", "{}", hers.stdout);
    leaks.assert_none();
    Ok(())
}

/// Her containers, which are gone at the end, whatever happens.
struct Containers<'a>(&'a Ann);

impl Containers<'_> {
    #[track_caller]
    fn ask(&self, args: &[&str]) -> Output {
        self.0.keelway(&[&["container"], args].concat())
    }
    fn state(&self, name: &str) -> serde_json::Value {
        let out = self.ask(&["inspect", "--format", "json", name]).expect(0);
        let shown: serde_json::Value = serde_json::from_str(&out.stdout).expect("inspect prints JSON");
        shown["State"].clone()
    }
    fn until_logged(&self, name: &str, text: &str) {
        until(&format!("{name} says {text:?}"), || self.ask(&["logs", name]).stdout.contains(text));
    }
}

impl Drop for Containers<'_> {
    fn drop(&mut self) {
        let all = self.ask(&["ls", "-aq"]).stdout;
        let all: Vec<&str> = all.split_whitespace().collect();
        if !all.is_empty() {
            self.ask(&[&["rm", "-f"], &all[..]].concat());
        }
    }
}

/// One command starts it and ends; others find it, speak with it and end it.
fn in_the_background(world: &World) -> Ended {
    let leaks = Leaks::record();
    let ann = Ann::new(world, true);
    ann.load(Base::Busybox, "base/busybox:1");
    let hers = Containers(&ann);
    let start = |flags: &[&str], script: &str| {
        let words = ["base/busybox:1", "sh", "-c", script];
        hers.ask(&[&["run", "-d", "--network", "none"], flags, &words].concat()).expect(0);
    };
    start(
        &["--name", "bg"],
        "trap 'echo asked; exit 3' TERM; cat /proc/self/uid_map; echo up; while :; do sleep 0.05; done",
    );
    hers.until_logged("bg", "up");
    // Its ids are hers: root inside is she herself.
    let map = hers.ask(&["logs", "bg"]).stdout;
    assert_eq!(map.split_whitespace().take(2).collect::<Vec<_>>(), ["0", "0"], "{map}");
    let pid = hers.state("bg")["Pid"].as_i64().expect("a number");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    assert!(status.contains(&format!("Uid:\t{USER}\t{USER}")), "{status}");
    assert_eq!(hers.ask(&["exec", "bg", "id", "-u"]).expect(0).stdout, "0\n");
    assert!(hers.ask(&["ls"]).expect(0).stdout.contains("bg"));
    hers.ask(&["stop", "bg"]).expect(0);
    hers.until_logged("bg", "asked");
    assert_eq!(hers.state("bg")["ExitCode"], 3);
    hers.ask(&["rm", "bg"]).expect(0);
    // One that is killed is started again by its supervisor, which is hers, too.
    start(&["--name", "again", "--restart", "always"], "echo up; exec sleep 1000");
    hers.until_logged("again", "up");
    let first = hers.state("again")["Pid"].as_i64().expect("a number");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(first).expect("a process id"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("it runs");
    until("it is started again", || {
        let now = hers.state("again");
        now["Status"] == "running" && now["Pid"].as_i64() != Some(first)
    });
    hers.ask(&["rm", "-f", "again"]).expect(0);
    drop(hers);
    leaks.assert_none();
    Ok(())
}
