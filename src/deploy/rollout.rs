//! The rollout as a pure state machine: no I/O, no clock, no randomness.
//!
//! It is level-triggered: look at every host, decide one step, do it, look again. So a lost connection, a killed
//! deployer or an order that was done twice need no cases of their own; what was done is seen, and what was not is
//! still to do. Forward and back are the same decisions with another release as the target.
//!
//! The driver loops: [`Machine::next`] gives orders to send (all to be answered, or given up at their deadline,
//! before [`Machine::answered`] is called), a time to wait, or the end. Time is a monotonic `Duration` since any
//! fixed point.
//!
//! Invariants, tested against a simulated fleet in `rollout/tests.rs`:
//! - a replica that answers is taken out only while at least [`Goal::floor`] others answer on every balancer;
//! - nothing is stopped that a balancer may still send to: active, then draining everywhere, then in flight zero (or
//!   the drain deadline), then out of the pools, then SIGTERM;
//! - nothing joins the balancers before it is healthy; one replica at a time, host after host;
//! - every wait has a deadline, so there is always an end; a failure on the way back is an end, not a loop;
//! - a refused epoch ends everything at once.

mod decide;
#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
mod world;

pub use world::HostView;

use crate::goal::{Direction, Goal};
use crate::protocol::{
    AppReport, Epoch, Fence, Order, Refusal, RefusalKind, RegistryAccess, ReplicaId, Reply,
};
use keelway_model::ExitCode;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use world::{Spot, World};

/// Bounds that `keelway.yml` does not set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Knobs {
    /// Between two looks while something is awaited.
    pub poll: Duration,
    /// How long a host may be away before the rollout halts.
    pub patience: Duration,
    /// How long the lease may be without a majority before the deploy gives up.
    pub lease: Duration,
    /// How long a healthy replica may be unusable for a balancer.
    pub reach: Duration,
    /// How long an image may take to arrive, with retries.
    pub pull: Duration,
    /// Without any progress for so long, the rollout has failed.
    pub progress: Duration,
    /// How long the new release must hold, complete, before it counts.
    pub monitor: Duration,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            poll: Duration::from_millis(200),
            patience: Duration::from_secs(60),
            lease: Duration::from_secs(60),
            reach: Duration::from_secs(30),
            pull: Duration::from_secs(300),
            progress: Duration::from_secs(600),
            monitor: Duration::from_secs(2),
        }
    }
}

/// Kinds of steps; one word each in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepKind {
    /// Look at every host.
    Observe,
    /// Bring the image to the hosts.
    Pull,
    /// Write down on the hosts that this release was begun, or that it is being given up.
    Record,
    /// Bridge, firewall, balancer.
    Prepare,
    /// Start a replica.
    Start,
    /// Add to the balancers.
    Add,
    /// Give no new requests.
    Drain,
    /// Take out of the balancers.
    Detach,
    /// SIGTERM.
    Stop,
    /// Remove what is left.
    Remove,
    /// Read the log of what failed.
    Logs,
    /// Write down on the hosts how it ended.
    Finish,
}

impl StepKind {
    /// Whether it changes anything on a host, and so is journalled before it is done.
    pub const fn changes(self) -> bool {
        !matches!(self, Self::Observe | Self::Logs)
    }
}

/// One step of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What.
    pub kind: StepKind,
    /// Which way.
    pub direction: Direction,
    /// Host, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Replica, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<ReplicaId>,
}

/// An order to a host.
#[derive(Debug, Clone, PartialEq)]
pub struct Addressed {
    /// Index of the host.
    pub host: usize,
    /// What to send.
    pub order: Order,
    /// An answer after this is no answer.
    pub deadline: Duration,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Send these, at once and side by side, then call [`Machine::answered`].
    Send(Step, Vec<Addressed>),
    /// Come back after this long.
    Wait(Duration),
    /// It is over.
    End(Ended),
}

/// How an order failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// The host said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The host cannot be reached; whether the order was done is not known.
    #[error("{0}")]
    Unreachable(String),
    /// No answer by the deadline; whether the order was done is not known.
    #[error("no answer in time")]
    Late,
}

/// How a rollout ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// One of 0, 3, 4 and 10 to 14.
    pub exit: ExitCode,
    /// One line for people.
    pub summary: String,
    /// What went wrong, in order.
    pub reasons: Vec<String>,
    /// Last log lines of the replica that failed.
    pub log: Vec<String>,
    /// Whether this rollout changed anything.
    pub changed: bool,
    /// Requests that were cut because the drain deadline passed.
    pub cut: u32,
}

/// How the lease stands; told by the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseNews {
    /// A majority renewed it; the time that goes with it is when it was asked to.
    Renewed,
    /// Another owner has it, in words.
    Lost(String),
}

