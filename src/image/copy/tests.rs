//! Copies, archives and keys on a real store.

use super::*;
use crate::testing::{MemTree, Rig, assert_still, copy_op, dump, out, put};
use crate::{KeyContext, key};
use keelway_dockerfile::Ignore;
use keelway_model::plan::UserSpec;
use keelway_model::{CacheKey, Chmod, Op, Tree, TreeError};

mod archives;
mod flags;
mod link;

/// Copies and gives the chain after it.
fn after(rig: &Rig, op: &CopyOp, inputs: &[&Chain], tree: &MemTree, ignore: &str) -> Result<Chain, String> {
    let ignore = Ignore::parse(ignore.as_bytes()).unwrap();
    let cx = KeyContext { store: &rig.store, context: tree, ignore: &ignore };
    let inputs: Vec<Output> = inputs.iter().map(|c| out(c)).collect();
    let key = key(&Op::Copy(op.clone()), &inputs, &cx).map_err(|e| e.to_string())?.unwrap();
    let upper = run(op, &inputs, &cx).map_err(|e| e.to_string())?;
    assert_still(upper.fs());
    crate::extend(&below(op, &inputs).unwrap(), upper, &key).map_err(|e| e.to_string())
}
fn copied(rig: &Rig, op: &CopyOp, inputs: &[&Chain], tree: &MemTree, ignore: &str) -> Vec<String> {
    dump(&rig.store, &after(rig, op, inputs, tree, ignore).unwrap())
}
fn key_of(rig: &Rig, op: &CopyOp, inputs: &[&Chain], tree: &MemTree, ignore: &str) -> CacheKey {
    let ignore = Ignore::parse(ignore.as_bytes()).unwrap();
    let cx = KeyContext { store: &rig.store, context: tree, ignore: &ignore };
    let inputs: Vec<Output> = inputs.iter().map(|c| out(c)).collect();
    key(&Op::Copy(op.clone()), &inputs, &cx).unwrap().unwrap()
}

fn mode(text: &str) -> Chmod {
    text.parse().unwrap()
}

#[test]
fn files_directories_and_patterns() {
    let rig = Rig::new();
    let none = rig.empty();
    let mut tree =
        MemTree::with(&[("a.c", "A"), ("b.c", "B"), ("d/x", "X"), ("d/e/y", "Y"), ("build/z", "Z")]);
    tree.file("run", b"R", 0o755);
    tree.link("d/l", "../../etc/passwd");
    tree.link("to-d", "d/e");
    tree.link("out", "/../../etc/hostname");
    tree.dir("empty", 0o700);
    let copied = |sources: &[&str], dest: &str, ignore: &str| {
        copied(&rig, &copy_op(sources, dest), &[&none], &tree, ignore)
    };
    assert_eq!(copied(&["a.c"], "/n", ""), ["n f 644 0:0 A"]);
    assert_eq!(copied(&["a.c"], "/n/m/", ""), ["n d 755 0:0", "n/m d 755 0:0", "n/m/a.c f 644 0:0 A"]);
    assert_eq!(copied(&["*.c", "run"], "/", ""), ["a.c f 644 0:0 A", "b.c f 644 0:0 B", "run f 755 0:0 R"]);
    let d = [
        "o d 755 0:0",
        "o/e d 755 0:0",
        "o/e/y f 644 0:0 Y",
        "o/l l 0 0:0 ../../etc/passwd",
        "o/x f 644 0:0 X",
    ];
    assert_eq!(copied(&["d"], "/o", ""), d, "a directory is its contents");
    assert_eq!(copied(&["../../d/"], "/o/", ""), d, "a path is clamped at the context");
    assert_eq!(
        copied(&["to-d"], "/o", ""),
        ["o d 755 0:0", "o/y f 644 0:0 Y"],
        "a link that is named is followed"
    );
    assert_eq!(copied(&["to-d/y"], "/o", ""), ["o f 644 0:0 Y"]);
    assert_eq!(copied(&["d/*/y"], "/o", ""), ["o f 644 0:0 Y"]);
    assert_eq!(copied(&["nothing*", "run"], "/o/", "").len(), 2);
    assert_eq!(copied(&["empty"], "/o", ""), ["o d 700 0:0"]);
    assert_eq!(copied(&["."], "/", "*\n!d\nd/l\n").iter().filter(|l| l.contains('f')).count(), 2);
    assert_eq!(copied(&["."], "/", "*\n!d/e/y\n"), ["d d 755 0:0", "d/e d 755 0:0", "d/e/y f 644 0:0 Y"]);
    let refused = |sources: &[&str], dest: &str, ignore: &str| {
        after(&rig, &copy_op(sources, dest), &[&none], &tree, ignore).unwrap_err()
    };
    assert!(refused(&["nope"], "/", "").contains("\"nope\" is not in the build context"));
    assert!(refused(&["nothing*"], "/", "").contains("no file matches nothing*"));
    assert!(
        refused(&["out"], "/", "").contains("not in the build context"),
        "a link never leaves the context"
    );
    assert!(refused(&["d/x"], "/", "d").contains(".dockerignore"));
    assert!(refused(&["*.c"], "/one", "").contains("must end in /"));
    assert!(refused(&["[z"], "/one", "").contains("malformed"));
    assert!(refused(&["run"], &"/a".repeat(30_000), "").contains("a path may have 4095"));
    assert_eq!(copied(&["run"], &"/a".repeat(200), "").len(), 200);
}

