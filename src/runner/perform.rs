//! Performs every [`Op`], for one run.

use crate::contexts::BuildContext;
use crate::pin::Pins;
use crate::remote::{Caches, Remote};
use crate::settings::Settings;
use crate::{blocking, deploy, exec, fetch, git, lower, mounts, push, room, steps};
use async_trait::async_trait;
use keelway_container::network::{Networks, Settings as NetworkSettings, Uplink};
use keelway_dockerfile::Ignore;
use keelway_engine::{CancelToken, Ctx, Failure, Perform, Performed};
use keelway_image::{Blame, KeyContext, Look, StepError};
use keelway_model::oci::{Descriptor, ImageConfig};
use keelway_model::plan::{AssembleOp, BaseOp, BuildOp, Chain, ExecOp, Network};
use keelway_model::{
    CacheKey, CommitId, ExitCode, ImageRef, Node, NodeId, Op, Output, Plan, Platform, SnapshotId, Timestamp,
    Tree,
};
use keelway_pipeline::RegistryRule;
use keelway_sandbox::{CapProfile, Launcher, LauncherConfig, ParentName};
use keelway_store::{Layer, Origin, Store};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;

/// How long the end of a run waits for layers that nobody wants any more.
const SETTLE: Duration = Duration::from_secs(5);

/// What a process holds while it runs things: the store and the sandboxes. One a process.
#[derive(Clone)]
pub struct Workspace {
    /// The content store.
    pub store: Store,
    /// Starts sandboxes.
    pub launcher: Launcher,
    /// Their networks; none where nobody may give them a way out.
    pub networks: Option<Networks>,
}

impl Workspace {
    /// Opens the store, and ends and removes what dead processes left in it.
    pub fn open(settings: &Settings) -> Result<Self, Failure> {
        let store = Store::open(&settings.store, Arc::clone(&settings.clock))
            .map_err(|e| Failure::outside(e.to_string()))?;
        let left: Vec<ParentName> = store
            .reaped()
            .iter()
            .flat_map(|dead| &dead.cgroups)
            .filter_map(|name| name.parse().ok())
            .collect();
        if !left.is_empty()
            && let Err(e) = keelway_sandbox::cgroup::reap(&keelway_sandbox::cgroup::Layout::detect(), &left)
        {
            // Another process may be at the same; what stays is empty and harms nobody.
            tracing::warn!("cgroups of dead runs: {e}");
        }
        let own = store.run_dir().file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let parent = format!("keelway/{own}");
        store.note_cgroup(&parent).map_err(|e| Failure::outside(e.to_string()))?;
        let parent: ParentName = parent.parse().map_err(|e| Failure::bug(format!("run directory: {e}")))?;
        let networks = Uplink::look().map(|uplink| {
            let range = settings.network_range;
            Networks::new(&own, NetworkSettings { range, uplink, ..NetworkSettings::default() })
        });
        Ok(Self { launcher: Launcher::new(LauncherConfig::new(parent)), store, networks })
    }
}

impl Workspace {
    /// The same for one of many runs: what it holds of the store is let go of when this is dropped.
    pub fn session(&self) -> Result<Self, Failure> {
        let store = self.store.session().map_err(|e| Failure::outside(e.to_string()))?;
        Ok(Self { store, ..self.clone() })
    }
}

/// What a run is about: where its files come from and what its images are named by.
#[derive(Clone)]
pub struct Subject {
    /// The files.
    pub tree: Arc<dyn Tree>,
    /// The commit; `None` for a tree that is none.
    pub commit: Option<CommitId>,
    /// The branch.
    pub branch: Option<String>,
    /// `created` of images: the commit's time.
    pub created: Timestamp,
}

/// A build on its way: what its steps need to know of it.
struct OpenBuild {
    context: Arc<dyn Tree>,
    ignore: Arc<Ignore>,
    /// The nodes whose snapshots are layers of the result: of no other step a layer is written.
    layers: HashSet<NodeId>,
    /// What isolates its steps, where that is not our own sandbox.
    runtime: Option<PathBuf>,
    /// For which platform it is.
    platform: Platform,
}

