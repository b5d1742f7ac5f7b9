//! Deploying for real: connects the hosts, takes the lease, looks before it leaps, then drives the pure
//! [`crate::rollout::Machine`] over the [`Links`] to its hosts, with a journal line on the disk before each step.
//!
//! A cancellation ends the rollout between two steps, never inside one, and never turns it back: exit 11 where something
//! was changed (a later deploy goes on, a rollback goes back), 3 where nothing was. Killing the deployer is no worse,
//! since truth is on the hosts.
//!
//! Invariants: nothing is changed on any host before every host was reached, the lease is held by a majority and every
//! preflight is clean; a deploy of what runs already gives no order; the lease is given back at every end.

use crate::goal::{Direction, Goal, Numbered};
use crate::journal::{Entry, Journal, JournalError, Line};
use crate::lease;
use crate::links::{Links, ask, ask_within, connect, observe};
use crate::protocol::{
    AppReport, Check, Epoch, Finding, HostReport, LeaseClaim, Order, Preflight, RegistryAccess, Release,
    ReplicaSpec, Reply, Welcome,
};
use crate::rollout::{
    Addressed, Ended, HostView, Knobs, LeaseNews, Machine, Next, OrderError, Step, StepKind,
};
use crate::status::{HostStatus, rows};
use futures_util::future::join_all;
use keelway_model::ids::AppName;
use keelway_model::plan::DeployOp;
use keelway_model::{Bytes, Clock, ExitCode, Platform, PushedDigest};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

mod keeper;
#[cfg(test)]
pub(crate) mod tests;

/// What a deploy needs besides what it deploys.
#[derive(Clone)]
pub struct ApplySettings {
    /// Where the deployer keeps journals and its owner id, one directory an app below it.
    pub state_dir: PathBuf,
    /// For people: `user@machine pid 123`.
    pub who: String,
    /// How the hosts reach the registry.
    pub registry: RegistryAccess,
    /// Platform of the image.
    pub platform: Platform,
    /// Free space that each host must have.
    pub disk_needed: Bytes,
    /// Bounds of the rollout.
    pub knobs: Knobs,
    /// For records and journal.
    pub clock: Arc<dyn Clock>,
}

/// Free space that a deploy asks for where nothing better is known.
pub const DISK_NEEDED: Bytes = Bytes(512 << 20);

/// Something that happened, as it happens.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "deploy", rename_all = "kebab-case")]
pub enum DeployEvent {
    /// In words.
    Note {
        /// One line.
        text: String,
    },
    /// A step begins.
    Step {
        /// Which.
        step: Step,
        /// Replicas of the target that answer.
        ready: usize,
        /// Replicas that the target has.
        wanted: usize,
    },
}

impl DeployEvent {
    /// One line for people.
    pub fn text(&self) -> String {
        let Self::Step { step, ready, wanted } = self else {
            let Self::Note { text } = self else { return String::new() };
            return text.clone();
        };
        let back = if step.direction == Direction::Back { "back: " } else { "" };
        let what = match step.kind {
            StepKind::Observe => "look",
            StepKind::Pull => "pull the image",
            StepKind::Record => "write the release down",
            StepKind::Prepare => "prepare network and balancer",
            StepKind::Start => "start",
            StepKind::Add => "add to the balancers",
            StepKind::Drain => "drain",
            StepKind::Detach => "take out of the balancers",
            StepKind::Stop => "stop",
            StepKind::Remove => "remove",
            StepKind::Logs => "read the log of",
            StepKind::Finish => "write down how it ended",
        };
        let replica = step.replica.map(|r| format!(" {r}")).unwrap_or_default();
        let host = step.host.as_deref().map(|h| format!(" on {h}")).unwrap_or_default();
        format!("{back}{what}{replica}{host} ({ready} of {wanted} ready)")
    }
}

/// How a deploy ended.
#[derive(Debug, Clone, PartialEq)]
pub struct DeployEnd {
    /// 0, 3, 4 or 10 to 14.
    pub exit: ExitCode,
    /// One line for people.
    pub summary: String,
    /// What went wrong, in order, each with the next thing to do where there is one.
    pub reasons: Vec<String>,
    /// Last log lines of the replica that failed.
    pub log: Vec<String>,
    /// Whether anything was changed.
    pub changed: bool,
    /// Requests cut by the drain deadline.
    pub cut: u32,
    /// The hosts as last seen.
    pub hosts: Vec<HostStatus>,
}

