//! What can go wrong between a request and its answer, told apart, with what to do about it.
//!
//! Messages name hosts and never whole URLs: paths and queries of redirects can carry signatures.

use reqwest::Url;
use rustls::CertificateError;
use std::error::Error as StdError;
use std::io::ErrorKind;
use std::time::Duration;

/// What is wrong with a host's certificate or handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsProblem {
    /// Signed by an authority that is not trusted here.
    UnknownAuthority,
    /// For another name.
    WrongName,
    /// Out of date, or this machine's clock is.
    Expired,
    /// The other end does not speak TLS.
    NotTls,
    /// Anything else, in rustls' words.
    Other(String),
}

/// Why a request got no answer, or half of one. Statuses are answers and no errors here.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The name has no address.
    #[error(
        "cannot find {host}: its name has no address ({cause}); check the spelling and this machine's DNS"
    )]
    Dns {
        /// Host and port.
        host: String,
        /// The resolver's words.
        cause: String,
    },
    /// Nobody listens.
    #[error("cannot connect to {host}: connection refused; check that it runs and that the port is right")]
    Refused {
        /// Host and port.
        host: String,
    },
    /// No way there.
    #[error("cannot connect to {host}: {cause}; check the network between this machine and it")]
    Unreachable {
        /// Host and port.
        host: String,
        /// The kernel's or the proxy's words.
        cause: String,
    },
    /// The proxy does not let us through.
    #[error("the proxy {proxy} gave no connection to {host}: {cause}; check the proxy settings and no_proxy")]
    Proxy {
        /// Host and port.
        host: String,
        /// The proxy, without its password.
        proxy: String,
        /// What it said.
        cause: String,
    },
    /// TLS failed.
    #[error("{}", tls_text(host, problem))]
    Tls {
        /// Host and port.
        host: String,
        /// What is wrong.
        problem: TlsProblem,
    },
    /// A deadline passed.
    #[error("{host} {} within {}", if *.connecting { "could not be connected to" } else { "did not go on answering" },
        keelway_model::format_duration(*.after))]
    Timeout {
        /// Host and port.
        host: String,
        /// Before there was a connection.
        connecting: bool,
        /// How long it took until we gave up.
        after: Duration,
    },
    /// The connection broke before the answer was complete.
    #[error("the connection to {host} broke: {cause}")]
    Broken {
        /// Host and port.
        host: String,
        /// In hyper's words.
        cause: String,
    },
    /// The body to send could not be read.
    #[error("cannot read what is to be sent to {host}: {cause}")]
    Body {
        /// Host and port.
        host: String,
        /// The cause.
        cause: String,
    },
    /// An answer longer than it may be; reading stopped there.
    #[error("{host} answered with more than {limit} bytes where so many are the limit")]
    TooLong {
        /// Host and port.
        host: String,
        /// The limit.
        limit: u64,
    },
    /// A redirect that is not followed.
    #[error("{host} redirects {why}; it is not followed")]
    Redirect {
        /// Host and port.
        host: String,
        /// `from https to plain http`, ..
        why: String,
    },
    /// An address that this client does not connect to.
    #[error(
        "{host} is not asked: its address {address} is this machine's own, link-local, or not of IPv4, which a private network does not reach"
    )]
    OutOfReach {
        /// Host and port.
        host: String,
        /// What its name means.
        address: std::net::IpAddr,
    },
    /// A credential that cannot be sent.
    #[error("the password or token for {host} holds characters that cannot be in a header; log in again")]
    Credential {
        /// Host and port.
        host: String,
    },
    /// Not a URL to send a request to.
    #[error("{host} cannot be asked: {cause}")]
    Invalid {
        /// Host and port.
        host: String,
        /// What is wrong.
        cause: String,
    },
}

impl HttpError {
    /// Whether the same request may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::Broken { .. } | Self::Refused { .. })
            || matches!(self, Self::Unreachable { .. } | Self::Proxy { .. })
    }
}