/// The nodes that the result of a build stands on, from top to base.
fn chain_nodes(plan: &Plan) -> HashSet<NodeId> {
    let below = |id: NodeId| plan.node(id).and_then(|n| n.needs.first().copied());
    let chain: Vec<NodeId> = std::iter::successors(plan.result.and_then(below), |id| below(*id)).collect();
    let linked = chain.iter().filter_map(|id| plan.node(*id)).filter(|n| n.op == Op::Link);
    linked.filter_map(|n| n.needs.last().copied()).chain(chain.iter().copied()).collect()
}

/// Performs the nodes of one run.
pub struct Performer {
    pub(crate) settings: Settings,
    pub(crate) workspace: Workspace,
    pub(crate) registry: keelway_registry::Client,
    pub(crate) subject: Subject,
    /// What the pipeline file asks for about registries.
    pub(crate) rules: BTreeMap<String, RegistryRule>,
    /// Dockerfile text that is not in the context: `keelway image build -f`.
    pub(crate) dockerfile: Option<keelway_model::SourceText>,
    /// Caches of other machines.
    pub(crate) remote: Remote,
    /// What references mean in this run.
    pins: Pins,
    /// What references of repositories mean in this run.
    pub(crate) repositories: git::Repositories,
    /// By the path of the build's node.
    builds: Mutex<HashMap<Vec<NodeId>, Arc<OpenBuild>>>,
    /// Keys that were asked for, until their step is done.
    keys: Mutex<HashMap<Vec<NodeId>, CacheKey>>,
    /// Layers being written beside the next step.
    layers: Mutex<HashMap<SnapshotId, JoinHandle<Result<Layer, StepError>>>>,
}

pub(crate) fn locked<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Each change is one insertion or removal, so a panic elsewhere leaves nothing half done.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A step's failure as a failure of the run. Who hears of it knows the step's name.
pub(crate) fn step_failure(e: &StepError) -> Failure {
    let exit = match e.blame() {
        Blame::Build => ExitCode::Failed,
        Blame::Machine => ExitCode::Outside,
        Blame::Bug => ExitCode::Bug,
    };
    Failure::new(exit, e.to_string())
}

/// The chain that a step stands on.
pub(crate) fn chain_of(output: Option<&Output>) -> Result<&Chain, Failure> {
    match output {
        Some(Output::Chain(chain)) => Ok(chain),
        Some(Output::Image(image)) => Ok(&image.chain),
        _ => Err(Failure::bug("a step has no root file system to stand on")),
    }
}

impl Performer {
    /// For one run.
    ///
    /// # Errors
    /// As [`Settings::registry_client`].
    pub fn new(
        settings: Settings,
        workspace: Workspace,
        rules: BTreeMap<String, RegistryRule>,
        subject: Subject,
    ) -> Result<Self, Failure> {
        let registry = settings.registry_client(&rules)?;
        let pull = settings.pull;
        Ok(Self {
            settings,
            workspace,
            registry,
            subject,
            rules,
            dockerfile: None,
            remote: Remote::new(Caches::default()),
            pins: Pins::new(pull),
            repositories: git::Repositories::default(),
            builds: Mutex::default(),
            keys: Mutex::default(),
            layers: Mutex::default(),
        })
    }

    /// The same with a Dockerfile that is not in the context.
    #[must_use]
    pub fn with_dockerfile(mut self, text: Option<keelway_model::SourceText>) -> Self {
        self.dockerfile = text;
        self
    }

    /// The same with caches of other machines.
    #[must_use]
    pub fn with_caches(mut self, caches: Caches) -> Self {
        self.remote = Remote::new(caches);
        self
    }

    pub(crate) fn store(&self) -> &Store {
        &self.workspace.store
    }

