//! Whether a manifest or index is one thing, and the thing it was announced as: pure, for hostile bytes.
//!
//! Registries and layouts are held to the same: CVE-2021-41190, one text must not be two things to two readers.

use crate::oci::{Descriptor, Index, Manifest, media};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// A document that was checked.
#[derive(Debug)]
pub enum Document {
    /// Of one image.
    Manifest(Box<Manifest>),
    /// A list of them.
    Index(Index),
}

/// Why a document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the {document} {why}")]
pub struct DocumentError {
    /// `manifest` or `index`.
    pub document: &'static str,
    /// What is wrong, as the rest of a sentence; what comes from outside is escaped.
    pub why: String,
}

/// The fields that tell documents apart. Deriving refuses each of them when it is there twice.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u32>,
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
}

/// Reads a manifest or index, and gives its media type. `announced` is what a descriptor or an HTTP header says it
/// is, where there is one; it must agree with the document.
pub fn read(bytes: &[u8], announced: Option<&str>) -> Result<(Document, String), DocumentError> {
    let bad = |document: &'static str, why: String| Err(DocumentError { document, why });
    let short = |t: &str| t.chars().take(200).collect::<String>();
    let shape: Shape = match serde_json::from_slice(bytes) {
        Ok(shape) => shape,
        Err(e) => return bad("manifest", format!("is not the JSON of one ({e})")),
    };
    if shape.schema_version == Some(1) || shape.fs_layers.is_some() {
        return bad("manifest", "is of the old schema 1, which cannot be verified".into());
    }
    if shape.schema_version != Some(2) {
        return bad("manifest", "has no schemaVersion 2".into());
    }
    let index = shape.manifests.is_some();
    if index && (shape.layers.is_some() || shape.config.is_some()) {
        return bad("manifest", "claims to be an index and an image at once".into());
    }
    let announced = announced.map(|t| t.split(';').next().unwrap_or("").trim().to_owned());
    if let (Some(announced), Some(own)) = (&announced, &shape.media_type)
        && announced != own
    {
        let (own, announced) = (short(own), short(announced));
        return bad("manifest", format!("calls itself {own:?} and was announced as {announced:?}"));
    }
    let default = if index { media::INDEX } else { media::MANIFEST };
    let kind = announced.or(shape.media_type).unwrap_or_else(|| default.to_owned());
    let fits = if index { media::is_index(&kind) } else { media::is_manifest(&kind) };
    if !fits {
        let kind = short(&kind);
        return bad("manifest", format!("is of the type {kind:?}, which is not that of its content"));
    }
    let malformed = |document: &'static str| {
        move |e: serde_json::Error| DocumentError { document, why: format!("is malformed ({e})") }
    };
    let document = if index {
        Document::Index(serde_json::from_slice(bytes).map_err(malformed("index"))?)
    } else {
        Document::Manifest(serde_json::from_slice(bytes).map_err(malformed("manifest"))?)
    };
    Ok((document, kind))
}

/// Whether a layer is kept elsewhere than where the manifest is.
pub fn is_foreign(layer: &Descriptor) -> bool {
    !layer.urls.is_empty()
        || layer.media_type.contains(".foreign.")
        || layer.media_type.contains(".nondistributable.")
}
