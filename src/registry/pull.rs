//! Pulling: a reference to a manifest and config, and layers into the store.
//!
//! A transfer that breaks goes on where it stopped (`Range`), as long as tries make progress and within a
//! bound. What comes is hashed by the store while it is written, and reading stops one byte past the size
//! that was promised.

use crate::api::{Session, may_pass};
use crate::check::{self, Document, MAX_CONFIG, MAX_MANIFEST};
use crate::error::{Doing, Problem};
use crate::progress::{Progress, ProgressFn, Stage};
use crate::{Client, RegistryError};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use keelway_http::{HeaderValue, Method, Request, Response, StatusCode, header};
use keelway_model::oci::{Descriptor, ImageConfig, Manifest};
use keelway_model::{Digest, ImageRef, Platform, Repository};
use keelway_store::{BlobWriter, Store};
use std::collections::BTreeSet;
use std::io::Write as _;
use tokio::sync::mpsc;

/// Tries of one blob in all, however much progress each made.
const MAX_TRIES: u32 = 32;

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

/// A document and what it was read from.
pub(crate) struct Read {
    descriptor: Descriptor,
    bytes: Vec<u8>,
    pub(crate) document: Document,
}

impl Client {
    /// Finds what a reference means for a platform: manifest and config, checked, without a store.
    pub async fn resolve(&self, name: &ImageRef, platform: &Platform) -> Result<Resolved, RegistryError> {
        let session = Session::new(self, &name.repository, Doing::Pull, name.to_string())?;
        session.image(None, name, platform).await.map_err(|p| session.fail(p))
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
        let session = Session::new(self, &name.repository, Doing::Pull, name.to_string())?;
        let resolved = session.image(Some(store), name, platform).await.map_err(|p| session.fail(p))?;
        for d in [&resolved.descriptor, &resolved.manifest.config] {
            progress(report(d, Stage::Done, d.size));
        }
        Ok(resolved)
    }

    /// Layers into the store, several at a time, digest and size checked while they stream. Layers that are
    /// there are left alone. Only the blob itself counts: an unpacked layer could not be pushed on.
    pub async fn fetch_layers(
        &self,
        store: &Store,
        repository: &Repository,
        manifest: &Manifest,
        config: &ImageConfig,
        progress: ProgressFn,
    ) -> Result<(), RegistryError> {
        let session = Session::new(self, repository, Doing::Pull, repository.to_string())?;
        check::no_foreign(&manifest.layers)
            .and_then(|()| check::same_layers(manifest, config))
            .map_err(|p| session.fail(p))?;
        let mut seen = BTreeSet::new();
        let mut wanted = Vec::new();
        for layer in &manifest.layers {
            if !seen.insert(layer.digest) {
                continue;
            }
            if store.has_blob(&layer.digest) {
                progress(report(layer, Stage::Present, layer.size));
            } else {
                wanted.push(layer);
            }
        }
        // Collected first: a closure over references inside the stream would make this future one that no
        // multi-threaded runtime can spawn.
        let transfers: Vec<_> =
            wanted.into_iter().map(|layer| session.layer(store, layer, &progress)).collect();
        stream::iter(transfers)
            .buffer_unordered(self.inner.settings.parallel.max(1))
            .try_collect::<()>()
            .await
            .map_err(|p| session.fail(p))
    }
}

pub(crate) fn report(d: &Descriptor, stage: Stage, done: u64) -> Progress {
    Progress { digest: d.digest, media_type: d.media_type.clone(), stage, done, total: d.size }
}

/// Runs a store operation on a thread that may block.
pub(crate) async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        // The task is never aborted, so it can only have panicked.
        Err(e) => std::panic::resume_unwind(e.into_panic()),
    }
}

