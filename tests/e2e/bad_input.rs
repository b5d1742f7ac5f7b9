//! Bad input: one clear message with the next thing to do, the right exit code, and everything as before.
//!
//! The messages are snapshots: whoever changes one sees it as people do. What differs from run to run is replaced (see
//! `kit::env::normalise`).

use crate::build::{build, context, with_busybox};
use crate::pipeline::{commit, repository};
use crate::{Ended, Test, World};
use insta::assert_snapshot;
use keelway_tests::env::{Env, Leaks, Output};
use keelway_tests::git::GitSsh;
use keelway_tests::registry::{Registry, User};
use keelway_tests::server::{Reply, Server};
use std::fs;
use std::path::{Path, PathBuf};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("bad_input::a_broken_dockerfile", a_broken_dockerfile),
    ("bad_input::what_is_not_supported_is_refused_by_name", what_is_not_supported_is_refused_by_name),
    ("bad_input::mounts_that_cannot_be", mounts_that_cannot_be),
    ("bad_input::an_unknown_base", an_unknown_base),
    ("bad_input::a_registry_that_is_down", a_registry_that_is_down),
    ("bad_input::a_registry_that_refuses_the_password", a_registry_that_refuses_the_password),
    ("bad_input::a_wrong_digest", a_wrong_digest),
    ("bad_input::a_full_disk", a_full_disk),
    ("bad_input::hosts_that_cannot_be_trusted_or_reached", hosts_that_cannot_be_trusted_or_reached),
];

/// Every file of a store but its locks, its own count and what a process keeps of its own: what must be as before.
pub fn content(store: &Path) -> Vec<String> {
    fn walk(dir: &Path, top: &Path, out: &mut Vec<String>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(top).expect("it is below").to_string_lossy().into_owned();
            if ["store/runs", "store/locks", "store/trash", "store/usage", "ledger"]
                .iter()
                .any(|p| name.starts_with(p))
            {
                continue;
            }
            if path.is_dir() && !path.is_symlink() {
                walk(&path, top, out);
            } else {
                out.push(name);
            }
        }
    }
    let mut out = Vec::new();
    walk(store, store, &mut out);
    out.sort();
    out
}

/// Runs, expects the code, and that everything is as it was. What was said, without what differs from run to run.
#[track_caller]
fn refused(env: &Env, code: i32, run: impl Fn() -> Output) -> String {
    let (leaks, before) = (Leaks::record(), content(&env.store()));
    let out = run().expect(code);
    assert!(!out.stderr.contains("panicked") && !out.stdout.contains("panicked"), "{}", out.stderr);
    assert_eq!(content(&env.store()), before, "the store is as before");
    assert_nothing_under_way(&env.store());
    leaks.assert_none();
    verdict(env, &out.stderr)
}

