//! A layer blob made into a directory that overlayfs takes as a layer.
//!
//! Decompressing and hashing run in a thread beside the one that writes files. Every path is resolved
//! inside the new directory by descriptor; a symlink in the archive leads only to where it would lead in a
//! container. Decisions, with the case of docs/security that each one is:
//! - `..` in a name or in a hard link's target is refused, a leading slash is dropped (T01, T03);
//! - a parent that is a symlink is followed inside the layer (T02);
//! - whiteouts become what overlayfs reads; `.wh.` is never made as a file (T06). Opaque roots are refused,
//!   because the kernel does not honour them;
//! - device nodes are left out: a container has its own /dev, and a node with a real number would be a hole in
//!   the sandbox. The blob, which is what gets pushed, still has them (T07);
//! - of the extended attributes, file capabilities and `user.` ones are kept (T07).

use super::parse::{Archive, Member, MemberKind, ParseError};
use super::write::{OPAQUE, WHITEOUT};
use super::zstd::Frames;
use super::{Compression, UnpackError, UnpackLimits};
use crate::error::{StoreError, content_asks_for_it};
use crate::open::Store;
use crate::snapshot::{LAYER_TIME, Upper};
use crate::walk::overlay;
use flate2::bufread::MultiGzDecoder;
use keelway_disk::{NodeKind, Root, Step};
use keelway_model::oci::Descriptor;
use keelway_model::{Digest, Hasher};
use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Plain bytes handed over at once, and how many such pieces may wait.
const PIECE: usize = 256 << 10;
const PIECES: usize = 16;

/// What most file systems give out at once.
const BLOCK: u64 = 4096;

/// The mode of a directory that only a path implies.
const IMPLIED_MODE: u32 = 0o755;

/// Unpacks into `upper`; the caller publishes it, or drops it after an error. Gives what its files take of the disk, by
/// their lengths.
pub(super) fn unpack(
    store: &Store,
    upper: &Upper,
    layer: &Descriptor,
    compression: Compression,
    diff_id: &Digest,
    limits: &UnpackLimits,
) -> Result<u64, UnpackError> {
    let blob = open(store, layer)?;
    let root = upper.root()?;
    let (pieces, reader) = sync_channel(PIECES);
    let (found, size) = std::thread::scope(|scope| {
        let source = scope.spawn(move || decompress(blob, compression, &layer.digest, limits, &pieces));
        let mut unpacker = Unpacker::new(store, root, layer.digest, *limits);
        let unpacked = unpacker.run(Archive::new(Pieces { reader, piece: Vec::new(), at: 0 }));
        // What broke the stream is the cause of what then broke the archive.
        match source.join() {
            Ok(Err(e)) => Err(e),
            Ok(Ok(found)) => unpacked.map(|()| (found, unpacker.disk)),
            Err(_) => Err(unpacker.malformed(0, "the decompressor failed".into())),
        }
    })?;
    promised(layer, diff_id, found)?;
    Ok(size)
}

/// Whether a blob holds the tar that `diff_id` names; writes nothing.
pub(super) fn verify(
    store: &Store,
    layer: &Descriptor,
    compression: Compression,
    diff_id: &Digest,
    limits: &UnpackLimits,
) -> Result<(), UnpackError> {
    let blob = open(store, layer)?;
    let (pieces, reader) = sync_channel(PIECES);
    let found = std::thread::scope(|scope| {
        scope.spawn(move || reader.into_iter().for_each(drop));
        let found = decompress(blob, compression, &layer.digest, limits, &pieces);
        // Ends the other thread.
        drop(pieces);
        found
    })?;
    promised(layer, diff_id, found)
}

fn open(store: &Store, layer: &Descriptor) -> Result<File, UnpackError> {
    let blob = store.open_blob(&layer.digest)?;
    let size = blob.metadata().map_err(StoreError::io("read", store.blob_path(&layer.digest)))?.len();
    if size != layer.size {
        let why = format!("the blob has {size} bytes, its descriptor says {}", layer.size);
        return Err(UnpackError::Limit { layer: layer.digest, why });
    }
    Ok(blob)
}

fn promised(layer: &Descriptor, diff_id: &Digest, found: Option<Digest>) -> Result<(), UnpackError> {
    match found {
        Some(found) if found == *diff_id => Ok(()),
        Some(found) => Err(UnpackError::DiffId { layer: layer.digest, expected: *diff_id, found }),
        None => Err(UnpackError::Malformed {
            layer: layer.digest,
            offset: 0,
            why: "it was not read to its end".into(),
        }),
    }
}

