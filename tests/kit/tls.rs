//! The test authority and the certificates it signs, as PEM files in a folder of the test.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

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
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let mut params = CertificateParams::default();
        for name in names {
            params.subject_alt_names.push(match name.parse() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName((*name).try_into().map_err(io::Error::other)?),
            });
        }
        params.distinguished_name.push(DnType::CommonName, names.first().copied().unwrap_or("server"));
        let cert = params.signed_by(&key, &self.issuer).map_err(io::Error::other)?;
        let file = |suffix: &str| self.dir.join(format!("{}-{suffix}.pem", names.first().map_or("server", |n| n)));
        let out = ServerCert { cert: file("cert"), key: file("key") };
        fs::write(&out.cert, cert.pem())?;
        fs::write(&out.key, key.serialize_pem())?;
        Ok(out)
    }
}
