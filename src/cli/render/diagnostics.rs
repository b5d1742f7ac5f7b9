//! Diagnostics with the source line, the place underlined, and what to do next.

use crate::render::clean::{clean, clean_lines};
use crate::render::style::Style;
use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use keelway_model::{Diagnostic, Diagnostics, Severity, SourceText};
use std::fmt::Write;

/// All of them in the order they were found, then how many there are.
pub fn diagnostics(found: &Diagnostics, style: &Style) -> String {
    let renderer = if style.color() { Renderer::styled() } else { Renderer::plain() };
    let mut out = String::new();
    for item in &found.items {
        let text = one(item, found.source_of(item), &renderer);
        out.push_str(text.trim_end());
        out.push_str("\n\n");
    }
    let count = |s| found.items.iter().filter(|d| d.severity == s).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let many = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let _ = match (errors, warnings) {
        (0, 0) => Ok(()),
        (0, w) => writeln!(out, "{}", many(w, "warning")),
        (e, 0) => writeln!(out, "{}; nothing was run", many(e, "error")),
        (e, w) => writeln!(out, "{}, {}; nothing was run", many(e, "error"), many(w, "warning")),
    };
    out
}

/// The same for programs: an object a line, with line and column from 1 where the text is known.
pub fn diagnostics_json(found: &Diagnostics) -> String {
    let mut out = String::new();
    for item in &found.items {
        let Ok(mut object) = serde_json::to_value(item) else { continue };
        if let (Some(source), Some(fields)) = (found.source_of(item), object.as_object_mut()) {
            let (line, column) = source.line_col(item.span.start);
            fields.insert("line".into(), line.into());
            fields.insert("column".into(), column.into());
        }
        let _ = writeln!(out, "{object}");
    }
    out
}

fn one(item: &Diagnostic, source: Option<&SourceText>, renderer: &Renderer) -> String {
    let level = if item.severity == Severity::Error { Level::ERROR } else { Level::WARNING };
    let title = level.primary_title(clean(&item.message)).id(item.code.clone());
    let hints: Vec<_> = item.hints.iter().map(|h| Level::HELP.message(clean_lines(h))).collect();
    let Some(source) = source else {
        let mut group = title.elements(hints);
        if !item.file.is_empty() {
            group = group.element(annotate_snippets::Origin::path(clean(&item.file)));
        }
        return renderer.render(&[group]);
    };
    let (text, map) = printable(&source.text);
    let place = |span: keelway_model::Span| {
        let range = span.range(source.text.len());
        let (start, end) = (map.at(range.start), map.at(range.end));
        start..end.max(start)
    };
    let mut primary = AnnotationKind::Primary.span(place(item.span));
    if let Some(label) = &item.label {
        primary = primary.label(clean(label));
    }
    let mut snippet =
        Snippet::source(text).line_start(1).path(clean(&source.name)).fold(true).annotation(primary);
    for (span, what) in &item.related {
        snippet = snippet.annotation(AnnotationKind::Context.span(place(*span)).label(clean(what)));
    }
    renderer.render(&[title.element(snippet).elements(hints)])
}

/// From byte offsets of the source to those of its printable form.
struct Offsets(Vec<(usize, usize)>);

impl Offsets {
    /// Where the character that holds byte `offset` begins in the printable form.
    fn at(&self, offset: usize) -> usize {
        let i = self.0.partition_point(|(given, _)| *given <= offset);
        self.0.get(i.wrapping_sub(1)).map_or(0, |(_, printed)| *printed)
    }
}

/// The source with every control character but line breaks and tabs replaced: a repository's file is a stranger's text.
fn printable(text: &str) -> (String, Offsets) {
    let mut out = String::with_capacity(text.len());
    let mut offsets = Vec::with_capacity(text.len() + 1);
    for (at, c) in text.char_indices() {
        offsets.push((at, out.len()));
        match c {
            '\n' | '\t' => out.push(c),
            '\r' if text[at + 1..].starts_with('\n') => {}
            c if c.is_control()
                || ('\u{202a}'..='\u{202e}').contains(&c)
                || ('\u{2066}'..='\u{2069}').contains(&c) =>
            {
                out.push('\u{fffd}');
            }
            c => out.push(c),
        }
    }
    offsets.push((text.len(), out.len()));
    (out, Offsets(offsets))
}
