//! Opening, run directories, blobs, references, cache records, claims.

use super::*;
use crate::{ClaimError, CommitError, OpenError, StoreError};
use keelway_model::oci::{Descriptor, ImageConfig, Manifest, media};
use keelway_model::plan::{Chain, ImageOutput};
use keelway_model::{CacheKey, Digest, ImageRef, KeyPart, Output, PushedDigest};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

#[test]
fn a_store_is_private_versioned_and_leaves_nothing() {
    let dir = temp();
    let path = dir.path().join("a/store");
    let store = open(&path);
    assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o700);
    assert!(store.run_dir().is_dir());
    assert!(store.reaped().is_empty());
    let before = files(&path);
    let second = open(&path);
    assert!(second.reaped().is_empty(), "a living run is not reaped");
    assert_ne!(second.run_dir(), store.run_dir());
    drop(second);
    assert_eq!(files(&path), before);
    drop(store);
    assert_clean(&path);
    std::fs::write(path.join("version"), "2\n").unwrap();
    let error = Store::open(&path, clock()).err().unwrap();
    assert!(matches!(error, OpenError::TooNew { found: 2, known: 1, .. }), "{error}");
    std::fs::write(path.join("version"), "x").unwrap();
    assert!(matches!(Store::open(&path, clock()), Err(OpenError::NotAStore { .. })));
    std::fs::write(dir.path().join("a/mine"), "").unwrap();
    assert!(matches!(Store::open(&dir.path().join("a"), clock()), Err(OpenError::NotAStore { .. })));
    assert_eq!(files(&dir.path().join("a")).iter().filter(|p| p.components().count() == 1).count(), 2);
}

#[test]
fn dead_runs_are_reaped_once_and_their_cgroups_told_until_done() {
    let (_dir, store) = rig();
    let dead = store.path().join("runs/r-dead");
    std::fs::create_dir_all(dead.join("upper-0/fs")).unwrap();
    std::fs::write(dead.join("lock"), "").unwrap();
    std::fs::write(dead.join("cgroups"), "a/one\ntwo\ntorn").unwrap();
    let next = open(store.path());
    assert_eq!(next.reaped().len(), 1);
    assert_eq!(next.reaped()[0].id, "r-dead");
    assert_eq!(next.reaped()[0].cgroups, ["a/one", "two"]);
    assert!(!dead.exists() && store.run_dir().exists());
    // The one that reaped remembers them itself, in case it dies before it has removed them.
    next.note_cgroup("three").unwrap();
    assert!(next.note_cgroup("a\nb").is_err());
    assert_eq!(std::fs::read_to_string(next.run_dir().join("cgroups")).unwrap(), "a/one\ntwo\nthree\n");
    assert!(next.empty_trash(Duration::from_secs(60)).unwrap());
    assert!(open(store.path()).reaped().is_empty());
}

#[test]
fn blobs_are_checked_and_never_partial() {
    let (_dir, store) = rig();
    let digest = store.put_blob(b"hello").unwrap();
    assert_eq!(digest, Digest::of(b"hello"));
    assert_eq!(store.put_blob(b"hello").unwrap(), digest);
    assert_eq!(store.read_blob(&digest, 5).unwrap(), b"hello");
    assert!(matches!(store.read_blob(&digest, 4), Err(StoreError::TooLarge { size: 5, max: 4, .. })));
    let before = files(store.path());
    for expected in [(Digest::of(b"other"), 5), (digest, 6)] {
        let mut writer = store.blob_writer().unwrap();
        writer.write_all(b"hello").unwrap();
        let error = writer.commit(Some(expected)).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, CommitError::Mismatch { .. }));
        assert!(text.contains(&expected.0.to_string()) && text.contains(&digest.to_string()), "{text}");
    }
    let mut dropped = store.blob_writer().unwrap();
    dropped.write_all(b"half").unwrap();
    assert_eq!(dropped.written(), 4);
    drop(dropped);
    assert_eq!(files(store.path()), before);
    let missing = Digest::of(b"missing");
    assert!(!store.has_blob(&missing));
    assert!(matches!(store.open_blob(&missing), Err(StoreError::Missing { .. })));
    std::fs::write(store.blob_path(&digest), "hellO").unwrap();
    assert!(matches!(store.read_blob(&digest, 5), Err(StoreError::Damaged { .. })));
}

