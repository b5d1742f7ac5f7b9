//! The root file system for another runtime: mounted in a mount namespace of its own, beside what its bundle needs.
//!
//! Everything lies on one small tmpfs that is mounted nowhere else, so that nothing of it is left when the
//! namespace ends, by whatever death. Mount points are made here, beneath the root and by descriptor as for our own
//! sandbox, and remembered: the runtime finds them, and they are removed afterwards.

use super::{How, NODEV, NOEXEC, NOSUID, RDONLY, attach, is_dir, mount_error, new_fs, overlay, step, tmpfs};
use crate::error::{ExecError, SetupError};
use crate::openat2::openat2;
use crate::proto::Stub;
use crate::root::target::Targets;
use crate::spec::{DEFAULT_PATH, MountKind, Network, RootFs, Spec};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, fchmod, mkdirat, stat};
use nix::unistd::{Gid, Uid, fchown, write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Where the tmpfs is mounted. What the machine has there is no concern of a runtime.
const PLACE: &str = "/run/keelway";
/// Room for a configuration and the contents of files, in bytes.
const ROOM: u64 = 256 << 20;

/// What the runtime is given, by paths in this mount namespace.
pub(crate) struct Stage {
    /// The bundle: `config.json` is written here.
    pub bundle: PathBuf,
    /// The root, mounted.
    pub rootfs: PathBuf,
    /// The runtime's own state, and its log.
    pub state: PathBuf,
    /// The spec's files and its tmpfs, in the order of its mounts: runtimes differ in what they make of a mode.
    pub made: Vec<PathBuf>,
    /// A read-only sysfs of a network namespace that is not the sandbox's own.
    pub sysfs: Option<PathBuf>,
    /// The network namespace to join.
    pub network: Option<PathBuf>,
}

/// Builds it in the mount namespace of the caller, which is PID 1 of its pid namespace.
pub(crate) fn stage(
    spec: &Spec,
    how: &How<'_>,
    network: Option<&OwnedFd>,
    stubs: &mut Vec<Stub>,
) -> Result<Stage, SetupError> {
    let host_root = directory(Path::new("/"))?;
    sys::mount_setattr(host_root.as_fd(), 0, libc::MS_PRIVATE, true)
        .map_err(step("make the mounts private (is / a mount point?)"))?;
    // The runtime looks its container up by process ids, which are those of this pid namespace.
    let proc = new_fs(c"proc", &[], NOSUID | NODEV | NOEXEC).map_err(mount_error("proc", "/proc"))?;
    attach(&proc, &directory(Path::new("/proc"))?, "proc", "/proc")?;
    std::fs::create_dir_all(PLACE)
        .map_err(|e| SetupError::Step { action: format!("make {PLACE}"), errno: e.into() })?;
    // Its root must be searchable for the container's root, which is nobody here.
    let fs = tmpfs(ROOM, 0o711, NOSUID | NODEV).map_err(mount_error("tmpfs", PLACE))?;
    attach(&fs, &directory(Path::new(PLACE))?, "tmpfs", PLACE)?;
    for (name, mode) in [("rootfs", 0o711), ("state", 0o700), ("made", 0o711), ("sys", 0o755)] {
        mkdirat(&fs, name, Mode::from_bits_truncate(mode)).map_err(step("make a bundle"))?;
    }
    let at = |name: &str| Path::new(PLACE).join(name);
    sys::own_files_as(how.ids.base).map_err(step("make files as the sandbox's root"))?;
    let root = overlay::detached(&spec.root, overlay::Scratch::new(host_root.as_fd())?, how)?;
    attach(&root, &directory(&at("rootfs"))?, "the root", at("rootfs"))?;
    mount_points(spec, how, &root, stubs)?;
    sys::own_files_as(0).map_err(step("make files as root"))?;
    check_directory(spec, &root)?;
    check_program(spec, &root)?;
    Ok(Stage {
        made: made(spec, how, &fs)?,
        sysfs: sysfs(spec, network)?.map(|mount| attach_sysfs(&mount, at("sys"))).transpose()?,
        network: network.map(|n| bind_network(n, &fs, at("net"))).transpose()?,
        bundle: at(""),
        rootfs: at("rootfs"),
        state: at("state"),
    })
}

fn directory(path: &Path) -> Result<OwnedFd, SetupError> {
    open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(step(format!("open the directory {path:?}")))
}

/// Those that the root lacks are made, as our own sandbox makes them.
fn mount_points(spec: &Spec, how: &How<'_>, root: &OwnedFd, stubs: &mut Vec<Stub>) -> Result<(), SetupError> {
    let upper = match &spec.root {
        RootFs::Overlay { upper, .. } => Some(directory(upper)?),
        RootFs::ReadOnly { .. } | RootFs::Directory { .. } => None,
    };
    let mut targets = Targets::new(root.as_fd(), upper, how.ids, stubs)?;
    for name in ["proc", "sys", "dev"] {
        targets.ordinary_directory(name)?;
    }
    for mount in &spec.mounts {
        let is_directory = match &mount.kind {
            MountKind::Bind { source, .. } => is_dir(
                stat(source)
                    .map_err(|e| SetupError::BindSource { path: source.clone(), errno: e.into() })?
                    .st_mode,
            ),
            MountKind::Tmpfs { .. } => true,
            MountKind::File { .. } => false,
            MountKind::Layers { .. } | MountKind::Beneath { .. } => return Err(not_here(&mount.target)),
        };
        targets.resolve(&mount.target, is_directory)?;
    }
    Ok(())
}

fn in_root(root: &OwnedFd, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | flags)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how)
}

