//! Small records on disk: a line with the digest of the rest, then JSON.
//!
//! Records of the cache are not synced, so after a crash one may be empty, torn or full of zeros; the
//! digest tells. What cannot be read is as if it were not there.

use keelway_model::Digest;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest record read, in bytes.
const MAX: u64 = 4 << 20;

/// A record's bytes.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
    let body = serde_json::to_vec(value)?;
    let mut out = Digest::of(&body).hex().into_bytes();
    out.push(b'\n');
    out.extend_from_slice(&body);
    Ok(out)
}

/// The value of a record, `None` when it is damaged or of another shape.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (sum, body) = (bytes.get(..64)?, bytes.get(65..)?);
    if bytes[64] != b'\n' || Digest::of(body).hex().as_bytes() != sum {
        return None;
    }
    serde_json::from_slice(body).ok()
}

/// Reads a record from a file.
pub(crate) fn read<T: DeserializeOwned>(path: &std::path::Path) -> Option<T> {
    use std::io::Read;
    let mut bytes = Vec::new();
    crate::used::open_quietly(path).ok()?.take(MAX).read_to_end(&mut bytes).ok()?;
    decode(&bytes)
}
