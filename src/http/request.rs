//! A request as a value: what is sent, with which credentials, from which bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use keelway_model::Redacted;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use std::fmt;
use std::io::Read;
use std::pin::Pin;
use std::time::Duration;

/// Credentials of one request. They go to the origin of its URL alone.
#[derive(Debug, Clone)]
pub enum Auth {
    /// RFC 7617.
    Basic {
        /// User name; may not hold a colon.
        user: String,
        /// Password.
        password: Redacted<String>,
    },
    /// RFC 6750.
    Bearer(Redacted<String>),
}

impl Auth {
    /// The header's value, marked sensitive; `None` when the secret cannot be in a header.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        let text = match self {
            Self::Basic { user, password } => {
                format!("Basic {}", STANDARD.encode(format!("{user}:{}", password.reveal())))
            }
            Self::Bearer(token) => format!("Bearer {}", token.reveal()),
        };
        let mut value = HeaderValue::from_str(&text).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

type ByteStream = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// A request's body.
#[derive(Default)]
pub enum Body {
    /// None.
    #[default]
    Empty,
    /// From memory.
    Bytes(Bytes),
    /// As it comes; never whole in memory.
    Stream {
        /// The bytes.
        stream: ByteStream,
        /// How many, when known; sent as `Content-Length`, else the body is chunked.
        len: Option<u64>,
    },
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Bytes(b) => write!(f, "Bytes({})", b.len()),
            Self::Stream { len, .. } => write!(f, "Stream({len:?})"),
        }
    }
}

impl Body {
    /// A body from anything that reads, for both faces: each read happens on tokio's blocking threads,
    /// one piece of at most 256 KiB at a time, when the connection can take it.
    pub fn reader(reader: impl Read + Send + 'static, len: Option<u64>) -> Self {
        const PIECE: usize = 256 << 10;
        let stream = stream::unfold(Some(reader), |reader| async move {
            let mut reader = reader?;
            let read = tokio::task::spawn_blocking(move || {
                let mut buf = vec![0; PIECE];
                let result = loop {
                    match reader.read(&mut buf) {
                        Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                        other => break other,
                    }
                };
                (reader, buf, result)
            })
            .await;
            match read {
                Ok((_, _, Ok(0))) => None,
                Ok((reader, mut buf, Ok(n))) => {
                    buf.truncate(n);
                    Some((Ok(Bytes::from(buf)), Some(reader)))
                }
                Ok((_, _, Err(e))) => Some((Err(e), None)),
                Err(e) => Some((Err(std::io::Error::other(e)), None)),
            }
        });
        Self::Stream { stream: Box::pin(stream), len }
    }
}

/// One request. Redirects of GET and HEAD are followed (at most five); of other methods they are
/// returned as the answer, since a body cannot be sent twice.
#[derive(Debug)]
pub struct Request {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) auth: Option<Auth>,
    pub(crate) body: Body,
    pub(crate) total: Option<Duration>,
    pub(crate) silence: Option<Duration>,
}

impl Request {
    /// A request without a body. Credentials inside the URL are used as basic authentication, and taken out of it.
    pub fn new(method: Method, mut url: Url) -> Self {
        let mut auth = None;
        if !url.username().is_empty() || url.password().is_some() {
            auth = Some(Auth::Basic {
                user: percent_decoded(url.username()),
                password: Redacted::new(percent_decoded(url.password().unwrap_or(""))),
            });
            // Both fail only for URLs that cannot have a host; those have no user either.
            let _ = url.set_username("");
            let _ = url.set_password(None);
        }
        Self { method, url, headers: HeaderMap::new(), auth, body: Body::Empty, total: None, silence: None }
    }
    /// GET.
    pub fn get(url: Url) -> Self {
        Self::new(Method::GET, url)
    }
    /// POST.
    pub fn post(url: Url) -> Self {
        Self::new(Method::POST, url)
    }
    /// Where it goes.
    pub fn url(&self) -> &Url {
        &self.url
    }
    /// Sets a header; `Authorization` is refused here, since only [`Request::auth`] keeps it from other hosts.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        debug_assert!(name != AUTHORIZATION, "credentials go through auth()");
        if name != AUTHORIZATION {
            self.headers.append(name, value);
        }
        self
    }
    /// Sets the credentials.
    #[must_use]
    pub fn auth(mut self, auth: Option<Auth>) -> Self {
        self.auth = auth.or(self.auth);
        self
    }
    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: Body) -> Self {
        if let Body::Stream { len: Some(len), .. } = &body {
            self.headers.insert(CONTENT_LENGTH, HeaderValue::from(*len));
        }
        self.body = body;
        self
    }
    /// Another deadline of silence than the client's: for a server that works long before it answers.
    #[must_use]
    pub fn silence(mut self, silence: Duration) -> Self {
        self.silence = Some(silence);
        self
    }
    /// Bounds the whole exchange, body included.
    #[must_use]
    pub fn total(mut self, total: Duration) -> Self {
        self.total = Some(total);
        self
    }
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = (bytes[i] == b'%').then(|| text.get(i + 1..i + 3)).flatten();
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 3;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_leave_the_url_and_do_not_print() {
        let r = Request::get("https://al%40ice:s%3Acret@example.com/x".parse().unwrap());
        assert_eq!(r.url.as_str(), "https://example.com/x");
        assert_eq!(
            r.auth.as_ref().unwrap().header().unwrap().to_str().unwrap(),
            format!("Basic {}", STANDARD.encode("al@ice:s:cret"))
        );
        assert!(!format!("{r:?}").contains("cret"));
    }
}
