//! The bounded load generator and its book of requests.
//!
//! Open loop: a request is sent when its time has come, whatever happened to the others. No request is
//! ever sent twice, on no connection. Each has an id of its own; the book says what became of it, and
//! [`judge`] holds the book against the ids that the replicas logged.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, BufRead as _, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// A request without an answer by then is lost.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// What to send.
#[derive(Debug, Clone)]
pub struct Load {
    /// Balancers, used in turn.
    pub targets: Vec<SocketAddr>,
    /// Requests a second.
    pub rate: u32,
    /// At the latest after this many requests it stops.
    pub most: u32,
    /// What ids begin with, so that two runs never share one.
    pub prefix: String,
}

/// What became of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub id: String,
    /// Milliseconds after the start when it was sent.
    pub sent_ms: u64,
    /// Milliseconds after the start when it was answered or given up.
    pub done_ms: u64,
    /// `2xx` with the version that answered, or why there was none.
    pub result: Result<String, String>,
}

impl Entry {
    /// As a line of the book.
    pub fn to_json(&self) -> Value {
        match &self.result {
            Ok(version) => {
                json!({"id": self.id, "sent": self.sent_ms, "done": self.done_ms, "version": version})
            }
            Err(error) => json!({"id": self.id, "sent": self.sent_ms, "done": self.done_ms, "error": error}),
        }
    }
    /// From a line of the book.
    pub fn from_json(line: &str) -> io::Result<Self> {
        let v: Value = serde_json::from_str(line)?;
        let text = |k: &str| v[k].as_str().map(str::to_owned);
        let id = text("id").ok_or_else(|| io::Error::other(format!("no id in {line:?}")))?;
        let result = match (text("version"), text("error")) {
            (Some(version), _) => Ok(version),
            (_, error) => Err(error.unwrap_or_default()),
        };
        Ok(Self {
            id,
            sent_ms: v["sent"].as_u64().unwrap_or(0),
            done_ms: v["done"].as_u64().unwrap_or(0),
            result,
        })
    }
}

/// The argument that makes a program of the kit a load generator: `__load PREFIX RATE MOST ADDRESS..`.
pub const VERB: &str = "__load";

/// Becomes a load generator when the arguments say so; else returns at once.
#[expect(clippy::exit, reason = "the program was started to be nothing else")]
pub fn main_if_asked() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [verb, prefix, rate, most, targets @ ..] = args.as_slice() else { return };
    if verb != VERB {
        return;
    }
    if let Err(e) = generate(prefix, rate, most, targets) {
        let _ = writeln!(io::stderr(), "load generator: {e}");
        std::process::exit(1);
    }
    std::process::exit(0);
}

/// Sends until standard input ends, then writes the book to standard output.
fn generate(prefix: &str, rate: &str, most: &str, targets: &[String]) -> io::Result<()> {
    let number = |s: &str| s.parse::<u32>().map_err(io::Error::other);
    let targets =
        targets.iter().map(|t| t.parse().map_err(io::Error::other)).collect::<io::Result<Vec<_>>>()?;
    let load = Load { targets, rate: number(rate)?, most: number(most)?, prefix: prefix.to_owned() };
    let (tell, told) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _ = io::stdin().lock().lines().count();
        let _ = tell.send(());
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let book = runtime.block_on(run(load, async {
        let _ = told.await;
    }));
    let mut out = io::BufWriter::new(io::stdout().lock());
    for entry in book {
        writeln!(out, "{}", entry.to_json())?;
    }
    out.flush()
}

/// The kinds of requests, in turn: method, fresh connection, milliseconds of work.
fn kind(n: u32) -> (&'static str, bool, u32) {
    let method = if n.is_multiple_of(2) { "GET" } else { "POST" };
    let fresh = n % 4 < 2;
    let ms = if n % 20 == 7 { 1000 + (n / 20 * 97) % 1000 } else { 0 };
    (method, fresh, ms)
}

