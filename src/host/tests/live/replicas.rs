//! Replicas under supervisor and keepers, through the protocol as a deployer speaks it.

use crate::balancing::wait_for;
use crate::http::once;
use crate::scratch;
use keelway_deploy::frame;
use keelway_deploy::protocol::{
    AppSettings, Backend, BackendState, Epoch, Fence, Greeting, Hello, LeaseAnswer, LeaseClaim, Order,
    Outcome, Preflight, Refusal, RefusalKind, RegistryAccess, ReplicaId, ReplicaReport, ReplicaSpec,
    ReplicaState, Reply, Request, Response, Revision, VERSION,
};
use keelway_host::{HostSettings, Settings};
use keelway_model::clock::SystemClock;
use keelway_model::oci::{Descriptor, ImageConfig, Manifest, media};
use keelway_model::plan::Health;
use keelway_model::{Bytes, Digest, Limits, Platform, PushedDigest};
use keelway_store::{Compression, Store};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{DuplexStream, ReadHalf, WriteHalf};

/// Ends what a killed test run left in the cgroup tree.
pub fn reap(scratch: &Path) {
    for dir in std::fs::read_dir(scratch).into_iter().flatten().flatten() {
        let path = dir.path().join("store");
        if !path.is_dir() {
            continue;
        }
        let Ok(store) = Store::open(&path, Arc::new(SystemClock)) else { continue };
        let names = store.reaped().iter().flat_map(|run| &run.cgroups).filter_map(|name| name.parse().ok());
        let names: Vec<_> = names.collect();
        let _ = keelway_sandbox::cgroup::reap(&keelway_sandbox::cgroup::Layout::detect(), &names);
    }
}

/// A small image with busybox's httpd, put into a host's store.
fn image(root: &Path) -> PushedDigest {
    image_of(root, &["/bin/busybox", "httpd", "-f", "-vv", "-p", "8080", "-h", "/www"])
}

fn image_of(root: &Path, argv: &[&str]) -> PushedDigest {
    let store = Store::open(&root.join("store"), Arc::new(SystemClock)).unwrap();
    let upper = store.begin().unwrap();
    for dir in ["bin", "www", "tmp"] {
        std::fs::create_dir(upper.fs().join(dir)).unwrap();
    }
    std::fs::copy("/bin/busybox", upper.fs().join("bin/busybox")).unwrap();
    std::fs::write(upper.fs().join("www/healthz"), "well\n").unwrap();
    let layer = store.layer_of(&upper.freeze().unwrap(), Compression::None).unwrap();
    let mut config = ImageConfig::scratch(Platform::host());
    config.rootfs.diff_ids = vec![layer.diff_id];
    config.config.entrypoint = Some(argv.iter().map(|a| (*a).to_owned()).collect());
    let config = serde_json::to_vec(&config).unwrap();
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media::MANIFEST.into()),
        config: Descriptor::new(media::CONFIG, store.put_blob(&config).unwrap(), config.len() as u64),
        layers: vec![layer.descriptor],
        annotations: BTreeMap::new(),
        extra: BTreeMap::new(),
    };
    let digest: Digest = store.put_blob(&serde_json::to_vec(&manifest).unwrap()).unwrap();
    PushedDigest::attested_by_registry("127.0.0.1:1/test/web".parse().unwrap(), digest)
}

/// One session with `__host`.
struct Session {
    runtime: tokio::runtime::Runtime,
    to: WriteHalf<DuplexStream>,
    from: ReadHalf<DuplexStream>,
    next: u64,
    epoch: u64,
}