#[test]
fn into_what_is_there() {
    let rig = Rig::new();
    let base = rig.on(&[], |r| {
        put(r, "etc/passwd", "root:x:0:0::/root:/bin/sh\nbob:x:7:8::/h:/b\n");
        put(r, "etc/group", "root:x:0:\ng:x:9:\n");
        put(r, "app/keep", "K");
        r.set_owner(b"app", 5, 6).unwrap();
        r.set_mode(b"app", 0o2770).unwrap();
        put(r, "real/x", "old");
        r.symlink(b"/real", b"link").unwrap();
        r.symlink(b"../../../../real/x", b"to-x").unwrap();
        r.symlink(b"loop", b"loop").unwrap();
    });
    let tree = MemTree::with(&[("x", "new"), ("s/app/f", "F"), ("t/x", "T"), ("w/.wh.x", "")]);
    let has = |op: CopyOp, want: &[&str]| {
        let lines = copied(&rig, &op, &[&base], &tree, "");
        want.iter().for_each(|w| assert!(lines.iter().any(|l| l == w), "{w}\n{lines:#?}"));
        lines
    };
    has(copy_op(&["x"], "/app"), &["app d 2770 5:6", "app/keep f 644 0:0 K", "app/x f 644 0:0 new"]);
    has(copy_op(&["x"], "/link/"), &["real/x f 644 0:0 new", "link l 0 0:0 /real"]);
    has(copy_op(&["x"], "/to-x"), &["real/x f 644 0:0 new"]);
    has(copy_op(&["t"], "/link"), &["real/x f 644 0:0 T"]);
    let nested = has(copy_op(&["s"], "/"), &["app d 755 0:0", "app/f f 644 0:0 F", "app/keep f 644 0:0 K"]);
    assert!(nested.iter().any(|l| l.starts_with("etc/passwd")), "what was there stays");
    has(copy_op(&["x"], "/q/r"), &["q d 755 0:0", "q/r f 644 0:0 new"]);
    let owned = |who: &str| CopyOp {
        chown: Some(UserSpec(who.into())),
        chmod: Some(mode("600")),
        ..copy_op(&["x"], "/q/r")
    };
    has(owned("bob"), &["q d 755 7:7", "q/r f 600 7:7 new"]);
    has(owned("bob:g"), &["q/r f 600 7:9 new"]);
    has(owned("3"), &["q/r f 600 3:3 new"]);
    has(owned(":g"), &["q/r f 600 0:9 new"]);
    has(CopyOp { chmod: Some(mode("4755")), ..owned("3:4") }, &["q/r f 4755 3:4 new"]);
    let fails = |op: CopyOp| after(&rig, &op, &[&base], &tree, "").unwrap_err();
    assert!(fails(owned("eve")).contains("the user \"eve\" is not in /etc/passwd"));
    assert!(fails(copy_op(&["x"], "/real/x/")).contains("/real/x in the image is not a directory"));
    assert!(fails(copy_op(&["x"], "/real/x/y/z")).contains("is not a directory"));
    assert!(
        fails(copy_op(&["s/app/f"], "/loop/z")).contains("loop"),
        "{}",
        fails(copy_op(&["x"], "/loop/z"))
    );
    assert!(fails(copy_op(&["w"], "/")).contains(".wh."));
    let mut tree = MemTree::default();
    tree.file("s/real", b"", 0o644);
    let over = after(&rig, &copy_op(&["s"], "/"), &[&base], &tree, "").unwrap_err();
    assert!(over.contains("cannot replace the directory /real with a file"), "{over}");
    tree = MemTree::with(&[("s/link/z", "")]);
    assert!(
        after(&rig, &copy_op(&["s"], "/"), &[&base], &tree, "")
            .unwrap_err()
            .contains("/link in the image is not a directory")
    );
}

