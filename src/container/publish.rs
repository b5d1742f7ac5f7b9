//! Ports of the machine that lead into a container's private network.
//!
//! A thread of the keeper stands in the container's network namespace and takes connections that the machine's
//! port was given; it connects them to the container's own address. So nothing is set in the machine's packet
//! filter, and nothing is left when the keeper dies. The program sees its own address as the peer's.

use keelway_sandbox::Network;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};

/// Connections of one port at one time.
const MAX_CONNECTIONS: usize = 1024;
/// For the program to take a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// After an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// One port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// Address of the machine; unspecified is all of them.
    pub address: IpAddr,
    /// Port of the machine.
    pub host: u16,
    /// Port of the container.
    pub container: u16,
}

/// Why a port does not lead anywhere.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The text says no port.
    #[error("{0:?} says no port: write [IP:]HOST:CONTAINER, for example 8080:80")]
    Malformed(String),
    /// Only TCP.
    #[error("{0:?}: only tcp ports can be published")]
    Protocol(String),
    /// The machine's port is taken, or not ours to have.
    #[error("cannot listen on {at}: {source}; who has it is told by: ss -ltnp")]
    Listen {
        /// Where.
        at: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The thread in the namespace.
    #[error("cannot forward {at}: {source}")]
    Forward {
        /// Which port.
        at: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl FromStr for Publish {
    type Err = PublishError;
    fn from_str(text: &str) -> Result<Self, PublishError> {
        let bad = || PublishError::Malformed(text.chars().take(80).collect());
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        if protocol != "tcp" {
            return Err(PublishError::Protocol(text.chars().take(80).collect()));
        }
        let (rest, container) = ports.rsplit_once(':').ok_or_else(bad)?;
        let (address, host) = match rest.rsplit_once(':') {
            Some((address, host)) => {
                let inner = address.strip_prefix('[').and_then(|a| a.strip_suffix(']'));
                // Without brackets nobody knows where an address of version 6 ends.
                let address = inner.or((!address.contains(':')).then_some(address)).ok_or_else(bad)?;
                (address.parse().map_err(|_| bad())?, host)
            }
            None => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), rest),
        };
        let port = |text: &str| text.parse().ok().filter(|p: &u16| *p != 0).ok_or_else(bad);
        Ok(Self { address, host: port(host)?, container: port(container)? })
    }
}

/// As docker shows it: `0.0.0.0:8080->80/tcp`.
impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}->{}/tcp", SocketAddr::new(self.address, self.host), self.container)
    }
}

/// A port of the machine that is ours, and leads nowhere yet.
pub(crate) struct Listening {
    publish: Publish,
    listener: TcpListener,
}

/// A port that leads into a container until this is dropped.
#[derive(Debug)]
pub(crate) struct Forwarder {
    _end: oneshot::Sender<()>,
}

impl Listening {
    pub(crate) fn on(publish: &Publish) -> Result<Self, PublishError> {
        let at = SocketAddr::new(publish.address, publish.host);
        let listen = || {
            let listener = TcpListener::bind(at)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = listen().map_err(|source| PublishError::Listen { at, source })?;
        Ok(Self { publish: *publish, listener })
    }

    /// Starts forwarding into the namespace that `network` names, to this address of it.
    pub(crate) fn forward(self, network: &Network, address: Ipv4Addr) -> Result<Forwarder, PublishError> {
        let at = SocketAddr::new(self.publish.address, self.publish.host);
        let failed = |source| PublishError::Forward { at, source };
        let Network::Join(path) = network else {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "no network of its own")));
        };
        let namespace = std::fs::File::open(path).map_err(failed)?;
        let to = SocketAddr::new(address.into(), self.publish.container);
        let (end, ended) = oneshot::channel::<()>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let listener = self.listener;
        std::thread::Builder::new()
            .name("port".into())
            .spawn(move || {
                // Of this thread alone: everything that it connects begins there.
                let entered = nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET);
                let runtime = entered
                    .map_err(io::Error::from)
                    .and_then(|()| tokio::runtime::Builder::new_current_thread().enable_all().build());
                match runtime {
                    Ok(runtime) => {
                        let _ = ready.send(Ok(()));
                        runtime.block_on(async {
                            tokio::select! {
                                _ = ended => {}
                                () = serve(listener, to) => {}
                            }
                        });
                    }
                    Err(e) => drop(ready.send(Err(e))),
                }
            })
            .map_err(failed)?;
        let begun = is_ready.recv().unwrap_or_else(|_| Err(io::Error::other("its thread ended")));
        begun.map_err(failed)?;
        Ok(Forwarder { _end: end })
    }
}

async fn serve(listener: TcpListener, to: SocketAddr) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let mut client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        tokio::spawn(async move {
            // Who is not taken is told by the end of the connection.
            if let Ok(Ok(mut program)) = tokio::time::timeout(CONNECT, TcpStream::connect(to)).await {
                let _ = tokio::io::copy_bidirectional(&mut client, &mut program).await;
            }
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        for (text, shown) in [
            ("8080:80", "0.0.0.0:8080->80/tcp"),
            ("127.0.0.1:8080:80/tcp", "127.0.0.1:8080->80/tcp"),
            ("[::1]:8080:80", "[::1]:8080->80/tcp"),
        ] {
            assert_eq!(text.parse::<Publish>().unwrap().to_string(), shown);
        }
        for bad in ["80", "0:80", "80:0", "x:80", "1.2.3:80:80", "80:80/udp", "70000:80", "::80:80:80"] {
            assert!(bad.parse::<Publish>().is_err(), "{bad}");
        }
    }
}
