//! Stores that are whole and stores that are not: what is found, and what mending leaves.

use super::*;
use crate::prune::tests::{image, key, step};
use crate::tests::{open, rig, snapshot, write};
use keelway_model::mount::Sharing;
use keelway_model::{ImageRef, Output};
use std::fs;

fn looked(store: &Store, data: bool) -> Checked {
    store.check(&[], data, &|| false).unwrap()
}

fn problems(store: &Store, data: bool) -> Vec<String> {
    looked(store, data).findings.into_iter().map(|f| f.problem).collect()
}

/// Changes one byte in the middle, and no time.
fn flip(path: &Path) {
    let written = fs::metadata(path).unwrap().modified().unwrap();
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
    io::Write::write_all(&mut file, &bytes).unwrap();
    file.set_modified(written).unwrap();
}

/// A store with an image of two layers under a name, one layer unpacked from elsewhere, a cache mount; nothing held.
fn filled() -> (tempfile::TempDir, Store, Vec<SnapshotId>, Digest) {
    let (dir, store) = rig();
    let chain = step(&store, &step(&store, &[], 1), 2);
    let made = image(&store, &chain);
    store.set_reference(&"r.example.com/a:1".parse().unwrap(), &made).unwrap();
    let layer = store.layer_of(&chain[0], Compression::Gzip).unwrap();
    let unpacked = store.unpack(&layer.descriptor, &layer.diff_id).unwrap();
    let mount = store.try_cache_mount("m", None, Sharing::Shared).unwrap().unwrap();
    mount.fill(store.begin().unwrap()).unwrap();
    drop(mount);
    let path = store.path().to_path_buf();
    drop(store);
    let chain = chain.into_iter().chain([unpacked]).collect();
    (dir, open(&path), chain, made.digest)
}

#[test]
fn a_whole_store_is_found_whole_and_looking_changes_nothing() {
    let (_dir, store, chain, manifest) = filled();
    let blob = store.blob_path(&manifest);
    let long_ago = keelway_model::Timestamp(store.inner.clock.now().0 - 86_400_000);
    set_last_use(&blob, long_ago).unwrap();
    let checked = looked(&store, true);
    assert!(checked.is_clean(), "{checked:?}");
    assert_eq!((checked.snapshots, checked.mounts, checked.names), (3, 1, 1));
    assert!(checked.blobs == 4 && checked.records > 3, "{checked:?}");
    assert_eq!(last_use(&fs::metadata(&blob).unwrap()), long_ago);
    assert!(held(store.path()).unwrap().things.is_empty(), "nothing is held");
    assert!(!store.check(&[], false, &|| true).unwrap().finished);
    assert!(chain.iter().all(|id| store.snapshot_path(id).exists()));
}

#[test]
fn what_is_damaged_is_found_and_mended() {
    let (_dir, store, chain, manifest) = filled();
    let fs_of = |id: &SnapshotId| store.snapshot_path(id).join("fs/data");
    let layer = store.layer_of(&chain[1], Compression::Gzip).unwrap().descriptor.digest;
    let path = store.path().to_path_buf();
    let need = [Need { manifest, who: "container web".into() }];
    let key_file = store.cache("keys").join(key(1).digest.hex());

    // Only reading finds it.
    flip(&fs_of(&chain[0]));
    flip(&fs_of(&chain[2]));
    flip(&store.blob_path(&layer));
    flip(&key_file);
    let quick = problems(&store, false);
    assert_eq!(quick, ["this record of a step is damaged"]);
    let found = problems(&store, true);
    assert_eq!(found.len(), 4, "{found:?}");
    assert!(found[0].starts_with("/data is not what its layer has: its content differs"), "{found:?}");
    assert!(found[1].starts_with("its content was sha256:") && found[3].starts_with("its bytes are sha256:"));
    drop(store);

    // What was made anew meanwhile stays, and what is in use.
    let store = open(&path);
    let checked = store.check(&need, true, &|| false).unwrap();
    let user = open(&path);
    assert!(user.has_snapshot(&chain[0]));
    let record = fs::read(&key_file).unwrap();
    fs::remove_file(&key_file).unwrap();
    fs::write(&key_file, record).unwrap();
    let (mended, used) = store.mend(&checked.findings).unwrap();
    assert_eq!((mended, used.len()), (2, 1), "{used:?}");
    assert!(used[0].path.contains(chain[0].as_str()) && key_file.exists());
    drop(user);
    let checked = store.check(&need, true, &|| false).unwrap();
    let found: Vec<&str> = checked.findings.iter().map(|f| f.problem.as_str()).collect();
    let gone = format!("{layer} is missing or damaged");
    assert!(found.contains(&&*format!("the image r.example.com/a:1 is not whole: {gone}")), "{found:?}");
    assert!(found.contains(&&*format!("the image of container web is not whole: {gone}")), "{found:?}");
    assert_eq!(store.mend(&checked.findings).unwrap().0, 3, "{found:?}");
    // What a container needs is told until it is there.
    assert!(looked(&store, true).is_clean());
    assert_eq!(store.check(&need, false, &|| false).unwrap().findings.len(), 1);
    let name: ImageRef = "r.example.com/a:1".parse().unwrap();
    assert_eq!(store.reference(&name).unwrap(), None);
    assert!(store.cache_get(&key(1)).is_none(), "what is gone is made again");
    step(&store, &[], 1);
    assert!(matches!(store.cache_get(&key(1)), Some(Output::Chain(_))));
}

