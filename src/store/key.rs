//! The one content key: a sha256 Merkle over normalised entries.
//!
//! What counts: names, kinds, permission bits, owners, the extended attributes that an image carries, link
//! targets, device numbers, bytes. What never counts: times, inode numbers, which names are hard links of one
//! file, the name of the entry one starts from.
//!
//! Where a tree has memo ids (git's, or a snapshot's place), the digest of what they name is remembered in
//! `cache/memo/table`: records of 72 bytes, memo key, digest and a checksum. A lost or damaged record costs
//! time only. So is that of a file on this machine's disk, under its [`Stamp`]: a context that did not change
//! is looked at, not read.

use crate::open::Store;
use keelway_model::{Chmod, Digest, Hasher, Stamp, Tree, TreeEntry, TreeError, TreeKind, TreePath};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What a filter says of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It, and everything beneath it: memos may be used.
    Whole,
    /// It, and beneath it what the filter says.
    Partly,
    /// Not it; beneath it what the filter says. A directory counts when something beneath it does.
    OnlyBeneath,
    /// Nothing of it.
    Skip,
}

/// The filter that keeps all.
pub fn keep_everything(_: &TreePath, _: &TreeEntry) -> Verdict {
    Verdict::Whole
}

/// What of the entries counts, and as what.
pub struct KeyRules<'a> {
    /// Asked for every entry, the one at the start included.
    pub filter: &'a dyn Fn(&TreePath, &TreeEntry) -> Verdict,
    /// Owner and group that every entry will get (`--chown`, or 0:0); `None` keeps each one's own.
    pub owner: Option<(u32, u32)>,
    /// What becomes of every entry's mode (`--chmod`); `None` keeps each one's own.
    pub mode: Option<&'a Chmod>,
}

/// Part of every memo key: bumped when the digest of the same content changes.
const VERSION: u32 = 1;

/// Deeper trees are refused, for the sake of the stack.
const MAX_DEPTH: usize = 256;

/// Entries that are looked at for one digest, at most: a git tree that names one folder again and again is small and
/// has no end (S10).
const MAX_ENTRIES: u64 = if cfg!(test) { 20_000 } else { 2_000_000 };

/// Most bytes that one key reads. A sparse file costs its maker nothing.
const MAX_BYTES: u64 = 64 << 30;

const RECORD: usize = 72;

/// A table beyond this is begun anew. It is read whole: a quarter of a million records take 40 ms.
const MAX_TABLE: u64 = 16 << 20;

/// Smaller files are read sooner than remembered.
const STAMPED: u64 = 4096;

/// A file that was changed this recently may change again with the same times, by the kernel's clock tick.
const SETTLED: i64 = 2;

impl Store {
    /// The content key of what is at `path` in `tree`: names, kinds, modes, owners, extended attributes,
    /// link targets and bytes; never times, never the name of `path` itself. Digests of what the tree has
    /// memo ids for are remembered in the store.
    pub fn content_digest(
        &self,
        tree: &dyn Tree,
        path: &TreePath,
        rules: &KeyRules<'_>,
    ) -> Result<Digest, TreeError> {
        let digest = self.content_if_any(tree, path, rules)?;
        // Where the filter leaves nothing, the key says so.
        Ok(digest.unwrap_or_else(|| Digest::of(b"keelway content: nothing")))
    }

    /// The same; `None` where the filter leaves nothing.
    pub fn content_if_any(
        &self,
        tree: &dyn Tree,
        path: &TreePath,
        rules: &KeyRules<'_>,
    ) -> Result<Option<Digest>, TreeError> {
        self.content_digest_at(tree, path, rules, None)
    }

    /// The same at a given time of the kernel's clock, in seconds; `None` is now.
    fn content_digest_at(
        &self,
        tree: &dyn Tree,
        path: &TreePath,
        rules: &KeyRules<'_>,
        now: Option<i64>,
    ) -> Result<Option<Digest>, TreeError> {
        let entry = tree.entry(path)?.ok_or_else(|| TreeError::NotFound { path: path.clone() })?;
        let (fresh, buffer) = (HashMap::new(), vec![0; 128 << 10]);
        let mut work = Work { store: self, tree, rules, now, fresh, buffer, entries: 0, bytes: 0 };
        let verdict = (rules.filter)(path, &entry);
        let digest = work.entry(path, &entry, verdict, 0)?;
        if !work.fresh.is_empty() {
            let fresh: Vec<_> = work.fresh.drain().collect();
            if let Err(e) = self.memos().add(&fresh) {
                tracing::debug!("content digests are not remembered: {e}");
            }
        }
        Ok(digest)
    }

    /// The time that a file would get now, in seconds: of the kernel, whatever clock the store was given.
    fn kernel_time(&self) -> io::Result<i64> {
        let path = self.private("now");
        let time = File::create_new(&path)?.metadata()?.ctime();
        std::fs::remove_file(&path)?;
        Ok(time)
    }

