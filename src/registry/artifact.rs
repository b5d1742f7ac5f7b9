//! What is in a repository and is no image of a platform: a manifest with a config of its own kind, and single blobs.

use crate::api::Session;
use crate::check::Document;
use crate::error::{Doing, Problem};
use crate::progress::ProgressFn;
use crate::{Client, RegistryError};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use keelway_http::{Method, Request, StatusCode};
use keelway_model::oci::{Descriptor, Manifest};
use keelway_model::{Digest, ImageRef, Repository};
use keelway_store::Store;
use std::collections::BTreeSet;

impl Client {
    /// The manifest under a name, and its config's bytes, checked against their digests; `None` where nothing has the name.
    pub async fn artifact(
        &self,
        name: &ImageRef,
        max_config: u64,
    ) -> Result<Option<(Manifest, Vec<u8>)>, RegistryError> {
        let session = Session::new(self, &name.repository, Doing::Pull, name.to_string())?;
        match session.artifact(name, max_config).await {
            Ok(found) => Ok(Some(found)),
            Err(Problem::NotFound) => Ok(None),
            Err(p) => Err(session.fail(p)),
        }
    }

    /// One blob into the store, where it is not there yet.
    pub async fn fetch_blob(
        &self,
        store: &Store,
        repository: &Repository,
        blob: &Descriptor,
        progress: &ProgressFn,
    ) -> Result<(), RegistryError> {
        if store.has_blob(&blob.digest) {
            return Ok(());
        }
        let session = Session::new(self, repository, Doing::Pull, repository.to_string())?;
        session.layer(store, blob, progress).await.map_err(|p| session.fail(p))
    }

    /// Which of these blobs the repository has.
    pub async fn present(
        &self,
        repository: &Repository,
        blobs: &[Digest],
    ) -> Result<BTreeSet<Digest>, RegistryError> {
        let session = Session::new(self, repository, Doing::Push, repository.to_string())?;
        let asked: Vec<_> = blobs.iter().map(|digest| session.has(*digest)).collect();
        let found: Vec<Option<Digest>> = stream::iter(asked)
            .buffer_unordered(self.inner.settings.parallel.max(1))
            .try_collect()
            .await
            .map_err(|p| session.fail(p))?;
        Ok(found.into_iter().flatten().collect())
    }
}

impl Session<'_> {
    async fn artifact(&self, name: &ImageRef, max_config: u64) -> Result<(Manifest, Vec<u8>), Problem> {
        let read = match name.digest {
            Some(digest) => self.document(None, &format!("manifests/{digest}"), Some(&digest)).await?,
            None => {
                let tag = name.effective_tag().map(|t| t.as_str().to_owned()).unwrap_or_default();
                self.document(None, &format!("manifests/{tag}"), None).await?
            }
        };
        let bad = |why: String| Problem::BadDocument { document: "manifest", why };
        let Document::Manifest(manifest) = read.document else { return Err(bad("is an index".into())) };
        if manifest.config.size > max_config {
            return Err(bad(format!("has a config of {} bytes", manifest.config.size)));
        }
        let config = self.small_blob(&format!("blobs/{}", manifest.config.digest), &manifest.config).await?;
        Ok((*manifest, config))
    }

    async fn has(&self, digest: Digest) -> Result<Option<Digest>, Problem> {
        let url = self.url(&format!("blobs/{digest}"));
        let head = self.send_retrying("HEAD blob", || Ok(Request::new(Method::HEAD, url.clone()))).await?;
        Ok((head.status() == StatusCode::OK).then_some(digest))
    }
}
