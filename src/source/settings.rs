//! What the machine says about git: credentials, ssh, bounds. Typed; the environment and files are read by `cli`.

use keelway_http::Reach;
use keelway_model::Redacted;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// A user and a password or token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The user; for tokens most servers take any.
    pub user: String,
    /// The password or token.
    pub password: Redacted<String>,
}

/// Credentials for https, by host (with port where it is not 443), in lower case. They are sent to that host alone.
#[derive(Debug, Clone, Default)]
pub struct GitCredentials {
    by_host: BTreeMap<String, Login>,
    any: Option<Login>,
}

impl GitCredentials {
    /// Sets the login of a host (`git.example.com`, `git.example.com:8443`).
    pub fn set(&mut self, host: &str, login: Login) {
        self.by_host.insert(host.to_ascii_lowercase(), login);
    }
    /// Sets the login of the repository that the command line names (`KEELWAY_GIT_TOKEN`), whatever its host.
    pub fn set_any(&mut self, login: Login) {
        self.any = Some(login);
    }
    /// The login for a host.
    pub fn for_host(&self, host: &str) -> Option<&Login> {
        self.by_host.get(&host.to_ascii_lowercase()).or(self.any.as_ref())
    }
    /// Reads the text of a netrc file: `machine H login U password P`; `default` and macros are left out, so that
    /// no password goes to a host that is not named.
    pub fn add_netrc(&mut self, text: &str) {
        let mut words =
            text.lines().map(|l| l.split('#').next().unwrap_or("")).flat_map(str::split_whitespace);
        let (mut host, mut user): (Option<String>, Option<String>) = (None, None);
        while let Some(word) = words.next() {
            match word {
                "machine" => (host, user) = (words.next().map(str::to_owned), None),
                "default" | "macdef" => (host, user) = (None, None),
                "login" => user = words.next().map(str::to_owned),
                "password" => {
                    let password = words.next().unwrap_or_default().to_owned();
                    if let (Some(host), Some(user)) = (&host, &user) {
                        self.set(host, Login { user: user.clone(), password: Redacted::new(password) });
                    }
                }
                _ => {}
            }
        }
    }
}

/// How ssh is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshSettings {
    /// The program.
    pub program: PathBuf,
    /// What it is given before ssh's own arguments, where it is a program that starts ssh.
    pub before: Vec<OsString>,
    /// A file for `ssh -F`, instead of the user's own.
    pub config: Option<PathBuf>,
    /// The socket of an agent whose keys are the only ones.
    pub agent: Option<PathBuf>,
    /// Which machines it may connect to. Unless that is any, nothing of a configuration leads elsewhere.
    pub reach: Reach,
}

impl SshSettings {
    /// What `ssh -F` is given to read no configuration at all.
    pub const NO_CONFIG: &'static str = "none";
}

impl Default for SshSettings {
    fn default() -> Self {
        Self { program: "ssh".into(), before: Vec::new(), config: None, agent: None, reach: Reach::Anywhere }
    }
}

/// Bounds on what a server may make us do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchLimits {
    /// For one fetch in all.
    pub deadline: Duration,
    /// Bytes of one pack.
    pub pack_bytes: u64,
    /// Objects of one pack.
    pub pack_objects: u32,
    /// References that a server may list.
    pub references: usize,
}

impl Default for FetchLimits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(15 * 60),
            pack_bytes: 8 << 30,
            pack_objects: 20_000_000,
            references: 200_000,
        }
    }
}

/// Everything a fetch depends on.
#[derive(Clone)]
pub struct GitSettings {
    /// The client for https (and loopback http): roots, proxies.
    pub http: keelway_http::Client,
    /// Logins for https.
    pub credentials: GitCredentials,
    /// How ssh is called.
    pub ssh: SshSettings,
    /// Bounds.
    pub limits: FetchLimits,
    /// Set by another thread to stop a fetch.
    pub cancel: Arc<AtomicBool>,
}

impl GitSettings {
    /// Defaults, over this client.
    pub fn new(http: keelway_http::Client) -> Self {
        Self {
            http,
            credentials: GitCredentials::default(),
            ssh: SshSettings::default(),
            limits: FetchLimits::default(),
            cancel: Arc::default(),
        }
    }
}
