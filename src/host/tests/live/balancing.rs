//! The balancer under load, killed, and talked to by hostile clients.

use crate::backend::Backend;
use crate::http::{Client, once};
use crate::scratch;
use keelway_deploy::frame;
use keelway_deploy::protocol::{Backend as Entry, BackendState, BalancerReport, Epoch};
use keelway_host::balancer::control::{Answer, Ask};
use keelway_host::balancer::pool::PoolSpec;
use keelway_host::{BalancerSettings, Patience, Settings};
use keelway_model::plan::Health;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const CLIENTS: usize = 8;
const SWAPS: usize = 8;
const ENOUGH: usize = 2000;

/// Until `what` holds, or a failed test.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn rule() -> Health {
    Health {
        http: "/healthz".into(),
        interval: Duration::from_millis(50),
        timeout: Duration::from_secs(1),
        healthy: 2,
        unhealthy: 2,
        deadline: Duration::from_secs(10),
    }
}

pub struct Balancer {
    settings: BalancerSettings,
    child: Child,
    generation: u64,
    runtime: tokio::runtime::Runtime,
}

impl Balancer {
    fn start(name: &str, port: u16) -> Self {
        Self::patient(name, port, Patience::default())
    }
    /// One that waits for so long.
    pub fn patient(name: &str, port: u16, patience: Patience) -> Self {
        let settings = BalancerSettings {
            settings: Settings { root: scratch(name), ..Settings::default() },
            app: "web".parse().unwrap(),
            listen: SocketAddr::from(([127, 0, 0, 1], port)),
            patience,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let child = Self::spawn(&settings);
        let this = Self { settings, child, generation: 0, runtime };
        wait_for("the balancer to answer", || this.ask(&Ask::Report).is_some());
        this
    }
    fn spawn(settings: &BalancerSettings) -> Child {
        let me = std::env::current_exe().unwrap();
        Command::new(me).arg("__balancer").args(settings.to_args()).spawn().unwrap()
    }
    fn ask(&self, ask: &Ask) -> Option<Answer> {
        self.runtime.block_on(async {
            let mut stream = tokio::net::UnixStream::connect(self.settings.socket()).await.ok()?;
            frame::write(&mut stream, ask).await.ok()?;
            frame::read(&mut stream).await.ok()?
        })
    }
    pub fn report(&self) -> BalancerReport {
        match self.ask(&Ask::Report) {
            Some(Answer::Report { report, .. }) => report,
            other => panic!("{other:?}"),
        }
    }
    pub fn set(&mut self, backends: &[(u32, SocketAddr, BackendState)]) -> BalancerReport {
        self.generation += 1;
        let backends = backends.iter().map(|(slot, address, state)| Entry {
            replica: format!("r1-{slot}").parse().unwrap(),
            address: *address,
            state: *state,
            health: rule(),
        });
        let pool = PoolSpec { epoch: Epoch(1), generation: self.generation, backends: backends.collect() };
        match self.ask(&Ask::SetPool { pool }) {
            Some(Answer::Report { report, .. }) => report,
            other => panic!("{other:?}"),
        }
    }
    pub fn at(&self) -> SocketAddr {
        self.settings.listen
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Clients that send until told to stop: kept alive and fresh connections, GET and POST, some slow.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<std::thread::JoinHandle<()>>,
    /// Ids that got a 2xx, and those that did not.
    answered: Arc<Mutex<Vec<String>>>,
    lost: Arc<Mutex<Vec<String>>>,
    sent: Arc<AtomicU32>,
}

impl Load {
    fn start(to: SocketAddr) -> Self {
        let (stop, next, sent) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU32::new(0)));
        let (answered, lost) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let clients = (0..CLIENTS).map(|client| {
            let (stop, next, sent) = (stop.clone(), next.clone(), sent.clone());
            let (answered, lost) = (answered.clone(), lost.clone());
            std::thread::spawn(move || {
                let mut kept: Option<Client> = None;
                while !stop.load(Ordering::SeqCst) {
                    let n = next.fetch_add(1, Ordering::SeqCst);
                    let wait = if n % 50 == 0 { 400 } else { 1 };
                    let target = format!("/id-{n}?wait={wait}");
                    sent.fetch_add(1, Ordering::SeqCst);
                    let fresh = client % 2 == 0;
                    let mut connection = kept.take().or_else(|| Client::connect(to).ok());
                    let method = if n % 3 == 0 { "POST" } else { "GET" };
                    let body = if method == "POST" { "some body" } else { "" };
                    let answer = connection.as_mut().and_then(|c| c.ask(method, &target, body));
                    if answer.is_some_and(|a| a.start.starts_with("HTTP/1.1 200")) {
                        answered.lock().unwrap().push(target);
                        kept = connection.filter(|_| !fresh);
                    } else {
                        lost.lock().unwrap().push(target);
                    }
                }
            })
        });
        Self { clients: clients.collect(), stop, answered, lost, sent }
    }
    fn end(self) -> (Vec<String>, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.join().unwrap();
        }
        let take = |m: &Mutex<Vec<String>>| std::mem::take(&mut *m.lock().unwrap());
        (take(&self.answered), take(&self.lost))
    }
}