#[test]
fn what_should_not_be_there_and_what_is_cut_short() {
    let (_dir, store, chain, manifest) = filled();
    let root = store.path().to_path_buf();
    fs::write(root.join("blobs/sha256/zz"), "x").unwrap();
    let stray = root.join("blobs/sha256").join(&manifest.hex()[..2]).join("no-blob");
    fs::write(&stray, "x").unwrap();
    fs::create_dir(root.join("snapshots/Not A Snapshot")).unwrap();
    fs::create_dir(root.join("mounts").join("0".repeat(40))).unwrap();
    let layer: Layer =
        record::read(&store.snapshot_path(&chain[0]).join(Compression::Gzip.record())).unwrap();
    let cut = store.blob_path(&layer.descriptor.digest);
    fs::OpenOptions::new().write(true).open(&cut).unwrap().set_len(10).unwrap();
    fs::remove_dir_all(store.snapshot_path(&chain[1]).join("fs")).unwrap();
    flip(&store.snapshot_path(&chain[2]).join("meta.json"));
    fs::write(root.join("refs").join("0".repeat(64)), "x").unwrap();
    let found = looked(&store, false).findings;
    let mut problems: Vec<&str> = found.iter().map(|f| f.problem.as_str()).collect();
    problems.sort_unstable();
    let bytes = format!("this blob has 10 bytes, and {} by ", layer.descriptor.size);
    assert!(problems.iter().any(|p| p.starts_with(&bytes)), "{problems:?}");
    for words in [
        "it is no blob",
        "it is no folder of blobs",
        "it is no snapshot",
        "the files of this snapshot are missing",
        "the name of an image is damaged",
        "the record of this snapshot is missing or damaged",
        "the record or the files of this cache mount are missing or damaged",
    ] {
        assert!(problems.contains(&words), "{words}: {problems:?}");
    }
    assert_eq!(problems.len(), 8);
    assert!(found.iter().all(|f| f.remedy.contains("--repair")), "{found:?}");
    store.mend(&found).unwrap();
    let rest = looked(&store, false).findings;
    assert_eq!(rest.len(), 1, "the name whose layer is gone: {rest:?}");
    store.mend(&rest).unwrap();
    assert!(looked(&store, true).is_clean());
    let _ = snapshot(&store, |r| write(r, "still", b"works"));
}

#[test]
fn files_of_a_newer_keelway_are_left_alone() {
    let (_dir, store, chain, _) = filled();
    let meta = store.snapshot_path(&chain[0]).join("meta.json");
    let newer = SnapshotMeta { version: META_VERSION + 1, diff_id: None, size: None };
    fs::write(&meta, record::encode(&newer).unwrap()).unwrap();
    let found = looked(&store, true).findings;
    assert!(found.len() == 1 && found[0].problem.contains("is newer than this keelway"), "{found:?}");
    assert_eq!(store.mend(&found).unwrap(), (0, Vec::new()));
}