impl Session {
    fn open(settings: &Settings) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let (input, output) = tokio::io::split(theirs);
        let host = HostSettings { settings: settings.clone(), address: None };
        runtime.spawn(keelway_host::serve(input, output, host));
        let (mut from, mut to) = tokio::io::split(ours);
        let greeting = runtime.block_on(async {
            let hello = Hello { version: VERSION, keelway: "test".into(), binary: None };
            frame::write(&mut to, &hello).await.unwrap();
            frame::skip_to_magic(&mut from).await.unwrap();
            frame::read::<Greeting>(&mut from).await.unwrap()
        });
        assert!(matches!(greeting, Some(Greeting::Welcome(w)) if w.root && !w.boot_id.is_empty()));
        Self { runtime, to, from, next: 0, epoch: 1 }
    }
    fn order(&mut self, order: Order) -> Result<Reply, Refusal> {
        self.next += 1;
        let request = Request { id: self.next, deadline_ms: 60_000, order };
        let response = self.runtime.block_on(async {
            frame::write(&mut self.to, &request).await.unwrap();
            frame::read::<Response>(&mut self.from).await.unwrap().expect("an answer")
        });
        assert_eq!(response.id, self.next);
        match response.outcome {
            Outcome::Done(reply) => Ok(reply),
            Outcome::Refused(refusal) => Err(refusal),
        }
    }
    fn ok(&mut self, order: Order) -> Reply {
        self.order(order).expect("it is done")
    }
    fn fence(&self) -> Fence {
        Fence { app: app(), epoch: Epoch(self.epoch), target: Revision(1) }
    }
    /// As the status has it; `None` when it is not there.
    fn find(&mut self, replica: ReplicaId) -> Option<ReplicaReport> {
        match self.ok(Order::Status { app: Some(app()) }) {
            Reply::Status(host) => {
                host.apps.into_iter().flat_map(|a| a.replicas).find(|r| r.replica == replica)
            }
            other => panic!("{other:?}"),
        }
    }
    fn replica(&mut self, replica: ReplicaId) -> ReplicaReport {
        self.find(replica).expect("it is there")
    }
    fn log(&mut self, replica: ReplicaId, tail: u32) -> Vec<String> {
        match self.ok(Order::ReadLogs { app: app(), replica, tail }) {
            Reply::Logs(lines) => lines,
            other => panic!("{other:?}"),
        }
    }
    fn until(
        &mut self,
        replica: ReplicaId,
        what: &str,
        mut holds: impl FnMut(&ReplicaReport) -> bool,
    ) -> ReplicaReport {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let report = self.replica(replica);
            if holds(&report) {
                return report;
            }
            assert!(Instant::now() < end, "waited in vain for {what}: {report:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    fn lease(&mut self, owner: &str, epoch: u64) -> LeaseAnswer {
        let claim = LeaseClaim {
            app: app(),
            owner: owner.into(),
            who: owner.into(),
            epoch: Epoch(epoch),
            ttl_ms: 15_000,
        };
        match self.ok(Order::AcquireLease(claim)) {
            Reply::Lease(answer) => answer,
            other => panic!("{other:?}"),
        }
    }
    fn set_up(&mut self, port: u16, peers: Vec<IpAddr>) {
        let settings = AppSettings { listen: format!(":{port}"), peers };
        self.ok(Order::EnsureApp { fence: self.fence(), settings });
    }
    fn start(&mut self, replica: ReplicaId, spec: &ReplicaSpec) -> ReplicaReport {
        let spec = Box::new(spec.clone());
        match self.ok(Order::EnsureReplica { fence: self.fence(), replica, spec }) {
            Reply::Replica(report) => *report,
            other => panic!("{other:?}"),
        }
    }
    fn pool(&mut self, generation: u64, reports: &[ReplicaReport]) {
        let backends = reports.iter().map(|r| Backend {
            replica: r.replica,
            address: r.address.unwrap(),
            state: BackendState::Active,
            health: r.spec.health.clone(),
        });
        let backends = backends.collect();
        self.ok(Order::SetBackends { fence: self.fence(), generation, backends });
    }
    fn end(&mut self, replica: ReplicaId) {
        self.ok(Order::StopReplica { fence: self.fence(), replica, grace_ms: 5000 });
        self.ok(Order::RemoveReplica { fence: self.fence(), replica });
    }
}

fn app() -> keelway_model::ids::AppName {
    "web".parse().unwrap()
}

fn id(text: &str) -> ReplicaId {
    text.parse().unwrap()
}