    /// The build that a step belongs to.
    fn build_of(&self, ctx: &Ctx) -> Result<Arc<OpenBuild>, Failure> {
        let parent = &ctx.path[..ctx.path.len().saturating_sub(1)];
        locked(&self.builds).get(parent).cloned().ok_or_else(|| Failure::bug("a build step outside a build"))
    }

    /// The context that a step copies from, by its name or the build's own, with its ignore patterns.
    fn files_of(&self, ctx: &Ctx, name: Option<&str>) -> Result<(Arc<dyn Tree>, Arc<Ignore>), Failure> {
        let open = self.build_of(ctx)?;
        let Some(name) = name else { return Ok((Arc::clone(&open.context), Arc::clone(&open.ignore))) };
        match self.settings.contexts.get(name) {
            Some(BuildContext::Files(tree, ignore)) => Ok((Arc::clone(tree), Arc::clone(ignore))),
            _ => Err(Failure::bug(format!("a step copies from {name:?}, which is no context of files"))),
        }
    }

    async fn build(&self, ctx: Ctx, op: &BuildOp) -> Result<Performed, Failure> {
        let (tree, wanted, settings) = (Arc::clone(&self.subject.tree), op.clone(), self.settings.clone());
        let text = self.dockerfile.clone();
        let opened = blocking(move || {
            let opened = match text {
                Some(text) => lower::open_text(tree, text, &wanted, &settings, Look::Build),
                None => lower::open(&tree, &wanted, &settings, Look::Build),
            };
            opened.and_then(lower::Opened::sound).map_err(Failure::from)
        })
        .await?;
        let pin = |name: ImageRef| {
            let ctx = &ctx;
            async move {
                self.pins.pin(ctx, self.store(), &telling(&self.registry, ctx), &name, &op.platform).await
            }
        };
        let (plan, late) = lower::lower(&opened, self.settings.pull, pin).await?;
        for line in lower::lines(&late) {
            ctx.notice(line).await;
        }
        if plan.nodes.iter().any(|n| matches!(&n.op, Op::Exec(e) if e.network == Network::Host)) {
            ctx.notice("a RUN of this build shares this machine's network, and reaches its loopback").await;
        }
        self.remote.open(&ctx, self.store(), &self.registry).await;
        let layers = chain_nodes(&plan);
        let runtime = self.settings.runtime(&op.context, op.runtime.as_deref())?;
        if runtime.is_some() {
            mounts::check_runtime(&plan)?;
        }
        let open = OpenBuild {
            context: opened.context,
            ignore: Arc::new(opened.ignore),
            layers,
            runtime,
            platform: op.platform.clone(),
        };
        locked(&self.builds).insert(ctx.path.clone(), Arc::new(open));
        Ok(Performed::SubPlan(plan))
    }

    async fn base(&self, ctx: &Ctx, op: &BaseOp) -> Result<Chain, Failure> {
        if let (Some(name), Some(manifest)) = (&op.reference, &op.manifest) {
            self.layers_of(ctx, name, manifest).await?;
        }
        let (store, op) = (self.store().clone(), op.clone());
        blocking(move || keelway_image::base::unpack(&store, &op).map_err(|e| step_failure(&e))).await
    }

    /// Makes sure that the layers of an image whose manifest is in the store are there too, and remembers its name.
    async fn layers_of(&self, ctx: &Ctx, name: &ImageRef, manifest: &Descriptor) -> Result<(), Failure> {
        let store = self.store();
        let (document, config, known) = {
            let (store, name, manifest) = (store.clone(), name.clone(), manifest.clone());
            blocking(move || {
                let (document, config) = lower::config_of(&store, &manifest)?;
                let known = store.reference_with_origin(&name).ok().flatten();
                // What this machine named itself stays so, whatever it names by now.
                let known =
                    known.is_some_and(|(d, from)| d.digest == manifest.digest || from == Origin::Local);
                Ok((document, config, known))
            })
            .await?
        };
        telling(&self.registry, ctx)
            .fetch_layers(store, &name.repository, &document, &config, progress(ctx))
            .await
            .map_err(|e| Failure::outside(e.to_string()))?;
        if !known {
            let (store, name, manifest) = (store.clone(), name.clone(), manifest.clone());
            blocking(move || {
                store
                    .set_reference_from(&name, &manifest, Origin::Registry)
                    .map_err(|e| Failure::outside(e.to_string()))
            })
            .await?;
        }
        Ok(())
    }

