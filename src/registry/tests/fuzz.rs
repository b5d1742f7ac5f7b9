//! The parsers of foreign bytes, driven with noise and with spoilt good input.

use super::*;
use crate::fuzz::{fuzz_challenge, fuzz_docker_config, fuzz_documents, fuzz_errors};
use proptest::prelude::*;

fn all(data: &[u8]) {
    fuzz_challenge(data);
    fuzz_docker_config(data);
    fuzz_documents(data);
    fuzz_errors(data);
}

fn seeds() -> Vec<Vec<u8>> {
    let image = Image::new(vec![layer(1, 10)]);
    vec![
        image.manifest,
        image.config,
        br#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":1,"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","platform":{"os":"linux","architecture":"amd64"}}]}"#.to_vec(),
        br#"{"auths":{"r.io":{"auth":"YTpi"}},"credHelpers":{"x":"y"}}"#.to_vec(),
        br#"{"errors":[{"code":"DENIED","message":"no","detail":null}]}"#.to_vec(),
        br#"Bearer realm="https://x/t",service="s \" t", Basic realm=x"#.to_vec(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn noise(data in proptest::collection::vec(any::<u8>(), 0..400)) {
        all(&data);
    }

    #[test]
    fn spoilt(which in 0usize..6, edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..6)) {
        let mut data = seeds()[which].clone();
        for (at, byte, how) in edits {
            if data.is_empty() {
                break;
            }
            let at = at.index(data.len());
            match how {
                0 => data[at] = byte,
                1 => { data.remove(at); }
                _ => data.insert(at, byte),
            }
        }
        all(&data);
    }
}

#[test]
fn deep_documents_end() {
    for open in ["[", "{\"a\":", "{\"manifests\":["] {
        all(open.repeat(100_000).as_bytes());
    }
}
