//! An image as one tar: an OCI layout, with docker's own list beside it where docker shall load it.

use super::{Checked, ExportError, LAYOUT, blob_path, blobs_of, entries, index, json};
use crate::base::manifest;
use keelway_model::ImageRef;
use keelway_model::oci::Descriptor;
use keelway_store::{Store, TarWriter};
use serde::Serialize;
use std::io::Write;

/// What kind of tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archive {
    /// An OCI layout.
    Oci,
    /// The same with `manifest.json`, which `docker load` and skopeo's `docker-archive:` read.
    Docker,
}

/// An image in docker's list.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

/// Writes an image of the store, under these names, as a tar. Equal images give equal bytes.
pub fn archive<W: Write>(
    store: &Store,
    image: &Descriptor,
    names: &[ImageRef],
    kind: Archive,
    out: W,
) -> Result<W, ExportError> {
    let document = manifest(store, image)?;
    let mut writer = TarWriter::new(out);
    let wrong = |what: &str| {
        let what = what.to_owned();
        move |source| ExportError::Write { what, to: "the archive".into(), source }
    };
    for folder in ["blobs", "blobs/sha256"] {
        writer.directory(folder).map_err(wrong(folder))?;
    }
    for (digest, size) in blobs_of(store, image)? {
        let mut blob = Checked::new(store.open_blob(&digest)?, digest, size);
        writer.file(&blob_path(&digest), &mut blob, size).map_err(wrong(&digest.to_string()))?;
    }
    let mut file = |name: &str, bytes: &[u8]| {
        writer.file(name, &mut &bytes[..], bytes.len() as u64).map_err(wrong(name))
    };
    file("index.json", &json("index.json", &index(entries(image, names)))?)?;
    if kind == Archive::Docker {
        let listed = Listed {
            config: blob_path(&document.config.digest),
            repo_tags: names.iter().filter(|n| n.digest.is_none()).map(ToString::to_string).collect(),
            layers: document.layers.iter().map(|l| blob_path(&l.digest)).collect(),
        };
        file("manifest.json", &json("manifest.json", &[listed])?)?;
    }
    file("oci-layout", LAYOUT)?;
    writer.finish().map_err(wrong("its end"))
}
