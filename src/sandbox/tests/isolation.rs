//! What the process sees and may do (the R cases of the security catalogue).

use crate::Test;
use crate::fixture::*;
use keelway_sandbox::{CapProfile, Network, User};
use libtest_mimic::Failed;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;

pub const TESTS: &[Test] = &[
    ("isolation::r13_capabilities_are_exact", capabilities),
    ("isolation::r11_r14_r15_r16_r17_forbidden_calls", calls),
    ("isolation::r18_devices", devices),
    ("isolation::r18_the_hosts_nodes_are_not_in_sight", host_nodes),
    ("isolation::r19_masked_and_read_only", masked),
    ("isolation::r03_descriptors", descriptors),
    ("isolation::r12_cgroups", cgroups),
    ("isolation::r01_init_is_out_of_reach", init_out_of_reach),
    ("isolation::r20_no_core", no_core),
    ("isolation::r21_no_network", no_network),
    ("isolation::the_host_network", host_network),
    ("isolation::a_joined_network", joined_network),
    ("isolation::namespaces_are_its_own", namespaces),
    ("isolation::no_terminal_of_the_owner", no_terminal),
];

fn capabilities() -> Result<(), Failed> {
    for (profile, set) in [(CapProfile::Build, "00000000a80425fb"), (CapProfile::Step, "00000000000405fb")] {
        let mut spec = sh("grep -E '^(Cap|Seccomp:)' /proc/self/status");
        spec.caps = profile;
        let none = "0000000000000000";
        let rest = format!("CapBnd:\t{set}\nCapAmb:\t{none}\nSeccomp:\t2\n");
        assert_eq!(ok(&spec), format!("CapInh:\t{none}\nCapPrm:\t{set}\nCapEff:\t{set}\n{rest}"));
        renew(&mut spec);
        spec.user = User { uid: 1, gid: 1, groups: vec![] };
        assert_eq!(ok(&spec), format!("CapInh:\t{none}\nCapPrm:\t{none}\nCapEff:\t{none}\n{rest}"));
    }
    Ok(())
}

fn calls() -> Result<(), Failed> {
    for profile in [CapProfile::Build, CapProfile::Step] {
        let mut spec = probe(&["calls"]);
        spec.caps = profile;
        let text = ok(&spec);
        assert_eq!(text.lines().count(), 26, "{text}");
        for line in text.lines() {
            let expected = if line.starts_with("clone3 ") { libc::ENOSYS } else { libc::EPERM };
            assert!(line.ends_with(&format!(" {expected}")), "{line}");
        }
    }
    Ok(())
}

fn devices() -> Result<(), Failed> {
    let mut spec = sh("ls /dev | tr '\\n' ' '; echo; mknod /tmp/b b 254 0 && mknod /dev/c c 1 5; \
         head -c 1 /tmp/b >/dev/null 2>&1 || echo no-b; head -c 1 /dev/c >/dev/null 2>&1 || echo no-c; \
         head -c 4 /dev/zero | wc -c; echo x > /dev/full || echo full; ls -l /dev/ptmx | grep -c pts/ptmx");
    spec.caps = CapProfile::Build;
    let text = ok(&spec);
    assert!(
        text.starts_with("fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero \n"),
        "{text}"
    );
    assert!(text.contains("no-b\nno-c\n4\n") && text.contains("full\n1\n"), "{text}");
    Ok(())
}

