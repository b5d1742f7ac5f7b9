//! Processes of a host: what they need beyond what all our processes have.

pub use keelway_container::process::{detach, runtime, spawn};

use std::io;
use std::path::PathBuf;

/// The binary that runs now, also when its file was replaced or removed.
const SELF: &str = "/proc/self/exe";

/// Raises the bound on open files as far as we may: each connection of a balancer takes two.
pub fn allow_many_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, soft, "cannot raise the bound on open files");
    }
}

/// The file of the binary that runs now.
pub fn own_path() -> io::Result<PathBuf> {
    std::fs::read_link(SELF)
}

/// Names the binary that a process runs: device and inode.
pub fn own_binary() -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(SELF)?;
    Ok((meta.dev(), meta.ino()))
}
