//! `keelway image ..`.

use super::delivery::Delivery;
use super::{Context, build_context};
use crate::args::{ContextArgs, Format, Names, RunNetwork};
use crate::build_args::BuildFlags;
use crate::machine::Machine;
use crate::outcome::CommandError;
use crate::{cache_args, output_args, render, secret_args, settings};
use keelway_engine::Failure;
use keelway_model::plan::{Anew, BuildOp, Grant, ImageOutput, Network};
use keelway_model::{Bytes, Diagnostics, Digest, ImageRef, Limits, Platform, Tag};
use keelway_registry::{Progress, Stage};
use keelway_runner::run::{Built, SingleBuild, build_image, image_of};
use keelway_runner::{RunnerError, Settings, Workspace};
use keelway_store::Origin;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The argument that says when an image counts as made.
const SOURCE_DATE: &str = "SOURCE_DATE_EPOCH";

/// The flags of `image build`.
pub struct BuildArgs {
    pub dir: PathBuf,
    pub tag: Vec<String>,
    pub file: Option<PathBuf>,
    pub target: Option<String>,
    pub build_arg: Vec<String>,
    pub contexts: ContextArgs,
    pub secret: Vec<String>,
    pub ssh: Vec<String>,
    pub network: RunNetwork,
    pub flags: BuildFlags,
    pub limits: crate::limit_args::LimitArgs,
}

fn reference(text: &str) -> Result<ImageRef, CommandError> {
    text.parse().map_err(|e| CommandError::usage(format!("{e}")))
}

/// `--build-arg`, by name.
pub fn build_args(words: &[String]) -> Result<BTreeMap<String, String>, CommandError> {
    let mut args = BTreeMap::new();
    for word in words {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word.as_str(), Machine::variable(word)),
        };
        if name.is_empty() {
            return Err(CommandError::usage(format!("--build-arg {word:?}: write it as NAME=VALUE")));
        }
        // A name without a value anywhere stays unset, as with docker.
        if let Some(value) = value {
            args.insert(name.to_owned(), value);
        }
    }
    Ok(args)
}

/// The one build that is wanted, with nothing beyond what every build has.
pub fn single(
    from: build_context::Opened,
    target: Option<String>,
    args: BTreeMap<String, String>,
    network: Network,
) -> SingleBuild {
    let op = BuildOp {
        context: ".".into(),
        file: from.file,
        target,
        args,
        platform: Platform::host(),
        limits: Limits::default(),
        network,
        runtime: None,
        labels: Default::default(),
        anew: Anew::Nothing,
    };
    SingleBuild { tree: from.tree, op, dockerfile: from.dockerfile, caches: Default::default() }
}