#[test]
fn from_another_stage_owners_and_links_are_kept() {
    let rig = Rig::new();
    let other = rig.on(&[], |r| {
        put(r, "o/a", "A");
        r.set_owner(b"o/a", 3, 4).unwrap();
        r.set_mode(b"o/a", 0o4711).unwrap();
        r.hard_link(b"o/a", b"o/b").unwrap();
        r.symlink(b"/../o", b"l").unwrap();
        r.mknod(b"o/p", keelway_disk::NodeKind::Fifo, 0o600).unwrap();
        r.set_xattr(b"o", b"user.note", b"n").unwrap();
    });
    let none = rig.empty();
    let op = CopyOp { from: CopyFrom::Stage, ..copy_op(&["/l"], "/n/") };
    let tree = MemTree::default();
    let chain = after(&rig, &op, &[&none, &other], &tree, "a").unwrap();
    assert_eq!(
        dump(&rig.store, &chain),
        ["n d 755 0:0", "n/a f 4711 3:4 A", "n/b f 4711 3:4 A", "n/p p 600 0:0"]
    );
    let view = rig.store.view(&chain.snapshots).unwrap();
    let link = |p: &str| view.entry(&TreePath::from(p)).unwrap().unwrap().link_id;
    assert!(link("n/a").is_some() && link("n/a") == link("n/b"), "hard links stay hard links");
    assert_eq!(
        view.entry(&TreePath::from("n")).unwrap().unwrap().xattrs,
        [(b"user.note".to_vec(), b"n".to_vec())]
    );
    let chown = CopyOp { chown: Some(UserSpec("1".into())), ..op };
    assert!(copied(&rig, &chown, &[&none, &other], &tree, "").contains(&"n/a f 4711 1:1 A".to_owned()));
    let mut context = MemTree::default();
    context.hard("h/a", b"1", 7);
    context.hard("h/b", b"1", 7);
    let chain = after(&rig, &copy_op(&["h"], "/"), &[&none], &context, "").unwrap();
    let view = rig.store.view(&chain.snapshots).unwrap();
    let id = |p: &str| view.entry(&TreePath::from(p)).unwrap().unwrap().link_id;
    assert!(id("a").is_some() && id("a") == id("b"));
}

#[test]
fn inline_files() {
    let rig = Rig::new();
    let op = CopyOp {
        from: CopyFrom::Inline(vec![("f".into(), "F\n".into()), ("g".into(), String::new())]),
        chmod: None,
        ..copy_op(&[], "/d/")
    };
    assert_eq!(
        copied(&rig, &op, &[&rig.empty()], &MemTree::default(), ""),
        ["d d 755 0:0", "d/f f 644 0:0 F", "d/g f 644 0:0"]
    );
}

