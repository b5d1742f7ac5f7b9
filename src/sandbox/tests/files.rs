//! The root file system, its mounts, and what stays of them.

use crate::Test;
use crate::fixture::*;
use keelway_model::Bytes;
use keelway_sandbox::{
    Access, ExitKind, Launcher, LauncherConfig, Mount, MountKind, OverlayApi, RootFs, Spec, Stdio, oci_config,
};
use libtest_mimic::Failed;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

pub const TESTS: &[Test] = &[
    ("files::changes_are_in_the_upper_and_nothing_else", upper_is_the_work),
    ("files::work_in_a_copied_directory_stays", work_beside_stubs_stays),
    ("files::a_read_only_root", read_only),
    ("files::binds_tmpfs_and_contents", mounts),
    ("files::a_root_from_scratch", scratch),
    ("files::layers_in_order_with_whiteouts", layers),
    ("files::awkward_directory_names", awkward),
    ("files::many_layers", many_layers),
    ("files::the_old_mount_call_does_the_same", legacy),
    ("files::a_missing_layer_is_named", missing),
    ("files::runc_runs_the_same_bundle", runc),
];

fn file(target: &str, content: &str) -> Mount {
    let kind = MountKind::File { content: content.into(), mode: 0o644, owner: (0, 0) };
    Mount { target: target.into(), kind }
}

fn upper_is_the_work() -> Result<(), Failed> {
    // busybox's root has /etc, but neither /proc, /sys, /dev nor the three files.
    let mut spec = sh("cat /etc/resolv.conf /etc/hosts; echo work > /made; mkdir /var/dir; ls /run/inner");
    spec.mounts = vec![
        file("/etc/resolv.conf", "nameserver x\n"),
        file("/etc/hosts", "hosts\n"),
        file("/run/inner/script", "x"),
        Mount { target: "/opt/scratch".into(), kind: MountKind::Tmpfs { size: Bytes(4096), mode: 0o1777 } },
    ];
    assert_eq!(ok(&spec), "nameserver x\nhosts\nscript\n");
    assert_eq!(tree(&upper(&spec)), ["made", "var", "var/dir"]);
    // Also when the program cannot be started.
    let mut spec = sh("true");
    spec.argv = argv(&["/absent"]);
    spec.mounts = vec![file("/etc/hosts", "hosts\n")];
    refused(&spec);
    assert_eq!(tree(&upper(&spec)), Vec::<String>::new());
    Ok(())
}

fn work_beside_stubs_stays() -> Result<(), Failed> {
    let mut spec = sh("echo x > /etc/own; chmod 700 /root");
    spec.mounts = vec![file("/etc/hosts", ""), file("/root/rc", ""), file("/new/rc", "")];
    ok(&spec);
    assert_eq!(tree(&upper(&spec)), ["etc", "etc/own", "root"]);
    let mode = std::fs::metadata(upper(&spec).join("root"))?.permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "a change of the directory itself is work");
    Ok(())
}

fn read_only() -> Result<(), Failed> {
    let mut spec = sh(
        "cat /etc/hosts; echo x > /new || echo refused; echo x > /tmp/t && cat /tmp/t; mount | grep -c ' / .*[(,]ro[,)]'",
    );
    spec.root = RootFs::ReadOnly { lowers: vec![busybox()] };
    spec.mounts = vec![
        file("/etc/hosts", "hosts\n"),
        Mount { target: "/tmp".into(), kind: MountKind::Tmpfs { size: Bytes(1 << 20), mode: 0o1777 } },
    ];
    let before = tree(&busybox());
    let text = ok(&spec);
    assert!(text.starts_with("hosts\n") && text.contains("refused\nx\n1\n"), "{text}");
    assert_eq!(tree(&busybox()), before);
    Ok(())
}

fn mounts() -> Result<(), Failed> {
    let host = fresh();
    std::fs::write(host.join("given"), "from the host")?;
    let bind = |target: &str, source: PathBuf, access| Mount {
        target: target.into(),
        kind: MountKind::Bind { source, access, below: true },
    };
    let mut spec = sh("cat /src/given; echo; echo x > /src/no || echo read-only; echo yes > /out/made; \
         cat /etc/one; echo x > /etc/one || echo fixed; stat -c %a /etc/one; \
         head -c 100000 /dev/zero > /small/f || echo full; cat /deep/er/file");
    spec.mounts = vec![
        bind("/src", host.clone(), Access::ReadOnly),
        bind("/out", host.clone(), Access::ReadWrite),
        Mount {
            target: "/etc/one".into(),
            kind: MountKind::File { content: b"content\n".to_vec(), mode: 0o400, owner: (0, 0) },
        },
        Mount { target: "/small".into(), kind: MountKind::Tmpfs { size: Bytes(16384), mode: 0o755 } },
        bind("/deep/er/file", host.join("given"), Access::ReadOnly),
    ];
    let text = ok(&spec);
    for part in ["from the host\n", "read-only\n", "content\n", "fixed\n400\n", "full\n"] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert_eq!(std::fs::read_to_string(host.join("made"))?, "yes\n");
    renew(&mut spec);
    spec.mounts = vec![bind("/src", host.join("absent"), Access::ReadOnly)];
    assert!(refused(&spec).contains("absent\" of this machine: No such file"));
    Ok(())
}

