//! What a `RUN` has beyond its root file system while it runs: one list for the scripts of heredocs and for every
//! `--mount`, from the Dockerfile to the sandbox.
//!
//! A secret and an agent are named here and never held: a plan can be printed and journalled.

use crate::units::Bytes;
use serde::{Deserialize, Serialize};

/// One of them. Targets are absolute, clean and never `/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum RunMount {
    /// The script of a heredoc, executable.
    Script {
        /// Where.
        target: String,
        /// Its text.
        content: String,
    },
    /// A file or directory of the chain of a need; what is written to it is thrown away.
    Bind {
        /// Where.
        target: String,
        /// Which of the node's needs.
        need: usize,
        /// Absolute path in that chain.
        source: String,
        /// Whether it may be written.
        writable: bool,
    },
    /// A directory of the machine's store that outlives the build. Its content is part of no key.
    Cache {
        /// Where.
        target: String,
        /// Which one; the same everywhere in the store.
        id: String,
        /// Who else may use it at the same time.
        sharing: Sharing,
        /// Whether it may only be read.
        read_only: bool,
        /// The directory beneath it that is mounted; `/` is all of it.
        source: String,
        /// What it holds when it is made: a need and a path in its chain. Empty where there is none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seed: Option<(usize, String)>,
        /// Its owner and mode when it is made.
        access: FileAccess,
    },
    /// An empty directory in memory.
    Tmpfs {
        /// Where.
        target: String,
        /// At most so much.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<Bytes>,
    },
    /// A secret as a file in memory.
    Secret {
        /// Where.
        target: String,
        /// Which one.
        id: String,
        /// Whether the step fails without it.
        required: bool,
        /// Its owner and mode.
        access: FileAccess,
    },
    /// A secret as a variable.
    SecretVariable {
        /// The variable.
        name: String,
        /// Which secret.
        id: String,
        /// Whether the step fails without it.
        required: bool,
    },
    /// The socket of an ssh agent. The first of a RUN is what its `SSH_AUTH_SOCK` names.
    Agent {
        /// Where.
        target: String,
        /// Which one.
        id: String,
        /// Whether the step fails without it.
        required: bool,
        /// Its owner and mode.
        access: FileAccess,
    },
}

impl RunMount {
    /// Where it is; `None` for a variable.
    pub fn target(&self) -> Option<&str> {
        match self {
            Self::Script { target, .. }
            | Self::Bind { target, .. }
            | Self::Cache { target, .. }
            | Self::Tmpfs { target, .. }
            | Self::Secret { target, .. }
            | Self::Agent { target, .. } => Some(target),
            Self::SecretVariable { .. } => None,
        }
    }
}

/// Owner and mode of a file, by numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileAccess {
    /// At most `0o7777`.
    pub mode: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Who may use a cache mount at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sharing {
    /// Everybody, but while somebody has it locked.
    Shared,
    /// One each: who finds it in use gets another directory of the same id.
    Private,
    /// One at a time: others wait.
    Locked,
}