    /// An image by reference, as a root file system with its config: for stages that run in one.
    pub(crate) async fn image_by_name(
        &self,
        ctx: &Ctx,
        name: &ImageRef,
    ) -> Result<(Chain, ImageConfig), Failure> {
        let found = async {
            let registry = telling(&self.registry, ctx);
            let pinned = self.pins.pin(ctx, self.store(), &registry, name, &Platform::host()).await;
            let pinned = pinned.map_err(|e| lower::unknown_image(&e, name, None, self.settings.pull))?;
            let (manifest, config) = (Some(pinned.descriptor), Box::new(pinned.config));
            let op = BaseOp { reference: Some(name.clone()), manifest, config };
            Ok((self.base(ctx, &op).await?, *op.config))
        };
        tokio::select! {
            found = found => found,
            _ = ctx.cancel.cancelled() => Err(cancelled()),
        }
    }

    async fn exec(&self, ctx: &Ctx, node: &Node, op: &ExecOp, inputs: &[Output]) -> Result<Chain, Failure> {
        let below = chain_of(inputs.first())?.clone();
        let (store, user) = (self.store().clone(), op.user.clone());
        let snapshots = below.snapshots.clone();
        let (wanted, inputs) = (op.mounts.clone(), inputs.to_vec());
        let (settings, own, env) = (self.settings.clone(), ctx.clone(), op.env.clone());
        let (upper, user, mut mounted) = blocking(move || {
            let view = store.view(&snapshots).map_err(|e| Failure::outside(e.to_string()))?;
            let user =
                keelway_image::user::resolve(&view, &user).map_err(|e| Failure::failed(e.to_string()))?;
            let maker =
                mounts::Maker { store: &store, settings: &settings, ctx: &own, inputs: &inputs, env: &env };
            let mounted = maker.prepare(&wanted)?;
            let upper = store.begin().map_err(|e| Failure::outside(e.to_string()))?;
            Ok((upper, user, mounted))
        })
        .await?;
        let mut env = op.env.clone();
        for (key, value) in &op.unkeyed_env {
            if !env.iter().any(|(k, _)| k == key) {
                env.push((key.clone(), value.clone()));
            }
        }
        for (key, value) in mounted.env.drain(..) {
            env.retain(|(k, _)| *k != key);
            env.push((key, value));
        }
        let job = exec::Job {
            lowers: self.store().lowers(&below.snapshots),
            upper: upper.fs().to_owned(),
            work: upper.work().to_owned(),
            argv: op.argv.clone(),
            env,
            cwd: op.cwd.clone(),
            user,
            network: op.network,
            limits: op.limits.clone(),
            caps: CapProfile::Build,
            runtime: self.build_of(ctx)?.runtime.clone(),
            mounts: std::mem::take(&mut mounted.mounts),
            locks: mounted.locks().map_err(|e| Failure::outside(format!("cannot hold a cache: {e}")))?,
            hidden: std::mem::take(&mut mounted.hidden),
        };
        let exit = exec::run(&self.workspace, ctx, job).await?;
        drop(mounted);
        if !exit.success() {
            return Err(exec::unsuccessful(None, &exit, self.store().path()));
        }
        self.seal(ctx, node, below, upper).await
    }

    /// The key that was asked for.
    fn key_taken(&self, ctx: &Ctx) -> Result<CacheKey, Failure> {
        locked(&self.keys).remove(&ctx.path).ok_or_else(|| Failure::bug("a build step without a key"))
    }

