//! A snapshot as a tar: entries in the order of their bytes, a directory before its content, every time
//! [`LAYER_TIME`].

use super::header::{BLOCK, Header};
use super::pipe::Blocks;
use crate::snapshot::LAYER_TIME;
use crate::walk::{Visit, overlay, walk};
use keelway_disk::{NodeKind, Root, Stat};
use std::collections::HashMap;
use std::io;

/// What marks a deleted name, and a directory that hides what lies below.
pub(super) const WHITEOUT: &[u8] = b".wh.";
pub(super) const OPAQUE: &[u8] = b".wh..wh..opq";

/// The mode of a layer's root that is not worth an entry: what a fresh one has.
const ROOT_MODE: u32 = 0o755;

/// Writes everything beneath `root`. Sockets are left out: they mean nothing without their process.
pub(super) fn write_tar(root: &Root, out: &mut Blocks) -> io::Result<()> {
    let mut writer = Writer { out, links: HashMap::new(), head: Vec::new() };
    let stat = root.stat(b"")?.ok_or_else(|| io::Error::other("the snapshot is gone"))?;
    let xattrs = writer.xattrs(&root.xattrs(b"")?);
    if (stat.mode, stat.uid, stat.gid) != (ROOT_MODE, 0, 0) || !xattrs.is_empty() {
        writer.entry(b"./", b'5', &stat, b"", &xattrs)?;
    }
    walk(root, &mut |visit| writer.visit(visit))?;
    writer.out.put(&[0; 2 * BLOCK])
}

struct Writer<'a> {
    out: &'a mut Blocks,
    /// The first path of each file that has several names.
    links: HashMap<(u64, u64), Vec<u8>>,
    head: Vec<u8>,
}

impl Writer<'_> {
    fn xattrs(&self, all: &[(Vec<u8>, Vec<u8>)]) -> Vec<(Vec<u8>, Vec<u8>)> {
        // A name with '=' cannot be said in a PAX record.
        all.iter().filter(|(n, _)| overlay::is_for_images(n) && !n.contains(&b'=')).cloned().collect()
    }

    fn entry(
        &mut self,
        path: &[u8],
        kind: u8,
        stat: &Stat,
        link: &[u8],
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> io::Result<()> {
        let (uid, gid) = (stat.uid, stat.gid);
        let size = if kind == b'0' { stat.size } else { 0 };
        let mode = if kind == b'2' { 0o777 } else { stat.mode };
        let device = match stat.kind {
            NodeKind::Device { major, minor, .. } => (major, minor),
            _ => (0, 0),
        };
        self.header(&Header { path, kind, mode, uid, gid, size, mtime: time(), link, device, xattrs })
    }

    fn header(&mut self, header: &Header<'_>) -> io::Result<()> {
        self.head.clear();
        header.write(&mut self.head);
        self.out.put(&self.head)
    }

    fn marker(&mut self, path: &[u8]) -> io::Result<()> {
        let (mtime, device) = (time(), (0, 0));
        self.header(&Header {
            path,
            kind: b'0',
            mode: 0o600,
            uid: 0,
            gid: 0,
            size: 0,
            mtime,
            link: b"",
            device,
            xattrs: &[],
        })
    }

    fn visit(&mut self, v: &Visit<'_>) -> io::Result<()> {
        if v.name.starts_with(WHITEOUT) {
            let why = "names that begin with .wh. mean deletions in a layer: rename it, or remove it in the same step";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        if v.stat.kind == overlay::WHITEOUT {
            let parent = &v.path[..v.path.len() - v.name.len()];
            return self.marker(&[parent, WHITEOUT, v.name].concat());
        }
        if v.stat.kind != NodeKind::Directory && v.stat.links > 1 && v.stat.kind != NodeKind::Socket {
            if let Some(first) = self.links.get(&v.stat.id).cloned() {
                return self.entry(v.path, b'1', &v.stat, &first, &[]);
            }
            self.links.insert(v.stat.id, v.path.to_vec());
        }
        match v.stat.kind {
            NodeKind::Directory => {
                let all = v.dir.xattrs(v.name)?;
                let path = [v.path, b"/"].concat();
                self.entry(&path, b'5', &v.stat, b"", &self.xattrs(&all))?;
                if overlay::is_opaque(&all) {
                    self.marker(&[&path, OPAQUE].concat())?;
                }
                Ok(())
            }
            NodeKind::File => {
                let xattrs = self.xattrs(&v.dir.xattrs(v.name)?);
                self.entry(v.path, b'0', &v.stat, b"", &xattrs)?;
                self.content(v)
            }
            NodeKind::Symlink => self.entry(v.path, b'2', &v.stat, &v.dir.read_link(v.name)?, &[]),
            NodeKind::Fifo => self.entry(v.path, b'6', &v.stat, b"", &[]),
            NodeKind::Device { character, .. } => {
                self.entry(v.path, if character { b'3' } else { b'4' }, &v.stat, b"", &[])
            }
            NodeKind::Socket => Ok(()),
        }
    }

    fn content(&mut self, v: &Visit<'_>) -> io::Result<()> {
        let size = v.stat.size;
        if size == 0 {
            return Ok(());
        }
        let mut file = v.dir.open_file_nofollow(v.name)?;
        if self.out.take(&mut file, size)? != size {
            return Err(io::Error::other("it became shorter while it was read"));
        }
        let tail = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        if tail == 0 { Ok(()) } else { self.out.put(&[0; BLOCK][tail..]) }
    }
}

fn time() -> u64 {
    u64::try_from(LAYER_TIME.seconds()).unwrap_or(0)
}
