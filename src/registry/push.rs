//! Pushing: blobs that the registry lacks, then the manifest under each tag.
//!
//! Small blobs go in one PUT. Larger ones are streamed from disk by PATCH, and when that breaks, the registry
//! is asked how far it got and gets the rest. Tags move last, so a push that is cut leaves none that is wrong.

use crate::api::{Session, may_pass};
use crate::check::{self, Document, MAX_MANIFEST};
use crate::error::{Doing, Problem};
use crate::progress::{ProgressFn, Stage};
use crate::pull::{on_disk, report};
use crate::{Client, RegistryError};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use keelway_http::{Body, HeaderValue, Method, Request, StatusCode, Url, header};
use keelway_model::oci::Descriptor;
use keelway_model::{Digest, PushedDigest, Repository, Tag};
use keelway_store::Store;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek as _, SeekFrom};
use std::time::Duration;

/// How long a registry may be silent while it finishes a blob: some hash or copy all of it first.
const FINISHING: Duration = Duration::from_secs(600);
/// Blobs up to this many bytes go in one request.
const ONE_REQUEST: u64 = 1 << 20;

impl Client {
    /// Pushes an image of the store: layers that the registry lacks, config, then the manifest under each tag
    /// (under its digest alone when there is none). Dropping the future stops it; blobs that arrived stay in
    /// the registry, tags are moved only at the end.
    pub async fn push(
        &self,
        store: &Store,
        manifest: &Descriptor,
        repository: &Repository,
        tags: &[Tag],
        progress: ProgressFn,
    ) -> Result<PushedDigest, RegistryError> {
        let session = Session::new(self, repository, Doing::Push, repository.to_string())?;
        session.image_to(store, manifest, tags, &progress).await.map_err(|p| session.fail(p))?;
        progress(report(manifest, Stage::Done, manifest.size));
        Ok(PushedDigest::attested_by_registry(repository.clone(), manifest.digest))
    }
}