impl DeployEnd {
    pub(crate) fn early(exit: ExitCode, summary: impl Into<String>, reasons: Vec<String>) -> Self {
        Self { exit, summary: summary.into(), reasons, log: vec![], changed: false, cut: 0, hosts: vec![] }
    }
    fn of(end: Ended, hosts: Vec<HostStatus>) -> Self {
        let Ended { exit, summary, reasons, log, changed, cut } = end;
        Self { exit, summary, reasons, log, changed, cut, hosts }
    }
}

/// Who hears of events.
pub type Emit<'a> = &'a (dyn Fn(DeployEvent) + Send + Sync);

/// Rolls `image` out as `op` says. `cancel` turning true ends it at the next safe point.
pub async fn apply(
    op: &DeployOp,
    image: &PushedDigest,
    links: &Links,
    settings: &ApplySettings,
    emit: Emit<'_>,
    cancel: watch::Receiver<bool>,
) -> DeployEnd {
    let spec = ReplicaSpec {
        image: image.clone(),
        port: op.port,
        env: op.env.clone(),
        health: op.health.clone(),
        stop_grace: op.stop_grace,
        limits: op.limits.clone(),
    };
    let release = Release { spec, replicas: op.replicas, drain: op.drain, listen: op.target.listen.clone() };
    deploy(&op.app, Wanted::Release(Box::new(release)), links, settings, emit, cancel).await
}

/// Goes back to the release that was completed before the current one (or, where a rollout was left half done, to the
/// one under it), as the hosts have it recorded.
pub async fn rollback(
    app: &AppName,
    links: &Links,
    settings: &ApplySettings,
    emit: Emit<'_>,
    cancel: watch::Receiver<bool>,
) -> DeployEnd {
    deploy(app, Wanted::Previous, links, settings, emit, cancel).await
}

enum Wanted {
    Release(Box<Release>),
    Previous,
}

async fn deploy(
    app: &AppName,
    wanted: Wanted,
    links: &Links,
    settings: &ApplySettings,
    emit: Emit<'_>,
    mut cancel: watch::Receiver<bool>,
) -> DeployEnd {
    if links.is_empty() {
        return DeployEnd::early(ExitCode::Preflight, "the target has no hosts", vec![]);
    }
    let mut journal = match Journal::open(&settings.state_dir, app, &settings.who) {
        Ok(journal) => journal,
        Err(busy @ JournalError::Busy { .. }) => {
            return DeployEnd::early(
                ExitCode::LeaseHeld,
                "another deploy is under way",
                vec![busy.to_string()],
            );
        }
        Err(e) => {
            return DeployEnd::early(ExitCode::Outside, "the journal cannot be written", vec![e.to_string()]);
        }
    };
    match journal.unfinished() {
        Ok(Some(line)) => {
            let text = format!(
                "an earlier deploy from this machine was cut short at {} (epoch {}); the hosts say where it stands",
                line.at, line.epoch
            );
            emit(DeployEvent::Note { text });
        }
        Ok(None) => {}
        Err(e) => {
            return DeployEnd::early(ExitCode::Outside, "the journal cannot be read", vec![e.to_string()]);
        }
    }
    let connected = tokio::select! {
        connected = connect(links) => connected,
        true = asked_to_end(&mut cancel) => {
            return DeployEnd::early(ExitCode::Cancelled, "interrupted before anything was changed", vec![]);
        }
    };
    let welcomes = match connected {
        Ok(welcomes) => welcomes,
        Err(errors) => {
            let reasons = errors.iter().map(ToString::to_string).collect();
            return DeployEnd::early(
                ExitCode::Preflight,
                "not every host can be used; nothing was changed",
                reasons,
            );
        }
    };
    let claim = LeaseClaim {
        app: app.clone(),
        owner: journal.owner().to_owned(),
        who: settings.who.clone(),
        epoch: Epoch(0),
        ttl_ms: u64::try_from(lease::TTL.as_millis()).unwrap_or(u64::MAX),
    };
    let (claim, held_since) = match keeper::acquire(links, claim, emit, &mut cancel).await {
        Ok(acquired) => acquired,
        Err(end) => return end,
    };
    let leased = Leased {
        app,
        links,
        welcomes: &welcomes,
        settings,
        emit,
        claim: &claim,
        began: held_since,
        cancel,
        journal: &mut journal,
    };
    let end = leased.run(wanted).await;
    keeper::release(links, &claim).await;
    let (exit, summary) = (end.exit.code(), end.summary.clone());
    let line = Line { at: settings.clock.now(), epoch: claim.epoch, entry: Entry::End { exit, summary } };
    if let Err(e) = journal.write(&line) {
        emit(DeployEvent::Note { text: format!("the end could not be written to the journal: {e}") });
    }
    end
}

