//! Mounts that show a part of another tree: of layers, and of a directory in which sandboxes choose the names.

use crate::fixture::{box_name, busybox, fresh, ok, over, refused, renew, sh, tree, upper};
use keelway_model::Bytes;
use keelway_sandbox::{Access, Mount, MountKind, RootFs, Spec, User};
use libtest_mimic::Failed;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};

pub const TESTS: &[crate::Test] = &[
    ("trees::layers_are_shown_and_stay", layers_are_shown_and_stay),
    ("trees::what_is_written_is_in_the_upper_directory", what_is_written),
    ("trees::links_end_in_their_tree", links_end_in_their_tree),
    ("trees::renames_elsewhere_are_no_matter", renames_elsewhere),
    ("trees::a_directory_keeps_its_owners", a_directory_keeps_its_owners),
    ("trees::a_file_has_its_owner", a_file_has_its_owner),
    ("trees::on_a_kernel_without_append", by_the_older_call),
    ("trees::a_lock_is_held_to_the_end", a_lock_is_held_to_the_end),
];

fn mount(target: &str, kind: MountKind) -> Mount {
    Mount { target: target.into(), kind }
}

fn of(lowers: &[&Path], path: &str) -> MountKind {
    let lowers = lowers.iter().map(|l| (*l).to_owned()).collect();
    MountKind::Layers { root: RootFs::ReadOnly { lowers }, path: path.into() }
}

/// Two layers with `/d/a` (of the upper one), `/d/b` and `/l`, which leads to `/d`.
fn two_layers() -> Result<(PathBuf, PathBuf), Failed> {
    let (low, high) = (fresh(), fresh());
    for layer in [&low, &high] {
        std::fs::create_dir(layer.join("d"))?;
    }
    std::fs::write(low.join("d/a"), "old\n")?;
    std::fs::write(low.join("d/b"), "b\n")?;
    std::fs::write(high.join("d/a"), "new\n")?;
    symlink("/d", high.join("l"))?;
    Ok((low, high))
}

fn read_only() -> Result<(Spec, PathBuf, PathBuf), Failed> {
    let (low, high) = two_layers()?;
    let mut spec =
        sh("cat /t/a /t/b /one; (echo x > /t/a) 2>/dev/null || echo fixed; echo y > /t/in/y; ls /t");
    spec.mounts = vec![
        mount("/t", of(&[&low, &high], "/l")),
        mount("/one", of(&[&low, &high], "/d/a")),
        mount("/t/in", MountKind::Tmpfs { size: Bytes(16384), mode: 0o755 }),
    ];
    Ok((spec, low, high))
}

fn layers_are_shown_and_stay() -> Result<(), Failed> {
    let (spec, low, high) = read_only()?;
    assert_eq!(ok(&spec), "new\nb\nnew\nfixed\na\nb\nin\n");
    assert_eq!(tree(&upper(&spec)), [""; 0], "no mount point stays");
    assert_eq!((tree(&low).len(), tree(&high).len()), (3, 3), "nothing was made in the layers");
    Ok(())
}

fn by_the_older_call() -> Result<(), Failed> {
    use keelway_sandbox::{Launcher, LauncherConfig, OverlayApi, Stdio};
    let (spec, ..) = read_only()?;
    let mut config = LauncherConfig::new(format!("keelway-test/trees-{}", std::process::id()).parse()?);
    config.overlay = OverlayApi::Legacy;
    let null = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    let stdio = Stdio { stdin: null()?.into(), stdout: null()?.into(), stderr: null()?.into() };
    let exit = Launcher::new(config).spawn(&spec, stdio)?.wait()?;
    assert!(exit.success(), "{exit}");
    Ok(())
}

fn what_is_written() -> Result<(), Failed> {
    let (low, _) = two_layers()?;
    let other = over(vec![low.clone()]);
    let RootFs::Overlay { upper: theirs, .. } = other.clone() else { unreachable!() };
    let mut spec = sh("echo new > /t/made; rm /t/b; ls /t; echo own > /own");
    spec.mounts = vec![mount("/t", MountKind::Layers { root: other, path: "/d".into() })];
    assert_eq!(ok(&spec), "a\nmade\n");
    assert_eq!(tree(&upper(&spec)), ["own"]);
    assert_eq!(tree(&theirs), ["d", "d/b", "d/made"]);
    assert!(low.join("d/b").exists());
    Ok(())
}