/// The plain bytes of a blob.
pub(super) fn decoder(blob: impl Read + 'static, compression: Compression) -> Box<dyn Read> {
    let blob = BufReader::with_capacity(128 << 10, blob);
    match compression {
        Compression::None => Box::new(blob),
        Compression::Gzip => Box::new(MultiGzDecoder::new(blob)),
        Compression::Zstd => Box::new(Frames::new(blob)),
    }
}

/// Counts what is read of the blob.
struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buf)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// Sends the plain bytes and returns their digest; `None` when nobody wants them any more.
fn decompress(
    file: File,
    compression: Compression,
    layer: &Digest,
    limits: &UnpackLimits,
    to: &SyncSender<Vec<u8>>,
) -> Result<Option<Digest>, UnpackError> {
    let read = Arc::new(AtomicU64::new(0));
    let mut plain = decoder(Counted { file, read: read.clone() }, compression);
    let mut hasher = Hasher::new();
    let mut total = 0u64;
    loop {
        let mut piece = vec![0; PIECE];
        let n = match plain.read(&mut piece) {
            Ok(0) => return Ok(Some(hasher.finish())),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(UnpackError::Compressed { layer: *layer, source }),
        };
        total += n as u64;
        let limit = |why: String| Err(UnpackError::Limit { layer: *layer, why });
        if total > limits.bytes.0 {
            return limit(format!("it unpacks to more than {}", limits.bytes));
        }
        let compressed = read.load(Ordering::Relaxed).max(1);
        if total > limits.ratio_free.0 && total / compressed > limits.ratio {
            return limit(format!("it unpacks to more than {} times its size", limits.ratio));
        }
        hasher.update(&piece[..n]);
        piece.truncate(n);
        if to.send(piece).is_err() {
            return Ok(None);
        }
    }
}

/// The receiving end, as a reader.
struct Pieces {
    reader: Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.piece.len() {
            // A closed channel is the end; whether a good one, the other thread says.
            (self.piece, self.at) = (self.reader.recv().unwrap_or_default(), 0);
        }
        Ok(&self.piece[self.at..])
    }
    fn consume(&mut self, n: usize) {
        self.at = (self.at + n).min(self.piece.len());
    }
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let have = self.fill_buf()?;
        let n = have.len().min(buf.len());
        buf[..n].copy_from_slice(&have[..n]);
        self.consume(n);
        Ok(n)
    }
}

struct Unpacker<'s> {
    store: &'s Store,
    root: Root,
    layer: Digest,
    limits: UnpackLimits,
    entries: u64,
    /// The last parent directory, while nothing can have changed what its path means.
    parent: Option<(Vec<u8>, Root)>,
    /// Directories get their times last: making entries in them changes those.
    times: BTreeMap<Vec<u8>, (i64, u32)>,
    dropped: u64,
    /// What files and directories take, in whole blocks.
    disk: u64,
}

enum Failed {
    Entry(String),
    Limit(String),
    Io(io::Error),
}

impl From<io::Error> for Failed {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

fn refuse<T>(why: &str) -> Result<T, Failed> {
    Err(Failed::Entry(why.into()))
}

impl<'s> Unpacker<'s> {
    fn new(store: &'s Store, root: Root, layer: Digest, limits: UnpackLimits) -> Self {
        let times = BTreeMap::from([(Vec::new(), (LAYER_TIME.seconds(), 0))]);
        Self { store, root, layer, limits, entries: 0, parent: None, times, dropped: 0, disk: 0 }
    }

    fn malformed(&self, offset: u64, why: String) -> UnpackError {
        UnpackError::Malformed { layer: self.layer, offset, why }
    }

    fn run(&mut self, mut archive: Archive<impl BufRead>) -> Result<(), UnpackError> {
        loop {
            let offset = archive.offset;
            let member = archive.next_member().map_err(|ParseError(why)| self.malformed(offset, why))?;
            let Some(member) = member else { break };
            self.apply(&member, &mut archive).map_err(|e| self.explain(&member.path, e))?;
        }
        for (path, (seconds, nanoseconds)) in std::mem::take(&mut self.times) {
            self.root.set_mtime(&path, seconds, nanoseconds).map_err(|e| self.explain(&path, e.into()))?;
        }
        if self.dropped > 0 {
            tracing::info!(layer = %self.layer, nodes = self.dropped, "device nodes of the layer were left out");
        }
        Ok(())
    }

