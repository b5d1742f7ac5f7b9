//! One node's task: key, cache, place, perform; and the watch over it.
//!
//! [`supervise`] always ends and always tells the dispatcher so, whatever the performer does: a panic becomes a failure,
//! a timeout or a cancellation first asks, then kills, then gives the future up. The time limit counts while the
//! node has a place, and while it waits for an equal step elsewhere; not while it queues for a place. A node that says
//! nothing has none: a stage runs until it ends or is stopped, a build's step until its stage's time is over.

use crate::cache::{CacheError, Claim};
use crate::cancel::{CancelReason, CancelSource, CancelToken};
use crate::dispatcher::{Message, Shared};
use crate::perform::{Ctx, Failure, Performed};
use futures_util::FutureExt;
use keelway_model::plan::Chain;
use keelway_model::{
    CacheKey, EventKind, ExitCode, MissReason, Node, NodeId, Op, Output, Plan, WaitReason, format_duration,
};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{SemaphorePermit, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

/// First and longest pause between two looks at a step that runs elsewhere.
const CLAIM_PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// All that a node's task needs.
pub(crate) struct Task {
    pub shared: Arc<Shared>,
    pub node: Arc<Node>,
    pub path: Vec<NodeId>,
    pub index: usize,
    pub inputs: Vec<Output>,
    /// The cancellation of the plan it is in.
    pub scope: CancelToken,
}

/// How a node ended.
#[allow(clippy::large_enum_variant, reason = "a few short-lived values a node")]
pub(crate) enum NodeEnd {
    Done { output: Output, result: Option<String>, cached: bool },
    Failed(Failure),
    Cancelled,
}

/// What the work inside came to.
#[allow(clippy::large_enum_variant, reason = "a few short-lived values a node")]
enum Worked {
    Done {
        output: Output,
        result: Option<String>,
        cached: bool,
    },
    SubPlan(Plan),
    Failed(Failure),
    /// It stopped waiting because it was cancelled.
    Stopped,
}

/// When the present phase began; none while it queues for a place.
type Armed = watch::Sender<Option<Instant>>;

/// Runs a node to its end and reports it.
pub(crate) async fn supervise(task: Task) {
    let cancel = CancelSource::new();
    let ctx = Ctx {
        attempt: task.shared.options.attempt,
        path: task.path.clone(),
        cancel: cancel.token(),
        index: task.index,
        messages: task.shared.messages.clone(),
        runtime: tokio::runtime::Handle::current(),
    };
    let (armed, mut phase) = watch::channel(None);
    let mut began = Instant::now();
    let limit = task.node.timeout;
    let mut watch = Watch {
        task: &task,
        cancel: &cancel,
        seen: None,
        escalate: None,
        limit,
        deadline: None,
        timed_out: false,
    };

    let worked = {
        let work = AssertUnwindSafe(work(&task, &ctx, armed)).catch_unwind();
        tokio::pin!(work);
        let mut arming = true;
        loop {
            tokio::select! {
                biased;
                worked = &mut work => break worked.unwrap_or_else(|panic| Worked::Failed(panicked(&task.node.name, &*panic))),
                changed = phase.changed(), if arming => match changed {
                    Ok(()) => {
                        let since = *phase.borrow_and_update();
                        began = since.unwrap_or(began);
                        watch.deadline = due(since, limit);
                    }
                    Err(_) => arming = false,
                },
                given_up = watch.next() => if given_up { break Worked::Stopped },
            }
        }
    };
    // Work that ended at its first poll was armed without the loop seeing it.
    if let Some(since) = *phase.borrow() {
        began = since;
        watch.deadline = due(Some(since), limit);
    }
    let end = match worked {
        Worked::SubPlan(plan) => sub_plan(&task, plan, &mut watch).await,
        Worked::Done { output, result, cached } => NodeEnd::Done { output, result, cached },
        Worked::Failed(failure) => NodeEnd::Failed(failure),
        Worked::Stopped => NodeEnd::Cancelled,
    };
    let end = watch.judge(end);
    let _ =
        task.shared.messages.send(Message::Ended { index: task.index, end, elapsed: began.elapsed() }).await;
}

/// When a phase's time is over; never where there is no limit, or one that no clock reaches.
fn due(since: Option<Instant>, limit: Option<Duration>) -> Option<Instant> {
    since?.checked_add(limit?)
}

/// Hands a plan to the dispatcher and waits for its end, passing cancellations on to its nodes: this node's time
/// limit goes on and bounds them all.
async fn sub_plan(task: &Task, plan: Plan, watch: &mut Watch<'_>) -> NodeEnd {
    let inner = CancelSource::new();
    if let Some(now) = watch.cancel.state() {
        inner.raise(now);
    }
    let (done, mut ended) = oneshot::channel();
    let message = Message::SubPlan { index: task.index, plan, cancel: inner.clone(), done };
    if task.shared.messages.send(message).await.is_err() {
        return NodeEnd::Cancelled;
    }
    loop {
        tokio::select! {
            biased;
            end = &mut ended => return end.unwrap_or(NodeEnd::Cancelled),
            _ = watch.next() => {
                if let Some(now) = watch.cancel.state() {
                    inner.raise(now);
                }
            }
        }
    }
}

/// The watch over a node's work: passes cancellation in, keeps the time, escalates.
struct Watch<'a> {
    task: &'a Task,
    cancel: &'a CancelSource,
    /// What was last seen of the scope's cancellation.
    seen: Option<crate::cancel::Cancel>,
    /// When the next, harder measure is due.
    escalate: Option<(Instant, Measure)>,
    limit: Option<Duration>,
    deadline: Option<Instant>,
    timed_out: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Measure {
    Kill,
    GiveUp,
}

impl Watch<'_> {
    /// Waits for the next thing to act on and acts; true when the work must be given up. Safe to drop half-way.
    async fn next(&mut self) -> bool {
        let deadline = self.deadline.filter(|_| !self.timed_out);
        tokio::select! {
            now = self.task.scope.changed_from(self.seen) => {
                self.seen = Some(now);
                self.cancel.raise(now);
            }
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                self.timed_out = true;
                self.cancel.cancel(CancelReason::Timeout);
            }
            measure = async {
                match self.escalate {
                    Some((at, measure)) => { sleep_until(at).await; measure }
                    None => std::future::pending().await,
                }
            } => match measure {
                Measure::Kill => self.cancel.kill(CancelReason::FailureElsewhere),
                Measure::GiveUp => {
                    self.escalate = None;
                    return true;
                }
            },
        }
        self.plan_escalation();
        false
    }

    fn plan_escalation(&mut self) {
        let Some(state) = self.cancel.state() else { return };
        let options = &self.task.shared.options;
        let planned = self.escalate.map(|(_, m)| m);
        if state.kill && planned != Some(Measure::GiveUp) {
            self.escalate = Some((Instant::now() + options.kill_grace, Measure::GiveUp));
        } else if !state.kill && planned.is_none() {
            let grace = match &self.task.node.op {
                Op::Deploy(op) => options.deploy_grace.saturating_add(op.stop_grace),
                _ => options.grace,
            };
            self.escalate = Instant::now().checked_add(grace).map(|at| (at, Measure::Kill));
        }
    }

    /// What the end means, given whether it was cancelled. Success stands, however late; so does what a deploy says about
    /// its hosts, and a bug; any other failure of a cancelled node is the cancellation's doing.
    fn judge(&self, end: NodeEnd) -> NodeEnd {
        let Some(state) = self.cancel.state() else { return end };
        let told = match end {
            NodeEnd::Done { .. } => return end,
            NodeEnd::Failed(f) if f.exit >= ExitCode::RolledBack || f.exit == ExitCode::Bug => {
                return NodeEnd::Failed(f);
            }
            NodeEnd::Failed(f) => Some(f.message),
            NodeEnd::Cancelled => None,
        };
        if !self.timed_out || state.reason > CancelReason::Timeout {
            return NodeEnd::Cancelled;
        }
        let limit = self.limit.map(format_duration).unwrap_or_default();
        let mut message =
            format!("not done after {limit}, its time limit; raise `timeout` if it needs longer");
        if let Some(told) = told {
            message = format!("{message} ({told})");
        }
        NodeEnd::Failed(Failure::failed(message))
    }
}

