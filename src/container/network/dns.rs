//! Which name servers a sandbox is told of: the machine's, those aside that it could not reach.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// Where servers are looked for. Where systemd-resolved runs, the first names its own loopback address and the
/// second the servers that it asks itself.
pub(super) const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// The C library takes three; more are a mistake.
const MOST_SERVERS: usize = 8;
const MOST_BYTES: u64 = 64 << 10;
/// The port of name servers.
pub(super) const PORT: u16 = 53;

/// One resolv.conf.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ResolvConf {
    /// Its servers.
    pub servers: Vec<IpAddr>,
    /// Its lines about anything but servers, as they are.
    rest: Vec<String>,
}

impl ResolvConf {
    /// Of a text; lines that say nothing are left out.
    pub(super) fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines().map(str::trim) {
            let (word, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            match word {
                "nameserver" => {
                    // A link-local server carries its interface after a percent sign; it stays on the machine.
                    if let Ok(server) = value.trim().parse()
                        && conf.servers.len() < MOST_SERVERS
                    {
                        conf.servers.push(server);
                    }
                }
                "search" | "domain" | "options" | "sortlist" => conf.rest.push(line.to_owned()),
                _ => {}
            }
        }
        conf
    }

    /// The first of these files that names a server that `can` says yes to, with no others.
    pub(super) fn first(paths: &[PathBuf], can: impl Fn(IpAddr) -> bool) -> Option<Self> {
        paths.iter().find_map(|path| {
            let mut conf = Self::parse(&read_small(path).ok()?);
            conf.servers.retain(|s| can(*s));
            (!conf.servers.is_empty()).then_some(conf)
        })
    }

    /// The same with this server in place of its own.
    pub(super) fn with_server(mut self, server: IpAddr) -> Self {
        self.servers = vec![server];
        self
    }

    /// Its servers, as addresses to send to.
    pub(super) fn sockets(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(|s| SocketAddr::new(*s, PORT)).collect()
    }

    /// As a file.
    pub(super) fn text(&self) -> Vec<u8> {
        let mut text = String::new();
        for line in &self.rest {
            text.push_str(line);
            text.push('\n');
        }
        for server in &self.servers {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "nameserver {server}");
        }
        text.into_bytes()
    }
}

/// Where the machine's servers stand.
pub(super) fn files() -> Vec<PathBuf> {
    FILES.map(PathBuf::from).to_vec()
}

/// The machine's name servers for a network that reaches everything but the machine's loopback: replicas.
pub fn resolv_conf() -> Vec<u8> {
    ResolvConf::first(&files(), |s| !s.to_canonical().is_loopback() && !s.is_unspecified())
        .map_or_else(Vec::new, |c| c.text())
}

fn read_small(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STUB: &str = "# resolved\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch corp.example\n";

    #[test]
    fn what_cannot_be_reached_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let (stub, real) = (dir.path().join("stub"), dir.path().join("real"));
        std::fs::write(&stub, STUB).unwrap();
        std::fs::write(&real, "search corp.example\nnameserver 10.0.0.2\nnameserver fe80::1%eth0\n").unwrap();
        let missing = dir.path().join("missing");
        let reachable = |s: IpAddr| !s.is_loopback();
        let all = [missing, stub.clone(), real];
        let conf = ResolvConf::first(&all, reachable).unwrap();
        assert_eq!(conf.text(), b"search corp.example\nnameserver 10.0.0.2\n");
        assert_eq!(ResolvConf::first(&all[..2], reachable), None);
        let own = ResolvConf::first(&[stub], |_| true).unwrap().with_server([10, 213, 64, 0].into());
        assert_eq!(own.text(), b"options edns0 trust-ad\nsearch corp.example\nnameserver 10.213.64.0\n");
    }

    #[test]
    fn a_file_of_any_shape_is_read_without_harm() {
        let many = "nameserver 10.0.0.1\n".repeat(100);
        assert_eq!(ResolvConf::parse(&many).servers.len(), MOST_SERVERS);
        for text in ["nameserver", "nameserver\u{a0}x", "\0", "search", "nameserver 300.1.1.1 # no"] {
            assert!(ResolvConf::parse(text).servers.is_empty());
        }
    }
}