#[test]
fn keys_hold_what_matters_and_nothing_else() {
    let rig = Rig::new();
    let base = rig.on(&[], |r| put(r, "etc/passwd", "bob:x:7:7::/:/\n"));
    let tree = MemTree::with(&[("s/a", "A"), ("s/b", "B"), ("t/a", "A"), ("t/b", "B"), ("junk", "J")]);
    let of = |op: &CopyOp, tree: &MemTree, ignore: &str| key_of(&rig, op, &[&base], tree, ignore).digest;
    let op = copy_op(&["s"], "/d");
    let same = of(&op, &tree, "");
    assert_eq!(same, of(&copy_op(&["t"], "/d"), &tree, ""), "where a directory lies does not matter");
    assert_eq!(same, of(&op, &tree, "junk"), "nor what else there is");
    let mut other = tree.clone();
    other.file("junk", b"K", 0o644);
    assert_eq!(same, of(&op, &other, ""));
    other.file("s/a", b"A", 0o755);
    assert_ne!(same, of(&op, &other, ""), "modes count");
    let chmod = CopyOp { chmod: Some(mode("600")), ..op.clone() };
    assert_eq!(of(&chmod, &tree, ""), of(&chmod, &other, ""), "but not those that --chmod hides");
    other.file("s/a", b"C", 0o644);
    assert_ne!(same, of(&op, &other, ""), "content counts");
    assert_ne!(same, of(&op, &tree, "s/b"), "what is left out counts");
    assert_ne!(same, of(&copy_op(&["s"], "/e"), &tree, ""));
    let a = of(&copy_op(&["s/a"], "/d/"), &tree, "");
    assert_eq!(a, of(&copy_op(&["t/a"], "/d/"), &tree, ""));
    assert_ne!(
        a,
        of(&copy_op(&["s/b"], "/d/"), &MemTree::with(&[("s/b", "A")]), ""),
        "a file's name is in the result"
    );
    let bob = |who: &str| CopyOp { chown: Some(UserSpec(who.into())), ..op.clone() };
    assert_eq!(of(&bob("bob"), &tree, ""), of(&bob("7:7"), &tree, ""), "owners count as numbers");
    assert_ne!(of(&bob("8"), &tree, ""), of(&bob("7"), &tree, ""));
    // Another stage: only the selected files.
    let from = CopyOp { from: CopyFrom::Stage, ..copy_op(&["/out"], "/d") };
    let one = rig.on(&[], |r| put(r, "out/x", "1"));
    let two = rig.on(&[&one], |r| put(r, "log", "noise"));
    let three = rig.on(&[], |r| put(r, "out/x", "2"));
    let of = |other: &Chain| key_of(&rig, &from, &[&base, other], &tree, "");
    assert_eq!(of(&one).digest, of(&two).digest, "an unchanged artifact of a changed stage hits");
    let said = of(&three).explain(Some(&of(&one).parts)).to_string();
    assert_eq!(said, "files changed");
    assert_ne!(key_of(&rig, &op, &[&one], &tree, "").digest, same, "the base counts");
}

/// A folder of ten such folders.
struct Bomb;

impl Tree for Bomb {
    fn entry(&self, path: &TreePath) -> Result<Option<TreeEntry>, TreeError> {
        let kind = if path.components().count() > 30 { TreeKind::Fifo } else { TreeKind::Directory };
        let name = path.file_name().unwrap_or_default().to_vec();
        Ok(Some(TreeEntry { name, kind, mode: 0o755, uid: 0, gid: 0, xattrs: Vec::new(), link_id: None }))
    }
    fn list(&self, path: &TreePath) -> Result<Vec<TreeEntry>, TreeError> {
        (0..10).filter_map(|n| self.entry(&path.join(&[b'0' + n])?).transpose()).collect()
    }
    fn open(&self, path: &TreePath) -> Result<Box<dyn std::io::Read + Send>, TreeError> {
        Err(TreeError::WrongKind { path: path.clone(), wanted: "a regular file" })
    }
}

#[test]
fn s10_a_tree_without_end_is_refused() {
    let rig = Rig::new();
    for (source, ignore) in [(".", ""), (".", "*\n!**/none"), ("0/0", "0/0/0")] {
        let ignore = Ignore::parse(ignore.as_bytes()).unwrap();
        let cx = KeyContext { store: &rig.store, context: &Bomb, ignore: &ignore };
        let error = run(&copy_op(&[source], "/d"), &[out(&rig.empty())], &cx).err().map(|e| e.to_string());
        assert!(error.as_ref().is_some_and(|e| e.contains("more than 2000 files")), "{error:?}");
    }
}

#[test]
fn submodules_are_refused() {
    let mut tree = MemTree::default();
    tree.submodule("vendor/lib");
    let rig = Rig::new();
    let error = after(&rig, &copy_op(&["."], "/d"), &[&rig.empty()], &tree, "").unwrap_err();
    assert!(error.contains("vendor/lib is a git submodule"), "{error}");
    assert_eq!(copied(&rig, &copy_op(&["."], "/d"), &[&rig.empty()], &tree, "vendor"), ["d d 755 0:0"]);
}

