//! Other runtimes: a stage of a pipeline under Debian's runc.

use crate::build::{context, with_busybox};
use crate::pipeline::{commit, git};
use crate::{Ended, Test, World};
use keelway_tests::env::Env;
use std::path::PathBuf;

/// The tests of this file.
pub const TESTS: &[Test] = &[("oci::stages_run_under_another_runtime", stages_run_under_another_runtime)];

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
