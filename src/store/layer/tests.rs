//! Layers written, read back, and read by others' tools; hostile archives refused.

use super::*;
use crate::tests::{Contents, contents, files, names, rig, snapshot, tar_of, write};
use keelway_disk::NodeKind;
use proptest::prelude::*;
use std::io::Write as _;
use std::path::Path;

mod hostile;

/// Takes a layer into a second store and unpacks it there.
fn carried(from: &Store, layer: &Layer, to: &Store) -> SnapshotId {
    let bytes = from.read_blob(&layer.descriptor.digest, u64::MAX).unwrap();
    to.put_blob(&bytes).unwrap();
    to.unpack(&layer.descriptor, &layer.diff_id).unwrap()
}

/// Every kind of entry that a layer can say.
fn rich(r: &Root) {
    let long = "long/".repeat(60) + "name-of-a-file-that-is-long-too-so-that-it-needs-a-record-of-its-own";
    write(r, &long, b"long");
    write(r, "a/file", b"text");
    r.hard_link(b"a/file", b"a/twin").unwrap();
    r.hard_link(b"a/file", b"zz-twin").unwrap();
    r.create_file(b"a/\xff\xfe\n'", 0o4755).unwrap().write_all(&[7; 1000]).unwrap();
    write(r, "a/\u{fc}n\u{ef}", b"utf-8");
    r.symlink(b"../../etc/passwd", b"a/link").unwrap();
    r.symlink(&[b'x'; 300], b"a/long-link").unwrap();
    r.symlink(b"\xff", b"a/odd-link").unwrap();
    r.mknod(b"fifo", NodeKind::Fifo, 0o640).unwrap();
    r.mkdir(b"empty", 0o1777).unwrap();
    write(r, "owned", b"");
    r.set_owner(b"owned", 3_000_000_000, 2_097_152).unwrap();
    r.set_mode(b"owned", 0o6711).unwrap();
    r.set_xattr(b"a/file", b"user.note", b"bytes \0\xff=\n").unwrap();
    r.set_xattr(b"a/twin", b"security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0")
        .unwrap();
    r.mknod(b"a/gone", NodeKind::Device { character: true, major: 0, minor: 0 }, 0).unwrap();
    r.mkdir(b"hides", 0o700).unwrap();
    r.set_xattr(b"hides", b"trusted.overlay.opaque", b"y").unwrap();
    write(r, "hides/x", b"x");
    r.set_mode(b"", 0o711).unwrap();
}

fn below(r: &Root) {
    write(r, "a/gone", b"below");
    write(r, "hides/below", b"below");
}

#[test]
fn written_and_read_back_it_is_the_same() {
    let (_a, one) = rig();
    let (_b, two) = rig();
    let rich_one = snapshot(&one, rich);
    let gzip = one.layer_of(&rich_one, Compression::Gzip).unwrap();
    let plain = one.layer_of(&rich_one, Compression::None).unwrap();
    assert_eq!(gzip.diff_id, plain.diff_id);
    assert_eq!(plain.diff_id, plain.descriptor.digest);
    assert_eq!(one.layer_of(&rich_one, Compression::Gzip).unwrap(), gzip);
    let back = carried(&one, &gzip, &two);
    let chain = |store: &Store, top: &SnapshotId| {
        let low = snapshot(store, below);
        contents(&store.view(&[low, top.clone()]).unwrap())
    };
    let view = chain(&one, &rich_one);
    assert_eq!(view, chain(&two, &back));
    assert!(!view.contains_key(&b"a/gone"[..]) && !view.contains_key(&b"hides/below"[..]));
    assert_eq!(two.view(std::slice::from_ref(&back)).unwrap().entry_mode(), 0o711);
    // Made again from the same entries in another order, by another store: the same bytes.
    let again = snapshot(&two, rich);
    assert_eq!(tar_of(&one, &rich_one), tar_of(&two, &again));
    assert_eq!(two.layer_of(&again, Compression::Gzip).unwrap(), gzip);
    // The other form of what was pulled, with the same tar inside.
    assert_eq!(two.layer_of(&back, Compression::None).unwrap(), plain);
    assert_eq!(two.unpack(&gzip.descriptor, &gzip.diff_id).unwrap(), back);
}

trait RootMode {
    fn entry_mode(&self) -> u32;
}
impl RootMode for crate::View {
    fn entry_mode(&self) -> u32 {
        use keelway_model::{Tree, TreePath};
        self.entry(&TreePath::root()).unwrap().unwrap().mode
    }
}

fn run(program: &str, args: &[&str]) -> std::process::Output {
    let out = std::process::Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
    out
}

