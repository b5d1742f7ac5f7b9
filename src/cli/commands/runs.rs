//! `keelway runs ls|show|logs`.

use super::Context;
use crate::args::{Format, RunsVerb};
use crate::outcome::CommandError;
use crate::{render, settings};
use keelway_ledger::{AttemptDetail, AttemptRecord, Filter, Ledger, NodeRecord, NodeState, RunSummary};
use keelway_model::{CommitId, EventKind, NodeId, Outcome, RunEvent, RunId, format_duration};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

/// Runs, past and present.
pub fn runs(context: &Context, verb: RunsVerb) -> Result<(), CommandError> {
    let dir = settings::existing_state(&context.global, &context.machine)?.join("ledger");
    let ledger = Ledger::open(&dir, settings::clock(&context.machine)).map_err(CommandError::outside)?;
    // What died since is shown as what it is.
    ledger.interrupted().map_err(CommandError::outside)?;
    match verb {
        RunsVerb::Ls { limit } => ls(context, &ledger, limit),
        RunsVerb::Show { run } => show(context, &ledger, run.as_deref()),
        RunsVerb::Logs { run, stage, only } => {
            logs(context, &ledger, run.as_deref(), stage.or(only).as_deref())
        }
    }
}

fn find(ledger: &Ledger, text: Option<&str>) -> Result<RunId, CommandError> {
    if let Some(text) = text {
        return ledger.find_run(text).map_err(|e| CommandError::usage(e.to_string()));
    }
    let newest = ledger.runs(&Filter { limit: 1, ..Filter::default() }).map_err(CommandError::outside)?;
    newest
        .into_iter()
        .next()
        .map(|r| r.id)
        .ok_or_else(|| CommandError::usage("there is no run yet; `keelway run` makes one"))
}

fn state(attempt: Option<&AttemptRecord>) -> String {
    match attempt {
        None => "recorded".into(),
        Some(a) => match (a.exit, a.state.as_str()) {
            (Some(code), "failed") => format!("failed ({})", code.code()),
            (_, state) => state.into(),
        },
    }
}

fn elapsed(a: &AttemptRecord) -> String {
    let millis = a.finished.map(|f| u64::try_from(f.0 - a.started.0).unwrap_or(0));
    millis.map_or_else(|| "-".into(), |ms| format_duration(Duration::from_millis(ms)))
}

fn json(run: &RunSummary) -> serde_json::Value {
    let last = run.last.as_ref();
    serde_json::json!({
        "run": run.id, "repo": run.repo, "commit": run.commit, "branch": run.branch, "event": run.event, "created": run.created.to_string(),
        "attempt": last.map(|a| a.attempt), "state": last.map_or("recorded", |a| a.state.as_str()), "exit": last.and_then(|a| a.exit).map(|c| c.code()),
        "message": last.and_then(|a| a.message.clone()),
    })
}

fn ls(context: &Context, ledger: &Ledger, limit: u32) -> Result<(), CommandError> {
    let asked = Filter { limit: limit.saturating_add(1), ..Filter::default() };
    let mut runs = ledger.runs(&asked).map_err(CommandError::outside)?;
    let more = runs.len() > limit as usize;
    runs.truncate(limit as usize);
    if context.global.format == Format::Json {
        return context.print(&runs.iter().map(|r| format!("{}\n", json(r))).collect::<String>());
    }
    let rows: Vec<[String; 6]> = runs
        .iter()
        .map(|r| {
            [
                r.id.to_string(),
                state(r.last.as_ref()),
                r.created.to_string().chars().take(19).collect::<String>() + "Z",
                r.last.as_ref().map_or_else(|| "-".into(), elapsed),
                r.commit.as_ref().map_or("-", CommitId::short).to_owned()
                    + &r.branch.as_ref().map(|b| format!(" {b}")).unwrap_or_default(),
                r.repo.clone(),
            ]
        })
        .collect();
    if runs.is_empty() {
        context.say("there is no run yet; `keelway run` makes one");
    }
    if more {
        context.say(&format!("the newest {limit}; -n {} shows more", limit.saturating_mul(5).max(100)));
    }
    context.print(&render::table(["RUN", "STATE", "CREATED", "TOOK", "COMMIT", "REPOSITORY"], &rows, 2))
}

