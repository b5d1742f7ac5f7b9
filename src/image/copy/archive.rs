//! `ADD` of local archives: plain and gzip tars, told by their content.
//!
//! An archive is hostile. Names are clamped at the destination; a parent that is a link is followed inside the
//! root of the image, never outside; hard links name earlier entries only; the number of entries, the bytes
//! and the ratio of compression are bounded. Nothing outside this process unpacks anything.

use crate::error::StepError;
use crate::writer::{Meta, There, Writer, wrong};
use flate2::read::MultiGzDecoder;
use keelway_model::{TreeKind, TreePath};
use keelway_store::UnpackLimits;
use std::cell::Cell;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

/// Links followed in one path at most.
const MAX_LINKS: usize = 40;
/// Longest path of an entry, in bytes.
const MAX_PATH: usize = 4096;
/// Unpacked bytes that are free of the ratio's bound.
const FREE: u64 = 100 << 20;

/// What can be unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Archive {
    Tar,
    GzipTar,
}

/// Looks at the first bytes. Forms that BuildKit would unpack and we cannot are refused by name.
pub(crate) fn detect(from: &mut dyn Read, path: &TreePath) -> Result<Option<Archive>, StepError> {
    let head = head(from).map_err(|source| read_error(path, source))?;
    for (magic, name) in [(&b"BZh"[..], "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")] {
        if head.starts_with(magic) {
            return Err(StepError::Refused(format!(
                "ADD of {path}: unpacking {name} is not supported yet; COPY, or ADD --unpack=false, takes it as it is"
            )));
        }
    }
    if head.starts_with(b"\x1f\x8b") {
        // A damaged gzip is no archive; it is copied as it is.
        let inner = self::head(&mut MultiGzDecoder::new(&head[..])).unwrap_or_default();
        return Ok(is_tar(&inner).then_some(Archive::GzipTar));
    }
    Ok(is_tar(&head).then_some(Archive::Tar))
}