/// B01 and B04: a link of the tree leads to the tree's own root.
fn links_end_in_their_tree() -> Result<(), Failed> {
    let (layer, shared) = (fresh(), fresh());
    for dir in [&layer, &shared] {
        symlink("/", dir.join("rootdir"))?;
        symlink("../../../..", dir.join("up"))?;
        symlink("/proc/self/root", dir.join("magic"))?;
        std::fs::write(dir.join("mine"), "")?;
    }
    for path in ["/rootdir", "/up"] {
        let mut spec = sh("ls /t /b; touch /b/exploit");
        let access = Access::ReadWrite;
        spec.mounts = vec![
            mount("/t", of(&[&layer], path)),
            mount("/b", MountKind::Beneath { directory: shared.clone(), path: path.into(), access }),
        ];
        let seen = ok(&spec);
        assert_eq!(seen.matches("mine").count(), 2, "{path}: {seen}");
        std::fs::remove_file(shared.join("exploit"))?;
    }
    for path in ["/magic", "/none"] {
        let mut spec = sh("true");
        spec.mounts = vec![mount("/t", of(&[&layer], path))];
        assert!(refused(&spec).contains(&format!("cannot mount {path:?} at \"/t\"")), "{}", refused(&spec));
        let directory = shared.clone();
        let kind = MountKind::Beneath { directory, path: path.into(), access: Access::ReadOnly };
        spec.mounts = vec![mount("/t", kind)];
        renew(&mut spec);
        assert!(refused(&spec).contains(&format!("cannot mount {path:?} at \"/t\"")));
    }
    Ok(())
}

/// While anybody renames, the kernel cannot follow `..` inside a root, and says that it should be asked again.
fn renames_elsewhere() -> Result<(), Failed> {
    let (layer, elsewhere) = (fresh(), fresh());
    symlink("../../../..", layer.join("up"))?;
    std::fs::write(layer.join("mine"), "")?;
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for name in ["a", "b"] {
            let (at, done) = (elsewhere.join(name), &done);
            scope.spawn(move || {
                let other = at.with_extension("other");
                std::fs::create_dir(&at).unwrap();
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    std::fs::rename(&at, &other).unwrap();
                    std::fs::rename(&other, &at).unwrap();
                }
            });
        }
        // Told to stop however this ends.
        let seen = std::panic::catch_unwind(|| {
            for _ in 0..20 {
                let mut spec = sh("ls /t");
                spec.mounts = vec![mount("/t", of(&[&layer], "/up"))];
                assert_eq!(ok(&spec), "mine\nup\n");
            }
        });
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        seen.map_err(|_| Failed::from("a sandbox did not start while others renamed"))
    })
}

fn a_directory_keeps_its_owners() -> Result<(), Failed> {
    let shared = fresh();
    std::fs::create_dir(shared.join("sub"))?;
    std::fs::write(shared.join("sub/theirs"), "x")?;
    chown(shared.join("sub/theirs"), Some(7), Some(8))?;
    let kind =
        |path: &str, access| MountKind::Beneath { directory: shared.clone(), path: path.into(), access };
    // Two sandboxes, two ranges of ids, one directory.
    for name in ["one", "two"] {
        let mut spec = sh(&format!(
            "stat -c %u:%g /c/theirs; touch /c/{name}; chown 9:9 /c/{name}; touch /r/x 2>/dev/null || echo fixed"
        ));
        spec.mounts =
            vec![mount("/c", kind("/sub", Access::ReadWrite)), mount("/r", kind("/", Access::ReadOnly))];
        assert_eq!(ok(&spec), "7:8\nfixed\n");
        let made = std::fs::metadata(shared.join("sub").join(name))?;
        assert_eq!((made.uid(), made.gid()), (9, 9));
    }
    Ok(())
}

fn a_lock_is_held_to_the_end() -> Result<(), Failed> {
    use keelway_disk::Lock;
    use keelway_sandbox::Stdio;
    use std::os::fd::AsFd;
    let path = fresh().join("lock");
    let lock = Lock::try_take(&path)?.ok_or("it is free")?;
    // It ends when its input does.
    let (read, write) = std::io::pipe()?;
    let null = || std::fs::OpenOptions::new().write(true).open("/dev/null");
    let stdio = Stdio { stdin: read.into(), stdout: null()?.into(), stderr: null()?.into() };
    let mut running = crate::fixture::launcher().spawn_holding(&sh("cat"), stdio, &[lock.as_fd()])?;
    drop(lock);
    assert!(Lock::try_take(&path)?.is_none(), "the supervisor holds it");
    drop(write);
    assert!(running.wait()?.success());
    assert!(Lock::try_take(&path)?.is_some(), "and nobody afterwards");
    Ok(())
}

fn a_file_has_its_owner() -> Result<(), Failed> {
    let mut spec = sh("stat -c '%u:%g %a' /run/s; cat /run/s");
    spec.user = User { uid: 5, gid: 6, groups: vec![] };
    spec.root = over(vec![busybox()]);
    spec.mounts =
        vec![mount("/run/s", MountKind::File { content: b"secret\n".to_vec(), mode: 0o400, owner: (5, 6) })];
    assert_eq!(ok(&spec), "5:6 400\nsecret\n");
    assert_eq!(tree(&upper(&spec)), [""; 0]);
    let mut other = Spec::new(over(vec![busybox()]), vec!["cat".into(), "/run/s".into()], box_name());
    other.mounts = spec.mounts;
    other.user = User { uid: 7, gid: 6, groups: vec![] };
    let (exit, _) = crate::fixture::run(&other);
    assert!(!exit.success(), "another user cannot read it");
    Ok(())
}
