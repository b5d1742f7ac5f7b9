//! The log of a container: what it writes, byte for byte, in two files of bounded size.
//!
//! `log` is being written; when it is full it becomes `log.1`, replacing the one before, so that there is
//! always at least one whole file of history and never more than twice the cap. A file is only cut at the
//! end of a line, unless a line is longer than a quarter of the cap. Written and read by different
//! processes: a reader sees whole lines, the last one aside.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes of one file unless said otherwise.
pub const CAP: u64 = 16 << 20;
/// Most bytes that [`tail`] reads.
const MAX_TAIL: u64 = 4 << 20;
/// Longest line that [`tail`] returns whole.
const MAX_LINE: usize = 8 << 10;

pub(crate) const CURRENT: &str = "log";
pub(crate) const PREVIOUS: &str = "log.1";

/// The writing side. There is one for a directory at a time.
#[derive(Debug)]
pub struct LogWriter {
    dir: PathBuf,
    file: File,
    written: u64,
    cap: u64,
}

impl LogWriter {
    /// Goes on where the last writer of `dir` stopped. The directory must exist.
    pub fn open(dir: &Path, cap: u64) -> io::Result<Self> {
        let file = Self::file(dir)?;
        let written = file.metadata()?.len();
        Ok(Self { dir: dir.into(), file, written, cap })
    }
    fn file(dir: &Path) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(dir.join(CURRENT))
    }
    /// Appends.
    pub fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = self.cap.saturating_sub(self.written);
            let take = match usize::try_from(room) {
                Ok(room) if room < bytes.len() => {
                    // Full: up to the end of the line that reaches the cap, wherever that is in here.
                    match bytes[room..].iter().position(|b| *b == b'\n') {
                        Some(at) => room + at + 1,
                        None if self.written > self.cap + self.cap / 4 => 0,
                        None => bytes.len(),
                    }
                }
                _ => bytes.len(),
            };
            self.file.write_all(&bytes[..take])?;
            self.written += take as u64;
            let full = self.written >= self.cap && (take == 0 || bytes[take - 1] == b'\n');
            bytes = &bytes[take..];
            if full {
                std::fs::rename(self.dir.join(CURRENT), self.dir.join(PREVIOUS))?;
                self.file = Self::file(&self.dir)?;
                self.written = 0;
            }
        }
        Ok(())
    }
    /// Copies a stream until it ends. A full disk loses log bytes, never the container: the stream is read
    /// to its end in any case. Returns the first error.
    pub fn drain(&mut self, mut from: impl Read) -> io::Result<()> {
        let mut buffer = vec![0u8; 64 << 10];
        let mut first = Ok(());
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return first,
                Ok(n) => {
                    let done = self.append(&buffer[..n]);
                    if first.is_ok() {
                        first = done;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return first.and(Err(e)),
            }
        }
    }
}

/// The last `lines` lines, oldest first; none when there is no log. Bytes that are no UTF-8 are replaced,
/// long lines cut.
pub fn tail(dir: &Path, lines: usize) -> io::Result<Vec<String>> {
    let mut bytes = Vec::new();
    for name in [PREVIOUS, CURRENT] {
        let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(dir.join(name));
        let mut file = match file {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let len = file.metadata()?.len();
        let from = len.saturating_sub(MAX_TAIL);
        file.seek(SeekFrom::Start(from))?;
        if from > 0 {
            bytes.clear();
        }
        file.take(MAX_TAIL).read_to_end(&mut bytes)?;
    }
    let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let mut last: Vec<String> = text
        .rsplit(|b| *b == b'\n')
        .take(lines)
        .map(|line| {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let cut = &line[..line.len().min(MAX_LINE)];
            let more = if cut.len() < line.len() { "…" } else { "" };
            format!("{}{more}", String::from_utf8_lossy(cut))
        })
        .collect();
    last.reverse();
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_files_hold_whole_lines_and_at_least_one_cap_of_history() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(dir.path(), 1000).unwrap();
        for i in 0..500 {
            // In odd pieces, as a pipe gives them.
            let line = format!("line {i:04} of the log\n");
            let (a, b) = line.split_at(i % line.len());
            log.append(a.as_bytes()).unwrap();
            log.append(b.as_bytes()).unwrap();
            if i == 250 {
                log = LogWriter::open(dir.path(), 1000).unwrap();
            }
        }
        let all = tail(dir.path(), 10_000).unwrap();
        assert!(all.len() >= 45, "{}", all.len());
        assert_eq!(all.last().unwrap(), "line 0499 of the log");
        for pair in all.windows(2) {
            let n = |s: &str| s[5..9].parse::<u32>().unwrap();
            assert_eq!(n(&pair[0]) + 1, n(&pair[1]), "{pair:?}");
        }
        assert_eq!(tail(dir.path(), 2).unwrap(), all[all.len() - 2..]);
        for name in [CURRENT, PREVIOUS] {
            assert!(std::fs::metadata(dir.path().join(name)).unwrap().len() <= 1250);
        }
    }

    #[test]
    fn a_line_without_an_end_does_not_fill_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(dir.path(), 1000).unwrap();
        for _ in 0..300 {
            log.append(&[b'x'; 100]).unwrap();
        }
        for name in [CURRENT, PREVIOUS] {
            assert!(std::fs::metadata(dir.path().join(name)).unwrap().len() <= 1400, "{name}");
        }
        assert!(tail(dir.path(), 5).unwrap().iter().all(|l| l.len() <= MAX_LINE + 3));
    }

    #[test]
    fn no_log_is_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        assert!(tail(dir.path(), 5).unwrap().is_empty());
        let mut log = LogWriter::open(dir.path(), CAP).unwrap();
        log.drain(&b"a\r\n\xff\nlast"[..]).unwrap();
        assert_eq!(tail(dir.path(), 5).unwrap(), ["a", "\u{fffd}", "last"]);
    }
}
