//! Authentication: challenges, logins, tokens.
//!
//! What is known about a registry is kept for the life of the client: how it wants to be asked (learned from
//! its first 401), the login for it, and one token for each scope until it expires. One lock is held while a
//! token is fetched, so that parallel transfers ask for it once.

use crate::api::{is_transient, said_of};
use crate::docker_config::Login;
use crate::error::{Problem, cleaned};
use crate::{Client, helper};
use keelway_http::{Auth, Body, HeaderValue, Request, Response, StatusCode, Url, header};
use keelway_model::Redacted;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// The largest answer of a token server, in bytes.
const MAX_TOKEN_ANSWER: u64 = 256 << 10;
/// What a token lives where its server does not say.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// Headers longer than this are not parsed.
const MAX_CHALLENGE: usize = 8 << 10;

/// One challenge of a `WWW-Authenticate` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// Lower case: `basic`, `bearer`.
    pub(crate) scheme: String,
    /// Lower-case names.
    pub(crate) params: BTreeMap<String, String>,
}

/// How a registry wants to be asked.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    Open,
    Basic,
    Bearer { realm: Url, service: Option<String> },
}

/// A login and where it is from.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) login: Login,
    pub(crate) origin: String,
}

impl Found {
    pub(crate) fn user(&self) -> &str {
        match &self.login {
            Login::Password { user, .. } => user,
            Login::Identity { .. } => "<token>",
        }
    }
}

struct Token {
    value: Redacted<String>,
    until: Instant,
}

#[derive(Default)]
struct State {
    ways: BTreeMap<String, Way>,
    logins: BTreeMap<String, Option<Found>>,
    tokens: BTreeMap<(String, String), Token>,
}

/// What a client has learned; see the module.
#[derive(Default)]
pub(crate) struct TokenCache(Mutex<State>);

/// The challenges of one header, in order; garbage ends the list.
pub(crate) fn parse_challenges(text: &str) -> Vec<Challenge> {
    let mut out: Vec<Challenge> = Vec::new();
    let mut rest = if text.len() > MAX_CHALLENGE { "" } else { text };
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(|c| !is_token(c)).unwrap_or(rest.len());
        if end == 0 {
            return out;
        }
        let name = rest[..end].to_ascii_lowercase();
        let after = rest[end..].trim_start_matches([' ', '\t']);
        match after.strip_prefix('=') {
            // `name=value` belongs to the challenge before it.
            Some(value) => {
                let value = value.trim_start_matches([' ', '\t']);
                let Some(current) = out.last_mut() else { return out };
                let (text, tail) = match value.strip_prefix('"') {
                    Some(quoted) => match unquoted(quoted) {
                        Some(pair) => pair,
                        None => return out,
                    },
                    None => {
                        let end = value.find([',', ' ', '\t']).unwrap_or(value.len());
                        (value[..end].to_owned(), &value[end..])
                    }
                };
                current.params.entry(name).or_insert(text);
                rest = tail;
            }
            None => {
                out.push(Challenge { scheme: name, params: BTreeMap::new() });
                rest = after;
            }
        }
    }
}

/// The text up to the closing quote, and what follows it.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Some((out, &text[i + 1..])),
            '\\' => out.push(chars.next()?.1),
            c => out.push(c),
        }
    }
    None
}

/// The way to ask, from the headers of a 401: Bearer where it is offered, else Basic.
pub(crate) fn way_of<'a>(headers: impl Iterator<Item = &'a str>) -> Result<Way, Problem> {
    let challenges: Vec<Challenge> = headers.flat_map(parse_challenges).collect();
    if let Some(bearer) = challenges.iter().find(|c| c.scheme == "bearer") {
        let realm =
            bearer.params.get("realm").ok_or_else(|| Problem::Challenge("Bearer without a realm".into()))?;
        let realm: Url = realm
            .parse()
            .map_err(|_| Problem::Challenge(format!("the realm {:?} is no URL", cleaned(realm))))?;
        return Ok(Way::Bearer { realm, service: bearer.params.get("service").cloned() });
    }
    if challenges.iter().any(|c| c.scheme == "basic") {
        return Ok(Way::Basic);
    }
    let names: Vec<&str> = challenges.iter().map(|c| c.scheme.as_str()).collect();
    Err(Problem::Challenge(if names.is_empty() {
        "401 without a challenge".into()
    } else {
        cleaned(&names.join(", "))
    }))
}

