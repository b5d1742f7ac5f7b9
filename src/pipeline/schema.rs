//! The tree of nodes to a [`Definition`]: which keys there are, what each takes, and every problem at once.
//!
//! This file has the pipeline itself: version, events, targets, registries. Stages are read in `stage`, and what one
//! part says about another is compared in `check`, after everything that could be read was read.

use crate::check;
use crate::codes;
use crate::definition::{Definition, Filter, On, Pattern, RegistryRule};
use crate::stage::{self, Draft};
use crate::trigger::Event;
use crate::walk::{Fields, Place, Walk, head};
use crate::yaml::{Entry, Node, Value};
use keelway_model::plan::{Target, TargetHost};
use keelway_model::{Diagnostics, Repository, SourceText, Span};
use std::collections::BTreeMap;

/// Most stages of one file.
pub const MAX_STAGES: usize = 500;
/// Most hosts of one target.
pub const MAX_HOSTS: usize = 200;

const PIPELINE: Place =
    Place { name: "the pipeline", known: &["version", "on", "env", "stages", "targets", "registries"] };
const EVENTS: Place =
    Place { name: "`on`", known: &["push", "pull_request", "tag", "schedule", "manual", "api", "deploy"] };
const BRANCH_EVENT: Place = Place { name: "an event", known: &["branches"] };
const OTHER_EVENT: Place = Place { name: "an event", known: &[] };
const TARGET: Place = Place { name: "a target", known: &["hosts", "ssh_config", "balancer"] };
const HOST: Place = Place { name: "a host", known: &["ssh"] };
const BALANCER: Place = Place { name: "a balancer", known: &["listen"] };
const REGISTRY: Place = Place { name: "a registry", known: &["ca", "http"] };

/// Every kind of map that this file reads, for the check of the documentation.
#[cfg(test)]
pub(crate) const PLACES: &[&Place] =
    &[&PIPELINE, &EVENTS, &BRANCH_EVENT, &TARGET, &HOST, &BALANCER, &REGISTRY];

/// Reads the root node; `None` where something needed could not be read (and was reported).
pub(crate) fn definition(source: &SourceText, root: &Node, found: &mut Diagnostics) -> Option<Definition> {
    let mut w = Walk { file: &source.name, found };
    let at = Span::new(root.span.start, root.span.start + 1);
    let hint = "the smallest pipeline has `version: 1` and one stage under `stages`";
    let fields = w.fields(root, at, &PIPELINE, Some(hint))?;
    version(&mut w, fields);
    let on = fields.get("on").map_or(Some(On::default()), |e| events(&mut w, e));
    let env = fields.value("env").map_or(Some(Vec::new()), |n| w.env(n, "`env`"));
    let targets = targets(&mut w, fields);
    let registries = fields.value("registries").map_or(Some(BTreeMap::new()), |n| registries(&mut w, n));
    let drafts = match fields.get("stages") {
        Some(entry) => stages(&mut w, entry)?,
        None => {
            w.missing(at, "the pipeline", "stages", "stages: {image: {build: {context: .}}}");
            return None;
        }
    };
    check::all(&mut w, &drafts, &targets);
    let stages = drafts.into_iter().map(|d| d.stage).collect::<Option<Vec<_>>>()?;
    let targets =
        targets.into_iter().map(|(n, _, t)| t.map(|t| (n, t))).collect::<Option<BTreeMap<_, _>>>()?;
    Some(Definition {
        source: source.clone(),
        on: on?,
        env: env?,
        stages,
        targets,
        registries: registries?,
        warnings: Diagnostics::default(),
    })
}

fn version(w: &mut Walk<'_>, fields: Fields<'_>) {
    let Some(node) = fields.value("version") else {
        w.missing(fields.at, "the pipeline", "version", "version: 1 as the first line");
        return;
    };
    match &node.value {
        Value::Text { text, .. } if text == "1" => {}
        Value::Text { text, .. } => {
            let shown: String = text.chars().take(40).collect();
            let message = format!("version {shown:?} is not known: this version of Keelway reads version 1");
            w.error_hint(codes::VERSION, node.span, message, "write `version: 1`, or use a newer Keelway");
        }
        _ => w.error_hint(codes::VERSION, head(node), "`version` is a number", "write `version: 1`"),
    }
}

