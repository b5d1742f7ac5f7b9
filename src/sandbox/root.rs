//! Builds the root file system in PID 1's own mount namespace and moves into it.
//!
//! Invariants: nothing is resolved through the image but beneath its root and without magic links; a mount
//! goes onto the descriptor that was resolved and looked at, never onto a path. /proc, /sys and /dev must be
//! ordinary directories. Device nodes are the sandbox's own and work nowhere but on the bind mounts of /dev:
//! every other mount, /dev itself included, is nodev. No inode of the host's /dev is in sight of the process,
//! which might chmod it. What masks a path was made before the image was there.

mod foreign;
mod overlay;
mod target;
mod trees;

use crate::error::SetupError;
use crate::ids::IdMap;
use crate::init::terminal::{self, Terminal};
use crate::openat2::openat2;
use crate::proto::Stub;
use crate::spec::{Access, Mount, MountKind, Network, RootFs, Spec, Window};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat, makedev, mkdirat, mknodat, stat};
use nix::unistd::{Gid, Uid, fchdir, fchown, pivot_root, symlinkat, write};
use overlay::Scratch;
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use target::Targets;

pub(crate) use foreign::{Stage, stage};
pub(crate) use overlay::lacks_append;

const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;

/// Name, major and minor number of the nodes in /dev.
const DEVICES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
/// Links in /dev.
const LINKS: [(&str, &str); 5] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];
/// Below /proc: empty for the process.
const MASKED_PROC: [&str; 12] = [
    "acpi",
    "asound",
    "interrupts",
    "kallsyms",
    "kcore",
    "keys",
    "latency_stats",
    "modules",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
];
/// Below /sys: empty for the process.
const MASKED_SYS: [&str; 2] = ["firmware", "devices/virtual/powercap"];
/// Below /proc: read-only.
const READ_ONLY_PROC: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// What is masked and what is read-only, as absolute paths, for a runtime's configuration.
pub(crate) fn protected_paths() -> (Vec<String>, Vec<String>) {
    let below = |base: &'static str, names: &[&str]| -> Vec<String> {
        names.iter().map(|n| format!("{base}/{n}")).collect()
    };
    let mut masked = below("/proc", &MASKED_PROC);
    masked.extend(below("/sys", &MASKED_SYS));
    (masked, below("/proc", &READ_ONLY_PROC))
}

/// Made, or opened on the host, before the image is in sight.
struct Parts {
    devices: Vec<(&'static str, OwnedFd)>,
    null: Cover,
    empty: Cover,
    /// One for each mount of the spec that shows something of the machine, or a file's content.
    views: Vec<Option<OwnedFd>>,
}

/// What lies over many paths. It is mounted on the first one and cloned from there: before Linux 6.15 what is mounted
/// nowhere cannot be cloned.
struct Cover {
    mount: OwnedFd,
    mounted: Cell<bool>,
}

impl Cover {
    fn new(mount: OwnedFd) -> Self {
        Self { mount, mounted: Cell::new(false) }
    }

    fn lay_over(&self, at: &OwnedFd, path: &str) -> Result<(), SetupError> {
        if !self.mounted.replace(true) {
            return attach(&self.mount, at, "a mask", path);
        }
        let copy = sys::open_tree_clone(self.mount.as_fd(), false).map_err(mount_error("a mask", path))?;
        attach(&copy, at, "a mask", path)
    }
}

/// Beyond the spec.
pub(crate) struct How<'a> {
    /// Mount the root by mount(2), as kernels before 6.8 need it.
    pub legacy: bool,
    /// What the ids of its files are on the machine.
    pub ids: IdMap,
    /// The user namespace with that map.
    pub user: BorrowedFd<'a>,
    /// The machine's root is somebody else: device nodes cannot be made, nor the sysfs of the machine's network.
    pub rootless: bool,
    /// What the machine did not allow but the sandbox can do without.
    pub warnings: RefCell<Vec<String>>,
}

impl How<'_> {
    /// Makes a detached mount show the files' ids as the sandbox's.
    fn translate(&self, mount: &OwnedFd, recursive: bool) -> Result<(), Errno> {
        if self.ids.translates() { sys::mount_idmap(mount.as_fd(), self.user, recursive) } else { Ok(()) }
    }
}

