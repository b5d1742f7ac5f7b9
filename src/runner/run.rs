//! One run: definition, plan, record, engine.

use crate::perform::{Performer, Subject, Workspace};
use crate::remote::Caches;
use crate::settings::Settings;
use crate::source::Pinned;
use crate::{RunnerError, blocking, lower};
use keelway_engine::{CancelToken, Failure, Options, Perform, RunReport, StepCache, Tee};
use keelway_image::Look;
use keelway_ledger::{AttemptHandle, Ledger, NewRun};
use keelway_model::plan::BuildOp;
use keelway_model::{
    Diagnostics, EventSink, ExitCode, NodeId, Op, Outcome, Output, Plan, RunId, SourceText, Tree,
};
use keelway_pipeline::{Definition, Event, Selection, Trigger};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A run that is ready to begin: everything that can be wrong with its definition has been looked at.
pub struct Prepared {
    /// The plan.
    pub plan: Plan,
    /// The definition it came from.
    pub definition: Definition,
    /// Its source.
    pub pinned: Pinned,
    /// What is worth knowing and stops nothing.
    pub warnings: Diagnostics,
    /// What set it off.
    pub event: Event,
}

/// Reads the definition of a pinned source and plans it. With errors in the pipeline file or in any
/// Dockerfile that it names, all of them come back at once.
pub async fn prepare(
    settings: &Settings,
    pinned: Pinned,
    event: Event,
    selection: Selection,
) -> Result<Prepared, RunnerError> {
    let settings = settings.clone();
    let task = move || -> Result<Prepared, RunnerError> {
        let definition = load(&pinned)?;
        let trigger = Trigger {
            event,
            branch: pinned.subject.branch.clone(),
            commit: pinned.subject.commit.clone(),
            dirty: pinned.dirty,
        };
        keelway_pipeline::triggers(&definition, &trigger).map_err(RunnerError::NotTriggered)?;
        let plan = keelway_pipeline::plan(&definition, &trigger, &selection)?;
        let mut found = definition.warnings.clone();
        found.merge(lower::check(&definition, &plan, &pinned.subject.tree, &settings)?);
        if found.has_errors() {
            return Err(RunnerError::Definition(found));
        }
        Ok(Prepared { plan, definition, pinned, warnings: found, event })
    };
    tokio::task::spawn_blocking(task)
        .await
        .map_err(|e| Failure::bug(format!("a worker of Keelway failed: {e}")))?
}

/// The definition of a pinned source; where there is none, what was searched is said.
fn load(pinned: &Pinned) -> Result<Definition, Diagnostics> {
    keelway_pipeline::load(&*pinned.subject.tree, keelway_pipeline::FILE_NAME).map_err(|mut found| {
        for d in found.items.iter_mut().filter(|d| d.code == keelway_pipeline::UNREADABLE) {
            d.hints.insert(0, format!("searched: {}", pinned.searched));
        }
        found
    })
}

/// Every problem of the pipeline file and of the Dockerfiles that its stages name, whether they would run now or not.
pub async fn lint(settings: &Settings, pinned: Pinned) -> Result<Diagnostics, RunnerError> {
    let settings = settings.clone();
    let task = move || -> Result<Diagnostics, RunnerError> {
        let definition = load(&pinned)?;
        let Pinned { subject, dirty, .. } = pinned;
        let trigger = Trigger { event: Event::Manual, branch: subject.branch, commit: subject.commit, dirty };
        let mut plan = keelway_pipeline::plan(&definition, &trigger, &Selection::default())?;
        for node in &mut plan.nodes {
            node.skip = None;
        }
        let mut found = definition.warnings.clone();
        found.merge(lower::check_all(&definition, &plan, &subject.tree, &settings)?);
        Ok(found)
    };
    tokio::task::spawn_blocking(task)
        .await
        .map_err(|e| Failure::bug(format!("a worker of Keelway failed: {e}")))?
}

/// Records a run that is to be run.
pub fn record(ledger: &Ledger, prepared: &Prepared) -> Result<RunId, RunnerError> {
    ledger.create_run(&new_run(prepared)).map_err(RunnerError::outside)
}

pub(crate) fn new_run(prepared: &Prepared) -> NewRun {
    let names: Vec<&str> =
        prepared.plan.nodes.iter().filter(|n| n.skip.is_none()).map(|n| n.name.as_str()).collect();
    NewRun {
        repo: prepared.pinned.repo.clone(),
        commit: prepared.pinned.subject.commit.clone(),
        branch: prepared.pinned.subject.branch.clone(),
        event: prepared.event.word().to_owned(),
        definition: format!("{}: {}", keelway_pipeline::FILE_NAME, names.join(", ")),
    }
}

