//! Steps that are not copies, and whole images, on a real store.

use crate::testing::{MemTree, Rig, assert_still, dump, out, put};
use crate::{Bases, Build, BuildOptions, KeyContext, assemble, base, copy, import, key, mkdir, user};
use keelway_dockerfile::Ignore;
use keelway_model::mount::{FileAccess, RunMount, Sharing};
use keelway_model::oci::{Descriptor, History, ImageConfig, Index, Manifest, media};
use keelway_model::plan::{AssembleOp, BaseOp, Chain, ExecOp, ImageOutput, MkdirOp, Network, UserSpec};
use keelway_model::{
    CacheKey, Digest, ImageRef, KeyPart, Limits, Op, Output, Platform, SourceText, Timestamp,
};
use std::path::Path;

fn key_of(rig: &Rig, op: Op, below: &Chain) -> keelway_model::CacheKey {
    let tree = crate::testing::MemTree::default();
    let cx = KeyContext { store: &rig.store, context: &tree, ignore: &Ignore::default() };
    key(&op, &[out(below)], &cx).unwrap().unwrap()
}

#[test]
fn working_directories() {
    let rig = Rig::new();
    let base = rig.on(&[], |r| {
        put(r, "etc/passwd", "bob:x:7:8::/h:/b\n");
        put(r, "srv/x", "");
        r.symlink(b"../../srv", b"l").unwrap();
        r.symlink(b"/proc/1/root", b"evil").unwrap();
    });
    let made = |path: &str, who: &str| {
        let op = MkdirOp { path: path.into(), user: UserSpec(who.into()), identity: Digest::of(b"") };
        let key = key_of(&rig, Op::Mkdir(op.clone()), &base);
        let upper = mkdir::run(&op, &[out(&base)], &rig.store).map_err(|e| e.to_string())?;
        assert_still(upper.fs());
        let chain = crate::extend(&base, upper, &key).unwrap();
        let lines = dump(&rig.store, &chain);
        let fresh: Vec<String> = lines.into_iter().filter(|l| !dump(&rig.store, &base).contains(l)).collect();
        let last = rig.store.snapshot_dir(chain.snapshots.last().unwrap());
        Ok::<_, String>((fresh, last.read_dir().unwrap().next().is_none()))
    };
    assert_eq!(made("/a/b", "bob").unwrap(), (vec!["a d 755 7:8".into(), "a/b d 755 7:8".into()], false));
    assert_eq!(
        made("/srv", "bob").unwrap(),
        (vec![], true),
        "what is there stays as it is, in an empty layer"
    );
    assert_eq!(made("/l/n", "").unwrap().0, ["srv/n d 755 0:0"]);
    assert_eq!(
        made("/evil/x", "").unwrap().0.last().unwrap(),
        "proc/1/root/x d 755 0:0",
        "links stay inside"
    );
    assert!(made("/srv/x/y", "").unwrap_err().contains("/srv/x in the image is not a directory"));
    assert!(made("/q", "eve").unwrap_err().contains("eve"));
}

