//! What people read.

use super::{SHOP, codes, ok, parse};

/// Position, code, message, label, related places and hints, as plain text.
fn shown(text: &str) -> String {
    let found = parse(text).expect_err("a broken file");
    let mut out = String::new();
    for d in &found.items {
        let source = found.source_of(d).expect("a source");
        let at = |offset| {
            let (line, col) = source.line_col(offset);
            format!("{line}:{col}")
        };
        let under: String = text[d.span.range(text.len())].chars().take(40).collect();
        out += &format!("{}:{} {} {:?}\n    {}\n", d.file, at(d.span.start), d.code, under, d.message);
        if let Some(label) = &d.label {
            out += &format!("    ^ {label}\n");
        }
        for (span, what) in &d.related {
            out += &format!("    {} {what}\n", at(span.start));
        }
        for hint in &d.hints {
            out += &format!("    hint: {hint}\n");
        }
    }
    out
}

#[test]
fn every_problem_of_a_broken_file_is_shown_at_once() {
    insta::assert_snapshot!(shown(include_str!("files/broken.yml")));
}

#[test]
fn every_code_has_an_explanation_and_every_code_that_is_used_exists() {
    for text in [include_str!("files/broken.yml"), "a: [", "x: *y", "a: !b c", "---\na: 1\n---\nb: 2"] {
        for code in codes(text) {
            assert!(crate::explain(&code).is_some_and(|t| t.len() > 20), "{code}");
        }
    }
    assert_eq!(crate::explain("k0101"), crate::explain("K0101"));
    assert_eq!(crate::explain("K9999"), None);
}

#[test]
fn a_broken_structure_is_told_by_its_lines() {
    let hints = |text: &str| {
        parse(text).expect_err("broken").items.into_iter().flat_map(|d| d.hints).collect::<Vec<_>>()
    };
    let open = hints("version: 1\non: {push: {branches: [main}}\nstages:\n  a: {}\n");
    assert_eq!(open, ["the [ of line 2 is still open: is its ] missing?"]);
    let shifted = hints("version: 1\nstages:\n  image:\n    build: {context: .}\n   test:\n    steps: []\n");
    assert_eq!(shifted, ["the indentation of this line (3 spaces) does not match that of line 4 (4 spaces)"]);
}

#[test]
fn a_file_of_another_system_is_taught() {
    let gitlab = "stages: [build, test]\nvariables: {A: b}\nbuild:\n  stage: build\n  script: [make]\n";
    let github = "name: x\non: [push]\njobs:\n  test:\n    runs-on: ubuntu-latest\n    steps: [{uses: actions/checkout@v4}]\n";
    let woodpecker = "when: {event: push}\nsteps:\n  - {name: a, image: b, commands: [make]}\n";
    insta::assert_snapshot!([gitlab, github, woodpecker].map(shown).join("\n"));
}

#[test]
fn keys_that_come_later_are_refused_by_name() {
    for key in [
        "inputs",
        "services",
        "promote",
        "approve",
        "if",
        "matrix",
        "cache",
        "artifacts",
        "reports",
        "secrets",
        "retry",
        "allow_failure",
        "environment",
        "concurrency",
        "runner",
        "finally",
    ] {
        let text = format!("version: 1\nstages: {{a: {{build: {{}}, {key}: x}}}}\n");
        let found = parse(&text).expect_err(key);
        assert_eq!(found.items.len(), 1, "{found}");
        assert_eq!(found.items[0].code, "K0102", "{found}");
        assert!(found.items[0].message.contains("not there yet"), "{found}");
    }
    assert_eq!(codes("version: 1\ninclude: x\nstages: {a: {build: {}}}\n"), ["K0102"]);
}

#[test]
fn scalars_stay_as_written() {
    let d = ok(
        "version: 1\nenv: {A: 3.10, B: 1e3, C: on, D: no, E: 010, F: 1:20, G: .inf, H: '', I: ~}\nstages: {a: {build: {}}}",
    );
    let values: Vec<&str> = d.env.iter().map(|(_, v)| v.as_str()).collect();
    assert_eq!(values, ["3.10", "1e3", "on", "no", "010", "1:20", ".inf", "", "~"]);
}

#[test]
fn merge_keys_fill_in_what_is_not_there() {
    let text = "version: 1\nenv: &e {A: '1', B: '2'}\nstages:\n  a:\n    image: busybox\n    env: {<<: *e, A: '9'}\n    steps: [{run: 'true'}]\n";
    let d = ok(text);
    let crate::Kind::Steps(s) = &d.stages[0].kind else { panic!() };
    assert_eq!(s.env, [("A".to_owned(), "9".to_owned()), ("B".to_owned(), "2".to_owned())]);
}

#[test]
fn the_file_of_the_documentation_is_right() {
    let d = ok(SHOP);
    assert!(d.warnings.items.is_empty(), "{}", d.warnings);
    assert_eq!(d.stages.len(), 5);
}

#[test]
fn a_hint_of_a_cycle_names_the_way() {
    let found = parse("version: 1\nstages:\n  a: {needs: b, build: {}}\n  b: {needs: c, build: {}}\n  c: {needs: a, build: {}}\n")
        .expect_err("a cycle");
    assert_eq!(found.items.len(), 1, "{found}");
    assert!(found.items[0].message.ends_with("a needs b needs c needs a"), "{found}");
}

#[test]
fn an_unused_target_is_a_warning_only() {
    let d = ok(
        "version: 1\nstages: {a: {build: {}}}\ntargets: {t: {hosts: [{ssh: h}], balancer: {listen: ':80'}}}",
    );
    assert_eq!(d.warnings.items.len(), 1);
    assert_eq!(d.warnings.items[0].code, "K0301");
}

#[test]
fn the_reference_shows_a_right_file_and_names_every_key() {
    let page = include_str!("../../../docs/pipeline.md");
    let block = page.split("```yaml\n").nth(1).and_then(|b| b.split("```").next()).expect("a first example");
    ok(block);
    for place in crate::schema::PLACES.iter().chain(crate::stage::PLACES) {
        for key in place.known {
            assert!(
                page.contains(&format!("`{key}"))
                    || page.contains(&format!("{{{key}"))
                    || page.contains(&format!("{key}:")),
                "docs/pipeline.md does not name {key:?} of {}",
                place.name
            );
        }
    }
}
