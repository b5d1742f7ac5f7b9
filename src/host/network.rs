//! The private network of a host's replicas: one bridge, and for each replica a namespace, a pair of
//! interfaces, an address and a forwarded port.
//!
//! Everything follows from the replica's slot number, so nothing has to be remembered but that number.
//! What is run (`ip`, `nft`) is made as plain values by pure functions and run in one place. All of it is
//! "ensure": doing it twice changes nothing.
//!
//! The firewall is one nftables table of ours, `keelway`, always written as a whole and in one
//! transaction: a port is forwarded for the target's other hosts alone; replicas reach out (masqueraded),
//! nothing else reaches in, and replicas do not reach each other.

use crate::settings::NetworkSettings;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// Where programs are looked for: a remote shell's PATH may lack the sbin directories.
const PROGRAM_DIRS: [&str; 6] =
    ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/local/bin"];
/// For one run of `ip` or `nft`.
const DEADLINE: Duration = Duration::from_secs(20);
/// Interface of a replica inside its namespace.
const INSIDE: &str = "eth0";
/// Our table.
const TABLE: &str = "keelway";

/// A replica's place in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Slot(pub u16);

/// A port that is forwarded into a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Whose.
    pub slot: Slot,
    /// Port the replica listens on.
    pub port: u16,
    /// Who may use it.
    pub peers: BTreeSet<Ipv4Addr>,
}

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Name of the program.
    pub program: &'static str,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its input.
    pub input: String,
    /// Words in its complaint that mean: there is nothing to do.
    pub fine: &'static [&'static str],
}

/// Why the network is not as it shall be.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Not installed.
    #[error("`{program}` is not installed on this host: {}", mend(.program))]
    Missing {
        /// Which.
        program: &'static str,
    },
    /// It failed.
    #[error("`{command}` failed: {said}")]
    Failed {
        /// What was run.
        command: String,
        /// Its complaint.
        said: String,
    },
    /// It did not end.
    #[error("`{command}` did not end within {DEADLINE:?}")]
    TimedOut {
        /// What was run.
        command: String,
    },
    /// It could not be run, or a file of the kernel could not be written.
    #[error("{what}: {source}")]
    Io {
        /// What.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No place is left.
    #[error("all {0} places for replicas on this host are taken: remove replicas or widen --ports")]
    Full(u16),
}

/// The command that installs a program.
pub fn mend(program: &str) -> &'static str {
    match program {
        "nft" => "apt-get install -y nftables",
        _ => "apt-get install -y iproute2",
    }
}

fn ip(args: &[&str]) -> Command {
    let args = args.iter().map(|a| (*a).to_owned()).collect();
    Command { program: "ip", args, input: String::new(), fine: &[] }
}

impl Command {
    fn fine_if(mut self, words: &'static [&'static str]) -> Self {
        self.fine = words;
        self
    }
    fn reading(mut self, lines: &[String]) -> Self {
        self.input = lines.join("\n") + "\n";
        self
    }
}

