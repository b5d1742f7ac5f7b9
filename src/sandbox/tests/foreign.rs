//! Another runtime in our place: Debian's runc gets the same specs.

use crate::Test;
use crate::fixture::*;
use keelway_model::Bytes;
use keelway_sandbox::cgroup::{Layout, reap};
use keelway_sandbox::{Access, ExecSpec, ExitKind, Mount, MountKind, Network, RootFs, Spec, Stdio};
use libtest_mimic::Failed;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub const TESTS: &[Test] = &[
    ("foreign::the_same_spec_under_runc", same_spec),
    ("foreign::the_upper_holds_the_work_and_nothing_else", upper_is_the_work),
    ("foreign::ends_and_signals", ends),
    ("foreign::limits", limits),
    ("foreign::networks", networks),
    ("foreign::what_cannot_be_is_said", refusals),
    ("foreign::whoever_dies_nothing_stays", death),
];

/// Where Debian has it.
pub const RUNC: &str = "/usr/sbin/runc";

/// The same under runc.
pub fn under_runc(mut spec: Spec) -> Spec {
    spec.runtime = Some(RUNC.into());
    spec
}

fn file(target: &str, content: &str, mode: u32) -> Mount {
    Mount { target: target.into(), kind: MountKind::File { content: content.into(), mode, owner: (0, 0) } }
}

fn same_spec() -> Result<(), Failed> {
    let host = fresh();
    std::fs::write(host.join("given"), "given\n")?;
    let spec = || {
        let mut spec = sh(
            "id -u; id -g; hostname; pwd; echo $GREETING; grep -E 'Cap(Bnd|Eff)|NoNewPrivs|^Seccomp:|SigBlk' /proc/self/status; \
             cat /etc/hosts /bound/given; stat -c '%u:%g %a' /etc/hosts /tmp; echo x > /etc/hosts || echo fixed; \
             echo x > /bound/no || echo bound; touch /proc/sysrq-trigger || echo kept; cat /proc/kcore | head -c 1 | wc -c; \
             umask; ulimit -c; ls /dev | grep -vx core; grep -c ' /scratch tmpfs' /proc/mounts; head -c 100000 /dev/zero > /scratch/f || echo full; \
             cut -d' ' -f1 /proc/uptime > /dev/null; ls /proc/self/fd | wc -l",
        );
        spec.user.uid = 12;
        spec.user.gid = 34;
        spec.user.groups = vec![56];
        spec.hostname = "bundle".into();
        spec.cwd = "/var".into();
        spec.env.push(("GREETING".into(), "hello \"you\"".into()));
        let bind = MountKind::Bind { source: host.clone(), access: Access::ReadOnly, below: true };
        spec.mounts = vec![
            file("/etc/hosts", "127.0.0.1 localhost\n", 0o644),
            Mount { target: "/bound".into(), kind: bind },
            Mount { target: "/scratch".into(), kind: MountKind::Tmpfs { size: Bytes(16384), mode: 0o1777 } },
        ];
        spec
    };
    let ours = ok(&spec());
    let theirs = ok(&under_runc(spec()));
    assert!(ours.contains("127.0.0.1") && ours.contains("bound\n") && ours.contains("full\n"), "{ours}");
    assert_eq!(ours, theirs);
    let mut fresh = sh("");
    fresh.argv = argv(&["/bin/grep", "SigIgn", "/proc/self/status"]);
    assert_eq!(ok(&fresh), "SigIgn:\t0000000000000000\n");
    Ok(())
}

