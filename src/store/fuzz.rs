//! Entries for fuzzing: each takes any bytes and must neither panic nor run away.

use crate::layer::parse::{Archive, MemberKind};
use crate::{cache, key, record};

/// A foreign tar.
pub fn fuzz_tar(data: &[u8]) {
    walk(Archive::new(data), data.len() as u64);
    walk(Archive::new(data).with_sparse_files(), data.len() as u64);
}

fn walk(mut archive: Archive<&[u8]>, length: u64) {
    while let Ok(Some(member)) = archive.next_member() {
        if let MemberKind::File(size) = member.kind {
            let (mut read, mut holes) = (0, 0);
            loop {
                holes += archive.pass_hole();
                match archive.fill().map(<[u8]>::len) {
                    Ok(0) => assert_eq!(read + holes, size, "all of it came"),
                    Ok(n) => {
                        archive.consume(n);
                        read += n as u64;
                        continue;
                    }
                    Err(_) => {}
                }
                break;
            }
            assert!(read <= length && read + holes <= size && (holes == 0 || member.sparse));
        }
        assert!(archive.offset <= length);
    }
}

/// Records of the store, after a crash or a tampering hand.
pub fn fuzz_record(data: &[u8]) {
    let _ = record::decode::<crate::SnapshotMeta>(data);
    let _ = record::decode::<crate::Layer>(data);
    let _ = record::decode::<cache::Kept>(data);
    assert!(key::decode_table(data).count() <= data.len() / 72);
}
