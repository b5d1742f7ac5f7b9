//! The rollout against a simulated fleet: what it does, in which order, and that no fault breaks its invariants.

use super::fake::{Fate, Fleet, Image, app, release};
use super::*;
use crate::protocol::{Login, Release, ReleaseState, ReplicaState, Revision, WireSecret};
use keelway_model::PushedDigest;
use proptest::prelude::*;

/// How one deployer's life ended.
#[derive(Debug, PartialEq)]
enum Life {
    Ended(Ended),
    /// Killed before or in the middle of its `n`th changing step.
    Killed,
}

struct Deployer<'a> {
    fleet: &'a mut Fleet,
    fates: Vec<Fate>,
    /// Dies at this changing step, after so many of its orders were sent.
    kill: Option<(usize, usize)>,
    steps: Vec<Step>,
    epoch: u64,
    registry: RegistryAccess,
}

impl<'a> Deployer<'a> {
    fn new(fleet: &'a mut Fleet, epoch: u64) -> Self {
        let registry = RegistryAccess::default();
        Self { fleet, fates: vec![], kill: None, steps: vec![], epoch, registry }
    }
    fn machine(&self, release: Release) -> Machine {
        let goal = Goal::resolve(&app(), release, &self.fleet.reports(), Fleet::wall(), "test");
        let views = (0..self.fleet.hosts.len())
            .map(|h| {
                let report = self.fleet.report(h).apps.pop().unwrap_or_else(|| AppReport::empty(app()));
                HostView::new(format!("h{h}"), Some(Fleet::ip(h)), report)
            })
            .collect();
        Machine::new(goal, Knobs::default(), self.registry.clone(), Epoch(self.epoch), views)
    }
    fn deploy(&mut self, release: Release) -> Life {
        let mut machine = self.machine(release);
        self.fleet.floor = machine.goal().floor() as usize;
        self.run(&mut machine)
    }
    fn run(&mut self, machine: &mut Machine) -> Life {
        let mut changing = 0;
        for _ in 0..60_000 {
            machine.lease(self.fleet.now, LeaseNews::Renewed);
            match machine.next(self.fleet.now) {
                Next::End(end) => return Life::Ended(end),
                Next::Wait(by) => {
                    assert!(by > Duration::ZERO);
                    self.fleet.advance(by);
                }
                Next::Send(step, orders) => {
                    let mut answers = Vec::new();
                    let dies_here = step.kind.changes() && self.kill.is_some_and(|(at, _)| at == changing);
                    changing += usize::from(step.kind.changes());
                    for (n, a) in orders.iter().enumerate() {
                        if dies_here && self.kill.is_some_and(|(_, sent)| n >= sent) {
                            return Life::Killed;
                        }
                        let fate = if step.kind.changes() || self.fates.len().is_multiple_of(3) {
                            self.fates.pop()
                        } else {
                            None
                        };
                        let answer = self.fleet.call(a.host, &a.order, fate.unwrap_or(Fate::Through));
                        answers.push(answer);
                    }
                    if dies_here {
                        return Life::Killed;
                    }
                    self.steps.push(step);
                    self.fleet.advance(Duration::from_millis(20));
                    machine.answered(self.fleet.now, answers);
                }
            }
        }
        panic!("no end after 60000 steps; last: {:?}", &self.steps[self.steps.len().saturating_sub(10)..]);
    }
}

fn exit(life: &Life) -> ExitCode {
    match life {
        Life::Ended(e) => e.exit,
        Life::Killed => panic!("killed"),
    }
}

/// A fleet on which `old` runs.
fn fleet(hosts: usize, replicas: u32) -> Fleet {
    let mut fleet = Fleet::new(hosts);
    assert_eq!(exit(&Deployer::new(&mut fleet, 1).deploy(release("old", replicas))), ExitCode::Done);
    assert_runs(&fleet, 1, replicas);
    fleet
}

fn assert_runs(fleet: &Fleet, revision: u64, replicas: u32) {
    let standing = fleet.standing();
    assert_eq!(standing.len(), replicas as usize, "{standing:?}");
    assert!(
        standing.iter().all(|s| s.1.revision == Revision(revision) && s.2 == ReplicaState::Healthy),
        "{standing:?}"
    );
    assert_eq!(fleet.available(), replicas as usize);
    assert!(fleet.hosts.iter().all(|h| h.balancer.len() == replicas as usize));
    assert_eq!(fleet.broken, Vec::<String>::new());
}