#[test]
fn users() {
    let rig = Rig::new();
    let with = |passwd: &str, group: &str| {
        let chain = rig.on(&[], |r| {
            put(r, "etc/passwd", passwd);
            put(r, "etc/group", group);
        });
        rig.store.view(&chain.snapshots).unwrap()
    };
    let view = with(
        "root:x:0:0:r:/root:/bin/sh\nbad line\nbob:x:7:8::/home/bob:/b\nbig:x:4294967296:0::/:/b\nneg:x:-1:0::/:/b\nrel:x:9:9::rel:/b\n",
        "root:x:0:bob\ng:x:20:bob,eve\nh:x:10:eve,bob\nbob:x:8:bob\n",
    );
    let get = |spec: &str| user::resolve(&view, &UserSpec(spec.into())).map_err(|e| e.to_string());
    let all = |u: user::User| (u.uid, u.gid, u.groups, u.home);
    assert_eq!(get("").map(all).unwrap(), (0, 0, vec![], Some("/root".into())));
    assert_eq!(get("bob").map(all).unwrap(), (7, 8, vec![0, 10, 20], Some("/home/bob".into())));
    assert_eq!(get("7").map(all).unwrap(), (7, 8, vec![0, 10, 20], Some("/home/bob".into())));
    assert_eq!(get("bob:g").map(all).unwrap(), (7, 20, vec![], Some("/home/bob".into())));
    assert_eq!(get("55").map(all).unwrap(), (55, 0, vec![], None));
    assert_eq!(get("55:66").map(all).unwrap(), (55, 66, vec![], None));
    assert_eq!(get("rel").map(all).unwrap().3, None);
    for bad in [
        "4294967296",
        "-1",
        "2147483648",
        "0x0",
        "big",
        "neg",
        "eve",
        "bob:eve",
        "bob:-1",
        "a:b:c",
        "a b",
        "+5",
        "99999999999999999999",
    ] {
        assert!(get(bad).is_err(), "{bad}");
    }
    // Hostile files: a link out, a FIFO, a file that is far too long.
    let outside = rig.on(&[], |r| {
        r.mkdir(b"etc", 0o755).unwrap();
        r.symlink(b"../../../../etc/passwd", b"etc/passwd").unwrap();
    });
    let view = rig.store.view(&outside.snapshots).unwrap();
    let loops = user::resolve(&view, &UserSpec("root".into()));
    assert!(loops.is_err(), "the machine's own file is never read: {loops:?}");
    let fifo = rig.on(&[], |r| {
        r.mkdir(b"etc", 0o755).unwrap();
        r.mknod(b"etc/passwd", keelway_disk::NodeKind::Fifo, 0o644).unwrap();
    });
    let view = rig.store.view(&fifo.snapshots).unwrap();
    assert!(
        user::resolve(&view, &UserSpec("root".into()))
            .unwrap_err()
            .to_string()
            .contains("not a regular file")
    );
    let sparse = rig.on(&[], |r| {
        r.mkdir(b"etc", 0o755).unwrap();
        r.create_file(b"etc/passwd", 0o644).unwrap().set_len(100 << 30).unwrap();
    });
    let view = rig.store.view(&sparse.snapshots).unwrap();
    assert!(user::resolve(&view, &UserSpec("1".into())).unwrap_err().to_string().contains("at most"));
    let bare = rig.store.view(&[]).unwrap();
    assert_eq!(user::resolve(&bare, &UserSpec("5:6".into())).unwrap().gid, 6, "numbers need no files");
}

fn exec() -> ExecOp {
    ExecOp {
        argv: vec!["a".into(), "b".into()],
        env: vec![("X".into(), "1".into()), ("Y".into(), "2".into())],
        unkeyed_env: vec![],
        cwd: "/".into(),
        user: UserSpec::default(),
        network: Network::Host,
        mounts: vec![],
        limits: Limits::default(),
        identity: Digest::of(b"id"),
    }
}

#[test]
fn keys_of_runs_name_what_changed() {
    let rig = Rig::new();
    let base = rig.empty();
    let first = key_of(&rig, Op::Exec(exec()), &base);
    let why = |change: fn(&mut ExecOp)| {
        let mut op = exec();
        change(&mut op);
        let key = key_of(&rig, Op::Exec(op), &base);
        if key.digest == first.digest {
            "same".to_owned()
        } else {
            key.explain(Some(&first.parts)).to_string()
        }
    };
    assert_eq!(why(|_| ()), "same");
    assert_eq!(why(|o| o.argv = vec!["ab".into()]), "command changed");
    assert_eq!(why(|o| o.argv = vec!["a b".into()]), "command changed");
    assert_eq!(
        why(|o| o.mounts = vec![RunMount::Script { target: "/dev/pipes/x".into(), content: "y".into() }]),
        "command changed"
    );
    assert_eq!(why(|o| o.env[0].1 = "3".into()), "environment changed");
    assert_eq!(why(|o| o.env.reverse()), "same");
    assert_eq!(why(|o| o.cwd = "/x".into()), "settings changed");
    assert_eq!(why(|o| o.user = UserSpec("1".into())), "settings changed");
    assert_eq!(why(|o| o.network = Network::None), "settings changed");
    assert_eq!(why(|o| o.limits.pids = Some(5)), "same");
    assert_eq!(why(|o| o.unkeyed_env = vec![("http_proxy".into(), "p".into())]), "same");
    assert_eq!(why(|o| o.identity = Digest::of(b"other")), "same");
    let other = Chain { snapshots: vec![], key: Digest::of(b"other") };
    assert_eq!(
        key_of(&rig, Op::Exec(exec()), &other).explain(Some(&first.parts)).to_string(),
        "base changed"
    );
    assert_eq!(
        first.parts.iter().map(|(p, _)| *p).collect::<Vec<_>>(),
        [KeyPart::Base, KeyPart::Command, KeyPart::Environment, KeyPart::Settings]
    );
}

