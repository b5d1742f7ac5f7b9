//! The expected results of the reference implementations, read where they lie; nothing is copied here.

use crate::parser::{Node, node};
use crate::{Ignore, expand, expand_words, lexer};
use keelway_model::{Diagnostics, SourceText};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A file of the corpus; `None` (and a word on it) where there is no corpus.
#[allow(clippy::print_stdout, reason = "tests say how many cases ran")]
fn read(name: &str) -> Option<String> {
    let dir = std::env::var_os("KEELWAY_CORPUS").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus"),
        PathBuf::from,
    );
    let text = std::fs::read_to_string(dir.join(name)).ok();
    if text.is_none() {
        println!("{name}: no corpus at {}", dir.display());
    }
    text
}

#[allow(clippy::print_stdout, reason = "tests say how many cases ran")]
fn ran(name: &str, count: usize) {
    println!("{name}: {count} cases ran");
}

#[test]
fn word_expansion() {
    let Some(text) = read("envVarTest") else { return };
    let env: BTreeMap<String, String> =
        [("PWD", "/home"), ("SHELL", "bash"), ("KOREAN", "한국어"), ("NULL", "")]
            .map(|(k, v)| (k.into(), v.into()))
            .into();
    let mut count = 0;
    for line in text.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty()) {
        let mut parts = line.splitn(3, '|').map(str::trim);
        let (Some(platform), Some(input), Some(want)) = (parts.next(), parts.next(), parts.next()) else {
            panic!("{line}")
        };
        if platform == "W" {
            continue;
        }
        let got = expand(input, &env, '\\');
        assert_eq!(got.as_deref().unwrap_or("error"), want, "{line} ({got:?})");
        count += 1;
    }
    ran("envVarTest", count);
    assert!(count > 150, "{count}");
}

#[test]
fn word_splitting() {
    let Some(text) = read("wordsTest") else { return };
    let mut env = BTreeMap::new();
    let mut count = 0;
    for line in text.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty()) {
        if let Some((name, value)) = line.strip_prefix("ENV ").and_then(|l| l.split_once('=')) {
            env.insert(name.to_owned(), value.to_owned());
            continue;
        }
        let (input, want) =
            line.split_once(" | ").or_else(|| line.split_once('|')).unwrap_or_else(|| panic!("{line}"));
        let got = expand_words(input.trim(), &env, '\\').unwrap_or_else(|_| vec!["error".to_owned()]);
        let want: Vec<&str> = want.trim_start().split(',').collect();
        assert_eq!(got, want, "{line}");
        count += 1;
    }
    ran("wordsTest", count);
    assert!(count > 20, "{count}");
}

#[test]
fn ignore_patterns() {
    let Some(text) = read("dockerignore_patterns.json") else { return };
    let corpus: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut count = 0;
    for case in corpus["matches"].as_array().unwrap() {
        let patterns: Vec<&[u8]> =
            case["patterns"].as_array().unwrap().iter().map(|p| p.as_str().unwrap().as_bytes()).collect();
        let got =
            Ignore::from_patterns(patterns).unwrap().excludes(case["path"].as_str().unwrap().as_bytes());
        assert_eq!(got, case["match"].as_bool().unwrap(), "{case}");
        count += 1;
    }
    assert_eq!(count, 72);
    for case in corpus["filepath_match"].as_array().unwrap() {
        let pattern = case["pattern"].as_str().unwrap().as_bytes();
        let path = case["path"].as_str().unwrap().as_bytes();
        let got = Ignore::from_patterns([pattern]).map(|i| i.excludes(path));
        assert_eq!(got.is_err(), case["err"].as_bool().unwrap(), "{case}");
        assert_eq!(got.unwrap_or(false), case["match"].as_bool().unwrap(), "{case}");
        // The same cases hold for the plain matcher, where no parent decides.
        if path != b"ab/c" {
            let plain = crate::glob::matches(pattern, path);
            assert_eq!(plain.is_err(), case["err"].as_bool().unwrap(), "{case}");
            assert_eq!(plain.unwrap_or(false), case["match"].as_bool().unwrap(), "{case}");
        }
        count += 1;
    }
    ran("dockerignore_patterns.json", count);
    assert_eq!(count, 72 + 54);
}

/// Go's `strconv.Quote`.
fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out + "\""
}

fn dump(node: &Node) -> String {
    let mut out = format!("({}", node.name);
    if !node.flags.is_empty() {
        let flags: Vec<String> = node.flags.iter().map(|f| quote(&f.text)).collect();
        out += &format!(" [{}]", flags.join(" "));
    }
    node.args.iter().for_each(|a| out += &format!(" {}", quote(&a.text)));
    if let Some(inner) = &node.inner {
        out += &format!(" {}", dump(inner));
    }
    out + ")"
}

#[test]
fn parse_trees() {
    let Some(text) = read("dockerfile_parser.json") else { return };
    let corpus: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut count = 0;
    for case in corpus.as_array().unwrap() {
        let (name, text) = (case["name"].as_str().unwrap(), case["dockerfile"].as_str().unwrap());
        let mut errors = Diagnostics::default();
        let (head, lines) = lexer::lex(name, text, &mut errors);
        count += 1;
        if case["expect_error"].as_bool().unwrap() {
            assert!(crate::parse(&SourceText::new(name, text)).is_err(), "{name}");
            continue;
        }
        assert!(!errors.has_errors(), "{name}: {errors}");
        let mut got = String::new();
        for line in &lines {
            match node(&line.text, 0..line.text.len(), head.escape) {
                Ok(node) => got += &(dump(&node) + "\n"),
                Err(e) => panic!("{name}: {}", e.message),
            }
        }
        assert_eq!(got, case["ast"].as_str().unwrap(), "{name}");
    }
    ran("dockerfile_parser.json", count);
    assert_eq!(count, 37);
}
