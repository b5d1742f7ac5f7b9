//! Images from an OCI layout directory into the store.
//!
//! A layout is hostile: nothing in it is followed out of it, every blob is read up to a bound and checked
//! against digest and size before it is visible, and the reference is set last.

use keelway_disk::Root;
use keelway_model::oci::{Descriptor, ImageConfig, Index, Manifest, media};
use keelway_model::{Digest, ImageRef, Platform};
use keelway_store::{CommitError, Store, StoreError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Largest index, manifest or config.
const MAX_JSON: u64 = 4 << 20;
/// Largest layer.
const MAX_LAYER: u64 = 64 << 30;
/// Indexes inside indexes.
const MAX_DEPTH: usize = 4;

/// Why a layout cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file cannot be read.
    #[error("cannot read {what} of the layout {dir}: {source}")]
    Read {
        /// `index.json`, a digest.
        what: String,
        /// The layout.
        dir: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("the layout {dir} cannot be used: {why}")]
    Layout {
        /// The layout.
        dir: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A blob does not hold what its name promises.
    #[error("a blob of the layout {dir} is damaged: {source}")]
    Blob {
        /// The layout.
        dir: PathBuf,
        /// How.
        #[source]
        source: CommitError,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Takes an image of the layout at `dir` into the store and names it `name`; returns its manifest. `select` is
/// the tag in the layout (`org.opencontainers.image.ref.name`) or a digest; without one the layout must hold
/// one image for `platform`.
pub fn oci_layout(
    store: &Store,
    dir: &Path,
    select: Option<&str>,
    name: &ImageRef,
    platform: &Platform,
) -> Result<Descriptor, ImportError> {
    let root = Root::open(dir).map_err(|source| ImportError::Read {
        what: "the folder".to_owned(),
        dir: dir.to_owned(),
        source,
    })?;
    let layout = Layout { root, dir, store };
    let index: Index = layout.json("index.json", &layout.read("index.json", MAX_JSON)?)?;
    let candidates: Vec<Descriptor> = match select {
        None => index.manifests,
        Some(wanted) => index
            .manifests
            .into_iter()
            .filter(|m| {
                m.digest.to_string() == wanted
                    || m.annotations.get("org.opencontainers.image.ref.name").is_some_and(|n| n == wanted)
            })
            .collect(),
    };
    let mut found = Vec::new();
    layout.manifests(candidates, platform, 0, &mut found)?;
    let manifest = match &found[..] {
        [one] => one.clone(),
        [] => {
            return Err(layout.wrong(format!(
                "it holds no image {}for {platform}",
                select.map_or(String::new(), |s| format!("{s:?} "))
            )));
        }
        _ => {
            return Err(layout.wrong(format!(
                "it holds {} images for {platform}: name one by its tag or digest",
                found.len()
            )));
        }
    };
    let document: Manifest = layout.json("a manifest", &store.read_blob(&manifest.digest, MAX_JSON)?)?;
    layout.blob(&document.config, MAX_JSON)?;
    let config: ImageConfig =
        layout.json("a config", &store.read_blob(&document.config.digest, MAX_JSON)?)?;
    if !platform.accepts(&config.platform) {
        return Err(layout.wrong(format!("the image is for {}, not for {platform}", config.platform)));
    }
    if config.rootfs.diff_ids.len() != document.layers.len() {
        return Err(layout.wrong("layers and diff ids of the image differ in number".to_owned()));
    }
    for layer in &document.layers {
        layout.blob(layer, MAX_LAYER)?;
    }
    store.set_reference(name, &manifest)?;
    Ok(manifest)
}

struct Layout<'a> {
    root: Root,
    dir: &'a Path,
    store: &'a Store,
}

impl Layout<'_> {
    fn wrong(&self, why: String) -> ImportError {
        ImportError::Layout { dir: self.dir.to_owned(), why }
    }
    fn failed(&self, what: impl Into<String>) -> impl FnOnce(io::Error) -> ImportError {
        let (what, dir) = (what.into(), self.dir.to_owned());
        move |source| ImportError::Read { what, dir, source }
    }
    fn read(&self, path: &str, max: u64) -> Result<Vec<u8>, ImportError> {
        let file = self.root.open_file(path.as_bytes()).map_err(self.failed(path))?;
        let mut bytes = Vec::new();
        file.take(max + 1).read_to_end(&mut bytes).map_err(self.failed(path))?;
        if bytes.len() as u64 > max {
            return Err(self.wrong(format!("{path} has more than {max} bytes")));
        }
        Ok(bytes)
    }
    fn json<T: serde::de::DeserializeOwned>(&self, what: &str, bytes: &[u8]) -> Result<T, ImportError> {
        serde_json::from_slice(bytes).map_err(|e| self.wrong(format!("{what} is malformed: {e}")))
    }

    /// Takes a blob into the store, checked.
    fn blob(&self, descriptor: &Descriptor, max: u64) -> Result<(), ImportError> {
        let Descriptor { digest, size, .. } = descriptor;
        if *size > max {
            return Err(self.wrong(format!("{digest} has {size} bytes; at most {max} are taken")));
        }
        if self.store.has_blob(digest) {
            return Ok(());
        }
        let file =
            self.root.open_file(blob_path(digest).as_bytes()).map_err(self.failed(digest.to_string()))?;
        let mut writer = self.store.blob_writer()?;
        // One byte more than promised shows that there is more.
        io::copy(&mut file.take(size.saturating_add(1)), &mut writer)
            .map_err(self.failed(digest.to_string()))?;
        writer
            .commit(Some((*digest, *size)))
            .map_err(|source| ImportError::Blob { dir: self.dir.to_owned(), source })?;
        Ok(())
    }

    /// The manifests for `platform` among `candidates` and the indexes they name, taken into the store.
    fn manifests(
        &self,
        candidates: Vec<Descriptor>,
        platform: &Platform,
        depth: usize,
        found: &mut Vec<Descriptor>,
    ) -> Result<(), ImportError> {
        if depth > MAX_DEPTH || candidates.len() > 1000 {
            return Err(self.wrong("its indexes are nested too deeply or too long".to_owned()));
        }
        for candidate in candidates {
            if candidate.platform.as_ref().is_some_and(|p| !platform.accepts(&p.platform)) {
                continue;
            }
            if media::is_index(&candidate.media_type) {
                self.blob(&candidate, MAX_JSON)?;
                let inner: Index =
                    self.json("an index", &self.store.read_blob(&candidate.digest, MAX_JSON)?)?;
                self.manifests(inner.manifests, platform, depth + 1, found)?;
            } else if media::is_manifest(&candidate.media_type) {
                self.blob(&candidate, MAX_JSON)?;
                let plain = Descriptor::new(candidate.media_type, candidate.digest, candidate.size);
                if !found.contains(&plain) {
                    found.push(plain);
                }
            }
        }
        Ok(())
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
