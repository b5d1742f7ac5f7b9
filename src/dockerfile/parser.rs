//! Lines to stages.
//!
//! A line becomes a [`Node`] (name, flags, arguments as text), a node becomes a typed instruction
//! ([`crate::typed`]), instructions become stages. An error of one line does not hide those of others.

use crate::ast::{Dockerfile, Instruction, Kind, Stage, Word, Written};
use crate::lexer::{self, Line, MAX_ERRORS, MAX_INSTRUCTIONS, MAX_STAGES};
use crate::typed;
use crate::words::{self, Json, Piece};
use keelway_model::{Diagnostic, Diagnostics, SourceText, Span};
use std::ops::Range;

/// Parses a Dockerfile; errors come all at once (at most [`MAX_ERRORS`]). What is valid and probably not meant is found by
/// [`crate::lint`].
pub fn parse(source: &SourceText) -> Result<Dockerfile, Diagnostics> {
    match parse_all(source) {
        (_, found) if found.has_errors() => Err(found),
        (file, _) => Ok(file),
    }
}

/// The same, with what could be read of a file that has errors: to look for others in it.
pub fn parse_all(source: &SourceText) -> (Dockerfile, Diagnostics) {
    let mut found = Diagnostics::of(source.clone());
    let (head, lines) = lexer::lex(&source.name, &source.text, &mut found);
    let mut parser =
        Parser { file: &source.name, escape: head.escape, globals: Vec::new(), stages: Vec::new(), found };
    for (number, line) in lines.iter().enumerate() {
        if parser.found.items.len() >= MAX_ERRORS {
            break;
        }
        parser.line(line);
        let over = if number >= MAX_INSTRUCTIONS {
            Some(("instructions", MAX_INSTRUCTIONS))
        } else {
            (parser.stages.len() > MAX_STAGES).then_some(("stages", MAX_STAGES))
        };
        if let Some((what, most)) = over {
            let message = format!("the Dockerfile has more than {most} {what}, which are all it may have");
            parser.found.push(Diagnostic::error("D0001", &source.name, line.span, message));
            break;
        }
    }
    let Parser { globals, stages, mut found, .. } = parser;
    if lines.is_empty() && !found.has_errors() {
        found.push(Diagnostic::error(
            "D0007",
            &source.name,
            Span::new(0, 0),
            "the Dockerfile has no instructions",
        ));
    } else if stages.is_empty() && !found.has_errors() {
        let end = Span::new(source.text.len(), source.text.len());
        found.push(
            Diagnostic::error("D0007", &source.name, end, "the Dockerfile has no FROM")
                .hint("start a stage with FROM image"),
        );
    }
    found.items.truncate(MAX_ERRORS);
    let file = Dockerfile {
        source: source.clone(),
        escape: head.escape,
        directives: head.directives,
        globals,
        stages,
    };
    (file, found)
}

/// Parses one trigger of a base image's `OnBuild`, given as a source of its own.
pub fn parse_trigger(source: &SourceText) -> Result<Instruction, Diagnostics> {
    let mut found = Diagnostics::of(source.clone());
    let (head, lines) = lexer::lex(&source.name, &source.text, &mut found);
    let [line] = &lines[..] else {
        let message = format!("a trigger must be one instruction, this one has {}", lines.len());
        found.push(Diagnostic::error("D0011", &source.name, Span::new(0, source.text.len()), message));
        return Err(found);
    };
    let mut parser =
        Parser { file: &source.name, escape: head.escape, globals: Vec::new(), stages: Vec::new(), found };
    let instruction = parser.trigger(line);
    let found = parser.found;
    match instruction {
        Some(i) if !found.has_errors() => Ok(i),
        _ => Err(found),
    }
}

/// A line as text, taken apart: what the reference's parse tree holds.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// In lower case.
    pub(crate) name: String,
    pub(crate) name_range: Range<usize>,
    pub(crate) flags: Vec<Piece>,
    pub(crate) args: Vec<Piece>,
    /// Whether the arguments came from a JSON array.
    pub(crate) json: bool,
    /// What follows the flags.
    pub(crate) rest: Range<usize>,
    /// The instruction inside `ONBUILD`.
    pub(crate) inner: Option<Box<Node>>,
}

