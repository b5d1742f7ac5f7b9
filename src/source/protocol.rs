//! git's wire protocol, version 0, the part a fetch needs: packet lines, the list of references, a request in one
//! round, and the pack out of its side band. Pure: bytes in, values out; every length and count is bounded.

use crate::error::clean;
use git2::Oid;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

/// What a server sent that cannot be gone on with.
#[derive(Debug)]
pub(crate) enum ProtocolError {
    /// Reading failed or ended early.
    Io(io::Error),
    /// Not git's protocol, or a part of it that we do not speak.
    Bad(String),
    /// The server refuses, in its words (cleaned).
    Remote(String),
    /// More references than allowed.
    References,
}

impl From<io::Error> for ProtocolError {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

type Result<T> = std::result::Result<T, ProtocolError>;

fn bad<T>(what: impl Into<String>) -> Result<T> {
    Err(ProtocolError::Bad(what.into()))
}

/// A packet line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Packet {
    /// Its bytes, at most 65516.
    Data(Vec<u8>),
    /// `0000`.
    Flush,
}

/// Reads one packet; the end of the stream before one is an error.
pub(crate) fn read_packet(from: &mut dyn Read) -> Result<Packet> {
    let mut head = [0; 4];
    from.read_exact(&mut head)?;
    let length = std::str::from_utf8(&head)
        .ok()
        .filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit()))
        .and_then(|h| usize::from_str_radix(h, 16).ok());
    match length {
        Some(0) => Ok(Packet::Flush),
        Some(n @ 4..=65520) => {
            let mut data = vec![0; n - 4];
            from.read_exact(&mut data)?;
            if let Some(text) = data.strip_prefix(b"ERR ") {
                return Err(ProtocolError::Remote(clean(&String::from_utf8_lossy(text), 300)));
            }
            Ok(Packet::Data(data))
        }
        _ => bad(format!(
            "a packet begins with {:?}",
            String::from_utf8_lossy(&head).escape_debug().to_string()
        )),
    }
}

/// The references of a server.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Advertisement {
    /// Branches and tags by full name; a tag as its own object, unpeeled.
    pub(crate) references: BTreeMap<String, Oid>,
    /// The branch that HEAD names.
    pub(crate) head: Option<String>,
    /// What the server can do.
    pub(crate) capabilities: BTreeSet<String>,
}

/// Reads the list of references up to its flush packet.
pub(crate) fn read_advertisement(from: &mut dyn Read, limit: usize) -> Result<Advertisement> {
    let mut out = Advertisement::default();
    let mut head_oid = None;
    let mut first = true;
    let mut lines = 0;
    loop {
        let data = match read_packet(from)? {
            Packet::Flush => break,
            Packet::Data(data) => data,
        };
        lines += 1;
        if lines > limit {
            return Err(ProtocolError::References);
        }
        let line = data.strip_suffix(b"\n").unwrap_or(&data);
        if first && line.starts_with(b"version ") {
            if line != b"version 1" {
                return bad("it speaks a version of the protocol that was not asked for");
            }
            continue;
        }
        if line.starts_with(b"shallow ") {
            return bad(
                "the repository is shallow; fetch its whole history there first (git fetch --unshallow)",
            );
        }
        let (line, capabilities) = match line.iter().position(|&b| b == 0) {
            Some(nul) if first => (&line[..nul], Some(&line[nul + 1..])),
            _ => (line, None),
        };
        if let Some(words) = capabilities.map(String::from_utf8_lossy) {
            for word in words.split(' ').filter(|w| !w.is_empty()) {
                if let Some(target) = word.strip_prefix("symref=HEAD:refs/heads/") {
                    out.head = Some(target.to_owned());
                }
                if word.strip_prefix("object-format=").is_some_and(|f| f != "sha1") {
                    return bad("the repository uses SHA-256 object names, which are not supported yet");
                }
                out.capabilities.insert(word.to_owned());
            }
        }
        first = false;
        let Some((oid, name)) = line.split_at_checked(40).and_then(|(o, n)| Some((o, n.strip_prefix(b" ")?)))
        else {
            return bad("a reference is not 40 digits and a name");
        };
        let Some(oid) =
            std::str::from_utf8(oid).ok().filter(|o| is_hex(o)).and_then(|o| Oid::from_str(o).ok())
        else {
            return bad("a reference is not 40 digits and a name");
        };
        let Ok(name) = std::str::from_utf8(name) else { continue };
        if name == "HEAD" {
            head_oid = Some(oid);
        }
        let wanted = name.starts_with("refs/heads/") || name.starts_with("refs/tags/");
        if wanted && !name.ends_with("^{}") && !oid.is_zero() && git2::Reference::is_valid_name(name) {
            out.references.insert(name.to_owned(), oid);
        }
    }
    if out.head.is_none() {
        out.head = head_oid.and_then(|oid| guess_head(&out.references, oid));
    }
    Ok(out)
}

/// Old servers do not say which branch HEAD names: one that stands there, `main` and `master` first.
fn guess_head(references: &BTreeMap<String, Oid>, oid: Oid) -> Option<String> {
    let at = |name: &str| references.get(&format!("refs/heads/{name}")) == Some(&oid);
    ["main", "master"].into_iter().find(|n| at(n)).map(str::to_owned).or_else(|| {
        let mut branches = references.iter().filter_map(|(n, o)| Some((n.strip_prefix("refs/heads/")?, o)));
        branches.find(|(_, o)| **o == oid).map(|(n, _)| n.to_owned())
    })
}

pub(crate) fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn packet(out: &mut Vec<u8>, line: &str) {
    out.extend_from_slice(format!("{:04x}{line}", line.len() + 4).as_bytes());
}

