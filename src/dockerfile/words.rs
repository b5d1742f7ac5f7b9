//! The arguments of one line: flags, words that respect quotes, JSON arrays, heredoc openers.
//!
//! All functions give byte ranges of the text they were given, so that a caller can find the source.

use crate::ast::Heredoc;
use keelway_model::Span;
use std::ops::Range;

/// A piece of a line; `text` may differ from the range where an escape at the end of the line went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) range: Range<usize>,
}

/// The white space that separates an instruction from its arguments.
pub(crate) fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\u{b}' | '\u{c}' | '\r')
}

/// The first word of a line and the range of the rest, trimmed.
pub(crate) fn split_command(line: &str) -> (Range<usize>, Range<usize>) {
    let start = line.len() - line.trim_start().len();
    let end = line.trim_end().len().max(start);
    let word_end = line[start..end].find(is_blank).map_or(end, |i| start + i);
    let rest = &line[word_end..end];
    (start..word_end, end - rest.trim_start().len()..end)
}

/// The `--flags` at the start of `text[range]` and what is left. Quotes and backslashes are taken off flags.
pub(crate) fn flags(text: &str, range: Range<usize>) -> (Vec<Piece>, Range<usize>) {
    let mut out = Vec::new();
    let end = range.end;
    let mut at = range.start;
    loop {
        let rest = &text[at..end];
        at += rest.len() - rest.trim_start().len();
        if !text[at..end].starts_with("--") {
            return (out, at..end);
        }
        let start = at;
        let mut word = String::new();
        let mut quote = None;
        let mut chars = text[at..end].char_indices();
        at = end;
        while let Some((i, c)) = chars.next() {
            match quote {
                None if c.is_whitespace() => {
                    at = start + i;
                    break;
                }
                None if c == '\'' || c == '"' => quote = Some(c),
                Some(q) if c == q => quote = None,
                _ if c == '\\' => word.extend(chars.next().map(|(_, c)| c)),
                _ => word.push(c),
            }
        }
        if word == "--" {
            let rest = &text[at..end];
            return (out, at + (rest.len() - rest.trim_start().len())..end);
        }
        out.push(Piece { text: word, range: start..at });
    }
}

/// Words at white space, quotes and escapes kept in them.
pub(crate) fn quoted_words(text: &str, range: Range<usize>, escape: char) -> Vec<Piece> {
    split(text, range, escape).0
}

/// The words, and whether all quotes were closed.
fn split(text: &str, range: Range<usize>, escape: char) -> (Vec<Piece>, bool) {
    let mut out = Vec::new();
    let mut word = String::new();
    let mut start = None;
    let mut quote = None;
    let mut chars = text[range.clone()].char_indices();
    while let Some((i, c)) = chars.next() {
        let at = range.start + i;
        if quote.is_none() && c.is_whitespace() {
            if let Some(start) = start.take() {
                out.push(Piece { text: std::mem::take(&mut word), range: start..at });
            }
            continue;
        }
        start.get_or_insert(at);
        match quote {
            Some(q) if c == q => quote = None,
            None if c == '\'' || c == '"' => quote = Some(c),
            _ => {}
        }
        // Nothing is escaped within single quotes; an escape at the very end goes.
        if c == escape && quote != Some('\'') {
            if let Some((_, next)) = chars.next() {
                word.extend([c, next]);
            }
            continue;
        }
        word.push(c);
    }
    if let Some(start) = start.filter(|_| !word.is_empty()) {
        out.push(Piece { text: word, range: start..range.end });
    }
    (out, quote.is_none())
}

/// Words at blanks, quotes mean nothing.
pub(crate) fn plain_words(text: &str, range: Range<usize>) -> Vec<Piece> {
    let mut out = Vec::new();
    let mut at = range.start;
    for word in text[range].split(is_blank) {
        if !word.is_empty() {
            out.push(Piece { text: word.to_owned(), range: at..at + word.len() });
        }
        at += word.len() + 1;
    }
    out
}

/// What a text is as a JSON array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Json {
    /// An array of strings.
    Strings(Vec<String>),
    /// An array with something else in it.
    Mixed,
    /// No array, or not JSON.
    No,
}

pub(crate) fn json(text: &str) -> Json {
    if !text.trim_start().starts_with('[') {
        return Json::No;
    }
    match serde_json::from_str::<Vec<serde_json::Value>>(text) {
        Err(_) => Json::No,
        Ok(values) => {
            let strings: Option<Vec<String>> = values
                .into_iter()
                .map(|v| match v {
                    serde_json::Value::String(s) => Some(s),
                    _ => None,
                })
                .collect();
            strings.map_or(Json::Mixed, Json::Strings)
        }
    }
}

/// Whether the instruction in `line` is one that takes heredocs, and not in JSON form.
pub(crate) fn may_have_heredocs(line: &str) -> bool {
    let (command, mut rest) = split_command(line);
    let mut name = line[command].to_ascii_lowercase();
    if name == "onbuild" {
        let (inner, inner_rest) = split_command(&line[rest.clone()]);
        name = line[rest.clone()][inner].to_ascii_lowercase();
        rest = rest.start + inner_rest.start..rest.start + inner_rest.end;
    }
    if !matches!(name.as_str(), "run" | "copy" | "add") {
        return false;
    }
    let (_, rest) = flags(line, rest);
    json(&line[rest]) == Json::No
}

/// The heredocs that a line opens, bodies still empty, with their ranges. None when a quote is not closed.
pub(crate) fn heredocs_of(line: &str) -> Vec<(Heredoc, usize, usize)> {
    let (pieces, closed) = split(line, 0..line.len(), '\\');
    if !closed {
        return Vec::new();
    }
    pieces.into_iter().filter_map(|p| heredoc(&p.text).map(|h| (h, p.range.start, p.range.end))).collect()
}

/// `[fd]<<[-]NAME`, the name perhaps quoted.
pub(crate) fn heredoc(word: &str) -> Option<Heredoc> {
    let (fd, rest) = word.split_once("<<")?;
    if !fd.bytes().all(|b| b.is_ascii_digit()) || rest.contains('<') {
        return None;
    }
    let (strip_tabs, quoted) = rest.strip_prefix('-').map_or((false, rest), |r| (true, r));
    let mut name = String::new();
    let mut quote = None;
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match quote {
            Some(q) if c == q => quote = None,
            None if c == '\'' || c == '"' => quote = Some(c),
            _ if c == '\\' && quote != Some('\'') => name.extend(chars.next()),
            None if c.is_whitespace() => return None,
            _ => name.push(c),
        }
    }
    if name.is_empty() || quote.is_some() || name.contains(['\n', '\0']) {
        return None;
    }
    let expand = name == quoted;
    let fd = if fd.is_empty() { 0 } else { fd.parse().ok()? };
    Some(Heredoc { name, content: String::new(), expand, strip_tabs, fd, span: Span::default() })
}