/// `image build`.
pub async fn build(context: &Context, args: BuildArgs, names: &Names) -> Result<(), CommandError> {
    let mut settings = settings::settings(&context.global, names, &context.machine)?;
    let network = match args.network {
        RunNetwork::None => Network::None,
        RunNetwork::Private => Network::Private,
        RunNetwork::Host => Network::Host,
    };
    if network == Network::Host {
        // Who gives it to every RUN gives it to one that asks, too.
        settings.allow.insert(Grant::HostNetwork);
    }
    settings.secrets = secret_args::secrets(&args.secret)?;
    settings.agents = secret_args::agents(&args.ssh)?;
    settings.git.ssh.config = settings::git_ssh_config(args.contexts.git_ssh_config.as_deref())?;
    settings.add_ssh_config.clone_from(&settings.git.ssh.config);
    let tags = args.tag.iter().map(|t| reference(t)).collect::<Result<Vec<_>, _>>()?;
    if let Some(tag) = tags.iter().find(|t| t.digest.is_some()) {
        return Err(CommandError::usage(format!(
            "-t {tag}: an image that is not built yet cannot be named by digest"
        )));
    }
    let flags = &args.flags;
    settings.pull = flags.pull;
    let caches = cache_args::caches(flags)?;
    let delivery = Delivery::new(context, flags, &tags)?;
    let style = context.style.clone().in_progress(flags.progress);
    let labels = output_args::labels(&flags.label)?;
    let anew = match (flags.no_cache, flags.no_cache_filter.is_empty()) {
        (true, _) => Anew::Everything,
        (false, true) => Anew::Nothing,
        (false, false) => Anew::Stages(flags.no_cache_filter.clone()),
    };
    let mut given = build_args(&args.build_arg)?;
    let workspace = Workspace::open(&settings)?;
    let from = build_context::open(context, &mut settings, &workspace, &args).await?;
    match (given.get(SOURCE_DATE), &context.machine.source_date) {
        (Some(date), _) => settings.build_time = settings::build_time(Some(date))?,
        // A Dockerfile that declares it sees it, as with buildx.
        (None, Some(date)) => _ = given.insert(SOURCE_DATE.into(), date.clone()),
        (None, None) => {}
    }
    let mut single = single(from, args.target, given, network);
    single.op.limits = args.limits.limits();
    single.op.labels = labels;
    single.op.anew = anew;
    single.caches = caches;
    let show = render::events(&style, render::Record::Nowhere);
    let warn = |found: &Diagnostics| context.warn(found);
    let report = build_image(&settings, &workspace, single, &warn, show, context.cancel.token()).await;
    let done = match built(report) {
        Ok((image, caches)) => {
            let delivered = delivery.deliver(context, &settings, &workspace, &image).await;
            delivered.and_then(|()| said(context, caches, &args.flags))
        }
        Err(e) => Err(e),
    };
    super::store::tidy(context, &settings, &workspace.store).await;
    done
}

/// The image that a build made.
fn built(done: Result<Built, RunnerError>) -> Result<(ImageOutput, Vec<Written>), CommandError> {
    let Built { report, caches } = done?;
    CommandError::of_report(&report)?;
    let image = image_of(&report)
        .ok_or_else(|| Failure::bug("the build gave no image; this is a bug in Keelway, please report it"))?;
    Ok((image.clone(), caches))
}

/// How it went with a cache that was to be written.
type Written = Result<String, Failure>;

/// Says what became of the caches; one that was not written fails the command, unless its flag says otherwise.
fn said(context: &Context, caches: Vec<Written>, flags: &BuildFlags) -> Result<(), CommandError> {
    let mut done = Ok(());
    for (at, written) in caches.into_iter().enumerate() {
        match written {
            Ok(line) => context.say(&line),
            Err(e) if cache_args::may_fail(flags, at) => context.say(&e.message),
            Err(e) => done = Err(e.into()),
        }
    }
    done
}

/// What a name means now.
fn print_image(context: &Context, name: &ImageRef, digest: &Digest) -> Result<(), CommandError> {
    match context.global.format {
        Format::Text => context.print(&format!("{digest}\n")),
        Format::Json => context.print_json(&serde_json::json!({"name": name, "digest": digest})),
    }
}

/// A line for each transfer that is over.
pub fn say_transfers(context: &Context) -> keelway_registry::ProgressFn {
    let quiet = context.global.quiet;
    Arc::new(move |p: Progress| {
        use std::io::Write;
        if !quiet && p.stage == Stage::Done {
            let _ = writeln!(std::io::stderr(), "{} {}", p.digest.short(), Bytes(p.total));
        }
    })
}

/// A line for each try that a registry leaves without an answer.
pub fn say_waits(context: &Context) -> keelway_registry::WaitFn {
    let quiet = context.global.quiet;
    Arc::new(move |wait| {
        if !quiet {
            render::above(&wait.to_string());
        }
    })
}

fn open(context: &Context, names: &Names) -> Result<(Settings, Workspace), CommandError> {
    let settings = settings::settings(&context.global, names, &context.machine)?;
    let workspace = Workspace::open(&settings)?;
    Ok((settings, workspace))
}

/// `image pull`.
pub async fn pull(context: &Context, image: &str, names: &Names) -> Result<(), CommandError> {
    let name = reference(image)?;
    let digest = fetch(context, &name, names).await?;
    print_image(context, &name, &digest)
}

