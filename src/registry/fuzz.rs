//! Entries for fuzzing: every parser of foreign bytes, none of which may panic.

use keelway_model::oci::Manifest;

/// config.json.
pub fn fuzz_docker_config(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = crate::docker_config::load(text, "config.json");
    }
}

/// `WWW-Authenticate`.
pub fn fuzz_challenge(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = crate::auth::way_of([text].into_iter());
    }
}

/// Manifests, indexes and configs.
pub fn fuzz_documents(data: &[u8]) {
    if let Ok((crate::check::Document::Index(index), _)) = crate::check::document(data, None) {
        let _ = crate::check::choose(&index, &keelway_model::Platform::host());
    }
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(data) {
        let _ = crate::check::no_foreign(&manifest.layers);
        let _ = crate::check::config(data, &manifest, None);
    }
}

/// Error documents and pages.
pub fn fuzz_errors(data: &[u8]) {
    let _ = crate::api::read_errors(data);
}
