//! Roots that try to lead us out of them (the R cases of the security catalogue).

use crate::Test;
use crate::fixture::*;
use keelway_model::Bytes;
use keelway_sandbox::{Access, Launcher, LauncherConfig, Mount, MountKind, OverlayApi, RootFs, Spec, Stdio};
use libtest_mimic::Failed;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

pub const TESTS: &[Test] = &[
    ("hostile::r08_kernel_directories_that_are_links", kernel_links),
    ("hostile::nothing_lies_over_any_kind_of_root", nothing_above),
    ("hostile::kernel_directories_that_are_files", kernel_files),
    ("hostile::who_is_to_blame", blame),
    ("hostile::targets_that_lead_out_stay_inside", targets),
    ("hostile::r10_missing_targets_are_made_inside", missing_targets),
    ("hostile::nothing_is_mounted_inside_proc", inside_proc),
    ("hostile::link_loops", loops),
    ("hostile::r02_working_directories_that_lead_out", working_directories),
    ("hostile::r04_image_nodes_mask_nothing", image_nodes),
];

/// busybox with a layer on top.
fn with_layer(script: &str, make: impl FnOnce(&Path)) -> Spec {
    let layer = fresh();
    make(&layer);
    let mut spec = sh(script);
    spec.root = over(vec![busybox(), layer]);
    spec
}

fn content(target: &str) -> Mount {
    Mount {
        target: target.into(),
        kind: MountKind::File { content: b"ours\n".to_vec(), mode: 0o644, owner: (0, 0) },
    }
}

fn sentinel() -> PathBuf {
    let dir = fresh();
    std::fs::write(dir.join("file"), "untouched").unwrap();
    dir
}

fn kernel_links() -> Result<(), Failed> {
    let host = sentinel();
    for name in ["proc", "sys", "dev"] {
        for to in [host.to_str().unwrap_or_default(), "etc", "/etc", "../../../../etc", "absent"] {
            let spec = with_layer("true", |l| symlink(to, l.join(name)).unwrap());
            let text = refused(&spec);
            assert!(text.contains("must be mounted on an ordinary directory"), "{name} -> {to}: {text}");
        }
    }
    assert_eq!(tree(&host), ["file"]);
    Ok(())
}

fn kernel_files() -> Result<(), Failed> {
    let spec = with_layer("true", |l| std::fs::write(l.join("proc"), "").unwrap());
    assert!(refused(&spec).contains("\"/proc\" is refused"));
    Ok(())
}

fn nothing_above() -> Result<(), Failed> {
    let script = "ls -di / /..; ls /.. | sort; grep -c ' / / ' /proc/self/mountinfo";
    let from_scratch = || {
        let argv = argv(&[
            "/tools/busybox",
            "sh",
            "-c",
            "b=/tools/busybox; $b ls -d /../tools; $b grep -c ' / / ' /proc/self/mountinfo",
        ]);
        let mut spec = Spec::new(over(vec![]), argv, box_name());
        let kind = MountKind::Bind { source: "/bin/busybox".into(), access: Access::ReadOnly, below: true };
        spec.mounts = vec![Mount { target: "/tools/busybox".into(), kind }];
        spec
    };
    let mut read_only = sh(script);
    read_only.root = RootFs::ReadOnly { lowers: vec![busybox()] };
    let mut config = LauncherConfig::new(format!("keelway-test/above-{}", std::process::id()).parse()?);
    config.overlay = OverlayApi::Legacy;
    let (new, old) = (launcher(), Launcher::new(config));
    for launcher in [&new, &old] {
        for mut spec in [sh(script), read_only.clone(), from_scratch()] {
            renew(&mut spec);
            let (mut output, write) = std::io::pipe()?;
            let mut running = launcher.spawn(&spec, Stdio::output_to(write.into())?)?;
            let mut text = String::new();
            std::io::Read::read_to_string(&mut output, &mut text)?;
            assert!(running.wait()?.success(), "{text}");
            // One mount at /, and the parent of the root is the root.
            assert!(text.ends_with("\n1\n") && !text.contains("boot"), "{text}");
        }
    }
    Ok(())
}

fn blame() -> Result<(), Failed> {
    let layer = |name: &'static str| with_layer("true", move |l| symlink("etc", l.join(name)).unwrap());
    let with = |change: &dyn Fn(&mut Spec)| {
        let mut spec = sh("true");
        change(&mut spec);
        spec
    };
    let the_image = [
        layer("proc"),
        layer("dev"),
        with(&|s| s.cwd = "/absent".into()),
        with(&|s| s.cwd = "relative".into()),
        with(&|s| s.argv = argv(&["/absent"])),
        with(&|s| s.root = over(vec![busybox(); 501])),
    ];
    let the_machine = [with(&|s| s.root = over(vec![busybox(), "/dev/shm/keelway-absent-layer".into()]))];
    for (specs, image) in [(&the_image[..], true), (&the_machine[..], false)] {
        for spec in specs {
            let Err(e) = start(spec) else { return Err("it started".into()) };
            assert_eq!(e.is_the_images_fault(), image, "{e}");
        }
    }
    Ok(())
}

