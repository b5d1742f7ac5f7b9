//! Caches written and read back, merged, and lied about.

use super::*;
use crate::testing::{Rig, dump, put as file};
use crate::{export, import};
use keelway_model::KeyPart;
use std::fs;

fn platform() -> Platform {
    "linux/amd64".parse().unwrap()
}

fn key(command: &str, base: &str) -> CacheKey {
    let part = |part, text: &str| (part, Digest::of(text.as_bytes()));
    CacheKey::new(Digest::of(b"x"), vec![part(KeyPart::Base, base), part(KeyPart::Command, command)])
}

/// A cache with one step over one file, and what the step gave.
fn cached(rig: &Rig, command: &str) -> (Cache, Chain) {
    let below = rig.on(&[], |r| file(r, "below", "1"));
    let chain = rig.on(&[&below], |r| file(r, "made", command));
    let mut cache = Cache::default();
    cache.add(&rig.store, &key(command, "a"), &chain, &platform()).unwrap();
    (cache, chain)
}

/// Where the step is found in another store, whose base has the same bytes.
fn place(rig: &Rig, command: &str) -> (Place, Chain, Vec<Digest>) {
    let below = rig.on(&[], |r| file(r, "below", "1"));
    let ids = diff_ids(&rig.store, &below.snapshots).unwrap();
    // What its key said of the base does not count.
    (Place::new(&key(command, "another"), &ids, &platform()), below, ids)
}

#[test]
fn a_step_is_found_in_another_store_by_what_lies_below() {
    let (one, two) = (Rig::new(), Rig::new());
    let (cache, chain) = cached(&one, "make");
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let at = dir.path().join("cache");
    assert!(import::artifact(&two.store, &at, "main", MAX_CONFIG).unwrap().is_none());
    export::cache(&one.store, cache.clone(), "main", &at).unwrap();
    assert!(import::artifact(&two.store, &at, "other", MAX_CONFIG).unwrap().is_none());
    let (manifest, config) = import::artifact(&two.store, &at, "main", MAX_CONFIG).unwrap().unwrap();
    let read = Cache::read(&manifest, &config).unwrap();
    let (found, below, ids) = place(&two, "make");
    assert!(read.knows(&key("make", "z")) && !read.knows(&key("make all", "z")));
    let layer = read.get(&found).unwrap();
    assert_eq!(read.get(&place(&two, "make all").0), None);
    let arm = Place::new(&key("make", "z"), &ids, &"linux/arm64".parse().unwrap());
    assert_eq!(read.get(&arm), None, "another platform");
    let other = two.on(&[], |r| file(r, "below", "2"));
    let others = diff_ids(&two.store, &other.snapshots).unwrap();
    assert_eq!(read.get(&Place::new(&key("make", "z"), &others, &platform())), None);
    import::blob(&two.store, &at, &layer.descriptor).unwrap();
    let made = on_top(&two.store, &below, &ids, layer).unwrap();
    assert_eq!(dump(&two.store, &made), dump(&one.store, &chain));
    let all = diff_ids(&two.store, &made.snapshots).unwrap();
    assert_eq!(made.key, chain_key(&all), "it counts as what it holds, not as what the step promises");
    // The same cache again is the same cache.
    assert_eq!(read.write(&two.store).unwrap(), cache.write(&one.store).unwrap());
}

#[test]
fn what_others_wrote_stays_for_a_while() {
    let rig = Rig::new();
    let mut cache = cached(&rig, "mine").0;
    for _ in 0..MAX_AGE {
        cache = cached(&rig, "theirs").0.after(cache);
        assert_eq!(cache.len(), 2);
    }
    let used = cached(&rig, "mine").0.after(cache.clone());
    assert_eq!(used.len(), 2, "used again, it is young again");
    assert_eq!(cached(&rig, "theirs").0.after(cache).len(), 1, "nobody has used it for too long");
}

#[test]
fn a_directory_keeps_only_what_is_whole_and_named() {
    let rig = Rig::new();
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let blobs = || fs::read_dir(dir.path().join("blobs/sha256")).unwrap().count();
    let (one, two) = (cached(&rig, "one").0, cached(&rig, "two").0);
    export::cache(&rig.store, one.clone(), "a", dir.path()).unwrap();
    assert_eq!(blobs(), 3, "manifest, config, layer");
    let both = export::cache(&rig.store, two, "a", dir.path()).unwrap();
    assert_eq!((both.len(), blobs()), (2, 4), "the first manifest and config are gone");
    // A damaged layer of others is forgotten, one of ours is written anew.
    for layer in both.layers() {
        let path = dir.path().join(format!("blobs/sha256/{}", layer.descriptor.digest.hex()));
        fs::write(path, vec![0; layer.descriptor.size as usize]).unwrap();
    }
    let mended = export::cache(&rig.store, one, "a", dir.path()).unwrap();
    assert_eq!((mended.len(), blobs()), (1, 3));
    let layer = &mended.layers()[0];
    let other = Rig::new();
    import::blob(&other.store, dir.path(), &layer.descriptor).unwrap();
}

#[test]
fn what_is_not_sound_is_refused() {
    let rig = Rig::new();
    let (cache, _) = cached(&rig, "make");
    let descriptor = cache.write(&rig.store).unwrap();
    let manifest: Manifest =
        serde_json::from_slice(&rig.store.read_blob(&descriptor.digest, 1 << 20).unwrap()).unwrap();
    let config = rig.store.read_blob(&manifest.config.digest, 1 << 20).unwrap();
    let good: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let changed = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut value = good.clone();
        change(&mut value);
        Cache::read(&manifest, value.to_string().as_bytes()).unwrap_err()
    };
    assert!(changed(&|v| v["version"] = 2.into()).contains("form 2"));
    assert!(changed(&|v| v["records"][0]["layer"] = 1.into()).contains("not there"));
    assert!(changed(&|v| v["layers"] = serde_json::json!([])).contains("numbers"));
    let image = Manifest { config: Descriptor::new(media::CONFIG, descriptor.digest, 1), ..manifest.clone() };
    assert!(Cache::read(&image, &config).unwrap_err().contains("no cache"));
    let mut odd = manifest.clone();
    odd.layers[0].media_type = "text/plain".into();
    assert!(Cache::read(&odd, &config).unwrap_err().contains("no kind"));
    // A layer that is not what the record says it is: nothing is made of it.
    let (found, below, ids) = place(&rig, "make");
    let mut layer = cache.get(&found).unwrap().clone();
    layer.diff_id = Digest::of(b"something else");
    assert!(on_top(&rig.store, &below, &ids, &layer).is_err());
}
