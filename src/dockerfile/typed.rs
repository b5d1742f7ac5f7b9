//! Nodes to typed instructions: how many arguments, which flags, which values.

use crate::ast::{Argument, Command, Health, Heredoc, Instruction, Kind, Run, Stage, Trigger, Word, Written};
use crate::lexer::Line;
use crate::parser::Node;
use crate::words::{self, Piece};
use keelway_model::{Diagnostic, Diagnostics, Span};
use std::ops::Range;

mod flags;
mod transfer;

use flags::Flags;

/// The names of all instructions.
const INSTRUCTIONS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Turns the nodes of one line into instructions; every `None` has left an error behind.
pub(crate) struct Typer<'a> {
    file: &'a str,
    line: &'a Line,
    found: &'a mut Diagnostics,
    /// Whether an ENV or LABEL was in its old form.
    old_form: bool,
}

impl<'a> Typer<'a> {
    pub(crate) fn new(file: &'a str, line: &'a Line, found: &'a mut Diagnostics) -> Self {
        Self { file, line, found, old_form: false }
    }

    fn span(&self, range: &Range<usize>) -> Span {
        self.line.span_of(range.start, range.end)
    }
    fn word(&self, piece: &Piece) -> Word {
        Word { text: piece.text.clone(), span: self.span(&piece.range) }
    }
    fn error<T>(&mut self, code: &str, span: Span, message: impl Into<String>) -> Option<T> {
        self.found.push(Diagnostic::error(code, self.file, span, message));
        None
    }
    fn push(&mut self, d: Diagnostic) {
        self.found.push(d);
    }

    /// A `FROM`.
    pub(crate) fn stage(&mut self, node: &Node) -> Option<Stage> {
        let mut flags = Flags::new(self, node, &["platform"], &[])?;
        let platform = flags.value("platform");
        let name = match &node.args[..] {
            [_] => None,
            [_, keyword, name] if keyword.text.eq_ignore_ascii_case("as") => {
                let word = Word { text: name.text.to_lowercase(), span: self.span(&name.range) };
                if !is_stage_name(&word.text) {
                    let message = format!(
                        "{:?} cannot be the name of a stage: a letter, then letters, digits, '-', '_' or '.'",
                        name.text
                    );
                    return self.error("D0008", word.span, message);
                }
                Some(word)
            }
            _ => {
                return self.error(
                    "D0005",
                    self.line.span,
                    "FROM takes an image, or an image, AS and a name",
                );
            }
        };
        Some(Stage {
            base: self.word(&node.args[0]),
            name,
            platform,
            span: self.line.span,
            text: self.line.text.trim().to_owned(),
            written: self.written(node),
            instructions: Vec::new(),
        })
    }

    /// Anything but `FROM`.
    pub(crate) fn instruction(&mut self, node: &Node) -> Option<Instruction> {
        let kind = self.kind(node)?;
        Some(Instruction {
            span: self.line.span,
            text: self.line.text[node.name_range.start..].trim().to_owned(),
            written: self.written(node),
            kind,
        })
    }

    fn written(&self, node: &Node) -> Written {
        Written {
            keyword: self.line.text[node.name_range.clone()].to_owned(),
            comments: self.line.comments.clone(),
            blank: self.line.blank_inside,
            old_form: self.old_form,
        }
    }

    /// An instruction that may be a trigger.
    pub(crate) fn trigger(&mut self, node: &Node) -> Option<Instruction> {
        let upper = node.name.to_ascii_uppercase();
        if matches!(upper.as_str(), "ONBUILD" | "FROM" | "MAINTAINER") {
            return self.error(
                "D0011",
                self.span(&node.name_range),
                format!("{upper} cannot be the trigger of ONBUILD"),
            );
        }
        self.instruction(node)
    }

    fn kind(&mut self, node: &Node) -> Option<Kind> {
        if let Some(nul) = node.args.iter().find(|a| a.text.contains('\0')) {
            return self.error("D0005", self.span(&nul.range), "an argument holds a NUL character");
        }
        match node.name.as_str() {
            "run" => return self.run(node).map(Kind::Run),
            "add" => return self.transfer(node).map(Kind::Add),
            "copy" => return self.transfer(node).map(Kind::Copy),
            "healthcheck" => return self.healthcheck(node).map(Kind::Healthcheck),
            _ => {}
        }
        if !INSTRUCTIONS.iter().any(|i| i.eq_ignore_ascii_case(&node.name)) {
            return self.unknown(node);
        }
        Flags::new(self, node, &[], &[])?;
        Some(match node.name.as_str() {
            "arg" => Kind::Arg(self.arguments(node)?),
            "cmd" => Kind::Cmd(self.command(node, "CMD")?),
            "entrypoint" => Kind::Entrypoint(self.command(node, "ENTRYPOINT")?),
            "env" => Kind::Env(self.pairs(node, "ENV")?),
            "label" => Kind::Label(self.pairs(node, "LABEL")?),
            "expose" => Kind::Expose(self.several(node, "EXPOSE")?),
            "volume" => Kind::Volume(self.volumes(node)?),
            "maintainer" => Kind::Maintainer(self.single(node, "MAINTAINER")?),
            "stopsignal" => Kind::StopSignal(self.single(node, "STOPSIGNAL")?),
            "user" => Kind::User(self.single(node, "USER")?),
            "workdir" => Kind::Workdir(self.single(node, "WORKDIR")?),
            "shell" => Kind::Shell(self.shell(node)?),
            "onbuild" => Kind::Onbuild(self.onbuild(node)?),
            _ => return self.unknown(node),
        })
    }