fn settings(name: &str) -> Settings {
    // What a test before this one left when it failed: this pid namespace holds nothing but ours.
    kill_all(|l| l.contains("__supervise") || l.contains("__balancer"));
    shell("for ns in $(ls /run/netns); do ip netns del $ns; done");
    Settings { root: scratch(name), ..Settings::default() }
}

fn spec(image: &PushedDigest) -> ReplicaSpec {
    ReplicaSpec {
        image: image.clone(),
        port: 8080,
        env: vec![("GREETING".into(), "hello $(id)".into())],
        health: Health {
            http: "/healthz".into(),
            interval: Duration::from_millis(100),
            timeout: Duration::from_secs(1),
            healthy: 2,
            unhealthy: 2,
            deadline: Duration::from_secs(20),
        },
        stop_grace: Duration::from_secs(2),
        limits: Limits { memory: Some(Bytes(64 << 20)), ..Limits::default() },
    }
}

fn shell(command: &str) -> (bool, String) {
    let done = Command::new("sh").args(["-c", command]).output().unwrap();
    (done.status.success(), String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
}

/// Processes of ours, by what they were started as.
fn processes(holds: impl Fn(&str) -> bool) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let all = all.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    all.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        holds(&String::from_utf8_lossy(&line).replace('\0', " "))
    })
    .collect()
}
fn kill_all(holds: impl Fn(&str) -> bool) -> usize {
    let pids = processes(holds);
    for pid in &pids {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL);
    }
    pids.len()
}
fn is_supervisor(line: &str) -> bool {
    line.contains("__supervise") && !line.contains("--replica")
}
fn is_keeper(line: &str) -> bool {
    line.contains("__supervise") && line.contains("--replica")
}

/// Ends the processes that a test leaves, and shows what it must not leave.
fn nothing_left(settings: &Settings) {
    assert_eq!(processes(is_keeper), [] as [i32; 0], "keepers");
    kill_all(|l| is_supervisor(l) || l.contains("__balancer"));
    wait_for("everything to end", || {
        processes(|l| l.contains("__supervise") || l.contains("__balancer")).is_empty()
    });
    let (_, namespaces) = shell("ls /run/netns");
    assert!(!namespaces.contains("keelway-"), "{namespaces}");
    let (_, links) = shell("ip -o link");
    assert!(!links.contains("kw0v"), "{links}");
    let runs: Vec<PathBuf> =
        std::fs::read_dir(settings.root.join("store/runs")).unwrap().flatten().map(|e| e.path()).collect();
    // Its own, and what held the last four images, for no release was written down.
    assert!(runs.len() <= 1 + 4, "only the killed supervisor's may be there: {runs:?}");
    let (_, groups) = shell("find /sys/fs/cgroup -type d -path '*keelway/host-*' 2>/dev/null");
    for run in &runs {
        let name = run.file_name().unwrap().to_str().unwrap();
        assert!(!groups.contains(name), "{groups}");
    }
    let (_, mounts) = shell("cat /proc/mounts");
    assert!(!mounts.contains(settings.root.to_str().unwrap()), "{mounts}");
}

