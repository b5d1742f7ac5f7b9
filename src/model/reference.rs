//! Names of images: `registry.example.com:5000/shop/web:1.2@sha256:…`.
//!
//! Invariant: [`PushedDigest`] is made only by a registry client that saw the registry answer with that
//! digest, and it is all that a deploy accepts.

use crate::digest::{Digest, DigestParseError};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The repository part is malformed.
    #[error(
        "{0:?} is not an image reference: write it as registry.example.com/name:tag, lower case, parts of a-z, 0-9, '.', '_' and '-'"
    )]
    Repository(String),
    /// The tag is malformed.
    #[error("{0:?} is not a tag: 1 to 128 of A-Z, a-z, 0-9, '_', '.', '-', not starting with '.' or '-'")]
    Tag(String),
    /// The digest is malformed.
    #[error(transparent)]
    Digest(#[from] DigestParseError),
}

/// Registry host (with port) and name in it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Repository {
    registry: String,
    name: String,
}

/// A tag.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(String);

/// A reference as a person writes it: repository, and tag or digest or both.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef {
    /// Where.
    pub repository: Repository,
    /// Tag; with neither tag nor digest, `latest`.
    pub tag: Option<Tag>,
    /// Exact content.
    pub digest: Option<Digest>,
}

/// The registry that a name without a host means.
pub const DEFAULT_REGISTRY: &str = "docker.io";

fn short(s: &str) -> String {
    s.chars().take(200).collect()
}

fn is_host(s: &str) -> bool {
    let (host, port) = match s.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((v6, rest)) if v6.parse::<std::net::Ipv6Addr>().is_ok() => {
                (None, rest.strip_prefix(':').or((rest.is_empty()).then_some("0")))
            }
            _ => return false,
        },
        None => match s.split_once(':') {
            Some((h, p)) => (Some(h), Some(p)),
            None => (Some(s), Some("0")),
        },
    };
    let host_ok = host.is_none_or(|h| {
        !h.is_empty()
            && h.len() <= 253
            && h.split('.').all(|l| {
                !l.is_empty()
                    && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                    && !l.starts_with('-')
                    && !l.ends_with('-')
            })
    });
    host_ok
        && port.is_some_and(|p| {
            !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u16>().is_ok()
        })
}

fn is_component(s: &str) -> bool {
    // [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*
    let b = s.as_bytes();
    let alnum = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    if b.is_empty() || !alnum(b[0]) || !alnum(b[b.len() - 1]) {
        return false;
    }
    let mut i = 0;
    while i < b.len() {
        if alnum(b[i]) {
            i += 1;
            continue;
        }
        let run = b[i..].iter().take_while(|&&c| !alnum(c)).count();
        let sep = &b[i..i + run];
        if !(sep == b"." || sep == b"_" || sep == b"__" || sep.iter().all(|&c| c == b'-')) {
            return false;
        }
        i += run;
    }
    true
}

impl Repository {
    /// The registry, with its port where one is written.
    pub fn registry(&self) -> &str {
        &self.registry
    }
    /// The name inside the registry.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for Repository {
    type Err = ReferenceError;
    fn from_str(s: &str) -> Result<Self, ReferenceError> {
        let bad = || ReferenceError::Repository(short(s));
        let (registry, name) = match s.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':', '[']) || first == "localhost" => {
                (first, rest.to_owned())
            }
            Some(_) => (DEFAULT_REGISTRY, s.to_owned()),
            None => (DEFAULT_REGISTRY, format!("library/{s}")),
        };
        if s.len() > 512 || !is_host(registry) || name.len() > 255 || !name.split('/').all(is_component) {
            return Err(bad());
        }
        Ok(Self { registry: registry.to_ascii_lowercase(), name })
    }
}

impl FromStr for Tag {
    type Err = ReferenceError;
    fn from_str(s: &str) -> Result<Self, ReferenceError> {
        let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if s.is_empty() || s.len() > 128 || s.starts_with(['.', '-']) || !s.bytes().all(ok) {
            return Err(ReferenceError::Tag(short(s)));
        }
        Ok(Self(s.to_owned()))
    }
}

