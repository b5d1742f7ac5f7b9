//! Entries for fuzzing: each takes any bytes and must return.

/// Repository addresses.
pub fn fuzz_url(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for origin in [crate::Origin::CommandLine, crate::Origin::File] {
        if let Ok(url) = crate::RepoUrl::parse(&text, origin) {
            let _ = (url.to_string(), url.cache_name());
        }
    }
}

/// What a git server sends: references, then a pack in its side band.
pub fn fuzz_protocol(data: &[u8]) {
    let mut from = data;
    let _ = crate::protocol::read_advertisement(&mut from, 1000);
    let mut from = data;
    let _ = crate::protocol::read_pack(&mut from, &mut |_| Ok::<(), ()>(()));
}
