//! What a container wrote, as lines with their time and stream, in the files of [`crate::logs`].
//!
//! One record a line: `MILLISECONDS stdout|stderr F|P TEXT`. `F` is a line that ended, `P` a piece of one
//! that was longer than [`MAX_PIECE`], or had not ended when its stream did, so that each stream can be had
//! back byte for byte. Read while it is written, and across the change of files.

use crate::logs::{CURRENT, LogWriter, PREVIOUS};
use keelway_model::{LogStream, Timestamp};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A line without an end is cut into pieces of this many bytes.
pub const MAX_PIECE: usize = 16 << 10;
/// Most bytes that one look at the log takes in.
const MAX_READ: usize = 1 << 20;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When it was written.
    pub at: Timestamp,
    /// Where.
    pub stream: LogStream,
    /// Its bytes, without the line's end.
    pub text: Vec<u8>,
    /// Whether the line ended here.
    pub whole: bool,
}

impl Line {
    /// As the container wrote it.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.text.clone();
        if self.whole {
            bytes.push(b'\n');
        }
        bytes
    }
    fn write(&self, out: &mut Vec<u8>) {
        let stream = match self.stream {
            LogStream::Stdout => "stdout",
            LogStream::Stderr => "stderr",
        };
        let kind = if self.whole { 'F' } else { 'P' };
        out.extend_from_slice(format!("{} {stream} {kind} ", self.at.0).as_bytes());
        out.extend_from_slice(&self.text);
        out.push(b'\n');
    }
    /// Reads a record without its end. Anything else is a line of text of an unknown time.
    fn read(record: &[u8]) -> Self {
        let parse = || {
            let mut parts = record.splitn(4, |b| *b == b' ');
            let at = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
            let stream = match parts.next()? {
                b"stdout" => LogStream::Stdout,
                b"stderr" => LogStream::Stderr,
                _ => return None,
            };
            let whole = match parts.next()? {
                b"F" => true,
                b"P" => false,
                _ => return None,
            };
            Some(Self { at: Timestamp(at), stream, text: parts.next()?.to_vec(), whole })
        };
        let unknown =
            || Self { at: Timestamp(0), stream: LogStream::Stdout, text: record.to_vec(), whole: true };
        parse().unwrap_or_else(unknown)
    }
}

/// Cuts one stream into records.
#[derive(Debug)]
pub struct Splitter {
    stream: LogStream,
    held: Vec<u8>,
}

impl Splitter {
    /// For this stream.
    pub const fn new(stream: LogStream) -> Self {
        Self { stream, held: Vec::new() }
    }
    /// Takes bytes in; appends the records that are whole to `out`.
    pub fn push(&mut self, mut bytes: &[u8], at: Timestamp, out: &mut Vec<u8>) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.hold(&bytes[..end], at, out);
            self.flush(true, at, out);
            bytes = &bytes[end + 1..];
        }
        self.hold(bytes, at, out);
    }
    /// The stream has ended.
    pub fn end(&mut self, at: Timestamp, out: &mut Vec<u8>) {
        if !self.held.is_empty() {
            self.flush(false, at, out);
        }
    }
    fn hold(&mut self, mut bytes: &[u8], at: Timestamp, out: &mut Vec<u8>) {
        while self.held.len() + bytes.len() > MAX_PIECE {
            let (now, later) = bytes.split_at(MAX_PIECE - self.held.len());
            self.held.extend_from_slice(now);
            self.flush(false, at, out);
            bytes = later;
        }
        self.held.extend_from_slice(bytes);
    }
    fn flush(&mut self, whole: bool, at: Timestamp, out: &mut Vec<u8>) {
        let line = Line { at, stream: self.stream, text: std::mem::take(&mut self.held), whole };
        line.write(out);
    }
}

/// Appends to a log from several streams.
#[derive(Debug)]
pub struct LineWriter(LogWriter);

