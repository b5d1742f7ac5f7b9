//! Lines to instructions: directives, comments, continuation, heredocs.
//!
//! A [`Line`] is one instruction with its continuation resolved; it knows for each of its bytes where in the
//! source it came from. What stands in the line is [`crate::parser`]'s business.

use crate::ast::{Directive, Heredoc, Word};
use crate::lint::Checks;
use crate::words;
use keelway_model::{Diagnostic, Diagnostics, Span};

/// Longest physical line, in bytes, as in BuildKit.
pub const MAX_LINE: usize = 65_535;
/// Largest Dockerfile, in bytes.
pub const MAX_FILE: usize = 4 << 20;
/// Most instructions of a Dockerfile, and of what one target needs of it.
pub const MAX_INSTRUCTIONS: usize = 10_000;
/// Most stages of a Dockerfile.
pub const MAX_STAGES: usize = 1_000;
/// Most errors that are reported.
pub const MAX_ERRORS: usize = 50;

/// One instruction, continuation resolved.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// Its text without heredoc bodies.
    pub(crate) text: String,
    /// Where pieces of `text` begin: offset in `text`, offset in the source; both rise.
    map: Vec<(usize, usize)>,
    /// The whole instruction in the source, heredocs included.
    pub(crate) span: Span,
    /// Its heredocs.
    pub(crate) heredocs: Vec<Heredoc>,
    /// A blank line inside it.
    pub(crate) blank_inside: Option<Span>,
    /// The comments since the instruction before it, without their `#`.
    pub(crate) comments: Vec<Word>,
}

impl Line {
    /// A line that is a whole text: a trigger of a base image.
    fn source_offset(&self, at: usize) -> usize {
        let i = self.map.partition_point(|(text, _)| *text <= at).saturating_sub(1);
        let (text, source) = self.map.get(i).copied().unwrap_or_default();
        source + (at - text)
    }
    /// Where `start..end` of `text` stands in the source.
    pub(crate) fn span_of(&self, start: usize, end: usize) -> Span {
        let from = self.source_offset(start);
        let to = if end > start { self.source_offset(end - 1) + 1 } else { from };
        Span::new(from, to)
    }
}

/// What the head of the file says.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) escape: char,
    pub(crate) directives: Vec<Directive>,
}

/// Cuts the text into instructions. Errors go to `errors`; what could be read is returned all the same.
pub(crate) fn lex(name: &str, text: &str, errors: &mut Diagnostics) -> (Head, Vec<Line>) {
    let mut lexer = Lexer { name, text, at: 0, head: Head { escape: '\\', directives: Vec::new() }, errors };
    if text.len() > MAX_FILE {
        lexer.error(
            "D0001",
            Span::new(0, 0),
            format!("the Dockerfile has {} bytes; at most {MAX_FILE} are read", text.len()),
        );
        return (lexer.head, Vec::new());
    }
    lexer.at = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    lexer.directives();
    let lines = lexer.instructions();
    (lexer.head, lines)
}

struct Lexer<'a> {
    name: &'a str,
    text: &'a str,
    /// Start of the next physical line.
    at: usize,
    head: Head,
    errors: &'a mut Diagnostics,
}

impl<'a> Lexer<'a> {
    fn error(&mut self, code: &str, span: Span, message: impl Into<String>) {
        self.errors.push(Diagnostic::error(code, self.name, span, message));
    }

    /// The next physical line with its offset, line ending included.
    fn peek(&self) -> Option<(usize, &'a str)> {
        let rest = self.text.get(self.at..).filter(|r| !r.is_empty())?;
        Some((self.at, rest.find('\n').map_or(rest, |i| &rest[..=i])))
    }

    /// The same, taken. An over-long line is an error and given out empty.
    fn next(&mut self) -> Option<(usize, &'a str)> {
        let (at, line) = self.peek()?;
        self.at = at + line.len();
        let bare = line.trim_end_matches(['\r', '\n']);
        if bare.len() > MAX_LINE {
            let message = format!("line of {} bytes: at most {MAX_LINE} are allowed", bare.len());
            self.error("D0001", Span::new(at, at + 1), message);
            return Some((at, ""));
        }
        Some((at, line))
    }

    /// `# key=value` lines; the first line that is none ends them.
    fn directives(&mut self) {
        if self.peek().is_some_and(|(_, l)| l.starts_with("#!")) {
            self.next();
        }
        while let Some((at, line)) = self.peek() {
            let Some((key, value, offset)) = directive(line) else { return };
            if !matches!(key.as_str(), "syntax" | "escape" | "check") {
                return;
            }
            self.next();
            let span = Span::new(at + offset, at + offset + value.len());
            if let Some(first) = self.head.directives.iter().find(|d| d.key == key) {
                let d = Diagnostic::error(
                    "D0002",
                    self.name,
                    span,
                    format!("only one {key} directive can be used"),
                )
                .related(first.value.span, "the first one");
                self.errors.push(d);
                continue;
            }
            match (key.as_str(), value) {
                ("escape", "`") => self.head.escape = '`',
                ("escape", "\\") => {}
                ("escape", other) => {
                    self.error("D0002", span, format!("the escape character is \\ or `, not {other:?}"));
                }
                ("check", options) => {
                    if let Err(why) = Checks::parse(options) {
                        self.error("D0002", span, why);
                    }
                }
                ("syntax", image) if !is_our_syntax(image) => {
                    let d = Diagnostic::error("D0012", self.name, span, format!("the frontend {image} is not supported"))
                        .hint("Keelway reads the language of docker/dockerfile itself: remove the line or write `# syntax=docker/dockerfile:1`");
                    self.errors.push(d);
                }
                _ => {}
            }
            self.head.directives.push(Directive { key, value: Word { text: value.to_owned(), span } });
        }
    }

