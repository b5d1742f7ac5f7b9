//! The overlay mount that the root is.
//!
//! Layers go to the kernel one by one (`lowerdir+`), so there is neither a 4 KB bound on all options nor
//! anything to escape. Kernels before 6.8 lack that; they get mount(2) with descriptor paths instead.
//! metacopy and redirect_dir stay off, so that an upper directory is a whole layer; `volatile`, because an
//! upper directory that was not frozen is thrown away.

use super::{How, NODEV, id_map_error, mount_error, open_host_dir, step, tmpfs};
use crate::error::SetupError;
use crate::spec::RootFs;
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::stat::{Mode, mkdirat};
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Where descriptors have paths.
const DESCRIPTORS: &str = "/proc/self/fd";
/// mount(2) takes a page of options.
const OPTION_PAGE: usize = 4096;
/// fsconfig(2) takes texts of less than this.
const VALUE_LIMIT: usize = 256;

/// A directory for the overlay: the path that the kernel is told, and the one that people know.
struct Source {
    path: PathBuf,
    shown: PathBuf,
    /// What `path` leads through.
    _mount: Option<OwnedFd>,
}

/// Sources of one overlay.
struct Sources {
    /// Lowest first.
    lowers: Vec<Source>,
    upper: Source,
    work: Source,
}

/// A small file system of this sandbox, mounted over the machine's `/` (which absolute paths do not notice): places
/// for what the overlay needs beside the directories of the spec.
///
/// What stands on it is mounted, so it can be cloned: before Linux 6.15 what is mounted nowhere cannot be.
pub(super) struct Scratch(OwnedFd);

impl Scratch {
    pub(super) fn new(host_root: BorrowedFd<'_>) -> Result<Self, SetupError> {
        let fs = tmpfs(4 << 20, 0o700, NODEV).map_err(mount_error("tmpfs", "/"))?;
        sys::move_mount(fs.as_fd(), host_root).map_err(mount_error("tmpfs", "/"))?;
        Ok(Self(fs))
    }

    /// A folder of it, for an overlay beside the root. It is detached with the whole.
    pub(super) fn part(&self, name: &str) -> Result<Self, SetupError> {
        self.make(name).map(Self)
    }

