//! openat2(2), until it has an answer.
//!
//! A way with `..` inside a root cannot be followed while anybody on the machine renames or mounts something: the kernel
//! then says EAGAIN, and means it.

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::OpenHow;
use std::os::fd::{AsFd, OwnedFd};

/// How often it may lose. Sixteen builds side by side make a mount each millisecond or so; one walk takes microseconds.
const RACES: usize = 1000;

/// Opens a path as [`nix::fcntl::openat2`] does.
pub(crate) fn openat2(
    directory: impl AsFd,
    path: &(impl NixPath + ?Sized),
    how: OpenHow,
) -> Result<OwnedFd, Errno> {
    for _ in 0..RACES {
        match nix::fcntl::openat2(&directory, path, how) {
            Err(Errno::EAGAIN) => std::thread::yield_now(),
            other => return other,
        }
    }
    Err(Errno::EAGAIN)
}