/// Whether a token server may have the login for a registry: it is the registry itself (its host name and its port: on
/// another port there may be somebody else's server), a known pair, the https server of the same name, or one that the
/// settings name. A sibling domain is no reason: `a.co.uk` and `b.co.uk` are strangers. `scheme` is the registry's.
fn realm_may_have_login(registry: &str, scheme: &str, realm: &Url, allowed: &[String]) -> bool {
    let host = realm.host_str().unwrap_or("").to_ascii_lowercase();
    let port = realm.port_or_known_default().unwrap_or(443);
    let known = match registry {
        "docker.io" => host == "auth.docker.io" && port == 443,
        "registry.gitlab.com" => host == "gitlab.com" && port == 443,
        _ => false,
    };
    let default = if scheme == "http" { 80 } else { 443 };
    let (own, own_port) = match registry.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (name, port.parse().ok()),
        _ => (registry, Some(default)),
    };
    let well_known = realm.scheme() == "https" && port == 443;
    let named =
        |a: &String| a.eq_ignore_ascii_case(&host) || a.eq_ignore_ascii_case(&format!("{host}:{port}"));
    known
        || (own.eq_ignore_ascii_case(&host) && (own_port == Some(port) || well_known))
        || allowed.iter().any(named)
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<u64>,
}

impl Client {
    /// What to send with a request for `scope`; `None` to an open registry. `ping` is what an unknown
    /// registry is asked with, to learn its way.
    pub(crate) async fn authorization(
        &self,
        registry: &str,
        scope: &str,
        ping: &Url,
    ) -> Result<Option<Auth>, Problem> {
        let mut state = self.inner.tokens.0.lock().await;
        let way = match state.ways.get(registry) {
            Some(way) => way.clone(),
            None => {
                let way = self.learn(ping).await?;
                state.ways.insert(registry.to_owned(), way.clone());
                way
            }
        };
        match way {
            Way::Open => Ok(None),
            Way::Basic => match self.login(&mut state, registry).await?.map(|f| f.login) {
                Some(Login::Password { user, password }) => Ok(Some(Auth::Basic { user, password })),
                // A refresh token is of use only to a token server.
                Some(Login::Identity { .. }) | None => {
                    Err(Problem::NoLogin { config: self.inner.settings.credentials.origin().to_owned() })
                }
            },
            Way::Bearer { realm, service } => {
                let key = (registry.to_owned(), scope.to_owned());
                if let Some(token) = state.tokens.get(&key).filter(|t| t.until > Instant::now()) {
                    return Ok(Some(Auth::Bearer(token.value.clone())));
                }
                let login = self.login(&mut state, registry).await?;
                let token = self.token(registry, scope, realm, service, login).await?;
                let value = token.value.clone();
                state.tokens.insert(key, token);
                Ok(Some(Auth::Bearer(value)))
            }
        }
    }

    /// Takes note of a 401: what was known about the registry's way and the token for the scope is gone.
    pub(crate) async fn forget(&self, registry: &str, scope: &str, way: Way) {
        let mut state = self.inner.tokens.0.lock().await;
        state.ways.insert(registry.to_owned(), way);
        state.tokens.remove(&(registry.to_owned(), scope.to_owned()));
    }

    /// The login that is used for a registry, for messages.
    pub(crate) async fn used_login(&self, registry: &str) -> Option<Found> {
        self.inner.tokens.0.lock().await.logins.get(registry).cloned().flatten()
    }