/// Opens the ledger and marks what died; `say` hears of it.
pub fn open_ledger(settings: &Settings, say: &dyn Fn(&str)) -> Result<Ledger, RunnerError> {
    let ledger = Ledger::open(&settings.ledger, Arc::clone(&settings.clock)).map_err(RunnerError::outside)?;
    for dead in ledger.interrupted().map_err(RunnerError::outside)? {
        say(&format!("run {} was interrupted: its process died. What it left is cleaned up", dead.run));
    }
    Ok(ledger)
}

/// Runs a prepared run as the next attempt of `run`; events go to the ledger and to `show`.
///
/// # Errors
/// It could not begin. What failed afterwards, the record of the run included, is in the report.
pub async fn execute(
    settings: &Settings,
    workspace: &Workspace,
    ledger: &Ledger,
    run: &RunId,
    prepared: Prepared,
    show: Box<dyn EventSink>,
    cancel: CancelToken,
) -> Result<RunReport, RunnerError> {
    let attempt = begin(ledger, run).await?;
    execute_begun(settings, workspace, attempt, prepared, show, cancel).await
}

/// Begins the next attempt of a run; refused while another process runs it.
pub(crate) async fn begin(ledger: &Ledger, run: &RunId) -> Result<AttemptHandle, Failure> {
    let (ledger, run) = (ledger.clone(), run.clone());
    blocking(move || ledger.begin_attempt(&run).map_err(|e| Failure::outside(e.to_string()))).await
}

/// Runs an attempt that has begun.
pub(crate) async fn execute_begun(
    settings: &Settings,
    workspace: &Workspace,
    attempt: AttemptHandle,
    prepared: Prepared,
    show: Box<dyn EventSink>,
    cancel: CancelToken,
) -> Result<RunReport, RunnerError> {
    let result = execute_attempt(settings, workspace, &attempt, prepared, show, cancel).await;
    // Where the engine never began, or could not record its end, the record must say so all the same.
    let (outcome, interrupted) = match &result {
        Err(e) => (Outcome::Failed { exit: e.exit().code(), message: e.to_string() }, false),
        Ok(report) if report.sink_error.is_some() => (report.outcome.clone(), report.interrupted),
        Ok(_) => return result,
    };
    let run = attempt.run().clone();
    let finished = blocking(move || {
        let finished =
            if interrupted { attempt.finish_interrupted(outcome) } else { attempt.finish(outcome) };
        finished.map_err(|e| Failure::outside(e.to_string()))
    });
    if let Err(e) = finished.await {
        // What happened matters more than that it could not be written down; the next start marks the attempt interrupted.
        tracing::warn!("the end of run {run} was not recorded: {e}");
    }
    result
}

async fn execute_attempt(
    settings: &Settings,
    workspace: &Workspace,
    attempt: &AttemptHandle,
    prepared: Prepared,
    show: Box<dyn EventSink>,
    cancel: CancelToken,
) -> Result<RunReport, RunnerError> {
    // Nothing has run yet, and nothing shall where the machine does not have what a stage asks for.
    for node in prepared.plan.nodes.iter().filter(|n| n.skip.is_none()) {
        let runtime = match &node.op {
            Op::Build(op) => op.runtime.as_deref(),
            Op::Steps(op) => op.runtime.as_deref(),
            _ => None,
        };
        settings.runtime(&node.name, runtime)?;
    }
    let subject = prepared.pinned.subject.clone();
    let performer = Arc::new(Performer::new(
        settings.clone(),
        workspace.clone(),
        prepared.definition.registries.clone(),
        subject.clone(),
    )?);
    let mut options = Options::new(attempt.run().clone(), Arc::clone(&settings.clock));
    options.attempt = attempt.attempt();
    options.commit = subject.commit;
    if let Some(most) = settings.max_parallel {
        options.max_parallel = most;
    }
    let sink = Tee::new(vec![Box::new(attempt.sink()), show]);
    let cache: Arc<dyn StepCache> = Arc::new(workspace.store.clone());
    let stopped = cancel.clone();
    let report = keelway_engine::run(
        prepared.plan,
        Arc::clone(&performer) as Arc<dyn Perform>,
        cache,
        Box::new(sink),
        options,
        cancel,
    )
    .await;
    performer.settle(&stopped).await;
    Ok(report.map_err(|e| Failure::new(e.exit(), e.to_string()))?)
}

