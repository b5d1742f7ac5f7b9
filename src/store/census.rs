//! A count of everything in a store: how large it is, when it was used last, what needs what.
//!
//! Looking changes nothing: no hold is taken and no use noted. What vanishes meanwhile is as if it had not been there.

use crate::cache::Kept;
use crate::cache_mount::CacheMountEntry;
use crate::error::StoreError;
use crate::hold::Thing;
use crate::layer::{Compression, Layer};
use crate::open::Store;
use crate::record;
use crate::refs::Reference;
use crate::snapshot::{SnapshotMeta, taken};
use crate::used::{last_use, on_disk, open_quietly};
use keelway_disk::Sync;
use keelway_model::oci::Manifest;
use keelway_model::{Digest, ImageRef, Output, SnapshotId, Timestamp};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Where the size of a snapshot is remembered that an older Keelway made.
const SIZE: &str = "size.json";

/// Longest document read.
const MAX_DOCUMENT: u64 = 4 << 20;

/// How large something is, and when it was used last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mass {
    pub(crate) size: u64,
    pub(crate) used: Timestamp,
}

/// A snapshot.
#[derive(Debug)]
pub(crate) struct SnapshotItem {
    pub(crate) mass: Mass,
    /// Blobs without which it is of no use: it was unpacked from one of them, and has no other way into an image.
    pub(crate) needs: Vec<Digest>,
}

/// What a look at a snapshot gave.
pub(crate) enum Item {
    /// What is known of it.
    Here(SnapshotItem),
    /// It is not here, or has no record: nobody can use it.
    Gone,
    /// There was no time to measure it.
    Late,
}

/// Something small that is of no use without all that it names: a step's output, or the name of an image.
#[derive(Debug)]
pub(crate) struct User {
    /// Its file.
    pub(crate) path: PathBuf,
    pub(crate) mass: Mass,
    /// What it needs, in the order of a chain.
    pub(crate) things: Vec<Thing>,
}

/// The name of an image.
#[derive(Debug)]
pub(crate) struct Name {
    pub(crate) name: ImageRef,
    pub(crate) manifest: Digest,
    /// The inode of its file: another one says it anew.
    pub(crate) inode: u64,
    pub(crate) user: User,
}

/// Everything.
#[derive(Debug, Default)]
pub(crate) struct Census {
    pub(crate) snapshots: BTreeMap<SnapshotId, SnapshotItem>,
    pub(crate) blobs: BTreeMap<Digest, Mass>,
    /// Cache mounts, and what people call them.
    pub(crate) mounts: BTreeMap<String, (Mass, String)>,
    /// Outputs of steps.
    pub(crate) records: Vec<User>,
    /// What explains misses, and what steps gave on other bases: of use for as long as anything, and needed by nothing.
    pub(crate) last: Vec<User>,
    pub(crate) names: Vec<Name>,
    /// Bytes of what is never collected one by one: names, locks, the table of content keys.
    pub(crate) other: u64,
}

impl Census {
    /// Bytes of the disk that all of it takes.
    pub(crate) fn total(&self) -> u64 {
        let small = self.records.iter().chain(&self.last).map(|u| u.mass.size);
        let names = self.names.iter().map(|n| n.user.mass.size);
        let snapshots = self.snapshots.values().map(|s| s.mass.size);
        let blobs = self.blobs.values().map(|b| b.size);
        let mounts = self.mounts.values().map(|(m, _)| m.size);
        small.chain(names).chain(snapshots).chain(blobs).chain(mounts).sum::<u64>().saturating_add(self.other)
    }

    /// What is known of a thing, `None` when it is not here.
    pub(crate) fn mass(&self, thing: &Thing) -> Option<Mass> {
        match thing {
            Thing::Snapshot(id) => self.snapshots.get(id).map(|s| s.mass),
            Thing::Blob(digest) => self.blobs.get(digest).copied(),
            Thing::Mount(name) => self.mounts.get(name).map(|(mass, _)| *mass),
        }
    }
}

/// Names of a folder; empty where it is not there.
pub(crate) fn listed(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(StoreError::io("list", dir)(e)),
    };
    let mut out = Vec::new();
    for entry in entries {
        out.push(entry.map_err(StoreError::io("list", dir))?.path());
    }
    out.sort();
    Ok(out)
}

pub(crate) fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|n| n.to_str()).unwrap_or_default()
}

fn mass(path: &Path) -> Option<Mass> {
    let stat = path.symlink_metadata().ok()?;
    Some(Mass { size: on_disk(&stat), used: last_use(&stat) })
}

/// What the documents of images name.
#[derive(Default)]
pub(crate) struct Documents(HashMap<Digest, Vec<Thing>>);