fn panicked(name: &str, panic: &(dyn std::any::Any + Send)) -> Failure {
    let text = panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    let text = text.unwrap_or_else(|| "no message".into());
    Failure::bug(format!(
        "this is a bug in Keelway: {name} panicked: {text}; please report it with the log of this run"
    ))
}

async fn work(task: &Task, ctx: &Ctx, armed: Armed) -> Worked {
    match try_work(task, ctx, armed).await {
        Ok(worked) => worked,
        Err(Stop::Cancelled) => Worked::Stopped,
        Err(Stop::Failed(failure)) => Worked::Failed(failure),
    }
}

enum Stop {
    Cancelled,
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<CacheError> for Stop {
    fn from(error: CacheError) -> Self {
        Self::Failed(Failure::outside(error.to_string()))
    }
}

async fn try_work(task: &Task, ctx: &Ctx, armed: Armed) -> Result<Worked, Stop> {
    let name = || task.node.name.clone();
    let mut place = Some(take_place(task, ctx, &armed).await?);
    let key = task.shared.perform.key(ctx, &task.node, &task.inputs).await?;
    let mut recording = None;
    if let Some(key) = key {
        let (found, waited) = look_up(task, ctx, &key, &armed, &mut place).await?;
        match found {
            Found::Hit(output, again) => {
                if again {
                    ctx.news(format!("{}: what it stands on was made anew and is the same", name())).await;
                }
                ctx.send(EventKind::CacheHit { name: name() }).await;
                return Ok(Worked::Done { output, result: None, cached: true });
            }
            Found::Miss(claim, reason) => {
                if waited {
                    place = Some(take_place(task, ctx, &armed).await?);
                }
                if let Some(output) = recall(task, ctx, &key).await? {
                    ctx.send(EventKind::CacheHit { name: name() }).await;
                    return Ok(Worked::Done { output, result: None, cached: true });
                }
                ctx.send(EventKind::CacheMiss { name: name(), reason }).await;
                recording = Some((key, claim));
            }
            Found::Busy => return Err(Stop::Cancelled),
        }
    }
    if ctx.cancel.is_cancelled() {
        return Err(Stop::Cancelled);
    }
    ctx.send(EventKind::Started { name: name() }).await;
    let performed = task.shared.perform.perform(ctx.clone(), &task.node, task.inputs.clone()).await?;
    drop(place);
    match performed {
        Performed::SubPlan(plan) => Ok(Worked::SubPlan(plan)),
        Performed::Output(output, result) => {
            if let Some((key, claim)) = recording {
                record(task, ctx, key, claim, output.clone()).await?;
            }
            Ok(Worked::Done { output, result, cached: false })
        }
    }
}

/// What is kept elsewhere. It is asked for while the step is ours to run, so that equal steps ask once.
async fn recall(task: &Task, ctx: &Ctx, key: &CacheKey) -> Result<Option<Output>, Stop> {
    if task.node.anew {
        return Ok(None);
    }
    tokio::select! {
        output = task.shared.perform.recall(ctx, &task.node, key, &task.inputs) => Ok(output),
        _ = ctx.cancel.cancelled() => Err(Stop::Cancelled),
    }
}

/// Queues for a place to run in; the time limit counts from having it.
async fn take_place<'a>(task: &'a Task, ctx: &Ctx, armed: &Armed) -> Result<SemaphorePermit<'a>, Stop> {
    let lane = task.shared.lane(&task.node.op);
    let place = match lane.try_acquire() {
        Ok(place) => place,
        Err(_) => {
            armed.send_replace(None);
            ctx.send(EventKind::Waiting { reason: WaitReason::Slots }).await;
            tokio::select! {
                place = lane.acquire() => place.map_err(|_| Stop::Cancelled)?,
                _ = ctx.cancel.cancelled() => return Err(Stop::Cancelled),
            }
        }
    };
    armed.send_replace(Some(Instant::now()));
    Ok(place)
}

