//! The content key changes with what matters and with nothing else.

use super::*;
use crate::tests::{rig, snapshot, write};
use keelway_disk::Root;
use std::sync::atomic::{AtomicUsize, Ordering};

const ALL: KeyRules<'_> = KeyRules { filter: &keep_everything, owner: None, mode: None };

fn tree(r: &Root) {
    write(r, "d/a", b"one");
    write(r, "d/b", b"two");
    r.mkdir(b"d/empty", 0o755).unwrap();
    r.symlink(b"a", b"d/link").unwrap();
    r.set_xattr(b"d/a", b"user.x", b"1").unwrap();
}

fn digest(store: &Store, fill: impl FnOnce(&Root), rules: &KeyRules<'_>) -> Digest {
    let id = snapshot(store, fill);
    store.content_digest(&store.view(&[id]).unwrap(), &"d".into(), rules).unwrap()
}

#[test]
fn every_change_that_matters_changes_it() {
    let (_dir, store) = rig();
    let base = digest(&store, tree, &ALL);
    assert_eq!(digest(&store, tree, &ALL), base);
    type Change = fn(&Root);
    let changes: [(&str, Change); 11] = [
        ("bytes", |r| {
            std::io::Write::write_all(
                &mut {
                    r.remove(b"d/b").unwrap();
                    r.create_file(b"d/b", 0o644).unwrap()
                },
                b"twO",
            )
            .unwrap()
        }),
        ("name", |r| r.rename(b"d/b", b"d/c").unwrap()),
        ("mode", |r| r.set_mode(b"d/b", 0o755).unwrap()),
        ("owner", |r| r.set_owner(b"d/b", 1, 0).unwrap()),
        ("group", |r| r.set_owner(b"d/b", 0, 1).unwrap()),
        ("attribute", |r| r.set_xattr(b"d/a", b"user.x", b"2").unwrap()),
        ("new", |r| write(r, "d/new", b"")),
        ("gone", |r| r.remove(b"d/empty").unwrap()),
        ("kind", |r| {
            r.remove(b"d/empty").unwrap();
            write(r, "d/empty", b"")
        }),
        ("link", |r| {
            r.remove(b"d/link").unwrap();
            r.symlink(b"b", b"d/link").unwrap()
        }),
        ("directory's mode", |r| r.set_mode(b"d", 0o700).unwrap()),
    ];
    let mut seen = vec![base];
    for (what, change) in changes {
        let changed = digest(
            &store,
            |r| {
                tree(r);
                change(r)
            },
            &ALL,
        );
        assert!(!seen.contains(&changed), "{what}");
        seen.push(changed);
    }
    // What does not matter: times, and files elsewhere.
    let touched = digest(
        &store,
        |r| {
            tree(r);
            r.set_mtime(b"d/a", 7, 7).unwrap();
            write(r, "elsewhere", b"")
        },
        &ALL,
    );
    assert_eq!(touched, base);
    // With the owner and mode given, the source's do not matter.
    let mode = "600".parse().unwrap();
    let given = KeyRules { owner: Some((5, 5)), mode: Some(&mode), ..ALL };
    let one = digest(&store, tree, &given);
    let two = digest(
        &store,
        |r| {
            tree(r);
            r.set_mode(b"d/b", 0o700).unwrap();
            r.set_owner(b"d/a", 9, 9).unwrap()
        },
        &given,
    );
    assert_eq!(one, two);
    assert_ne!(one, base);
}

#[test]
fn filters_decide_what_counts() {
    let (_dir, store) = rig();
    let without = |name: &'static [u8]| {
        move |p: &TreePath, e: &TreeEntry| match (p.file_name(), &e.kind) {
            (Some(n), _) if n == name => Verdict::Skip,
            _ => Verdict::Partly,
        }
    };
    let filter = without(b"b");
    let rules = KeyRules { filter: &filter, ..ALL };
    let one = digest(&store, tree, &rules);
    let two = digest(
        &store,
        |r| {
            tree(r);
            r.set_mode(b"d/b", 0o777).unwrap()
        },
        &rules,
    );
    let gone = digest(
        &store,
        |r| {
            tree(r);
            r.remove(b"d/b").unwrap()
        },
        &rules,
    );
    assert_eq!((one, one), (two, gone));
    assert_eq!(
        gone,
        digest(
            &store,
            |r| {
                tree(r);
                r.remove(b"d/b").unwrap()
            },
            &ALL
        )
    );
    let nothing = |_: &TreePath, _: &TreeEntry| Verdict::OnlyBeneath;
    let empty = digest(&store, tree, &KeyRules { filter: &nothing, ..ALL });
    assert_eq!(empty, digest(&store, |r| write(r, "d/other", b"x"), &KeyRules { filter: &nothing, ..ALL }));
}