#[test]
fn keys_of_mounts_hold_what_a_run_sees() {
    let rig = Rig::new();
    let base = rig.empty();
    let shown = rig.on(&[], |r| {
        put(r, "d/a", "A");
        put(r, "e", "E");
        r.symlink(b"/d", b"l").unwrap();
    });
    let keyed = |from: &Chain, mounts: Vec<RunMount>| {
        let tree = MemTree::default();
        let cx = KeyContext { store: &rig.store, context: &tree, ignore: &Ignore::default() };
        key(&Op::Exec(ExecOp { mounts, ..exec() }), &[out(&base), out(from)], &cx)
    };
    let bind = |source: &str, writable| {
        vec![RunMount::Bind { target: "/t".into(), need: 1, source: source.into(), writable }]
    };
    let first = keyed(&shown, bind("/d", false)).unwrap().unwrap();
    let why = |from: &Chain, mounts| {
        let key = keyed(from, mounts).unwrap().unwrap();
        if key.digest == first.digest { "same".into() } else { key.explain(Some(&first.parts)).to_string() }
    };
    let other = rig.on(&[], |r| put(r, "d/a", "A"));
    assert_eq!(why(&other, bind("/d", false)), "same", "nothing else of the tree counts");
    assert_eq!(why(&shown, bind("/l", false)), "same", "links are followed inside the tree");
    let changed = rig.on(&[], |r| put(r, "d/a", "B"));
    assert_eq!(why(&changed, bind("/d", false)), "files changed");
    assert_eq!(why(&shown, bind("/", false)), "files changed");
    assert_eq!(why(&shown, bind("/d", true)), "settings changed");
    let e = keyed(&shown, bind("/none", false)).unwrap_err().to_string();
    assert!(e.contains("\"/none\"") && e.contains("is not there"), "{e}");
    assert!(keyed(&base, bind("/", false)).is_ok(), "scratch is an empty directory");

    let access = FileAccess { mode: 0o755, uid: 0, gid: 0 };
    let cache = |id: &str, sharing, read_only| RunMount::Cache {
        target: "/c".into(),
        id: id.into(),
        sharing,
        read_only,
        source: "/".into(),
        seed: None,
        access,
    };
    let digest = |mount| keyed(&shown, vec![mount]).unwrap().unwrap().digest;
    let plain = digest(cache("a", Sharing::Shared, false));
    assert_eq!(plain, digest(cache("b", Sharing::Locked, false)), "which cache it is does not count");
    assert_ne!(plain, digest(cache("a", Sharing::Shared, true)));
    let secret =
        |id: &str, required| RunMount::Secret { target: "/s".into(), id: id.into(), required, access };
    let plain = digest(secret("a", false));
    assert_ne!(plain, digest(secret("b", false)));
    assert_ne!(plain, digest(secret("a", true)));
    let tmpfs = |size| RunMount::Tmpfs { target: "/t".into(), size };
    assert_ne!(digest(tmpfs(None)), digest(tmpfs(Some(keelway_model::Bytes(0)))));
}

fn line(text: &str, empty_layer: bool) -> History {
    History { created_by: Some(text.into()), empty_layer, ..History::default() }
}

/// An image of one layer with a file, and one step that wrote nothing.
fn image(rig: &Rig) -> keelway_model::plan::ImageOutput {
    let one = rig.on(&[], |r| put(r, "f", "F"));
    let two = rig.on(&[&one], |_| ());
    let op = AssembleOp {
        config: Box::new(ImageConfig::scratch("linux/amd64".parse().unwrap())),
        base: None,
        history: vec![line("COPY f /", false), line("ENV a=b", true), line("RUN true", false)],
    };
    assemble(&rig.store, &op, &two, Timestamp(1_700_000_000_123)).unwrap()
}

