//! What a client is told: roots, proxies, deadlines. Typed, complete, read from nowhere.

use crate::Reach;
use keelway_model::Redacted;
use reqwest::Url;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Everything the client needs to know; [`Settings::default`] suits a Debian machine without a proxy.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The system's bundle of authorities (PEM). Read at the first https request; one that is not there
    /// counts as empty, so that a machine with roots of its own needs no bundle.
    pub system_roots: Option<PathBuf>,
    /// Authorities trusted for every host, beside the system's.
    pub extra_roots: Vec<Pem>,
    /// Authorities trusted for one host alone: key `host` or `host:port`, lower case.
    pub host_roots: BTreeMap<String, Vec<Pem>>,
    /// Proxies.
    pub proxy: ProxySettings,
    /// Which addresses it connects to.
    pub reach: Reach,
    /// Deadlines.
    pub deadlines: Deadlines,
    /// The `User-Agent`.
    pub user_agent: String,
}

/// Where Debian, Ubuntu and Alpine keep the system's authorities.
pub(crate) const SYSTEM_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

impl Default for Settings {
    fn default() -> Self {
        Self {
            system_roots: Some(PathBuf::from(SYSTEM_BUNDLE)),
            extra_roots: Vec::new(),
            host_roots: BTreeMap::new(),
            proxy: ProxySettings::default(),
            reach: Reach::default(),
            deadlines: Deadlines::default(),
            user_agent: concat!("keelway/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// Certificates in PEM, and the name to use for them in messages.
#[derive(Clone)]
pub struct Pem {
    /// Where it came from: a file name, or the name given on the command line.
    pub origin: String,
    /// The text of the file.
    pub text: Vec<u8>,
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pem({}, {} bytes)", self.origin, self.text.len())
    }
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// Until a connection stands, TLS included.
    pub connect: Duration,
    /// Of silence: while nothing of a request's body is taken and no answer begins, and between two reads of
    /// an answer's body. A request may set its own.
    pub silence: Duration,
    /// Of a whole exchange, body included; `None` where only silence ends it (large transfers). A
    /// request may set its own.
    pub total: Option<Duration>,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), silence: Duration::from_secs(60), total: None }
    }
}

/// Proxies as `http_proxy`, `https_proxy` and `no_proxy` name them. Loopback is never sent to a proxy.
#[derive(Debug, Clone, Default)]
pub struct ProxySettings {
    /// For `http:` URLs.
    pub http: Option<ProxyUrl>,
    /// For `https:` URLs, by CONNECT.
    pub https: Option<ProxyUrl>,
    /// Hosts that are reached directly: a comma-separated list of names (subdomains included), addresses
    /// and CIDR ranges; `*` for all.
    pub no_proxy: String,
}

/// The URL of an HTTP proxy, its password kept from printing.
#[derive(Clone)]
pub struct ProxyUrl(Redacted<Url>);

impl ProxyUrl {
    pub(crate) fn url(&self) -> &Url {
        self.0.reveal()
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.0.reveal();
        write!(f, "{}://{}", url.scheme(), url.host_str().unwrap_or("?"))?;
        url.port().map_or(Ok(()), |p| write!(f, ":{p}"))
    }
}

impl FromStr for ProxyUrl {
    type Err = SettingsError;
    /// Takes `http://host:port`, `https://..`, or `host:port` as curl does.
    fn from_str(s: &str) -> Result<Self, SettingsError> {
        let text = if s.contains("://") { s.to_owned() } else { format!("http://{s}") };
        // The text may hold a password, so the message does not repeat it.
        let url = Url::parse(&text).map_err(|_| SettingsError::Proxy)?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err(SettingsError::Proxy);
        }
        Ok(Self(Redacted::new(url)))
    }
}

/// Why a client cannot be made from its settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file of authorities holds no certificate.
    #[error(
        "{origin} holds no certificate: it must be a PEM file with one or more -----BEGIN CERTIFICATE----- blocks"
    )]
    NoCertificate {
        /// The file or name.
        origin: String,
    },
    /// A certificate cannot be used as an authority.
    #[error("{origin}: certificate {index} cannot be used as an authority: {cause}")]
    BadCertificate {
        /// The file or name.
        origin: String,
        /// Which one in the file, from 1.
        index: usize,
        /// What is wrong.
        cause: String,
    },
    /// Not a proxy's URL.
    #[error(
        "the proxy setting is not a URL: write http_proxy and https_proxy as http://[user:password@]host:port"
    )]
    Proxy,
    /// The user agent cannot be a header.
    #[error("the user agent {0:?} is not a valid header value")]
    UserAgent(String),
}
