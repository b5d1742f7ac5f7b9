//! What is on a host of the rig, seen from outside and not through Keelway's own status: the report of its
//! balancer, and a count of everything that a replica needs and may leave behind.

use super::Rig;
use super::node::Node;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// For one answer of a balancer.
const ANSWER: Duration = Duration::from_secs(3);
/// Between two looks at the capacity.
const LOOK: Duration = Duration::from_millis(50);

/// What is counted: a name, and a shell command that prints a number.
const COUNTS: &[(&str, &str)] = &[
    ("network namespaces", "ls /run/netns 2>/dev/null | wc -l"),
    ("veth links", "ip -o link show type veth | grep -c 'master kw0'"),
    ("forwarding rules", "nft list table ip keelway 2>/dev/null | grep -c 'dnat to'"),
    ("mounts", "grep -c -e ' /var/lib/keelway/' -e ' nsfs ' /proc/self/mountinfo"),
    ("cgroups", "find /sys/fs/cgroup -mindepth 2 -type d -path '*keelway*' | wc -l"),
    ("run directories", "ls /var/lib/keelway/store/runs | wc -l"),
    ("upper layers", "find /var/lib/keelway/store/runs -mindepth 2 -maxdepth 2 -type d | wc -l"),
    (
        "thrown away",
        "find /var/lib/keelway/store/trash /var/lib/keelway/host/trash -mindepth 1 -maxdepth 1 | wc -l",
    ),
    ("replica records", "find /var/lib/keelway/host/apps/*/replicas -mindepth 1 -maxdepth 1 | wc -l"),
    ("sockets", "ls /var/lib/keelway/host/sock | wc -l"),
    ("balancers", "pgrep -fc ' __balancer '"),
    (
        "supervisors",
        "pgrep -f ' __supervise ' | while read p; do tr '\\0' ' ' </proc/$p/cmdline; echo; done | grep -vc -e ' --replica '",
    ),
    ("keepers", "pgrep -fc ' __supervise .* --replica '"),
    ("sandbox processes", "pgrep -fc '__init'"),
    ("app processes", "pgrep -fc '^python3 /srv/app'"),
];

/// How much of each kind there is on a host.
pub fn counts(host: &Node) -> io::Result<BTreeMap<String, u64>> {
    let script: String = COUNTS
        .iter()
        .map(|(name, command)| format!("echo \"{name}=$({{ {command}; }} 2>/dev/null)\"\n"))
        .collect();
    // From standard input, so that no process has the patterns in its own arguments.
    let mut child = host
        .command("sh")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    child.stdin.take().expect("it is piped").write_all(script.as_bytes())?;
    let out = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let parse = |line: &str| {
        let (name, count) = line.split_once('=')?;
        Some((name.to_owned(), count.trim().parse().ok()?))
    };
    let counts: BTreeMap<String, u64> = text.lines().filter_map(parse).collect();
    if counts.len() == COUNTS.len() {
        Ok(counts)
    } else {
        Err(io::Error::other(format!("{}: {text}", host.name())))
    }
}

/// The pids inside the host of the processes whose arguments match the pattern, and none of `but`.
pub fn pids(host: &Node, pattern: &str, but: Option<&str>) -> Vec<u32> {
    let text = host.run(&["pgrep", "-fa", pattern]).unwrap_or_default();
    text.lines()
        .filter(|l| but.is_none_or(|b| !l.contains(b)) && !l.contains("pgrep"))
        .filter_map(|l| l.split(' ').next()?.parse().ok())
        .collect()
}

/// What the balancer of a host says of itself; an error where it does not answer.
pub fn balancer(host: &Node) -> io::Result<Value> {
    ask_balancer(socket(host)?)
}

fn socket(host: &Node) -> io::Result<PathBuf> {
    let dir = host.state_dir().join("host/sock");
    let is_balancer = |name: &str| name.starts_with("b-") && !name.ends_with('+');
    let found = fs::read_dir(dir)?.flatten().find(|e| e.file_name().to_str().is_some_and(is_balancer));
    found.map(|e| e.path()).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no balancer has a socket"))
}

fn ask_balancer(socket: PathBuf) -> io::Result<Value> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER))?;
    let ask = br#"{"ask":"report"}"#;
    stream.write_all(&u32::try_from(ask.len()).map_err(io::Error::other)?.to_be_bytes())?;
    stream.write_all(ask)?;
    let mut head = [0u8; 4];
    stream.read_exact(&mut head)?;
    let length = u32::from_be_bytes(head) as usize;
    if length > 1 << 20 {
        return Err(io::Error::other("the answer is too long"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(serde_json::from_slice::<Value>(&body)?["report"].take())
}

/// The replicas that a balancer gives new requests, by its own report.
pub fn usable(report: &Value) -> Vec<String> {
    let backends = report["backends"].as_array().map(Vec::as_slice).unwrap_or_default();
    let good = backends.iter().filter(|b| b["state"] == "active" && b["usable"] == true);
    good.filter_map(|b| b["replica"].as_str().map(str::to_owned)).collect()
}

/// Watches how many replicas each balancer can use.
#[derive(Debug)]
pub struct Capacity {
    stop: Arc<AtomicBool>,
    watcher: Option<JoinHandle<Vec<Seen>>>,
}

/// What was seen of one host's balancer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// Answers.
    pub looks: u32,
    /// Looks without an answer.
    pub silent: u32,
    /// The fewest replicas that were usable, and what the balancer said then.
    pub fewest: Option<(usize, String)>,
}

impl Capacity {
    /// Begins to watch all hosts; each has a balancer already.
    pub fn watch(rig: &Rig) -> io::Result<Self> {
        let sockets = rig.hosts.iter().map(socket).collect::<io::Result<Vec<_>>>()?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let watcher = std::thread::spawn(move || {
            let mut seen = vec![Seen::default(); sockets.len()];
            while !told.load(Ordering::SeqCst) {
                for (socket, seen) in sockets.iter().zip(&mut seen) {
                    match ask_balancer(socket.clone()) {
                        Ok(report) => {
                            seen.looks += 1;
                            let now = usable(&report).len();
                            if seen.fewest.as_ref().is_none_or(|(least, _)| now < *least) {
                                seen.fewest = Some((now, report["backends"].to_string()));
                            }
                        }
                        Err(_) => seen.silent += 1,
                    }
                }
                std::thread::sleep(LOOK);
            }
            seen
        });
        Ok(Self { stop, watcher: Some(watcher) })
    }

    /// Ends it: what was seen, host by host.
    pub fn end(mut self) -> Vec<Seen> {
        self.stop.store(true, Ordering::SeqCst);
        self.watcher.take().and_then(|w| w.join().ok()).unwrap_or_default()
    }
}

impl Drop for Capacity {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}
