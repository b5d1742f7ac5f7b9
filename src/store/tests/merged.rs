//! The merged view, against the kernel's own.

use super::*;
use keelway_disk::NodeKind;
use keelway_model::TreeError;

const WHITEOUT: NodeKind = NodeKind::Device { character: true, major: 0, minor: 0 };

/// Three layers with every rule of merging.
fn chain(store: &Store) -> Vec<SnapshotId> {
    let low = snapshot(store, |r| {
        write(r, "etc/passwd", b"low");
        write(r, "etc/group", b"low");
        write(r, "opt/old/deep/file", b"low");
        write(r, "file-then-dir", b"low");
        write(r, "dir-then-file/x", b"low");
        r.symlink(b"usr/bin", b"bin").unwrap();
        write(r, "usr/bin/sh", b"low");
        r.symlink(b"/etc/../../etc/passwd", b"abs").unwrap();
        r.symlink(b"loop", b"loop").unwrap();
        write(r, "odd-\u{fffd}", b"low");
        r.create_file(b"odd-\xff\xfe", 0o600).unwrap();
    });
    let middle = snapshot(store, |r| {
        write(r, "etc/passwd", b"middle");
        r.mknod(b"etc/group", WHITEOUT, 0).unwrap();
        write(r, "opt/old/new", b"middle");
        r.set_xattr(b"opt/old", b"trusted.overlay.opaque", b"y").unwrap();
        write(r, "file-then-dir/x", b"middle");
        write(r, "dir-then-file", b"middle");
    });
    let top = snapshot(store, |r| {
        write(r, "etc/group", b"top");
        r.set_mode(b"etc", 0o711).unwrap();
        r.mknod(b"opt/old", WHITEOUT, 0).unwrap_or_else(|_| {
            r.mkdir(b"opt", 0o755).unwrap();
            r.mknod(b"opt/old", WHITEOUT, 0).unwrap();
        });
    });
    vec![low, middle, top]
}

#[test]
fn merges_as_the_kernel_does() {
    let (dir, store) = rig();
    let chain = chain(&store);
    let mount = dir.path().join("mount");
    std::fs::create_dir(&mount).unwrap();
    for depth in 2..=3 {
        let view = contents(&store.view(&chain[..depth]).unwrap());
        let lowers: Vec<String> = chain[..depth]
            .iter()
            .rev()
            .map(|id| store.snapshot_dir(id).to_str().unwrap().to_owned())
            .collect();
        // In a mount namespace of its own, so that nothing stays mounted.
        let script = "mount -t overlay overlay -o \"lowerdir=$1\" \"$2\" && cd \"$2\" && find . -mindepth 1 -printf '%P\\0'";
        let out = std::process::Command::new("unshare")
            .args(["-m", "sh", "-c", script, "sh", &lowers.join(":"), mount.to_str().unwrap()])
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let mut kernel: Vec<Vec<u8>> =
            out.stdout.split(|&b| b == 0).filter(|p| !p.is_empty()).map(<[u8]>::to_vec).collect();
        kernel.sort();
        assert_eq!(view.keys().cloned().collect::<Vec<_>>(), kernel, "{depth} layers");
    }
}

