//! Word expansion and splitting.

use super::*;
use proptest::prelude::*;

fn env() -> BTreeMap<String, String> {
    [("HOME", "/root"), ("EMPTY", ""), ("FILE", "a/b/archive.tar.gz"), ("SP", "one  two"), ("ÜNI", "ok")]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into()
}
fn ok(word: &str) -> String {
    expand(word, &env(), '\\').unwrap_or_else(|e| panic!("{word}: {e}"))
}

#[test]
fn forms() {
    for (word, want) in [
        ("x", "x"),
        ("$HOME/x", "/root/x"),
        ("${HOME}x", "/rootx"),
        ("$NOPE.", "."),
        ("$.", "$."),
        ("a$", "a$"),
        ("'$HOME'", "$HOME"),
        ("\"$HOME\"", "/root"),
        ("\\$HOME", "$HOME"),
        ("\"\\$HOME \\x\"", "$HOME \\x"),
        ("${NOPE:-a b}", "a b"),
        ("${EMPTY:-d}", "d"),
        ("${EMPTY-d}", ""),
        ("${EMPTY:+d}", ""),
        ("${EMPTY+d}", "d"),
        ("${HOME:?e}", "/root"),
        ("${EMPTY?}", ""),
        ("${NOPE:-${HOME:+${FILE##*/}}}", "archive.tar.gz"),
        ("${FILE#*/}", "b/archive.tar.gz"),
        ("${FILE##*/}", "archive.tar.gz"),
        ("${FILE%.*}", "a/b/archive.tar"),
        ("${FILE%%.*}", "a/b/archive"),
        ("${FILE%%z}", "a/b/archive.tar.g"),
        ("${FILE#zz}", "a/b/archive.tar.gz"),
        ("${FILE/a/A}", "A/b/archive.tar.gz"),
        ("${FILE//a/A}", "A/b/Archive.tAr.gz"),
        ("${FILE/\\//:}", "a:b/archive.tar.gz"),
        ("${FILE//\\//:}", "a:b:archive.tar.gz"),
        ("${FILE//.*/}", "a/b/archive"),
        ("${FILE//?/x}", "xxxxxxxxxxxxxxxxxx"),
        ("$1$@${*:-w}", "w"),
        ("${ÜNI}", "ok"),
    ] {
        assert_eq!(ok(word), want, "{word}");
    }
    assert_eq!(expand("`$HOME\\x", &env(), '`').unwrap(), "$HOME\\x");
    for bad in [
        "'",
        "\"",
        "${",
        "${}",
        "${{a}",
        "${:a}",
        "${a",
        "${a:b}",
        "${a:",
        "${HOME:}",
        "${a=b}",
        "${a/b}",
        "${HOME#\\x}",
        "${a:-'}",
    ] {
        assert!(expand(bad, &env(), '\\').is_err(), "{bad}");
    }
    let required = expand("${NOPE:?say why}", &env(), '\\').unwrap_err();
    assert_eq!(required.to_string(), "NOPE: say why");
}

#[test]
fn splitting_happens_after_expansion() {
    let words = |w| expand_words(w, &env(), '\\').unwrap();
    assert_eq!(words("a $SP b"), ["a", "one", "two", "b"]);
    assert_eq!(words("\"$SP\"b c\\ d"), ["one  twob", "c d"]);
    assert_eq!(words("  '' \"\" "), Vec::<String>::new());
}

#[test]
fn heredoc_bodies_keep_quotes() {
    assert_eq!(expand_heredoc("'$HOME' \"\\$HOME\"\n", &env()).unwrap(), "'/root' \"$HOME\"\n");
}

#[test]
fn nesting_is_bounded() {
    let deep = format!("{}{}", "${A:-".repeat(10_000), "}".repeat(10_000));
    assert!(matches!(expand(&deep, &env(), '\\'), Err(ExpandError::TooMuch(_))));
    let fine = format!("{}x{}", "${A:-".repeat(MAX_DEPTH), "}".repeat(MAX_DEPTH));
    assert_eq!(ok(&fine), "x");
}

#[test]
fn growth_is_bounded() {
    let env: BTreeMap<String, String> = [("A".to_owned(), "a".repeat(60_000))].into();
    assert!(matches!(expand(&"$A".repeat(1000), &env, '\\'), Err(ExpandError::TooMuch(_))));
    assert!(matches!(expand("${A//*a*a*a*b/x}", &env, '\\'), Err(ExpandError::TooMuch(_))));
    assert!(matches!(
        expand(&format!("${{A//a/{}}}", "b".repeat(100)), &env, '\\'),
        Err(ExpandError::TooMuch(_))
    ));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn quoting_protects_anything(text in "[^']{0,40}") {
        prop_assert_eq!(ok(&format!("'{text}'")), text);
    }
    #[test]
    fn escaping_protects_anything(text in ".{0,40}") {
        let escaped: String = text.chars().flat_map(|c| ['\\', c]).collect();
        prop_assert_eq!(ok(&escaped), text);
    }
    #[test]
    fn nothing_panics(text in r#"[a$\{\}:/%#*?'"+\\ -]{0,40}"#) {
        let _ = expand(&text, &env(), '\\');
        let _ = expand_words(&text, &env(), '`');
        let _ = expand_heredoc(&text, &env());
    }
}
