//! Entries for fuzzers: each takes any bytes and must neither panic nor hang. Whole archives are driven by a test
//! of [`crate::copy`], which has a store to unpack into.

use keelway_model::TreePath;

/// The start of a file that `ADD` looks at.
pub fn fuzz_archive_head(data: &[u8]) {
    let _ = crate::copy::archive::detect(&mut &data[..], &TreePath::root());
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
            super::fuzz_archive_head(&[&b"\x1f\x8b\x08\0"[..], &data].concat());
            super::fuzz_users(&data);
            super::fuzz_users(text.as_bytes());
        }
    }
}
