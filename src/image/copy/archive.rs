//! `ADD` of local archives: tars, plain and compressed, told by their content.
//!
//! An archive is hostile. It is read by the same strict reader as layers ([`keelway_store::tar`]). Names are clamped at the destination; a parent that is a link is followed inside the
//! root of the image, never outside; hard links name earlier entries only; the number of entries, the bytes
//! and the ratio of compression are bounded, the holes of sparse files counted as bytes. Holes stay holes. Device nodes are left out and only the attributes that images may
//! carry are kept, as when layers are unpacked. Nothing outside this process unpacks anything.

use super::codec::Codec;
use crate::error::StepError;
use crate::writer::{Meta, There, Writer, wrong};
use keelway_disk::NodeKind;
use keelway_model::{TreeKind, TreePath};
use keelway_store::UnpackLimits;
use keelway_store::tar::{self, Member, MemberKind, ParseError, is_tar};
use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

/// Links followed in one path at most.
const MAX_LINKS: usize = 40;
/// Unpacked bytes that are free of the ratio's bound.
const FREE: u64 = 100 << 20;

/// Looks whether a file is a tar, compressed or not. What cannot be decoded up to the first header is no archive; it is
/// copied as it is.
pub(crate) fn detect(from: &mut dyn Read, path: &TreePath) -> Result<Option<Codec>, StepError> {
    let mut from = BufReader::with_capacity(1 << 16, from);
    let magic = head(&mut from, 6).map_err(|source| read_error(path, source))?;
    let codec = Codec::of(&magic);
    let mut plain = codec.decoder(io::Cursor::new(magic).chain(from));
    match head(&mut plain, 512) {
        Ok(first) => Ok(is_tar(&first).then_some(codec)),
        Err(e) if codec == Codec::Plain || e.kind() == io::ErrorKind::OutOfMemory => Err(read_error(path, e)),
        Err(_) => Ok(None),
    }
}

/// The first `most` bytes, or as many as there are.
pub(crate) fn head(from: &mut dyn Read, most: usize) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(most);
    from.take(most as u64).read_to_end(&mut head)?;
    Ok(head)
}

/// Counts what passes, and stops at a bound that may move.
struct Bounded<R> {
    inner: R,
    seen: Rc<Cell<u64>>,
    most: Box<dyn Fn() -> u64>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.seen.set(self.seen.get() + n as u64);
        if self.seen.get() > (self.most)() {
            return Err(io::Error::other("the archive unpacks to more than is allowed"));
        }
        Ok(n)
    }
}

/// Unpacks into the directory `dest`, which is in the layer. `owner` is `--chown`; without it the archive's count.
pub(crate) fn unpack(
    codec: Codec,
    from: Box<dyn Read + Send>,
    writer: &mut Writer,
    dest: &TreePath,
    owner: Option<(u32, u32)>,
    archive: &TreePath,
) -> Result<(), StepError> {
    unpack_with(codec, from, writer, dest, owner, archive, UnpackLimits::default())
}

pub(super) fn unpack_with(
    codec: Codec,
    from: Box<dyn Read + Send>,
    writer: &mut Writer,
    dest: &TreePath,
    owner: Option<(u32, u32)>,
    archive: &TreePath,
    limits: UnpackLimits,
) -> Result<(), StepError> {
    let packed = Rc::new(Cell::new(0));
    let raw = Bounded { inner: from, seen: packed.clone(), most: Box::new(|| u64::MAX) };
    let plain = codec.decoder(BufReader::with_capacity(1 << 16, raw));
    let most = move || limits.bytes.0.min(packed.get().saturating_mul(limits.ratio).saturating_add(FREE));
    let plain = Bounded { inner: plain, seen: Rc::default(), most: Box::new(most) };
    let mut tar = tar::Archive::new(BufReader::with_capacity(1 << 16, plain)).with_sparse_files();
    let mut unpacking = Unpacking { writer, dest, owner, archive, nodes: 0 };
    let (mut entries, mut sparse) = (0, 0u64);
    loop {
        let at = tar.offset;
        let failed = |ParseError(why)| {
            read_error(archive, io::Error::other(format!("{why} (at byte {at} of the tar)")))
        };
        let Some(member) = tar.next_member().map_err(failed)? else { break };
        entries += 1;
        if entries > limits.entries {
            return Err(read_error(
                archive,
                io::Error::other(format!("it has more than {} entries", limits.entries)),
            ));
        }
        if let (true, MemberKind::File(size)) = (member.sparse, &member.kind) {
            sparse = sparse.saturating_add(*size);
            if sparse > limits.bytes.0 {
                let why = format!("its sparse files have more than {} together", limits.bytes);
                return Err(read_error(archive, io::Error::other(why)));
            }
        }
        unpacking.entry(&member, &mut tar)?;
    }
    if unpacking.nodes > 0 {
        tracing::info!(%archive, nodes = unpacking.nodes, "device nodes of the archive were left out");
    }
    Ok(())
}

