//! YAML text to a tree of nodes that know their place.
//!
//! Bounds hold before anything else: size, depth, nodes and bytes with aliases written out, so no text makes us
//! slow or big (security cases Y01 to Y04). Scalars stay as written: `3.10`, `1e3` and `on` are texts. Duplicate
//! keys, tags, second documents, and characters that deceive a reader (Y09) are errors here already. Must not
//! know what any key means.

use crate::codes;
use granit_parser::{ErrorKind, Event, Parser, ScalarStyle};
use keelway_model::{Diagnostic, Diagnostics, SourceText, Span};
use std::collections::{HashMap, HashSet};

/// Longest text that is read.
pub const MAX_BYTES: usize = 1 << 20;
/// Deepest nesting of lists and maps.
pub const MAX_DEPTH: usize = 64;
/// Most nodes, aliases written out.
pub const MAX_NODES: usize = 50_000;
/// Most bytes of scalars, aliases written out.
const MAX_TEXT: usize = 4 << 20;
/// Most diagnostics of deceiving characters.
const MAX_CHARACTERS: usize = 20;

/// A value with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The text it was read from; for an alias, the alias.
    pub span: Span,
    /// What it is.
    pub value: Value,
    /// Nodes in it, itself included.
    nodes: usize,
    /// Bytes of scalars in it.
    text: usize,
    /// Levels below it.
    depth: usize,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Nothing: `key:` with no value.
    Empty,
    /// A text, escapes resolved.
    Text {
        /// The text.
        text: String,
        /// Written without quotes.
        plain: bool,
    },
    /// A list.
    List(Vec<Node>),
    /// A map, keys unique, in order of the file (merged keys last).
    Map(Vec<Entry>),
}

impl Value {
    /// For messages: `a text`, `a list`, ..
    pub const fn what(&self) -> &'static str {
        match self {
            Self::Empty => "nothing",
            Self::Text { .. } => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

/// A key of a map with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub key_span: Span,
    /// Its value.
    pub value: Node,
}

/// Bytes of a file to a text, or why they are none: too big, UTF-16, not UTF-8.
pub fn decode(name: &str, bytes: &[u8]) -> Result<SourceText, Diagnostics> {
    let fail = |text: String, code, at: usize, message: String, hint: &str| {
        let mut found = Diagnostics::of(SourceText::new(name, text));
        found.push(Diagnostic::error(code, name, Span::new(at, at + 1), message).hint(hint));
        Err(found)
    };
    if bytes.len() > MAX_BYTES {
        return fail(
            String::new(),
            codes::TOO_BIG,
            0,
            too_long(bytes.len()),
            "split it into several pipelines",
        );
    }
    let hint = "save it as UTF-8";
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return fail(String::new(), codes::ENCODING, 0, "the file is UTF-16, not UTF-8".into(), hint);
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(SourceText::new(name, text)),
        Err(e) => {
            let at = e.valid_up_to();
            let byte = bytes.get(at).copied().unwrap_or(0);
            let text = String::from_utf8_lossy(bytes).into_owned();
            fail(text, codes::ENCODING, at, format!("the file is not UTF-8 text: byte 0x{byte:02x}"), hint)
        }
    }
}

fn too_long(len: usize) -> String {
    format!("the file has {len} bytes, more than the {MAX_BYTES} that are read")
}

