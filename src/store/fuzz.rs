//! Entries for fuzzing: each takes any bytes and must neither panic nor run away.

use crate::layer::parse::{Archive, MemberKind};
use crate::{cache, key, record};

/// A foreign tar.
pub fn fuzz_tar(data: &[u8]) {
    let mut archive = Archive::new(data);
    while let Ok(Some(member)) = archive.next_member() {
        if let MemberKind::File(size) = member.kind {
            let mut read = 0;
            while let Ok(bytes) = archive.fill() {
                if bytes.is_empty() {
                    break;
                }
                let n = bytes.len();
                archive.consume(n);
                read += n as u64;
            }
            assert!(read <= size && read <= data.len() as u64);
        }
        assert!(archive.offset <= data.len() as u64);
    }
}

/// Records of the store, after a crash or a tampering hand.
pub fn fuzz_record(data: &[u8]) {
    let _ = record::decode::<crate::SnapshotMeta>(data);
    let _ = record::decode::<crate::Layer>(data);
    let _ = record::decode::<cache::Kept>(data);
    assert!(key::decode_table(data).count() <= data.len() / 72);
}
