//! Blobs: immutable bytes named by their sha256.

use crate::error::StoreError;
use crate::open::Store;
use keelway_model::Digest;
use std::fs::File;
use std::io::{self, Write};

/// A blob being written; nothing is visible until [`BlobWriter::commit`], and dropping it leaves nothing.
pub struct BlobWriter {
    store: Store,
}

/// Why a blob was not taken.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The bytes are not those that were promised.
    #[error(
        "content does not match its digest: expected {expected} with {expected_size} bytes, got {found} with {found_size} bytes"
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
        todo!()
    }
    /// Publishes the blob if its digest and length are the expected ones (where given), and returns them.
    pub fn commit(self, expected: Option<(Digest, u64)>) -> Result<(Digest, u64), CommitError> {
        todo!()
    }
}

impl Write for BlobWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        todo!()
    }
    fn flush(&mut self) -> io::Result<()> {
        todo!()
    }
}

impl Store {
    /// Whether the blob is here.
    pub fn has_blob(&self, digest: &Digest) -> bool {
        todo!()
    }
    /// The blob's length in bytes, `None` when it is not here.
    pub fn blob_size(&self, digest: &Digest) -> Option<u64> {
        todo!()
    }
    /// Opens a blob for reading.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, StoreError> {
        todo!()
    }
    /// Reads a whole blob of at most `max` bytes and checks it against its digest.
    pub fn read_blob(&self, digest: &Digest, max: u64) -> Result<Vec<u8>, StoreError> {
        todo!()
    }
    /// Stores bytes.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        todo!()
    }
    /// Begins a blob of unknown length.
    pub fn blob_writer(&self) -> Result<BlobWriter, StoreError> {
        todo!()
    }
}