fn tar(fill: impl FnOnce(&mut ::tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    fill(&mut builder);
    builder.into_inner().unwrap()
}
/// Adds an entry, whatever its name is.
fn entry(b: &mut ::tar::Builder<Vec<u8>>, name: &str, kind: ::tar::EntryType, target: &str, content: &[u8]) {
    let mut h = ::tar::Header::new_gnu();
    h.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    h.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
    h.set_entry_type(kind);
    h.set_size(content.len() as u64);
    h.set_mode(if kind.is_dir() { 0o750 } else { 0o640 });
    h.set_uid(11);
    h.set_gid(12);
    h.set_cksum();
    b.append(&h, content).unwrap();
}
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut z = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut z, bytes).unwrap();
    z.finish().unwrap()
}
fn add(rig: &Rig, base: &Chain, bytes: &[u8], dest: &str) -> Result<Vec<String>, String> {
    let mut tree = MemTree::default();
    tree.file("a.tar", bytes, 0o644);
    let op = CopyOp { unpack: Unpack::Archives, ..copy_op(&["a.tar"], dest) };
    after(rig, &op, &[base], &tree, "").map(|c| dump(&rig.store, &c))
}

#[test]
fn archives_are_unpacked_inside() {
    use ::tar::EntryType as T;
    let rig = Rig::new();
    let base = rig.on(&[], |r| {
        put(r, "usr/lib/keep", "K");
        r.symlink(b"usr/lib", b"lib").unwrap();
        put(r, "old/x", "O");
    });
    let bytes = tar(|b| {
        entry(b, "./", T::Directory, "", b"");
        entry(b, "d/", T::Directory, "", b"");
        entry(b, "d/f", T::Regular, "", b"F");
        entry(b, "d/h", T::Link, "d/f", b"");
        entry(b, "lib/new", T::Regular, "", b"N");
        entry(b, "esc", T::Symlink, "../../../../tmp", b"");
        entry(b, "esc/x", T::Regular, "", b"in");
        entry(b, "../../up", T::Regular, "", b"U");
        entry(b, "/abs", T::Regular, "", b"A");
        entry(b, "old", T::Regular, "", b"file");
    });
    let want = [
        "d d 750 11:12",
        "d/f f 640 11:12 F",
        "d/h f 640 11:12 F",
        "usr/lib/new f 640 11:12 N",
        "usr/lib/keep f 644 0:0 K",
        "tmp/x f 640 11:12 in",
        "up f 640 11:12 U",
        "abs f 640 11:12 A",
        "old f 640 11:12 file",
        "lib l 0 0:0 usr/lib",
    ];
    for form in [bytes.clone(), gzip(&bytes)] {
        let got = add(&rig, &base, &form, "/").unwrap();
        want.iter().for_each(|w| assert!(got.iter().any(|g| g == w), "{w}\n{got:#?}"));
    }
    assert!(!std::path::Path::new("/tmp/x").exists());
    let got = add(&rig, &rig.empty(), &bytes, "/n").unwrap();
    assert!(
        got.contains(&"n/d/f f 640 11:12 F".to_owned())
            && got.contains(&"n/lib/new f 640 11:12 N".to_owned()),
        "{got:#?}"
    );
    // What is no archive is a file.
    assert_eq!(add(&rig, &rig.empty(), b"text", "/t/").unwrap(), ["t d 755 0:0", "t/a.tar f 644 0:0 text"]);
    assert_eq!(add(&rig, &rig.empty(), &[0; 2048], "/t").unwrap().len(), 1);
    let mut not_tar = MemTree::default();
    not_tar.file("a.tar", &gzip(b"text"), 0o644);
    let op = CopyOp { unpack: Unpack::Archives, ..copy_op(&["a.tar"], "/t") };
    let chain = after(&rig, &op, &[&rig.empty()], &not_tar, "").unwrap();
    let view = rig.store.view(&chain.snapshots).unwrap();
    assert!(matches!(view.entry(&TreePath::from("t")).unwrap().unwrap().kind, TreeKind::File { .. }));
}

