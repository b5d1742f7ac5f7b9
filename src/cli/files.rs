//! Files that the command line or the environment names, read whole.
//!
//! Only regular files, and only so many bytes: a device has no end and a pipe may have no writer.

use keelway_model::Bytes;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// Reads a regular file of at most `max` bytes.
pub fn read(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let refused = |why: String| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    // Looked at before it is opened: opening a pipe waits for its writer.
    if !fs::metadata(path)?.is_file() {
        return refused("it is not a regular file".into());
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return refused(format!("it is larger than {}, the most that is read of it", Bytes(max)));
    }
    Ok(bytes)
}

/// The same for text.
pub fn read_text(path: &Path, max: u64) -> io::Result<String> {
    String::from_utf8(read(path, max)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_and_only_so_much() {
        let why = |path: &str, max| read(Path::new(path), max).unwrap_err().to_string();
        assert_eq!(why("/dev/zero", 9), "it is not a regular file");
        assert_eq!(why("/", 9), "it is not a regular file");
        let own = file!().rsplit('/').next().unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(own);
        let text = read_text(&path, 1 << 20).unwrap();
        assert!(text.starts_with("//! Files"));
        assert_eq!(read(&path, text.len() as u64).unwrap().len(), text.len());
        let small = read(&path, text.len() as u64 - 1).unwrap_err();
        assert!(small.to_string().starts_with("it is larger than "), "{small}");
    }
}