impl LineWriter {
    /// Goes on where the last writer of `dir` stopped.
    pub fn open(dir: &Path, cap: u64) -> io::Result<Self> {
        LogWriter::open(dir, cap).map(Self)
    }
    /// Whole records, as a [`Splitter`] gives them.
    pub fn append(&mut self, records: &[u8]) -> io::Result<()> {
        self.0.append(records)
    }
}

/// Reads a log from its beginning, and goes on when there is more.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    files: VecDeque<File>,
    held: Vec<u8>,
    /// Whether files were replaced faster than they were read.
    lost: bool,
    /// Bytes read so far.
    taken: u64,
}

fn open(dir: &Path, name: &str) -> io::Result<Option<File>> {
    match OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(dir.join(name)) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn same(a: &File, b: &File) -> io::Result<bool> {
    let (a, b) = (a.metadata()?, b.metadata()?);
    Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
}

impl Reader {
    /// At the beginning of what `dir` holds; a log that is not there yet is an empty one.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let mut reader =
            Self { dir: dir.into(), files: VecDeque::new(), held: Vec::new(), lost: false, taken: 0 };
        // The files may change places between the two looks: then the one has the other's name.
        let current = open(dir, CURRENT)?;
        let previous = open(dir, PREVIOUS)?;
        match (previous, current) {
            (Some(p), Some(c)) if same(&p, &c)? => reader.files.push_back(p),
            (p, c) => reader.files.extend(p.into_iter().chain(c)),
        }
        Ok(reader)
    }

    /// Whether lines were lost since the last question, because they were overwritten before they were read.
    pub const fn take_lost(&mut self) -> bool {
        std::mem::replace(&mut self.lost, false)
    }

    /// The records that are there now, at most some; none means that there are no more for now.
    pub fn more(&mut self) -> io::Result<Vec<Line>> {
        let mut lines = Vec::new();
        let before = self.taken;
        loop {
            if self.files.is_empty() {
                let Some(file) = open(&self.dir, CURRENT)? else { return Ok(lines) };
                self.files.push_back(file);
            }
            let Some(file) = self.files.front_mut() else { return Ok(lines) };
            let mut bytes = Vec::new();
            let read = file.take(MAX_READ as u64).read_to_end(&mut bytes)?;
            self.taken += read as u64;
            self.take_in(&bytes, &mut lines);
            // Somebody may write faster than this reads.
            if self.taken - before >= MAX_READ as u64 {
                return Ok(lines);
            }
            if read == 0 && !self.next_file(&mut lines)? {
                return Ok(lines);
            }
        }
    }

    /// Leaves a file that is read to its end and will not grow; false where it is the one being written.
    fn next_file(&mut self, lines: &mut Vec<Line>) -> io::Result<bool> {
        if self.files.len() > 1 {
            self.files.pop_front();
            return Ok(true);
        }
        let (Some(mut here), Some(now)) = (self.files.front(), open(&self.dir, CURRENT)?) else {
            return Ok(false);
        };
        if same(here, &now)? {
            return Ok(false);
        }
        // It was renamed since: what was written before that is read first.
        let mut rest = Vec::new();
        here.read_to_end(&mut rest)?;
        let lapped = match open(&self.dir, PREVIOUS)? {
            Some(previous) => !same(here, &previous)?,
            None => false,
        };
        self.take_in(&rest, lines);
        self.lost |= lapped;
        self.files.clear();
        if lapped {
            self.files.extend(open(&self.dir, PREVIOUS)?);
        }
        self.files.push_back(now);
        Ok(true)
    }

    fn take_in(&mut self, bytes: &[u8], lines: &mut Vec<Line>) {
        self.held.extend_from_slice(bytes);
        let Some(end) = self.held.iter().rposition(|b| *b == b'\n') else { return };
        let rest = self.held.split_off(end + 1);
        let held = std::mem::replace(&mut self.held, rest);
        lines.extend(held[..end].split(|b| *b == b'\n').map(Line::read));
    }
}