#[test]
fn images_are_the_same_everywhere() {
    let (one, two) = (Rig::new(), Rig::new());
    let image = image(&one);
    assert_eq!(image.manifest, self::image(&two).manifest, "two stores, one digest");
    let manifest: Manifest =
        serde_json::from_slice(&one.store.read_blob(&image.manifest.digest, 1 << 20).unwrap()).unwrap();
    let config: ImageConfig =
        serde_json::from_slice(&one.store.read_blob(&manifest.config.digest, 1 << 20).unwrap()).unwrap();
    assert_eq!((manifest.layers.len(), config.rootfs.diff_ids.len(), config.history.len()), (2, 2, 3));
    assert_eq!(config.created.as_deref(), Some("2023-11-14T22:13:20Z"));
    assert!(config.history.iter().all(|h| h.created == config.created));
    assert!(
        manifest.layers.iter().all(|l| one.store.has_blob(&l.digest) && l.media_type == media::LAYER_GZIP)
    );
    // Standing on it: its layers are taken over as they are, and its history goes on.
    let op =
        BaseOp { reference: None, manifest: Some(image.manifest.clone()), config: Box::new(config.clone()) };
    let chain = base::unpack(&one.store, &op).unwrap();
    assert_eq!(dump(&one.store, &chain), ["f f 644 0:0 F"]);
    assert_eq!(chain.key, base::chain_key(&config.rootfs.diff_ids));
    let more = one.on(&[&chain], |r| put(r, "g", "G"));
    let assemble_op = AssembleOp {
        config: Box::new(config),
        base: Some(image.manifest),
        history: vec![line("RUN g", false)],
    };
    let second = assemble(&one.store, &assemble_op, &more, Timestamp(0)).unwrap();
    let next: Manifest =
        serde_json::from_slice(&one.store.read_blob(&second.manifest.digest, 1 << 20).unwrap()).unwrap();
    assert_eq!(next.layers[..2], manifest.layers[..]);
    let next: ImageConfig =
        serde_json::from_slice(&one.store.read_blob(&next.config.digest, 1 << 20).unwrap()).unwrap();
    let times: Vec<_> = next.history.iter().map(|h| h.created.as_deref().unwrap()).collect();
    assert_eq!(
        times,
        ["2023-11-14T22:13:20Z"; 3].into_iter().chain(["1970-01-01T00:00:00Z"]).collect::<Vec<_>>()
    );
    let wrong = AssembleOp { history: vec![], ..assemble_op };
    assert!(assemble(&one.store, &wrong, &more, Timestamp(0)).is_err(), "history and layers must agree");
}

/// Runs a plan that needs no process, and gives the keys of its steps and the image.
fn build(rig: &Rig, text: &str, tree: &MemTree, ignore: &str) -> (Vec<CacheKey>, ImageOutput) {
    let file = keelway_dockerfile::parse(&SourceText::new("Dockerfile", text)).unwrap();
    let platform: Platform = "linux/amd64".parse().unwrap();
    let options = BuildOptions::new(platform);
    let plan = Build::new(file, options).unwrap().lower(&Bases::new()).unwrap();
    let ignore = Ignore::parse(ignore.as_bytes()).unwrap();
    let cx = KeyContext { store: &rig.store, context: tree, ignore: &ignore };
    let (mut outputs, mut keys): (Vec<Output>, Vec<CacheKey>) = Default::default();
    for node in &plan.nodes {
        let inputs: Vec<Output> = node.needs.iter().map(|n| outputs[n.index()].clone()).collect();
        let key = key(&node.op, &inputs, &cx).unwrap();
        let below = || copy::chain(&inputs, 0, "test").unwrap();
        let output = match &node.op {
            Op::Base(op) => Output::Chain(base::unpack(&rig.store, op).unwrap()),
            Op::Copy(op) => {
                let upper = copy::run(op, &inputs, &cx).unwrap();
                let below = copy::below(op, &inputs).unwrap();
                Output::Chain(crate::extend(&below, upper, key.as_ref().unwrap()).unwrap())
            }
            Op::Link => Output::Chain(crate::link(below(), copy::chain(&inputs, 1, "test").unwrap())),
            Op::Mkdir(op) => {
                let upper = mkdir::run(op, &inputs, &rig.store).unwrap();
                Output::Chain(crate::extend(below(), upper, key.as_ref().unwrap()).unwrap())
            }
            Op::Assemble(op) => Output::Image(assemble(&rig.store, op, below(), Timestamp(0)).unwrap()),
            op => panic!("{op:?}"),
        };
        keys.extend(key);
        outputs.push(output);
    }
    match outputs.pop() {
        Some(Output::Image(image)) => (keys, image),
        other => panic!("{other:?}"),
    }
}