    fn unknown<T>(&mut self, node: &Node) -> Option<T> {
        let name = self.line.text[node.name_range.clone()].to_owned();
        let shown: String = name.chars().take(40).collect();
        let mut d = Diagnostic::error(
            "D0003",
            self.file,
            self.span(&node.name_range),
            format!("unknown instruction {shown:?}"),
        );
        if let Some(near) = nearest(&name.to_ascii_uppercase(), &INSTRUCTIONS) {
            d = d.hint(format!("did you mean {near}?"));
        }
        self.push(d);
        None
    }

    fn single(&mut self, node: &Node, name: &str) -> Option<Word> {
        match &node.args[..] {
            [one] => Some(self.word(one)),
            _ => self.error("D0005", self.line.span, format!("{name} takes exactly one argument")),
        }
    }

    fn several(&mut self, node: &Node, name: &str) -> Option<Vec<Word>> {
        if node.args.is_empty() {
            return self.error("D0005", self.line.span, format!("{name} takes at least one argument"));
        }
        Some(node.args.iter().map(|a| self.word(a)).collect())
    }

    fn volumes(&mut self, node: &Node) -> Option<Vec<Word>> {
        let volumes = self.several(node, "VOLUME")?;
        match volumes.iter().find(|v| v.text.trim().is_empty()) {
            Some(empty) => self.error("D0005", empty.span, "a volume cannot be an empty text"),
            None => Some(volumes),
        }
    }

    fn pairs(&mut self, node: &Node, name: &str) -> Option<Vec<(Word, Word)>> {
        if node.args.is_empty() {
            return self.error("D0005", self.line.span, format!("{name} takes at least one name=value"));
        }
        let mut out = Vec::new();
        for three in node.args.chunks_exact(3) {
            if three[0].text.is_empty() {
                return self.error(
                    "D0005",
                    self.span(&three[1].range),
                    format!("{name} has a value without a name"),
                );
            }
            self.old_form |= three[2].text.is_empty();
            out.push((self.word(&three[0]), self.word(&three[1])));
        }
        Some(out)
    }

    fn arguments(&mut self, node: &Node) -> Option<Vec<Argument>> {
        if node.args.is_empty() {
            return self.error("D0005", self.line.span, "ARG takes at least one name or name=value");
        }
        let mut out = Vec::new();
        for piece in &node.args {
            let word = self.word(piece);
            let (name, default) = match word.text.split_once('=') {
                Some((name, default)) => {
                    (name.to_owned(), Some(Word { text: default.to_owned(), span: word.span }))
                }
                None => (word.text, None),
            };
            if name.is_empty() {
                return self.error("D0005", word.span, "ARG has a value without a name");
            }
            out.push(Argument { name: Word { text: name, span: word.span }, default });
        }
        Some(out)
    }

    fn command(&mut self, node: &Node, name: &str) -> Option<Command> {
        if node.json {
            return Some(Command::Exec(node.args.iter().map(|a| a.text.clone()).collect()));
        }
        match &node.args[..] {
            [text] => Some(Command::Shell(self.word(text))),
            _ => self.error("D0005", self.line.span, format!("{name} takes a command")),
        }
    }

    fn shell(&mut self, node: &Node) -> Option<Vec<String>> {
        if !node.json || node.args.is_empty() {
            let span = self.span(&node.rest);
            let d = Diagnostic::error(
                "D0009",
                self.file,
                span,
                "SHELL takes a JSON array of at least one string",
            );
            self.push(d.hint("write SHELL [\"/bin/sh\", \"-c\"]"));
            return None;
        }
        Some(node.args.iter().map(|a| a.text.clone()).collect())
    }