impl NetworkSettings {
    /// The bridge's own address, which is the replicas' gateway.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.subnet) + 1)
    }
    /// The address of a replica.
    pub fn address(&self, slot: Slot) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.subnet) + 2 + u32::from(slot.0))
    }
    /// Where this host's balancer dials it.
    pub fn socket(&self, slot: Slot, port: u16) -> SocketAddr {
        SocketAddr::from((self.address(slot), port))
    }
    /// The host port that is forwarded into it.
    pub fn host_port(&self, slot: Slot) -> u16 {
        self.first_port.saturating_add(slot.0)
    }
    /// How many replicas there can be: bounded by addresses as well as by ports.
    pub fn capacity(&self) -> u16 {
        let addresses = (1u32 << (32 - u32::from(self.prefix.clamp(8, 30)))) - 3;
        self.slots.min(u16::try_from(addresses).unwrap_or(u16::MAX))
    }
    fn namespace(&self, slot: Slot) -> String {
        format!("keelway-{}-{}", self.bridge, slot.0)
    }
    /// The file that names a replica's namespace.
    pub fn namespace_path(&self, slot: Slot) -> PathBuf {
        Path::new("/run/netns").join(self.namespace(slot))
    }
    fn outside(&self, slot: Slot) -> String {
        format!("{}v{}", self.bridge, slot.0)
    }
    /// The next free slot after `last`: a freed one rests as long as possible, so that who still knows the
    /// old replica under its address does not meet the new one.
    pub fn next_slot(&self, last: Option<Slot>, taken: &BTreeSet<Slot>) -> Result<Slot, NetworkError> {
        let capacity = self.capacity();
        let first = last.map_or(0, |s| u32::from(s.0) + 1);
        (0..u32::from(capacity))
            .map(|i| (first + i) % u32::from(capacity))
            .filter_map(|n| u16::try_from(n).ok().map(Slot))
            .find(|s| !taken.contains(s))
            .ok_or(NetworkError::Full(capacity))
    }

    /// Makes the bridge.
    pub fn bridge_commands(&self) -> Vec<Command> {
        let bridge = self.bridge.as_str();
        let address = format!("{}/{}", self.gateway(), self.prefix);
        vec![
            ip(&["link", "add", bridge, "type", "bridge"]).fine_if(&["File exists"]),
            ip(&["-batch", "-"])
                .reading(&[format!("addr replace {address} dev {bridge}"), format!("link set {bridge} up")]),
        ]
    }
    /// Makes a replica's namespace and its way out.
    pub fn replica_commands(&self, slot: Slot) -> Vec<Command> {
        let (ns, outside) = (self.namespace(slot), self.outside(slot));
        let address = format!("{}/{}", self.address(slot), self.prefix);
        vec![
            ip(&["netns", "add", &ns]).fine_if(&["File exists"]),
            ip(&["link", "add", &outside, "type", "veth", "peer", "name", INSIDE, "netns", &ns])
                .fine_if(&["File exists"]),
            ip(&["-batch", "-"]).reading(&[
                format!("link set {outside} master {}", self.bridge),
                // Replicas talk to the bridge's own host, never to each other.
                format!("link set {outside} type bridge_slave isolated on"),
                format!("link set {outside} up"),
            ]),
            ip(&["-n", &ns, "-batch", "-"]).reading(&[
                "link set lo up".to_owned(),
                format!("addr replace {address} dev {INSIDE}"),
                format!("link set {INSIDE} up"),
                format!("route replace default via {}", self.gateway()),
            ]),
        ]
    }
    /// Removes it.
    pub fn removal_commands(&self, slot: Slot) -> Vec<Command> {
        vec![
            ip(&["link", "del", &self.outside(slot)]).fine_if(&["Cannot find device"]),
            ip(&["netns", "del", &self.namespace(slot)]).fine_if(&["No such file"]),
        ]
    }
    /// The whole of our table.
    pub fn ruleset(&self, forwards: &[Forward]) -> String {
        let net = format!("{}/{}", self.subnet, self.prefix);
        let bridge = &self.bridge;
        let mut text = format!(
            "add table ip {TABLE}\n\
             add chain ip {TABLE} prerouting {{ type nat hook prerouting priority dstnat; policy accept; }}\n\
             add chain ip {TABLE} postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}\n\
             add chain ip {TABLE} forward {{ type filter hook forward priority filter; policy accept; }}\n\
             flush table ip {TABLE}\n\
             add rule ip {TABLE} postrouting ip saddr {net} oifname != \"{bridge}\" masquerade\n\
             add rule ip {TABLE} forward oifname \"{bridge}\" ct state established,related accept\n\
             add rule ip {TABLE} forward oifname \"{bridge}\" ct status dnat accept\n\
             add rule ip {TABLE} forward oifname \"{bridge}\" drop\n"
        );
        for f in forwards.iter().filter(|f| !f.peers.is_empty()) {
            let peers: Vec<String> = f.peers.iter().map(ToString::to_string).collect();
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "add rule ip {TABLE} prerouting iifname != \"{bridge}\" ip saddr {{ {} }} tcp dport {} dnat to {}",
                peers.join(", "),
                self.host_port(f.slot),
                self.socket(f.slot, f.port)
            );
        }
        text
    }
    /// Puts the whole of our table in force.
    pub fn ruleset_command(&self, forwards: &[Forward]) -> Command {
        Command {
            program: "nft",
            args: vec!["-f".into(), "-".into()],
            input: self.ruleset(forwards),
            fine: &[],
        }
    }
    /// Asks the kernel whether it could take our table; changes nothing.
    pub fn ruleset_check(&self) -> Command {
        let mut command = self.ruleset_command(&[Forward {
            slot: Slot(0),
            port: 80,
            peers: BTreeSet::from([Ipv4Addr::new(192, 0, 2, 1)]),
        }]);
        command.args.insert(0, "-c".into());
        command
    }
    /// The slots that have a namespace, by the names in `/run/netns`.
    pub fn slots_of(&self, names: impl Iterator<Item = String>) -> BTreeSet<Slot> {
        let prefix = format!("keelway-{}-", self.bridge);
        names.filter_map(|n| n.strip_prefix(&prefix)?.parse().ok().map(Slot)).collect()
    }
}

