//! The dispatcher: the one owner of a run's state.
//!
//! Nodes of the plan and of all sub-plans live in one list of cells; a scope is the cells of one plan. A cell goes
//! pending -> running -> ended, and `end` is the only way out. The dispatcher only ever waits for messages and for
//! the sink's queue: timeouts and escalation are watched by each node's own task (see [`crate::node`]), so a
//! dispatcher that is held up by a slow sink does not hold up a cancellation.

use crate::cache::StepCache;
use crate::cancel::{CancelReason, CancelSource, CancelToken};
use crate::node::{self, NodeEnd, Task};
use crate::perform::{Failure, Perform};
use crate::report::{NodeReport, RunReport, exit_of, overall_exit};
use crate::sink::{self, Outlet, SinkFailure};
use keelway_model::plan::PlanError;
use keelway_model::{
    Attempt, Bytes, Clock, CommitId, Digest, EventKind, EventSink, ExitCode, LogStream, Node, NodeId, Op,
    Outcome, Output, Plan, RunEvent, RunId, SkipReason,
};
use std::collections::{HashSet, VecDeque};
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Messages on their way to the dispatcher.
const MESSAGES: usize = 256;
/// Sub-plans inside sub-plans.
const MAX_DEPTH: usize = 8;

/// How to run.
#[derive(Clone)]
pub struct Options {
    /// The run.
    pub run: RunId,
    /// Its attempt.
    pub attempt: Attempt,
    /// Its commit, where the source is one.
    pub commit: Option<CommitId>,
    /// How many build steps run at once, and how many stages with steps. Pulls, pushes and deploys do not count.
    pub max_parallel: usize,
    /// Bytes of one node's output that are shown and recorded; what comes after them is left out.
    pub log_bytes: u64,
    /// From being asked to stop to being killed.
    pub grace: Duration,
    /// The same for a deploy, which ends between two of its steps and so has to wait for the one it is at. The time its
    /// replicas have to stop comes on top.
    pub deploy_grace: Duration,
    /// From being killed to being given up.
    pub kill_grace: Duration,
    /// Where dates of events come from.
    pub clock: Arc<dyn Clock>,
}

impl Options {
    /// The defaults: one place a core, at least eight, because steps wait as often as they compute; ten seconds of grace, three minutes for a deploy (its longest order
    /// that is not abandoned takes two and a half); five seconds to die.
    pub fn new(run: RunId, clock: Arc<dyn Clock>) -> Self {
        Self {
            run,
            attempt: Attempt(1),
            commit: None,
            max_parallel: std::thread::available_parallelism().map_or(2, usize::from).max(8),
            log_bytes: 64 << 20,
            grace: Duration::from_secs(10),
            deploy_grace: Duration::from_secs(180),
            kill_grace: Duration::from_secs(5),
            clock,
        }
    }
}

/// Why a run could not even start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A bug of the planner.
    #[error("this is a bug in Keelway: {0}")]
    Plan(#[from] PlanError),
    /// No thread to be had.
    #[error("cannot start the thread that records and shows events: {0}; is the limit of processes reached?")]
    Thread(#[from] std::io::Error),
}

impl RunError {
    /// The exit code it asks for.
    pub const fn exit(&self) -> ExitCode {
        match self {
            Self::Plan(_) => ExitCode::Bug,
            Self::Thread(_) => ExitCode::Outside,
        }
    }
}

/// What nodes tell the dispatcher.
#[allow(clippy::large_enum_variant, reason = "a few short-lived values a node")]
pub(crate) enum Message {
    /// Something happened in a node.
    Event { index: usize, kind: EventKind },
    /// A node turned into a plan; its task waits for how that ends.
    SubPlan { index: usize, plan: Plan, cancel: CancelSource, done: oneshot::Sender<NodeEnd> },
    /// A node's task is over.
    Ended { index: usize, end: NodeEnd, elapsed: Duration },
}

/// What all nodes of a run share.
pub(crate) struct Shared {
    pub perform: Arc<dyn Perform>,
    pub cache: Arc<dyn StepCache>,
    pub options: Options,
    pub messages: mpsc::Sender<Message>,
    /// Places for build steps.
    pub work: Semaphore,
    /// Places for stages with steps, so that a long test never keeps a build waiting.
    pub steps: Semaphore,
    /// Places for what waits for the world: pulls, pushes, deploys, and the lowering of builds.
    pub outside: Semaphore,
    /// Keys of steps that this run has run: what it made itself is good enough for one that shall run anew.
    made: Mutex<HashSet<Digest>>,
}

impl Shared {
    /// Remembers a step that was run.
    pub fn made(&self, key: &Digest) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(*key);
    }
    /// Whether a look-up may find what is recorded for this key.
    pub fn may_find(&self, node: &Node, key: &Digest) -> bool {
        !node.anew || self.made.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }
    /// Where a node's kind of work queues.
    pub fn lane(&self, op: &Op) -> &Semaphore {
        match op {
            Op::Exec(_) | Op::Copy(_) | Op::Link | Op::Mkdir(_) | Op::Assemble(_) => &self.work,
            Op::Steps(_) => &self.steps,
            Op::Build(_) | Op::Base(_) | Op::Fetch(_) | Op::Git(_) | Op::Push(_) | Op::Deploy(_) => {
                &self.outside
            }
        }
    }
}

