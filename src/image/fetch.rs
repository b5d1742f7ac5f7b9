//! `ADD` of an address: which file it is, what is kept of it, and when it need not be fetched.
//!
//! A fetched file is a snapshot of its own, `file/NAME` with mode 0600 and owned by root, from which a copy takes it; so
//! a copy's key holds its bytes and not where they came from. Beside it lies `answer`, what the server said to be asked
//! again by. With a checksum nothing is asked where the file is known; without one the server is asked each time
//! whether it changed. Nothing here speaks with anybody.

use crate::base::{empty, extend};
use crate::error::StepError;
use keelway_model::plan::{Chain, FetchOp};
use keelway_model::{CacheKey, Digest, Hasher, KeyPart, Output, Tree, TreePath};
use keelway_store::{Store, Upper};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use std::fs::File;
use std::io::{self, Read, Write};

/// Largest file that is fetched, in bytes.
pub const MAX_BYTES: u64 = 16 << 30;
/// Longest validator that is remembered, in bytes.
const MAX_VALIDATOR: usize = 4096;
const ANSWER: &str = "answer";

/// What a source of `ADD` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Path,
    /// http or https.
    File,
    Git,
    /// Any other scheme.
    Other,
}

/// What a source of `ADD`, variables replaced, is. As in the reference an http address whose path ends in `.git` is one
/// of a repository.
pub(crate) fn kind(source: &str) -> Kind {
    let Some((scheme, rest)) = source.split_once("://") else {
        return if source.starts_with("git@") { Kind::Git } else { Kind::Path };
    };
    let known = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'-' | b'.');
    match scheme.to_ascii_lowercase().as_str() {
        "http" | "https" if path_of(rest).ends_with(".git") => Kind::Git,
        "http" | "https" => Kind::File,
        "git" | "ssh" => Kind::Git,
        "" => Kind::Path,
        other if other.bytes().all(known) => Kind::Other,
        _ => Kind::Path,
    }
}

/// The path of an address, without its scheme.
fn path_of(rest: &str) -> &str {
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    rest.split_once('/').map_or("", |(_, path)| path)
}

/// The file name that an address gives; `None` where it gives none that can be a name.
pub(crate) fn name(address: &str) -> Option<String> {
    let path = path_of(address.split_once("://")?.1);
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|h| std::str::from_utf8(h).ok());
        let coded = hex.filter(|h| first == b'%' && h.bytes().all(|b| b.is_ascii_hexdigit()));
        match coded.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    let decoded = String::from_utf8(bytes).ok()?;
    let name = decoded.trim_end_matches('/').rsplit('/').next()?;
    let fits = !name.is_empty() && name != "." && name != ".." && name.len() <= 255 && !name.contains('\0');
    fits.then(|| name.to_owned())
}

/// Where a copy finds the file, as a source pattern that means this file alone.
pub(crate) fn source(name: &str) -> String {
    format!("/file/{}", crate::seed::literal(name))
}

/// Whether a text can be a `--checksum`; what it must be, if not.
pub(crate) fn check(checksum: &str) -> Result<(), String> {
    Checker::new(checksum).map(|_| ()).ok_or_else(|| {
        format!("--checksum={checksum} is none: write sha256: (or sha384:, sha512:) and all of its hexadecimal digits")
    })
}

/// Hashes what comes, and compares.
enum Checker {
    Sha256(Sha256, String),
    Sha384(Sha384, String),
    Sha512(Sha512, String),
}

impl Checker {
    fn new(checksum: &str) -> Option<Self> {
        let (algorithm, hex) = checksum.split_once(':')?;
        let wanted = hex.to_ascii_lowercase();
        let of = |bytes: usize| hex.len() == 2 * bytes && hex.bytes().all(|b| b.is_ascii_hexdigit());
        match algorithm {
            "sha256" if of(32) => Some(Self::Sha256(Sha256::new(), wanted)),
            "sha384" if of(48) => Some(Self::Sha384(Sha384::new(), wanted)),
            "sha512" if of(64) => Some(Self::Sha512(Sha512::new(), wanted)),
            _ => None,
        }
    }
    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(h, _) => h.update(bytes),
            Self::Sha384(h, _) => h.update(bytes),
            Self::Sha512(h, _) => h.update(bytes),
        }
    }
    /// What it is, where that is not what was wanted.
    fn other(self) -> Option<String> {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let (algorithm, is, wanted) = match self {
            Self::Sha256(h, wanted) => ("sha256", hex(&h.finalize()), wanted),
            Self::Sha384(h, wanted) => ("sha384", hex(&h.finalize()), wanted),
            Self::Sha512(h, wanted) => ("sha512", hex(&h.finalize()), wanted),
        };
        (is != wanted).then(|| format!("{algorithm}:{is}"))
    }
}

