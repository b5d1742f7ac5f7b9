//! As much of the DNS wire format (RFC 1035) as answering for members of a network takes.
//!
//! Messages come from sandboxes: they are read without trust. What is not a plain question for one name is
//! nobody's of ours, and is passed on.

use std::net::Ipv4Addr;

const HEADER: usize = 12;
/// The longest name, in bytes on the wire.
const LONGEST: usize = 255;
const TYPE_A: u16 = 1;
const CLASS_IN: u16 = 1;
/// How long an answer may be remembered, in seconds: members come and go.
const LIFE: u32 = 1;

/// A question for one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// The name in lower case, without the dot at its end.
    pub name: String,
    kind: u16,
    /// Where the question ends in its message.
    end: usize,
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

impl Question {
    /// Reads a message; `None` when it is not one standard question of the internet's class.
    pub(super) fn read(message: &[u8]) -> Option<Self> {
        let flags = word(message, 2)?;
        // Not an answer, and a standard query.
        if flags & 0xf800 != 0 || word(message, 4)? != 1 {
            return None;
        }
        let mut at = HEADER;
        let mut name = String::new();
        loop {
            let length = usize::from(*message.get(at)?);
            at += 1;
            match length {
                0 => break,
                // Longer ones are pointers, which a first question has no use for.
                1..=63 => {
                    let label = message.get(at..at + length)?;
                    if !label.is_ascii() || label.contains(&b'.') {
                        return None;
                    }
                    if !name.is_empty() {
                        name.push('.');
                    }
                    name.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
                    at += length;
                }
                _ => return None,
            }
            if at - HEADER > LONGEST {
                return None;
            }
        }
        let (kind, class) = (word(message, at)?, word(message, at + 2)?);
        (class == CLASS_IN).then_some(Self { name, kind, end: at + 4 })
    }

    /// The answer to the message it was read from: the address, or for another kind of record that there is none.
    pub(super) fn answer(&self, message: &[u8], address: Ipv4Addr) -> Vec<u8> {
        let is_address = self.kind == TYPE_A;
        let mut out = message[..self.end].to_vec();
        // An answer, from who knows, recursion as asked for and there, no error.
        out[2] = 0x84 | message[2] & 0x01;
        out[3] = 0x80;
        out[6..8].copy_from_slice(&u16::from(is_address).to_be_bytes());
        out[8..12].fill(0);
        if is_address {
            let name_at_header = 0xc000 | HEADER as u16;
            for number in [name_at_header, TYPE_A, CLASS_IN] {
                out.extend(number.to_be_bytes());
            }
            out.extend(LIFE.to_be_bytes());
            out.extend(4u16.to_be_bytes());
            out.extend(address.octets());
        }
        out
    }
}

/// The answer "the server failed" to any question; `None` for what is none.
pub(super) fn failed(message: &[u8]) -> Option<Vec<u8>> {
    if message.len() < HEADER || message[2] & 0x80 != 0 {
        return None;
    }
    let mut out = message[..HEADER].to_vec();
    out[2] = 0x80 | message[2] & 0x79;
    out[3] = 0x82;
    // The question is not repeated: it may be anything.
    out[4..].fill(0);
    Some(out)
}

/// Reads any bytes as a question and answers it: no bytes may do harm.
pub fn fuzz_question(data: &[u8]) {
    if let Some(question) = Question::read(data) {
        assert!(question.name.len() <= LONGEST, "a name is short");
        let answer = question.answer(data, Ipv4Addr::LOCALHOST);
        assert!(answer.len() >= HEADER && Question::read(&answer).is_none(), "an answer is no question");
    }
    assert!(failed(data).is_none_or(|f| f.len() == HEADER), "a failure is a header");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(name: &str, kind: u16) -> Vec<u8> {
        let mut m = vec![0xab, 0xcd, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            m.push(u8::try_from(label.len()).unwrap());
            m.extend(label.as_bytes());
        }
        m.push(0);
        m.extend([kind.to_be_bytes(), 1u16.to_be_bytes()].concat());
        m
    }

    #[test]
    fn a_member_is_answered() {
        let asked = asking("DB", TYPE_A);
        let question = Question::read(&asked).unwrap();
        assert_eq!(question.name, "db");
        let answer = question.answer(&asked, Ipv4Addr::new(10, 213, 128, 7));
        assert_eq!(answer[..12], [0xab, 0xcd, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(answer[answer.len() - 4..], [10, 213, 128, 7]);
        // IPv6: the name is there, such an address is not.
        let asked = asking("db", 28);
        let answer = Question::read(&asked).unwrap().answer(&asked, Ipv4Addr::LOCALHOST);
        assert_eq!((answer.len(), answer[7]), (asked.len(), 0));
        assert_eq!(Question::read(&asking("a.b.example", TYPE_A)).unwrap().name, "a.b.example");
        assert_eq!(failed(&asked).unwrap(), [0xab, 0xcd, 0x81, 0x82, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn no_bytes_do_harm() {
        let seed = asking("db.example", TYPE_A);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..20_000 {
            let mut data = seed.clone();
            for _ in 0..random() % 6 {
                let at = usize::try_from(random()).unwrap() % data.len();
                data[at] = random().to_le_bytes()[0];
            }
            data.truncate(usize::try_from(random()).unwrap() % (data.len() + 1));
            fuzz_question(&data);
        }
        // A pointer to itself, and a name that never ends.
        let mut data = seed[..12].to_vec();
        data.extend([0xc0, 12, 0, 1, 0, 1]);
        fuzz_question(&data);
        let mut data = seed[..12].to_vec();
        data.extend([1, b'a'].repeat(600));
        assert_eq!(Question::read(&data), None);
    }
}