#[test]
fn an_archive_brings_what_a_layer_may_bring() {
    use ::tar::EntryType as T;
    let rig = Rig::new();
    let bytes = tar(|b| {
        b.append_pax_extensions([
            ("SCHILY.xattr.user.note", &b"n"[..]),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.else", b"y"),
        ])
        .unwrap();
        entry(b, "d/", T::Directory, "", b"");
        entry(b, "null", T::Char, "", b"");
        entry(b, "disk", T::Block, "", b"");
        entry(b, "fifo", T::Fifo, "", b"");
    });
    let upper = rig.store.begin().unwrap();
    let mut writer = Writer::new(upper.root().unwrap(), rig.store.view(&[]).unwrap(), None);
    let from = Box::new(std::io::Cursor::new(bytes));
    let root = TreePath::root();
    archive::unpack(codec::Codec::Plain, from, &mut writer, &root, None, &TreePath::from("a")).unwrap();
    let made = upper.root().unwrap();
    let names: Vec<_> = made.list(b"").unwrap().into_iter().map(|i| i.name).collect();
    assert_eq!(names, [&b"d"[..], b"fifo"], "device nodes are left out");
    assert_eq!(made.xattrs(b"d").unwrap(), [(b"user.note".to_vec(), b"n".to_vec())]);
}

#[test]
fn hostile_archives_are_refused() {
    use ::tar::EntryType as T;
    let rig = Rig::new();
    let base = rig.on(&[], |r| put(r, "etc/shadow", "S"));
    let one = |name: &str, kind, target: &str| tar(|b| entry(b, name, kind, target, b""));
    for (bytes, what) in [
        (one("h", T::Link, "../../etc/shadow"), "not earlier in the archive"),
        (one("h", T::Link, "/etc/shadow"), "not earlier in the archive"),
        (one("h", T::Link, ""), "link without a target"),
        (one("s", T::Symlink, ""), "link without a target"),
        (one(".wh.x", T::Regular, ""), ".wh."),
        (one("a/.wh..wh..opq", T::Regular, ""), ".wh."),
        (one("h", T::Link, "/"), "hard link to nothing"),
        (one("x", T::new(b'Z'), ""), "unknown type"),
        (tar(|b| entry(b, "f", T::Regular, "", &[7; 4096]))[..2048].to_vec(), "ends in the middle of a file"),
        (
            tar(|b| {
                entry(b, "l", T::Symlink, "l", b"");
                entry(b, "l/x", T::Regular, "", b"");
            }),
            "too many symbolic links",
        ),
        (
            tar(|b| {
                entry(b, "etc", T::Regular, "", b"");
                entry(b, "etc", T::Directory, "", b"");
            }),
            "use two steps",
        ),
    ] {
        let e = add(&rig, &base, &bytes, "/").unwrap_err();
        assert!(e.contains(what), "{what}: {e}");
    }
    // A bomb: 300 MiB of zeros in 300 KiB.
    let mut h = ::tar::Header::new_gnu();
    h.set_path("bomb").unwrap();
    h.set_size(300 << 20);
    h.set_mode(0o644);
    h.set_uid(0);
    h.set_gid(0);
    h.set_cksum();
    let mut z = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut z, h.as_bytes()).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), 300 << 20), &mut z).unwrap();
    let bytes = z.finish().unwrap();
    let limits = keelway_store::UnpackLimits { ratio: 10, ..Default::default() };
    let upper = rig.store.begin().unwrap();
    let mut writer = Writer::new(upper.root().unwrap(), rig.store.view(&[]).unwrap(), None);
    let from = Box::new(std::io::Cursor::new(bytes));
    let at = TreePath::from("a");
    let e = archive::unpack_with(codec::Codec::Gzip, from, &mut writer, &TreePath::root(), None, &at, limits)
        .unwrap_err();
    assert!(e.to_string().contains("more than is allowed"), "{e}");
}

#[test]
fn any_archive_is_unpacked_or_refused() {
    let rig = Rig::new();
    let base = rig.empty();
    let seed = tar(|b| {
        entry(b, "d/", ::tar::EntryType::Directory, "", b"");
        entry(b, "d/f", ::tar::EntryType::Regular, "", b"F");
        entry(b, "l", ::tar::EntryType::Symlink, "d", b"");
        entry(b, "l/g", ::tar::EntryType::Regular, "", b"G");
    });
    let mut state = 88_172_645_463_325_252u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for _ in 0..150 {
        let mut bytes = seed.clone();
        for _ in 0..1 + random() % 6 {
            let at = random() % bytes.len();
            bytes[at] = random() as u8;
        }
        // The checksums are put right again, so that the damage is looked at.
        for block in bytes.chunks_exact_mut(512).filter(|b| b[257..262] == *b"ustar") {
            block[148..156].copy_from_slice(b"        ");
            let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
        let _ = add(&rig, &base, &bytes, "/x");
    }
}