fn events(w: &mut Walk<'_>, entry: &Entry) -> Option<On> {
    let hint = "write a map, for example on: {push: {branches: [main]}}";
    let fields = w.fields(&entry.value, entry.key_span, &EVENTS, Some(hint))?;
    let mut ok = true;
    let mut events = BTreeMap::new();
    for event in Event::ALL {
        let Some(entry) = fields.get(event.word()) else { continue };
        let place =
            if matches!(event, Event::Push | Event::PullRequest) { &BRANCH_EVENT } else { &OTHER_EVENT };
        let filter = match &entry.value.value {
            Value::Empty => Some(Filter::default()),
            _ => filter(w, &entry.value, entry.key_span, place),
        };
        match filter {
            Some(filter) => _ = events.insert(event, filter),
            None => ok = false,
        }
    }
    if events.is_empty() && ok && matches!(&entry.value.value, Value::Map(m) if m.is_empty()) {
        w.error_hint(
            codes::BAD_VALUE,
            head(&entry.value),
            "`on` names no event, so nothing could start it",
            hint,
        );
        ok = false;
    }
    ok.then_some(On { events: Some(events) })
}

fn filter(w: &mut Walk<'_>, node: &Node, at: Span, place: &Place) -> Option<Filter> {
    let fields = w.fields(node, at, place, Some("write, for example, {branches: [main]}"))?;
    let branches = fields.value("branches").map_or(Some(Vec::new()), |n| patterns(w, n, "`branches`"))?;
    Some(Filter { branches })
}

/// Names with `*`.
pub(crate) fn patterns(w: &mut Walk<'_>, node: &Node, what: &str) -> Option<Vec<Pattern>> {
    let mut ok = true;
    let mut out = Vec::new();
    for (text, span) in w.texts(node, what)? {
        if text.starts_with('!') || text.contains(['?', '[', ']', '\\', '^', '~', ':', ' ']) {
            let message = format!("{text:?} is not a branch or a pattern of branches");
            w.error_hint(
                codes::BAD_VALUE,
                span,
                message,
                "a pattern is a name in which * stands for anything",
            );
            ok = false;
        }
        out.push(Pattern(text.to_owned()));
    }
    ok.then_some(out)
}

fn stages(w: &mut Walk<'_>, entry: &Entry) -> Option<Vec<Draft>> {
    let hint = "write a map from name to stage; the order comes from `needs`, so there is no list of stages";
    let entries = w.names(&entry.value, "`stages`", Some(hint))?;
    if entries.is_empty() {
        w.error_hint(
            codes::BAD_VALUE,
            head(&entry.value),
            "`stages` has no stage",
            "the smallest is {image: {build: {context: .}}}",
        );
        return None;
    }
    if let Some(first) = entries.get(MAX_STAGES) {
        let message =
            format!("the file has {} stages, more than the {MAX_STAGES} that are read", entries.len());
        w.error(codes::TOO_BIG, first.key_span, message);
        return None;
    }
    Some(entries.iter().map(|e| stage::read(w, e)).collect())
}

/// Targets by name, each with its place; `None` for one that could not be read.
pub(crate) type Targets = Vec<(String, Span, Option<Target>)>;

fn targets(w: &mut Walk<'_>, fields: Fields<'_>) -> Targets {
    let Some(node) = fields.value("targets") else { return Vec::new() };
    let hint = "write a map from name to target: {production: {hosts: [{ssh: root@app1.example.com}], ..}}";
    let Some(entries) = w.names(node, "`targets`", Some(hint)) else { return Vec::new() };
    entries
        .iter()
        .map(|e| {
            let named = name(w, &e.key, e.key_span, "a target");
            let target = target(w, e);
            (e.key.clone(), e.key_span, target.filter(|_| named))
        })
        .collect()
}

