//! Pipelines from a checkout to a registry: `keelway run`, `plan`, `runs`.

use crate::build::with_busybox;
use crate::{Ended, Test, World};
use keelway_tests::env::Env;
use keelway_tests::registry::Registry;
use std::fs;
use std::path::PathBuf;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("pipeline::a_commit_is_built_tested_tagged_and_pushed", a_commit_is_built_tested_tagged_and_pushed),
    ("pipeline::a_failing_test_stops_before_the_push", a_failing_test_stops_before_the_push),
    ("pipeline::a_dirty_tree_is_named_and_never_pushed", a_dirty_tree_is_named_and_never_pushed),
    (
        "pipeline::every_problem_of_the_file_is_reported_at_once",
        every_problem_of_the_file_is_reported_at_once,
    ),
    ("pipeline::the_plan_says_why", the_plan_says_why),
    ("pipeline::runs_are_kept", runs_are_kept),
];

/// A repository with a pipeline that builds, tests and pushes to `registry`.
pub fn repository(env: &Env, registry: &str, test: &str) -> PathBuf {
    let dir = env.work().join("repo");
    fs::create_dir_all(&dir).expect("folders can be made");
    let files = [
        ("Dockerfile", "FROM busybox AS test\nCOPY check /check\nFROM busybox AS app\nCOPY greeting /greeting\nCMD [\"cat\", \"/greeting\"]\n".to_owned()),
        ("check", "good\n".to_owned()),
        ("greeting", "hello\n".to_owned()),
        (
            "keelway.yml",
            format!(
                "version: 1\nstages:\n  image:\n    build: {{context: ., target: app}}\n  test-image:\n    build: {{context: ., target: test}}\n  \
                 test:\n    needs: [test-image]\n    image: {{stage: test-image}}\n    steps:\n      - {{name: unit, run: '{test}'}}\n  \
                 publish:\n    needs: [image, test]\n    push: {{image: {{stage: image}}, to: '{registry}/shop/web', tags: [commit, branch]}}\n"
            ),
        ),
    ];
    for (name, content) in files {
        fs::write(dir.join(name), content).expect("files can be written");
    }
    git(env, &dir, &["init", "-q", "-b", "main"]);
    commit(env, &dir, "first");
    dir
}

/// When every commit of these tests was made: an image's time is its commit's, so that equal files give equal images.
const COMMITTED: &str = "2024-05-06T07:08:09Z";