/// The rollout.
#[derive(Debug, Clone)]
pub struct Machine {
    goal: Goal,
    knobs: Knobs,
    registry: RegistryAccess,
    epoch: Epoch,
    world: World,
    fresh: bool,
    direction: Direction,
    /// Where the target's replicas belong; laid out again when the direction turns.
    placement: Option<Vec<Spot>>,
    generation: u64,
    asked: Option<(Step, Vec<usize>)>,
    /// Replicas that were healthy before, with how often they had been restarted then.
    restarts: BTreeMap<Spot, u32>,
    /// Since when a replica of the target is awaited, and whether it was healthy.
    awaited: BTreeMap<Spot, (Duration, bool)>,
    draining: BTreeMap<Spot, Duration>,
    drained: BTreeSet<Spot>,
    pulled: BTreeSet<usize>,
    pull_since: Option<Duration>,
    tries: BTreeMap<StepKind, u32>,
    /// Since when balancers do not run as they were told, or do not take their pools.
    unsettled: BTreeMap<StepKind, Duration>,
    failure: Option<(StepKind, String)>,
    wants_log: Option<Spot>,
    best: (usize, usize),
    removed: usize,
    progress_at: Option<Duration>,
    complete_since: Option<Duration>,
    lease_at: Option<Duration>,
    lost: Option<String>,
    cancelled: bool,
    /// Why a step was not sent.
    withheld: Option<String>,
    changed: bool,
    pause: Duration,
    reasons: Vec<String>,
    log: Vec<String>,
    cut: u32,
    ended: Option<Ended>,
}

/// How often a step that a host refuses for no lasting reason is tried.
const TRIES: u32 = 3;

impl Machine {
    /// A rollout towards `goal` under the lease of `epoch`, on hosts as they were last seen.
    pub fn new(
        goal: Goal,
        knobs: Knobs,
        registry: RegistryAccess,
        epoch: Epoch,
        hosts: Vec<HostView>,
    ) -> Self {
        let mut machine = Self {
            direction: goal.direction,
            goal,
            knobs,
            registry,
            epoch,
            world: World { hosts },
            fresh: false,
            placement: None,
            generation: 0,
            asked: None,
            restarts: BTreeMap::new(),
            awaited: BTreeMap::new(),
            draining: BTreeMap::new(),
            drained: BTreeSet::new(),
            pulled: BTreeSet::new(),
            pull_since: None,
            tries: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            failure: None,
            wants_log: None,
            best: (0, 0),
            removed: 0,
            progress_at: None,
            complete_since: None,
            lease_at: None,
            lost: None,
            cancelled: false,
            withheld: None,
            changed: false,
            pause: Duration::ZERO,
            reasons: Vec::new(),
            log: Vec::new(),
            cut: 0,
            ended: None,
        };
        if machine.goal.direction == Direction::Back {
            machine
                .reasons
                .push("an earlier deploy of this release failed and its rollback was not finished".into());
        }
        machine.settle();
        machine
    }
    /// Which way it goes now.
    pub fn direction(&self) -> Direction {
        self.direction
    }
    /// What it goes for.
    pub fn goal(&self) -> &Goal {
        &self.goal
    }
    /// The hosts as last seen.
    pub fn hosts(&self) -> &[HostView] {
        &self.world.hosts
    }
    /// Replicas of the target that answer, and how many there shall be.
    pub fn ready(&self) -> (usize, usize) {
        let target = self.placement.as_deref().unwrap_or_default();
        (target.iter().filter(|&&t| self.world.is_available(t)).count(), target.len())
    }
    /// Why it turned back, so far.
    pub fn reasons(&self) -> &[String] {
        &self.reasons
    }
    /// Ends it at the next safe point: no order is cut off, nothing is left half drained on purpose.
    pub fn cancel(&mut self) {
        self.cancelled = true;
    }
    /// The step that [`Machine::next`] gave last was not sent, and none can be: it ends between two steps.
    pub fn withhold(&mut self, reason: String) {
        self.asked = None;
        self.withheld = Some(reason);
    }
    /// News of the lease.
    pub fn lease(&mut self, at: Duration, news: LeaseNews) {
        match news {
            LeaseNews::Renewed => self.lease_at = Some(at),
            LeaseNews::Lost(who) => self.lost = Some(who),
        }
    }

