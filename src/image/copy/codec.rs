//! Compressed archives of `ADD`, told by their first bytes and decoded in this process.
//!
//! All decoders are written in Rust, since what they read is hostile. The memory of each is bounded, whatever a header asks
//! for; how much comes out is the caller's to bound.

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use keelway_store::Frames;
use lzma_rust2::XzReader;
use std::io::{BufRead, Read};

/// Most memory of an xz decoder, in KiB: four times what `xz -9` needs.
const XZ_MEMORY: u32 = 256 << 10;

/// A form of compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    Plain,
    Gzip,
    Bzip2,
    Xz,
    Zstd,
}

impl Codec {
    /// What a file that begins like this is compressed by.
    pub(crate) fn of(head: &[u8]) -> Self {
        // A zstd file may begin with frames that hold no content.
        let skippable = |h: &[u8]| (0x50..=0x5f).contains(&h[0]) && h[1..4] == *b"\x2a\x4d\x18";
        match head {
            h if h.starts_with(b"\x1f\x8b") => Self::Gzip,
            h if h.starts_with(b"BZh") => Self::Bzip2,
            h if h.starts_with(b"\xfd7zXZ\0") => Self::Xz,
            h if h.starts_with(b"\x28\xb5\x2f\xfd") || (h.len() >= 4 && skippable(h)) => Self::Zstd,
            _ => Self::Plain,
        }
    }

    /// The plain bytes, of all streams that the file holds. An error of the kind `OutOfMemory` says that a header asks
    /// for more than is given.
    pub(crate) fn decoder<'a>(self, from: impl BufRead + 'a) -> Box<dyn Read + 'a> {
        match self {
            Self::Plain => Box::new(from),
            Self::Gzip => Box::new(MultiGzDecoder::new(from)),
            Self::Bzip2 => Box::new(MultiBzDecoder::new(from)),
            Self::Xz => Box::new(XzReader::new_mem_limit(from, true, XZ_MEMORY)),
            Self::Zstd => Box::new(Frames::new(from)),
        }
    }
}