#[test]
fn first_deploy_then_update_then_nothing_to_do() {
    let mut fleet = fleet(3, 4);
    let per_host: Vec<usize> = fleet.hosts.iter().map(|h| h.replicas.len()).collect();
    assert_eq!(per_host, [2, 1, 1]);
    let mut deployer = Deployer::new(&mut fleet, 2);
    assert_eq!(exit(&deployer.deploy(release("new", 4))), ExitCode::Done);
    // Host after host, one replica at a time, and each old one only after the new one beside it was added.
    let order: Vec<(StepKind, String)> = deployer
        .steps
        .iter()
        .filter(|s| matches!(s.kind, StepKind::Start | StepKind::Add | StepKind::Drain | StepKind::Stop))
        .map(|s| (s.kind, s.host.clone().unwrap_or_default()))
        .collect();
    let kinds: Vec<StepKind> = order.iter().map(|o| o.0).collect();
    assert_eq!(kinds, [StepKind::Start, StepKind::Add, StepKind::Drain, StepKind::Stop].repeat(4));
    let hosts: Vec<&str> = order.iter().map(|o| o.1.as_str()).collect();
    assert_eq!(hosts, [vec!["h0"; 8], vec!["h1"; 4], vec!["h2"; 4]].concat());
    assert_runs(&fleet, 2, 4);
    assert_eq!(fleet.states(2), vec![Some(ReleaseState::Completed); 3]);
    let before = fleet.done.len();
    let again = Deployer::new(&mut fleet, 3).deploy(release("new", 4));
    assert!(
        matches!(again, Life::Ended(e) if e.exit == ExitCode::Done && !e.changed && e.summary.starts_with("nothing to do"))
    );
    assert_eq!(fleet.done.len(), before, "a deploy of what runs gives no order");
}

#[test]
fn a_release_that_does_not_work_goes_back_by_itself() {
    for bad in [Image::NeverReady, Image::Exits, Image::Dies(Duration::from_millis(2600))] {
        let mut fleet = fleet(3, 3);
        fleet.behaves("new", bad);
        let life = Deployer::new(&mut fleet, 2).deploy(release("new", 3));
        let Life::Ended(end) = life else { panic!() };
        assert_eq!(end.exit, ExitCode::RolledBack, "{end:?}");
        assert!(!end.reasons.is_empty() && end.log == ["last line of r2-0"], "{end:?}");
        assert_runs(&fleet, 1, 3);
        assert_eq!(fleet.states(2), vec![Some(ReleaseState::RolledBack); 3]);
        // What is begun again is a new revision.
        fleet.behaves("new", Image::Good);
        assert_eq!(exit(&Deployer::new(&mut fleet, 3).deploy(release("new", 3))), ExitCode::Done);
        assert_runs(&fleet, 3, 3);
    }
}

#[test]
fn a_login_goes_to_no_other_registry_on_the_way_back() {
    let mut fleet = fleet(2, 3);
    let mut bad = release("new", 3);
    let moved = "moved.example.com/web".parse().unwrap();
    bad.spec.image = PushedDigest::attested_by_registry(moved, bad.spec.image.digest());
    // It lives until the old release is gone from a host, which then pulls that again.
    fleet.behaves("new", Image::Dies(Duration::from_millis(6000)));
    let mut deployer = Deployer::new(&mut fleet, 2);
    let login = Login { user: "u".into(), password: WireSecret("secret".to_owned().into()) };
    deployer.registry = RegistryAccess {
        registry: "moved.example.com".into(),
        login: Some(login),
        ..RegistryAccess::default()
    };
    assert_eq!(exit(&deployer.deploy(bad)), ExitCode::RolledBack);
    let pulls: Vec<_> = fleet.hosts.iter().flat_map(|h| &h.pulls).collect();
    let of = |registry: &str| {
        let pulls = pulls.iter().filter(|p| p.0.repository().registry() == registry);
        pulls.map(|p| p.1.login.is_some()).collect::<Vec<bool>>()
    };
    assert_eq!(of("moved.example.com"), [true; 2]);
    // Two for the release of before, and one at least for the way back.
    let old = of("r.example.com");
    assert!(old.len() > 2 && !old.contains(&true), "{old:?}");
}

