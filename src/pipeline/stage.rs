//! One stage: its conditions, its kind, and what the kind takes.

use crate::codes;
use crate::definition::{Build, Deploy, Kind, Push, Stage, StageImage, Steps, When};
use crate::hints;
use crate::limits::{Whose, limits};
use crate::schema::{machine_name, patterns};
use crate::trigger::Event;
use crate::walk::{Fields, Place, Walk, head};
use crate::yaml::{Entry, Node, Value};
use keelway_model::ids::AppName;
use keelway_model::plan::{Health, Network, Step, TagRule};
use keelway_model::{Diagnostic, ImageRef, Repository, Span, StageName, Tag};
use std::collections::BTreeMap;
use std::time::Duration;

const STAGE: Place = Place {
    name: "a stage",
    known: &[
        "needs",
        "when",
        "timeout",
        "limits",
        "network",
        "isolation",
        "env",
        "image",
        "build",
        "steps",
        "push",
        "deploy",
    ],
};
const KINDS: [&str; 4] = ["build", "steps", "push", "deploy"];
const WHEN: Place = Place { name: "a condition", known: &["branch", "event"] };
const ISOLATION: Place = Place { name: "isolation", known: &["runtime"] };
const BUILD: Place = Place { name: "a build", known: &["context", "file", "target", "args"] };
const STEP: Place = Place { name: "a step", known: &["name", "run", "env"] };
const IMAGE: Place = Place { name: "an image", known: &["stage"] };
const PUSH: Place = Place { name: "a push", known: &["image", "to", "tags"] };
const DEPLOY: Place = Place {
    name: "a deploy",
    known: &["image", "to", "app", "replicas", "port", "health", "drain", "stop_grace", "env", "limits"],
};
const HEALTH: Place = Place {
    name: "a health check",
    known: &["http", "interval", "timeout", "healthy", "unhealthy", "deadline"],
};

/// Every kind of map that this file reads, for the check of the documentation.
#[cfg(test)]
pub(crate) const PLACES: &[&Place] = &[
    &STAGE,
    &WHEN,
    &ISOLATION,
    &crate::limits::STEPS,
    &crate::limits::REPLICA,
    &crate::limits::IO,
    &BUILD,
    &STEP,
    &IMAGE,
    &PUSH,
    &DEPLOY,
    &HEALTH,
];

/// Replicas of one app, at most.
const MAX_REPLICAS: u32 = 1000;
/// Steps of one stage, at most.
const MAX_STEPS: usize = 200;

/// What could be read of a stage: enough to compare stages with each other even where one is broken.
pub(crate) struct Draft {
    pub(crate) name: String,
    pub(crate) span: Span,
    /// `needs` as written.
    pub(crate) needs: Vec<(String, Span)>,
    /// The stage whose image it takes.
    pub(crate) image: Option<(String, Span)>,
    /// The target of a deploy.
    pub(crate) to: Option<(String, Span)>,
    /// Its kind, where it has exactly one.
    pub(crate) kind: Option<&'static str>,
    /// The stage, where all of it could be read.
    pub(crate) stage: Option<Stage>,
}

/// Reads one entry of `stages`.
pub(crate) fn read(w: &mut Walk<'_>, entry: &Entry) -> Draft {
    let span = entry.key_span;
    let mut draft = Draft {
        name: entry.key.clone(),
        span,
        needs: Vec::new(),
        image: None,
        to: None,
        kind: None,
        stage: None,
    };
    let name: Option<StageName> = match entry.key.parse() {
        Ok(name) => Some(name),
        Err(e) => {
            w.error(codes::BAD_VALUE, span, format!("{e}"));
            None
        }
    };
    let hint = "a stage is a map with one of build, steps, push, deploy";
    let Some(fields) = w.fields(&entry.value, span, &STAGE, Some(hint)) else { return draft };
    let needs = fields.value("needs").map_or(Some(Vec::new()), |n| needs(w, n, &mut draft));
    let when = fields.value("when").map_or(Some(When::default()), |n| when(w, n));
    let timeout = fields.value("timeout").map_or(Some(None), |n| w.duration(n, "`timeout`").map(Some));
    let kind = kind(w, fields, &mut draft);
    draft.stage =
        (|| Some(Stage { name: name?, span, needs: needs?, when: when?, timeout: timeout?, kind: kind? }))();
    draft
}

