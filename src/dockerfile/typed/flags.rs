//! `--name=value` before the arguments.

use super::{Typer, nearest};
use crate::ast::Word;
use crate::parser::Node;
use keelway_model::Diagnostic;

/// The flags of one instruction, checked against what it knows.
pub(super) struct Flags {
    found: Vec<(&'static str, Word)>,
}

impl Flags {
    /// Flags of `once` may be given once, those of `many` often. Every problem is reported.
    pub(super) fn new(
        typer: &mut Typer<'_>,
        node: &Node,
        once: &'static [&'static str],
        many: &'static [&'static str],
    ) -> Option<Self> {
        let instruction = node.name.to_ascii_uppercase();
        let mut found: Vec<(&'static str, Word)> = Vec::new();
        let mut fine = true;
        for flag in &node.flags {
            let span = typer.span(&flag.range);
            let bare = flag.text.strip_prefix("--").unwrap_or(&flag.text);
            let (name, value) = bare.split_once('=').map_or((bare, None), |(n, v)| (n, Some(v)));
            let Some(known) = once.iter().chain(many).find(|k| **k == name) else {
                let all: Vec<&str> = once.iter().chain(many).copied().collect();
                let mut d = Diagnostic::error(
                    "D0004",
                    typer.file,
                    span,
                    format!("{instruction} has no flag --{name}"),
                );
                if let Some(near) = nearest(name, &all) {
                    d = d.hint(format!("did you mean --{near}?"));
                } else if !all.is_empty() {
                    d = d.hint(format!("its flags are --{}", all.join(", --")));
                }
                typer.push(d);
                fine = false;
                continue;
            };
            if once.contains(known) && found.iter().any(|(n, _)| n == known) {
                let _: Option<()> = typer.error("D0004", span, format!("--{name} is given twice"));
                fine = false;
                continue;
            }
            let switch = matches!(*known, "link" | "parents" | "keep-git-dir" | "unpack");
            let text = match value {
                Some(v) if switch && !matches!(v, "true" | "false") => {
                    let _: Option<()> =
                        typer.error("D0004", span, format!("--{name} takes true or false, not {v:?}"));
                    fine = false;
                    continue;
                }
                Some(v) => v.to_owned(),
                None if switch => "true".to_owned(),
                None => {
                    let _: Option<()> =
                        typer.error("D0004", span, format!("--{name} needs a value: --{name}=.."));
                    fine = false;
                    continue;
                }
            };
            found.push((known, Word { text, span }));
        }
        fine.then_some(Self { found })
    }

    /// Whether there is any.
    pub(super) fn any(&self) -> bool {
        !self.found.is_empty()
    }

    /// The value of a flag that may be given once.
    pub(super) fn value(&mut self, name: &str) -> Option<Word> {
        let at = self.found.iter().position(|(n, _)| *n == name)?;
        Some(self.found.remove(at).1)
    }

    /// The values of a flag that may be given often.
    pub(super) fn values(&mut self, name: &str) -> Vec<Word> {
        self.found.iter().filter(|(n, _)| *n == name).map(|(_, w)| w.clone()).collect()
    }

    /// A switch: where it is, when it is on.
    pub(super) fn switch(&mut self, name: &str) -> Option<Word> {
        self.value(name).filter(|w| w.text == "true")
    }
}