#[test]
fn the_health_deadline_is_kept() {
    let mut fleet = fleet(2, 2);
    fleet.behaves("new", Image::NeverReady);
    let began = fleet.now;
    assert_eq!(exit(&Deployer::new(&mut fleet, 2).deploy(release("new", 2))), ExitCode::RolledBack);
    let took = fleet.now - began;
    assert!(took > Duration::from_secs(20) && took < Duration::from_secs(22), "{took:?}");
}

#[test]
fn a_first_deploy_that_fails_leaves_nothing() {
    let mut fleet = Fleet::new(2);
    fleet.behaves("new", Image::Exits);
    assert_eq!(exit(&Deployer::new(&mut fleet, 1).deploy(release("new", 2))), ExitCode::RolledBack);
    assert_eq!(fleet.standing(), []);
}

#[test]
fn a_rollback_that_fails_is_an_end() {
    let mut fleet = fleet(1, 2);
    fleet.behaves("new", Image::Dies(Duration::from_secs(4)));
    fleet.behaves("old", Image::NeverReady);
    // The old ones stand as healthy until they are started anew.
    fleet.advance(Duration::from_millis(1));
    let Life::Ended(end) = Deployer::new(&mut fleet, 2).deploy(release("new", 2)) else { panic!() };
    assert_eq!(end.exit, ExitCode::RollbackFailed);
    assert!(end.reasons.len() >= 2, "both errors are shown: {:?}", end.reasons);
}

#[test]
fn scaling_keeps_the_replicas_that_stand() {
    let mut fleet = fleet(2, 4);
    assert_eq!(exit(&Deployer::new(&mut fleet, 2).deploy(release("old", 6))), ExitCode::Done);
    assert_runs(&fleet, 1, 6);
    assert_eq!(exit(&Deployer::new(&mut fleet, 3).deploy(release("old", 2))), ExitCode::Done);
    assert_runs(&fleet, 1, 2);
    assert!(fleet.starts.values().all(|n| *n == 1), "{:?}", fleet.starts);
}

#[test]
fn a_host_that_is_away_halts_and_a_later_deploy_goes_on() {
    let mut fleet = fleet(3, 3);
    let mut deployer = Deployer::new(&mut fleet, 2);
    deployer.kill = Some((6, 0));
    assert_eq!(deployer.deploy(release("new", 3)), Life::Killed);
    fleet.hosts[2].down = true;
    let mut deployer = Deployer::new(&mut fleet, 3);
    let Life::Ended(end) = deployer.deploy(release("new", 3)) else { panic!() };
    assert_eq!(end.exit, ExitCode::Halted);
    assert!(end.summary.contains("h2"), "{}", end.summary);
    fleet.hosts[2].down = false;
    assert_eq!(exit(&Deployer::new(&mut fleet, 4).deploy(release("new", 3))), ExitCode::Done);
    assert_runs(&fleet, 2, 3);
}

#[test]
fn a_drain_that_does_not_end_is_cut_at_its_deadline_and_counted() {
    let mut fleet = fleet(1, 1);
    fleet.stuck = true;
    let began = fleet.now;
    let Life::Ended(end) = Deployer::new(&mut fleet, 2).deploy(release("new", 1)) else { panic!() };
    assert_eq!((end.exit, end.cut), (ExitCode::Done, 3));
    assert!(fleet.now - began >= Duration::from_secs(5));
}

#[test]
fn a_later_epoch_stops_everything_at_once() {
    let mut fleet = fleet(3, 3);
    let mut deployer = Deployer::new(&mut fleet, 2);
    let mut machine = deployer.machine(release("new", 3));
    deployer.fleet.hosts[1].lease.highest = Epoch(9);
    let life = deployer.run(&mut machine);
    assert_eq!(exit(&life), ExitCode::LeaseHeld);
    let mut machine = deployer.machine(release("new", 3));
    machine.lease(deployer.fleet.now, LeaseNews::Lost("bob".into()));
    assert!(matches!(machine.next(deployer.fleet.now), Next::End(e) if e.exit == ExitCode::LeaseHeld));
}

#[test]
fn without_a_lease_nothing_is_changed() {
    let mut fleet = fleet(1, 1);
    let mut machine = Deployer::new(&mut fleet, 2).machine(release("new", 1));
    machine.lease(Duration::ZERO, LeaseNews::Renewed);
    let mut now = crate::lease::TTL;
    for _ in 0..10_000 {
        match machine.next(now) {
            Next::Wait(by) => now += by,
            Next::Send(step, orders) => {
                assert!(!step.kind.changes());
                machine.answered(
                    now,
                    orders.iter().map(|o| fleet.call(o.host, &o.order, Fate::Through)).collect(),
                );
            }
            Next::End(end) => return assert_eq!(end.exit, ExitCode::LeaseHeld),
        }
    }
    panic!("no end");
}

