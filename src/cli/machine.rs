//! What the environment says, read once, in one place, into typed values.

use keelway_model::{Redacted, Timestamp};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// The environment as far as Keelway obeys it.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `KEELWAY_STATE`: the state directory where no flag names one.
    pub state: Option<PathBuf>,
    /// `XDG_DATA_HOME`.
    pub data_home: Option<PathBuf>,
    /// `DOCKER_CONFIG`: the directory of docker's config.json.
    pub docker_config: Option<PathBuf>,
    /// `SSL_CERT_FILE`: the system's authorities, elsewhere.
    pub cert_file: Option<PathBuf>,
    /// `NO_COLOR`, set and not empty.
    pub no_color: bool,
    /// `TERM=dumb`.
    pub dumb_terminal: bool,
    /// `PATH`, for credential helpers.
    pub path: Vec<PathBuf>,
    /// Proxy variables in both cases, as they are named.
    pub proxies: Vec<(String, String)>,
    /// `KEELWAY_GIT_TOKEN`: for the repository that the command line names.
    pub git_token: Option<Redacted<String>>,
    /// `SOURCE_DATE_EPOCH`, as it is written.
    pub source_date: Option<String>,
    /// `KEELWAY_CLOCK`: seconds since the epoch at which Keelway's clock stands still; for tests.
    pub clock: Option<Timestamp>,
    /// `KEELWAY_KEEP_STORAGE`: how many bytes the store may take.
    pub keep_storage: Option<String>,
    /// `KEELWAY_KEEP_FREE`: how many bytes stay free on its disk.
    pub keep_free: Option<String>,
    /// `KEELWAY_LOG`: a filter for developers' logs.
    pub log: Option<String>,
    /// Whether this is the machine's root.
    pub root: bool,
    /// Whether this is an ordinary user, as root of its own user namespace.
    pub rootless: bool,
}

/// The proxy variables, lower case; the upper-case forms are obeyed too.
const PROXIES: [&str; 5] = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"];

impl Machine {
    /// Reads the environment of this process.
    pub fn read(rootless: bool) -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let path = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let seconds = |name: &str| text(name).and_then(|v| v.parse().ok()).map(Timestamp::from_seconds);
        let proxies = PROXIES
            .iter()
            .flat_map(|p| [p.to_ascii_uppercase(), (*p).to_owned()])
            .filter_map(|name| text(&name).map(|value| (name, value)))
            .collect();
        Self {
            home: path("HOME"),
            state: path("KEELWAY_STATE"),
            data_home: path("XDG_DATA_HOME"),
            docker_config: path("DOCKER_CONFIG"),
            cert_file: path("SSL_CERT_FILE"),
            no_color: text("NO_COLOR").is_some(),
            dumb_terminal: text("TERM").as_deref() == Some("dumb"),
            path: std::env::var_os("PATH").map(|p| std::env::split_paths(&p).collect()).unwrap_or_default(),
            proxies,
            git_token: text("KEELWAY_GIT_TOKEN").map(Redacted::new),
            source_date: text("SOURCE_DATE_EPOCH"),
            clock: seconds("KEELWAY_CLOCK"),
            keep_storage: text("KEELWAY_KEEP_STORAGE"),
            keep_free: text("KEELWAY_KEEP_FREE"),
            log: text("KEELWAY_LOG"),
            root: !rootless && std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0),
            rootless,
        }
    }

    /// A proxy variable, lower case before upper case.
    pub fn proxy(&self, name: &str) -> Option<&str> {
        let get = |n: &str| self.proxies.iter().find(|(k, _)| k == n).map(|(_, v)| v.as_str());
        get(name).or_else(|| get(&name.to_ascii_uppercase()))
    }

    /// A variable by name: for `--build-arg NAME` without a value.
    pub fn variable(name: &str) -> Option<String> {
        std::env::var(name).ok()
    }
}