/// Builds it and pivots into it. `stubs` gets what was made in the upper directory, also on failure.
///
/// Still with all powers over the machine, but what is made in a file system belongs to the sandbox's root; the overlay
/// remembers its maker, and changes layers as that one.
pub(crate) fn enter(
    spec: &Spec,
    how: &How<'_>,
    stubs: &mut Vec<Stub>,
) -> Result<Option<Terminal>, SetupError> {
    sys::own_files_as(how.ids.base).map_err(step("make files as the sandbox's root"))?;
    let host_root = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(step("open /"))?;
    sys::mount_setattr(host_root.as_fd(), 0, libc::MS_PRIVATE, true)
        .map_err(step("make the mounts private (is / a mount point?)"))?;
    // Before anything of ours is mounted on the machine's root, which may be shown itself.
    let binds = spec.mounts.iter().map(|m| open_bind(m, how)).collect::<Result<Vec<_>, _>>()?;
    let scratch = Scratch::new(host_root.as_fd())?;
    let parts = Parts::open(spec, binds, how, &scratch)?;
    let root = overlay::mount(&spec.root, host_root.as_fd(), scratch, how)?;
    let upper = match &spec.root {
        RootFs::Overlay { upper, .. } => Some(open_host_dir(upper)?),
        RootFs::ReadOnly { .. } | RootFs::Directory { .. } => None,
    };
    let mut targets = Targets::new(root.as_fd(), upper, how.ids, stubs)?;
    proc(&mut targets, &parts)?;
    sys_fs(&mut targets, &parts, how.rootless && spec.network != Network::None)?;
    let terminal = dev(&mut targets, &parts, spec, how.ids)?;
    for (mount, view) in spec.mounts.iter().zip(&parts.views) {
        extra(&mut targets, mount, view.as_ref())?;
    }
    for (mount, view) in spec.mounts.iter().zip(&parts.views) {
        // Only now, since other mounts may lie in it; what was made for them is in memory.
        if let (MountKind::Layers { root: RootFs::ReadOnly { .. }, .. }, Some(tree)) = (&mount.kind, view) {
            sys::mount_setattr(tree.as_fd(), RDONLY, 0, false)
                .map_err(mount_error("a read-only tree", &mount.target))?;
        }
    }
    protect(&root, spec, &parts)?;
    pivot(&root)?;
    if spec.root.is_read_only() {
        sys::mount_setattr(root.as_fd(), RDONLY, 0, false).map_err(step("make the root read-only"))?;
    }
    Ok(terminal)
}

/// Goes to a directory beneath the root (which is `/` by now) and makes sure of it (CVE-2024-21626).
pub(crate) fn change_directory(path: &Path) -> Result<(), SetupError> {
    let refused = |why: &str| SetupError::Cwd { path: path.to_owned(), why: why.to_owned() };
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let root = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(step("open the root"))?;
    let directory = openat2(&root, path, how).map_err(|e| match e {
        Errno::ENOENT => refused("it does not exist in the image"),
        Errno::ENOTDIR => refused("it is not a directory"),
        Errno::ELOOP => refused("it leads through a descriptor of /proc or too many links"),
        other => refused(other.desc()),
    })?;
    fchdir(&directory).map_err(|e| refused(e.desc()))?;
    match nix::unistd::getcwd() {
        Ok(cwd) if cwd.is_absolute() => Ok(()),
        _ => Err(refused("it is outside the root")),
    }
}

fn step(action: impl Into<String>) -> impl FnOnce(Errno) -> SetupError {
    let action = action.into();
    move |errno| SetupError::Step { action, errno: errno.into() }
}

fn mount_error(what: &str, target: impl Into<PathBuf>) -> impl FnOnce(Errno) -> SetupError {
    let (what, target) = (what.to_owned(), target.into());
    move |errno| SetupError::Mount { what, target, errno: errno.into(), hint: String::new() }
}

fn id_map_error(path: &Path) -> impl FnOnce(Errno) -> SetupError {
    let path = path.to_owned();
    move |errno| SetupError::IdMap { path, errno: errno.into() }
}

