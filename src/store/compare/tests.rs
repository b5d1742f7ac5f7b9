//! Same tar, same snapshot: every change that a layer shows is found, and nothing else.

use super::*;
use crate::Compression;
use crate::tests::{rig, snapshot, write};

/// Everything that a layer can hold.
fn filled(root: &Root) {
    write(root, "etc/conf", b"one");
    write(root, "etc/empty", b"");
    write(root, "data/big", &vec![7; PIECE + 1]);
    root.hard_link(b"etc/conf", b"etc/same").unwrap();
    root.hard_link(b"data/big", b"data/same").unwrap();
    root.symlink(b"conf", b"etc/link").unwrap();
    root.mknod(b"gone", overlay::WHITEOUT, 0).unwrap();
    root.mkdir(b"hides", 0o750).unwrap();
    overlay::set_opaque(root, b"hides").unwrap();
    root.set_xattr(b"etc/conf", b"user.note", b"x").unwrap();
    root.set_mtime(b"etc/conf", 5, 0).unwrap();
}

#[test]
fn what_gives_the_same_tar_is_the_same() {
    let (_dir, store) = rig();
    let a = snapshot(&store, filled);
    let b = snapshot(&store, |root| {
        filled(root);
        // None of this is in a layer.
        root.set_mtime(b"etc", 9, 9).unwrap();
        root.set_xattr(b"etc", b"trusted.other", b"x").unwrap();
    });
    assert_eq!(store.first_difference(&a, &b).unwrap(), None);
    let tar = |id: &SnapshotId| store.layer_of(id, Compression::None).unwrap().diff_id;
    assert_eq!(tar(&a), tar(&b));
}

#[test]
fn every_change_that_a_layer_shows_is_found() {
    type Change = fn(&Root);
    let changes: [(&str, &str, Change); 13] = [
        ("etc/conf", "its size", |r| write_over(r, b"etc/conf", b"four")),
        ("etc/conf", "its content", |r| write_over(r, b"etc/conf", b"two")),
        ("data/big", "its content", |r| {
            let mut bytes = vec![7; PIECE + 1];
            bytes[PIECE] = 8;
            write_over(r, b"data/big", &bytes);
        }),
        ("etc/conf", "its mode", |r| r.set_mode(b"etc/conf", 0o4755).unwrap()),
        ("etc", "its owner", |r| r.set_owner(b"etc", 1, 1).unwrap()),
        ("etc/conf", "its extended attributes", |r| r.set_xattr(b"etc/conf", b"user.note", b"y").unwrap()),
        ("hides", "its extended attributes", |r| {
            let name = overlay::OPAQUE;
            r.remove_xattr(b"hides", name)
                .or_else(|_| r.remove_xattr(b"hides", b"user.overlay.opaque"))
                .unwrap();
        }),
        ("etc/link", "its target", |r| {
            r.remove(b"etc/link").unwrap();
            r.symlink(b"same", b"etc/link").unwrap();
        }),
        ("etc/empty", "its kind", |r| {
            r.remove(b"etc/empty").unwrap();
            r.mkdir(b"etc/empty", 0o644).unwrap();
        }),
        ("etc/same", "which file it is a name of", |r| {
            r.remove(b"etc/same").unwrap();
            write(r, "etc/same", b"one");
            r.set_xattr(b"etc/same", b"user.note", b"x").unwrap();
        }),
        ("", "what it holds", |r| r.remove(b"gone").unwrap()),
        ("etc", "what it holds", |r| write(r, "etc/new", b"")),
        ("", "its mode", |r| r.set_mode(b"", 0o711).unwrap()),
    ];
    let (_dir, store) = rig();
    let plain = snapshot(&store, filled);
    let tar = |id: &SnapshotId| store.layer_of(id, Compression::None).unwrap().diff_id;
    for (path, what, change) in changes {
        let other = snapshot(&store, |root| {
            filled(root);
            change(root);
        });
        for (a, b) in [(&plain, &other), (&other, &plain)] {
            let found = store.first_difference(a, b).unwrap().unwrap();
            assert_eq!((String::from_utf8(found.path).unwrap().as_str(), found.what), (path, what));
        }
        assert_ne!(tar(&plain), tar(&other), "{path}: {what}");
    }
}

/// Through the descriptor, so that a hard link stays one.
fn write_over(root: &Root, path: &[u8], bytes: &[u8]) {
    let links = root.stat(path).unwrap().unwrap().links;
    let same = [&path[..path.len() - path.rsplit(|b| *b == b'/').next().unwrap().len()], b"same"].concat();
    let xattrs = root.xattrs(path).unwrap();
    root.remove(path).unwrap();
    write(root, std::str::from_utf8(path).unwrap(), bytes);
    for (name, value) in xattrs {
        root.set_xattr(path, &name, &value).unwrap();
    }
    if links > 1 {
        root.remove(&same).unwrap();
        root.hard_link(path, &same).unwrap();
    }
}
