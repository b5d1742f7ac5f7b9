//! What a machine says about itself: typed, complete, made by `cli`.

use crate::contexts::BuildContexts;
use keelway_container::network::Range;
use keelway_engine::Failure;
use keelway_http::Pem;
use keelway_model::plan::Grant;
use keelway_model::{Clock, ExitCode, Redacted, Timestamp};
use keelway_pipeline::RegistryRule;
use keelway_registry::{HostSettings, RegistrySettings};
use keelway_source::GitSettings;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

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
    /// Where dates come from.
    pub clock: Arc<dyn Clock>,
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
