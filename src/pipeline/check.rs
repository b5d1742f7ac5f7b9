//! What one part of the file says about another: needs, cycles, images, targets.

use crate::codes;
use crate::hints;
use crate::schema::Targets;
use crate::stage::Draft;
use crate::walk::Walk;
use keelway_model::{Diagnostic, Span};
use std::collections::{BTreeMap, BTreeSet};

/// Reports everything that does not fit together.
pub(crate) fn all(w: &mut Walk<'_>, drafts: &[Draft], targets: &Targets) {
    let by_name: BTreeMap<&str, usize> =
        drafts.iter().enumerate().map(|(i, d)| (d.name.as_str(), i)).collect();
    let mut edges: Vec<Vec<(usize, Span)>> = vec![Vec::new(); drafts.len()];
    for (i, draft) in drafts.iter().enumerate() {
        for (name, span) in &draft.needs {
            match by_name.get(name.as_str()) {
                Some(&j) if i == j => {
                    let message = format!("the stage {name:?} needs itself");
                    w.error_hint(codes::SELF_NEED, *span, message, "remove it from `needs`");
                }
                Some(&j) => edges[i].push((j, *span)),
                None => unknown_stage(w, drafts, name, *span, "`needs` names"),
            }
        }
    }
    cycles(w, drafts, &edges);
    for (i, draft) in drafts.iter().enumerate() {
        if let Some((name, span)) = &draft.image {
            match by_name.get(name.as_str()) {
                Some(&j) => image(w, drafts, &edges, i, j, *span),
                None => unknown_stage(w, drafts, name, *span, "`image` names"),
            }
        }
        if let Some((name, span)) = draft.to.as_ref().filter(|(n, _)| !targets.iter().any(|(t, ..)| t == n)) {
            let d = Diagnostic::error(
                codes::UNKNOWN_TARGET,
                w.file,
                *span,
                format!("there is no target {name:?}"),
            );
            let known = targets.iter().map(|(n, ..)| n.as_str());
            let d = match targets.is_empty() {
                true => d.hint(format!("add it: targets: {{{name}: {{hosts: [{{ssh: root@HOST}}], balancer: {{listen: \":80\"}}}}}}")),
                false => hints::nearest(d, name, known, "the targets are"),
            };
            w.found.push(d);
        }
    }
    if w.found.has_errors() {
        // A misspelt name above is why a target looks unused.
        return;
    }
    for (name, span, _) in targets {
        if !drafts.iter().any(|d| d.to.as_ref().is_some_and(|(t, _)| t == name)) {
            let message = format!("no deploy names the target {name:?}");
            w.found.push(Diagnostic::warning(codes::UNUSED, w.file, *span, message));
        }
    }
}

fn unknown_stage(w: &mut Walk<'_>, drafts: &[Draft], name: &str, span: Span, who: &str) {
    let shown: String = name.chars().take(80).collect();
    let d = Diagnostic::error(
        codes::UNKNOWN_STAGE,
        w.file,
        span,
        format!("{who} the stage {shown:?}, which does not exist"),
    );
    let d = hints::nearest(d, name, drafts.iter().map(|d| d.name.as_str()), "the stages are");
    w.found.push(d);
}

/// The stage taken must make the right thing, and be a need.
fn image(
    w: &mut Walk<'_>,
    drafts: &[Draft],
    edges: &[Vec<(usize, Span)>],
    user: usize,
    maker: usize,
    span: Span,
) {
    let (user_draft, maker_draft) = (&drafts[user], &drafts[maker]);
    let name = &maker_draft.name;
    let wanted = if user_draft.kind == Some("deploy") { "push" } else { "build" };
    if let Some(kind) = maker_draft.kind.filter(|k| *k != wanted && user_draft.kind.is_some()) {
        let message = match wanted {
            "push" => format!("{name:?} is a {kind} stage, and only a pushed digest can be deployed"),
            _ => format!("{name:?} is a {kind} stage, and makes no image"),
        };
        let known: Vec<&str> =
            drafts.iter().filter(|d| d.kind == Some(wanted)).map(|d| d.name.as_str()).collect();
        let hint = match known[..] {
            [] => format!("add a {wanted} stage and name it here"),
            _ => format!("the {wanted} stages are {}", known.join(", ")),
        };
        let d = w.error(codes::STAGE_KIND, span, message);
        d.hints.push(hint);
        d.related.push((maker_draft.span, format!("a {kind} stage")));
        return;
    }
    if user == maker {
        w.error(codes::SELF_NEED, span, format!("the stage {name:?} takes its own image"));
        return;
    }
    if !reaches(edges, user, maker) {
        let message =
            format!("the stage {:?} takes the image of {name:?}, which it does not need", user_draft.name);
        let mut needs: Vec<&str> = user_draft.needs.iter().map(|(n, _)| n.as_str()).collect();
        needs.push(name);
        let d = w.error(codes::NOT_NEEDED, span, message);
        d.hints.push(format!("nothing is ordered implicitly: write needs: [{}]", needs.join(", ")));
        d.related.push((user_draft.span, "this stage".into()));
    }
}

fn reaches(edges: &[Vec<(usize, Span)>], from: usize, to: usize) -> bool {
    let mut seen = BTreeSet::from([from]);
    let mut todo = vec![from];
    while let Some(i) = todo.pop() {
        for &(j, _) in &edges[i] {
            if j == to {
                return true;
            }
            if seen.insert(j) {
                todo.push(j);
            }
        }
    }
    false
}

/// One error for each way back found by a search in depth: shows the whole circle.
fn cycles(w: &mut Walk<'_>, drafts: &[Draft], edges: &[Vec<(usize, Span)>]) {
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        No,
        Open,
        Done,
    }
    let mut seen = vec![Seen::No; drafts.len()];
    for start in 0..drafts.len() {
        if seen[start] != Seen::No {
            continue;
        }
        // Stage and which of its needs comes next: our own stack, since a file may have a chain of any length.
        let mut path: Vec<(usize, usize)> = vec![(start, 0)];
        seen[start] = Seen::Open;
        while let Some((at, next)) = path.last_mut() {
            let Some(&(to, span)) = edges[*at].get(*next) else {
                seen[*at] = Seen::Done;
                path.pop();
                continue;
            };
            *next += 1;
            match seen[to] {
                Seen::Done => {}
                Seen::No => {
                    seen[to] = Seen::Open;
                    path.push((to, 0));
                }
                Seen::Open => {
                    let begin = path.iter().position(|(i, _)| *i == to).unwrap_or(0);
                    let mut names: Vec<&str> =
                        path[begin..].iter().map(|(i, _)| drafts[*i].name.as_str()).collect();
                    names.push(&drafts[to].name);
                    let message = format!("stages need each other in a circle: {}", names.join(" needs "));
                    w.error_hint(codes::CYCLE, span, message, "remove one of these needs");
                }
            }
        }
    }
}
