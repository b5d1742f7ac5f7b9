//! Stages to plan nodes: one pass over the instructions of each stage that the target reaches.
//!
//! An instruction sees one frozen view of the environment: `ENV a=1 b=$a` gives b the old a. The environment
//! of steps holds ENV and visible ARG values; only ENV goes into the image's config. History is worded as
//! BuildKit words it, without its `# buildkit` mark.

use super::budget::{Budget, UsedUp, Vars};
use super::{Bases, Build, From, Located, Reached};
use crate::seed::literal;
use keelway_dockerfile::{Command, Kind, Lint, MAX_ERRORS, Word, expand};
use keelway_model::oci::{DEFAULT_PATH, Descriptor, History, ImageConfig};
use keelway_model::plan::{AssembleOp, BaseOp, CopyFrom, CopyOp, Unpack};
use keelway_model::{Diagnostic, Diagnostics, Digest, Hasher, NodeId, Op, Plan};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

mod config;
mod lint;
pub(super) mod mounts;
mod steps;
#[cfg(test)]
mod tests;

pub(super) use lint::Linting;
use lint::Seen;

/// Where heredoc scripts with a `#!` line lie while they run.
const SCRIPTS: &str = "/dev/pipes/";

/// Lowers everything the target reaches, in the order of the file.
pub(super) fn lower(build: &Build, pinned: &Bases, reached: &Reached) -> Result<Plan, Diagnostics> {
    let Lower { mut plan, mut found, mut done, .. } = pass(build, pinned, reached, None);
    found.items.truncate(MAX_ERRORS);
    match done.remove(&build.target) {
        Some(mut end) if !found.has_errors() => {
            end.config.config.labels.extend(build.options.labels.clone());
            let op = AssembleOp { config: Box::new(end.config), base: end.root, history: end.history };
            let node = plan.add("image", vec![end.chain], Op::Assemble(op));
            plan.result = Some(node);
            Ok(plan)
        }
        _ => Err(found),
    }
}

/// Looks at the same instructions in the same order for findings of lint rules; what cannot be planned is passed over.
pub(super) fn lint<'b>(
    build: &'b Build,
    pinned: &'b Bases,
    reached: &Reached,
    linting: Linting<'b>,
) -> Option<Lint<'b>> {
    pass(build, pinned, reached, Some(RefCell::new(linting))).linting.map(|l| l.into_inner().lint)
}

fn pass<'b>(
    build: &'b Build,
    pinned: &'b Bases,
    reached: &Reached,
    linting: Option<RefCell<Linting<'b>>>,
) -> Lower<'b> {
    let mut lower = Lower {
        build,
        linting,
        pinned,
        plan: Plan::default(),
        found: Diagnostics::of(build.dockerfile.source.clone()),
        bases: BTreeMap::new(),
        done: BTreeMap::new(),
        chains: BTreeMap::new(),
        contexts: BTreeMap::new(),
        users: BTreeMap::from([(build.target, 1)]),
        budget: Budget::new(),
    };
    for (from, _) in reached.stages.values() {
        if let From::Stage(below) = from {
            *lower.users.entry(*below).or_default() += 1;
        }
    }
    for (&index, (from, instructions)) in &reached.stages {
        lower.stage(index, from, instructions);
        if lower.budget.is_used_up() {
            break;
        }
    }
    lower
}

/// A stage as it grows.
#[derive(Clone)]
struct State {
    config: ImageConfig,
    /// What steps see: ENV and ARG, in order of first appearance.
    env: Vars,
    /// Where in the config's list the variables are.
    config_env: HashMap<String, usize>,
    /// Declared arguments, for the history of RUN.
    args: Vars,
    chain: NodeId,
    root: Option<Descriptor>,
    history: Vec<History>,
    /// Whether this stage has set CMD.
    cmd_set: bool,
    /// What a copy of this takes, in bytes.
    size: usize,
    /// What only lint rules ask for.
    seen: Seen,
}

