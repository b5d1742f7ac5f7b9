//! Sparse files in tars: the forms of GNU tar, its old one and PAX 0.0, 0.1 and 1.0.
//!
//! A map says where in the file the stored bytes belong: ranges in rising order, none beyond the file's size, and
//! as long together as what is stored. Anything else is an error. What a file's holes take, the caller bounds.

use super::{Archive, BLOCK, ParseError, bad, check_size, number};
use std::io::BufRead;

/// Ranges of one file at most.
const MAX_RANGES: usize = 1_000_000;

/// What the records before an entry say of a sparse file.
#[derive(Default)]
pub(super) struct Records {
    any: bool,
    version: (Option<u64>, Option<u64>),
    pub(super) name: Option<Vec<u8>>,
    size: Option<u64>,
    blocks: Option<u64>,
    /// A range whose length is still to come.
    offset: Option<u64>,
    ranges: Vec<(u64, u64)>,
}

impl Records {
    /// Whether there is any such record.
    pub(super) fn any(&self) -> bool {
        self.any
    }

    /// Takes the record `GNU.sparse.KEY`.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), ParseError> {
        self.any = true;
        match key {
            b"name" => self.name = Some(value.to_vec()).filter(|n| !n.is_empty()),
            b"major" => self.version.0 = Some(decimal(value)?),
            b"minor" => self.version.1 = Some(decimal(value)?),
            b"size" | b"realsize" => self.size = Some(decimal(value)?),
            b"numblocks" => self.blocks = Some(decimal(value)?),
            b"offset" => {
                if self.offset.replace(decimal(value)?).is_some() {
                    return bad("a sparse map with an offset too many");
                }
            }
            b"numbytes" => match self.offset.take() {
                Some(offset) => self.ranges.push((offset, decimal(value)?)),
                None => return bad("a sparse map with a length too many"),
            },
            b"map" => {
                let mut numbers = Vec::new();
                for number in value.split(|b| *b == b',').filter(|_| !value.is_empty()) {
                    numbers.push(decimal(number)?);
                }
                let (pairs, rest) = numbers.as_chunks::<2>();
                if !rest.is_empty() || !self.ranges.is_empty() {
                    return bad("a sparse map that is not of pairs");
                }
                self.ranges.extend(pairs.iter().map(|[offset, length]| (*offset, *length)));
            }
            _ => return bad("an unknown record of a sparse file"),
        }
        Ok(())
    }
}

/// Where in a file one is, and what of it is stored.
pub(super) struct Holes {
    size: u64,
    at: u64,
    /// Offsets and lengths, those to come last first; none is empty.
    ranges: Vec<(u64, u64)>,
}

impl Holes {
    /// Checks a map against the size of the file and the bytes that are stored.
    fn new(ranges: impl IntoIterator<Item = (u64, u64)>, size: u64, stored: u64) -> Result<Self, ParseError> {
        check_size(size)?;
        let (mut end, mut sum, mut kept) = (0u64, 0u64, Vec::new());
        for (offset, length) in ranges {
            if kept.len() >= MAX_RANGES {
                return bad("a sparse file in more pieces than are read");
            }
            match offset.checked_add(length).filter(|e| offset >= end && *e <= size) {
                Some(e) => end = e,
                None => return bad("a sparse map that is out of order or beyond its file"),
            }
            // Within `size`, so it cannot overflow.
            sum += length;
            if length > 0 {
                kept.push((offset, length));
            }
        }
        if sum != stored {
            return bad(format!("a sparse map of {sum} bytes for {stored} that are stored"));
        }
        kept.reverse();
        Ok(Self { size, at: 0, ranges: kept })
    }

    /// Of the whole file.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// How many zeros come next.
    pub(super) fn next_hole(&self) -> u64 {
        self.ranges.last().map_or(self.size, |(offset, _)| *offset).saturating_sub(self.at)
    }

    /// How many stored bytes come next, where no hole does.
    pub(super) fn next_data(&self) -> u64 {
        self.ranges.last().map_or(0, |(offset, length)| offset + length - self.at)
    }

