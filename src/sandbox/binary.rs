//! The program that init is: a sealed copy in memory of what is loaded of a binary.
//!
//! A copy, because a process in a sandbox can reach the file behind its init (`/proc/1/exe`, CVE-2019-5736): this one
//! is sealed against every change and is nobody else's. Only the part of the file that the program headers name is
//! copied: symbols and line tables, four fifths of a release build, are no use to init, and copying them took 50 ms.

use crate::sys;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// As much of a file as holds its header and program headers.
const HEAD: usize = 4096;
/// Where a header says where the section table is, and how many there are; all zeroes is "none".
const SECTIONS: [std::ops::Range<usize>; 2] = [0x28..0x30, 0x3c..0x40];

/// A read-only descriptor of the copy, to be executed.
pub(crate) fn sealed_copy(program: &mut File) -> io::Result<OwnedFd> {
    let mut head = Vec::with_capacity(HEAD);
    Read::take(&mut *program, HEAD as u64).read_to_end(&mut head)?;
    program.rewind()?;
    let whole = program.metadata()?.len();
    let loaded = loaded_length(&head).filter(|length| *length < whole);
    let mut copy = sys::executable_memory()?;
    let length = loaded.unwrap_or(whole);
    if io::copy(&mut Read::take(&mut *program, length), &mut copy)? != length {
        return Err(io::Error::other(
            "the program became shorter while it was copied; was it just replaced?",
        ));
    }
    if loaded.is_some() {
        for range in SECTIONS {
            copy.write_all_at(&[0; 8][..range.len()], range.start as u64)?;
        }
    }
    copy.flush()?;
    sys::seal(&copy)
}

/// Up to where the program headers of a 64-bit little-endian ELF file (elf(5)) need it, in bytes; `None` where it is
/// none, or they are not all in `head`.
fn loaded_length(head: &[u8]) -> Option<u64> {
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let number = |at: usize| Some(u64::from_le_bytes(bytes(head, at)?));
    let short = |at: usize| Some(usize::from(u16::from_le_bytes(bytes(head, at)?)));
    let (table, size, count) = (usize::try_from(number(0x20)?).ok()?, short(0x36)?, short(0x38)?);
    let mut end = table.checked_add(size.checked_mul(count)?)? as u64;
    for i in 0..count {
        let at = table.checked_add(size.checked_mul(i)?)?;
        let (offset, length) = (number(at.checked_add(8)?)?, number(at.checked_add(32)?)?);
        end = end.max(offset.checked_add(length)?);
    }
    (count > 0).then_some(end)
}

fn bytes<const N: usize>(head: &[u8], at: usize) -> Option<[u8; N]> {
    head.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::process::Command;

    #[test]
    fn the_copy_runs_is_what_is_loaded_and_cannot_be_changed() {
        // A test binary has sections of debugging information behind what is loaded.
        let mut own = File::open("/proc/self/exe").unwrap();
        let copy = sealed_copy(&mut own).unwrap();
        let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
        let size = std::fs::metadata(&path).unwrap().len();
        assert!(size < own.metadata().unwrap().len(), "{size} bytes");
        let listed = Command::new(&path).arg("--list").output().unwrap();
        let listed = String::from_utf8_lossy(&listed.stdout);
        assert!(listed.contains("cannot_be_changed: test"), "{listed}");
        let opened = File::options().write(true).open(&path);
        assert!(opened.and_then(|mut f| f.write_all(b"x")).is_err());
        assert!(File::options().write(true).open(&path).and_then(|f| f.set_len(0)).is_err());
    }

    #[test]
    fn a_program_without_more_than_is_loaded_is_copied_whole() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"#!/bin/sh\nexit 0\n").unwrap();
        file.rewind().unwrap();
        let mut text = String::new();
        File::from(sealed_copy(&mut file).unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "#!/bin/sh\nexit 0\n");
    }

    #[test]
    fn a_damaged_header_is_no_header() {
        let good = std::fs::read("/bin/ls").unwrap();
        assert!(loaded_length(&good[..HEAD]).is_some_and(|n| n <= good.len() as u64 && n > 10_000));
        assert_eq!(loaded_length(&good[..100]), None);
        let mut bad = good[..HEAD].to_vec();
        for at in [0x20, 0x36, 0x38] {
            bad.copy_from_slice(&good[..HEAD]);
            bad[at..at + 2].fill(0xff);
            let _ = loaded_length(&bad);
        }
        bad.copy_from_slice(&good[..HEAD]);
        bad[64 + 8..64 + 16].fill(0xff);
        assert_eq!(loaded_length(&bad), None, "an offset that overflows");
    }
}
