//! What owner and init say to each other over the control socket.
//!
//! A frame is a version byte, a kind-free length (u32, little endian) and that many bytes of JSON.
//! Both ends are always the same binary, so the version only catches a mix-up, which is refused.
//! Descriptors ride on the first frame of their direction (SCM_RIGHTS). Lengths are bounded before
//! anything is allocated.

use crate::cgroup::Plan as CgroupPlan;
use crate::end::{ExitKind, Usage};
use crate::error::SetupError;
use crate::ids::{IdMap, Outer};
use crate::spec::{ExecSpec, Spec};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Raised with every change of a message.
pub(crate) const VERSION: u8 = 4;
/// Longest frame in bytes: a spec with its largest arguments and some files.
const MAX_FRAME: usize = 64 << 20;
const HEADER: usize = 5;
/// Most descriptors on one frame.
const MAX_FDS: usize = 5 + MAX_HELD;
/// Most descriptors that are only held, of those.
pub(crate) const MAX_HELD: usize = 64;

/// Owner to supervisor, once, with stdin, stdout, stderr and the lock of the id range, if there is one.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub spec: Spec,
    pub cgroups: CgroupPlan,
    /// What its ids are for its owner.
    pub ids: IdMap,
    /// The owner's user namespace, where that is not the machine's.
    pub outer: Option<Outer>,
    /// Mount the root by mount(2), as kernels before 6.8 need it.
    pub legacy_overlay: bool,
    /// It waits for [`Order::Start`] before it executes anything, and may outlive its owner; a listening socket for
    /// orders comes along as fourth descriptor.
    pub gated: bool,
}

/// Owner to supervisor afterwards; the first also supervisor to PID 1, and owner to a process that joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Send this signal to the main process.
    Signal(i32),
    /// Start one more process; its three descriptors come along, and the socket that it is spoken with over.
    Exec(Box<ExecSpec>),
    /// Execute the program, of one that was only created.
    Start,
    /// Answer with [`Report::State`].
    State,
    /// Kill all of it.
    Kill,
    /// Live on when this owner is gone.
    Release,
}

/// Supervisor to owner.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The main process runs; PID 1's pidfd comes along, and the other side of its terminal if it has one.
    /// Of a process that joined only the terminal.
    Started { pid: i32, warnings: Vec<String> },
    /// It did not start.
    Failed(SetupError),
    /// An answer to an order of somebody who is not the owner.
    State { started: bool },
    /// It ended, and all others with it.
    Ended { kind: ExitKind, usage: Usage },
}

/// PID 1 to supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Inner {
    /// Everything is there but the program: it waits for [`Order::Start`].
    Ready {
        warnings: Vec<String>,
    },
    /// Mount points were made in the root: remove them from the upper directory at the end.
    Stubs(Vec<Stub>),
    /// The other side of the terminal comes along, if there is one.
    Started {
        warnings: Vec<String>,
    },
    Failed(SetupError),
    /// What was counted, where the groups will be gone before the supervisor can look.
    Used(Usage),
    Ended(ExitKind),
}

/// Something init made in the upper directory that is no work of the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stub {
    /// Path inside the root, without a leading `/`.
    pub path: String,
    pub kind: StubKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum StubKind {
    /// An empty file that was made as a mount point.
    File,
    /// A directory that was made as a mount point or on the way to one.
    Dir,
    /// A directory of a lower layer that was copied up because a stub was made in it; goes when it is
    /// empty and still has this mode and owner.
    CopiedUp { mode: u32, uid: u32, gid: u32 },
}

/// Writes one frame, with descriptors.
pub(crate) fn send<T: Serialize>(socket: BorrowedFd<'_>, message: &T, fds: &[RawFd]) -> io::Result<()> {
    let mut frame = vec![VERSION, 0, 0, 0, 0];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - HEADER;
    if length > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a message of {length} bytes is too long"),
        ));
    }
    let length = u32::try_from(length).map_err(io::Error::other)?;
    frame[1..HEADER].copy_from_slice(&length.to_le_bytes());
    let mut sent = 0;
    while sent < frame.len() {
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if sent == 0 && !fds.is_empty() { &rights[..] } else { &[] };
        let parts = [IoSlice::new(&frame[sent..])];
        match sendmsg::<()>(socket.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(n) => sent += n,
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Reads one frame. `Ok(None)` is the other side's end.
pub(crate) fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut fds = Vec::new();
    let mut header = [0; HEADER];
    if !fill(socket, &mut header, &mut fds)? {
        return Ok(None);
    }
    let mut body = vec![0; body_length(header)?];
    if !fill(socket, &mut body, &mut fds)? {
        return Ok(None);
    }
    Ok(Some((decode(&body)?, fds)))
}

fn body_length(header: [u8; HEADER]) -> io::Result<usize> {
    let [version, length @ ..] = header;
    let length = u32::from_le_bytes(length) as usize;
    if version != VERSION {
        return Err(invalid(format!("protocol version {version}, not {VERSION}")));
    }
    if length > MAX_FRAME {
        return Err(invalid(format!("a frame of {length} bytes")));
    }
    Ok(length)
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    serde_json::from_slice(body).map_err(|e| invalid(e.to_string()))
}

fn invalid(detail: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, detail)
}

/// Fills the buffer; false where the other side ended before or inside it.
fn fill(socket: BorrowedFd<'_>, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
        let mut parts = [IoSliceMut::new(&mut buffer[filled..])];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let read = match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
            Ok(message) => {
                for control in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(received) = control {
                        fds.extend(received.into_iter().map(crate::sys::own_received));
                    }
                }
                message.bytes
            }
            Err(nix::errno::Errno::EINTR) => continue,
            Err(nix::errno::Errno::ECONNRESET) => 0,
            Err(e) => return Err(e.into()),
        };
        if read == 0 {
            return Ok(false);
        }
        filled += read;
    }
    Ok(true)
}

/// What a frame's bytes mean, for the fuzzer: never panics, allocates no more than the input is long.
pub(crate) fn fuzz_frame(data: &[u8]) {
    let Some((header, body)) = data.split_first_chunk::<HEADER>() else { return };
    let Ok(length) = body_length(*header) else { return };
    if let Some(body) = body.get(..length) {
        let _ = decode::<Request>(body);
        let _ = decode::<Report>(body);
        let _ = decode::<Order>(body);
        let _ = decode::<Inner>(body);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn frames_carry_messages_and_descriptors() {
        let (a, b) = UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        send(a.as_fd(), &Order::Signal(15), &[file.as_raw_fd(), file.as_raw_fd()]).unwrap();
        send(a.as_fd(), &Order::Signal(1), &[]).unwrap();
        drop(a);
        let (order, fds) = receive::<Order>(b.as_fd()).unwrap().unwrap();
        assert_eq!((order, fds.len()), (Order::Signal(15), 2));
        assert_eq!(receive::<Order>(b.as_fd()).unwrap().unwrap().0, Order::Signal(1));
        assert!(receive::<Order>(b.as_fd()).unwrap().is_none(), "the end is no error");
    }

    #[test]
    fn another_version_and_a_huge_length_are_refused() {
        for header in [[VERSION + 1, 1, 0, 0, 0], [VERSION, 255, 255, 255, 255]] {
            let (mut a, b) = UnixStream::pair().unwrap();
            io::Write::write_all(&mut a, &header).unwrap();
            assert_eq!(receive::<Order>(b.as_fd()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
