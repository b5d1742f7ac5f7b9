//! Pushing.

use crate::progress::ProgressFn;
use crate::{Client, RegistryError};
use keelway_model::oci::Descriptor;
use keelway_model::{PushedDigest, Repository, Tag};
use keelway_store::Store;

impl Client {
    /// Pushes an image of the store: layers that the registry lacks, config, then the manifest under each tag
    /// (under its digest alone when there is none).
    pub async fn push(
        &self,
        store: &Store,
        manifest: &Descriptor,
        repository: &Repository,
        tags: &[Tag],
        progress: ProgressFn,
    ) -> Result<PushedDigest, RegistryError> {
        let _ = (store, manifest, repository, tags, progress);
        todo!()
    }
}
