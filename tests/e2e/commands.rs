//! The command line and its documentation say the same.

use crate::build::{build, with_busybox};
use crate::{Ended, Test, World};
use keelway_tests::base::{self, Base};
use keelway_tests::env::{Env, Output};
use keelway_tests::git::GitRepo;
use keelway_tests::registry::Registry;
use std::collections::BTreeSet;
use std::io::BufRead;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("commands::help_and_documentation_list_the_same_verbs", help_and_documentation_list_the_same_verbs),
    ("commands::wrong_usage_is_exit_code_2", wrong_usage_is_exit_code_2),
    (
        "commands::one_signal_ends_what_waits_for_a_silent_registry",
        one_signal_ends_what_waits_for_a_silent_registry,
    ),
    ("commands::lint_reads_the_tree_before_the_first_commit", lint_reads_the_tree_before_the_first_commit),
    (
        "commands::a_state_directory_that_is_not_there_is_not_made",
        a_state_directory_that_is_not_there_is_not_made,
    ),
    ("commands::a_state_directory_of_others_is_refused", a_state_directory_of_others_is_refused),
    ("commands::json_is_an_object_a_line_for_every_verb", json_is_an_object_a_line_for_every_verb),
];

/// The words under `Commands:` of a help text.
fn verbs(env: &Env, of: &[&str]) -> Vec<String> {
    let help = env.keelway(&[of, &["--help"]].concat()).expect(0).stdout;
    help.lines()
        .skip_while(|l| *l != "Commands:")
        .skip(1)
        .take_while(|l| l.starts_with("  "))
        .filter_map(|l| l.split_whitespace().next())
        .filter(|v| *v != "help")
        .map(str::to_owned)
        .collect()
}

/// All of them, those of groups in full.
fn verbs_of(env: &Env) -> BTreeSet<String> {
    let mut shown = BTreeSet::new();
    for verb in verbs(env, &[]) {
        let below = verbs(env, &[&verb]);
        if below.is_empty() {
            shown.insert(verb);
        } else {
            shown.extend(below.iter().map(|b| format!("{verb} {b}")));
        }
    }
    shown
}

fn help_and_documentation_list_the_same_verbs(world: &World) -> Ended {
    let env = world.env();
    let shown = verbs_of(&env);
    let text =
        std::fs::read_to_string(world.project.join("docs/commands.md")).expect("docs/commands.md is there");
    let documented: BTreeSet<String> = text
        .lines()
        .filter_map(|l| l.strip_prefix("| `keelway "))
        .filter_map(|l| Some(l.split_once('`')?.0.to_owned()))
        .collect();
    assert!(shown.len() > 10, "{shown:?}");
    assert_eq!(shown, documented);
    Ok(())
}

fn wrong_usage_is_exit_code_2(world: &World) -> Ended {
    let env = world.env();
    for args in [
        &["nonsense"][..],
        &["run", "--commit", "main"],
        &["image", "build"],
        &["image", "build", "/nonexistent"],
        &["run"],
    ] {
        let out = env.keelway(args).expect(2);
        assert!(out.stderr.starts_with("error"), "{args:?}: {}", out.stderr);
    }
    Ok(())
}

/// A stage that warns of nothing, one that deploys to a host that is not there.
const PIPELINE: &str = "version: 1
stages:
  image:
    build: {context: .}
  publish:
    needs: [image]
    push: {image: {stage: image}, to: REGISTRY/shop/web, tags: [commit]}
  production:
    needs: [publish]
    deploy:
      image: {stage: publish}
      to: production
      app: web
      replicas: 1
      port: 80
      health: {http: /}
