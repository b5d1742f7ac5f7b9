//! The one log format: an append-only file of chunks, each with its length, a checksum and its offset.
//!
//! On disk: 8 bytes of magic, then for each chunk a header of 16 bytes (little endian: length u32,
//! the first 12 bytes of sha256 over length, offset and bytes) and the bytes. The offset is in the checksum,
//! so a chunk copied to another place does not pass for a chunk.
//!
//! A reader may follow a file that is being written, and a writer that died may leave a torn tail: the
//! reader stops before it, the next writer cuts it off. Chunks are opaque bytes.

use crate::fault::{Faults, Step};
use sha2::Digest as _;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
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

const MAGIC: &[u8; 8] = b"kwlog 1\n";
const HEADER: usize = 16;

fn header(offset: u64, chunk: &[u8]) -> [u8; HEADER] {
    let length = u32::try_from(chunk.len()).unwrap_or(u32::MAX).to_le_bytes();
    let mut hash = sha2::Sha256::new();
    hash.update(length);
    hash.update(offset.to_le_bytes());
    hash.update(chunk);
    let mut out = [0; HEADER];
    out[..4].copy_from_slice(&length);
    out[4..].copy_from_slice(&hash.finalize()[..12]);
    out
}

impl ChunkLog {
    /// Opens or creates the log and cuts a torn tail. One writer at a time (the caller's lock). A file that
    /// is not such a log is refused.
    pub fn open(path: &Path, faults: Faults) -> io::Result<ChunkLog> {
        faults.step(Step::Create)?;
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let length = file.metadata()?.len();
        // Shorter than the magic is a log whose writer died at once.
        if length < MAGIC.len() as u64 {
            file.set_len(0)?;
            file.write_all_at(MAGIC, 0)?;
            return Ok(ChunkLog { file, end: MAGIC.len() as u64, faults });
        }
        let mut reader = ChunkReader::over(file, 0)?;
        while reader.next_chunk()?.is_some() {}
        let ChunkReader { file, offset: end } = reader;
        if length > end {
            file.set_len(end)?;
        }
        Ok(ChunkLog { file, end, faults })
    }
    /// Appends a chunk of at most [`MAX_CHUNK`] bytes and returns its offset. After an error the log is as
    /// it was: what was written of the chunk is overwritten by the next.
    pub fn append(&mut self, chunk: &[u8]) -> io::Result<u64> {
        if chunk.len() > MAX_CHUNK {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a log chunk has at most 1 MiB"));
        }
        let offset = self.end;
        let mut bytes = Vec::with_capacity(HEADER + chunk.len());
        bytes.extend_from_slice(&header(offset, chunk));
        bytes.extend_from_slice(chunk);
        self.faults.step(Step::Write)?;
        self.file.write_all_at(&bytes, offset)?;
        self.end += bytes.len() as u64;
        Ok(offset)
    }
    /// Makes what was appended survive a crash of the machine.
    pub fn sync(&mut self) -> io::Result<()> {
        self.faults.step(Step::Sync)?;
        self.file.sync_data()
    }
    /// Where the next chunk goes.
    pub fn end(&self) -> u64 {
        self.end
    }
}

impl ChunkReader {
    /// Reads from `offset`, which must be 0 or one that [`ChunkLog::append`] or [`ChunkReader::offset`] gave.
    pub fn open(path: &Path, offset: u64) -> io::Result<ChunkReader> {
        Self::over(File::open(path)?, offset)
    }

    fn over(file: File, offset: u64) -> io::Result<ChunkReader> {
        let mut magic = [0; MAGIC.len()];
        let found = read_up_to(&file, &mut magic, 0)?;
        if magic[..found] != MAGIC[..found] {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a keelway log"));
        }
        Ok(ChunkReader { file, offset: offset.max(MAGIC.len() as u64) })
    }
    /// The next chunk; `None` at the end or before a torn or damaged one (call again when the file grew).
    pub fn next_chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut head = [0; HEADER];
        if read_up_to(&self.file, &mut head, self.offset)? < HEADER {
            return Ok(None);
        }
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if length > MAX_CHUNK {
            return Ok(None);
        }
        let mut chunk = vec![0; length];
        let Some(at) = self.offset.checked_add(HEADER as u64) else { return Ok(None) };
        if read_up_to(&self.file, &mut chunk, at)? < length || header(self.offset, &chunk) != head {
            return Ok(None);
        }
        self.offset = at + length as u64;
        Ok(Some(chunk))
    }
    /// Where the next chunk begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

fn read_up_to(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(path: &Path) -> Vec<Vec<u8>> {
        let mut reader = ChunkReader::open(path, 0).unwrap();
        std::iter::from_fn(|| reader.next_chunk().unwrap()).collect()
    }

    #[test]
    fn a_reader_follows_and_resumes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = ChunkLog::open(&path, Faults::NONE).unwrap();
        let mut reader = ChunkReader::open(&path, 0).unwrap();
        assert_eq!(reader.next_chunk().unwrap(), None);
        log.append(b"one").unwrap();
        let second = log.append(b"").unwrap();
        log.append(b"three").unwrap();
        log.sync().unwrap();
        assert_eq!(reader.next_chunk().unwrap().unwrap(), b"one");
        let mut resumed = ChunkReader::open(&path, second).unwrap();
        assert_eq!(resumed.next_chunk().unwrap().unwrap(), b"");
        assert_eq!(resumed.next_chunk().unwrap().unwrap(), b"three");
        assert!(log.append(&vec![0; MAX_CHUNK + 1]).is_err());
        drop(log);
        assert_eq!(ChunkLog::open(&path, Faults::NONE).unwrap().end(), resumed.offset());
    }

    #[test]
    fn a_failed_append_leaves_the_log_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        // Step 1 is the creation; the second append fails.
        let mut log = ChunkLog::open(&path, Faults::fail_at(3)).unwrap();
        log.append(b"kept").unwrap();
        assert!(log.append(b"lost").is_err());
        assert_eq!(all(&path), [b"kept"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]
        #[test]
        fn cut_or_damaged_anywhere_a_prefix_remains(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..6),
            at in any::<prop::sample::Index>(), damage in any::<bool>(), flip in 1u8..,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            let mut log = ChunkLog::open(&path, Faults::NONE).unwrap();
            for c in &chunks { log.append(c).unwrap(); }
            drop(log);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            if damage { bytes[at] ^= flip } else { bytes.truncate(at) }
            std::fs::write(&path, &bytes).unwrap();
            if damage && at < MAGIC.len() {
                prop_assert!(ChunkLog::open(&path, Faults::NONE).is_err());
                return Ok(());
            }
            let left = all(&path);
            prop_assert!(left.len() < chunks.len() || at == bytes.len());
            prop_assert_eq!(&left[..], &chunks[..left.len()]);
            // The next writer goes on after what was whole.
            let mut log = ChunkLog::open(&path, Faults::NONE).unwrap();
            log.append(b"next").unwrap();
            let again = all(&path);
            prop_assert_eq!(again.len(), left.len() + 1);
            prop_assert_eq!(&again[left.len()], b"next");
        }
    }
}
