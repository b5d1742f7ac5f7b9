//! A foreign tar, read without believing it.
//!
//! Rules where readers of tar differ, which is where archives are smuggled (RUSTSEC-2025-0111): a PAX
//! record wins over the header, as in POSIX, GNU tar, Go and Python; whatever is malformed is an error and
//! never skipped; what would have to be guessed is refused (global records that change an entry, sizes on entries
//! without content, a path said in two ways, bytes after the end). Sparse files are refused too, unless they are
//! asked for: see [`sparse`].

use keelway_disk::NodeKind;
use sparse::Holes;
use std::io::{self, BufRead, Read};

mod sparse;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberKind {
    /// Regular file with this many bytes, holes included, to be read with [`Archive::fill`].
    File(u64),
    /// Directory.
    Directory,
    /// Symbolic link to this, never empty.
    Symlink(Vec<u8>),
    /// A second name for an entry of this path.
    HardLink(Vec<u8>),
    /// FIFO or device.
    Node(NodeKind),
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// As written, without NUL.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: MemberKind,
    /// Whether the file has holes that are not in the archive.
    pub sparse: bool,
    /// Permission bits (07777).
    pub mode: u32,
    /// Owner; never 2^32-1.
    pub uid: u32,
    /// Group; never 2^32-1.
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes, as written: the caller decides which of them it takes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Why it is not a tar.
#[derive(Debug, PartialEq, Eq)]
pub struct ParseError(pub String);

impl From<io::Error> for ParseError {
    fn from(e: io::Error) -> Self {
        Self(e.to_string())
    }
}

fn bad<T>(why: impl Into<String>) -> Result<T, ParseError> {
    Err(ParseError(why.into()))
}

const BLOCK: usize = 512;
/// Longest PAX or GNU header, and longest path or link in it, in bytes.
const MAX_META: u64 = 1 << 20;
const MAX_PATH: usize = 4095;
/// Headers about one entry.
const MAX_METAS: usize = 8;
/// Times are clamped to what every file system can say: 1970 to 2242.
const MAX_TIME: i64 = 1 << 33;

/// What the headers before an entry said about it.
#[derive(Default)]
struct Meta {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: sparse::Records,
}

/// A tar being read.
pub struct Archive<R> {
    inner: R,
    /// Bytes read so far.
    pub offset: u64,
    /// Content of the present entry that was not read yet, and its padding.
    left: u64,
    padding: u64,
    /// Where in the present file its stored bytes belong, where it is sparse.
    holes: Option<Holes>,
    takes_sparse: bool,
}

impl<R: BufRead> Archive<R> {
    /// Reads a plain tar from its first byte on.
    pub fn new(inner: R) -> Self {
        Self { inner, offset: 0, left: 0, padding: 0, holes: None, takes_sparse: false }
    }

    /// Takes sparse files too; the caller bounds their sizes, which cost the archive nothing.
    #[must_use]
    pub fn with_sparse_files(mut self) -> Self {
        self.takes_sparse = true;
        self
    }

    /// The next entry; `None` at the end of the archive, which is read up to the end of the stream.
    pub fn next_member(&mut self) -> Result<Option<Member>, ParseError> {
        self.skip(self.left + self.padding)?;
        (self.left, self.padding, self.holes) = (0, 0, None);
        let mut meta = Meta::default();
        for n in 0..=MAX_METAS {
            let Some(block) = self.block()? else {
                return if n == 0 { Ok(None) } else { bad("it ends after an extended header") };
            };
            if block.iter().all(|&b| b == 0) {
                return if n == 0 { self.finish() } else { bad("it ends after an extended header") };
            }
            check_sum(&block)?;
            let kind = block[156];
            if !matches!(kind, b'x' | b'g' | b'L' | b'K') {
                return self.member(&block, meta).map(Some);
            }
            let size = number(&block[124..136])?;
            if size > MAX_META {
                return bad(format!("an extended header of {size} bytes"));
            }
            let bytes = self.meta_bytes(size)?;
            match kind {
                b'x' => meta.pax(&bytes, self.takes_sparse)?,
                b'g' => only_comments(&bytes)?,
                b'L' => set_once(&mut meta.path, until_nul(&bytes))?,
                _ => set_once(&mut meta.link, until_nul(&bytes))?,
            }
        }
        bad("more extended headers before one entry than any tool writes")
    }

