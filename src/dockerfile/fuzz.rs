//! Entries for fuzzers: each takes any bytes and must neither panic nor hang.

use crate::{Ignore, Lint, expand, expand_heredoc, expand_words, glob, parse_all, parse_trigger};
use keelway_model::SourceText;
use std::collections::BTreeMap;

/// A whole Dockerfile, as text where it is text.
pub fn fuzz_dockerfile(data: &[u8]) {
    let source = SourceText::new("Dockerfile", String::from_utf8_lossy(data));
    let (file, errors) = parse_all(&source);
    // Rendering reads every span.
    let _ = errors.to_string();
    if let Ok(mut lint) = Lint::new(&file, None) {
        lint.text();
        let _ = lint.finish().to_string();
    }
    let _ = parse_trigger(&source);
}

/// A word, in all forms of expansion.
pub fn fuzz_word(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let env: BTreeMap<String, String> =
        [("A".to_owned(), "a/b.c".to_owned()), ("E".to_owned(), String::new())].into();
    for escape in ['\\', '`'] {
        let _ = expand(&text, &env, escape);
        let _ = expand_words(&text, &env, escape);
    }
    let _ = expand_heredoc(&text, &env);
}

/// An ignore file and a path, parted by the first NUL.
pub fn fuzz_ignore(data: &[u8]) {
    let cut = data.iter().position(|b| *b == 0).unwrap_or(data.len());
    let (patterns, path) = data.split_at(cut);
    let path = path.strip_prefix(b"\0").unwrap_or(path);
    if let Ok(ignore) = Ignore::parse(patterns) {
        let _ = ignore.excludes(path);
        let _ = ignore.coverage(path);
    }
    let _ = glob::matches(patterns, path);
}