fn host_nodes() -> Result<(), Failed> {
    const NAMES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
    let look = || -> Result<Vec<_>, std::io::Error> {
        let of = |name| {
            let m = std::fs::metadata(format!("/dev/{name}"))?;
            Ok((m.ino(), m.mode(), m.uid(), m.gid(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()))
        };
        NAMES.into_iter().map(of).collect()
    };
    let before = look()?;
    // What the RUN changes is its own; what it changed still works, as do the nodes for another user.
    let mut spec = sh("cd /dev; chmod 606 full && chown 1234:55 full && \
         touch -d '2001-01-01 00:00:00' full && stat -c %a:%u:%g full; echo x > /dev/null && echo to-null; \
         chmod 600 /proc/kallsyms 2>/dev/null || echo mask-kept");
    spec.caps = CapProfile::Build;
    assert_eq!(ok(&spec), "606:1234:55\nto-null\nmask-kept\n");
    assert_eq!(look()?, before);
    let mut spec =
        sh("stat -c %a:%u:%t:%T /dev/full /dev/tty; echo x > /dev/null && head -c 2 /dev/urandom | wc -c");
    spec.user.uid = 12;
    assert_eq!(ok(&spec), "666:0:1:7\n666:0:5:0\n2\n");
    Ok(())
}

fn masked() -> Result<(), Failed> {
    let text = ok(&sh("for f in acpi asound scsi; do [ -d /proc/$f ] && ls -A /proc/$f; done; \
         for f in interrupts kallsyms kcore keys latency_stats modules sched_debug timer_list timer_stats; do \
         [ -e /proc/$f ] && cat /proc/$f; done; ls -A /sys/firmware; ls -A /sys/devices/virtual/powercap 2>/dev/null; \
         for f in sysrq-trigger sys/kernel/core_pattern sys/kernel/hostname irq/default_smp_affinity; do \
         [ -e /proc/$f ] && { echo x > /proc/$f || echo refused; }; done; \
         mkdir /sys/x || echo sys; dmesg || echo dmesg"));
    let refused = text.matches("refused\n").count();
    assert!(refused >= 3, "{text}");
    assert!(text.contains("sys\n") && text.ends_with("dmesg\n"), "{text}");
    // Nothing but the refusals and their messages.
    for line in text.lines() {
        let known = ["refused", "sys", "dmesg"].contains(&line)
            || line.contains("Read-only file system")
            || line.contains("Permission denied")
            || line.contains("Operation not permitted");
        assert!(known, "{line:?} in {text}");
    }
    Ok(())
}

fn descriptors() -> Result<(), Failed> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    // Descriptors that the owner has open without close-on-exec.
    let leaks: Vec<_> = (0..20).map(|_| std::fs::File::open("/").unwrap()).collect();
    for leak in &leaks {
        fcntl(leak, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    // ls itself opens the directory as 3.
    assert_eq!(ok(&sh("ls /proc/self/fd | tr '\\n' ' '")), "0 1 2 3 ");
    let supervisor_too = start(&sh("echo ready; sleep 100"))?;
    let supervisor = parent_of(supervisor_too.running.pid());
    for pid in [supervisor, supervisor_too.running.pid()] {
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
            let to = std::fs::read_link(entry.path())?;
            assert_ne!(to, std::path::Path::new("/"), "a leaked descriptor in {pid}");
        }
    }
    Ok(())
}

pub fn parent_of(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn cgroups() -> Result<(), Failed> {
    let text = ok(&sh(
        "grep -E ':pids|^0:' /proc/self/cgroup; ls -A /sys/fs/cgroup; mkdir /sys/fs/cgroup/x || echo refused",
    ));
    let path = text.lines().next().unwrap_or_default().rsplit(':').next().unwrap_or_default();
    assert_eq!(path, "/", "{text}");
    assert!(text.ends_with("refused\n"), "{text}");
    Ok(())
}

fn init_out_of_reach() -> Result<(), Failed> {
    let text = ok(&sh(
        "readlink /proc/1/exe || echo hidden; for fd in 0 1 2 3; do readlink /proc/1/fd/$fd || echo hidden; done;  cat /proc/1/maps || echo hidden; \
         (echo x > /proc/1/exe) || echo hidden; kill -9 1; echo alive",
    ));
    assert!(text.matches("hidden\n").count() == 7 && text.ends_with("alive\n"), "{text}");
    // From outside: the sealed copy, not our file.
    let started = start(&sh("sleep 100"))?;
    let exe = std::fs::read_link(format!("/proc/{}/exe", started.running.pid()))?;
    assert!(exe.to_string_lossy().starts_with("/memfd:keelway-init"), "{exe:?}");
    let open = std::fs::OpenOptions::new().write(true).open(format!("/proc/{}/exe", started.running.pid()));
    assert!(open.is_err(), "the sealed copy can be written");
    Ok(())
}

fn no_core() -> Result<(), Failed> {
    let spec = sh("cd /tmp; kill -SEGV $$");
    assert_eq!(run(&spec).0.kind, keelway_sandbox::ExitKind::Signal(libc::SIGSEGV));
    assert_eq!(tree(&upper(&spec)), Vec::<String>::new());
    Ok(())
}

fn no_network() -> Result<(), Failed> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let script = format!(
        "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '; ip addr show lo | grep -c 'LOOPBACK,UP'; \
         ping -c 1 -W 1 127.0.0.1 >/dev/null 2>&1; nc -w 2 127.0.0.1 {port} </dev/null && echo reached || echo unreachable"
    );
    assert_eq!(ok(&sh(&script)).replace("nc: can't connect", "").lines().last(), Some("unreachable"));
    let text = ok(&sh(&script));
    assert!(text.starts_with("lo\n1\n"), "{text}");
    Ok(())
}

fn host_network() -> Result<(), Failed> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let mut spec = sh(&format!("nc -w 2 127.0.0.1 {port} </dev/null && echo reached"));
    spec.network = Network::Host;
    let server = std::thread::spawn(move || listener.accept().map(drop));
    assert_eq!(ok(&spec), "reached\n");
    server.join().unwrap()?;
    Ok(())
}

fn joined_network() -> Result<(), Failed> {
    let mut first = start(&sh("readlink /proc/self/ns/net; sleep 100"))?;
    let theirs = first.line();
    let mut spec = sh("readlink /proc/self/ns/net");
    spec.network = Network::Join(format!("/proc/{}/ns/net", first.running.pid()).into());
    assert_eq!(ok(&spec).trim(), theirs);
    renew(&mut spec);
    spec.network = Network::Join("/etc/passwd".into());
    assert!(refused(&spec).contains("cannot join the network namespace \"/etc/passwd\""));
    Ok(())
}

fn namespaces() -> Result<(), Failed> {
    let text = ok(&sh("for n in mnt pid ipc uts cgroup net; do readlink /proc/self/ns/$n; done; ps | wc -l"));
    for (line, name) in text.lines().zip(["mnt", "pid", "ipc", "uts", "cgroup", "net"]) {
        let ours = std::fs::read_link(format!("/proc/self/ns/{name}"))?;
        assert_ne!(line, ours.to_string_lossy(), "{name}");
    }
    Ok(())
}

fn no_terminal() -> Result<(), Failed> {
    assert!(ok(&sh("(exec 3< /dev/tty) 2>/dev/null || echo none")).contains("none"));
    Ok(())
}
