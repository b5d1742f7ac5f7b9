//! Tar headers, written: POSIX ustar, with PAX records only where ustar cannot say it.
//!
//! Every byte is determined by the entry. Numbers that do not fit are PAX records (never base-256), names
//! that are long or not ASCII too, with `hdrcharset=BINARY` where they are not UTF-8; attributes are
//! `SCHILY.xattr.` records, as every OCI tool reads them. No user or group names.

/// One entry to be written.
pub(super) struct Header<'a> {
    /// Path without a leading slash; a directory's ends with one.
    pub path: &'a [u8],
    /// `0` file, `1` hard link, `2` symlink, `3` character, `4` block, `5` directory, `6` FIFO.
    pub kind: u8,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Seconds since the epoch, not before it.
    pub mtime: u64,
    /// Target of a link.
    pub link: &'a [u8],
    pub device: (u32, u32),
    /// Sorted by name.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// The unit of a tar.
pub(super) const BLOCK: usize = 512;

/// The largest number in a field of 7 and of 11 octal digits.
const MAX_7: u64 = (1 << 21) - 1;
const MAX_11: u64 = (1 << 33) - 1;

impl Header<'_> {
    /// Appends the header's blocks.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let split = ustar_split(self.path);
        let records = self.pax(split.is_none());
        if !records.is_empty() {
            let base = self.path.split(|&b| b == b'/').rfind(|p| !p.is_empty()).unwrap_or_default();
            let name = [b"PaxHeaders.0/", &ascii(base, 80)[..]].concat();
            let size = records.len() as u64;
            let pax = Header {
                path: &name,
                kind: b'x',
                mode: 0o644,
                uid: 0,
                gid: 0,
                size,
                link: b"",
                xattrs: &[],
                ..*self
            };
            pax.block(&name, b"", out);
            out.extend_from_slice(&records);
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
        match split {
            Some((prefix, name)) => self.block(name, prefix, out),
            None => self.block(&ascii(self.path, 100), b"", out),
        }
    }

    /// The PAX records, keys in the order of their bytes.
    fn pax(&self, long_path: bool) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, value) in self.xattrs {
            record(&mut out, &[b"SCHILY.xattr.", &name[..]].concat(), value);
        }
        let number = |out: &mut Vec<u8>, key: &[u8], n: u64, max: u64| {
            if n > max {
                record(out, key, n.to_string().as_bytes());
            }
        };
        number(&mut out, b"gid", self.gid.into(), MAX_7);
        let path = long_path || !self.path.is_ascii();
        let link = self.link.len() > 100 || !self.link.is_ascii();
        let is_text = |yes: bool, bytes: &[u8]| !yes || std::str::from_utf8(bytes).is_ok();
        if !is_text(path, self.path) || !is_text(link, self.link) {
            record(&mut out, b"hdrcharset", b"BINARY");
        }
        if link {
            record(&mut out, b"linkpath", self.link);
        }
        if path {
            record(&mut out, b"path", self.path);
        }
        number(&mut out, b"size", self.size, MAX_11);
        number(&mut out, b"uid", self.uid.into(), MAX_7);
        out
    }

    fn block(&self, name: &[u8], prefix: &[u8], out: &mut Vec<u8>) {
        let mut b = [0u8; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &if name.is_ascii() { name.to_vec() } else { ascii(name, 100) });
        put(100, octal(self.mode.into(), 7).as_bytes());
        put(108, octal(self.uid.into(), 7).as_bytes());
        put(116, octal(self.gid.into(), 7).as_bytes());
        put(124, octal(self.size, 11).as_bytes());
        put(136, octal(self.mtime, 11).as_bytes());
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, &ascii(self.link, 100));
        put(257, b"ustar\x0000");
        if matches!(self.kind, b'3' | b'4') {
            put(329, octal(self.device.0.into(), 7).as_bytes());
            put(337, octal(self.device.1.into(), 7).as_bytes());
        }
        put(345, &if prefix.is_ascii() { prefix.to_vec() } else { ascii(prefix, 155) });
        let sum: u64 = b.iter().map(|&x| u64::from(x)).sum();
        b[148..154].copy_from_slice(octal(sum, 6).as_bytes());
        b[154] = 0;
        out.extend_from_slice(&b);
    }
}

/// `digits` octal digits; zero when it does not fit, and then a PAX record says it.
fn octal(n: u64, digits: usize) -> String {
    let text = format!("{n:0digits$o}");
    if text.len() > digits { "0".repeat(digits) } else { text }
}

/// What an old reader may show: the name without its non-ASCII bytes, cut.
fn ascii(name: &[u8], max: usize) -> Vec<u8> {
    name.iter().copied().filter(u8::is_ascii).take(max).collect()
}

/// Prefix and name where the path fits into ustar's two fields.
fn ustar_split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= 100 {
        return Some((b"", path));
    }
    // The name after the slash has 1 to 100 bytes, what is before it at most 155.
    let first = path.len() - 101;
    let at = (first..path.len().min(156)).find(|&i| path[i] == b'/' && i > 0 && i + 1 < path.len())?;
    Some((&path[..at], &path[at + 1..]))
}

/// `LENGTH key=value\n`, where the length counts itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}