fn outcome(state: &NodeState, over: bool) -> String {
    match state {
        NodeState::Pending => "not started".into(),
        // Its process died before it could say more.
        NodeState::Running if over => "interrupted".into(),
        NodeState::Running => "running".into(),
        NodeState::Ended(Outcome::Succeeded, ms) => {
            format!("done in {}", format_duration(Duration::from_millis(*ms)))
        }
        NodeState::Ended(Outcome::Cached, _) => "cached".into(),
        NodeState::Ended(Outcome::Skipped { reason }, _) => format!("skipped: {reason}"),
        NodeState::Ended(Outcome::Failed { message, .. }, _) => format!("failed: {message}"),
        NodeState::Ended(Outcome::Cancelled, _) => "cancelled".into(),
    }
}

fn node_line(out: &mut String, node: &NodeRecord, over: bool) {
    let indent = "  ".repeat(node.path.len());
    let _ =
        write!(out, "{indent}{}: {}", render::clean(&node.name), render::clean(&outcome(&node.state, over)));
    if let Some(miss) = &node.miss {
        let _ = write!(out, " ({miss})");
    }
    if let Some(result) = &node.result {
        let _ = write!(out, " -> {}", render::clean(result));
    }
    out.push('\n');
}

fn attempt_text(out: &mut String, detail: &AttemptDetail) {
    let a = &detail.attempt;
    let _ =
        writeln!(out, "attempt {}: {}, began {}, took {}", a.attempt, state(Some(a)), a.started, elapsed(a));
    if let Some(message) = &a.message {
        let _ = writeln!(out, "  {}", render::clean(message));
    }
    // Steps of a build follow their stage.
    let mut nodes: Vec<&NodeRecord> = detail.nodes.iter().collect();
    nodes.sort_by(|a, b| a.path.cmp(&b.path));
    for node in nodes {
        node_line(out, node, a.state.is_over());
        for (_, text) in detail.notices.iter().filter(|(path, _)| *path == node.path) {
            let _ = writeln!(out, "{}  {}", "  ".repeat(node.path.len()), render::clean(text));
        }
    }
}

fn show(context: &Context, ledger: &Ledger, run: Option<&str>) -> Result<(), CommandError> {
    let id = find(ledger, run)?;
    if context.global.format == Format::Json {
        for event in ledger.events(&id, None).map_err(CommandError::outside)? {
            if !json_line(context, &event.map_err(CommandError::outside)?)? {
                break;
            }
        }
        return Ok(());
    }
    let detail = ledger.show(&id).map_err(CommandError::outside)?;
    let run = &detail.run;
    let mut out = format!("run {}\n  repository {}\n", run.id, render::clean(&run.repo));
    if let Some(commit) = &run.commit {
        let _ = writeln!(
            out,
            "  commit     {commit}{}",
            run.branch.as_ref().map(|b| format!(" of {}", render::clean(b))).unwrap_or_default()
        );
    }
    let _ = writeln!(out, "  set off by {}, {}", run.event, run.created);
    for attempt in &detail.attempts {
        attempt_text(&mut out, attempt);
    }
    context.print(&out)
}

/// The node paths of a stage: the stage itself and every step below it.
fn below(detail: &AttemptDetail, stage: &str) -> Option<NodeId> {
    detail.nodes.iter().find(|n| n.path.len() == 1 && n.name == stage).map(|n| n.path[0])
}

