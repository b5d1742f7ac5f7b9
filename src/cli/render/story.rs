//! A run as it is told: remembers what later lines need (names, times, last output) and puts events into words.
//! Both text forms tell the same story; they differ in where output goes.

use crate::render::Record;
use crate::render::clean::{clean, clean_lines};
use crate::render::style::{Paint, Style};
use keelway_model::{
    Bytes, EventKind, ExitCode, NodeId, Outcome, RunEvent, Timestamp, WaitReason, format_duration,
};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Lines of output that a failure shows.
const TAIL: usize = 20;

/// One thing to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// A line for the record.
    Line(String),
    /// A node begins, and there is nothing to tell but that: the live form shows it as a live line alone.
    Begins(String),
    /// A line of a node's output.
    Output { label: String, text: String },
    /// Something that is true only now: shown by the live form alone.
    Passing,
}

/// What is known of a node.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub label: String,
    pub began: Option<Timestamp>,
    /// What it does now: last line of output, progress, what it waits for.
    pub now: String,
    pub outcome: Option<Outcome>,
    miss: Option<String>,
    tail: VecDeque<String>,
    millis: u64,
}

impl Told {
    const fn has_failed(&self) -> bool {
        matches!(self.outcome, Some(Outcome::Failed { .. }))
    }
}

/// A run so far.
#[derive(Debug)]
pub(super) struct Story {
    style: Style,
    record: Record,
    run: String,
    pub nodes: BTreeMap<Vec<NodeId>, Told>,
}

impl Story {
    pub fn new(style: Style, record: Record) -> Self {
        Self { style, record, run: String::new(), nodes: BTreeMap::new() }
    }

    /// Takes an event in and says what there is to say.
    pub fn tell(&mut self, event: &RunEvent) -> Vec<Said> {
        let label = self.nodes.get(&event.node).map(|n| n.label.clone()).unwrap_or_default();
        let style = self.style.clone();
        let line = |paint, mark: &str, text: String| {
            let name = if label.is_empty() { String::new() } else { format!("{label}: ") };
            Said::Line(format!("{} {name}{text}", style.paint(paint, mark)))
        };
        match &event.kind {
            EventKind::RunStarted { run, attempt, commit } => {
                self.run = run.to_string();
                let mut text = self.called();
                if attempt.0 > 1 {
                    text.push_str(&format!(", attempt {attempt}"));
                }
                if let Some(commit) = commit {
                    text.push_str(&format!(", commit {}", commit.short()));
                }
                let day = event.at.to_string().get(..10).unwrap_or_default().to_owned();
                vec![line(Paint::Plain, "-", format!("{text}, {day}"))]
            }
            EventKind::Planned { name, .. } => {
                let told = Told {
                    label: self.label(&event.node, name),
                    began: None,
                    now: String::new(),
                    outcome: None,
                    miss: None,
                    tail: VecDeque::new(),
                    millis: 0,
                };
                self.nodes.insert(event.node.clone(), told);
                Vec::new()
            }
            EventKind::Waiting { reason } => {
                let text = match reason {
                    WaitReason::SameStepElsewhere => "waits for the same step, which runs elsewhere",
                    WaitReason::Slots => "waits for a free place",
                };
                self.with(event, |n| n.now = text.into());
                match reason {
                    // It may take as long as that step does, so it is worth a line.
                    WaitReason::SameStepElsewhere => vec![line(Paint::Dim, ".", text.into())],
                    WaitReason::Slots => vec![Said::Passing],
                }
            }
            EventKind::CacheMiss { reason, .. } => {
                self.with(event, |n| n.miss = Some(reason.to_string()));
                Vec::new()
            }
            EventKind::CacheHit { .. } => vec![line(Paint::Cyan, "=", "cached".into())],
            EventKind::Started { .. } => {
                let at = event.at;
                let mut why = String::new();
                self.with(event, |n| {
                    n.began = Some(at);
                    n.now.clear();
                    why = n.miss.as_ref().map(|m| format!(" ({m})")).unwrap_or_default();
                });
                let said = line(Paint::Cyan, ">", format!("runs{why}"));
                vec![match said {
                    Said::Line(text) if why.is_empty() => Said::Begins(text),
                    said => said,
                }]
            }
            EventKind::Log { text, .. } => {
                let lines: Vec<String> = clean_lines(text).lines().map(str::to_owned).collect();
                self.with(event, |n| {
                    for text in &lines {
                        if n.tail.len() == TAIL {
                            n.tail.pop_front();
                        }
                        n.tail.push_back(text.clone());
                    }
                    n.now = lines.last().cloned().unwrap_or_default();
                });
                let short = short(&label);
                lines.into_iter().map(|text| Said::Output { label: short.to_owned(), text }).collect()
            }
            EventKind::Progress { what, done, total } => {
                let text = match total {
                    Some(total) => format!("{} {} of {}", clean(what), Bytes(*done), Bytes(*total)),
                    None => format!("{} {}", clean(what), Bytes(*done)),
                };
                self.with(event, |n| n.now = text);
                vec![Said::Passing]
            }
            EventKind::Notice { text } => vec![line(Paint::Yellow, "!", clean(text))],
            EventKind::News { text } => vec![line(Paint::Dim, "*", clean(text))],
            EventKind::Finished { outcome, millis, result, .. } => {
                self.with(event, |n| {
                    n.outcome = Some(outcome.clone());
                    n.millis = *millis;
                });
                let took = format_duration(Duration::from_millis(*millis));
                let result = result.as_ref().map(|r| format!(" -> {}", clean(r))).unwrap_or_default();
                match outcome {
                    Outcome::Succeeded => vec![line(Paint::Green, "+", format!("done in {took}{result}"))],
                    // Said when it was found.
                    Outcome::Cached => Vec::new(),
                    Outcome::Skipped { reason } => {
                        vec![line(Paint::Dim, "-", format!("skipped: {}", clean(&reason.to_string())))]
                    }
                    Outcome::Failed { message, .. } => {
                        // Where a step failed, that was said.
                        let why = match self.has_failed_inside(&event.node) {
                            true => String::new(),
                            // The end of the run tells the rest.
                            false => format!(": {}", clean(message.lines().next().unwrap_or_default())),
                        };
                        vec![line(Paint::Red, "x", format!("failed after {took}{why}"))]
                    }
                    Outcome::Cancelled => vec![line(Paint::Yellow, "x", format!("cancelled after {took}"))],
                }
            }
            EventKind::RunFinished { outcome, millis, .. } => {
                let mut said = self.failures();
                said.push(Said::Line(self.end(outcome, *millis)));
                said
            }
        }
    }

