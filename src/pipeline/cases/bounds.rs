//! Hostile texts: an error, soon, and no panic (security cases Y01 to Y05, Y09).

use super::{SHOP, codes, parse};
use crate::fuzz::fuzz_pipeline;
use proptest::prelude::*;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// Runs it, and says how long it took at most; generous, since other builds share the machine.
fn soon<T>(what: &str, run: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let out = run();
    assert!(begun.elapsed() < Duration::from_secs(3), "{what} took {:?}", begun.elapsed());
    out
}

#[test]
fn y01_aliases_do_not_explode() {
    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for i in 1..20 {
        let items = vec![format!("*a{}", i - 1); 9].join(", ");
        let _ = writeln!(laughs, "a{i}: &a{i} [{items}]");
    }
    assert_eq!(soon("laughs", || codes(&laughs)), ["K0003"]);

    let mut merges = String::from("a0: &a0 {k: v}\n");
    for i in 1..200 {
        let _ = writeln!(merges, "a{i}: &a{i} {{<<: [*a{0}, *a{0}], k{i}: *a{0}}}", i - 1);
    }
    assert!(soon("merges", || codes(&merges)).contains(&"K0003".to_owned()));

    let big = format!("a: &a {}\nb: [{}]\n", "x".repeat(100_000), vec!["*a"; 40_000].join(", "));
    assert_eq!(soon("big scalars", || codes(&big)), ["K0003"]);

    assert!(codes("a: &a [*a]").contains(&"K0008".to_owned()), "an alias inside itself");
    assert!(codes("a: &a {<<: *a}").contains(&"K0008".to_owned()));
    assert!(codes("a: *nothing").contains(&"K0008".to_owned()));

    let nested =
        (0..60).fold("x".to_owned(), |inner, i| format!("&b{i} [{inner}, {}]", vec!["y"; 800].join(",")));
    assert_eq!(soon("nested anchors", || codes(&nested)), ["K0003"]);
}

#[test]
fn y02_duplicate_keys_are_errors_with_both_places() {
    let found =
        parse("version: 1\nstages:\n  a: {build: {}}\n  \"a\": {build: {}}\n").expect_err("a duplicate");
    assert_eq!(found.items.len(), 1, "{found}");
    assert_eq!(found.items[0].code, "K0005");
    let source = &found.sources[0];
    assert_eq!(source.line_col(found.items[0].span.start), (4, 3));
    assert_eq!(source.line_col(found.items[0].related[0].0.start), (3, 3));
}

#[test]
fn y03_depth_is_bounded() {
    for text in [
        "[".repeat(100_000),
        "{a: ".repeat(100_000),
        "- ".repeat(100_000),
        "? ".repeat(50_000),
        (0..10_000).map(|i| format!("{}a:\n", " ".repeat(i % 1000))).collect(),
    ] {
        let found = soon("depth", || codes(&text));
        assert!(!found.is_empty(), "{}", &text[..20]);
    }
    assert_eq!(codes(&format!("{}{}", "[".repeat(65), "]".repeat(65))), ["K0003"]);
}

#[test]
fn y04_size_comes_first() {
    let big = vec![b' '; (1 << 20) + 1];
    let found = crate::parse_bytes("f", &big).expect_err("too big");
    assert_eq!(found.items[0].code, "K0003");
    let documents = "---\na\n".repeat(100_000);
    assert!(soon("documents", || codes(&documents)).contains(&"K0006".to_owned()));
    let wide: String = (0..60_000).map(|i| format!("k{i}: v\n")).collect();
    assert_eq!(soon("wide", || codes(&wide)), ["K0003"]);
    let keys: String = (0..20_000).map(|i| format!("k{i}: v\n")).collect();
    assert!(soon("keys", || codes(&keys)).len() >= 20_000);
    let stages: String = (0..2000).map(|i| format!("  s{i}: {{build: {{}}}}\n")).collect();
    assert_eq!(soon("stages", || codes(&format!("version: 1\nstages:\n{stages}"))), ["K0003"]);
}

#[test]
fn y05_tags_are_errors() {
    for text in ["a: !!python/object:os.system x", "a: !x y", "!x {a: b}", "a: !!binary aGk="] {
        assert!(codes(text).contains(&"K0007".to_owned()), "{text}");
    }
    assert!(!codes("a: !!str 1").contains(&"K0007".to_owned()));
}