fn digest(what: &str, fields: &[&str]) -> Digest {
    let mut h = Hasher::new();
    h.field(what.as_bytes());
    for field in fields {
        h.field(field.as_bytes());
    }
    h.finish()
}

/// The key of a fetch with a checksum: the address does not matter then. `None` without one.
pub(crate) fn key(op: &FetchOp) -> Option<CacheKey> {
    let checksum = op.checksum.as_ref()?.to_ascii_lowercase();
    let parts = vec![
        (KeyPart::Command, digest("fetch", &[&op.name])),
        (KeyPart::Files, digest("checksum", &[&checksum])),
    ];
    Some(CacheKey::new(op.identity, parts))
}

/// Under what the last answer of an address is kept.
fn asked(op: &FetchOp) -> CacheKey {
    CacheKey::new(op.identity, vec![(KeyPart::Command, digest("fetch address", &[&op.url, &op.name]))])
}

/// What a server said of a file, to be asked again by.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// `ETag`.
    pub etag: Option<String>,
    /// `Last-Modified`.
    pub last_modified: Option<String>,
}

impl Answer {
    fn is_useful(&self) -> bool {
        self.etag.is_some() || self.last_modified.is_some()
    }
}

/// The file that this address gave the last time, where it is still here and the server can be asked about it.
pub fn known(store: &Store, op: &FetchOp) -> Option<(Chain, Answer)> {
    let Some(Output::Chain(chain)) = store.cache_get(&asked(op)) else { return None };
    let mut text = Vec::new();
    let view = store.view(&chain.snapshots).ok()?;
    let read = view.open(&TreePath::from(ANSWER)).ok()?;
    read.take(4 * MAX_VALIDATOR as u64).read_to_end(&mut text).ok()?;
    let answer: Answer = serde_json::from_slice(&text).ok()?;
    answer.is_useful().then_some((chain, answer))
}

/// A file that is being received.
pub struct Receiving {
    upper: Upper,
    path: String,
    file: File,
    content: Hasher,
    checker: Option<Checker>,
    size: u64,
}

impl Receiving {
    /// Begins one.
    pub fn begin(store: &Store, op: &FetchOp) -> Result<Self, StepError> {
        let upper = store.begin()?;
        let path = format!("file/{}", op.name);
        let root = upper.root()?;
        let failed = |source| StepError::Write { what: "create", path: op.name.clone(), source };
        root.mkdir(b"file", 0o755).map_err(failed)?;
        let file = root.create_file(path.as_bytes(), 0o600).map_err(failed)?;
        root.set_owner(path.as_bytes(), 0, 0).map_err(failed)?;
        root.set_mode(path.as_bytes(), 0o600).map_err(failed)?;
        let checker = op.checksum.as_deref().and_then(Checker::new);
        Ok(Self { upper, path, file, content: Hasher::new(), checker, size: 0 })
    }

