//! Netlink: messages as bytes, and a socket that asks the kernel for them.
//!
//! No more than networks need: requests that are acknowledged one by one. The kernel answers in the order of the
//! messages, each answer names the number of its message, and what is left over of an earlier question is passed
//! over. Every wait for an answer has a bound.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// For one answer of the kernel, which gives it at once unless another process holds its locks.
const ANSWER_SECONDS: i64 = 20;
/// Flags of messages: every one is a request; an acknowledged one is answered also when it went well.
const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
/// What is there already is an error.
pub(super) const EXCLUSIVE: u16 = 0x200;
/// What is not there is made.
pub(super) const CREATE: u16 = 0x400;
/// At the end of a list.
pub(super) const APPEND: u16 = 0x800;

const HEADER: usize = 16;
const ERROR: u16 = 2;
const NESTED: u16 = 0x8000;

/// One message, in the making.
#[derive(Debug, Clone)]
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A request that is acknowledged.
    pub(super) fn request(kind: u16, flags: u16) -> Self {
        Self::begin(kind, REQUEST | ACKNOWLEDGE | flags)
    }
    /// A mark between messages, which has no answer of its own unless it is refused.
    pub(super) fn mark(kind: u16) -> Self {
        Self::begin(kind, REQUEST)
    }
    /// Attributes that will be part of another message.
    pub(super) fn attributes() -> Self {
        Self { bytes: Vec::new() }
    }
    fn begin(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self { bytes }
    }
    /// Bytes as they are: the fixed header that a family's messages begin with.
    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self.pad()
    }
    /// An attribute.
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        // Callers write names, numbers and addresses: all far below the bound of 64 KiB.
        let length = u16::try_from(value.len() + 4).expect("an attribute is short");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad()
    }
    /// A number in the machine's order, as routes have them.
    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }
    /// A number in the network's order, as nftables has them.
    pub(super) fn net_number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }
    /// A text, with the zero byte at its end.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }
    /// An attribute that holds what `inside` writes.
    pub(super) fn nest(mut self, kind: u16, inside: impl FnOnce(Self) -> Self) -> Self {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self = inside(self);
        let length = u16::try_from(self.bytes.len() - at).expect("a message is short");
        self.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes[at + 2..at + 4].copy_from_slice(&(kind | NESTED).to_ne_bytes());
        self
    }
    /// What was made by [`Message::attributes`].
    pub(super) fn append(mut self, attributes: &Self) -> Self {
        self.bytes.extend_from_slice(&attributes.bytes);
        self
    }
    fn pad(mut self) -> Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }
    fn is_acknowledged(&self) -> bool {
        u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) & ACKNOWLEDGE != 0
    }
    fn finish(mut self, number: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("a message is short");
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&number.to_ne_bytes());
        self.bytes
    }
}

/// A socket to one of the kernel's families, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    next: u32,
}

impl Socket {
    /// To the kernel's links, addresses and routes.
    pub(super) fn routes() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkRoute)
    }
    /// To the kernel's packet filter.
    pub(super) fn filter() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }
    fn open(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS, 0))?;
        connect(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { fd, next: 1 })
    }

    /// Sends all messages at once and waits until each is acknowledged, or one is refused.
    pub(super) fn ask(&mut self, messages: Vec<Message>) -> io::Result<()> {
        self.exchange(messages, |_| {})
    }

    /// Sends a message and gives what the kernel tells beside its acknowledgement: bytes after the message header.
    pub(super) fn tell(&mut self, message: Message) -> io::Result<Vec<u8>> {
        let mut told = Vec::new();
        self.exchange(vec![message], |body| told = body.to_vec())?;
        Ok(told)
    }

    fn exchange(&mut self, messages: Vec<Message>, mut told: impl FnMut(&[u8])) -> io::Result<()> {
        let first = self.next;
        let count = u32::try_from(messages.len()).expect("a few messages");
        self.next = first.wrapping_add(count);
        let mut waiting = messages.iter().filter(|m| m.is_acknowledged()).count();
        let mut all = Vec::new();
        for (message, number) in messages.into_iter().zip(first..) {
            all.extend(message.finish(number));
        }
        send(self.fd.as_raw_fd(), &all, MsgFlags::empty())?;
        let mut buffer = vec![0u8; 32 * 1024];
        while waiting > 0 {
            let length = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Err(Errno::ETIMEDOUT.into()),
                Err(e) => return Err(e.into()),
            };
            for answer in answers(&buffer[..length]) {
                // What is about another number is left of an earlier question.
                if answer.number().checked_sub(first).is_none_or(|i| i >= count) {
                    continue;
                }
                match answer {
                    Answer::Told { body, .. } => told(body),
                    Answer::Done { errno: 0, .. } => waiting -= 1,
                    Answer::Done { errno, .. } => return Err(io::Error::from_raw_os_error(errno)),
                }
            }
        }
        Ok(())
    }
}

