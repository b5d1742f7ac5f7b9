//! `RUN --mount`: what a step has only while it runs.

use crate::build::{build, context, nodes, with_busybox};
use crate::pipeline::{commit, git};
use crate::{Ended, Test, World};
use keelway_tests::env::{Env, Leaks};
use keelway_tests::rig::wait_for;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("mounts::binds_show_files_and_keep_nothing", binds_show_files_and_keep_nothing),
    ("mounts::a_run_is_keyed_by_what_it_can_see", a_run_is_keyed_by_what_it_can_see),
    ("mounts::a_cache_outlives_its_build", a_cache_outlives_its_build),
    ("mounts::caches_are_shared_as_they_say", caches_are_shared_as_they_say),
    ("mounts::a_killed_build_frees_its_cache", a_killed_build_frees_its_cache),
    ("mounts::a_secret_is_nowhere_afterwards", a_secret_is_nowhere_afterwards),
    ("mounts::an_agent_signs_and_keeps_its_keys", an_agent_signs_and_keeps_its_keys),
    ("mounts::another_runtime_has_files_and_secrets_only", another_runtime_has_files_and_secrets_only),
];

fn binds_show_files_and_keep_nothing(world: &World) -> Ended {
    let env = with_busybox(world);
    let dockerfile = "FROM busybox AS tools\nRUN mkdir /opt && echo tool > /opt/t && ln -s / /rootdir\n\
        FROM busybox AS runs\nWORKDIR /w\n\
        RUN --mount=target=ctx --mount=source=src/f,target=/one --mount=from=tools,source=/rootdir/opt,target=/t,rw \
        --mount=type=tmpfs,target=/mem,size=64k --mount=from=busybox,source=/bin,target=/elsewhere/bin <<EOF\n\
        set -e\n\
        cat ctx/src/f /one /t/t; ls ctx; ls /elsewhere/bin/busybox\n\
        for f in ctx/no /one /elsewhere/bin/x; do if touch $f 2>/dev/null; then exit 1; fi; done\n\
        echo new > /t/made; rm /t/t; ls /t\n\
        df -k /mem | tail -n 1; echo x > /mem/x\n\
        ls -a /w / > /seen\n\
        EOF\n\
        RUN --mount=from=tools,source=/opt,target=/t ls /t\n\
        FROM busybox\nRUN --mount=from=runs,target=/look \
        ls -A /look/w && for f in one t mem elsewhere dev/pipes; do test ! -e /look/$f || exit 1; done && cat /look/seen\n";
    let dir = context(
        &env,
        "c",
        &[
            ("Dockerfile", dockerfile),
            ("src/f", "from the context\n"),
            ("hidden/x", "no\n"),
            (".dockerignore", "hidden\n"),
        ],
    );
    let out = build(&env, &dir, &["--network", "none"]).expect(0);
    for (text, times) in [("from the context\n", 2), ("hidden\n", 0), ("made\n", 1), ("| ctx\n", 1)] {
        assert_eq!(out.stderr.matches(text).count(), times, "{text:?} in {}", out.stderr);
    }
    Ok(())
}

fn a_run_is_keyed_by_what_it_can_see(world: &World) -> Ended {
    let env = with_busybox(world);
    let dockerfile = "FROM busybox AS tools\nCOPY tool /opt/tool\nCOPY other /etc/other\n\
        FROM busybox\nRUN --mount=from=tools,source=/opt,target=/t --mount=source=src,target=/s cat /t/tool /s/f\n";
    let dir = context(
        &env,
        "c",
        &[("Dockerfile", dockerfile), ("tool", "1\n"), ("other", "1\n"), ("src/f", "1\n"), ("more", "1\n")],
    );
    let missed = |change: &str| {
        if !change.is_empty() {
            fs::write(dir.join(change), "2\n").expect("files can be written");
        }
        let out = build(&env, &dir, &["--network", "none", "--format", "json"]).expect(0);
        nodes(&out, "cache-miss").into_iter().filter(|n| n.contains("RUN")).count()
    };
    assert_eq!(missed(""), 1);
    assert_eq!(missed(""), 0, "nothing changed");
    assert_eq!(missed("more"), 0, "what is not bound");
    assert_eq!(missed("other"), 0, "another file of the stage");
    assert_eq!(missed("tool"), 1);
    assert_eq!(missed("src/f"), 1);
    Ok(())
}

fn dockerfile(dir: &Path, text: &str) {
    fs::write(dir.join("Dockerfile"), text).expect("files can be written");
}