fn name(w: &mut Walk<'_>, text: &str, span: Span, what: &str) -> bool {
    let ok = text.parse::<keelway_model::StageName>().is_ok();
    if !ok {
        let shown: String = text.chars().take(80).collect();
        let message = format!("{shown:?} is not a name for {what}");
        let hint = "names are 1 to 63 of a-z, 0-9, '-', '_', '.', starting with a letter or digit";
        w.error_hint(codes::BAD_VALUE, span, message, hint);
    }
    ok
}

fn target(w: &mut Walk<'_>, entry: &Entry) -> Option<Target> {
    let fields = w.fields(&entry.value, entry.key_span, &TARGET, None)?;
    let ssh_config = match fields.value("ssh_config") {
        Some(n) => machine_name(w, n, "`ssh_config`", "--ssh-config NAME=FILE").map(Some),
        None => Some(None),
    };
    let hosts = match fields.value("hosts") {
        Some(n) => hosts(w, n),
        None => {
            w.missing(entry.key_span, "the target", "hosts", "hosts: [{ssh: root@app1.example.com}]");
            None
        }
    };
    let listen = match fields.get("balancer") {
        Some(e) => listen(w, e),
        None => {
            w.missing(entry.key_span, "the target", "balancer", "balancer: {listen: \":80\"}");
            None
        }
    };
    Some(Target { hosts: hosts?, ssh_config: ssh_config?, listen: listen? })
}

/// A name whose meaning the machine decides, never a path.
pub(crate) fn machine_name(w: &mut Walk<'_>, node: &Node, what: &str, flag: &str) -> Option<String> {
    let text = w.word(node, what)?;
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if text.len() <= 63 && text.bytes().all(ok) && !text.starts_with(['.', '-']) {
        return Some(text.to_owned());
    }
    let shown: String = text.chars().take(80).collect();
    let message = format!("{what} is a name, not {shown:?}");
    let hint = format!(
        "the file gives a name (letters, digits, '-', '_', '.'); the machine says which file it means: {flag}"
    );
    w.error_hint(codes::BAD_VALUE, node.span, message, hint);
    None
}

fn hosts(w: &mut Walk<'_>, node: &Node) -> Option<Vec<TargetHost>> {
    let hint = "write hosts: [{ssh: root@app1.example.com}]";
    let items = w.list(node, "`hosts`", Some(hint))?;
    if items.is_empty() || items.len() > MAX_HOSTS {
        let message = format!("a target has 1 to {MAX_HOSTS} hosts, and here are {}", items.len());
        w.error_hint(codes::BAD_VALUE, head(node), message, hint);
        return None;
    }
    let mut seen: BTreeMap<String, Span> = BTreeMap::new();
    let mut out = Vec::new();
    for item in items {
        let Some(fields) = w.fields(item, head(item), &HOST, Some("write {ssh: root@app1.example.com}"))
        else {
            continue;
        };
        let Some(node) = fields.value("ssh") else {
            w.missing(head(item), "the host", "ssh", "{ssh: root@app1.example.com}");
            continue;
        };
        let Some(text) = w.word(node, "`ssh`") else { continue };
        if let Err(why) = ssh_host(text) {
            let shown: String = text.chars().take(80).collect();
            let message = format!("{shown:?} is not a host for ssh: {why}");
            let hint = "write user@host; a port, a key or a jump host belongs into the ssh configuration";
            w.error_hint(codes::BAD_VALUE, node.span, message, hint);
            continue;
        }
        if let Some(first) = seen.insert(text.to_owned(), node.span) {
            let d = w.error(codes::REPEATED, node.span, format!("the host {text:?} stands twice"));
            d.related.push((first, "it stands here first".into()));
        }
        out.push(TargetHost { ssh: text.to_owned() });
    }
    (out.len() == items.len()).then_some(out)
}

