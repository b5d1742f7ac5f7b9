//! Cache keys that can explain themselves.
//!
//! A key is the hash of named parts. The parts are kept beside the record, so that a miss can say
//! which of them changed since the last build of the same step.

use crate::digest::{Digest, Hasher};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The named parts of a step's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyPart {
    /// The image or step it stands on.
    Base,
    /// The instruction itself: command line, flags, destination.
    Command,
    /// Environment and build arguments that the step sees.
    Environment,
    /// Content of the files it reads.
    Files,
    /// User, working directory, shell, network, platform: how it runs.
    Settings,
}

impl fmt::Display for KeyPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Base => "base",
            Self::Command => "command",
            Self::Environment => "environment",
            Self::Files => "files",
            Self::Settings => "settings",
        })
    }
}

/// A step's key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CacheKey {
    /// The key itself.
    pub digest: Digest,
    /// What it was made of, in the order of [`KeyPart`].
    pub parts: Vec<(KeyPart, Digest)>,
    /// What names "the same step" in an earlier build (Dockerfile, stage, position): not part of the key.
    pub identity: Digest,
}

impl CacheKey {
    /// Bumped whenever the meaning of a step changes, so that old records never match.
    pub const VERSION: u32 = 1;

    /// The key of `parts`; the order they are given in does not matter.
    pub fn new(identity: Digest, mut parts: Vec<(KeyPart, Digest)>) -> Self {
        parts.sort();
        let mut h = Hasher::new();
        h.field(b"keelway step key").field(&Self::VERSION.to_le_bytes());
        for (part, digest) in &parts {
            h.field(part.to_string().as_bytes()).field(digest.as_bytes());
        }
        Self { digest: h.finish(), parts, identity }
    }
    /// The step itself, whatever it stands on; `None` for one that stands on nothing.
    pub fn step(&self) -> Option<Digest> {
        let mut h = Hasher::new();
        h.field(b"keelway step").field(&Self::VERSION.to_le_bytes());
        let mut stands = false;
        for (part, digest) in &self.parts {
            match part {
                KeyPart::Base => stands = true,
                part => _ = h.field(part.to_string().as_bytes()).field(digest.as_bytes()),
            }
        }
        stands.then(|| h.finish())
    }
    /// Why this key missed, given the parts of the last build of the same step.
    pub fn explain(&self, last: Option<&[(KeyPart, Digest)]>) -> MissReason {
        let Some(last) = last else { return MissReason::NeverBuilt };
        let get = |part| last.iter().find(|(p, _)| *p == part).map(|(_, d)| *d);
        let changed: Vec<KeyPart> =
            self.parts.iter().filter(|(p, d)| get(*p) != Some(*d)).map(|(p, _)| *p).collect();
        if changed.is_empty() { MissReason::Collected } else { MissReason::Changed(changed) }
    }
}

/// Why a step had to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MissReason {
    /// No build of this step is on record.
    NeverBuilt,
    /// These parts differ from the last build of this step.
    Changed(Vec<KeyPart>),
    /// The key is known, its result is gone from the store.
    Collected,
    /// Whoever started the run wants it run.
    Asked,
}

impl fmt::Display for MissReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeverBuilt => f.write_str("not built before"),
            Self::Changed(parts) => {
                let names: Vec<String> = parts.iter().map(ToString::to_string).collect();
                write!(f, "{} changed", names.join(", "))
            }
            Self::Collected => f.write_str("its result is no longer in the store"),
            Self::Asked => f.write_str("asked for anew"),
        }
    }
}
