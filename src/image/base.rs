//! Chains: the root file system of a base, and what a step adds to it.

use crate::error::StepError;
use keelway_model::plan::{BaseOp, Chain};
use keelway_model::{CacheKey, Digest, Hasher, SnapshotId, oci};
use keelway_store::{Store, Upper};

/// Largest manifest or config that is read.
pub(crate) const MAX_JSON: u64 = 4 << 20;

/// The chain of a pinned base whose layer blobs are in the store: unpacks what is not unpacked yet. Layers
/// are unpacked side by side, at most four at a time.
pub fn unpack(store: &Store, op: &BaseOp) -> Result<Chain, StepError> {
    let Some(descriptor) = &op.manifest else {
        return Ok(empty());
    };
    let manifest = manifest(store, descriptor)?;
    let diff_ids = &op.config.rootfs.diff_ids;
    if diff_ids.len() != manifest.layers.len() {
        return Err(StepError::Refused(format!(
            "the base {} has {} layers and {} diff ids in its config: it is damaged",
            descriptor.digest,
            manifest.layers.len(),
            diff_ids.len()
        )));
    }
    let work: Vec<_> = manifest.layers.iter().zip(diff_ids).collect();
    let mut snapshots = Vec::with_capacity(work.len());
    for some in work.chunks(4) {
        let unpacked: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                some.iter().map(|(layer, diff_id)| scope.spawn(|| store.unpack(layer, diff_id))).collect();
            threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        for result in unpacked {
            match result {
                Ok(snapshot) => snapshots.push(snapshot?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    }
    Ok(Chain { snapshots, key: chain_key(diff_ids) })
}

/// Reads a manifest of one image from the store.
pub(crate) fn manifest(store: &Store, descriptor: &oci::Descriptor) -> Result<oci::Manifest, StepError> {
    let bytes = store.read_blob(&descriptor.digest, MAX_JSON)?;
    serde_json::from_slice(&bytes)
        .map_err(|e| StepError::Refused(format!("the manifest {} is malformed: {e}", descriptor.digest)))
}

/// The key that names a chain of base layers: equal layers give equal keys, whatever tag or config they came with.
pub fn chain_key(diff_ids: &[Digest]) -> Digest {
    let mut h = Hasher::new();
    h.field(b"keelway base chain");
    for id in diff_ids {
        h.field(id.as_bytes());
    }
    h.finish()
}

/// Freezes what a step wrote and puts it on top of the chain it stood on. Every step adds one snapshot, also
/// one that wrote nothing: the image gets an empty layer then, as with BuildKit.
pub fn extend(below: &Chain, upper: Upper, key: &CacheKey) -> Result<Chain, StepError> {
    let snapshot = upper.freeze()?;
    let mut h = Hasher::new();
    h.field(b"keelway step chain").field(key.digest.as_bytes());
    Ok(on_top(below, snapshot, h.finish()))
}

/// The same for a step that was run anew on purpose: its key has a result already, and what stands on this one must not
/// be found by that.
pub fn extend_anew(below: &Chain, upper: Upper, key: &CacheKey) -> Result<Chain, StepError> {
    let snapshot = upper.freeze()?;
    let mut h = Hasher::new();
    h.field(b"keelway anew chain").field(key.digest.as_bytes()).field(snapshot.as_str().as_bytes());
    Ok(on_top(below, snapshot, h.finish()))
}

fn on_top(below: &Chain, snapshot: SnapshotId, key: Digest) -> Chain {
    let mut snapshots = below.snapshots.clone();
    snapshots.push(snapshot);
    Chain { snapshots, key }
}

/// Puts what was made on its own on top of a chain: `COPY --link`.
pub fn link(below: &Chain, linked: &Chain) -> Chain {
    let mut h = Hasher::new();
    h.field(b"keelway link chain").field(below.key.as_bytes()).field(linked.key.as_bytes());
    Chain { snapshots: [&below.snapshots[..], &linked.snapshots].concat(), key: h.finish() }
}

/// The empty root.
pub(crate) fn empty() -> Chain {
    Chain { snapshots: Vec::new(), key: chain_key(&[]) }
}