/// Brings an image into the store; what its name means is asked of its registry.
pub async fn fetch(context: &Context, name: &ImageRef, names: &Names) -> Result<Digest, CommandError> {
    let (settings, workspace) = open(context, names)?;
    let client = settings.registry_client(&BTreeMap::new())?.telling(say_waits(context));
    let store = &workspace.store;
    let progress = say_transfers(context);
    let found = client
        .fetch_image(store, name, &Platform::host(), Arc::clone(&progress))
        .await
        .map_err(CommandError::outside)?;
    client
        .fetch_layers(store, &name.repository, &found.manifest, &found.config, progress)
        .await
        .map_err(CommandError::outside)?;
    store.set_reference_from(name, &found.descriptor, Origin::Registry).map_err(CommandError::outside)?;
    Ok(found.descriptor.digest)
}

/// `image push`.
pub async fn push(context: &Context, image: &str, names: &Names) -> Result<(), CommandError> {
    let name = reference(image)?;
    let (settings, workspace) = open(context, names)?;
    let client = settings.registry_client(&BTreeMap::new())?.telling(say_waits(context));
    let known = workspace.store.reference(&name).map_err(CommandError::outside)?;
    let manifest = known.ok_or_else(|| {
        CommandError::usage(format!("{name} is not in the store; `keelway image ls` lists what is"))
    })?;
    let tags: Vec<Tag> = name.effective_tag().into_iter().collect();
    let pushed = client
        .push(&workspace.store, &manifest, &name.repository, &tags, say_transfers(context))
        .await
        .map_err(CommandError::outside)?;
    print_image(context, &name, &pushed.digest())
}

/// `image load`.
pub fn load(context: &Context, layout: &Path, image: &str, select: Option<&str>) -> Result<(), CommandError> {
    let name = reference(image)?;
    let (_, workspace) = open(context, &Names::default())?;
    let loaded =
        keelway_image::import::oci_layout(&workspace.store, layout, select, &name, &Platform::host())
            .map_err(|e| match e.is_its_fault() {
                true => Failure::failed(e.to_string()).into(),
                false => CommandError::outside(e),
            })?;
    print_image(context, &name, &loaded.digest)
}

/// `image ls`.
pub fn ls(context: &Context) -> Result<(), CommandError> {
    settings::existing_state(&context.global, &context.machine)?;
    let (_, workspace) = open(context, &Names::default())?;
    let mut rows: Vec<Row> = Vec::new();
    for (name, image) in workspace.store.references().map_err(CommandError::outside)? {
        let about = keelway_image::export::about(&workspace.store, &image).ok();
        let (size, created) = about.map_or((None, None), |(size, created)| (Some(size), created));
        rows.push(Row { name: name.to_string(), digest: image.digest, size, created });
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    for (path, name) in workspace.store.broken_references().map_err(CommandError::outside)? {
        let (path, name) = (path.display(), name.map_or_else(|| "an image".into(), |n| n.to_string()));
        context.say(&format!(
            "{path}: the record of {name} is damaged or its image is gone; build or pull it again, or delete the file"
        ));
    }
    let text: String = match context.global.format {
        Format::Text => {
            let dash = || "-".to_owned();
            let cells = |row: &Row| {
                let size = row.size.map_or_else(dash, |s| Bytes(s).to_string());
                [row.name.clone(), row.digest.to_string(), row.created.clone().unwrap_or_else(dash), size]
            };
            let cells: Vec<_> = rows.iter().map(cells).collect();
            render::table(["NAME", "DIGEST", "CREATED", "SIZE"], &cells, 2)
        }
        Format::Json => {
            let line = |row: &Row| serde_json::to_string(row).map(|line| format!("{line}\n"));
            rows.iter().map(line).collect::<Result<_, _>>().map_err(CommandError::outside)?
        }
    };
    context.print(&text)
}

/// A name of an image.
#[derive(serde::Serialize)]
struct Row {
    name: String,
    digest: Digest,
    /// Of manifest, config and layers, compressed; none where they cannot be read.
    size: Option<u64>,
    /// As its config says.
    created: Option<String>,
}
