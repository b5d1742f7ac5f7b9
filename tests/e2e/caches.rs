//! Caches of other machines: `--cache-to` and `--cache-from`, in a registry and in a directory.

use crate::build::{build, context, nodes, with_busybox};
use crate::tools::tool;
use crate::{Ended, Test, World};
use keelway_tests::base::{self, Base};
use keelway_tests::env::{Env, Output};
use keelway_tests::registry::Registry;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("caches::another_machine_runs_nothing_twice", another_machine_runs_nothing_twice),
    ("caches::what_is_missing_or_damaged_is_a_miss", what_is_missing_or_damaged_is_a_miss),
    ("caches::a_lying_cache_lies_to_those_who_name_it", a_lying_cache_lies_to_those_who_name_it),
];

const DOCKERFILE: &str = "FROM busybox AS tools\nRUN echo tool > /tool\nRUN cat /tool > /made\n\
                          FROM busybox\nWORKDIR /app\nCOPY --from=tools /made .\nCOPY --link a .\nRUN cat made a > both\n";

fn text(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

/// Another machine: a state directory that knows busybox and nothing else.
fn machine(env: &Env, name: &str) -> String {
    let state = text(&env.work().join(name));
    let layout = base::oci_layout(Base::Busybox).expect("a busybox image can be made");
    env.keelway(&["image", "load", &text(&layout), "busybox", "--state", &state]).expect(0);
    state
}

/// A build there: its events, and its image.
fn on(env: &Env, state: &str, dir: &Path, flags: &[&str]) -> (Output, String) {
    let all = [&["--state", state, "--format", "json"][..], flags].concat();
    let out = build(env, dir, &all).expect(0);
    let digest = build(env, dir, &[&["--state", state][..], flags].concat()).expect(0).stdout;
    (out, digest)
}

fn app(env: &Env) -> PathBuf {
    context(env, "app", &[("Dockerfile", DOCKERFILE), ("a", "1\n")])
}

fn another_machine_runs_nothing_twice(world: &World) -> Ended {
    let env = with_busybox(world);
    let registry = Registry::start(None, None).expect("docker-registry starts");
    let dir = app(&env);
    let name = format!("{}/shop/cache:main", registry.host());
    let local = text(&env.work().join("cache"));
    let (to, from) = (format!("type=registry,ref={name},mode=max"), format!("type=registry,ref={name}"));
    let (to_local, from_local) = (format!("type=local,dest={local}"), format!("type=local,src={local}"));
    let first = build(&env, &dir, &["--cache-to", &to, "--cache-to", &to_local]).expect(0);
    assert!(first.stderr.contains("wrote the cache"), "{}", first.stderr);

    // All steps of all stages, and the same image, byte for byte.
    let (all, digest) = on(&env, &machine(&env, "b"), &dir, &["--cache-from", &from]);
    assert_eq!((nodes(&all, "cache-miss").len(), nodes(&all, "cache-hit").len()), (0, 6), "{}", all.stdout);
    assert_eq!(digest, first.stdout);
    // Only what is in the image.
    let (min, digest) = on(&env, &machine(&env, "c"), &dir, &["--cache-from", &from_local]);
    assert_eq!(nodes(&min, "cache-miss").len(), 2, "the stage that is copied from: {}", min.stdout);
    assert_eq!(digest, first.stdout);
    // A base that was made anew, by other words, and came out the same.
    let other = DOCKERFILE.replace("RUN echo tool >", "RUN echo tool | cat >");
    let same = context(&env, "same", &[("Dockerfile", &other[..]), ("a", "1\n")]);
    let (same, _) =
        on(&env, &machine(&env, "d"), &same, &["--cache-from", "127.0.0.1:9/none", "--cache-from", &from]);
    assert_eq!(nodes(&same, "cache-miss").len(), 1, "{}", same.stdout);
    assert!(same.stdout.contains("going on without it"), "{}", same.stdout);

    // Two branches feed one cache, and each finds its own.
    let branch = context(&env, "branch", &[("Dockerfile", "FROM busybox\nRUN echo branch > /b\n")]);
    build(&env, &branch, &["--cache-to", &to, "--cache-to", &to_local]).expect(0);
    for from in [&from, &from_local] {
        let state = machine(&env, if from.contains("registry") { "e" } else { "f" });
        let (theirs, _) = on(&env, &state, &branch, &["--cache-from", from]);
        assert_eq!(nodes(&theirs, "cache-miss").len(), 0, "{}", theirs.stdout);
        let (ours, _) = on(&env, &state, &dir, &["--cache-from", from]);
        let ran = if from.contains("registry") { 0 } else { 2 };
        assert_eq!(nodes(&ours, "cache-miss").len(), ran, "{}", ours.stdout);
    }
    // Others' tools can copy it.
    let copied = format!("oci:{}:x", text(&env.work().join("copied")));
    tool(
        &env,
        "skopeo",
        &["copy", "--quiet", "--src-tls-verify=false", &format!("docker://{name}"), &copied],
    );
    // One that cannot be written fails the command, or is said.
    let dead = "type=registry,ref=127.0.0.1:9/none";
    let failed = build(&env, &dir, &["--cache-to", dead]).expect(4);
    assert!(failed.stderr.contains("was not written"), "{}", failed.stderr);
    let said = build(&env, &dir, &["--cache-to", &format!("{dead},ignore-error=true")]).expect(0);
    assert!(said.stderr.contains("was not written"), "{}", said.stderr);
    Ok(())
}

fn what_is_missing_or_damaged_is_a_miss(world: &World) -> Ended {
    let env = with_busybox(world);
    let dir = app(&env);
    let local = env.work().join("cache");
    let (to, from) =
        (format!("type=local,dest={},mode=max", text(&local)), format!("type=local,src={}", text(&local)));
    let first = build(&env, &dir, &["--cache-to", &to]).expect(0).stdout;
    let layers: Vec<String> = document(&local).1["layers"]
        .as_array()
        .expect("layers")
        .iter()
        .map(|l| l["digest"].as_str().expect("a digest").replace("sha256:", ""))
        .collect();
    for (at, layer) in layers.iter().enumerate() {
        let path = local.join("blobs/sha256").join(layer);
        if at % 2 == 0 {
            fs::remove_file(path).expect("it is there");
        } else {
            let size = fs::metadata(&path).expect("it is there").len() as usize;
            fs::write(path, vec![b'x'; size]).expect("files can be written");
        }
    }
    let (out, digest) = on(&env, &machine(&env, "b"), &dir, &["--cache-from", &from]);
    assert_eq!(digest, first);
    assert_eq!(nodes(&out, "cache-miss").len(), 6, "{}", out.stdout);
    assert!(out.stdout.contains("cannot be had") && out.stdout.contains("the step runs"), "{}", out.stdout);
    // A list that is no list, a directory that is none.
    fs::write(local.join("index.json"), "{").expect("files can be written");
    let (out, digest) = on(
        &env,
        &machine(&env, "c"),
        &dir,
        &["--cache-from", &from, "--cache-from", "type=local,src=/no/where"],
    );
    assert_eq!(digest, first);
    assert!(
        out.stdout.contains("going on without it") && out.stdout.contains("there is none yet"),
        "{}",
        out.stdout
    );
    Ok(())
}

/// The index of a cache's directory, its manifest, its config.
fn document(cache: &Path) -> (Value, Value, Value) {
    let read = |path: PathBuf| -> Value {
        serde_json::from_slice(&fs::read(path).expect("it is there")).expect("JSON")
    };
    let blob = |d: &Value| {
        let digest = d["digest"].as_str().expect("a digest").replace("sha256:", "");
        read(cache.join("blobs/sha256").join(digest))
    };
    let index = read(cache.join("index.json"));
    let manifest = blob(&index["manifests"][0]);
    let config = blob(&manifest["config"]);
    (index, manifest, config)
}

/// Writes a blob under the name that its content has, and makes a descriptor say so.
fn renamed(env: &Env, cache: &Path, descriptor: &mut Value, content: &Value) {
    let (bytes, temp) = (content.to_string(), cache.join("new"));
    fs::write(&temp, &bytes).expect("files can be written");
    let sum = tool(env, "sha256sum", &[&text(&temp)]);
    let digest = sum.split(' ').next().expect("a sum");
    fs::rename(&temp, cache.join("blobs/sha256").join(digest)).expect("it can be renamed");
    descriptor["digest"] = format!("sha256:{digest}").into();
    descriptor["size"] = bytes.len().into();
}

fn a_lying_cache_lies_to_those_who_name_it(world: &World) -> Ended {
    let env = with_busybox(world);
    let dir = context(
        &env,
        "app",
        &[("Dockerfile", "FROM busybox\nRUN echo true > /said\nRUN cat /said > /heard\n")],
    );
    let evil = context(&env, "evil", &[("Dockerfile", "FROM busybox\nRUN echo false > /said\n")]);
    let cache = env.work().join("cache");
    let to = format!("type=local,dest={}", text(&cache));
    for dir in [&dir, &evil] {
        build(&env, dir, &["--cache-to", &to]).expect(0);
    }
    // The first step is given the layer of the other Dockerfile's.
    let (mut index, mut manifest, mut config) = document(&cache);
    let records = config["records"].as_array_mut().expect("records");
    let base = records.iter().find(|a| records.iter().filter(|b| b["base"] == a["base"]).count() == 2);
    let base = base.expect("two steps stand on busybox")["base"].clone();
    let mut both: Vec<&mut Value> = records.iter_mut().filter(|r| r["base"] == base).collect();
    let (one, two) = (both[0]["layer"].clone(), both[1]["layer"].clone());
    both[0]["layer"] = two;
    both[1]["layer"] = one;
    renamed(&env, &cache, &mut manifest["config"], &config);
    renamed(&env, &cache, &mut index["manifests"][0], &manifest);
    fs::write(cache.join("index.json"), index.to_string()).expect("files can be written");

    let state = machine(&env, "victim");
    let seen = |flags: &[&str], name: &str| {
        let out = env.work().join(name);
        build(&env, &dir, &[&["--state", &state, "-o", &text(&out)][..], flags].concat()).expect(0);
        let said = fs::read_to_string(out.join("heard")).expect("it was written");
        fs::remove_dir_all(out).expect("it can be removed");
        said
    };
    let from = format!("type=local,src={}", text(&cache));
    assert_eq!(seen(&["--cache-from", &from], "believed"), "false\n", "who names a cache believes it");
    assert_eq!(
        seen(&[], "own"),
        "true\n",
        "who does not is not reached by it, not even by what ran on top of it"
    );
    assert_eq!(seen(&["--cache-from", &from], "again"), "true\n", "what is known here goes first");
    Ok(())
}
