//! `ADD` of archives as the tools of this machine write them: every compression, and sparse files.

use super::*;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs a tool on bytes.
fn through(tool: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(tool[0])
        .args(&tool[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{tool:?} cannot be run: {e}"));
    let mut stdin = child.stdin.take().unwrap();
    let bytes = input.to_vec();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &bytes));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "{tool:?}");
    output.stdout
}

fn two_files() -> Vec<u8> {
    tar(|b| {
        entry(b, "a", ::tar::EntryType::Regular, "", b"A");
        // Letters that do not compress to one block.
        let mut state = 1u64;
        let mut letter = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            b'a' + (state >> 33) as u8 % 16
        };
        entry(b, "b", ::tar::EntryType::Regular, "", &(0..1_500_000).map(&mut letter).collect::<Vec<_>>());
    })
}

const TOOLS: [&[&str]; 7] = [
    &["gzip", "-c"],
    &["bzip2", "-c"],
    &["xz", "-c"],
    &["xz", "-9e", "--check=sha256", "-c"],
    &["xz", "--block-size=65536", "-c"],
    &["zstd", "-c", "-q"],
    &["zstd", "-19", "--no-check", "-c", "-q"],
];

#[test]
fn every_compression_of_the_reference() {
    let rig = Rig::new();
    let plain = two_files();
    let want = add(&rig, &rig.empty(), &plain, "/d").unwrap();
    assert_eq!(want.len(), 3);
    for tool in TOOLS {
        let packed = through(tool, &plain);
        assert!(add(&rig, &rig.empty(), &packed, "/d").unwrap() == want, "{tool:?}");
        // Files of two streams, as parallel compressors write them.
        let (head, tail) = plain.split_at(plain.len() / 2);
        let twice = [through(tool, head), through(tool, tail)].concat();
        assert!(add(&rig, &rig.empty(), &twice, "/d").unwrap() == want, "two streams of {tool:?}");
        // Cut off after the first header: an error, and no half of it. (The decoder of zstd keeps a window back, so a
        // file this short that is damaged shows no header, and is a file.)
        if tool[0] != "zstd" {
            let error = add(&rig, &rig.empty(), &packed[..packed.len() - 20], "/d");
            let names = |e: &str| e.contains("a.tar") || e.contains("the archive");
            assert!(error.as_ref().is_err_and(|e| names(e)), "{tool:?}: {error:?}");
        }
    }
    let skippable = [&b"\x50\x2a\x4d\x18\x03\0\0\0abc"[..], &through(TOOLS[5], &plain)].concat();
    assert!(add(&rig, &rig.empty(), &skippable, "/d").unwrap() == want, "a zstd file with a note in front");
}

#[test]
fn what_is_compressed_and_no_tar_is_a_file() {
    let rig = Rig::new();
    for tool in TOOLS {
        let packed = through(tool, b"no tar\n");
        let mut tree = MemTree::default();
        tree.file("x", &packed, 0o644);
        let op = CopyOp { unpack: Unpack::Archives, ..copy_op(&["x"], "/d/") };
        let chain = after(&rig, &op, &[&rig.empty()], &tree, "").unwrap();
        let view = rig.store.view(&chain.snapshots).unwrap();
        let entry = view.entry(&TreePath::from("d/x")).unwrap().unwrap();
        assert_eq!(entry.kind, TreeKind::File { size: packed.len() as u64 }, "{tool:?}");
    }
    for damaged in
        [&b"BZh91AY&SY"[..], b"\xfd7zXZ\0....", b"\x28\xb5\x2f\xfd....", b"\x50\x2a\x4d\x18\xff\xff\xff\xff"]
    {
        let mut tree = MemTree::default();
        tree.file("x", damaged, 0o644);
        let op = CopyOp { unpack: Unpack::Archives, ..copy_op(&["x"], "/d/") };
        assert!(after(&rig, &op, &[&rig.empty()], &tree, "").is_ok(), "{damaged:?}");
    }
}