/// Is it on a mount that is not there yet?
fn below_a_mount(spec: &Spec, path: &Path) -> bool {
    spec.mounts.iter().map(|m| m.target.as_path()).any(|target| path.starts_with(target))
        || ["/proc", "/sys", "/dev"].iter().any(|target| path.starts_with(target))
}

/// A runtime makes a working directory that is missing; ours does not, and neither shall this one.
fn check_directory(spec: &Spec, root: &OwnedFd) -> Result<(), SetupError> {
    let refused = |why: &str| SetupError::Cwd { path: spec.cwd.clone(), why: why.to_owned() };
    match in_root(root, &spec.cwd, OFlag::O_DIRECTORY) {
        Ok(_) => Ok(()),
        Err(_) if below_a_mount(spec, &spec.cwd) => Ok(()),
        Err(Errno::ENOENT) => Err(refused("it does not exist in the image")),
        Err(Errno::ENOTDIR) => Err(refused("it is not a directory")),
        Err(e) => Err(refused(e.desc())),
    }
}

/// A program that is nowhere is the image's fault; what a runtime says of it differs from one to the other.
fn check_program(spec: &Spec, root: &OwnedFd) -> Result<(), SetupError> {
    let Some(program) = spec.argv.first() else { return Ok(()) };
    let path = spec.env.iter().rev().find(|(k, _)| k == "PATH").map_or(DEFAULT_PATH, |(_, v)| v.as_str());
    let (places, searched): (Vec<PathBuf>, String) = if program.contains('/') {
        (vec![spec.cwd.join(program)], String::new())
    } else {
        let places = path.split(':').map(|d| spec.cwd.join(d).join(program)).collect();
        (places, format!(" (searched PATH {path})"))
    };
    let found = |place: &PathBuf| {
        below_a_mount(spec, place)
            || !matches!(in_root(root, place, OFlag::empty()), Err(Errno::ENOENT | Errno::ENOTDIR))
    };
    if places.iter().any(found) {
        return Ok(());
    }
    Err(SetupError::Exec(ExecError::NotFound { program: program.clone(), searched }))
}

/// Makes what the spec does not have from the machine. It belongs to the sandbox's root.
fn made(spec: &Spec, how: &How<'_>, fs: &OwnedFd) -> Result<Vec<PathBuf>, SetupError> {
    let mut paths = Vec::new();
    for mount in &spec.mounts {
        let name = format!("made/{}", paths.len());
        let path = Path::new(PLACE).join(&name);
        match &mount.kind {
            MountKind::Bind { .. } => continue,
            MountKind::File { content, mode, owner } => {
                let owner = (how.ids.base + owner.0, how.ids.base + owner.1);
                file(fs, &name, content, *mode, owner).map_err(step("write a file of the sandbox"))?;
            }
            MountKind::Layers { .. } | MountKind::Beneath { .. } => return Err(not_here(&mount.target)),
            MountKind::Tmpfs { size, mode } => {
                mkdirat(fs, name.as_str(), Mode::from_bits_truncate(0o711)).map_err(step("make a bundle"))?;
                sys::own_files_as(how.ids.base).map_err(step("make files as the sandbox's root"))?;
                let tmpfs = tmpfs(size.0, *mode & 0o7777, NOSUID | NODEV);
                sys::own_files_as(0).map_err(step("make files as root"))?;
                let tmpfs = tmpfs.map_err(mount_error("tmpfs", &mount.target))?;
                attach(&tmpfs, &directory(&path)?, "tmpfs", &mount.target)?;
            }
        }
        paths.push(path);
    }
    Ok(paths)
}

/// For what a spec that names a runtime cannot have: it is checked long before.
fn not_here(target: &Path) -> SetupError {
    mount_error("a part of another tree for another runtime", target)(Errno::ENOTSUP)
}

fn file(fs: &OwnedFd, name: &str, content: &[u8], mode: u32, owner: (u32, u32)) -> Result<(), Errno> {
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_WRONLY;
    let mode = Mode::from_bits_truncate(mode & 0o777);
    let file = openat(fs, name, flags, mode)?;
    let mut rest = content;
    while !rest.is_empty() {
        rest = &rest[write(&file, rest)?..];
    }
    fchown(&file, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))?;
    fchmod(&file, mode)
}

/// The sysfs of a network that does not belong to the sandbox's user namespace: whoever is root there cannot mount it.
fn sysfs(spec: &Spec, network: Option<&OwnedFd>) -> Result<Option<OwnedFd>, SetupError> {
    if spec.network == Network::None {
        return Ok(None);
    }
    let own = open("/proc/self/ns/net", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(step("open the network namespace"))?;
    let enter =
        |to: &OwnedFd| setns(to, CloneFlags::CLONE_NEWNET).map_err(step("join the network namespace"));
    if let Some(network) = network {
        enter(network)?;
    }
    let mount = new_fs(c"sysfs", &[], RDONLY | NOSUID | NODEV | NOEXEC).map_err(mount_error("sysfs", "/sys"));
    enter(&own)?;
    mount.map(Some)
}

fn attach_sysfs(mount: &OwnedFd, path: PathBuf) -> Result<PathBuf, SetupError> {
    attach(mount, &directory(&path)?, "sysfs", &path)?;
    Ok(path)
}

/// The namespace by a name of ours: what named it may be a process, whose number is another one here.
fn bind_network(network: &OwnedFd, fs: &OwnedFd, path: PathBuf) -> Result<PathBuf, SetupError> {
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
    let at = openat(fs, "net", flags, Mode::from_bits_truncate(0o444)).map_err(step("make a bundle"))?;
    let name =
        sys::open_tree_clone(network.as_fd(), false).map_err(mount_error("a network namespace", &path))?;
    attach(&name, &at, "a network namespace", &path)?;
    Ok(path)
}
