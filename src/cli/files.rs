//! Files that the command line or the environment names, read whole and written whole.
//!
//! Read are only regular files, and only so many bytes: a device has no end and a pipe may have no writer. What is written
//! to a regular file appears whole, by a rename; anything else (`/dev/null`, a pipe) is written to as it is.

use keelway_model::Bytes;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

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

/// A file that is being written. Dropped before it is published, it leaves nothing.
pub struct Pending {
    file: File,
    /// Where it is, and where it goes to; none where it is written in place.
    rename: Option<(PathBuf, PathBuf)>,
}

impl Pending {
    /// Begins to write.
    pub fn create(path: &Path) -> io::Result<Self> {
        if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Ok(Self { file: File::options().write(true).open(path)?, rename: None });
        }
        // A link keeps leading to what is written.
        let to = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let name = to.file_name().ok_or(io::ErrorKind::IsADirectory)?.to_string_lossy().into_owned();
        let temp = to.with_file_name(format!(".{name}.keelway-{}", std::process::id()));
        let file = File::options().write(true).create_new(true).open(&temp)?;
        Ok(Self { file, rename: Some((temp, to)) })
    }
    /// To write into.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }
    /// Makes it the file of its name.
    pub fn publish(mut self) -> io::Result<()> {
        match self.rename.take() {
            Some((temp, to)) => fs::rename(&temp, to).inspect_err(|_| _ = fs::remove_file(&temp)),
            None => Ok(()),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some((temp, _)) = &self.rename {
            let _ = fs::remove_file(temp);
        }
    }
}

/// Writes a whole file.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut pending = Pending::create(path)?;
    pending.file().write_all(bytes)?;
    pending.publish()
}

/// Sees that a file can be written later, and removes the one that is there.
pub fn begin(path: &Path) -> io::Result<()> {
    drop(Pending::create(path)?);
    match fs::metadata(path) {
        Ok(found) if found.is_file() => fs::remove_file(path),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_appears_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("a"), dir.path().join("l"));
        write(&path, b"1").unwrap();
        std::os::unix::fs::symlink("a", &link).unwrap();
        let mut pending = Pending::create(&link).unwrap();
        pending.file().write_all(b"22").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"1");
        pending.publish().unwrap();
        assert_eq!((fs::read(&path).unwrap(), fs::read_link(&link).unwrap()), (b"22".to_vec(), "a".into()));
        drop(Pending::create(&path).unwrap());
        begin(&path).unwrap();
        write(Path::new("/dev/null"), b"x").unwrap();
        assert!(begin(&dir.path().join("no/where")).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only the link is left");
    }

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
