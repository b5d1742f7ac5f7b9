//! User ids: ranges of their own, files that keep the container's ids, and what set-user-id programs gain.

use crate::Test;
use crate::fixture::*;
use keelway_sandbox::{
    Access, CapProfile, IDS, Ids, Launcher, LauncherConfig, Mount, MountKind, Network, Spec, Stdio, User,
};
use libtest_mimic::Failed;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

pub const TESTS: &[Test] = &[
    ("users::root_inside_is_nobody_outside", nobody_outside),
    ("users::living_sandboxes_share_no_id", disjoint),
    ("users::files_keep_the_containers_ids", files),
    ("users::host_files_keep_their_owner", binds),
    ("users::set_user_id_works_in_a_run_only", set_user_id),
    ("users::file_capabilities_work_in_a_run_only", file_capabilities),
    ("users::powers_end_at_the_namespace", powers),
    ("users::a_file_system_that_cannot_translate", cannot_translate),
    ("users::binds_that_cannot_translate", binds_that_cannot_translate),
    ("users::a_joined_network_is_not_its_own", joined),
    ("users::a_range_is_free_again_after_kill_9", freed),
];

/// The real user of a process of this machine.
fn owner_of(pid: i32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("Uid:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn nobody_outside() -> Result<(), Failed> {
    let mut started = start(&sh("id -u; cat /proc/self/uid_map; sleep 100"))?;
    assert_eq!(started.line(), "0");
    let map = started.line();
    let base: u32 = map.split_whitespace().nth(1).unwrap().parse()?;
    assert!((0x80000..0x7000_0000).contains(&base) && base.is_multiple_of(IDS), "{map}");
    assert_eq!(owner_of(started.running.pid()), base, "PID 1 as well");
    let supervisor = crate::isolation::parent_of(started.running.pid());
    assert_eq!(owner_of(supervisor), 0);
    Ok(())
}

fn disjoint() -> Result<(), Failed> {
    let all = (0..5).map(|_| start(&sh("echo; sleep 100"))).collect::<Result<Vec<_>, _>>()?;
    let mut bases: Vec<u32> = all.iter().map(|s| owner_of(s.running.pid())).collect();
    bases.sort_unstable();
    bases.dedup();
    assert_eq!(bases.len(), 5, "{bases:?}");
    Ok(())
}

fn files() -> Result<(), Failed> {
    let lower = fresh();
    for (name, id, mode) in [("root", 0, 0o600), ("other", 33, 0o640), ("far", 65_535, 0o600)] {
        std::fs::write(lower.join(name), name)?;
        std::fs::set_permissions(lower.join(name), std::fs::Permissions::from_mode(mode))?;
        chown(lower.join(name), Some(id), Some(id))?;
    }
    let mut spec = sh("stat -c %n:%u:%g root other far / /dev /dev/shm /etc/own; cat root other far; \
         echo more >> other; chown 7:8 root; touch new; mkdir dir; rm far; touch -h /tmp/x; mv other moved");
    spec.cwd = "/".into();
    spec.caps = CapProfile::Build;
    spec.mounts = vec![Mount {
        target: "/etc/own".into(),
        kind: MountKind::File { content: b"x".to_vec(), mode: 0o600, owner: (0, 0) },
    }];
    spec.root = over(vec![busybox(), lower.clone()]);
    let expected =
        "root:0:0\nother:33:33\nfar:65535:65535\n/:0:0\n/dev:0:0\n/dev/shm:0:0\n/etc/own:0:0\nroototherfar";
    assert_eq!(ok(&spec), expected);
    let on_disk = |path: &Path| std::fs::symlink_metadata(path).map(|m| (m.uid(), m.gid())).unwrap();
    let upper = upper(&spec);
    for (name, ids) in
        [("moved", (33, 33)), ("root", (7, 8)), ("new", (0, 0)), ("dir", (0, 0)), ("far", (0, 0))]
    {
        assert_eq!(on_disk(&upper.join(name)), ids, "{name}");
    }
    assert_eq!(on_disk(&lower.join("root")), (0, 0), "a lower layer is never changed");
    // Another sandbox has another range and sees the same owners.
    let mut next = sh("stat -c %u:%g moved root new; cat moved");
    next.root = over(vec![busybox(), lower, upper]);
    let busy = start(&sh("echo; sleep 100"))?;
    assert_eq!(ok(&next), "33:33\n7:8\n0:0\nothermore\n");
    drop(busy);
    Ok(())
}

fn binds() -> Result<(), Failed> {
    let host = fresh();
    std::fs::write(host.join("given"), "x")?;
    chown(host.join("given"), Some(12), Some(13))?;
    let mut spec = sh("stat -c %u:%g /b/given; touch /b/made; su 2>/dev/null; exit 0");
    let kind = MountKind::Bind { source: host.clone(), access: Access::ReadWrite, below: true };
    spec.mounts = vec![Mount { target: "/b".into(), kind }];
    assert_eq!(ok(&spec), "12:13\n");
    let made = std::fs::metadata(host.join("made"))?;
    assert_eq!((made.uid(), made.gid()), (0, 0));
    Ok(())
}

/// This machine's root with one more program at `/able`. busybox gives such powers up by itself, so it will not do.
fn with_program(program: &str, argv_: &[&str], caps: CapProfile) -> (Spec, std::path::PathBuf) {
    let layer = fresh();
    let able = layer.join("able");
    std::fs::copy(program, &able).unwrap();
    let mut spec = Spec::new(over(vec!["/".into(), layer]), argv(argv_), box_name());
    spec.user = User { uid: 33, gid: 33, groups: vec![] };
    spec.caps = caps;
    (spec, able)
}

fn set_user_id() -> Result<(), Failed> {
    for (caps, effective) in [(CapProfile::Build, "0\n"), (CapProfile::Step, "33\n")] {
        let (spec, able) = with_program("/usr/bin/id", &["/able", "-u"], caps);
        std::fs::set_permissions(able, std::fs::Permissions::from_mode(0o4755))?;
        assert_eq!(ok(&spec), effective);
    }
    Ok(())
}

fn file_capabilities() -> Result<(), Failed> {
    // Version 2, effective, CAP_NET_BIND_SERVICE (10): as an image's layer carries it.
    const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (caps, effective) in [(CapProfile::Build, "0000000000000400"), (CapProfile::Step, "0000000000000000")]
    {
        let (spec, able) = with_program("/usr/bin/grep", &["/able", "CapEff", "/proc/self/status"], caps);
        set_capability(&able, &CAPABILITY)?;
        assert_eq!(ok(&spec), format!("CapEff:\t{effective}\n"));
    }
    // What setcap does inside is what an image's layer carries: no trace of the range.
    let script = "import os; os.setxattr('/able', 'security.capability', bytes.fromhex('01000002' + '00040000' + '00' * 12))";
    let (mut spec, able) =
        with_program("/usr/bin/grep", &["/usr/bin/python3", "-c", script], CapProfile::Build);
    spec.user = User::default();
    ok(&spec);
    drop(able);
    assert_eq!(get_capability(&upper(&spec).join("able"))?, CAPABILITY);
    Ok(())
}

fn get_capability(path: &Path) -> Result<Vec<u8>, Failed> {
    let script = "import os,sys; sys.stdout.buffer.write(os.getxattr(sys.argv[1], 'security.capability'))";
    Ok(std::process::Command::new("python3").args(["-c", script]).arg(path).output()?.stdout)
}

fn set_capability(path: &Path, value: &[u8]) -> Result<(), Failed> {
    use std::io::Write;
    // No library here sets attributes: Python's standard one does.
    let script = "import os,sys; os.setxattr(sys.argv[1], 'security.capability', sys.stdin.buffer.read())";
    let mut python = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(path)
        .stdin(std::process::Stdio::piped())
        .spawn()?;
    python.stdin.take().unwrap().write_all(value)?;
    assert!(python.wait()?.success());
    Ok(())
}

fn powers() -> Result<(), Failed> {
    // Root of the sandbox, against things of the machine: all refused.
    let mut spec = sh("hostname other || echo no-hostname; mknod /tmp/b b 7 0 || echo no-mknod; \
         mount -t tmpfs x /tmp || echo no-mount; umount /proc || echo no-umount; chroot / /bin/true && echo chroot; \
         kill -0 1 && echo pid-1; cat /proc/1/environ || echo no-environ; sysctl -w kernel.domainname=x || echo no-sysctl");
    spec.caps = CapProfile::Build;
    let text = ok(&spec);
    for line in ["no-hostname", "no-mknod", "no-mount", "no-umount", "chroot", "no-environ", "no-sysctl"] {
        assert!(text.lines().any(|l| l == line), "{line}: {text}");
    }
    // Its own network namespace is its own: a low port is no matter.
    let mut spec = sh("nc -l -p 80 -w 1 & sleep 0.2; netstat -ltn | grep -c ':80 '");
    spec.network = Network::None;
    assert_eq!(ok(&spec), "1\n");
    Ok(())
}

fn cannot_translate() -> Result<(), Failed> {
    let at = fresh();
    nix::mount::mount(Some("x"), &at, Some("ramfs"), nix::mount::MsFlags::empty(), None::<&str>)?;
    let result = (|| -> Result<(), Failed> {
        let lower = at.join("lower");
        std::fs::create_dir(&lower)?;
        std::fs::write(lower.join("here"), "here")?;
        let launcher = own_launcher("ramfs", Ids::Own { claims: None });
        for _ in 0..2 {
            let mut spec = sh("cat /here; cat /proc/self/uid_map > /map; mount -t tmpfs x /tmp || exit 0");
            spec.root = over(vec![busybox(), lower.clone()]);
            let mut running = launcher.spawn(&spec, Stdio::null()?)?;
            let warning = running.warnings().join("\n");
            assert!(running.wait()?.success());
            assert!(warning.contains("cannot translate user ids") && warning.contains(at.to_str().unwrap()));
            let map = std::fs::read_to_string(upper(&spec).join("map"))?;
            assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "0", "65536"]);
        }
        Ok(())
    })();
    nix::mount::umount2(&at, nix::mount::MntFlags::MNT_DETACH)?;
    result
}

