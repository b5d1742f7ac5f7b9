//! The disk whose traffic can be bounded.
//!
//! Controllers bound whole disks: a partition stands for the one that it is on.

use crate::error::SetupError;
use nix::sys::stat::{major, minor, stat};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;

/// A block device, by the kernel's two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Device {
    pub major: u64,
    pub minor: u64,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl Device {
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

/// The disk that a path is on.
pub(crate) fn disk_of(path: &Path) -> Result<Device, SetupError> {
    let found = stat(path)
        .map_err(|e| SetupError::Step { action: format!("find the disk of {path:?}"), errno: e.into() })?;
    let device = Device { major: major(found.st_dev), minor: minor(found.st_dev) };
    whole(device, Path::new("/sys/dev/block")).ok_or_else(|| SetupError::NoDisk { path: path.to_owned() })
}

/// The device itself, or the disk that it is a partition of. `sys` is /sys/dev/block.
pub(super) fn whole(device: Device, sys: &Path) -> Option<Device> {
    // Number 0 is a file system without a device: tmpfs, overlayfs, btrfs.
    if device.major == 0 {
        return None;
    }
    let entry = sys.join(device.to_string());
    if !entry.join("partition").exists() {
        return Some(device);
    }
    let disk = entry.canonicalize().ok()?.parent()?.join("dev");
    Device::parse(&std::fs::read_to_string(disk).ok()?)
}