/// Replaces backends one after the other under load. Gives answered and lost ids, what the backends logged
/// and how many swaps met requests in flight.
fn swaps(name: &str, port: u16, drain: bool) -> (Vec<String>, Vec<String>, Vec<String>, usize) {
    let mut balancer = Balancer::start(name, port);
    let dir = scratch(name);
    let log = |n: u32| -> PathBuf { dir.join(format!("backend-{n}")) };
    let mut living: Vec<(u32, Backend)> = (0..2).map(|n| (n, Backend::start(&log(n)))).collect();
    let active = |living: &[(u32, Backend)]| {
        living.iter().map(|(n, b)| (*n, b.address, BackendState::Active)).collect::<Vec<_>>()
    };
    balancer.set(&active(&living));
    let load = Load::start(balancer.at());
    let mut logged = Vec::new();
    let mut busy = 0;
    for (next, swap) in (2..).zip(0..SWAPS) {
        // Spread over the load.
        let goal = u32::try_from((swap + 1) * (ENOUGH + 400) / (SWAPS + 1)).unwrap();
        wait_for("enough requests", || load.sent.load(Ordering::SeqCst) >= goal);
        let (old, mut backend) = living.remove(0);
        living.push((next, Backend::start(&log(next))));
        let mut pool = active(&living);
        if drain {
            pool.push((old, backend.address, BackendState::Draining));
        }
        let in_flight = |report: &BalancerReport| {
            report.backends.iter().filter(|b| b.replica.slot == old).map(|b| b.in_flight).sum::<u32>()
        };
        if drain {
            busy += usize::from(in_flight(&balancer.set(&pool)) > 0);
            wait_for("in flight zero", || in_flight(&balancer.report()) == 0);
            pool.pop();
            balancer.set(&pool);
            backend.stop();
        } else {
            backend.stop();
            balancer.set(&pool);
        }
        logged.extend(backend.logged());
    }
    wait_for("enough requests", || load.sent.load(Ordering::SeqCst) as usize >= ENOUGH + 400);
    let (answered, lost) = load.end();
    logged.extend(living.iter().flat_map(|(_, b)| b.logged()));
    (answered, lost, logged, busy)
}

pub fn swaps_lose_nothing() {
    let (answered, lost, logged, busy) = swaps("drain", 8081, true);
    assert_eq!(lost, [] as [String; 0], "lost");
    assert!(answered.len() >= ENOUGH, "{} requests are too few", answered.len());
    assert!(busy > 0, "no swap met a request in flight: the test shows nothing");
    let mut times: HashMap<&str, u32> = HashMap::new();
    for id in &logged {
        *times.entry(id).or_default() += 1;
    }
    let wrong: Vec<_> = answered.iter().filter(|id| times.get(id.as_str()) != Some(&1)).collect();
    assert!(wrong.is_empty(), "not logged exactly once: {wrong:?}");
    assert_eq!(logged.len(), answered.len(), "nothing was sent that was not answered");
}

pub fn swaps_without_drain_lose_some() {
    let (_, lost, logged, _) = swaps("nodrain", 8082, false);
    assert!(!lost.is_empty(), "the load does not notice a backend that is killed: it shows nothing");
    let mut unique = logged.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), logged.len(), "lost or not, nothing is ever sent twice");
}

pub fn killed_balancer() {
    let mut balancer = Balancer::start("killed", 8083);
    let dir = scratch("killed");
    let (a, b) = (Backend::start(&dir.join("a")), Backend::start(&dir.join("b")));
    balancer.set(&[(0, a.address, BackendState::Active), (1, b.address, BackendState::Draining)]);
    let before = balancer.report();
    assert_eq!(once(balancer.at(), "/one"), Some(200));
    balancer.child.kill().unwrap();
    balancer.child.wait().unwrap();
    assert_eq!(once(balancer.at(), "/none"), None);
    balancer.child = Balancer::spawn(&balancer.settings);
    wait_for("it to answer again", || balancer.ask(&Ask::Report).is_some());
    assert_eq!(balancer.report(), before, "same pool, same states");
    for _ in 0..4 {
        assert_eq!(once(balancer.at(), "/two"), Some(200));
    }
    assert!(b.logged().is_empty(), "still drained");
    // A second one for the same app does not start.
    let second = Balancer::spawn(&balancer.settings).wait().unwrap();
    assert!(!second.success());
    // An older pool is refused.
    balancer.generation = 0;
    let old = PoolSpec { epoch: Epoch(0), generation: 9, backends: Vec::new() };
    assert!(matches!(balancer.ask(&Ask::SetPool { pool: old }), Some(Answer::Refused { .. })));
    // Told to end, it finishes what it has.
    let address = balancer.at();
    let slow = std::thread::spawn(move || once(address, "/slow?wait=300"));
    wait_for("the slow one to be on its way", || a.logged().iter().any(|l| l.starts_with("/slow")));
    assert!(balancer.ask(&Ask::End).is_some());
    assert_eq!(slow.join().unwrap(), Some(200));
    assert!(balancer.child.wait().unwrap().success());
}

