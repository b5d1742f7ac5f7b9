//! Networks for real: each test is in a machine of its own, a network namespace with an "outside" behind it. The real
//! machine's routes, rules and switches are never touched.

use super::netlink::Socket;
use super::question::Question;
use super::route::{self, End, LOOPBACK};
use super::*;
use nix::sched::{CloneFlags, unshare};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The machine's address towards the outside, and the outside's.
const MACHINE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// What a cloud machine has.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// A port that is listened to everywhere.
const PORT: u16 = 4000;
/// What the outside's name server says of every name.
const TOLD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
const SOON: Duration = Duration::from_secs(10);
/// For what is expected not to come.
const NEVER: Duration = Duration::from_millis(400);

/// Servers that end with it.
struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Server {
    /// In the calling thread's namespace: who connects to [`PORT`] is told its own address as it is seen.
    fn start(at: Ipv4Addr) -> Self {
        let listener = TcpListener::bind((at, PORT)).unwrap();
        Self::of(vec![Box::new(move || {
            accept(&listener, |stream, peer| {
                let _ = stream.write_all(peer.ip().to_string().as_bytes());
            })
        })])
    }
    /// The same: on 53 every name is [`TOLD`].
    fn of_names(at: Ipv4Addr) -> Self {
        let udp = UdpSocket::bind((at, dns::PORT)).unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let packets = move || {
            let mut buffer = [0; 512];
            let Ok((n, asker)) = udp.recv_from(&mut buffer) else { return };
            let Some(question) = Question::read(&buffer[..n]) else { return };
            let _ = udp.send_to(&question.answer(&buffer[..n], TOLD), asker);
        };
        let tcp = TcpListener::bind((at, dns::PORT)).unwrap();
        let streams = move || {
            accept(&tcp, |stream, _| {
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut message).unwrap();
                let answer = Question::read(&message).unwrap().answer(&message, TOLD);
                let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
                stream.write_all(&[&length[..], &answer].concat()).unwrap();
            });
        };
        Self::of(vec![Box::new(packets), Box::new(streams)])
    }
    fn of(turns: Vec<Box<dyn FnMut() + Send>>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = |mut turn: Box<dyn FnMut() + Send>| {
            let told = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !told.load(Ordering::SeqCst) {
                    turn();
                }
            })
        };
        let threads = turns.into_iter().map(thread).collect();
        Self { stop, threads }
    }
}

/// Serves one connection, if one comes soon.
fn accept(listener: &TcpListener, serve: impl FnOnce(&mut TcpStream, SocketAddr)) {
    use nix::poll::{PollFd, PollFlags, poll};
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, 20u8).unwrap() == 1 {
        let (mut stream, peer) = listener.accept().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        serve(&mut stream, peer);
    }
}

/// A machine: the calling thread's namespace, which ends with the test's thread.
struct Machine {
    outside: Namespace,
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    _servers: Vec<Server>,
}

impl Machine {
    fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let mut routes = Socket::routes().unwrap();
        let (outside, [server, names]) = Namespace::make(|outside| {
            let far = End { namespace: Some(outside.as_fd()), ..End::new("eth0", 2) };
            routes
                .ask(vec![
                    route::up(LOOPBACK),
                    route::pair(&End::new("eth0", 3), &far),
                    route::address(3, MACHINE, 24),
                ])
                .unwrap();
            let mut there = Socket::routes().unwrap();
            there
                .ask(vec![
                    route::up(LOOPBACK),
                    route::up(2),
                    route::address(2, OUTSIDE, 24),
                    route::address(2, METADATA, 32),
                ])
                .unwrap();
            Ok([Server::start(Ipv4Addr::UNSPECIFIED), Server::of_names(Ipv4Addr::UNSPECIFIED)])
        })
        .unwrap();
        // Not before the other end is up, which the route needs.
        routes.ask(vec![route::default_route(OUTSIDE)]).unwrap();
        while !route::sends(&routes.tell(route::look(3)).unwrap()) {
            std::thread::yield_now();
        }
        let here = Server::start(Ipv4Addr::UNSPECIFIED);
        // Its threads are started by this one, so they are in this namespace.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let machine =
            Self { outside, dir: tempfile::tempdir().unwrap(), runtime, _servers: vec![server, names, here] };
        machine.name_servers(&format!("search example.com\nnameserver {OUTSIDE}\n"));
        machine
    }
    fn resolv_conf(&self) -> PathBuf {
        self.dir.path().join("resolv.conf")
    }
    fn name_servers(&self, text: &str) {
        std::fs::write(self.resolv_conf(), text).unwrap();
    }
    fn networks(&self, run: &str) -> Networks {
        Networks::new(run, Settings { resolv_conf: vec![self.resolv_conf()], ..Settings::default() })
    }
    /// Interfaces towards routers, and the tables that the machine has.
    fn left(&self) -> Vec<String> {
        let links = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let links = links.lines().filter_map(|l| l.split(':').next()).map(str::trim);
        let mut left: Vec<String> = links.filter(|l| router::is_uplink(l)).map(str::to_owned).collect();
        let tables = std::process::Command::new("nft").args(["list", "tables"]).output().unwrap();
        left.extend(String::from_utf8(tables.stdout).unwrap().lines().map(str::to_owned));
        left
    }
}