const OFFLINE: [&str; 2] = ["--network", "none"];

fn a_cache_outlives_its_build(world: &World) -> Ended {
    let env = with_busybox(world);
    let dir = context(&env, "c", &[]);
    let text = |command: &str| {
        format!(
            "FROM busybox AS tools\nRUN mkdir /opt && echo seed > /opt/s\nFROM busybox AS runs\n\
             RUN --mount=type=cache,id=../../../../x,target=/c,uid=5,gid=6,mode=0750 {command}\n\
             RUN --mount=type=cache,from=tools,source=/opt,target=/seeded cat /seeded/s; echo more >> /seeded/s\n\
             RUN --mount=type=cache,id=../../../../x,target=/ro,readonly (! touch /ro/x) 2>/dev/null\n\
             FROM busybox\nRUN --mount=from=runs,target=/look for f in c seeded ro; do test ! -e /look/$f || exit 1; done\n"
        )
    };
    fs::create_dir_all(&dir).expect("folders can be made");
    dockerfile(&dir, &text("stat -c 'made %u:%g %a' /c; echo one > /c/log; chown 7:8 /c/log"));
    let first = build(&env, &dir, &OFFLINE).expect(0);
    assert!(first.stderr.contains("made 5:6 750\n"), "{}", first.stderr);
    assert!(first.stderr.contains("seed\n"), "{}", first.stderr);
    // Another command, the same cache, with the owners that it was left with.
    dockerfile(&dir, &text("stat -c 'kept %u:%g' /c/log; echo two >> /c/log; cat /c/log"));
    let second = build(&env, &dir, &OFFLINE).expect(0);
    assert!(second.stderr.contains("kept 7:8\n") && second.stderr.contains("one\n"), "{}", second.stderr);
    // What a cache holds is no part of a key, and nothing of it is in a snapshot.
    let again = build(&env, &dir, &["--network", "none", "--format", "json"]).expect(0);
    assert_eq!(nodes(&again, "cache-miss"), [""; 0]);
    let found = holders(&env.store().join("store/snapshots"), b"one\ntwo\n");
    assert!(found.is_empty(), "{found:?}");
    assert!(!holders(&env.store().join("store/mounts"), b"seed\nmore").is_empty());
    Ok(())
}

/// The files beneath a folder that hold these bytes.
fn holders(top: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    let (mut todo, mut found) = (vec![top.to_owned()], Vec::new());
    while let Some(path) = todo.pop() {
        let kind = fs::symlink_metadata(&path).expect("it is there").file_type();
        if kind.is_dir() {
            todo.extend(
                fs::read_dir(&path).expect("it can be read").map(|e| e.expect("it can be read").path()),
            );
        } else if kind.is_file() {
            let content = fs::read(&path).expect("it can be read");
            if content.windows(bytes.len()).any(|w| w == bytes) {
                found.push(path);
            }
        }
    }
    found
}

fn caches_are_shared_as_they_say(world: &World) -> Ended {
    let env = with_busybox(world);
    // Two at a time: both see what they share, and each has a private one of its own.
    let meet = |me: &str, other: &str| {
        format!(
            "FROM busybox AS {me}\n\
             RUN --mount=type=cache,id=meet,target=/m --mount=type=cache,id=own,target=/p,sharing=private <<EOF\n\
             set -e\ntouch /p/{me} /m/{me}\ni=0\n\
             while ! test -e /m/{other}; do i=$((i+1)); test $i -lt 1200; sleep 0.05; done\n\
             echo {me}-has $(ls /p)\nEOF\n"
        )
    };
    // Any number at a time: only one of them is ever inside.
    let alone = |me: u32| {
        format!(
            "FROM busybox AS s{me}\nRUN --mount=type=cache,id=alone,target=/c,sharing=locked \
             mkdir /c/held && echo {me} >> /c/log && sleep 0.1 && rmdir /c/held && wc -l < /c/log > /n{me}\n"
        )
    };
    let all: String = (0..4).map(alone).collect();
    let copies: String = (0..4).map(|n| format!("COPY --from=s{n} /n{n} /\n")).collect();
    let text = format!(
        "{}{}{all}FROM busybox\nCOPY --from=one /tmp /tmp\nCOPY --from=two /tmp /tmp\n{copies}RUN cat /n* | sort | tr '\\n' ' '\n",
        meet("one", "two"),
        meet("two", "one"),
    );
    let dir = context(&env, "c", &[("Dockerfile", &text)]);
    let out = build(&env, &dir, &OFFLINE).expect(0);
    for wanted in ["one-has one\n", "two-has two\n", "1 2 3 4"] {
        assert!(out.stderr.contains(wanted), "{wanted:?} in {}", out.stderr);
    }
    Ok(())
}

