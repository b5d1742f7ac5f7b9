//! Entries for fuzzers: each takes any bytes and must neither panic nor hang. Whole archives are driven by a test
//! of [`crate::copy`], which has a store to unpack into.

use keelway_model::TreePath;

/// The start of a file that `ADD` looks at.
pub fn fuzz_archive_head(data: &[u8]) {
    let _ = crate::copy::archive::detect(&mut &data[..], &TreePath::root());
}

/// `--chmod`: what is taken gives modes and nothing else.
pub fn fuzz_chmod(data: &[u8]) {
    if let Ok(chmod) = String::from_utf8_lossy(data).parse::<keelway_model::Chmod>() {
        assert!(chmod.apply(0o644, false) <= 0o7777 && chmod.apply(0o7777, true) <= 0o7777);
    }
}

/// Addresses of repositories.
pub fn fuzz_git_address(data: &[u8]) {
    if let Ok(address) = crate::git::Address::parse(&String::from_utf8_lossy(data)) {
        assert!(address.folder.is_none_or(|f| !f.starts_with('/') && f.split('/').all(|part| part != "..")));
    }
}

/// /etc/passwd, /etc/group and user specifications.
pub fn fuzz_users(data: &[u8]) {
    crate::user::read_any(data);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn nothing_panics(data in prop::collection::vec(any::<u8>(), 0..1200), text in "[a-z0-9:,\\-\n]{0,80}") {
            super::fuzz_archive_head(&data);
            for magic in [&b"\x1f\x8b\x08\0"[..], b"BZh9", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"] {
                super::fuzz_archive_head(&[magic, &data].concat());
            }
            super::fuzz_chmod(text.as_bytes());
            super::fuzz_chmod(&data);
            super::fuzz_git_address(format!("https://x/y?{text}").as_bytes());
            super::fuzz_git_address(&data);
            super::fuzz_users(&data);
            super::fuzz_users(text.as_bytes());
        }
    }
}