#[test]
fn decoders_take_no_more_memory_than_they_are_given() {
    let rig = Rig::new();
    let plain = two_files();
    let big = through(&["xz", "--lzma2=dict=1GiB", "-c"], &plain);
    let e = add(&rig, &rig.empty(), &big, "/d").unwrap_err();
    assert!(e.contains("ADD cannot unpack a.tar"), "{e}");
    // Frame headers that ask for windows of 1 GiB and 3.75 TiB.
    for window in [0xa0, 0xff] {
        let bytes = [&b"\x28\xb5\x2f\xfd\0"[..], &[window, 1, 0, 0, 0, 0]].concat();
        let e = add(&rig, &rig.empty(), &bytes, "/d").unwrap_err();
        assert!(e.contains("ADD cannot unpack a.tar"), "{e}");
    }
}

#[test]
fn bombs_of_any_compression_are_refused() {
    let rig = Rig::new();
    let mut h = ::tar::Header::new_gnu();
    h.set_path("bomb").unwrap();
    h.set_size(200 << 20);
    h.set_mode(0o644);
    h.set_uid(0);
    h.set_gid(0);
    h.set_cksum();
    let mut bytes = h.as_bytes().to_vec();
    bytes.resize(bytes.len() + (200 << 20), 0);
    for (tool, codec) in [
        (&["bzip2", "-c"][..], codec::Codec::Bzip2),
        (&["xz", "-1", "-c"], codec::Codec::Xz),
        (&["zstd", "-c", "-q"], codec::Codec::Zstd),
    ] {
        let packed = through(tool, &bytes);
        let limits = keelway_store::UnpackLimits { ratio: 10, ..Default::default() };
        let upper = rig.store.begin().unwrap();
        let mut writer = Writer::new(upper.root().unwrap(), rig.store.view(&[]).unwrap(), None);
        let from = Box::new(std::io::Cursor::new(packed));
        let (root, at) = (TreePath::root(), TreePath::from("a"));
        let e = archive::unpack_with(codec, from, &mut writer, &root, None, &at, limits).unwrap_err();
        assert!(e.to_string().contains("more than is allowed"), "{tool:?}: {e}");
    }
}

/// Files with holes at every place, written by GNU tar in all its forms.
#[test]
fn sparse_files_keep_their_holes() {
    let dir = tempfile::Builder::new().prefix("keelway-sparse-").tempdir_in("/dev/shm").unwrap();
    let make = |name: &str, size: u64, at: &[u64]| {
        let file = std::fs::File::create(dir.path().join(name)).unwrap();
        for (n, offset) in at.iter().enumerate() {
            file.write_all_at(&[b'a' + (n % 26) as u8; 4096], *offset).unwrap();
        }
        file.set_len(size).unwrap();
    };
    make("middle", 3 << 20, &[1 << 20]);
    make("ends", (2 << 20) + 4096, &[0, 2 << 20]);
    make("empty", 5 << 20, &[]);
    make("odd", (1 << 20) + 77, &[4096]);
    // More pieces than a header of the old form holds, and than one block behind it.
    make("many", 8 << 20, &(0..100).map(|n| n * 65_536).collect::<Vec<_>>());
    std::fs::write(dir.path().join("plain"), "P").unwrap();
    let names = ["empty", "ends", "many", "middle", "odd", "plain"];
    for form in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let mut pack = Command::new("tar");
        pack.args(["-c", "--sparse", "--owner=0", "--group=0"]).args(form).arg("-C").arg(dir.path());
        let out = pack.args(names).output().unwrap();
        assert!(out.status.success(), "{form:?}: {}", String::from_utf8_lossy(&out.stderr));
        assert!(out.stdout.len() < 1 << 20, "{form:?}: tar left the holes out: {}", out.stdout.len());
        let rig = Rig::new();
        let mut tree = MemTree::default();
        tree.file("a.tar", &through(&["xz", "-c"], &out.stdout), 0o644);
        let op = CopyOp { unpack: Unpack::Archives, ..copy_op(&["a.tar"], "/") };
        let chain = after(&rig, &op, &[&rig.empty()], &tree, "").unwrap();
        let made = rig.store.snapshot_dir(&chain.snapshots[0]);
        for name in names {
            let (was, is) = (dir.path().join(name), made.join(name));
            assert!(std::fs::read(&was).unwrap() == std::fs::read(&is).unwrap(), "{form:?}: {name}");
            let blocks = |p: &Path| p.metadata().unwrap().blocks();
            assert!(blocks(&is) <= blocks(&was) + 8, "{form:?}: {name} has {} blocks", blocks(&is));
        }
    }
}