/// Why a line is no node.
pub(crate) struct NodeError {
    pub(crate) range: Range<usize>,
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

/// Takes `text[range]` apart.
pub(crate) fn node(text: &str, range: Range<usize>, escape: char) -> Result<Node, NodeError> {
    let shift = |r: Range<usize>| range.start + r.start..range.start + r.end;
    let (command, rest) = words::split_command(&text[range.clone()]);
    let (name_range, rest) = (shift(command), shift(rest));
    let name = text[name_range.clone()].to_ascii_lowercase();
    let (flags, rest) = words::flags(text, rest);
    let error =
        |range: &Range<usize>, code, message: String| NodeError { range: range.clone(), code, message };
    let whole = || match rest.is_empty() {
        true => Vec::new(),
        false => vec![Piece { text: text[rest.clone()].to_owned(), range: rest.clone() }],
    };
    let strings = |range: &Range<usize>| match words::json(&text[range.clone()]) {
        Json::Strings(items) => {
            Ok(Some(items.into_iter().map(|text| Piece { text, range: range.clone() }).collect::<Vec<_>>()))
        }
        Json::Mixed => {
            Err(error(range, "D0009", "a JSON array of an instruction may hold strings only".to_owned()))
        }
        Json::No => Ok(None),
    };
    let (mut json, mut inner) = (false, None);
    let args = match name.as_str() {
        "add" | "copy" | "volume" => match strings(&rest)? {
            Some(items) => {
                json = true;
                items
            }
            None => words::plain_words(text, rest.clone()),
        },
        "cmd" | "entrypoint" | "run" | "shell" => match strings(&rest)? {
            Some(items) => {
                json = true;
                items
            }
            None => whole(),
        },
        "arg" => words::quoted_words(text, rest.clone(), escape),
        "expose" | "from" => words::plain_words(text, rest.clone()),
        "env" | "label" => {
            pairs(text, &rest, escape).map_err(|(range, message)| error(&range, "D0005", message))?
        }
        "healthcheck" => {
            let kind_end = text[rest.clone()].find(char::is_whitespace).map_or(rest.end, |i| rest.start + i);
            let mut args = Vec::new();
            if kind_end > rest.start {
                args.push(Piece { text: text[rest.start..kind_end].to_owned(), range: rest.start..kind_end });
            }
            let after = &text[kind_end..rest.end];
            let command = kind_end + (after.len() - after.trim_start().len())..rest.end;
            match strings(&command)? {
                Some(items) => {
                    json = true;
                    args.extend(items);
                }
                None if !command.is_empty() => {
                    args.push(Piece { text: text[command.clone()].to_owned(), range: command });
                }
                None => {}
            }
            args
        }
        "onbuild" => {
            // One level only: a trigger in a trigger is refused before it could recurse.
            let (command, _) = words::split_command(&text[rest.clone()]);
            let nested = text[rest.clone()][command].eq_ignore_ascii_case("onbuild");
            if nested {
                return Err(error(&rest, "D0011", "ONBUILD cannot be the trigger of ONBUILD".to_owned()));
            }
            if !rest.is_empty() {
                inner = Some(Box::new(node(text, rest.clone(), escape)?));
            }
            Vec::new()
        }
        _ => whole(),
    };
    Ok(Node { name, name_range, flags, args, json, rest, inner })
}

/// `name=value ..`, or the old `name value`; each as name, value, separator.
fn pairs(text: &str, rest: &Range<usize>, escape: char) -> Result<Vec<Piece>, (Range<usize>, String)> {
    let items = words::quoted_words(text, rest.clone(), escape);
    let Some(first) = items.first() else { return Ok(Vec::new()) };
    let piece = |text: &str, start: usize| Piece { text: text.to_owned(), range: start..start + text.len() };
    if !first.text.contains('=') {
        let (name, value) = words::split_command(&text[rest.clone()]);
        if value.is_empty() {
            return Err((rest.clone(), "a name must be followed by a value: write name=value".to_owned()));
        }
        let at = |r: Range<usize>| Piece {
            text: text[rest.clone()][r.clone()].to_owned(),
            range: rest.start + r.start..rest.start + r.end,
        };
        let end = rest.end;
        return Ok(vec![at(name), at(value), piece("", end)]);
    }
    let mut out = Vec::new();
    for item in items {
        let Some((name, value)) = item.text.split_once('=') else {
            return Err((
                item.range,
                format!("{:?} has no =: write name=value, in quotes where it has spaces", item.text),
            ));
        };
        let start = item.range.start;
        out.push(piece(name, start));
        out.push(Piece {
            text: value.to_owned(),
            range: (start + name.len() + 1).min(item.range.end)..item.range.end,
        });
        out.push(piece("=", start + name.len()));
    }
    Ok(out)
}

struct Parser<'a> {
    file: &'a str,
    escape: char,
    globals: Vec<Instruction>,
    stages: Vec<Stage>,
    found: Diagnostics,
}

impl Parser<'_> {
    fn node(&mut self, line: &Line) -> Option<Node> {
        match node(&line.text, 0..line.text.len(), self.escape) {
            Ok(node) => Some(node),
            Err(e) => {
                let span = line.span_of(e.range.start, e.range.end);
                self.found.push(Diagnostic::error(e.code, self.file, span, e.message));
                None
            }
        }
    }

    fn line(&mut self, line: &Line) {
        let Some(node) = self.node(line) else { return };
        if node.name == "from" {
            if let Some(stage) = typed::Typer::new(self.file, line, &mut self.found).stage(&node) {
                self.stages.push(stage);
            } else {
                // A broken FROM still opens a stage, so that what follows is not blamed for it.
                self.stages.push(broken_stage(line));
            }
            return;
        }
        let Some(instruction) = typed::Typer::new(self.file, line, &mut self.found).instruction(&node) else {
            return;
        };
        match (self.stages.last_mut(), &instruction.kind) {
            (Some(stage), _) => stage.instructions.push(instruction),
            (None, Kind::Arg(_)) => self.globals.push(instruction),
            (None, kind) => {
                let message = format!("{} before the first FROM: only ARG may stand there", kind.name());
                self.found.push(Diagnostic::error("D0007", self.file, instruction.span, message));
            }
        }
    }

    fn trigger(&mut self, line: &Line) -> Option<Instruction> {
        let node = self.node(line)?;
        typed::Typer::new(self.file, line, &mut self.found).trigger(&node)
    }
}

fn broken_stage(line: &Line) -> Stage {
    Stage {
        base: Word { text: String::new(), span: line.span },
        name: None,
        platform: None,
        span: line.span,
        text: line.text.clone(),
        written: Written { keyword: "FROM".to_owned(), comments: Vec::new(), blank: None, old_form: false },
        instructions: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
