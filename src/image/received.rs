//! A build context that comes as a stream: a tar, compressed or not, or a Dockerfile alone.
//!
//! It is as hostile as an archive of `ADD`, and unpacked by the same code within the same bounds, into a directory of this
//! run. All of it is owned by root, as everything of a context is.

use crate::copy::archive::{head, unpack};
use crate::copy::codec::Codec;
use crate::error::StepError;
use crate::writer::Writer;
use keelway_model::TreePath;
use keelway_store::tar::is_tar;
use keelway_store::{Store, Upper};
use std::io::{Cursor, Read};

/// Largest Dockerfile, in bytes; the parser takes no larger one.
const MAX_TEXT: u64 = 4 << 20;

/// What came.
pub enum Received {
    /// The files of a tar, in a directory that goes with this.
    Files(Upper),
    /// Something else, which can only be a Dockerfile.
    Text(Vec<u8>),
}

/// Reads a stream to its end; `name` is what it is called in messages.
///
/// # Errors
/// A tar that is not sound or unpacks to too much; text that is longer than a Dockerfile may be.
pub fn receive(
    store: &Store,
    mut from: impl Read + Send + 'static,
    name: &str,
) -> Result<Received, StepError> {
    let failed = |e: std::io::Error| StepError::Refused(format!("cannot read {name}: {e}"));
    let first = head(&mut from, 512).map_err(failed)?;
    let codec = Codec::of(&first);
    // No Dockerfile begins as something compressed does.
    if codec == Codec::Plain && !is_tar(&first) {
        let mut text = Vec::new();
        Cursor::new(first).chain(from).take(MAX_TEXT + 1).read_to_end(&mut text).map_err(failed)?;
        if text.len() as u64 > MAX_TEXT {
            return Err(StepError::Refused(format!(
                "{name} is no tar, and longer than a Dockerfile may be ({} MiB)",
                MAX_TEXT >> 20
            )));
        }
        return Ok(Received::Text(text));
    }
    let upper = store.begin()?;
    let owner = Some((0, 0));
    let mut writer = Writer::new(upper.root()?, store.view(&[])?, owner);
    let stream = Box::new(Cursor::new(first).chain(from));
    unpack(codec, stream, &mut writer, &TreePath::root(), owner, &TreePath::from(name))?;
    Ok(Received::Files(upper))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Rig;
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    const NAME: &str = "standard input";

    fn tar(files: &[(&str, &str)]) -> Vec<u8> {
        let mut out = tar::Builder::new(Vec::new());
        for (path, text) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(text.len() as u64);
            header.set_mode(0o640);
            header.set_uid(7);
            header.set_gid(8);
            // Names that the writer would refuse, too.
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            out.append(&header, text.as_bytes()).unwrap();
        }
        out.into_inner().unwrap()
    }

    #[test]
    fn a_stream_is_a_tar_or_a_dockerfile() {
        let rig = Rig::new();
        let plain = tar(&[("Dockerfile", "FROM scratch\n"), ("a/b", "B")]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        for stream in [plain.clone(), gzip.finish().unwrap()] {
            let Ok(Received::Files(upper)) = receive(&rig.store, Cursor::new(stream), NAME) else {
                panic!("a tar")
            };
            let (dir, file) = (upper.fs().to_owned(), upper.fs().join("a/b"));
            assert_eq!(fs::read(&file).unwrap(), b"B");
            let found = fs::metadata(&file).unwrap();
            assert_eq!((found.uid(), found.gid(), found.permissions().mode() & 0o7777), (0, 0, 0o640));
            drop(upper);
            assert!(!dir.exists(), "it goes with the run");
        }
        for text in ["", "FROM scratch\n", "\u{feff}FROM a"] {
            let Ok(Received::Text(bytes)) = receive(&rig.store, Cursor::new(text.to_owned()), NAME) else {
                panic!("a text")
            };
            assert_eq!(bytes, text.as_bytes());
        }
    }

    #[test]
    fn a_stream_that_is_not_sound_is_refused() {
        let rig = Rig::new();
        let plain = tar(&[("a", &"x".repeat(5000))]);
        for (stream, why) in [
            (plain[..2000].to_vec(), "in the middle"),
            (b"\x1f\x8bnothing that could be unpacked".to_vec(), "standard input"),
            (b"BZh9and no more".to_vec(), "standard input"),
            (vec![b'#'; (MAX_TEXT + 2) as usize], "longer than a Dockerfile"),
        ] {
            let e = receive(&rig.store, Cursor::new(stream), NAME).err().unwrap().to_string();
            assert!(e.contains(why), "{e}");
        }
        let outside = tar(&[("../../etc/x", "x"), ("/y", "y")]);
        let Ok(Received::Files(upper)) = receive(&rig.store, Cursor::new(outside), NAME) else {
            panic!("a tar")
        };
        for inside in ["etc/x", "y"] {
            assert!(upper.fs().join(inside).exists(), "clamped at the root of the context");
        }
    }
}