/// The whole request: wants, haves, done. The server answers with one acknowledgement and the pack.
pub(crate) fn request(capabilities: &BTreeSet<String>, wants: &[Oid], haves: &[Oid]) -> Result<Vec<u8>> {
    if !capabilities.contains("side-band-64k") {
        return bad("it does not offer side-band-64k (servers do since git 1.5)");
    }
    let mut words = String::from(" side-band-64k");
    for word in ["ofs-delta", "thin-pack", "no-progress"].into_iter().filter(|w| capabilities.contains(*w)) {
        words.push(' ');
        words.push_str(word);
    }
    if capabilities.iter().any(|c| c.starts_with("agent=")) {
        words.push_str(" agent=keelway");
    }
    let mut out = Vec::new();
    for (i, want) in wants.iter().enumerate() {
        packet(&mut out, &format!("want {want}{}\n", if i == 0 { words.as_str() } else { "" }));
    }
    out.extend_from_slice(b"0000");
    for have in haves {
        packet(&mut out, &format!("have {have}\n"));
    }
    packet(&mut out, "done\n");
    Ok(out)
}

/// Reads the answer to [`request`] and hands the bytes of the pack over. The server's own progress texts are dropped:
/// they could hold anything (S08).
pub(crate) fn read_pack<E>(
    from: &mut dyn Read,
    sink: &mut dyn FnMut(&[u8]) -> std::result::Result<(), E>,
) -> Result<std::result::Result<(), E>> {
    match read_packet(from)? {
        Packet::Data(line) if line.starts_with(b"NAK") || line.starts_with(b"ACK ") => {}
        _ => return bad("it does not acknowledge the request"),
    }
    loop {
        match read_packet(from)? {
            Packet::Flush => return Ok(Ok(())),
            // A server repeats itself for haves that it finds by the way of an earlier one.
            Packet::Data(line) if line.starts_with(b"NAK") || line.starts_with(b"ACK ") => {}
            Packet::Data(data) => match data.split_first() {
                Some((1, pack)) => {
                    if let Err(stop) = sink(pack) {
                        return Ok(Err(stop));
                    }
                }
                Some((2, _)) | None => {}
                Some((3, text)) => {
                    return Err(ProtocolError::Remote(clean(&String::from_utf8_lossy(text), 300)));
                }
                Some((band, _)) => return bad(format!("band {band} of the answer does not exist")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "1111111111111111111111111111111111111111";
    const B: &str = "2222222222222222222222222222222222222222";

    fn lines(lines: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        lines.iter().for_each(|l| packet(&mut out, l));
        out.extend_from_slice(b"0000");
        out
    }

    #[test]
    fn references_are_read() {
        let bytes = lines(&[
            &format!("{A} HEAD\0side-band-64k symref=HEAD:refs/heads/dev agent=x\n"),
            &format!("{A} refs/heads/dev\n"),
            &format!("{B} refs/tags/v1\n"),
            &format!("{A} refs/tags/v1^{{}}\n"),
            &format!("{A} refs/pull/1/head\n"),
            &format!("{A} refs/heads/../../x\n"),
        ]);
        let got = read_advertisement(&mut &bytes[..], 100).unwrap();
        assert_eq!(got.head.as_deref(), Some("dev"));
        assert_eq!(got.references.keys().collect::<Vec<_>>(), ["refs/heads/dev", "refs/tags/v1"]);
        assert!(matches!(read_advertisement(&mut &bytes[..], 3), Err(ProtocolError::References)));
    }

    #[test]
    fn an_old_server_and_an_empty_one() {
        let bytes = lines(&[
            &format!("{A} HEAD\0x\n"),
            &format!("{A} refs/heads/a\n"),
            &format!("{A} refs/heads/main\n"),
        ]);
        assert_eq!(read_advertisement(&mut &bytes[..], 9).unwrap().head.as_deref(), Some("main"));
        let none = lines(&[&format!("{} capabilities^{{}}\0side-band-64k\n", "0".repeat(40))]);
        assert!(read_advertisement(&mut &none[..], 9).unwrap().references.is_empty());
    }

    #[test]
    fn what_is_not_git_is_said_so() {
        for bad in ["<htm", "0003", "fff1", "0008", "zzzz", ""] {
            assert!(read_advertisement(&mut bad.as_bytes(), 9).is_err(), "{bad}");
        }
        let sha256 = lines(&[&format!("{A} HEAD\0object-format=sha256\n")]);
        assert!(
            matches!(read_advertisement(&mut &sha256[..], 9), Err(ProtocolError::Bad(t)) if t.contains("SHA-256"))
        );
        let refused = lines(&["ERR no\u{1b}[31m way\n"]);
        let Err(ProtocolError::Remote(text)) = read_advertisement(&mut &refused[..], 9) else { panic!() };
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn a_pack_comes_out_of_its_band() {
        let bytes = lines(&["ACK x\n", "ACK x\n", "\u{2}counting\u{1b}[2J", "\u{1}PA", "\u{1}CK"]);
        let mut pack = Vec::new();
        let mut sink = |b: &[u8]| {
            pack.extend_from_slice(b);
            Ok::<(), ()>(())
        };
        read_pack(&mut &bytes[..], &mut sink).unwrap().unwrap();
        assert_eq!(pack, b"PACK");
        let failed = lines(&["NAK\n", "\u{3}out of \u{1b}memory"]);
        let got = read_pack(&mut &failed[..], &mut |_| Ok::<(), ()>(()));
        assert!(matches!(got, Err(ProtocolError::Remote(t)) if !t.contains('\u{1b}')));
    }
}
