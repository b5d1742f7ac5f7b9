//! Trust: PEM texts to a rustls configuration.

use crate::settings::{Pem, SettingsError};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use std::sync::Arc;

/// Reads the certificates of one PEM text; each must be usable as an authority.
pub(crate) fn roots_of(pem: &Pem) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    let mut out = Vec::new();
    for (i, cert) in CertificateDer::pem_slice_iter(&pem.text).enumerate() {
        let bad =
            |cause: String| SettingsError::BadCertificate { origin: pem.origin.clone(), index: i + 1, cause };
        let cert = cert.map_err(|e| bad(e.to_string()))?;
        RootCertStore::empty().add(cert.clone()).map_err(|e| bad(e.to_string()))?;
        out.push(cert);
    }
    if out.is_empty() {
        return Err(SettingsError::NoCertificate { origin: pem.origin.clone() });
    }
    Ok(out)
}

/// The largest bundle that is read, in bytes.
const MAX_BUNDLE: u64 = 16 << 20;

/// The authorities of the system's bundle that rustls can use; none when there is no such file.
pub(crate) fn system_roots(path: Option<&Path>) -> Vec<CertificateDer<'static>> {
    let Some(path) = path else { return Vec::new() };
    // A device has no end, and a pipe may have no writer.
    if !std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() <= MAX_BUNDLE) {
        tracing::debug!(path = %path.display(), "no bundle of certificate authorities: not a file of a sane size");
        return Vec::new();
    }
    match CertificateDer::pem_file_iter(path) {
        Ok(certs) => certs.filter_map(Result::ok).collect(),
        Err(e) => {
            tracing::debug!(path = %path.display(), error = %e, "no system bundle of certificate authorities");
            Vec::new()
        }
    }
}

/// A client configuration that trusts exactly these authorities.
pub(crate) fn config<'a>(roots: impl Iterator<Item = &'a CertificateDer<'static>>) -> ClientConfig {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots.cloned());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports TLS 1.2 and 1.3")
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}