pub fn life() {
    let settings = settings("life");
    let image = image(&settings.root);
    let mut s = Session::open(&settings);
    let wanted = Preflight {
        app: app(),
        listen: ":8090".into(),
        disk_needed: Bytes(1 << 20),
        platform: Platform::host(),
        keep: vec![image.digest(), Digest::of(b"never seen")],
    };
    let Reply::Preflight(report) = s.ok(Order::Preflight(wanted)) else { panic!() };
    let findings: Vec<_> = report.findings.iter().map(|f| f.what).collect();
    assert_eq!(findings, [keelway_deploy::protocol::Check::PreviousImage], "{report:?}");

    assert_eq!(s.lease("me", 1), LeaseAnswer::Granted);
    // Another host and a stranger, on one link with this host.
    for (name, n) in [("peer", 2), ("stranger", 3)] {
        let (fine, said) = shell(&format!(
            "ip netns add {name} && ip link add to{name} type veth peer name eth0 netns {name} && \
             (ip link add lan type bridge; ip addr replace 198.18.0.1/24 dev lan; ip link set lan up) 2>/dev/null; \
             ip link set to{name} master lan && ip link set to{name} up && ip -n {name} addr add 198.18.0.{n}/24 dev eth0 && \
             ip -n {name} link set eth0 up"
        ));
        assert!(fine, "{said}");
    }
    s.set_up(8090, vec!["198.18.0.2".parse().unwrap()]);
    let ensure =
        Order::EnsureImage { fence: s.fence(), image: image.clone(), registry: RegistryAccess::default() };
    let Reply::Image(report) = s.ok(ensure) else { panic!() };
    assert!(report.local);

    let spec = spec(&image);
    let first = s.start(id("r1-0"), &spec);
    assert!(first.pid.is_some(), "{first:?}");
    let well = s.until(id("r1-0"), "healthy", |r| r.state == ReplicaState::Healthy);
    assert!(well.good >= 2 && well.restarts == 0);
    assert_eq!(s.start(id("r1-0"), &spec).pid, first.pid, "ensured twice, started once");
    let other = ReplicaSpec { port: 9, ..spec.clone() };
    let refused =
        s.order(Order::EnsureReplica { fence: s.fence(), replica: id("r1-0"), spec: Box::new(other) });
    assert_eq!(refused.unwrap_err().kind, RefusalKind::Taken);
    let second = s.start(id("r1-1"), &spec);
    s.until(id("r1-1"), "healthy", |r| r.state == ReplicaState::Healthy);
    assert_ne!(first.address, second.address);

    s.pool(1, &[first.clone(), second.clone()]);
    let balancer: SocketAddr = "127.0.0.1:8090".parse().unwrap();
    for _ in 0..6 {
        assert_eq!(once(balancer, "/healthz"), Some(200));
    }
    // From another host of the target, at the forwarded port; from nobody else.
    let me = std::env::current_exe().unwrap();
    let get = |from: &str, to: &str| {
        shell(&format!("ip netns exec {from} {} __get {to} /healthz", me.display())).1.trim().to_owned()
    };
    let port = first.host_port.unwrap();
    assert_eq!(get("peer", &format!("198.18.0.1:{port}")), "Some(200)");
    assert_eq!(get("stranger", &format!("198.18.0.1:{port}")), "None", "only peers are let in");
    // Not a way around: the replica's own address is not reachable from outside.
    let address = first.address.unwrap().ip();
    for from in ["peer", "stranger"] {
        shell(&format!("ip -n {from} route add 10.88.0.0/16 via 198.18.0.1"));
        assert_eq!(get(from, &format!("{address}:8080")), "None", "around the port, from {from}");
    }

    s.pool(2, std::slice::from_ref(&second));
    s.ok(Order::StopReplica { fence: s.fence(), replica: id("r1-0"), grace_ms: 5000 });
    let stopped = s.replica(id("r1-0"));
    assert_eq!((stopped.state, stopped.pid), (ReplicaState::Stopped, None), "{stopped:?}");
    assert_eq!(stopped.ended.as_deref(), Some("ended by signal 15"), "{stopped:?}");
    let log = s.log(id("r1-0"), 20);
    assert!(log.iter().any(|l| l.contains("/healthz")), "{log:?}");
    let running = s.order(Order::RemoveReplica { fence: s.fence(), replica: id("r1-1") });
    assert_eq!(running.unwrap_err().kind, RefusalKind::Failed, "a running one is not removed");
    assert!(s.start(id("r1-0"), &spec).pid.is_some(), "a stopped one is started again");
    for replica in ["r1-0", "r1-1", "r9-9"] {
        s.end(id(replica));
    }
    assert_eq!(s.find(id("r1-0")), None);
    assert!(!s.log(id("r1-0"), 5).is_empty(), "the log of a removed one is kept");
    let never = s.order(Order::ReadLogs { app: app(), replica: id("r8-8"), tail: 5 });
    assert_eq!(never.unwrap_err().kind, RefusalKind::NotFound);
    let (_, rules) = shell("nft list table ip keelway");
    assert!(rules.contains("masquerade") && !rules.contains("dnat to"), "{rules}");
    shell("ip netns del peer; ip netns del stranger; ip link del lan");
    nothing_left(&settings);
}

