//! Frames: a big-endian `u32` length, then that many bytes of JSON, over any byte stream.
//!
//! Invariants: a length over the cap is refused before a byte of it is read or memory for it is taken; a stream
//! that ends inside a frame is an error, one that ends between two frames is an end. Used by the deployer, by
//! `__host`, and fit for the host's own sockets (supervisor, balancer). Never prints what a frame holds: it may
//! hold a secret.

use crate::protocol::{MAGIC, MAX_FRAME, MAX_NOISE};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream ended inside a frame.
    #[error("the stream ended in the middle of a message")]
    Cut,
    /// Too long.
    #[error("a message of {len} bytes is over the limit of {max}")]
    TooLong {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// Not the JSON that was expected. Says where, never what.
    #[error(
        "a message is not what was expected (line {line}, column {column}); the two sides may be of different versions"
    )]
    Malformed {
        /// Line of the JSON.
        line: usize,
        /// Column of the JSON.
        column: usize,
    },
    /// [`MAGIC`] did not come.
    #[error("the far end is not keelway: it printed {0:?}")]
    NotKeelway(String),
    /// The stream failed.
    #[error("the stream failed: {0}")]
    Io(#[from] io::Error),
}

/// Turns a value into the bytes of one frame.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    let json = serde_json::to_vec(value).map_err(malformed)?;
    let len = u32::try_from(json.len()).ok().filter(|_| json.len() <= MAX_FRAME);
    let Some(len) = len else { return Err(FrameError::TooLong { len: json.len(), max: MAX_FRAME }) };
    let mut frame = len.to_be_bytes().to_vec();
    frame.extend_from_slice(&json);
    Ok(frame)
}

/// Turns the JSON of one frame into a value.
pub fn decode<T: DeserializeOwned>(json: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(json).map_err(malformed)
}

/// Writes one frame and flushes.
pub async fn write<T: Serialize>(to: &mut (impl AsyncWrite + Unpin), value: &T) -> Result<(), FrameError> {
    to.write_all(&encode(value)?).await?;
    to.flush().await?;
    Ok(())
}

/// Reads one frame; `None` where the stream ends before one begins. Not cancel-safe: a reader task owns the stream.
pub async fn read<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> Result<Option<T>, FrameError> {
    let mut head = [0u8; 4];
    let mut have = 0;
    while have < 4 {
        match from.read(&mut head[have..]).await? {
            0 if have == 0 => return Ok(None),
            0 => return Err(FrameError::Cut),
            n => have += n,
        }
    }
    let len = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
    if len > MAX_FRAME {
        return Err(FrameError::TooLong { len, max: MAX_FRAME });
    }
    let mut json = vec![0u8; len];
    from.read_exact(&mut json)
        .await
        .map_err(|e| if e.kind() == io::ErrorKind::UnexpectedEof { FrameError::Cut } else { e.into() })?;
    decode(&json).map(Some)
}

/// Writes [`MAGIC`]: the first thing `__host` does.
pub async fn write_magic(to: &mut (impl AsyncWrite + Unpin)) -> Result<(), FrameError> {
    to.write_all(MAGIC).await?;
    to.flush().await?;
    Ok(())
}

/// Skips what a login shell printed, up to and with [`MAGIC`]; at most [`MAX_NOISE`] bytes.
pub async fn skip_to_magic(from: &mut (impl AsyncRead + Unpin)) -> Result<(), FrameError> {
    let mut seen = Vec::new();
    // Byte by byte, so that nothing after the magic is taken from the stream; it is short, and read once.
    while let Some(byte) = next_byte(from).await? {
        seen.push(byte);
        if seen.ends_with(MAGIC) {
            return Ok(());
        }
        if seen.len() > MAX_NOISE {
            break;
        }
    }
    let tail = &seen[seen.len().saturating_sub(300)..];
    Err(FrameError::NotKeelway(String::from_utf8_lossy(tail).trim().to_owned()))
}

async fn next_byte(from: &mut (impl AsyncRead + Unpin)) -> Result<Option<u8>, FrameError> {
    let mut one = [0u8];
    Ok((from.read(&mut one).await? == 1).then_some(one[0]))
}

fn malformed(e: serde_json::Error) -> FrameError {
    FrameError::Malformed { line: e.line(), column: e.column() }
}
