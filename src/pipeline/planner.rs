//! A definition and a trigger to a plan: which stages there are, in which order, and why each runs or not.
//!
//! Pure, and total: a checked definition always gives a valid plan; only a selection can be wrong.

use crate::codes;
use crate::definition::{Definition, Kind, Stage, StageImage};
use crate::hints;
use crate::trigger::{Selection, Trigger, branch_mismatch, words};
use keelway_model::plan::{Anew, BuildOp, DeployOp, ImageSource, PushOp, StepsOp};
use keelway_model::{Diagnostic, Diagnostics, NodeId, Op, Plan, Platform, SkipReason, SourceText, Span};
use std::collections::{BTreeMap, BTreeSet};

/// The plan of a trigger.
///
/// Every stage of the file is a node, so that a reader sees what does not run and why. Nodes stand in an order
/// that respects `needs` and is otherwise the order of the file. A stage that is not selected, whose `when` does
/// not match, that would push or deploy a dirty tree, or that needs a stage that is skipped, carries its
/// [`SkipReason`]. Selecting a stage selects what it needs.
///
/// # Errors
/// A selected name that is no stage; the diagnostics point into the list of names.
pub fn plan(definition: &Definition, trigger: &Trigger, selection: &Selection) -> Result<Plan, Diagnostics> {
    let selected = select(definition, selection)?;
    let mut plan = Plan::default();
    let mut ids: BTreeMap<&str, NodeId> = BTreeMap::new();
    for stage in in_order(definition) {
        let name = stage.name.as_str();
        let mut needs: Vec<NodeId> =
            stage.needs.iter().filter_map(|n| ids.get(n.as_str()).copied()).collect();
        let image = image_of(&stage.kind).and_then(|n| ids.get(n).copied());
        if let Some(image) = image.filter(|i| !needs.contains(i)) {
            needs.push(image);
        }
        let Some(op) = op(definition, stage, image) else { continue };
        let skipped_need =
            needs.iter().find_map(|n| plan.node(*n).filter(|n| n.skip.is_some()).map(|n| n.name.clone()));
        let skip = if !selected.contains(name) {
            Some(SkipReason::NotSelected)
        } else if trigger.dirty && matches!(stage.kind, Kind::Push(_) | Kind::Deploy(_)) {
            Some(SkipReason::DirtyTree)
        } else if let Some(text) = mismatch(stage, trigger) {
            Some(SkipReason::When { text })
        } else {
            skipped_need.map(|name| SkipReason::Needs { name })
        };
        let id = plan.add(name, needs, op);
        let node = &mut plan.nodes[id.index()];
        node.timeout = stage.timeout;
        node.skip = skip;
        ids.insert(name, id);
    }
    debug_assert!(plan.check().is_ok(), "a checked definition has no cycle");
    Ok(plan)
}

/// The stage whose output a stage takes as its image.
pub(crate) fn image_of(kind: &Kind) -> Option<&str> {
    match kind {
        Kind::Steps(s) => match &s.image {
            StageImage::Stage(name) => Some(name.as_str()),
            StageImage::Reference(_) => None,
        },
        Kind::Push(p) => Some(p.image.as_str()),
        Kind::Deploy(d) => Some(d.image.as_str()),
        Kind::Build(_) => None,
    }
}

fn op(definition: &Definition, stage: &Stage, image: Option<NodeId>) -> Option<Op> {
    Some(match &stage.kind {
        Kind::Build(b) => Op::Build(BuildOp {
            context: b.context.clone(),
            file: b.file.clone(),
            target: b.target.clone(),
            args: b.args.clone(),
            platform: Platform::host(),
            limits: b.limits.clone(),
            network: b.network,
            runtime: b.runtime.clone(),
            labels: BTreeMap::new(),
            anew: Anew::Nothing,
        }),
        Kind::Steps(s) => Op::Steps(StepsOp {
            stage: stage.name.clone(),
            image: match &s.image {
                StageImage::Stage(_) => ImageSource::Node(image?),
                StageImage::Reference(r) => ImageSource::Reference(r.clone()),
            },
            env: merged(&definition.env, &s.env),
            steps: s.steps.clone(),
            limits: s.limits.clone(),
            network: s.network,
            runtime: s.runtime.clone(),
        }),
        Kind::Push(p) => Op::Push(PushOp { image: image?, to: p.to.clone(), tags: p.tags.clone() }),
        Kind::Deploy(d) => Op::Deploy(DeployOp {
            image: image?,
            app: d.app.clone(),
            target_name: d.to.clone(),
            target: definition.targets.get(&d.to)?.clone(),
            replicas: d.replicas,
            port: d.port,
            env: d.env.clone(),
            health: d.health.clone(),
            drain: d.drain,
            stop_grace: d.stop_grace,
            limits: d.limits.clone(),
        }),
    })
}

/// `over` wins; a name keeps the place where it first stands.
fn merged(base: &[(String, String)], over: &[(String, String)]) -> Vec<(String, String)> {
    let mut out = base.to_vec();
    for (name, value) in over {
        match out.iter_mut().find(|(n, _)| n == name) {
            Some(have) => have.1.clone_from(value),
            None => out.push((name.clone(), value.clone())),
        }
    }
    out
}

fn mismatch(stage: &Stage, trigger: &Trigger) -> Option<String> {
    let when = &stage.when;
    if !when.event.is_empty() && !when.event.contains(&trigger.event) {
        let wanted: Vec<&str> = when.event.iter().map(|e| e.word()).collect();
        return Some(format!("the event is {}, not {}", trigger.event, words(&wanted)));
    }
    branch_mismatch(&when.branch, trigger)
}

/// The names selected, with everything they need.
fn select<'a>(
    definition: &'a Definition,
    selection: &'a Selection,
) -> Result<BTreeSet<&'a str>, Diagnostics> {
    if selection.stages.is_empty() {
        return Ok(definition.stages.iter().map(|s| s.name.as_str()).collect());
    }
    let source = SourceText::new("the command line", selection.stages.join(" "));
    let mut found = Diagnostics::of(source.clone());
    let mut at = 0;
    for name in &selection.stages {
        let span = Span::new(at, at + name.len());
        at = span.end + 1;
        if definition.stage(name).is_none() {
            let known = definition.stages.iter().map(|s| s.name.as_str());
            found.push(hints::nearest(
                Diagnostic::error(
                    codes::UNKNOWN_STAGE,
                    &source.name,
                    span,
                    format!("there is no stage {name:?}"),
                ),
                name,
                known,
                "the stages are",
            ));
        }
    }
    if found.has_errors() {
        return Err(found);
    }
    let mut todo: Vec<&str> = selection.stages.iter().map(String::as_str).collect();
    let mut out = BTreeSet::new();
    while let Some(name) = todo.pop() {
        if let Some(stage) = definition.stage(name).filter(|_| out.insert(name)) {
            todo.extend(stage.needs.iter().map(|n| n.as_str()));
            todo.extend(image_of(&stage.kind));
        }
    }
    Ok(out)
}

/// The stages, what is needed first, otherwise in the order of the file.
fn in_order(definition: &Definition) -> Vec<&Stage> {
    let mut done: BTreeSet<&str> = BTreeSet::new();
    let mut out = Vec::with_capacity(definition.stages.len());
    while let Some(next) = definition.stages.iter().find(|s| {
        !done.contains(s.name.as_str())
            && s.needs.iter().all(|n| done.contains(n.as_str()))
            && image_of(&s.kind).is_none_or(|n| done.contains(n))
    }) {
        done.insert(next.name.as_str());
        out.push(next);
    }
    out
}
