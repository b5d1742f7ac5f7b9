//! Blobs: immutable bytes named by their sha256.
//!
//! A blob is written in the run directory and published by rename, so a reader sees all of it or none.
//! Publishing one that is there already is fine: both hold the same bytes.

use crate::error::StoreError;
use crate::hold::Thing;
use crate::open::{Store, is_unsynced};
use crate::used::{on_disk, open_quietly};
use keelway_disk::Step;
use keelway_model::{Digest, Hasher};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A blob being written; nothing is visible until [`BlobWriter::commit`], and dropping it leaves nothing.
pub struct BlobWriter {
    store: Store,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    written: u64,
}

/// Why a blob was not taken.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The bytes are not those that were promised.
    #[error(
        "content does not match its digest: expected {expected} with {expected_size} bytes, got {found} with \
         {found_size} bytes; nothing was kept, try again"
    )]
    Mismatch {
        /// Promised digest.
        expected: Digest,
        /// Promised length.
        expected_size: u64,
        /// Digest of what came.
        found: Digest,
        /// Length of what came.
        found_size: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl BlobWriter {
    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Publishes the blob if its digest and length are the expected ones (where given), and returns them.
    pub fn commit(mut self, expected: Option<(Digest, u64)>) -> Result<(Digest, u64), CommitError> {
        let (found, found_size) = (std::mem::take(&mut self.hasher).finish(), self.written);
        if let Some((expected, expected_size)) = expected
            && (expected, expected_size) != (found, found_size)
        {
            return Err(CommitError::Mismatch { expected, expected_size, found, found_size });
        }
        self.store.publish_blob(&self.path, &found)?;
        Ok((found, found_size))
    }
}

impl Write for BlobWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.store.inner.faults.step(Step::Write)?;
        let n = self.file.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.written += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        // After a commit it is not there any more; what cannot be removed goes with the run directory.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Store {
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.inner.root.join("blobs/sha256").join(&hex[..2]).join(hex)
    }

    /// Whether the blob is here; if so it stays, as long as this store is open.
    pub fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_size(digest).is_some()
    }

    /// The blob's length in bytes, `None` when it is not here; if it is, it stays, as long as this store is open.
    pub fn blob_size(&self, digest: &Digest) -> Option<u64> {
        let path = self.blob_path(digest);
        let seen = self.use_file(&path)?;
        match self.hold(&[Thing::Blob(*digest)]) {
            Ok(false) => Some(seen.len()),
            // It may have gone before it was held.
            Ok(true) => path.symlink_metadata().ok().map(|m| m.len()),
            Err(e) => {
                tracing::warn!("{e}");
                None
            }
        }
    }

    /// Whether the blob is here now; it may be gone in a moment.
    pub(crate) fn blob_is_there(&self, digest: &Digest) -> bool {
        self.blob_path(digest).symlink_metadata().is_ok()
    }

    /// Opens a blob for reading.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, StoreError> {
        let path = self.blob_path(digest);
        self.hold(&[Thing::Blob(*digest)])?;
        match File::open(&path) {
            Ok(file) => {
                self.use_file(&path);
                Ok(file)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(StoreError::Missing { what: "blob", name: digest.to_string() })
            }
            Err(e) => Err(StoreError::io("open", path)(e)),
        }
    }

    /// Reads a whole blob of at most `max` bytes and checks it against its digest.
    pub fn read_blob(&self, digest: &Digest, max: u64) -> Result<Vec<u8>, StoreError> {
        let path = self.blob_path(digest);
        let file = self.open_blob(digest)?;
        let size = file.metadata().map_err(StoreError::io("read", &path))?.len();
        if size > max {
            return Err(StoreError::TooLarge { name: digest.to_string(), size, max });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        file.take(max.saturating_add(1)).read_to_end(&mut bytes).map_err(StoreError::io("read", &path))?;
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(StoreError::Damaged { path, why: format!("its content is {found}") });
        }
        Ok(bytes)
    }

    /// Stores bytes.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        // A blob of the right name and length is the blob; one of another length was lost in a crash.
        if self.blob_size(&digest) == Some(bytes.len() as u64) {
            return Ok(digest);
        }
        let mut writer = self.blob_writer()?;
        writer.write_all(bytes).map_err(StoreError::io("write", &writer.path))?;
        self.publish_blob(&writer.path, &digest)?;
        Ok(digest)
    }

    /// Begins a blob of unknown length.
    pub fn blob_writer(&self) -> Result<BlobWriter, StoreError> {
        let path = self.private("blob");
        self.inner.faults.step(Step::Create).map_err(StoreError::io("create", &path))?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(StoreError::io("create", &path))?;
        Ok(BlobWriter { store: self.clone(), path, file, hasher: Hasher::new(), written: 0 })
    }

    fn publish_blob(&self, from: &Path, digest: &Digest) -> Result<(), StoreError> {
        let to = self.blob_path(digest);
        self.hold(&[Thing::Blob(*digest)])?;
        let size = from.symlink_metadata().map_or(0, |stat| on_disk(&stat));
        self.inner.grew(size);
        let step = |s| self.inner.faults.step(s).map_err(StoreError::io("publish", &to));
        step(Step::Rename)?;
        match std::fs::rename(from, &to) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // The first blob of its folder.
                let folder = to.parent().unwrap_or(&self.inner.root);
                step(Step::Create)?;
                std::fs::create_dir_all(folder).map_err(StoreError::io("make", folder))?;
                std::fs::rename(from, &to).map_err(StoreError::io("publish", &to))
            }
            other => other.map_err(StoreError::io("publish", &to)),
        }
    }

    /// Hashes blobs again that may have been lost in a crash, and drops the damaged ones.
    pub(crate) fn check_unsynced_blobs(&self, mark: Option<SystemTime>) -> Result<(), StoreError> {
        let top = self.inner.root.join("blobs/sha256");
        for folder in std::fs::read_dir(&top).map_err(StoreError::io("list", &top))? {
            let folder = folder.map_err(StoreError::io("list", &top))?.path();
            for blob in std::fs::read_dir(&folder).map_err(StoreError::io("list", &folder))? {
                let path = blob.map_err(StoreError::io("list", &folder))?.path();
                if !is_unsynced(&path, mark) {
                    continue;
                }
                let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                if hash_file(&path).ok().map(|d| d.hex()).as_deref() != Some(name.as_str()) {
                    tracing::warn!(
                        blob = name,
                        "lost in a crash of the machine; it will be made or pulled again"
                    );
                    self.discard(&path)?;
                }
            }
        }
        Ok(())
    }
}

/// The digest of a file's bytes; looking is no use.
pub(crate) fn hash_file(path: &Path) -> io::Result<Digest> {
    let mut file = open_quietly(path)?;
    let (mut hasher, mut buf) = (Hasher::new(), vec![0; 256 << 10]);
    loop {
        match file.read(&mut buf) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(n) => {
                hasher.update(&buf[..n]);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
