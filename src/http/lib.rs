//! The one HTTP client: trust roots, proxies, deadlines, redirects, secrets that do not print.
//!
//! Everything that speaks HTTP as a client goes through here, so that one set of rules holds:
//!
//! - TLS is rustls with ring, never OpenSSL. Trusted are the system's bundle, the extra roots of
//!   [`Settings`], and for a host with roots of its own those as well. Verification cannot be switched off.
//! - Credentials go to the origin (scheme, host, port) they were given for, and to no other: a redirect
//!   elsewhere is followed without them, and never from https to http.
//! - Every request has a deadline for connecting and one for silence; every body read into memory has a
//!   limit that the caller names.
//! - A client made [for strangers](Client::for_strangers) connects to other machines only.
//! - HTTP/1.1 only: parallel transfers get connections, and so windows, of their own.
//!
//! There is an async face, [`Client`], and a blocking one, [`Blocking`], over the same code. This crate
//! reads no environment: proxies and roots arrive as values.

mod blocking;
mod client;
mod error;
mod reach;
mod request;
mod settings;
mod tls;

pub use blocking::{Blocking, BlockingResponse};
pub use client::{Client, Response};
pub use error::{HttpError, TlsProblem};
pub use reach::Reach;
pub use request::{Auth, Body, Request};
pub use settings::{Deadlines, Pem, ProxySettings, ProxyUrl, Settings, SettingsError};

pub use bytes::Bytes;
pub use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
pub use reqwest::{Method, StatusCode, Url};

/// Whether a host, as written in a URL or a reference (with or without a port), is this machine's
/// loopback: `localhost`, a name under `.localhost`, `127.0.0.0/8` or `[::1]`.
pub fn is_loopback(host: &str) -> bool {
    let bare = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(""),
        None => match host.rsplit_once(':') {
            Some((h, port)) if !h.contains(':') && port.bytes().all(|b| b.is_ascii_digit()) => h,
            _ => host,
        },
    };
    if let Ok(ip) = bare.parse::<std::net::IpAddr>() {
        return ip.is_loopback();
    }
    let lower = bare.to_ascii_lowercase();
    lower == "localhost" || lower.ends_with(".localhost")
}

#[cfg(test)]
mod tests;