/// Counts what is read.
struct Counting<'a>(&'a dyn Tree, &'a AtomicUsize);

impl Tree for Counting<'_> {
    fn entry(&self, path: &TreePath) -> Result<Option<TreeEntry>, TreeError> {
        self.0.entry(path)
    }
    fn list(&self, path: &TreePath) -> Result<Vec<TreeEntry>, TreeError> {
        self.0.list(path)
    }
    fn open(&self, path: &TreePath) -> Result<Box<dyn Read + Send>, TreeError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.open(path)
    }
    fn memo(&self, path: &TreePath) -> Option<Digest> {
        self.0.memo(path)
    }
}

#[test]
fn what_has_a_memo_is_read_once_and_by_every_process() {
    let (_dir, store) = rig();
    let id = snapshot(&store, tree);
    let reads = AtomicUsize::new(0);
    let path: TreePath = "d".into();
    let first = {
        let view = store.view(std::slice::from_ref(&id)).unwrap();
        store.content_digest(&Counting(&view, &reads), &path, &ALL).unwrap()
    };
    assert_eq!(reads.load(Ordering::SeqCst), 2);
    // A torn record in the middle of the table does not matter.
    let table = store.path().join("cache/memo/table");
    let mut bytes = std::fs::read(&table).unwrap();
    bytes.extend_from_slice(b"torn");
    std::fs::write(&table, &bytes).unwrap();
    let other = crate::tests::open(store.path());
    let view = other.view(std::slice::from_ref(&id)).unwrap();
    assert_eq!(other.content_digest(&Counting(&view, &reads), &path, &ALL).unwrap(), first);
    assert_eq!(reads.load(Ordering::SeqCst), 2, "remembered");
    let given = KeyRules { owner: Some((1, 1)), ..ALL };
    assert_ne!(other.content_digest(&Counting(&view, &reads), &path, &given).unwrap(), first);
    assert_eq!(reads.load(Ordering::SeqCst), 4, "another question");
    assert_eq!(std::fs::metadata(&table).unwrap().len() % RECORD as u64, 0, "mended");
    assert_eq!(
        store.content_digest(&view, &"none".into(), &ALL).unwrap_err().to_string(),
        "none does not exist"
    );
}

/// A directory of this machine's disk.
struct Disk(std::path::PathBuf);

impl Tree for Disk {
    fn entry(&self, path: &TreePath) -> Result<Option<TreeEntry>, TreeError> {
        let status = std::fs::metadata(self.0.join(path.to_path_buf())).unwrap();
        Ok(Some(TreeEntry {
            name: path.file_name().unwrap_or_default().to_vec(),
            kind: TreeKind::File { size: status.len() },
            mode: 0o644,
            uid: 0,
            gid: 0,
            xattrs: Vec::new(),
            link_id: None,
        }))
    }
    fn list(&self, _: &TreePath) -> Result<Vec<TreeEntry>, TreeError> {
        Ok(Vec::new())
    }
    fn open(&self, path: &TreePath) -> Result<Box<dyn Read + Send>, TreeError> {
        Ok(Box::new(File::open(self.0.join(path.to_path_buf())).unwrap()))
    }
    fn open_file(&self, path: &TreePath) -> Result<Option<File>, TreeError> {
        Ok(Some(File::open(self.0.join(path.to_path_buf())).unwrap()))
    }
}

