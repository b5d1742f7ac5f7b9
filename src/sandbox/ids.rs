//! Whose ids a sandbox's are: a range of its own in the machine's, and the namespaces that hold it.
//!
//! Every sandbox has a user namespace. Its id 0 is `base` on the machine, its ids go up to [`IDS`]. Two living
//! sandboxes never share a range: a range is a locked file, and who holds the lock is the supervisor, until
//! every process of the sandbox is dead. Files keep the container's own ids on disk, for every mount of a
//! sandbox translates (an idmapped mount), so nothing has to be changed when another range reads them.
//!
//! A base of 0 is the map onto itself, for file systems that cannot translate: powers still end at the
//! sandbox's own namespaces, but its ids are the machine's.

use crate::error::SetupError;
use crate::sys::{self, Cloned};
use keelway_disk::{Lock, LockError};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::write;
use serde::{Deserialize, Serialize};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Ids of one sandbox: 0 to 65535, as everybody has them.
pub const IDS: u32 = 65_536;
/// The ids that systemd keeps for containers: 0x80000 to 0x6fffffff. No login has one.
const FIRST: u32 = 0x0008_0000;
/// So many fit.
const RANGES: u32 = (0x7000_0000 - FIRST) / IDS;
const PROC_MAGIC: i64 = 0x9fa0;

/// What a sandbox's ids are on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMap {
    /// Id 0 is this one; 0 for the machine's own ids.
    pub base: u32,
}

impl IdMap {
    /// Onto itself.
    pub const SAME: Self = Self { base: 0 };

    /// Must mounts translate?
    pub fn translates(self) -> bool {
        self.base != 0
    }
}

/// A range that no other living sandbox of the machine has, while the lock is held.
#[derive(Debug)]
pub(crate) struct Range {
    pub map: IdMap,
    pub lock: Lock,
}

/// Takes the lowest free range; `directory` holds the locks and is made when missing.
pub(crate) fn claim(directory: &Path) -> io::Result<Range> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    for n in 0..RANGES {
        match Lock::try_take(&directory.join(n.to_string())) {
            Ok(Some(lock)) => return Ok(Range { map: IdMap { base: FIRST + n * IDS }, lock }),
            Ok(None) => {}
            Err(LockError::Io { source, .. }) => return Err(source),
            Err(other) => return Err(io::Error::other(other)),
        }
    }
    Err(io::Error::other(format!("all {RANGES} id ranges are taken")))
}

/// Where ranges are claimed, unless somebody says otherwise.
pub(crate) fn default_directory() -> PathBuf {
    PathBuf::from("/run/keelway/ids")
}

/// Namespaces that belong to the sandbox's user namespace, by descriptor.
pub(crate) struct Namespaces {
    pub user: OwnedFd,
    pub ipc: OwnedFd,
    /// Only where it was asked for.
    pub net: Option<OwnedFd>,
}

impl Namespaces {
    /// Makes them with a process that lives for a moment. Only for a process with one thread.
    pub fn make(map: IdMap, net: bool) -> Result<Self, SetupError> {
        let step = |action: &str| {
            let action = action.to_owned();
            move |errno: Errno| SetupError::Step { action, errno: errno.into() }
        };
        let (theirs, ours) =
            io::pipe().map_err(|e| SetupError::Step { action: "make a pipe".into(), errno: e.into() })?;
        let net_flag = if net { libc::CLONE_NEWNET } else { 0 };
        let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWIPC | net_flag;
        let pid = match sys::clone_into(flags).map_err(|errno| SetupError::UserNamespace {
            errno: errno.into(),
            hint: user_namespace_hint(errno),
        })? {
            Cloned::Child => {
                // Until its parent has what it wants, or is dead: both end the pipe.
                drop(ours);
                let mut theirs = theirs;
                let _ = theirs.read(&mut [0]);
                sys::exit_now(0)
            }
            Cloned::Parent { pid, .. } => pid,
        };
        drop(theirs);
        let made = (|| {
            let proc = proc_of(pid).map_err(step("open the user namespace's /proc directory"))?;
            let line = format!("0 {} {IDS}\n", map.base);
            for name in ["uid_map", "gid_map"] {
                write_proc(&proc, name, line.as_bytes()).map_err(step("map the user namespace's ids"))?;
            }
            let namespace = |name: &str| {
                openat(&proc, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
                    .map_err(step("open a namespace"))
            };
            Ok(Self {
                user: namespace("ns/user")?,
                ipc: namespace("ns/ipc")?,
                net: net.then(|| namespace("ns/net")).transpose()?,
            })
        })();
        drop(ours);
        sys::reap(pid, true);
        made
    }
}

fn user_namespace_hint(errno: Errno) -> String {
    match errno {
        Errno::ENOSPC | Errno::EUSERS => {
            ": there are too many, or none are allowed; raise it with `sysctl -w user.max_user_namespaces=15000`".into()
        }
        Errno::EPERM => {
            ": this machine forbids them; look at `sysctl kernel.unprivileged_userns_clone kernel.apparmor_restrict_unprivileged_userns`"
                .into()
        }
        Errno::EINVAL => ": this kernel was built without them (CONFIG_USER_NS)".into(),
        _ => String::new(),
    }
}

/// `/proc/PID`, and really the kernel's.
fn proc_of(pid: i32) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = open(format!("/proc/{pid}").as_str(), flags, Mode::empty())?;
    if sys::fs_type(&fd)? == PROC_MAGIC { Ok(fd) } else { Err(Errno::EXDEV) }
}

fn write_proc(proc: &OwnedFd, name: &str, bytes: &[u8]) -> Result<(), Errno> {
    let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(proc, name, flags, Mode::empty())?;
    if sys::fs_type(&file)? != PROC_MAGIC {
        return Err(Errno::EXDEV);
    }
    write(&file, bytes).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn living_ranges_are_disjoint_and_dead_ones_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("ids");
        let (a, b) = (claim(&dir).unwrap(), claim(&dir).unwrap());
        assert_eq!((a.map.base, b.map.base), (0x80000, 0x90000));
        drop(a);
        assert_eq!(claim(&dir).unwrap().map.base, 0x80000);
        assert!(u64::from(FIRST) + u64::from(RANGES) * u64::from(IDS) <= 0x7000_0000);
    }
}
