//! A run's router: a network namespace between its sandboxes and the machine.
//!
//! Every sandbox has an interface pair of its own into the router, the router one into the machine. So the machine
//! sees one interface and one address a run, whatever runs in it, and all that sandboxes may do to each other is
//! decided in a place where nothing else is. The router and its tables are held by descriptors alone: however this
//! process ends, the kernel takes them away, and the machine's interface and table with them.
//!
//! No process ever runs in it; our resolver's sockets are all that listens there.

use super::firewall;
use super::namespace::{Namespace, allow_forwarding, set, set_if_there};
use super::netlink::{Message, Socket};
use super::range::{MEMBERS, NAMED, PRIVATE, ROUTERS, Range};
use super::route::{self, End, LOOPBACK};
use super::userland::Pasta;
use super::{NetworkError, Settings};
use nix::errno::Errno;
use std::hash::{BuildHasher, Hasher};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Interfaces of the machine towards routers begin with this; their slot follows.
const UPLINKS: &str = "kwn-";
/// The numbers that they have, from which each slot's follows: beyond those that a machine gives by itself.
const FIRST_UPLINK: u32 = 1_000_000;
/// The router's interface towards the machine, and its number. The ends of a pair need different ones: the kernel's
/// link watch takes a pair of equals for no pair, and then takes its time.
const UPLINK: (&str, u32) = ("up", 9);
/// For the kernel to notice that both ends of a pair are up; well below a millisecond, unless it is very busy.
const NOTICED: Duration = Duration::from_secs(10);
/// A sandbox's interface, and its number.
const INSIDE: (&str, u32) = ("eth0", 2);
/// Numbers of a router's interfaces, from which each slot's follows.
const FIRST_PRIVATE: u32 = 16;
const FIRST_BRIDGE: u32 = 10_000;
const FIRST_MEMBER: u32 = 20_000;
/// Cloud machines hand out credentials here.
const LINK_LOCAL: (Ipv4Addr, u8) = (Ipv4Addr::new(169, 254, 0, 0), 16);

/// Whether the machine's interface of this name leads to a router.
pub(super) fn is_uplink(name: &str) -> bool {
    name.starts_with(UPLINKS)
}

/// See the module.
#[derive(Debug)]
pub(super) struct Router {
    pub(super) range: Range,
    namespace: Namespace,
    /// Asks for interfaces in the router.
    routes: Mutex<Socket>,
    _way_out: WayOut,
    next: AtomicU32,
}

/// What must live as long as the router reaches out.
#[derive(Debug)]
enum WayOut {
    /// Owns the machine's table: open as long as the table shall be.
    Machine {
        _owner: Socket,
    },
    Userland {
        _pasta: Pasta,
    },
}

/// A sandbox's place behind the router. Its interface goes with its namespace.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) namespace: Namespace,
    pub(super) address: Ipv4Addr,
    pub(super) gateway: Ipv4Addr,
}

/// What a pair of interfaces is between.
struct Pair<'a> {
    near: End<'a>,
    address: Ipv4Addr,
    gateway: Ipv4Addr,
    prefix: u8,
    /// Whether the near end is the gateway, as opposed to a port of a bridge that is.
    is_gateway: bool,
}

