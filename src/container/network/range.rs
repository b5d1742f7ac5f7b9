//! Addresses: which /16 a machine's private networks take, and who in it has which.
//!
//! Everything follows from two numbers. A router's slot is claimed by the name of its interface on the machine, which
//! the kernel gives to one at a time; so all Keelways of a machine share a range without knowing of each other.
//! Addresses behind a router are seen nowhere else, so every router gives out the same ones.

use super::NetworkError;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// Tried in this order: seldom taken by others (Docker begins at 172.17, libvirt at 192.168.122, our replicas at
/// 10.88, home networks in 192.168).
const CANDIDATES: [[u8; 2]; 8] =
    [[10, 213], [10, 214], [10, 215], [172, 30], [10, 216], [10, 217], [172, 29], [10, 218]];

/// How many routers a machine may have at one time.
pub(super) const ROUTERS: u32 = 8192;
/// How many sandboxes a router may serve at one time.
pub(super) const PRIVATE: u32 = 8192;
/// How many named networks a router may have at one time.
pub(super) const NAMED: u32 = 64;
/// How many members a named network may have at one time.
pub(super) const MEMBERS: u32 = 250;

/// A /16 of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range([u8; 2]);

impl Range {
    /// The address at a place of it.
    fn at(self, offset: u32) -> Ipv4Addr {
        let [a, b] = self.0;
        Ipv4Addr::from(u32::from(Ipv4Addr::new(a, b, 0, 0)) | offset & 0xffff)
    }
    /// The two addresses between the machine and a router: the machine's, the router's. A /31.
    pub(super) fn uplink(self, slot: u32) -> (Ipv4Addr, Ipv4Addr) {
        (self.at(slot * 2), self.at(slot * 2 + 1))
    }
    /// The two addresses between a router and a sandbox: the router's, the sandbox's. A /31.
    pub(super) fn private(self, slot: u32) -> (Ipv4Addr, Ipv4Addr) {
        (self.at(0x4000 + slot * 2), self.at(0x4000 + slot * 2 + 1))
    }
    /// The router's address in a named network. A /24.
    pub(super) fn named(self, network: u32) -> Ipv4Addr {
        self.at(0x8000 + network * 256 + 1)
    }
    /// The address of a member of a named network.
    pub(super) fn member(self, network: u32, member: u32) -> Ipv4Addr {
        self.at(0x8000 + network * 256 + 2 + member)
    }
    /// The named network that an address is of.
    pub(super) fn named_of(self, address: Ipv4Addr) -> Option<u32> {
        let [a, b, network, _] = address.octets();
        let network = u32::from(network).checked_sub(0x80)?;
        ([a, b] == self.0 && network < NAMED).then_some(network)
    }

    /// The first that no route of the machine goes into, by the text of `/proc/net/route`.
    pub(super) fn free(routes: &str) -> Result<Self, NetworkError> {
        let routes: Vec<(u32, u32)> = routes.lines().skip(1).filter_map(route).collect();
        let is_free = |range: &Self| {
            let ours = u32::from(range.at(0));
            // They meet when they are equal as far as the shorter of both masks looks.
            routes.iter().all(|(to, mask)| *mask == 0 || (to ^ ours) & mask & 0xffff_0000 != 0)
        };
        let found = CANDIDATES.iter().map(|c| Self(*c)).find(is_free);
        found.ok_or_else(|| NetworkError::NoRange {
            tried: CANDIDATES.map(|c| Self(c).to_string()).join(", "),
        })
    }
}

/// A line of `/proc/net/route`: destination and mask. Interfaces of our own kind are no obstacle.
fn route(line: &str) -> Option<(u32, u32)> {
    let mut words = line.split_whitespace();
    let interface = words.next()?;
    if super::router::is_uplink(interface) {
        return None;
    }
    let mut number = |nth| Some(u32::from_str_radix(words.nth(nth)?, 16).ok()?.swap_bytes());
    Some((number(0)?, number(5)?))
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/16", self.at(0))
    }
}