/// A deploy that holds the lease, on hosts that were all reached.
struct Leased<'a> {
    app: &'a AppName,
    links: &'a Links,
    /// What each host said of itself, in the order of the links.
    welcomes: &'a [Welcome],
    settings: &'a ApplySettings,
    emit: Emit<'a>,
    claim: &'a LeaseClaim,
    /// When the lease was asked for: the zero of the machine's time.
    began: Instant,
    cancel: watch::Receiver<bool>,
    journal: &'a mut Journal,
}

impl Leased<'_> {
    async fn run(mut self, wanted: Wanted) -> DeployEnd {
        let keeper = keeper::Keeper::start(self.links, self.claim);
        let reports = match observe(self.app, self.links).await {
            Ok(reports) => reports,
            Err(reasons) => {
                return DeployEnd::early(
                    ExitCode::Preflight,
                    "a host went away; nothing was changed",
                    reasons,
                );
            }
        };
        let mut machine = match self.machine(wanted, &reports) {
            Ok(machine) => machine,
            Err(end) => return end,
        };
        machine.lease(Duration::ZERO, LeaseNews::Renewed);
        let (mut looked, mut told) = (false, 0);
        loop {
            if let Some((asked, news)) = keeper.news() {
                machine.lease(asked.saturating_duration_since(self.began), news);
            }
            if *self.cancel.borrow() {
                machine.cancel();
            }
            let next = machine.next(self.began.elapsed());
            for reason in machine.reasons().iter().skip(told) {
                self.note(reason.clone());
            }
            told = machine.reasons().len();
            match next {
                Next::End(end) => {
                    let hosts = rows(machine.hosts(), self.app);
                    return DeployEnd::of(end, hosts);
                }
                Next::Wait(by) => {
                    tokio::select! {
                        () = tokio::time::sleep(by) => {}
                        true = asked_to_end(&mut self.cancel) => {}
                    }
                }
                Next::Send(step, orders) => {
                    if step.kind.changes() {
                        if !looked {
                            looked = true;
                            if let Err(end) = self.look(&machine, step.direction).await {
                                return end;
                            }
                        }
                        let entry = Entry::Step(step.clone());
                        let line = Line { at: self.settings.clock.now(), epoch: self.claim.epoch, entry };
                        if let Err(e) = self.journal.write(&line) {
                            // No step without its line: this one is not sent, and the machine says where it ends.
                            machine.withhold(e.to_string());
                            continue;
                        }
                        let (ready, wanted) = machine.ready();
                        (self.emit)(DeployEvent::Step { step: step.clone(), ready, wanted });
                    }
                    let answers = self.send(step.kind, orders).await;
                    machine.answered(self.began.elapsed(), answers);
                }
            }
        }
    }

    /// The rollout from what the hosts report to what is wanted.
    fn machine(&self, wanted: Wanted, reports: &[HostReport]) -> Result<Machine, DeployEnd> {
        let app = self.app;
        let release = match wanted {
            Wanted::Release(release) => *release,
            Wanted::Previous => match crate::goal::previous(&crate::goal::merge_records(app, reports)) {
                Some(record) => record.release.clone(),
                None => {
                    let text =
                        format!("{app} has no earlier completed release on these hosts; nothing was changed");
                    return Err(DeployEnd::early(ExitCode::Preflight, text, vec![]));
                }
            },
        };
        let settings = self.settings;
        let goal = Goal::resolve(app, release, reports, settings.clock.now(), &settings.who);
        announce(&goal, self.emit);
        let views = self.links.iter().zip(self.welcomes).zip(reports).map(|((link, welcome), report)| {
            let own = report.apps.iter().find(|a| a.app == *app).cloned();
            let own = own.unwrap_or_else(|| AppReport::empty(app.clone()));
            HostView::new(link.name(), welcome.address, own)
        });
        let (knobs, registry) = (settings.knobs.clone(), settings.registry.clone());
        Ok(Machine::new(goal, knobs, registry, self.claim.epoch, views.collect()))
    }

    /// Looks before the first change, and writes down in the journal what begins.
    async fn look(&mut self, machine: &Machine, direction: Direction) -> Result<(), DeployEnd> {
        let findings = preflight(machine, self.links, self.welcomes, self.settings).await;
        if direction == Direction::Back {
            // Going back is not refused: what is half done is worse than a disk that is nearly full.
            findings.into_iter().for_each(|text| self.note(text));
        } else if !findings.is_empty() {
            let text = "refused by preflight; nothing was changed";
            return Err(DeployEnd::early(ExitCode::Preflight, text, findings));
        }
        let line = begin_line(machine, self.links, self.settings, self.claim);
        self.journal.begin(&line).map_err(|e| {
            DeployEnd::early(ExitCode::Outside, "the journal cannot be written", vec![e.to_string()])
        })
    }

    /// Sends the orders of a step side by side.
    async fn send(&mut self, kind: StepKind, orders: Vec<Addressed>) -> Vec<Result<Reply, OrderError>> {
        let asked = orders.len();
        let links = self.links;
        let answers = join_all(orders.into_iter().map(|o| ask_within(&links[o.host], o.order, o.deadline)));
        if kind != StepKind::Pull {
            return answers.await;
        }
        // The one step that is long and changes nothing that runs: not waited for.
        tokio::select! {
            answers = answers => answers,
            true = asked_to_end(&mut self.cancel) => vec![Err(OrderError::Late); asked],
        }
    }

    fn note(&self, text: String) {
        (self.emit)(DeployEvent::Note { text });
    }
}