    fn explain(&self, path: &[u8], e: Failed) -> UnpackError {
        let (layer, path) = (self.layer, String::from_utf8_lossy(path).escape_debug().to_string());
        match e {
            Failed::Limit(why) => UnpackError::Limit { layer, why },
            Failed::Entry(why) => UnpackError::Entry { layer, path, why },
            // What the archive asks for cannot be: a file as parent, a loop of links, a name too long.
            Failed::Io(e) if content_asks_for_it(&e) => {
                UnpackError::Entry { layer, path, why: e.to_string() }
            }
            Failed::Io(e) => StoreError::io("unpack a layer: write", path)(e).into(),
        }
    }

    fn count(&mut self) -> Result<(), Failed> {
        self.entries += 1;
        match self.entries > self.limits.entries {
            true => Err(Failed::Limit(format!("it has more than {} entries", self.limits.entries))),
            false => Ok(()),
        }
    }

    fn apply(&mut self, member: &Member, archive: &mut Archive<impl BufRead>) -> Result<(), Failed> {
        self.count()?;
        let parts = components(&member.path)?;
        let Some((name, above)) = parts.split_last() else {
            let MemberKind::Directory = member.kind else { return refuse("the root is a directory") };
            return self.finish_directory(b"", member);
        };
        if above.iter().any(|p| p.starts_with(WHITEOUT)) {
            return refuse("names that begin with .wh. mean deletions");
        }
        if let MemberKind::Node(NodeKind::Device { .. }) = member.kind {
            self.dropped += 1;
            return Ok(());
        }
        self.enter(above)?;
        let path = parts.join(&b'/');
        if name.starts_with(WHITEOUT) {
            return self.delete(above, name);
        }
        let was = self.parent().stat(name)?;
        if was.is_some_and(|s| s.kind == NodeKind::Directory) && member.kind == MemberKind::Directory {
            return self.finish_directory(&path, member);
        }
        if was.is_some() {
            // A hard link to itself would delete what it links to.
            if let MemberKind::HardLink(target) = &member.kind
                && components(target)? == parts
            {
                return Ok(());
            }
            self.parent().remove_all(name)?;
            self.times.remove(&path);
        }
        match &member.kind {
            MemberKind::File(_) => self.file(name, member, archive)?,
            MemberKind::Directory => {
                self.parent().mkdir(name, 0o700)?;
                self.disk += BLOCK;
                if was.is_some_and(|s| s.kind == overlay::WHITEOUT) {
                    overlay::set_opaque(self.parent(), name)?;
                }
                return self.finish_directory(&path, member);
            }
            MemberKind::Symlink(target) => {
                self.parent().symlink(target, name)?;
                self.parent().set_owner(name, member.uid, member.gid)?;
                self.parent().set_mtime(name, member.mtime.0, member.mtime.1)?;
            }
            MemberKind::HardLink(target) => self.hard_link(target, &path)?,
            MemberKind::Node(kind) => {
                self.parent().mknod(name, *kind, member.mode)?;
                self.parent().set_owner(name, member.uid, member.gid)?;
                self.parent().set_mode(name, member.mode)?;
                self.parent().set_mtime(name, member.mtime.0, member.mtime.1)?;
            }
        }
        // Whatever is not a new file may change what a path means.
        if was.is_some() || !matches!(member.kind, MemberKind::File(_)) {
            self.parent = None;
        }
        Ok(())
    }

    /// Makes the directory of an entry the present parent.
    fn enter(&mut self, above: &[&[u8]]) -> Result<(), Failed> {
        let path = above.join(&b'/');
        if self.parent.as_ref().is_some_and(|(p, _)| *p == path) {
            return Ok(());
        }
        let opened = match self.root.open_dir(&path) {
            // Not there, or deleted and now there again.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                self.imply(above)?;
                self.root.open_dir(&path)
            }
            other => other,
        };
        self.parent = Some((path, opened?));
        Ok(())
    }

