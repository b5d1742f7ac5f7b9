//! docker's `config.json`: logins in it, and the helpers it names.
//!
//! Read are `auths` (base64 `auth`, `username`/`password`, `identitytoken`), `credHelpers` and `credsStore`;
//! everything else in the file is docker's own affair. Keys are hosts, with or without scheme and path, as
//! docker and its relatives have written them over the years.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keelway_model::Redacted;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The largest config.json that is read, in bytes.
pub const MAX_CONFIG: usize = 1 << 20;

/// A login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// Name and password.
    Password {
        /// Name.
        user: String,
        /// Password or access token.
        password: Redacted<String>,
    },
    /// A refresh token, to be exchanged at the token server.
    Identity {
        /// The token.
        token: Redacted<String>,
    },
}

/// Where logins come from. The default has none.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    pub(crate) origin: String,
    pub(crate) logins: BTreeMap<String, Login>,
    pub(crate) helpers: BTreeMap<String, String>,
    pub(crate) default_helper: Option<String>,
    pub(crate) helper_dirs: Vec<PathBuf>,
}

/// A config.json that cannot be used. No message repeats a value: any of them may be a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or of another shape.
    #[error(
        "{origin} is not docker's config.json (line {line}, column {column}): mend it, or move it away and log in again"
    )]
    Malformed {
        /// The file.
        origin: String,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// Too large.
    #[error("{origin} has more than {MAX_CONFIG} bytes and is not read: is it docker's config.json?")]
    TooLarge {
        /// The file.
        origin: String,
    },
    /// A login that is not base64 of `user:password`.
    #[error("{origin}: the auth of {host} is not base64 of user:password; run `docker login {host}` again")]
    BadAuth {
        /// The file.
        origin: String,
        /// The entry.
        host: String,
    },
    /// A helper's name that could not be one.
    #[error("{origin}: {name:?} is no credential helper's name (letters, digits, '.', '_' and '-')")]
    BadHelper {
        /// The file.
        origin: String,
        /// The name, bounded.
        name: String,
    },
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: Option<BTreeMap<String, Entry>>,
    #[serde(default, rename = "credHelpers")]
    cred_helpers: Option<BTreeMap<String, String>>,
    #[serde(default, rename = "credsStore")]
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
struct Entry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    identitytoken: Option<String>,
}

/// Reads the text of a config.json. `origin` is the file's name, for messages.
pub fn load(text: &str, origin: &str) -> Result<Credentials, ConfigError> {
    let origin = origin.to_owned();
    if text.len() > MAX_CONFIG {
        return Err(ConfigError::TooLarge { origin });
    }
    let file: File = serde_json::from_str(text).map_err(|e| ConfigError::Malformed {
        origin: origin.clone(),
        line: e.line(),
        column: e.column(),
    })?;
    let mut out = Credentials { origin, ..Credentials::default() };
    for (key, entry) in file.auths.unwrap_or_default() {
        if let Some(login) = login_of(&entry).ok_or_else(|| ConfigError::BadAuth {
            origin: out.origin.clone(),
            host: crate::error::cleaned(&key),
        })? {
            // Of two spellings of one host the plain one, which docker writes today, counts.
            let host = normal(&key);
            if host == key || !out.logins.contains_key(&host) {
                out.logins.insert(host, login);
            }
        }
    }
    let checked = |name: String| {
        let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > 100 || !name.bytes().all(ok) {
            return Err(ConfigError::BadHelper {
                origin: out.origin.clone(),
                name: name.chars().take(100).collect(),
            });
        }
        Ok(name)
    };
    let mut helpers = BTreeMap::new();
    for (key, name) in file.cred_helpers.unwrap_or_default() {
        // An empty name takes the default away again, as docker has it.
        helpers.insert(normal(&key), if name.is_empty() { name } else { checked(name)? });
    }
    let default_helper = file.creds_store.filter(|n| !n.is_empty()).map(checked).transpose()?;
    out.helpers = helpers;
    out.default_helper = default_helper;
    Ok(out)
}

/// `None`: malformed; `Some(None)`: an entry without a login, as `credsStore` leaves them.
fn login_of(entry: &Entry) -> Option<Option<Login>> {
    if let Some(token) = entry.identitytoken.as_ref().filter(|t| !t.is_empty()) {
        return Some(Some(Login::Identity { token: token.clone().into() }));
    }
    if let Some(auth) = entry.auth.as_ref().filter(|a| !a.is_empty()) {
        let raw = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
        let (user, password) = raw.split_once(':')?;
        // docker has written NULs behind the password.
        let password = password.trim_end_matches('\0').to_owned();
        return Some(Some(Login::Password { user: user.to_owned(), password: password.into() }));
    }
    match (&entry.username, &entry.password) {
        (Some(user), Some(password)) if !user.is_empty() => {
            Some(Some(Login::Password { user: user.clone(), password: password.clone().into() }))
        }
        _ => Some(None),
    }
}

/// A key of the file as a registry's name: scheme and path cut, docker.io's aliases made one.
pub(crate) fn normal(key: &str) -> String {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let host = bare.split('/').next().unwrap_or("").to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        _ => host,
    }
}

/// The name under which docker files a registry's login, which is what helpers are asked for.
pub(crate) fn helper_key(registry: &str) -> &str {
    match registry {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => "https://index.docker.io/v1/",
        other => other,
    }
}

impl Credentials {
    /// One login for one registry, from elsewhere than a file; `origin` says where in messages.
    #[must_use]
    pub fn with_login(mut self, registry: &str, login: Login, origin: &str) -> Self {
        if self.origin.is_empty() {
            self.origin = origin.to_owned();
        }
        self.logins.insert(normal(registry), login);
        self
    }
    /// Directories where `docker-credential-*` is looked for before the inherited PATH.
    #[must_use]
    pub fn with_helper_dirs(mut self, dirs: Vec<PathBuf>) -> Self {
        self.helper_dirs = dirs;
        self
    }
    /// The file, for messages.
    pub fn origin(&self) -> &str {
        if self.origin.is_empty() { "~/.docker/config.json" } else { &self.origin }
    }
    /// The helper that is asked for a registry's login, if any.
    pub(crate) fn helper_of(&self, registry: &str) -> Option<&str> {
        match self.helpers.get(&normal(registry)) {
            Some(name) => (!name.is_empty()).then_some(name.as_str()),
            None => self.default_helper.as_deref(),
        }
    }
}
