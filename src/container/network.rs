//! The networks of sandboxes: private ones, and named ones whose members find each other.
//!
//! A private network reaches out through NAT and nothing reaches in. It does not reach the machine itself (its
//! loopback, any of its addresses, ports that it forwards), link-local addresses, or any other sandbox. Members of
//! a named network reach each other besides, by name.
//!
//! Between the sandboxes of a run and the machine stands a router of the run (see [`router`](self)). Invariants:
//! - every sandbox has a network namespace of its own, that none had before;
//! - nothing has a name that outlives this process: namespaces, interfaces and rules are held by descriptors, and the
//!   kernel removes them when it ends, also by SIGKILL. There is nothing to reap;
//! - no program is started: the kernel is asked by netlink. An ordinary user's routers reach the machine by pasta(1).
//!
//! The machine must be Linux 5.12 or later, and this process root (or have `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`).

mod dns;
mod firewall;
mod namespace;
mod netlink;
mod question;
mod range;
mod resolver;
mod route;
mod router;
#[cfg(test)]
mod tests;
mod userland;

pub use dns::resolv_conf;
pub use namespace::allow_forwarding;
pub use question::fuzz_question;
pub use range::{Range, RangeError};

use dns::ResolvConf;
use keelway_sandbox::Network;
use namespace::Namespace;
use resolver::{Names, Resolver};
use router::{Place, Router};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What the networks of a process depend on.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Their addresses; `None` takes a range that no route of the machine goes into.
    pub range: Option<Range>,
    /// Files that name the machine's servers; the first with a usable one counts.
    pub resolv_conf: Vec<PathBuf>,
    /// How routers reach the machine.
    pub uplink: Uplink,
}

/// How a router reaches the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uplink {
    /// By an interface of the machine and NAT: root's way.
    Machine,
    /// By this program, pasta(1): an ordinary user's.
    Pasta(PathBuf),
}

/// Where pasta(1) is looked for.
const PROGRAM_DIRS: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/bin"];
/// What pasta(1) makes interfaces with.
const TUN: &str = "/dev/net/tun";

impl Uplink {
    /// What this process can do; none for an ordinary user of a machine without pasta(1), or whose /dev/net/tun is
    /// root's alone.
    pub fn look() -> Option<Self> {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        if map.split_whitespace().eq(["0", "0", "4294967295"]) {
            return Some(Self::Machine);
        }
        Self::for_a_user().ok().map(Self::Pasta)
    }

    /// The program that an ordinary user's networks go through.
    pub fn for_a_user() -> Result<PathBuf, NoUplink> {
        let program = PROGRAM_DIRS.iter().map(|d| Path::new(d).join("pasta")).find(|p| p.is_file());
        let program = program.ok_or(NoUplink::Program)?;
        let tun = std::fs::OpenOptions::new().read(true).write(true).open(TUN);
        tun.map(|_| program).map_err(NoUplink::Tun)
    }
}

/// What an ordinary user's networks lack.
#[derive(Debug)]
pub enum NoUplink {
    /// pasta(1) is not installed.
    Program,
    /// /dev/net/tun cannot be used.
    Tun(io::Error),
}

impl Default for Settings {
    fn default() -> Self {
        Self { range: None, resolv_conf: dns::files(), uplink: Uplink::Machine }
    }
}

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel refused.
    #[error("cannot {what}: {source}{}", mend(source))]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It refused rules of the packet filter.
    #[error(
        "cannot {what}: {source}; private networks need nftables with NAT in the kernel, Linux 5.12 or later{}",
        mend(source)
    )]
    Rules {
        /// What was tried.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// pasta(1) did not start, or ended.
    #[error(
        "{} gives no way out: {detail}; `keelway doctor` says what it needs, and `network: none` needs nothing",
        program.display()
    )]
    Userland {
        /// The program.
        program: PathBuf,
        /// What it said.
        detail: String,
    },
    /// A switch of the kernel could not be set.
    #[error(
        "cannot write {path}: {source}; where /proc/sys is read-only, as in a container, set it from outside{}",
        mend(source)
    )]
    Setting {
        /// Which.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Everything is taken.
    #[error(
        "every range of addresses for private networks is in use by a route of this machine ({tried}): name another with --network-range"
    )]
    NoRange {
        /// What was looked at.
        tried: String,
    },
    /// A bound was reached.
    #[error("there are {most} {what} already, which is the most: wait until some have ended")]
    Full {
        /// Of what.
        what: &'static str,
        /// How many.
        most: u32,
    },
    /// A name that a member cannot have.
    #[error(
        "{0:?} cannot be the name of a member of a network: 1 to 63 of a-z 0-9 - _ ., each part beginning and ending with a letter or digit"
    )]
    Name(String),
    /// A name that another member has.
    #[error("the network has a member {0:?} already")]
    Taken(String),
}

