//! Image builds without a pipeline: `keelway image build`.

use crate::{Ended, Test, World};
use keelway_tests::base::{self, Base};
use keelway_tests::env::{Env, Output};
use std::fs;
use std::path::Path;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("build::an_unchanged_build_hits_everywhere", an_unchanged_build_hits_everywhere),
    ("build::an_edited_file_reruns_only_what_depends_on_it", an_edited_file_reruns_only_what_depends_on_it),
    (
        "build::a_step_on_a_base_that_came_out_the_same_is_not_run_again",
        a_step_on_a_base_that_came_out_the_same_is_not_run_again,
    ),
    (
        "build::a_failing_run_says_which_and_shows_its_last_lines",
        a_failing_run_says_which_and_shows_its_last_lines,
    ),
];

/// An environment whose store knows `busybox`.
pub fn with_busybox(world: &World) -> Env {
    let env = world.env();
    let layout = base::oci_layout(Base::Busybox).expect("a busybox image can be made");
    env.keelway(&["image", "load", layout.to_str().expect("UTF-8"), "busybox"]).expect(0);
    env
}

/// Writes the files of a context into a new folder of the environment's work.
pub fn context(env: &Env, name: &str, files: &[(&str, &str)]) -> std::path::PathBuf {
    let dir = env.work().join(name);
    for (path, content) in files {
        let file = dir.join(path);
        fs::create_dir_all(file.parent().expect("a file has a folder")).expect("folders can be made");
        fs::write(file, content).expect("files can be written");
    }
    dir
}

/// Builds a context; `--format json` events on standard error or output are the caller's to read.
pub fn build(env: &Env, dir: &Path, flags: &[&str]) -> Output {
    let mut args = vec!["image", "build"];
    args.extend(flags);
    args.push(dir.to_str().expect("UTF-8"));
    env.keelway(&args)
}

/// The names of the nodes with an event of that kind, in order, from `--format json`.
pub fn nodes(output: &Output, event: &str) -> Vec<String> {
    output
        .stdout
        .lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
        .filter(|v| v["event"] == event)
        .filter_map(|v| v["name"].as_str().map(str::to_owned))
        .collect()
}

fn an_unchanged_build_hits_everywhere(world: &World) -> Ended {
    let env = with_busybox(world);
    let dir = context(
        &env,
        "c",
        &[
            ("Dockerfile", "FROM busybox\nWORKDIR /w\nCOPY a .\nRUN cat a > b\nRUN echo 2 > c\n"),
            ("a", "1\n"),
        ],
    );
    let first = build(&env, &dir, &[]).expect(0);
    let again = build(&env, &dir, &["--format", "json"]).expect(0);
    assert_eq!(nodes(&again, "cache-miss"), [""; 0], "{}", again.stdout);
    assert_eq!(nodes(&again, "cache-hit").len(), 4, "{}", again.stdout);
    let digest = build(&env, &dir, &[]).expect(0).stdout;
    assert_eq!(first.stdout, digest, "a hit gives the same image");
    Ok(())
}

fn a_step_on_a_base_that_came_out_the_same_is_not_run_again(world: &World) -> Ended {
    let env = with_busybox(world);
    let built = |first: &str| {
        let text =
            format!("FROM busybox\nRUN {first}\nRUN cat /one > /two\nWORKDIR /w\nRUN cat /two > three\n");
        let dir = context(&env, "c", &[("Dockerfile", &text)]);
        build(&env, &dir, &["--format", "json"]).expect(0)
    };
    built("echo 1 > /one");
    let same = built("echo 1 | cat > /one");
    assert_eq!(nodes(&same, "cache-miss").len(), 1, "{}", same.stdout);
    assert_eq!(nodes(&same, "cache-hit").len(), 3, "{}", same.stdout);
    assert!(same.stdout.contains("what it stands on was made anew and is the same"), "{}", same.stdout);
    let other = built("echo 2 > /one");
    assert_eq!(nodes(&other, "cache-miss").len(), 4, "{}", other.stdout);
    Ok(())
}

fn an_edited_file_reruns_only_what_depends_on_it(world: &World) -> Ended {
    let env = with_busybox(world);
    let dockerfile = "FROM busybox AS one\nCOPY a /a\nRUN cat /a\nFROM busybox AS two\nCOPY b /b\nRUN cat /b\nFROM scratch\nCOPY --from=one /a /a\nCOPY --from=two /b /b\n";
    let dir = context(&env, "c", &[("Dockerfile", dockerfile), ("a", "1\n"), ("b", "1\n")]);
    build(&env, &dir, &[]).expect(0);
    fs::write(dir.join("b"), "2\n").expect("files can be written");
    let again = build(&env, &dir, &["--format", "json"]).expect(0);
    let missed = nodes(&again, "cache-miss");
    assert_eq!(missed.len(), 3, "COPY b, RUN cat /b and COPY --from=two: {missed:?}");
    let text = build(&env, &dir, &[]).expect(0);
    assert!(!text.stderr.contains("files changed"), "{}", text.stderr);
    Ok(())
}

fn a_failing_run_says_which_and_shows_its_last_lines(world: &World) -> Ended {
    let env = with_busybox(world);
    let dir =
        context(&env, "c", &[("Dockerfile", "FROM busybox\nRUN echo before; echo broken >&2; exit 3\n")]);
    let out = build(&env, &dir, &[]).expect(1);
    for wanted in ["RUN echo before", "broken", "exit code 3"] {
        assert!(out.stderr.contains(wanted), "{wanted:?} is not in\n{}", out.stderr);
    }
    Ok(())
}
