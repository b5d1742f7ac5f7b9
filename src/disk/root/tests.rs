//! Tests of [`Root`](super::Root).

use super::*;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, symlink};

fn rig() -> (tempfile::TempDir, Root) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("root")).unwrap();
    std::fs::write(dir.path().join("sentinel"), "safe").unwrap();
    let root = Root::open(&dir.path().join("root")).unwrap();
    (dir, root)
}

#[test]
fn no_path_leaves_the_root() {
    let (dir, root) = rig();
    let outside = dir.path().join("sentinel");
    let host = dir.path().join("root");
    symlink("../../..", host.join("up")).unwrap();
    symlink(dir.path(), host.join("abs")).unwrap();
    symlink("/proc/self/root", host.join("magic")).unwrap();
    symlink(&outside, host.join("file")).unwrap();
    for path in [
        &b"../sentinel"[..],
        b"/../../sentinel",
        b"up/sentinel",
        b"abs/sentinel",
        b"file",
        b"magic/etc/passwd",
    ] {
        assert!(root.open_file(path).is_err(), "{}", String::from_utf8_lossy(path));
    }
    // Written in the root, whatever the link says.
    root.create_file(b"up/made", 0o640).unwrap().write_all(b"x").unwrap();
    assert!(host.join("made").is_file());
    // The entry itself is never followed.
    assert!(root.create_file(b"file", 0o600).is_err());
    assert!(root.set_mode(b"file", 0o777).is_err());
    root.set_owner(b"file", 7, 8).unwrap();
    root.set_mtime(b"file", 42, 0).unwrap();
    let link = host.join("file").symlink_metadata().unwrap();
    assert_eq!((link.uid(), link.gid(), link.mtime()), (7, 8, 42));
    root.remove(b"file").unwrap();
    assert!(root.remove(b"x/..").is_err());
    let after = outside.metadata().unwrap();
    assert_eq!((after.uid(), after.mode() & 0o777), (0, 0o644));
    assert_eq!(std::fs::read(&outside).unwrap(), b"safe");
}

#[test]
fn entries_of_every_kind() {
    let (_dir, root) = rig();
    root.mkdir_all(b"a/b/c", 0o755).unwrap();
    root.mkdir_all(b"/a/b/c/", 0o700).unwrap();
    assert_eq!(root.stat(b"a/b/c").unwrap().unwrap().mode, 0o755);
    root.mkdir(b"a/d", 0o1777).unwrap();
    assert_eq!(root.stat(b"a/d").unwrap().unwrap().mode, 0o1777);
    let odd = b"a/\xff\n'";
    root.create_file(odd, 0o4711).unwrap().write_all(b"hello").unwrap();
    root.hard_link(odd, b"a/b/twin").unwrap();
    let twin = root.stat(b"a/b/twin").unwrap().unwrap();
    assert_eq!((twin.kind, twin.mode, twin.size, twin.links), (NodeKind::File, 0o4711, 5, 2));
    root.symlink(b"\xfe/nowhere", b"link").unwrap();
    assert_eq!(root.read_link(b"link").unwrap(), b"\xfe/nowhere");
    root.mknod(b"fifo", NodeKind::Fifo, 0o666).unwrap();
    assert_eq!(root.stat(b"fifo").unwrap().unwrap().mode, 0o666);
    assert!(root.open_file(b"fifo").is_err(), "a FIFO neither opens nor blocks");
    let white = NodeKind::Device { character: true, major: 0, minor: 0 };
    root.mknod(b"white", white, 0).unwrap();
    assert_eq!(root.stat(b"white").unwrap().unwrap().kind, white);
    let names: Vec<_> = root.list(b"").unwrap().into_iter().map(|i| i.name).collect();
    assert_eq!(names, [&b"a"[..], b"fifo", b"link", b"white"]);
    root.rename(b"a/b/twin", b"moved").unwrap();
    let mut text = String::new();
    root.open_file_nofollow(b"moved").unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    assert!(root.stat(b"moved/x").unwrap().is_none());
    assert!(root.stat(b"a/../../moved").unwrap().is_some());
    root.remove_all(b"a").unwrap();
    assert!(root.stat(b"a").unwrap().is_none());
    root.remove_all(b"a").unwrap();
}

#[test]
fn attributes_of_the_entry_itself() {
    let (_dir, root) = rig();
    root.create_file(b"f", 0o600).unwrap();
    root.symlink(b"f", b"l").unwrap();
    root.set_xattr(b"f", b"trusted.b", b"2").unwrap();
    root.set_xattr(b"f", b"trusted.a", &[0, 255]).unwrap();
    assert_eq!(
        root.xattrs(b"f").unwrap(),
        [(b"trusted.a".to_vec(), vec![0, 255]), (b"trusted.b".to_vec(), b"2".to_vec())]
    );
    assert!(root.xattrs(b"l").unwrap().is_empty());
    root.remove_xattr(b"f", b"trusted.a").unwrap();
    root.remove_xattr(b"f", b"trusted.a").unwrap();
    assert_eq!(root.xattrs(b"f").unwrap().len(), 1);
    root.set_xattr(b"", b"trusted.r", b"x").unwrap();
    assert_eq!(root.xattrs(b"").unwrap().len(), 1);
}

#[test]
fn a_very_deep_tree_is_removed_with_few_descriptors() {
    let (_dir, root) = rig();
    let mut at = root.try_clone().unwrap();
    for _ in 0..3000 {
        at.mkdir(b"deep", 0o755).unwrap();
        at.create_file(b"f", 0o600).unwrap();
        at = at.open_dir(b"deep").unwrap();
    }
    drop(at);
    root.remove_all(b"deep").unwrap();
    assert!(root.stat(b"deep").unwrap().is_none());
}

#[test]
fn removal_stops_at_its_deadline_and_goes_on_later() {
    let (dir, root) = rig();
    root.mkdir_all(b"t/a/b", 0o755).unwrap();
    symlink(dir.path(), dir.path().join("root/t/a/out")).unwrap();
    assert!(!root.remove_all_until(b"t", Instant::now()).unwrap());
    assert!(root.stat(b"t").unwrap().is_some());
    assert!(root.remove_all_until(b"t", Instant::now() + std::time::Duration::from_secs(60)).unwrap());
    assert!(dir.path().join("sentinel").exists());
}