fn mend(source: &io::Error) -> &'static str {
    if source.kind() == io::ErrorKind::PermissionDenied {
        "; run as root, or without a private network: `network: none` or `--network none`"
    } else {
        ""
    }
}

impl NetworkError {
    fn kernel(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Kernel { what, source }
    }
}

/// All networks of a process. Cheap to clone; the router is made when the first sandbox needs it, and goes with the
/// last clone and the last sandbox.
#[derive(Debug, Clone)]
pub struct Networks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    run: String,
    settings: Settings,
    made: Mutex<Option<Arc<Made>>>,
}

/// What is made once.
#[derive(Debug)]
struct Made {
    router: Router,
    names: Arc<Names>,
    /// What a private sandbox is told: servers that it can reach, else our own resolver.
    reachable: Option<ResolvConf>,
    /// All of the machine's servers, as the machine itself reaches them.
    servers: Option<ResolvConf>,
    resolver: Mutex<Option<Resolver>>,
}

impl Networks {
    /// For the run of this name, which people see beside its interface. Does nothing yet.
    pub fn new(run: &str, settings: Settings) -> Self {
        // The kernel takes 255 bytes for the note at an interface.
        let run = run.chars().filter(char::is_ascii_graphic).take(100).collect();
        Self(Arc::new(Inner { run, settings, made: Mutex::new(None) }))
    }

    /// A private network for one sandbox. Blocks for a millisecond or two; the first time some more.
    ///
    /// # Errors
    /// The machine cannot make one, or its bounds are reached.
    pub fn private(&self) -> Result<Attached, NetworkError> {
        let made = self.made()?;
        let place = made.router.private()?;
        let resolv_conf = match (&made.reachable, &made.servers) {
            (Some(conf), _) => conf.text(),
            (None, Some(conf)) => {
                made.resolve()?;
                conf.clone().with_server(place.gateway.into()).text()
            }
            (None, None) => Vec::new(),
        };
        Ok(Attached { place, resolv_conf, membership: None, made })
    }

    /// A network whose members find each other by name; it ends with the value and its last member.
    ///
    /// # Errors
    /// As [`Networks::private`].
    pub fn named(&self) -> Result<Named, NetworkError> {
        let made = self.made()?;
        made.resolve()?;
        let network = made.router.named()?;
        Ok(Named(Arc::new(Bridge { network, next: AtomicU32::new(0), made })))
    }

    /// Makes what the first sandbox would wait for.
    ///
    /// # Errors
    /// As [`Networks::private`].
    pub fn prepare(&self) -> Result<(), NetworkError> {
        self.made().map(drop)
    }

    fn made(&self) -> Result<Arc<Made>, NetworkError> {
        // What is in it is whole or not there.
        let mut made = self.0.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = &*made {
            return Ok(Arc::clone(made));
        }
        let new = Arc::new(Made::new(&self.0.run, &self.0.settings)?);
        *made = Some(Arc::clone(&new));
        Ok(new)
    }
}

impl Made {
    fn new(run: &str, settings: &Settings) -> Result<Self, NetworkError> {
        let home = Namespace::current()?;
        let router = Router::build(&home, run, settings)?;
        let files = &settings.resolv_conf;
        let look = || Ok(ResolvConf::first(files, is_reachable));
        // Who is not root may not enter the machine's network again, and is in it.
        let reachable = match &settings.uplink {
            Uplink::Machine => home.inside(look)?,
            Uplink::Pasta(_) => look()?,
        };
        let servers = ResolvConf::first(files, |_| true);
        let (names, resolver) = (Arc::default(), Mutex::new(None));
        Ok(Self { router, names, reachable, servers, resolver })
    }