    /// Makes the directories that no entry made.
    fn imply(&mut self, above: &[&[u8]]) -> Result<(), Failed> {
        for depth in 1..=above.len() {
            let path = above[..depth].join(&b'/');
            // A deleted name that something is made beneath: it is there after all, and hides what was.
            let hidden = self.root.stat(&path)?.is_some_and(|s| s.kind == overlay::WHITEOUT);
            if hidden {
                self.root.remove(&path)?;
            }
            match self.root.open_dir(&path) {
                Ok(_) => continue,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e.into()),
            }
            self.count()?;
            self.root.mkdir(&path, IMPLIED_MODE)?;
            if hidden {
                overlay::set_opaque(&self.root, &path)?;
            }
            self.times.insert(path, (LAYER_TIME.seconds(), 0));
        }
        Ok(())
    }

    fn parent(&self) -> &Root {
        self.parent.as_ref().map_or(&self.root, |(_, dir)| dir)
    }

    fn finish_directory(&mut self, path: &[u8], member: &Member) -> Result<(), Failed> {
        self.root.set_owner(path, member.uid, member.gid)?;
        self.root.set_mode(path, member.mode)?;
        for (name, value) in member.xattrs.iter().filter(|(n, _)| overlay::is_for_images(n)) {
            self.root.set_xattr(path, name, value)?;
        }
        self.times.insert(path.to_vec(), member.mtime);
        self.parent = None;
        Ok(())
    }

    fn file(
        &mut self,
        name: &[u8],
        member: &Member,
        archive: &mut Archive<impl BufRead>,
    ) -> Result<(), Failed> {
        self.store.inner.faults.step(Step::Create)?;
        let parent = self.parent();
        let mut file = parent.create_file(name, 0o600)?;
        let mut written = 0u64;
        loop {
            let bytes = archive.fill()?;
            if bytes.is_empty() {
                break;
            }
            self.store.inner.faults.step(Step::Write)?;
            file.write_all(bytes)?;
            let n = bytes.len();
            written += n as u64;
            archive.consume(n);
        }
        // In this order: changing the owner clears the set-id bits and the capabilities.
        parent.set_owner(name, member.uid, member.gid)?;
        for (key, value) in member.xattrs.iter().filter(|(n, _)| overlay::is_for_images(n)) {
            parent.set_xattr(name, key, value)?;
        }
        file.set_permissions(Permissions::from_mode(member.mode))?;
        parent.set_mtime(name, member.mtime.0, member.mtime.1)?;
        self.disk += written.next_multiple_of(BLOCK);
        Ok(())
    }

    fn hard_link(&self, target: &[u8], path: &[u8]) -> Result<(), Failed> {
        let target = components(target)?.join(&b'/');
        match self.root.stat(&target)?.map(|s| s.kind) {
            None | Some(overlay::WHITEOUT) => refuse("a hard link to what is not in the layer before it"),
            Some(NodeKind::Directory) => refuse("a hard link to a directory"),
            Some(_) => Ok(self.root.hard_link(&target, path)?),
        }
    }

    /// A whiteout: of a name, or of all that lies below a directory.
    fn delete(&mut self, above: &[&[u8]], marker: &[u8]) -> Result<(), Failed> {
        if marker == OPAQUE {
            if above.is_empty() {
                return refuse("a layer that hides the whole root: flatten the image");
            }
            overlay::set_opaque(self.parent(), b".")?;
            return Ok(());
        }
        let name = &marker[WHITEOUT.len()..];
        if name.starts_with(WHITEOUT) {
            // Book-keeping of AUFS, which says nothing to anybody else.
            return Ok(());
        }
        if name.is_empty() || name == b"." || name == b".." {
            return refuse("a deletion of no name");
        }
        match self.parent().stat(name)?.map(|s| s.kind) {
            // Deletions mean lower layers only: what this layer makes stays, and hides what was below.
            Some(NodeKind::Directory) => overlay::set_opaque(self.parent(), name)?,
            Some(_) => {}
            None => {
                self.parent().mknod(name, overlay::WHITEOUT, 0)?;
                self.parent().set_mtime(name, LAYER_TIME.seconds(), 0)?;
            }
        }
        Ok(())
    }
}

/// The components of a name in an archive.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, Failed> {
    let parts: Vec<&[u8]> = path.split(|&b| b == b'/').filter(|p| !p.is_empty() && *p != b".").collect();
    if parts.contains(&&b".."[..]) { refuse("'..' in a name") } else { Ok(parts) }
}