/// Runs git in a folder, with an identity and a date of its own.
pub fn git(env: &Env, dir: &std::path::Path, args: &[&str]) -> String {
    let mut c = env.command("git");
    c.args(["-c", "user.name=kit", "-c", "user.email=kit@kit.test", "-C"]).arg(dir).args(args);
    c.env("GIT_AUTHOR_DATE", COMMITTED).env("GIT_COMMITTER_DATE", COMMITTED);
    let out = c.output().expect("git runs");
    assert!(out.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// Commits everything and returns the commit.
pub fn commit(env: &Env, dir: &std::path::Path, message: &str) -> String {
    git(env, dir, &["add", "-A"]);
    git(env, dir, &["commit", "-q", "--allow-empty", "-m", message]);
    git(env, dir, &["rev-parse", "HEAD"])
}

fn a_commit_is_built_tested_tagged_and_pushed(world: &World) -> Ended {
    let env = with_busybox(world);
    let registry = Registry::start(None, None).expect("docker-registry starts");
    let repo = repository(&env, &registry.host(), "grep good /check");
    let commit = git(&env, &repo, &["rev-parse", "HEAD"]);
    let out = env.keelway_in(&repo, &["run"]).expect(0);
    assert_eq!(registry.tags("shop/web"), [commit.as_str(), "main"].map(str::to_owned), "{}", out.stderr);
    // The digest that the run shows is the one that another tool finds.
    let inspect = env
        .command("skopeo")
        .args([
            "inspect",
            "--tls-verify=false",
            "--format",
            "{{.Digest}}",
            &format!("docker://{}/shop/web:{commit}", registry.host()),
        ])
        .output()
        .expect("skopeo runs");
    let digest = String::from_utf8_lossy(&inspect.stdout).trim().to_owned();
    assert!(digest.starts_with("sha256:"), "{}", String::from_utf8_lossy(&inspect.stderr));
    assert!(
        (out.stdout.clone() + &out.stderr).contains(&digest),
        "{digest} is not in\n{}{}",
        out.stdout,
        out.stderr
    );
    Ok(())
}

fn a_failing_test_stops_before_the_push(world: &World) -> Ended {
    let env = with_busybox(world);
    let registry = Registry::start(None, None).expect("docker-registry starts");
    let repo = repository(&env, &registry.host(), "echo last words; grep bad /check");
    let out = env.keelway_in(&repo, &["run"]).expect(1);
    let said = out.stdout + &out.stderr;
    for wanted in ["last words", "step unit", "exit code 1"] {
        assert!(said.contains(wanted), "{wanted:?} is not in\n{said}");
    }
    assert!(registry.tags("shop/web").is_empty());
    Ok(())
}

fn a_dirty_tree_is_named_and_never_pushed(world: &World) -> Ended {
    let env = with_busybox(world);
    let registry = Registry::start(None, None).expect("docker-registry starts");
    let repo = repository(&env, &registry.host(), "grep good /check");
    fs::write(repo.join("check"), "bad\n").expect("files can be written");
    // HEAD is run, and the difference is said.
    let out = env.keelway_in(&repo, &["run", "test"]).expect(0);
    assert!(out.stderr.contains("check") && out.stderr.contains("--dirty"), "{}", out.stderr);
    // The tree as it lies there fails its test, and even when mended is not pushed.
    env.keelway_in(&repo, &["run", "--dirty", "test"]).expect(1);
    fs::write(repo.join("check"), "good, too\n").expect("files can be written");
    env.keelway_in(&repo, &["run", "--dirty"]).expect(0);
    assert!(registry.tags("shop/web").is_empty());
    Ok(())
}

fn every_problem_of_the_file_is_reported_at_once(world: &World) -> Ended {
    let env = world.env();
    let repo = repository(&env, "127.0.0.1:5000", "true");
    fs::write(
        repo.join("keelway.yml"),
        "version: 1\nstages:\n  image:\n    buidl: {context: .}\n  test:\n    needs: [imge]\n    image: busybox\n    timeout: 10\n    steps: [{name: a, run: 'true'}]\n    matrix: {a: [1]}\n",
    )
    .expect("files can be written");
    commit(&env, &repo, "broken");
    let out = env.keelway_in(&repo, &["run"]).expect(2);
    for wanted in ["keelway.yml:4:5", "build", "imge", "image", "timeout", "matrix", "not there yet"] {
        assert!(out.stderr.contains(wanted), "{wanted:?} is not in\n{}", out.stderr);
    }
    Ok(())
}

fn the_plan_says_why(world: &World) -> Ended {
    let env = world.env();
    let repo = repository(&env, "127.0.0.1:5000", "true");
    let out = env.keelway_in(&repo, &["plan"]).expect(0);
    for wanted in ["image", "publish", "needs image, test"] {
        assert!(out.stdout.contains(wanted), "{wanted:?} is not in\n{}", out.stdout);
    }
    let json = env.keelway_in(&repo, &["plan", "--format", "json"]).expect(0);
    let plan: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(plan["nodes"].as_array().map(Vec::len), Some(4));
    Ok(())
}

fn runs_are_kept(world: &World) -> Ended {
    let env = with_busybox(world);
    let registry = Registry::start(None, None).expect("docker-registry starts");
    let repo = repository(&env, &registry.host(), "echo from the step; false");
    env.keelway_in(&repo, &["run"]).expect(1);
    let ls = env.keelway(&["runs", "ls"]).expect(0).stdout;
    assert_eq!(ls.lines().count(), 2, "{ls}");
    assert!(ls.contains("failed (1)"), "{ls}");
    let show = env.keelway(&["runs", "show"]).expect(0).stdout;
    for wanted in ["attempt 1: failed (1)", "publish: skipped: test did not succeed", "image: done"] {
        assert!(show.contains(wanted), "{wanted:?} is not in\n{show}");
    }
    let logs = env.keelway(&["runs", "logs", "--stage", "test"]).expect(0).stdout;
    assert_eq!(logs, "from the step\ntest failed: step unit: exit code 1\n");
    Ok(())
}
