//! The test authority and the certificates it signs, as PEM files in a folder of the test.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A certificate authority of one test.
pub struct Authority {
    dir: PathBuf,
    ca: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// A server's certificate chain and key.
#[derive(Debug, Clone)]
pub struct ServerCert {
    /// PEM file of the certificate.
    pub cert: PathBuf,
    /// PEM file of its key.
    pub key: PathBuf,
}

impl Authority {
    /// A new authority whose files live in `dir`.
    pub fn new(dir: &Path) -> io::Result<Self> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "Keelway test authority");
        let cert = params.self_signed(&key).map_err(io::Error::other)?;
        let ca = dir.join("test-ca.pem");
        fs::write(&ca, cert.pem())?;
        Ok(Self { dir: dir.to_owned(), ca, issuer: Issuer::new(params, key) })
    }

    /// PEM file of the authority itself.
    pub fn ca_path(&self) -> &Path {
        &self.ca
    }

    /// A server certificate for these names or addresses.
    pub fn issue(&self, names: &[&str]) -> io::Result<ServerCert> {
        self.issue_with(names, CertificateParams::default())
    }

    /// The same, but out of date since 2001.
    pub fn issue_expired(&self, names: &[&str]) -> io::Result<ServerCert> {
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        self.issue_with(names, params)
    }

    fn issue_with(&self, names: &[&str], mut params: CertificateParams) -> io::Result<ServerCert> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        for name in names {
            params.subject_alt_names.push(match name.parse() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName((*name).try_into().map_err(io::Error::other)?),
            });
        }
        params.distinguished_name.push(DnType::CommonName, names.first().copied().unwrap_or("server"));
        let cert = params.signed_by(&key, &self.issuer).map_err(io::Error::other)?;
        let file =
            |suffix: &str| self.dir.join(format!("{}-{suffix}.pem", names.first().map_or("server", |n| n)));
        let out = ServerCert { cert: file("cert"), key: file("key") };
        fs::write(&out.cert, cert.pem())?;
        fs::write(&out.key, key.serialize_pem())?;
        Ok(out)
    }
}

impl ServerCert {
    /// What a TLS server of the kit needs: HTTP/1.1 by this certificate.
    pub fn server_config(&self) -> io::Result<Arc<rustls::ServerConfig>> {
        let chain: Vec<_> = CertificateDer::pem_file_iter(&self.cert)
            .and_then(Iterator::collect)
            .map_err(io::Error::other)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(io::Error::other)?;
        let mut config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(io::Error::other)?
                .with_no_client_auth()
                .with_single_cert(chain, key)
                .map_err(io::Error::other)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}