fn a_killed_build_frees_its_cache(world: &World) -> Ended {
    let leaks = Leaks::record();
    let env = with_busybox(world);
    let text = |command: &str| {
        format!("FROM busybox\nRUN --mount=type=cache,id=k,target=/c,sharing=locked {command}\n")
    };
    let dir = context(&env, "c", &[("Dockerfile", &text("echo it-began > /c/began; sleep 600"))]);
    let mut command = env.command(&world.keelway);
    command.args(["image", "build", "--network", "none"]).arg(&dir);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut builder = Ending(command.spawn().expect("the binary starts"));
    let caches = env.store().join("store/mounts");
    let began = || caches.is_dir() && !holders(&caches, b"it-began\n").is_empty();
    wait_for(Duration::from_secs(60), "the first build", began).expect("it writes to its cache");
    builder.0.kill().expect("it can be killed");
    builder.0.wait().expect("it is dead");
    // It has the lock as soon as nobody is left of the other.
    dockerfile(&dir, &text("cat /c/began"));
    let out = build(&env, &dir, &OFFLINE).expect(0);
    assert!(out.stderr.contains("it-began\n"), "{}", out.stderr);
    leaks.assert_none();
    Ok(())
}

fn a_secret_is_nowhere_afterwards(world: &World) -> Ended {
    let text = "FROM busybox\nUSER 5:6\n\
        RUN --mount=type=secret,id=file,required,uid=5 --mount=type=secret,id=var,env=TOKEN --mount=type=secret,id=var,target=/s,mode=0444 \
        --mount=type=secret,id=none --mount=type=secret,id=none,env=NONE <<EOF\n\
        set -e\nstat -c '%u:%g %a' /run/secrets/file /s\n\
        test \"$(cat /run/secrets/file | wc -c)\" = 27\ntest \"$TOKEN\" = \"$(cat /s)\"\n\
        test ! -e /run/secrets/none\ntest -z \"${NONE+set}\"\n\
        cat /run/secrets/file\necho \"and $TOKEN\" >&2\nEOF\n\
        FROM busybox\nCOPY --from=0 / /all/\n";
    let values = ["c3Vw-ZXJzZWNyZXQtZmlsZQ-one", "c3Vw-ZXJzZWNyZXQtZmlsZQ-two"];
    let mut digests = Vec::new();
    for value in values {
        let env = with_busybox(world).with_var("A_TOKEN", &format!("token-of-{value}"));
        let dir = context(&env, "c", &[("Dockerfile", text)]);
        let file = env.home().join("secret");
        fs::write(&file, value).expect("files can be written");
        let file = format!("id=file,src={}", file.display());
        let flags = ["--network", "none", "--secret", &file, "--secret", "id=var,env=A_TOKEN"];
        let out = build(&env, &dir, &flags).expect(0);
        assert!(out.stderr.contains("5:0 400\n") && out.stderr.contains("0:0 444\n"), "{}", out.stderr);
        assert!(out.stderr.contains("***\n") && out.stderr.contains("and ***\n"), "{}", out.stderr);
        assert!(!out.stderr.contains(value), "{}", out.stderr);
        let found = holders(&env.store(), value.as_bytes());
        assert!(found.is_empty(), "{found:?}");
        digests.push(out.stdout);
        // Another value is no other step.
        fs::write(env.home().join("secret"), "another value").expect("files can be written");
        let flags = [&flags[..], &["--format", "json"]].concat();
        let again = build(&env, &dir, &flags).expect(0);
        assert_eq!(nodes(&again, "cache-miss"), [""; 0]);
    }
    assert_eq!(digests[0], digests[1], "two values, one image");
    // Who does not give it is told, by name.
    let env = with_busybox(world).with_var("fiel", "1");
    let dir = context(&env, "c", &[("Dockerfile", text)]);
    let out = build(&env, &dir, &["--network", "none", "--secret", "id=fiel"]).expect(2);
    let wanted = "the secret \"file\" is required here and was not given: give it with `keelway image build --secret id=file,src=FILE`; did you mean \"fiel\"?";
    assert!(out.stderr.contains(wanted), "{}", out.stderr);
    Ok(())
}

