//! What is wrong with a text, and where: collected, never thrown at the first.
//!
//! Parsers push into [`Diagnostics`] and go on, so that a person sees every problem at once. Rendering
//! (colour, snippets) is the edge's business; here are only code, spans, labels and hints.

use crate::exit::ExitCode;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;

/// A byte range of one source text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl Span {
    /// `start..end`.
    pub const fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }
    /// From here to the end of `other`.
    pub fn to(self, other: Span) -> Span {
        Span { start: self.start.min(other.start), end: self.end.max(other.end) }
    }
    /// As a range, cut to `len`.
    pub fn range(self, len: usize) -> Range<usize> {
        let start = self.start.min(len);
        start..self.end.clamp(start, len)
    }
}

/// A text that diagnostics point into, with its name as the user knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceText {
    /// Path or other name, for example `keelway.yml`.
    pub name: String,
    /// The whole text.
    pub text: String,
}

impl SourceText {
    /// A named text.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: text.into() }
    }
    /// Line and column of a byte offset, both from 1; columns count characters.
    pub fn line_col(&self, offset: usize) -> (usize, usize) {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let before = &self.text[..offset];
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; nothing stops.
    Warning,
    /// Nothing runs until it is mended.
    Error,
}

/// One problem of a definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// Stable and searchable: a letter and four digits, for example `K0102` (pipeline file) or `D0007` (Dockerfile), or the
    /// name of the lint rule that found it.
    pub code: String,
    /// How bad it is.
    pub severity: Severity,
    /// Name of the [`SourceText`] it is in.
    pub file: String,
    /// Where.
    pub span: Span,
    /// What is wrong, on what: one line, lower case, no full stop.
    pub message: String,
    /// A few words beneath the underlined text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Other places that matter, with what they are (`first defined here`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub related: Vec<(Span, String)>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
}

impl Diagnostic {
    /// An error.
    pub fn error(code: &str, file: &str, span: Span, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            severity: Severity::Error,
            file: file.into(),
            span,
            message: message.into(),
            label: None,
            related: Vec::new(),
            hints: Vec::new(),
        }
    }
    /// A warning.
    pub fn warning(code: &str, file: &str, span: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, file, span, message) }
    }
    /// Whether it is the finding of a lint rule.
    pub fn is_lint(&self) -> bool {
        !self.code.ends_with(|c: char| c.is_ascii_digit())
    }
    /// Adds words beneath the span.
    #[must_use]
    pub fn label(mut self, text: impl Into<String>) -> Self {
        self.label = Some(text.into());
        self
    }
    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, text: impl Into<String>) -> Self {
        self.hints.push(text.into());
        self
    }
    /// Adds another place.
    #[must_use]
    pub fn related(mut self, span: Span, what: impl Into<String>) -> Self {
        self.related.push((span, what.into()));
        self
    }
}

/// Problems of one or more texts, in the order they were found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagnostics {
    /// The texts that the spans point into.
    pub sources: Vec<SourceText>,
    /// The problems.
    pub items: Vec<Diagnostic>,
}

impl Diagnostics {
    /// None yet, about one text.
    pub fn of(source: SourceText) -> Self {
        Self { sources: vec![source], items: Vec::new() }
    }
    /// Adds one.
    pub fn push(&mut self, d: Diagnostic) {
        self.items.push(d);
    }
    /// Adds all of another collection.
    pub fn merge(&mut self, other: Diagnostics) {
        for s in other.sources {
            if !self.sources.iter().any(|have| have.name == s.name) {
                self.sources.push(s);
            }
        }
        self.items.extend(other.items);
    }
    /// Whether anything must be mended before a run.
    pub fn has_errors(&self) -> bool {
        self.items.iter().any(|d| d.severity == Severity::Error)
    }
    /// The exit code that errors ask for: what is valid, and fails by rules that the file itself made errors, is no wrong
    /// definition.
    pub fn exit(&self) -> ExitCode {
        let mut errors = self.items.iter().filter(|d| d.severity == Severity::Error).peekable();
        match errors.peek().is_some() && errors.all(Diagnostic::is_lint) {
            true => ExitCode::Failed,
            false => ExitCode::Usage,
        }
    }
    /// The text that a diagnostic points into.
    pub fn source_of(&self, d: &Diagnostic) -> Option<&SourceText> {
        self.sources.iter().find(|s| s.name == d.file)
    }
}

/// `file:line:col: error[CODE]: message`, one line each: what logs and pipes get.
impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, d) in self.items.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            let (line, col) = self.source_of(d).map_or((0, 0), |s| s.line_col(d.span.start));
            let severity = if d.severity == Severity::Error { "error" } else { "warning" };
            write!(f, "{}:{line}:{col}: {severity}[{}]: {}", d.file, d.code, d.message)?;
            for hint in &d.hints {
                write!(f, "\n  hint: {hint}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rules_that_a_file_made_errors_are_no_wrong_definition() {
        let exit = |codes: &[&str]| {
            let mut found = Diagnostics::default();
            codes.iter().for_each(|c| found.push(Diagnostic::error(c, "f", Span::default(), "x")));
            found.push(Diagnostic::warning("D0101", "f", Span::default(), "x"));
            found.exit()
        };
        assert_eq!(exit(&["FromAsCasing", "UndefinedVar"]), ExitCode::Failed);
        assert_eq!(exit(&["FromAsCasing", "D0003"]), ExitCode::Usage);
        assert_eq!(exit(&["K0102"]), ExitCode::Usage);
    }

    #[test]
    fn positions_count_characters_and_never_panic() {
        let s = SourceText::new("f", "a\nдб: x\n");
        assert_eq!(s.line_col(2), (2, 1));
        assert_eq!(s.line_col(6), (2, 3));
        assert_eq!(s.line_col(3), (2, 1), "inside a character: its start");
        assert_eq!(s.line_col(9999), (3, 1));
    }
}
