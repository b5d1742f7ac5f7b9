//! Mount points inside a hostile root: found beneath it, made where they are missing, and remembered.

use super::{is_dir, step};
use crate::error::SetupError;
use crate::ids::IdMap;
use crate::openat2::openat2;
use crate::proto::{Stub, StubKind};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// Links followed in one path; the kernel's own bound.
const MAX_LINKS: usize = 40;
const PROC_MAGIC: i64 = 0x9fa0;
const SYSFS_MAGIC: i64 = 0x6265_6572;

/// Finds and makes mount points in one root.
pub(super) struct Targets<'a> {
    root: BorrowedFd<'a>,
    root_device: libc::dev_t,
    /// `None` where what is made needs no removal.
    upper: Option<OwnedFd>,
    ids: IdMap,
    stubs: &'a mut Vec<Stub>,
}

impl<'a> Targets<'a> {
    pub(super) fn new(
        root: BorrowedFd<'a>,
        upper: Option<OwnedFd>,
        ids: IdMap,
        stubs: &'a mut Vec<Stub>,
    ) -> Result<Self, SetupError> {
        let root_device = fstat(root).map_err(step("look at the root"))?.st_dev;
        Ok(Self { root, root_device, upper, ids, stubs })
    }

    /// A directory directly below the root that is no link; made when missing.
    pub(super) fn ordinary_directory(&mut self, name: &str) -> Result<OwnedFd, SetupError> {
        let refused =
            |why: &str| SetupError::HostileRoot { path: Path::new("/").join(name), why: why.into() };
        let mut made = false;
        loop {
            let at = match self.open_plain(Path::new(name)) {
                Ok(at) => at,
                Err(Errno::ENOENT) if !made => {
                    made = true;
                    self.make(Path::new(""), OsStr::new(name), true)?;
                    continue;
                }
                Err(e) => return Err(step(format!("open /{name}"))(e)),
            };
            let stat = fstat(&at).map_err(step(format!("look at /{name}")))?;
            return if is_dir(stat.st_mode) {
                Ok(at)
            } else {
                Err(refused("it must be mounted on an ordinary directory, and this is a link or a file"))
            };
        }
    }

