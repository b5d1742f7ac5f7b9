//! What one sandbox may use.

use crate::units::Bytes;
use serde::{Deserialize, Serialize};

/// Bounds on a sandbox. `None` means the default of the place that runs it, which is never "no bound"
/// for processes.
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
}

/// Processes and threads where nothing is said.
pub const DEFAULT_PIDS: u32 = 4096;
