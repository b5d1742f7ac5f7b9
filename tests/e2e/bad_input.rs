//! Bad input: one clear message with the next thing to do, the right exit code, and nothing left.

use crate::build::{build, context, with_busybox};
use crate::pipeline::{commit, repository};
use crate::{Ended, Test, World};
use keelway_tests::env::{Env, Leaks, Output};
use keelway_tests::registry::{Registry, User};
use std::fs;
use std::path::Path;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("bad_input::a_broken_dockerfile", a_broken_dockerfile),
    ("bad_input::what_is_not_supported_is_refused_by_name", what_is_not_supported_is_refused_by_name),
    ("bad_input::an_unknown_base", an_unknown_base),
    ("bad_input::a_registry_that_is_down", a_registry_that_is_down),
    ("bad_input::a_registry_that_refuses_the_password", a_registry_that_refuses_the_password),
    ("bad_input::a_full_disk", a_full_disk),
];

/// Every file of a store but its locks and what a process keeps of its own: what must be as before.
pub fn content(store: &Path) -> Vec<String> {
    fn walk(dir: &Path, top: &Path, out: &mut Vec<String>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(top).expect("it is below").to_string_lossy().into_owned();
            if ["store/runs", "store/locks", "store/trash", "ledger"].iter().any(|p| name.starts_with(p)) {
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

/// Runs, expects the code and the words, and that nothing is left that was not there.
fn refused(env: &Env, code: i32, words: &[&str], run: impl FnOnce() -> Output) {
    let (leaks, before) = (Leaks::record(), content(&env.store()));
    let out = run().expect(code);
    for word in words {
        assert!(out.stderr.contains(word), "{word:?} is not in\n{}", out.stderr);
    }
    assert!(!out.stderr.contains("panicked"), "{}", out.stderr);
    assert_eq!(content(&env.store()), before, "the store is as before");
    let left: Vec<_> = fs::read_dir(env.store().join("store/runs"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert!(left.is_empty(), "run directories are left: {left:?}");
    leaks.assert_none();
}

fn a_broken_dockerfile(world: &World) -> Ended {
    let env = with_busybox(world);
    let dir = context(&env, "c", &[("Dockerfile", "FROM busybox\nRUNN true\nCOPY --chwon=1 a b\nEXPOSE\n")]);
    refused(
        &env,
        2,
        &["Dockerfile:2:1", "RUNN", "RUN", "Dockerfile:3:6", "--chown", "Dockerfile:4:1"],
        || build(&env, &dir, &[]),
    );
    Ok(())
}

fn what_is_not_supported_is_refused_by_name(world: &World) -> Ended {
    let env = with_busybox(world);
    let dir = context(
        &env,
        "c",
        &[(
            "Dockerfile",
            "FROM busybox\nRUN touch /ran\nRUN --mount=type=cache,target=/c true\nADD https://example.com/x /x\n",
        )],
    );
    refused(&env, 2, &["Dockerfile:3", "--mount", "Dockerfile:4", "not supported yet"], || {
        build(&env, &dir, &[])
    });
    Ok(())
}

fn an_unknown_base(world: &World) -> Ended {
    let env = with_busybox(world);
    let registry = Registry::start(None, None).expect("docker-registry starts");
    let name = format!("{}/no/such:1", registry.host());
    let dir = context(&env, "c", &[("Dockerfile", &format!("FROM {name}\nRUN true\n"))]);
    refused(&env, 4, &["no/such", &registry.host()], || build(&env, &dir, &[]));
    Ok(())
}

fn a_registry_that_is_down(world: &World) -> Ended {
    let env = with_busybox(world);
    let host = {
        let registry = Registry::start(None, None).expect("docker-registry starts");
        registry.host()
    };
    let dir = context(&env, "c", &[("Dockerfile", &format!("FROM {host}/base/x:1\n"))]);
    refused(&env, 4, &[&host, "refused"], || build(&env, &dir, &[]));
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
    let repo = repository(&env, &registry.host(), "true");
    commit(&env, &repo, "again");
    let out = env.keelway_in(&repo, &["run"]).expect(4);
    let said = out.stdout + &out.stderr;
    assert!(said.contains("config.json") && said.contains(&registry.host()), "{said}");
    assert!(!said.contains("wrong-and-secret"), "{said}");
    assert!(registry.tags("shop/web").is_empty());
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
    let dir = context(
        &env,
        "c",
        &[("Dockerfile", "FROM busybox\nRUN echo small > /a\nRUN dd if=/dev/zero of=/big bs=1M count=64\n")],
    );
    let out = build(&env, &dir, &[]);
    let small = context(&env, "d", &[("Dockerfile", "FROM busybox\nRUN echo small > /a\n")]);
    let after = build(&env, &small, &[]);
    let unmounted = env.command("umount").arg(&disk).status().expect("umount runs").success();
    assert!(out.code() == 1 || out.code() == 4, "{}{}", out.stdout, out.stderr);
    assert!(out.stderr.contains("No space left on device"), "{}", out.stderr);
    after.expect(0);
    assert!(unmounted, "nothing holds the disk");
    Ok(())
}