/// What ssh could read as something else than a host is refused (security case D02).
fn ssh_host(text: &str) -> Result<(), &'static str> {
    let (user, host) = match text.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, text),
    };
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if text.contains("://") || text.contains('/') {
        return Err("it is an address with a path");
    }
    if text.starts_with('-') || host.starts_with('-') {
        return Err("it starts with '-', which ssh takes for an option");
    }
    if user.is_some_and(|u| u.is_empty() || u.len() > 64 || !u.bytes().all(|b| ok(b) || b == b'+')) {
        return Err("its user holds a character that a user name cannot hold");
    }
    if host.is_empty() {
        return Err("it has no host");
    }
    if host.contains(':') && host.parse::<std::net::Ipv6Addr>().is_err() {
        return Err("it has a port");
    }
    if host.len() > 253 || !(host.contains(':') || host.bytes().all(ok)) {
        return Err("it holds a character that a host name cannot hold");
    }
    Ok(())
}

fn listen(w: &mut Walk<'_>, entry: &Entry) -> Option<String> {
    let fields =
        w.fields(&entry.value, entry.key_span, &BALANCER, Some("write balancer: {listen: \":80\"}"))?;
    let Some(node) = fields.value("listen") else {
        w.missing(entry.key_span, "the balancer", "listen", "{listen: \":80\"}");
        return None;
    };
    let text = w.word(node, "`listen`")?;
    let address = match text.strip_prefix(':') {
        Some(port) => format!("0.0.0.0:{port}"),
        None => text.to_owned(),
    };
    match address.parse::<std::net::SocketAddr>() {
        Ok(a) if a.port() > 0 => Some(text.to_owned()),
        _ => {
            let shown: String = text.chars().take(60).collect();
            let message = format!("{shown:?} is not an address to listen on");
            w.error_hint(
                codes::BAD_VALUE,
                node.span,
                message,
                "write \":80\", \"10.0.0.1:80\" or \"[::]:80\"",
            );
            None
        }
    }
}

fn registries(w: &mut Walk<'_>, node: &Node) -> Option<BTreeMap<String, RegistryRule>> {
    let hint = "write a map from host to rule: {registry.example.com: {ca: our-ca}}";
    let mut ok = true;
    let mut out = BTreeMap::new();
    for entry in w.names(node, "`registries`", Some(hint))? {
        let host = entry.key.to_ascii_lowercase();
        if !is_registry(&host) {
            let shown: String = entry.key.chars().take(80).collect();
            let message = format!("{shown:?} is not the host of a registry");
            let hint = "write the host, with its port where it has one: registry.example.com:5000";
            w.error_hint(codes::BAD_VALUE, entry.key_span, message, hint);
            ok = false;
        }
        match rule(w, entry) {
            Some(rule) => _ = out.insert(host, rule),
            None => ok = false,
        }
    }
    ok.then_some(out)
}

fn is_registry(host: &str) -> bool {
    !host.contains('/') && format!("{host}/x").parse::<Repository>().is_ok_and(|r| r.registry() == host)
}

fn rule(w: &mut Walk<'_>, entry: &Entry) -> Option<RegistryRule> {
    let example = "{ca: NAME} or {http: true}";
    let fields = w.fields(&entry.value, entry.key_span, &REGISTRY, Some(example))?;
    match (fields.value("ca"), fields.value("http")) {
        (Some(ca), None) => {
            machine_name(w, ca, "`ca`", "--registry-ca NAME=FILE").map(RegistryRule::Authority)
        }
        (None, Some(http)) => match w.text(http, "`http`")? {
            "true" => Some(RegistryRule::PlainHttp),
            _ => {
                w.error_hint(
                    codes::BAD_VALUE,
                    http.span,
                    "`http` is true, or left out for https",
                    "leave the registry out: https is what is used",
                );
                None
            }
        },
        (None, None) => {
            w.missing(entry.key_span, "the registry", "ca", example);
            None
        }
        (Some(_), Some(http)) => {
            let message = "`ca` and `http` exclude each other: plain http has no certificate";
            w.error(codes::BAD_VALUE, http.span, message);
            None
        }
    }
}
