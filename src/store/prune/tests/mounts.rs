//! Cache mounts are counted, and collected like everything else.

use super::*;
use crate::CacheMount;
use keelway_model::Bytes;
use keelway_model::mount::Sharing;

/// Uses a cache, as a RUN that writes a file of so many bytes into it.
pub(super) fn used(store: &Store, id: &str, bytes: usize) -> CacheMount {
    let mount = store.try_cache_mount(id, None, Sharing::Shared).unwrap().unwrap();
    match mount.is_new() {
        true => mount.fill(store.begin().unwrap()).unwrap(),
        false => mount.touch().unwrap(),
    }
    std::fs::write(mount.fs().join("data"), vec![1; bytes]).unwrap();
    mount
}

fn total(store: &Store) -> u64 {
    store.census(&mut Documents::default(), None).unwrap().unwrap().total()
}

fn known(path: &Path) -> u64 {
    crate::usage::read(path).unwrap().bytes
}

fn tidied(path: &Path, storage: u64, work: impl FnOnce(&Store)) -> Option<Collected> {
    let store = open(path);
    work(&store);
    store.collect((Some(Bytes(storage)), Some(Bytes(0))), &nobody, Duration::from_secs(60)).unwrap()
}

#[test]
fn what_a_cache_grows_by_is_known_without_counting() {
    let (_dir, store) = rig();
    let path = store.path().to_path_buf();
    drop(store);
    let most = 100 << 20;
    assert_eq!(tidied(&path, most, |_| ()), None);
    let empty = known(&path);
    assert_eq!(tidied(&path, most, |s| drop(used(s, "a", 500_000))), None);
    let first = known(&path);
    assert!((empty + 500_000..empty + 520_000).contains(&first), "{empty} {first}");
    assert_eq!(tidied(&path, most, |s| drop(used(s, "a", 900_000))), None);
    assert!((first + 380_000..first + 420_000).contains(&known(&path)), "{first} {}", known(&path));
    assert_eq!(tidied(&path, most, |s| drop(used(s, "a", 0))), None);
    assert!(known(&path) < empty + 20_000);
    // Whoever used one and never looked how large it is has lost the count, and the next one counts.
    drop(used(&open(&path), "a", 700_000));
    assert_eq!(crate::usage::read(&path), None);
    assert_eq!(tidied(&path, most, |_| ()), None);
    assert_eq!(known(&path), total(&open(&path)));
    assert!(known(&path) > empty + 700_000);
    // Above the limit the one that was not used for longest goes.
    assert_eq!(tidied(&path, most, |s| drop(used(s, "b", 700_000))), None);
    let names = |store: &Store| -> Vec<String> {
        store.cache_mounts().unwrap().into_iter().map(|m| m.meta.id).collect()
    };
    let b = open(&path).cache_mounts().unwrap().into_iter().find(|m| m.meta.id == "b").unwrap();
    let later = crate::CacheMountMeta { last_used: Timestamp(b.meta.last_used.0 + 1), ..b.meta };
    let record = crate::record::encode(&later).unwrap();
    std::fs::write(b.fs.parent().unwrap().join("meta.json"), record).unwrap();
    let done = tidied(&path, 1_200_000, |_| ()).unwrap();
    assert!(done.bytes >= 700_000 && done.removed == 1, "{done:?}");
    assert_eq!(names(&open(&path)), ["b"]);
    assert_eq!(known(&path), total(&open(&path)));
}

#[test]
fn a_cache_in_use_stays_whoever_uses_it() {
    let (_dir, store) = rig();
    let path = store.path().to_path_buf();
    let mount = used(&store, "a", 10_000);
    let plan = open(&path).prune_plan(|_| aim(0), &[]).unwrap();
    assert!(plan.remaining.iter().any(|r| r.why == Why::Running && r.count == 1), "{:?}", plan.remaining);
    // Its sandbox has the lock, and nobody else knows of it.
    let lock = std::os::fd::AsFd::as_fd(mount.lock()).try_clone_to_owned().unwrap();
    drop(mount);
    drop(store);
    let store = open(&path);
    let plan = store.prune_plan(|_| aim(0), &[]).unwrap();
    let shown: Vec<(Kind, &str)> = plan.removals().map(|r| (r.kind, r.name.as_str())).collect();
    assert_eq!(shown, [(Kind::Mount, "a")]);
    let done = store.prune(&plan, &nobody, far()).unwrap();
    assert_eq!((done.removed, done.spared, store.cache_mounts().unwrap().len()), (0, 1, 1));
    drop(lock);
    // It was used since the plan was made.
    drop(used(&store.session().unwrap(), "a", 10));
    let clock = store.inner.clock.now();
    let entry = store.cache_mounts().unwrap().remove(0);
    let later = crate::CacheMountMeta { last_used: Timestamp(clock.0 + 1), ..entry.meta };
    let record = crate::record::encode(&later).unwrap();
    std::fs::write(entry.fs.parent().unwrap().join("meta.json"), record).unwrap();
    assert_eq!(store.prune(&plan, &nobody, far()).unwrap().spared, 1);
    assert_eq!(collected(&store, aim(0), &[]).removed, 1);
    assert_eq!(store.cache_mounts().unwrap(), []);
}

#[test]
fn a_tree_that_changes_while_it_is_counted() {
    let dir = crate::tests::temp();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                std::fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
                std::fs::write(dir.path().join("a/b/c/d"), "x").unwrap();
                std::fs::rename(dir.path().join("a"), dir.path().join("e")).unwrap();
                std::os::unix::fs::symlink("e/..", dir.path().join("a")).unwrap();
                std::fs::remove_file(dir.path().join("a")).unwrap();
                std::fs::remove_dir_all(dir.path().join("e")).unwrap();
            }
        });
        for _ in 0..2_000 {
            assert!(crate::snapshot::taken(dir.path(), None).is_some_and(|n| n < 1 << 20));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    std::fs::write(dir.path().join("f"), "x").unwrap();
    assert_eq!(crate::snapshot::taken(dir.path(), Some(Instant::now())), None, "no time");
}