/// A text that is no [`Range`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write a range of 65536 private addresses, for example 10.213.0.0/16")]
pub struct RangeError;

impl FromStr for Range {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let address: Ipv4Addr =
            text.strip_suffix("/16").ok_or(RangeError)?.parse().map_err(|_| RangeError)?;
        let [a, b, 0, 0] = address.octets() else { return Err(RangeError) };
        // Carrier-grade and benchmarking addresses are nobody's on the internet, either.
        let nobodys = address.is_private() || (a == 100 && b & 0xc0 == 64) || (a == 198 && b & 0xfe == 18);
        if nobodys { Ok(Self([a, b])) } else { Err(RangeError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const HEAD: &str =
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";

    fn line(interface: &str, to: [u8; 4], prefix: u32) -> String {
        let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
        format!(
            "{interface}\t{:08X}\t00000000\t0001\t0\t0\t0\t{:08X}\t0\t0\t0\n",
            u32::from_be_bytes(to).swap_bytes(),
            mask.swap_bytes()
        )
    }

    #[test]
    fn a_range_is_taken_that_no_route_goes_into() {
        let free =
            |lines: &[String]| Range::free(&(HEAD.to_owned() + &lines.concat())).map(|r| r.to_string());
        assert_eq!(
            free(&[line("eth0", [0, 0, 0, 0], 0)]).unwrap(),
            "10.213.0.0/16",
            "the default is no obstacle"
        );
        assert_eq!(free(&[line("wg0", [10, 213, 7, 0], 24)]).unwrap(), "10.214.0.0/16");
        assert_eq!(free(&[line("wg0", [10, 0, 0, 0], 8)]).unwrap(), "172.30.0.0/16");
        let ours = line("kwn-5", [10, 213, 0, 10], 31);
        assert_eq!(free(&[ours]).unwrap(), "10.213.0.0/16", "several share one range");
        let all = [line("a", [10, 0, 0, 0], 8), line("b", [172, 16, 0, 0], 12)];
        let text = free(&all).unwrap_err().to_string();
        assert!(text.contains("10.213.0.0/16, 10.214.0.0/16") && text.contains("--network-range"), "{text}");
        assert_eq!(free(&["rubbish\n".into(), "\u{fffd}".into()]).unwrap(), "10.213.0.0/16");
    }

    #[test]
    fn no_address_is_given_twice() {
        let range: Range = "10.213.0.0/16".parse().unwrap();
        let mut seen = BTreeSet::new();
        for slot in 0..ROUTERS {
            let (a, b) = range.uplink(slot);
            assert!(seen.insert(a) && seen.insert(b));
            assert_eq!(u32::from(a) + 1, u32::from(b));
            assert_eq!(u32::from(a) % 2, 0, "both are one /31");
        }
        for slot in 0..PRIVATE {
            let (a, b) = range.private(slot);
            assert!(seen.insert(a) && seen.insert(b));
            assert_eq!(range.named_of(b), None);
        }
        for network in 0..NAMED {
            assert!(seen.insert(range.named(network)));
            for member in 0..MEMBERS {
                let address = range.member(network, member);
                assert!(seen.insert(address));
                assert_eq!(range.named_of(address), Some(network));
            }
        }
        assert!(seen.iter().all(|a| a.octets()[..2] == [10, 213]));
    }

    #[test]
    fn a_range_is_written_as_one() {
        for good in ["10.0.0.0/16", "172.31.0.0/16", "192.168.0.0/16", "100.64.0.0/16", "198.18.0.0/16"] {
            assert_eq!(good.parse::<Range>().unwrap().to_string(), good);
        }
        for bad in ["", "10.0.0.0", "10.0.0.0/8", "10.0.1.0/16", "8.8.0.0/16", "127.0.0.0/16", "::/16"] {
            assert_eq!(bad.parse::<Range>(), Err(RangeError), "{bad}");
        }
    }
}
