//! Whether a registry's documents are what they say: pure, and driven by hostile bytes in tests.

use crate::error::{Problem, cleaned};
pub(crate) use keelway_model::document::Document;
use keelway_model::document::is_foreign;
use keelway_model::oci::{Descriptor, ImageConfig, Index, Manifest, media};
use keelway_model::{Digest, Platform};

/// The largest manifest or index, in bytes.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// The largest image config, in bytes.
pub(crate) const MAX_CONFIG: u64 = 8 << 20;
/// What is accepted, in the order of preference.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

fn bad(document: &'static str, why: impl Into<String>) -> Problem {
    Problem::BadDocument { document, why: why.into() }
}

/// Reads a manifest or index. `content_type` is what the registry says it is, where there was an answer.
pub(crate) fn document(bytes: &[u8], content_type: Option<&str>) -> Result<(Document, String), Problem> {
    let (document, kind) =
        keelway_model::document::read(bytes, content_type).map_err(|e| bad(e.document, cleaned(&e.why)))?;
    if let Document::Manifest(m) = &document {
        if m.config.size > MAX_CONFIG {
            return Err(bad(
                "config",
                format!("has {} bytes where {MAX_CONFIG} are the limit", m.config.size),
            ));
        }
        no_foreign(&m.layers)?;
    }
    Ok((document, kind))
}

/// The manifest for a platform. Indexes inside an index are not entered.
pub(crate) fn choose<'a>(index: &'a Index, wanted: &Platform) -> Result<&'a Descriptor, Problem> {
    let images = || index.manifests.iter().filter(|d| media::is_manifest(&d.media_type));
    let fits = |d: &&Descriptor| d.platform.as_ref().is_some_and(|p| wanted.accepts(&p.platform));
    // A single entry without a platform says it in its config, where it is checked.
    let single = || (index.manifests.len() == 1).then(|| images().find(|d| d.platform.is_none())).flatten();
    images().find(fits).or_else(single).ok_or_else(|| {
        let have: Vec<String> = images()
            .filter_map(|d| d.platform.as_ref())
            .filter(|p| p.platform.os != "unknown")
            .take(12)
            .map(|p| cleaned(&p.platform.to_string()))
            .collect();
        Problem::NoPlatform {
            wanted: wanted.clone(),
            have: if have.is_empty() { "none in the index".into() } else { have.join(", ") },
        }
    })
}

/// Reads a config, which must fit its manifest and the platform.
pub(crate) fn config(
    bytes: &[u8],
    manifest: &Manifest,
    wanted: Option<&Platform>,
) -> Result<ImageConfig, Problem> {
    let config: ImageConfig = serde_json::from_slice(bytes)
        .map_err(|e| bad("config", format!("is not the JSON of an image config ({e})")))?;
    same_layers(manifest, &config)?;
    match wanted {
        Some(wanted) if !config.platform.architecture.is_empty() && !wanted.accepts(&config.platform) => {
            Err(Problem::NoPlatform { wanted: wanted.clone(), have: cleaned(&config.platform.to_string()) })
        }
        _ => Ok(config),
    }
}

/// A config names the diff id of each layer of its manifest.
pub(crate) fn same_layers(manifest: &Manifest, config: &ImageConfig) -> Result<(), Problem> {
    let (ids, layers) = (config.rootfs.diff_ids.len(), manifest.layers.len());
    if ids == layers {
        return Ok(());
    }
    Err(bad("config", format!("names {ids} layers, its manifest {layers}")))
}

/// Refuses layers that the registry does not hold itself.
pub(crate) fn no_foreign(layers: &[Descriptor]) -> Result<(), Problem> {
    layers.iter().find(|d| is_foreign(d)).map_or(Ok(()), |d| Err(Problem::ForeignLayer { digest: d.digest }))
}

/// Bytes against the digest they were asked by.
pub(crate) fn digest(what: &'static str, bytes: &[u8], expected: &Digest) -> Result<(), Problem> {
    let found = Digest::of(bytes);
    if found == *expected {
        Ok(())
    } else {
        Err(Problem::WrongDigest { what, expected: *expected, found: found.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(doc: serde_json::Value, content_type: Option<&str>) -> String {
        document(doc.to_string().as_bytes(), content_type).unwrap_err().to_string()
    }

    fn descriptor(kind: &str) -> serde_json::Value {
        json!({"mediaType": kind, "digest": Digest::of(b"x").to_string(), "size": 1})
    }

    #[test]
    fn a_document_is_one_thing() {
        let manifest = json!({"schemaVersion": 2, "config": descriptor(media::CONFIG), "layers": []});
        assert!(document(manifest.to_string().as_bytes(), Some(media::MANIFEST)).is_ok());
        assert!(
            document(manifest.to_string().as_bytes(), Some(&format!("{}; charset=utf-8", media::MANIFEST)))
                .is_ok()
        );
        let mut both = manifest.clone();
        both["manifests"] = json!([]);
        assert_eq!(refused(both, None), "the manifest claims to be an index and an image at once");
        let mut other = manifest.clone();
        other["mediaType"] = json!(media::DOCKER_MANIFEST);
        assert!(refused(other, Some(media::MANIFEST)).contains("calls itself"));
        assert!(refused(manifest.clone(), Some(media::INDEX)).contains("not that of its content"));
        assert!(refused(manifest, Some("text/html")).contains("not that of its content"));
        assert!(refused(json!({"schemaVersion": 1, "fsLayers": []}), None).contains("schema 1"));
        assert!(refused(json!({}), None).contains("schemaVersion"));
        let twice = r#"{"schemaVersion":2,"layers":[],"manifests":[],"manifests":[]}"#;
        assert!(document(twice.as_bytes(), None).unwrap_err().to_string().contains("duplicate"));
    }

    #[test]
    fn the_platform_is_found_or_named() {
        let entry = |os: &str, arch: &str| {
            let mut d = descriptor(media::MANIFEST);
            d["platform"] = json!({"os": os, "architecture": arch});
            d
        };
        let doc = json!({"schemaVersion": 2, "manifests": [entry("unknown", "unknown"), entry("linux", "arm64"), entry("linux", "s390x")]});
        let index: Index = serde_json::from_value(doc).unwrap();
        assert!(choose(&index, &"linux/arm64/v8".parse().unwrap()).is_ok());
        let e = choose(&index, &"linux/amd64".parse().unwrap()).unwrap_err();
        assert_eq!(e.to_string(), "no image for linux/amd64; there is linux/arm64, linux/s390x");
    }
}