impl Session<'_> {
    async fn image(
        &self,
        store: Option<&Store>,
        name: &ImageRef,
        platform: &Platform,
    ) -> Result<Resolved, Problem> {
        let top = match name.digest {
            Some(digest) => self.by_digest(store, &digest).await?,
            None => self.by_tag(store, name).await?,
        };
        let pinned = top.descriptor.clone();
        let image = match &top.document {
            Document::Manifest(_) => top,
            Document::Index(index) => {
                let entry = check::choose(index, platform)?;
                let read = self.by_digest(store, &entry.digest).await?;
                if read.descriptor.size != entry.size {
                    let found = format!("{} bytes where its index says {}", read.descriptor.size, entry.size);
                    return Err(Problem::BadDocument { document: "manifest", why: format!("has {found}") });
                }
                read
            }
        };
        let Document::Manifest(manifest) = image.document else {
            return Err(Problem::BadDocument { document: "index", why: "lists an index as an image".into() });
        };
        let config_bytes = self.config(store, &manifest.config).await?;
        let config = check::config(&config_bytes, &manifest, Some(platform))?;
        Ok(Resolved {
            pinned,
            descriptor: image.descriptor,
            manifest_bytes: image.bytes,
            manifest: *manifest,
            config_bytes,
            config,
        })
    }

    async fn by_tag(&self, store: Option<&Store>, name: &ImageRef) -> Result<Read, Problem> {
        let tag = name.effective_tag().map(|t| t.as_str().to_owned()).unwrap_or_default();
        let rest = format!("manifests/{tag}");
        if let Some(store) = store {
            // One small question tells whether the store has it already.
            let head = self
                .send_retrying("HEAD manifest", || Ok(manifest_request(Method::HEAD, self.url(&rest))))
                .await?;
            match head.status() {
                StatusCode::OK => {
                    let digest = head.header("docker-content-digest").and_then(|d| d.parse::<Digest>().ok());
                    if let Some(digest) = digest.filter(|d| store.has_blob(d)) {
                        return self.by_digest(Some(store), &digest).await;
                    }
                }
                // A HEAD's answer has no words; the GET below gets them.
                status => tracing::debug!(%status, "HEAD of the manifest"),
            }
        }
        self.document(store, &rest, None).await
    }

    async fn by_digest(&self, store: Option<&Store>, digest: &Digest) -> Result<Read, Problem> {
        if let Some(store) = store.filter(|s| s.has_blob(digest)) {
            let (store, digest) = (store.clone(), *digest);
            let bytes = on_disk(move || store.read_blob(&digest, MAX_MANIFEST)).await?;
            let (document, kind) = check::document(&bytes, None)?;
            return Ok(Read {
                descriptor: Descriptor::new(kind, digest, bytes.len() as u64),
                bytes,
                document,
            });
        }
        self.document(store, &format!("manifests/{digest}"), Some(digest)).await
    }

    /// GET of a manifest or index, checked, and into the store where there is one.
    pub(crate) async fn document(
        &self,
        store: Option<&Store>,
        rest: &str,
        expected: Option<&Digest>,
    ) -> Result<Read, Problem> {
        let name = "GET manifest";
        let response = self.send_retrying(name, || Ok(manifest_request(Method::GET, self.url(rest)))).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(name, response).await);
        }
        let kind = response.header("content-type").unwrap_or("").to_owned();
        let named = response.header("docker-content-digest").map(str::to_owned);
        let bytes = response.bytes(MAX_MANIFEST).await?.to_vec();
        let digest = Digest::of(&bytes);
        if let Some(expected) = expected {
            check::digest("manifest", &bytes, expected)?;
        } else if let Some(named) = named.and_then(|n| n.parse::<Digest>().ok()) {
            // Another algorithm's digest cannot be compared; a sha256 must be right.
            check::digest("manifest", &bytes, &named)?;
        }
        let (document, kind) = check::document(&bytes, Some(&kind))?;
        let bytes = self.keep(store, bytes).await?;
        Ok(Read { descriptor: Descriptor::new(kind, digest, bytes.len() as u64), bytes, document })
    }

    async fn keep(&self, store: Option<&Store>, bytes: Vec<u8>) -> Result<Vec<u8>, Problem> {
        let Some(store) = store.cloned() else { return Ok(bytes) };
        let (result, bytes) = on_disk(move || (store.put_blob(&bytes), bytes)).await;
        result?;
        Ok(bytes)
    }

    async fn config(&self, store: Option<&Store>, d: &Descriptor) -> Result<Vec<u8>, Problem> {
        if let Some(store) = store.filter(|s| s.has_blob(&d.digest)) {
            let (store, digest) = (store.clone(), d.digest);
            return Ok(on_disk(move || store.read_blob(&digest, MAX_CONFIG)).await?);
        }
        let rest = format!("blobs/{}", d.digest);
        let bytes = self.small_blob(&rest, d).await?;
        self.keep(store, bytes).await
    }

    /// A blob into memory, at most as large as its descriptor says.
    pub(crate) async fn small_blob(&self, rest: &str, d: &Descriptor) -> Result<Vec<u8>, Problem> {
        let name = "GET config";
        let mut attempt = 1;
        let bytes = loop {
            let response = self.send_retrying(name, || Ok(Request::get(self.url(rest)))).await?;
            if response.status() != StatusCode::OK {
                return Err(self.refusal(name, response).await);
            }
            match response.bytes(d.size).await.map_err(Problem::from) {
                Ok(bytes) => break bytes,
                Err(Problem::Http(keelway_http::HttpError::TooLong { .. })) => {
                    return Err(too_long("config", d));
                }
                Err(p) if may_pass(&p) && attempt < self.client.inner.settings.retries.attempts => {
                    self.client.wait_before_retry(attempt, None).await;
                    attempt += 1;
                }
                Err(p) => return Err(p),
            }
        };
        if bytes.len() as u64 != d.size {
            let found = format!("only {}", bytes.len());
            return Err(Problem::WrongSize { what: "config", digest: d.digest, expected: d.size, found });
        }
        check::digest("config", &bytes, &d.digest)?;
        Ok(bytes.to_vec())
    }

    pub(crate) async fn layer(
        &self,
        store: &Store,
        d: &Descriptor,
        progress: &ProgressFn,
    ) -> Result<(), Problem> {
        let mut sink = Sink::open(store).await?;
        let mut done = 0;
        let mut fruitless = 0;
        let mut tries = 0;
        loop {
            let before = done;
            tries += 1;
            let problem = match self.stream_layer(d, &mut done, &mut sink, progress).await {
                Ok(()) => break,
                Err(problem) => problem,
            };
            fruitless = if done > before { 1 } else { fruitless + 1 };
            let attempts = self.client.inner.settings.retries.attempts;
            if !may_pass(&problem) || fruitless >= attempts || tries >= MAX_TRIES {
                return Err(match problem {
                    Problem::Server { status, request, said, .. } => {
                        Problem::Server { status, request, attempts: tries, said }
                    }
                    other => other,
                });
            }
            tracing::debug!(digest = %d.digest, done, error = %problem, "the layer's transfer goes on");
            self.client.wait_before_retry(fruitless, None).await;
        }
        sink.commit(d).await?;
        progress(report(d, Stage::Done, d.size));
        Ok(())
    }

    /// One try: what is left of the layer into the sink. `done` counts what the sink has.
    async fn stream_layer(
        &self,
        d: &Descriptor,
        done: &mut u64,
        sink: &mut Sink,
        progress: &ProgressFn,
    ) -> Result<(), Problem> {
        if *done == d.size {
            // Also an empty blob: there is nothing to ask for.
            return Ok(());
        }
        let name = "GET layer";
        let from = *done;
        let mut response = self
            .send(|| {
                let request = Request::get(self.url(&format!("blobs/{}", d.digest)));
                Ok(if from == 0 { request } else { request.header(header::RANGE, range_from(from)) })
            })
            .await?;
        // A server without ranges begins again, and what we have is read past. If its bytes are others this
        // time, the digest tells.
        let mut skip = match response.status() {
            StatusCode::OK => from,
            StatusCode::PARTIAL_CONTENT if from > 0 && starts_at(&response, from) => 0,
            _ => return Err(self.refusal(name, response).await),
        };
        progress(report(d, Stage::Moving, *done));
        while let Some(mut piece) = response.chunk().await? {
            let passed = skip.min(piece.len() as u64);
            skip -= passed;
            let _ = piece.split_to(usize::try_from(passed).unwrap_or(piece.len()));
            if piece.is_empty() {
                continue;
            }
            if *done + piece.len() as u64 > d.size {
                return Err(too_long("layer", d));
            }
            let len = piece.len() as u64;
            sink.write(piece).await?;
            *done += len;
            progress(report(d, Stage::Moving, *done));
        }
        if *done < d.size {
            // A complete answer that is too short will not grow by asking again.
            let found = format!("only {done}");
            return Err(Problem::WrongSize { what: "layer", digest: d.digest, expected: d.size, found });
        }
        Ok(())
    }
}