#[test]
fn the_topmost_decides() {
    let (_dir, store) = rig();
    let chain = chain(&store);
    let view = store.view(&chain).unwrap();
    let all = contents(&view);
    let text = |p: &str| all.get(p.as_bytes()).and_then(|(_, b)| b.as_deref());
    assert_eq!(text("etc/passwd"), Some(&b"middle"[..]));
    assert_eq!(text("etc/group"), Some(&b"top"[..]));
    assert_eq!(text("file-then-dir/x"), Some(&b"middle"[..]));
    assert_eq!(text("dir-then-file"), Some(&b"middle"[..]));
    assert!(all.contains_key(&b"odd-\xff\xfe"[..]));
    assert_eq!(view.entry(&"etc".into()).unwrap().unwrap().mode, 0o711);
    assert!(view.entry(&"opt/old".into()).unwrap().is_none());
    assert!(view.entry(&"opt/old/new".into()).unwrap().is_none());
    assert!(view.entry(&"dir-then-file/x".into()).unwrap().is_none());
    assert!(matches!(view.list(&"opt/old".into()), Err(TreeError::NotFound { .. })));
    assert!(matches!(view.list(&"bin".into()), Err(TreeError::WrongKind { .. })), "links are not followed");
    assert!(matches!(view.open(&"etc".into()).map(drop), Err(TreeError::WrongKind { .. })));
    let file = view.open_file(&"etc/passwd".into()).unwrap().expect("a view lies on a disk");
    assert_eq!(std::io::read_to_string(file).unwrap(), "middle");
    assert!(matches!(view.open_file(&"bin".into()), Err(TreeError::WrongKind { .. })));
    let two = contents(&store.view(&chain[..2]).unwrap());
    assert!(two.contains_key(&b"opt/old/new"[..]) && !two.contains_key(&b"opt/old/deep"[..]));
    let empty = store.view(&[]).unwrap();
    assert!(empty.list(&TreePath::root()).unwrap().is_empty());
    assert!(empty.entry(&TreePath::root()).unwrap().is_some());
    assert!(empty.entry(&"x".into()).unwrap().is_none());
}

#[test]
fn links_are_resolved_inside() {
    let (_dir, store) = rig();
    let view = store.view(&chain(&store)).unwrap();
    for (path, want) in [
        ("bin/sh", "usr/bin/sh"),
        ("abs", "etc/passwd"),
        ("bin/new/deeper", "usr/bin/new/deeper"),
        ("missing/x", "missing/x"),
        ("", "."),
    ] {
        assert_eq!(view.resolve(&path.into()).unwrap().to_string(), want, "{path}");
    }
    assert!(matches!(view.resolve(&"loop/x".into()), Err(TreeError::Io { .. })));
}

#[test]
fn a_frozen_upper_has_one_time_and_no_attributes_of_a_mount() {
    use std::os::unix::fs::MetadataExt;
    let (_dir, store) = rig();
    let upper = store.begin().unwrap();
    assert!(upper.work().is_dir() && upper.fs().is_dir());
    let r = upper.root().unwrap();
    write(&r, "d/f", b"x");
    r.symlink(b"/etc/passwd", b"d/l").unwrap();
    r.mknod(b"d/w", WHITEOUT, 0).unwrap();
    for name in ["trusted.overlay.origin", "trusted.overlay.impure", "user.overlay.x", "user.mine"] {
        r.set_xattr(b"d/f", name.as_bytes(), b"1").unwrap();
    }
    r.set_xattr(b"d", b"trusted.overlay.opaque", b"y").unwrap();
    let id = upper.freeze().unwrap();
    let dir = store.snapshot_dir(&id);
    let outside = std::fs::metadata("/etc/passwd").unwrap().mtime();
    for path in ["", "d", "d/f", "d/l", "d/w"] {
        let time = dir.join(path).symlink_metadata().unwrap();
        assert_eq!((time.mtime(), time.mtime_nsec()), (crate::LAYER_TIME.seconds(), 0), "{path}");
    }
    assert_eq!(std::fs::metadata("/etc/passwd").unwrap().mtime(), outside);
    let root = Root::open(&dir).unwrap();
    assert_eq!(root.xattrs(b"d/f").unwrap(), [(b"user.mine".to_vec(), b"1".to_vec())]);
    assert_eq!(root.xattrs(b"d").unwrap().len(), 1);
    // A stub of a mount with redirects would lose its content.
    let upper = store.begin().unwrap();
    upper.root().unwrap().mkdir(b"moved", 0o755).unwrap();
    upper.root().unwrap().set_xattr(b"moved", b"trusted.overlay.redirect", b"/old").unwrap();
    let path = upper.fs().to_path_buf();
    assert!(upper.freeze().is_err());
    assert!(!path.exists());
}