/// The peers that can be written in our table. IPv6 between hosts is not there yet.
pub fn ipv4_peers(peers: &[IpAddr]) -> BTreeSet<Ipv4Addr> {
    let v4 = peers.iter().filter_map(|p| match p.to_canonical() {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    });
    v4.collect()
}

/// Where a program is.
pub fn find(program: &str) -> Option<PathBuf> {
    PROGRAM_DIRS.iter().map(|dir| Path::new(dir).join(program)).find(|path| path.is_file())
}

/// Runs one.
pub async fn run(command: &Command) -> Result<String, NetworkError> {
    let program = command.program;
    let path = find(program).ok_or(NetworkError::Missing { program })?;
    let shown = || format!("{program} {}", command.args.join(" "));
    let failed = |source| NetworkError::Io { what: format!("cannot run `{}`", shown()), source };
    let mut child = tokio::process::Command::new(path)
        .args(&command.args)
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let work = async {
        if let Some(mut input) = child.stdin.take() {
            // A program that failed early has closed its input: its own complaint says more.
            let _ = input.write_all(command.input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let done = tokio::time::timeout(DEADLINE, work).await;
    let output: Output = done.map_err(|_| NetworkError::TimedOut { command: shown() })?.map_err(failed)?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() || command.fine.iter().any(|f| said.contains(f)) {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said: String = said.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(600).collect();
    Err(NetworkError::Failed { command: shown(), said })
}

/// Runs all, in order, up to the first that fails.
pub async fn run_all(commands: &[Command]) -> Result<(), NetworkError> {
    for command in commands {
        run(command).await?;
    }
    Ok(())
}

/// Lets this host pass packets on between its interfaces.
pub fn allow_forwarding() -> Result<(), NetworkError> {
    const FILE: &str = "/proc/sys/net/ipv4/ip_forward";
    let io = |source| NetworkError::Io {
        what: format!("cannot write 1 to {FILE}; run `sysctl -w net.ipv4.ip_forward=1`"),
        source,
    };
    if std::fs::read_to_string(FILE).map_err(io)?.trim() != "1" {
        std::fs::write(FILE, "1\n").map_err(io)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> NetworkSettings {
        NetworkSettings::default()
    }

    #[test]
    fn everything_follows_from_the_slot() {
        let s = settings();
        assert_eq!(s.gateway().to_string(), "10.88.0.1");
        assert_eq!(s.address(Slot(0)).to_string(), "10.88.0.2");
        assert_eq!(s.address(Slot(254)).to_string(), "10.88.1.0");
        assert_eq!(s.host_port(Slot(9999)), 29_999);
        assert_eq!(s.capacity(), 10_000);
        assert_eq!(NetworkSettings { prefix: 24, ..s.clone() }.capacity(), 253);
        assert!(s.outside(Slot(9999)).len() <= 15, "the kernel's bound on a name");
        let names = ["keelway-kw0-7", "keelway-kw1-8", "other", "keelway-kw0-x"].map(str::to_owned);
        assert_eq!(s.slots_of(names.into_iter()), BTreeSet::from([Slot(7)]));
    }

    #[test]
    fn a_freed_slot_rests() {
        let s = NetworkSettings { slots: 3, ..settings() };
        let taken = |slots: &[u16]| slots.iter().map(|n| Slot(*n)).collect::<BTreeSet<_>>();
        assert_eq!(s.next_slot(None, &taken(&[])).unwrap(), Slot(0));
        assert_eq!(s.next_slot(Some(Slot(0)), &taken(&[])).unwrap(), Slot(1), "0 was just freed");
        assert_eq!(s.next_slot(Some(Slot(2)), &taken(&[0])).unwrap(), Slot(1));
        assert!(matches!(s.next_slot(Some(Slot(2)), &taken(&[0, 1, 2])), Err(NetworkError::Full(3))));
    }

    #[test]
    fn only_peers_are_forwarded() {
        let s = settings();
        let peers: BTreeSet<Ipv4Addr> = ["198.18.0.3", "198.18.0.4"].map(|a| a.parse().unwrap()).into();
        let text = s.ruleset(&[
            Forward { slot: Slot(5), port: 8080, peers },
            Forward { slot: Slot(6), port: 8080, peers: BTreeSet::new() },
        ]);
        let forwards: Vec<&str> = text.lines().filter(|l| l.contains("dnat to")).collect();
        assert_eq!(
            forwards,
            [
                "add rule ip keelway prerouting iifname != \"kw0\" ip saddr { 198.18.0.3, 198.18.0.4 } tcp dport 20005 dnat to 10.88.0.7:8080"
            ]
        );
        let flush = text.find("flush table").unwrap();
        assert!(text.find("add rule").unwrap() > flush, "old rules go in the same transaction");
    }
}