fn scratch() -> Result<(), Failed> {
    let mut spec = Spec::new(over(vec![]), argv(&["/tools/busybox", "touch", "/file"]), box_name());
    let kind = MountKind::Bind { source: "/bin/busybox".into(), access: Access::ReadOnly, below: true };
    spec.mounts = vec![Mount { target: "/tools/busybox".into(), kind }];
    ok(&spec);
    assert_eq!(tree(&upper(&spec)), ["file"]);
    Ok(())
}

fn layers() -> Result<(), Failed> {
    let (one, two) = (fresh(), fresh());
    std::fs::write(one.join("a"), "one")?;
    std::fs::write(one.join("b"), "one")?;
    std::fs::write(two.join("a"), "two")?;
    let mut spec = sh("cat /a; rm /b; ls /b 2>/dev/null || echo ' gone'");
    spec.root = over(vec![busybox(), one, two]);
    assert_eq!(ok(&spec), "two gone\n");
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let whiteout = std::fs::symlink_metadata(upper(&spec).join("b"))?;
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    Ok(())
}

fn awkward() -> Result<(), Failed> {
    let base = fresh();
    for name in ["with:colon", "with\\back,comma", &"long".repeat(60)] {
        let dir = base.join(name);
        let deep = dir.join("x".repeat(100));
        let (lower, upper_dir, work) = (deep.join("lower"), deep.join("upper"), deep.join("work"));
        for d in [&lower, &upper_dir, &work] {
            std::fs::create_dir_all(d)?;
        }
        std::fs::write(lower.join("here"), "here")?;
        let mut spec = sh("cat /here; touch /there");
        spec.root = RootFs::Overlay { lowers: vec![busybox(), lower], upper: upper_dir.clone(), work };
        assert_eq!(ok(&spec), "here", "{name}");
        assert_eq!(tree(&upper_dir), ["there"], "{name}");
    }
    Ok(())
}

fn some_layers(count: usize) -> Vec<PathBuf> {
    let base = fresh();
    let mut lowers = vec![busybox()];
    for i in 1..count {
        let dir = base.join(i.to_string());
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join(format!("f{i}")), "").unwrap();
        lowers.push(dir);
    }
    lowers
}

fn many_layers() -> Result<(), Failed> {
    let mut spec = sh("ls / | grep -c ^f");
    spec.root = over(some_layers(499));
    assert_eq!(ok(&spec), "498\n");
    Ok(())
}

fn legacy() -> Result<(), Failed> {
    let mut config = LauncherConfig::new(format!("keelway-test/legacy-{}", std::process::id()).parse()?);
    config.overlay = OverlayApi::Legacy;
    let launcher = Launcher::new(config);
    let mut spec = sh("test -f /f99 && echo x > /made");
    spec.root = over(some_layers(100));
    assert!(launcher.spawn(&spec, Stdio::null()?)?.wait()?.success());
    assert_eq!(tree(&upper(&spec)), ["made"]);
    spec.root = RootFs::ReadOnly { lowers: vec![busybox()] };
    spec.argv = argv(&["/bin/touch", "/x"]);
    assert_eq!(launcher.spawn(&spec, Stdio::null()?)?.wait()?.kind, ExitKind::Code(1));
    let mut spec = sh("test -f /f498 && pwd | grep -qx / && echo x > /made");
    spec.root = over(some_layers(499));
    assert!(launcher.spawn(&spec, Stdio::null()?)?.wait()?.success());
    Ok(())
}

fn missing() -> Result<(), Failed> {
    let mut spec = sh("true");
    spec.root = over(vec![busybox(), "/dev/shm/keelway-absent-layer".into()]);
    let text = refused(&spec);
    assert!(text.contains("keelway-absent-layer") && text.contains("No such file"), "{text}");
    Ok(())
}

fn runc() -> Result<(), Failed> {
    let bundle = fresh();
    make_busybox(&bundle.join("rootfs"));
    let mut spec = sh(
        "id -u; hostname; grep CapBnd /proc/self/status; cat /etc/hosts; touch /proc/sysrq-trigger || echo kept",
    );
    spec.user.uid = 12;
    spec.hostname = "bundle".into();
    spec.mounts =
        vec![Mount { target: "/data".into(), kind: MountKind::Tmpfs { size: Bytes(4096), mode: 0o755 } }];
    spec.argv[2] = spec.argv[2].replace("cat /etc/hosts", "grep -c ' /data tmpfs' /proc/mounts");
    let ours = ok(&spec);
    let config = oci_config(&spec, &bundle.join("rootfs"))?;
    std::fs::write(bundle.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
    let id = format!("keelway-test-{}", std::process::id());
    let output = std::process::Command::new("/usr/sbin/runc")
        .args(["--root".as_ref(), bundle.join("state").as_os_str(), "run".as_ref(), "--bundle".as_ref()])
        .args([bundle.as_os_str(), id.as_ref()])
        .stdin(std::process::Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.starts_with("12\nbundle\nCapBnd:\t00000000000405fb\n1\n"), "{text}");
    assert!(ours.starts_with("12\nbundle\nCapBnd:\t00000000000405fb\n1\n"), "{ours}");
    Ok(())
}
