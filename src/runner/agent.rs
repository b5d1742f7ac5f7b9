//! An ssh agent of this machine as a socket of one RUN.
//!
//! Invariants: nothing reaches the agent but requests for its identities and for signatures, one whole message at a time,
//! so a step can neither add, remove nor unlock a key; every other request is answered with failure. The socket and all
//! connections end with the value. The bytes are nowhere but in memory.

use keelway_model::mount::FileAccess;
use keelway_store::Upper;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Longest message, in bytes: OpenSSH's own bound.
const MAX_MESSAGE: usize = 256 * 1024;
/// Connections at one time; more are closed at once.
const MAX_CONNECTIONS: usize = 32;
/// SSH_AGENTC_REQUEST_IDENTITIES and SSH_AGENTC_SIGN_REQUEST.
const ALLOWED: [u8; 2] = [11, 13];
/// A whole message: SSH_AGENT_FAILURE.
const FAILURE: [u8; 5] = [0, 0, 0, 1, 5];
const NAME: &str = "agent";

/// Both ends of the living connections.
#[derive(Default)]
struct Connections {
    next: u64,
    open: HashMap<u64, [UnixStream; 2]>,
}

struct Shared {
    agent: PathBuf,
    over: AtomicBool,
    connections: Mutex<Connections>,
}

impl Shared {
    fn connections(&self) -> std::sync::MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The socket, while it is served.
pub(crate) struct Proxy {
    /// Where the socket lies; goes with the value.
    place: Upper,
    directory: File,
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Proxy {
    /// Serves the agent that listens at `agent` on a socket in `place`, with the owner and mode of `access`.
    pub(crate) fn start(agent: &Path, place: Upper, access: FileAccess) -> io::Result<Self> {
        // A socket that is not there is better told now than by what the step makes of it.
        drop(UnixStream::connect(agent)?);
        let directory = File::open(place.fs())?;
        let listener = UnixListener::bind(short(&directory))?;
        let path = place.fs().join(NAME);
        chown(&path, Some(access.uid), Some(access.gid))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(access.mode & 0o777))?;
        let shared = Arc::new(Shared {
            agent: agent.to_owned(),
            over: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let served = Arc::clone(&shared);
        let thread =
            thread::Builder::new().name("ssh agent".into()).spawn(move || serve(&listener, &served))?;
        Ok(Self { place, directory, shared, thread: Some(thread) })
    }

    /// The socket.
    pub(crate) fn path(&self) -> PathBuf {
        self.place.fs().join(NAME)
    }
}

/// A path of the socket that is not too long for an address.
fn short(directory: &File) -> PathBuf {
    format!("/proc/self/fd/{}/{NAME}", directory.as_raw_fd()).into()
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        for ends in self.shared.connections().open.values() {
            for end in ends {
                // An error means that it has just ended.
                let _ = end.shutdown(std::net::Shutdown::Both);
            }
        }
        // Wakes who accepts. Where that is not possible the thread stays, and ends with this process.
        if UnixStream::connect(short(&self.directory)).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &UnixListener, shared: &Shared) {
    thread::scope(|scope| {
        for client in listener.incoming() {
            if shared.over.load(Ordering::SeqCst) {
                break;
            }
            let Ok(client) = client else { continue };
            if shared.connections().open.len() < MAX_CONNECTIONS {
                scope.spawn(move || {
                    // What fails here the client sees as the end of its connection.
                    let _ = connection(client, shared);
                });
            }
        }
    });
}

fn connection(mut client: UnixStream, shared: &Shared) -> io::Result<()> {
    let mut agent = UnixStream::connect(&shared.agent)?;
    let number = {
        let mut connections = shared.connections();
        let number = connections.next;
        connections.next += 1;
        connections.open.insert(number, [client.try_clone()?, agent.try_clone()?]);
        number
    };
    // Who ends all connections has either seen this one, or is seen here.
    let relayed = if shared.over.load(Ordering::SeqCst) { Ok(()) } else { relay(&mut client, &mut agent) };
    shared.connections().open.remove(&number);
    relayed
}

fn relay(client: &mut (impl Read + Write), agent: &mut (impl Read + Write)) -> io::Result<()> {
    while let Some(request) = message(client)? {
        if ALLOWED.contains(&request[4]) {
            agent.write_all(&request)?;
            match message(agent)? {
                Some(answer) => client.write_all(&answer)?,
                None => return Ok(()),
            }
        } else {
            client.write_all(&FAILURE)?;
        }
    }
    Ok(())
}

/// One whole message with its length in front; `None` at the end of the stream.
fn message(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; 4];
    match from.read_exact(&mut head) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = usize::try_from(u32::from_be_bytes(head)).map_err(io::Error::other)?;
    if length == 0 || length > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message of an impossible length"));
    }
    let mut whole = head.to_vec();
    whole.resize(4 + length, 0);
    from.read_exact(&mut whole[4..])?;
    Ok(Some(whole))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// What is read comes from the one, what is written goes to the other.
    struct Both(Cursor<Vec<u8>>, Vec<u8>);

    impl Read for Both {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            self.0.read(to)
        }
    }
    impl Write for Both {
        fn write(&mut self, from: &[u8]) -> io::Result<usize> {
            self.1.write(from)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn both(bytes: &[&[u8]]) -> Both {
        Both(Cursor::new(bytes.concat()), Vec::new())
    }

    #[test]
    fn only_what_reads_reaches_the_agent() {
        let list = [0, 0, 0, 1, 11];
        let (add, remove_all) = ([0, 0, 0, 2, 17, 9], [0, 0, 0, 1, 19]);
        let sign = [0, 0, 0, 3, 13, 1, 2];
        let mut client = both(&[&list, &add, &remove_all, &sign]);
        let answers: [&[u8]; 2] = [&[0, 0, 0, 2, 12, 7], &[0, 0, 0, 1, 14]];
        let mut agent = both(&answers);
        relay(&mut client, &mut agent).unwrap();
        assert_eq!(agent.1, [&list[..], &sign].concat());
        assert_eq!(client.1, [answers[0], &FAILURE, &FAILURE, answers[1]].concat());
    }

    #[test]
    fn what_is_no_message_ends_the_connection() {
        for bytes in [&[0, 0, 0, 0][..], &[0xff, 0, 0, 0, 11], &[0, 0, 0, 9, 11, 1], &[0, 0]] {
            let (mut client, mut agent) = (both(&[bytes]), both(&[]));
            let _ = relay(&mut client, &mut agent);
            assert!(agent.1.is_empty() && client.1.is_empty(), "{bytes:?}");
        }
    }
}