#[test]
fn whole_builds() {
    let text = "FROM scratch AS gen\nCOPY src /out\nCOPY note /note\nFROM scratch\nWORKDIR /app\nCOPY --from=gen /out ./\nADD <<C /etc/c\nx\nC\nCMD [\"/app/a\"]\n";
    let tree = MemTree::with(&[("src/a", "A"), ("src/d/b", "B"), ("note", "1"), ("skip", "S")]);
    let (rig, other) = (Rig::new(), Rig::new());
    let (keys, image) = build(&rig, text, &tree, "skip");
    let want = [
        "app d 755 0:0",
        "app/a f 644 0:0 A",
        "app/d d 755 0:0",
        "app/d/b f 644 0:0 B",
        "etc d 755 0:0",
        "etc/c f 644 0:0 x",
    ];
    assert_eq!(dump(&rig.store, &image.chain), want);
    let (again, same) = build(&other, text, &tree, "");
    assert_eq!(
        (&again, &same.manifest),
        (&keys, &image.manifest),
        "another store, the same keys and the same digest"
    );
    // What does not reach the image changes a key of the first stage and nothing after it.
    let mut changed = tree.clone();
    changed.file("note", b"2", 0o644);
    let (later, same) = build(&rig, text, &changed, "");
    let differ: Vec<usize> = (0..keys.len()).filter(|&i| keys[i] != later[i]).collect();
    assert_eq!((differ, same.manifest), (vec![1], image.manifest.clone()));
    changed.file("src/a", b"A2", 0o644);
    let (later, edited) = build(&rig, text, &changed, "");
    assert_ne!(edited.manifest, image.manifest);
    let why = later[3].explain(Some(&keys[3].parts)).to_string();
    assert_eq!(why, "files changed", "of the copy from the other stage");
}

#[test]
fn a_link_is_not_made_again_for_what_lies_below_it() {
    let text = "FROM scratch\nCOPY etc /etc/\nCOPY below /\nCOPY --link --chown=bob --chmod=u+x a /app/\nCOPY --link a /n\nCOPY b /app/\n";
    let mut tree =
        MemTree::with(&[("a", "A"), ("b", "B"), ("below", "1"), ("etc/passwd", "bob:x:7:8::/:/\n")]);
    let (rig, other) = (Rig::new(), Rig::new());
    let (keys, image) = build(&rig, text, &tree, "");
    assert_eq!(
        dump(&rig.store, &image.chain),
        [
            "app d 755 7:7",
            "app/a f 744 7:7 A",
            "app/b f 644 0:0 B",
            "below f 644 0:0 1",
            "etc d 755 0:0",
            "etc/passwd f 644 0:0 bob:x:7:8::/:/",
            "n f 644 0:0 A",
        ]
    );
    let (again, same) = build(&other, text, &tree, "");
    assert_eq!((&again, &same.manifest), (&keys, &image.manifest));
    let differ = |tree: &MemTree| {
        let (later, _) = build(&rig, text, tree, "");
        (0..keys.len()).filter(|&i| keys[i] != later[i]).collect::<Vec<_>>()
    };
    tree.file("below", b"2", 0o644);
    assert_eq!(differ(&tree), [1, 4], "itself, and the copy that stands on all of it");
    tree.file("etc/passwd", b"eve:x:9:9::/:/\nbob:x:7:70::/:/\n", 0o644);
    assert_eq!(differ(&tree), [0, 1, 4], "bob has the same number");
    tree.file("etc/passwd", b"bob:x:9:9::/:/\n", 0o644);
    assert_eq!(differ(&tree), [0, 1, 2, 4]);
}

