//! A plan as text for people: one stage a line, what it needs, and why it runs or does not.

use keelway_model::plan::{DeployOp, ImageSource, StepsOp, TagRule};
use keelway_model::{NodeId, Op, Plan, format_duration};
use std::fmt::Write as _;

/// The text of `keelway plan`: the stages in an order they may run in, aligned, ending with a newline.
pub fn render(plan: &Plan) -> String {
    let width = plan.nodes.iter().map(|n| n.name.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for node in &plan.nodes {
        let mark = if node.skip.is_some() { "-" } else { "+" };
        let _ = write!(out, "{mark} {:width$}  {:<6}  {}", node.name, node.op.kind(), what(plan, &node.op));
        if !node.needs.is_empty() {
            let names: Vec<&str> = node.needs.iter().map(|n| name(plan, *n)).collect();
            let _ = write!(out, "; needs {}", names.join(", "));
        }
        if let Some(timeout) = node.timeout {
            let _ = write!(out, "; at most {}", format_duration(timeout));
        }
        if let Some(skip) = &node.skip {
            let _ = write!(out, "\n  {:width$}  skipped: {skip}", "");
        }
        out.push('\n');
    }
    let skipped = plan.nodes.iter().filter(|n| n.skip.is_some()).count();
    let run = plan.nodes.len() - skipped;
    let stages = if run == 1 { "stage runs" } else { "stages run" };
    let _ = write!(out, "{run} {stages}");
    if skipped > 0 {
        let _ = write!(out, ", {skipped} skipped");
    }
    out.push('\n');
    out
}

fn name(plan: &Plan, id: NodeId) -> &str {
    plan.node(id).map_or("?", |n| &n.name)
}

fn what(plan: &Plan, op: &Op) -> String {
    match op {
        Op::Build(b) => {
            let target = b.target.as_ref().map(|t| format!(", target {t}")).unwrap_or_default();
            format!("{} in {}{target}", b.file, b.context)
        }
        Op::Steps(StepsOp { image, steps, .. }) => {
            let image = match image {
                ImageSource::Node(id) => format!("the image of {}", name(plan, *id)),
                ImageSource::Reference(r) => r.to_string(),
            };
            let names: Vec<&str> = steps.iter().map(|s| s.name.as_str()).collect();
            format!("{} in {image}", names.join(", "))
        }
        Op::Push(p) => {
            let tags: Vec<String> = p
                .tags
                .iter()
                .map(|t| match t {
                    TagRule::Commit => "the commit".into(),
                    TagRule::Branch => "the branch".into(),
                    TagRule::Literal(t) => t.to_string(),
                })
                .collect();
            format!("the image of {} to {} as {}", name(plan, p.image), p.to, tags.join(", "))
        }
        Op::Deploy(DeployOp { app, target_name, target, replicas, image, .. }) => {
            let hosts = target.hosts.len();
            format!(
                "{app}: {replicas} replica{} of {} on {target_name} ({hosts} host{})",
                if *replicas == 1 { "" } else { "s" },
                name(plan, *image),
                if hosts == 1 { "" } else { "s" }
            )
        }
        other => other.kind().to_owned(),
    }
}