fn needs(w: &mut Walk<'_>, node: &Node, draft: &mut Draft) -> Option<Vec<StageName>> {
    if matches!(&node.value, Value::List(l) if l.is_empty()) {
        return Some(Vec::new());
    }
    let mut out = Vec::new();
    let mut ok = true;
    for (text, span) in w.texts(node, "`needs`")? {
        if let Some((_, first)) = draft.needs.iter().find(|(n, _)| n == text) {
            let d = w.error(codes::REPEATED, span, format!("{text:?} stands twice in `needs`"));
            d.related.push((*first, "it stands here first".into()));
            ok = false;
            continue;
        }
        draft.needs.push((text.to_owned(), span));
        // A name that is no name is not a stage either, and reported as such.
        match text.parse() {
            Ok(name) => out.push(name),
            Err(_) => ok = false,
        }
    }
    ok.then_some(out)
}

fn when(w: &mut Walk<'_>, node: &Node) -> Option<When> {
    let fields = w.fields(node, head(node), &WHEN, Some("write when: {branch: main}"))?;
    let branch = fields.value("branch").map_or(Some(Vec::new()), |n| patterns(w, n, "`branch`"));
    let event = fields.value("event").map_or(Some(Vec::new()), |n| {
        let mut ok = true;
        let mut out = Vec::new();
        for (text, span) in w.texts(n, "`event`")? {
            match Event::from_word(text) {
                Some(event) => out.push(event),
                None => {
                    let d = keelway_model::Diagnostic::error(
                        codes::BAD_VALUE,
                        w.file,
                        span,
                        format!("{text:?} is not an event"),
                    );
                    let known = Event::ALL.iter().map(|e| e.word());
                    w.found.push(hints::nearest(d, text, known, "the events are"));
                    ok = false;
                }
            }
        }
        ok.then_some(out)
    });
    Some(When { branch: branch?, event: event? })
}