struct Lower<'a> {
    build: &'a Build,
    /// Where only findings are wanted.
    linting: Option<RefCell<Linting<'a>>>,
    pinned: &'a Bases,
    plan: Plan,
    found: Diagnostics,
    bases: BTreeMap<From, NodeId>,
    /// Stages that another still stands on.
    done: BTreeMap<usize, State>,
    /// The ends of all stages, to copy from.
    chains: BTreeMap<usize, NodeId>,
    /// Parts of contexts that are chains of their own, by the context's name, their path and where they are in the chain.
    contexts: BTreeMap<(Option<String>, String, &'static str), NodeId>,
    /// How many stages still have to stand on one; the result counts as one.
    users: BTreeMap<usize, usize>,
    budget: Budget,
}

/// One instruction on its way: what names it, for people and across builds.
struct Step<'a> {
    located: &'a Located,
    stage: usize,
    /// Place among all instructions of the stage.
    position: usize,
    /// `[app 3/7] RUN make`
    name: String,
}

impl Step<'_> {
    fn error(&self, code: &str, word: &Word, message: impl Into<String>) -> Box<Diagnostic> {
        Box::new(self.located.error(code, word.span, message))
    }
    fn refuse(&self, message: impl Into<String>) -> Box<Diagnostic> {
        Box::new(self.located.error("D0206", self.located.instruction.span, message))
    }
}

/// A step, or why it cannot be planned.
type Planned<T> = Result<T, Box<Diagnostic>>;

