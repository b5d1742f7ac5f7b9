//! What this machine allows, for preflight: every "no" has its reason.

use crate::cgroup::Layout;
use crate::sys;
use nix::errno::Errno;
use std::fs;

/// Why something does not work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeFailure {
    /// Not root, or root without its powers.
    #[error("it needs {capability}: run as root, outside a plain container")]
    Privilege {
        /// The missing capability.
        capability: &'static str,
    },
    /// The kernel lacks it.
    #[error("this kernel does not have {feature} ({detail}); Keelway needs Linux 6.1 or later")]
    Kernel {
        /// What.
        feature: &'static str,
        /// How it said no.
        detail: String,
    },
    /// No cgroup controller.
    #[error("no cgroup hierarchy has the {controller} controller: mount cgroup2 at /sys/fs/cgroup")]
    Controller {
        /// Its name.
        controller: &'static str,
    },
}

/// Does it work, and if not, why?
pub type Finding = Result<(), ProbeFailure>;

/// What [`probe`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// As `uname -r` says.
    pub kernel: String,
    /// 6.1 or later.
    pub kernel_version: Finding,
    /// CAP_SYS_ADMIN and the others that building a sandbox takes.
    pub privileges: Finding,
    /// overlayfs through the new mount interface.
    pub overlay: Finding,
    /// openat2(2).
    pub openat2: Finding,
    /// seccomp filters that can kill a process.
    pub seccomp: Finding,
    /// Process limits.
    pub pids: Finding,
    /// Memory limits.
    pub memory: Finding,
    /// CPU limits.
    pub cpu: Finding,
    /// Limits of disk traffic.
    pub io: Finding,
    /// Where the cgroup controllers are.
    pub cgroups: Layout,
}

impl Probe {
    /// What a sandbox cannot do without, in order: name and finding.
    pub fn required(&self) -> [(&'static str, &Finding); 6] {
        [
            ("kernel version", &self.kernel_version),
            ("privileges", &self.privileges),
            ("overlayfs", &self.overlay),
            ("openat2", &self.openat2),
            ("seccomp", &self.seccomp),
            ("cgroup pids", &self.pids),
        ]
    }
    /// The first thing missing, if any.
    pub fn check(&self) -> Finding {
        self.required().into_iter().map(|(_, f)| f.clone()).find(Result::is_err).unwrap_or(Ok(()))
    }
}

/// Tries what a sandbox needs; changes nothing on the machine.
pub fn probe() -> Probe {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let cgroups = Layout::detect();
    let controller = |place: &Option<_>, controller| match place {
        Some(_) => Ok(()),
        None => Err(ProbeFailure::Controller { controller }),
    };
    Probe {
        kernel_version: kernel_at_least(&kernel, (6, 1)),
        privileges: privileges(),
        overlay: kernel_has("overlayfs", sys::fsopen(c"overlay").map(drop)),
        openat2: kernel_has("openat2", openat2()),
        seccomp: kernel_has("seccomp filters", sys::seccomp_action_available(libc::SECCOMP_RET_KILL_PROCESS)),
        pids: controller(&cgroups.pids, "pids"),
        memory: controller(&cgroups.memory, "memory"),
        cpu: controller(&cgroups.cpu, "cpu"),
        io: controller(&cgroups.io, "io"),
        kernel,
        cgroups,
    }
}

fn openat2() -> Result<(), Errno> {
    use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(AT_FDCWD, "/", how).map(drop)
}

fn kernel_has(feature: &'static str, result: Result<(), Errno>) -> Finding {
    match result {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => Err(ProbeFailure::Privilege { capability: "CAP_SYS_ADMIN" }),
        Err(e) => Err(ProbeFailure::Kernel { feature, detail: e.to_string() }),
    }
}

fn kernel_at_least(release: &str, least: (u32, u32)) -> Finding {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|p| p.parse::<u32>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if version >= least {
        Ok(())
    } else {
        Err(ProbeFailure::Kernel { feature: "the features of 6.1", detail: format!("it is {release:?}") })
    }
}

fn privileges() -> Finding {
    const NEEDED: [(u32, &str); 7] = [
        (21, "CAP_SYS_ADMIN"),
        (0, "CAP_CHOWN"),
        (1, "CAP_DAC_OVERRIDE"),
        (5, "CAP_KILL"),
        (6, "CAP_SETGID"),
        (7, "CAP_SETUID"),
        (12, "CAP_NET_ADMIN"),
    ];
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|l| u64::from_str_radix(l.strip_prefix("CapEff:")?.trim(), 16).ok())
        .unwrap_or(0);
    match NEEDED.into_iter().find(|(bit, _)| effective & (1 << bit) == 0) {
        None => Ok(()),
        Some((_, capability)) => Err(ProbeFailure::Privilege { capability }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions() {
        for good in ["6.1.0-18-amd64", "6.18.44-fc", "10.0"] {
            assert!(kernel_at_least(good, (6, 1)).is_ok(), "{good}");
        }
        for bad in ["6.0.9", "5.15.0-91-generic", "", "x.y"] {
            assert!(kernel_at_least(bad, (6, 1)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_machine_that_runs_these_tests_can_run_sandboxes() {
        assert_eq!(probe().check(), Ok(()));
    }
}