    fn memos(&self) -> std::sync::MutexGuard<'_, Memos> {
        self.inner.memos.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

struct Work<'a> {
    store: &'a Store,
    tree: &'a dyn Tree,
    rules: &'a KeyRules<'a>,
    /// When this began, by the clock that stamps files.
    now: Option<i64>,
    /// What this walk has found out, for equal folders further on and for the next walk.
    fresh: HashMap<Digest, Digest>,
    buffer: Vec<u8>,
    /// Looked at so far.
    entries: u64,
    /// Read so far.
    bytes: u64,
}

impl Work<'_> {
    fn entry(
        &mut self,
        path: &TreePath,
        e: &TreeEntry,
        verdict: Verdict,
        depth: usize,
    ) -> Result<Option<Digest>, TreeError> {
        if verdict == Verdict::Skip || (verdict == Verdict::OnlyBeneath && e.kind != TreeKind::Directory) {
            return Ok(None);
        }
        let limit = |why: String| Err(TreeError::Limit { path: path.clone(), why });
        if depth > MAX_DEPTH {
            return limit(format!("directories are nested more than {MAX_DEPTH} deep"));
        }
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return limit(format!(
                "there are more than {MAX_ENTRIES} files and directories up to here: leave some out, for example by .dockerignore"
            ));
        }
        let meta = self.meta(e);
        let mut memo = None;
        if verdict == Verdict::Whole
            && let Some(named) = self.tree.memo(path)
        {
            let key = self.memo_key(&named, &meta);
            if let Some(known) = self.known(&key) {
                return Ok(Some(known));
            }
            memo = Some(key);
        }
        let mut h = Hasher::new();
        h.field(b"keelway content").field(meta.as_bytes());
        match &e.kind {
            TreeKind::File { size } => {
                h.field(self.bytes(path, *size)?.as_bytes());
            }
            TreeKind::Directory => {
                let mut any = false;
                for child in self.tree.list(path)? {
                    let Some(at) = path.join(&child.name) else { continue };
                    let below = match verdict {
                        Verdict::Whole => Verdict::Whole,
                        _ => (self.rules.filter)(&at, &child),
                    };
                    if let Some(digest) = self.entry(&at, &child, below, depth + 1)? {
                        any = true;
                        h.field(&child.name).field(digest.as_bytes());
                    }
                }
                if !any && verdict == Verdict::OnlyBeneath {
                    return Ok(None);
                }
            }
            _ => {}
        }
        let digest = h.finish();
        if let Some(key) = memo {
            self.fresh.insert(key, digest);
        }
        Ok(Some(digest))
    }

    fn known(&self, key: &Digest) -> Option<Digest> {
        self.fresh.get(key).copied().or_else(|| self.store.memos().get(key))
    }

    /// Before a file is read.
    fn will_read(&mut self, path: &TreePath, size: u64) -> Result<(), TreeError> {
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > MAX_BYTES {
            let why = format!("there are more than {} GiB of files up to here", MAX_BYTES >> 30);
            return Err(TreeError::Limit { path: path.clone(), why });
        }
        Ok(())
    }

    /// Everything about an entry but its name and content.
    fn meta(&self, e: &TreeEntry) -> Digest {
        let (uid, gid) = self.rules.owner.unwrap_or((e.uid, e.gid));
        let directory = e.kind == TreeKind::Directory;
        let mode = self.rules.mode.map_or(e.mode, |m| m.apply(e.mode, directory)) & 0o7777;
        let mut h = Hasher::new();
        let numbers = |h: &mut Hasher, numbers: &[u32]| {
            for n in numbers {
                h.field(&n.to_le_bytes());
            }
        };
        match &e.kind {
            TreeKind::File { .. } => h.field(b"file"),
            TreeKind::Directory => h.field(b"directory"),
            TreeKind::Symlink { target } => h.field(b"symlink").field(target),
            TreeKind::Fifo => h.field(b"fifo"),
            TreeKind::Socket => h.field(b"socket"),
            TreeKind::Submodule => h.field(b"submodule"),
            TreeKind::Device { character, major, minor } => {
                h.field(if *character { b"character" } else { b"block" });
                numbers(&mut h, &[*major, *minor]);
                &mut h
            }
        };
        // A symbolic link has no mode.
        numbers(&mut h, &[uid, gid, if matches!(e.kind, TreeKind::Symlink { .. }) { 0 } else { mode }]);
        for (name, value) in &e.xattrs {
            h.field(name).field(value);
        }
        h.finish()
    }

    fn memo_key(&self, named: &Digest, meta: &Digest) -> Digest {
        let mut h = Hasher::new();
        h.field(b"keelway memo").field(&VERSION.to_le_bytes()).field(named.as_bytes()).field(meta.as_bytes());
        // What the rules do to entries beneath.
        let mode = self.rules.mode.map(ToString::to_string);
        let rules = format!("{:?} {mode:?}", self.rules.owner);
        h.field(rules.as_bytes());
        h.finish()
    }

    fn bytes(&mut self, path: &TreePath, size: u64) -> Result<Digest, TreeError> {
        let wrong = |source| TreeError::Io { path: path.clone(), source };
        // Most files are as they were: those are not even opened.
        if size >= STAMPED
            && let Some(stamp) = self.tree.stamp(path)?
            && let Some(stamp) = self.settled(&stamp).map_err(wrong)?
            && let Some(known) = self.known(&stamp)
        {
            return Ok(known);
        }
        let Some(mut file) = self.tree.open_file(path)? else {
            self.will_read(path, size)?;
            let mut file = self.tree.open(path)?;
            return self.read(&mut *file).map_err(wrong);
        };
        // Of what is read now, which may be another file.
        let stamp = file.metadata().and_then(|m| self.settled(&Stamp::from(&m))).map_err(wrong)?;
        if let Some(stamp) = &stamp
            && let Some(known) = self.known(stamp)
        {
            return Ok(known);
        }
        self.will_read(path, size)?;
        let digest = self.read(&mut file).map_err(wrong)?;
        if let Some(stamp) = stamp {
            self.fresh.insert(stamp, digest);
        }
        Ok(digest)
    }

    fn read(&mut self, file: &mut dyn Read) -> io::Result<Digest> {
        let mut h = Hasher::new();
        loop {
            match file.read(&mut self.buffer) {
                Ok(0) => return Ok(h.finish()),
                Ok(n) => {
                    h.update(&self.buffer[..n]);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The memo key of a file that is worth one, and whose last change is long enough ago to be seen by it.
    fn settled(&mut self, stamp: &Stamp) -> io::Result<Option<Digest>> {
        if stamp.size < STAMPED {
            return Ok(None);
        }
        let now = match self.now {
            Some(now) => now,
            None => *self.now.insert(self.store.kernel_time()?),
        };
        Ok((stamp.changed.0.max(stamp.modified.0) < now - SETTLED).then(|| stamp_key(stamp)))
    }
}

fn stamp_key(stamp: &Stamp) -> Digest {
    let mut h = Hasher::new();
    h.field(b"keelway stamp").field(&VERSION.to_le_bytes());
    for n in [stamp.device, stamp.inode, stamp.size] {
        h.field(&n.to_le_bytes());
    }
    for n in [stamp.modified.0, stamp.modified.1, stamp.changed.0, stamp.changed.1] {
        h.field(&n.to_le_bytes());
    }
    h.finish()
}

/// The memo table, read when it is first needed.
pub(crate) struct Memos {
    path: PathBuf,
    table: Option<HashMap<Digest, Digest>>,
}

impl Memos {
    pub(crate) fn new(store: &Path) -> Self {
        Self { path: store.join("cache/memo/table"), table: None }
    }

    fn table(&mut self) -> &mut HashMap<Digest, Digest> {
        let path = &self.path;
        self.table.get_or_insert_with(|| {
            let mut bytes = Vec::new();
            if let Ok(file) = File::open(path) {
                // What could not be read is not remembered; nothing else depends on it.
                let _ = file.take(MAX_TABLE).read_to_end(&mut bytes);
            }
            decode_table(&bytes).collect()
        })
    }

    fn get(&mut self, key: &Digest) -> Option<Digest> {
        self.table().get(key).copied()
    }

    fn add(&mut self, fresh: &[(Digest, Digest)]) -> io::Result<()> {
        self.table().extend(fresh.iter().copied());
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&self.path)?;
        // So that two processes do not write into each other's records; freed with the descriptor.
        file.lock()?;
        let length = file.seek(io::SeekFrom::End(0))?;
        let torn = length % RECORD as u64;
        if length > MAX_TABLE {
            file.set_len(0)?;
        } else if torn != 0 {
            file.set_len(length - torn)?;
        }
        let mut bytes = Vec::with_capacity(fresh.len() * RECORD);
        for (key, value) in fresh {
            bytes.extend_from_slice(&encode_memo(key, value));
        }
        file.write_all(&bytes)
    }
}

fn encode_memo(key: &Digest, value: &Digest) -> [u8; RECORD] {
    let mut out = [0; RECORD];
    out[..32].copy_from_slice(key.as_bytes());
    out[32..64].copy_from_slice(value.as_bytes());
    let sum = Digest::of(&out[..64]);
    out[64..].copy_from_slice(&sum.as_bytes()[..8]);
    out
}

pub(crate) fn decode_table(bytes: &[u8]) -> impl Iterator<Item = (Digest, Digest)> {
    bytes.chunks_exact(RECORD).filter_map(|r| {
        let digest = |range: std::ops::Range<usize>| Some(Digest::from_bytes(r.get(range)?.try_into().ok()?));
        let (key, value) = (digest(0..32)?, digest(32..64)?);
        (encode_memo(&key, &value) == r).then_some((key, value))
    })
}

#[cfg(test)]
mod tests;