    /// The next bytes of the present file, at most as many as the reader has at hand; empty at its end.
    pub fn fill(&mut self) -> io::Result<&[u8]> {
        let most = match &self.holes {
            Some(holes) if holes.next_hole() > 0 => return Ok(holes.zeros()),
            Some(holes) => holes.next_data(),
            None => self.left,
        };
        if self.left == 0 || most == 0 {
            return Ok(&[]);
        }
        let bytes = self.inner.fill_buf()?;
        if bytes.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends in the middle of a file"));
        }
        let n = bytes.len().min(usize::try_from(most.min(self.left)).unwrap_or(usize::MAX));
        Ok(&bytes[..n])
    }

    /// Passes over the zeros that come next and are not in the archive; says how many.
    pub fn pass_hole(&mut self) -> u64 {
        self.holes.as_mut().map_or(0, |holes| {
            let hole = holes.next_hole();
            holes.pass(hole);
            hole
        })
    }

    /// Takes what [`fill`](Self::fill) gave.
    pub fn consume(&mut self, n: usize) {
        if let Some(holes) = &mut self.holes {
            let hole = holes.next_hole() > 0;
            holes.pass(n as u64);
            if hole {
                return;
            }
        }
        self.inner.consume(n);
        self.left -= n as u64;
        self.offset += n as u64;
    }

    fn member(&mut self, b: &[u8; BLOCK], meta: Meta) -> Result<Member, ParseError> {
        let path = match (&meta.sparse.name, meta.path) {
            // The other name is one for readers that know no sparse files.
            (Some(name), _) => name.clone(),
            (None, Some(p)) => p,
            (None, None) => header_path(b),
        };
        let link = meta.link.unwrap_or_else(|| until_nul(&b[157..257]));
        if path.is_empty() {
            return bad("an entry without a name");
        }
        if path.contains(&0) || link.contains(&0) {
            return bad("a name with a NUL");
        }
        if path.len() > MAX_PATH || link.len() > MAX_PATH {
            return bad("a name of more than 4095 bytes");
        }
        let size = match meta.size {
            Some(size) => size,
            None => number(&b[124..136])?,
        };
        let device = || {
            Ok::<_, ParseError>((id(number(&b[329..337])?, "device")?, id(number(&b[337..345])?, "device")?))
        };
        let kind = match b[156] {
            // Before POSIX, a directory was a file with a slash at its end.
            0 if path.ends_with(b"/") => MemberKind::Directory,
            b'0' | 0 | b'7' => MemberKind::File(size),
            b'S' if self.takes_sparse => MemberKind::File(size),
            b'1' => MemberKind::HardLink(link),
            b'2' => MemberKind::Symlink(link),
            b'5' => MemberKind::Directory,
            b'6' => MemberKind::Node(NodeKind::Fifo),
            k @ (b'3' | b'4') => {
                let (major, minor) = device()?;
                MemberKind::Node(NodeKind::Device { character: k == b'3', major, minor })
            }
            b'S' => return bad("a GNU sparse file: archive it without --sparse"),
            other => return bad(format!("an entry of unknown type {:?}", char::from(other))),
        };
        if matches!(&kind, MemberKind::HardLink(l) | MemberKind::Symlink(l) if l.is_empty()) {
            return bad("a link without a target");
        }
        let mut sparse = false;
        let kind = match kind {
            MemberKind::File(size) => {
                self.left = size;
                self.padding = size.wrapping_neg() % BLOCK as u64;
                check_size(size)?;
                let holes = match b[156] {
                    b'S' if meta.sparse.any() => return bad("a file that is sparse in two ways"),
                    b'S' => Some(self.old_sparse_map(b)?),
                    _ if meta.sparse.any() => Some(self.pax_sparse_map(&meta.sparse)?),
                    _ => None,
                };
                sparse = holes.is_some();
                self.holes = holes;
                MemberKind::File(self.holes.as_ref().map_or(size, Holes::size))
            }
            _ if meta.sparse.any() => return bad("a sparse entry that is no file"),
            _ if size != 0 => return bad("content on an entry that has none"),
            other => other,
        };
        let or_header = |pax: Option<u64>, range: std::ops::Range<usize>| match pax {
            Some(n) => Ok(n),
            None => number(&b[range]),
        };
        let mtime = match meta.mtime {
            Some(t) => t,
            None => (time(&b[136..148])?, 0),
        };
        Ok(Member {
            path,
            kind,
            sparse,
            mode: (number(&b[100..108])? & 0o7777) as u32,
            uid: id(or_header(meta.uid, 108..116)?, "owner")?,
            gid: id(or_header(meta.gid, 116..124)?, "group")?,
            mtime,
            xattrs: meta.xattrs,
        })
    }

    /// After the end: only zeros may follow.
    fn finish(&mut self) -> Result<Option<Member>, ParseError> {
        loop {
            let bytes = self.inner.fill_buf()?;
            if bytes.is_empty() {
                return Ok(None);
            }
            if bytes.iter().any(|&b| b != 0) {
                return bad("bytes after the end of the archive");
            }
            let n = bytes.len();
            self.inner.consume(n);
            self.offset += n as u64;
        }
    }