/// Runs a plan to its end, whatever its nodes do. `cancel` stops it: asked once, running nodes end in good order;
/// killed, they end at once. Must be called on a tokio runtime with time enabled.
pub async fn run(
    plan: Plan,
    perform: Arc<dyn Perform>,
    cache: Arc<dyn StepCache>,
    sink: Box<dyn EventSink>,
    options: Options,
    cancel: CancelToken,
) -> Result<RunReport, RunError> {
    plan.check()?;
    let root = CancelSource::new();
    let on_failure = root.clone();
    let outlet = sink::start(sink, root.token(), move || on_failure.cancel(CancelReason::SinkFailed))?;
    let forward = tokio::spawn(forward(cancel, root.clone()));
    let (messages, inbox) = mpsc::channel(MESSAGES);
    let places = options.max_parallel.clamp(1, Semaphore::MAX_PERMITS);
    let shared = Arc::new(Shared {
        perform,
        cache,
        messages,
        work: Semaphore::new(places),
        steps: Semaphore::new(places),
        outside: Semaphore::new(places.max(8)),
        made: Mutex::default(),
        options,
    });
    let dispatcher = Dispatcher {
        shared,
        inbox,
        outlet,
        cells: Vec::new(),
        scopes: Vec::new(),
        seq: 0,
        began: Instant::now(),
    };
    let report = dispatcher.run(plan, root).await;
    forward.abort();
    Ok(report)
}

