//! How a sandbox ended, and the words for it.
//!
//! The words are here and nowhere else: a step, a replica and a container made by hand that met the same limit end
//! with the same sentence, which names the limit and what to raise.

use keelway_model::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// How the main process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitKind {
    /// It exited.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// The memory limit: the kernel killed a process of the sandbox and the main process did not succeed.
    OutOfMemory,
    /// It was killed for what it had written into its root.
    OutOfDisk {
        /// What was there when it was measured; what is beyond the limit is the overshoot.
        used: Bytes,
        /// Its limit.
        limit: Bytes,
    },
    /// It was killed for how many files it had made in its root, or for how deep they were nested.
    TooManyFiles {
        /// What was there when it was counted.
        used: u64,
        /// Its limit.
        limit: u64,
    },
    /// It was killed because it went on to fork at its limit of processes.
    TooManyProcesses {
        /// Its limit.
        limit: u32,
    },
    /// Its owner killed it for how much it had printed.
    TooMuchOutput {
        /// Its limit.
        limit: Bytes,
    },
    /// Somebody killed the sandbox's init; all its processes are dead, their end is not known.
    InitKilled,
}

/// A bound that ended a sandbox, or had a part in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Memory.
    Memory,
    /// Processes and threads.
    Processes,
    /// Bytes written into its root.
    Disk,
    /// Files made in its root.
    Files,
    /// Output.
    Output,
}

impl Limit {
    /// Its key below `limits` in keelway.yml.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Processes => "pids",
            Self::Disk => "disk",
            Self::Files => "files",
            Self::Output => "log",
        }
    }
    /// Its flag at commands that run things by hand, where there is one.
    pub const fn flag(self) -> Option<&'static str> {
        match self {
            Self::Memory => Some("--memory"),
            Self::Processes => Some("--pids-limit"),
            Self::Disk => Some("--disk"),
            Self::Files => Some("--files"),
            Self::Output => None,
        }
    }
}

/// What to raise.
impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`limits.{}`", self.key())?;
        self.flag().map_or(Ok(()), |flag| write!(f, " or {flag}"))
    }
}

/// What it used, as far as the machine counts it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time, user and system, of all its processes.
    pub cpu: Duration,
    /// Most memory at one time; only counted under a memory limit.
    pub peak_memory: Option<Bytes>,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
    /// Forks refused by the process limit.
    pub pids_refused: u64,
}

/// The end of a sandbox. When it is seen, every process of the sandbox is dead and its mounts are gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// How.
    pub kind: ExitKind,
    /// What it used.
    pub usage: Usage,
}

impl Exit {
    /// Exit code 0.
    pub fn success(&self) -> bool {
        self.kind == ExitKind::Code(0)
    }

    /// The limit that ended it, or that it met on its way to a bad end.
    pub fn limit(&self) -> Option<Limit> {
        match self.kind {
            ExitKind::OutOfMemory => Some(Limit::Memory),
            ExitKind::OutOfDisk { .. } => Some(Limit::Disk),
            ExitKind::TooManyFiles { .. } => Some(Limit::Files),
            ExitKind::TooManyProcesses { .. } => Some(Limit::Processes),
            ExitKind::TooMuchOutput { .. } => Some(Limit::Output),
            ExitKind::Code(0) | ExitKind::InitKilled => None,
            ExitKind::Code(_) | ExitKind::Signal(_) => {
                (self.usage.pids_refused > 0).then_some(Limit::Processes)
            }
        }
    }
}

/// For people: what happened, and where a limit had a part in it, what to raise.
impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            ExitKind::Code(127) => f.write_str("exit code 127 (a command was not found in the image)")?,
            ExitKind::Code(126) => f.write_str("exit code 126 (a command could not be executed)")?,
            ExitKind::Code(code) => write!(f, "exit code {code}")?,
            ExitKind::Signal(signal) => write!(f, "ended by signal {signal}")?,
            ExitKind::OutOfMemory => {
                return write!(f, "out of memory; raise {} or make it use less", Limit::Memory);
            }
            ExitKind::OutOfDisk { used, limit } => {
                return write!(
                    f,
                    "too much disk: it wrote {used} into its root, its limit is {limit}; raise {} or write less",
                    Limit::Disk
                );
            }
            ExitKind::TooManyFiles { used, limit } if used <= limit => {
                return f
                    .write_str("too many files: its folders are nested too deep to be counted; make fewer");
            }
            ExitKind::TooManyFiles { used, limit } => {
                return write!(
                    f,
                    "too many files: it made {used} in its root, its limit is {limit}; raise {} or make fewer",
                    Limit::Files
                );
            }
            ExitKind::TooManyProcesses { limit } => {
                return write!(
                    f,
                    "too many processes: it went on to fork at its limit of {limit}; raise {} or start fewer",
                    Limit::Processes
                );
            }
            ExitKind::TooMuchOutput { limit } => {
                return write!(
                    f,
                    "too much output: more than {limit}; raise {} or print less",
                    Limit::Output
                );
            }
            ExitKind::InitKilled => return f.write_str("its sandbox was killed from outside"),
        }
        match self.limit() {
            Some(limit) => write!(f, "; its limit of processes was reached: raise {limit}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_named_with_what_to_raise() {
        let of = |kind, pids_refused| Exit { kind, usage: Usage { pids_refused, ..Usage::default() } };
        let (mib, gib) = (Bytes(1 << 20), Bytes(1 << 30));
        for (exit, limit, words) in [
            (of(ExitKind::OutOfMemory, 0), "memory", "out of memory; raise `limits.memory` or --memory"),
            (
                of(ExitKind::OutOfDisk { used: gib, limit: mib }, 0),
                "disk",
                "it wrote 1.0 GiB into its root, its limit is 1.0 MiB; raise `limits.disk` or --disk",
            ),
            (of(ExitKind::TooManyFiles { used: 3, limit: 2 }, 0), "files", "raise `limits.files` or --files"),
            (
                of(ExitKind::TooManyProcesses { limit: 9 }, 5),
                "pids",
                "at its limit of 9; raise `limits.pids`",
            ),
            (of(ExitKind::TooMuchOutput { limit: gib }, 0), "log", "more than 1.0 GiB; raise `limits.log`"),
            (of(ExitKind::Code(2), 1), "pids", "exit code 2; its limit of processes was reached: raise"),
        ] {
            assert_eq!(exit.limit().map(Limit::key), Some(limit), "{exit}");
            assert!(exit.to_string().contains(words), "{exit}");
        }
        assert_eq!(of(ExitKind::Code(0), 7).limit(), None, "it coped");
        assert_eq!(of(ExitKind::Signal(9), 0).to_string(), "ended by signal 9");
    }
}
