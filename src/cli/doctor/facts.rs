//! What can be read off the machine without trying anything.

use super::Finding;
use crate::machine::Machine;
use keelway_container::network::{NoUplink, Uplink};
use keelway_sandbox::cgroup::{Controller, Layout, Place};
use keelway_sandbox::rootless::Prospects;
use keelway_sandbox::{ProbeFailure, probe};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// All of them, in the order in which one would ask.
pub(super) fn all(machine: &Machine, state: &Path) -> Vec<Finding> {
    let mut found = vec![kernel(), user_namespaces(machine)];
    if !machine.root {
        found.push(ids());
    }
    found.extend(cgroups(machine));
    found.push(disk(state));
    found.push(network(machine));
    found.push(ssh(machine));
    found.extend(hardening());
    found
}

fn sysctl(name: &str) -> Option<String> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    fs::read_to_string(path).ok().map(|t| t.trim().to_owned())
}

fn kernel() -> Finding {
    let probe = probe();
    let broken = [&probe.kernel_version, &probe.openat2, &probe.seccomp, &probe.overlay];
    let reason = broken.into_iter().find_map(|f| match f {
        // Who asks is another question.
        Err(ProbeFailure::Privilege { .. }) | Ok(()) => None,
        Err(e) => Some(e.to_string()),
    });
    match reason {
        None => Finding::ok("kernel", probe.kernel),
        Some(why) => Finding::missing("kernel", why, "boot a kernel of version 6.1 or later"),
    }
}

fn user_namespaces(machine: &Machine) -> Finding {
    const CHECK: &str = "user namespaces";
    if sysctl("user.max_user_namespaces").as_deref() == Some("0") {
        let mend = "sysctl -w user.max_user_namespaces=15000";
        return Finding::missing(CHECK, "user.max_user_namespaces is 0: nobody may make one", mend);
    }
    if machine.root {
        return Finding::ok(CHECK, "every sandbox has one, with ids of its own");
    }
    for (name, bad) in
        [("kernel.unprivileged_userns_clone", "0"), ("kernel.apparmor_restrict_unprivileged_userns", "1")]
    {
        if sysctl(name).as_deref() == Some(bad) {
            let good = if bad == "0" { "1" } else { "0" };
            let mend = format!("as root: sysctl -w {name}={good}\nor run keelway as root");
            return Finding::missing(
                CHECK,
                format!("{name} is {bad}: ordinary users may not make them"),
                mend,
            );
        }
    }
    Finding::ok(CHECK, "ordinary users may make them")
}

fn ids() -> Finding {
    const CHECK: &str = "user ids";
    let prospects = Prospects::look();
    let count = prospects.ids();
    if count > 1 {
        return Finding::ok(CHECK, format!("{count} in each sandbox, by /etc/subuid and /etc/subgid"));
    }
    let mut mend = Vec::new();
    if prospects.newuidmap.is_none() || prospects.newgidmap.is_none() {
        mend.push("as root: apt-get install uidmap".to_owned());
    }
    if prospects.users.is_none() || prospects.groups.is_none() {
        mend.push(
            "as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 \"$USER\"".to_owned(),
        );
    }
    let seen = "a single one: only images whose files all belong to root can be used";
    Finding::warning(CHECK, seen, mend.join("\n"))
}

fn cgroups(machine: &Machine) -> Vec<Finding> {
    let layout = Layout::detect();
    let one = |controller: Controller| -> Option<String> {
        layout.place(controller).map(|place| match place {
            Place::V1(dir) if controller == Controller::Io => {
                format!("io (version 1, {}: of direct reads and writes only)", dir.display())
            }
            Place::V1(dir) => format!("{} (version 1, {})", controller.name(), dir.display()),
            Place::V2(dir) => format!("{} (version 2, {})", controller.name(), dir.display()),
        })
    };
    let there: Vec<String> = Controller::ALL.into_iter().filter_map(one).collect();
    let lacking: Vec<&str> =
        Controller::ALL.into_iter().filter(|c| layout.place(*c).is_none()).map(Controller::name).collect();
    if lacking.is_empty() {
        return vec![Finding::ok("limits", there.join(", "))];
    }
    let mend = if machine.root {
        "mount -t cgroup2 none /sys/fs/cgroup".to_owned()
    } else {
        "start it in a group that systemd hands to you: systemd-run --user --scope keelway ..\n\
         as root, once, for cpu too: mkdir -p /etc/systemd/system/user@.service.d && \
         printf '[Service]\\nDelegate=cpu io memory pids\\n' > /etc/systemd/system/user@.service.d/delegate.conf"
            .to_owned()
    };
    let seen = format!("nothing can hold limits of {}", lacking.join(", "));
    vec![Finding::warning("limits", seen, mend)]
}