    /// Some of the zeros that come next.
    pub(super) fn zeros(&self) -> &'static [u8] {
        static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
        let n = usize::try_from(self.next_hole()).unwrap_or(usize::MAX);
        &ZEROS[..n.min(ZEROS.len())]
    }

    /// Goes on by `n` bytes, no further than the hole or the range that one is in.
    pub(super) fn pass(&mut self, n: u64) {
        self.at += n;
        if self.ranges.last().is_some_and(|(offset, length)| self.at >= offset + length) {
            self.ranges.pop();
        }
    }
}

impl<R: BufRead> Archive<R> {
    /// The map of GNU's old form: four ranges in the header, more in blocks behind it.
    pub(super) fn old_sparse_map(&mut self, header: &[u8; BLOCK]) -> Result<Holes, ParseError> {
        let size = number(&header[483..495])?;
        let mut ranges = Vec::new();
        let mut last = old_ranges(&header[386..482], &mut ranges)?;
        let mut more = header[482] != 0;
        while more {
            let Some(block) = self.block()? else { return bad("it ends in the middle of a sparse map") };
            if last || ranges.len() > MAX_RANGES {
                return bad("a sparse map that goes on after its end");
            }
            last = old_ranges(&block[..504], &mut ranges)?;
            more = block[504] != 0;
        }
        Holes::new(ranges, size, self.left)
    }

    /// The map of PAX records, or of version 1.0, which is in front of the stored bytes.
    pub(super) fn pax_sparse_map(&mut self, records: &Records) -> Result<Holes, ParseError> {
        let Some(size) = records.size else { return bad("a sparse file without its size") };
        match records.version {
            (None, None) | (Some(0), Some(0 | 1)) => {
                let counted = records.blocks.is_none_or(|n| n == records.ranges.len() as u64);
                if !counted || records.offset.is_some() {
                    return bad("a sparse map with a piece too few or too many");
                }
                Holes::new(records.ranges.iter().copied(), size, self.left)
            }
            (Some(1), Some(0)) => {
                let before = self.left;
                let count = usize::try_from(self.map_number()?).unwrap_or(usize::MAX);
                if count > MAX_RANGES || !records.ranges.is_empty() {
                    return bad("a sparse file in more pieces than are read");
                }
                let mut ranges = Vec::new();
                for _ in 0..count {
                    ranges.push((self.map_number()?, self.map_number()?));
                }
                let rest = (before - self.left).wrapping_neg() % BLOCK as u64;
                if rest > self.left {
                    return bad("a sparse map that is cut off");
                }
                self.skip(rest)?;
                self.left -= rest;
                Holes::new(ranges, size, self.left)
            }
            _ => bad("a sparse file of an unknown version"),
        }
    }

    /// A number of the map in front of the stored bytes.
    fn map_number(&mut self) -> Result<u64, ParseError> {
        let mut digits = Vec::new();
        loop {
            // No map was set yet: these are the stored bytes as they are.
            let Some(&byte) = self.fill()?.first() else { return bad("a sparse map that is cut off") };
            self.consume(1);
            match byte {
                b'\n' => return decimal(&digits),
                _ if digits.len() > 20 => return bad("a sparse map with a number too long"),
                _ => digits.push(byte),
            }
        }
    }
}

/// Ranges of 24 bytes; whether the list ended.
fn old_ranges(fields: &[u8], into: &mut Vec<(u64, u64)>) -> Result<bool, ParseError> {
    for field in fields.chunks_exact(24) {
        if field[0] == 0 {
            return Ok(true);
        }
        into.push((number(&field[..12])?, number(&field[12..])?));
    }
    Ok(false)
}

fn decimal(digits: &[u8]) -> Result<u64, ParseError> {
    let text = std::str::from_utf8(digits).ok().filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
    match text.and_then(|t| t.parse().ok()) {
        Some(n) => Ok(n),
        None => bad("a number in a sparse map that is none"),
    }
}
