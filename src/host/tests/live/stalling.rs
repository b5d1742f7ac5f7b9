//! Clients, replicas and tunnels that stop in the middle: given up in time, sent nowhere else; and slow ones that go on,
//! which are not.

use crate::backend::Backend;
use crate::balancing::{Balancer, wait_for};
use crate::http::Client;
use crate::scratch;
use keelway_deploy::protocol::BackendState::{Active, Draining};
use keelway_host::Patience;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// The bounds of these tests, short enough to be waited for.
const CLIENT: Duration = Duration::from_secs(1);
const EXCHANGE: Duration = Duration::from_millis(2500);
const TUNNEL: Duration = Duration::from_secs(3);
const TUNNEL_DRAIN: Duration = Duration::from_millis(500);
/// More than the sockets' buffers of both sides hold together, whatever the kernel makes of them.
const LARGE: usize = 64 << 20;

fn patience() -> Patience {
    Patience { client: CLIENT, exchange: EXCHANGE, tunnel: TUNNEL, tunnel_drain: TUNNEL_DRAIN }
}

fn setting(name: &str, port: u16) -> (Balancer, Backend) {
    let mut balancer = Balancer::patient(name, port, patience());
    let backend = Backend::start(&scratch(name).join("a"));
    balancer.set(&[(0, backend.address, Active)]);
    (balancer, backend)
}

fn in_flight(balancer: &Balancer) -> u32 {
    balancer.report().backends.iter().map(|b| b.in_flight).sum()
}