fn kind(w: &mut Walk<'_>, fields: Fields<'_>, draft: &mut Draft) -> Option<Kind> {
    let have: Vec<(&'static str, &Entry)> =
        KINDS.iter().filter_map(|k| fields.get(k).map(|e| (*k, e))).collect();
    let misplaced = misplaced(w, fields, &have);
    let (word, entry) = match have[..] {
        [one] => one,
        [] => {
            let message =
                format!("the stage {:?} does nothing: it has none of build, steps, push, deploy", draft.name);
            let hint = "give it one, for example steps: [{name: test, run: make test}] with an image";
            w.error_hint(codes::KIND, draft.span, message, hint);
            return None;
        }
        [first, second, ..] => {
            let message = format!("the stage {:?} has both {} and {}", draft.name, first.0, second.0);
            let d = w.error(codes::KIND, second.1.key_span, message);
            d.related.push((first.1.key_span, "the first one".into()));
            d.hints.push(format!("make two stages, the second with needs: [{}]", draft.name));
            // Read all the same, for what else is wrong.
            for (word, entry) in have {
                one_kind(
                    w,
                    fields,
                    word,
                    entry,
                    &mut Draft {
                        needs: Vec::new(),
                        image: None,
                        to: None,
                        stage: None,
                        name: String::new(),
                        ..*draft
                    },
                );
            }
            return None;
        }
    };
    draft.kind = Some(word);
    one_kind(w, fields, word, entry, draft).filter(|_| !misplaced)
}

fn one_kind(
    w: &mut Walk<'_>,
    fields: Fields<'_>,
    word: &str,
    entry: &Entry,
    draft: &mut Draft,
) -> Option<Kind> {
    match word {
        "build" => build(w, fields, entry).map(Kind::Build),
        "steps" => steps(w, fields, entry, draft).map(Kind::Steps),
        "push" => push(w, entry, draft).map(Kind::Push),
        _ => deploy(w, entry, draft).map(Kind::Deploy),
    }
}

/// Keys of the stage that its kind does not take.
fn misplaced(w: &mut Walk<'_>, fields: Fields<'_>, have: &[(&str, &Entry)]) -> bool {
    let [(kind, _)] = have else { return false };
    let table: [(&str, &[&str], &str); 5] = [
        ("image", &["steps"], "only steps run in an image"),
        ("network", &["steps", "build"], "only steps and the RUN of a build have a network"),
        ("env", &["steps"], "a build takes `args`, a deploy has its own `env`"),
        (
            "isolation",
            &["steps", "build"],
            "only steps and the RUN of a build are isolated by another runtime",
        ),
        ("limits", &["steps", "build"], "a deploy has its own `limits`, one for each replica"),
    ];
    let mut any = false;
    for (key, kinds, why) in table {
        if let Some(entry) = fields.get(key).filter(|_| !kinds.contains(kind)) {
            let message = format!("a {kind} stage has no `{key}`");
            w.error_hint(codes::MISPLACED_KEY, entry.key_span, message, why);
            any = true;
        }
    }
    any
}

/// `{runtime: NAME}`.
fn isolation(w: &mut Walk<'_>, fields: Fields<'_>) -> Option<Option<String>> {
    let Some(entry) = fields.get("isolation") else { return Some(None) };
    let example = "isolation: {runtime: runsc}";
    let f = w.fields(&entry.value, entry.key_span, &ISOLATION, Some(example))?;
    let Some(node) = f.value("runtime") else {
        w.missing(entry.key_span, "the isolation", "runtime", example);
        return None;
    };
    machine_name(w, node, "`runtime`", "--runtime NAME=PATH").map(Some)
}

/// A path inside the repository.
fn path(w: &mut Walk<'_>, node: &Node, what: &str) -> Option<String> {
    let text = w.word(node, what)?;
    let why = if text.starts_with('/') {
        "starts with /"
    } else if text.split('/').any(|p| p == "..") {
        "leaves its folder with .."
    } else if text.len() > 4096 {
        "is too long"
    } else {
        return Some(text.to_owned());
    };
    let shown: String = text.chars().take(80).collect();
    w.error_hint(
        codes::BAD_VALUE,
        node.span,
        format!("{what} {shown:?} {why}"),
        "paths are relative and stay inside the repository",
    );
    None
}

fn build(w: &mut Walk<'_>, fields: Fields<'_>, entry: &Entry) -> Option<Build> {
    let limits = limits(w, fields, Whose::Steps);
    let runtime = isolation(w, fields);
    let network = network(w, fields);
    if let (Some(Network::Host), Some(node)) = (network, fields.value("network")) {
        let message = "a build is given the machine's network by the command line alone";
        let hint = "write RUN --network=host where it is needed, and run with --allow host-network";
        w.error_hint(codes::BAD_VALUE, node.span, message, hint);
        return None;
    }
    let hint = "write build: {context: .}";
    let f = w.fields(&entry.value, entry.key_span, &BUILD, Some(hint))?;
    let context = f.value("context").map_or(Some(".".into()), |n| path(w, n, "`context`"));
    let file = f.value("file").map_or(Some("Dockerfile".into()), |n| path(w, n, "`file`"));
    let target = f.value("target").map_or(Some(None), |n| w.word(n, "`target`").map(|t| Some(t.to_owned())));
    let target_span = f.value("target").map(|n| n.span);
    let args = f.value("args").map_or(Some(Vec::new()), |n| w.env(n, "`args`"));
    let args: BTreeMap<String, String> = args?.into_iter().collect();
    let (limits, network, runtime) = (limits?, network?, runtime?);
    Some(Build {
        context: context?,
        file: file?,
        target: target?,
        target_span,
        args,
        limits,
        network,
        runtime,
    })
}

fn steps(w: &mut Walk<'_>, fields: Fields<'_>, entry: &Entry, draft: &mut Draft) -> Option<Steps> {
    let limits = limits(w, fields, Whose::Steps);
    let runtime = isolation(w, fields);
    let env = fields.value("env").map_or(Some(Vec::new()), |n| w.env(n, "`env`"));
    let network = network(w, fields);
    if let (Some(Network::Host), Some(node)) = (network, fields.value("network")) {
        let message = "these steps share this machine's network and reach its loopback";
        let d = Diagnostic::warning(codes::HOST_NETWORK, w.file, node.span, message);
        w.found.push(d.hint("`private`, the default, reaches out without that"));
    }
    let image = match fields.value("image") {
        Some(n) => image(w, n, draft),
        None => {
            w.missing(
                draft.span,
                "a stage with steps",
                "image",
                "image: busybox:1.36, or image: {stage: NAME}",
            );
            None
        }
    };
    let steps = step_list(w, &entry.value);
    let (limits, network, runtime) = (limits?, network?, runtime?);
    Some(Steps { image: image?, env: env?, limits, steps: steps?, network, runtime })
}

fn network(w: &mut Walk<'_>, fields: Fields<'_>) -> Option<Network> {
    let Some(n) = fields.value("network") else { return Some(Network::default()) };
    match w.text(n, "`network`")? {
        "none" => Some(Network::None),
        "private" => Some(Network::Private),
        "host" => Some(Network::Host),
        other => {
            let shown: String = other.chars().take(40).collect();
            let message = format!("`network` is none, private or host, not {shown:?}");
            w.error_hint(codes::BAD_VALUE, n.span, message, "private is the default");
            None
        }
    }
}

fn image(w: &mut Walk<'_>, node: &Node, draft: &mut Draft) -> Option<StageImage> {
    if matches!(node.value, Value::Text { .. }) {
        return w.parsed::<ImageRef>(node, "`image`").map(StageImage::Reference);
    }
    stage_image(w, node, draft).map(StageImage::Stage)
}

/// `{stage: NAME}`.
fn stage_image(w: &mut Walk<'_>, node: &Node, draft: &mut Draft) -> Option<StageName> {
    let f = w.fields(node, head(node), &IMAGE, Some("write image: {stage: NAME}"))?;
    let Some(n) = f.value("stage") else {
        w.missing(head(node), "the image", "stage", "{stage: NAME}");
        return None;
    };
    let text = w.word(n, "`stage`")?;
    draft.image = Some((text.to_owned(), n.span));
    text.parse().ok()
}

fn step_list(w: &mut Walk<'_>, node: &Node) -> Option<Vec<Step>> {
    let example = "write steps: [{name: test, run: make test}]";
    let items = w.list(node, "`steps`", Some(example))?;
    if items.is_empty() || items.len() > MAX_STEPS {
        let message = format!("a stage has 1 to {MAX_STEPS} steps, and here are {}", items.len());
        w.error_hint(codes::BAD_VALUE, head(node), message, example);
        return None;
    }
    let mut seen: BTreeMap<String, Span> = BTreeMap::new();
    let mut out = Vec::new();
    for (i, item) in items.iter().enumerate() {
        let Some(f) = w.fields(item, head(item), &STEP, Some("write {name: test, run: make test}")) else {
            continue;
        };
        let name = match f.value("name") {
            Some(n) => w.word(n, "`name`").map(|t| (t.to_owned(), n.span)),
            None => Some((format!("step {}", i + 1), head(item))),
        };
        let run = match f.value("run") {
            Some(n) if matches!(n.value, Value::List(_)) => {
                w.error_hint(
                    codes::WRONG_TYPE,
                    head(n),
                    "`run` is a text, and this is a list",
                    "write several lines after `run: |`",
                );
                None
            }
            Some(n) => w.word(n, "`run`").map(str::to_owned),
            None => {
                w.missing(head(item), "the step", "run", "run: make test");
                None
            }
        };
        let env = f.value("env").map_or(Some(Vec::new()), |n| w.env(n, "`env`"));
        if let Some((name, span)) = &name
            && let Some(first) = seen.insert(name.clone(), *span)
        {
            let shown: String = name.chars().take(60).collect();
            let d = w.error(codes::REPEATED, *span, format!("two steps are named {shown:?}"));
            d.related.push((first, "the first one".into()));
        }
        if let (Some((name, _)), Some(run), Some(env)) = (name, run, env) {
            out.push(Step { name, run, env });
        }
    }
    (out.len() == items.len()).then_some(out)
}

fn push(w: &mut Walk<'_>, entry: &Entry, draft: &mut Draft) -> Option<Push> {
    let example = "write push: {image: {stage: NAME}, to: registry.example.com/name, tags: [commit]}";
    let f = w.fields(&entry.value, entry.key_span, &PUSH, Some(example))?;
    let image = own_image(w, f, draft, "a push", "only an image that this run built can be pushed");
    let to = match f.value("to") {
        Some(n) => repository(w, n),
        None => {
            w.missing(entry.key_span, "the push", "to", "to: registry.example.com/shop/web");
            None
        }
    };
    let tags = f.value("tags").map_or(Some(vec![TagRule::Commit]), |n| tags(w, n));
    Some(Push { image: image?, to: to?, tags: tags? })
}

fn own_image(w: &mut Walk<'_>, f: Fields<'_>, draft: &mut Draft, what: &str, why: &str) -> Option<StageName> {
    match f.value("image") {
        Some(n) if matches!(n.value, Value::Text { .. }) => {
            w.error_hint(codes::WRONG_TYPE, n.span, why.to_owned(), "write image: {stage: NAME}");
            None
        }
        Some(n) => stage_image(w, n, draft),
        None => {
            w.missing(f.at, what, "image", "image: {stage: NAME}");
            None
        }
    }
}

fn repository(w: &mut Walk<'_>, node: &Node) -> Option<Repository> {
    let text = w.word(node, "`to`")?;
    if let Ok(to) = text.parse() {
        return Some(to);
    }
    let shown: String = text.chars().take(120).collect();
    let (message, hint) = match text.parse::<ImageRef>() {
        Ok(_) => {
            (format!("`to` {shown:?} has a tag or digest"), "tags go under `tags`: tags: [commit, branch]")
        }
        Err(_) => (
            format!("{shown:?} is not a repository"),
            "write registry.example.com/name: lower case, parts of a-z, 0-9, '.', '_' and '-'",
        ),
    };
    w.error_hint(codes::BAD_VALUE, node.span, message, hint);
    None
}

fn tags(w: &mut Walk<'_>, node: &Node) -> Option<Vec<TagRule>> {
    let mut ok = true;
    let mut out: Vec<TagRule> = Vec::new();
    for (text, span) in w.texts(node, "`tags`")? {
        let rule = match text {
            "commit" => TagRule::Commit,
            "branch" => TagRule::Branch,
            literal => match literal.parse::<Tag>() {
                Ok(tag) => TagRule::Literal(tag),
                Err(e) => {
                    let hint =
                        "`commit` is the commit's id, `branch` the branch, anything else is the tag itself";
                    w.error_hint(codes::BAD_VALUE, span, e.to_string(), hint);
                    ok = false;
                    continue;
                }
            },
        };
        if out.contains(&rule) {
            w.error(codes::REPEATED, span, format!("the tag {text:?} stands twice"));
            ok = false;
        }
        out.push(rule);
    }
    ok.then_some(out)
}

fn deploy(w: &mut Walk<'_>, entry: &Entry, draft: &mut Draft) -> Option<Deploy> {
    let f = w.fields(&entry.value, entry.key_span, &DEPLOY, None)?;
    let at = entry.key_span;
    let image = own_image(w, f, draft, "a deploy", "only a digest that this run pushed can be deployed");
    let to = match f.value("to") {
        Some(n) => w.word(n, "`to`").map(|t| {
            draft.to = Some((t.to_owned(), n.span));
            t.to_owned()
        }),
        None => {
            w.missing(at, "the deploy", "to", "to: production, a name under `targets`");
            None
        }
    };
    let app: Option<AppName> = match f.value("app") {
        Some(n) => w.parsed(n, "`app`"),
        None => {
            w.missing(at, "the deploy", "app", "app: web, the name on the hosts");
            None
        }
    };
    let replicas = f.value("replicas").map_or(Some(1), |n| w.number(n, "`replicas`", 1, MAX_REPLICAS));
    let port = match f.value("port") {
        Some(n) => w.number(n, "`port`", 1, 65_535).and_then(|p| u16::try_from(p).ok()),
        None => {
            w.missing(at, "the deploy", "port", "port: 8080, where the app listens");
            None
        }
    };
    let health = match f.get("health") {
        Some(e) => health(w, e),
        None => {
            w.missing(at, "the deploy", "health", "health: {http: /healthz}");
            None
        }
    };
    let seconds = |s| Some(Duration::from_secs(s));
    let drain = f.value("drain").map_or(seconds(30), |n| w.duration(n, "`drain`"));
    let stop_grace = f.value("stop_grace").map_or(seconds(10), |n| w.duration(n, "`stop_grace`"));
    let env = f.value("env").map_or(Some(Vec::new()), |n| w.env(n, "`env`"));
    let limits = limits(w, f, Whose::Replica);
    Some(Deploy {
        image: image?,
        to: to?,
        app: app?,
        replicas: replicas?,
        port: port?,
        health: health?,
        drain: drain?,
        stop_grace: stop_grace?,
        env: env?,
        limits: limits?,
    })
}

fn health(w: &mut Walk<'_>, entry: &Entry) -> Option<Health> {
    let f = w.fields(&entry.value, entry.key_span, &HEALTH, Some("write health: {http: /healthz}"))?;
    let http = match f.value("http") {
        Some(n) => w.word(n, "`http`").and_then(|t| {
            let graphic = t.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
            if t.starts_with('/') && graphic && t.len() <= 2048 {
                return Some(t.to_owned());
            }
            let shown: String = t.chars().take(80).collect();
            let message = format!("`http` is a path that starts with /, not {shown:?}");
            w.error_hint(
                codes::BAD_VALUE,
                n.span,
                message,
                "write http: /healthz; host and port are the replica's own",
            );
            None
        }),
        None => {
            w.missing(entry.key_span, "the health check", "http", "http: /healthz");
            None
        }
    };
    let mut time = |key: &str, default: u64| {
        f.value(key).map_or(Some(Duration::from_secs(default)), |n| w.duration(n, &format!("`{key}`")))
    };
    let (interval, timeout, deadline) = (time("interval", 1), time("timeout", 5), time("deadline", 120));
    let mut count = |key: &str, default| {
        f.value(key).map_or(Some(default), |n| w.number(n, &format!("`{key}`"), 1, 1000))
    };
    let (healthy, unhealthy) = (count("healthy", 2), count("unhealthy", 3));
    let health = Health {
        http: http?,
        interval: interval?,
        timeout: timeout?,
        healthy: healthy?,
        unhealthy: unhealthy?,
        deadline: deadline?,
    };
    // The first check comes at once, the last one after healthy - 1 intervals.
    let least = health.interval.saturating_mul(health.healthy - 1);
    if least >= health.deadline {
        let n = f.value("deadline").map_or(entry.key_span, |n| n.span);
        let message = format!(
            "{} good checks, one every {}, cannot be had within the deadline of {}",
            health.healthy,
            keelway_model::format_duration(health.interval),
            keelway_model::format_duration(health.deadline)
        );
        w.error_hint(codes::BAD_VALUE, n, message, "raise `deadline`, or lower `interval` or `healthy`");
        return None;
    }
    Some(health)
}
