//! The end of a build: layers, config, manifest.
//!
//! The same chain, config and time give the same bytes on any machine. The base's layers are taken over as
//! they are, descriptor and compression included; media types of the manifest are OCI's. Every step has one
//! layer, also where it changed nothing, so that history and layers always tell the same story.

use crate::base::manifest;
use crate::error::StepError;
use keelway_model::oci::{Descriptor, Extra, Manifest, RootFs, media};
use keelway_model::plan::{AssembleOp, Chain, ImageOutput};
use keelway_model::{SnapshotId, Timestamp};
use keelway_store::{Compression, Layer, Store};
use std::collections::BTreeMap;

/// Makes the compressed layer of a snapshot, so that [`assemble()`] finds it remembered. May run while later steps do.
pub fn prepare_layer(store: &Store, snapshot: &SnapshotId) -> Result<Layer, StepError> {
    Ok(store.layer_of(snapshot, Compression::Gzip)?)
}

/// Writes config and manifest over `chain`, whose lowest snapshots are the base's. `created` goes into config
/// and history of the steps of this build; the base's history keeps its own times.
pub fn assemble(
    store: &Store,
    op: &AssembleOp,
    chain: &Chain,
    created: Timestamp,
) -> Result<ImageOutput, StepError> {
    let mut layers = match &op.base {
        Some(base) => manifest(store, base)?.layers,
        None => Vec::new(),
    };
    let base_layers = layers.len();
    let mut config = (*op.config).clone();
    let mut diff_ids = config.rootfs.diff_ids.clone();
    let steps = op.history.iter().filter(|h| !h.empty_layer).count();
    if layers.len() != diff_ids.len() || layers.len() + steps != chain.snapshots.len() {
        return Err(StepError::Inputs { op: "assemble", why: "layers, history and chain do not agree" });
    }
    for snapshot in &chain.snapshots[layers.len()..] {
        let layer = prepare_layer(store, snapshot)?;
        layers.push(layer.descriptor);
        diff_ids.push(layer.diff_id);
    }
    let created = Timestamp::from_seconds(created.seconds()).to_string();
    for mut line in op.history.iter().cloned() {
        line.created = Some(created.clone());
        config.history.push(line);
    }
    config.rootfs = RootFs { kind: "layers".to_owned(), diff_ids };
    config.created = Some(created);
    let config = put(store, media::CONFIG, &config)?;
    for layer in &mut layers {
        // The blob is the same; only its name in an OCI manifest differs from Docker's.
        layer.media_type = match layer.media_type.as_str() {
            media::DOCKER_LAYER_GZIP => media::LAYER_GZIP.to_owned(),
            media::DOCKER_LAYER => media::LAYER.to_owned(),
            _ => std::mem::take(&mut layer.media_type),
        };
    }
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media::MANIFEST.to_owned()),
        config,
        layers,
        annotations: BTreeMap::new(),
        extra: Extra::new(),
    };
    Ok(ImageOutput { manifest: put(store, media::MANIFEST, &manifest)?, chain: chain.clone(), base_layers })
}

pub(crate) fn put(
    store: &Store,
    media_type: &str,
    document: &impl serde::Serialize,
) -> Result<Descriptor, StepError> {
    let bytes = serde_json::to_vec(document)
        .map_err(|e| StepError::Refused(format!("cannot write {media_type}: {e}")))?;
    let digest = store.put_blob(&bytes)?;
    Ok(Descriptor::new(media_type, digest, bytes.len() as u64))
}
