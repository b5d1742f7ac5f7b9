//! Which interpreter a program names: the one of its `#!` line, or its dynamic linker.
//!
//! The bytes are the image's: every offset is checked, nothing is allocated by their word.

const PT_INTERP: u32 = 3;
const MAX_HEADERS: usize = 64;

/// From the first bytes of the file.
pub(crate) fn interpreter(head: &[u8]) -> Option<String> {
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|b| *b == b'\n').next()?;
        return word(line.trim_ascii().split(|b| b.is_ascii_whitespace()).next()?);
    }
    // A 64-bit little-endian ELF file, as every supported machine has them (elf(5)).
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = usize::try_from(u64::from_le_bytes(bytes(head, 0x20)?)).ok()?;
    let size = usize::from(u16::from_le_bytes(bytes(head, 0x36)?));
    let count = usize::from(u16::from_le_bytes(bytes(head, 0x38)?)).min(MAX_HEADERS);
    for i in 0..count {
        let at = table.checked_add(size.checked_mul(i)?)?;
        if u32::from_le_bytes(bytes(head, at)?) == PT_INTERP {
            let offset = usize::try_from(u64::from_le_bytes(bytes(head, at.checked_add(8)?)?)).ok()?;
            let length = usize::try_from(u64::from_le_bytes(bytes(head, at.checked_add(32)?)?)).ok()?;
            let name = head.get(offset..offset.checked_add(length)?)?;
            return word(name.split(|b| *b == 0).next()?);
        }
    }
    None
}

fn bytes<const N: usize>(head: &[u8], at: usize) -> Option<[u8; N]> {
    head.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn word(bytes: &[u8]) -> Option<String> {
    let text: String = String::from_utf8_lossy(bytes).chars().take(200).collect();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_and_programs_name_theirs() {
        assert_eq!(interpreter(b"#! /bin/bash -e\nx").as_deref(), Some("/bin/bash"));
        assert_eq!(interpreter(b"#!\n"), None);
        assert_eq!(interpreter(b"echo"), None);
        let ls = std::fs::read("/bin/ls").unwrap();
        assert!(interpreter(&ls[..4096]).unwrap().contains("/ld-linux"));
    }
}