    /// Freezes what a step wrote, and begins to write its layer beside the next step.
    async fn seal(
        &self,
        ctx: &Ctx,
        node: &Node,
        below: Chain,
        upper: keelway_store::Upper,
    ) -> Result<Chain, Failure> {
        let key = self.key_taken(ctx)?;
        let extend = if node.anew { keelway_image::extend_anew } else { keelway_image::extend };
        let chain = blocking(move || extend(&below, upper, &key).map_err(|e| step_failure(&e))).await?;
        if self.build_of(ctx)?.layers.contains(&node.id) {
            self.begin_layer(&chain);
        }
        Ok(chain)
    }

    /// Waits for layers that nobody asked for any more, because their build failed: a thread that still works
    /// would keep this process's run directory from being cleaned up. Not for long, and not at all when the run was
    /// killed: what is left then is the next start's to clean up.
    pub async fn settle(&self, cancel: &CancelToken) {
        let left: Vec<_> = locked(&self.layers).drain().map(|(_, handle)| handle).collect();
        let all = async {
            for handle in left {
                let _ = handle.await;
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(SETTLE, all) => {}
            _ = cancel.killed() => {}
        }
    }

    fn begin_layer(&self, chain: &Chain) {
        let Some(top) = chain.snapshots.last().cloned() else { return };
        let (store, id) = (self.store().clone(), top.clone());
        let mut layers = locked(&self.layers);
        layers.entry(top).or_insert_with(|| {
            tokio::task::spawn_blocking(move || keelway_image::prepare_layer(&store, &id))
        });
    }

    async fn assemble(&self, op: &AssembleOp, inputs: &[Output]) -> Result<Performed, Failure> {
        let chain = chain_of(inputs.first())?.clone();
        for snapshot in &chain.snapshots {
            let begun = locked(&self.layers).remove(snapshot);
            if let Some(begun) = begun {
                match begun.await {
                    Ok(layer) => drop(layer.map_err(|e| step_failure(&e))?),
                    Err(e) => {
                        return Err(Failure::bug(format!("the thread that wrote a layer failed: {e}")));
                    }
                }
            }
        }
        let (store, op, created) = (self.store().clone(), op.clone(), self.subject.created);
        let image = blocking(move || {
            keelway_image::assemble(&store, &op, &chain, created).map_err(|e| step_failure(&e))
        })
        .await?;
        let result = image.manifest.digest.to_string();
        Ok(Performed::Output(Output::Image(image), Some(result)))
    }
}

/// For what was given up; the engine says the rest.
fn cancelled() -> Failure {
    Failure::new(ExitCode::Cancelled, "cancelled")
}

/// The registry client that says for what a node waits.
pub(crate) fn telling(registry: &keelway_registry::Client, ctx: &Ctx) -> keelway_registry::Client {
    let ctx = ctx.clone();
    registry.telling(Arc::new(move |wait| ctx.try_news(wait.to_string())))
}

/// Transfers as progress of a node.
pub(crate) fn progress(ctx: &Ctx) -> keelway_registry::ProgressFn {
    let ctx = ctx.clone();
    Arc::new(move |p: keelway_registry::Progress| {
        if p.stage != keelway_registry::Stage::Present {
            ctx.progress(p.digest.short(), p.done, Some(p.total));
        }
    })
}

#[async_trait]
impl Perform for Performer {
    async fn key(&self, ctx: &Ctx, node: &Node, inputs: &[Output]) -> Result<Option<CacheKey>, Failure> {
        if let Op::Git(op) = &node.op {
            let key = git::key_of(self, ctx, op).await?;
            locked(&self.keys).insert(ctx.path.clone(), key.clone());
            return Ok(Some(key));
        }
        if !matches!(node.op, Op::Exec(_) | Op::Fetch(_) | Op::Copy(_) | Op::Mkdir(_)) {
            return Ok(None);
        }
        let named = if let Op::Copy(op) = &node.op { op.context.as_deref() } else { None };
        let ((context, ignore), store) = (self.files_of(ctx, named)?, self.store().clone());
        let (op, inputs) = (node.op.clone(), inputs.to_vec());
        let in_image = self.build_of(ctx)?.layers.contains(&node.id);
        let key = blocking(move || {
            let cx = KeyContext { store: &store, context: &*context, ignore: &ignore };
            keelway_image::key(&op, &inputs, &cx).map_err(|e| step_failure(&e))
        })
        .await?;
        if let Some(key) = &key {
            if matches!(node.op, Op::Exec(_) | Op::Copy(_) | Op::Mkdir(_)) {
                self.remote.note(&ctx.path, key, in_image);
            }
            locked(&self.keys).insert(ctx.path.clone(), key.clone());
        }
        Ok(key)
    }

