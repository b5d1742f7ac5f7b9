//! The async face: one request, its redirects, its answer.
//!
//! reqwest's own redirects, proxies from the environment and decompression stay off. There is one
//! reqwest client for plain http, one for https, and one for each host with roots of its own, made when
//! first needed: parsing a system's bundle costs milliseconds that an offline command should not pay.

use crate::error::{BodyError, DnsError, ReachError, classify, host_of};
use crate::request::{Body, Request};
use crate::settings::{ProxyUrl, Settings, SettingsError};
use crate::{Blocking, HttpError, Reach, is_loopback, tls};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Method, NoProxy, Proxy, StatusCode, Url};
use rustls::pki_types::CertificateDer;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

const MAX_REDIRECTS: usize = 5;

/// The client: cheap to clone, safe to share. Clones share connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    user_agent: HeaderValue,
    extra_roots: Vec<CertificateDer<'static>>,
    host_roots: BTreeMap<String, Vec<CertificateDer<'static>>>,
    clients: Mutex<BTreeMap<Trust, reqwest::Client>>,
    blocking: OnceLock<Blocking>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Trust {
    Plain,
    Everywhere,
    Host(String),
}

impl Inner {
    /// The hosts of the proxies.
    fn proxies(&self) -> Vec<String> {
        let proxy = &self.settings.proxy;
        let hosts = [&proxy.http, &proxy.https].into_iter().flatten().filter_map(|p| p.url().host_str());
        hosts.map(str::to_owned).collect()
    }

