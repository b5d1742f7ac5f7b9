//! Terminals of the sandbox's own devpts.
//!
//! Invariants: the multiplexer is opened in the devpts that we mounted, and looked at, so that nothing that the image or
//! the process put in its place is a terminal (CVE-2025-52565); the process's side is got from the other side and not
//! by a path.

use crate::error::SetupError;
use crate::ids::IdMap;
use crate::openat2::openat2;
use crate::spec::{User, Window};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat, makedev};
use nix::unistd::{Gid, Uid, fchown};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// The group that may write to terminals, inside.
const TTY: u32 = 5;
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// Both sides.
pub(crate) struct Terminal {
    pub owner: OwnedFd,
    pub process: OwnedFd,
}

fn step(action: &'static str) -> impl FnOnce(Errno) -> SetupError {
    move |errno| SetupError::Step { action: action.into(), errno: errno.into() }
}

/// A new one in the devpts at `pts`, of this size and for this user.
pub(crate) fn open_in(
    pts: BorrowedFd<'_>,
    window: Window,
    user: &User,
    ids: IdMap,
) -> Result<Terminal, SetupError> {
    let how = OpenHow::new().flags(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).resolve(
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV,
    );
    let owner = openat2(pts, "ptmx", how).map_err(step("open the terminal multiplexer"))?;
    let stat = fstat(&owner).map_err(step("look at the terminal multiplexer"))?;
    let is_device = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR;
    let kind = sys::fs_type(&owner).map_err(step("look at the terminal multiplexer"))?;
    if !is_device || stat.st_rdev != makedev(5, 2) || kind != DEVPTS_MAGIC {
        let why = "it is not the terminal multiplexer of our own devpts".into();
        return Err(SetupError::HostileRoot { path: "/dev/pts/ptmx".into(), why });
    }
    let process = sys::terminal_peer(owner.as_fd()).map_err(step("open a terminal"))?;
    sys::set_window(owner.as_fd(), window.rows, window.columns).map_err(step("size the terminal"))?;
    // A user who may map one id has no other group to give.
    let group = if ids.count > TTY { TTY } else { 0 };
    let (uid, gid) = (Uid::from_raw(ids.base + user.uid), Gid::from_raw(ids.base + group));
    fchown(&process, Some(uid), Some(gid)).map_err(step("give the terminal to the user"))?;
    Ok(Terminal { owner, process })
}

/// A new one in the running sandbox whose root is `/` by now.
pub(super) fn open_inside(window: Window, user: &User, ids: IdMap) -> Result<Terminal, SetupError> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let root = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(step("open the root"))?;
    let pts = openat2(&root, Path::new("dev/pts"), how).map_err(step("open /dev/pts"))?;
    open_in(pts.as_fd(), window, user, ids)
}