    /// Takes the next bytes.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), StepError> {
        self.size += bytes.len() as u64;
        if self.size > MAX_BYTES {
            return Err(StepError::Refused(format!("it has more than {} GiB", MAX_BYTES >> 30)));
        }
        self.content.update(bytes);
        if let Some(checker) = &mut self.checker {
            checker.update(bytes);
        }
        let failed = |source| StepError::Write { what: "write", path: self.path.clone(), source };
        self.file.write_all(bytes).map_err(failed)
    }

    /// All has come. Checks it, and remembers the answer where there was no checksum.
    pub fn finish(self, store: &Store, op: &FetchOp, answer: &Answer) -> Result<Chain, StepError> {
        if let Some(is) = self.checker.and_then(Checker::other) {
            let wanted = op.checksum.as_deref().unwrap_or_default();
            return Err(StepError::Refused(format!("what came is {is}, and --checksum says {wanted}")));
        }
        let fits = |v: &Option<String>| v.clone().filter(|v| v.len() <= MAX_VALIDATOR);
        let answer = Answer { etag: fits(&answer.etag), last_modified: fits(&answer.last_modified) };
        let remember = op.checksum.is_none() && answer.is_useful();
        if remember {
            let failed =
                |source: io::Error| StepError::Write { what: "write", path: ANSWER.to_owned(), source };
            let text = serde_json::to_vec(&answer).map_err(|e| failed(e.into()))?;
            let root = self.upper.root()?;
            let mut file = root.create_file(ANSWER.as_bytes(), 0o600).map_err(failed)?;
            file.write_all(&text).map_err(failed)?;
        }
        drop(self.file);
        let parts =
            vec![(KeyPart::Command, digest("fetched", &[&op.name])), (KeyPart::Files, self.content.finish())];
        let chain = extend(&empty(), self.upper, &CacheKey::new(op.identity, parts))?;
        if remember {
            store.cache_put(&asked(op), &Output::Chain(chain.clone()))?;
        }
        Ok(chain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rig, dump};
    use keelway_model::plan::Network;

    #[test]
    fn sources_are_told_apart() {
        for (source, want) in [
            ("a/b", Kind::Path),
            ("https://x/y", Kind::File),
            ("HTTP://x/y.tar?z=.git", Kind::File),
            ("https://x/y.git", Kind::Git),
            ("https://x/y.git#main:sub", Kind::Git),
            ("https://x/y.git?ref=main", Kind::Git),
            ("git@x:y", Kind::Git),
            ("git://x/y", Kind::Git),
            ("ssh://git@x/y", Kind::Git),
            ("ftp://x/y", Kind::Other),
            ("a b://c", Kind::Path),
            ("://c", Kind::Path),
            ("x.git", Kind::Path),
        ] {
            assert_eq!(kind(source), want, "{source}");
        }
    }

    #[test]
    fn names_are_those_of_the_path() {
        for (address, want) in [
            ("https://x/a/b.tar", Some("b.tar")),
            ("https://x/a/b.tar?q=/z#f", Some("b.tar")),
            ("https://x/a/", Some("a")),
            ("https://x/a%20b%2", Some("a b%2")),
            ("https://x/a%2fb", Some("b")),
            ("https://x/%c3%a9", Some("é")),
            ("https://x", None),
            ("https://x/", None),
            ("https://x/?q", None),
            ("https://x/..", None),
            ("https://x/a%00b", None),
            ("https://x/%ff", None),
            ("https://x/%+f", Some("%+f")),
        ] {
            assert_eq!(name(address).as_deref(), want, "{address}");
        }
        assert_eq!(source("a*[b]\\"), "/file/a\\*\\[b\\]\\\\");
        assert!(keelway_dockerfile::glob::matches(&source("a*[b]\\").as_bytes()[6..], b"a*[b]\\").unwrap());
    }

    fn op(checksum: Option<&str>) -> FetchOp {
        FetchOp {
            url: "https://x/f".into(),
            name: "f".into(),
            checksum: checksum.map(str::to_owned),
            network: Network::Private,
            identity: Digest::of(b"step"),
        }
    }

    fn received(rig: &Rig, op: &FetchOp, bytes: &[u8], answer: &Answer) -> Result<Chain, String> {
        let mut r = Receiving::begin(&rig.store, op).map_err(|e| e.to_string())?;
        for piece in bytes.chunks(3) {
            r.take(piece).map_err(|e| e.to_string())?;
        }
        r.finish(&rig.store, op, answer).map_err(|e| e.to_string())
    }

    #[test]
    fn checksums_are_held() {
        let rig = Rig::new();
        // Of `abc`, by FIPS 180-4.
        let right = [
            "sha256:BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD",
            "sha384:cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
            "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        ];
        for checksum in right {
            check(checksum).unwrap();
            let chain = received(&rig, &op(Some(checksum)), b"abc", &Answer::default()).unwrap();
            assert_eq!(dump(&rig.store, &chain), ["file d 755 0:0", "file/f f 600 0:0 abc"]);
            let e = received(&rig, &op(Some(checksum)), b"abd", &Answer::default()).unwrap_err();
            assert!(e.contains("--checksum says sha"), "{e}");
        }
        for bad in ["", "sha256:", "sha256:12", "md5:00", &right[0][..70], &right[1].replace("384", "256")] {
            assert!(check(bad).unwrap_err().contains("write sha256:"), "{bad}");
        }
        let other = FetchOp { url: "https://elsewhere/f".into(), ..op(Some(right[0])) };
        assert_eq!(key(&other), key(&op(Some(right[0]))), "the address does not matter");
        assert_eq!(key(&op(Some(&right[0].to_lowercase()))), key(&other));
        assert_ne!(key(&op(Some(right[1]))).unwrap().digest, key(&other).unwrap().digest);
        assert_ne!(key(&FetchOp { name: "g".into(), ..op(Some(right[0])) }), key(&other));
        assert_eq!(key(&op(None)), None);
    }

    #[test]
    fn answers_are_remembered_by_address() {
        let rig = Rig::new();
        let answer = Answer { etag: Some("\"1\"".into()), last_modified: None };
        assert_eq!(known(&rig.store, &op(None)), None);
        let chain = received(&rig, &op(None), b"abc", &answer).unwrap();
        assert_eq!(known(&rig.store, &op(None)), Some((chain, answer.clone())));
        let elsewhere = FetchOp { url: "https://x/g".into(), ..op(None) };
        assert_eq!(known(&rig.store, &elsewhere), None);
        received(&rig, &elsewhere, b"abc", &Answer::default()).unwrap();
        assert_eq!(known(&rig.store, &elsewhere), None, "nothing to ask by");
        let long = Answer { etag: Some("x".repeat(5000)), ..answer };
        received(&rig, &elsewhere, b"abc", &long).unwrap();
        assert_eq!(known(&rig.store, &elsewhere), None);
    }
}