    fn make(&self, name: &str) -> Result<OwnedFd, SetupError> {
        mkdirat(&self.0, name, Mode::from_bits_truncate(0o755)).map_err(step("make scratch directories"))?;
        openat(&self.0, name, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(step("open a scratch directory"))
    }

    fn source(&self, name: &str) -> Result<Source, SetupError> {
        let directory = self.make(name)?;
        let path = by_descriptor(&directory, None);
        Ok(Source { shown: path.clone(), path, _mount: Some(directory) })
    }

    /// Mounts a file system where it can be cloned from, until the scratch directories are detached.
    pub(super) fn hold(&self, name: &str, fs: &OwnedFd) -> Result<(), SetupError> {
        sys::move_mount(fs.as_fd(), self.make(name)?.as_fd()).map_err(mount_error("a scratch directory", "/"))
    }

    fn detach(self) -> Result<(), SetupError> {
        umount2(&by_descriptor(&self.0, None), MntFlags::MNT_DETACH)
            .map_err(step("detach scratch directories"))
    }

    /// A translated view of a directory of the machine. The kernel follows a path into it only where it is mounted
    /// somewhere in this namespace.
    fn view(&self, n: usize, directory: &Path, how: &How<'_>) -> Result<OwnedFd, SetupError> {
        let at = open_host_dir(directory)?;
        let tree = sys::open_tree_clone(at.as_fd(), false)
            .map_err(step(format!("make a view of the directory {directory:?}")))?;
        how.translate(&tree, false).map_err(id_map_error(directory))?;
        sys::move_mount(tree.as_fd(), self.make(&n.to_string())?.as_fd())
            .map_err(mount_error("a view of a layer", directory))?;
        Ok(tree)
    }
}

fn by_descriptor(fd: &OwnedFd, name: Option<&OsStr>) -> PathBuf {
    let base = Path::new(DESCRIPTORS).join(fd.as_raw_fd().to_string());
    name.map_or(base.clone(), |name| base.join(name))
}

impl Sources {
    fn new(root: &RootFs, scratch: &Scratch, how: &How<'_>) -> Result<Self, SetupError> {
        let view = |n: usize, directory: &Path| -> Result<Source, SetupError> {
            let shown = directory.to_owned();
            if !how.ids.translates() {
                return Ok(Source { path: shown.clone(), shown, _mount: None });
            }
            let mount = scratch.view(n, directory, how)?;
            Ok(Source { path: by_descriptor(&mount, None), shown, _mount: Some(mount) })
        };
        let lowers = match root {
            RootFs::Overlay { lowers, .. } | RootFs::ReadOnly { lowers } => lowers,
            RootFs::Directory { .. } => &Vec::new(),
        };
        let mut lowers = lowers.iter().zip(1..).map(|(l, n)| view(n, l)).collect::<Result<Vec<_>, _>>()?;
        if lowers.is_empty() {
            // From scratch: overlayfs wants a lower layer, so it gets an empty one.
            lowers.push(scratch.source("empty")?);
        }
        let (upper, work) = match root {
            // One view for both: overlayfs wants them in one mount.
            RootFs::Overlay { upper, work, .. } if how.ids.translates() => {
                let parent = upper.parent().unwrap_or(Path::new("/"));
                let mount = scratch.view(0, parent, how)?;
                let of = |path: &Path| by_descriptor(&mount, path.file_name());
                let (u, w) = (of(upper), of(work));
                let upper = Source { path: u, shown: upper.clone(), _mount: None };
                (upper, Source { path: w, shown: work.clone(), _mount: Some(mount) })
            }
            RootFs::Overlay { upper, work, .. } => {
                let plain = |p: &PathBuf| Source { path: p.clone(), shown: p.clone(), _mount: None };
                (plain(upper), plain(work))
            }
            // Writable until the mount points are made; what is made is in memory and goes with it.
            RootFs::ReadOnly { .. } | RootFs::Directory { .. } => {
                (scratch.source("upper")?, scratch.source("work")?)
            }
        };
        Ok(Self { lowers, upper, work })
    }
}

/// Mounts the root over the machine's `/` and returns it.
pub(super) fn mount(
    root: &RootFs,
    host_root: BorrowedFd<'_>,
    scratch: Scratch,
    how: &How<'_>,
) -> Result<OwnedFd, SetupError> {
    let mount = detached(root, scratch, how)?;
    sys::move_mount(mount.as_fd(), host_root).map_err(mount_error("overlayfs", "/"))?;
    Ok(mount)
}

/// The root, mounted nowhere yet; the scratch directories are gone.
pub(super) fn detached(root: &RootFs, scratch: Scratch, how: &How<'_>) -> Result<OwnedFd, SetupError> {
    if let RootFs::Directory { path, .. } = root {
        let at = open_host_dir(path)?;
        let tree = sys::open_tree_clone(at.as_fd(), true)
            .map_err(step(format!("make a view of the directory {path:?}")))?;
        sys::mount_setattr(tree.as_fd(), NODEV, 0, true).map_err(mount_error("the root", "/"))?;
        how.translate(&tree, true).map_err(id_map_error(path))?;
        scratch.detach()?;
        return Ok(tree);
    }
    let mount = on(root, &scratch, how)?;
    // The overlay holds views of its own. Nothing but the root may lie over the machine's: pivoting takes off one.
    scratch.detach()?;
    Ok(mount)
}

/// A root file system of layers, mounted nowhere yet.
pub(super) fn on(root: &RootFs, scratch: &Scratch, how: &How<'_>) -> Result<OwnedFd, SetupError> {
    let sources = Sources::new(root, scratch, how)?;
    if how.legacy { by_mount2(&sources, scratch, how.rootless) } else { by_fsconfig(&sources, how.rootless) }
}

/// Does this kernel's overlayfs lack `lowerdir+`? Before 6.5 it takes any option, and complains in the machine's log when
/// it is mounted; so it is asked for one that nobody has. Nothing is mounted. Where it cannot be asked the mount says why.
pub(crate) fn lacks_append() -> bool {
    let takes = |option| -> Result<bool, Errno> {
        let fs = sys::fsopen(c"overlay")?;
        Ok(sys::fsconfig_string(fs.as_fd(), option, c"/").is_ok())
    };
    takes(c"lowerdir+") == Ok(false) || takes(c"keelway-asks") == Ok(true)
}

/// A detached mount.
fn by_fsconfig(sources: &Sources, rootless: bool) -> Result<OwnedFd, SetupError> {
    let fs = sys::fsopen(c"overlay").map_err(mount_error("overlayfs", "/"))?;
    let failed = |source: &Source, errno: Errno| SetupError::Mount {
        what: "overlayfs".into(),
        target: "/".into(),
        errno: errno.into(),
        hint: format!(", with {:?}{}", source.shown, messages(&fs)),
    };
    let set = |key, source: &Source| set_path(&fs, key, &source.path).map_err(|e| failed(source, e));
    // Highest first.
    sources.lowers.iter().rev().try_for_each(|lower| set(c"lowerdir+", lower))?;
    set(c"upperdir", &sources.upper)?;
    set(c"workdir", &sources.work)?;
    for (key, value) in [(c"redirect_dir", c"nofollow"), (c"metacopy", c"off"), (c"index", c"off")] {
        sys::fsconfig_string(fs.as_fd(), key, value).map_err(|e| failed(&sources.upper, e))?;
    }
    sys::fsconfig_flag(fs.as_fd(), c"volatile").map_err(|e| failed(&sources.upper, e))?;
    if rootless {
        // Marks that a user may write. Without it a mount succeeds, and deleting a lower directory fails.
        sys::fsconfig_flag(fs.as_fd(), c"userxattr").map_err(|e| failed(&sources.upper, e))?;
    }
    sys::fs_mount(fs.as_fd(), NODEV).map_err(|e| failed(&sources.upper, e))
}

fn set_path(fs: &OwnedFd, key: &std::ffi::CStr, path: &Path) -> Result<(), Errno> {
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.len() < VALUE_LIMIT && !bytes.iter().any(|b| matches!(b, b'\\' | b':' | b',')) {
        let text = CString::new(bytes).map_err(|_| Errno::EINVAL)?;
        return sys::fsconfig_string(fs.as_fd(), key, &text);
    }
    // Too long, or with a character that some kernels unescape: through a descriptor.
    let directory =
        nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let text = CString::new(format!("/proc/self/fd/{}", directory.as_raw_fd())).map_err(|_| Errno::EINVAL)?;
    sys::fsconfig_string(fs.as_fd(), key, &text)
}

/// What the kernel says beyond the errno.
fn messages(fs: &OwnedFd) -> String {
    let mut text = String::new();
    let mut buffer = [0; 512];
    for _ in 0..8 {
        match nix::unistd::read(fs, &mut buffer) {
            Ok(n) if n > 2 => {
                text.push_str(": ");
                text.push_str(String::from_utf8_lossy(&buffer[2..n]).trim());
            }
            _ => break,
        }
    }
    text
}

/// A detached mount, made where paths can name it.
fn by_mount2(sources: &Sources, scratch: &Scratch, rootless: bool) -> Result<OwnedFd, SetupError> {
    let mut open = Vec::with_capacity(sources.lowers.len() + 2);
    // The number of a descriptor: as many layers as overlayfs takes fit into one page.
    let mut short = |source: &Source| -> Result<String, SetupError> {
        let number = source.path.strip_prefix(DESCRIPTORS).ok().and_then(Path::to_str);
        if let Some(number) = number.filter(|n| n.bytes().all(|b| b.is_ascii_digit())) {
            return Ok(number.to_owned());
        }
        let fd = open_host_dir(&source.path)?;
        let number = fd.as_raw_fd().to_string();
        open.push(fd);
        Ok(number)
    };
    let lower = sources.lowers.iter().rev().map(&mut short).collect::<Result<Vec<_>, _>>()?.join(":");
    let options = format!(
        "lowerdir={lower},upperdir={},workdir={},redirect_dir=nofollow,metacopy=off,index=off,volatile{}",
        short(&sources.upper)?,
        short(&sources.work)?,
        if rootless { ",userxattr" } else { "" }
    );
    if options.len() >= OPTION_PAGE {
        return Err(mount_error("more layers than fit into one mount call of this kernel", "/")(
            Errno::E2BIG,
        ));
    }
    drop(scratch.make("root")?);
    let at = by_descriptor(&scratch.0, Some(OsStr::new("root")));
    // The numbers are paths from there.
    let before = open_host_dir(Path::new("."))?;
    nix::unistd::chdir(DESCRIPTORS).map_err(step("go to the descriptors"))?;
    let mounted =
        nix::mount::mount(Some("overlay"), &at, Some("overlay"), MsFlags::MS_NODEV, Some(options.as_str()));
    nix::unistd::fchdir(&before).map_err(step("go back from the descriptors"))?;
    mounted.map_err(mount_error("overlayfs", "/"))?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mounted = openat(&scratch.0, "root", flags, Mode::empty()).map_err(step("open the root"))?;
    sys::open_tree_clone(mounted.as_fd(), false).map_err(mount_error("a copy of the overlayfs", "/"))
}
