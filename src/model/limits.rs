//! What one sandbox may use.

use crate::units::Bytes;
use serde::{Deserialize, Serialize};

/// Bounds on a sandbox. `None` means the default of the place that runs it, which is never "no bound"
/// for processes, open files, `/dev/shm` and output.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Memory, swap included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// CPU time in thousandths of a core: 1500 is one and a half cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
    /// What it writes into its root, as the file system counts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bytes>,
    /// Files and folders that it makes in its root. Where only `disk` is given it follows from that: see
    /// [`Limits::files_at_most`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<u64>,
    /// Traffic with the disk that its root is on.
    #[serde(default, skip_serializing_if = "Io::is_empty")]
    pub io: Io,
    /// Open files of each process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u32>,
    /// Size of `/dev/shm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm: Option<Bytes>,
    /// Output of a step; more than that ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<Bytes>,
}

/// Traffic with a disk; what is `None` has no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Io {
    /// Bytes read in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<Bytes>,
    /// Bytes written in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write: Option<Bytes>,
    /// Read operations in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_ops: Option<u32>,
    /// Write operations in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_ops: Option<u32>,
    /// Its share where others want the disk, too: 1 to 10000; 100 is everybody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
}

impl Io {
    /// Whether nothing is bounded.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
    /// Whether bytes or operations are bounded, for which a disk has to be named.
    pub fn is_throttled(&self) -> bool {
        Self { weight: None, ..*self } != Self::default()
    }
}

/// Processes and threads where nothing is said.
pub const DEFAULT_PIDS: u32 = 4096;
/// `/dev/shm` where nothing is said.
pub const DEFAULT_SHM: Bytes = Bytes(64 << 20);
/// Output of a step where nothing is said.
pub const DEFAULT_LOG: Bytes = Bytes(1 << 30);

/// Where only bytes are bounded: one file for so many of them, as file systems are usually made with room for.
const BYTES_A_FILE: u64 = 4 << 10;
/// But never so few files that a small bound on bytes is met by empty ones.
const FEWEST_FILES: u64 = 10_000;

impl Limits {
    /// The bound on files and folders, which a bound on bytes brings along.
    pub fn files_at_most(&self) -> Option<u64> {
        self.files.or_else(|| self.disk.map(|disk| (disk.0 / BYTES_A_FILE).max(FEWEST_FILES)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_bring_a_bound_on_files_along() {
        let disk = |bytes| Limits { disk: Some(Bytes(bytes)), ..Limits::default() };
        assert_eq!(disk(1 << 30).files_at_most(), Some(262_144));
        assert_eq!(disk(1 << 20).files_at_most(), Some(FEWEST_FILES));
        assert_eq!(Limits { files: Some(3), ..disk(1 << 30) }.files_at_most(), Some(3));
        assert_eq!(Limits::default().files_at_most(), None);
    }

    #[test]
    fn what_is_not_said_is_not_written() {
        assert_eq!(serde_json::to_string(&Limits::default()).unwrap(), "{}");
        let io = Io { weight: Some(50), ..Io::default() };
        assert!(!io.is_empty() && !io.is_throttled());
        let text = serde_json::to_string(&Limits { io, ..Limits::default() }).unwrap();
        assert_eq!(text, r#"{"io":{"weight":50}}"#);
    }
}
