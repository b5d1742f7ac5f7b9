//! Mounts that show a part of a tree whose names others chose: the part is found inside that tree, never on the machine.

use super::overlay::{self, Scratch};
use super::{How, NODEV, NOSUID, RDONLY, id_map_error, open_host_dir};
use crate::error::SetupError;
use crate::openat2::openat2;
use crate::spec::{Access, RootFs};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

fn failed(path: &Path, target: &Path) -> impl Fn(Errno) -> SetupError {
    let (path, target) = (path.to_owned(), target.to_owned());
    move |errno| SetupError::MountSource { path: path.clone(), target: target.clone(), errno: errno.into() }
}

/// What is at `path` in a tree, links followed inside it.
fn in_tree(tree: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(tree, path, how)
}

/// A part of another root file system. It is writable until every mount point is made.
pub(super) fn of_layers(
    root: &RootFs,
    path: &Path,
    scratch: Scratch,
    how: &How<'_>,
    target: &Path,
) -> Result<OwnedFd, SetupError> {
    let fs = overlay::on(root, &scratch, how)?;
    // Mounted, so that it can be cloned; the clone stays when the scratch directories go.
    scratch.hold("mounted", &fs)?;
    let part = || -> Result<OwnedFd, Errno> {
        let tree = sys::open_tree_clone(in_tree(&fs, path)?.as_fd(), false)?;
        sys::mount_setattr(tree.as_fd(), NOSUID | NODEV, 0, false)?;
        Ok(tree)
    };
    part().map_err(failed(path, target))
}

/// A part of a directory of the machine, with its files' ids as the sandbox's.
pub(super) fn beneath(
    directory: &Path,
    path: &Path,
    access: Access,
    how: &How<'_>,
    target: &Path,
) -> Result<OwnedFd, SetupError> {
    let top = open_host_dir(directory)?;
    let attributes = match access {
        Access::ReadOnly => RDONLY | NOSUID | NODEV,
        Access::ReadWrite => NOSUID | NODEV,
    };
    let part = || -> Result<OwnedFd, Errno> {
        let tree = sys::open_tree_clone(in_tree(&top, path)?.as_fd(), false)?;
        sys::mount_setattr(tree.as_fd(), attributes, 0, false)?;
        Ok(tree)
    };
    let tree = part().map_err(failed(path, target))?;
    how.translate(&tree, false).map_err(id_map_error(directory))?;
    Ok(tree)
}