impl Session<'_> {
    async fn image_to(
        &self,
        store: &Store,
        descriptor: &Descriptor,
        tags: &[Tag],
        progress: &ProgressFn,
    ) -> Result<(), Problem> {
        let (from, digest) = (store.clone(), descriptor.digest);
        let bytes = on_disk(move || from.read_blob(&digest, MAX_MANIFEST)).await?;
        let (manifest, kind) = match check::document(&bytes, Some(&descriptor.media_type)) {
            Ok((Document::Manifest(manifest), kind)) => (manifest, kind),
            Err(foreign @ Problem::ForeignLayer { .. }) => return Err(foreign),
            Ok((Document::Index(_), _)) | Err(_) => return Err(Problem::NotAnImage(digest)),
        };
        let mut seen = BTreeSet::new();
        let blobs: Vec<&Descriptor> =
            manifest.layers.iter().chain([&manifest.config]).filter(|d| seen.insert(d.digest)).collect();
        // Collected first, as in a pull.
        let transfers: Vec<_> = blobs.into_iter().map(|d| self.blob_to(store, d, progress)).collect();
        stream::iter(transfers)
            .buffer_unordered(self.client.inner.settings.parallel.max(1))
            .try_collect::<()>()
            .await?;
        let by_digest = digest.to_string();
        let names: Vec<&str> =
            if tags.is_empty() { vec![&by_digest] } else { tags.iter().map(Tag::as_str).collect() };
        for name in names {
            self.manifest_to(name, &kind, &bytes, &digest).await?;
        }
        self.attested(&by_digest, &digest).await
    }

    async fn manifest_to(
        &self,
        name: &str,
        kind: &str,
        bytes: &[u8],
        digest: &Digest,
    ) -> Result<(), Problem> {
        let what = "PUT manifest";
        let kind = HeaderValue::from_str(kind).map_err(|_| Problem::NotAnImage(*digest))?;
        let url = self.url(&format!("manifests/{name}"));
        let body = bytes::Bytes::copy_from_slice(bytes);
        let response = self
            .send_retrying(what, || {
                Ok(Request::new(Method::PUT, url.clone())
                    .header(header::CONTENT_TYPE, kind.clone())
                    .body(Body::Bytes(body.clone())))
            })
            .await?;
        if !response.status().is_success() {
            return Err(self.refusal(what, response).await);
        }
        same_digest(response.header("docker-content-digest"), digest)
    }

    /// Asks for the manifest by its digest: what the registry answers now is what a deploy will get.
    async fn attested(&self, by_digest: &str, digest: &Digest) -> Result<(), Problem> {
        let what = "HEAD manifest";
        let url = self.url(&format!("manifests/{by_digest}"));
        let response = self
            .send_retrying(what, || {
                Ok(Request::new(Method::HEAD, url.clone())
                    .header(header::ACCEPT, HeaderValue::from_static(check::ACCEPT)))
            })
            .await?;
        match response.status() {
            StatusCode::OK => same_digest(response.header("docker-content-digest"), digest),
            StatusCode::NOT_FOUND => Err(Problem::NotAttested { expected: *digest, found: "nothing".into() }),
            _ => Err(self.refusal(what, response).await),
        }
    }

    async fn blob_to(&self, store: &Store, d: &Descriptor, progress: &ProgressFn) -> Result<(), Problem> {
        let url = self.url(&format!("blobs/{}", d.digest));
        let head = self.send_retrying("HEAD blob", || Ok(Request::new(Method::HEAD, url.clone()))).await?;
        let own = self.is_own(head.url());
        match head.status() {
            StatusCode::OK => {
                progress(report(d, Stage::Present, d.size));
                return Ok(());
            }
            StatusCode::NOT_FOUND => {}
            // A storage host that the registry redirects to may not take HEAD: then the blob is sent again.
            _ if !own => {}
            _ => return Err(self.refusal("HEAD blob", head).await),
        }
        let mut attempt = 1;
        loop {
            match self.upload(store, d, progress).await {
                Ok(()) => break,
                Err(p) if may_pass(&p) && attempt < self.client.inner.settings.retries.attempts => {
                    tracing::debug!(digest = %d.digest, attempt, error = %p, "the upload begins again");
                    self.client.wait_before_retry(attempt, None).await;
                    attempt += 1;
                }
                Err(Problem::Server { status, request, said, .. }) => {
                    return Err(Problem::Server { status, request, attempts: attempt, said });
                }
                Err(p) => return Err(p),
            }
        }
        progress(report(d, Stage::Done, d.size));
        Ok(())
    }

    /// One upload session, from its POST to its PUT.
    async fn upload(&self, store: &Store, d: &Descriptor, progress: &ProgressFn) -> Result<(), Problem> {
        let url = self.url("blobs/uploads/");
        let start = self
            .send(|| {
                Ok(Request::post(url.clone()).header(header::CONTENT_LENGTH, HeaderValue::from_static("0")))
            })
            .await?;
        if start.status() != StatusCode::ACCEPTED {
            return Err(self.refusal("POST upload", start).await);
        }
        let mut location = self.location(&start)?;
        let body = if d.size <= ONE_REQUEST {
            Some(0)
        } else {
            location = self.patch(store, d, location, progress).await?;
            None
        };
        let what = "PUT blob";
        location.query_pairs_mut().append_pair("digest", &d.digest.to_string());
        let response = self
            .send(|| {
                let put = Request::new(Method::PUT, location.clone())
                    .silence(FINISHING)
                    .header(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
                match body {
                    Some(from) => Ok(put.body(self.body_of(store, d, from, progress)?)),
                    None => Ok(put.header(header::CONTENT_LENGTH, HeaderValue::from_static("0"))),
                }
            })
            .await?;
        if !response.status().is_success() {
            return Err(self.refusal(what, response).await);
        }
        same_digest(response.header("docker-content-digest"), &d.digest)
    }

    /// Streams the blob to an upload session and returns where to finish it. A broken stream is resumed.
    async fn patch(
        &self,
        store: &Store,
        d: &Descriptor,
        mut location: Url,
        progress: &ProgressFn,
    ) -> Result<Url, Problem> {
        let what = "PATCH blob";
        let mut from = 0;
        let mut fruitless = 0;
        loop {
            let sent = self
                .send(|| {
                    let mut patch = Request::new(Method::PATCH, location.clone())
                        .header(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
                    if from > 0 {
                        let range = format!("{from}-{}", d.size - 1);
                        let range = HeaderValue::from_str(&range).expect("digits are a header value");
                        patch = patch.header(header::CONTENT_RANGE, range);
                    }
                    Ok(patch.body(self.body_of(store, d, from, progress)?))
                })
                .await;
            let problem = match sent {
                Ok(r) if r.status().is_success() => return self.location(&r),
                Ok(r) => self.refusal(what, r).await,
                Err(p) => p,
            };
            fruitless += 1;
            if !may_pass(&problem) || fruitless >= self.client.inner.settings.retries.attempts {
                return Err(problem);
            }
            self.client.wait_before_retry(fruitless, None).await;
            let Some((next, at)) = self.upload_state(&location).await else { return Err(problem) };
            if at > from {
                fruitless = 0;
            }
            (location, from) = (next, at.min(d.size));
            if from == d.size {
                return Ok(location);
            }
        }
    }

    /// How far an upload session got; `None` when it cannot be gone on with.
    async fn upload_state(&self, location: &Url) -> Option<(Url, u64)> {
        let response = self.send(|| Ok(Request::get(location.clone()))).await.ok()?;
        if response.status() != StatusCode::NO_CONTENT {
            return None;
        }
        // `0-N`, inclusive; docker-registry writes `0-0` for nothing too, so a single byte is sent again.
        let last: u64 = response.header("range")?.rsplit('-').next()?.parse().ok()?;
        let next = self.location(&response).unwrap_or_else(|_| location.clone());
        (last > 0).then_some((next, last + 1))
    }

    /// The blob from an offset, read from disk as the connection takes it.
    fn body_of(
        &self,
        store: &Store,
        d: &Descriptor,
        from: u64,
        progress: &ProgressFn,
    ) -> Result<Body, Problem> {
        let mut file = store.open_blob(&d.digest)?;
        let io = |source| keelway_store::StoreError::Io {
            what: "read",
            path: format!("blob {}", d.digest).into(),
            source,
        };
        let size = file.metadata().map_err(io)?.len();
        if size != d.size {
            let found = format!("{size} in the store");
            return Err(Problem::WrongSize { what: "blob", digest: d.digest, expected: d.size, found });
        }
        file.seek(SeekFrom::Start(from)).map_err(io)?;
        let counted = Counted { file, done: from, descriptor: d.clone(), progress: progress.clone() };
        Ok(Body::reader(counted, Some(d.size - from)))
    }
}

struct Counted {
    file: File,
    done: u64,
    descriptor: Descriptor,
    progress: ProgressFn,
}

impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(buf)?;
        self.done += n as u64;
        (self.progress)(report(&self.descriptor, Stage::Moving, self.done));
        Ok(n)
    }
}

/// The registry's digest, where it names one, must be ours.
fn same_digest(named: Option<&str>, expected: &Digest) -> Result<(), Problem> {
    match named {
        Some(named) if named != expected.to_string() => {
            Err(Problem::NotAttested { expected: *expected, found: crate::error::cleaned(named) })
        }
        _ => Ok(()),
    }
}
