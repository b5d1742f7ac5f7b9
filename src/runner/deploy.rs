//! `Op::Deploy`: the digest that a push of this run got its answer for, rolled out; status and rollback.

use crate::perform::Performer;
use crate::settings::Settings;
use crate::{RunnerError, blocking};
use keelway_deploy::apply::{ApplySettings, DISK_NEEDED, DeployEnd, DeployEvent, Emit, apply, rollback};
use keelway_deploy::link::HostLink;
use keelway_deploy::protocol::{Login as WireLogin, RegistryAccess, WireSecret};
use keelway_deploy::ssh::{Binary, SshSettings, links};
use keelway_deploy::status::{HostStatus, status};
use keelway_engine::{CancelToken, Ctx, Failure, Performed};
use keelway_model::ids::AppName;
use keelway_model::plan::{DeployOp, Target};
use keelway_model::{ExitCode, LogStream, Node, Output, Platform};
use keelway_pipeline::{Definition, Kind, RegistryRule};
use keelway_registry::docker_config::Login;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// Events of a deploy on their way to be shown.
const EVENTS: usize = 256;

fn usage(message: impl Into<String>) -> Failure {
    Failure::new(ExitCode::Usage, message)
}

/// The links to a target's hosts; nothing is connected yet.
async fn target_links(
    settings: &Settings,
    name: &str,
    target: &Target,
) -> Result<Vec<Arc<dyn HostLink>>, Failure> {
    let config = match &target.ssh_config {
        None => None,
        Some(wanted) => Some(settings.ssh_configs.get(wanted).cloned().ok_or_else(|| {
            usage(format!(
                "target {name}: the pipeline file names the ssh configuration {wanted:?}, which this machine does not know; \
                 say where it is with --ssh-config {wanted}=FILE"
            ))
        })?),
    };
    let path = settings.binary.clone();
    let binary = blocking(move || {
        Binary::read(&path, env!("CARGO_PKG_VERSION"))
            .map_err(|e| Failure::outside(format!("cannot read this binary ({}): {e}", path.display())))
    })
    .await?;
    let ssh = SshSettings {
        program: settings.git.ssh.program.clone(),
        before: settings.git.ssh.before.clone(),
        config,
        binary: Arc::new(binary),
    };
    links(target, &ssh).map_err(|e| usage(format!("target {name}: {e}")))
}

/// How the hosts reach a registry: as this machine does.
async fn access(
    settings: &Settings,
    rules: &BTreeMap<String, RegistryRule>,
    client: &keelway_registry::Client,
    registry: &str,
) -> Result<RegistryAccess, Failure> {
    let known = settings.registry_settings(rules)?;
    let host = known.hosts.get(registry).cloned().unwrap_or_default();
    let login = match client
        .login_for(registry)
        .await
        .map_err(|e| Failure::outside(format!("registry {registry}: {e}")))?
    {
        None => None,
        Some(Login::Password { user, password }) => Some(WireLogin { user, password: WireSecret(password) }),
        Some(Login::Identity { .. }) => {
            return Err(Failure::outside(format!(
                "registry {registry}: its login is an identity token, which cannot be handed to hosts yet; log in with a user and an access token"
            )));
        }
    };
    let texts = |pems: &[keelway_http::Pem]| -> Vec<String> {
        pems.iter().map(|p| String::from_utf8_lossy(&p.text).into_owned()).collect()
    };
    Ok(RegistryAccess {
        registry: registry.to_owned(),
        plain_http: host.plain_http,
        roots: texts(&host.roots),
        extra_roots: texts(&settings.http.settings().extra_roots),
        token_realms: host.token_realms,
        login,
    })
}

fn apply_settings(settings: &Settings, registry: RegistryAccess) -> ApplySettings {
    ApplySettings {
        state_dir: settings.deploys.clone(),
        who: format!("{} pid {}", hostname(), std::process::id()),
        registry,
        platform: Platform::host(),
        disk_needed: DISK_NEEDED,
        knobs: keelway_deploy::rollout::Knobs { monitor: settings.monitor, ..Default::default() },
        clock: Arc::clone(&settings.clock),
    }
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".into(), |n| n.trim().to_owned())
}

/// A cancellation as the rollout hears it.
fn stopper(cancel: &CancelToken) -> watch::Receiver<bool> {
    let (tell, told) = watch::channel(false);
    let cancel = cancel.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = cancel.cancelled() => { let _ = tell.send(true); }
            () = tell.closed() => {}
        }
    });
    told
}

/// What a deploy that did not succeed says: summary, reasons, the last words of the replica.
fn failure(end: &DeployEnd) -> Failure {
    let mut message = end.summary.clone();
    for reason in &end.reasons {
        message.push_str("\n  ");
        message.push_str(reason);
    }
    if !end.log.is_empty() {
        message.push_str("\n  the last lines of the replica that failed:");
        for line in &end.log {
            message.push_str("\n    ");
            message.push_str(line);
        }
    }
    Failure::new(end.exit, message)
}

