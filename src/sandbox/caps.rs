//! Capabilities: which stay, and how the others go.

use crate::spec::CapProfile;
use crate::sys;
use nix::errno::Errno;

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
const KILL_BIT: u64 = 1 << 5;
/// Higher than any capability a kernel has had; the first one it does not know ends the loop.
const END: u32 = 64;

fn list(profile: CapProfile) -> impl Iterator<Item = (u32, &'static str)> {
    let more = match profile {
        CapProfile::Build => &BUILD_TOO[..],
        CapProfile::Step => &[],
    };
    STEP.iter().chain(more).copied()
}

/// As a bit mask.
pub(crate) fn mask(profile: CapProfile) -> u64 {
    list(profile).fold(0, |m, (bit, _)| m | 1 << bit)
}

/// Their names.
pub(crate) fn names(profile: CapProfile) -> Vec<&'static str> {
    list(profile).map(|(_, name)| name).collect()
}

/// Drops all others from the bounding, effective and permitted sets; inheritable and ambient become
/// empty, the secure bits those of a fresh login (so that setuid(2) gives up capabilities as programs expect).
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
}