fn image(store: &Store, text: &str) -> Descriptor {
    let config = ImageConfig::scratch(keelway_model::Platform::host());
    let config = serde_json::to_vec(&config).unwrap();
    let layer = store.put_blob(text.as_bytes()).unwrap();
    let manifest = Manifest {
        schema_version: 2,
        media_type: None,
        config: Descriptor::new(media::CONFIG, store.put_blob(&config).unwrap(), config.len() as u64),
        layers: vec![Descriptor::new(media::LAYER, layer, text.len() as u64)],
        annotations: BTreeMap::new(),
        extra: BTreeMap::new(),
    };
    let bytes = serde_json::to_vec(&manifest).unwrap();
    Descriptor::new(media::MANIFEST, store.put_blob(&bytes).unwrap(), bytes.len() as u64)
}

#[test]
fn references_point_at_what_is_here() {
    let (_dir, store) = rig();
    let name: ImageRef = "r.example.com/a/b:1".parse().unwrap();
    let other: ImageRef = "r.example.com/a/a:1".parse().unwrap();
    let one = image(&store, "one");
    let gone = Descriptor::new(media::MANIFEST, Digest::of(b"gone"), 4);
    assert!(matches!(store.set_reference(&name, &gone), Err(StoreError::Missing { .. })));
    assert_eq!(store.reference(&name).unwrap(), None);
    store.set_reference(&name, &one).unwrap();
    store.set_reference(&other, &image(&store, "two")).unwrap();
    assert_eq!(store.reference(&name).unwrap(), Some(one.clone()));
    assert!(store.path().join("synced").exists());
    assert_eq!(store.references().unwrap().iter().map(|r| &r.0).collect::<Vec<_>>(), [&other, &name]);
    std::fs::remove_file(store.blob_path(&one.digest)).unwrap();
    assert_eq!(store.reference(&name).unwrap(), None);
    assert_eq!(store.references().unwrap().iter().map(|r| &r.0).collect::<Vec<_>>(), [&other]);
}

fn key(n: u8) -> CacheKey {
    CacheKey::new(Digest::of(b"step"), vec![(KeyPart::Command, Digest::of(&[n]))])
}

#[test]
fn a_cache_record_is_a_hit_only_while_all_it_names_is_here() {
    let (_dir, store) = rig();
    let id = snapshot(&store, |r| write(r, "f", b"x"));
    let chain = Chain { snapshots: vec![id.clone()], key: Digest::of(b"k") };
    let manifest = image(&store, "layer");
    let outputs = [
        Output::Nothing,
        Output::Chain(chain.clone()),
        Output::Image(ImageOutput { manifest, chain, base_layers: 0 }),
        Output::Pushed(PushedDigest::attested_by_registry(
            "r.example.com/a".parse().unwrap(),
            Digest::of(b""),
        )),
    ];
    assert!(store.last_parts(&key(0).identity).is_none());
    for (n, output) in (0u8..).zip(&outputs) {
        assert_eq!(store.cache_get(&key(n)), None);
        store.cache_put(&key(n), output).unwrap();
        assert_eq!(store.cache_get(&key(n)).as_ref(), Some(output));
        assert_eq!(store.last_parts(&key(n).identity), Some(key(n).parts));
    }
    std::fs::remove_file(store.blob_path(&Digest::of(b"layer"))).unwrap();
    assert_eq!(store.cache_get(&key(2)), None, "a layer of the image is gone");
    store.discard(&store.snapshot_path(&id)).unwrap();
    assert_eq!(store.cache_get(&key(1)), None, "the snapshot is gone");
    assert!(store.cache_get(&key(0)).is_some());
    let path = store.path().join("cache/keys").join(key(0).digest.hex());
    let good = std::fs::read(&path).unwrap();
    for damage in [&b""[..], b"x", &good[..good.len() - 1], &[0; 200]] {
        std::fs::write(&path, damage).unwrap();
        assert_eq!(store.cache_get(&key(0)), None);
    }
    std::fs::write(store.path().join("cache/last").join(key(0).identity.hex()), "{}").unwrap();
    assert!(store.last_parts(&key(0).identity).is_none());
}