    /// Whether the host is one of them: then its resolver takes any address.
    fn names_a_proxy(&self, url: &Url) -> bool {
        url.host_str().is_some_and(|host| self.proxies().iter().any(|p| p == host))
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
}

impl Client {
    /// Checks the settings and makes a client of them. Opens no connection and no file.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        let all = |pems: &[crate::Pem]| -> Result<Vec<_>, SettingsError> {
            Ok(pems.iter().map(tls::roots_of).collect::<Result<Vec<_>, _>>()?.concat())
        };
        let extra_roots = all(&settings.extra_roots)?;
        let mut host_roots = BTreeMap::new();
        for (host, pems) in &settings.host_roots {
            host_roots.insert(host.to_ascii_lowercase(), all(pems)?);
        }
        let user_agent = HeaderValue::from_str(&settings.user_agent)
            .map_err(|_| SettingsError::UserAgent(settings.user_agent.clone()))?;
        let inner = Inner {
            settings,
            user_agent,
            extra_roots,
            host_roots,
            clients: Mutex::new(BTreeMap::new()),
            blocking: OnceLock::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The settings that this client was made of.
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// A client with the same settings that connects to other machines only, and connections of its own.
    ///
    /// # Errors
    /// As [`Client::new`], which took these settings before.
    pub fn for_strangers(&self) -> Result<Self, SettingsError> {
        Self::new(Settings { reach: Reach::Strangers, ..self.inner.settings.clone() })
    }

    /// A client with the same settings and more authorities for some hosts (`host` or `host:port`),
    /// and connections of its own.
    pub fn with_host_roots(&self, more: BTreeMap<String, Vec<crate::Pem>>) -> Result<Self, SettingsError> {
        let mut settings = self.inner.settings.clone();
        for (host, pems) in more {
            settings.host_roots.entry(host.to_ascii_lowercase()).or_default().extend(pems);
        }
        Self::new(settings)
    }

    /// The blocking face, with connections and a thread of its own; made once. For threads that may
    /// block, `spawn_blocking` included, never for an async task.
    pub fn blocking(&self) -> std::io::Result<Blocking> {
        if let Some(ready) = self.inner.blocking.get() {
            return Ok(ready.clone());
        }
        let made = Blocking::new(Self::new(self.inner.settings.clone()).map_err(std::io::Error::other)?)?;
        Ok(self.inner.blocking.get_or_init(|| made).clone())
    }

    /// Sends a request and follows the redirects of GET and HEAD. Dropping the future ends the exchange.
    pub async fn send(&self, request: Request) -> Result<Response, HttpError> {
        let Request { method, mut url, headers, auth, body, total, silence } = request;
        let silence = silence.unwrap_or(self.inner.settings.deadlines.silence);
        let origin = url.origin();
        let plain_at_first = url.scheme() == "http";
        let first_host = url.host_str().unwrap_or("").to_owned();
        let follow = method == Method::GET || method == Method::HEAD;
        let mut body = Some(body);
        let started = Instant::now();
        let total = total.or(self.inner.settings.deadlines.total);
        for hop in 0..=MAX_REDIRECTS {
            let elsewhere = self.proxy_of(&url).is_some() || self.inner.names_a_proxy(&url);
            self.inner.settings.reach.check(&url, elsewhere).await?;
            let active = Arc::new(Activity::new());
            let mut builder =
                self.client_for(&url)?.request(method.clone(), url.clone()).headers(headers.clone());
            // Whoever the first answer points to, the credentials stay with the origin they are for.
            if let Some(auth) = auth.as_ref().filter(|_| url.origin() == origin) {
                let value = auth.header().ok_or_else(|| HttpError::Credential { host: host_of(&url) })?;
                builder = builder.header(AUTHORIZATION, value);
            }
            builder = match body.take().unwrap_or_default() {
                Body::Empty => builder,
                Body::Bytes(b) => builder.body(b),
                Body::Stream { stream, .. } => {
                    let active = Arc::clone(&active);
                    builder.body(reqwest::Body::wrap_stream(stream.map(move |piece| {
                        active.now();
                        piece.map_err(BodyError)
                    })))
                }
            };
            if let Some(total) = total {
                let left = total.saturating_sub(started.elapsed()).max(Duration::from_millis(1));
                builder = builder.timeout(left);
            }
            // reqwest's own read timeout counts from the request's start, so it would end every upload that
            // takes longer.
            let result = tokio::select! {
                result = builder.send() => result,
                () = active.silent_for(silence) => {
                    return Err(HttpError::Timeout { host: host_of(&url), connecting: false, after: silence });
                }
            };
            let inner = result.map_err(|e| classify(&e, &url, self.proxy_of(&url), started.elapsed()))?;
            if !(follow && inner.status().is_redirection() && inner.headers().contains_key(LOCATION)) {
                return Ok(Response { inner, url, started, silence });
            }
            if hop == MAX_REDIRECTS {
                break;
            }
            let next = redirect_target(&url, inner.headers().get(LOCATION))?;
            let refused = |why: &str| HttpError::Redirect { host: host_of(&url), why: why.to_owned() };
            if next.scheme() == "http" {
                if !plain_at_first || url.scheme() == "https" {
                    return Err(refused("from https to plain http"));
                }
                let host = next.host_str().unwrap_or("");
                if host != first_host && !is_loopback(host) {
                    return Err(refused(&format!("to plain http on another host ({})", host_of(&next))));
                }
            }
            tracing::debug!(from = %host_of(&url), to = %host_of(&next), "redirected");
            url = next;
        }
        Err(HttpError::Redirect { host: host_of(&url), why: format!("more than {MAX_REDIRECTS} times") })
    }

    fn proxy_of(&self, url: &Url) -> Option<String> {
        let proxy = &self.inner.settings.proxy;
        let one = if url.scheme() == "https" { &proxy.https } else { &proxy.http };
        one.as_ref().filter(|_| !is_loopback(url.host_str().unwrap_or(""))).map(ToString::to_string)
    }

    fn client_for(&self, url: &Url) -> Result<reqwest::Client, HttpError> {
        let trust = self.trust_of(url)?;
        // A poisoned lock means a panic between two map operations: the map is still whole.
        let mut clients = self.inner.clients.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(client) = clients.get(&trust) {
            return Ok(client.clone());
        }
        let client = self
            .build(&trust)
            .map_err(|e| HttpError::Invalid { host: host_of(url), cause: e.to_string() })?;
        clients.insert(trust, client.clone());
        Ok(client)
    }

    fn trust_of(&self, url: &Url) -> Result<Trust, HttpError> {
        match url.scheme() {
            "http" => Ok(Trust::Plain),
            "https" => {
                let host = url.host_str().unwrap_or("").to_ascii_lowercase();
                let with_port = format!("{host}:{}", url.port_or_known_default().unwrap_or(443));
                let roots = &self.inner.host_roots;
                let known = [with_port, host].into_iter().find(|k| roots.contains_key(k));
                Ok(known.map_or(Trust::Everywhere, Trust::Host))
            }
            other => Err(HttpError::Invalid {
                host: host_of(url),
                cause: format!("{other} is neither http nor https"),
            }),
        }
    }

    fn build(&self, trust: &Trust) -> reqwest::Result<reqwest::Client> {
        let inner = &self.inner;
        let none = Vec::new();
        let (system, extra, own) = match trust {
            Trust::Plain => (Vec::new(), &none, &none),
            Trust::Everywhere => {
                (tls::system_roots(inner.settings.system_roots.as_deref()), &inner.extra_roots, &none)
            }
            Trust::Host(host) => (
                tls::system_roots(inner.settings.system_roots.as_deref()),
                &inner.extra_roots,
                inner.host_roots.get(host).unwrap_or(&none),
            ),
        };
        let deadlines = &inner.settings.deadlines;
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::config(system.iter().chain(extra).chain(own)))
            .https_only(*trust != Trust::Plain)
            .http1_only()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .user_agent(inner.user_agent.clone())
            .connect_timeout(deadlines.connect)
            .pool_idle_timeout(Duration::from_secs(15))
            .dns_resolver(Arc::new(SystemResolver(inner.settings.reach, inner.proxies())));
        let proxy = &inner.settings.proxy;
        let direct = format!("{},localhost,127.0.0.0/8,::1", proxy.no_proxy);
        let made = |to: &Option<ProxyUrl>, make: fn(Url) -> reqwest::Result<Proxy>| {
            to.as_ref()
                .map(|p| make(p.url().clone()).map(|x| x.no_proxy(NoProxy::from_string(&direct))))
                .transpose()
        };
        for proxy in
            [made(&proxy.http, Proxy::http)?, made(&proxy.https, Proxy::https)?].into_iter().flatten()
        {
            builder = builder.proxy(proxy);
        }
        builder.build()
    }
}

