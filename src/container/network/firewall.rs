//! Two tables of nftables rules, as netlink messages: one on the machine, one in a run's router.
//!
//! Pure: what is sent is a value. The messages are written by us and not by `nft`, for three reasons: nothing has to
//! be installed where steps run, it costs a tenth of a process, and the machine's table can be *owned*: the
//! kernel removes it when the socket that made it closes, by whatever death, and keeps others from changing it.
//!
//! Our tables hold rules about our own interfaces alone. What another table drops stays dropped: no table can allow
//! what another one forbids.

use super::netlink::{APPEND, CREATE, EXCLUSIVE, Message};
use std::net::Ipv4Addr;

/// Where the kernel's messages about nftables begin.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;

const IPV4: u8 = 2;
/// The table goes with the socket that made it (Linux 5.12).
const OWNED: u32 = 2;

/// Registers: the verdict, and the one that everything is compared in.
const VERDICT: u32 = 0;
const REGISTER: u32 = 1;

const DROP: u32 = 0;
const ACCEPT: u32 = 1;
/// `ct state established,related`.
const KNOWN: u32 = 2 | 4;
/// "Communication administratively prohibited", which a program sees as "no route to host".
const PROHIBITED: u8 = 13;
/// How the kernel's table of own addresses calls one that is nobody's of this machine.
const UNICAST: u32 = 1;

/// The points where packets are looked at, by the kernel's numbers.
#[derive(Debug, Clone, Copy)]
enum Hook {
    Prerouting = 0,
    Forward = 2,
    Postrouting = 4,
}

/// What a packet is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Equal = 0,
    Different = 1,
}

/// The expressions of one rule.
struct Rule(Vec<Message>);

impl Rule {
    fn new() -> Self {
        Self(Vec::new())
    }
    fn with(mut self, name: &str, data: impl FnOnce(Message) -> Message) -> Self {
        self.0.push(Message::attributes().text(1, name).nest(2, data));
        self
    }
    fn compare(self, is: Is, value: &[u8]) -> Self {
        self.with("cmp", |m| {
            m.net_number(1, REGISTER).net_number(2, is as u32).nest(3, |m| m.bytes(1, value))
        })
    }
    fn interface(self, key: u32, is: Is, name: &[u8]) -> Self {
        self.with("meta", |m| m.net_number(1, REGISTER).net_number(2, key)).compare(is, name)
    }
    /// Came in by the interface of this name.
    fn in_by(self, is: Is, name: &str) -> Self {
        self.interface(6, is, &whole(name))
    }
    /// Goes out by the interface of this name.
    fn out_by(self, is: Is, name: &str) -> Self {
        self.interface(7, is, &whole(name))
    }
    /// Goes out by an interface whose name begins so.
    fn out_by_any(self, beginning: &str) -> Self {
        self.interface(7, Is::Equal, beginning.as_bytes())
    }
    /// Belongs to a connection that was let through before, or to its errors.
    fn known(self) -> Self {
        self.with("ct", |m| m.net_number(1, REGISTER).net_number(2, 0))
            .with("bitwise", |m| {
                m.net_number(1, REGISTER)
                    .net_number(2, REGISTER)
                    .net_number(3, 4)
                    .nest(4, |m| m.bytes(1, &KNOWN.to_ne_bytes()))
                    .nest(5, |m| m.bytes(1, &[0; 4]))
            })
            .compare(Is::Different, &[0; 4])
    }
    /// Is sent to the machine itself, or to many.
    fn for_no_single_stranger(self) -> Self {
        // fib daddr type != unicast
        self.with("fib", |m| m.net_number(1, REGISTER).net_number(2, 3).net_number(3, 2))
            .compare(Is::Different, &UNICAST.to_ne_bytes())
    }
    /// Is sent by this address.
    fn sent_by(self, address: Ipv4Addr) -> Self {
        // payload: four bytes of the network header, from byte 12.
        self.with("payload", |m| {
            m.net_number(1, REGISTER).net_number(2, 1).net_number(3, 12).net_number(4, 4)
        })
        .compare(Is::Equal, &address.octets())
    }
    fn verdict(self, code: u32) -> Self {
        self.with("immediate", |m| m.net_number(1, VERDICT).nest(2, |m| m.nest(2, |m| m.net_number(1, code))))
    }
    fn accept(self) -> Self {
        self.verdict(ACCEPT)
    }
    fn drop(self) -> Self {
        self.verdict(DROP)
    }
    fn reject(self) -> Self {
        self.with("reject", |m| m.net_number(1, 0).bytes(2, &[PROHIBITED]))
    }
    fn masquerade(self) -> Self {
        self.with("masq", |m| m)
    }
}

