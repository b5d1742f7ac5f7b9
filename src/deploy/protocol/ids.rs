//! Numbers and names of releases and replicas, and the one secret that goes over the wire.

use keelway_model::Redacted;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Number of a release of an app: 1 for the first, growing; a rollback to an older image is a new revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// Fencing number of a lease: a higher one was granted later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// One replica of an app, unique over all hosts of its target; written `r3-0` (revision 3, slot 0), which is safe
/// as a file name, an interface suffix and a cgroup name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReplicaId {
    /// Which release it runs.
    pub revision: Revision,
    /// Its place among the replicas of that release, from 0, counted over all hosts.
    pub slot: u32,
}

/// A text that is not a [`ReplicaId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a replica id: write it as r<revision>-<slot>, for example r3-0")]
pub struct ReplicaIdError(String);

/// A secret that is written out only by serialising a request into an ssh session.
#[derive(Clone)]
pub struct WireSecret(pub Redacted<String>);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("r{}-{}", self.revision, self.slot))
    }
}
impl FromStr for ReplicaId {
    type Err = ReplicaIdError;
    fn from_str(s: &str) -> Result<Self, ReplicaIdError> {
        let parsed = s.strip_prefix('r').and_then(|rest| rest.split_once('-')).and_then(|(r, slot)| {
            let id = Self { revision: Revision(r.parse().ok()?), slot: slot.parse().ok()? };
            // One way to write each id: no signs, no leading zeros.
            (id.to_string() == s).then_some(id)
        });
        parsed.ok_or_else(|| ReplicaIdError(s.chars().take(60).collect()))
    }
}
impl TryFrom<String> for ReplicaId {
    type Error = ReplicaIdError;
    fn try_from(s: String) -> Result<Self, ReplicaIdError> {
        s.parse()
    }
}
impl From<ReplicaId> for String {
    fn from(id: ReplicaId) -> String {
        id.to_string()
    }
}

impl fmt::Debug for WireSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
impl PartialEq for WireSecret {
    fn eq(&self, other: &Self) -> bool {
        self.0.reveal() == other.0.reveal()
    }
}
impl Eq for WireSecret {}
impl Serialize for WireSecret {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.0.reveal())
    }
}
impl<'de> Deserialize<'de> for WireSecret {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(Self(Redacted::from(String::deserialize(d)?)))
    }
}
