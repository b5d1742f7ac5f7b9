//! Names and ids of containers.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::str::FromStr;

/// Hexadecimal digits of an id.
const ID_DIGITS: usize = 64;
/// Digits that people see.
const SHORT: usize = 12;
/// Longest name.
const MAX_NAME: usize = 128;

const FIRST: [&str; 24] = [
    "amber", "bold", "brave", "brisk", "calm", "clear", "deep", "eager", "fair", "fleet", "gentle", "keen",
    "light", "loyal", "lucky", "merry", "proud", "quick", "ready", "silver", "steady", "swift", "true",
    "wide",
];
const SECOND: [&str; 24] = [
    "anchor", "beacon", "bow", "brig", "clipper", "compass", "cutter", "dinghy", "ferry", "halyard",
    "harbour", "helm", "hull", "jib", "ketch", "keel", "lantern", "mast", "rudder", "sail", "schooner",
    "sloop", "spar", "yawl",
];

/// The id of a container: 64 hexadecimal digits, made at random, used once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

/// A name of a container, unique in its state directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerName(String);

/// A text that is no id or name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No id.
    #[error("{0:?} is no container id")]
    Id(String),
    /// No name.
    #[error(
        "{0:?} cannot name a container: 2 to 128 letters, digits, '_', '.' and '-', beginning with a letter or digit"
    )]
    Name(String),
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

impl ContainerId {
    /// A new one.
    pub fn random() -> io::Result<Self> {
        let bytes: [u8; ID_DIGITS / 2] = random()?;
        Ok(Self(bytes.iter().map(|b| format!("{b:02x}")).collect()))
    }
    /// All digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// What people see.
    pub fn short(&self) -> &str {
        &self.0[..SHORT]
    }
}

impl ContainerName {
    /// Two words of the sea, from 576 pairs.
    pub fn random() -> io::Result<Self> {
        let [a, b]: [u8; 2] = random()?;
        Ok(Self(format!("{}_{}", FIRST[usize::from(a) % FIRST.len()], SECOND[usize::from(b) % SECOND.len()])))
    }
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ContainerId {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        let good = text.len() == ID_DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if good { Ok(Self(text)) } else { Err(NameError::Id(text.chars().take(80).collect())) }
    }
}

impl TryFrom<String> for ContainerName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        let good = (2..=MAX_NAME).contains(&text.len())
            && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
            && text.bytes().all(inner);
        if good { Ok(Self(text)) } else { Err(NameError::Name(text.chars().take(140).collect())) }
    }
}

macro_rules! text {
    ($name:ident) => {
        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::try_from(text.to_owned())
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}
text!(ContainerId);
text!(ContainerName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids() {
        let id = ContainerId::random().unwrap();
        assert_eq!(id.as_str().parse(), Ok(id.clone()));
        assert_eq!((id.as_str().len(), id.short().len()), (64, 12));
        assert_ne!(id, ContainerId::random().unwrap());
        for _ in 0..100 {
            let name = ContainerName::random().unwrap();
            assert_eq!(name.as_str().parse(), Ok(name));
        }
        for bad in ["", "a", "-ab", "a/b", "..", "a b", &"x".repeat(129), "ä_b"] {
            assert!(bad.parse::<ContainerName>().is_err(), "{bad}");
        }
        for bad in ["", "../..", &"A".repeat(64), &"0".repeat(63)] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad}");
        }
    }
}