fn open_host_dir(path: &Path) -> Result<OwnedFd, SetupError> {
    open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(step(format!("open the directory {path:?}")))
}

/// A new file system with text options, mounted nowhere yet.
fn new_fs(kind: &CStr, options: &[(&CStr, String)], attributes: u64) -> Result<OwnedFd, Errno> {
    let fs = sys::fsopen(kind)?;
    for (key, value) in options {
        let value = CString::new(value.as_str()).map_err(|_| Errno::EINVAL)?;
        sys::fsconfig_string(fs.as_fd(), key, &value)?;
    }
    sys::fs_mount(fs.as_fd(), attributes)
}

fn tmpfs(size: u64, mode: u32, attributes: u64) -> Result<OwnedFd, Errno> {
    new_fs(c"tmpfs", &[(c"size", size.to_string()), (c"mode", format!("{mode:o}"))], attributes)
}

impl Parts {
    fn open(
        spec: &Spec,
        binds: Vec<Option<OwnedFd>>,
        how: &How<'_>,
        scratch: &Scratch,
    ) -> Result<Self, SetupError> {
        let nodes = if how.rootless { host_nodes()? } else { device_nodes(scratch)? };
        let devices = DEVICES
            .iter()
            .map(|(name, ..)| Ok((*name, bind_of(&nodes, name).map_err(mount_error("a device", *name))?)))
            .collect::<Result<Vec<_>, SetupError>>()?;
        let null = bind_of(&nodes, "null").map_err(mount_error("a null device", "/proc"))?;
        sys::mount_setattr(null.as_fd(), RDONLY | NOSUID | NOEXEC, 0, false)
            .map_err(mount_error("a null device, read-only", "/proc"))?;
        let empty = tmpfs(4096, 0o555, RDONLY | NOSUID | NODEV | NOEXEC)
            .map_err(mount_error("an empty directory", "/proc"))?;
        let views = spec.mounts.iter().zip(binds).enumerate();
        let view = |(n, (mount, bind)): (usize, (&Mount, Option<OwnedFd>))| match bind {
            Some(bind) => Ok(Some(bind)),
            None => open_view(n, mount, how, scratch),
        };
        let views = views.map(view).collect::<Result<_, _>>()?;
        Ok(Self { devices, null: Cover::new(null), empty: Cover::new(empty), views })
    }
}

/// A tmpfs of this sandbox alone with the nodes of [`DEVICES`]. It is mounted nowhere when the process starts: what that
/// reaches are binds of single nodes.
fn device_nodes(scratch: &Scratch) -> Result<OwnedFd, SetupError> {
    let fs = tmpfs(4096, 0o755, NOSUID | NOEXEC).map_err(mount_error("tmpfs for devices", "/dev"))?;
    scratch.hold("devices", &fs)?;
    for (name, major, minor) in DEVICES {
        let mode = Mode::from_bits_truncate(0o666);
        mknodat(&fs, name, SFlag::S_IFCHR, mode, makedev(major, minor))
            // The umask took part of the mode.
            .and_then(|()| fchmodat(&fs, name, mode, FchmodatFlags::FollowSymlink))
            .map_err(step(format!("make the device {name} ({major}:{minor})")))?;
    }
    Ok(fs)
}

/// Where a user may make no nodes, the machine's serve: that user may not chmod them either. They are what they seem,
/// or nothing is used.
fn host_nodes() -> Result<OwnedFd, SetupError> {
    let dev = open_host_dir(Path::new("/dev"))?;
    for (name, major, minor) in DEVICES {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let node = openat(&dev, name, flags, Mode::empty()).map_err(step(format!("open /dev/{name}")))?;
        let stat = fstat(&node).map_err(step(format!("look at /dev/{name}")))?;
        let is_device = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR;
        if !is_device || stat.st_rdev != makedev(major, minor) {
            return Err(
                step(format!("use this machine's /dev/{name}, which is not device {major}:{minor}"))(
                    Errno::ENXIO,
                ),
            );
        }
    }
    Ok(dev)
}

/// A detached view of a tree of the machine.
fn view_of(path: &CStr, flags: u64) -> Result<OwnedFd, Errno> {
    let at = open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let tree = sys::open_tree_clone(at.as_fd(), true)?;
    sys::mount_setattr(tree.as_fd(), flags, 0, true)?;
    Ok(tree)
}