fn too_long(what: &'static str, d: &Descriptor) -> Problem {
    Problem::WrongSize { what, digest: d.digest, expected: d.size, found: "more".into() }
}

fn manifest_request(method: Method, url: keelway_http::Url) -> Request {
    Request::new(method, url).header(header::ACCEPT, HeaderValue::from_static(check::ACCEPT))
}

fn range_from(offset: u64) -> HeaderValue {
    HeaderValue::from_str(&format!("bytes={offset}-")).expect("digits are a header value")
}

fn starts_at(response: &Response, offset: u64) -> bool {
    response.header("content-range").is_some_and(|r| r.starts_with(&format!("bytes {offset}-")))
}

enum Piece {
    Bytes(Bytes),
    Commit(Digest, u64),
}

/// A blob being written by a thread of its own, so that neither the disk nor the hashing holds up a task.
/// Dropping it ends the thread without a blob.
struct Sink {
    pieces: mpsc::Sender<Piece>,
    thread: tokio::task::JoinHandle<Result<(), Problem>>,
}

impl Sink {
    async fn open(store: &Store) -> Result<Self, Problem> {
        let store = store.clone();
        let mut writer: BlobWriter = on_disk(move || store.blob_writer()).await?;
        let (pieces, mut incoming) = mpsc::channel(16);
        let thread = tokio::task::spawn_blocking(move || {
            while let Some(piece) = incoming.blocking_recv() {
                match piece {
                    Piece::Bytes(bytes) => writer.write_all(&bytes).map_err(|source| {
                        Problem::Store(keelway_store::StoreError::Io {
                            what: "write",
                            path: "a layer".into(),
                            source,
                        })
                    })?,
                    Piece::Commit(digest, size) => {
                        return writer
                            .commit(Some((digest, size)))
                            .map(|_| ())
                            .map_err(|e| Problem::of_commit(e, "layer"));
                    }
                }
            }
            Ok(())
        });
        Ok(Self { pieces, thread })
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), Problem> {
        if self.pieces.send(Piece::Bytes(bytes)).await.is_ok() { Ok(()) } else { self.end().await }
    }

    async fn commit(mut self, d: &Descriptor) -> Result<(), Problem> {
        // If the thread is gone already, its result says why.
        let _ = self.pieces.send(Piece::Commit(d.digest, d.size)).await;
        self.end().await
    }

    async fn end(&mut self) -> Result<(), Problem> {
        match (&mut self.thread).await {
            Ok(result) => result,
            Err(e) => std::panic::resume_unwind(e.into_panic()),
        }
    }
}