pub fn kills() {
    let settings = settings("kills");
    let image = image(&settings.root);
    let mut s = Session::open(&settings);
    s.set_up(8091, vec![]);
    let spec = spec(&image);
    let reports: Vec<ReplicaReport> = ["r1-0", "r1-1"].iter().map(|r| s.start(id(r), &spec)).collect();
    for r in ["r1-0", "r1-1"] {
        s.until(id(r), "healthy", |r| r.state == ReplicaState::Healthy);
    }
    s.pool(1, &reports);
    let balancer: SocketAddr = "127.0.0.1:8091".parse().unwrap();

    // The supervisor: traffic does not notice, the session's next order finds another one.
    let (stop, lost, sent) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let load = {
        let (stop, lost, sent) = (stop.clone(), lost.clone(), sent.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                sent.fetch_add(1, Ordering::SeqCst);
                lost.fetch_add(u32::from(once(balancer, "/healthz") != Some(200)), Ordering::SeqCst);
            }
        })
    };
    for _ in 0..3 {
        assert_eq!(kill_all(is_supervisor), 1);
        let again = s.replica(id("r1-0"));
        assert_eq!((again.pid, again.restarts), (reports[0].pid, 0), "untouched");
        assert_eq!(processes(is_supervisor).len(), 1);
    }
    // Keepers that hang: a look takes the time of one, not of all.
    let keepers = processes(is_keeper);
    assert_eq!(keepers.len(), 2);
    let signal_all = |signal| {
        for pid in &keepers {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), signal).unwrap();
        }
    };
    signal_all(nix::sys::signal::Signal::SIGSTOP);
    let began = Instant::now();
    let looked = s.order(Order::Status { app: Some(app()) });
    let took = began.elapsed();
    signal_all(nix::sys::signal::Signal::SIGCONT);
    assert!(looked.is_ok() && took < Duration::from_millis(3500), "{took:?}: {looked:?}");
    stop.store(true, Ordering::SeqCst);
    load.join().unwrap();
    assert_eq!(lost.load(Ordering::SeqCst), 0, "of {}", sent.load(Ordering::SeqCst));

    // The balancer: back within a second, with its pool.
    assert_eq!(kill_all(|l| l.contains("__balancer")), 1);
    let killed = Instant::now();
    wait_for("the balancer", || once(balancer, "/healthz") == Some(200));
    assert!(killed.elapsed() < Duration::from_secs(2), "{:?}", killed.elapsed());

    // A keeper: its replica dies with it, another takes over; requests go to the other replica.
    assert_eq!(kill_all(|l| is_keeper(l) && l.contains("r1-0")), 1);
    let back =
        s.until(id("r1-0"), "a new start", |r| r.state == ReplicaState::Healthy && r.pid != reports[0].pid);
    assert!(back.restarts >= 1, "{back:?}");
    for _ in 0..4 {
        assert_eq!(once(balancer, "/healthz"), Some(200));
    }
    assert_eq!(processes(is_keeper).len(), 2, "nothing doubled");

    // Everything at once; a new session heals it.
    kill_all(|l| l.contains("__supervise") || l.contains("__balancer"));
    for r in ["r1-0", "r1-1"] {
        s.until(id(r), "healthy again", |r| r.state == ReplicaState::Healthy);
    }
    wait_for("the balancer", || once(balancer, "/healthz") == Some(200));
    for r in ["r1-0", "r1-1"] {
        s.end(id(r));
    }
    nothing_left(&settings);
}

pub fn watched() {
    let settings = settings("watched");
    let mut s = Session::open(&settings);
    let taken = std::net::TcpListener::bind("0.0.0.0:8094").unwrap();
    let wanted = AppSettings { listen: ":8094".into(), peers: vec![] };
    let refused = s.order(Order::EnsureApp { fence: s.fence(), settings: wanted }).unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Taken, "{refused}");
    drop(taken);
    // Nobody orders it again: it comes by itself, and after a kill too.
    let balancer: SocketAddr = "127.0.0.1:8094".parse().unwrap();
    wait_for("the balancer", || once(balancer, "/") == Some(503));
    for _ in 0..2 {
        kill_all(|l| l.contains("__balancer"));
        wait_for("the balancer after a kill", || once(balancer, "/") == Some(503));
    }
    nothing_left(&settings);
}