fn upper_is_the_work() -> Result<(), Failed> {
    let script =
        "echo work > /made; chown 7:8 /made; mkdir -p /var/dir; rm /etc/passwd; cat /proc/self/uid_map";
    let mut uppers = Vec::new();
    for runtime in [None, Some(PathBuf::from(RUNC))] {
        let mut spec = sh(script);
        spec.runtime = runtime;
        spec.mounts = vec![
            file("/etc/hosts", "", 0o644),
            file("/run/inner/script", "x", 0o755),
            Mount {
                target: "/opt/scratch".into(),
                kind: MountKind::Tmpfs { size: Bytes(4096), mode: 0o1777 },
            },
        ];
        let map = ok(&spec);
        let words: Vec<&str> = map.split_whitespace().collect();
        let base: u32 = words[1].parse()?;
        assert!((words[0], words[2]) == ("0", "65536") && base >= 0x80000, "{map}");
        let made = std::fs::metadata(upper(&spec).join("made"))?;
        assert_eq!((made.uid(), made.gid()), (7, 8), "the container's ids on disk");
        uppers.push(tree(&upper(&spec)));
    }
    assert_eq!(uppers[0], ["etc", "etc/passwd", "made", "var", "var/dir"]);
    assert_eq!(uppers[0], uppers[1]);
    let mut spec = under_runc(sh("cat /etc/hosts; echo x > /new || echo refused"));
    spec.root = RootFs::ReadOnly { lowers: vec![busybox()] };
    spec.mounts = vec![file("/etc/hosts", "hosts\n", 0o644)];
    let before = tree(&busybox());
    assert!(ok(&spec).starts_with("hosts\n") && tree(&busybox()) == before);
    // Capabilities and privileges of a RUN.
    let mut spec = under_runc(sh("grep -E 'CapBnd|NoNewPrivs' /proc/self/status"));
    spec.caps = keelway_sandbox::CapProfile::Build;
    assert_eq!(ok(&spec), "CapBnd:\t00000000a80425fb\nNoNewPrivs:\t0\n");
    Ok(())
}

fn ends() -> Result<(), Failed> {
    assert_eq!(run(&under_runc(sh("exit 7"))).0.kind, ExitKind::Code(7));
    assert_eq!(
        run(&under_runc(sh("kill -9 $$"))).0.kind,
        ExitKind::Code(0),
        "PID 1 of its namespace is immune"
    );
    let mut started =
        start(&under_runc(sh("trap 'echo asked; exit 3' TERM; echo ready; while :; do sleep 0.05; done")))?;
    assert_eq!(started.line(), "ready");
    started.running.signal(15)?;
    let (exit, output) = started.finish();
    assert_eq!((exit.kind, output.as_str()), (ExitKind::Code(3), "asked\n"));
    let marker = format!("91{}", std::process::id());
    let mut started = start(&under_runc(sh(&format!(
        "trap '' TERM; (setsid sleep {marker} &); echo ready; sleep {marker}; true"
    ))))?;
    assert_eq!(started.line(), "ready");
    started.running.kill()?;
    assert_eq!(started.running.wait()?.kind, ExitKind::Signal(9));
    assert!(processes_with(&format!("sleep\0{marker}")).is_empty());
    // What the process leaves running ends with it.
    let spec = under_runc(sh(&format!("(setsid sleep {marker} > /dev/null 2>&1 < /dev/null &); echo done")));
    assert_eq!(ok(&spec), "done\n");
    assert!(processes_with(&format!("sleep\0{marker}")).is_empty());
    assert_eq!(groups_of(&spec), Vec::<PathBuf>::new());
    Ok(())
}

fn limits() -> Result<(), Failed> {
    let mut spec = under_runc(sh("head -c 200m /dev/zero | tail"));
    spec.limits.memory = Some(Bytes(32 << 20));
    let (exit, _) = run(&spec);
    assert_eq!(exit.kind, ExitKind::OutOfMemory);
    assert!(exit.usage.oom_kills > 0 && exit.usage.peak_memory.is_some(), "{exit:?}");
    let mut spec = under_runc(sh("for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & done; wait"));
    spec.limits.pids = Some(5);
    let (exit, output) = run(&spec);
    assert!(exit.usage.pids_refused > 0 && output.contains("can't fork"), "{exit:?} {output}");
    Ok(())
}