targets:
  production:
    hosts: [{ssh: gone}]
    ssh_config: nowhere
    balancer: {listen: \":80\"}
";

/// Standard output as JSON objects.
#[track_caller]
fn objects(out: &Output) -> Vec<serde_json::Value> {
    let parse = |line: &str| match serde_json::from_str(line) {
        Ok(value @ serde_json::Value::Object(_)) => value,
        other => panic!("no JSON object: {line:?}: {other:?}"),
    };
    out.stdout.lines().map(parse).collect()
}

fn json_is_an_object_a_line_for_every_verb(world: &World) -> Ended {
    let env = with_busybox(world);
    let registry = Registry::start(None, None).expect("docker-registry starts");
    let repo = GitRepo::init(&env.path().join("projects/web")).expect("git makes a repository");
    let ssh = env.work().join("ssh-config");
    std::fs::write(&ssh, "Host gone\n  HostName 127.0.0.1\n  Port 1\n  BatchMode yes\n")
        .expect("files can be written");
    repo.write("keelway.yml", PIPELINE.replace("REGISTRY", &registry.host())).expect("files can be written");
    repo.write("Dockerfile", "FROM busybox\nRUN echo said\n").expect("files can be written");
    repo.commit("first").expect("git commits");
    let url = repo.path().to_str().expect("UTF-8").to_owned();
    let name = format!("{}/shop/web:1", registry.host());
    let layout = base::oci_layout(Base::Busybox).expect("a busybox image can be made");
    let layout = layout.to_str().expect("UTF-8");
    let nowhere = format!("nowhere={}", ssh.display());
    let source = ["--repo", url.as_str()];
    let deploy = ["--repo", url.as_str(), "--ssh-config", nowhere.as_str()];
    build(&env, repo.path(), &["-t", &name]).expect(0);
    // Verb, words after it, exit code, and how many objects there are at least.
    let verbs: &[(&str, &[&str], i32, usize)] = &[
        ("run", &[&["image"][..], &source].concat(), 0, 5),
        ("plan", &[&source[..], &["--ssh-config", &nowhere]].concat(), 0, 1),
        ("lint", &source, 0, 0),
        ("explain", &["K0102"], 0, 1),
        ("watch", &[&source[..], &["--once", "--ssh-config", &nowhere]].concat(), 0, 5),
        ("runs ls", &[], 0, 2),
        ("runs show", &[], 0, 5),
        ("runs logs", &[], 0, 0),
        ("image build", &[&url], 0, 5),
        ("image push", &[&name], 0, 1),
        ("image pull", &[&name], 0, 1),
        ("image load", &[layout, "other"], 0, 1),
        ("image ls", &[], 0, 3),
        ("image prune", &["--dry-run", "--keep-storage", "0"], 0, 3),
        ("store df", &[], 0, 3),
        ("store check", &["--read-data"], 0, 1),
        (
            "container run",
            &["-d", "--name", "json", "--network", "none", "other", "sh", "-c", "echo said; sleep 1000"],
            0,
            1,
        ),
        ("container ls", &[], 0, 1),
        ("container exec", &["json", "true"], 0, 0),
        ("container logs", &["json"], 0, 0),
        ("container stats", &["--no-stream"], 0, 1),
        ("container inspect", &["json"], 0, 1),
        ("container cp", &["json:/etc/passwd", "passwd"], 0, 1),
        ("container kill", &["-s", "CONT", "json"], 0, 1),
        ("container stop", &["-t", "0", "json"], 0, 1),
        ("container rm", &["json"], 0, 1),
        ("doctor", &[], 0, 6),
        ("deploy status", &[&["production"], &deploy[..]].concat(), 4, 1),
        ("deploy rollback", &[&["production"], &deploy[..]].concat(), 13, 1),
    ];
    let tested: BTreeSet<&str> = verbs.iter().map(|v| v.0).collect();
    for verb in verbs_of(&env) {
        assert!(tested.contains(verb.as_str()), "{verb} is not tested here");
    }
    for (verb, words, code, least) in verbs {
        // Before the words: what follows a container's image is the container's.
        let args: Vec<&str> =
            verb.split(' ').chain(["--format", "json"]).chain(words.iter().copied()).collect();
        let out = env.keelway(&args).expect(*code);
        let found = objects(&out);
        assert!(found.len() >= *least, "{verb}: {} objects", found.len());
    }
    // A definition that is not valid: its diagnostics, and what a rollback did is in the record.
    repo.commit_file("keelway.yml", "version: 1\nstages: 5\n").expect("git commits");
    let out = env.keelway(&["lint", "--repo", &url, "--format", "json"]).expect(2);
    assert_eq!(objects(&out)[0]["severity"], "error");
    let out = env.keelway(&["runs", "ls", "--format", "json"]).expect(0);
    assert_eq!(objects(&out)[0]["event"], "deploy");
    let out = env.keelway_in(repo.path(), &["deploy", "rollback", "production", "--dirty"]).expect(2);
    assert!(out.stderr.contains("leave --dirty out"), "{}", out.stderr);
    Ok(())
}

fn one_signal_ends_what_waits_for_a_silent_registry(world: &World) -> Ended {
    let env = world.env();
    // Takes connections into its queue and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let host = silent.local_addr().expect("it has an address").to_string();
    let name = format!("{host}/x/y:1");
    let dir = env.path().join("context");
    std::fs::create_dir(&dir).expect("folders can be made");
    std::fs::write(dir.join("Dockerfile"), format!("FROM {name}\n")).expect("files can be written");
    let dir = dir.to_str().expect("UTF-8");
    for args in [&["image", "pull", &name][..], &["image", "build", dir]] {
        let mut child = env
            .command(&world.keelway)
            .args(args)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut said = std::io::BufReader::new(child.stderr.take().expect("a pipe")).lines();
        // The registry's silence is told; a process that never says so is ended by the end of this test.
        let told = said.by_ref().map_while(Result::ok).find(|l| l.contains("waiting for"));
        assert!(told.is_some_and(|l| l.contains(&format!("waiting for {host} (try 1 of 4)"))));
        let began = std::time::Instant::now();
        let status = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
        // To its end, so that the process is not held up.
        let _ = said.count();
        let code = child.wait().expect("it is our child").code();
        assert_eq!(code, Some(3), "{args:?}");
        assert!(began.elapsed() < std::time::Duration::from_secs(4), "{args:?}: {:?}", began.elapsed());
    }
    Ok(())
}

fn lint_reads_the_tree_before_the_first_commit(world: &World) -> Ended {
    let env = world.env();
    let repo = GitRepo::init(&env.path().join("projects/web")).expect("git makes a repository");
    let pipeline = "version: 1\nstages:\n  image:\n    build: {context: ., target: biuld}\n";
    repo.write("keelway.yml", pipeline).expect("files can be written");
    repo.write("Dockerfile", "FROM scratch AS build\nCOPY ap/ /\n").expect("files can be written");
    repo.write("app/x", "x").expect("files can be written");
    let out = env.keelway_in(repo.path(), &["lint"]).expect(2);
    assert!(out.stderr.contains("keelway.yml:4:33"), "{}", out.stderr);
    assert!(out.stderr.contains("did you mean \"build\"?"), "{}", out.stderr);
    repo.write("keelway.yml", pipeline.replace("biuld", "build")).expect("files can be written");
    let out = env.keelway_in(repo.path(), &["lint", "--format", "json"]).expect(2);
    let [found] = &objects(&out)[..] else { panic!("{}", out.stdout) };
    assert_eq!((found["line"].as_u64(), found["column"].as_u64()), (Some(2), Some(6)));
    assert!(found["message"].as_str().is_some_and(|m| m.contains("did you mean \"app\"?")), "{found}");
    repo.write("Dockerfile", "FROM scratch AS build\nCOPY app/ /\n").expect("files can be written");
    env.keelway_in(repo.path(), &["lint"]).expect(0);
    env.keelway_in(repo.path(), &["plan", "--dirty"]).expect(0);
    let out = env.keelway_in(repo.path(), &["plan"]).expect(2);
    assert!(out.stderr.contains("has no commit yet") && out.stderr.contains("--dirty"), "{}", out.stderr);
    Ok(())
}

fn a_state_directory_that_is_not_there_is_not_made(world: &World) -> Ended {
    let env = world.env();
    let typo = env.path().join("typo/x");
    for words in [["runs", "ls"], ["image", "ls"]] {
        let out = env.keelway(&[&["--state", typo.to_str().expect("UTF-8")][..], &words].concat()).expect(2);
        assert!(out.stderr.contains("there is no state directory"), "{}", out.stderr);
    }
    assert!(!env.path().join("typo").exists());
    Ok(())
}

fn a_state_directory_of_others_is_refused(world: &World) -> Ended {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown};
    let env = world.env();
    let store = env.store();
    let mode = |bits| fs::set_permissions(&store, Permissions::from_mode(bits)).expect("its mode");
    for bits in [0o777, 0o720, 0o702] {
        mode(bits);
        let out = env.keelway(&["image", "ls"]).expect(4);
        assert!(out.stderr.contains("may be changed by other users"), "{bits:o}: {}", out.stderr);
    }
    mode(0o700);
    chown(&store, Some(54_321), None).expect("its owner");
    let out = env.keelway(&["image", "ls"]).expect(4);
    assert!(out.stderr.contains("belongs to user 54321, not to user 0"), "{}", out.stderr);
    chown(&store, Some(0), None).expect("its owner");
    env.keelway(&["image", "ls"]).expect(0);
    Ok(())
}