#[allow(clippy::large_enum_variant, reason = "a few short-lived values a node")]
enum Found {
    /// The second value says that it was found by what its base holds.
    Hit(Output, bool),
    Miss(Claim, MissReason),
    Busy,
}

/// Looks a key up until it is a hit, or ours to run. While an equal step runs elsewhere the place is given back; the
/// second value says so.
async fn look_up(
    task: &Task,
    ctx: &Ctx,
    key: &CacheKey,
    armed: &Armed,
    place: &mut Option<SemaphorePermit<'_>>,
) -> Result<(Found, bool), Stop> {
    let mut pause = CLAIM_PAUSE.0;
    let mut waited = false;
    loop {
        let (shared, node, wanted) = (Arc::clone(&task.shared), Arc::clone(&task.node), key.clone());
        let base = base_of(&task.inputs);
        match blocking(move || look_once(&shared, &node, &wanted, base.as_ref())).await?? {
            Found::Busy => {}
            found => return Ok((found, waited)),
        }
        if !waited {
            waited = true;
            *place = None;
            armed.send_replace(Some(Instant::now()));
            ctx.send(EventKind::Waiting { reason: WaitReason::SameStepElsewhere }).await;
        }
        tokio::select! {
            () = sleep(pause) => pause = (pause * 2).min(CLAIM_PAUSE.1),
            _ = ctx.cancel.cancelled() => return Err(Stop::Cancelled),
        }
    }
}