#[test]
fn a_file_that_did_not_change_is_not_read_again_and_one_that_did_is() {
    let (dir, store) = rig();
    let (name, path): (_, TreePath) = (dir.path().join("context-file"), "context-file".into());
    let tree = Disk(dir.path().to_owned());
    let write = |byte: u8| std::fs::write(&name, vec![byte; STAMPED as usize]).unwrap();
    let at = |now: i64| store.content_digest_at(&tree, &path, &ALL, Some(now)).unwrap().unwrap();
    write(b'a');
    let status = std::fs::metadata(&name).unwrap();
    let long_after = status.ctime() + 1000;
    // Too fresh: another change could carry the same times.
    let truth = at(status.ctime() + SETTLED);
    assert_eq!(store.memos().get(&stamp_key(&Stamp::from(&status))), None);
    assert_eq!(at(long_after), truth);
    let kept = store.memos().get(&stamp_key(&Stamp::from(&status))).unwrap();
    assert_eq!(kept, Digest::of(&vec![b'a'; STAMPED as usize]));
    // That it is not read shows where what is remembered is wrong.
    store.memos().add(&[(stamp_key(&Stamp::from(&status)), Digest::of(b"wrong"))]).unwrap();
    assert_ne!(at(long_after), truth);
    assert_eq!(at(status.ctime()), truth, "a fresh file is read whatever is remembered");
    // Same length, and whoever changes it sets the old time of modification again.
    let changed = loop {
        write(b'b');
        File::options().write(true).open(&name).unwrap().set_modified(status.modified().unwrap()).unwrap();
        let changed = std::fs::metadata(&name).unwrap();
        // The kernel's clock has ticked.
        if (changed.ctime(), changed.ctime_nsec()) != (status.ctime(), status.ctime_nsec()) {
            break changed;
        }
    };
    assert_eq!((changed.len(), changed.modified().unwrap()), (status.len(), status.modified().unwrap()));
    let now = at(changed.ctime() + 1000);
    write(b'a');
    assert_ne!(now, at(i64::MAX), "another content");
    assert_eq!(truth, at(i64::MAX));
}

/// Folders of ten equal folders, and files of any size at the end. Memo ids as git has them, or none.
struct Bomb {
    memos: bool,
    size: u64,
    opened: AtomicUsize,
}

impl Tree for Bomb {
    fn entry(&self, path: &TreePath) -> Result<Option<TreeEntry>, TreeError> {
        let end = path.components().count() >= 9;
        let kind = if end { TreeKind::File { size: self.size } } else { TreeKind::Directory };
        let name = path.file_name().unwrap_or_default().to_vec();
        Ok(Some(TreeEntry { name, kind, mode: 0o755, uid: 0, gid: 0, xattrs: Vec::new(), link_id: None }))
    }
    fn list(&self, path: &TreePath) -> Result<Vec<TreeEntry>, TreeError> {
        (0..10).filter_map(|n| self.entry(&path.join(&[b'0' + n])?).transpose()).collect()
    }
    fn open(&self, _: &TreePath) -> Result<Box<dyn Read + Send>, TreeError> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(io::empty()))
    }
    fn memo(&self, path: &TreePath) -> Option<Digest> {
        self.memos.then(|| Digest::of(path.components().count().to_string().as_bytes()))
    }
}

#[test]
fn s10_a_tree_without_end_is_refused_and_equal_folders_are_read_once() {
    let (_dir, store) = rig();
    let bomb = |memos, size| Bomb { memos, size, opened: AtomicUsize::new(0) };
    let digest = |bomb: &Bomb, rules: &KeyRules<'_>| {
        store.content_digest(bomb, &TreePath::root(), rules).map_err(|e| e.to_string())
    };
    let equal = bomb(true, 0);
    assert!(digest(&equal, &ALL).is_ok());
    assert_eq!(equal.opened.load(Ordering::Relaxed), 1);
    // Without memos, or with a filter that may tell equal folders apart, the bound ends it.
    let partly = |_: &TreePath, _: &TreeEntry| Verdict::Partly;
    for (memos, rules) in [(false, &ALL), (true, &KeyRules { filter: &partly, ..ALL })] {
        let e = digest(&bomb(memos, 0), rules).unwrap_err();
        assert!(e.contains("more than 20000 files and directories"), "{e}");
    }
    // A file that only claims to be endless is not begun.
    let sparse = bomb(false, u64::MAX);
    assert!(digest(&sparse, &ALL).unwrap_err().contains("more than 64 GiB of files"));
    assert_eq!(sparse.opened.load(Ordering::Relaxed), 0);
}
