//! Whether two snapshots are the same layer: equal here means that their tars would be equal.
//!
//! Both trees are walked side by side and the first difference ends it: first everything but bytes, so that what is
//! different is mostly seen without reading a file, then the bytes. Times are no difference, all of them are
//! [`LAYER_TIME`](crate::LAYER_TIME) in a layer.

use crate::error::StoreError;
use crate::open::Store;
use crate::walk::overlay;
use keelway_disk::{DirItem, NodeKind, Root, Stat};
use keelway_model::SnapshotId;
use std::collections::HashMap;
use std::io::{self, Read};
use std::path::Path;

/// Bytes compared at a time.
const PIECE: usize = 128 << 10;

/// The first thing that is not the same in two snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Path in the snapshot; empty for its root.
    pub path: Vec<u8>,
    /// What about it.
    pub what: &'static str,
}

impl Store {
    /// The first difference between two snapshots as layers; `None` when they are the same.
    pub fn first_difference(&self, a: &SnapshotId, b: &SnapshotId) -> Result<Option<Difference>, StoreError> {
        let (first, second) = (self.existing(a)?, self.existing(b)?);
        difference(&first, &second).map_err(StoreError::io("compare", first))
    }
}

/// The first difference between two trees as layers.
pub(crate) fn difference(first: &Path, second: &Path) -> io::Result<Option<Difference>> {
    let (first, second) = (Root::open(first)?, Root::open(second)?);
    match Pair::default().compare(&first, &second, Pass::Entries)? {
        None => Pair::default().compare(&first, &second, Pass::Bytes),
        found => Ok(found),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Entries,
    Bytes,
}

/// Two trees on their way.
#[derive(Default)]
struct Pair {
    /// The number, in order, of the first name of every file that has several.
    links: [HashMap<(u64, u64), u64>; 2],
    seen: u64,
    buffers: [Vec<u8>; 2],
}

struct Frame {
    path: Vec<u8>,
    names: std::vec::IntoIter<DirItem>,
}

impl Pair {
    fn compare(&mut self, a: &Root, b: &Root, pass: Pass) -> io::Result<Option<Difference>> {
        let differs = |path: &[u8], what| Ok(Some(Difference { path: path.to_vec(), what }));
        if pass == Pass::Entries
            && let (Some(x), Some(y)) = (a.stat(b"")?, b.stat(b"")?)
            && let Some(what) = self.entries((a, &x), (b, &y), b"")?
        {
            return differs(b"", what);
        }
        let Some(names) = same_names(a, b)? else { return differs(b"", "what it holds") };
        let mut stack = vec![Frame { path: Vec::new(), names: names.into_iter() }];
        // Only one directory of each is open at a time, however deep they are.
        let mut open = (Vec::new(), a.try_clone()?, b.try_clone()?);
        while let Some(frame) = stack.last_mut() {
            let Some(DirItem { name }) = frame.names.next() else {
                stack.pop();
                continue;
            };
            if open.0 != frame.path {
                open = (frame.path.clone(), a.open_dir(&frame.path)?, b.open_dir(&frame.path)?);
            }
            let path = match frame.path.is_empty() {
                true => name.clone(),
                false => [&frame.path[..], b"/", &name].concat(),
            };
            let (Some(x), Some(y)) = (open.1.stat(&name)?, open.2.stat(&name)?) else {
                return differs(&path, "whether it is there");
            };
            let what = match pass {
                Pass::Entries => self.entries((&open.1, &x), (&open.2, &y), &name)?,
                Pass::Bytes => self.bytes((&open.1, &x), (&open.2, &y), &name)?,
            };
            if let Some(what) = what {
                return differs(&path, what);
            }
            if x.kind == NodeKind::Directory {
                let inner = (open.1.open_dir(&name)?, open.2.open_dir(&name)?);
                let Some(names) = same_names(&inner.0, &inner.1)? else {
                    return differs(&path, "what it holds");
                };
                open = (path.clone(), inner.0, inner.1);
                stack.push(Frame { path, names: names.into_iter() });
            }
        }
        Ok(None)
    }

    /// What differs in two entries of one name, but for what they hold.
    fn entries(
        &mut self,
        a: (&Root, &Stat),
        b: (&Root, &Stat),
        name: &[u8],
    ) -> io::Result<Option<&'static str>> {
        let (x, y) = (a.1, b.1);
        if x.kind != y.kind {
            return Ok(Some("its kind"));
        }
        if (x.uid, x.gid) != (y.uid, y.gid) {
            return Ok(Some("its owner"));
        }
        if x.mode != y.mode && x.kind != NodeKind::Symlink {
            return Ok(Some("its mode"));
        }
        self.seen += 1;
        if x.kind != NodeKind::Directory && (x.links > 1 || y.links > 1) {
            let mut first = |side: usize, stat: &Stat| match stat.links > 1 {
                true => *self.links[side].entry(stat.id).or_insert(self.seen),
                false => self.seen,
            };
            if first(0, x) != first(1, y) {
                return Ok(Some("which file it is a name of"));
            }
        }
        Ok(match x.kind {
            NodeKind::File if x.size != y.size => Some("its size"),
            NodeKind::Symlink if a.0.read_link(name)? != b.0.read_link(name)? => Some("its target"),
            NodeKind::File | NodeKind::Directory if xattrs(a.0, name)? != xattrs(b.0, name)? => {
                Some("its extended attributes")
            }
            _ => None,
        })
    }

    fn bytes(
        &mut self,
        a: (&Root, &Stat),
        b: (&Root, &Stat),
        name: &[u8],
    ) -> io::Result<Option<&'static str>> {
        if a.1.kind != NodeKind::File || a.1.size == 0 {
            return Ok(None);
        }
        // All names of a file hold the same.
        self.seen += 1;
        if a.1.links > 1 && *self.links[0].entry(a.1.id).or_insert(self.seen) != self.seen {
            return Ok(None);
        }
        let (mut first, mut second) = (a.0.open_file_nofollow(name)?, b.0.open_file_nofollow(name)?);
        let [x, y] = &mut self.buffers;
        x.resize(PIECE, 0);
        y.resize(PIECE, 0);
        loop {
            let n = fill(&mut first, x)?;
            if fill(&mut second, y)? != n || x[..n] != y[..n] {
                return Ok(Some("its content"));
            }
            if n < PIECE {
                return Ok(None);
            }
        }
    }
}

/// The names of two directories, where they are the same.
fn same_names(a: &Root, b: &Root) -> io::Result<Option<Vec<DirItem>>> {
    let (a, b) = (a.list(b"")?, b.list(b"")?);
    Ok((a == b).then_some(a))
}

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The attributes that an image carries, and whether a directory hides what lies below.
fn xattrs(dir: &Root, name: &[u8]) -> io::Result<(Xattrs, bool)> {
    let all = dir.xattrs(name)?;
    let opaque = overlay::is_opaque(&all);
    let mut kept: Xattrs = all.into_iter().filter(|(n, _)| overlay::is_for_images(n)).collect();
    kept.sort();
    Ok((kept, opaque))
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests;