/// The last `count` lines of what is there now, oldest first, and a reader that goes on after them. Pieces of
/// one line count as one.
pub fn last(dir: &Path, count: Option<usize>) -> io::Result<(Vec<Line>, Reader)> {
    let mut reader = Reader::open(dir)?;
    // Somebody may write faster than this reads: what is there now has an end.
    let mut there = 0u64;
    for file in &reader.files {
        there += file.metadata()?.len();
    }
    let mut kept: VecDeque<Line> = VecDeque::new();
    let mut whole = 0;
    loop {
        let more = reader.more()?;
        if more.is_empty() {
            break;
        }
        for line in more {
            whole += usize::from(line.whole);
            kept.push_back(line);
            while count.is_some_and(|count| whole > count) {
                whole -= usize::from(kept.pop_front().is_none_or(|l| l.whole));
            }
        }
        if reader.taken >= there {
            break;
        }
    }
    if count == Some(0) {
        kept.clear();
    }
    Ok((kept.into(), reader))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(line: &Line) -> String {
        String::from_utf8_lossy(&line.text).into_owned()
    }

    #[test]
    fn streams_come_back_byte_for_byte() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LineWriter::open(dir.path(), 1 << 20).unwrap();
        let (mut out, mut err) = (Splitter::new(LogStream::Stdout), Splitter::new(LogStream::Stderr));
        let long = vec![b'x'; MAX_PIECE * 2 + 7];
        let mut records = Vec::new();
        out.push(b"first\nsec", Timestamp(5), &mut records);
        err.push(b"\xff\xfe raw\r\n\n", Timestamp(5), &mut records);
        for bytes in [&b"ond\n"[..], &long, b"\nno end"] {
            out.push(bytes, Timestamp(5), &mut records);
        }
        out.end(Timestamp(6), &mut records);
        err.end(Timestamp(6), &mut records);
        log.append(&records).unwrap();
        let (lines, _) = last(dir.path(), None).unwrap();
        let of = |stream| -> Vec<u8> {
            lines.iter().filter(|l| l.stream == stream).flat_map(Line::bytes).collect()
        };
        assert_eq!(of(LogStream::Stdout), [b"first\nsecond\n", &long[..], b"\nno end"].concat());
        assert_eq!(of(LogStream::Stderr), b"\xff\xfe raw\r\n\n");
        let (tail, _) = last(dir.path(), Some(1)).unwrap();
        assert_eq!(tail.iter().map(text).next_back().unwrap(), "no end");
        assert!(last(dir.path(), Some(0)).unwrap().0.is_empty());
    }

    #[test]
    fn a_reader_goes_on_over_the_change_of_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LineWriter::open(dir.path(), 2000).unwrap();
        let mut splitter = Splitter::new(LogStream::Stdout);
        let mut reader = Reader::open(dir.path()).unwrap();
        let mut seen = Vec::new();
        for i in 0..400 {
            let mut records = Vec::new();
            splitter.push(format!("line {i}\n").as_bytes(), Timestamp(i), &mut records);
            log.append(&records).unwrap();
            if i % 7 == 0 {
                seen.extend(reader.more().unwrap());
            }
        }
        seen.extend(reader.more().unwrap());
        seen.extend(reader.more().unwrap());
        assert_eq!(
            seen.iter().map(text).collect::<Vec<_>>(),
            (0..400).map(|i| format!("line {i}")).collect::<Vec<_>>()
        );
        assert!(!reader.take_lost());
        // One that was away for too long is told so and goes on with what is there.
        for i in 400..1000 {
            let mut records = Vec::new();
            splitter.push(format!("line {i}\n").as_bytes(), Timestamp(i), &mut records);
            log.append(&records).unwrap();
        }
        let mut late = Vec::new();
        for _ in 0..4 {
            late.extend(reader.more().unwrap());
        }
        assert!(reader.take_lost());
        assert_eq!(text(late.last().unwrap()), "line 999");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn whatever_is_in_the_file_is_read(noise in prop::collection::vec(any::<u8>(), 0..400)) {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("log"), &noise).unwrap();
            let (lines, _) = last(dir.path(), Some(10)).unwrap();
            prop_assert!(lines.len() <= noise.len() + 1);
        }
    }
}
