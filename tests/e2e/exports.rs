//! What `keelway image build` makes of an image beside a name in the store, and the flags that docker's users know.

use crate::build::{build, context, nodes, with_busybox};
use crate::tools::{DOCKERFILE, LIST, run, tool};
use crate::{Ended, Test, World};
use keelway_tests::env::Env;
use keelway_tests::registry::Registry;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("exports::each_is_read_by_others_tools", each_is_read_by_others_tools),
    ("exports::flags_that_people_know", flags_that_people_know),
];

fn text(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// What is in a root file system: names, modes, owners, links, content.
fn listing(env: &Env, root: &Path) -> Vec<String> {
    let list = LIST.replace("for top", &format!("cd {}; for top", text(root)));
    let out = run(env.command("/bin/busybox").args(["sh", "-c", &list]).env("PATH", text(&root.join("bin"))));
    out.lines().map(str::to_owned).collect()
}

/// The root file system that umoci makes of a layout.
fn unpacked(env: &Env, layout: &Path, tag: &str) -> Vec<String> {
    let bundle = env.work().join(format!("bundle-{tag}"));
    tool(env, "umoci", &["unpack", "--image", &format!("{}:{tag}", text(layout)), &text(&bundle)]);
    let found = listing(env, &bundle.join("rootfs"));
    fs::remove_dir_all(&bundle).expect("the bundle can be removed");
    found
}

fn each_is_read_by_others_tools(world: &World) -> Ended {
    let env = with_busybox(world);
    let registry = Registry::start(None, None).expect("docker-registry starts");
    let files =
        [("Dockerfile", DOCKERFILE), ("files/a", "a\n"), ("files/sub/b", "b\n"), ("files/ü mlaut", "c\n")];
    let dir = context(&env, "c", &files);
    let at = |name: &str| env.work().join(name);
    let out = |what: &str, name: &str| format!("type={what},dest={}", text(&at(name)));
    let (zstd, gzip) = (format!("{},compression=zstd", out("oci", "z.tar")), out("oci", "l") + ",tar=false");
    let plain = format!("{},compression=uncompressed,force-compression=true", out("docker", "d.tar"));
    let (tar, local) = (out("tar", "f.tar"), text(&at("local")));
    let name = format!("{}/shop/web:1", registry.host());
    let pushed =
        format!("type=registry,name={name},oci-mediatypes=false,compression=zstd,force-compression=true");
    let (id, told) = (text(&at("id")), text(&at("told")));
    let mut flags = vec!["--iidfile", &id, "--metadata-file", &told, "-t", "shop/web:one", "-t", "two"];
    for output in [&gzip, &zstd, &plain, &tar, &local, &pushed] {
        flags.extend(["-o", output]);
    }
    let digest = build(&env, &dir, &flags).expect(0).stdout.trim().to_owned();

    // The layout, as it is; the first output is what the files tell of.
    let l = at("l");
    let oci = format!("oci:{}:one", text(&l));
    assert_eq!(tool(&env, "skopeo", &["inspect", "--format", "{{.Digest}}", &oci]).trim(), digest);
    let manifest = json(&tool(&env, "skopeo", &["inspect", "--raw", &oci]));
    let told = json(&fs::read_to_string(at("told")).expect("it was written"));
    assert_eq!(told["containerimage.digest"], digest);
    assert_eq!(told["containerimage.config.digest"], manifest["config"]["digest"]);
    assert_eq!(
        fs::read_to_string(at("id")).expect("it was written"),
        manifest["config"]["digest"].as_str().expect("a digest")
    );
    assert!(
        told["image.name"].as_str().expect("names").eq("docker.io/shop/web:one,docker.io/library/two:latest"),
        "{told}"
    );
    let wanted = unpacked(&env, &l, "one");
    assert!(wanted.len() > 100 && wanted.iter().any(|l| l.contains("data/suid")), "{wanted:?}");

    // Archives, through skopeo, which checks every digest. Debian's umoci cannot read zstd.
    let archive = format!("oci-archive:{}:one", text(&at("z.tar")));
    let inspected = json(&tool(&env, "skopeo", &["inspect", "--raw", &archive]));
    let last = inspected["layers"].as_array().and_then(|l| l.last()).expect("layers");
    assert_eq!(last["mediaType"], "application/vnd.oci.image.layer.v1.tar+zstd");
    assert_eq!(inspected["layers"][0], manifest["layers"][0], "the base's layer is left as it is");
    let copied = at("copied");
    tool(&env, "skopeo", &["copy", "--quiet", &archive, &format!("oci:{}:zstd", text(&copied))]);
    let blob =
        |d: &Value| copied.join("blobs/sha256").join(d.as_str().expect("a digest").replace("sha256:", ""));
    let config = json(&fs::read_to_string(blob(&inspected["config"]["digest"])).expect("it is there"));
    let layers = inspected["layers"].as_array().expect("layers");
    for (layer, diff_id) in
        layers.iter().zip(config["rootfs"]["diff_ids"].as_array().expect("diff ids")).skip(1)
    {
        let plain = format!("zstd -dc {} | sha256sum", text(&blob(&layer["digest"])));
        let sum = tool(&env, "sh", &["-ec", &plain]);
        assert_eq!(
            format!("sha256:{}", sum.split(' ').next().expect("a sum")),
            *diff_id,
            "zstd's own reader"
        );
    }
    let other = at("other");
    let docker = format!("docker-archive:{}:docker.io/library/two:latest", text(&at("d.tar")));
    tool(&env, "skopeo", &["copy", "--quiet", &docker, &format!("oci:{}:docker", text(&other))]);
    assert_eq!(unpacked(&env, &other, "docker"), wanted, "docker's archive");

    // Files, as a tar and as a directory.
    let extracted = at("extracted");
    fs::create_dir(&extracted).expect("folders can be made");
    tool(&env, "tar", &["-xpf", &text(&at("f.tar")), "-C", &text(&extracted)]);
    assert_eq!(listing(&env, &extracted), wanted, "tar");
    assert_eq!(listing(&env, &at("local")), wanted, "local");
    for made in [extracted, at("local")] {
        fs::remove_dir_all(made).expect("what was exported can be removed");
    }
    let whole =
        format!("{} image build -o - {} | cmp - {}", text(&world.keelway), text(&dir), text(&at("f.tar")));
    tool(&env, "sh", &["-ec", &whole]);

    // The registry's: docker's names for zstd; and a store that never saw it stands on it.
    let raw =
        json(&tool(&env, "skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{name}")]));
    assert_eq!(raw["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
    assert_eq!(raw["layers"][1]["mediaType"], "application/vnd.docker.image.rootfs.diff.tar.zstd");
    let on_it = context(
        &env,
        "on",
        &[("Dockerfile", &format!("FROM {name}\nUSER root\nRUN cat /data/files/a > /seen\n")[..])],
    );
    let fresh = text(&at("fresh"));
    build(&env, &on_it, &["--state", &fresh, "-o", &text(&at("seen"))]).expect(0);
    assert_eq!(fs::read_to_string(at("seen").join("seen")).expect("it was written"), "a\nmore\n");
    fs::remove_dir_all(at("seen")).expect("what was exported can be removed");
    Ok(())
}

fn flags_that_people_know(world: &World) -> Ended {
    let env = with_busybox(world);
    let dockerfile = "FROM busybox AS one\nRUN head -c 16 /dev/urandom | sha256sum > /one\nRUN cat /one > /two\n\
                      FROM one\nARG SOURCE_DATE_EPOCH\nRUN echo $SOURCE_DATE_EPOCH > /three\nLABEL a=1 b=2\n";
    let dir = context(&env, "c", &[("Dockerfile", dockerfile)]);
    let layout = text(&env.work().join("l"));
    let out = format!("type=oci,tar=false,dest={layout},name=x");
    let flags = [
        "--label",
        "b=3",
        "--label",
        "c",
        "--annotation",
        "k=v",
        "--build-arg",
        "SOURCE_DATE_EPOCH=1700000000",
        "-o",
        &out,
    ];
    build(&env, &dir, &flags).expect(0);
    let at = format!("oci:{layout}:latest");
    let config = json(&tool(&env, "skopeo", &["inspect", "--config", &at]));
    assert_eq!(config["config"]["Labels"], serde_json::json!({"a": "1", "b": "3", "c": ""}));
    assert_eq!(config["created"], "2023-11-14T22:13:20Z");
    let manifest = json(&tool(&env, "skopeo", &["inspect", "--raw", &at]));
    assert_eq!(manifest["annotations"]["k"], "v");

    // All steps again; then those of one stage, and what stands on them only because they came out otherwise.
    let first = build(&env, &dir, &[]).expect(0).stdout;
    let all = build(&env, &dir, &["--no-cache", "--format", "json"]).expect(0);
    assert_eq!((nodes(&all, "cache-miss").len(), nodes(&all, "cache-hit").len()), (3, 0), "{}", all.stdout);
    assert!(all.stdout.contains("\"asked\""), "{}", all.stdout);
    let second = build(&env, &dir, &[]).expect(0).stdout;
    assert_ne!(first, second, "what was run anew is what counts from now on");
    let some = build(&env, &dir, &["--no-cache-filter", "one", "--format", "json"]).expect(0);
    assert_eq!(nodes(&some, "cache-miss").len(), 3, "{}", some.stdout);
    let late = context(
        &env,
        "late",
        &[("Dockerfile", "FROM busybox AS one\nRUN echo 1 > /one\nFROM one\nRUN cat /one > /two\n")],
    );
    build(&env, &late, &[]).expect(0);
    let some = build(&env, &late, &["--no-cache-filter", "one", "--format", "json"]).expect(0);
    assert_eq!(nodes(&some, "cache-miss").len(), 1, "the same came out: {}", some.stdout);
    let wrong = build(&env, &late, &["--no-cache-filter", "once"]).expect(2);
    assert!(wrong.stderr.contains("did you mean \"one\"?"), "{}", wrong.stderr);

    // Only a registry's word counts with --pull; this name has none that answers.
    let named = context(&env, "named", &[("Dockerfile", "FROM 127.0.0.1:9/a\nRUN true\n")]);
    build(&env, &dir, &["-t", "127.0.0.1:9/a"]).expect(0);
    build(&env, &named, &["--network", "default"]).expect(0);
    let pull = build(&env, &named, &["--pull"]).expect(4);
    assert!(pull.stderr.contains("because of --pull"), "{}", pull.stderr);

    let quiet = build(&env, &dir, &["--progress", "quiet"]).expect(0);
    assert_eq!(quiet.stderr.lines().count(), 1, "{}", quiet.stderr);
    for (flags, why) in [
        (&["-o", "type=oci"][..], "no dest"),
        (&["--push"][..], "needs a name"),
        (&["-o", "type=tar,dest=/no/where/x"][..], "no directory /no/where"),
        (&["--iidfile", "/no/where/x"][..], "/no/where/x"),
        (&["-o", "-", "--format", "json"][..], "standard output"),
    ] {
        let refused = build(&env, &dir, flags).expect(2);
        assert!(refused.stderr.contains(why), "{flags:?}: {}", refused.stderr);
    }
    // A failed build leaves no file of an earlier one, and no part of its own.
    let id = env.work().join("id");
    fs::write(&id, "old").expect("files can be written");
    let broken = context(&env, "broken", &[("Dockerfile", "FROM busybox\nRUN false\n")]);
    build(&env, &broken, &["--iidfile", &text(&id), "-o", &text(&env.work().join("none"))]).expect(1);
    assert!(!id.exists() && !env.work().join("none").exists());
    Ok(())
}