/// A detached bind of one file of a file system of ours.
fn bind_of(fs: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(fs, name, flags, Mode::empty())?;
    sys::open_tree_clone(file.as_fd(), false)
}

fn is_dir(mode: libc::mode_t) -> bool {
    SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

/// What the `n`th mount of the spec shows, mounted nowhere yet.
fn open_view(
    n: usize,
    mount: &Mount,
    how: &How<'_>,
    scratch: &Scratch,
) -> Result<Option<OwnedFd>, SetupError> {
    match &mount.kind {
        MountKind::File { content, mode, owner } => {
            let owner = (how.ids.base + owner.0, how.ids.base + owner.1);
            let name = format!("file-{n}");
            content_file(scratch, &name, content, *mode, owner, &mount.target).map(Some)
        }
        MountKind::Layers { root, path } => {
            let scratch = scratch.part(&format!("tree-{n}"))?;
            trees::of_layers(root, path, scratch, how, &mount.target).map(Some)
        }
        MountKind::Beneath { directory, path, access } => {
            trees::beneath(directory, path, *access, how, &mount.target).map(Some)
        }
        MountKind::Tmpfs { .. } | MountKind::Bind { .. } => Ok(None),
    }
}

/// What of the machine a mount shows, mounted nowhere yet.
fn open_bind(mount: &Mount, how: &How<'_>) -> Result<Option<OwnedFd>, SetupError> {
    let MountKind::Bind { source, access, below } = &mount.kind else { return Ok(None) };
    let error = |errno: Errno| SetupError::BindSource { path: source.clone(), errno: errno.into() };
    let at = open(source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(error)?;
    let tree = sys::open_tree_clone(at.as_fd(), *below).map_err(error)?;
    let attributes = match access {
        Access::ReadOnly => RDONLY | NOSUID | NODEV,
        Access::ReadWrite => NOSUID | NODEV,
    };
    sys::mount_setattr(tree.as_fd(), attributes, 0, true).map_err(error)?;
    if let Err(errno) = how.translate(&tree, true) {
        // Its files then belong to nobody in there. The sandbox keeps ids of its own, which matters more.
        how.warnings.borrow_mut().push(format!(
            "everything in {} belongs to nobody (65534) in the sandbox: its file system cannot translate user ids ({errno})",
            source.display()
        ));
    }
    Ok(Some(tree))
}

fn attach(mount: &OwnedFd, target: &OwnedFd, what: &str, path: impl Into<PathBuf>) -> Result<(), SetupError> {
    sys::move_mount(mount.as_fd(), target.as_fd()).map_err(mount_error(what, path))
}

/// A path in a file system of ours, without any link; `None` where the kernel does not have it.
fn inside(mount: &OwnedFd, path: &str) -> Result<Option<OwnedFd>, SetupError> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(mount, path, how) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::ENOENT | Errno::EACCES) => Ok(None),
        Err(e) => Err(step(format!("look at {path:?} to protect it"))(e)),
    }
}

fn mask(mount: &OwnedFd, paths: &[&str], parts: &Parts) -> Result<(), SetupError> {
    for path in paths {
        let Some(at) = inside(mount, path)? else { continue };
        let stat = fstat(&at).map_err(step(format!("look at {path:?} to mask it")))?;
        let cover = if is_dir(stat.st_mode) { &parts.empty } else { &parts.null };
        cover.lay_over(&at, path)?;
    }
    Ok(())
}

/// What the spec protects beyond what everybody is protected from.
fn protect(root: &OwnedFd, spec: &Spec, parts: &Parts) -> Result<(), SetupError> {
    let all = spec.masked.iter().map(|p| (p, true)).chain(spec.read_only.iter().map(|p| (p, false)));
    for (path, masked) in all {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let at = match openat2(root, path, how) {
            Ok(at) => at,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => continue,
            Err(e) => return Err(step(format!("look at {path:?} to protect it"))(e)),
        };
        let stat = fstat(&at).map_err(step(format!("look at {path:?} to protect it")))?;
        if masked {
            let cover = if is_dir(stat.st_mode) { &parts.empty } else { &parts.null };
            cover.lay_over(&at, &path.to_string_lossy())?;
            continue;
        }
        let copy = sys::open_tree_clone(at.as_fd(), true).map_err(mount_error("a protection", path))?;
        sys::mount_setattr(copy.as_fd(), RDONLY, 0, true).map_err(mount_error("a protection", path))?;
        attach(&copy, &at, "a protection", path)?;
    }
    Ok(())
}