    /// What to do now.
    pub fn next(&mut self, now: Duration) -> Next {
        if let Some(ended) = &self.ended {
            return Next::End(ended.clone());
        }
        if let Some(who) = self.lost.clone() {
            self.reasons.push(format!("the lease was lost: {who}"));
            return self.end(ExitCode::LeaseHeld, "stopped: another deploy of this app took over");
        }
        self.lease_at.get_or_insert(now);
        if let Some(reason) = self.withheld.take() {
            self.reasons.push(reason);
            let mixed = self.changed || self.goal.resumed || self.direction == Direction::Back;
            return if mixed {
                self.end(
                    ExitCode::Halted,
                    "halted between two steps; deploy again to go on once this machine is mended",
                )
            } else {
                self.end(ExitCode::Outside, "stopped before anything was changed")
            };
        }
        if self.cancelled {
            return if self.changed {
                self.end(ExitCode::Halted, "interrupted between two steps; deploy again to go on, or `keelway deploy rollback` to go back")
            } else {
                self.end(ExitCode::Cancelled, "interrupted before anything was changed")
            };
        }
        if let Some((kind, reason)) = self.failure.take()
            && let Some(next) = self.fail(kind, reason)
        {
            return next;
        }
        if let Some(spot) = self.wants_log.take() {
            let order = Order::ReadLogs { app: self.goal.app.clone(), replica: spot.1, tail: 50 };
            return self.send(StepKind::Logs, Some(spot), vec![(spot.0, order)]);
        }
        if !std::mem::take(&mut self.fresh) {
            let pause = std::mem::take(&mut self.pause);
            if pause > Duration::ZERO {
                return Next::Wait(pause);
            }
            let order = Order::Status { app: Some(self.goal.app.clone()) };
            let all = (0..self.world.hosts.len()).map(|h| (h, order.clone())).collect();
            return self.send(StepKind::Observe, None, all);
        }
        if let Some(next) = self.wait_for_hosts(now).or_else(|| self.wait_for_lease(now)) {
            return next;
        }
        self.settle();
        self.decide(now)
    }

    /// The answers to what [`Machine::next`] sent, in its order.
    pub fn answered(&mut self, now: Duration, answers: Vec<Result<Reply, OrderError>>) {
        let Some((step, hosts)) = self.asked.take() else { return };
        self.changed |= step.kind.changes() && step.kind != StepKind::Pull;
        let mut all_good = true;
        for (host, answer) in hosts.into_iter().zip(answers) {
            match answer {
                Ok(reply) => self.good(&step, host, reply),
                Err(error) => {
                    all_good = false;
                    self.bad(now, &step, host, error);
                }
            }
        }
        if all_good {
            self.tries.remove(&step.kind);
        }
        self.fresh = step.kind == StepKind::Observe;
    }

    fn good(&mut self, step: &Step, host: usize, reply: Reply) {
        match (step.kind, reply) {
            (StepKind::Observe, Reply::Status(status)) => {
                let report = status.apps.into_iter().find(|a| a.app == self.goal.app);
                let view = &mut self.world.hosts[host];
                view.report = report.unwrap_or_else(|| AppReport::empty(self.goal.app.clone()));
                view.down = None;
            }
            (StepKind::Pull, _) => {
                self.pulled.insert(host);
            }
            (StepKind::Remove, _) => self.removed += 1,
            (StepKind::Logs, Reply::Logs(lines)) => self.log = lines,
            _ => {}
        }
    }

    fn bad(&mut self, now: Duration, step: &Step, host: usize, error: OrderError) {
        let name = self.world.hosts[host].name.clone();
        let kind = step.kind;
        if kind == StepKind::Logs {
            return;
        }
        match &error {
            OrderError::Refused(Refusal { kind: RefusalKind::Fenced { .. }, message }) => {
                self.lost = Some(format!("{name}: {message}"));
                return;
            }
            OrderError::Refused(_) if kind != StepKind::Observe => {}
            _ => {
                self.world.hosts[host].down.get_or_insert((now, error.to_string()));
                self.pause = Duration::from_secs(1);
                if kind == StepKind::Observe {
                    return;
                }
            }
        }
        let text = format!("{name}: {error}");
        let tries = self.tries.entry(kind).or_default();
        *tries += 1;
        let patient = match &error {
            OrderError::Refused(r) if r.kind == RefusalKind::ImageUnavailable => {
                let since = *self.pull_since.get_or_insert(now);
                self.pause = Duration::from_secs(1 << (*tries).min(4));
                now.saturating_sub(since) < self.knobs.pull
            }
            OrderError::Refused(r) if r.kind == RefusalKind::Deadline => *tries <= TRIES,
            // A host that says no to starting something means it; what only takes away is worth another try.
            OrderError::Refused(_) => {
                !matches!(kind, StepKind::Start | StepKind::Pull | StepKind::Prepare) && *tries <= TRIES
            }
            // Bounded by the patience with a host that is away; this bounds one that comes back only to lose us again.
            OrderError::Unreachable(_) | OrderError::Late => *tries <= 4 * TRIES,
        };
        if !patient {
            self.failure.get_or_insert((kind, text));
        } else if self.pause.is_zero() {
            self.pause = self.knobs.poll;
        }
    }

