//! Compressed archives of `ADD`, told by their first bytes and decoded in this process.
//!
//! All decoders are written in Rust, since what they read is hostile. The memory of each is bounded, whatever a header asks
//! for; how much comes out is the caller's to bound.

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::errors::{FrameDecoderError, FrameHeaderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use std::io::{self, BufRead, Read};

/// Most memory of an xz decoder, in KiB: four times what `xz -9` needs.
const XZ_MEMORY: u32 = 256 << 10;
/// Largest window of a zstd frame: what `zstd -d` takes without being told.
const ZSTD_WINDOW: u64 = 1 << 27;

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

/// The frames of a zstd file, one after the other.
struct Frames<R> {
    from: R,
    decoder: FrameDecoder,
    /// Whether the decoder is inside a frame.
    open: bool,
}

impl<R: BufRead> Frames<R> {
    fn new(from: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(ZSTD_WINDOW);
        Self { from, decoder, open: false }
    }

    /// Begins the next frame that has content; whether there is one.
    fn begin(&mut self) -> io::Result<bool> {
        loop {
            if self.from.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.reset(&mut self.from) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    if io::copy(&mut (&mut self.from).take(length), &mut io::sink())? < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(
                    e @ (FrameDecoderError::WindowSizeTooBig { .. }
                    | FrameDecoderError::FrameHeaderError(FrameHeaderError::WindowTooBig { .. })),
                ) => {
                    return Err(io::Error::new(io::ErrorKind::OutOfMemory, e.to_string()));
                }
                Err(e) => return Err(io::Error::other(e.to_string())),
            }
        }
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.open {
                self.open = self.begin()?;
                if !self.open {
                    return Ok(0);
                }
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.from, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(|e| io::Error::other(e.to_string()))?;
            }
            let n = self.decoder.read(buf)?;
            if n > 0 {
                return Ok(n);
            }
            let (said, is) = (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum());
            if said.is_some() && said != is {
                return Err(io::Error::other("a checksum of the zstd stream is wrong"));
            }
            self.open = false;
        }
    }
}