fn networks() -> Result<(), Failed> {
    // Its own loopback, which is up, and nothing else.
    let text = ok(&under_runc(sh(
        "ls /sys/class/net; ip addr show lo | grep -c 'inet 127.0.0.1'; cat /proc/net/route | wc -l",
    )));
    assert_eq!(text, "lo\n1\n1\n");
    // One by a path that names a process of the machine.
    let mut holder = std::process::Command::new("/usr/bin/unshare")
        .args(["-n", "sh", "-c", "ip link add mark type veth peer name peer; echo x; read x"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut byte = [0; 2];
    std::io::Read::read_exact(&mut holder.stdout.take().expect("a pipe"), &mut byte)?;
    let mut spec = under_runc(sh("ls /sys/class/net; echo x > /sys/class/net/lo/mtu || echo fixed"));
    spec.network = Network::Join(format!("/proc/{}/ns/net", holder.id()).into());
    let text = ok(&spec);
    holder.kill()?;
    holder.wait()?;
    assert!(text.starts_with("lo\nmark\npeer\n") && text.ends_with("fixed\n"), "{text}");
    let mut spec = under_runc(sh("readlink /proc/self/ns/net"));
    spec.network = Network::Host;
    let machine = std::fs::read_link("/proc/self/ns/net")?;
    assert_eq!(ok(&spec).trim(), machine.to_string_lossy());
    Ok(())
}

fn refusals() -> Result<(), Failed> {
    let mut spec = under_runc(sh("true"));
    spec.argv = argv(&["/absent"]);
    assert!(refused(&spec).contains("\"/absent\" does not exist in the image"));
    renew(&mut spec);
    spec.argv = argv(&["absent"]);
    assert!(refused(&spec).contains("searched PATH"));
    renew(&mut spec);
    spec.argv = argv(&["/etc/passwd"]);
    let text = refused(&spec);
    assert!(
        text.contains("the runtime \"/usr/sbin/runc\" cannot") && text.contains("permission denied"),
        "{text}"
    );
    let mut spec = under_runc(sh("true"));
    spec.cwd = "/absent".into();
    assert!(refused(&spec).contains("cannot enter the working directory"));
    assert_eq!(tree(&upper(&spec)), Vec::<String>::new());
    let mut spec = sh("true");
    spec.runtime = Some("/usr/sbin/absent-runtime".into());
    let text = refused(&spec);
    assert!(text.contains("absent-runtime\" cannot create the container: No such file"), "{text}");
    let mut spec = sh("true");
    spec.runtime = Some("/bin/true".into());
    let text = refused(&spec);
    assert!(text.contains("no process that can be waited for"), "{text}");
    let mut spec = under_runc(sh("true"));
    spec.terminal = Some(keelway_sandbox::Window { rows: 1, columns: 1 });
    assert!(refused(&spec).contains("not possible under another runtime"));
    let spec = under_runc(sh("echo ready; sleep 100"));
    let mut started = start(&spec)?;
    assert_eq!(started.line(), "ready");
    let error = started.running.handle().exec(&ExecSpec::new(argv(&["true"])), Stdio::null()?);
    assert!(error.expect_err("refused").to_string().contains("only our own sandbox can do that"));
    started.running.kill()?;
    started.running.wait()?;
    assert_eq!(groups_of(&spec), Vec::<PathBuf>::new());
    Ok(())
}

/// What is left of a sandbox's groups, in any hierarchy.
fn groups_of(spec: &Spec) -> Vec<PathBuf> {
    let dirs = crate::death::groups_named(&parent());
    dirs.iter().map(|dir| dir.join(spec.cgroup.as_str())).filter(|dir| dir.exists()).collect()
}

fn death() -> Result<(), Failed> {
    for supervisor_too in [false, true] {
        let mut owner = crate::death::start_owner_under(
            "foreign",
            if supervisor_too { 7 } else { 6 },
            Some(Path::new(RUNC)),
        );
        let supervisor = crate::isolation::parent_of(owner.pid1);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        if supervisor_too {
            crate::death::stop(supervisor);
        }
        owner.child.kill()?;
        owner.child.wait()?;
        if supervisor_too {
            crate::death::end(supervisor);
        }
        until("everything is dead", || crate::death::sleeping(&owner.marker) == 0);
        until("the supervisor is gone", || !Path::new(&format!("/proc/{supervisor}/root/proc")).exists());
        assert_eq!(std::fs::read_to_string("/proc/self/mountinfo")?, mounts);
        assert!(!Path::new("/run/keelway/state").exists());
        reap(&Layout::detect(), std::slice::from_ref(&owner.parent))?;
        let left = crate::death::groups_named(&owner.parent);
        assert_eq!(left, Vec::<PathBuf>::new());
    }
    Ok(())
}