/// One message of the kernel, with the number of the message that it is about.
#[derive(Debug, PartialEq, Eq)]
enum Answer<'a> {
    /// An acknowledgement: zero or an error number.
    Done { number: u32, errno: i32 },
    /// Anything else.
    Told { number: u32, body: &'a [u8] },
}

impl Answer<'_> {
    fn number(&self) -> u32 {
        match *self {
            Self::Done { number, .. } | Self::Told { number, .. } => number,
        }
    }
}

fn word(at: &[u8]) -> u32 {
    u32::from_ne_bytes([at[0], at[1], at[2], at[3]])
}

/// The messages in what the kernel sent.
fn answers(mut bytes: &[u8]) -> Vec<Answer<'_>> {
    let mut found = Vec::new();
    while bytes.len() >= HEADER {
        let length = word(bytes) as usize;
        if length < HEADER || length > bytes.len() {
            break;
        }
        let (number, body) = (word(&bytes[8..]), &bytes[HEADER..length]);
        if u16::from_ne_bytes([bytes[4], bytes[5]]) != ERROR {
            found.push(Answer::Told { number, body });
        } else if body.len() >= 4 {
            found.push(Answer::Done { number, errno: word(body).cast_signed().wrapping_neg() });
        }
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    found
}

/// The value of an attribute among others, the first of its kind.
pub(super) fn attribute(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    while bytes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        let value = bytes.get(4..length)?;
        if u16::from_ne_bytes([bytes[2], bytes[3]]) & !NESTED == kind {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_what_the_kernel_reads() {
        let m = Message::request(16, CREATE).raw(&[1, 2, 3, 4]).nest(18, |m| m.text(1, "veth").number(2, 7));
        let bytes = m.finish(9);
        assert_eq!(bytes.len(), 16 + 4 + 4 + 12 + 8);
        assert_eq!(bytes[..4], 44u32.to_ne_bytes());
        assert_eq!(bytes[4..8], [16u16.to_ne_bytes(), 0x405u16.to_ne_bytes()].concat());
        assert_eq!(bytes[8..12], 9u32.to_ne_bytes());
        assert_eq!(bytes[20..24], [24u16.to_ne_bytes(), 0x8012u16.to_ne_bytes()].concat());
        assert_eq!(&bytes[24..36], &[&9u16.to_ne_bytes()[..], &1u16.to_ne_bytes(), b"veth\0\0\0\0"].concat());
    }

    #[test]
    fn answers_of_any_shape_are_read_without_harm() {
        let answer = |number: u32, errno: i32| {
            let body = (-errno).to_ne_bytes();
            let m = Message::begin(ERROR, 0).raw(&body).raw(&[0; 16]);
            m.finish(number)
        };
        let two = [answer(5, 0), answer(6, 17)].concat();
        let done = |number, errno| Answer::Done { number, errno };
        assert_eq!(answers(&two), [done(5, 0), done(6, 17)]);
        for cut in 0..two.len() {
            assert!(answers(&two[..cut]).len() <= 1);
        }
        let mut lying = answer(7, 1);
        lying[0] = 3;
        assert_eq!(answers(&lying), []);
        lying[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(answers(&lying), []);
        let told = Message::mark(16).text(3, "lo").number(16, 6).finish(1);
        let [Answer::Told { number: 1, body }] = answers(&told)[..] else { panic!("{told:?}") };
        assert_eq!(attribute(body, 16), Some(&6u32.to_ne_bytes()[..]));
        assert_eq!(attribute(body, 17), None);
        for cut in 0..body.len() {
            assert!(attribute(&body[..cut], 16).is_none());
        }
        assert_eq!(attribute(&[0; 64], 1), None);
    }

    #[test]
    fn what_is_left_of_a_refusal_does_not_disturb_the_next_question() {
        let mut socket = Socket::routes().unwrap();
        let gone = || Message::request(19, 0).raw(&[0; 4]).raw(&i32::MAX.to_ne_bytes()).raw(&[0; 8]);
        let loopback = || Message::request(18, 0).raw(&[0; 4]).raw(&1u32.to_ne_bytes()).raw(&[0; 8]);
        for _ in 0..2 {
            let refused = socket.ask(vec![gone(), gone()]).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(Errno::ENODEV as i32));
            let told = socket.tell(loopback()).unwrap();
            assert_eq!(attribute(&told[16..], 3), Some(&b"lo\0"[..]));
        }
    }
}
