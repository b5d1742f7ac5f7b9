//! Capabilities: which stay, and how the others go.

use crate::spec::CapProfile;
use crate::sys;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// (number, name) in the order of the kernel's numbers.
const STEP: [(u32, &str); 10] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (3, "CAP_FOWNER"),
    (4, "CAP_FSETID"),
    (5, "CAP_KILL"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (8, "CAP_SETPCAP"),
    (10, "CAP_NET_BIND_SERVICE"),
    (18, "CAP_SYS_CHROOT"),
];
const BUILD_TOO: [(u32, &str); 4] =
    [(13, "CAP_NET_RAW"), (27, "CAP_MKNOD"), (29, "CAP_AUDIT_WRITE"), (31, "CAP_SETFCAP")];
/// Those that a person may add. Each reaches only what belongs to the sandbox's user namespace: its own
/// sockets' broadcasts, memory that its own limits let it lock, its own ipc objects and leases, its own
/// processes' niceness; RESOURCE raises none of the machine's bounds from there.
const MAY_ADD: [(u32, &str); 6] = [
    (11, "CAP_NET_BROADCAST"),
    (14, "CAP_IPC_LOCK"),
    (15, "CAP_IPC_OWNER"),
    (23, "CAP_SYS_NICE"),
    (24, "CAP_SYS_RESOURCE"),
    (28, "CAP_LEASE"),
];
/// Those that nobody gets, with the reason. Of NET_ADMIN: the packet filter's code is where most ways out of
/// a user namespace were found.
const REFUSED: [(&str, &str); 22] = [
    ("CAP_SYS_ADMIN", "it could mount, and so rebuild its walls"),
    ("CAP_SYS_MODULE", "it would load code into the kernel"),
    ("CAP_SYS_PTRACE", "it could take over what enters the sandbox from outside"),
    ("CAP_SYS_RAWIO", "it would reach the machine's hardware"),
    ("CAP_SYS_BOOT", "it would restart the machine"),
    ("CAP_SYS_TIME", "it would set the machine's clock"),
    ("CAP_SYS_PACCT", "it would switch the machine's accounting"),
    ("CAP_SYS_TTY_CONFIG", "it would reach the machine's terminals"),
    ("CAP_DAC_READ_SEARCH", "it would open files by their number, outside its root"),
    ("CAP_LINUX_IMMUTABLE", "files could not be removed after it"),
    ("CAP_NET_ADMIN", "it opens the kernel's packet filter to the program"),
    ("CAP_BPF", "it would run its code in the kernel"),
    ("CAP_PERFMON", "it would watch other programs"),
    ("CAP_CHECKPOINT_RESTORE", "it could choose process numbers and open others' memory maps"),
    ("CAP_SYSLOG", "it would read the kernel's messages and addresses"),
    ("CAP_AUDIT_CONTROL", "it would switch the machine's audit"),
    ("CAP_AUDIT_READ", "it would read the machine's audit"),
    ("CAP_MAC_ADMIN", "it would change the machine's security policy"),
    ("CAP_MAC_OVERRIDE", "it would pass by the machine's security policy"),
    ("CAP_WAKE_ALARM", "it would wake the machine"),
    ("CAP_BLOCK_SUSPEND", "it would keep the machine awake"),
    ("CAP_ALL", "some capabilities break the walls: name those that are needed"),
];
const KILL_BIT: u64 = 1 << 5;
/// What it takes to become the process's user, and PID 1's power to signal it: KILL, SETGID, SETUID.
const ON_THE_WAY: u64 = KILL_BIT | 1 << 6 | 1 << 7;
/// Higher than any capability a kernel has had; the first one it does not know ends the loop.
const END: u32 = 64;

/// Capabilities that a person chose, all of which keep the walls standing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CapSet(u64);

/// Why a capability cannot be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CapError {
    /// There is none of this name.
    #[error("{0:?} is not a capability; see capabilities(7), for example NET_RAW")]
    Unknown(String),
    /// It would break the walls.
    #[error("the capability {name} is not given to any container: {why}")]
    Refused {
        /// Which.
        name: String,
        /// Why.
        why: &'static str,
    },
}

impl CapSet {
    /// Those of [`CapProfile::Build`] without `drop`, and with `add`: names as capabilities(7) has them, in any
    /// case, with `CAP_` or without. `ALL` can be dropped; what is added is there whatever is dropped.
    pub fn chosen(add: &[String], drop: &[String]) -> Result<Self, CapError> {
        let mut set = mask(CapProfile::Build);
        for name in drop {
            let name = full_name(name);
            set = match (name.as_str(), known(&name)) {
                ("CAP_ALL", _) => 0,
                (_, Some(bit)) => set & !(1 << bit),
                // What nobody has is dropped already.
                (_, None) if REFUSED.iter().any(|(n, _)| *n == name) => set,
                (_, None) => return Err(CapError::Unknown(name)),
            };
        }
        for name in add {
            let name = full_name(name);
            match (known(&name), REFUSED.iter().find(|(n, _)| *n == name)) {
                (Some(bit), _) => set |= 1 << bit,
                (None, Some((_, why))) => return Err(CapError::Refused { name, why }),
                (None, None) => return Err(CapError::Unknown(name)),
            }
        }
        Ok(Self(set))
    }
}

