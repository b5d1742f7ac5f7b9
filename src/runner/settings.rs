//! What a machine says about itself: typed, complete, made by `cli`.

use crate::contexts::BuildContexts;
use keelway_container::network::Range;
use keelway_engine::Failure;
use keelway_http::Pem;
use keelway_model::plan::Grant;
use keelway_model::{Bytes, Clock, ExitCode, Redacted, Timestamp};
use keelway_pipeline::RegistryRule;
use keelway_registry::{HostSettings, RegistrySettings};
use keelway_source::GitSettings;
use keelway_store::{Collected, Need, PruneError, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// For making room after a run, and for deleting what was thrown away.
const COLLECT: Duration = Duration::from_secs(2);
const TRASH: Duration = Duration::from_millis(500);

/// Everything a run depends on besides its source.
#[derive(Clone)]
pub struct Settings {
    /// The content store.
    pub store: PathBuf,
    /// The ledger's directory.
    pub ledger: PathBuf,
    /// Mirrors of repositories.
    pub mirrors: PathBuf,
    /// Journals of deploys.
    pub deploys: PathBuf,
    /// The HTTP client everything shares.
    pub http: keelway_http::Client,
    /// git over https and ssh.
    pub git: GitSettings,
    /// Logins and what is known of registries, before a pipeline file adds its wishes.
    pub registry: RegistrySettings,
    /// `--registry-ca NAME=FILE`: what a name in a pipeline file (or a registry's host name) means.
    pub registry_cas: BTreeMap<String, Pem>,
    /// `--registry-http HOST`: registries that may be spoken to without TLS.
    pub registry_http: BTreeSet<String>,
    /// `--ssh-config NAME=FILE`.
    pub ssh_configs: BTreeMap<String, PathBuf>,
    /// This binary, which a deploy brings to its hosts.
    pub binary: PathBuf,
    /// `--runtime NAME=PATH`: the OCI runtimes that a pipeline file may name.
    pub runtimes: BTreeMap<String, PathBuf>,
    /// `--secret`: what the secrets are that the mounts of a RUN name.
    pub secrets: BTreeMap<String, Redacted<Vec<u8>>>,
    /// `--ssh`: the sockets of the agents that they name.
    pub agents: BTreeMap<String, PathBuf>,
    /// `--build-context`: what names in a Dockerfile mean.
    pub contexts: BuildContexts,
    /// The ssh configuration for repositories that a Dockerfile adds; none is read where none is given.
    pub add_ssh_config: Option<PathBuf>,
    /// What pushed files may have when they ask.
    pub allow: BTreeSet<Grant>,
    /// Addresses of private networks; `None` takes what is free.
    pub network_range: Option<Range>,
    /// Proxy variables of this machine, handed to RUN but never part of a key.
    pub proxy_env: Vec<(String, String)>,
    /// How long a new release must hold, complete, before it counts.
    pub monitor: Duration,
    /// Build steps and step stages at one time; `None` is one a core, at least eight.
    pub max_parallel: Option<usize>,
    /// `--pull`: what a name means is asked of its registry, and what the store has does not count.
    pub pull: bool,
    /// `created` of images that are built without a commit: SOURCE_DATE_EPOCH, else 1970.
    pub build_time: Timestamp,
    /// How large the store may grow.
    pub collection: Collection,
    /// Where dates come from.
    pub clock: Arc<dyn Clock>,
}

/// Says which images somebody needs who holds none of them right now: containers, deployments.
pub type Needed = Arc<dyn Fn() -> Result<Vec<Need>, String> + Send + Sync>;

/// How large the store may grow, and what must stay in it however large it is.
#[derive(Clone)]
pub struct Collection {
    /// Bytes that it may take; `None` is by the size of its disk.
    pub storage: Option<Bytes>,
    /// Bytes that stay free on its disk; `None` likewise.
    pub free: Option<Bytes>,
    /// What must stay.
    pub needed: Needed,
}

impl Collection {
    /// Deletes what was thrown away, and removes what is too much, if there is too much: for the time after a result was
    /// shown. Neither takes much longer than its bound, and what is left to do is the next one's. `None` where nothing
    /// was too much. Blocking.
    ///
    /// # Errors
    /// Nothing, or not all, could be removed; that is no failure of what was done before.
    pub fn tidy(&self, store: &Store) -> Result<Option<Collected>, PruneError> {
        // What is thrown away already may be enough.
        store.empty_trash(TRASH)?;
        let collected = store.collect((self.storage, self.free), &*self.needed, COLLECT)?;
        if collected.is_some() {
            store.empty_trash(TRASH)?;
        }
        Ok(collected)
    }
}

impl Settings {
    /// What a stage's `isolation: {runtime: NAME}` means here; `None` is our own sandbox.
    ///
    /// # Errors
    /// The machine does not know the name.
    pub fn runtime(&self, stage: &str, name: Option<&str>) -> Result<Option<PathBuf>, Failure> {
        let Some(name) = name else { return Ok(None) };
        let path = self.runtimes.get(name).ok_or_else(|| {
            Failure::new(
                ExitCode::Usage,
                format!(
                    "stage {stage}: the pipeline file asks for the runtime {name:?}, which this machine does not know; \
                     say where it is with --runtime {name}=PATH"
                ),
            )
        })?;
        Ok(Some(path.clone()))
    }

    /// The registry client for a pipeline file that asks for `rules`.
    ///
    /// # Errors
    /// A rule names an authority that this machine does not know, or asks for plain http that the command
    /// line does not allow.
    pub fn registry_client(
        &self,
        rules: &BTreeMap<String, RegistryRule>,
    ) -> Result<keelway_registry::Client, Failure> {
        let settings = self.registry_settings(rules)?;
        keelway_registry::Client::new(&self.http, settings)
            .map_err(|e| Failure::new(ExitCode::Usage, e.to_string()))
    }

    /// What is known of registries, the wishes of a pipeline file included.
    ///
    /// # Errors
    /// As [`Settings::registry_client`].
    pub fn registry_settings(
        &self,
        rules: &BTreeMap<String, RegistryRule>,
    ) -> Result<RegistrySettings, Failure> {
        let mut settings = self.registry.clone();
        for host in &self.registry_http {
            settings.hosts.entry(host.clone()).or_default().plain_http = true;
        }
        for (name, pem) in &self.registry_cas {
            settings.hosts.entry(name.clone()).or_default().roots.push(pem.clone());
        }
        for (host, rule) in rules {
            match rule {
                RegistryRule::Authority(name) => {
                    let pem = self.registry_cas.get(name).ok_or_else(|| {
                        Failure::new(
                            ExitCode::Usage,
                            format!(
                                "registry {host}: the pipeline file names the certificate authority {name:?}, which this machine does not know; \
                                 say where it is with --registry-ca {name}=FILE"
                            ),
                        )
                    })?;
                    let entry: &mut HostSettings = settings.hosts.entry(host.clone()).or_default();
                    entry.roots.push(pem.clone());
                }
                RegistryRule::PlainHttp => {
                    let bare_loopback = keelway_http::is_loopback(host);
                    if !bare_loopback && !self.registry_http.contains(host) {
                        return Err(Failure::new(
                            ExitCode::Usage,
                            format!(
                                "registry {host}: the pipeline file asks for plain http, which a pushed file may not decide; \
                                 allow it on this machine with --registry-http {host}"
                            ),
                        ));
                    }
                    settings.hosts.entry(host.clone()).or_default().plain_http = true;
                }
            }
        }
        Ok(settings)
    }
}
