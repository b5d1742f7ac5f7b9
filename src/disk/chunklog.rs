//! The one log format: an append-only file of chunks, each with its length, a checksum and its offset.
//!
//! A reader may follow a file that is being written, and a writer that died may leave a torn tail: the
//! reader stops before it, the next writer cuts it off. Chunks are opaque bytes.

use crate::fault::Faults;
use std::fs::File;
use std::io;
use std::path::Path;

/// The writing end.
#[derive(Debug)]
pub struct ChunkLog {
    file: File,
    end: u64,
    faults: Faults,
}

/// The reading end.
#[derive(Debug)]
pub struct ChunkReader {
    file: File,
    offset: u64,
}

/// Longest chunk, in bytes.
pub const MAX_CHUNK: usize = 1 << 20;

impl ChunkLog {
    /// Opens or creates the log and cuts a torn tail. One writer at a time (the caller's lock).
    pub fn open(path: &Path, faults: Faults) -> io::Result<ChunkLog> {
        todo!()
    }
    /// Appends a chunk of at most [`MAX_CHUNK`] bytes and returns its offset.
    pub fn append(&mut self, chunk: &[u8]) -> io::Result<u64> {
        todo!()
    }
    /// Makes what was appended survive a crash of the machine.
    pub fn sync(&mut self) -> io::Result<()> {
        todo!()
    }
    /// Where the next chunk goes.
    pub fn end(&self) -> u64 {
        self.end
    }
}

impl ChunkReader {
    /// Reads from `offset`, which must be 0 or one that [`ChunkLog::append`] or [`ChunkReader::offset`] gave.
    pub fn open(path: &Path, offset: u64) -> io::Result<ChunkReader> {
        todo!()
    }
    /// The next chunk; `None` at the end or before a torn or damaged one (call again when the file grew).
    pub fn next_chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        todo!()
    }
    /// Where the next chunk begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}