fn tls_text(host: &str, problem: &TlsProblem) -> String {
    match problem {
        TlsProblem::UnknownAuthority => format!(
            "{host} shows a certificate from an authority that is not trusted here; if it is yours, give the authority's \
             certificate (a PEM file) for this host"
        ),
        TlsProblem::WrongName => format!(
            "{host} shows a certificate for another name; use the name that the certificate was made for"
        ),
        TlsProblem::Expired => {
            format!(
                "{host} shows a certificate that is not valid today; renew it, or set this machine's clock"
            )
        }
        TlsProblem::NotTls => format!(
            "{host} does not speak TLS; if it is a plain http server that you trust, say so for this host"
        ),
        TlsProblem::Other(cause) => format!("no TLS with {host}: {cause}"),
    }
}

/// `host:port`, the port only where it is not the scheme's.
pub(crate) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or("?");
    url.port().map_or_else(|| host.to_owned(), |p| format!("{host}:{p}"))
}

/// The resolver's error, typed so that it is found again in reqwest's chain.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct DnsError(pub(crate) String);

/// The resolver found an address that is out of reach, likewise.
#[derive(Debug, thiserror::Error)]
#[error("{0} is out of reach")]
pub(crate) struct ReachError(pub(crate) std::net::IpAddr);

/// Our own body's error, likewise.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BodyError(pub(crate) std::io::Error);

/// Tells a reqwest error's kind from its chain of causes. `proxy` is what the request went through.
pub(crate) fn classify(e: &reqwest::Error, url: &Url, proxy: Option<String>, after: Duration) -> HttpError {
    let host = host_of(url);
    let mut last = String::new();
    let mut cause: Option<&(dyn StdError + 'static)> = Some(e);
    let mut refused = false;
    let mut kernel = None;
    for _ in 0..16 {
        let Some(c) = cause else { break };
        if let Some(dns) = c.downcast_ref::<DnsError>() {
            return HttpError::Dns { host, cause: dns.0.clone() };
        }
        if let Some(out) = c.downcast_ref::<ReachError>() {
            return HttpError::OutOfReach { host, address: out.0 };
        }
        if let Some(body) = c.downcast_ref::<BodyError>() {
            return HttpError::Body { host, cause: body.0.to_string() };
        }
        if let Some(tls) = c.downcast_ref::<rustls::Error>() {
            return HttpError::Tls { host, problem: tls_problem(tls) };
        }
        last = c.to_string();
        cause = match c.downcast_ref::<std::io::Error>() {
            // An io::Error's source() skips the error inside it, which is the one that tells.
            Some(io) => {
                refused |= io.kind() == ErrorKind::ConnectionRefused;
                kernel = io.raw_os_error().map(|_| io.to_string()).or(kernel);
                io.get_ref().map(|inner| inner as &(dyn StdError + 'static)).or_else(|| io.source())
            }
            None => c.source(),
        };
    }
    if e.is_timeout() {
        return HttpError::Timeout { host, connecting: e.is_connect(), after };
    }
    match (e.is_connect(), proxy) {
        (true, Some(proxy)) => HttpError::Proxy { host, proxy, cause: kernel.unwrap_or(last) },
        (true, None) if refused => HttpError::Refused { host },
        (true, None) => HttpError::Unreachable { host, cause: kernel.unwrap_or(last) },
        (false, _) if e.is_builder() => HttpError::Invalid { host, cause: last },
        (false, _) => HttpError::Broken { host, cause: last },
    }
}

fn tls_problem(e: &rustls::Error) -> TlsProblem {
    match e {
        rustls::Error::InvalidCertificate(c) => match c {
            // An authority that we trust has the same name as the one that signed, and another key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => TlsProblem::UnknownAuthority,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                TlsProblem::WrongName
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => TlsProblem::Expired,
            other => TlsProblem::Other(other.to_string()),
        },
        rustls::Error::InvalidMessage(_) => TlsProblem::NotTls,
        other => TlsProblem::Other(other.to_string()),
    }
}