fn inside<T: Send>(attached: &Attached, work: impl FnOnce() -> T + Send) -> T {
    attached.place.namespace.inside(|| Ok(work())).unwrap()
}

/// What the server there sees us as.
fn seen_as(at: Ipv4Addr, port: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&(at, port).into(), NEVER)?;
    stream.set_read_timeout(Some(SOON))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn question(name: &str) -> Vec<u8> {
    let mut m = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        m.push(u8::try_from(label.len()).unwrap());
        m.extend(label.as_bytes());
    }
    m.extend([0, 0, 1, 0, 1]);
    m
}

/// The server that a sandbox is told of.
fn server_of(attached: &Attached) -> Ipv4Addr {
    let text = String::from_utf8(attached.resolv_conf().to_vec()).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix("nameserver ")).expect(&text);
    line.parse().unwrap()
}

/// Asks the server that the sandbox is told of, over UDP and TCP; the address at the end of the answer.
fn ask(attached: &Attached, name: &str) -> Option<Ipv4Addr> {
    let server = server_of(attached);
    let address = |answer: &[u8]| {
        let is_found = answer[3] & 0x0f == 0 && answer[7] == 1;
        let last: Option<[u8; 4]> = answer.last_chunk().copied();
        is_found.then(|| last.map(Ipv4Addr::from)).flatten()
    };
    inside(attached, || {
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        udp.set_read_timeout(Some(SOON)).unwrap();
        udp.connect((server, dns::PORT)).unwrap();
        udp.send(&question(name)).unwrap();
        let mut buffer = [0; 512];
        let n = udp.recv(&mut buffer).unwrap();
        let packet = address(&buffer[..n]);
        let mut tcp = TcpStream::connect((server, dns::PORT)).unwrap();
        tcp.set_read_timeout(Some(SOON)).unwrap();
        let message = question(name);
        tcp.write_all(&[&u16::try_from(message.len()).unwrap().to_be_bytes()[..], &message].concat())
            .unwrap();
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).unwrap();
        assert_eq!(address(&answer[2..]), packet);
        packet
    })
}