/// What the machine shows keeps a sandbox from no id of its own, and is the machine's as it is without us.
fn binds_that_cannot_translate() -> Result<(), Failed> {
    let mut spec = sh("cat /proc/self/uid_map; stat -c %u /hp/sys/kernel/core_pattern; \
         (echo '|/x' > /hp/sys/kernel/core_pattern) 2>/dev/null && echo written; ls -d /machine/proc /machine/etc; \
         grep -c ' /machine ' /proc/self/mountinfo");
    let bind = |source: &str, target: &str| Mount {
        target: target.into(),
        kind: MountKind::Bind { source: source.into(), access: Access::ReadWrite, below: true },
    };
    spec.mounts = vec![bind("/proc", "/hp"), bind("/", "/machine")];
    let launcher = own_launcher("binds", Ids::Own { claims: None });
    let (mut output, write) = std::io::pipe()?;
    let mut running = launcher.spawn(&spec, Stdio::output_to(write.into())?)?;
    let mut text = String::new();
    std::io::Read::read_to_string(&mut output, &mut text)?;
    let warnings = running.warnings().join("\n");
    assert!(running.wait()?.success(), "{text}");
    let lines: Vec<_> = text.lines().collect();
    assert!(!lines[0].trim_start().starts_with("0          0"), "{text}");
    assert_eq!(lines[1..], ["65534", "/machine/etc", "/machine/proc", "1"], "{text}");
    assert!(warnings.contains("everything in /proc belongs to nobody"), "{warnings}");
    Ok(())
}

