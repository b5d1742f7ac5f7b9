//! `skip=A,B;error=true;experimental=C`: what a `# check=` says.

use super::Rule;

/// The options of one `# check=`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checks {
    skip: Rules,
    experimental: Rules,
    /// Whether findings are errors.
    pub(super) error: bool,
    /// Names that no rule has.
    pub(super) unknown: Vec<String>,
}

/// Some rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Rules {
    all: bool,
    named: Vec<Rule>,
}

impl Rules {
    fn has(&self, rule: Rule) -> bool {
        self.all || self.named.contains(&rule)
    }
}

impl Checks {
    /// Takes options apart; what follows a blank is a remark.
    ///
    /// # Errors
    /// What cannot be understood, and how it is written. A name that no rule has is no error: it may be a later version's.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut checks = Self::default();
        let text = text.split_whitespace().next().unwrap_or_default();
        for option in text.split(';').filter(|_| !text.is_empty()) {
            match option.split_once('=') {
                Some(("skip", names)) => checks.skip = rules(names, &mut checks.unknown),
                Some(("experimental", names)) => checks.experimental = rules(names, &mut checks.unknown),
                Some(("error", value)) => {
                    checks.error = match value {
                        "1" | "t" | "T" | "true" | "True" | "TRUE" => true,
                        "0" | "f" | "F" | "false" | "False" | "FALSE" => false,
                        other => return Err(format!("error= takes true or false, not {other:?}")),
                    }
                }
                _ => {
                    return Err(format!(
                        "{option:?} is no option of lint checks: write skip=RULE,RULE;error=true;experimental=RULE, without blanks"
                    ));
                }
            }
        }
        Ok(checks)
    }

    /// The options in a comment (without its `#`) above an instruction, if it holds any.
    pub(super) fn of_comment(comment: &str) -> Option<Result<Self, String>> {
        let (key, value) = comment.split_once('=')?;
        key.trim().eq_ignore_ascii_case("check").then(|| Self::parse(value.trim()))
    }

    pub(super) fn skips(&self, rule: Rule) -> bool {
        self.skip.has(rule)
    }
    pub(super) fn tries(&self, rule: Rule) -> bool {
        self.experimental.has(rule) && !self.skip.named.contains(&rule)
    }
}

fn rules(names: &str, unknown: &mut Vec<String>) -> Rules {
    if names == "all" {
        return Rules { all: true, named: Vec::new() };
    }
    let mut named = Vec::new();
    for name in names.split(',').filter(|n| !n.is_empty()) {
        match Rule::named(name) {
            Some(rule) => named.push(rule),
            None => unknown.push(name.chars().take(60).collect()),
        }
    }
    Rules { all: false, named }
}