fn redirect_target(from: &Url, location: Option<&HeaderValue>) -> Result<Url, HttpError> {
    let bad = || HttpError::Redirect { host: host_of(from), why: "to something that is no URL".into() };
    let text = location.and_then(|l| l.to_str().ok()).ok_or_else(bad)?;
    let mut next = from.join(text).map_err(|_| bad())?;
    if !matches!(next.scheme(), "http" | "https") || next.host_str().is_none() {
        return Err(bad());
    }
    // A redirect cannot bring credentials of its own either.
    let _ = next.set_username("");
    let _ = next.set_password(None);
    next.set_fragment(None);
    Ok(next)
}

/// When something last moved in a request whose answer has not begun.
struct Activity {
    start: Instant,
    last_millis: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self { start: Instant::now(), last_millis: AtomicU64::new(0) }
    }

    fn now(&self) {
        let millis = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_millis.store(millis, Ordering::Relaxed);
    }

    /// Returns once nothing has moved for so long.
    async fn silent_for(&self, silence: Duration) {
        loop {
            let end = Duration::from_millis(self.last_millis.load(Ordering::Relaxed)).saturating_add(silence);
            match end.checked_sub(self.start.elapsed()).filter(|left| !left.is_zero()) {
                Some(left) => tokio::time::sleep(left).await,
                None => return,
            }
        }
    }
}

/// getaddrinfo through tokio, with errors that [`classify`] recognises. A proxy may be anywhere: it is named by its host
/// here.
struct SystemResolver(Reach, Vec<String>);

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = if self.1.iter().any(|p| p == name.as_str()) { Reach::Anywhere } else { self.0 };
        Box::pin(async move {
            let found =
                tokio::net::lookup_host((name.as_str(), 0)).await.map_err(|e| DnsError(e.to_string()))?;
            let (found, out): (Vec<_>, Vec<_>) = found.partition(|a| reach.allows(a.ip()));
            if let (true, Some(out)) = (found.is_empty(), out.first()) {
                return Err(ReachError(out.ip()).into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// An answer whose body has not been read yet.
#[derive(Debug)]
pub struct Response {
    inner: reqwest::Response,
    url: Url,
    started: Instant,
    silence: Duration,
}

impl Response {
    /// The status.
    pub fn status(&self) -> StatusCode {
        self.inner.status()
    }
    /// The headers.
    pub fn headers(&self) -> &HeaderMap {
        self.inner.headers()
    }
    /// One header as text, when it is there and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.inner.headers().get(name).and_then(|v| v.to_str().ok())
    }
    /// Where the answer came from, after redirects.
    pub fn url(&self) -> &Url {
        &self.url
    }
    /// The body's length, where the answer says so.
    pub fn content_length(&self) -> Option<u64> {
        // Of the header, not the body: a HEAD's answer has the one and not the other.
        self.header("content-length").and_then(|l| l.parse().ok())
    }
    /// The next piece of the body; `None` at its end. A body that ends early is an error.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
        match tokio::time::timeout(self.silence, self.inner.chunk()).await {
            Ok(read) => read.map_err(|e| classify(&e, &self.url, None, self.started.elapsed())),
            Err(_) => {
                let host = host_of(&self.url);
                Err(HttpError::Timeout { host, connecting: false, after: self.silence })
            }
        }
    }
    /// The whole body, refused beyond `limit` bytes before more of it is read.
    pub async fn bytes(mut self, limit: u64) -> Result<Bytes, HttpError> {
        let too_long = |url: &Url| HttpError::TooLong { host: host_of(url), limit };
        if self.inner.content_length().is_some_and(|l| l > limit) {
            return Err(too_long(&self.url));
        }
        let mut out = BytesMut::new();
        while let Some(piece) = self.chunk().await? {
            if (out.len() + piece.len()) as u64 > limit {
                return Err(too_long(&self.url));
            }
            out.extend_from_slice(&piece);
        }
        Ok(out.freeze())
    }
}