/// One build without a pipeline: `keelway image build`.
pub struct SingleBuild {
    /// The context directory.
    pub tree: Arc<dyn Tree>,
    /// Where the Dockerfile is, what to build of it.
    pub op: BuildOp,
    /// A Dockerfile that is not in the context.
    pub dockerfile: Option<SourceText>,
    /// Caches of other machines.
    pub caches: Caches,
}

/// What a single build came to.
pub struct Built {
    /// How it went.
    pub report: RunReport,
    /// Of each cache that was to be written: a line for people, or why it was not. None where the build failed.
    pub caches: Vec<Result<String, Failure>>,
}

impl SingleBuild {
    /// Its Dockerfile, read and checked.
    async fn open(&self, settings: &Settings, look: Look) -> Result<lower::Opened, RunnerError> {
        let (tree, op, text, given) =
            (Arc::clone(&self.tree), self.op.clone(), self.dockerfile.clone(), settings.clone());
        let opened = tokio::task::spawn_blocking(move || match text {
            Some(text) => lower::open_text(tree, text, &op, &given, look),
            None => lower::open(&tree, &op, &given, look),
        })
        .await
        .map_err(|e| Failure::bug(format!("a worker of Keelway failed: {e}")))?;
        opened.map_err(|e| match e {
            lower::OpenError::Definition(d) => RunnerError::Definition(d),
            lower::OpenError::Failed(f) => RunnerError::Failed(f),
        })
    }
}

/// Everything that is worth knowing of a Dockerfile, without building it: `keelway lint DIR`.
///
/// # Errors
/// It is not valid; what is then known stands in the error.
pub async fn lint_dockerfile(settings: &Settings, single: SingleBuild) -> Result<Diagnostics, RunnerError> {
    let opened = single.open(settings, Look::File).await?;
    blocking(move || Ok(lower::examine(&opened))).await.map_err(RunnerError::from)
}

/// Builds one image: the same code as a stage of a pipeline, recorded nowhere. `warn` hears what is worth knowing of the
/// Dockerfile before anything is built.
///
/// # Errors
/// The Dockerfile is not valid, or the engine could not start. A step that fails is in the report.
pub async fn build_image(
    settings: &Settings,
    workspace: &Workspace,
    single: SingleBuild,
    warn: &dyn Fn(&Diagnostics),
    show: Box<dyn EventSink>,
    cancel: CancelToken,
) -> Result<Built, RunnerError> {
    // Opened once before anything is shown, so that a broken file is reported as one.
    let opened = single.open(settings, Look::Build).await?;
    if opened.found.has_errors() {
        return Err(RunnerError::Definition(opened.found));
    }
    warn(&opened.found);
    // Nothing outside decides `created`: not the clock, not the place.
    let subject = Subject { tree: single.tree, commit: None, branch: None, created: settings.build_time };
    let performer = Arc::new(
        Performer::new(settings.clone(), workspace.clone(), BTreeMap::new(), subject)?
            .with_dockerfile(single.dockerfile)
            .with_caches(single.caches),
    );
    let platform = single.op.platform.clone();
    let name = single.op.target.clone().unwrap_or_else(|| "image".into());
    let mut plan = Plan::default();
    plan.result = Some(plan.add(name, Vec::new(), Op::Build(single.op)));
    // No ledger has it; it names the events of this build and no other's.
    let run = keelway_ledger::new_run_id(settings.clock.now()).map_err(RunnerError::outside)?;
    let mut options = Options::new(run, Arc::clone(&settings.clock));
    if let Some(most) = settings.max_parallel {
        options.max_parallel = most;
    }
    let cache: Arc<dyn StepCache> = Arc::new(workspace.store.clone());
    let stopped = cancel.clone();
    let report =
        keelway_engine::run(plan, Arc::clone(&performer) as Arc<dyn Perform>, cache, show, options, cancel)
            .await;
    performer.settle(&stopped).await;
    let report = report.map_err(|e| Failure::new(e.exit(), e.to_string()))?;
    let caches = match report.exit {
        ExitCode::Done => tokio::select! {
            said = performer.write_caches(&report, &platform) => said,
            _ = stopped.cancelled() => vec![Err(Failure::new(ExitCode::Cancelled, "cancelled"))],
        },
        _ => Vec::new(),
    };
    Ok(Built { report, caches })
}

/// The image that a finished build made.
pub fn image_of(report: &RunReport) -> Option<&keelway_model::plan::ImageOutput> {
    match report.node(NodeId(0))?.output.as_ref()? {
        Output::Image(image) => Some(image),
        _ => None,
    }
}