/// The root file system that a step stands on: the output of its first need.
fn base_of(inputs: &[Output]) -> Option<Chain> {
    match inputs.first()? {
        Output::Chain(chain) => Some(chain.clone()),
        Output::Image(image) => Some(image.chain.clone()),
        Output::Nothing | Output::Pushed(_) => None,
    }
}

fn look_once(
    shared: &Shared,
    node: &Node,
    key: &CacheKey,
    base: Option<&Chain>,
) -> Result<Found, CacheError> {
    let cache = &*shared.cache;
    let get = || if shared.may_find(node, &key.digest) { cache.get(key) } else { Ok(None) };
    if let Some(output) = get()? {
        return Ok(Found::Hit(output, false));
    }
    let Some(claim) = cache.try_claim(&key.digest)? else { return Ok(Found::Busy) };
    // Whoever had the claim may have recorded the step between the look and the claim.
    if let Some(output) = get()? {
        return Ok(Found::Hit(output, false));
    }
    if node.anew {
        return Ok(Found::Miss(claim, MissReason::Asked));
    }
    if let Some(base) = base
        && let Some(output) = cache.again(key, base)?
    {
        // Found by its key the next time, without a look into the base.
        cache.put(key, Some(base), &output)?;
        return Ok(Found::Hit(output, true));
    }
    let last = cache.last_parts(&key.identity)?;
    Ok(Found::Miss(claim, key.explain(last.as_deref())))
}

/// Records a step's output, then lets others have the step. The step itself succeeded: a store that cannot record it
/// costs a later build time, and is said, but fails nothing.
async fn record(task: &Task, ctx: &Ctx, key: CacheKey, claim: Claim, output: Output) -> Result<(), Stop> {
    let shared = Arc::clone(&task.shared);
    let base = base_of(&task.inputs);
    let put = blocking(move || {
        let put = shared.cache.put(&key, base.as_ref(), &output);
        if put.is_ok() {
            shared.made(&key.digest);
        }
        drop(claim);
        put
    })
    .await?;
    if let Err(error) = put {
        ctx.notice(format!("{} was not recorded in the cache: {error}", task.node.name)).await;
    }
    Ok(())
}

/// Runs a short blocking call; its panic is ours.
async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Result<T, Stop> {
    match tokio::task::spawn_blocking(call).await {
        Ok(value) => Ok(value),
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(_) => Err(Stop::Cancelled),
    }
}
