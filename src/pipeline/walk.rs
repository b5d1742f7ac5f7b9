//! Reading values out of nodes: each reader reports what is wrong and goes on with `None`.

use crate::codes;
use crate::hints::{self, LATER};
use crate::yaml::{Entry, Node, Value};
use keelway_model::{Diagnostic, Diagnostics, Span, parse_duration};
use std::str::FromStr;
use std::time::Duration;

/// One walk over one file.
pub(crate) struct Walk<'a> {
    pub(crate) file: &'a str,
    pub(crate) found: &'a mut Diagnostics,
}

/// The keys of one kind of map.
pub(crate) struct Place {
    /// For messages: `a stage`.
    pub(crate) name: &'static str,
    /// Keys that work.
    pub(crate) known: &'static [&'static str],
}

/// The entries of a map whose keys have been checked.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'n> {
    entries: &'n [Entry],
    /// Where to point when something is missing.
    pub(crate) at: Span,
}

impl<'n> Fields<'n> {
    pub(crate) fn get(&self, key: &str) -> Option<&'n Entry> {
        self.entries.iter().find(|e| e.key == key)
    }
    pub(crate) fn value(&self, key: &str) -> Option<&'n Node> {
        self.get(key).map(|e| &e.value)
    }
}

impl Walk<'_> {
    /// Pushes an error; the result takes labels and hints.
    pub(crate) fn error(&mut self, code: &str, span: Span, message: impl Into<String>) -> &mut Diagnostic {
        self.found.push(Diagnostic::error(code, self.file, span, message));
        self.found.items.last_mut().expect("one was just pushed")
    }

    /// Pushes an error with a hint.
    pub(crate) fn error_hint(
        &mut self,
        code: &str,
        span: Span,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.error(code, span, message).hints.push(hint.into());
    }

    fn wrong(&mut self, node: &Node, what: &str, wanted: &str, hint: Option<&str>) {
        let got = node.value.what();
        let message = format!("{what} is {wanted}, and this is {got}");
        let d = self.error(codes::WRONG_TYPE, head(node), message);
        d.label = Some(format!("expected {wanted}"));
        d.hints.extend(hint.map(str::to_owned));
    }

    /// A map with checked keys. `at` is where a missing key is reported.
    pub(crate) fn fields<'n>(
        &mut self,
        node: &'n Node,
        at: Span,
        place: &Place,
        hint: Option<&str>,
    ) -> Option<Fields<'n>> {
        let Value::Map(entries) = &node.value else {
            self.wrong(node, place.name, "a map", hint);
            return None;
        };
        for entry in entries.iter().filter(|e| !place.known.contains(&e.key.as_str())) {
            self.unknown_key(entry, place);
        }
        Some(Fields { entries, at })
    }

    fn unknown_key(&mut self, entry: &Entry, place: &Place) {
        let key = entry.key.as_str();
        let shown: String = key.chars().take(60).collect();
        if let Some(later) = LATER.iter().find(|l| l.0 == key && l.1.contains(&place.name)) {
            let message = format!("{shown:?} is not there yet: this version of Keelway does not act on it");
            self.error_hint(codes::LATER_KEY, entry.key_span, message, later.2);
            return;
        }
        let d = Diagnostic::error(
            codes::UNKNOWN_KEY,
            self.file,
            entry.key_span,
            format!("{} has no key {shown:?}", place.name),
        )
        .label("unknown key");
        let d = match hints::teach(place.name, key) {
            Some(hint) => d.hint(hint),
            None => hints::nearest(d, key, place.known.iter().copied(), &format!("{} takes", place.name)),
        };
        self.found.push(d);
    }

    /// Reports a key that must be there and is not.
    pub(crate) fn missing(&mut self, at: Span, place: &str, key: &str, example: &str) {
        let message = format!("{place} has no `{key}`");
        self.error_hint(codes::MISSING_KEY, at, message, format!("write, for example, {example}"));
    }

    /// A map from free names to values.
    pub(crate) fn names<'n>(
        &mut self,
        node: &'n Node,
        what: &str,
        hint: Option<&str>,
    ) -> Option<&'n [Entry]> {
        match &node.value {
            Value::Map(entries) => Some(entries),
            _ => {
                self.wrong(node, what, "a map", hint);
                None
            }
        }
    }

    pub(crate) fn list<'n>(&mut self, node: &'n Node, what: &str, hint: Option<&str>) -> Option<&'n [Node]> {
        match &node.value {
            Value::List(items) => Some(items),
            _ => {
                self.wrong(node, what, "a list", hint);
                None
            }
        }
    }

    /// A text; an empty one is refused where `empty` says so.
    pub(crate) fn text<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n str> {
        match &node.value {
            Value::Text { text, .. } if text.contains('\0') => {
                self.error(codes::BAD_VALUE, node.span, format!("{what} holds a NUL character"));
                None
            }
            Value::Text { text, .. } => Some(text),
            _ => {
                let hint = matches!(node.value, Value::Empty).then_some("write \"\" for an empty text");
                self.wrong(node, what, "a text", hint);
                None
            }
        }
    }

    /// A text that is not empty.
    pub(crate) fn word<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n str> {
        let text = self.text(node, what)?;
        if text.trim().is_empty() {
            self.error(codes::BAD_VALUE, node.span, format!("{what} is empty"));
            return None;
        }
        Some(text)
    }

    /// A text that is parsed into a type whose error says how to write it.
    pub(crate) fn parsed<T: FromStr<Err: std::fmt::Display>>(
        &mut self,
        node: &Node,
        what: &str,
    ) -> Option<T> {
        let text = self.text(node, what)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(e) => {
                self.error(codes::BAD_VALUE, node.span, format!("{what}: {e}"));
                None
            }
        }
    }

    pub(crate) fn duration(&mut self, node: &Node, what: &str) -> Option<Duration> {
        let text = self.text(node, what)?;
        match parse_duration(text) {
            Ok(d) => Some(d),
            Err(e) => {
                let digits = !text.is_empty() && text.len() < 10 && text.bytes().all(|b| b.is_ascii_digit());
                let zero = text.contains('0') && text.bytes().all(|b| !b.is_ascii_digit() || b == b'0');
                let d = self.error(codes::BAD_VALUE, node.span, format!("{what}: {e}"));
                if digits && !zero {
                    d.hints.push(format!("a bare number has no unit: did you mean {text}s or {text}m?"));
                } else if zero {
                    d.hints.push("zero is refused: leave the key out for the default".into());
                }
                None
            }
        }
    }

    /// A whole number within bounds.
    pub(crate) fn number(&mut self, node: &Node, what: &str, min: u32, max: u32) -> Option<u32> {
        let text = self.text(node, what)?;
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        match text.parse::<u32>() {
            Ok(n) if digits && (min..=max).contains(&n) => Some(n),
            _ => {
                let shown: String = text.chars().take(40).collect();
                let message = format!("{what} is a whole number from {min} to {max}, not {shown:?}");
                self.error(codes::BAD_VALUE, node.span, message);
                None
            }
        }
    }

    /// One text or a list of texts.
    pub(crate) fn texts<'n>(&mut self, node: &'n Node, what: &str) -> Option<Vec<(&'n str, Span)>> {
        let items: &[Node] = match &node.value {
            Value::List(items) => items,
            _ => std::slice::from_ref(node),
        };
        if items.is_empty() {
            self.error(codes::BAD_VALUE, node.span, format!("{what} is an empty list"));
            return None;
        }
        let texts: Vec<_> = items.iter().map(|i| self.word(i, what).map(|t| (t, i.span))).collect();
        texts.into_iter().collect()
    }

    /// Environment: names that a shell can read, values as written.
    pub(crate) fn env(&mut self, node: &Node, what: &str) -> Option<Vec<(String, String)>> {
        let hint = "write a map: {NAME: value}";
        let mut ok = true;
        let mut out = Vec::new();
        for entry in self.names(node, what, Some(hint))? {
            let name = &entry.key;
            let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            if name.is_empty() || name.as_bytes()[0].is_ascii_digit() || !name.bytes().all(word) {
                let shown: String = name.chars().take(60).collect();
                let message = format!("{shown:?} is not a name for an environment variable");
                let hint = "names are of letters, digits and '_', and do not start with a digit";
                self.error_hint(codes::BAD_VALUE, entry.key_span, message, hint);
                ok = false;
                continue;
            }
            match self.text(&entry.value, &format!("the value of {name}")) {
                Some(text) => out.push((name.clone(), text.to_owned())),
                None => ok = false,
            }
        }
        ok.then_some(out)
    }
}

/// Where to point for a node as a whole: a list or map over several lines is its first character, so that a
/// message does not underline half the file.
pub(crate) fn head(node: &Node) -> Span {
    match node.value {
        Value::List(_) | Value::Map(_) => Span::new(node.span.start, node.span.start + 1),
        _ => node.span,
    }
}