/// What a rollout tells becomes lines of its node. The task ends when the sender is dropped.
fn show(ctx: &Ctx) -> (mpsc::Sender<String>, tokio::task::JoinHandle<()>) {
    let (send, mut receive) = mpsc::channel::<String>(EVENTS);
    let ctx = ctx.clone();
    let shower = tokio::spawn(async move {
        while let Some(text) = receive.recv().await {
            ctx.log(LogStream::Stdout, &format!("{text}\n")).await;
        }
    });
    (send, shower)
}

pub(crate) async fn run(
    performer: &Performer,
    ctx: &Ctx,
    node: &Node,
    op: &DeployOp,
    inputs: &[Output],
) -> Result<Performed, Failure> {
    let place = node.needs.iter().position(|n| *n == op.image);
    let Some(Output::Pushed(image)) = place.and_then(|i| inputs.get(i)) else {
        return Err(Failure::bug(format!("{}: the pushed image is not among its inputs", node.name)));
    };
    let settings = &performer.settings;
    let links = target_links(settings, &op.target_name, &op.target).await?;
    let registry =
        access(settings, &performer.rules, &performer.registry, image.repository().registry()).await?;
    let apply_settings = apply_settings(settings, registry);
    let stop = stopper(&ctx.cancel);
    let (lines, shower) = show(ctx);
    // A rollout never waits for its audience: where the queue is full, a line is left out.
    let emit = move |event: DeployEvent| {
        let _ = lines.try_send(event.text());
    };
    let end = apply(op, image, &links, &apply_settings, &emit, stop).await;
    drop(emit);
    let _ = shower.await;
    if end.cut > 0 {
        ctx.notice(format!("{} requests were cut when the drain deadline passed", end.cut)).await;
    }
    if end.exit == ExitCode::Done {
        ctx.news(end.summary).await;
        let result = format!("{} {} on {}", op.app, image.digest(), op.target_name);
        return Ok(Performed::Output(Output::Nothing, Some(result)));
    }
    Err(failure(&end))
}

/// A deploy target of a pipeline file, with what runs on it.
pub struct Place {
    /// Its name in the file.
    pub name: String,
    links: Vec<Arc<dyn HostLink>>,
    /// The apps that the file deploys there, with the registry their image is in.
    apps: BTreeMap<AppName, String>,
    rules: BTreeMap<String, RegistryRule>,
}

impl Place {
    /// The target called `name`.
    ///
    /// # Errors
    /// The file has no such target, or this machine does not know its ssh configuration.
    pub async fn open(settings: &Settings, definition: &Definition, name: &str) -> Result<Self, RunnerError> {
        let target = definition.targets.get(name).ok_or_else(|| {
            let known: Vec<&str> = definition.targets.keys().map(String::as_str).collect();
            let known = if known.is_empty() {
                "it has none".to_owned()
            } else {
                format!("it has {}", known.join(", "))
            };
            usage(format!("the pipeline file has no target {name:?}; {known}"))
        })?;
        let mut apps = BTreeMap::new();
        for stage in &definition.stages {
            if let Kind::Deploy(d) = &stage.kind
                && d.to == name
                && let Some(Kind::Push(push)) = definition.stage(d.image.as_str()).map(|s| &s.kind)
            {
                apps.insert(d.app.clone(), push.to.registry().to_owned());
            }
        }
        Ok(Self {
            name: name.to_owned(),
            links: target_links(settings, name, target).await?,
            apps,
            rules: definition.registries.clone(),
        })
    }

    /// What every host says.
    pub async fn status(&self) -> Vec<HostStatus> {
        status(None, &self.links).await
    }

    /// The app that is meant: the one named, or the only one.
    pub fn app(&self, wanted: Option<&str>) -> Result<AppName, RunnerError> {
        let known: Vec<&str> = self.apps.keys().map(AppName::as_str).collect();
        let found = match wanted {
            Some(name) => self.apps.keys().find(|a| a.as_str() == name),
            None if self.apps.len() == 1 => self.apps.keys().next(),
            None => None,
        };
        found.cloned().ok_or_else(|| {
            usage(format!("say which app of target {} with --app; it has: {}", self.name, known.join(", ")))
                .into()
        })
    }

    /// Goes back to the release before this one.
    pub async fn rollback(
        &self,
        settings: &Settings,
        app: &AppName,
        emit: Emit<'_>,
        cancel: &CancelToken,
    ) -> Result<DeployEnd, RunnerError> {
        let client = settings.registry_client(&self.rules)?;
        let registry = match self.apps.get(app) {
            Some(registry) => access(settings, &self.rules, &client, registry).await?,
            None => RegistryAccess::default(),
        };
        Ok(rollback(app, &self.links, &apply_settings(settings, registry), emit, stopper(cancel)).await)
    }
}

/// A deploy's end as a failure with everything it has to say.
pub fn end_as_failure(what: &str, end: &DeployEnd) -> Failure {
    let Failure { exit, message } = failure(end);
    Failure::new(exit, format!("{what}: {message}"))
}