#[test]
fn other_tools_read_it() {
    let (dir, store) = rig();
    let id = snapshot(&store, |r| {
        rich(r);
        write(r, "big", &b"0123456789abcdef".repeat(200_000));
    });
    let layer = store.layer_of(&id, Compression::Gzip).unwrap();
    let blob = store.blob_path(&layer.descriptor.digest);
    let blob = blob.to_str().unwrap();
    let gz = dir.path().join("layer.tar.gz");
    std::fs::copy(blob, &gz).unwrap();
    run("gzip", &["-t", gz.to_str().unwrap()]);
    let listed = run("tar", &["--quoting-style=escape", "-tzvf", gz.to_str().unwrap()]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    for want in [
        "a/.wh.gone",
        "hides/.wh..wh..opq",
        "a/twin link to a/file",
        "3000000000/2097152",
        "a/\\377\\376\\n'",
        "1980-01-0",
    ] {
        assert!(listed.contains(want), "{want} in:\n{listed}");
    }
    let into = dir.path().join("gnu");
    std::fs::create_dir(&into).unwrap();
    let into_text = into.to_str().unwrap();
    run("tar", &["--xattrs", "--xattrs-include=*", "-xpzf", gz.to_str().unwrap(), "-C", into_text]);
    assert_eq!(std::fs::read(into.join("big")).unwrap().len(), 3_200_000);
    let by_gnu = Root::open(&into).unwrap();
    let ours = Root::open(&store.snapshot_dir(&id)).unwrap();
    for path in [&b"a/file"[..], b"a/\xff\xfe\n'", b"owned", b"empty", b"a/long-link", b"fifo"] {
        let (a, b) = (by_gnu.stat(path).unwrap().unwrap(), ours.stat(path).unwrap().unwrap());
        assert_eq!((a.kind, a.mode, a.uid, a.gid, a.mtime), (b.kind, b.mode, b.uid, b.gid, b.mtime));
        assert_eq!(by_gnu.xattrs(path).unwrap(), ours.xattrs(path).unwrap());
    }
    let python = "import sys, tarfile, os\n\
        t = tarfile.open(sys.argv[1])\n\
        for m in t: sys.stdout.buffer.write(os.fsencode(m.name) + b'\\0')\n";
    let names_by_python = run("python3", &["-c", python, gz.to_str().unwrap()]).stdout;
    let mut paths = Vec::new();
    crate::walk::walk(&ours, &mut |v| {
        paths.push(v.path.to_vec());
        Ok(())
    })
    .unwrap();
    let found: Vec<&[u8]> = names_by_python.split(|&b| b == 0).collect();
    for path in paths.iter().filter(|p| *p != b"a/gone") {
        assert!(found.contains(&&path[..]), "{}", String::from_utf8_lossy(path));
    }
}

#[test]
fn names_that_a_layer_cannot_say_are_refused() {
    let (_dir, store) = rig();
    let id = snapshot(&store, |r| write(r, "d/.wh.x", b""));
    let error = store.layer_of(&id, Compression::None).unwrap_err().to_string();
    assert!(error.contains("d/.wh.x") && error.contains("rename it"), "{error}");
    let before = files(&store.path().join("blobs"));
    assert!(before.iter().all(|p| p.components().count() < 3), "no blob is left");
}

/// A small tree: paths of one or two parts from few names, so that they meet.
fn trees() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>, u32, u8)>> {
    let name = prop_oneof![
        prop::collection::vec(any::<u8>().prop_filter("a name", |b| *b != b'/' && *b != 0), 1..120),
        prop::sample::select(vec![b"a".to_vec(), b"b".to_vec(), b"\xc3\xbc".to_vec()]),
    ]
    .prop_filter("a name", |n| n != b"." && n != b".." && !n.starts_with(b".wh."));
    let path = prop::collection::vec(name, 1..4).prop_map(|p| p.join(&b'/'));
    prop::collection::vec((path, prop::collection::vec(any::<u8>(), 0..2000), 0u32..0o10000, 0u8..6), 0..12)
}

fn build(store: &Store, tree: &[(Vec<u8>, Vec<u8>, u32, u8)]) -> SnapshotId {
    snapshot(store, |r| {
        for (path, bytes, mode, kind) in tree {
            let parent = path.iter().rposition(|&b| b == b'/').map_or(&b""[..], |i| &path[..i]);
            if r.mkdir_all(parent, 0o755).is_err() {
                continue;
            }
            // A name that is taken stays what it is.
            let _ = match kind {
                0 => r.mkdir(path, *mode),
                1 if !bytes.is_empty() && !bytes.contains(&0) => r.symlink(bytes, path),
                2 => r.mknod(path, NodeKind::Fifo, *mode),
                3 => r.mknod(path, NodeKind::Device { character: true, major: 0, minor: 0 }, 0),
                4 => r.hard_link(&tree[0].0, path),
                _ => r.create_file(path, *mode).and_then(|mut f| {
                    f.write_all(bytes)?;
                    r.set_owner(path, mode << 18, u32::from(*kind))
                }),
            };
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_tree_survives_the_way_through_a_layer(tree in trees()) {
        let (_a, one) = rig();
        let (_b, two) = rig();
        let id = build(&one, &tree);
        let layer = one.layer_of(&id, Compression::Gzip).unwrap();
        let before: Contents = contents(&one.view(std::slice::from_ref(&id)).unwrap());
        let back = carried(&one, &layer, &two);
        let after = contents(&two.view(std::slice::from_ref(&back)).unwrap());
        prop_assert_eq!(before, after);
        let reversed: Vec<_> = files(&two.snapshot_dir(&back)).into_iter().rev().collect();
        let again = build(&two, &tree);
        prop_assert_eq!(two.layer_of(&again, Compression::None).unwrap().diff_id, layer.diff_id);
        prop_assert_eq!(reversed.len(), files(&two.snapshot_dir(&again)).len());
    }
}

#[test]
fn the_bytes_do_not_depend_on_chance() {
    let (_dir, store) = rig();
    let text: Vec<u8> = (0..5_000_000u32).flat_map(|n| [(n % 251) as u8, (n >> 9) as u8]).collect();
    let made: Vec<Layer> = (0..4)
        .map(|_| store.layer_of(&snapshot(&store, |r| write(r, "f", &text)), Compression::Gzip).unwrap())
        .collect();
    assert!(made.iter().all(|l| *l == made[0]));
    assert_eq!(names(&contents(&store.view(&[]).unwrap())).len(), 0);
    assert!(Path::new(&store.blob_path(&made[0].descriptor.digest)).exists());
}