impl Documents {
    /// Everything that the image with this manifest needs to be run, pushed or built upon: the manifest itself, config
    /// and layers, of an index those of its images that are here. Where a layer's blob is gone, the snapshot that it was
    /// unpacked to.
    pub(crate) fn image(&mut self, store: &Store, manifest: &Digest) -> Vec<Thing> {
        if let Some(known) = self.0.get(manifest) {
            return known.clone();
        }
        let mut out = vec![Thing::Blob(*manifest)];
        let mut whole = store.blob_is_there(manifest);
        for inner in members(store, manifest) {
            out.push(Thing::Blob(inner));
            whole &= image_of(store, &inner, &mut out);
        }
        whole &= image_of(store, manifest, &mut out);
        // What is not here yet may come, and then it says more.
        if whole {
            self.0.insert(*manifest, out.clone());
        }
        out
    }

    /// The snapshots that this image is unpacked to, or would be.
    pub(crate) fn unpacked(&self, store: &Store, manifest: &Digest) -> Vec<Thing> {
        let found = document(store, manifest).and_then(|b| serde_json::from_slice::<Manifest>(&b).ok());
        let diff_ids = found.map(|m| diff_ids(store, &m)).unwrap_or_default();
        diff_ids.iter().filter_map(|d| crate::snapshot::layer_snapshot(d).ok()).map(Thing::Snapshot).collect()
    }
}

/// A document of the store that is what its name says.
fn document(store: &Store, digest: &Digest) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut file = open_quietly(&store.blob_path(digest)).ok()?;
    let size = file.metadata().ok()?.len();
    // Layers are no documents.
    file.by_ref().take(1).read_to_end(&mut bytes).ok()?;
    if size > MAX_DOCUMENT || bytes != b"{" {
        return None;
    }
    file.take(MAX_DOCUMENT).read_to_end(&mut bytes).ok()?;
    (Digest::of(&bytes) == *digest).then_some(bytes)
}

/// The manifests of an index.
fn members(store: &Store, index: &Digest) -> Vec<Digest> {
    #[derive(serde::Deserialize)]
    struct Index {
        manifests: Vec<keelway_model::oci::Descriptor>,
    }
    let index = document(store, index).and_then(|b| serde_json::from_slice::<Index>(&b).ok());
    index.map(|i| i.manifests.into_iter().map(|m| m.digest).collect()).unwrap_or_default()
}

fn diff_ids(store: &Store, manifest: &Manifest) -> Vec<Digest> {
    let config = document(store, &manifest.config.digest)
        .and_then(|b| serde_json::from_slice::<keelway_model::oci::ImageConfig>(&b).ok());
    config.map(|c| c.rootfs.diff_ids).unwrap_or_default()
}

/// Adds what a manifest names; says whether all that can name more is here.
fn image_of(store: &Store, manifest: &Digest, out: &mut Vec<Thing>) -> bool {
    let Some(bytes) = document(store, manifest) else { return store.blob_is_there(manifest) };
    let Ok(found) = serde_json::from_slice::<Manifest>(&bytes) else { return true };
    out.push(Thing::Blob(found.config.digest));
    let diff_ids = diff_ids(store, &found);
    for (n, layer) in found.layers.iter().enumerate() {
        if !store.blob_is_there(&layer.digest)
            && let Some(diff_id) = diff_ids.get(n)
            && let Ok(id) = crate::snapshot::layer_snapshot(diff_id)
        {
            out.push(Thing::Snapshot(id));
        }
        out.push(Thing::Blob(layer.digest));
    }
    store.blob_is_there(&found.config.digest) && found.layers.iter().all(|l| store.blob_is_there(&l.digest))
}

/// What is missing of the image with this manifest, of an index of those of its images that are here; of what is
/// here the lengths that it says.
pub(crate) fn missing(
    store: &Store,
    manifest: &Digest,
    lengths: &mut HashMap<Digest, (u64, String)>,
) -> Vec<Digest> {
    if !store.blob_is_there(manifest) {
        return vec![*manifest];
    }
    let mut out = Vec::new();
    let inner: Vec<Digest> =
        members(store, manifest).into_iter().filter(|m| store.blob_is_there(m)).collect();
    for manifest in inner.iter().chain([manifest]) {
        let Some(bytes) = document(store, manifest) else {
            out.push(*manifest);
            continue;
        };
        let found = serde_json::from_slice::<Manifest>(&bytes).ok();
        for part in found.iter().flat_map(|m| m.layers.iter().chain([&m.config])) {
            match store.blob_is_there(&part.digest) {
                true => _ = lengths.insert(part.digest, (part.size, format!("the image {manifest}"))),
                false => out.push(part.digest),
            }
        }
    }
    out
}

/// What a recorded output needs.
fn needs_of(store: &Store, documents: &mut Documents, output: &Output) -> Vec<Thing> {
    let chain = |c: &keelway_model::plan::Chain| c.snapshots.iter().cloned().map(Thing::Snapshot).collect();
    match output {
        Output::Nothing | Output::Pushed(_) => Vec::new(),
        Output::Chain(c) => chain(c),
        Output::Image(image) => {
            let mut things: Vec<Thing> = chain(&image.chain);
            things.extend(documents.image(store, &image.manifest.digest));
            things
        }
    }
}