/// The file system of a directory, or of its nearest parent that is there: kind and device.
fn file_system(path: &Path) -> Option<(String, String, PathBuf)> {
    let there = path.ancestors().find(|p| p.exists())?.canonicalize().ok()?;
    let device = fs::metadata(&there).ok()?.dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    table.lines().rev().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (before.split(' ').nth(2)? == format!("{major}:{minor}")).then_some(())?;
        let mut after = after.split(' ');
        Some((after.next()?.to_owned(), after.next()?.to_owned(), there.clone()))
    })
}

fn disk(state: &Path) -> Finding {
    const CHECK: &str = "state directory";
    /// Below that a build of any size will not get far.
    const LITTLE: u64 = 2 << 30;
    let Some((kind, device, there)) = file_system(state) else {
        return Finding::warning(CHECK, format!("{}: its file system is not known", state.display()), "");
    };
    let free = nix::sys::statvfs::statvfs(&there)
        .map(|s| s.blocks_available() * s.fragment_size())
        .unwrap_or(u64::MAX);
    let seen = format!("{} on {kind}, {} MiB free", state.display(), free >> 20);
    if free < LITTLE {
        return Finding::warning(CHECK, seen, "make room, or name another place with --state DIR");
    }
    let name = device.rsplit('/').next().unwrap_or_default();
    if kind == "ext4" && !has_journal(name) {
        let mend = format!(
            "tune2fs -O has_journal {device}   (not while it is mounted)\nor name a place on another file system with --state DIR"
        );
        let seen = format!("{seen}; ext4 without a journal makes files slowly right after many were deleted");
        return Finding::warning(CHECK, seen, mend);
    }
    if matches!(kind.as_str(), "overlay" | "nfs" | "nfs4" | "fuse" | "ramfs") {
        let seen = format!("{seen}; sandboxes cannot have ids of their own there");
        return Finding::warning(CHECK, seen, "name a place on ext4, xfs, btrfs or tmpfs with --state DIR");
    }
    Finding::ok(CHECK, seen)
}

fn has_journal(device: &str) -> bool {
    let Ok(dir) = fs::read_dir("/proc/fs/jbd2") else { return false };
    dir.flatten().any(|e| e.file_name().to_string_lossy().starts_with(&format!("{device}-")))
}

fn program(machine: &Machine, name: &str) -> Option<PathBuf> {
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    machine.path.iter().chain(&system).map(|dir| dir.join(name)).find(|path| path.is_file())
}

fn network(machine: &Machine) -> Finding {
    const CHECK: &str = "private networks";
    if machine.root {
        // Keelway speaks to the kernel itself: no program is needed.
        return Finding::ok(CHECK, "by this machine's packet filter");
    }
    match Uplink::for_a_user() {
        Ok(program) => Finding::ok(CHECK, format!("by {}", program.display())),
        Err(NoUplink::Program) => {
            let mend = "as root: apt-get install passt\nor use network: none, or host where the command line grants it";
            Finding::missing(CHECK, "pasta is not installed", mend)
        }
        Err(NoUplink::Tun(e)) => {
            Finding::missing(CHECK, format!("/dev/net/tun: {e}"), "as root: chmod 0666 /dev/net/tun")
        }
    }
}

fn ssh(machine: &Machine) -> Finding {
    match program(machine, "ssh") {
        Some(path) => Finding::ok("ssh", format!("{}: for deploys and repositories by ssh", path.display())),
        None => Finding::warning(
            "ssh",
            "not installed: no deploys, and no repositories by ssh",
            "apt-get install openssh-client",
        ),
    }
}

/// Walls of the machine beside ours.
fn hardening() -> Vec<Finding> {
    const WANTED: [(&str, &str, &str); 3] = [
        ("kernel.dmesg_restrict", "1", "a process may read the kernel's log"),
        ("kernel.kptr_restrict", "1", "kernel addresses can be read"),
        ("kernel.unprivileged_bpf_disabled", "1", "ordinary users may load programs into the kernel"),
    ];
    let number = |text: &str| text.parse::<i64>().unwrap_or(0);
    let mut found: Vec<Finding> = WANTED
        .into_iter()
        .filter(|(name, least, _)| sysctl(name).is_some_and(|v| number(&v) < number(least)))
        .map(|(name, least, why)| {
            Finding::warning("hardening", format!("{name}: {why}"), format!("sysctl -w {name}={least}"))
        })
        .collect();
    if let Some(pattern) = sysctl("kernel.core_pattern").filter(|p| p.starts_with('|')) {
        let seen =
            format!("kernel.core_pattern runs {pattern:?} outside of every sandbox; sandboxes dump no core");
        found.push(Finding::ok("core dumps", seen));
    }
    if found.iter().all(|f| f.check != "hardening") {
        found.push(Finding::ok(
            "hardening",
            "the kernel's log, addresses and bpf are closed to ordinary users",
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_is_not_there_yet_is_on_its_parents_file_system() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (kind, ..) = file_system(&dir.path().join("not/there/yet")).unwrap();
        assert_eq!(kind, "tmpfs");
    }
}