    fn run(&mut self, node: &Node) -> Option<Run> {
        let mut flags = Flags::new(self, node, &["network", "security"], &["mount", "device"])?;
        let (network, security) = (flags.value("network"), flags.value("security"));
        let devices = flags.values("device");
        let mounts = flags.values("mount").iter().map(|m| self.mount(m)).collect::<Option<Vec<_>>>()?;
        let command = self.command(node, "RUN")?;
        if matches!(&command, Command::Exec(argv) if argv.first().is_none_or(String::is_empty)) {
            return self.error("D0005", self.line.span, "RUN takes a command");
        }
        Some(Run { command, heredocs: self.line.heredocs.clone(), mounts, network, security, devices })
    }

    fn onbuild(&mut self, node: &Node) -> Option<Trigger> {
        let Some(inner) = &node.inner else {
            return self.error("D0005", self.line.span, "ONBUILD takes an instruction");
        };
        let mut text = self.line.text[inner.name_range.start..].trim_end().to_owned();
        for Heredoc { content, name, .. } in &self.line.heredocs {
            text = format!("{text}\n{content}{name}");
        }
        let instruction = Box::new(self.trigger(inner)?);
        Some(Trigger { text, instruction })
    }

    fn healthcheck(&mut self, node: &Node) -> Option<Health> {
        let mut flags = Flags::new(
            self,
            node,
            &["interval", "timeout", "start-period", "start-interval", "retries"],
            &[],
        )?;
        let given = flags.any();
        let values = ["interval", "timeout", "start-period", "start-interval"].map(|name| flags.value(name));
        let retries = flags.value("retries");
        let Some((kind, args)) = node.args.split_first() else {
            return self.error("D0010", self.line.span, "HEALTHCHECK takes NONE, or CMD and a command");
        };
        let mut health =
            Health { test: None, interval: 0, timeout: 0, start_period: 0, start_interval: 0, retries: 0 };
        match (kind.text.to_ascii_uppercase().as_str(), args) {
            ("NONE", []) if !given => return Some(health),
            ("NONE", _) => {
                return self.error(
                    "D0010",
                    self.line.span,
                    "HEALTHCHECK NONE takes no arguments and no flags",
                );
            }
            ("CMD", []) => return self.error("D0010", self.line.span, "HEALTHCHECK CMD takes a command"),
            ("CMD", args) if node.json => {
                health.test = Some(Command::Exec(args.iter().map(|a| a.text.clone()).collect()))
            }
            ("CMD", args) => health.test = Some(Command::Shell(self.word(&args[0]))),
            (other, _) => {
                let message = format!("HEALTHCHECK takes NONE or CMD, not {other:?}");
                return self.error("D0010", self.span(&kind.range), message);
            }
        }
        let times =
            [&mut health.interval, &mut health.timeout, &mut health.start_period, &mut health.start_interval];
        for (slot, value) in times.into_iter().zip(values) {
            let Some(word) = value else { continue };
            match nanoseconds(&word.text) {
                Some(0) => {}
                Some(n) if n >= 1_000_000 => *slot = n,
                Some(_) => {
                    return self.error("D0010", word.span, format!("{:?} is less than 1ms", word.text));
                }
                None => {
                    let message =
                        format!("{:?} is not a duration: write it as 30s, 1m30s or 500ms", word.text);
                    return self.error("D0010", word.span, message);
                }
            }
        }
        if let Some(word) = retries {
            match word.text.parse::<u32>().ok().filter(|n| *n <= i32::MAX as u32) {
                Some(n) => health.retries = u64::from(n),
                None => {
                    return self.error(
                        "D0010",
                        word.span,
                        format!("{:?} is not a number of retries", word.text),
                    );
                }
            }
        }
        Some(health)
    }
}

/// `^[a-z][a-z0-9-_.]*$`
fn is_stage_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'))
}

/// The nearest of `names`, where it is near enough to be meant.
pub fn nearest<'n>(name: &str, names: &[&'n str]) -> Option<&'n str> {
    if name.len() > 40 {
        return None;
    }
    let near = names.iter().map(|n| (strsim::damerau_levenshtein(name, n), *n)).min()?;
    (near.0 <= 2 && near.0 < near.1.len()).then_some(near.1)
}

/// Go's duration syntax: `1h30m`, `1.5s`, `500ms`, `0`.
fn nanoseconds(text: &str) -> Option<u64> {
    const UNITS: [(&str, f64); 7] =
        [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 6e10), ("h", 3.6e12)];
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let (_, factor) = UNITS.iter().find(|(u, _)| *u == &rest[..unit_end])?;
        rest = &rest[unit_end..];
        total += number * factor;
    }
    // Go's durations end at 292 years.
    (!text.is_empty() && total < 9.2e18).then_some(total as u64)
}

/// The words of a heredoc opener, for `COPY` and `ADD`.
fn opener(word: &Word) -> Option<Heredoc> {
    words::heredoc(&word.text)
}