    /// The file or directory at a path, links followed inside the root; made when missing.
    pub(super) fn resolve(&mut self, path: &Path, directory: bool) -> Result<OwnedFd, SetupError> {
        let refused = |why: &str| SetupError::HostileRoot { path: path.to_owned(), why: why.into() };
        let mut todo: VecDeque<OsString> = VecDeque::new();
        push_front(&mut todo, path);
        let mut done = PathBuf::new();
        let mut links = 0;
        while let Some(part) = todo.pop_front() {
            if part == ".." {
                done.pop();
                continue;
            }
            let next = done.join(&part);
            match self.open_plain(&next) {
                Ok(at) => {
                    let stat = fstat(&at).map_err(step(format!("look at {next:?}")))?;
                    if is_link(&stat) {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(refused("it leads through too many links"));
                        }
                        if is_kernel_fs(&at)? {
                            return Err(refused("it leads through a link of /proc or /sys"));
                        }
                        let to = readlinkat(&at, "").map_err(step(format!("read the link {next:?}")))?;
                        let to = Path::new(&to);
                        if to.is_absolute() {
                            done.clear();
                        }
                        push_front(&mut todo, to);
                        continue;
                    }
                    if !is_dir(stat.st_mode) && !todo.is_empty() {
                        return Err(refused("a part of it is not a directory"));
                    }
                }
                Err(Errno::ENOENT) => {
                    let inner = directory || !todo.is_empty();
                    self.make(&done, &part, inner)?;
                }
                Err(e) => return Err(step(format!("open {next:?} in the image"))(e)),
            }
            done = next;
        }
        let at = self.open_plain(&done).map_err(step(format!("open {path:?} in the image")))?;
        let stat = fstat(&at).map_err(step(format!("look at {path:?}")))?;
        if done.as_os_str().is_empty() {
            return Err(refused("it leads to the root itself"));
        }
        if is_kernel_fs(&at)? {
            return Err(refused("nothing may be mounted inside /proc or /sys"));
        }
        match (is_dir(stat.st_mode), directory) {
            (true, false) => Err(refused("a file shall be mounted there, and it is a directory")),
            (false, true) => Err(refused("a directory shall be mounted there, and it is not one")),
            _ => Ok(at),
        }
    }

    /// Opens a path of which no part is a link; the last may be one and is not followed.
    fn open_plain(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        // With O_PATH and O_NOFOLLOW a last part that is a link is opened itself.
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).resolve(
            ResolveFlag::RESOLVE_IN_ROOT
                | ResolveFlag::RESOLVE_NO_MAGICLINKS
                | ResolveFlag::RESOLVE_NO_SYMLINKS,
        );
        openat2(self.root, path, how)
    }

    /// Makes an empty directory or file, and remembers it and what that copies up.
    fn make(&mut self, parent: &Path, name: &OsStr, directory: bool) -> Result<(), SetupError> {
        let path = parent.join(name);
        let failed = |e| step(format!("make the mount point {path:?} in the image"))(e);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let how = OpenHow::new().flags(flags).resolve(
            ResolveFlag::RESOLVE_IN_ROOT
                | ResolveFlag::RESOLVE_NO_MAGICLINKS
                | ResolveFlag::RESOLVE_NO_SYMLINKS,
        );
        let at = match parent.as_os_str().is_empty() {
            true => openat2(self.root, ".", how),
            false => openat2(self.root, parent, how),
        }
        .map_err(failed)?;
        let in_root = fstat(&at).map_err(failed)?.st_dev == self.root_device;
        if in_root {
            self.remember_copies(parent)?;
        }
        if directory {
            mkdirat(&at, name, Mode::from_bits_truncate(0o755)).map_err(failed)?;
        } else {
            let flags =
                OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_WRONLY;
            openat(&at, name, flags, Mode::from_bits_truncate(0o644)).map_err(failed)?;
        }
        if in_root {
            self.remember(&path, if directory { StubKind::Dir } else { StubKind::File });
        }
        Ok(())
    }

    /// Which directories on the way are not in the upper directory yet, but will be.
    fn remember_copies(&mut self, directory: &Path) -> Result<(), SetupError> {
        let mut way = PathBuf::new();
        for part in directory.components() {
            way.push(part);
            if self.upper.as_ref().is_none_or(|u| open_in_upper(u, &way).is_ok()) {
                continue;
            }
            let failed = || step(format!("look at {way:?}"));
            let stat = fstat(&self.open_plain(&way).map_err(failed())?).map_err(failed())?;
            // As they are on disk.
            let id = |seen: u32| seen.wrapping_sub(self.ids.base);
            let kind = StubKind::CopiedUp { mode: stat.st_mode, uid: id(stat.st_uid), gid: id(stat.st_gid) };
            self.remember(&way.clone(), kind);
        }
        Ok(())
    }

    fn remember(&mut self, path: &Path, kind: StubKind) {
        // A name that is no text cannot be told to the other side; such a stub stays.
        if self.upper.is_some()
            && let Some(path) = path.to_str()
            && !self.stubs.iter().any(|s| s.path == path)
        {
            self.stubs.push(Stub { path: path.to_owned(), kind });
        }
    }
}

fn push_front(todo: &mut VecDeque<OsString>, path: &Path) {
    for part in path.components().rev() {
        match part {
            Component::Normal(name) => todo.push_front(name.to_owned()),
            Component::ParentDir => todo.push_front("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
}

fn is_link(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK
}

fn is_kernel_fs(fd: &OwnedFd) -> Result<bool, SetupError> {
    let kind = sys::fs_type(fd).map_err(step("look at the file system of a mount point"))?;
    Ok(matches!(kind, PROC_MAGIC | SYSFS_MAGIC))
}

fn open_in_upper(upper: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(upper, path, how)
}

/// Removes a stub unless the process made something of it.
pub(super) fn remove_stub(upper: &OwnedFd, stub: &Stub) {
    let path = Path::new(&stub.path);
    let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else { return };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let (Ok(parent), Ok(at)) = (open_in_upper(upper, parent), open_in_upper(upper, path)) else { return };
    let Ok(stat) = fstat(&at) else { return };
    let removal = match stub.kind {
        StubKind::File if !is_dir(stat.st_mode) && stat.st_size == 0 && !is_link(&stat) => {
            UnlinkatFlags::NoRemoveDir
        }
        StubKind::Dir => UnlinkatFlags::RemoveDir,
        StubKind::CopiedUp { mode, uid, gid }
            if (stat.st_mode, stat.st_uid, stat.st_gid) == (mode, uid, gid) =>
        {
            UnlinkatFlags::RemoveDir
        }
        _ => return,
    };
    // A directory that is not empty holds work of the process and stays.
    let _ = unlinkat(&parent, name, removal);
}