#[test]
fn hostile_sparse_maps_are_refused() {
    let rig = Rig::new();
    let pax = |records: &[(&str, &str)], content: &[u8]| {
        tar(|b| {
            b.append_pax_extensions(records.iter().map(|(k, v)| (*k, v.as_bytes()))).unwrap();
            entry(b, "f", ::tar::EntryType::Regular, "", content);
        })
    };
    let map = |size: &str, map: &str, content: &[u8]| {
        pax(&[("GNU.sparse.size", size), ("GNU.sparse.map", map)], content)
    };
    let one = |text: &str| {
        let mut content = text.as_bytes().to_vec();
        content.resize(512, 0);
        content.extend_from_slice(b"data");
        pax(&[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "100")], &content)
    };
    assert!(add(&rig, &rig.empty(), &map("10", "0,1,4,2,10,0", b"xyz"), "/").is_ok());
    assert!(add(&rig, &rig.empty(), &one("1\n8\n4\n"), "/").is_ok());
    let huge = "9000000000000000000";
    for (bytes, what) in [
        (map("10", "4,2,0,1", b"xyz"), "out of order"),
        (map("10", "0,2,1,1", b"xyz"), "out of order"),
        (map("10", "8,3", b"xyz"), "beyond its file"),
        (map("10", "18446744073709551615,3", b"xyz"), "beyond its file"),
        (map("10", "0,1", b"xyz"), "for 3 that are stored"),
        (map("10", "0,1,2", b"xyz"), "not of pairs"),
        (map("10", "0,-1", b"xyz"), "is none"),
        (map("99999999999999999999", "0,3", b"xyz"), "is none"),
        (map("18446744073709551615", "0,3", b"xyz"), "bytes"),
        (map(huge, "0,3", b"xyz"), "sparse files have more than"),
        (pax(&[("GNU.sparse.map", "0,3")], b"xyz"), "without its size"),
        (pax(&[("GNU.sparse.size", "9"), ("GNU.sparse.numbytes", "3")], b"xyz"), "a length too many"),
        (pax(&[("GNU.sparse.size", "9"), ("GNU.sparse.offset", "3")], b""), "too few or too many"),
        (pax(&[("GNU.sparse.size", "9"), ("GNU.sparse.numblocks", "3")], b""), "too few or too many"),
        (pax(&[("GNU.sparse.major", "2"), ("GNU.sparse.size", "9")], b""), "unknown version"),
        (pax(&[("GNU.sparse.other", "2")], b""), "unknown record"),
        (one("1\n8\n"), "too long"),
        (one("1\n8\nx\n"), "is none"),
        (one("1000001\n"), "more pieces than are read"),
        (one(&"1".repeat(40)), "too long"),
        (one("1\n98\n4\n"), "beyond its file"),
        (tar(|b| entry(b, "x", ::tar::EntryType::GNUSparse, "", b"data")), "for 4 that are stored"),
    ] {
        let e = add(&rig, &rig.empty(), &bytes, "/").unwrap_err();
        assert!(e.contains(what), "{what}: {e}");
    }
}