/// Resolves to true once a cancellation came; never where nobody can send one any more.
pub(crate) async fn asked_to_end(cancel: &mut watch::Receiver<bool>) -> bool {
    if *cancel.borrow() {
        // It was seen already: the loop looks again soon enough.
        tokio::time::sleep(Duration::from_millis(50)).await;
        return true;
    }
    match cancel.changed().await {
        Ok(()) => *cancel.borrow(),
        Err(_) => std::future::pending().await,
    }
}

fn begin_line(machine: &Machine, links: &Links, settings: &ApplySettings, claim: &LeaseClaim) -> Line {
    let goal = machine.goal();
    let digest = |n: &Numbered| n.release.spec.image.digest();
    let entry = Entry::Begin {
        revision: goal.new.revision,
        image: digest(&goal.new),
        base: goal.base.as_ref().map(digest),
        hosts: links.iter().map(|l| l.name().to_owned()).collect(),
    };
    Line { at: settings.clock.now(), epoch: claim.epoch, entry }
}

fn announce(goal: &Goal, emit: Emit<'_>) {
    let image = goal.new.release.spec.image.digest();
    let text = match (goal.direction, goal.resumed) {
        (Direction::Back, _) => {
            format!("revision {} was being rolled back: going on with that", goal.new.revision)
        }
        (Direction::Forward, true) => {
            format!("revision {} ({image}) was left half done: going on with it", goal.new.revision)
        }
        (Direction::Forward, false) => {
            format!("revision {} is {image}, {} replicas", goal.new.revision, goal.new.release.replicas)
        }
    };
    emit(DeployEvent::Note { text });
}

/// What stands against the deploy, host by host, each with what mends it.
async fn preflight(
    machine: &Machine,
    links: &Links,
    welcomes: &[Welcome],
    settings: &ApplySettings,
) -> Vec<String> {
    let goal = machine.goal();
    let look = |host: &HostView| Preflight {
        app: goal.app.clone(),
        listen: goal.new.release.listen.clone(),
        disk_needed: settings.disk_needed,
        platform: settings.platform.clone(),
        // A rollback is proven possible before anything stops: where the base runs, its image must still be.
        keep: goal
            .base
            .iter()
            .filter(|b| host.report.replicas.iter().any(|r| r.replica.revision == b.revision))
            .map(|b| b.release.spec.image.digest())
            .collect(),
    };
    let mut found = Vec::new();
    let looks = links.iter().zip(machine.hosts()).map(|(link, host)| ask(link, Order::Preflight(look(host))));
    let answers = join_all(looks).await;
    for ((link, welcome), answer) in links.iter().zip(welcomes).zip(answers) {
        let mut findings = match answer {
            Ok(Reply::Preflight(report)) => report.findings,
            Ok(_) => vec![other("it answered something else")],
            Err(e) => vec![other(&e.to_string())],
        };
        if links.len() > 1 && welcome.address.is_none() {
            findings.push(Finding {
                what: Check::Address,
                problem: "the address under which the other hosts reach it is not known".into(),
                mend: "reach it by its network address, not by loopback, in your ssh configuration".into(),
            });
        }
        found.extend(findings.iter().map(|f| format!("{}: {}; {}", link.name(), f.problem, f.mend)));
    }
    found
}

fn other(problem: &str) -> Finding {
    Finding {
        what: Check::Other,
        problem: format!("preflight failed: {problem}"),
        mend: "look at it with `keelway deploy status`".into(),
    }
}