/// Writes an image of `rig` as an OCI layout.
fn layout(rig: &Rig, image: &Descriptor, dir: &Path, tag: &str) {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |d: &Digest| {
        let bytes = rig.store.read_blob(d, 1 << 20).unwrap();
        std::fs::write(blobs.join(d.hex()), &bytes).unwrap();
        bytes
    };
    let manifest: Manifest = serde_json::from_slice(&put(&image.digest)).unwrap();
    put(&manifest.config.digest);
    manifest.layers.iter().for_each(|l| _ = put(&l.digest));
    let mut named = image.clone();
    named.annotations.insert("org.opencontainers.image.ref.name".into(), tag.into());
    let index = Index {
        schema_version: 2,
        media_type: None,
        manifests: vec![named],
        annotations: Default::default(),
        extra: Default::default(),
    };
    std::fs::write(dir.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
}

#[test]
fn layouts_are_imported_when_they_are_sound() {
    let from = Rig::new();
    let image = image(&from);
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    layout(&from, &image.manifest, dir.path(), "v1");
    let name: ImageRef = "local/base:1".parse().unwrap();
    let platform: Platform = "linux/amd64".parse().unwrap();
    let import = |select: Option<&str>, platform: &Platform| {
        let to = Rig::new();
        let result =
            import::oci_layout(&to.store, dir.path(), select, &name, platform).map_err(|e| e.to_string());
        assert_eq!(
            to.store.reference(&name).unwrap(),
            result.clone().ok(),
            "named when sound, and only then"
        );
        result
    };
    assert_eq!(import(None, &platform).unwrap().digest, image.manifest.digest);
    assert_eq!(import(Some("v1"), &platform).unwrap().digest, image.manifest.digest);
    assert_eq!(
        import(Some(&image.manifest.digest.to_string()), &platform).unwrap().digest,
        image.manifest.digest
    );
    assert!(import(Some("v2"), &platform).unwrap_err().contains("holds no image \"v2\""));
    assert!(
        import(None, &"linux/arm64".parse().unwrap()).unwrap_err().contains("the image is for linux/amd64")
    );
    // One changed byte, one missing byte, a link out of the layout.
    let manifest: Manifest =
        serde_json::from_slice(&from.store.read_blob(&image.manifest.digest, 1 << 20).unwrap()).unwrap();
    let blob = dir.path().join("blobs/sha256").join(manifest.layers[0].digest.hex());
    let good = std::fs::read(&blob).unwrap();
    let mut bad = good.clone();
    bad[20] ^= 1;
    for bytes in [&bad[..], &good[..good.len() - 1], &[&good[..], b"x"].concat()] {
        std::fs::write(&blob, bytes).unwrap();
        assert!(import(None, &platform).unwrap_err().contains("does not match its digest"));
    }
    std::fs::remove_file(&blob).unwrap();
    let outside = dir.path().with_extension("outside");
    std::fs::write(&outside, &good).unwrap();
    std::os::unix::fs::symlink(&outside, &blob).unwrap();
    let e = import(None, &platform);
    std::fs::remove_file(&outside).unwrap();
    assert!(e.unwrap_err().contains("cannot read"), "a link in a layout does not lead out");
    std::fs::write(dir.path().join("index.json"), b"{").unwrap();
    assert!(import(None, &platform).unwrap_err().contains("index.json: the manifest is not the JSON of one"));
}

/// Writes a document as a blob of the layout, and gives its descriptor.
fn blob(dir: &Path, kind: &str, document: &serde_json::Value) -> Descriptor {
    let bytes = serde_json::to_vec(document).unwrap();
    let digest = Digest::of(&bytes);
    std::fs::write(dir.join("blobs/sha256").join(digest.hex()), &bytes).unwrap();
    Descriptor::new(kind, digest, bytes.len() as u64)
}

#[test]
fn a_layout_is_held_to_what_a_registry_is_held_to() {
    let (from, to) = (Rig::new(), Rig::new());
    let tree = MemTree::with(&[("a", "A")]);
    let (_, image) = build(&from, "FROM scratch\nCOPY a /a\n", &tree, "");
    let (_, other) = build(&from, "FROM scratch\nCOPY a /b\n", &tree, "");
    let dir = tempfile::tempdir().unwrap();
    layout(&from, &other.manifest, dir.path(), "other");
    layout(&from, &image.manifest, dir.path(), "v1");
    let name: ImageRef = "app:1".parse().unwrap();
    let import = |manifest: &Descriptor| {
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
        std::fs::write(dir.path().join("index.json"), index.to_string()).unwrap();
        import::oci_layout(&to.store, dir.path(), None, &name, &"linux/amd64".parse().unwrap())
    };
    let refused = |manifest: &Descriptor| {
        let error = import(manifest).unwrap_err();
        assert!(error.is_its_fault(), "{error}");
        assert_eq!(to.store.reference(&name).unwrap(), None);
        error.to_string()
    };
    let read = |d: &Descriptor| -> serde_json::Value {
        serde_json::from_slice(&from.store.read_blob(&d.digest, 1 << 20).unwrap()).unwrap()
    };
    let document = read(&image.manifest);
    let with = |key: &str, value: serde_json::Value| {
        let mut changed = document.clone();
        changed[key] = value;
        changed
    };
    let both = blob(dir.path(), media::MANIFEST, &with("manifests", serde_json::json!([])));
    assert!(refused(&both).contains("claims to be an index and an image at once"));
    let typed = blob(dir.path(), media::MANIFEST, &with("mediaType", media::DOCKER_MANIFEST.into()));
    assert!(refused(&typed).contains("calls itself"));
    let mut foreign = document.clone();
    foreign["layers"][0]["urls"] = serde_json::json!(["https://x.example/layer"]);
    assert!(refused(&blob(dir.path(), media::MANIFEST, &foreign)).contains("kept elsewhere"));
    // Another layer's diff id: found out when it is unpacked, and also where that layer is known already.
    let config: Descriptor = serde_json::from_value(document["config"].clone()).unwrap();
    let mut lying = read(&config);
    let other_manifest: Manifest = serde_json::from_value(read(&other.manifest)).unwrap();
    lying["rootfs"]["diff_ids"] = read(&other_manifest.config)["rootfs"]["diff_ids"].clone();
    let lying = blob(dir.path(), media::CONFIG, &lying);
    let lying = blob(dir.path(), media::MANIFEST, &with("config", serde_json::to_value(lying).unwrap()));
    assert!(refused(&lying).contains("but the image says"));
    to.store
        .unpack(&image_layer(&to, &other_manifest, dir.path()), &diff_id(&read(&other_manifest.config)))
        .unwrap();
    assert!(refused(&lying).contains("but the image says"));
    // The blob is in the store by now; its descriptor must still say what it is.
    let plain = Descriptor::new(&image.manifest.media_type, image.manifest.digest, image.manifest.size);
    assert!(refused(&Descriptor { size: plain.size + 1, ..plain.clone() }).contains("does not match"));
    import(&plain).unwrap();
    let error = import(&Descriptor { size: plain.size + 1, ..plain.clone() }).unwrap_err().to_string();
    assert!(error.contains("its descriptor says"), "{error}");
    assert_eq!(import(&plain).unwrap(), plain, "again");
}

/// Takes the layer of an image in a layout into the store.
fn image_layer(rig: &Rig, manifest: &Manifest, dir: &Path) -> Descriptor {
    let layer = manifest.layers[0].clone();
    let bytes = std::fs::read(dir.join("blobs/sha256").join(layer.digest.hex())).unwrap();
    assert_eq!(rig.store.put_blob(&bytes).unwrap(), layer.digest);
    layer
}

fn diff_id(config: &serde_json::Value) -> Digest {
    serde_json::from_value(config["rootfs"]["diff_ids"][0].clone()).unwrap()
}

#[test]
fn names_that_no_layer_can_hold_are_the_builds_fault() {
    let rig = Rig::new();
    let marker = rig.on(&[], |r| put(r, ".wh..wh..opq", ""));
    let error = crate::prepare_layer(&rig.store, marker.snapshots.last().unwrap()).unwrap_err();
    assert_eq!(error.blame(), crate::Blame::Build, "{error}");
    let tree = MemTree::with(&[("d/x", "")]);
    let mut long = tree.clone();
    long.file(&format!("d/{}", "n".repeat(300)), b"", 0o644);
    let ignore = Ignore::default();
    for (tree, dest) in [(&long, "/d/"), (&tree, &*format!("/{}/", "n".repeat(300)))] {
        let cx = KeyContext { store: &rig.store, context: tree, ignore: &ignore };
        let op = crate::testing::copy_op(&["d"], dest);
        let error = copy::run(&op, &[out(&rig.empty())], &cx).err().expect("no file has such a name");
        assert_eq!(error.blame(), crate::Blame::Build, "{error}");
    }
}