fn logs(
    context: &Context,
    ledger: &Ledger,
    run: Option<&str>,
    stage: Option<&str>,
) -> Result<(), CommandError> {
    let id = find(ledger, run)?;
    let detail = ledger.show(&id).map_err(CommandError::outside)?;
    let only = match (stage, detail.attempts.last()) {
        (Some(stage), Some(last)) => {
            let names: Vec<&str> =
                last.nodes.iter().filter(|n| n.path.len() == 1).map(|n| n.name.as_str()).collect();
            let found = below(last, stage).ok_or_else(|| {
                CommandError::usage(format!("run {id} has no stage {stage:?}; it has {}", names.join(", ")))
            })?;
            Some(found)
        }
        _ => None,
    };
    let nodes = detail.attempts.last().map(|a| a.nodes.as_slice()).unwrap_or_default();
    let within = |path: &[NodeId]| only.is_none_or(|n| path.first() == Some(&n));
    let failed = |n: &NodeRecord| matches!(n.state, NodeState::Ended(Outcome::Failed { .. }, _));
    let inner_failed = |path: &[NodeId]| {
        nodes.iter().any(|n| n.path.len() > path.len() && n.path.starts_with(path) && failed(n))
    };
    let mut lines = Lines::of(nodes, nodes.iter().filter(|n| within(&n.path)).count() > 1);
    for event in ledger.events(&id, None).map_err(CommandError::outside)? {
        let event = event.map_err(CommandError::outside)?;
        let shown = match &event.kind {
            EventKind::Log { .. } => within(&event.node),
            // What failed without a word must say why here, too.
            EventKind::Finished { outcome: Outcome::Failed { .. }, .. } => {
                within(&event.node) && !inner_failed(&event.node)
            }
            EventKind::RunFinished { outcome: Outcome::Failed { .. }, .. } => !nodes.iter().any(failed),
            _ => false,
        };
        if !shown {
            continue;
        }
        let more = match context.global.format {
            Format::Text => context.print_more(&lines.text(&event))?,
            Format::Json => json_line(context, &event)?,
        };
        if !more {
            return Ok(());
        }
    }
    if context.global.format == Format::Text {
        context.print(lines.end())?;
        if lines.is_new() {
            context.say("nothing was written, and nothing failed");
        }
    }
    Ok(())
}

/// Output of several nodes as lines that say whose they are.
struct Lines {
    labels: HashMap<Vec<NodeId>, String>,
    /// Whether only one can speak, so that it need not be named.
    named: bool,
    /// Who has begun a line without ending it.
    open: Option<Vec<NodeId>>,
    began: bool,
}

impl Lines {
    fn of(nodes: &[NodeRecord], named: bool) -> Self {
        let mut labels: HashMap<Vec<NodeId>, String> = HashMap::new();
        for node in nodes {
            let parent = labels.get(&node.path[..node.path.len().saturating_sub(1)]);
            let name = render::clean(&node.name);
            let label = parent.map_or_else(|| name.clone(), |p| format!("{p} {name}"));
            labels.insert(node.path.clone(), label);
        }
        Self { labels, named, open: None, began: false }
    }
    /// Whether nothing was said yet.
    const fn is_new(&self) -> bool {
        !self.began
    }
    /// What ends a line that is still open.
    fn end(&mut self) -> &'static str {
        if self.open.take().is_some() { "\n" } else { "" }
    }
    fn text(&mut self, event: &RunEvent) -> String {
        self.began = true;
        let label = self.labels.get(&event.node).map_or("run", String::as_str);
        let prefix = if self.named { format!("{} | ", render::short(label)) } else { String::new() };
        match &event.kind {
            EventKind::Log { text, .. } => {
                let goes_on = self.open.as_ref() == Some(&event.node);
                let mut out = if goes_on { String::new() } else { self.end().to_owned() };
                for (i, line) in render::clean_lines(text).split_inclusive('\n').enumerate() {
                    if i > 0 || !goes_on {
                        out.push_str(&prefix);
                    }
                    out.push_str(line);
                }
                self.open = (!text.ends_with('\n')).then(|| event.node.clone());
                out
            }
            EventKind::Finished { outcome: Outcome::Failed { message, .. }, .. }
            | EventKind::RunFinished { outcome: Outcome::Failed { message, .. }, .. } => {
                let text = format!("{label} failed: {}\n", render::clean_lines(message).trim_end());
                self.end().to_owned() + &text
            }
            _ => String::new(),
        }
    }
}

/// Prints an event as a line; false when nobody reads any more.
fn json_line(context: &Context, event: &RunEvent) -> Result<bool, CommandError> {
    let json = serde_json::to_string(event).map_err(CommandError::outside)?;
    context.print_more(&format!("{json}\n"))
}