pub fn requests_pass() {
    let mut balancer = Balancer::start("pass", 8084);
    let dir = scratch("pass");
    let backend = Backend::start(&dir.join("a"));
    assert_eq!(once(balancer.at(), "/"), Some(503), "an empty pool");
    balancer.set(&[(0, backend.address, BackendState::Active)]);
    let to = balancer.at();

    let mut client = Client::connect(to).unwrap();
    let chunked = "POST /x?y=%2F HTTP/1.1\r\nhost: app.example\r\nconnection: x-hop\r\nx-hop: 1\r\n\
                   transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
    client.write(chunked.as_bytes()).unwrap();
    let seen = client.read().expect("an answer").text();
    assert!(seen.starts_with("POST /x?y=%2F HTTP/1.1\n"), "{seen}");
    assert!(seen.ends_with("\nhello world"), "{seen}");
    let lower = seen.to_lowercase();
    for (needle, there) in [
        ("host: app.example", true),
        ("x-forwarded-for: 127.0.0.1", true),
        ("x-hop", false),
        ("connection: close", true),
    ] {
        assert_eq!(lower.contains(needle), there, "{needle} in {seen}");
    }
    let head = client.ask("HEAD", "/head", "").expect("the connection is kept alive");
    assert!(head.header("content-length").is_some_and(|l| l != "0"), "{head:?}");
    let large = "x".repeat(3 << 20);
    assert!(client.ask("POST", "/large", &large).expect("an answer").text().ends_with(&large));

    let whole = client.ask("GET", "/two-lengths", "").expect("an answer").text();
    assert_eq!(whole, "hello", "a length beside a transfer coding cuts nothing off");

    // Two lengths, a length and a coding, no host, a tunnel: refused, or one request and no more.
    let before = backend.logged().len();
    for (raw, status) in [
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd", "400"),
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "400"),
        ("CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n", "405"),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost : a\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\"b\r\n\r\n", "400"),
        ("GET http://u@a/ HTTP/1.1\r\nhost: a\r\n\r\n", "400"),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n", "400"),
        (&format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(70_000)), "431"),
    ] {
        let mut client = Client::connect(to).unwrap();
        client.write(raw.as_bytes()).unwrap();
        let answer = client.read().expect(raw);
        assert_eq!(answer.start.split(' ').nth(1), Some(status), "{raw:?} {answer:?}");
    }
    assert_eq!(backend.logged().len(), before, "none of them reached the backend");
    let mut client = Client::connect(to).unwrap();
    client.write(b"GET http://b.example:81/p HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let seen = client.read().expect("an answer").text();
    assert!(seen.starts_with("GET /p ") && seen.contains("host: b.example:81"), "{seen}");
    let before = backend.logged().len();

    let smuggled = "POST /outer HTTP/1.1\r\nhost: a\r\ncontent-length: 40\r\ntransfer-encoding: chunked\r\n\r\n\
                    0\r\n\r\nGET /inner HTTP/1.1\r\nx: 1\r\n\r\n";
    let mut client = Client::connect(to).unwrap();
    client.write(smuggled.as_bytes()).unwrap();
    let _ = client.read();
    let reached = backend.logged().split_off(before);
    assert!(!reached.iter().any(|l| l == "/inner"), "a request without a host got through: {reached:?}");

    let mut client = Client::connect(to).unwrap();
    let upgrade = "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    client.write(upgrade.as_bytes()).unwrap();
    let answer = client.read_head().expect("an answer");
    assert!(answer.start.contains("101"), "{answer:?}");
    client.write(b"hello\n").unwrap();
    assert_eq!(client.read_line(), "HELLO\n");
    assert_eq!(balancer.report().backends[0].in_flight, 1, "a tunnel counts");
    drop(client);
    wait_for("the tunnel to end", || balancer.report().backends[0].in_flight == 0);
}

pub fn sick_backend() {
    let mut balancer = Balancer::start("sick", 8085);
    let dir = scratch("sick");
    let (a, mut b) = (Backend::start(&dir.join("a")), Backend::start(&dir.join("b")));
    balancer.set(&[(0, a.address, BackendState::Active), (1, b.address, BackendState::Active)]);
    let usable =
        |balancer: &Balancer| balancer.report().backends.iter().map(|b| b.usable).collect::<Vec<_>>();
    once(a.address, "/sick").unwrap();
    wait_for("the sick one to be out", || usable(&balancer) == [false, true]);
    let before = a.logged().len();
    for _ in 0..10 {
        assert_eq!(once(balancer.at(), "/x"), Some(200));
    }
    assert_eq!(a.logged().len(), before, "no request for the sick one");
    // The other one dies: the sick one is the last, and is used.
    b.stop();
    for _ in 0..10 {
        assert_eq!(once(balancer.at(), "/y"), Some(200));
    }
    once(a.address, "/well").unwrap();
    wait_for("it to be back", || usable(&balancer)[0]);
}
