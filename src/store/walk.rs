//! Walking a snapshot: every entry once, a directory before its content, names in the order of their bytes.

use keelway_disk::{NodeKind, Root, Stat};
use std::io;

/// An entry that is being visited.
pub(crate) struct Visit<'a> {
    /// The directory that holds it.
    pub dir: &'a Root,
    /// Its name there.
    pub name: &'a [u8],
    /// Its path in the snapshot.
    pub path: &'a [u8],
    /// Its status.
    pub stat: Stat,
}

struct Frame {
    path: Vec<u8>,
    names: std::vec::IntoIter<keelway_disk::DirItem>,
}

/// Visits everything beneath `root`. Only one directory is open at a time however deep the tree is; no
/// symbolic link is followed. An error names the path.
pub(crate) fn walk(root: &Root, visit: &mut dyn FnMut(&Visit<'_>) -> io::Result<()>) -> io::Result<()> {
    walk_through(root, false, visit)
}

/// The same through a tree that others change meanwhile: what vanishes is passed over.
pub(crate) fn walk_living(
    root: &Root,
    visit: &mut dyn FnMut(&Visit<'_>) -> io::Result<()>,
) -> io::Result<()> {
    walk_through(root, true, visit)
}

fn walk_through(
    root: &Root,
    living: bool,
    visit: &mut dyn FnMut(&Visit<'_>) -> io::Result<()>,
) -> io::Result<()> {
    // A directory may become something else while we look; never is a link followed for one.
    let inner = |dir: &Root, path: &[u8]| match living {
        true => dir.open_dir_by_names(path),
        false => dir.open_dir(path).map(Some),
    };
    let mut open_path = Vec::new();
    let mut open = root.try_clone()?;
    let mut stack = vec![Frame { path: Vec::new(), names: open.list(b"")?.into_iter() }];
    while let Some(frame) = stack.last_mut() {
        let Some(item) = frame.names.next() else {
            stack.pop();
            continue;
        };
        if open_path != frame.path {
            let Some(found) = inner(root, &frame.path).map_err(|e| at(&frame.path, &e))? else {
                stack.pop();
                continue;
            };
            open = found;
            open_path.clone_from(&frame.path);
        }
        let mut path = Vec::with_capacity(frame.path.len() + 1 + item.name.len());
        path.extend_from_slice(&frame.path);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&item.name);
        let stat = match open.stat(&item.name).map_err(|e| at(&path, &e))? {
            Some(stat) => stat,
            None if living => continue,
            None => return Err(at(&path, &io::Error::other("it vanished while it was read"))),
        };
        visit(&Visit { dir: &open, name: &item.name, path: &path, stat }).map_err(|e| at(&path, &e))?;
        if stat.kind == NodeKind::Directory {
            let Some(found) = inner(&open, &item.name).map_err(|e| at(&path, &e))? else { continue };
            open = found;
            open_path.clone_from(&path);
            let names = open.list(b"").map_err(|e| at(&path, &e))?.into_iter();
            stack.push(Frame { path, names });
        }
    }
    Ok(())
}

fn at(path: &[u8], e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: {e}", String::from_utf8_lossy(path).escape_debug()))
}

/// What overlayfs knows about entries of a layer directory.
pub(crate) mod overlay {
    use keelway_disk::{NodeKind, Root};
    use std::io;

    /// A deleted name.
    pub(crate) const WHITEOUT: NodeKind = NodeKind::Device { character: true, major: 0, minor: 0 };
    /// The attribute of a directory that hides what lies below it.
    pub(crate) const OPAQUE: &[u8] = b"trusted.overlay.opaque";
    const USER_OPAQUE: &[u8] = b"user.overlay.opaque";

    /// Whether an attribute is overlayfs's own, in any of its name spaces.
    pub(crate) fn is_private(name: &[u8]) -> bool {
        [&b"trusted.overlay."[..], b"user.overlay."].iter().any(|p| name.starts_with(p))
            || name.windows(9).any(|w| w == b".overlay.")
    }

    /// Makes a directory hide what lies below it, for the mounts of whoever runs this: root's look at one attribute,
    /// a user's at the other.
    pub(crate) fn set_opaque(dir: &Root, name: &[u8]) -> io::Result<()> {
        match dir.set_xattr(name, OPAQUE, b"y") {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => dir.set_xattr(name, USER_OPAQUE, b"y"),
            other => other,
        }
    }

    /// Whether these attributes of a directory make it opaque.
    pub(crate) fn is_opaque(xattrs: &[(Vec<u8>, Vec<u8>)]) -> bool {
        xattrs.iter().any(|(n, v)| (n == OPAQUE || n == USER_OPAQUE) && v == b"y")
    }

    /// Whether an extended attribute goes into an image: file capabilities and what users set (`user.`), but
    /// nothing of overlayfs.
    pub fn is_for_images(name: &[u8]) -> bool {
        (name == b"security.capability" || name.starts_with(b"user.")) && !is_private(name)
    }

    /// Cleans the attributes of an entry that a mount has left, all but the opaque mark.
    pub(crate) fn clean(dir: &Root, name: &[u8]) -> io::Result<()> {
        for (key, value) in dir.xattrs(name)? {
            if !is_private(&key) || ((key == OPAQUE || key == USER_OPAQUE) && value == b"y") {
                continue;
            }
            if key.ends_with(b".redirect") || key.ends_with(b".metacopy") {
                let why = "it is a stub of overlayfs: the mount must have redirect_dir=off and metacopy=off";
                return Err(io::Error::other(why));
            }
            dir.remove_xattr(name, &key)?;
        }
        Ok(())
    }
}