fn full_name(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    let name = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    name.chars().take(60).collect()
}

/// The number of one that can be had.
fn known(name: &str) -> Option<u32> {
    every().find(|(_, n)| *n == name).map(|(bit, _)| bit)
}

fn every() -> impl Iterator<Item = (u32, &'static str)> {
    STEP.iter().chain(&BUILD_TOO).chain(&MAY_ADD).copied()
}

/// As a bit mask.
pub(crate) fn mask(profile: CapProfile) -> u64 {
    let of = |list: &[(u32, &str)]| list.iter().fold(0, |m, (bit, _)| m | 1 << bit);
    match profile {
        CapProfile::Step => of(&STEP),
        CapProfile::Build => of(&STEP) | of(&BUILD_TOO),
        // A mask that came from elsewhere holds no more than can be chosen.
        CapProfile::Only(CapSet(set)) => set & (of(&STEP) | of(&BUILD_TOO) | of(&MAY_ADD)),
    }
}

/// Their names.
pub(crate) fn names(profile: CapProfile) -> Vec<&'static str> {
    let mask = mask(profile);
    every().filter(|(bit, _)| mask & (1 << bit) != 0).map(|(_, name)| name).collect()
}

/// Drops all others from the bounding, effective and permitted sets; inheritable and ambient become
/// empty, the secure bits those of a fresh login (so that setuid(2) gives up capabilities as programs expect).
/// What is still needed on the way to the program stays until [`narrow`], but outside the bounding set.
pub(crate) fn restrict(profile: CapProfile) -> Result<(), Errno> {
    let keep = mask(profile);
    sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0)?;
    match sys::prctl(libc::PR_SET_SECUREBITS, 0, 0) {
        // Locked by whoever started us: stricter than ours, so it may stay.
        Ok(()) | Err(Errno::EPERM) => {}
        Err(e) => return Err(e),
    }
    for bit in (0..END).filter(|bit| keep & (1 << bit) == 0) {
        match sys::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(bit), 0) {
            Ok(()) => {}
            Err(Errno::EINVAL) => break,
            Err(e) => return Err(e),
        }
    }
    sys::capset(keep | ON_THE_WAY, keep | ON_THE_WAY, 0)
}

/// For the process that has become its user: exactly its own. One that is not root has none by now.
pub(crate) fn narrow(profile: CapProfile, uid: u32) -> Result<(), Errno> {
    let keep = if uid == 0 { mask(profile) } else { 0 };
    sys::capset(keep, keep, 0)
}

/// What PID 1 keeps after the main process was forked: it only signals and reaps.
pub(crate) fn keep_kill_only() -> Result<(), Errno> {
    sys::capset(KILL_BIT, KILL_BIT, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_masks_are_the_documented_ones() {
        assert_eq!(mask(CapProfile::Build), 0xa804_25fb, "Docker's CapBnd");
        assert_eq!(mask(CapProfile::Step), 0x0004_05fb);
        assert_eq!(names(CapProfile::Build).len(), 14);
    }

    #[test]
    fn capabilities_are_chosen_by_name_and_never_those_that_break_the_walls() {
        let chosen = |add: &[&str], drop: &[&str]| {
            let words = |w: &[&str]| w.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
            CapSet::chosen(&words(add), &words(drop)).map(|set| mask(CapProfile::Only(set)))
        };
        assert_eq!(chosen(&[], &[]), Ok(mask(CapProfile::Build)));
        assert_eq!(chosen(&["net_raw"], &["ALL"]), Ok(1 << 13));
        assert_eq!(chosen(&["CAP_SYS_NICE"], &["all"]), Ok(1 << 23));
        assert_eq!(chosen(&[], &["CHOWN", "SYS_ADMIN"]), Ok(mask(CapProfile::Build) & !1));
        for (name, why) in REFUSED {
            assert_eq!(chosen(&[name], &[]), Err(CapError::Refused { name: name.into(), why }));
        }
        assert!(matches!(chosen(&["NOPE"], &[]), Err(CapError::Unknown(_))));
        assert!(matches!(chosen(&[], &["NOPE"]), Err(CapError::Unknown(_))));
        assert_eq!(mask(CapProfile::Only(CapSet(u64::MAX))) & (1 << 21), 0, "SYS_ADMIN by no way");
        // Every capability that the kernel has is in one of the lists.
        let last: u32 =
            std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap().trim().parse().unwrap();
        assert!(every().count() + REFUSED.len() - 1 > last as usize);
    }
}