pub fn stubborn() {
    let settings = settings("stubborn");
    let shell = |script| image_of(&settings.root, &["/bin/busybox", "sh", "-c", script]);
    // The applets have no names of their own in the image.
    let deaf = shell("trap '' TERM; echo deaf; while :; do /bin/busybox sleep 1; done");
    let broken = shell("echo \"boom in $(/bin/busybox hostname), $GREETING\"; exit 3");
    let unfit = shell("true");
    let mut s = Session::open(&settings);
    s.set_up(8093, vec![]);

    let report = s.start(id("r1-0"), &spec(&deaf));
    assert_eq!(report.state, ReplicaState::Starting, "{report:?}");
    wait_for("its first word", || s.log(id("r1-0"), 20) == ["deaf"]);
    let told = Instant::now();
    s.ok(Order::StopReplica { fence: s.fence(), replica: id("r1-0"), grace_ms: 700 });
    let took = told.elapsed();
    assert!(took >= Duration::from_millis(700) && took < Duration::from_millis(1700), "{took:?}");
    let ended = s.replica(id("r1-0")).ended.unwrap_or_default();
    assert!(ended.contains("after 700ms of grace"), "{ended}");

    s.start(id("r1-1"), &spec(&broken));
    let report = s.until(id("r1-1"), "two restarts", |r| r.restarts >= 2);
    assert_eq!(report.ended.as_deref(), Some("exit code 3"));
    let log = s.log(id("r1-1"), 20);
    assert_eq!(log.first().map(String::as_str), Some("boom in web-r1-1, hello $(id)"));
    assert!(report.good == 0 && report.state != ReplicaState::Healthy);

    // An image that is not there is said to be so, and is not tried for ever at full speed.
    let nowhere = PushedDigest::attested_by_registry(unfit.repository().clone(), Digest::of(b"nowhere"));
    let report = s.start(id("r1-2"), &spec(&nowhere));
    assert_eq!(report.state, ReplicaState::Exited);
    assert!(report.ended.as_deref().is_some_and(|e| e.contains(&nowhere.digest().hex())), "{report:?}");
    for replica in ["r1-0", "r1-1", "r1-2"] {
        s.end(id(replica));
    }
    nothing_left(&settings);
}

pub fn fencing() {
    let settings = settings("fencing");
    let mut s = Session::open(&settings);
    assert_eq!(s.lease("first", 1), LeaseAnswer::Granted);
    assert!(matches!(s.lease("second", 2), LeaseAnswer::Held(view) if view.who == "first"));
    s.set_up(8092, vec![]);
    let release = Order::ReleaseLease { app: app(), owner: "first".into(), epoch: Epoch(1) };
    assert_eq!(s.ok(release), Reply::Ok);
    assert_eq!(s.lease("second", 1), LeaseAnswer::Stale { highest: Epoch(1) });
    assert_eq!(s.lease("second", 2), LeaseAnswer::Granted);
    // The first one wakes up; also after the supervisor was killed and another one answers.
    for _ in 0..2 {
        let late = Order::SetBackends { fence: s.fence(), generation: 99, backends: vec![] };
        assert_eq!(s.order(late).unwrap_err().kind, RefusalKind::Fenced { highest: Epoch(2) });
        kill_all(is_supervisor);
    }
    s.epoch = 2;
    s.pool(5, &[]);
    let older = Order::SetBackends { fence: s.fence(), generation: 4, backends: vec![] };
    assert_eq!(s.order(older).unwrap_err().kind, RefusalKind::Fenced { highest: Epoch(2) });
    let another = AppSettings { listen: ":8092".into(), peers: vec![] };
    let fence = Fence { app: "other".parse().unwrap(), ..s.fence() };
    let taken = s.order(Order::EnsureApp { fence, settings: another }).unwrap_err();
    assert_eq!(taken.kind, RefusalKind::Taken, "{taken}");
    nothing_left(&settings);
}