/// One document to its root node. Problems go to `found`; `None` where there is nothing to go on with.
pub fn parse(source: &SourceText, found: &mut Diagnostics) -> Option<Node> {
    if source.text.len() > MAX_BYTES {
        found.push(Diagnostic::error(
            codes::TOO_BIG,
            &source.name,
            Span::default(),
            too_long(source.text.len()),
        ));
        return None;
    }
    if !characters(source, found) {
        return None;
    }
    let options = granit_parser::options! {
        emit_comments: false,
        disallow_directives: true,
        emit_unresolved_aliases: true,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let mut builder = Builder {
        file: &source.name,
        found,
        anchors: HashMap::new(),
        nodes: 0,
        text: 0,
        stack: Vec::new(),
        root: None,
    };
    let mut documents = 0;
    for next in Parser::new_from_str_with_options(&source.text, options) {
        let (event, span) = match next {
            Ok((event, span)) => {
                let range = span.byte_range().unwrap_or(0..0);
                (event, Span::new(range.start, range.end.max(range.start)))
            }
            Err(e) => {
                let at = e.marker().byte_offset().unwrap_or(source.text.len());
                let (code, message) = match e.kind() {
                    ErrorKind::RecursionLimitExceeded => (codes::TOO_BIG, too_deep()),
                    ErrorKind::DirectiveDisallowed => {
                        (codes::SYNTAX, "a YAML directive (%) is not used here".into())
                    }
                    _ => (codes::SYNTAX, format!("this is not YAML: {}", e.info())),
                };
                let mut d = Diagnostic::error(code, &source.name, Span::new(at, at + 1), message);
                if source.text.get(..at).and_then(|t| t.lines().next_back()).is_some_and(|l| l.contains('\t'))
                {
                    d = d.hint("YAML is indented with spaces, not with tabs");
                } else if code == codes::SYNTAX
                    && let Some(hint) = structure_hint(&source.text, at)
                {
                    d = d.hint(hint);
                }
                builder.found.push(d);
                return None;
            }
        };
        match event {
            Event::DocumentStart(..) => {
                documents += 1;
                if documents > 1 {
                    builder.found.push(
                        Diagnostic::error(
                            codes::DOCUMENTS,
                            &source.name,
                            span,
                            "a second YAML document starts here",
                        )
                        .hint("one file is one pipeline: put the second one into a file of its own"),
                    );
                    break;
                }
            }
            event => {
                builder.event(event, span)?;
            }
        }
    }
    let root = builder.root.take();
    if root.is_none() && documents <= 1 {
        let hint = "the smallest pipeline has `version: 1` and one stage under `stages`";
        found.push(
            Diagnostic::error(codes::MISSING_KEY, &source.name, Span::default(), "the file is empty")
                .hint(hint),
        );
    }
    root
}

fn too_deep() -> String {
    format!("lists and maps are nested deeper than {MAX_DEPTH} levels")
}

/// NUL, other controls, and characters that change the order or the look of the text.
fn characters(source: &SourceText, found: &mut Diagnostics) -> bool {
    let bad = source.text.char_indices().filter_map(|(at, c)| {
        let what = match c {
            '\n' | '\r' | '\t' => return None,
            '\0' => "a NUL character",
            '\u{feff}' => "a byte order mark inside the text",
            '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                "a mark that changes the order in which text is shown"
            }
            '\u{2028}' | '\u{2029}' | '\u{85}' => "a line break that editors do not show",
            '\u{200b}' | '\u{2060}'..='\u{2064}' | '\u{e0000}'..='\u{e007f}' => "an invisible character",
            c if c.is_control() => "a control character",
            _ => return None,
        };
        Some((at, c, what))
    });
    let mut clean = true;
    for (at, c, what) in bad.take(MAX_CHARACTERS) {
        clean = false;
        let message = format!("the file holds {what} (U+{:04X})", u32::from(c));
        found.push(
            Diagnostic::error(codes::ENCODING, &source.name, Span::new(at, at + c.len_utf8()), message)
                .hint("remove it, or write it as an escape in double quotes"),
        );
    }
    clean
}

/// A list or map that is being read.
enum Open {
    List {
        start: Span,
        anchor: usize,
        items: Vec<Node>,
    },
    Map {
        start: Span,
        anchor: usize,
        entries: Vec<Entry>,
        seen: HashMap<String, Span>,
        merges: Vec<Node>,
        key: Option<Key>,
    },
}

/// A key whose value comes next.
enum Key {
    Named(String, Span),
    Merge,
    /// Already reported; its value is read and dropped.
    Dropped,
}

struct Builder<'a> {
    file: &'a str,
    found: &'a mut Diagnostics,
    /// Finished anchored nodes; `None` while one is open, so that an alias inside itself is seen.
    anchors: HashMap<usize, Option<Node>>,
    nodes: usize,
    text: usize,
    stack: Vec<Open>,
    root: Option<Node>,
}