#[test]
fn an_image_that_cannot_be_pulled_changes_nothing() {
    for kind in [RefusalKind::ImageDenied, RefusalKind::ImageUnavailable, RefusalKind::DiskFull] {
        let mut fleet = fleet(2, 2);
        let began = fleet.now;
        let deployer = Deployer::new(&mut fleet, 2);
        let mut machine = deployer.machine(release("new", 2));
        let end = loop {
            match machine.next(deployer.fleet.now) {
                Next::End(end) => break end,
                Next::Wait(by) => deployer.fleet.advance(by),
                Next::Send(step, orders) => {
                    let fate = if step.kind == StepKind::Pull { Fate::Refused(kind) } else { Fate::Through };
                    let answers =
                        orders.iter().map(|o| deployer.fleet.call(o.host, &o.order, fate)).collect();
                    machine.answered(deployer.fleet.now, answers);
                    machine.lease(deployer.fleet.now, LeaseNews::Renewed);
                }
            }
        };
        assert_eq!(end.exit, ExitCode::Preflight, "{kind:?}");
        let took = fleet.now - began;
        let patient = kind == RefusalKind::ImageUnavailable;
        assert_eq!(took >= Duration::from_secs(300), patient, "{kind:?} took {took:?}");
        assert_runs(&fleet, 1, 2);
    }
}

#[test]
fn an_interruption_is_a_halt_that_can_be_gone_on_with() {
    let mut fleet = fleet(2, 2);
    let mut deployer = Deployer::new(&mut fleet, 2);
    let mut machine = deployer.machine(release("new", 2));
    machine.cancel();
    assert_eq!(exit(&deployer.run(&mut machine)), ExitCode::Cancelled);
    assert_runs(&fleet, 1, 2);
}

/// Kills the deployer before, in the middle of and after the orders of every changing step, then deploys again: the
/// end is the one that no kill gives, and nothing was started twice.
fn killed_everywhere(make: impl Fn() -> Fleet, want: ExitCode, revision: u64, replicas: u32) {
    let mut fleet = make();
    let mut whole = Deployer::new(&mut fleet, 2);
    assert_eq!(exit(&whole.deploy(release("new", replicas))), want);
    let steps = whole.steps.iter().filter(|s| s.kind.changes()).count();
    assert!(steps > 8);
    for at in 0..steps {
        for sent in 0..=2 {
            let mut fleet = make();
            let mut first = Deployer::new(&mut fleet, 2);
            first.kill = Some((at, sent));
            assert_eq!(first.deploy(release("new", replicas)), Life::Killed);
            fleet.advance(Duration::from_secs(20));
            let life = Deployer::new(&mut fleet, 3).deploy(release("new", replicas));
            let Life::Ended(end) = life else { panic!() };
            let late = at + 1 == steps && want != ExitCode::Done;
            assert!(end.exit == want || late, "killed at {at} after {sent}: {end:?}");
            assert_runs(&fleet, revision, replicas);
            let twice: Vec<_> = fleet.starts.iter().filter(|s| *s.1 > 1).collect();
            assert!(twice.is_empty() || want != ExitCode::Done, "killed at {at} after {sent}: {twice:?}");
        }
    }
}

#[test]
fn a_rollback_that_was_cut_short_is_gone_on_with() {
    let mut fleet = fleet(2, 3);
    fleet.behaves("new", Image::Exits);
    let mut first = Deployer::new(&mut fleet, 2);
    first.kill = Some((5, 2));
    assert_eq!(first.deploy(release("new", 3)), Life::Killed);
    assert_eq!(first.steps.last().map(|s| s.direction), Some(Direction::Back));
    assert_eq!(fleet.states(2), vec![Some(ReleaseState::RollingBack); 2]);
    // The image would work now; but the rollback was begun, and is what is finished.
    fleet.behaves("new", Image::Good);
    let mut second = Deployer::new(&mut fleet, 3);
    let Life::Ended(end) = second.deploy(release("new", 3)) else { panic!() };
    assert_eq!(end.exit, ExitCode::RolledBack, "{end:?}");
    assert!(second.steps.iter().all(|s| s.direction == Direction::Back));
    assert_runs(&fleet, 1, 3);
}