    /// Makes sure that our resolver runs.
    fn resolve(&self) -> Result<(), NetworkError> {
        let mut resolver = self.resolver.lock().unwrap_or_else(PoisonError::into_inner);
        if resolver.is_none() {
            let servers: Vec<SocketAddr> = self.servers.as_ref().map_or_else(Vec::new, ResolvConf::sockets);
            let sockets = self.router.name_server()?;
            let started = Resolver::start(sockets, self.router.range, Arc::clone(&self.names), servers)?;
            *resolver = Some(started);
        }
        Ok(())
    }
}

/// Whether a private sandbox reaches this server: IPv4, routed, and not an address of the machine itself.
fn is_reachable(server: IpAddr) -> bool {
    let IpAddr::V4(server) = server else { return false };
    let routed = !server.is_loopback() && !server.is_unspecified() && !server.is_link_local();
    // Only an own address can be bound.
    routed && UdpSocket::bind((server, 0)).is_err()
}

/// A network that has members.
#[derive(Debug, Clone)]
pub struct Named(Arc<Bridge>);

#[derive(Debug)]
struct Bridge {
    network: u32,
    next: AtomicU32,
    made: Arc<Made>,
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.made.router.remove_named(self.network);
    }
}

/// A member's entry, which goes with it.
#[derive(Debug)]
struct Membership {
    name: String,
    bridge: Arc<Bridge>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.bridge.made.names.remove(self.bridge.network, &self.name);
    }
}

impl Named {
    /// A network for one sandbox that the other members find under this name, from now until the value goes.
    ///
    /// # Errors
    /// The name is no name or is taken; otherwise as [`Networks::private`].
    pub fn join(&self, name: &str) -> Result<Attached, NetworkError> {
        if !is_name(name) {
            return Err(NetworkError::Name(name.chars().take(80).collect()));
        }
        let bridge = &self.0;
        let made = &bridge.made;
        let place = (0..range::MEMBERS).find_map(|_| {
            let member = bridge.next.fetch_add(1, Ordering::Relaxed) % range::MEMBERS;
            made.router.member(bridge.network, member).transpose()
        });
        let full = NetworkError::Full { what: "members of this network", most: range::MEMBERS };
        let place = place.ok_or(full)??;
        if !made.names.add(bridge.network, name, place.address) {
            return Err(NetworkError::Taken(name.to_owned()));
        }
        let membership = Some(Membership { name: name.to_owned(), bridge: Arc::clone(bridge) });
        // Without search domains: a member's name must not become that of a stranger in one of them.
        let resolv_conf = ResolvConf::default().with_server(place.gateway.into()).text();
        Ok(Attached { place, resolv_conf, membership, made: Arc::clone(made) })
    }
}

fn is_name(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let part = |p: &str| {
        let bytes = p.as_bytes();
        edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
    };
    name.len() <= 63 && name.split('.').all(part)
}

/// A sandbox's own network. It must be kept until every process of the sandbox is dead.
#[derive(Debug)]
pub struct Attached {
    place: Place,
    resolv_conf: Vec<u8>,
    membership: Option<Membership>,
    /// The way out is there as long as this.
    made: Arc<Made>,
}

impl Attached {
    /// What the sandbox joins.
    pub fn network(&self) -> Network {
        Network::Join(self.place.namespace.path())
    }
    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.place.address
    }
    /// Its `/etc/hosts`.
    pub fn hosts(&self, hostname: &str) -> Vec<u8> {
        let mut text = format!("{LOCALHOST}{}\t{hostname}", self.place.address);
        if let Some(m) = self.membership.as_ref().filter(|m| m.name != hostname) {
            text.push(' ');
            text.push_str(&m.name);
        }
        text.push('\n');
        text.into_bytes()
    }
    /// Its `/etc/resolv.conf`.
    pub fn resolv_conf(&self) -> &[u8] {
        &self.resolv_conf
    }
    /// The range of addresses that it is in.
    pub fn range(&self) -> Range {
        self.made.router.range
    }
}

/// What every `/etc/hosts` begins with.
pub const LOCALHOST: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost\n";

impl fmt::Display for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.address(), self.range())
    }
}