    /// The next block; `None` at the end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, ParseError> {
        let mut block = [0; BLOCK];
        let mut done = 0;
        while done < BLOCK {
            match self.inner.read(&mut block[done..]) {
                Ok(0) if done == 0 => return Ok(None),
                Ok(0) => return bad("it ends in the middle of a header"),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.offset += BLOCK as u64;
        Ok(Some(block))
    }

    fn meta_bytes(&mut self, size: u64) -> Result<Vec<u8>, ParseError> {
        let mut bytes = Vec::new();
        (&mut self.inner).take(size).read_to_end(&mut bytes)?;
        self.offset += bytes.len() as u64;
        if (bytes.len() as u64) < size {
            return bad("it ends in the middle of an extended header");
        }
        self.skip(size.wrapping_neg() % BLOCK as u64)?;
        Ok(bytes)
    }

    fn skip(&mut self, mut n: u64) -> Result<(), ParseError> {
        while n > 0 {
            let have = self.inner.fill_buf()?.len();
            if have == 0 {
                return bad("it ends in the middle of an entry");
            }
            let step = have.min(usize::try_from(n).unwrap_or(usize::MAX));
            self.inner.consume(step);
            self.offset += step as u64;
            n -= step as u64;
        }
        Ok(())
    }
}

impl Meta {
    fn pax(&mut self, bytes: &[u8], takes_sparse: bool) -> Result<(), ParseError> {
        for_records(bytes, |key, value| {
            let text = || std::str::from_utf8(value).ok();
            let int = || match text().and_then(|t| t.parse::<u64>().ok()) {
                Some(n) => Ok(n),
                None => {
                    bad(format!("a PAX {} that is no number", String::from_utf8_lossy(key).escape_debug()))
                }
            };
            match key {
                // POSIX: an empty value takes the record back.
                b"path" => replace(&mut self.path, value),
                b"linkpath" => replace(&mut self.link, value),
                b"size" => self.size = Some(int()?),
                b"uid" => self.uid = Some(int()?),
                b"gid" => self.gid = Some(int()?),
                b"mtime" => self.mtime = Some(pax_time(text().unwrap_or(""))?),
                b"hdrcharset" if value != b"BINARY" && value != b"ISO-IR 10646 2000 UTF-8" => {
                    return bad("names in an unknown character set");
                }
                k if k.starts_with(b"GNU.sparse.") && !takes_sparse => {
                    return bad("a sparse file: archive it without --sparse");
                }
                k if k.starts_with(b"GNU.sparse.") => self.sparse.take(&k[11..], value)?,
                k => {
                    if let Some(name) = k.strip_prefix(b"SCHILY.xattr.")
                        && !name.is_empty()
                        && !name.contains(&0)
                    {
                        self.xattrs.retain(|(n, _)| n != name);
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
            Ok(())
        })
    }
}

/// Global records may say nothing that changes an entry: readers differ on whether they count.
fn only_comments(bytes: &[u8]) -> Result<(), ParseError> {
    for_records(bytes, |key, _| match key {
        b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"mtime" | b"hdrcharset" => {
            bad("a global PAX header that changes entries")
        }
        k if k.starts_with(b"GNU.sparse.") || k.starts_with(b"SCHILY.") => {
            bad("a global PAX header that changes entries")
        }
        _ => Ok(()),
    })
}

/// Sizes with which offsets can be reckoned.
fn check_size(size: u64) -> Result<(), ParseError> {
    match size > i64::MAX as u64 - BLOCK as u64 {
        true => bad(format!("a file of {size} bytes")),
        false => Ok(()),
    }
}

/// Calls `f` with key and value of each `LENGTH key=value\n`.
fn for_records(
    mut bytes: &[u8],
    mut f: impl FnMut(&[u8], &[u8]) -> Result<(), ParseError>,
) -> Result<(), ParseError> {
    while !bytes.is_empty() {
        let digits = bytes.iter().take(9).take_while(|b| b.is_ascii_digit()).count();
        let length =
            std::str::from_utf8(&bytes[..digits]).ok().and_then(|t| t.parse::<usize>().ok()).unwrap_or(0);
        if digits == 0 || bytes.get(digits) != Some(&b' ') || length < digits + 4 || length > bytes.len() {
            return bad("a malformed PAX record");
        }
        let record = &bytes[digits + 1..length];
        let Some((b'\n', record)) = record.split_last().map(|(l, r)| (*l, r)) else {
            return bad("a malformed PAX record");
        };
        let Some(eq) = record.iter().position(|&b| b == b'=') else { return bad("a PAX record without '='") };
        if eq == 0 {
            return bad("a PAX record without a key");
        }
        f(&record[..eq], &record[eq + 1..])?;
        bytes = &bytes[length..];
    }
    Ok(())
}

fn replace(slot: &mut Option<Vec<u8>>, value: &[u8]) {
    *slot = (!value.is_empty()).then(|| value.to_vec());
}

fn set_once(slot: &mut Option<Vec<u8>>, value: Vec<u8>) -> Result<(), ParseError> {
    if slot.is_some() {
        return bad("a name said twice, in two ways");
    }
    *slot = Some(value);
    Ok(())
}

fn until_nul(field: &[u8]) -> Vec<u8> {
    field.split(|&b| b == 0).next().unwrap_or_default().to_vec()
}

fn header_path(b: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&b[..100]);
    // GNU's old format keeps times where POSIX has the prefix.
    if &b[257..263] != b"ustar\0" || b[345] == 0 {
        return name;
    }
    [&until_nul(&b[345..500])[..], b"/", &name].concat()
}

/// Whether a file that begins with these bytes is a tar: a first header whose checksum is right.
pub fn is_tar(head: &[u8]) -> bool {
    head.first_chunk().is_some_and(|block| block.iter().any(|&b| b != 0) && check_sum(block).is_ok())
}

fn check_sum(b: &[u8; BLOCK]) -> Result<(), ParseError> {
    let want = number(&b[148..156])?;
    let (mut unsigned, mut signed) = (0u64, 0i64);
    for (i, &byte) in b.iter().enumerate() {
        let byte = if (148..156).contains(&i) { b' ' } else { byte };
        unsigned += u64::from(byte);
        signed += i64::from(byte as i8);
    }
    if want == unsigned || i64::try_from(want) == Ok(signed) {
        Ok(())
    } else {
        bad("a header with a wrong checksum")
    }
}

/// A number: octal digits between blanks, or base-256.
fn number(field: &[u8]) -> Result<u64, ParseError> {
    match wide(field)? {
        Some(n) => u64::try_from(n).or_else(|_| bad("a negative number")),
        None => octal(field),
    }
}

fn time(field: &[u8]) -> Result<i64, ParseError> {
    let n = match wide(field)? {
        Some(n) => n,
        None => i64::try_from(octal(field)?).unwrap_or(i64::MAX),
    };
    Ok(n.clamp(0, MAX_TIME))
}

/// Base-256: the first bit is set, the rest is a big-endian two's complement.
fn wide(field: &[u8]) -> Result<Option<i64>, ParseError> {
    let first = field[0];
    if first & 0x80 == 0 {
        return Ok(None);
    }
    let negative = first & 0x40 != 0;
    let mut n: i128 = if negative { -1 } else { 0 };
    for (i, &b) in field.iter().enumerate() {
        let b = if i == 0 && !negative { b & 0x3f } else { b };
        n = (n << 8) | i128::from(b);
        if i64::try_from(n).is_err() {
            return bad("a number beyond 63 bits");
        }
    }
    Ok(i64::try_from(n).ok())
}

fn octal(field: &[u8]) -> Result<u64, ParseError> {
    let blank = |b: &u8| *b == b' ' || *b == 0;
    let start = field.iter().position(|b| !blank(b)).unwrap_or(field.len());
    let digits: Vec<u8> = field[start..].iter().copied().take_while(|b| !blank(b)).collect();
    if !digits.iter().all(|b| (b'0'..=b'7').contains(b)) || !field[start + digits.len()..].iter().all(blank) {
        return bad("a number that is not octal");
    }
    // At most 12 digits in a field: it cannot overflow.
    Ok(digits.iter().fold(0, |n, d| n << 3 | u64::from(d - b'0')))
}

fn pax_time(text: &str) -> Result<(i64, u32), ParseError> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = whole.strip_prefix('-').unwrap_or(whole);
    if digits.is_empty() || !digits.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return bad("a PAX mtime that is no time");
    }
    if whole.starts_with('-') {
        return Ok((0, 0));
    }
    let seconds = whole.parse::<i64>().unwrap_or(i64::MAX).min(MAX_TIME);
    let nanoseconds = format!("{fraction:0<9}")[..9].parse().unwrap_or(0);
    Ok((seconds, nanoseconds))
}

/// Owners and devices have 32 bits, and the last number means "none" to the kernel.
fn id(n: u64, what: &str) -> Result<u32, ParseError> {
    match u32::try_from(n) {
        Ok(n) if n != u32::MAX => Ok(n),
        _ => bad(format!("{what} number {n}, which is out of range")),
    }
}
