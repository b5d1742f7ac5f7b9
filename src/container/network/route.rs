//! Links, addresses and routes as netlink messages.
//!
//! Pure: what is sent is a value. The numbers are those of the kernel's rtnetlink(7); only IPv4 is written.

use super::netlink::{CREATE, EXCLUSIVE, Message, attribute};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;

const LINK_ADDRESS: u16 = 1;
const LINK_NAME: u16 = 3;
const LINK_MASTER: u16 = 10;
const LINK_STATE: u16 = 16;
const LINK_INFO: u16 = 18;
const LINK_ALIAS: u16 = 20;
const LINK_NAMESPACE: u16 = 28;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VETH_PEER: u16 = 1;
const ADDRESS: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
const ROUTE_TO: u16 = 1;
const ROUTE_VIA: u16 = 5;

const UP: u32 = 1;
const IPV4: u8 = 2;
const MAIN_TABLE: u8 = 254;
/// Who set a route: an administrator, as opposed to the kernel or a routing daemon.
const BY_HAND: u8 = 4;

/// The number of the loopback in every namespace.
pub(super) const LOOPBACK: u32 = 1;

/// What a route does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum RouteKind {
    Unicast = 1,
    /// The sender is told that it may not.
    Prohibit = 8,
}

/// One end of a pair of interfaces.
#[derive(Debug, Clone, Copy)]
pub(super) struct End<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its number. That of a far end counts only where the near end has one, too.
    pub index: u32,
    /// The namespace it goes to; `None` is that of the socket asked.
    pub namespace: Option<BorrowedFd<'a>>,
    /// The bridge it belongs to.
    pub master: Option<u32>,
    /// A note for people who list interfaces.
    pub alias: Option<&'a str>,
}

impl<'a> End<'a> {
    pub(super) fn new(name: &'a str, index: u32) -> Self {
        Self { name, index, namespace: None, master: None, alias: None }
    }
}

fn link(index: u32, up: bool) -> [u8; 16] {
    let flags = if up { UP } else { 0 };
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&flags.to_ne_bytes());
    header
}

fn write_end(m: Message, end: &End<'_>) -> Message {
    let m = m.text(LINK_NAME, end.name);
    let m = match &end.namespace {
        Some(fd) => m.bytes(LINK_NAMESPACE, &fd.as_raw_fd().to_ne_bytes()),
        None => m,
    };
    let m = match end.master {
        Some(master) => m.number(LINK_MASTER, master),
        None => m,
    };
    match end.alias {
        // Written without its zero byte, as `ip link set alias` does.
        Some(alias) => m.bytes(LINK_ALIAS, alias.as_bytes()),
        None => m,
    }
}

/// Makes a pair of interfaces; an error when a name or number is taken. The near one is up, the far one cannot be
/// before it has its peer.
pub(super) fn pair(near: &End<'_>, far: &End<'_>) -> Message {
    let m = Message::request(NEW_LINK, CREATE | EXCLUSIVE).raw(&link(near.index, true));
    write_end(m, near).nest(LINK_INFO, |m| {
        m.text(INFO_KIND, "veth")
            .nest(INFO_DATA, |m| m.nest(VETH_PEER, |m| write_end(m.raw(&link(far.index, false)), far)))
    })
}

/// The hardware address of every bridge: ours to choose (bit 1 of the first byte), and alone on its own link.
const BRIDGE: [u8; 6] = [0x02, 0x6b, 0x77, 0, 0, 1];

/// Makes a bridge that is up. Its address stays as it is: one that the kernel chooses is that of a port and changes
/// when the port goes, and then nobody reaches the bridge who knew the old one.
pub(super) fn bridge(name: &str, index: u32) -> Message {
    Message::request(NEW_LINK, CREATE | EXCLUSIVE)
        .raw(&link(index, true))
        .text(LINK_NAME, name)
        .bytes(LINK_ADDRESS, &BRIDGE)
        .nest(LINK_INFO, |m| m.text(INFO_KIND, "bridge"))
}

/// Brings an interface up.
pub(super) fn up(index: u32) -> Message {
    Message::request(NEW_LINK, 0).raw(&link(index, true))
}

/// Asks about an interface.
pub(super) fn look(index: u32) -> Message {
    Message::request(GET_LINK, 0).raw(&link(index, false))
}

/// Whether the answer to [`look`] says that the interface sends: that it is up, and that the kernel has
/// noticed (RFC 2863's operational state), which it does a little later. Until then it drops what is sent.
pub(super) fn sends(told: &[u8]) -> bool {
    told.get(16..).and_then(|attributes| attribute(attributes, LINK_STATE)) == Some(&[6])
}

/// Removes an interface.
pub(super) fn remove(index: u32) -> Message {
    Message::request(DEL_LINK, 0).raw(&link(index, false))
}

/// Gives an interface its address.
pub(super) fn address(index: u32, address: Ipv4Addr, prefix: u8) -> Message {
    let mut header = [IPV4, prefix, 0, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&index.to_ne_bytes());
    Message::request(NEW_ADDRESS, CREATE | EXCLUSIVE)
        .raw(&header)
        .bytes(ADDRESS_LOCAL, &address.octets())
        .bytes(ADDRESS, &address.octets())
}

fn route(prefix: u8, kind: RouteKind) -> Message {
    let header = [IPV4, prefix, 0, 0, MAIN_TABLE, BY_HAND, 0, kind as u8, 0, 0, 0, 0];
    Message::request(NEW_ROUTE, CREATE | EXCLUSIVE).raw(&header)
}

/// Sends everything that no other route takes to a neighbour.
pub(super) fn default_route(gateway: Ipv4Addr) -> Message {
    route(0, RouteKind::Unicast).bytes(ROUTE_VIA, &gateway.octets())
}

/// Refuses what goes to these addresses, and says so to the sender.
pub(super) fn prohibit(network: Ipv4Addr, prefix: u8) -> Message {
    route(prefix, RouteKind::Prohibit).bytes(ROUTE_TO, &network.octets())
}
