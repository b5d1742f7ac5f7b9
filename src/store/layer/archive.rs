//! Tars that are not layers: files under names of ours, and the merged view of a chain.
//!
//! Like a layer's, their bytes depend on what is put in alone. A merged view is written as it looks: deleted names are
//! not there, and names of one file are hard links.

use super::header::{BLOCK, Header};
use crate::snapshot::LAYER_TIME;
use crate::view::View;
use keelway_model::{Tree, TreeEntry, TreeError, TreeKind, TreePath};
use std::collections::HashMap;
use std::io::{self, Read, Write};

/// Writes a tar, entry by entry.
pub struct TarWriter<W> {
    out: W,
    head: Vec<u8>,
}

impl<W: Write> TarWriter<W> {
    /// An empty tar.
    pub fn new(out: W) -> Self {
        Self { out, head: Vec::new() }
    }

    /// A directory of mode 0755, root's, with the constant time.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.header(&plain(format!("{path}/").as_bytes(), b'5', 0o755, 0))
    }

    /// A file of mode 0644, root's, with the constant time. An error when `from` has not exactly `size` bytes.
    pub fn file(&mut self, path: &str, from: &mut dyn Read, size: u64) -> io::Result<()> {
        self.header(&plain(path.as_bytes(), b'0', 0o644, size))?;
        self.content(from, size)
    }

    /// The end of the tar; everything was handed to the writer.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn header(&mut self, header: &Header<'_>) -> io::Result<()> {
        self.head.clear();
        header.write(&mut self.head);
        self.out.write_all(&self.head)
    }

    fn content(&mut self, from: &mut dyn Read, size: u64) -> io::Result<()> {
        if io::copy(&mut from.take(size), &mut self.out)? != size {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read"));
        }
        let tail = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        if tail == 0 { Ok(()) } else { self.out.write_all(&[0; BLOCK][tail..]) }
    }
}

fn plain(path: &[u8], kind: u8, mode: u32, size: u64) -> Header<'_> {
    let mtime = seconds(LAYER_TIME.seconds());
    Header { path, kind, mode, uid: 0, gid: 0, size, mtime, link: b"", device: (0, 0), xattrs: &[] }
}

/// A header says no time before 1970.
fn seconds(time: i64) -> u64 {
    u64::try_from(time).unwrap_or(0)
}

impl View {
    /// Writes all of it as a tar: owners, modes, times and attributes as they are; sockets are left out.
    pub fn write_tar<W: Write>(&self, out: W) -> Result<W, TreeError> {
        let mut writer = TarWriter::new(out);
        let mut links: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
        let mut todo = vec![TreePath::root()];
        while let Some(path) = todo.pop() {
            let gone = || TreeError::NotFound { path: path.clone() };
            let wrong = |source| TreeError::Io { path: path.clone(), source };
            let entry = self.entry(&path)?.ok_or_else(gone)?;
            if entry.kind == TreeKind::Directory {
                // The stack gives the last back first.
                let names = self.list(&path)?;
                todo.extend(names.iter().rev().filter_map(|e| path.join(&e.name)));
            }
            // What a fresh directory is anyway would only change the one that it is unpacked into.
            let plain = (entry.mode, entry.uid, entry.gid) == (0o755, 0, 0) && entry.xattrs.is_empty();
            if path.is_root() && plain {
                continue;
            }
            let mtime = seconds(self.modified(&path)?.unwrap_or(LAYER_TIME.seconds()));
            write_entry(&mut writer, self, &path, &entry, mtime, &mut links).map_err(wrong)??;
        }
        writer.finish().map_err(|source| TreeError::Io { path: TreePath::root(), source })
    }
}

fn write_entry<W: Write>(
    writer: &mut TarWriter<W>,
    view: &View,
    path: &TreePath,
    entry: &TreeEntry,
    mtime: u64,
    links: &mut HashMap<(u64, u64), Vec<u8>>,
) -> io::Result<Result<(), TreeError>> {
    let xattrs: Vec<_> = entry.xattrs.iter().filter(|(n, _)| !n.contains(&b'=')).cloned().collect();
    let name = match (&entry.kind, path.is_root()) {
        (TreeKind::Directory, true) => b"./".to_vec(),
        (TreeKind::Directory, false) => [path.as_bytes(), b"/"].concat(),
        _ => path.as_bytes().to_vec(),
    };
    let none: &[u8] = b"";
    let (kind, size, link, device) = match &entry.kind {
        TreeKind::Directory => (b'5', 0, none, (0, 0)),
        TreeKind::File { size } => (b'0', *size, none, (0, 0)),
        TreeKind::Symlink { target } => (b'2', 0, &target[..], (0, 0)),
        TreeKind::Fifo => (b'6', 0, none, (0, 0)),
        TreeKind::Device { character: true, major, minor } => (b'3', 0, none, (*major, *minor)),
        TreeKind::Device { character: false, major, minor } => (b'4', 0, none, (*major, *minor)),
        TreeKind::Socket | TreeKind::Submodule => return Ok(Ok(())),
    };
    let (uid, gid, mode) = (entry.uid, entry.gid, entry.mode);
    let header = Header { path: &name, kind, mode, uid, gid, size, mtime, link, device, xattrs: &xattrs };
    if let Some(id) = entry.link_id {
        if let Some(first) = links.get(&id) {
            let again = Header { kind: b'1', size: 0, link: first, device: (0, 0), xattrs: &[], ..header };
            return writer.header(&again).map(Ok);
        }
        links.insert(id, name.clone());
    }
    writer.header(&header)?;
    if kind == b'0' && size > 0 {
        match view.open(path) {
            Ok(mut file) => writer.content(&mut *file, size)?,
            Err(e) => return Ok(Err(e)),
        }
    }
    Ok(Ok(()))
}