fn proc(targets: &mut Targets<'_>, parts: &Parts) -> Result<(), SetupError> {
    let at = targets.ordinary_directory("proc")?;
    let mount = new_fs(c"proc", &[], NOSUID | NODEV | NOEXEC).map_err(mount_error("proc", "/proc"))?;
    attach(&mount, &at, "proc", "/proc")?;
    mask(&mount, &MASKED_PROC, parts)?;
    for path in READ_ONLY_PROC {
        let Some(at) = inside(&mount, path)? else { continue };
        let copy = sys::open_tree_clone(at.as_fd(), false).map_err(mount_error("a read-only view", path))?;
        sys::mount_setattr(copy.as_fd(), RDONLY | NOSUID | NODEV | NOEXEC, 0, false)
            .map_err(mount_error("a read-only view", path))?;
        attach(&copy, &at, "a read-only view", path)?;
    }
    Ok(())
}

fn sys_fs(targets: &mut Targets<'_>, parts: &Parts, of_the_machine: bool) -> Result<(), SetupError> {
    let at = targets.ordinary_directory("sys")?;
    let flags = RDONLY | NOSUID | NODEV | NOEXEC;
    let mount = if of_the_machine { view_of(c"/sys", flags) } else { new_fs(c"sysfs", &[], flags) };
    let mount = mount.map_err(mount_error("sysfs", "/sys"))?;
    attach(&mount, &at, "sysfs", "/sys")?;
    mask(&mount, &MASKED_SYS, parts)
}

fn dev(
    targets: &mut Targets<'_>,
    parts: &Parts,
    spec: &Spec,
    ids: IdMap,
) -> Result<Option<Terminal>, SetupError> {
    let at = targets.ordinary_directory("dev")?;
    let dev = tmpfs(64 << 10, 0o755, NOSUID | NODEV | NOEXEC).map_err(mount_error("tmpfs", "/dev"))?;
    attach(&dev, &at, "tmpfs", "/dev")?;
    let failed = |name: &str| step(format!("make /dev/{name}"));
    for (name, tree) in &parts.devices {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_WRONLY;
        let node = openat(&dev, *name, flags, Mode::from_bits_truncate(0o666)).map_err(failed(name))?;
        attach(tree, &node, "a device", format!("/dev/{name}"))?;
    }
    for (name, to) in LINKS {
        symlinkat(to, &dev, name).map_err(failed(name))?;
    }
    let tty = ids.base + 5;
    let mut devpts = vec![(c"ptmxmode", "0666".to_owned()), (c"mode", "0620".to_owned())];
    if ids.count > 5 {
        devpts.push((c"gid", tty.to_string()));
    }
    let pts = new_fs(c"devpts", &devpts, NOSUID | NOEXEC).map_err(mount_error("devpts", "/dev/pts"))?;
    let shm = tmpfs(spec.shm_size().0, 0o1777, NOSUID | NODEV | NOEXEC)
        .map_err(mount_error("tmpfs", "/dev/shm"))?;
    let queues =
        new_fs(c"mqueue", &[], NOSUID | NODEV | NOEXEC).map_err(mount_error("mqueue", "/dev/mqueue"))?;
    for (name, mount) in [("pts", pts), ("shm", shm), ("mqueue", queues)] {
        mkdirat(&dev, name, Mode::from_bits_truncate(0o755)).map_err(failed(name))?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let at = openat(&dev, name, flags, Mode::empty()).map_err(failed(name))?;
        attach(&mount, &at, name, format!("/dev/{name}"))?;
    }
    spec.terminal.map(|window| console(&dev, window, spec, ids)).transpose()
}