impl Router {
    /// Makes it, for the machine whose network `home` is. `run` is what people see it by.
    pub(super) fn build(home: &Namespace, run: &str, settings: &Settings) -> Result<Self, NetworkError> {
        let range = match &settings.uplink {
            super::Uplink::Machine => home.inside(|| allow_forwarding().and_then(|()| range(settings)))?,
            super::Uplink::Pasta(_) => range(settings)?,
        };
        let (namespace, mut routes) = Namespace::make(|_| {
            no_ipv6()?;
            set("ipv4/ip_forward", "1")?;
            // Where bridged packets are shown to the rules for routed ones, members of a network could not talk.
            set_if_there("bridge/bridge-nf-call-iptables", "0")?;
            // Who sends under an address that is not behind its interface is not heard.
            set("ipv4/conf/all/rp_filter", "1")?;
            let mut filter = Socket::filter().map_err(NetworkError::kernel("open a netlink socket"))?;
            let what = "install the rules of the router";
            filter
                .ask(firewall::router("keelway", UPLINK.0))
                .map_err(|source| NetworkError::Rules { what, source })?;
            let mut routes = Socket::routes().map_err(NetworkError::kernel("open a netlink socket"))?;
            ask(&mut routes, "bring up the router's loopback", vec![route::up(LOOPBACK)])?;
            Ok(routes)
        })?;
        let way_out = match &settings.uplink {
            super::Uplink::Machine => by_the_machine(home, range, &namespace, run, &mut routes)?,
            super::Uplink::Pasta(program) => {
                // Before there is a way out. Only the address of its default route is the router's own.
                let own = own_addresses()?;
                let closed = own.into_iter().map(|address| route::prohibit(address, 32)).collect();
                ask(&mut routes, "close the machine's own addresses", closed)?;
                by_pasta(program, &namespace)?
            }
        };
        ask(
            &mut routes,
            "close the link-local addresses",
            vec![route::prohibit(LINK_LOCAL.0, LINK_LOCAL.1)],
        )?;
        Ok(Self { range, namespace, routes: Mutex::new(routes), _way_out: way_out, next: AtomicU32::new(0) })
    }

    fn routes(&self) -> MutexGuard<'_, Socket> {
        // A question is answered or not; nothing is half done.
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new namespace whose only way out is this router.
    pub(super) fn private(&self) -> Result<Place, NetworkError> {
        for _ in 0..PRIVATE {
            let slot = self.next.fetch_add(1, Ordering::Relaxed) % PRIVATE;
            let (gateway, address) = self.range.private(slot);
            let name = format!("s{slot}");
            let near = End::new(&name, FIRST_PRIVATE + slot);
            let pair = Pair { near, address, gateway, prefix: 31, is_gateway: true };
            if let Some(place) = self.place(&pair)? {
                return Ok(place);
            }
        }
        Err(NetworkError::Full { what: "sandboxes of this run", most: PRIVATE })
    }

    /// Makes a bridge whose ports see each other; gives its number.
    pub(super) fn named(&self) -> Result<u32, NetworkError> {
        for network in 0..NAMED {
            let index = FIRST_BRIDGE + network;
            let made = self.routes().ask(vec![
                route::bridge(&format!("n{network}"), index),
                route::address(index, self.range.named(network), 24),
            ]);
            match made {
                Ok(()) => return Ok(network),
                Err(e) if is(&e, Errno::EEXIST) => {}
                Err(e) => return Err(NetworkError::kernel("make a bridge")(e)),
            }
        }
        Err(NetworkError::Full { what: "named networks of this run", most: NAMED })
    }

    /// Removes it. Its members, if there are any, reach nobody then.
    pub(super) fn remove_named(&self, network: u32) {
        if let Err(e) = self.routes().ask(vec![route::remove(FIRST_BRIDGE + network)]) {
            tracing::debug!(error = %e, "a bridge stays until its run ends");
        }
    }

    /// A new namespace at a bridge. `None` when that member's place is taken.
    pub(super) fn member(&self, network: u32, member: u32) -> Result<Option<Place>, NetworkError> {
        let member = member % MEMBERS;
        let name = format!("m{network}-{member}");
        let mut near = End::new(&name, FIRST_MEMBER + network * 256 + member);
        near.master = Some(FIRST_BRIDGE + network);
        let (address, gateway) = (self.range.member(network, member), self.range.named(network));
        self.place(&Pair { near, address, gateway, prefix: 24, is_gateway: false })
    }