    async fn recall(&self, ctx: &Ctx, node: &Node, key: &CacheKey, inputs: &[Output]) -> Option<Output> {
        let open = self.build_of(ctx).ok()?;
        let found = self.recalled(ctx, node, key, inputs, &open.platform).await;
        if found.is_some() {
            locked(&self.keys).remove(&ctx.path);
        }
        found
    }

    async fn perform(&self, ctx: Ctx, node: &Node, inputs: Vec<Output>) -> Result<Performed, Failure> {
        let cancel = ctx.cancel.clone();
        // What only waits for the world is over when it is no longer wanted; processes and hosts are ended in order.
        let waits = matches!(node.op, Op::Build(_) | Op::Base(_) | Op::Fetch(_) | Op::Git(_) | Op::Push(_));
        let done = tokio::select! {
            done = self.perform_op(ctx, node, inputs) => done,
            _ = cancel.cancelled(), if waits => Err(cancelled()),
        };
        // What a registry or a host says of its disk is not about ours.
        let ours = !matches!(node.op, Op::Push(_) | Op::Deploy(_));
        done.map_err(|f| {
            if ours && room::says_full(&f.message) { room::advise(f, self.store().path()) } else { f }
        })
    }
}

impl Performer {
    async fn perform_op(&self, ctx: Ctx, node: &Node, inputs: Vec<Output>) -> Result<Performed, Failure> {
        let chain = |c: Chain| Performed::output(Output::Chain(c));
        match &node.op {
            Op::Build(op) => self.build(ctx, op).await,
            Op::Base(op) => self.base(&ctx, op).await.map(chain),
            Op::Exec(op) => self.exec(&ctx, node, op, &inputs).await.map(chain),
            Op::Copy(op) => {
                let below = keelway_image::copy::below(op, &inputs).map_err(|e| step_failure(&e))?;
                let (context, ignore) = self.files_of(&ctx, op.context.as_deref())?;
                let (op, store) = (op.clone(), self.store().clone());
                let upper = blocking(move || {
                    let cx = KeyContext { store: &store, context: &*context, ignore: &ignore };
                    keelway_image::copy::run(&op, &inputs, &cx).map_err(|e| step_failure(&e))
                })
                .await?;
                self.seal(&ctx, node, below, upper).await.map(chain)
            }
            Op::Fetch(op) => {
                locked(&self.keys).remove(&ctx.path);
                fetch::run(self, &ctx, op).await.map(chain)
            }
            Op::Git(op) => {
                let key = self.key_taken(&ctx)?;
                git::run(self, &ctx, op, key).await.map(chain)
            }
            Op::Link => Ok(chain(keelway_image::link(chain_of(inputs.first())?, chain_of(inputs.last())?))),
            Op::Mkdir(op) => {
                let below = chain_of(inputs.first())?.clone();
                let (op, store) = (op.clone(), self.store().clone());
                let upper = blocking(move || {
                    keelway_image::mkdir::run(&op, &inputs, &store).map_err(|e| step_failure(&e))
                })
                .await?;
                self.seal(&ctx, node, below, upper).await.map(chain)
            }
            Op::Assemble(op) => self.assemble(op, &inputs).await,
            Op::Steps(op) => steps::run(self, &ctx, op, &inputs).await,
            Op::Push(op) => push::run(self, &ctx, node, op, &inputs).await,
            Op::Deploy(op) => deploy::run(self, &ctx, node, op, &inputs).await,
        }
    }
}