impl Builder<'_> {
    fn error(&mut self, code: &str, span: Span, message: impl Into<String>) -> &mut Diagnostic {
        self.found.push(Diagnostic::error(code, self.file, span, message));
        self.found.items.last_mut().expect("one was just pushed")
    }

    /// Counts towards the bounds; `None` stops the parse.
    fn spend(&mut self, nodes: usize, text: usize, depth: usize, span: Span) -> Option<()> {
        self.nodes = self.nodes.saturating_add(nodes);
        self.text = self.text.saturating_add(text);
        if self.nodes > MAX_NODES || self.text > MAX_TEXT {
            let message = format!(
                "the file has more than {MAX_NODES} values or {MAX_TEXT} bytes with its aliases written out"
            );
            self.error(codes::TOO_BIG, span, message);
            return None;
        }
        if self.stack.len() + depth > MAX_DEPTH {
            self.error(codes::TOO_BIG, span, too_deep());
            return None;
        }
        Some(())
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Option<()> {
        let tag = event.tag().filter(|t| t.core_suffix() != Some("str")).map(|t| t.original());
        if let Some(tag) = tag {
            let message = format!("the tag {tag:?} has no meaning here");
            self.error(codes::TAG, span, message)
                .hints
                .push("remove it: values are texts, lists and maps".into());
        }
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.spend(1, text.len(), 0, span)?;
                let plain = style == ScalarStyle::Plain;
                let length = text.len();
                // The parser says `~` for a value that is not written; its place tells the two apart.
                let value = if plain && span.start == span.end && tag.is_none() {
                    Value::Empty
                } else {
                    Value::Text { text: text.into_owned(), plain }
                };
                self.finish(Node { span, value, nodes: 1, text: length, depth: 0 }, anchor)
            }
            Event::SequenceStart(_, anchor, _) => {
                self.spend(1, 0, 1, span)?;
                self.open_anchor(anchor);
                self.stack.push(Open::List { start: span, anchor, items: Vec::new() });
                Some(())
            }
            Event::MappingStart(_, anchor, _) => {
                self.spend(1, 0, 1, span)?;
                self.open_anchor(anchor);
                self.stack.push(Open::Map {
                    start: span,
                    anchor,
                    entries: Vec::new(),
                    seen: HashMap::new(),
                    merges: Vec::new(),
                    key: None,
                });
                Some(())
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(span),
            Event::Alias(id) => {
                let Some(Some(node)) = self.anchors.get(&id) else {
                    self.error(codes::ALIAS, span, "the alias stands inside the value that it names");
                    return None;
                };
                let (nodes, text, depth) = (node.nodes, node.text, node.depth);
                self.spend(nodes, text, depth, span)?;
                let mut node = self.anchors.get(&id).cloned().flatten()?;
                node.span = span;
                self.finish(node, 0)
            }
            Event::UnresolvedAlias(name) => {
                let message = format!("no anchor &{name} stands before this alias");
                self.error(codes::ALIAS, span, message);
                self.finish(Node { span, value: Value::Empty, nodes: 1, text: 0, depth: 0 }, 0)
            }
            _ => Some(()),
        }
    }

    fn open_anchor(&mut self, anchor: usize) {
        if anchor != 0 {
            self.anchors.insert(anchor, None);
        }
    }

    fn close(&mut self, end: Span) -> Option<()> {
        let (start, anchor, value, children) = match self.stack.pop()? {
            Open::List { start, anchor, items } => {
                let sum = weigh(items.iter());
                (start, anchor, Value::List(items), sum)
            }
            Open::Map { start, anchor, mut entries, merges, .. } => {
                if !merges.is_empty() {
                    let mut have = entries.iter().map(|e| e.key.clone()).collect();
                    for merge in merges {
                        self.merge(&mut entries, &mut have, merge);
                    }
                }
                let sum = weigh(entries.iter().map(|e| &e.value));
                (start, anchor, Value::Map(entries), sum)
            }
        };
        let (nodes, text, depth) = children;
        let span = Span::new(start.start, end.end.max(start.start));
        self.finish(Node { span, value, nodes: nodes + 1, text, depth: depth + 1 }, anchor)
    }

    /// `<<: *base` or `<<: [*a, *b]`: keys that are not there yet.
    fn merge(&mut self, entries: &mut Vec<Entry>, have: &mut HashSet<String>, from: Node) {
        match from.value {
            Value::Map(more) => {
                for entry in more {
                    if have.insert(entry.key.clone()) {
                        entries.push(entry);
                    }
                }
            }
            Value::List(items) if items.iter().all(|i| matches!(i.value, Value::Map(_))) => {
                for item in items {
                    self.merge(entries, have, item);
                }
            }
            other => {
                let message =
                    format!("a merge key (<<) takes a map or a list of maps, and this is {}", other.what());
                self.error(codes::ALIAS, from.span, message);
            }
        }
    }

    /// Puts a finished node where it belongs: root, list, key or value.
    fn finish(&mut self, node: Node, anchor: usize) -> Option<()> {
        if anchor != 0 {
            // The copy kept for aliases counts too, else nested anchors would cost more than their text.
            self.spend(node.nodes, node.text, 0, node.span)?;
            self.anchors.insert(anchor, Some(node.clone()));
        }
        match self.stack.last_mut() {
            None => self.root = Some(node),
            Some(Open::List { items, .. }) => items.push(node),
            Some(Open::Map { entries, seen, merges, key, .. }) => match key.take() {
                None => {
                    let (next, problem) = read_key(node, seen, merges);
                    *key = Some(next);
                    if let Some((code, span, message, related)) = problem {
                        let d = self.error(code, span, message);
                        d.related.extend(related.map(|s| (s, "it stands here first".to_owned())));
                    }
                }
                Some(Key::Named(name, key_span)) => entries.push(Entry { key: name, key_span, value: node }),
                Some(Key::Merge) => merges.push(node),
                Some(Key::Dropped) => {}
            },
        }
        Some(())
    }
}

