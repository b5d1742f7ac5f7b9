//! Pulling.

use crate::progress::ProgressFn;
use crate::{Client, RegistryError};
use keelway_model::oci::{Descriptor, ImageConfig, Manifest};
use keelway_model::{ImageRef, Platform, Repository};
use keelway_store::Store;

/// An image of a registry, pinned.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// What the reference names: an index where there is one, else the manifest. Its digest pins the reference.
    pub pinned: Descriptor,
    /// The manifest of the image for the platform.
    pub descriptor: Descriptor,
    /// The manifest's exact bytes.
    pub manifest_bytes: Vec<u8>,
    /// The manifest.
    pub manifest: Manifest,
    /// The config's exact bytes.
    pub config_bytes: Vec<u8>,
    /// The config.
    pub config: ImageConfig,
}

impl Client {
    /// Finds what a reference means for a platform: manifest and config, checked, without a store.
    pub async fn resolve(&self, name: &ImageRef, platform: &Platform) -> Result<Resolved, RegistryError> {
        let _ = (name, platform);
        todo!()
    }
    /// The same into the store: index, manifest and config blobs. What the store has is not asked for; a
    /// reference by digest whose documents are there needs no network. Sets no reference: the caller does,
    /// once the layers are there.
    pub async fn fetch_image(
        &self,
        store: &Store,
        name: &ImageRef,
        platform: &Platform,
        progress: ProgressFn,
    ) -> Result<Resolved, RegistryError> {
        let _ = (store, name, platform, progress);
        todo!()
    }
    /// Layers into the store, several at a time, digest and size checked while they stream. Layers that are
    /// there, as blobs or unpacked under their diff id, are left alone.
    pub async fn fetch_layers(
        &self,
        store: &Store,
        repository: &Repository,
        manifest: &Manifest,
        config: &ImageConfig,
        progress: ProgressFn,
    ) -> Result<(), RegistryError> {
        let _ = (store, repository, manifest, config, progress);
        todo!()
    }
}
