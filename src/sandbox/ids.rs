//! Whose ids a sandbox's are: a range of its own in the machine's, and the namespaces that hold it.
//!
//! Every sandbox has a user namespace. Its id 0 is `base` on the machine, its ids go up to [`IDS`]. Two living
//! sandboxes never share a range: a range is a locked file, and who holds the lock is the supervisor, until
//! every process of the sandbox is dead. Files keep the container's own ids on disk, for every mount of a
//! sandbox translates (an idmapped mount), so nothing has to be changed when another range reads them.
//!
//! A base of 0 is the map onto itself, for file systems that cannot translate, and for an owner that is itself in a
//! user namespace (rootless, see `rootless`): powers still end at the sandbox's own namespaces, but its ids are
//! the owner's.

use crate::error::SetupError;
use crate::rootless::SubRange;
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
/// The ids that systemd keeps for containers: 0x80000 to 0x6fffffff. Parts of them that /etc/subuid or /etc/subgid give
/// to somebody are left out: Debian gives its seventh user ids from 493216 on.
const FIRST: u32 = 0x0008_0000;
/// So many fit.
const RANGES: u32 = (0x7000_0000 - FIRST) / IDS;
const PROC_MAGIC: i64 = 0x9fa0;

/// What a sandbox's ids are for its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMap {
    /// Id 0 is this one; 0 for the owner's own ids.
    pub base: u32,
    /// So many ids.
    pub count: u32,
}

impl IdMap {
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
    let theirs = crate::rootless::given_away();
    for n in (0..RANGES).filter(|n| is_free(FIRST + n * IDS, &theirs)) {
        match Lock::try_take(&directory.join(n.to_string())) {
            Ok(Some(lock)) => return Ok(Range { map: IdMap { base: FIRST + n * IDS, count: IDS }, lock }),
            Ok(None) => {}
            Err(LockError::Io { source, .. }) => return Err(source),
            Err(other) => return Err(io::Error::other(other)),
        }
    }
    Err(io::Error::other(format!("all {RANGES} id ranges are taken")))
}

/// Whether the range that begins there is nobody's, by the tables of users.
fn is_free(first: u32, theirs: &[SubRange]) -> bool {
    let (first, end) = (u64::from(first), u64::from(first) + u64::from(IDS));
    theirs.iter().all(|r| u64::from(r.start) >= end || u64::from(r.start) + u64::from(r.count) <= first)
}

/// Where ranges are claimed, unless somebody says otherwise.
pub(crate) fn default_directory() -> PathBuf {
    PathBuf::from("/run/keelway/ids")
}

/// The user namespace that this process lives in, where it is not the machine's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outer {
    /// So many ids from 0 on, at most [`IDS`].
    pub count: u32,
    /// Parts of its maps, first id and count: no part of a map beneath may cross their borders.
    uids: Vec<(u32, u32)>,
    gids: Vec<(u32, u32)>,
}

impl Outer {
    /// Looks at this process; `None` in the machine's own namespace.
    pub fn look() -> Option<Self> {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        Self::from_texts(&read("uid_map"), &read("gid_map"))
    }

    fn from_texts(uids: &str, gids: &str) -> Option<Self> {
        let whole = ["0", "0", "4294967295"];
        if uids.split_whitespace().eq(whole) || uids.trim().is_empty() {
            return None;
        }
        let (uids, gids) = (from_zero(uids), from_zero(gids));
        let count = end_of(&uids).min(end_of(&gids));
        Some(Self { count, uids, gids })
    }
}

/// The parts of a map that follow one another from 0 on without a hole, cut at [`IDS`].
fn from_zero(map: &str) -> Vec<(u32, u32)> {
    let part = |line: &str| -> Option<(u32, u32)> {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return None;
        };
        Some((first, count))
    };
    let mut parts: Vec<(u32, u32)> = map.lines().filter_map(part).collect();
    parts.sort_unstable();
    let mut kept: Vec<(u32, u32)> = Vec::new();
    for (first, count) in parts {
        let end = end_of(&kept);
        if first != end || end >= IDS {
            break;
        }
        kept.push((first, count.min(IDS - end)));
    }
    kept
}

fn end_of(parts: &[(u32, u32)]) -> u32 {
    parts.last().map_or(0, |(first, count)| first + count)
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
    pub fn make(map: IdMap, outer: Option<&Outer>, net: bool) -> Result<Self, SetupError> {
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
            let whole = [(0, map.count)];
            for (name, parts) in [("uid_map", outer.map(|o| &o.uids)), ("gid_map", outer.map(|o| &o.gids))] {
                let parts = parts.map_or(&whole[..], Vec::as_slice);
                // Both maps get as many ids as the smaller one has.
                let kept = parts.iter().filter(|(first, _)| *first < map.count);
                let line = |(first, count): &(u32, u32)| {
                    format!("{first} {} {}\n", map.base + first, count.min(&(map.count - first)))
                };
                let text: String = kept.map(line).collect();
                write_proc(&proc, name, text.as_bytes()).map_err(step("map the user namespace's ids"))?;
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
    fn the_namespace_outside_is_read_from_its_maps() {
        let machine = "         0          0 4294967295\n";
        assert_eq!(Outer::from_texts(machine, machine), None);
        let count = |uids: &str, gids: &str| Outer::from_texts(uids, gids).unwrap().count;
        let (one, many) = ("0 1000 1\n", "0 1000 1\n1 100000 65536\n");
        assert_eq!(count(one, one), 1);
        assert_eq!(count(many, many), IDS);
        assert_eq!(Outer::from_texts(many, one).unwrap().uids, [(0, 1), (1, 65_535)]);
        assert_eq!(count(many, "0 1000 1\n5 100000 65536\n"), 1, "a hole");
        assert_eq!(count("1 2 3\n", many), 0);
        assert_eq!(count("0 0 99999999999999999999\n", "junk"), 0);
    }

    #[test]
    fn ranges_of_logins_are_left_out() {
        let range = |start, count| SubRange { start, count };
        assert!(is_free(FIRST, &[range(100_000, 65_536), range(FIRST - 10, 10), range(FIRST + IDS, 1)]));
        assert!(!is_free(FIRST, &[range(493_216, 65_536)]), "Debian's seventh user");
        assert!(!is_free(FIRST, &[range(FIRST + IDS - 1, 1)]));
        assert!(!is_free(FIRST, &[range(1, u32::MAX - 1)]));
    }

    #[test]
    fn living_ranges_are_disjoint_and_dead_ones_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("ids");
        let (a, b) = (claim(&dir).unwrap(), claim(&dir).unwrap());
        assert_eq!((a.map.base, b.map.base), (0x80000, 0x90000));
        drop(a);
        assert_eq!(claim(&dir).unwrap().map.base, 0x80000);
        assert_eq!(b.map.count, IDS);
        assert!(u64::from(FIRST) + u64::from(RANGES) * u64::from(IDS) <= 0x7000_0000);
    }
}