    /// The one line that says how a run ended.
    pub fn end(&self, outcome: &Outcome, millis: u64) -> String {
        let took = format_duration(Duration::from_millis(millis));
        let count = |wanted: fn(&Outcome) -> bool| {
            self.nodes.values().filter_map(|n| n.outcome.as_ref()).filter(|o| wanted(o)).count()
        };
        let cached = match count(|o| *o == Outcome::Cached) {
            0 => String::new(),
            n => format!(", {n} cached"),
        };
        let run = self.called();
        match outcome {
            Outcome::Failed { exit, message } => {
                let meaning = ExitCode::from_code(*exit).map_or("", ExitCode::meaning);
                let text = format!("failed after {took}, exit code {exit} ({meaning}): {}", clean(message));
                format!("{} {run} {text}", self.style.paint(Paint::Red, "x"))
            }
            Outcome::Cancelled => {
                format!("{} {run} was cancelled after {took}", self.style.paint(Paint::Yellow, "x"))
            }
            _ => format!("{} {run} done in {took}{cached}", self.style.paint(Paint::Green, "+")),
        }
    }

    /// What the whole is called: a build that nothing records is no run that could be looked up.
    fn called(&self) -> String {
        match self.record {
            Record::Kept => format!("run {}", self.run),
            Record::Nowhere => self.run.clone(),
        }
    }

    fn has_failed_inside(&self, path: &[NodeId]) -> bool {
        let inside = |other: &Vec<NodeId>| other.len() > path.len() && other.starts_with(path);
        self.nodes.iter().any(|(other, n)| inside(other) && n.has_failed())
    }

    /// The innermost nodes that failed, since a stage fails with its step; with why.
    fn failed(&self) -> impl Iterator<Item = (&[NodeId], &Told, &str)> {
        self.nodes.iter().filter_map(|(path, node)| match &node.outcome {
            Some(Outcome::Failed { message, .. }) if !self.has_failed_inside(path) => {
                Some((path.as_slice(), node, message.as_str()))
            }
            _ => None,
        })
    }

    /// What failed, with the last lines of its output and where to read all of it.
    fn failures(&self) -> Vec<Said> {
        let mut said = Vec::new();
        for (path, node, message) in self.failed() {
            // Without output all was told when it failed, unless that was more than a line.
            if !node.tail.is_empty() || message.contains('\n') {
                let took = format_duration(Duration::from_millis(node.millis));
                let mark = self.style.paint(Paint::Red, "x");
                said.push(Said::Line(format!("{mark} {} failed after {took}", node.label)));
                let bar = self.style.paint(Paint::Dim, "|");
                said.extend(node.tail.iter().map(|text| Said::Line(format!("  {bar} {text}"))));
                said.extend(clean_lines(message).lines().map(|text| Said::Line(format!("  {text}"))));
            }
            let stage = self.nodes.get(&path[..1]).map(|n| n.label.as_str());
            if let (Record::Kept, Some(stage)) = (self.record, stage) {
                let command = self.style.command(&format!("runs logs {} {stage}", self.run));
                said.push(Said::Line(format!("  the whole log: {command}")));
            }
        }
        said
    }

    /// For who asked for nothing but the end: why, in a line, and where there is more.
    pub fn cause(&self) -> Vec<String> {
        let first = self.failed().next();
        let cause = first.map(|(_, node, message)| {
            let line = clean_lines(message).lines().next().unwrap_or_default().to_owned();
            format!("  {}: {line}", node.label)
        });
        let more = (self.record == Record::Kept && cause.is_some())
            .then(|| format!("  more: {}", self.style.command(&format!("runs show {}", self.run))));
        cause.into_iter().chain(more).collect()
    }

    /// `image [app 3/7] RUN make`: the names on the way to a node.
    fn label(&self, path: &[NodeId], name: &str) -> String {
        let parent = (!path.is_empty()).then(|| &path[..path.len() - 1]).and_then(|p| self.nodes.get(p));
        match parent {
            Some(parent) => format!("{} {}", parent.label, clean(name)),
            None => clean(name),
        }
    }

    fn with(&mut self, event: &RunEvent, change: impl FnOnce(&mut Told)) {
        if let Some(node) = self.nodes.get_mut(&event.node) {
            change(node);
        }
    }
}

/// `image [app 3/7]` of `image [app 3/7] RUN make`: enough before each line of output.
pub fn short(label: &str) -> &str {
    label.find(']').map_or(label, |end| &label[..=end])
}