/// What was said, without what differs from run to run; of a run all from its first failure on.
fn verdict(env: &Env, text: &str) -> String {
    let text = env.normalise(text);
    let end = text.find("\n[CLOCK] x ").map_or(0, |at| at + 1);
    let lines = text[end..].lines().filter(|l| !l.starts_with("[CLOCK] - "));
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

/// Nothing of a run that is over is left: no partial blob or upper layer, which lie in run directories, no temporary file,
/// and no lock is held.
#[track_caller]
fn assert_nothing_under_way(state: &Path) {
    let names = |dir: &str| -> Vec<PathBuf> {
        fs::read_dir(state.join("store").join(dir))
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .collect()
    };
    assert_eq!(names("runs"), [""; 0].map(PathBuf::from), "run directories are left");
    for lock in names("locks") {
        let file = fs::File::open(&lock).expect("a lock is a file");
        assert!(file.try_lock().is_ok(), "{} is held", lock.display());
    }
}

fn a_broken_dockerfile(world: &World) -> Ended {
    let env = with_busybox(world);
    let dir = context(&env, "c", &[("Dockerfile", "FROM busybox\nRUNN true\nCOPY --chwon=1 a b\nEXPOSE\n")]);
    assert_snapshot!(refused(&env, 2, || build(&env, &dir, &[])), @r#"
    error[D0003]: unknown instruction "RUNN"
     --> Dockerfile:2:1
      |
    2 | RUNN true
      | ^^^^
      |
      = help: did you mean RUN?

    error[D0004]: COPY has no flag --chwon
     --> Dockerfile:3:6
      |
    3 | COPY --chwon=1 a b
      |      ^^^^^^^^^
      |
      = help: did you mean --chown?

    error[D0005]: EXPOSE takes at least one argument
     --> Dockerfile:4:1
      |
    4 | EXPOSE
      | ^^^^^^

    3 errors; nothing was run
    "#);
    Ok(())
}

fn what_is_not_supported_is_refused_by_name(world: &World) -> Ended {
    let env = with_busybox(world);
    let dir = context(
        &env,
        "c",
        &[(
            "Dockerfile",
            "FROM busybox\nRUN touch /ran\nRUN --device=vendor.example/gpu true\nADD ftp://example.com/x /x\n",
        )],
    );
    assert_snapshot!(refused(&env, 2, || build(&env, &dir, &[])), @r#"
    error[D0201]: RUN --device is not supported yet
     --> Dockerfile:3:5
      |
    3 | RUN --device=vendor.example/gpu true
      |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^

    error[D0201]: ADD of the address "ftp://example.com/x" is not supported yet
     --> Dockerfile:4:5
      |
    4 | ADD ftp://example.com/x /x
      |     ^^^^^^^^^^^^^^^^^^^

    2 errors; nothing was run
    "#);
    Ok(())
}

fn mounts_that_cannot_be(world: &World) -> Ended {
    let env = with_busybox(world);
    let dir = context(
        &env,
        "c",
        &[(
            "Dockerfile",
            "FROM busybox\nRUN touch /ran\nRUN --mount=type=cahce,target=/c true\nRUN --mount=type=bind,sharing=locked,target=/c true\nRUN --mount=type=tmpfs,traget=/c true\n",
        )],
    );
    assert_snapshot!(refused(&env, 2, || build(&env, &dir, &[])), @r#"
    error[D0004]: unknown mount type "cahce"
     --> Dockerfile:3:5
      |
    3 | RUN --mount=type=cahce,target=/c true
      |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^
      |
      = help: did you mean cache?

    error[D0004]: invalid mount option "sharing"
     --> Dockerfile:4:5
      |
    4 | RUN --mount=type=bind,sharing=locked,target=/c true
      |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
      |
      = help: this type of mount takes target, source, from, readonly, readwrite

    error[D0004]: invalid mount option "traget"
     --> Dockerfile:5:5
      |
    5 | RUN --mount=type=tmpfs,traget=/c true
      |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^
      |
      = help: did you mean target?

    3 errors; nothing was run
    "#);
    Ok(())
}

fn an_unknown_base(world: &World) -> Ended {
    let env = with_busybox(world);
    let registry = Registry::start(None, None).expect("docker-registry starts");
    let name = format!("{}/no/such:1", registry.host());
    let dir = context(&env, "c", &[("Dockerfile", &format!("FROM {name}\nRUN true\n"))]);
    assert_snapshot!(refused(&env, 4, || build(&env, &dir, &[])), @r"
    [CLOCK] x image: failed after [TIME]: Dockerfile:1: FROM 127.0.0.1:[PORT]/no/such:1: cannot pull 127.0.0.1:[PORT]/no/such:1: 127.0.0.1:[PORT] has nothing by this name, or hides it from this login; check the name, or run `docker login 127.0.0.1:[PORT]` (or another tool that writes docker's config.json); 127.0.0.1:[PORT]/no/such:1 is not in this machine's store either: `keelway image load DIR 127.0.0.1:[PORT]/no/such:1` takes it from an OCI layout, `keelway image pull 127.0.0.1:[PORT]/no/such:1` from its registry
    [CLOCK] x [RUN] failed after [TIME], exit code 4 (the world outside failed: registry, repository, host, disk, permission): failed: image
    ");
    Ok(())
}

fn a_registry_that_is_down(world: &World) -> Ended {
    let env = with_busybox(world);
    let host = {
        let registry = Registry::start(None, None).expect("docker-registry starts");
        registry.host()
    };
    let dir = context(&env, "c", &[("Dockerfile", &format!("FROM {host}/base/x:1\n"))]);
    assert_snapshot!(refused(&env, 4, || build(&env, &dir, &[])), @r"
    [CLOCK] x image: failed after [TIME]: Dockerfile:1: FROM 127.0.0.1:[PORT]/base/x:1: cannot pull 127.0.0.1:[PORT]/base/x:1: cannot connect to 127.0.0.1:[PORT]: connection refused; check that it runs and that the port is right; 127.0.0.1:[PORT]/base/x:1 is not in this machine's store either: `keelway image load DIR 127.0.0.1:[PORT]/base/x:1` takes it from an OCI layout, `keelway image pull 127.0.0.1:[PORT]/base/x:1` from its registry
    [CLOCK] x [RUN] failed after [TIME], exit code 4 (the world outside failed: registry, repository, host, disk, permission): failed: image
    ");
    Ok(())
}

fn a_registry_that_refuses_the_password(world: &World) -> Ended {
    let env = with_busybox(world);
    let user = User { name: "kit", password: "right" };
    let registry = Registry::start(None, Some(user)).expect("docker-registry starts");
    let wrong = User { name: "kit", password: "wrong-and-secret" };
    fs::create_dir_all(env.home().join(".docker")).expect("folders can be made");
    fs::write(env.home().join(".docker/config.json"), wrong.docker_config(&registry.host()))
        .expect("files can be written");
    let name = format!("{}/shop/web:1", registry.host());
    env.keelway(&["image", "tag", "busybox", &name]);
    let dir = context(&env, "c", &[("Dockerfile", "FROM busybox\n")]);
    build(&env, &dir, &["-t", &name]).expect(0);
    assert_snapshot!(refused(&env, 4, || env.keelway(&["image", "push", &name])), @r#"error: cannot push 127.0.0.1:[PORT]/shop/web: 127.0.0.1:[PORT] refuses the login of "kit" that [DIR]/home/.docker/config.json holds; run `docker login 127.0.0.1:[PORT]` (or another tool that writes docker's config.json) again"#);
    assert_eq!(registry.tags("shop/web"), [""; 0]);
    // A pipeline says the same, and what it built before stays.
    let repo = repository(&env, &registry.host(), "true");
    commit(&env, &repo, "again");
    let said = |out: Output| out.stdout + &out.stderr;
    let first = said(env.keelway_in(&repo, &["run"]).expect(4));
    let again = said(env.keelway_in(&repo, &["run"]).expect(4));
    for text in [first, again] {
        assert!(text.contains("config.json") && text.contains(&registry.host()), "{text}");
        assert!(!text.contains("wrong-and-secret"), "{text}");
    }
    assert_eq!(registry.tags("shop/web"), [""; 0]);
    assert_nothing_under_way(&env.store());
    Ok(())
}

/// A registry that answers a digest with something else. What each part of an image that lies comes to is in
/// `registries.rs`.
fn a_wrong_digest(world: &World) -> Ended {
    let env = with_busybox(world);
    let server = Server::start(None, |seen| match seen.path_only() {
        "/v2/" => Reply::status(200),
        _ => Reply::bytes("{\"schemaVersion\":2}")
            .with("content-type", "application/vnd.oci.image.manifest.v1+json"),
    })
    .expect("the server starts");
    let name = format!("{}/base/x@sha256:{}", server.host(), "a".repeat(64));
    let dir = context(&env, "c", &[("Dockerfile", &format!("FROM {name}\nRUN true\n"))]);
    assert_snapshot!(refused(&env, 4, || build(&env, &dir, &[])), @r"
    [CLOCK] x image: failed after [TIME]: Dockerfile:1: FROM 127.0.0.1:[PORT]/base/x@sha256:[DIGEST]: cannot pull 127.0.0.1:[PORT]/base/x@sha256:[DIGEST]: manifest: expected sha256:[DIGEST], got sha256:[DIGEST]; nothing of it was kept. 127.0.0.1:[PORT], or something between here and it, is broken or hostile: push the image again, or pull from elsewhere; 127.0.0.1:[PORT]/base/x@sha256:[DIGEST] is not in this machine's store either: `keelway image load DIR 127.0.0.1:[PORT]/base/x@sha256:[DIGEST]` takes it from an OCI layout, `keelway image pull 127.0.0.1:[PORT]/base/x@sha256:[DIGEST]` from its registry
    [CLOCK] x [RUN] failed after [TIME], exit code 4 (the world outside failed: registry, repository, host, disk, permission): failed: image
    ");
    Ok(())
}

fn a_full_disk(world: &World) -> Ended {
    let env = world.env();
    let disk = env.path().join("disk");
    fs::create_dir(&disk).expect("folders can be made");
    let mount =
        |args: &[&str]| env.command("mount").args(args).arg(&disk).status().expect("mount runs").success();
    assert!(mount(&["-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs"]), "a small tmpfs can be mounted");
    let env = env.with_var("KEELWAY_STATE", disk.to_str().expect("UTF-8"));
    let layout = keelway_tests::base::oci_layout(keelway_tests::base::Base::Busybox)
        .expect("a busybox image can be made");
    env.keelway(&["image", "load", layout.to_str().expect("UTF-8"), "busybox"]).expect(0);
    let leaks = Leaks::record();
    // A step that fills it, and a file of the context that does.
    let step = context(
        &env,
        "c",
        &[("Dockerfile", "FROM busybox\nRUN echo small > /a\nRUN cat /dev/zero > /big\n")],
    );
    let step = build(&env, &step, &[]);
    let large = "x".repeat(24 << 20);
    let copy = context(&env, "e", &[("Dockerfile", "FROM busybox\nCOPY big /big\n"), ("big", &large)]);
    let copy = build(&env, &copy, &[]);
    let left = (content(&disk), fs::read_dir(disk.join("store/runs")).map_or(0, Iterator::count));
    let small = context(&env, "d", &[("Dockerfile", "FROM busybox\nRUN echo small > /a\n")]);
    let after = build(&env, &small, &[]);
    assert_nothing_under_way(&disk);
    leaks.assert_none();
    let unmounted = env.command("umount").arg(&disk).status().expect("umount runs").success();
    assert!(unmounted, "nothing holds the disk");
    for out in [&step, &copy] {
        assert!(!out.stderr.contains("panicked"), "{}", out.stderr);
    }
    assert_eq!(left.1, 0, "a partial blob or layer is left: {:?}", left.0);
    assert_snapshot!(verdict(&env, &step.expect(1).stderr), @r"
    [CLOCK] x image [3/3] RUN cat /dev/zero > /big: failed after [TIME]: exit code 1; the disk is full: make room where the store is (`keelway image prune --all` removes what nothing needs), then run it again: df -h [DIR]/disk/store
    [CLOCK] x image: failed after [TIME]
    [CLOCK] x image [3/3] RUN cat /dev/zero > /big failed after [TIME]
    [CLOCK]   | cat: write error: No space left on device
    [CLOCK]   exit code 1; the disk is full: make room where the store is (`keelway image prune --all` removes what nothing needs), then run it again: df -h [DIR]/disk/store
    [CLOCK] x [RUN] failed after [TIME], exit code 1 (a step, stage or build failed by its own doing): failed: image
    ");
    assert_snapshot!(verdict(&env, &copy.expect(4).stderr), @r"
    [CLOCK] x image [2/2] COPY big /big: failed after [TIME]: cannot write /big in the new layer: No space left on device (os error 28); the disk is full: make room where the store is (`keelway image prune --all` removes what nothing needs), then run it again: df -h [DIR]/disk/store
    [CLOCK] x image: failed after [TIME]
    [CLOCK] x [RUN] failed after [TIME], exit code 4 (the world outside failed: registry, repository, host, disk, permission): failed: image
    ");
    after.expect(0);
    Ok(())
}

/// The hosts of a deploy: known by another key, not known, not there. Each is met again by a second run, after which all is
/// as it was after the first.
fn hosts_that_cannot_be_trusted_or_reached(world: &World) -> Ended {
    let env = with_busybox(world);
    let registry = Registry::start(None, None).expect("docker-registry starts");
    let repo = repository(&env, &registry.host(), "true");
    let pipeline = fs::read_to_string(repo.join("keelway.yml")).expect("it was written");
    let deploy = format!(
        "  production:\n    needs: [publish]\n    deploy: {{image: {{stage: publish}}, to: production, app: web, replicas: 1, port: 80, \
         health: {{http: /}}}}\ntargets:\n  production:\n    hosts: [{{ssh: {0}}}]\n    ssh_config: box\n    balancer: {{listen: \":80\"}}\n",
        GitSsh::HOST
    );
    fs::write(repo.join("keelway.yml"), pipeline + &deploy).expect("files can be written");
    commit(&env, &repo, "a deploy");
    let server = GitSsh::start(&env.path().join("ssh")).expect("sshd starts");
    let deploy = |config: &Path| {
        let config = format!("box={}", config.display());
        env.keelway_in(&repo, &["run", "--ssh-config", &config])
    };
    deploy(&server.config_of_changed_host()).expect(13);
    let tags = registry.tags("shop/web");
    assert_eq!(tags.len(), 2, "{tags:?}");
    assert_snapshot!(refused(&env, 13, || deploy(&server.config_of_changed_host())), @r"
    [CLOCK] x production: failed after [TIME]: not every host can be used; nothing was changed
    [CLOCK] x production failed after [TIME]
    [CLOCK]   not every host can be used; nothing was changed
    [CLOCK]     keelway-git-test: its ssh host key has CHANGED since it was recorded; if the host was not reinstalled, somebody may be in between. If it was: ssh-keygen -R keelway-git-test, then record the new key
    [CLOCK]   the whole log: keelway runs logs [RUN] production
    [CLOCK] x run [RUN] failed after [TIME], exit code 13 (deploy: refused in preflight, nothing changed): failed: production
    ");
    assert_snapshot!(refused(&env, 13, || deploy(&server.config_of_unknown_host())), @r"
    [CLOCK] x production: failed after [TIME]: not every host can be used; nothing was changed
    [CLOCK] x production failed after [TIME]
    [CLOCK]   not every host can be used; nothing was changed
    [CLOCK]     keelway-git-test: its ssh host key is not known; compare it with what the host shows, then add it: ssh-keyscan keelway-git-test >> ~/.ssh/known_hosts (or connect once by hand: ssh keelway-git-test)
    [CLOCK]   the whole log: keelway runs logs [RUN] production
    [CLOCK] x run [RUN] failed after [TIME], exit code 13 (deploy: refused in preflight, nothing changed): failed: production
    ");
    let config = server.config();
    drop(server);
    assert_snapshot!(refused(&env, 13, || deploy(&config)), @r"
    [CLOCK] x production: failed after [TIME]: not every host can be used; nothing was changed
    [CLOCK] x production failed after [TIME]
    [CLOCK]   not every host can be used; nothing was changed
    [CLOCK]     keelway-git-test: cannot be reached (ssh: connect to host 127.0.0.1 port [PORT]: Connection refused); check with: ssh keelway-git-test true
    [CLOCK]   the whole log: keelway runs logs [RUN] production
    [CLOCK] x run [RUN] failed after [TIME], exit code 13 (deploy: refused in preflight, nothing changed): failed: production
    ");
    assert_eq!(registry.tags("shop/web"), tags);
    Ok(())
}