fn own_launcher(name: &str, ids: Ids) -> Launcher {
    let parent = format!("keelway-test/{name}-{}", std::process::id()).parse().unwrap();
    let mut config = LauncherConfig::new(parent);
    config.ids = ids;
    Launcher::new(config)
}

fn joined() -> Result<(), Failed> {
    let holder = start(&sh("echo; sleep 100"))?;
    let mut spec = sh("ip link show lo | grep -c UP; ls /sys/class/net; ip link set lo down || echo refused");
    spec.network = Network::Join(format!("/proc/{}/ns/net", holder.running.pid()).into());
    assert!(ok(&spec).starts_with("1\nlo\n"));
    assert!(
        ok(&{
            renew(&mut spec);
            spec
        })
        .contains("refused")
    );
    Ok(())
}

fn freed() -> Result<(), Failed> {
    let claims = fresh().join("ids");
    let launcher = own_launcher("freed", Ids::Own { claims: Some(claims) });
    let base = |spec: &Spec| -> Result<u32, Failed> {
        let running = launcher.spawn(spec, Stdio::null()?)?;
        let base = owner_of(running.pid());
        // The supervisor, with everything that it holds.
        let supervisor = nix::unistd::Pid::from_raw(crate::isolation::parent_of(running.pid()));
        nix::sys::signal::kill(supervisor, nix::sys::signal::Signal::SIGKILL)?;
        drop(running);
        Ok(base)
    };
    assert_eq!((base(&sh("sleep 100"))?, base(&sh("sleep 100"))?), (0x80000, 0x80000));
    Ok(())
}