#[test]
fn y09_characters_that_deceive_are_refused() {
    for (text, name) in [
        ("a: \u{202e}b", "bidi"),
        ("a: b\0", "NUL"),
        ("a: \u{feff}b", "BOM inside"),
        ("a: \u{1b}[31m", "escape"),
        ("# \u{2066}", "bidi in a comment"),
        ("a\u{200b}: b", "zero width"),
    ] {
        assert_eq!(codes(text), ["K0002"], "{name}");
    }
    let utf16: Vec<u8> = "a: b".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut with_mark = vec![0xff, 0xfe];
    with_mark.extend(&utf16);
    for bytes in [utf16, with_mark, b"a: \xff".to_vec()] {
        assert_eq!(crate::parse_bytes("f", &bytes).expect_err("no UTF-8").items[0].code, "K0002");
    }
    let marked = [b"\xef\xbb\xbf".as_slice(), SHOP.as_bytes()].concat();
    assert!(crate::parse_bytes("f", &marked).is_ok(), "a mark at the start is no harm");
    let crlf = SHOP.replace('\n', "\r\n");
    assert!(crate::parse_bytes("f", crlf.as_bytes()).is_ok(), "CRLF is no harm");
    let nul = "version: 1\nstages: {a: {image: b, steps: [{run: \"x\\0\"}]}}";
    assert_eq!(codes(nul), ["K0105"], "a NUL by escape");
}

/// Our tree has the shape that another parser reads.
#[test]
fn another_parser_agrees() {
    use crate::yaml::{Node, Value};
    fn same(ours: &Node, theirs: &serde_yaml::Value) -> bool {
        match (&ours.value, theirs) {
            (Value::Empty, serde_yaml::Value::Null) => true,
            (Value::Text { text, .. }, serde_yaml::Value::String(s)) => text == s,
            (Value::Text { plain, .. }, serde_yaml::Value::Number(_) | serde_yaml::Value::Bool(_)) => *plain,
            (Value::List(a), serde_yaml::Value::Sequence(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
            }
            (Value::Map(a), serde_yaml::Value::Mapping(b)) => {
                a.len() == b.len()
                    && a.iter().zip(b).all(|(a, (k, v))| k.as_str() == Some(&a.key) && same(&a.value, v))
            }
            _ => false,
        }
    }
    let scalars = "a: |\n  x\n   y\n\nb: >-\n  x\n  y\nc: 'it''s'\nd: \"\\t\\u00e9\"\ne: &x [1, on, {k: }]\nf: *x\ng:\nh: a\n  b\n";
    for text in [SHOP, scalars] {
        let mut found = keelway_model::Diagnostics::default();
        let ours =
            crate::yaml::parse(&keelway_model::SourceText::new("f", text), &mut found).expect("a tree");
        assert!(found.items.is_empty());
        let theirs: serde_yaml::Value = serde_yaml::from_str(text).expect("YAML");
        assert!(same(&ours, &theirs), "{ours:#?}\n{theirs:#?}");
    }
}

#[test]
fn mutations_of_a_good_file_never_panic() {
    // A small generator of its own: the same every run, thousands of cases a second.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let pieces: Vec<&[u8]> = vec![
        b"*a", b"&a ", b"<<: ", b"[", b"{", b"]", b"}", b"\n", b"  ", b"- ", b"!x ", b"\"", b"'", b"|",
        b"\0", b"\xff", b": ", b"---\n", b"? ",
    ];
    let broken = include_bytes!("files/broken.yml");
    let begun = Instant::now();
    let mut cases = 0;
    while cases < 3000 && begun.elapsed() < Duration::from_secs(20) {
        let mut text = if cases % 2 == 0 { SHOP.as_bytes().to_vec() } else { broken.to_vec() };
        for _ in 0..=next(6) {
            let at = next(text.len());
            match next(4) {
                0 => _ = text.splice(at..at, pieces[next(pieces.len())].iter().copied()).count(),
                1 => _ = text.drain(at..(at + next(40)).min(text.len())).count(),
                2 => text[at] = next(256) as u8,
                _ => {
                    let to = (at + next(60)).min(text.len());
                    let copy = text[at..to].to_vec();
                    let into = next(text.len());
                    _ = text.splice(into..into, copy).count();
                }
            }
            if text.is_empty() {
                text.push(b'a');
            }
        }
        fuzz_pipeline(&text);
        cases += 1;
    }
    assert!(cases >= 300, "only {cases} cases in 20 s");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]
    #[test]
    fn any_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..400)) {
        fuzz_pipeline(&data);
    }
    #[test]
    fn any_text_of_yaml_characters_never_panics(text in "[a-c:\\-\\[\\]{},&*!|>'\"#%@`?<~ \n\t]{0,200}") {
        fuzz_pipeline(text.as_bytes());
    }
}
