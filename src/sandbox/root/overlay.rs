//! The overlay mount that the root is.
//!
//! Layers go to the kernel one by one (`lowerdir+`), so there is neither a 4 KB bound on all options nor
//! anything to escape. Kernels before 6.8 lack that; they get mount(2) with descriptor paths instead.
//! metacopy and redirect_dir stay off, so that an upper directory is a whole layer; `volatile`, because an
//! upper directory that was not frozen is thrown away.

use super::{NODEV, mount_error, open_host_dir, step, tmpfs};
use crate::error::SetupError;
use crate::spec::RootFs;
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, mkdirat};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// mount(2) takes a page of options.
const OPTION_PAGE: usize = 4096;
/// fsconfig(2) takes texts of less than this.
const VALUE_LIMIT: usize = 256;

/// Mounts the root over the machine's `/` (which absolute paths do not notice) and returns it.
pub(super) fn mount(root: &RootFs, host_root: BorrowedFd<'_>, legacy: bool) -> Result<OwnedFd, SetupError> {
    // A place for what the overlay needs beside the directories of the spec.
    let scratch = || -> Result<OwnedFd, SetupError> {
        let fs = tmpfs(1 << 20, 0o700, NODEV).map_err(mount_error("tmpfs", "/"))?;
        sys::move_mount(fs.as_fd(), host_root).map_err(mount_error("tmpfs", "/"))?;
        for name in ["upper", "work", "root"] {
            mkdirat(&fs, name, Mode::from_bits_truncate(0o755)).map_err(step("make scratch directories"))?;
        }
        Ok(fs)
    };
    let of_fd = |fs: &OwnedFd, name: &str| PathBuf::from(format!("/proc/self/fd/{}/{name}", fs.as_raw_fd()));
    let mut held = None;
    let (lowers, upper, work) = match root {
        RootFs::Overlay { lowers, upper, work } => (lowers, upper.clone(), work.clone()),
        // Writable until the mount points are made; what is made is in memory and goes with it.
        RootFs::ReadOnly { lowers } => {
            let fs = scratch()?;
            let dirs = (of_fd(&fs, "upper"), of_fd(&fs, "work"));
            held = Some(fs);
            (lowers, dirs.0, dirs.1)
        }
    };
    if lowers.is_empty() {
        // From scratch: overlayfs wants a lower layer, so it gets an empty one.
        let fs = scratch()?;
        let empty = vec![of_fd(&fs, "root")];
        return layers(
            &empty,
            &upper,
            &work,
            host_root,
            legacy.then_some(()).map(|()| scratch()).transpose()?,
        );
    }
    let scratch_for_legacy = if legacy { Some(scratch()?) } else { None };
    let mounted = layers(lowers, &upper, &work, host_root, scratch_for_legacy);
    match mounted {
        Err(SetupError::Mount { errno, .. })
            if !legacy && errno.0 == Errno::EINVAL as i32 && !has_append() =>
        {
            layers(lowers, &upper, &work, host_root, Some(scratch()?))
        }
        other => {
            drop(held);
            other
        }
    }
}

/// Does this kernel's overlayfs know `lowerdir+`?
fn has_append() -> bool {
    let known = || -> Result<(), Errno> {
        let fs = sys::fsopen(c"overlay")?;
        sys::fsconfig_string(fs.as_fd(), c"lowerdir+", c"/")
    };
    known().is_ok()
}

fn layers(
    lowers: &[PathBuf],
    upper: &Path,
    work: &Path,
    host_root: BorrowedFd<'_>,
    legacy: Option<OwnedFd>,
) -> Result<OwnedFd, SetupError> {
    if let Some(scratch) = legacy {
        return by_mount2(lowers, upper, work, &scratch);
    }
    let fs = sys::fsopen(c"overlay").map_err(mount_error("overlayfs", "/"))?;
    let failed = |path: &Path, errno: Errno| SetupError::Mount {
        what: "overlayfs".into(),
        target: "/".into(),
        errno: errno.into(),
        hint: format!(", with {path:?}{}", messages(&fs)),
    };
    // Highest first.
    for lower in lowers.iter().rev() {
        set_path(&fs, c"lowerdir+", lower).map_err(|e| failed(lower, e))?;
    }
    set_path(&fs, c"upperdir", upper).map_err(|e| failed(upper, e))?;
    set_path(&fs, c"workdir", work).map_err(|e| failed(work, e))?;
    for (key, value) in [(c"redirect_dir", c"nofollow"), (c"metacopy", c"off"), (c"index", c"off")] {
        sys::fsconfig_string(fs.as_fd(), key, value).map_err(|e| failed(upper, e))?;
    }
    sys::fsconfig_flag(fs.as_fd(), c"volatile").map_err(|e| failed(upper, e))?;
    let mount = sys::fs_mount(fs.as_fd(), NODEV).map_err(|e| failed(upper, e))?;
    sys::move_mount(mount.as_fd(), host_root).map_err(mount_error("overlayfs", "/"))?;
    Ok(mount)
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

fn by_mount2(
    lowers: &[PathBuf],
    upper: &Path,
    work: &Path,
    scratch: &OwnedFd,
) -> Result<OwnedFd, SetupError> {
    let mut open = Vec::with_capacity(lowers.len() + 2);
    let mut short = |path: &Path| -> Result<String, SetupError> {
        let fd = open_host_dir(path)?;
        let text = format!("/proc/self/fd/{}", fd.as_raw_fd());
        open.push(fd);
        Ok(text)
    };
    let lower = lowers.iter().rev().map(|l| short(l)).collect::<Result<Vec<_>, _>>()?.join(":");
    let options = format!(
        "lowerdir={lower},upperdir={},workdir={},redirect_dir=nofollow,metacopy=off,index=off,volatile",
        short(upper)?,
        short(work)?
    );
    if options.len() >= OPTION_PAGE {
        return Err(SetupError::Mount {
            what: "overlayfs".into(),
            target: "/".into(),
            errno: Errno::E2BIG.into(),
            hint: format!(
                ": {} layers do not fit into one mount call of this kernel; flatten the image or use Linux 6.8",
                lowers.len()
            ),
        });
    }
    let at = format!("/proc/self/fd/{}/root", scratch.as_raw_fd());
    nix::mount::mount(
        Some("overlay"),
        at.as_str(),
        Some("overlay"),
        MsFlags::MS_NODEV,
        Some(options.as_str()),
    )
    .map_err(mount_error("overlayfs", "/"))?;
    openat(scratch, "root", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(step("open the root"))
}