/// A request written, nothing read.
fn begun(balancer: &Balancer, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(balancer.at()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

/// What comes until the stream ends or breaks.
fn rest(stream: &mut TcpStream) -> usize {
    let (mut total, mut buffer) = (0, vec![0; 64 << 10]);
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        total += n;
    }
    total
}

/// How often the backend was asked for a target.
fn asked(backend: &Backend, target: &str) -> usize {
    backend.logged().iter().filter(|l| l.starts_with(target)).count()
}

pub fn client_stops_reading() {
    let (mut balancer, backend) = setting("unread", 8100);
    let target = format!("/stream?bytes={LARGE}");
    let mut stalled = begun(&balancer, &format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n"));
    wait_for("the request to be on its way", || asked(&backend, "/stream") == 1);
    // A drain has to wait for it, but not for ever.
    let drain = Instant::now();
    balancer.set(&[(0, backend.address, Draining)]);
    assert_eq!(in_flight(&balancer), 1);
    wait_for("the drain to be over", || in_flight(&balancer) == 0);
    // Its bound, one look more, and what a busy machine takes.
    assert!(drain.elapsed() < 3 * CLIENT, "{:?}", drain.elapsed());
    assert!(rest(&mut stalled) < LARGE, "it was cut");
    assert_eq!(asked(&backend, "/stream"), 1, "never sent again");
}

pub fn slow_reader_is_not_cut() {
    let (mut balancer, backend) = setting("slow-reader", 8101);
    let target = format!("/stream?bytes={LARGE}");
    let mut slow = begun(&balancer, &format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n"));
    wait_for("the request to be on its way", || asked(&backend, "/stream") == 1);
    balancer.set(&[(0, backend.address, Draining)]);
    // So slowly that the third of the send buffer for which the kernel waits is free only after several bounds.
    let (begun, mut total, mut piece) = (Instant::now(), 0, vec![0; 64 << 10]);
    while begun.elapsed() < 5 * CLIENT {
        total += slow.read(&mut piece).unwrap();
        std::thread::sleep(Duration::from_millis(250));
    }
    assert_eq!(in_flight(&balancer), 1, "after {total} bytes in {:?}", begun.elapsed());
    total += rest_of(&mut slow, LARGE, total);
    assert!(total > LARGE, "all of it and a head: {total}");
    wait_for("its end", || in_flight(&balancer) == 0);
    assert_eq!(asked(&backend, "/stream"), 1);
}

/// Reads on until the whole answer has come; the connection is kept alive then.
fn rest_of(stream: &mut TcpStream, body: usize, mut total: usize) -> usize {
    let (before, mut buffer) = (total, vec![0; 64 << 10]);
    while total <= body {
        match stream.read(&mut buffer) {
            Ok(n @ 1..) => total += n,
            end => panic!("cut after {total} bytes: {end:?}"),
        }
    }
    total - before
}

pub fn client_stops_sending() {
    let (balancer, backend) = setting("unsent", 8102);
    let head = "POST /upload HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n";
    let began = Instant::now();
    let stalled = begun(&balancer, &format!("{head}half"));
    let mut client = Client::of(stalled);
    let answer = client.read().expect("an answer");
    assert!(answer.start.starts_with("HTTP/1.1 408 "), "{answer:?}");
    assert!(began.elapsed() < 3 * CLIENT, "{:?}", began.elapsed());
    wait_for("nothing in flight", || in_flight(&balancer) == 0);
    assert_eq!(asked(&backend, "/upload"), 0, "half a request is none");

    // Slowly, but on and on: longer in all than any bound.
    let mut slow = begun(&balancer, head);
    for _ in 0..10 {
        std::thread::sleep(CLIENT * 2 / 5);
        slow.write_all(b"0123456789").unwrap();
    }
    let answer = Client::of(slow).read().expect("an answer");
    assert!(answer.start.starts_with("HTTP/1.1 200 "), "{answer:?}");
    assert!(answer.text().ends_with("0123456789"));
    assert_eq!(asked(&backend, "/upload"), 1);
}

pub fn replica_stops_answering() {
    let (balancer, backend) = setting("unanswered", 8103);
    // In the middle of its answer.
    let began = Instant::now();
    let mut cut = begun(&balancer, "GET /half HTTP/1.1\r\nhost: a\r\n\r\n");
    rest(&mut cut);
    let took = began.elapsed();
    assert!(took >= EXCHANGE && took < 3 * EXCHANGE, "{took:?}");
    // Before it.
    let late = begun(&balancer, "GET /late?wait=9000 HTTP/1.1\r\nhost: a\r\n\r\n");
    let answer = Client::of(late).read().expect("an answer");
    assert!(answer.start.starts_with("HTTP/1.1 504 "), "{answer:?}");
    wait_for("nothing in flight", || in_flight(&balancer) == 0);
    // Slow, but within the bound.
    let fine = begun(&balancer, "GET /late?wait=1500 HTTP/1.1\r\nhost: a\r\n\r\n");
    assert!(Client::of(fine).read().is_some_and(|a| a.start.starts_with("HTTP/1.1 200 ")));
    for target in ["/half", "/late?wait=9000", "/late?wait=1500"] {
        assert_eq!(asked(&backend, target), 1, "{target} was sent once");
    }
}

pub fn quiet_tunnels() {
    let (mut balancer, backend) = setting("tunnels", 8104);
    let open = || {
        let upgrade = "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
        let mut client = Client::of(begun(&balancer, upgrade));
        assert!(client.read_head().is_some_and(|a| a.start.contains("101")));
        client
    };
    let echo = |client: &mut Client| client.write(b"hello\n").is_ok() && client.read_line() == "HELLO\n";
    let (mut quiet, mut busy) = (open(), open());
    let begun = Instant::now();
    while begun.elapsed() < 2 * TUNNEL_DRAIN {
        assert!(echo(&mut busy));
        std::thread::sleep(TUNNEL_DRAIN / 5);
    }
    assert!(echo(&mut quiet), "before a drain it may be quiet for longer");
    assert_eq!(in_flight(&balancer), 2);
    balancer.set(&[(0, backend.address, Draining)]);
    let drain = Instant::now();
    while in_flight(&balancer) == 2 {
        assert!(echo(&mut busy), "one in use lives on");
        assert!(drain.elapsed() < 6 * TUNNEL_DRAIN, "a quiet tunnel holds the drain");
        std::thread::sleep(TUNNEL_DRAIN / 5);
    }
    assert_eq!(quiet.read_line(), "", "it was closed");
    assert!(echo(&mut busy));
    // In use no more.
    wait_for("the drain to be over", || in_flight(&balancer) == 0);
    assert!(drain.elapsed() < TUNNEL, "{:?}", drain.elapsed());

    // Without a drain too, a tunnel without life ends.
    balancer.set(&[(0, backend.address, Active)]);
    let upgrade = "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    let mut dead = Client::of(self::begun(&balancer, upgrade));
    assert!(dead.read_head().is_some());
    let begun = Instant::now();
    wait_for("its end", || in_flight(&balancer) == 0);
    assert!(begun.elapsed() + Duration::from_millis(100) >= TUNNEL, "{:?}", begun.elapsed());
}
