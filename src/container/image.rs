//! An image of the store, made ready to run: its config and its chain of snapshots.

use keelway_model::oci::{ImageConfig, Manifest, media};
use keelway_model::{Digest, Platform, SnapshotId};
use keelway_store::{Store, StoreError, UnpackError};

/// Largest manifest and config that are read.
const MAX_DOCUMENT: u64 = 4 << 20;

/// An image whose layers are unpacked.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of its manifest.
    pub digest: Digest,
    /// Its config.
    pub config: ImageConfig,
    /// Its root file system, lowest first.
    pub chain: Vec<SnapshotId>,
}

/// Why an image cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The store failed, or does not have it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer cannot be unpacked.
    #[error("cannot unpack image {digest}: {source}")]
    Unpack {
        /// The manifest.
        digest: Digest,
        /// The cause.
        #[source]
        source: Box<UnpackError>,
    },
    /// Its documents make no sense.
    #[error("image {digest} is malformed: {problem}; build and push it again")]
    Malformed {
        /// The manifest.
        digest: Digest,
        /// What is wrong.
        problem: String,
    },
    /// It is for another machine.
    #[error("image {digest} is for {image}, this machine runs {machine}; build it for this platform")]
    Platform {
        /// The manifest.
        digest: Digest,
        /// What it is for.
        image: Box<Platform>,
        /// What this is.
        machine: Box<Platform>,
    },
}

impl Image {
    /// Reads manifest and config, without touching the layers.
    pub fn documents(store: &Store, digest: Digest) -> Result<(Manifest, ImageConfig), ImageError> {
        let malformed = |problem: String| ImageError::Malformed { digest, problem };
        let bytes = store.read_blob(&digest, MAX_DOCUMENT)?;
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|e| malformed(format!("its manifest: {e}")))?;
        if manifest.media_type.as_deref().is_some_and(|t| !media::is_manifest(t)) {
            return Err(malformed("the digest names no manifest of one image".into()));
        }
        let bytes = store.read_blob(&manifest.config.digest, MAX_DOCUMENT)?;
        let config: ImageConfig =
            serde_json::from_slice(&bytes).map_err(|e| malformed(format!("its config: {e}")))?;
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            let (have, named) = (manifest.layers.len(), config.rootfs.diff_ids.len());
            return Err(malformed(format!("{have} layers in the manifest, {named} in the config")));
        }
        Ok((manifest, config))
    }

    /// Reads an image whose blobs are in the store and unpacks what is not unpacked yet. Blocking.
    pub fn prepare(store: &Store, digest: Digest) -> Result<Self, ImageError> {
        let (manifest, config) = Self::documents(store, digest)?;
        let machine = Platform::host();
        if !machine.accepts(&config.platform) {
            return Err(ImageError::Platform {
                digest,
                image: Box::new(config.platform),
                machine: Box::new(machine),
            });
        }
        let layers = manifest.layers.iter().zip(&config.rootfs.diff_ids);
        let chain = layers.map(|(layer, diff_id)| store.unpack(layer, diff_id));
        let chain: Result<Vec<SnapshotId>, UnpackError> = chain.collect();
        let chain = chain.map_err(|source| ImageError::Unpack { digest, source: Box::new(source) })?;
        Ok(Self { digest, config, chain })
    }
}
