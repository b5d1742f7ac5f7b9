//! Lint rules from the command line: of a Dockerfile alone, of a pipeline, and beside builds.

use crate::build::{build, context, nodes, with_busybox};
use crate::pipeline::{commit, git};
use crate::{Ended, Test, World};
use keelway_tests::env::Output;
use std::fs;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("lint::a_dockerfile_alone", a_dockerfile_alone),
    ("lint::builds_say_it_once_and_stop_where_the_file_wants_that", builds_say_it_once),
];

/// The rules of a `--format json` answer, each with its line.
fn rules(out: &Output) -> Vec<(String, u64)> {
    let object = |l| serde_json::from_str::<serde_json::Value>(l).unwrap_or_else(|e| panic!("{l:?}: {e}"));
    let rule = |v: serde_json::Value| {
        (v["code"].as_str().unwrap_or_default().to_owned(), v["line"].as_u64().unwrap_or_default())
    };
    out.stdout.lines().map(object).map(rule).collect()
}

fn a_dockerfile_alone(world: &World) -> Ended {
    let env = world.env();
    let bad = "ARG V\nFROM base:1$V as App\nCOPY secret.txt $fooo /\nENV foooo=1\n";
    let files = [
        ("Dockerfile", "FROM scratch\nCOPY a /\n"),
        ("a", "1"),
        ("secret.txt", "2"),
        (".dockerignore", "secret.txt\n"),
        ("docker/Bad", bad),
        ("docker/Strict", "# check=error=true;skip=StageNameCasing\nFROM scratch as App\n"),
        ("docker/Broken", "FROM scratch as a\nCOPPY a /\n"),
    ];
    let dir = context(&env, "c", &files);
    let clean = env.keelway(&["lint", "c"]).expect(0);
    assert!(
        clean.stdout.is_empty() && clean.stderr.contains("no errors in c/Dockerfile"),
        "{}",
        clean.stderr
    );
    // What a missing file makes an error is not said twice.
    let bad = ["lint", "-f", "docker/Bad", "--format", "json", "."];
    let out = env.keelway_in(&dir, &bad).expect(2);
    let expected = [("FromAsCasing", 2), ("StageNameCasing", 2), ("D0213", 3)];
    assert_eq!(rules(&out), expected.map(|(r, l)| (r.to_owned(), l)), "{}", out.stderr);
    let text = env.keelway_in(&dir, &["lint", "-f", "docker/Bad"]).expect(2);
    for said in ["docker/Bad:2:1\n", "FROM base:1$V as App", "warning[FromAsCasing]", "help: write AS"] {
        assert!(text.stderr.contains(said), "{said:?}: {}", text.stderr);
    }
    let strict = env.keelway(&["lint", "-f", "c/docker/Strict", "c"]).expect(1);
    assert!(
        strict.stderr.contains("error[FromAsCasing]") && !strict.stderr.contains("StageName"),
        "{}",
        strict.stderr
    );
    let off = ["lint", "-f", "c/docker/Strict", "--build-arg", "BUILDKIT_DOCKERFILE_CHECK=skip=all", "c"];
    env.keelway(&off).expect(0);
    let broken = env.keelway(&["lint", "-f", "c/docker/Broken", "c"]).expect(2);
    assert!(
        broken.stderr.contains("did you mean COPY?") && broken.stderr.contains("[FromAsCasing]"),
        "{}",
        broken.stderr
    );
    let target = env.keelway(&["lint", "--target", "nothing", "c"]).expect(2);
    assert!(target.stderr.contains("D0202"), "{}", target.stderr);
    env.keelway(&["lint", "--repo", "c", "c"]).expect(2);
    env.keelway(&["lint", "nowhere"]).expect(2);
    let explained = env.keelway(&["explain", "FromAsCasing"]).expect(0);
    assert!(explained.stdout.contains("AS"), "{}", explained.stdout);
    assert_eq!(fs::read_dir(env.store()).expect("it is there").count(), 0, "nothing was stored");
    Ok(())
}

fn builds_say_it_once(world: &World) -> Ended {
    let env = with_busybox(world);
    // Which variables there are, the base decides: it is known when the build has begun.
    let body = "FROM busybox as app\nARG SOURCES=a\nCOPY $SOURCE* /\nCMD sh\n";
    let dir = context(&env, "c", &[("Dockerfile", body), ("a", "1")]);
    let out = build(&env, &dir, &[]).expect(0);
    for said in [
        "warning[FromAsCasing]",
        "FROM busybox as app",
        "UndefinedVar",
        "Dockerfile:3: COPY $SOURCE* /:",
        "JSONArgsRecommended",
    ] {
        assert_eq!(out.stderr.matches(said).count(), 1, "{said:?} in {}", out.stderr);
    }
    let quiet = build(&env, &dir, &["--quiet"]).expect(0);
    assert!(!quiet.stderr.contains("FromAsCasing"), "{}", quiet.stderr);
    let write = |text: &str| fs::write(dir.join("Dockerfile"), text).expect("files can be written");
    write(&format!("# check=error=true\n{body}"));
    let out = build(&env, &dir, &["--format", "json"]).expect(1);
    assert_eq!(rules(&out), [("FromAsCasing".to_owned(), 2)], "before anything began: {}", out.stderr);
    write(&format!("# check=error=true;skip=FromAsCasing\n{body}"));
    let out = build(&env, &dir, &["--format", "json"]).expect(1);
    assert!(
        out.stdout.contains("error[UndefinedVar]") && !nodes(&out, "started").contains(&"app".into()),
        "{}",
        out.stdout
    );
    assert!(!out.stdout.contains("COPY $SOURCE* /\",\"millis"), "no step ran: {}", out.stdout);
    // A pipeline says the same, and stops with the same exit code before it has run.
    let pipeline = "version: 1\nstages:\n  image:\n    build: {context: .}\n";
    fs::write(dir.join("keelway.yml"), pipeline).expect("files can be written");
    git(&env, &dir, &["init", "-q", "-b", "main"]);
    commit(&env, &dir, "strict");
    let out = env.keelway_in(&dir, &["run"]).expect(1);
    assert!(out.stderr.contains("error[UndefinedVar]"), "{}", out.stderr);
    write(&format!("# check=error=true\n{body}"));
    commit(&env, &dir, "stricter");
    let out = env.keelway_in(&dir, &["run"]).expect(1);
    assert!(
        out.stderr.contains("error[FromAsCasing]") && out.stderr.contains("nothing was run"),
        "{}",
        out.stderr
    );
    write(body);
    commit(&env, &dir, "lenient");
    let out = env.keelway_in(&dir, &["run"]).expect(0);
    for said in ["warning[FromAsCasing]", "UndefinedVar"] {
        assert_eq!(out.stderr.matches(said).count(), 1, "{said:?} in {}", out.stderr);
    }
    let out = env.keelway_in(&dir, &["lint", "--format", "json"]).expect(0);
    let found: Vec<String> = rules(&out).into_iter().map(|(r, _)| r).collect();
    assert_eq!(found, ["FromAsCasing", "UndefinedVar", "JSONArgsRecommended"], "{}", out.stdout);
    Ok(())
}