fn targets() -> Result<(), Failed> {
    let host = sentinel();
    let out = host.join("file");
    // An absolute link, one with too many "..", and one through a directory.
    for (link, to) in [
        ("etc/resolv.conf", out.to_str().unwrap_or_default().to_owned()),
        ("etc/resolv.conf", format!("../../../../../..{}", out.display())),
    ] {
        let mut spec = with_layer("cat /etc/resolv.conf", |l| {
            std::fs::create_dir(l.join("etc")).unwrap();
            symlink(&to, l.join(link)).unwrap();
        });
        spec.mounts = vec![content("/etc/resolv.conf")];
        assert_eq!(ok(&spec), "ours\n", "{to}");
        assert_eq!(std::fs::read_to_string(&out)?, "untouched");
    }
    let mut spec = with_layer("cat /way/new/file", |l| symlink(&host, l.join("way")).unwrap());
    spec.mounts = vec![content("/way/new/file")];
    assert_eq!(ok(&spec), "ours\n");
    assert_eq!(tree(&host), ["file"]);
    Ok(())
}

fn missing_targets() -> Result<(), Failed> {
    let host = sentinel();
    let mut spec = with_layer("ls -d /a/b/c/d", |_| {});
    spec.mounts = vec![Mount {
        target: format!("/a/b/../../../../..{}/x/../../a/b/c/d", host.display()).into(),
        kind: MountKind::Tmpfs { size: Bytes(4096), mode: 0o755 },
    }];
    // It stays beneath the root whatever it says; what is made there is removed.
    let _ = start(&spec).map(Started::finish);
    assert_eq!(tree(&host), ["file"]);
    assert_eq!(tree(&upper(&spec)), Vec::<String>::new());
    Ok(())
}

fn inside_proc() -> Result<(), Failed> {
    for target in ["/proc", "/proc/self/attr", "/sys/kernel", "/link/attr"] {
        let mut spec = with_layer("true", |l| symlink("/proc/self", l.join("link")).unwrap());
        spec.mounts =
            vec![Mount { target: target.into(), kind: MountKind::Tmpfs { size: Bytes(4096), mode: 0o755 } }];
        let text = refused(&spec);
        assert!(
            text.contains("inside /proc or /sys") || text.contains("a link of /proc"),
            "{target}: {text}"
        );
    }
    let mut spec = with_layer("true", |_| {});
    spec.mounts = vec![content("/proc/self/fd/1")];
    assert!(refused(&spec).contains("/proc"), "magic links");
    Ok(())
}

fn loops() -> Result<(), Failed> {
    let mut spec = with_layer("true", |l| {
        symlink("b", l.join("a")).unwrap();
        symlink("a", l.join("b")).unwrap();
    });
    spec.mounts = vec![content("/a/file")];
    assert!(refused(&spec).contains("too many links"));
    Ok(())
}

fn working_directories() -> Result<(), Failed> {
    for n in 0..=64 {
        let mut spec = sh("cat /proc/self/mounts; pwd");
        spec.cwd = format!("/proc/self/fd/{n}").into();
        assert!(refused(&spec).contains("cannot enter the working directory"), "{n}");
    }
    for to in ["/proc/self/fd/7", "/proc/1/root", "/proc/self/cwd"] {
        let mut spec = with_layer("pwd", |l| symlink(to, l.join("wd")).unwrap());
        spec.cwd = "/wd".into();
        assert!(refused(&spec).contains("\"/wd\""), "{to}");
    }
    let mut spec = with_layer("pwd; ls", |l| symlink("../../../../etc", l.join("wd")).unwrap());
    spec.cwd = "/wd".into();
    assert_eq!(ok(&spec), "/etc\npasswd\n");
    Ok(())
}

fn image_nodes() -> Result<(), Failed> {
    // /dev is ours, whatever the image has there.
    let spec = with_layer(
        "stat -c %t:%T /dev/null; cat /proc/kallsyms | wc -c; echo x > /proc/sys/kernel/core_pattern || echo kept",
        |l| {
            std::fs::create_dir(l.join("dev")).unwrap();
            symlink("/proc/sys/kernel/core_pattern", l.join("dev/null")).unwrap();
        },
    );
    let text = ok(&spec);
    assert!(text.starts_with("1:3\n0\n") && text.ends_with("kept\n"), "{text}");
    Ok(())
}