async fn forward(from: CancelToken, to: CancelSource) {
    let mut seen = None;
    loop {
        let now = from.changed_from(seen).await;
        seen = Some(now);
        to.raise(now);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Pending,
    Running,
    Ended,
}

struct Cell {
    node: Arc<Node>,
    path: Vec<NodeId>,
    scope: usize,
    state: State,
    /// Needs that have not succeeded yet.
    missing: usize,
    /// Cells that need this one.
    dependents: Vec<usize>,
    outcome: Option<Outcome>,
    elapsed: Duration,
    output: Option<Output>,
    result: Option<String>,
    /// Bytes of output so far, what was left out included once.
    logged: u64,
}

struct Scope {
    /// First cell; the plan's nodes follow each other.
    first: usize,
    count: usize,
    unfinished: usize,
    /// Cells that need nothing more; looked at by the next `settle`, so that no event costs a walk over the plan.
    ready: Vec<usize>,
    result: Option<NodeId>,
    cancel: CancelSource,
    /// The first node that failed.
    failure: Option<usize>,
    /// Whoever waits for a sub-plan; none for the plan of the run.
    done: Option<oneshot::Sender<NodeEnd>>,
}

struct Dispatcher {
    shared: Arc<Shared>,
    inbox: mpsc::Receiver<Message>,
    outlet: Outlet,
    cells: Vec<Cell>,
    scopes: Vec<Scope>,
    seq: u64,
    began: Instant,
}

impl Dispatcher {
    async fn run(mut self, plan: Plan, root: CancelSource) -> RunReport {
        let options = &self.shared.options;
        let started = EventKind::RunStarted {
            run: options.run.clone(),
            attempt: options.attempt,
            commit: options.commit.clone(),
        };
        self.emit(Vec::new(), started).await;
        self.open(plan, root, Vec::new(), None).await;
        while self.scopes[0].unfinished > 0 {
            // Never closed: `shared` keeps a sender. Never silent for ever: a scope with unfinished cells has a running
            // one (`settle`), and every running node's task ends (`node::supervise`).
            let Some(message) = self.inbox.recv().await else { break };
            self.handle(message).await;
        }
        self.close().await
    }

    /// A node's output, as far as there is room for it. The process is not slowed down or stopped by what is left out.
    async fn log(&mut self, index: usize, stream: LogStream, mut text: String) {
        let most = self.shared.options.log_bytes;
        let cell = &mut self.cells[index];
        if cell.logged > most {
            return;
        }
        let room = most - cell.logged;
        cell.logged = cell.logged.saturating_add(text.len() as u64);
        if cell.logged > most {
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            text.truncate((0..=room).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0));
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            let _ = writeln!(text, "[keelway: output beyond {} is not recorded]", Bytes(most));
        }
        self.emit(self.cells[index].path.clone(), EventKind::Log { stream, text }).await;
    }

    async fn handle(&mut self, message: Message) {
        match message {
            Message::Event { index, kind } => {
                // A blocking thread that outlived its node has nothing to say any more.
                if self.cells[index].state == State::Ended {
                    return;
                }
                match kind {
                    EventKind::Log { stream, text } => self.log(index, stream, text).await,
                    kind => self.emit(self.cells[index].path.clone(), kind).await,
                }
            }
            Message::SubPlan { index, plan, cancel, done } => {
                let path = self.cells[index].path.clone();
                let refused = match plan.check() {
                    Ok(()) if path.len() >= MAX_DEPTH => Some("it is nested too deeply".to_owned()),
                    Ok(()) => None,
                    Err(e) => Some(e.to_string()),
                };
                match refused {
                    None => self.open(plan, cancel, path, Some(done)).await,
                    Some(why) => {
                        let name = &self.cells[index].node.name;
                        let failure = Failure::bug(format!(
                            "this is a bug in Keelway: the plan that {name} turned into cannot run: {why}"
                        ));
                        let _ = done.send(NodeEnd::Failed(failure));
                    }
                }
            }
            Message::Ended { index, end, elapsed } => {
                self.cells[index].elapsed = elapsed;
                let outcome = match end {
                    NodeEnd::Done { output, result, cached } => {
                        self.cells[index].output = Some(output);
                        self.cells[index].result = result;
                        if cached { Outcome::Cached } else { Outcome::Succeeded }
                    }
                    NodeEnd::Failed(f) => Outcome::Failed { exit: f.exit.code(), message: f.message },
                    NodeEnd::Cancelled => Outcome::Cancelled,
                };
                let scope = self.cells[index].scope;
                self.end(index, outcome).await;
                self.settle(scope).await;
            }
        }
    }

    /// Takes in a plan and starts what can start.
    async fn open(
        &mut self,
        plan: Plan,
        cancel: CancelSource,
        parent: Vec<NodeId>,
        done: Option<oneshot::Sender<NodeEnd>>,
    ) {
        let (scope, first, count) = (self.scopes.len(), self.cells.len(), plan.nodes.len());
        let ready = Vec::new();
        self.scopes.push(Scope {
            first,
            count,
            unfinished: count,
            ready,
            result: plan.result,
            cancel,
            failure: None,
            done,
        });
        for node in plan.nodes {
            let index = self.cells.len();
            let mut path = parent.clone();
            path.push(node.id);
            for need in &node.needs {
                self.cells[first + need.index()].dependents.push(index);
            }
            if node.needs.is_empty() {
                self.scopes[scope].ready.push(index);
            }
            let planned = EventKind::Planned { name: node.name.clone(), kind: node.op.kind().to_owned() };
            self.cells.push(Cell {
                missing: node.needs.len(),
                node: Arc::new(node),
                path: path.clone(),
                scope,
                state: State::Pending,
                dependents: Vec::new(),
                outcome: None,
                elapsed: Duration::ZERO,
                output: None,
                result: None,
                logged: 0,
            });
            self.emit(path, planned).await;
        }
        for index in first..first + count {
            if self.cells[index].state == State::Pending
                && let Some(reason) = self.cells[index].node.skip.clone()
            {
                self.end(index, Outcome::Skipped { reason }).await;
            }
        }
        self.settle(scope).await;
    }

    /// After anything changed in a scope: starts what is ready, or, when it is cancelled, gives up what has not
    /// started. Afterwards a scope is either finished or has a running node.
    async fn settle(&mut self, scope: usize) {
        if self.scopes[scope].cancel.state().is_some() {
            let (first, count) = (self.scopes[scope].first, self.scopes[scope].count);
            for index in first..first + count {
                if self.cells[index].state == State::Pending {
                    self.end(index, Outcome::Cancelled).await;
                }
            }
        }
        for index in std::mem::take(&mut self.scopes[scope].ready) {
            if self.cells[index].state == State::Pending {
                self.start(index);
            }
        }
        if self.scopes[scope].unfinished == 0
            && let Some(done) = self.scopes[scope].done.take()
        {
            let _ = done.send(self.sub_plan_end(scope));
        }
    }

    fn start(&mut self, index: usize) {
        let cell = &self.cells[index];
        let scope = &self.scopes[cell.scope];
        let inputs = cell
            .node
            .needs
            .iter()
            .map(|need| {
                let output = &self.cells[scope.first + need.index()].output;
                output
                    .clone()
                    .expect("a node is started only when all it needs succeeded, and success has an output")
            })
            .collect();
        let task = Task {
            shared: Arc::clone(&self.shared),
            node: Arc::clone(&cell.node),
            path: cell.path.clone(),
            index,
            inputs,
            scope: scope.cancel.token(),
        };
        self.cells[index].state = State::Running;
        tokio::spawn(node::supervise(task));
    }

    /// Ends a cell; what needs it is skipped when it did not succeed, or becomes one need closer to starting.
    async fn end(&mut self, index: usize, outcome: Outcome) {
        let mut ending = VecDeque::from([(index, outcome)]);
        while let Some((index, outcome)) = ending.pop_front() {
            if self.cells[index].state == State::Ended {
                continue;
            }
            let ok = outcome.is_ok();
            let failed = matches!(outcome, Outcome::Failed { .. });
            let cell = &mut self.cells[index];
            cell.state = State::Ended;
            cell.outcome = Some(outcome.clone());
            let (scope, path, name) = (cell.scope, cell.path.clone(), cell.node.name.clone());
            let millis = u64::try_from(cell.elapsed.as_millis()).unwrap_or(u64::MAX);
            let finished =
                EventKind::Finished { name: name.clone(), outcome, millis, result: cell.result.clone() };
            let dependents = cell.dependents.clone();
            self.emit(path, finished).await;
            for d in dependents {
                if ok {
                    self.cells[d].missing -= 1;
                    if self.cells[d].missing == 0 {
                        self.scopes[scope].ready.push(d);
                    }
                } else {
                    // What was not to run anyway says so, whatever became of what it needs.
                    let own = self.cells[d].node.skip.clone();
                    let reason = own.unwrap_or_else(|| SkipReason::Needs { name: name.clone() });
                    ending.push_back((d, Outcome::Skipped { reason }));
                }
            }
            let scope = &mut self.scopes[scope];
            scope.unfinished -= 1;
            if failed && scope.failure.is_none() {
                scope.failure = Some(index);
                if scope.done.is_some() {
                    scope.cancel.cancel(CancelReason::FailureElsewhere);
                }
            }
        }
    }

    /// How a finished sub-plan ends its parent.
    fn sub_plan_end(&self, scope: usize) -> NodeEnd {
        let scope = &self.scopes[scope];
        if let Some(failed) = scope.failure {
            let cell = &self.cells[failed];
            if let Some(Outcome::Failed { exit, message }) = &cell.outcome {
                let exit = ExitCode::from_code(*exit).unwrap_or(ExitCode::Bug);
                return NodeEnd::Failed(Failure::new(exit, format!("{}: {message}", cell.node.name)));
            }
        }
        let cells = &self.cells[scope.first..scope.first + scope.count];
        match scope.result {
            Some(id) => match &cells[id.index()] {
                Cell { output: Some(output), result, .. } => {
                    NodeEnd::Done { output: output.clone(), result: result.clone(), cached: false }
                }
                _ => NodeEnd::Cancelled,
            },
            None if cells.iter().any(|c| c.outcome == Some(Outcome::Cancelled)) => NodeEnd::Cancelled,
            None => NodeEnd::Done { output: Output::Nothing, result: None, cached: false },
        }
    }

    async fn emit(&mut self, node: Vec<NodeId>, kind: EventKind) {
        self.seq += 1;
        let at = self.shared.options.clock.now();
        self.outlet.send(RunEvent { at, seq: self.seq, node, kind }).await;
    }

    async fn close(mut self) -> RunReport {
        let root = &self.scopes[0];
        let stages = &self.cells[root.first..root.first + root.count];
        let reason = root.cancel.state().map(|c| c.reason);
        let sink_failed = reason == Some(CancelReason::SinkFailed);
        let cancelled = |c: &&Cell| c.outcome == Some(Outcome::Cancelled);
        let codes = stages
            .iter()
            .filter(|c| !(sink_failed && cancelled(c)))
            .filter_map(|c| c.outcome.as_ref())
            .map(exit_of);
        let mut exit = overall_exit(codes);
        let failed: Vec<&str> = stages
            .iter()
            .filter(|c| matches!(c.outcome, Some(Outcome::Failed { .. })))
            .map(|c| c.node.name.as_str())
            .collect();
        let mut outcome = match exit {
            ExitCode::Done => Outcome::Succeeded,
            ExitCode::Cancelled => Outcome::Cancelled,
            exit => Outcome::Failed { exit: exit.code(), message: format!("failed: {}", failed.join(", ")) },
        };
        let known = self.outlet.failure();
        if let Some(failure) = &known {
            (exit, outcome) = unrecorded(exit, outcome, failure);
        }
        let interrupted = exit != ExitCode::Done && reason >= Some(CancelReason::SinkFailed);
        let output = root.result.and_then(|id| stages[id.index()].output.clone());
        let elapsed = self.began.elapsed();
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        self.emit(Vec::new(), EventKind::RunFinished { outcome: outcome.clone(), millis, interrupted }).await;
        let (events_lost, failure) = self.outlet.finish().await;
        if let (None, Some(failure)) = (&known, &failure) {
            (exit, outcome) = unrecorded(exit, outcome, failure);
        }
        let nodes = self.cells.into_iter().map(report).collect();
        let sink_error = failure.map(|f| f.error);
        RunReport {
            outcome,
            exit,
            interrupted,
            nodes,
            output,
            elapsed,
            events: self.seq,
            events_lost,
            sink_error,
        }
    }
}

/// How a run ended whose sink failed, too.
fn unrecorded(exit: ExitCode, outcome: Outcome, failure: &SinkFailure) -> (ExitCode, Outcome) {
    let message = match outcome {
        Outcome::Failed { message, .. } => format!("{message}; {}", failure.error),
        _ => failure.error.to_string(),
    };
    match overall_exit([exit, failure.exit]) {
        ExitCode::Cancelled => (ExitCode::Cancelled, Outcome::Cancelled),
        exit => (exit, Outcome::Failed { exit: exit.code(), message }),
    }
}

fn report(cell: Cell) -> NodeReport {
    NodeReport {
        path: cell.path,
        name: cell.node.name.clone(),
        kind: cell.node.op.kind(),
        outcome: cell.outcome.unwrap_or(Outcome::Cancelled),
        elapsed: cell.elapsed,
        output: cell.output,
        result: cell.result,
    }
}

#[cfg(test)]
mod tests;