    fn place(&self, pair: &Pair<'_>) -> Result<Option<Place>, NetworkError> {
        let &Pair { address, gateway, prefix, .. } = pair;
        let (namespace, fits) = Namespace::make(|inside| {
            no_ipv6()?;
            // The namespace is the machine's, not that of the sandbox's user namespace, so a capability in there
            // counts for nothing here: what root may do in a container is allowed to everybody instead.
            set("ipv4/ip_unprivileged_port_start", "0")?;
            let name = "ipv4/ping_group_range";
            // Who is root of a user namespace has no more groups than that.
            set(name, "0 2147483647").or_else(|_| set(name, "0 65535")).or_else(|_| set(name, "0 0"))?;
            let mut far = End::new(INSIDE.0, INSIDE.1);
            far.namespace = Some(inside.as_fd());
            let mut messages = vec![route::pair(&pair.near, &far)];
            if pair.is_gateway {
                messages.push(route::address(pair.near.index, gateway, prefix));
            }
            match self.routes().ask(messages) {
                Ok(()) => {}
                // An old namespace of this slot is on its way out.
                Err(e) if is(&e, Errno::EEXIST) => return Ok(false),
                Err(e) => return Err(NetworkError::kernel("make a pair of interfaces")(e)),
            }
            let mut routes = Socket::routes().map_err(NetworkError::kernel("open a netlink socket"))?;
            ask(
                &mut routes,
                "address a sandbox",
                vec![
                    route::up(LOOPBACK),
                    route::up(INSIDE.1),
                    route::address(INSIDE.1, address, prefix),
                    route::default_route(gateway),
                ],
            )?;
            // A bridge comes up with its first port.
            for index in [Some(pair.near.index), pair.near.master].into_iter().flatten() {
                until_it_sends(|| self.routes().tell(route::look(index)))?;
            }
            // Each end is noticed by itself, and this one sends the first packet.
            until_it_sends(|| routes.tell(route::look(INSIDE.1)))?;
            Ok(true)
        })?;
        Ok(fits.then_some(Place { namespace, address, gateway }))
    }

    /// Where our resolver listens.
    pub(super) fn name_server(&self) -> Result<(UdpSocket, TcpListener), NetworkError> {
        self.namespace.inside(|| {
            let all = (Ipv4Addr::UNSPECIFIED, super::dns::PORT);
            let udp = UdpSocket::bind(all).map_err(NetworkError::kernel("listen for name look-ups"))?;
            let tcp = TcpListener::bind(all).map_err(NetworkError::kernel("listen for name look-ups"))?;
            Ok((udp, tcp))
        })
    }
}

/// The range that was asked for, or one that no route of the calling thread's network goes into.
fn range(settings: &Settings) -> Result<Range, NetworkError> {
    if let Some(range) = settings.range {
        return Ok(range);
    }
    let routes = std::fs::read_to_string("/proc/thread-self/net/route")
        .map_err(NetworkError::kernel("read the machine's routes"))?;
    Range::free(&routes)
}

fn by_the_machine(
    home: &Namespace,
    range: Range,
    router: &Namespace,
    run: &str,
    routes: &mut Socket,
) -> Result<WayOut, NetworkError> {
    let Uplink { slot, mut machine_routes, owner } = home.inside(|| uplink(range, router, run))?;
    let (machine, own) = range.uplink(slot);
    ask(
        routes,
        "address the router",
        vec![route::up(UPLINK.1), route::address(UPLINK.1, own, 31), route::default_route(machine)],
    )?;
    until_it_sends(|| machine_routes.tell(route::look(FIRST_UPLINK + slot)))?;
    Ok(WayOut::Machine { _owner: owner })
}