#[test]
fn a_claim_is_had_by_one() {
    let (_dir, store) = rig();
    let k = Digest::of(b"k");
    let far = Instant::now() + Duration::from_secs(60);
    let held = store.try_claim(&k).unwrap().unwrap();
    assert!(store.try_claim(&k).unwrap().is_none());
    assert!(store.try_claim(&Digest::of(b"other")).unwrap().is_some());
    assert!(matches!(store.claim(&k, far, &|| true), Err(ClaimError::Lock(_))));
    let waiting = store.clone();
    let waiter = std::thread::spawn(move || waiting.claim(&k, far, &|| false).map(drop));
    drop(held);
    waiter.join().unwrap().unwrap();
    drop(store.try_claim(&k).unwrap().unwrap());
    assert!(!store.claim_path(&k).exists());
}

#[test]
fn many_threads_and_one_claim() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let (_dir, store) = rig();
    let (inside, most, done) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|s| {
        for _ in 0..6 {
            s.spawn(|| {
                // Another process, as far as the store can tell.
                let store = open(store.path());
                for n in 0u8..30 {
                    let far = Instant::now() + Duration::from_secs(60);
                    let claim = store.claim(&Digest::of(b"same"), far, &|| false).unwrap();
                    most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    store.put_blob(&[n; 1000]).unwrap();
                    store.cache_put(&key(n), &Output::Nothing).unwrap();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    done.fetch_add(1, Ordering::SeqCst);
                    drop(claim);
                }
            });
        }
    });
    assert_eq!((most.into_inner(), done.into_inner()), (1, 180));
    for n in 0u8..30 {
        assert_eq!(store.read_blob(&Digest::of(&[n; 1000]), 1000).unwrap(), [n; 1000]);
        assert!(store.cache_get(&key(n)).is_some());
    }
}

#[test]
fn what_a_crash_of_the_machine_may_have_lost_is_not_believed() {
    let (_dir, store) = rig();
    let path = store.path().to_path_buf();
    let sealed = snapshot(&store, |r| write(r, "f", b"sealed"));
    let sealed_blob = store.put_blob(b"sealed").unwrap();
    // The clock of the file system ticks in milliseconds; a mark must be newer than what it seals.
    let tick = Instant::now();
    while tick.elapsed() < Duration::from_millis(20) {
        std::thread::yield_now();
    }
    store.sync().unwrap();
    let loose = snapshot(&store, |r| write(r, "f", b"loose"));
    let (good, lost) = (store.put_blob(b"good").unwrap(), store.put_blob(b"lost").unwrap());
    std::fs::write(store.blob_path(&lost), b"\0\0\0\0").unwrap();
    drop(store);
    // The same boot: nothing to check.
    let store = open(&path);
    assert!(store.has_snapshot(&loose) && store.has_blob(&lost));
    drop(store);
    std::fs::write(path.join("boot"), "an earlier boot").unwrap();
    let mut store = open(&path);
    assert!(store.has_snapshot(&sealed) && store.has_blob(&sealed_blob));
    assert!(!store.has_snapshot(&loose), "an unsealed snapshot of an earlier boot");
    assert!(store.has_blob(&good) && !store.has_blob(&lost));
    // A mark that a crash has emptied or lost is as good as that of an earlier boot.
    for damage in ["emptied", "lost"] {
        let loose = snapshot(&store, |r| write(r, "f", damage.as_bytes()));
        drop(store);
        match damage {
            "emptied" => std::fs::write(path.join("boot"), "").unwrap(),
            _ => std::fs::remove_file(path.join("boot")).unwrap(),
        }
        store = open(&path);
        assert!(!store.has_snapshot(&loose) && store.has_snapshot(&sealed), "{damage}");
        assert!(!std::fs::read_to_string(path.join("boot")).unwrap().is_empty());
    }
}