/// The process's terminal, which is /dev/console, too.
fn console(dev: &OwnedFd, window: Window, spec: &Spec, ids: IdMap) -> Result<Terminal, SetupError> {
    let pts = inside(dev, "pts")?.ok_or_else(|| step("open /dev/pts")(Errno::ENOENT))?;
    let terminal = terminal::open_in(pts.as_fd(), window, &spec.user, ids)?;
    // The first terminal of a devpts is number 0.
    let tree = bind_of(&pts, "0").map_err(mount_error("the terminal", "/dev/console"))?;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_WRONLY;
    let node =
        openat(dev, "console", flags, Mode::from_bits_truncate(0o600)).map_err(step("make /dev/console"))?;
    attach(&tree, &node, "the terminal", "/dev/console")?;
    Ok(terminal)
}

fn extra(targets: &mut Targets<'_>, mount: &Mount, view: Option<&OwnedFd>) -> Result<(), SetupError> {
    let target = &mount.target;
    match (&mount.kind, view) {
        (MountKind::Bind { .. } | MountKind::Layers { .. } | MountKind::Beneath { .. }, Some(tree)) => {
            let stat = fstat(tree).map_err(step(format!("look at what {target:?} shall be")))?;
            let at = targets.resolve(target, is_dir(stat.st_mode))?;
            attach(tree, &at, "a bind mount", target)
        }
        (MountKind::Tmpfs { size, mode }, _) => {
            let at = targets.resolve(target, true)?;
            let fs = tmpfs(size.0, *mode & 0o7777, NOSUID | NODEV).map_err(mount_error("tmpfs", target))?;
            attach(&fs, &at, "tmpfs", target)
        }
        (MountKind::File { .. }, Some(file)) => {
            let at = targets.resolve(target, false)?;
            attach(file, &at, "a file", target)
        }
        // All were opened, or we would not be here.
        (
            MountKind::Bind { .. }
            | MountKind::File { .. }
            | MountKind::Layers { .. }
            | MountKind::Beneath { .. },
            None,
        ) => Err(mount_error("a bind mount", target)(Errno::EINVAL)),
    }
}

/// A read-only bind of one file on a tmpfs of its own, which is mounted nowhere when the process starts.
fn content_file(
    scratch: &Scratch,
    name: &str,
    content: &[u8],
    mode: u32,
    owner: (u32, u32),
    target: &Path,
) -> Result<OwnedFd, SetupError> {
    let room = (content.len() as u64).next_multiple_of(4096) + 4096;
    let fs = tmpfs(room, 0o755, NOSUID | NODEV).map_err(mount_error("a file", target))?;
    scratch.hold(name, &fs)?;
    let filled = || -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_WRONLY;
        let file = openat(&fs, "file", flags, Mode::from_bits_truncate(mode & 0o777))?;
        fchown(&file, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))?;
        nix::sys::stat::fchmod(&file, Mode::from_bits_truncate(mode & 0o777))?;
        let mut rest = content;
        while !rest.is_empty() {
            rest = &rest[write(&file, rest)?..];
        }
        drop(file);
        let tree = bind_of(&fs, "file")?;
        sys::mount_setattr(tree.as_fd(), RDONLY | NOSUID | NODEV, 0, false)?;
        Ok(tree)
    };
    filled().map_err(mount_error("a file", target))
}

fn pivot(root: &OwnedFd) -> Result<(), SetupError> {
    fchdir(root).map_err(step("enter the root"))?;
    // The new root on the old one's place, the old one on top of it for a moment.
    pivot_root(".", ".").map_err(step("pivot into the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(step("detach the machine's root"))?;
    nix::unistd::chdir("/").map_err(step("enter the new root"))?;
    // `..` of the root leads to whatever still lies over it.
    let (inside, above) = (fstat(root), stat("/.."));
    match (inside, above) {
        (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino) => Ok(()),
        _ => Err(step("leave the machine's root: something still lies over the sandbox's")(Errno::EXDEV)),
    }
}

/// Removes from the upper directory what init made there; called when every process is dead.
pub(crate) fn remove_stubs(upper: &Path, stubs: &[Stub]) {
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC);
    if let Ok(upper) = openat2(AT_FDCWD, upper, how) {
        for stub in stubs.iter().rev() {
            target::remove_stub(&upper, stub);
        }
    }
}
