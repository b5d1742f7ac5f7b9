//! `sha256:<64 hex>`: the name of content everywhere in Keelway.
//!
//! Invariant: a `Digest` is always well formed; text from outside becomes one only through
//! [`Digest::from_str`], which accepts sha256 in lower case and nothing else.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;
use std::fmt;
use std::str::FromStr;

/// A sha256 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestParseError {
    /// The part before the colon is not `sha256`.
    #[error("unsupported digest algorithm in {0:?}: only sha256 is used")]
    Algorithm(String),
    /// The part after the colon is not 64 lower-case hexadecimal digits.
    #[error("malformed digest {0:?}: expected sha256: and 64 lower-case hexadecimal digits")]
    Hex(String),
}

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }
    /// Takes 32 raw bytes that are a sha256.
    pub const fn from_bytes(raw: [u8; 32]) -> Self {
        Self(raw)
    }
    /// The 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
    /// The 64 hexadecimal digits without the algorithm: safe as a file name.
    pub fn hex(&self) -> String {
        let mut out = String::with_capacity(64);
        for b in self.0 {
            out.push(char::from_digit(u32::from(b >> 4), 16).expect("a nibble is a hex digit"));
            out.push(char::from_digit(u32::from(b & 15), 16).expect("a nibble is a hex digit"));
        }
        out
    }
    /// The first 12 hexadecimal digits, for people.
    pub fn short(&self) -> String {
        self.hex()[..12].to_owned()
    }
    /// Reads 64 lower-case hexadecimal digits.
    pub fn from_hex(hex: &str) -> Result<Self, DigestParseError> {
        let bad = || DigestParseError::Hex(hex.chars().take(200).collect());
        let raw = hex.as_bytes();
        if raw.len() != 64 {
            return Err(bad());
        }
        let nibble = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        let mut out = [0u8; 32];
        for (i, pair) in raw.chunks_exact(2).enumerate() {
            out[i] = nibble(pair[0]).ok_or_else(bad)? << 4 | nibble(pair[1]).ok_or_else(bad)?;
        }
        Ok(Self(out))
    }
}

impl FromStr for Digest {
    type Err = DigestParseError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s.split_once(':') {
            Some(("sha256", hex)) => Self::from_hex(hex),
            Some(_) => Err(DigestParseError::Algorithm(s.chars().take(200).collect())),
            None => Err(DigestParseError::Hex(s.chars().take(200).collect())),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}
impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// An incremental sha256.
#[derive(Clone, Default)]
pub struct Hasher(sha2::Sha256);

impl Hasher {
    /// An empty hasher.
    pub fn new() -> Self {
        Self::default()
    }
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(bytes);
        self
    }
    /// Adds a length-framed field, so that `("ab","c")` and `("a","bc")` hash apart. Every key made
    /// of several fields must use this and never bare [`Hasher::update`].
    pub fn field(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }
    /// The digest of all that was added.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lower_case_sha256_is_a_digest() {
        let good = Digest::of(b"x").to_string();
        assert_eq!(good.parse::<Digest>().unwrap().to_string(), good);
        for bad in ["", "sha256", "sha256:", "sha512:00", &good.to_uppercase(), &good[..70], "sha256:../../x"]
        {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn fields_are_framed() {
        let two = |a: &[u8], b: &[u8]| {
            let mut h = Hasher::new();
            h.field(a).field(b);
            h.finish()
        };
        assert_ne!(two(b"ab", b"c"), two(b"a", b"bc"));
    }
}