/// Sends until `stop` resolves or `most` were sent, then waits for what is in flight. The book holds every
/// request that was begun.
pub async fn run(load: Load, stop: impl Future<Output = ()>) -> Vec<Entry> {
    let start = Instant::now();
    let book = Arc::new(Mutex::new(Vec::new()));
    let idle: Arc<Vec<Mutex<Vec<BufReader<TcpStream>>>>> =
        Arc::new(load.targets.iter().map(|_| Mutex::new(Vec::new())).collect());
    let mut tasks = tokio::task::JoinSet::new();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / load.rate.max(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let mut stop = std::pin::pin!(stop);
    for n in 0..load.most {
        tokio::select! {
            () = &mut stop => break,
            _ = tick.tick() => {}
        }
        let at = n as usize / 4 % load.targets.len();
        let (target, id) = (load.targets[at], format!("{}-{n}", load.prefix));
        let (book, idle) = (Arc::clone(&book), Arc::clone(&idle));
        tasks.spawn(async move {
            let sent_ms = start.elapsed().as_millis() as u64;
            let result = match tokio::time::timeout(DEADLINE, send(n, target, &id, &idle[at])).await {
                Ok(Ok(version)) => Ok(version),
                Ok(Err(e)) => Err(e.to_string()),
                Err(_) => Err("no answer within 5 s".to_owned()),
            };
            let done_ms = start.elapsed().as_millis() as u64;
            book.lock().expect("no holder panics").push(Entry { id, sent_ms, done_ms, result });
        });
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
    Arc::into_inner(book).expect("every task ended").into_inner().expect("no holder panics")
}

async fn send(
    n: u32,
    target: SocketAddr,
    id: &str,
    idle: &Mutex<Vec<BufReader<TcpStream>>>,
) -> io::Result<String> {
    let (method, fresh, ms) = kind(n);
    let kept = if fresh { None } else { idle.lock().expect("no holder panics").pop() };
    let mut stream = match kept {
        Some(s) => s,
        None => {
            let s = TcpStream::connect(target).await?;
            s.set_nodelay(true)?;
            BufReader::new(s)
        }
    };
    let connection = if fresh { "close" } else { "keep-alive" };
    let request = if method == "GET" {
        format!(
            "GET /work?id={id}&ms={ms} HTTP/1.1\r\nHost: web.rig.test\r\nConnection: {connection}\r\n\r\n"
        )
    } else {
        let length = id.len();
        format!(
            "POST /work?ms={ms} HTTP/1.1\r\nHost: web.rig.test\r\nConnection: {connection}\r\nContent-Length: {length}\r\n\r\n{id}"
        )
    };
    stream.get_mut().write_all(request.as_bytes()).await?;
    let answer = answer(&mut stream).await?;
    if !fresh && !answer.close {
        let mut idle = idle.lock().expect("no holder panics");
        if idle.len() < 64 {
            idle.push(stream);
        }
    }
    let mut words = answer.body.split_whitespace();
    match (answer.status, words.next(), words.next()) {
        (200..=299, Some(echo), Some(version)) if echo == id => Ok(version.to_owned()),
        (status, ..) => Err(io::Error::other(format!("status {status}: {}", answer.body.trim()))),
    }
}

struct Answer {
    status: u16,
    close: bool,
    body: String,
}

/// Reads one HTTP/1.1 response with a Content-Length.
async fn answer(stream: &mut BufReader<TcpStream>) -> io::Result<Answer> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed before the answer"));
    }
    let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| bad("no status line"))?;
    let (mut length, mut close) = (0usize, false);
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Err(bad("closed within the headers"));
        }
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(|_| bad("Content-Length"))?;
        } else if name.eq_ignore_ascii_case("connection") {
            close = value.trim().eq_ignore_ascii_case("close");
        }
    }
    if length > 1 << 20 {
        return Err(bad("the body is too long"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Answer { status, close, body: String::from_utf8_lossy(&body).into_owned() })
}

/// What the book and the logs of the replicas say together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Requests sent.
    pub requests: usize,
    /// No 2xx within the deadline.
    pub lost: Vec<Entry>,
    /// Ids that were logged more than once, with how often.
    pub duplicated: Vec<(String, usize)>,
    /// Ids answered 2xx that no log holds: the logs are not complete, so nothing is proven.
    pub unlogged: Vec<String>,
    /// Answers per version.
    pub versions: BTreeMap<String, usize>,
}

impl Verdict {
    /// The line that ends a run.
    pub fn line(&self) -> String {
        format!(
            "requests: {}, lost: {}, duplicated: {}",
            self.requests,
            self.lost.len(),
            self.duplicated.len()
        )
    }
}

/// Holds the book against `logged`: every id in the order of the logs, once for each time it stands there.
pub fn judge(book: &[Entry], logged: impl IntoIterator<Item = String>) -> Verdict {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for id in logged {
        *seen.entry(id).or_default() += 1;
    }
    let mut verdict = Verdict { requests: book.len(), ..Verdict::default() };
    for entry in book {
        let times = seen.get(&entry.id).copied().unwrap_or(0);
        match &entry.result {
            Ok(version) => {
                *verdict.versions.entry(version.clone()).or_default() += 1;
                if times == 0 {
                    verdict.unlogged.push(entry.id.clone());
                }
            }
            Err(_) => verdict.lost.push(entry.clone()),
        }
        if times > 1 {
            verdict.duplicated.push((entry.id.clone(), times));
        }
    }
    verdict
}

/// The ids in a replica's log: lines that hold `id=ID version=V`.
pub fn ids_of(log: &str) -> impl Iterator<Item = String> + '_ {
    log.lines().filter_map(|l| {
        let (_, rest) = l.split_once("id=")?;
        let (id, rest) = rest.split_once(' ')?;
        rest.starts_with("version=").then(|| id.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, result: Result<&str, &str>) -> Entry {
        Entry {
            id: id.into(),
            sent_ms: 0,
            done_ms: 1,
            result: result.map(str::to_owned).map_err(str::to_owned),
        }
    }

    #[test]
    fn the_verdict_tells_lost_duplicated_and_unlogged_apart() {
        let book =
            [entry("a", Ok("1")), entry("b", Ok("2")), entry("c", Err("refused")), entry("d", Ok("2"))];
        let v = judge(&book, ids_of("x id=a version=1\nid=b version=2\nid=b version=2\nnoise\n"));
        assert_eq!(v.line(), "requests: 4, lost: 1, duplicated: 1");
        assert_eq!(v.unlogged, ["d"]);
        assert_eq!(v.versions["2"], 2);
        assert_eq!(Entry::from_json(&book[2].to_json().to_string()).unwrap(), book[2]);
    }

    #[test]
    fn a_tenth_of_the_kinds_is_slow_and_half_are_posts() {
        let kinds: Vec<_> = (0..200).map(kind).collect();
        assert_eq!(kinds.iter().filter(|k| k.0 == "POST").count(), 100);
        assert_eq!(kinds.iter().filter(|k| k.1).count(), 100);
        let slow: Vec<u32> = kinds.iter().map(|k| k.2).filter(|ms| *ms > 0).collect();
        assert!(slow.len() == 10 && slow.iter().all(|ms| (1000..2000).contains(ms)));
    }
}