/// Enough to hold a tar header, compressed or not; as much as there is.
fn head(from: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut head = vec![0; 4096];
    let mut len = 0;
    while len < head.len() {
        match from.read(&mut head[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // Of a gzip stream only the start is here: what could be read is enough.
            Err(_) if len >= 512 => break,
            Err(e) => return Err(e),
        }
    }
    head.truncate(len);
    Ok(head)
}

/// A first block whose checksum is right.
fn is_tar(head: &[u8]) -> bool {
    let Some(block) = head.get(..512).filter(|b| b.iter().any(|x| *x != 0)) else { return false };
    let mut digits =
        block[148..156].iter().copied().filter(|b| !matches!(b, b' ' | 0)).map(|b| char::from(b).to_digit(8));
    let said = digits.try_fold(0u32, |n, d| n.checked_mul(8)?.checked_add(d?));
    let sum: u32 =
        block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
    said == Some(sum)
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
pub(super) fn unpack(
    kind: Archive,
    from: Box<dyn Read + Send>,
    writer: &mut Writer,
    dest: &TreePath,
    owner: Option<(u32, u32)>,
    archive: &TreePath,
) -> Result<(), StepError> {
    unpack_with(kind, from, writer, dest, owner, archive, UnpackLimits::default())
}

pub(super) fn unpack_with(
    kind: Archive,
    from: Box<dyn Read + Send>,
    writer: &mut Writer,
    dest: &TreePath,
    owner: Option<(u32, u32)>,
    archive: &TreePath,
    limits: UnpackLimits,
) -> Result<(), StepError> {
    let packed = Rc::new(Cell::new(0));
    let from = BufReader::with_capacity(1 << 16, from);
    let raw = Bounded { inner: from, seen: packed.clone(), most: Box::new(|| u64::MAX) };
    let plain: Box<dyn Read> = match kind {
        Archive::Tar => Box::new(raw),
        Archive::GzipTar => Box::new(MultiGzDecoder::new(raw)),
    };
    let most = move || limits.bytes.0.min(packed.get().saturating_mul(limits.ratio).saturating_add(FREE));
    let mut tar = tar::Archive::new(Bounded { inner: plain, seen: Rc::default(), most: Box::new(most) });
    let failed = |source| read_error(archive, source);
    let mut unpacking = Unpacking { writer, dest, owner, archive };
    for (i, entry) in tar.entries().map_err(failed)?.enumerate() {
        if i as u64 >= limits.entries {
            return Err(failed(io::Error::other(format!("more than {} entries", limits.entries))));
        }
        unpacking.entry(entry.map_err(failed)?)?;
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
}

impl Unpacking<'_> {
    fn refused(&self, name: &[u8], why: impl std::fmt::Display) -> StepError {
        StepError::Refused(format!(
            "ADD of {}: the entry {:?} {why}",
            self.archive,
            String::from_utf8_lossy(name)
        ))
    }

    fn entry(&mut self, mut entry: tar::Entry<'_, impl Read>) -> Result<(), StepError> {
        let name = entry.path_bytes().into_owned();
        let kind = entry.header().entry_type();
        if kind == tar::EntryType::XGlobalHeader {
            return Ok(());
        }
        let Some(inside) = TreePath::clamped(&name).filter(|_| name.len() <= MAX_PATH) else {
            return Err(self.refused(&name, "has a name that is too long or holds a NUL character"));
        };
        let meta = self.meta(&mut entry, &name)?;
        if inside.is_root() {
            // The archive's own root does not change the directory it is unpacked into.
            return Ok(());
        }
        let to = self.place(&inside, &name)?;
        self.writer.parents(&to)?;
        if kind.is_dir() {
            self.writer.directory(&to)?;
            return self.writer.set(&to, &meta);
        }
        self.writer.replace_directory(&to)?;
        if matches!(kind, tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse) {
            let size = entry.size();
            return self.writer.file(&to, &mut entry, size, &meta);
        }
        let target = entry.link_name_bytes().map(|t| t.into_owned()).unwrap_or_default();
        match kind {
            tar::EntryType::Symlink if target.is_empty() || target.contains(&0) => {
                Err(self.refused(&name, "is a link to nothing"))
            }
            tar::EntryType::Symlink => self.writer.symlink(&to, &target, &meta),
            tar::EntryType::Link => {
                let Some(first) = TreePath::clamped(&target).filter(|t| !t.is_root()) else {
                    return Err(self.refused(&name, "is a hard link to nothing"));
                };
                let first = self.place(&first, &name)?;
                if !self.writer.in_layer(&first)? {
                    return Err(
                        self.refused(&name, "is a hard link to something that is not earlier in the archive")
                    );
                }
                self.writer.link(&first, &to)
            }
            tar::EntryType::Fifo => self.writer.node(&to, &TreeKind::Fifo, &meta),
            tar::EntryType::Char | tar::EntryType::Block => {
                let number = |n: io::Result<Option<u32>>| n.ok().flatten().unwrap_or_default();
                let header = entry.header();
                let (major, minor) = (number(header.device_major()), number(header.device_minor()));
                let device = TreeKind::Device { character: kind == tar::EntryType::Char, major, minor };
                self.writer.node(&to, &device, &meta)
            }
            _ => Err(self.refused(
                &name,
                format!("is of a kind that is not supported ({:?})", char::from(kind.as_byte())),
            )),
        }
    }

    fn meta(&self, entry: &mut tar::Entry<'_, impl Read>, name: &[u8]) -> Result<Meta, StepError> {
        let header = entry.header();
        let mode = header.mode().map_err(|e| self.refused(name, e))? & 0o7777;
        let id = |n: io::Result<u64>| {
            let n = n.map_err(|e| self.refused(name, e))?;
            u32::try_from(n)
                .ok()
                .filter(|n| *n != u32::MAX)
                .ok_or_else(|| self.refused(name, "has an owner out of range"))
        };
        let own = (id(header.uid())?, id(header.gid())?);
        let mut xattrs = Vec::new();
        if let Some(extensions) = entry.pax_extensions().map_err(|e| self.refused(name, e))? {
            for extension in extensions {
                let extension = extension.map_err(|e| self.refused(name, e))?;
                if let Some(key) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") {
                    xattrs.push((key.to_vec(), extension.value_bytes().to_vec()));
                }
            }
        }
        Ok(Meta { mode, owner: self.owner.unwrap_or(own), xattrs })
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
