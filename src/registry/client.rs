//! The client: settings in, pulls and pushes out.

use crate::auth::TokenCache;
use crate::docker_config::Credentials;
use crate::progress::WaitFn;
use keelway_http::{Pem, SettingsError, is_loopback};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What a client knows about one registry.
#[derive(Debug, Clone, Default)]
pub struct HostSettings {
    /// Speak plain http with it. False speaks https, with a loopback address too.
    pub plain_http: bool,
    /// Authorities that sign its certificate, beside those of the http settings.
    pub roots: Vec<Pem>,
    /// Hosts (`host`, on any port, or `host:port`) of token servers that may have the login for this registry. The
    /// registry itself always may, and the https server (port 443) of the same host name, and `auth.docker.io` for
    /// docker.io, `gitlab.com` for registry.gitlab.com. A token without a login is asked of any https host.
    pub token_realms: Vec<String>,
}

/// How failed requests are repeated. Only idempotent requests are, and only for reasons that may pass.
#[derive(Debug, Clone, Copy)]
pub struct Retries {
    /// Tries of one request, and for a transfer: tries in a row that made no progress.
    pub attempts: u32,
    /// The wait before the second try; it doubles with each further one.
    pub first_wait: Duration,
    /// The longest wait, whatever `Retry-After` says.
    pub longest_wait: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Self { attempts: 4, first_wait: Duration::from_millis(250), longest_wait: Duration::from_secs(5) }
    }
}

/// Everything a registry client is told.
#[derive(Debug, Clone)]
pub struct RegistrySettings {
    /// Logins.
    pub credentials: Credentials,
    /// Per registry, keyed as references write it: `host` or `host:port`. A loopback address without an
    /// entry is spoken to in plain http.
    pub hosts: BTreeMap<String, HostSettings>,
    /// Retries.
    pub retries: Retries,
    /// After how long without an answer a request is told of: see [`Client::telling`].
    pub told_after: Duration,
    /// Blobs that are transferred at one time in one pull or push.
    pub parallel: usize,
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self {
            credentials: Credentials::default(),
            hosts: BTreeMap::new(),
            retries: Retries::default(),
            told_after: Duration::from_secs(3),
            parallel: 3,
        }
    }
}

/// A registry client. Cheap to clone; clones share connections and tokens.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
    pub(crate) waits: Option<WaitFn>,
}

pub(crate) struct Inner {
    pub(crate) http: keelway_http::Client,
    pub(crate) settings: RegistrySettings,
    pub(crate) tokens: TokenCache,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
}

impl Client {
    /// Makes a client; opens no connection. Fails when a root certificate is none.
    pub fn new(http: &keelway_http::Client, settings: RegistrySettings) -> Result<Self, SettingsError> {
        let roots: BTreeMap<String, Vec<Pem>> = settings
            .hosts
            .iter()
            .filter(|(_, s)| !s.roots.is_empty())
            .map(|(host, s)| (api_host(host).to_owned(), s.roots.clone()))
            .collect();
        let http = if roots.is_empty() { http.clone() } else { http.with_host_roots(roots)? };
        Ok(Self { inner: Arc::new(Inner { http, settings, tokens: TokenCache::default() }), waits: None })
    }

    /// The same client, which tells `waits` of every request that is not answered within some seconds.
    #[must_use]
    pub fn telling(&self, waits: WaitFn) -> Self {
        Self { inner: Arc::clone(&self.inner), waits: Some(waits) }
    }

    /// The scheme to speak with a registry.
    pub(crate) fn scheme(&self, registry: &str) -> &'static str {
        match self.inner.settings.hosts.get(registry) {
            Some(host) if host.plain_http => "http",
            Some(_) => "https",
            None if is_loopback(registry) => "http",
            None => "https",
        }
    }
}

/// The host to talk to for a registry as references name it.
pub(crate) fn api_host(registry: &str) -> &str {
    match registry {
        "docker.io" | "index.docker.io" => "registry-1.docker.io",
        other => other,
    }
}