    /// Turns back, or ends.
    fn fail(&mut self, kind: StepKind, reason: String) -> Option<Next> {
        self.reasons.push(reason.clone());
        let taking_away = matches!(kind, StepKind::Stop | StepKind::Remove | StepKind::Finish);
        match self.direction {
            Direction::Back => Some(self.end(
                ExitCode::RollbackFailed,
                "the rollback failed too; what still answers was left as it is, see `keelway deploy status`",
            )),
            Direction::Forward if taking_away => {
                Some(self.end(ExitCode::Halted, "halted; deploy again to go on once the host is mended"))
            }
            Direction::Forward if self.goal.is_same() => Some(self.end(
                ExitCode::Halted,
                "this release is what was completed last, so there is nothing to go back to; see `keelway deploy status`",
            )),
            Direction::Forward if !self.changed && !self.target_stands() => {
                Some(self.end(ExitCode::Preflight, "refused before any replica was changed"))
            }
            Direction::Forward => {
                self.direction = Direction::Back;
                self.placement = None;
                self.fresh = false;
                self.awaited.clear();
                self.draining.clear();
                self.drained.clear();
                self.pulled.clear();
                self.pull_since = None;
                self.tries.clear();
                self.unsettled.clear();
                self.best = (0, 0);
                self.progress_at = None;
                self.complete_since = None;
                None
            }
        }
    }

    fn target_stands(&self) -> bool {
        self.world.spots().iter().any(|(_, id)| id.revision == self.goal.new.revision)
    }

    fn end(&mut self, exit: ExitCode, summary: &str) -> Next {
        let ended = Ended {
            exit,
            summary: summary.to_owned(),
            reasons: self.reasons.clone(),
            log: self.log.clone(),
            changed: self.changed,
            cut: self.cut,
        };
        self.ended = Some(ended.clone());
        Next::End(ended)
    }

    fn wait_for_hosts(&mut self, now: Duration) -> Option<Next> {
        let (name, since, why) = self
            .world
            .hosts
            .iter()
            .find_map(|h| h.down.as_ref().map(|d| (h.name.clone(), d.0, d.1.clone())))?;
        self.pause = Duration::ZERO;
        if now.saturating_sub(since) < self.knobs.patience {
            return Some(Next::Wait(Duration::from_secs(1)));
        }
        self.reasons.push(format!("{name} does not answer: {why}"));
        let summary = format!("halted, because {name} does not answer; mend it and deploy again to go on");
        let exit = if self.changed || self.target_stands() { ExitCode::Halted } else { ExitCode::Preflight };
        Some(self.end(exit, &summary))
    }

    fn wait_for_lease(&mut self, now: Duration) -> Option<Next> {
        let without = now.saturating_sub(self.lease_at.unwrap_or(now));
        if without < crate::lease::TTL {
            return None;
        }
        if without < self.knobs.lease {
            return Some(Next::Wait(Duration::from_millis(500)));
        }
        self.reasons.push("the lease could not be renewed on a majority of the hosts".into());
        Some(self.end(ExitCode::LeaseHeld, "stopped: without the lease nothing may be changed"))
    }

    fn fence(&self) -> Fence {
        Fence { app: self.goal.app.clone(), epoch: self.epoch, target: self.goal.new.revision }
    }

    fn send(&mut self, kind: StepKind, about: Option<Spot>, orders: Vec<(usize, Order)>) -> Next {
        let about_host = about.map(|a| a.0).or((orders.len() == 1).then(|| orders[0].0));
        let step = Step {
            kind,
            direction: self.direction,
            host: about_host.map(|h| self.world.hosts[h].name.clone()),
            replica: about.map(|a| a.1),
        };
        self.asked = Some((step.clone(), orders.iter().map(|o| o.0).collect()));
        let addressed = |(host, order): (usize, Order)| Addressed { host, deadline: deadline(&order), order };
        Next::Send(step, orders.into_iter().map(addressed).collect())
    }
}

/// How long a host has for an order.
pub fn deadline(order: &Order) -> Duration {
    let seconds = match order {
        Order::EnsureImage { .. } => 600,
        // A host unpacks the image, and starts once more what did not start.
        Order::EnsureReplica { .. } => 150,
        Order::Preflight(_) => 60,
        Order::EnsureApp { .. } | Order::RemoveReplica { .. } | Order::SetBackends { .. } => 30,
        Order::StopReplica { grace_ms, .. } => grace_ms / 1000 + 20,
        // The first order of a connection may have to start the host's supervisor.
        _ => 15,
    };
    Duration::from_secs(seconds)
}
