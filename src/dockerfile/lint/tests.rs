//! What files say of rules, and the order and bounds of findings. The rules themselves are tried, all in one table, by the image
//! crate.

use super::*;
use crate::{parse, parse_all};
use keelway_model::SourceText;

fn found(text: &str, instead: Option<&str>) -> Diagnostics {
    let file = parse(&SourceText::new("Dockerfile", text)).unwrap_or_else(|e| panic!("{text}\n{e}"));
    let mut lint = Lint::new(&file, instead).unwrap_or_else(|e| panic!("{text}\n{e}"));
    lint.text();
    lint.finish()
}
/// `line CODE` of each.
fn places(text: &str) -> Vec<String> {
    let found = found(text, None);
    let place = |d: &Diagnostic| format!("{} {}", found.sources[0].line_col(d.span.start).0, d.code);
    found.items.iter().map(place).collect()
}

#[test]
fn a_directive_is_for_the_file_and_a_comment_for_one_instruction() {
    let body = "FROM scratch as a\nMAINTAINER me\nMAINTAINER you\n";
    assert_eq!(places(body), ["1 FromAsCasing", "2 MaintainerDeprecated", "3 MaintainerDeprecated"]);
    for (head, left) in [
        ("# check=skip=all\n", &[][..]),
        ("#check=skip=FromAsCasing,MaintainerDeprecated\n", &[]),
        ("# Check = skip=MaintainerDeprecated // because\n", &["2 FromAsCasing"]),
        (
            "# check=skip=FromAsCasing;error=false;experimental=all\n",
            &["3 MaintainerDeprecated", "4 MaintainerDeprecated"],
        ),
        // Not at the head of the file, it is the comment of the first instruction.
        ("# note\n# check=skip=all\n", &["4 MaintainerDeprecated", "5 MaintainerDeprecated"]),
    ] {
        assert_eq!(places(&format!("{head}{body}")), left, "{head}");
    }
    let local =
        "FROM scratch\n# why\n# check=skip=MaintainerDeprecated it stays\n\nMAINTAINER me\nMAINTAINER you\n";
    assert_eq!(
        places(local),
        ["6 MaintainerDeprecated"],
        "a blank line between does not matter, the next instruction does"
    );
    let ended = "FROM scratch\n# check=skip=all\n#\nMAINTAINER me\n";
    assert_eq!(places(ended), ["4 MaintainerDeprecated"], "an empty comment begins anew");
}

#[test]
fn findings_are_errors_where_the_file_wants_that() {
    let warned = found("FROM a as b\nMAINTAINER c\n", None);
    assert!(!warned.has_errors() && warned.items.len() == 2, "{warned}");
    let errors = found("# check=error=true\nFROM a as b\nMAINTAINER c\n", None);
    assert!(errors.items.iter().all(|d| d.severity == Severity::Error), "{errors}");
    let hints = |d: &Diagnostic| d.hints.iter().filter(|h| h.contains("error=true")).count();
    assert_eq!(errors.items.iter().map(hints).collect::<Vec<_>>(), [1, 0], "said once");
    let clean = found("# check=skip=FromAsCasing;error=true\nFROM a as b\n", None);
    assert!(clean.items.is_empty(), "{clean}");
}

#[test]
fn other_options_count_instead_of_the_files() {
    let text = "# check=skip=all\nFROM a as b\n";
    assert_eq!(found(text, Some("error=1")).items[0].severity, Severity::Error);
    assert!(found("# check=error=true\nFROM a as b\n", Some("skip=all")).items.is_empty());
    let file = parse(&SourceText::new("Dockerfile", text)).unwrap();
    assert!(Lint::new(&file, Some("skip")).unwrap_err().contains("skip=RULE"));
}

#[test]
fn what_is_no_rule_and_no_option_is_told() {
    let said = found("# check=skip=jsonargsrecommended,Nonsense\nFROM a\n", None).to_string();
    assert!(
        said.contains("Dockerfile:1:9: warning[D0101]: there is no lint rule \"jsonargsrecommended\""),
        "{said}"
    );
    assert!(said.contains("did you mean JSONArgsRecommended?") && said.contains("\"Nonsense\""), "{said}");
    let said = found("FROM a\n# check=skip=StagenameCasing\n# check=sikp=all\nRUN x\n", None).to_string();
    assert!(said.contains("2:1: warning[D0101]") && said.contains("did you mean StageNameCasing?"), "{said}");
    assert!(said.contains("3:1: warning[D0101]: this check has no effect"), "{said}");
    for bad in ["skip", "error=maybe", "sikp=all", "skip=A;", "skip=all;x=y"] {
        let (_, errors) = parse_all(&SourceText::new("Dockerfile", format!("# check={bad}\nFROM a\n")));
        assert!(errors.to_string().contains("Dockerfile:1:9: error[D0002]"), "{bad}: {errors}");
    }
}

#[test]
fn findings_are_bounded_and_in_order() {
    let text = format!("from a\nFROM b as c\n{}", "MAINTAINER x\n".repeat(3 * MAX_LOOKED_AT));
    let found = found(&text, None);
    assert_eq!(found.items.len(), MAX_FINDINGS + 1);
    assert_eq!(found.items.last().unwrap().code, "D0102");
    let first: Vec<&str> = found.items[..3].iter().map(|d| d.code.as_str()).collect();
    assert_eq!(first, ["FromAsCasing", "MaintainerDeprecated", "MaintainerDeprecated"]);
}

#[test]
fn the_documentation_has_every_rule() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/dockerfile.md");
    let text = std::fs::read_to_string(path).unwrap();
    let section = text.split("## ").find(|s| s.starts_with("Lint rules")).unwrap();
    let rows = section.lines().filter_map(|l| l.strip_prefix("| `")?.split_once('`')).map(|(name, _)| name);
    assert_eq!(rows.collect::<Vec<_>>(), Rule::ALL.iter().map(|r| r.name()).collect::<Vec<_>>());
}
