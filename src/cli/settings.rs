//! From flags, environment and the files they name to the runner's typed settings.

use crate::args::{Allow, Global, Names};
use crate::machine::Machine;
use crate::outcome::CommandError;
use crate::{files, render};
use keelway_http::{Pem, ProxySettings};
use keelway_model::clock::{FixedClock, SystemClock};
use keelway_model::plan::Grant;
use keelway_model::{Clock, Redacted, Timestamp};
use keelway_registry::{Credentials, RegistrySettings, docker_config};
use keelway_runner::{Collection, Settings};
use keelway_source::{GitSettings, Login, Origin, RepoUrl, Transport};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The largest file of certificates, in bytes: a system's whole bundle has a quarter of a MiB.
const MAX_CERTIFICATES: u64 = 16 << 20;
/// The largest file of logins, in bytes.
const MAX_LOGINS: u64 = 4 << 20;

/// The state directory; refused where others could change what is in it.
pub fn state_dir(global: &Global, machine: &Machine) -> Result<PathBuf, CommandError> {
    let dir = named_state_dir(global, machine)?;
    trusted(&dir)?;
    Ok(dir)
}

/// The state directory of a command that only reads. One that was named and is not there is a slip of the pen, and is
/// not made.
pub fn existing_state(global: &Global, machine: &Machine) -> Result<PathBuf, CommandError> {
    let dir = state_dir(global, machine)?;
    if (global.state.is_some() || machine.state.is_some()) && !dir.exists() {
        return Err(CommandError::usage(format!("there is no state directory {}", dir.display())));
    }
    Ok(dir)
}

/// Whoever may write to the state directory decides what images hold and what is deployed.
fn trusted(dir: &Path) -> Result<(), CommandError> {
    // One that is not there will be ours, and one that we may not see fails where it is used.
    let Ok(found) = fs::metadata(dir) else { return Ok(()) };
    let me = fs::metadata("/proc/self").map_err(CommandError::outside)?.uid();
    let shown = dir.display();
    if found.uid() != me {
        return Err(CommandError::outside(format!(
            "the state directory {shown} belongs to user {}, not to user {me}, who runs this: name another with \
             --state DIR, or have it given over, if what is in it can be trusted: chown -R {me} {shown}",
            found.uid()
        )));
    }
    if found.mode() & 0o022 != 0 {
        return Err(CommandError::outside(format!(
            "the state directory {shown} may be changed by other users: if what is in it can be trusted, mend it with: \
             chmod go-w {shown}"
        )));
    }
    Ok(())
}

