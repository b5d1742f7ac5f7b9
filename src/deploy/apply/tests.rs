//! Whole deploys over simulated hosts, on a paused clock.

use super::*;
use crate::journal::parse;
use crate::lease::Holder;
use crate::link::{ConnectError, HostLink};
use crate::protocol::{Check, ReplicaState, VERSION};
use crate::rollout::fake::{Fate, Fleet, Image, app, image, release};
use crate::status::{render, status};
use async_trait::async_trait;
use keelway_model::clock::FixedClock;
use keelway_model::ids::NodeId;
use keelway_model::plan::{Target, TargetHost};
use std::sync::Mutex;

pub(crate) type Shared = Arc<Mutex<Fleet>>;

/// A link to a simulated host; tokio's paused clock is the fleet's.
struct FakeLink {
    name: String,
    host: usize,
    fleet: Shared,
    began: Instant,
}

#[async_trait]
impl HostLink for FakeLink {
    fn name(&self) -> &str {
        &self.name
    }
    async fn connect(&self) -> Result<Welcome, ConnectError> {
        if self.fleet.lock().unwrap().hosts[self.host].down {
            return Err(ConnectError::Unreachable {
                host: self.name.clone(),
                said: "Connection refused".into(),
            });
        }
        Ok(Welcome {
            version: VERSION,
            keelway: "0".into(),
            hostname: self.name.clone(),
            kernel: "6.1".into(),
            platform: Platform::host(),
            root: true,
            address: Some(Fleet::ip(self.host)),
            boot_id: "boot".into(),
        })
    }
    async fn call(&self, order: Order, _deadline: Duration) -> Result<Reply, OrderError> {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let mut fleet = self.fleet.lock().unwrap();
        let now = self.began.elapsed() + Duration::from_secs(1000);
        let by = now.saturating_sub(fleet.now);
        fleet.advance(by);
        fleet.call(self.host, &order, Fate::Through)
    }
}

struct Rig {
    fleet: Shared,
    links: Vec<Arc<dyn HostLink>>,
    dir: tempfile::TempDir,
    events: Mutex<Vec<String>>,
    cancel: watch::Sender<bool>,
}

