//! A small name server in a run's router: it knows the members of named networks and asks the machine's servers
//! for everything else.
//!
//! It is there for named networks, and where the machine's own servers cannot be reached from a sandbox (a loopback
//! address, or one of the machine's own). Bounds: so many questions at one time, each with a deadline; more are dropped,
//! which the asker takes for a lost packet and asks again.

use super::NetworkError;
use super::question::{Question, failed};
use super::range::Range;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;

/// Questions at one time.
const MOST_QUESTIONS: usize = 256;
/// For the answer of one of the machine's servers; then the next is asked.
const SERVER: Duration = Duration::from_secs(4);
/// For a whole conversation over TCP.
const CONVERSATION: Duration = Duration::from_secs(15);
/// The longest question or answer over UDP, in bytes.
const LONGEST: usize = 4096;

/// Who is in which network, under which name.
#[derive(Debug, Default)]
pub(super) struct Names(Mutex<BTreeMap<(u32, String), Ipv4Addr>>);

impl Names {
    fn locked(&self) -> MutexGuard<'_, BTreeMap<(u32, String), Ipv4Addr>> {
        // Each change is one insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// False when the name is taken.
    pub(super) fn add(&self, network: u32, name: &str, address: Ipv4Addr) -> bool {
        use std::collections::btree_map::Entry;
        match self.locked().entry((network, name.to_owned())) {
            Entry::Occupied(_) => false,
            Entry::Vacant(free) => {
                free.insert(address);
                true
            }
        }
    }
    pub(super) fn remove(&self, network: u32, name: &str) {
        self.locked().remove(&(network, name.to_owned()));
    }
    fn find(&self, network: u32, name: &str) -> Option<Ipv4Addr> {
        self.locked().get(&(network, name.to_owned())).copied()
    }
}

/// What it answers from.
#[derive(Debug)]
struct Knowledge {
    names: Arc<Names>,
    range: Range,
    servers: Vec<SocketAddr>,
    free: Arc<Semaphore>,
}

/// A running resolver; dropping it ends it.
#[derive(Debug)]
pub(super) struct Resolver(Vec<AbortHandle>);

impl Drop for Resolver {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

impl Resolver {
    /// Starts it on these sockets. `servers` are asked from the machine's own network. Called in the context of a
    /// tokio runtime.
    pub(super) fn start(
        (udp, tcp): (StdUdpSocket, StdTcpListener),
        range: Range,
        names: Arc<Names>,
        servers: Vec<SocketAddr>,
    ) -> Result<Self, NetworkError> {
        let io = NetworkError::kernel("start the resolver of private networks");
        let runtime = tokio::runtime::Handle::try_current().map_err(|e| io(io::Error::other(e)))?;
        let _context = runtime.enter();
        let io = NetworkError::kernel("start the resolver of private networks");
        let sockets = udp
            .set_nonblocking(true)
            .and_then(|()| tcp.set_nonblocking(true))
            .and_then(|()| Ok((Arc::new(UdpSocket::from_std(udp)?), TcpListener::from_std(tcp)?)));
        let (udp, tcp) = sockets.map_err(io)?;
        let free = Arc::new(Semaphore::new(MOST_QUESTIONS));
        let knowledge = Arc::new(Knowledge { names, range, servers, free });
        let packets = runtime.spawn(serve_udp(udp, Arc::clone(&knowledge)));
        let streams = runtime.spawn(serve_tcp(tcp, knowledge));
        Ok(Self(vec![packets.abort_handle(), streams.abort_handle()]))
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, knowledge: Arc<Knowledge>) {
    let mut buffer = vec![0; LONGEST];
    loop {
        // Errors are those of earlier answers that nobody waited for.
        let Ok((length, asker)) = socket.recv_from(&mut buffer).await else { continue };
        let message = buffer[..length].to_vec();
        if let Some(answer) = knowledge.own(&message, asker.ip()) {
            let _ = socket.send_to(&answer, asker).await;
            continue;
        }
        let Some(permit) = knowledge.permit() else { continue };
        let (socket, knowledge) = (Arc::clone(&socket), Arc::clone(&knowledge));
        tokio::spawn(async move {
            let answer = knowledge.ask_udp(&message).await.or_else(|| failed(&message));
            if let Some(answer) = answer {
                let _ = socket.send_to(&answer, asker).await;
            }
            drop(permit);
        });
    }
}

async fn serve_tcp(listener: TcpListener, knowledge: Arc<Knowledge>) {
    loop {
        let Ok((stream, asker)) = listener.accept().await else {
            // Out of descriptors, most likely: they come back when something else ends.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Some(permit) = knowledge.permit() else { continue };
        let knowledge = Arc::clone(&knowledge);
        tokio::spawn(async move {
            let _ = tokio::time::timeout(CONVERSATION, knowledge.converse(stream, asker.ip())).await;
            drop(permit);
        });
    }
}

impl Knowledge {
    fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).try_acquire_owned().ok()
    }

    /// The answer that we know ourselves.
    fn own(&self, message: &[u8], asker: IpAddr) -> Option<Vec<u8>> {
        let IpAddr::V4(asker) = asker.to_canonical() else { return None };
        let network = self.range.named_of(asker)?;
        let question = Question::read(message)?;
        let address = self.names.find(network, &question.name)?;
        Some(question.answer(message, address))
    }

    /// One after the other, until one answers this question.
    async fn ask_udp(&self, message: &[u8]) -> Option<Vec<u8>> {
        for server in &self.servers {
            let asked = tokio::time::timeout(SERVER, ask_udp(*server, message)).await;
            if let Ok(Ok(answer)) = asked {
                return Some(answer);
            }
        }
        None
    }

    async fn converse(&self, mut stream: TcpStream, asker: IpAddr) -> io::Result<()> {
        let message = read_framed(&mut stream).await?;
        let mut answer = self.own(&message, asker);
        for server in &self.servers {
            if answer.is_none() {
                answer =
                    tokio::time::timeout(SERVER, ask_tcp(*server, &message)).await.ok().and_then(Result::ok);
            }
        }
        if let Some(answer) = answer.or_else(|| failed(&message)) {
            write_framed(&mut stream, &answer).await?;
        }
        Ok(())
    }
}

/// A socket and port of its own for each question: an answer comes from the server asked, or is none.
async fn ask_udp(server: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(message).await?;
    let mut buffer = vec![0; LONGEST];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // The same number: an answer to this question.
        if length >= 2 && buffer[..2] == message[..2.min(message.len())] {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_framed(&mut stream, message).await?;
    read_framed(&mut stream).await
}

async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}