/// A process that ends with the test.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Copies a program of this machine, with the libraries that it is linked with, into a folder.
fn bring(program: &str, to: &Path) {
    let listed = Command::new("ldd").arg(program).output().expect("ldd runs");
    let listed = String::from_utf8(listed.stdout).expect("text");
    let paths = listed.split_whitespace().filter(|w| w.starts_with('/')).chain([program]);
    for path in paths {
        let to = to.join(path.trim_start_matches('/'));
        fs::create_dir_all(to.parent().expect("it has a folder")).expect("folders can be made");
        fs::copy(path, to).expect("files can be copied");
    }
}

fn an_agent_signs_and_keeps_its_keys(world: &World) -> Ended {
    let env = with_busybox(world);
    let socket = env.tmp().join("agent");
    let _agent = Ending(
        env.command("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts"),
    );
    wait_for(Duration::from_secs(20), "the agent's socket", || socket.exists()).expect("it listens");
    let with_agent = |program: &str, args: &[&str]| {
        let out = env.command(program).env("SSH_AUTH_SOCK", &socket).args(args).output().expect("it runs");
        assert!(out.status.success(), "{out:?}");
        String::from_utf8(out.stdout).expect("text")
    };
    with_agent("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "of-this-test", "-f", "key"]);
    with_agent("ssh-add", &["-q", "key"]);
    let listed = with_agent("ssh-add", &["-L"]);
    let text = "FROM busybox AS runs\nCOPY root /\nCOPY key.pub /key.pub\n\
        RUN --mount=type=ssh,required <<EOF\nset -e\n\
        echo at \"$SSH_AUTH_SOCK\"; stat -c '%u:%g %a' \"$SSH_AUTH_SOCK\"\n\
        ssh-add -L; ssh-add -T /key.pub && echo it-signs\nif ssh-add -D; then exit 1; fi\nEOF\n\
        RUN --mount=type=ssh,id=other test -z \"$SSH_AUTH_SOCK\"\n\
        FROM busybox\nRUN --mount=from=runs,target=/look test ! -e /look/run\n";
    let dir = context(&env, "c", &[("Dockerfile", text)]);
    bring("/usr/bin/ssh-add", &dir.join("root"));
    fs::copy(env.work().join("key.pub"), dir.join("key.pub")).expect("files can be copied");
    let ssh = format!("default={}", socket.display());
    let out = build(&env, &dir, &["--network", "none", "--ssh", &ssh]).expect(0);
    for wanted in ["at /run/buildkit/ssh_agent.0\n", "0:0 600\n", listed.as_str(), "it-signs\n"] {
        assert!(out.stderr.contains(wanted), "{wanted:?} in {}", out.stderr);
    }
    assert_eq!(with_agent("ssh-add", &["-L"]), listed, "the agent has its keys");
    // Without one.
    let again = with_busybox(world);
    let dir = context(&again, "c", &[("Dockerfile", "FROM busybox\nRUN --mount=type=ssh,required true\n")]);
    let out = build(&again, &dir, &OFFLINE).expect(2);
    assert!(
        out.stderr.contains(
            "the ssh agent \"default\" is required here and was not given: give it with `keelway image build --ssh default"
        ),
        "{}",
        out.stderr
    );
    Ok(())
}

fn another_runtime_has_files_and_secrets_only(world: &World) -> Ended {
    let env: Env = with_busybox(world);
    let pipeline =
        "version: 1\nstages:\n  image:\n    build: {}\n    network: none\n    isolation: {runtime: harder}\n";
    let stage = |name: &str, text: &str| {
        let dir = context(&env, name, &[("Dockerfile", text), ("keelway.yml", pipeline)]);
        git(&env, &dir, &["init", "-q", "-b", "main"]);
        commit(&env, &dir, "first");
        dir
    };
    let flags = ["run", "--runtime", "harder=/usr/sbin/runc"];
    let fine = stage(
        "fine",
        "FROM busybox\nRUN --mount=type=tmpfs,target=/t,size=64k --mount=type=secret,id=none <<EOF\n#!/bin/sh\ntouch /t/x && ls /t\nEOF\n",
    );
    env.keelway_in(&fine, &flags).expect(0);
    for kind in ["bind", "cache", "ssh"] {
        let bad = stage(kind, &format!("FROM busybox\nRUN --mount=type={kind},target=/t true\n"));
        let out = env.keelway_in(&bad, &flags).expect(2);
        let wanted = format!("the mount at /t (type={kind}) is not possible under another runtime");
        assert!(out.stderr.contains(&wanted), "{}", out.stderr);
    }
    Ok(())
}
