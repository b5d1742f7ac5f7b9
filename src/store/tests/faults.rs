//! Every step of the disk fails once: the store stays whole.

use super::*;
use keelway_model::oci::{Descriptor, media};
use keelway_model::{CacheKey, Digest, ImageRef, KeyPart, Output};
use std::io::Write;

/// All that changes a store, one after the other; stops at the first error.
fn everything(store: &Store) -> Result<(), Box<dyn std::error::Error>> {
    store.put_blob(b"a blob")?;
    let mut writer = store.blob_writer()?;
    writer.write_all(b"streamed")?;
    writer.write_all(b" in pieces")?;
    writer.commit(None)?;
    let upper = store.begin()?;
    write(&upper.root()?, "dir/file", b"content");
    let id = upper.freeze()?;
    let gzip = store.layer_of(&id, Compression::Gzip)?;
    let plain = store.layer_of(&id, Compression::None)?;
    assert_eq!(gzip.diff_id, plain.diff_id);
    let base = store.unpack(&gzip.descriptor, &gzip.diff_id)?;
    assert_eq!(contents(&store.view(&[base])?), contents(&store.view(std::slice::from_ref(&id))?));
    let key = CacheKey::new(Digest::of(b"i"), vec![(KeyPart::Base, Digest::of(b"b"))]);
    store.cache_put(&key, &Output::Nothing)?;
    let name: ImageRef = "r.example.com/a:1".parse()?;
    store.set_reference(&name, &Descriptor::new(media::MANIFEST, Digest::of(b"a blob"), 6))?;
    Ok(())
}

/// Whatever is visible is whole.
fn assert_whole(path: &Path) {
    let store = open(path);
    for file in files(&path.join("blobs/sha256")).iter().filter(|f| f.components().count() == 2) {
        let digest = Digest::from_hex(file.file_name().unwrap().to_str().unwrap()).unwrap();
        store.read_blob(&digest, u64::MAX).unwrap();
    }
    for entry in std::fs::read_dir(path.join("snapshots")).unwrap() {
        let id: SnapshotId = entry.unwrap().file_name().to_str().unwrap().parse().unwrap();
        store.snapshot_meta(&id).unwrap();
        assert_eq!(names(&contents(&store.view(&[id]).unwrap())), ["dir", "dir/file"]);
    }
    for (_, target) in store.references().unwrap() {
        assert!(store.has_blob(&target.digest));
    }
    drop(store);
    assert_clean(path);
}

#[test]
fn the_nth_step_fails_for_every_n() {
    let faults = Faults::never();
    let dir = temp();
    everything(&with_faults(&dir.path().join("s"), faults.clone()).unwrap()).unwrap();
    let steps = faults.seen();
    assert!(steps > 25, "{steps} steps are watched");
    for n in 1..=steps + 1 {
        let dir = temp();
        let path = dir.path().join("s");
        let done = match with_faults(&path, Faults::fail_at(n)) {
            Ok(store) => everything(&store).map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        assert_eq!(done.is_ok(), n > steps, "step {n}: {done:?}");
        if let Err(text) = done {
            assert!(text.contains("injected fault"), "step {n}: {text}");
        }
        assert_whole(&path);
        // And all of it works afterwards.
        everything(&open(&path)).unwrap();
    }
}
