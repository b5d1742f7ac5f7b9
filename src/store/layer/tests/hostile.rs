//! Archives made to do harm (cases T01 to T12): refused, with nothing left, or harmless.

use super::super::header::Header;
use super::*;
use crate::LAYER_TIME;
use crate::tests::temp;
use keelway_model::oci::media;

/// A tar in the making.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn add(mut self, kind: u8, path: &str, link: &str, content: &[u8]) -> Self {
        let header = Header {
            path: path.as_bytes(),
            kind,
            mode: 0o4755,
            uid: 0,
            gid: 0,
            size: content.len() as u64,
            mtime: 1_700_000_000,
            link: link.as_bytes(),
            device: (1, 3),
            xattrs: &[
                (b"trusted.overlay.opaque".to_vec(), b"y".to_vec()),
                (b"trusted.evil".to_vec(), b"y".to_vec()),
                (b"user.overlay.opaque".to_vec(), b"y".to_vec()),
            ],
        };
        match kind {
            b'0' | b'5' => header.write(&mut self.0),
            _ => Header { xattrs: &[], ..header }.write(&mut self.0),
        }
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }
    fn file(self, path: &str) -> Self {
        self.add(b'0', path, "", b"evil")
    }
    fn raw(mut self, change: impl FnOnce(&mut [u8])) -> Self {
        let mut block = Vec::new();
        Header {
            path: b"f",
            kind: b'0',
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: 0,
            link: b"",
            device: (0, 0),
            xattrs: &[],
        }
        .write(&mut block);
        change(&mut block);
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.extend_from_slice(&block);
        self
    }
    fn pax(mut self, kind: u8, records: &[u8]) -> Self {
        let size = records.len();
        self = self.raw(|b| {
            b[156] = kind;
            b[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        });
        self.0.extend_from_slice(records);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }
    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

fn unpacked(tar: &[u8], limits: &UnpackLimits) -> Result<Vec<String>, UnpackError> {
    let (dir, store) = rig();
    std::fs::write(dir.path().join("sentinel"), "safe").unwrap();
    let digest = store.put_blob(tar).unwrap();
    let before = files(store.path());
    let done = store.unpack_with(&Descriptor::new(media::LAYER, digest, tar.len() as u64), &digest, limits);
    assert_eq!(std::fs::read(dir.path().join("sentinel")).unwrap(), b"safe");
    if done.is_err() {
        store.empty_trash(Duration::from_secs(60)).unwrap();
        assert_eq!(files(store.path()), before, "something is left");
    }
    assert_eq!(files(dir.path()).iter().filter(|p| p.components().count() == 1).count(), 2);
    let id = done?;
    // Only in the root, and none of the attributes that were asked for.
    let root = Root::open(&store.snapshot_dir(&id)).unwrap();
    crate::walk::walk(&root, &mut |v| {
        assert!(!v.name.starts_with(b".wh."));
        for (name, value) in v.dir.xattrs(v.name)? {
            assert_eq!((&name[..], &value[..]), (&b"trusted.overlay.opaque"[..], &b"y"[..]));
        }
        Ok(())
    })
    .unwrap();
    Ok(names(&contents(&store.view(&[id]).unwrap())))
}

fn refused(tar: Tar, why: &str) {
    let error = unpacked(&tar.end(), &UnpackLimits::default()).unwrap_err().to_string();
    assert!(error.contains(why), "{error}\nshould say: {why}");
}

fn taken(tar: Tar, want: &[&str]) {
    assert_eq!(unpacked(&tar.end(), &UnpackLimits::default()).unwrap(), want);
}

#[test]
fn t01_names_that_climb() {
    for bad in ["../x", "a/../../x", "./../x", "a/.."] {
        refused(Tar::default().file(bad), "'..' in a name");
    }
    taken(Tar::default().file("/abs").file("//b//c"), &["abs", "b", "b/c"]);
    refused(Tar::default().file(&"long/".repeat(1000)), "4095 bytes");
    refused(Tar::default().file(&"x".repeat(300)), "refused");
    refused(Tar::default().pax(b'x', b"13 path=a\0bc\n").file("x"), "NUL");
    refused(Tar::default().file("/"), "the root is a directory");
}

#[test]
fn t02_links_as_parents_stay_inside() {
    let t = Tar::default().add(b'2', "up", "../../../..", b"").file("up/in-root");
    taken(t, &["in-root", "up"]);
    let t = Tar::default().add(b'2', "e", "/etc", b"").file("e/x");
    refused(t, "refused");
    let t = Tar::default().add(b'5', "d", "", b"").file("d/a").add(b'2', "d", "/", b"").file("d/b");
    taken(t, &["b", "d"]);
    let t = Tar::default().add(b'2', "l", "../sentinel", b"").file("l");
    taken(t, &["l"]);
    refused(Tar::default().add(b'2', "l", "l", b"").file("l/x"), "refused");
}

#[test]
fn t03_hard_links_out() {
    refused(Tar::default().add(b'1', "h", "../../etc/shadow", b""), "'..'");
    refused(Tar::default().add(b'1', "h", "/etc/passwd", b""), "not in the layer");
    refused(Tar::default().add(b'5', "d", "", b"").add(b'1', "h", "d", b""), "a directory");
    let t = Tar::default().add(b'2', "out", "/etc", b"").add(b'1', "h", "out/passwd", b"");
    refused(t, "not in the layer");
    taken(Tar::default().file("f").add(b'1', "f", "f", b"").add(b'1', "g", "/f", b""), &["f", "g"]);
}

#[test]
fn t05_what_readers_differ_on() {
    // PAX wins over the header: the second member is inside the first's content, and not seen.
    let hidden = Tar::default().file("hidden");
    let t = Tar::default().pax(b'x', b"13 size=1024\n").raw(|_| {});
    taken(Tar([t.0, hidden.0[..1024].to_vec()].concat()), &["f"]);
    refused(Tar::default().pax(b'x', b"12 path=abc").file("x"), "malformed PAX");
    refused(Tar::default().pax(b'x', b"99 path=abc\n").file("x"), "malformed PAX");
    refused(Tar::default().pax(b'g', b"12 path=abc\n").file("x"), "global PAX");
    taken(Tar::default().pax(b'g', b"13 comment=x\n").file("x"), &["x"]);
    refused(Tar::default().pax(b'x', b"12 path=abc\n").pax(b'L', b"long").file("x"), "two ways");
    refused(Tar::default().pax(b'x', b"12 path=abc\n"), "after an extended header");
    refused(Tar::default().add(b'5', "d", "", b"content"), "content on an entry");
    refused(Tar::default().add(b'S', "d", "", b""), "sparse");
    refused(Tar::default().add(b'Z', "d", "", b""), "unknown type");
    refused(Tar(b"x".repeat(512)), "not a sound tar");
    let mut flipped = Tar::default().file("a");
    flipped.0[100] ^= 1;
    refused(flipped, "checksum");
    let mut trailing = Tar::default().file("a").end();
    trailing.extend_from_slice(&Tar::default().file("b").0);
    let error = unpacked(&trailing, &UnpackLimits::default()).unwrap_err();
    assert!(error.to_string().contains("after the end"), "{error}");
}

#[test]
fn t06_whiteouts() {
    let wh = |names: &[&str]| names.iter().fold(Tar::default(), |t, n| t.add(b'0', n, "", b""));
    for bad in ["a/.wh..", "a/.wh.", "a/.wh...", ".wh.x/y"] {
        refused(wh(&[bad]), "deletion");
    }
    refused(wh(&[".wh..wh..opq"]), "flatten");
    taken(wh(&["a/.wh.x", "a/.wh..wh.plnk", "b/.wh..wh..opq"]), &["a", "b"]);
    // A name both deleted and made, in either order: it is there.
    taken(wh(&[".wh.x", "x", "y", ".wh.y"]), &["x", "y"]);
    let t = Tar::default().add(b'0', ".wh.d", "", b"").file("d/f");
    taken(t, &["d", "d/f"]);
    let t = Tar::default().add(b'2', "l", "/etc", b"").add(b'0', "l/.wh.passwd", "", b"");
    refused(t, "refused");
}

#[test]
fn t07_devices_are_left_out_and_set_id_is_kept() {
    taken(
        Tar::default().add(b'3', "null", "", b"").add(b'4', "sda", "", b"").add(b'6', "p", "", b""),
        &["p"],
    );
    let (_dir, store) = rig();
    let tar = Tar::default().file("su").end();
    let digest = store.put_blob(&tar).unwrap();
    let id = store.unpack(&Descriptor::new(media::LAYER, digest, tar.len() as u64), &digest).unwrap();
    let stat = Root::open(&store.snapshot_dir(&id)).unwrap().stat(b"su").unwrap().unwrap();
    assert_eq!((stat.mode, stat.mtime), (0o4755, 1_700_000_000));
    let dir = Root::open(&store.snapshot_dir(&id)).unwrap().stat(b"").unwrap().unwrap();
    assert_eq!(dir.mtime, LAYER_TIME.seconds());
}

#[test]
fn t09_t11_numbers() {
    let field = |at: usize, bytes: &'static [u8]| {
        Tar::default().raw(move |b| b[at..at + bytes.len()].copy_from_slice(bytes))
    };
    refused(field(124, &[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), "bytes");
    refused(field(124, &[0xff; 12]), "negative");
    refused(field(124, b"00000000009"), "octal");
    refused(field(108, &[0x80, 0, 0, 1, 0, 0, 0, 0]), "owner number");
    refused(field(116, &[0xff; 8]), "negative");
    refused(Tar::default().pax(b'x', b"18 uid=4294967295\n").file("x"), "owner number");
    refused(Tar::default().pax(b'x', b"10 uid=-1\n").file("x"), "no number");
    refused(Tar::default().pax(b'x', b"22 GNU.sparse.major=1\n").file("x"), "sparse");
    // 2^63 and before the epoch: clamped, on every file system.
    let late = Tar::default().pax(b'x', b"29 mtime=9223372036854775807\n").file("x");
    taken(late.pax(b'x', b"15 mtime=-1.50\n").file("y"), &["x", "y"]);
}

#[test]
fn t10_bombs_and_torn_streams() {
    let (_dir, store) = rig();
    let limits = UnpackLimits { bytes: Bytes(1 << 20), entries: 10, ..UnpackLimits::default() };
    let many = (0..11).fold(Tar::default(), |t, n| t.file(&format!("{n}"))).end();
    assert!(matches!(unpacked(&many, &limits), Err(UnpackError::Limit { .. })));
    let deep = Tar::default().file(&"d/".repeat(20)).end();
    assert!(matches!(unpacked(&deep, &limits), Err(UnpackError::Limit { .. })));
    let big = Tar::default().add(b'0', "big", "", &vec![0; 2 << 20]).end();
    assert!(matches!(unpacked(&big, &limits), Err(UnpackError::Limit { .. })));
    // 400 MiB of zeros in 400 KiB: the ratio stops it.
    let id = snapshot(&store, |r| r.create_file(b"zeros", 0o644).unwrap().set_len(400 << 20).unwrap());
    let layer = store.layer_of(&id, Compression::Gzip).unwrap();
    let (_dir, other) = rig();
    let bytes = store.read_blob(&layer.descriptor.digest, u64::MAX).unwrap();
    other.put_blob(&bytes).unwrap();
    let strict = UnpackLimits { ratio: 500, ratio_free: Bytes(256 << 20), ..UnpackLimits::default() };
    let error = other.unpack_with(&layer.descriptor, &layer.diff_id, &strict).unwrap_err();
    assert!(matches!(error, UnpackError::Limit { .. }), "{error}");
    // Cut, with garbage behind, and not what the image says.
    let small = store.layer_of(&snapshot(&store, |r| write(r, "f", &[1; 5000])), Compression::Gzip).unwrap();
    let good = store.read_blob(&small.descriptor.digest, u64::MAX).unwrap();
    for bad in [&good[..good.len() - 9], &[&good[..], b"garbage"].concat(), b"", b"plain"] {
        let digest = other.put_blob(bad).unwrap();
        let descriptor = Descriptor::new(media::LAYER_GZIP, digest, bad.len() as u64);
        let error = other.unpack(&descriptor, &small.diff_id).unwrap_err();
        assert!(matches!(error, UnpackError::Compressed { .. } | UnpackError::DiffId { .. }), "{error}");
    }
    let wrong = Digest::of(b"wrong");
    other.put_blob(&good).unwrap();
    let error = other.unpack(&small.descriptor, &wrong).unwrap_err();
    assert!(
        matches!(error, UnpackError::DiffId { .. }) && error.to_string().contains(&wrong.to_string()),
        "{error}"
    );
    let longer = Descriptor { size: small.descriptor.size + 1, ..small.descriptor.clone() };
    assert!(other.unpack(&longer, &small.diff_id).is_err());
    // What it says it is decides: gzip is no zstd, and what is neither is not read.
    let zstd = Descriptor { media_type: media::LAYER_ZSTD.into(), ..small.descriptor.clone() };
    let error = other.unpack(&zstd, &small.diff_id).unwrap_err();
    assert!(matches!(error, UnpackError::Compressed { .. }), "{error}");
    let xz = Descriptor { media_type: format!("{}+xz", media::LAYER), ..small.descriptor };
    assert!(other.unpack(&xz, &small.diff_id).unwrap_err().to_string().contains("+xz"));
    assert_eq!(std::fs::read_dir(other.path().join("snapshots")).unwrap().count(), 0);
}

#[test]
fn mutated_archives_do_no_harm() {
    let seed = Tar::default()
        .file("a/b")
        .pax(b'x', b"12 path=abc\n")
        .file("x")
        .add(b'2', "l", "a", b"")
        .add(b'1', "h", "x", b"")
        .end();
    let dir = temp();
    std::fs::write(dir.path().join("sentinel"), "safe").unwrap();
    let store = crate::tests::open(&dir.path().join("store"));
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = |n: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % n as u64) as usize
    };
    for round in 0..3000 {
        let mut bytes = seed.clone();
        for _ in 0..=next(4) {
            let at = next(bytes.len());
            bytes[at] = [0, b'.', b'/', b'0', b'7', 0xff, b'x', b'1'][next(8)];
        }
        // The checksums put right again, else no mutation gets far.
        for block in bytes.chunks_exact_mut(512).filter(|b| &b[257..262] == b"ustar") {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
        bytes.truncate(bytes.len() - next(2) * next(2000));
        crate::fuzz::fuzz_tar(&bytes);
        crate::fuzz::fuzz_record(&bytes);
        if round % 10 == 0 {
            let digest = store.put_blob(&bytes).unwrap();
            let _ = store.unpack(&Descriptor::new(media::LAYER, digest, bytes.len() as u64), &digest);
        }
    }
    assert_eq!(std::fs::read(dir.path().join("sentinel")).unwrap(), b"safe");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}
