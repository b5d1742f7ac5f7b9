//! Images out of the store: as an OCI layout or docker's archive, and their files as a tar or a directory.
//!
//! Everything is read through the store and checked on the way, so that no export holds a damaged blob. Destinations are
//! directories that the caller opened or names, and nothing below them is reached by a path string.

use crate::base::manifest;
use crate::error::StepError;
use crate::import::REF_NAME;
use keelway_disk::LockError;
use keelway_model::oci::{Descriptor, Extra, Index, media};
use keelway_model::{Digest, Hasher, ImageRef, TreeError};
use keelway_store::{Store, StoreError};
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::PathBuf;

mod archive;
mod files;
mod layout;

pub use archive::{Archive, archive};
pub use files::{directory, tar};
pub use layout::{cache, layout};

#[cfg(test)]
mod tests;

/// The content of the file `oci-layout`.
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// Its whole name, as containerd and docker read it.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// An image was not exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image cannot be read.
    #[error(transparent)]
    Step(#[from] StepError),
    /// Its files cannot be read, or the tar of them not be written.
    #[error("the files of the image cannot be written: {0}")]
    Tree(#[from] TreeError),
    /// The destination failed.
    #[error("cannot write {what} to {to}: {source}")]
    Write {
        /// A file.
        what: String,
        /// The destination.
        to: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The destination is in the way.
    #[error("{dir} cannot be written: {why}")]
    Refused {
        /// The destination.
        dir: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another export writes there.
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// The digest of an image's config: what docker calls its id.
pub fn config(store: &Store, image: &Descriptor) -> Result<Digest, ExportError> {
    Ok(manifest(store, image)?.config.digest)
}

/// What an image takes in a registry, in bytes, and when it says it was made.
pub fn about(store: &Store, image: &Descriptor) -> Result<(u64, Option<String>), ExportError> {
    let document = manifest(store, image)?;
    let config = store.read_blob(&document.config.digest, crate::base::MAX_JSON)?;
    let config: Option<keelway_model::oci::ImageConfig> = serde_json::from_slice(&config).ok();
    let size = blobs_of(store, image)?.values().fold(0, |sum: u64, size| sum.saturating_add(*size));
    Ok((size, config.and_then(|c| c.created)))
}

/// A manifest and every blob that it names, once.
pub(crate) fn blobs_of(store: &Store, image: &Descriptor) -> Result<BTreeMap<Digest, u64>, ExportError> {
    let document = manifest(store, image)?;
    let all = document.layers.iter().chain([&document.config, image]);
    Ok(all.map(|d| (d.digest, d.size)).collect())
}

/// The entries of an index for an image: one a name.
fn entries(image: &Descriptor, names: &[ImageRef]) -> Vec<Descriptor> {
    let plain = Descriptor::new(&image.media_type, image.digest, image.size);
    if names.is_empty() {
        return vec![plain];
    }
    let named = |name: &ImageRef| {
        let mut entry = plain.clone();
        entry.annotations.insert(IMAGE_NAME.to_owned(), name.to_string());
        if let Some(tag) = name.effective_tag() {
            entry.annotations.insert(REF_NAME.to_owned(), tag.to_string());
        }
        entry
    };
    names.iter().map(named).collect()
}

fn index(manifests: Vec<Descriptor>) -> Index {
    Index {
        schema_version: 2,
        media_type: Some(media::INDEX.to_owned()),
        manifests,
        annotations: BTreeMap::new(),
        extra: Extra::new(),
    }
}

fn json(what: &str, value: &impl serde::Serialize) -> Result<Vec<u8>, ExportError> {
    serde_json::to_vec(value).map_err(|e| StepError::Refused(format!("cannot write {what}: {e}")).into())
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A blob on its way out, hashed: the last read fails where it is not what its name says.
struct Checked<R> {
    from: R,
    hasher: Option<Hasher>,
    expected: Digest,
    left: u64,
}

impl<R: Read> Checked<R> {
    fn new(from: R, expected: Digest, size: u64) -> Self {
        Self { from, hasher: Some(Hasher::new()), expected, left: size }
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let room = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.from.read(&mut buf[..room])?;
        self.left -= n as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buf[..n]);
        }
        if self.left == 0
            && let Some(hasher) = self.hasher.take()
            && hasher.finish() != self.expected
        {
            let why =
                format!("the store's blob {} is damaged: build again with an empty store", self.expected);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(n)
    }
}
