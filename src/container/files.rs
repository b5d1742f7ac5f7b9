//! Small state files: read with a cap, written synced and whole.

use keelway_disk::{Faults, Sync, publish};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Largest state file that is read.
const MAX_STATE: u64 = 8 << 20;

/// The bytes of a regular file of at most `max` bytes; `None` when it is not there.
pub fn read_capped(path: &Path, max: u64) -> io::Result<Option<Vec<u8>>> {
    // O_NONBLOCK: a FIFO in its place must not hold us.
    let flags = (nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_NOFOLLOW).bits();
    let file = match File::options().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {max} bytes")));
    }
    Ok(Some(bytes))
}

/// A state file; `None` when it is not there.
pub fn load<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let Some(bytes) = read_capped(path, MAX_STATE)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| {
        let text = format!("{}: {e}", path.display());
        io::Error::new(io::ErrorKind::InvalidData, text)
    })
}

/// Writes a state file; it survives a crash of the machine once this returns.
pub fn save<T: Serialize>(dir: &Path, name: &str, value: &T) -> io::Result<()> {
    let bytes = serde_json::to_vec(value).map_err(io::Error::other)?;
    publish(dir, name, &bytes, Sync::Yes, &Faults::NONE)
}

/// A directory only for us, with its parents.
pub fn private_dir(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