fn named_state_dir(global: &Global, machine: &Machine) -> Result<PathBuf, CommandError> {
    if let Some(dir) = global.state.clone().or_else(|| machine.state.clone()) {
        return std::path::absolute(&dir).map_err(CommandError::outside);
    }
    if machine.root {
        return Ok("/var/lib/keelway".into());
    }
    let data = machine.data_home.clone().or_else(|| machine.home.as_ref().map(|h| h.join(".local/share")));
    data.map(|d| d.join("keelway"))
        .ok_or_else(|| CommandError::usage("HOME is not set; say where the state shall be with --state DIR"))
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>, CommandError> {
    files::read(path, MAX_CERTIFICATES)
        .map_err(|e| CommandError::usage(format!("{what} {}: {e}", path.display())))
}

fn pem(path: &Path) -> Result<Pem, CommandError> {
    Ok(Pem { origin: path.display().to_string(), text: read(path, "certificate authority")? })
}

/// A file that need not be there. One that may not be read is as if it were not there, as when HOME is somebody else's.
fn read_optional(path: &Path, global: &Global) -> Result<Option<String>, CommandError> {
    match files::read_text(path, MAX_LOGINS) {
        Ok(text) => Ok(Some(text)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            if !global.quiet {
                let text = format!("{}: {e}; going on without it", path.display());
                let _ = writeln!(io::stderr(), "{}", render::clean(&text));
            }
            Ok(None)
        }
        Err(e) => Err(CommandError::usage(format!("{}: {e}", path.display()))),
    }
}

fn http(names: &Names, machine: &Machine) -> Result<keelway_http::Client, CommandError> {
    let mut settings = keelway_http::Settings::default();
    if let Some(file) = &machine.cert_file {
        settings.system_roots = Some(file.clone());
    }
    settings.extra_roots = names.ca.iter().map(|f| pem(f)).collect::<Result<_, _>>()?;
    let proxy = |name: &str| -> Result<_, CommandError> {
        let text = machine.proxy(name).or_else(|| machine.proxy("all_proxy"));
        text.map(|t| t.parse().map_err(|e| CommandError::usage(format!("{name}: {e}")))).transpose()
    };
    settings.proxy = ProxySettings {
        http: proxy("http_proxy")?,
        https: proxy("https_proxy")?,
        no_proxy: machine.proxy("no_proxy").unwrap_or_default().to_owned(),
    };
    keelway_http::Client::new(settings).map_err(|e| CommandError::usage(e.to_string()))
}

fn credentials(global: &Global, machine: &Machine) -> Result<Credentials, CommandError> {
    let dir = machine.docker_config.clone().or_else(|| machine.home.as_ref().map(|h| h.join(".docker")));
    let Some(file) = dir.map(|d| d.join("config.json")) else { return Ok(Credentials::default()) };
    let Some(text) = read_optional(&file, global)? else { return Ok(Credentials::default()) };
    let loaded = docker_config::load(&text, &file.display().to_string())
        .map_err(|e| CommandError::usage(e.to_string()))?;
    Ok(loaded.with_helper_dirs(machine.path.clone()))
}

fn git(http: &keelway_http::Client, global: &Global, machine: &Machine) -> Result<GitSettings, CommandError> {
    let mut git = GitSettings::new(http.clone());
    if let Some(home) = &machine.home
        && let Some(text) = read_optional(&home.join(".netrc"), global)?
    {
        git.credentials.add_netrc(&text);
    }
    if let Some(token) = &machine.git_token {
        git.credentials
            .set_any(Login { user: "git".into(), password: Redacted::new(token.reveal().clone()) });
    }
    Ok(git)
}

/// The address after `--repo`. A relative path is made absolute, so that a repository has one mirror and one record
/// wherever the command stands.
pub fn repo_url(text: &str) -> Result<RepoUrl, CommandError> {
    let parse = |text: &str| {
        RepoUrl::parse(text, Origin::CommandLine).map_err(|e| CommandError::usage(format!("--repo: {e}")))
    };
    let url = parse(text)?;
    match url.transport() {
        Transport::Local { path } if path.is_relative() => {
            let whole = path
                .canonicalize()
                .map_err(|e| CommandError::usage(format!("--repo {}: {e}", path.display())))?;
            match whole.to_str() {
                Some(text) => parse(text),
                None => {
                    Err(CommandError::usage(format!("--repo {}: the path is not UTF-8", whole.display())))
                }
            }
        }
        _ => Ok(url),
    }
}

/// The file after `--git-ssh-config`.
pub fn git_ssh_config(file: Option<&Path>) -> Result<Option<PathBuf>, CommandError> {
    let Some(file) = file else { return Ok(None) };
    match std::path::absolute(file) {
        Ok(path) if path.is_file() => Ok(Some(path)),
        _ => Err(CommandError::usage(format!("--git-ssh-config: {} is not a file", file.display()))),
    }
}

/// The clock, which a test may stop.
pub fn clock(machine: &Machine) -> Arc<dyn Clock> {
    match machine.clock {
        Some(at) => Arc::new(FixedClock(at)),
        None => Arc::new(SystemClock),
    }
}

/// `created` of images that are built without a commit.
pub fn build_time(source_date: Option<&str>) -> Result<Timestamp, CommandError> {
    let Some(text) = source_date else { return Ok(Timestamp(0)) };
    // Nine thousand years fit a date, and their milliseconds fit the number.
    match text.parse::<i64>() {
        Ok(seconds) if (0..=253_402_300_799).contains(&seconds) => Ok(Timestamp::from_seconds(seconds)),
        _ => Err(CommandError::usage(format!(
            "SOURCE_DATE_EPOCH {text:?} is not a number of seconds since 1970; correct it or unset it"
        ))),
    }
}

/// How large the store may grow, and what must stay in it.
pub fn collection(state: &Path, machine: &Machine) -> Result<Collection, CommandError> {
    let size = |name: &str, text: &Option<String>| {
        let parse = |t: &String| t.parse().map_err(|e| CommandError::usage(format!("{name}: {e}")));
        text.as_ref().map(parse).transpose()
    };
    let at = state.to_path_buf();
    Ok(Collection {
        storage: size("KEELWAY_KEEP_STORAGE", &machine.keep_storage)?,
        free: size("KEELWAY_KEEP_FREE", &machine.keep_free)?,
        needed: Arc::new(move || keelway_host::needed_images(&at).map_err(|e| e.to_string())),
    })
}

/// Everything a run depends on.
pub fn settings(global: &Global, names: &Names, machine: &Machine) -> Result<Settings, CommandError> {
    let state = state_dir(global, machine)?;
    let http = http(names, machine)?;
    let mut git = git(&http, global, machine)?;
    let binary = std::env::current_exe().map_err(CommandError::outside)?;
    if machine.rootless {
        // ssh looks for the keys of whoever it runs as: the user, not the root of the user's namespace.
        git.ssh.program.clone_from(&binary);
        git.ssh.before = vec![keelway_sandbox::rootless::OUTSIDE_ARGUMENT.into(), "ssh".into()];
    }
    let registry_cas = names
        .registry_ca
        .iter()
        .map(|(n, f)| Ok((n.clone(), pem(f)?)))
        .collect::<Result<_, CommandError>>()?;
    let ssh_configs = names
        .ssh_config
        .iter()
        .map(|(n, f)| match std::path::absolute(f) {
            Ok(p) if p.is_file() => Ok((n.clone(), p)),
            _ => Err(CommandError::usage(format!("--ssh-config {n}: {} is not a file", f.display()))),
        })
        .collect::<Result<_, CommandError>>()?;
    let runtimes = names
        .runtime
        .iter()
        .map(|(n, f)| match std::path::absolute(f) {
            Ok(p) if p.is_file() => Ok((n.clone(), p)),
            _ => Err(CommandError::usage(format!("--runtime {n}: {} is not a file", f.display()))),
        })
        .collect::<Result<_, CommandError>>()?;
    Ok(Settings {
        store: state.join("store"),
        ledger: state.join("ledger"),
        mirrors: state.join("mirrors"),
        deploys: state.join("deploys"),
        git,
        registry: RegistrySettings {
            credentials: credentials(global, machine)?,
            ..RegistrySettings::default()
        },
        http,
        registry_cas,
        registry_http: names.registry_http.iter().cloned().collect(),
        ssh_configs,
        binary,
        runtimes,
        secrets: Default::default(),
        agents: Default::default(),
        contexts: Default::default(),
        add_ssh_config: None,
        allow: names.allow.iter().map(|Allow::HostNetwork| Grant::HostNetwork).collect(),
        network_range: names.network_range,
        proxy_env: machine.proxies.clone(),
        monitor: std::time::Duration::from_secs(2),
        max_parallel: None,
        pull: false,
        build_time: build_time(machine.source_date.as_deref())?,
        collection: collection(&state, machine)?,
        clock: clock(machine),
    })
}