fn read_error(archive: &TreePath, source: io::Error) -> StepError {
    StepError::Refused(format!("ADD cannot unpack {archive}: {source}"))
}

struct Unpacking<'a> {
    writer: &'a mut Writer,
    dest: &'a TreePath,
    owner: Option<(u32, u32)>,
    archive: &'a TreePath,
    /// Device nodes left out.
    nodes: u64,
}

/// The content of the present entry.
struct Content<'a, R>(&'a mut tar::Archive<R>);

fn in_archive(e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("reading the archive: {e}"))
}

/// Writes the present entry, a sparse file, and leaves its holes out; gives its size.
fn with_holes(tar: &mut tar::Archive<impl BufRead>, file: &mut File) -> io::Result<u64> {
    let mut at = 0;
    loop {
        at += tar.pass_hole();
        let have = tar.fill().map_err(in_archive)?;
        if have.is_empty() {
            break;
        }
        file.write_all_at(have, at)?;
        let n = have.len();
        tar.consume(n);
        at += n as u64;
    }
    file.set_len(at)?;
    Ok(at)
}

impl<R: BufRead> Read for Content<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let have = self.0.fill().map_err(in_archive)?;
        let n = have.len().min(buf.len());
        buf[..n].copy_from_slice(&have[..n]);
        self.0.consume(n);
        Ok(n)
    }
}

impl Unpacking<'_> {
    fn refused(&self, name: &[u8], why: impl std::fmt::Display) -> StepError {
        StepError::Refused(format!(
            "ADD of {}: the entry {:?} {why}",
            self.archive,
            String::from_utf8_lossy(name)
        ))
    }

    fn entry(&mut self, member: &Member, tar: &mut tar::Archive<impl BufRead>) -> Result<(), StepError> {
        let name = &member.path;
        let Some(inside) = TreePath::clamped(name) else {
            return Err(self.refused(name, "has a name that holds a NUL character"));
        };
        if inside.is_root() {
            // The archive's own root does not change the directory it is unpacked into.
            return Ok(());
        }
        if let MemberKind::Node(NodeKind::Device { .. }) = member.kind {
            self.nodes += 1;
            return Ok(());
        }
        let meta = Meta {
            mode: member.mode,
            owner: self.owner.unwrap_or((member.uid, member.gid)),
            xattrs: member.xattrs.clone(),
        };
        let to = self.place(&inside, name)?;
        self.writer.parents(&to)?;
        if member.kind == MemberKind::Directory {
            self.writer.directory(&to)?;
            return self.writer.set(&to, &meta);
        }
        self.writer.replace_directory(&to)?;
        match &member.kind {
            MemberKind::File(size) if member.sparse => {
                self.writer.file_by(&to, *size, &meta, |file| with_holes(tar, file))
            }
            MemberKind::File(size) => self.writer.file(&to, &mut Content(tar), *size, &meta),
            MemberKind::Symlink(target) => self.writer.symlink(&to, target, &meta),
            MemberKind::HardLink(target) => {
                let Some(first) = TreePath::clamped(target).filter(|t| !t.is_root()) else {
                    return Err(self.refused(name, "is a hard link to nothing"));
                };
                let first = self.place(&first, name)?;
                if !self.writer.in_layer(&first)? {
                    return Err(
                        self.refused(name, "is a hard link to something that is not earlier in the archive")
                    );
                }
                self.writer.link(&first, &to)
            }
            _ => self.writer.node(&to, &TreeKind::Fifo, &meta),
        }
    }

    /// Where an entry goes: every link in its parent followed inside the image, its own name kept.
    fn place(&self, inside: &TreePath, name: &[u8]) -> Result<TreePath, StepError> {
        let parent = inside.parent().unwrap_or_default();
        let mut todo: Vec<Vec<u8>> = parent.components().rev().map(<[u8]>::to_vec).collect();
        let mut at = self.dest.clone();
        let mut links = 0;
        while let Some(component) = todo.pop() {
            if component == b".." {
                at = at.parent().unwrap_or_default();
                continue;
            }
            let Some(next) = at.join(&component) else { continue };
            let There::Symlink(target) = self.writer.look(&next)? else {
                at = next;
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(wrong("resolve", inside)(io::Error::other("too many symbolic links")));
            }
            if target.starts_with(b"/") {
                at = TreePath::root();
            }
            let parts = target.split(|&b| b == b'/').filter(|p| !p.is_empty() && *p != b".");
            todo.extend(parts.rev().map(<[u8]>::to_vec));
        }
        inside.file_name().and_then(|n| at.join(n)).ok_or_else(|| self.refused(name, "cannot be named"))
    }
}
