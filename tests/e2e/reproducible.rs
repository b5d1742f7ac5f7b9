//! The same source gives the same digest: on another store, path, umask, host name, clock and day of the week.

use crate::build::{context, with_busybox};
use crate::pipeline::{commit, git};
use crate::{Ended, Test, World};
use keelway_tests::base::{self, Base};
use keelway_tests::env::{Env, Output, run};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("reproducible::examples_on_two_machines", examples_on_two_machines),
    ("reproducible::a_commit_in_any_checkout", a_commit_in_any_checkout),
    ("reproducible::runs_that_write_dates_and_names", runs_that_write_dates_and_names),
    ("reproducible::warm_is_cold", warm_is_cold),
];

const DEADLINE: Duration = Duration::from_secs(120);

/// A command as if on another machine: umask, host name, time zone, clock.
fn elsewhere(env: &Env, world: &World, umask: &str, host: &str, clock: &str) -> Command {
    let mut c = env.command("unshare");
    c.args(["--uts", "sh", "-c", &format!("hostname {host}; umask {umask}; exec \"$@\""), "sh"])
        .arg(&world.keelway)
        .env("KEELWAY_CLOCK", clock)
        .env("TZ", "Asia/Tokyo")
        .env("LANG", "de_DE.UTF-8");
    c
}

#[track_caller]
fn done(command: &mut Command) -> Output {
    run(command, DEADLINE).expect("it ends in time").expect(0)
}

/// Waits until the clock shows another second than when it was called.
fn another_second() {
    std::thread::sleep(Duration::from_millis(1100));
}

/// Copies a folder with its modes, as of another time.
fn copied(from: &Path, to: &Path) -> PathBuf {
    fs::create_dir_all(to.parent().expect("a folder has a parent")).expect("folders can be made");
    let ok = |c: &mut Command| c.status().expect("it runs").success();
    assert!(ok(Command::new("cp").args(["-r", "--preserve=mode"]).arg(from).arg(to)));
    assert!(ok(Command::new("find").arg(to).args([
        "-exec",
        "touch",
        "-h",
        "-d",
        "2001-02-03 04:05:06",
        "{}",
        "+"
    ])));
    to.to_owned()
}

fn loaded(env: &Env, base: Base, name: &str) {
    let layout = base::oci_layout(base).expect("the base can be made");
    env.keelway(&["image", "load", layout.to_str().expect("UTF-8"), name]).expect(0);
}

fn examples_on_two_machines(world: &World) -> Ended {
    let builds: [(&str, &[&str]); 3] = [
        ("static", &[]),
        ("web", &["--build-arg", "PYTHON_IMAGE=base/python:12", "--target", "app"]),
        ("web", &["--build-arg", "PYTHON_IMAGE=base/python:12", "--target", "test"]),
    ];
    let (here, there) = (world.env(), world.env());
    for env in [&here, &there] {
        loaded(env, Base::Python, "base/python:12");
    }
    let build = |command: &mut Command, flags: &[&str], dir: &Path| {
        let out = done(command.args(["image", "build"]).args(flags).arg(dir));
        (out.stdout.trim().to_owned(), out.stderr)
    };
    let first: Vec<String> = builds
        .iter()
        .map(|(example, flags)| {
            let dir = world.project.join("examples").join(example);
            build(&mut elsewhere(&here, world, "022", "first", "1000000000"), flags, &dir).0
        })
        .collect();
    another_second();
    for ((example, flags), wanted) in builds.iter().zip(&first) {
        let dir = copied(
            &world.project.join("examples").join(example),
            &there.work().join("a/b c").join(flags.len().to_string()).join(example),
        );
        let (digest, _) =
            build(&mut elsewhere(&there, world, "077", "second.example.org", "1999999999"), flags, &dir);
        assert_eq!(&digest, wanted, "{example} {flags:?}");
        assert!(digest.starts_with("sha256:"), "{digest}");
    }
    assert_ne!(first[1], first[2], "targets differ");
    Ok(())
}

/// The digest that the record of the newest run names for its stage `image`.
fn of_the_run(env: &Env) -> String {
    let show = env.keelway(&["runs", "show"]).expect(0).stdout;
    let line = show.lines().find(|l| l.trim().starts_with("image:")).unwrap_or_default().to_owned();
    line.split("-> ").nth(1).unwrap_or_else(|| panic!("no digest in\n{show}")).trim().to_owned()
}