type KeyProblem = (&'static str, Span, String, Option<Span>);

fn read_key(node: Node, seen: &mut HashMap<String, Span>, merges: &[Node]) -> (Key, Option<KeyProblem>) {
    let span = node.span;
    let (text, plain) = match node.value {
        Value::Text { text, plain } => (text, plain),
        other => {
            let message = format!("a key is a text, and this is {}", other.what());
            return (Key::Dropped, Some((codes::WRONG_TYPE, span, message, None)));
        }
    };
    if plain && text == "<<" {
        let problem = (!merges.is_empty()).then(|| {
            (codes::DUPLICATE_KEY, span, "a second merge key: write one with a list".to_owned(), None)
        });
        return (if problem.is_some() { Key::Dropped } else { Key::Merge }, problem);
    }
    if let Some(first) = seen.get(&text) {
        let message = format!("the key {text:?} stands twice in one map");
        return (Key::Dropped, Some((codes::DUPLICATE_KEY, span, message, Some(*first))));
    }
    seen.insert(text.clone(), span);
    (Key::Named(text, span), None)
}

/// Nodes, bytes and depth of children.
fn weigh<'a>(children: impl Iterator<Item = &'a Node>) -> (usize, usize, usize) {
    children.fold((0, 0, 0), |(n, t, d), c| (n + c.nodes, t + c.text, d.max(c.depth)))
}

/// What is probably wrong with the structure before the place where the parser gave up: a bracket that is still open, or
/// a line that is indented like none above it. Quotes and comments are passed over as plainly as a person would.
fn structure_hint(text: &str, at: usize) -> Option<String> {
    let before = text.get(..at).unwrap_or(text);
    // Brackets are counted to the end of the line, since the parser gives up at the collection and not in it.
    let rest_of_line = text.get(at..).and_then(|rest| rest.find('\n')).map_or(text.len(), |n| at + n);
    let mut open: Vec<(char, usize)> = Vec::new();
    let closes = |bracket: char| if bracket == '[' { ']' } else { '}' };
    let still_open = |(bracket, line): (char, usize)| {
        let missing = closes(bracket);
        format!("the {bracket} of line {line} is still open: is its {missing} missing?")
    };
    for (number, line) in text.get(..rest_of_line).unwrap_or(text).lines().enumerate() {
        let (mut quote, mut last) = (None, ' ');
        for c in line.chars() {
            match (quote, c) {
                (Some(q), c) if c == q => quote = None,
                (Some(_), _) => {}
                (None, '#') if last.is_whitespace() => break,
                (None, '"' | '\'') if !last.is_alphanumeric() => quote = Some(c),
                (None, '[' | '{') => open.push((c, number + 1)),
                (None, ']' | '}') => match open.pop() {
                    Some(last) if closes(last.0) != c => return Some(still_open(last)),
                    _ => {}
                },
                (None, _) => {}
            }
            last = c;
        }
    }
    if let Some(last) = open.pop() {
        return Some(still_open(last));
    }
    let number = before.matches('\n').count();
    let lines: Vec<&str> = text.lines().collect();
    let indent = |l: &str| l.len() - l.trim_start_matches(' ').len();
    let here = indent(lines.get(number)?);
    let said = |l: &&&str| !l.trim().is_empty() && !l.trim_start().starts_with('#');
    let (above, other) = lines[..number].iter().enumerate().rev().find(|(_, l)| said(l))?;
    let fits = lines[..number].iter().filter(said).any(|l| indent(l) == here);
    (!fits || indent(other) < here).then(|| {
        format!(
            "the indentation of this line ({here} spaces) does not match that of line {} ({} spaces)",
            above + 1,
            indent(other)
        )
    })
}