impl Rig {
    fn new(hosts: usize) -> Self {
        let fleet = Arc::new(Mutex::new(Fleet::new(hosts)));
        let began = Instant::now();
        let link = |host| {
            Arc::new(FakeLink { name: format!("root@h{host}"), host, fleet: fleet.clone(), began })
                as Arc<dyn HostLink>
        };
        let links = (0..hosts).map(link).collect();
        Self {
            links,
            fleet,
            dir: tempfile::tempdir().unwrap(),
            events: Mutex::default(),
            cancel: watch::channel(false).0,
        }
    }
    fn settings(&self, state: &str) -> ApplySettings {
        ApplySettings {
            state_dir: self.dir.path().join(state),
            who: state.into(),
            registry: RegistryAccess::default(),
            platform: Platform::host(),
            disk_needed: DISK_NEEDED,
            knobs: Knobs::default(),
            clock: Arc::new(FixedClock(Fleet::wall())),
        }
    }
    async fn apply_as(&self, state: &str, name: &str) -> DeployEnd {
        let release = release(name, 3);
        let hosts = self.links.iter().map(|l| TargetHost { ssh: l.name().into() }).collect();
        let op = DeployOp {
            image: NodeId(0),
            app: app(),
            target_name: "prod".into(),
            target: Target { hosts, ssh_config: None, listen: release.listen },
            replicas: release.replicas,
            port: release.spec.port,
            env: vec![],
            health: release.spec.health,
            drain: release.drain,
            stop_grace: release.spec.stop_grace,
            limits: Default::default(),
        };
        self.fleet.lock().unwrap().floor = 0;
        let emit = |e: DeployEvent| self.events.lock().unwrap().push(e.text());
        apply(&op, &image(name), &self.links, &self.settings(state), &emit, self.cancel.subscribe()).await
    }
    async fn apply(&self, name: &str) -> DeployEnd {
        self.apply_as("me", name).await
    }
    fn fleet(&self) -> std::sync::MutexGuard<'_, Fleet> {
        self.fleet.lock().unwrap()
    }
    fn runs(&self, name: &str) {
        let fleet = self.fleet();
        assert_eq!(fleet.available(), 3);
        let all: Vec<_> = fleet.hosts.iter().flat_map(|h| h.replicas.values()).collect();
        assert!(
            all.len() == 3 && all.iter().all(|r| r.0.spec.image == image(name)),
            "{:?}",
            fleet.standing()
        );
        assert_eq!(fleet.broken, Vec::<String>::new());
        // A host that did not take part in our majority may still hold a dead deploy's.
        let given_back = |h: &&Holder| h.owner == "bob";
        let holders: Vec<_> = fleet.hosts.iter().filter_map(|h| h.lease.holder.as_ref()).collect();
        assert!(holders.iter().all(given_back), "the lease is given back: {holders:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deploy_an_update_and_a_rollback_from_another_machine() {
    let rig = Rig::new(3);
    assert_eq!(rig.apply("old").await.exit, ExitCode::Done);
    rig.runs("old");
    let end = rig.apply("new").await;
    assert_eq!((end.exit, end.changed), (ExitCode::Done, true), "{end:?}");
    rig.runs("new");
    // Each step was in the journal, and the end is.
    let dir = rig.dir.path().join("me/web");
    let text = std::fs::read(dir.join(format!("{:020}.jsonl", 2))).unwrap();
    let lines = parse(&text);
    assert!(matches!(lines[0].entry, Entry::Begin { .. }));
    assert!(matches!(lines.last().unwrap().entry, Entry::End { exit: 0, .. }));
    assert_eq!(
        lines.iter().filter(|l| matches!(&l.entry, Entry::Step(s) if s.kind == StepKind::Start)).count(),
        3
    );
    // Nothing to do is seen before anything else is asked for.
    let end = rig.apply("new").await;
    assert_eq!((end.exit, end.changed), (ExitCode::Done, false), "{end:?}");
    let emit = |_| {};
    let end = rollback(&app(), &rig.links, &rig.settings("another"), &emit, rig.cancel.subscribe()).await;
    assert_eq!(end.exit, ExitCode::Done, "{end:?}");
    rig.runs("old");
    let table = render(&status(Some(&app()), &rig.links).await);
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[0].starts_with("HOST") && lines[1].contains("r3-0") && lines[1].contains("healthy"),
        "{table}"
    );
    assert!(table.contains("balancer runs on :80, 3 of 3 backends usable; revision 3 completed"), "{table}");
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_before_is_13_and_changes_nothing() {
    let rig = Rig::new(3);
    assert_eq!(rig.apply("old").await.exit, ExitCode::Done);
    let done = rig.fleet().done.len();
    rig.fleet().hosts[1].findings =
        vec![Finding { what: Check::Disk, problem: "3 MiB free".into(), mend: "rm -r /tmp/x".into() }];
    let end = rig.apply("new").await;
    assert_eq!(end.exit, ExitCode::Preflight);
    assert_eq!(end.reasons, ["root@h1: 3 MiB free; rm -r /tmp/x"]);
    rig.fleet().hosts[1].findings.clear();
    rig.fleet().hosts[2].down = true;
    let end = rig.apply("new").await;
    assert!(
        end.exit == ExitCode::Preflight && end.reasons[0].contains("root@h2: cannot be reached"),
        "{end:?}"
    );
    let hosts = status(None, &rig.links).await;
    assert!(hosts[2].unreachable.is_some() && render(&hosts).contains("unreachable"));
    assert_eq!(rig.fleet().done.len(), done);
    let emit = |_| {};
    let none = rollback(&app(), &rig.links[..2], &rig.settings("me"), &emit, rig.cancel.subscribe()).await;
    assert_eq!(none.exit, ExitCode::Preflight, "there is nothing to go back to: {none:?}");
}

#[tokio::test(start_paused = true)]
async fn a_living_owner_is_12_and_a_dead_one_is_waited_out() {
    let rig = Rig::new(3);
    assert_eq!(rig.apply("old").await.exit, ExitCode::Done);
    let held = |owner: &str, epoch| LeaseClaim {
        app: app(),
        owner: owner.into(),
        who: "bob@laptop".into(),
        epoch: Epoch(epoch),
        ttl_ms: 15_000,
    };
    // Two of three are enough for bob, and one is not enough for us.
    for host in 0..2 {
        rig.links[host].call(Order::AcquireLease(held("bob", 50)), Duration::from_secs(1)).await.unwrap();
    }
    let renewing = async {
        loop {
            tokio::time::sleep(lease::RENEW).await;
            for link in &rig.links[..2] {
                link.call(Order::RenewLease(held("bob", 50)), Duration::from_secs(1)).await.unwrap();
            }
        }
    };
    let began = Instant::now();
    let end = tokio::select! { end = rig.apply("new") => end, () = renewing => unreachable!() };
    assert_eq!(end.exit, ExitCode::LeaseHeld);
    assert!(end.reasons[0].contains("bob@laptop") && end.reasons[0].contains("since"), "{end:?}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    // Bob was killed.
    let end = rig.apply("new").await;
    assert_eq!(end.exit, ExitCode::Done, "{end:?}");
    rig.runs("new");
}

#[tokio::test(start_paused = true)]
async fn of_two_at_once_one_wins_and_the_other_is_refused() {
    for round in 0..20 {
        let rig = Rig::new(3);
        assert_eq!(rig.apply("old").await.exit, ExitCode::Done);
        let late = async {
            tokio::time::sleep(Duration::from_millis(round * 7)).await;
            rig.apply_as("two", "b").await
        };
        let (a, b) = tokio::join!(rig.apply_as("one", "a"), late);
        let loser = if a.exit == ExitCode::Done { &b } else { &a };
        assert!(!loser.changed, "{loser:?}");
        match (a.exit, b.exit) {
            (ExitCode::Done, ExitCode::LeaseHeld) => rig.runs("a"),
            (ExitCode::LeaseHeld, ExitCode::Done) => rig.runs("b"),
            _ => panic!("{a:?} {b:?}"),
        }
    }
    let rig = Rig::new(1);
    let (a, b) = tokio::join!(rig.apply("a"), rig.apply("b"));
    assert_eq!((a.exit, b.exit), (ExitCode::Done, ExitCode::LeaseHeld), "the lock of the state directory");
}

#[tokio::test(start_paused = true)]
async fn a_link_that_is_gone_for_20_seconds_is_survived() {
    let rig = Rig::new(3);
    assert_eq!(rig.apply("old").await.exit, ExitCode::Done);
    let cut = async {
        while !rig.fleet().starts.keys().any(|id| id.revision.0 == 2 && id.slot == 1) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        rig.fleet().hosts[1].down = true;
        tokio::time::sleep(Duration::from_secs(20)).await;
        rig.fleet().hosts[1].down = false;
    };
    let (end, ()) = tokio::join!(rig.apply("new"), cut);
    assert_eq!(end.exit, ExitCode::Done, "{end:?}");
    rig.runs("new");
    assert!(rig.fleet().starts.values().all(|n| *n == 1), "nothing was started twice");
}

#[tokio::test(start_paused = true)]
async fn a_host_that_stays_away_halts_naming_it() {
    let rig = Rig::new(3);
    assert_eq!(rig.apply("old").await.exit, ExitCode::Done);
    let cut = async {
        while !rig.fleet().starts.keys().any(|id| id.revision.0 == 2 && id.slot == 1) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        rig.fleet().hosts[2].down = true;
    };
    let (end, ()) = tokio::join!(rig.apply("new"), cut);
    assert!(end.exit == ExitCode::Halted && end.summary.contains("root@h2"), "{end:?}");
    assert!(end.hosts[2].unreachable.is_some());
    rig.fleet().hosts[2].down = false;
    assert_eq!(rig.apply("new").await.exit, ExitCode::Done);
    rig.runs("new");
    assert!(rig.fleet().starts.values().all(|n| *n == 1));
}

#[tokio::test(start_paused = true)]
async fn an_interruption_halts_between_two_steps() {
    let rig = Rig::new(2);
    assert_eq!(rig.apply("old").await.exit, ExitCode::Done);
    let interrupt = async {
        while !rig.fleet().standing().iter().any(|s| s.1.revision.0 == 2 && s.2 == ReplicaState::Healthy) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        rig.cancel.send_replace(true);
    };
    let (end, ()) = tokio::join!(rig.apply("new"), interrupt);
    assert_eq!(end.exit, ExitCode::Halted, "{end:?}");
    assert!(rig.fleet().available() >= 3);
    // Back is possible from there, by the records on the hosts.
    rig.cancel.send_replace(false);
    let emit = |_| {};
    let end = rollback(&app(), &rig.links, &rig.settings("me"), &emit, rig.cancel.subscribe()).await;
    assert_eq!(end.exit, ExitCode::Done, "{end:?}");
    rig.runs("old");
    assert!(
        rig.fleet().starts.iter().all(|(id, n)| *n == 1 && (id.revision.0 == 1 || id.slot == 0)),
        "{:?}",
        rig.fleet().starts
    );
}

#[tokio::test(start_paused = true)]
async fn a_bad_release_comes_back_with_its_log() {
    let rig = Rig::new(3);
    assert_eq!(rig.apply("old").await.exit, ExitCode::Done);
    rig.fleet().behaves("new", Image::Exits);
    let end = rig.apply("new").await;
    assert_eq!(end.exit, ExitCode::RolledBack);
    assert_eq!(end.log, ["last line of r2-0"]);
    assert!(end.reasons[0].contains("r2-0 did not stay up: exit code 1"), "{end:?}");
    rig.runs("old");
    let events = rig.events.lock().unwrap().join("\n");
    assert!(
        events.contains("start r2-0 on root@h0 (0 of 3 ready)") && events.contains("back: stop r2-0"),
        "{events}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_step_that_the_journal_cannot_take_is_not_given_to_any_host() {
    use crate::journal::fault;
    let rig = Rig::new(2);
    assert_eq!(rig.apply("old").await.exit, ExitCode::Done);
    let before = rig.fleet().done.len();
    let steps = |from: usize| rig.fleet().done[from..].to_vec();
    // The line that begins the journal is written, the first step's is not.
    fault::after(Some(1));
    let end = rig.apply("new").await;
    assert_eq!((end.exit, end.changed), (ExitCode::Outside, false), "{end:?}");
    assert!(end.reasons.iter().any(|r| r.contains("keeps its journal there")), "{end:?}");
    assert_eq!(steps(before), Vec::<String>::new());
    // Begin, pull, record and start are written; what would come next is not done.
    fault::after(Some(4));
    let end = rig.apply("new").await;
    fault::after(None);
    assert_eq!((end.exit, end.changed), (ExitCode::Halted, true), "{end:?}");
    let done = steps(before);
    assert!(done.last().is_some_and(|d| d.contains("EnsureReplica")), "{done:?}");
    assert!(rig.fleet().available() >= 3);
    assert_eq!(rig.apply("new").await.exit, ExitCode::Done);
    rig.runs("new");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_counts_from_when_it_was_asked_for() {
    let rig = Rig::new(1);
    let claim = LeaseClaim {
        app: app(),
        owner: "me".into(),
        who: "me".into(),
        epoch: Epoch(1),
        ttl_ms: u64::try_from(lease::TTL.as_millis()).unwrap(),
    };
    let (_, mut cancel) = watch::channel(false);
    let (claim, asked) = keeper::acquire(&rig.links, claim, &|_| {}, &mut cancel).await.unwrap();
    let keeper = keeper::Keeper::start(&rig.links, &claim);
    assert!(keeper.news().is_none(), "the first moment is the one that came with the lease");
    // Nobody looks for a long time; a host that answers late makes it no later.
    tokio::time::sleep(lease::RENEW + Duration::from_secs(3)).await;
    let (at, news) = keeper.news().expect("one renewal");
    assert_eq!(news, LeaseNews::Renewed);
    let after = at - asked;
    assert!(after >= lease::RENEW && after < lease::RENEW + Duration::from_millis(100), "{after:?}");
}