impl Tag {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// The tag of a branch: every character that a tag cannot hold becomes `-`, cut at 128. `None` for an
    /// empty name.
    pub fn of_branch(branch: &str) -> Option<Self> {
        let text: String = branch
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') { c } else { '-' })
            .take(128)
            .collect();
        let text = match text.strip_prefix(['.', '-']) {
            Some(rest) => format!("_{rest}"),
            None => text,
        };
        text.parse().ok()
    }
}

impl FromStr for ImageRef {
    type Err = ReferenceError;
    fn from_str(s: &str) -> Result<Self, ReferenceError> {
        let (rest, digest) = match s.split_once('@') {
            Some((rest, d)) => (rest, Some(d.parse()?)),
            None => (s, None),
        };
        let (name, tag) = match rest.rfind(':') {
            Some(i) if !rest[i..].contains('/') && !rest[i..].contains(']') => {
                (&rest[..i], Some(rest[i + 1..].parse()?))
            }
            _ => (rest, None),
        };
        let repository = name.parse().map_err(|_| ReferenceError::Repository(short(s)))?;
        Ok(Self { repository, tag, digest })
    }
}

impl ImageRef {
    /// The tag that is meant: the written one, or `latest` where there is no digest either.
    pub fn effective_tag(&self) -> Option<Tag> {
        match (&self.tag, &self.digest) {
            (Some(t), _) => Some(t.clone()),
            (None, None) => Some(Tag("latest".into())),
            (None, Some(_)) => None,
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.name)
    }
}
impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repository)?;
        if let Some(t) = self.effective_tag() {
            write!(f, ":{t}")?;
        }
        if let Some(d) = &self.digest {
            write!(f, "@{d}")?;
        }
        Ok(())
    }
}

macro_rules! debug_and_serde {
    ($($t:ty),*) => { $(
        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Display::fmt(self, f) }
        }
        impl TryFrom<String> for $t {
            type Error = ReferenceError;
            fn try_from(s: String) -> Result<Self, ReferenceError> { s.parse() }
        }
        impl From<$t> for String {
            fn from(v: $t) -> String { v.to_string() }
        }
    )* };
}
debug_and_serde!(Repository, Tag, ImageRef);

/// A manifest that a registry holds: the only thing that can be deployed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PushedDigest {
    repository: Repository,
    digest: Digest,
}

impl PushedDigest {
    /// For the registry client alone, after the registry answered for this digest; and for reading back
    /// what such a client recorded.
    pub const fn attested_by_registry(repository: Repository, digest: Digest) -> Self {
        Self { repository, digest }
    }
    /// Where it was pushed.
    pub const fn repository(&self) -> &Repository {
        &self.repository
    }
    /// The manifest's digest.
    pub const fn digest(&self) -> Digest {
        self.digest
    }
    /// `repository@digest`.
    pub fn to_ref(&self) -> ImageRef {
        ImageRef { repository: self.repository.clone(), tag: None, digest: Some(self.digest) }
    }
}

impl fmt::Display for PushedDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repository, self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_as_people_write_them() {
        for (given, want) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("moby/buildkit", "docker.io/moby/buildkit:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("127.0.0.1:5000/a/b:t", "127.0.0.1:5000/a/b:t"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("r.example.com/shop/web", "r.example.com/shop/web:latest"),
        ] {
            assert_eq!(given.parse::<ImageRef>().unwrap().to_string(), want);
        }
        let pinned = format!("r.example.com/a@{}", Digest::of(b""));
        assert_eq!(pinned.parse::<ImageRef>().unwrap().to_string(), pinned);
    }

    #[test]
    fn hostile_references_are_refused() {
        for bad in [
            "",
            "A",
            "../x",
            "a/../b",
            "a//b",
            "a:",
            "a:-x",
            "a b",
            "a@sha256:00",
            "r.example.com:99999/a",
            "a..b",
            "-a",
            "a/",
            "/a",
            "r.example.com/a\n",
            "r.example.com/%2e%2e/a",
            "r.exa mple.com/a",
            &format!("a:{}", "t".repeat(129)),
            &"a/".repeat(400),
        ] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn branch_tags() {
        assert_eq!(Tag::of_branch("feature/Ünï#1").unwrap().as_str(), "feature--n--1");
        assert_eq!(Tag::of_branch("-x").unwrap().as_str(), "_x");
        assert!(Tag::of_branch("").is_none());
    }
}
