//! Which addresses a client connects to.
//!
//! What a foreign file names is looked up by us and asked from this machine, so it could reach what only this machine
//! can: its loopback, its own addresses, the link-local ones where clouds hand out credentials. A client with
//! [`Reach::Strangers`] connects to none of them, whatever a name resolves to and wherever a redirect points.
//! The addresses that are checked are those that are connected to: a name that changes its mind in between gains
//! nothing.

use crate::HttpError;
use crate::error::host_of;
use reqwest::Url;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs, UdpSocket};

/// Which addresses a client connects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reach {
    /// Any.
    #[default]
    Anywhere,
    /// Those that a sandbox in a private network reaches: IPv4, of other machines, not link-local.
    Strangers,
}

impl Reach {
    /// Whether an address may be connected to.
    pub(crate) fn allows(self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::Anywhere, _) => true,
            (Self::Strangers, IpAddr::V6(_)) => false,
            (Self::Strangers, IpAddr::V4(v4)) => is_a_single_host(v4) && !is_own(v4),
        }
    }

    /// An address of `host` (a name, or an address) that may be connected to, for programs that connect on their own;
    /// blocking.
    ///
    /// # Errors
    /// The name does not resolve, or to nothing within reach.
    pub fn find(self, host: &str) -> Result<IpAddr, HttpError> {
        let dns = |cause: String| HttpError::Dns { host: host.to_owned(), cause };
        let found: Vec<_> = (host, 0).to_socket_addrs().map_err(|e| dns(e.to_string()))?.collect();
        match found.iter().map(|a| a.ip()).find(|a| self.allows(*a)) {
            Some(address) => Ok(address),
            None => Err(match found.first() {
                Some(out) => HttpError::OutOfReach { host: host.to_owned(), address: out.ip() },
                None => dns("it has no address".to_owned()),
            }),
        }
    }

    /// Checks the host of a URL that is an address itself, which nobody looks up, and (where `elsewhere`) any other: a
    /// proxy looks names up on its own, and a proxy's own name is not held back when it is looked up.
    pub(crate) async fn check(self, url: &Url, elsewhere: bool) -> Result<(), HttpError> {
        if self == Self::Anywhere {
            return Ok(());
        }
        let host = url.host_str().unwrap_or("").trim_start_matches('[').trim_end_matches(']');
        let addresses: Vec<IpAddr> = match host.parse() {
            Ok(address) => vec![address],
            // Behind some proxies names have no address here: then the proxy is all there is to reach.
            Err(_) if elsewhere => tokio::net::lookup_host((host, 0))
                .await
                .map(|f| f.map(|a| a.ip()).collect())
                .unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        match addresses.iter().find(|a| !self.allows(**a)) {
            Some(address) => Err(HttpError::OutOfReach { host: host_of(url), address: *address }),
            None => Ok(()),
        }
    }
}

fn is_a_single_host(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    // 0.0.0.0/8 is this machine, 224.0.0.0/4 is many, 240.0.0.0/4 is nobody or all.
    !address.is_loopback() && !address.is_link_local() && (1..224).contains(&first)
}

/// Whether the address is one of this machine's: only those can be bound to. When in doubt, it is.
fn is_own(address: Ipv4Addr) -> bool {
    !UdpSocket::bind((address, 0)).is_err_and(|e| e.kind() == ErrorKind::AddrNotAvailable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_other_machines() {
        let allowed = |a: &str| Reach::Strangers.allows(a.parse().unwrap());
        for own in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::1",
            "::ffff:127.0.0.1",
            "fe80::1",
            "2001:db8::1",
        ] {
            assert!(!allowed(own), "{own}");
            assert!(Reach::Anywhere.allows(own.parse().unwrap()));
        }
        for other in ["192.0.2.1", "198.51.100.7", "203.0.113.9"] {
            assert!(allowed(other), "{other}");
        }
    }

    #[tokio::test]
    async fn hosts_that_are_addresses_are_checked_however_they_are_written() {
        for host in
            ["127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "[::1]", "[::ffff:7f00:1]", "169.254.169.254"]
        {
            let url: Url = format!("http://{host}:81/x").parse().unwrap();
            let refused = Reach::Strangers.check(&url, false).await;
            assert!(matches!(refused, Err(HttpError::OutOfReach { .. })), "{host}: {refused:?}");
        }
        for host in ["127.0.0.1", "localhost", "2130706433", "::1", "0.0.0.0"] {
            let refused = Reach::Strangers.find(host);
            assert!(matches!(refused, Err(HttpError::OutOfReach { .. })), "{host}: {refused:?}");
        }
        assert_eq!(Reach::Strangers.find("192.0.2.1").unwrap().to_string(), "192.0.2.1");
        let named: Url = "http://localhost/".parse().unwrap();
        assert!(Reach::Strangers.check(&named, true).await.is_err(), "a proxy is not asked for it either");
    }
}
