//! The hardening checklist as a table: what each case gives in our own sandbox, and what Debian's runc makes of the same
//! spec. A case that gives the same in both holds on a second runtime; where they differ, the case shows what ours does
//! beyond, or that it bites.

use crate::Test;
use crate::fixture::*;
use crate::foreign::{RUNC, under_runc};
use keelway_sandbox::{CapProfile, Mount, MountKind, Spec, from_oci, oci_config};
use libtest_mimic::Failed;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

pub const TESTS: &[Test] = &[
    ("hardening::each_case_here_and_under_runc", table),
    ("hardening::bundles_of_hostile_images_here_and_under_runc", bundles),
];

/// The results of runc are those of this one: what `runc --version` begins with.
const VERSION: &str = "runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\n";

fn is_the_known_runc() -> Result<(), Failed> {
    let said = Command::new(RUNC).arg("--version").output()?.stdout;
    let said = String::from_utf8_lossy(&said);
    assert!(
        said.starts_with(VERSION),
        "this table has the results of {VERSION:?}, and here is {said:?}: look at each case that differs, and write the new version down"
    );
    Ok(())
}

/// What a case gives.
enum Gives {
    Both(&'static str),
    /// Here, and under runc.
    Apart(&'static str, &'static str),
}
use Gives::{Apart, Both};

/// One row, with the number of its point in the checklist, and of the attacks in the catalogue that it stands against.
type Case = (&'static str, fn() -> Spec, Gives);

/// `w FILE TEXT` tries to write, `t PROGRAM ..` to run.
const TRIES: &str = "w() { (echo \"$2\" > $1) 2>/dev/null && echo $1 written || echo $1 refused; }; \
    t() { \"$@\" > /dev/null 2>&1 && echo $1 done || echo $1 refused; }; ";

/// With all that a RUN may do.
fn tries(script: &str) -> Spec {
    let mut spec = sh(&format!("{TRIES}{script}"));
    spec.caps = CapProfile::Build;
    spec
}

const STATUS: &str = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr '\\t\\n' '  '";

/// EPERM for each, and ENOSYS where libc falls back.
const CALLS: &str = "unshare 1\nunshare-mount 1\nsetns 1\nclone-newuser 1\nclone3 38\nmount 1\nfsopen 1\nfsconfig 1\nopen_tree 1\n\
    move_mount 1\npivot_root 1\nkeyctl 1\nadd_key 1\nrequest_key 1\nio_uring_setup 1\nbpf 1\nperf_event_open 1\nuserfaultfd 1\n\
    kcmp 1\nopen_by_handle_at 1\nprocess_vm_writev 1\nsyslog 1\nsocket-alg 1\nsocket-vsock 1\npersonality 1\ntiocsti 1\n";

#[rustfmt::skip]
const CASES: &[Case] = &[
    ("1 a host name of its own", || tries("t hostname other; hostname"), Both("hostname refused\nkeelway\n")),
    ("2 ids of its own",
        || tries("while read a b c; do [ $b -ge 524288 ] && echo $a $c; done < /proc/self/uid_map; w /proc/self/uid_map '0 0 1'; w /proc/self/setgroups allow"),
        Both("0 65536\n/proc/self/uid_map refused\n/proc/self/setgroups refused\n")),
    ("3 R09 a mount target that is a link out of the root", linked_target, Both("ours\nours\n")),
    ("4 R03 descriptors", || tries("ls /proc/self/fd | tr '\\n' ' '"), Both("0 1 2 3 ")),
    // Under runc the program is process 1 itself; here that is ours, out of reach.
    ("5 R01 what started it",
        || tries("readlink /proc/1/exe || echo hidden; ls /proc/1/fd > /dev/null 2>&1 && echo seen || echo hidden"),
        Apart("hidden\nhidden\n", "/bin/busybox\nseen\n")),
    ("6 7 8 R13 capabilities, privileges and filter of a RUN", || tries(STATUS),
        Both("CapInh: 0000000000000000 CapPrm: 00000000a80425fb CapEff: 00000000a80425fb CapBnd: 00000000a80425fb CapAmb: 0000000000000000 NoNewPrivs: 0 Seccomp: 2 ")),
    ("6 7 8 R13 those of a step", || sh(STATUS),
        Both("CapInh: 0000000000000000 CapPrm: 00000000000405fb CapEff: 00000000000405fb CapBnd: 00000000000405fb CapAmb: 0000000000000000 NoNewPrivs: 1 Seccomp: 2 ")),
    ("6 7 8 R13 those of a user of a step", of_a_user,
        Both("CapInh: 0000000000000000 CapPrm: 0000000000000000 CapEff: 0000000000000000 CapBnd: 00000000000405fb CapAmb: 0000000000000000 NoNewPrivs: 1 Seccomp: 2 ")),
    ("8 12 R11 R14 R15 R16 R17 forbidden calls", || probe(&["calls"]), Both(CALLS)),
    // runc lets programs fall back from calls that are newer than its library.
    ("8 a call that no kernel has", || probe(&["newest"]), Apart("-1 1\n", "-1 38\n")),
    ("8 R11 namespaces and mounts, by their programs",
        || tries("t unshare -U true; t unshare -m true; t nsenter -t 1 -m true; t mount -t tmpfs x /tmp; t mount -o remount,rw /sys; t umount /proc; t swapon /etc/passwd; t dmesg"),
        Both("unshare refused\nunshare refused\nnsenter refused\nmount refused\nmount refused\numount refused\nswapon refused\ndmesg refused\n")),
    ("9 R19 masked",
        || tries("for f in kcore keys kallsyms timer_list modules interrupts; do cat /proc/$f 2>/dev/null; done | wc -c; for f in acpi asound scsi; do ls -A /proc/$f 2>/dev/null; done; ls -A /sys/firmware | wc -l"),
        Both("0\n0\n")),
    ("9 R19 read-only",
        || tries("w /proc/sys/kernel/core_pattern x; w /proc/sys/kernel/hostname x; w /proc/sysrq-trigger x; w /proc/irq/default_smp_affinity 1; w /proc/self/oom_score_adj -999; t mkdir /sys/x"),
        Both("/proc/sys/kernel/core_pattern refused\n/proc/sys/kernel/hostname refused\n/proc/sysrq-trigger refused\n/proc/irq/default_smp_affinity refused\n/proc/self/oom_score_adj refused\nmkdir refused\n")),
    // Nodes are on mounts of their own here, so /dev itself can be nodev.
    ("10 11 mounts of the kernel",
        || tries("for m in /proc /sys /dev /dev/shm /dev/mqueue /dev/pts; do grep \" $m \" /proc/mounts | cut -d' ' -f3,4 | cut -d, -f1-4; done"),
        Apart("proc rw,nosuid,nodev,noexec\nsysfs ro,nosuid,nodev,noexec\ntmpfs rw,nosuid,nodev,noexec\ntmpfs rw,nosuid,nodev,noexec\nmqueue rw,nosuid,nodev,noexec\ndevpts rw,nosuid,noexec,relatime\n",
              "proc rw,nosuid,nodev,noexec\nsysfs ro,nosuid,nodev,noexec\ntmpfs rw,nosuid,noexec,relatime\ntmpfs rw,nosuid,nodev,noexec\nmqueue rw,nosuid,nodev,noexec\ndevpts rw,nosuid,noexec,relatime\n")),
    // In a user namespace runc shows the machine's own nodes, whose owner is nobody there.
    ("11 R18 devices",
        || tries("ls /dev | grep -vx core | tr '\\n' ' '; stat -c '%u %a' /dev/null"),
        Apart("fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero 0 666\n",
              "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero 65534 666\n")),
    ("11 R18 a node of its own making", || tries("t mknod /tmp/b b 254 0; t mknod /dev/mem c 1 1"), Both("mknod refused\nmknod refused\n")),
    ("13 R12 cgroups", || tries("cut -d: -f3 /proc/self/cgroup | sort -u; ls -A /sys/fs/cgroup; t mkdir /sys/fs/cgroup/x"), Both("/\nmkdir refused\n")),
    ("14 limits of a process", || tries("ulimit -c; ulimit -Hc; umask"), Both("0\n0\n0022\n")),
    ("15 R21 R22 no network and no socket of others", || tries("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '; tail -n +2 /proc/net/unix"), Both("lo\n")),
    ("16 R20 no core", || tries("cd /tmp; sh -c 'kill -SEGV $$' 2>/dev/null; echo $?; ls"), Both("139\n")),
    ("the machine's clock", || tries("date -s @0 2>&1 | grep -c 'not permitted'"), Both("1\n")),
];

/// The image's resolv.conf leads to the machine's.
fn linked_target() -> Spec {
    let layer = fresh();
    std::fs::create_dir(layer.join("etc")).unwrap();
    symlink("../../../../../../etc/hostname", layer.join("etc/resolv.conf")).unwrap();
    let mut spec = sh("cat /etc/resolv.conf; cat /etc/hostname");
    spec.root = over(vec![busybox(), layer]);
    let kind = MountKind::File { content: b"ours\n".to_vec(), mode: 0o644, owner: (0, 0) };
    spec.mounts = vec![Mount { target: "/etc/resolv.conf".into(), kind }];
    spec
}

fn of_a_user() -> Spec {
    let mut spec = sh(STATUS);
    spec.user.uid = 1000;
    spec.user.gid = 1000;
    spec
}

fn table() -> Result<(), Failed> {
    is_the_known_runc()?;
    let mut wrong = String::new();
    for (name, spec, gives) in CASES {
        let (ours, runc) = match *gives {
            Both(text) => (text, text),
            Apart(ours, runc) => (ours, runc),
        };
        for (whose, spec, expected) in [("ours", spec(), ours), ("runc", under_runc(spec()), runc)] {
            let (exit, said) = run(&spec);
            if !exit.success() || said != expected {
                wrong.push_str(&format!("{name}, {whose}: {exit}\n{said:?}\nand not\n{expected:?}\n\n"));
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.into()) }
}

/// A bundle over an image that `spoil` has changed: what `/out` holds then and what is said, by us and by runc.
fn bundle(
    script: &str,
    spoil: impl FnOnce(&Path, &mut serde_json::Value),
) -> Result<(String, String), Failed> {
    let bundle = fresh();
    let rootfs = bundle.join("rootfs");
    make_busybox(&rootfs);
    let mut config = oci_config(&sh(script), Path::new("rootfs"))?;
    spoil(&rootfs, &mut config);
    std::fs::write(bundle.join("config.json"), config.to_string())?;
    let written = || {
        let text = std::fs::read_to_string(rootfs.join("out")).unwrap_or_default();
        let _ = std::fs::remove_file(rootfs.join("out"));
        text
    };
    let mut runc = Command::new(RUNC);
    runc.arg("--root").arg(bundle.join("state")).arg("run").arg("--bundle").arg(&bundle);
    let output = runc.arg(format!("keelway-test-{}", box_name().as_str())).stdin(Stdio::null()).output()?;
    let theirs = written() + &String::from_utf8_lossy(&[output.stdout, output.stderr].concat());
    // Ours is always there, and no other.
    config["linux"]["seccomp"] = serde_json::Value::Null;
    let mut spec = from_oci(&config, &bundle, "one")?.spec;
    spec.cgroup = box_name();
    let said = match start(&spec) {
        Ok(started) => started.finish().1,
        Err(e) => e.to_string(),
    };
    Ok((written() + &said, theirs))
}

/// These runc gets without a user namespace, as other engines start it.
fn bundles() -> Result<(), Failed> {
    is_the_known_runc()?;
    // R08, refused by both in the same words.
    let (ours, runc) = bundle("true", |root, _| symlink("etc", root.join("proc")).unwrap())?;
    for said in [ours, runc] {
        assert!(said.contains("must be mounted on") && said.contains("ordinary directory"), "{said}");
    }
    // R02, mended in this runc.
    for n in 3..10 {
        let (ours, runc) = bundle("pwd", |_, c| c["process"]["cwd"] = format!("/proc/self/fd/{n}").into())?;
        assert!(ours.contains("cannot enter the working directory"), "{n}: {ours}");
        assert!(runc.contains("error during container init"), "{n}: {runc}");
    }
    // R04 (CVE-2025-31133), not mended in this runc: what masks is what the image calls /dev/null. It bites there.
    let (ours, runc) = bundle("head -c 7 /proc/keys > /out", |root, config| {
        std::fs::create_dir(root.join("dev")).unwrap();
        std::fs::write(root.join("etc/marked"), "marked\n").unwrap();
        symlink("/etc/marked", root.join("dev/null")).unwrap();
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
    })?;
    assert_eq!((ours.as_str(), runc.as_str()), ("", "marked\n"));
    Ok(())
}