/// Waits until pasta's interface has its route.
fn by_pasta(program: &Path, router: &Namespace) -> Result<WayOut, NetworkError> {
    let mut pasta = Pasta::start(program, router, UPLINK.0)?;
    let end = Instant::now() + NOTICED;
    let has_route = || {
        router.inside(|| {
            let table = std::fs::read_to_string("/proc/thread-self/net/route");
            let table = table.map_err(NetworkError::kernel("read the router's routes"))?;
            Ok(table.lines().any(|l| l.split_whitespace().take(2).eq([UPLINK.0, "00000000"])))
        })
    };
    while !has_route()? {
        pasta.check(program)?;
        if Instant::now() > end {
            let detail = format!("it made no interface within {} s", NOTICED.as_secs());
            return Err(NetworkError::Userland { program: program.to_owned(), detail });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(WayOut::Userland { _pasta: pasta })
}

/// Longest table of the machine's routes that is read, in bytes.
const MAX_TABLE: u64 = 4 << 20;

/// The addresses of the machine, which this thread is in, loopback left out. An ordinary user cannot enter where it is already.
fn own_addresses() -> Result<Vec<Ipv4Addr>, NetworkError> {
    use std::io::Read;
    let mut table = String::new();
    let read = std::fs::File::open("/proc/thread-self/net/fib_trie")
        .and_then(|file| file.take(MAX_TABLE).read_to_string(&mut table));
    read.map_err(NetworkError::kernel("read the machine's addresses"))?;
    Ok(local_addresses(&table))
}

/// Of the kernel's table: an address, and on the lines after it what it is.
fn local_addresses(table: &str) -> Vec<Ipv4Addr> {
    let (mut found, mut current) = (Vec::new(), None);
    for line in table.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            current = address.parse().ok();
        } else if line.starts_with("/32 host LOCAL") {
            found.extend(current.filter(|a: &Ipv4Addr| !a.is_loopback()));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// What stands between the machine and a router.
struct Uplink {
    slot: u32,
    machine_routes: Socket,
    owner: Socket,
}

/// Waits for an interface that is up, as is its peer.
fn until_it_sends(mut look: impl FnMut() -> std::io::Result<Vec<u8>>) -> Result<(), NetworkError> {
    let end = Instant::now() + NOTICED;
    loop {
        let told = look().map_err(NetworkError::kernel("look at an interface"))?;
        if route::sends(&told) {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(NetworkError::kernel("bring an interface up")(Errno::ETIMEDOUT.into()));
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// The machine's end: an interface whose slot is free, the rules about it, its address. In this order, so that
/// nothing is let through before there are rules.
fn uplink(range: Range, router: &Namespace, run: &str) -> Result<Uplink, NetworkError> {
    let mut routes = Socket::routes().map_err(NetworkError::kernel("open a netlink socket"))?;
    // Any beginning will do; a random one seldom meets another Keelway.
    let random = std::hash::RandomState::new().build_hasher().finish();
    let first = u32::try_from(random % u64::from(ROUTERS)).unwrap_or(0);
    let alias = format!("keelway {run}");
    for slot in (first..ROUTERS).chain(0..first) {
        let name = format!("{UPLINKS}{slot}");
        let near = End { alias: Some(&alias), ..End::new(&name, FIRST_UPLINK + slot) };
        let far = End { namespace: Some(router.as_fd()), ..End::new(UPLINK.0, UPLINK.1) };
        match routes.ask(vec![route::pair(&near, &far)]) {
            Ok(()) => {}
            Err(e) if is(&e, Errno::EEXIST) => continue,
            Err(e) => return Err(NetworkError::kernel("make an interface")(e)),
        }
        let (machine, own) = range.uplink(slot);
        let mut owner = Socket::filter().map_err(NetworkError::kernel("open a netlink socket"))?;
        let table = format!("keelway-{name}");
        let what = "install the rules of private networks on this machine";
        owner
            .ask(firewall::machine(&table, &name, UPLINKS, own))
            .map_err(|source| NetworkError::Rules { what, source })?;
        set_if_there(&format!("ipv6/conf/{name}/disable_ipv6"), "1")?;
        let address = route::address(FIRST_UPLINK + slot, machine, 31);
        ask(&mut routes, "address the machine's interface", vec![address])?;
        return Ok(Uplink { slot, machine_routes: routes, owner });
    }
    Err(NetworkError::Full { what: "Keelways of this machine", most: ROUTERS })
}

/// Interfaces made from now on speak IPv4 alone; the loopback has both.
fn no_ipv6() -> Result<(), NetworkError> {
    set_if_there("ipv6/conf/default/disable_ipv6", "1")
}

fn ask(socket: &mut Socket, what: &'static str, messages: Vec<Message>) -> Result<(), NetworkError> {
    socket.ask(messages).map_err(NetworkError::kernel(what))
}

fn is(error: &std::io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_addresses_are_read_from_its_table() {
        let table = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n  |-- 10.88.0.1\n     /32 link UNICAST\n     /32 host LOCAL\n  |-- 10.88.255.255\n     /32 link BROADCAST\n  |-- 127.0.0.1\n     /32 host LOCAL\nLocal:\n  |-- 10.88.0.1\n     /32 host LOCAL\n  |-- 192.0.2.2\n     /32 host LOCAL\n  |-- nonsense\n     /32 host LOCAL\n";
        let expected: Vec<Ipv4Addr> = vec!["10.88.0.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        assert_eq!(local_addresses(table), expected);
    }
}