fn a_commit_in_any_checkout(world: &World) -> Ended {
    let (here, there) = (with_busybox(world), with_busybox(world));
    let repo = context(
        &here,
        "repo",
        &[
            ("keelway.yml", "version: 1\nstages:\n  image:\n    build: {context: .}\n"),
            (
                "Dockerfile",
                "FROM busybox\nCOPY . /all\nRUN ls -lR /all > /listing; find /all -exec stat -c '%n %a %Y' {} + | sort\n",
            ),
            ("tool", "#!/bin/sh\necho run\n"),
            ("deep/er/file", "x\n"),
        ],
    );
    fs::set_permissions(repo.join("tool"), fs::Permissions::from_mode(0o755)).expect("modes can be set");
    std::os::unix::fs::symlink("deep/er/file", repo.join("link")).expect("links can be made");
    git(&here, &repo, &["init", "-q", "-b", "main"]);
    commit(&here, &repo, "first");
    here.keelway_in(&repo, &["run"]).expect(0);
    let wanted = of_the_run(&here);
    another_second();
    // Cloned under another umask, then touched: as a path and from inside.
    let clone = there.work().join("clone");
    let script = format!("umask 077; git clone -q {} {}", repo.display(), clone.display());
    assert!(there.command("sh").args(["-c", &script]).status().expect("git runs").success());
    assert!(
        Command::new("find")
            .arg(&clone)
            .args([
                "-name",
                ".git",
                "-prune",
                "-o",
                "-type",
                "f",
                "-exec",
                "touch",
                "-d",
                "1999-01-01",
                "{}",
                "+"
            ])
            .status()
            .expect("find runs")
            .success()
    );
    let mode = fs::metadata(clone.join("deep/er/file")).expect("it was cloned").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the checkout differs in its modes");
    let clock = "1999999999";
    done(elsewhere(&there, world, "077", "second", clock).args(["run", "--repo"]).arg(&clone));
    assert_eq!(of_the_run(&there), wanted, "--repo");
    let again = with_busybox(world);
    done(elsewhere(&again, world, "027", "third", clock).arg("run").current_dir(&clone));
    assert_eq!(of_the_run(&again), wanted, "inside the checkout");
    // What was built without the cache and with it, once more.
    let warm = done(elsewhere(&again, world, "022", "third", clock).arg("run").current_dir(&clone));
    assert!(warm.stderr.contains("cached"), "{}", warm.stderr);
    assert_eq!(of_the_run(&again), wanted, "warm");
    Ok(())
}

fn runs_that_write_dates_and_names(world: &World) -> Ended {
    // Times of files are no content: a step that touches, packs nothing and asks for no clock gives the same image.
    let dockerfile = "FROM busybox\nRUN mkdir -p /d/e && echo 1 > /d/f && touch -d '2020-01-01 00:00:00' /d/g && hostname > /d/name && umask > /d/umask\nCOPY x /d/x\n";
    let digest = |umask: &str, host: &str| {
        let env = with_busybox(world);
        let dir = context(&env, &format!("c-{host}"), &[("Dockerfile", dockerfile), ("x", "x\n")]);
        another_second();
        done(elsewhere(&env, world, umask, host, "1234567890").args(["image", "build"]).arg(dir)).stdout
    };
    assert_eq!(digest("022", "one"), digest("077", "two"));
    Ok(())
}

fn warm_is_cold(world: &World) -> Ended {
    let env = with_busybox(world);
    let dockerfile = |n: u32| {
        format!(
            "FROM busybox AS a\nRUN echo {n} > /n\nFROM busybox\nCOPY --from=a /n /n\nRUN cat /n > /m && rm -r /var && mkdir /var\n"
        )
    };
    let dir = context(&env, "c", &[("Dockerfile", &dockerfile(1))]);
    let build =
        |env: &Env, dir: &Path| done(env.command(&world.keelway).args(["image", "build"]).arg(dir)).stdout;
    let one = build(&env, &dir);
    fs::write(dir.join("Dockerfile"), dockerfile(2)).expect("files can be written");
    let two = build(&env, &dir);
    assert_ne!(one, two);
    // Back again: all of it is known, and it is the first image.
    fs::write(dir.join("Dockerfile"), dockerfile(1)).expect("files can be written");
    another_second();
    assert_eq!(build(&env, &dir), one);
    let cold = with_busybox(world);
    assert_eq!(build(&cold, &context(&cold, "other", &[("Dockerfile", &dockerfile(2))])), two);
    Ok(())
}