/// An interface's name as the kernel compares it: sixteen bytes.
fn whole(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let length = name.len().min(15);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    bytes
}

/// A table in the making.
struct Table<'a> {
    name: &'a str,
    messages: Vec<Message>,
}

/// The header that nftables messages have: family, version, resource.
fn header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

impl<'a> Table<'a> {
    fn new(name: &'a str, flags: u32) -> Self {
        let begin = Message::mark(BATCH_BEGIN).raw(&header(0, SUBSYSTEM));
        let table = Message::request(NEW_TABLE, CREATE | EXCLUSIVE)
            .raw(&header(IPV4, 0))
            .text(1, name)
            .net_number(2, flags);
        Self { name, messages: vec![begin, table] }
    }
    fn chain(mut self, name: &str, kind: &str, hook: Hook, priority: i32, rules: Vec<Rule>) -> Self {
        let chain = Message::request(NEW_CHAIN, CREATE | EXCLUSIVE)
            .raw(&header(IPV4, 0))
            .text(1, self.name)
            .text(3, name)
            .nest(4, |m| m.net_number(1, hook as u32).net_number(2, priority.cast_unsigned()))
            .net_number(5, ACCEPT)
            .text(7, kind);
        self.messages.push(chain);
        for Rule(expressions) in rules {
            let rule = Message::request(NEW_RULE, CREATE | APPEND)
                .raw(&header(IPV4, 0))
                .text(1, self.name)
                .text(2, name)
                .nest(4, |m| expressions.into_iter().fold(m, |m, e| m.nest(1, |m| m.append(&e))));
            self.messages.push(rule);
        }
        self
    }
    fn finish(mut self) -> Vec<Message> {
        self.messages.push(Message::mark(BATCH_END).raw(&header(0, SUBSYSTEM)));
        self.messages
    }
}

/// The machine's side of one router. `uplink` is the machine's interface towards it, all interfaces of such a
/// kind begin with `family`, and the router sends as `router`.
///
/// From a router nothing reaches an address of the machine itself (its loopback aside, which is never routed),
/// and no other router. Into a router come answers alone. What leaves the machine leaves under its address.
pub(super) fn machine(name: &str, uplink: &str, family: &str, router: Ipv4Addr) -> Vec<Message> {
    let own = || Rule::new().in_by(Is::Equal, uplink);
    let towards = || Rule::new().out_by(Is::Equal, uplink);
    Table::new(name, OWNED)
        // Before any address is rewritten, so that a port that the machine forwards elsewhere is its own, too.
        .chain("guard", "filter", Hook::Prerouting, -150, vec![own().for_no_single_stranger().reject()])
        .chain(
            "pass",
            "filter",
            Hook::Forward,
            0,
            vec![own().out_by_any(family).reject(), towards().known().accept(), towards().drop()],
        )
        .chain(
            "out",
            "nat",
            Hook::Postrouting,
            100,
            vec![Rule::new().sent_by(router).out_by(Is::Different, uplink).masquerade()],
        )
        .finish()
}

/// The router's own: what it passes on goes out by `uplink` or is an answer; its other interfaces never reach each
/// other.
pub(super) fn router(name: &str, uplink: &str) -> Vec<Message> {
    let outward = || Rule::new().in_by(Is::Different, uplink).out_by(Is::Equal, uplink);
    Table::new(name, 0)
        .chain(
            "pass",
            "filter",
            Hook::Forward,
            0,
            vec![Rule::new().known().accept(), outward().accept(), Rule::new().reject()],
        )
        .chain("out", "nat", Hook::Postrouting, 100, vec![Rule::new().out_by(Is::Equal, uplink).masquerade()])
        .finish()
}