#[test]
fn killed_at_every_step_of_an_update() {
    killed_everywhere(|| fleet(3, 4), ExitCode::Done, 2, 4);
}

#[test]
fn killed_at_every_step_of_a_rollback() {
    let make = || {
        let mut fleet = fleet(2, 3);
        fleet.behaves("new", Image::Dies(Duration::from_millis(6000)));
        fleet
    };
    killed_everywhere(make, ExitCode::RolledBack, 1, 3);
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        12 => Just(Fate::Through),
        1 => Just(Fate::Lost),
        1 => Just(Fate::AnswerLost),
        1 => Just(Fate::Refused(RefusalKind::Deadline)),
        1 => Just(Fate::Refused(RefusalKind::Failed)),
    ]
}
fn behaviour() -> impl Strategy<Value = Image> {
    prop_oneof![
        3 => Just(Image::Good),
        1 => Just(Image::NeverReady),
        1 => Just(Image::Exits),
        2 => (1600u64..30_000).prop_map(|ms| Image::Dies(Duration::from_millis(ms))),
    ]
}

/// One way in which things go wrong.
struct Case {
    hosts: usize,
    old: u32,
    new: u32,
    image: Image,
    /// Of each changing order, the last one first.
    fates: Vec<Fate>,
    kills: Vec<(usize, usize)>,
    /// After each killed deployer, in milliseconds.
    pause: u64,
}

impl Case {
    fn run(self) -> Result<(), TestCaseError> {
        let mut fleet = fleet(self.hosts, self.old);
        fleet.behaves("new", self.image);
        let mut epoch = 2;
        for kill in self.kills {
            let mut deployer = Deployer::new(&mut fleet, epoch);
            deployer.kill = Some(kill);
            deployer.fates = self.fates.clone();
            let _ = deployer.deploy(release("new", self.new));
            fleet.advance(Duration::from_millis(self.pause));
            epoch += 1;
        }
        let mut deployer = Deployer::new(&mut fleet, epoch);
        deployer.fates = self.fates;
        let life = deployer.deploy(release("new", self.new));
        let known = matches!(
            exit(&life),
            ExitCode::Done
                | ExitCode::RolledBack
                | ExitCode::Halted
                | ExitCode::RollbackFailed
                | ExitCode::Preflight
        );
        prop_assert!(known, "{life:?}");
        prop_assert_eq!(&fleet.broken, &Vec::<String>::new());
        let revisions: std::collections::BTreeSet<_> =
            fleet.standing().iter().map(|s| s.1.revision).collect();
        if matches!(exit(&life), ExitCode::Done | ExitCode::RolledBack) {
            prop_assert!(revisions.len() <= 1, "one release at the end: {:?}", fleet.standing());
        }
        let mended = Deployer::new(&mut fleet, epoch + 1).deploy(release("mend", self.new));
        prop_assert_eq!(exit(&mended), ExitCode::Done, "{:?}", mended);
        let last = fleet.standing()[0].1.revision.0;
        assert_runs(&fleet, last, self.new);
        Ok(())
    }
}

/// Seen healthy, and dead by the time that the balancers are told: what the deployer cannot know is no fault of its.
#[test]
fn a_replica_may_die_between_the_look_and_the_order() {
    let mut fates = vec![Fate::Through; 29];
    fates.extend([Fate::Lost, Fate::Refused(RefusalKind::Deadline), Fate::Through, Fate::AnswerLost]);
    fates.extend([Fate::Through; 2]);
    let image = Image::Dies(Duration::from_millis(2600));
    Case { hosts: 2, old: 1, new: 1, image, fates, kills: vec![], pause: 0 }.run().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    /// Whatever the links lose, the hosts refuse and the new image does, and wherever deployers are killed: there is
    /// an end, no invariant breaks on the way, and a later deploy of a good image makes all of it whole.
    #[test]
    fn whatever_happens_there_is_an_end(
        hosts in 1usize..5,
        old in 1u32..6,
        new in 1u32..6,
        image in behaviour(),
        fates in proptest::collection::vec(fate(), 0..60),
        kills in proptest::collection::vec((0usize..30, 0usize..3), 0..3),
        pause in 0u64..30_000,
    ) {
        Case { hosts, old, new, image, fates, kills, pause }.run()?;
    }
}