#[test]
fn r21_a_private_network_reaches_out_and_nothing_else() {
    let machine = Machine::new();
    let networks = machine.networks("r-1");
    let attached = networks.private().unwrap();
    assert_eq!(inside(&attached, || seen_as(OUTSIDE, PORT)).unwrap(), MACHINE.to_string(), "through NAT");

    // All of these answer the machine itself, so that a refusal means something. One is a port of the machine that
    // it forwards to the outside, as `docker run -p` does.
    let rules = "add table ip t\n\
                 add chain ip t in { type nat hook prerouting priority dstnat; }\n\
                 add chain ip t out { type nat hook output priority -100; }\n\
                 add rule ip t in tcp dport 4001 dnat to 203.0.113.2:4000\n\
                 add rule ip t out tcp dport 4001 dnat to 203.0.113.2:4000";
    assert!(std::process::Command::new("nft").arg(rules).status().unwrap().success());
    let (own, _) = uplink_in_use(attached.range());
    let targets = [(MACHINE, PORT), (own, PORT), (METADATA, PORT), (MACHINE, 4001)];
    for (at, port) in targets {
        seen_as(at, port).unwrap_or_else(|e| panic!("{at}:{port} from the machine: {e}"));
        let begun = Instant::now();
        let refused = inside(&attached, || seen_as(at, port)).unwrap_err();
        assert_ne!(refused.kind(), ErrorKind::TimedOut, "{at}:{port}: told, not left to wait");
        assert!(begun.elapsed() < NEVER, "{at}:{port}");
    }
    // Its loopback is its own, and there for both families; everything else is IPv4.
    let refused = inside(&attached, || seen_as(Ipv4Addr::LOCALHOST, PORT)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let (lo6, addresses) = inside(&attached, || {
        let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        let there = TcpStream::connect(listener.local_addr().unwrap()).is_ok();
        (there, std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap())
    });
    assert!(lo6);
    assert!(addresses.lines().all(|l| l.ends_with(" lo")), "{addresses}");
    // Nothing comes in, from an outside that knows the way; nor does the machine know one.
    let _server = inside(&attached, || Server::start(Ipv4Addr::UNSPECIFIED));
    assert!(seen_as(attached.address(), PORT).is_err());
    let (_, router) = uplink_in_use(attached.range());
    machine
        .outside
        .inside(|| {
            let mut routes = Socket::routes().unwrap();
            routes.ask(vec![route::default_route(MACHINE)]).unwrap();
            assert!(seen_as(attached.address(), PORT).is_err());
            assert_eq!(
                seen_as(router, PORT).unwrap_err().kind(),
                ErrorKind::TimedOut,
                "dropped by the machine"
            );
            Ok(())
        })
        .unwrap();
}

/// The addresses between this machine and its router.
fn uplink_in_use(range: Range) -> (Ipv4Addr, Ipv4Addr) {
    let known = std::fs::read_to_string("/proc/thread-self/net/fib_trie").unwrap();
    let is_there = |(machine, _): &(Ipv4Addr, Ipv4Addr)| known.contains(&format!("-- {machine}\n"));
    (0..range::ROUTERS).map(|slot| range.uplink(slot)).find(is_there).unwrap()
}

#[test]
fn sandboxes_do_not_reach_each_other() {
    let machine = Machine::new();
    let (ours, theirs) = (machine.networks("r-1"), machine.networks("r-2"));
    let (a, b, c) = (ours.private().unwrap(), ours.private().unwrap(), theirs.private().unwrap());
    assert_ne!(a.address(), b.address());
    let servers: Vec<Server> =
        [&a, &b, &c].iter().map(|x| inside(x, || Server::start(Ipv4Addr::UNSPECIFIED))).collect();
    assert!(inside(&b, || seen_as(b.address(), PORT)).is_ok(), "it is there for itself");
    let refused = inside(&a, || seen_as(b.address(), PORT)).unwrap_err();
    assert_ne!(refused.kind(), ErrorKind::TimedOut);
    // The two runs give out the same addresses, and stay apart all the same.
    assert_eq!(a.address(), c.address());
    // Under a stolen address nothing gets out, with whatever rights.
    let stolen = b.address();
    inside(&a, || {
        Socket::routes().unwrap().ask(vec![route::address(2, stolen, 32)]).unwrap();
        let thief = UdpSocket::bind((stolen, 0)).unwrap();
        thief.set_read_timeout(Some(NEVER)).unwrap();
        thief.send_to(&question("a"), (OUTSIDE, dns::PORT)).unwrap();
        assert!(thief.recv(&mut [0; 512]).is_err());
        let honest = UdpSocket::bind((a.address(), 0)).unwrap();
        honest.set_read_timeout(Some(SOON)).unwrap();
        honest.send_to(&question("a"), (OUTSIDE, dns::PORT)).unwrap();
        assert!(honest.recv(&mut [0; 512]).is_ok());
    });
    drop(servers);
}

#[test]
fn names_are_looked_up_where_the_machine_does() {
    let machine = Machine::new();
    let attached = machine.networks("r-1").private().unwrap();
    assert_eq!(
        String::from_utf8_lossy(attached.resolv_conf()),
        format!("search example.com\nnameserver {OUTSIDE}\n")
    );
    assert_eq!(ask(&attached, "www.example.com"), Some(TOLD));
    // A server of the machine alone, on its loopback or on an address of its own: our resolver asks it.
    for (stub, text) in [(Ipv4Addr::LOCALHOST, "127.0.0.1"), (MACHINE, "203.0.113.1")] {
        machine.name_servers(&format!("search example.com\nnameserver {text}\n"));
        let server = Server::of_names(stub);
        let _context = machine.runtime.enter();
        let attached = machine.networks("r-2").private().unwrap();
        assert!(String::from_utf8_lossy(attached.resolv_conf()).starts_with("search example.com\n"));
        assert_eq!(server_of(&attached), attached.place.gateway);
        assert_eq!(ask(&attached, "www.example.com"), Some(TOLD));
        drop(server);
        // Nobody answers any more: said, not left to wait for ever.
        assert_eq!(ask(&attached, "www.example.com"), None);
    }
    machine.name_servers("");
    assert_eq!(machine.networks("r-3").private().unwrap().resolv_conf(), b"");
}

#[test]
fn members_of_a_named_network_find_each_other() {
    let machine = Machine::new();
    let _context = machine.runtime.enter();
    let networks = machine.networks("r-1");
    let (shop, other) = (networks.named().unwrap(), networks.named().unwrap());
    let (web, db) = (shop.join("web").unwrap(), shop.join("db").unwrap());
    let stranger = other.join("web").unwrap();
    assert_eq!(ask(&web, "db"), Some(db.address()));
    assert_eq!(ask(&db, "WEB"), Some(web.address()));
    assert_eq!(ask(&web, "www.example.com"), Some(TOLD), "everything else is asked outside");
    assert_eq!(ask(&stranger, "db"), Some(TOLD), "another network's members are nobody");
    let server = inside(&db, || Server::start(Ipv4Addr::UNSPECIFIED));
    assert_eq!(inside(&web, || seen_as(db.address(), PORT)).unwrap(), web.address().to_string());
    assert_eq!(inside(&web, || seen_as(OUTSIDE, PORT)).unwrap(), MACHINE.to_string());
    assert!(inside(&stranger, || seen_as(db.address(), PORT)).is_err());
    assert!(inside(&networks.private().unwrap(), || seen_as(db.address(), PORT)).is_err());
    assert!(matches!(shop.join("db").unwrap_err(), NetworkError::Taken(name) if name == "db"));
    // A member that comes again has another address, and its old name.
    drop(server);
    drop(db);
    assert_eq!(ask(&web, "db"), Some(TOLD), "it is gone");
    let again = shop.join("db").unwrap();
    assert_eq!(ask(&web, "db"), Some(again.address()));
    assert_eq!(
        String::from_utf8(again.hosts("h")).unwrap(),
        format!("127.0.0.1\tlocalhost\n::1\tlocalhost\n{}\th db\n", again.address())
    );
    for bad in ["", "Db", "a b", "-a", "a-", "a..b", ".", &"x".repeat(64)] {
        assert!(matches!(shop.join(bad), Err(NetworkError::Name(_))), "{bad:?}");
    }
}

#[test]
fn twenty_at_once_and_nothing_left() {
    let machine = Machine::new();
    let networks = machine.networks("r-1");
    let home = Namespace::current().unwrap();
    let all: Vec<Attached> = std::thread::scope(|scope| {
        let one = || {
            let (networks, home) = (networks.clone(), &home);
            scope.spawn(move || {
                let attached = home.inside(|| networks.private()).unwrap();
                assert_eq!(inside(&attached, || seen_as(OUTSIDE, PORT)).unwrap(), MACHINE.to_string());
                attached
            })
        };
        let started: Vec<_> = (0..20).map(|_| one()).collect();
        started.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let addresses: BTreeSet<Ipv4Addr> = all.iter().map(Attached::address).collect();
    assert_eq!(addresses.len(), 20);
    assert_eq!(machine.left().len(), 2, "{:?}", machine.left());
    // A sandbox that is still there keeps its way out.
    drop(networks);
    assert!(inside(&all[0], || seen_as(OUTSIDE, PORT)).is_ok());
    drop(all);
    let end = Instant::now() + SOON;
    while !machine.left().is_empty() {
        assert!(Instant::now() < end, "{:?}", machine.left());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_machine_without_a_way_out_has_private_networks_all_the_same() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let networks = Networks::new("r-1", Settings { resolv_conf: Vec::new(), ..Settings::default() });
    let attached = networks.private().unwrap();
    let refused = inside(&attached, || seen_as(OUTSIDE, PORT)).unwrap_err();
    assert_ne!(refused.kind(), ErrorKind::TimedOut, "{refused}");
    inside(&attached, || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    });
    assert_eq!(attached.to_string(), "10.213.64.1 of 10.213.0.0/16");
}