    /// The login for a registry, to be handed to a host that pulls from it.
    pub async fn login_for(&self, registry: &str) -> Result<Option<Login>, Problem> {
        let mut state = self.inner.tokens.0.lock().await;
        Ok(self.login(&mut state, registry).await?.map(|f| f.login))
    }

    async fn learn(&self, ping: &Url) -> Result<Way, Problem> {
        let response = self.ask_once("the ping", Request::get(ping.clone())).await?;
        if response.status() != StatusCode::UNAUTHORIZED || response.url().origin() != ping.origin() {
            return Ok(Way::Open);
        }
        way_of(response.headers().get_all(header::WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok()))
    }

    /// Sends without retrying: the request that this one authorises is retried as a whole.
    async fn ask_once(&self, name: &'static str, request: Request) -> Result<Response, Problem> {
        let response = self.inner.http.send(request).await?;
        let status = response.status();
        if is_transient(status) {
            return Err(Problem::Server {
                status,
                request: name,
                attempts: 1,
                said: said_of(response).await,
            });
        }
        Ok(response)
    }

    async fn login(&self, state: &mut State, registry: &str) -> Result<Option<Found>, Problem> {
        if let Some(known) = state.logins.get(registry) {
            return Ok(known.clone());
        }
        let credentials = &self.inner.settings.credentials;
        let mut found = None;
        if let Some(name) = credentials.helper_of(registry) {
            let login = helper::get(name, &credentials.helper_dirs, registry, helper::DEADLINE).await?;
            found = login.map(|login| Found { login, origin: format!("docker-credential-{name}") });
        }
        let found = found.or_else(|| {
            let login = credentials.logins.get(&crate::docker_config::normal(registry))?.clone();
            Some(Found { login, origin: credentials.origin().to_owned() })
        });
        state.logins.insert(registry.to_owned(), found.clone());
        Ok(found)
    }

    async fn token(
        &self,
        registry: &str,
        scope: &str,
        realm: Url,
        service: Option<String>,
        found: Option<Found>,
    ) -> Result<Token, Problem> {
        let realm_host = realm.host_str().unwrap_or("?").to_owned();
        let bad = |why: String| Problem::Token { realm: realm_host.clone(), why };
        if realm.scheme() == "http" && self.scheme(registry) != "http" {
            return Err(bad("its address is plain http".into()));
        }
        let allowed =
            self.inner.settings.hosts.get(registry).map(|h| h.token_realms.as_slice()).unwrap_or_default();
        if found.is_some() && !realm_may_have_login(registry, self.scheme(registry), &realm, allowed) {
            let port = realm.port().map(|p| format!(":{p}")).unwrap_or_default();
            return Err(Problem::Realm { realm: format!("{realm_host}{port}") });
        }
        let request = token_request(realm, scope, service.as_deref(), found.as_ref().map(|f| &f.login));
        let asked = Instant::now();
        let response = self.ask_once("the token request", request).await?;
        match (response.status(), found) {
            (s, _) if s.is_success() => {}
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST, Some(f)) => {
                return Err(Problem::BadLogin { user: f.user().to_owned(), origin: f.origin });
            }
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, None) => {
                return Err(Problem::NoLogin { config: self.inner.settings.credentials.origin().to_owned() });
            }
            (status, _) => return Err(bad(format!("it answered {status}"))),
        }
        let bytes = response.bytes(MAX_TOKEN_ANSWER).await?;
        let answer: TokenAnswer =
            serde_json::from_slice(&bytes).map_err(|_| bad("its answer is not JSON".into()))?;
        let value = answer.token.filter(|t| !t.is_empty()).or(answer.access_token).filter(|t| !t.is_empty());
        let value = value.ok_or_else(|| bad("its answer holds none".into()))?;
        let life = answer.expires_in.map_or(DEFAULT_LIFE, |s| Duration::from_secs(s.clamp(1, 86_400)));
        // Counted from before the request, and ended early, so that a token does not expire on its way.
        Ok(Token { value: value.into(), until: asked + life.mul_f32(0.9) })
    }
}

