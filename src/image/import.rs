//! Images from an OCI layout directory into the store.
//!
//! A layout is hostile: nothing in it is followed out of it, every blob is read up to a bound and checked
//! against digest and size before it is visible, documents are held to what a registry's are held to, layers
//! are unpacked and hashed, and the reference is set last.

use crate::build::PinnedBase;
use keelway_disk::Root;
use keelway_model::document::{self, Document};
use keelway_model::oci::{Descriptor, ImageConfig, Index, Manifest, media};
use keelway_model::{Digest, ImageRef, Platform};
use keelway_store::{CommitError, Store, StoreError, UnpackError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The name of an image in a layout.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
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
    /// A layer is not sound, or not the one that the config promises.
    #[error(transparent)]
    Layer(UnpackError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ImportError {
    /// Whether the layout is wrong, and not the disk or the store.
    pub fn is_its_fault(&self) -> bool {
        match self {
            Self::Layout { .. } => true,
            Self::Blob { source, .. } => !matches!(source, CommitError::Store(_)),
            Self::Layer(e) => !matches!(e, UnpackError::Store(_)),
            Self::Read { .. } | Self::Store(_) => false,
        }
    }
}

impl From<UnpackError> for ImportError {
    fn from(e: UnpackError) -> Self {
        match e {
            UnpackError::Store(e) => Self::Store(e),
            e => Self::Layer(e),
        }
    }
}

/// Takes an image of the layout at `dir` into the store and names it `name`; returns its manifest. For `select` see
/// [`take`].
pub fn oci_layout(
    store: &Store,
    dir: &Path,
    select: Option<&str>,
    name: &ImageRef,
    platform: &Platform,
) -> Result<Descriptor, ImportError> {
    let taken = take(store, dir, select, platform)?;
    store.set_reference(name, &taken.descriptor)?;
    Ok(taken.descriptor)
}

/// Takes an image of the layout at `dir` into the store, which gives it no name. `select` is
/// the tag in the layout (`org.opencontainers.image.ref.name`) or a digest; without one the layout must hold
/// one image for `platform`.
pub fn take(
    store: &Store,
    dir: &Path,
    select: Option<&str>,
    platform: &Platform,
) -> Result<PinnedBase, ImportError> {
    let layout = Layout::open(store, dir)?;
    let index = layout.index(&layout.read("index.json", MAX_JSON)?, None)?;
    let candidates: Vec<Descriptor> = match select {
        None => index.manifests,
        Some(wanted) => index
            .manifests
            .into_iter()
            .filter(|m| {
                m.digest.to_string() == wanted || m.annotations.get(REF_NAME).is_some_and(|n| n == wanted)
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
    let document = layout.manifest(&manifest)?;
    layout.blob(&document.config, MAX_JSON)?;
    let config: ImageConfig =
        layout.json("a config", &store.read_blob(&document.config.digest, MAX_JSON)?)?;
    if !platform.accepts(&config.platform) {
        return Err(layout.wrong(format!("the image is for {}, not for {platform}", config.platform)));
    }
    if config.rootfs.diff_ids.len() != document.layers.len() {
        return Err(layout.wrong("layers and diff ids of the image differ in number".to_owned()));
    }
    for (layer, diff_id) in document.layers.iter().zip(&config.rootfs.diff_ids) {
        layout.blob(layer, MAX_LAYER)?;
        store.unpack_verified(layer, diff_id)?;
    }
    Ok(PinnedBase { descriptor: manifest, config })
}

/// The manifest with this tag in the layout at `dir`, whatever it is of, and its config's bytes; `None` where there is no
/// such layout or tag. No blob but the manifest and the config enters the store.
pub fn artifact(
    store: &Store,
    dir: &Path,
    tag: &str,
    max_config: u64,
) -> Result<Option<(Manifest, Vec<u8>)>, ImportError> {
    let layout = match Layout::open(store, dir) {
        Err(ImportError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let index = match layout.read("index.json", MAX_JSON) {
        Err(ImportError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => layout.index(&read?, None)?,
    };
    let named = |m: &&Descriptor| m.annotations.get(REF_NAME).is_some_and(|n| n == tag);
    let Some(found) = index.manifests.iter().find(named) else { return Ok(None) };
    layout.blob(found, MAX_JSON)?;
    let manifest = layout.manifest(found)?;
    layout.blob(&manifest.config, max_config)?;
    let config = store.read_blob(&manifest.config.digest, max_config)?;
    Ok(Some((manifest, config)))
}

/// A blob of the layout at `dir` into the store, checked.
pub fn blob(store: &Store, dir: &Path, blob: &Descriptor) -> Result<(), ImportError> {
    Layout::open(store, dir)?.blob(blob, MAX_LAYER)
}

struct Layout<'a> {
    root: Root,
    dir: &'a Path,
    store: &'a Store,
}

impl<'a> Layout<'a> {
    fn open(store: &'a Store, dir: &'a Path) -> Result<Self, ImportError> {
        let failed =
            |source| ImportError::Read { what: "the folder".to_owned(), dir: dir.to_owned(), source };
        Ok(Self { root: Root::open(dir).map_err(failed)?, dir, store })
    }
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

    fn index(&self, bytes: &[u8], announced: Option<&str>) -> Result<Index, ImportError> {
        let named = |e: document::DocumentError| match announced {
            None => self.wrong(format!("index.json: {e}")),
            Some(_) => self.wrong(e.to_string()),
        };
        match document::read(bytes, announced).map_err(named)? {
            (Document::Index(index), _) => Ok(index),
            (Document::Manifest(_), _) => Err(self.wrong("its index is the manifest of an image".to_owned())),
        }
    }

    /// A manifest whose blob is in the store.
    fn manifest(&self, descriptor: &Descriptor) -> Result<Manifest, ImportError> {
        let bytes = self.store.read_blob(&descriptor.digest, MAX_JSON)?;
        let read =
            document::read(&bytes, Some(&descriptor.media_type)).map_err(|e| self.wrong(e.to_string()));
        let (Document::Manifest(manifest), _) = read? else {
            return Err(
                self.wrong(format!("{} is an index, not the manifest of an image", descriptor.digest))
            );
        };
        match manifest.layers.iter().find(|l| document::is_foreign(l)) {
            Some(layer) => Err(self.wrong(format!("the layer {} is kept elsewhere (foreign)", layer.digest))),
            None => Ok(*manifest),
        }
    }

    /// Takes a blob into the store, checked.
    fn blob(&self, descriptor: &Descriptor, max: u64) -> Result<(), ImportError> {
        let Descriptor { digest, size, .. } = descriptor;
        if *size > max {
            return Err(self.wrong(format!("{digest} has {size} bytes; at most {max} are taken")));
        }
        if let Some(have) = self.store.blob_size(digest) {
            return if have == *size {
                Ok(())
            } else {
                Err(self.wrong(format!("{digest} has {have} bytes, its descriptor says {size}")))
            };
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
                let bytes = self.store.read_blob(&candidate.digest, MAX_JSON)?;
                let inner = self.index(&bytes, Some(&candidate.media_type))?;
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