impl Store {
    /// Counts everything; `None` when there was no time for it. What was measured until then is remembered.
    pub(crate) fn census(
        &self,
        documents: &mut Documents,
        deadline: Option<Instant>,
    ) -> Result<Option<Census>, StoreError> {
        let root = self.path();
        let mut out = Census::default();
        for path in listed(&root.join("snapshots"))? {
            if let Ok(id) = file_name(&path).parse::<SnapshotId>() {
                match self.snapshot_item(&path, deadline) {
                    Item::Here(item) => _ = out.snapshots.insert(id, item),
                    Item::Gone => {}
                    Item::Late => return Ok(None),
                }
            }
        }
        for CacheMountEntry { name, meta, .. } in self.cache_mounts()? {
            let Some(size) = self.mount_size(&name, deadline) else { return Ok(None) };
            out.mounts.insert(name, (Mass { size, used: meta.last_used }, meta.id));
        }
        for folder in listed(&root.join("blobs/sha256"))? {
            for path in listed(&folder)? {
                if let (Ok(digest), Some(mass)) = (Digest::from_hex(file_name(&path)), mass(&path)) {
                    out.blobs.insert(digest, mass);
                }
            }
        }
        for path in listed(&root.join("cache/keys"))? {
            let Some(mass) = mass(&path) else { continue };
            let kept: Option<Kept> = record::read(&path);
            // A record that cannot be read needs what is not there.
            let things = match kept {
                Some(kept) => needs_of(self, documents, &kept.output),
                None => vec![Thing::Blob(Digest::of(b"keelway: no such blob"))],
            };
            out.records.push(User { path, mass, things });
        }
        for folder in ["cache/last", "cache/steps"] {
            for path in listed(&root.join(folder))? {
                if let Some(mass) = mass(&path) {
                    out.last.push(User { path, mass, things: Vec::new() });
                }
            }
        }
        out.names = self.names(documents)?;
        for folder in ["cache/memo", "locks"] {
            out.other +=
                listed(&root.join(folder))?.iter().filter_map(|p| mass(p)).map(|m| m.size).sum::<u64>();
        }
        Ok(Some(out))
    }

    /// The names of images that can be read.
    pub(crate) fn names(&self, documents: &mut Documents) -> Result<Vec<Name>, StoreError> {
        let mut out = Vec::new();
        for path in listed(&self.path().join("refs"))? {
            let (Some(found), Some(own)) = (record::read::<Reference>(&path), mass(&path)) else { continue };
            let manifest = found.target.digest;
            // A name was used when its manifest was.
            let used = mass(&self.blob_path(&manifest)).map_or(own.used, |m| m.used.max(own.used));
            let things = documents.image(self, &manifest);
            let Ok(inode) = path.symlink_metadata().map(|stat| stat.ino()) else { continue };
            let user = User { path, mass: Mass { used, ..own }, things };
            out.push(Name { name: found.name, manifest, inode, user });
        }
        Ok(out)
    }

    /// What is known of the snapshot in `dir`.
    pub(crate) fn snapshot_item(&self, dir: &Path, deadline: Option<Instant>) -> Item {
        let path = dir.join("meta.json");
        let Some(stat) = mass(&path) else { return Item::Gone };
        let meta: Option<SnapshotMeta> = record::read(&path);
        let known = meta.as_ref().and_then(|m| m.size).or_else(|| record::read(&dir.join(SIZE)));
        let Some(files) = known.or_else(|| self.measured(dir, deadline)) else { return Item::Late };
        let mut size = files.saturating_add(stat.size);
        let unpacked = meta.is_some_and(|m| m.diff_id.is_some());
        let mut needs = BTreeSet::new();
        for form in Compression::ALL {
            let path = dir.join(form.record());
            let Some(own) = mass(&path) else { continue };
            size = size.saturating_add(own.size);
            if unpacked && let Some(layer) = record::read::<Layer>(&path) {
                needs.insert(layer.descriptor.digest);
            }
        }
        let needs = needs.into_iter().collect();
        Item::Here(SnapshotItem { mass: Mass { size, used: stat.used }, needs })
    }

    /// The size of a snapshot that does not know it, which it then does.
    fn measured(&self, dir: &Path, deadline: Option<Instant>) -> Option<u64> {
        let size = taken(&dir.join("fs"), deadline)?;
        // What cannot be remembered is measured again.
        if let Ok(bytes) = record::encode(&size)
            && let Err(e) = self.publish(dir, SIZE, &bytes, Sync::No)
        {
            tracing::debug!("{e}");
        }
        Some(size)
    }
}