    fn instructions(&mut self) -> Vec<Line> {
        let (mut out, mut comments) = (Vec::new(), Vec::new());
        while let Some((at, raw)) = self.next() {
            let trimmed = raw.trim_end_matches(['\r', '\n']).trim_start();
            if let Some(comment) = trimmed.strip_prefix('#') {
                match comment.trim() {
                    "" => comments.clear(),
                    text => {
                        let from = at + (raw.len() - raw.trim_start().len());
                        let span = Span::new(from, from + trimmed.trim_end().len());
                        comments.push(Word { text: text.to_owned(), span });
                    }
                }
                continue;
            }
            if trimmed.is_empty() {
                continue;
            }
            let start = at + (raw.trim_end_matches(['\r', '\n']).len() - trimmed.len());
            let mut line = Line {
                text: String::new(),
                map: Vec::new(),
                span: Span::new(start, start),
                heredocs: Vec::new(),
                blank_inside: None,
                comments: Vec::new(),
            };
            let mut open = self.append(&mut line, trimmed, start);
            while open {
                let Some((at, raw)) = self.next() else { break };
                let piece = raw.trim_end_matches(['\r', '\n']);
                if piece.trim_start().starts_with('#') {
                    continue;
                }
                if piece.trim().is_empty() {
                    line.blank_inside.get_or_insert(Span::new(at, at));
                    continue;
                }
                open = self.append(&mut line, piece, at);
            }
            if line.text.trim().is_empty() {
                continue;
            }
            self.heredocs(&mut line);
            line.comments = std::mem::take(&mut comments);
            out.push(line);
        }
        out
    }

    /// Adds a physical line; says whether it goes on on the next.
    fn append(&self, line: &mut Line, piece: &str, at: usize) -> bool {
        let escape = self.head.escape;
        let bare = piece.trim_end_matches([' ', '\t']);
        let cut = bare.strip_suffix(escape).filter(|rest| !rest.ends_with(escape));
        let kept = cut.unwrap_or(piece);
        line.map.push((line.text.len(), at));
        line.text.push_str(kept);
        line.span.end = at + kept.len();
        cut.is_some()
    }

    /// Takes the bodies of the heredocs that the line opens.
    fn heredocs(&mut self, line: &mut Line) {
        if !line.text.contains("<<") || !words::may_have_heredocs(&line.text) {
            return;
        }
        for (open, start, end) in words::heredocs_of(&line.text) {
            let opened_at = line.span_of(start, end);
            let body_start = self.at;
            let mut content = String::new();
            let mut closed = false;
            while let Some((at, raw)) = self.next() {
                let bare = raw.trim_end_matches(['\r', '\n']);
                let candidate = if open.strip_tabs { bare.trim_start_matches('\t') } else { bare };
                line.span.end = at + bare.len();
                if candidate == open.name {
                    closed = true;
                    break;
                }
                content.push_str(raw);
            }
            if !closed {
                let d = Diagnostic::error(
                    "D0006",
                    self.name,
                    opened_at,
                    format!("heredoc {:?} is not ended", open.name),
                )
                .hint(format!("end it with a line that holds {} and nothing else", open.name));
                self.errors.push(d);
            }
            line.heredocs.push(Heredoc { content, span: Span::new(body_start, line.span.end), ..open });
        }
    }
}

/// `#key=value`: the key in lower case, the value, and where the value starts.
fn directive(line: &str) -> Option<(String, &str, usize)> {
    let line = line.trim_end();
    let (key, value) = line.trim_start().strip_prefix('#')?.split_once('=')?;
    let key = key.trim();
    let value = value.trim();
    let is_key =
        key.starts_with(|c: char| c.is_ascii_alphabetic()) && key.chars().all(|c| c.is_ascii_alphanumeric());
    (is_key && !value.is_empty()).then(|| (key.to_ascii_lowercase(), value, line.len() - value.len()))
}

/// `docker/dockerfile` in any version.
fn is_our_syntax(image: &str) -> bool {
    let name = image.strip_prefix("docker.io/").unwrap_or(image);
    let name = name.split_once('@').map_or(name, |(n, _)| n);
    name.split_once(':').map_or(name, |(n, _)| n) == "docker/dockerfile"
}