fn token_request(mut realm: Url, scope: &str, service: Option<&str>, login: Option<&Login>) -> Request {
    if let Some(Login::Identity { token }) = login {
        // OAuth 2's refresh, as docker's token servers take it.
        let mut form: Vec<(&str, &str)> = vec![
            ("grant_type", "refresh_token"),
            ("client_id", "keelway"),
            ("scope", scope),
            ("refresh_token", token.reveal()),
        ];
        form.extend(service.map(|s| ("service", s)));
        return Request::post(realm)
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"))
            .body(Body::Bytes(form_text(&form).into()));
    }
    realm.query_pairs_mut().extend_pairs(service.map(|s| ("service", s))).append_pair("scope", scope);
    let auth = match login {
        Some(Login::Password { user, password }) => {
            Some(Auth::Basic { user: user.clone(), password: password.clone() })
        }
        _ => None,
    };
    Request::get(realm).auth(auth)
}

fn form_text(pairs: &[(&str, &str)]) -> String {
    let mut url = Url::parse("http://form/").expect("a constant URL");
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or("").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_as_registries_write_them() {
        let docker = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let got = parse_challenges(docker);
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].params["realm"], "https://auth.docker.io/token");
        assert_eq!(got[0].params["scope"], "repository:a/b:pull,push");
        let two = parse_challenges(r#"Basic realm="a \"b\", c", Bearer realm=https://x/t , service=s"#);
        assert_eq!((two[0].scheme.as_str(), two[0].params["realm"].as_str()), ("basic", "a \"b\", c"));
        assert_eq!((two[1].scheme.as_str(), two[1].params["service"].as_str()), ("bearer", "s"));
        for garbage in ["", ",,,", "=x", "Basic realm=\"open", "\"", "é"] {
            parse_challenges(garbage);
        }
        assert!(matches!(way_of([r#"Negotiate, Basic realm="r""#].into_iter()), Ok(Way::Basic)));
        assert!(way_of(["Negotiate"].into_iter()).is_err());
        assert!(way_of([r#"Bearer realm="not a url""#].into_iter()).is_err());
    }

    #[test]
    fn a_login_goes_to_no_stranger() {
        let may = |registry: &str, realm: &str, allowed: &[String]| {
            realm_may_have_login(registry, "https", &realm.parse().unwrap(), allowed)
        };
        assert!(may("docker.io", "https://auth.docker.io/token", &[]));
        assert!(may("r.example.com:5000", "https://r.example.com/token", &[]));
        assert!(may("r.example.com:5000", "https://r.example.com:5000/token", &[]));
        assert!(may("r.example.com", "https://r.example.com/token", &[]));
        assert!(may("[::1]:5000", "https://[::1]:5000/token", &[]));
        assert!(may("r.example.com", "https://git.example.com/jwt", &["git.example.com".into()]));
        assert!(may("r.example.com", "https://r.example.com:8443/jwt", &["R.example.com:8443".into()]));
        for (registry, realm) in [
            ("r.example.com", "https://evil.example.org/token"),
            ("r.example.com", "https://git.example.com/jwt"),
            ("a.co.uk", "https://b.co.uk/t"),
            ("docker.io", "https://auth.docker.io.evil.com/token"),
            ("r.example.com", "https://r.example.com.evil.com/"),
            ("r.example.com", "https://auth.docker.io/token"),
            ("r.example.com", "https://r.example.com:8443/token"),
            ("r.example.com:5000", "https://r.example.com:5001/token"),
            ("r.example.com:5000", "http://r.example.com/token"),
            ("docker.io", "https://auth.docker.io:8443/token"),
        ] {
            assert!(!may(registry, realm, &[]), "{registry} -> {realm}");
        }
    }
}