impl Lower<'_> {
    fn stage(&mut self, index: usize, from: &From, instructions: &[Located]) {
        let layers = |k: &Kind| matches!(k, Kind::Run(_) | Kind::Copy(_) | Kind::Add(_) | Kind::Workdir(_));
        let total = 1 + instructions.iter().filter(|l| layers(&l.instruction.kind)).count();
        let stages = &self.build.dockerfile.stages;
        let label = match &stages[index].name {
            Some(name) => format!("{} ", name.text),
            None if stages.len() > 1 => format!("stage-{index} "),
            None => String::new(),
        };
        self.base_platform(&stages[index], from);
        let mut state = match from {
            From::Stage(below) => match self.take(*below) {
                Ok(Some(state)) => {
                    let seen = state.seen.for_another_stage();
                    State { cmd_set: false, seen, ..state }
                }
                Ok(None) => return,
                Err(e) => {
                    let stage = &stages[index];
                    let file = &self.build.dockerfile.source.name;
                    self.found.push(Diagnostic::error("D0204", file, stage.span, e.to_string()));
                    return;
                }
            },
            From::Scratch => self.base(from, format!("[{label}1/{total}] FROM scratch")),
            From::Image(image) => self.base(from, format!("[{label}1/{total}] FROM {image}")),
            From::Pinned(name) => self.base(from, format!("[{label}1/{total}] FROM {}", shown(name))),
            From::Files(name) => {
                let node = format!("[{label}1/{total}] FROM {}", shown(name));
                let mut state = self.base(&From::Scratch, "FROM scratch".to_owned());
                state.chain = self.part(node, Some(name), "/", "/");
                state.history.push(layer(format!("FROM {name}")));
                state
            }
        };
        state.config.config.on_build.clear();
        let first = self.plan.nodes.len();
        let mut number = 1;
        for (position, located) in instructions.iter().enumerate() {
            number += usize::from(layers(&located.instruction.kind));
            let name = format!("[{label}{number}/{total}] {}", shown(&located.instruction.text));
            let step = Step { located, stage: index, position, name };
            if let Err(d) = self.instruction(&mut state, &step) {
                self.found.push(*d);
                if self.budget.is_used_up() {
                    break;
                }
            }
        }
        if self.build.anew.as_ref().is_none_or(|stages| stages.contains(&index)) {
            for node in &mut self.plan.nodes[first..] {
                node.anew = matches!(node.op, Op::Exec(_) | Op::Fetch(_) | Op::Copy(_) | Op::Mkdir(_));
            }
        }
        self.chains.insert(index, state.chain);
        if self.users.contains_key(&index) {
            self.done.insert(index, state);
        }
    }

    /// The state of a stage for another that stands on it: the last one gets it without a copy. `None` where
    /// it could not be planned, which was reported.
    fn take(&mut self, below: usize) -> Result<Option<State>, UsedUp> {
        let users = self.users.entry(below).or_default();
        *users = users.saturating_sub(1);
        if *users == 0 {
            return Ok(self.done.remove(&below));
        }
        let Some(state) = self.done.get(&below) else { return Ok(None) };
        self.budget.charge(state.size)?;
        Ok(Some(state.clone()))
    }

    /// The state right after `FROM` an image or scratch.
    fn base(&mut self, from: &From, name: String) -> State {
        let chain = self.base_node(from, name);
        let (config, root) = match self.build.pinned(from, self.pinned) {
            Some(pinned) => {
                let mut config = pinned.config.clone();
                // What old Docker versions leave there speaks of another image.
                for stale in ["container", "container_config", "docker_version", "id", "parent", "throwaway"]
                {
                    config.extra.remove(stale);
                }
                (config, Some(pinned.descriptor.clone()))
            }
            None => {
                let mut config = ImageConfig::scratch(self.build.options.platform.clone());
                config.config.env = vec![format!("PATH={DEFAULT_PATH}")];
                config.config.working_dir = Some("/".to_owned());
                (config, None)
            }
        };
        let mut state = State {
            env: Vars::default(),
            config_env: HashMap::new(),
            args: Vars::default(),
            chain,
            root,
            history: Vec::new(),
            cmd_set: false,
            size: 0,
            seen: Seen::of_a_base(matches!(from, From::Image(i) if !self.pinned.contains_key(i))),
            config,
        };
        for (i, entry) in state.config.config.env.iter().enumerate() {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            state.env.set(name, value);
            state.config_env.entry(name.to_owned()).or_insert(i);
            state.size += 2 * entry.len();
        }
        state
    }

    /// The node of an image's layers; one for all who use it.
    fn base_node(&mut self, from: &From, name: String) -> NodeId {
        if let Some(node) = self.bases.get(from) {
            return *node;
        }
        let pinned = self.build.pinned(from, self.pinned);
        if let (From::Image(image), None) = (from, pinned) {
            let message = format!("the image {image} was not pinned before planning");
            self.found.push(Diagnostic::error(
                "D0207",
                &self.build.dockerfile.source.name,
                Default::default(),
                message,
            ));
        }
        let scratch = || ImageConfig::scratch(self.build.options.platform.clone());
        let op = BaseOp {
            reference: if let From::Image(image) = from { Some(image.clone()) } else { None },
            manifest: pinned.map(|p| p.descriptor.clone()),
            config: Box::new(pinned.map_or_else(scratch, |p| p.config.clone())),
        };
        let node = self.plan.add(name, Vec::new(), Op::Base(op));
        self.bases.insert(from.clone(), node);
        node
    }

    /// The node that puts a part of a context, behind its ignore patterns, on scratch; one for all who want it.
    fn part(&mut self, node: String, context: Option<&str>, source: &str, dest: &'static str) -> NodeId {
        let key = (context.map(str::to_owned), source.to_owned(), dest);
        if let Some(node) = self.contexts.get(&key) {
            return *node;
        }
        let below = self.base_node(&From::Scratch, "FROM scratch".to_owned());
        let mut identity = Hasher::new();
        identity.field(b"keelway bound context");
        identity.field(self.build.dockerfile.source.name.as_bytes()).field(source.as_bytes());
        identity.field(context.unwrap_or_default().as_bytes()).field(dest.as_bytes());
        let op = CopyOp {
            sources: vec![literal(source)],
            from: CopyFrom::Context,
            context: context.map(str::to_owned),
            dest: dest.to_owned(),
            chown: None,
            chmod: None,
            exclude: Vec::new(),
            parents: false,
            link: false,
            unpack: Unpack::Never,
            identity: identity.finish(),
        };
        let node = self.plan.add(node, vec![below], Op::Copy(op));
        self.contexts.insert(key, node);
        node
    }

    fn identity(&self, step: &Step<'_>, part: u8) -> Digest {
        let stage = match &self.build.dockerfile.stages[step.stage].name {
            Some(name) => name.text.clone(),
            None => step.stage.to_string(),
        };
        let mut h = Hasher::new();
        h.field(b"keelway step").field(self.build.dockerfile.source.name.as_bytes()).field(stage.as_bytes());
        h.field(&(step.position as u64).to_le_bytes()).field(&[part]);
        h.finish()
    }

    fn value(&self, state: &State, step: &Step<'_>, word: &Word) -> Planned<String> {
        let escape = self.build.dockerfile.escape;
        let value = self
            .watched(state, step, word.span, |env| expand(&word.text, env, escape))
            .map_err(|e| step.error("D0204", word, e.to_string()))?;
        self.charge(step, value.len())?;
        Ok(value)
    }

    fn charge(&self, step: &Step<'_>, bytes: usize) -> Planned<()> {
        let span = step.located.instruction.span;
        self.budget.charge(bytes).map_err(|e| Box::new(step.located.error("D0204", span, e.to_string())))
    }

    /// Puts a line into the history.
    fn record(&self, state: &mut State, step: &Step<'_>, created_by: String, layer: Layer) -> Planned<()> {
        self.charge(step, created_by.len())?;
        // What an instruction sets is no longer than what its line says.
        state.size += 2 * created_by.len() + 64;
        let empty_layer = layer == Layer::None;
        state.history.push(History { empty_layer, ..self::layer(created_by) });
        Ok(())
    }

    fn instruction(&mut self, state: &mut State, step: &Step<'_>) -> Planned<()> {
        match &step.located.instruction.kind {
            Kind::Run(run) => self.run(state, step, run),
            Kind::Copy(t) => self.transfer(state, step, t, Unpack::Never),
            Kind::Add(t) => {
                let unpack =
                    if t.unpack.is_some_and(|(on, _)| !on) { Unpack::Never } else { Unpack::Archives };
                self.transfer(state, step, t, unpack)
            }
            Kind::Workdir(path) => self.workdir(state, step, path),
            Kind::Arg(arguments) => self.arguments(state, step, arguments),
            Kind::Env(pairs) => self.env(state, step, pairs),
            Kind::Label(pairs) => self.label(state, step, pairs),
            Kind::Expose(words) => self.expose(state, step, words),
            Kind::Volume(words) => self.volume(state, step, words),
            Kind::User(word) => self.user(state, step, word),
            Kind::StopSignal(word) => self.stop_signal(state, step, word),
            Kind::Shell(argv) => self.shell(state, step, argv),
            Kind::Cmd(command) => self.cmd(state, step, command),
            Kind::Entrypoint(command) => self.entrypoint(state, step, command),
            Kind::Healthcheck(health) => self.healthcheck(state, step, health),
            Kind::Onbuild(trigger) => self.on_build(state, step, trigger),
            Kind::Maintainer(word) => self.maintainer(state, step, word),
        }
    }
}

/// The history of a layer.
fn layer(created_by: String) -> History {
    History {
        created: None,
        created_by: Some(created_by),
        author: None,
        comment: Some("keelway".to_owned()),
        empty_layer: false,
    }
}

/// The argument vector of a command: the shell form gets the shell in front.
fn argv(state: &State, command: &Command) -> Vec<String> {
    match command {
        Command::Exec(argv) => argv.clone(),
        Command::Shell(word) => {
            let shell = &state.config.config.shell;
            let mut argv =
                if shell.is_empty() { vec!["/bin/sh".to_owned(), "-c".to_owned()] } else { shell.clone() };
            argv.push(word.text.clone());
            argv
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Layer {
    One,
    None,
}

/// `path` against the working directory, cleaned; always absolute.
fn absolute(workdir: Option<&str>, path: &str) -> String {
    let joined =
        if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", workdir.unwrap_or("/")) };
    let mut parts: Vec<&str> = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            p => parts.push(p),
        }
    }
    format!("/{}", parts.join("/"))
}

/// A text for a label: one line, no control characters, not endless.
fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(160).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(160).is_some() {
        out.push_str("..");
    }
    out
}
