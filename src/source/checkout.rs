//! A commit's files written out: exactly them, with git's modes, whatever the umask.

use crate::{CommitTree, SourceError};
use keelway_disk::Root;
use keelway_model::{Tree, TreeError, TreeKind, TreePath};
use std::fs;
use std::io;
use std::path::Path;

/// Longest path.
const MAX_PATH: usize = 4000;

/// Bounds of one checkout: a tree that names one folder again and again is small in git (S10).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Files, folders and links.
    pub(crate) entries: u64,
    /// Bytes of files.
    pub(crate) bytes: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { entries: 2_000_000, bytes: 64 << 30 }
    }
}

/// Writes the files of `tree` into `dir`.
pub(crate) fn write(tree: &CommitTree, dir: &Path, bounds: Bounds) -> Result<(), SourceError> {
    let failed = |e| SourceError::io(format!("cannot use {} for a checkout", dir.display()), e);
    fs::create_dir_all(dir).map_err(failed)?;
    let root = Root::open(dir).map_err(failed)?;
    if !root.list(b"").map_err(failed)?.is_empty() {
        return Err(failed(io::Error::new(io::ErrorKind::DirectoryNotEmpty, "it is not empty")));
    }
    let written = fill(tree, &root, bounds);
    if written.is_err() {
        for item in root.list(b"").unwrap_or_default() {
            // The first error is the one to tell.
            let _ = root.remove_all(&item.name);
        }
    }
    written
}

fn fill(tree: &CommitTree, root: &Root, bounds: Bounds) -> Result<(), SourceError> {
    let (mut entries, mut bytes) = (0, 0);
    let mut todo = vec![TreePath::root()];
    while let Some(folder) = todo.pop() {
        for entry in tree.list(&folder).map_err(|e| unreadable(tree, e))? {
            let at = folder
                .join(&entry.name)
                .ok_or_else(|| refuse(tree, &folder, "holds a name that is no name"))?;
            entries += 1;
            if entries > bounds.entries || at.as_bytes().len() > MAX_PATH {
                return Err(refuse(
                    tree,
                    &at,
                    "is one entry or one letter too many (2000000 entries, paths of 4000 bytes)",
                ));
            }
            let path = at.as_bytes();
            let io = |e| SourceError::io(format!("cannot write {at}"), e);
            match entry.kind {
                TreeKind::Directory => {
                    root.mkdir(path, 0o755).map_err(io)?;
                    todo.push(at);
                }
                TreeKind::Symlink { target } => root.symlink(&target, path).map_err(io)?,
                TreeKind::File { size } => {
                    bytes += size;
                    if bytes > bounds.bytes {
                        return Err(refuse(tree, &at, "makes the checkout larger than it may be (64 GiB)"));
                    }
                    let mut from = tree.open(&at).map_err(|e| unreadable(tree, e))?;
                    let mut to = root.create_file(path, entry.mode).map_err(io)?;
                    io::copy(&mut from, &mut to).map_err(io)?;
                }
                TreeKind::Submodule => {
                    return Err(SourceError::Unsupported {
                        what: "a git submodule",
                        path: at.to_string(),
                        hint: "; commit its files, or fetch it in a build step",
                    });
                }
                TreeKind::Fifo | TreeKind::Device { .. } | TreeKind::Socket => {
                    return Err(refuse(tree, &at, "is something that git cannot hold"));
                }
            }
        }
    }
    Ok(())
}

fn refuse(tree: &CommitTree, path: &TreePath, why: &'static str) -> SourceError {
    SourceError::HostilePath { commit: tree.commit().clone(), path: path.to_string(), why }
}

/// Unwraps our own errors from those of the trait.
fn unreadable(tree: &CommitTree, e: TreeError) -> SourceError {
    match e {
        TreeError::Io { path, source } => match source.kind() {
            io::ErrorKind::Unsupported => match source.downcast::<SourceError>() {
                Ok(ours) => ours,
                Err(source) => SourceError::io(format!("cannot read {path}"), source),
            },
            _ => SourceError::io(format!("cannot read {path} of commit {}", tree.commit()), source),
        },
        other => SourceError::io(format!("cannot read commit {}", tree.commit()), io::Error::other(other)),
    }
}
