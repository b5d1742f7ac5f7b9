//! A newtype for every id and every role.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);
        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                let check: fn(&str) -> bool = $check;
                if check(&text) { Ok(Self(text)) } else { Err(IdError { what: $what, text: text.chars().take(100).collect() }) }
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::try_from(text.to_owned())
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// A text that is not an id of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {what}")]
pub struct IdError {
    what: &'static str,
    text: String,
}

fn is_name(s: &str) -> bool {
    !s.is_empty()
        && s.len() <= 63
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'))
        && s.as_bytes()[0].is_ascii_alphanumeric()
}

text_id!(
    /// The name of a stage in `keelway.yml`: 1 to 63 of `a-z 0-9 - _ .`, starting with a letter or digit.
    StageName, "stage name (1 to 63 of a-z, 0-9, '-', '_', '.', starting with a letter or digit)", is_name
);
text_id!(
    /// One run of a pipeline: sortable by time, safe as a file name.
    RunId, "run id", is_name
);
text_id!(
    /// A snapshot directory of the store: safe as a file name.
    SnapshotId, "snapshot id", is_name
);
text_id!(
    /// The name of a deployed application on its hosts.
    AppName, "app name (1 to 63 of a-z, 0-9, '-', '_', '.', starting with a letter or digit)", is_name
);
text_id!(
    /// A full git commit id: 40 lower-case hexadecimal digits.
    CommitId, "commit id (40 hexadecimal digits)",
    |s| s.len() == 40 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
);

impl CommitId {
    /// The first 12 digits, for people.
    pub fn short(&self) -> &str {
        &self.as_str()[..12]
    }
}

/// The place of a node in its plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u32);

impl NodeId {
    /// As an index into the plan's nodes.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// How often a run was begun: 1 the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attempt(pub u32);

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_folder() {
        for bad in ["", ".", "..", "../x", "a/b", "-x", "A", "a\0", &"a".repeat(64)] {
            assert!(bad.parse::<SnapshotId>().is_err(), "{bad:?}");
        }
        assert_eq!("web-1.2_x".parse::<StageName>().unwrap().as_str(), "web-1.2_x");
        assert!("ABCDEF".parse::<CommitId>().is_err());
    }
}
