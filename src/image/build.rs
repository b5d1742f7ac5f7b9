//! A Dockerfile and its options, checked, on the way to a plan.
//!
//! A stage stands on a base (scratch, an earlier stage, an image) and copies from others; only what the
//! target reaches is looked at. Triggers (`ONBUILD`) of a base come first in the stage that stands on it,
//! and may reach further stages and images: so what a build needs is a walk that is repeated whenever
//! another base is pinned.

use crate::select::{Source, Wanted};
use keelway_dockerfile::lint::INSTEAD;
use keelway_dockerfile::{
    Dockerfile, Ignore, Instruction, Kind, MAX_ERRORS, MAX_INSTRUCTIONS, Mount, MountKind, Stage, Word,
    expand, parse_trigger,
};
use keelway_model::oci::{Descriptor, ImageConfig};
use keelway_model::plan::{Anew, Grant, Network};
use keelway_model::{Diagnostic, Diagnostics, ImageRef, Limits, Plan, Platform, SourceText, Span, Tree};
use std::collections::{BTreeMap, BTreeSet};

mod budget;
mod lint;
mod metadata;
mod refuse;
mod scope;
mod stage;
#[cfg(test)]
mod tests;

pub use lint::Look;
use scope::Globals;

/// Most triggers (`ONBUILD`) of one image.
const MAX_TRIGGERS: usize = 1_000;

/// What the command line or the stage says about a build.
#[derive(Debug, Clone, PartialEq)]
pub struct BuildOptions {
    /// `--build-arg`.
    pub args: BTreeMap<String, String>,
    /// `--target`; the last stage where none is given.
    pub target: Option<String>,
    /// For which platform.
    pub platform: Platform,
    /// Bounds of each RUN.
    pub limits: Limits,
    /// Proxy variables of this machine (`HTTP_PROXY`, `no_proxy`, ..): RUN sees them, keys do not.
    pub proxy: Vec<(String, String)>,
    /// Network of each RUN that names none.
    pub network: Network,
    /// What RUN may ask for beyond that.
    pub allow: BTreeSet<Grant>,
    /// `--build-context`: what names mean that the command line gives, in lower case.
    pub contexts: BTreeMap<String, NamedContext>,
    /// `--label`: beside those of the Dockerfile, which they replace.
    pub labels: BTreeMap<String, String>,
    /// Which steps run whatever is in the cache.
    pub anew: Anew,
}

impl BuildOptions {
    /// Nothing asked for.
    pub fn new(platform: Platform) -> Self {
        Self {
            args: BTreeMap::new(),
            target: None,
            platform,
            limits: Limits::default(),
            proxy: Vec::new(),
            network: Network::default(),
            allow: BTreeSet::new(),
            contexts: BTreeMap::new(),
            labels: BTreeMap::new(),
            anew: Anew::default(),
        }
    }
}

/// What a name of `--build-context` means.
#[derive(Debug, Clone, PartialEq)]
pub enum NamedContext {
    /// An image, to be pinned like any that a Dockerfile names.
    Image(ImageRef),
    /// An image that is pinned, and in the store.
    Pinned(Box<PinnedBase>),
    /// Files, which a copy finds under this name.
    Files,
}

/// An image that a stage stands on, resolved to exact content.
#[derive(Debug, Clone, PartialEq)]
pub struct PinnedBase {
    /// Its manifest (of one image, never an index).
    pub descriptor: Descriptor,
    /// Its config.
    pub config: ImageConfig,
}

/// The pinned images of a build, by the reference that the Dockerfile gives after expansion.
pub type Bases = BTreeMap<ImageRef, PinnedBase>;

/// Where a Dockerfile asks for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `Dockerfile:3`
    pub place: String,
    /// The instruction.
    pub text: String,
    /// A stage whose name is nearly that of the image.
    pub near: Option<String>,
}

/// What a stage stands on, or a copy takes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum From {
    Scratch,
    Stage(usize),
    Image(ImageRef),
    /// An image that the command line gives under this name.
    Pinned(String),
    /// Files that the command line gives under this name.
    Files(String),
}

/// An instruction and the text its spans point into.
#[derive(Debug, Clone)]
struct Located {
    file: String,
    instruction: Instruction,
}

impl Located {
    fn error(&self, code: &str, span: Span, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(code, &self.file, span, message)
    }
}

/// What the target reaches, as far as the pinned bases tell.
#[derive(Debug, Default)]
struct Reached {
    /// Stages by index, with their instructions, those of triggers first.
    stages: BTreeMap<usize, (From, Vec<Located>)>,
    /// All images, pinned or not.
    images: BTreeSet<ImageRef>,
}

/// A build that can be planned.
#[derive(Debug, Clone)]
pub struct Build {
    dockerfile: Dockerfile,
    options: BuildOptions,
    globals: Globals,
    target: usize,
    /// The stages whose steps run whatever is in the cache; `None` is all of them.
    anew: Option<BTreeSet<usize>>,
    warnings: Diagnostics,
}

impl Build {
    /// Checks the target, the stage graph and that everything the target needs can be executed; what is
    /// not supported yet is refused here, by line and name, and (for triggers of bases) in [`Build::bases`].
    ///
    /// # Errors
    /// All of that, and what lint rules find in the text.
    pub fn new(dockerfile: Dockerfile, options: BuildOptions) -> Result<Self, Diagnostics> {
        let mut found = Diagnostics::of(dockerfile.source.clone());
        let last = dockerfile.stages.len().saturating_sub(1);
        let named = |name: &str| {
            stage_called(&dockerfile, name)
                .map_err(|d| lint::beside(one(&dockerfile, *d), &dockerfile, &options))
        };
        let target = options.target.as_deref().map_or(Ok(last), named)?;
        let anew = match &options.anew {
            Anew::Everything => None,
            Anew::Nothing => Some(BTreeSet::new()),
            Anew::Stages(names) => Some(names.iter().map(|n| named(n)).collect::<Result<_, _>>()?),
        };
        let globals = Globals::new(&dockerfile, &options, target, &mut found);
        if let Err(why) = lint::start(&dockerfile, &options) {
            let message = format!("the build argument {INSTEAD}: {why}");
            found.push(Diagnostic::error("D0002", &dockerfile.source.name, Span::default(), message));
        }
        if found.has_errors() {
            return Err(lint::beside(found, &dockerfile, &options));
        }
        let mut build = Self { dockerfile, options, globals, target, anew, warnings: found };
        match build.walk(&Bases::new()) {
            Ok(reached) => build.warn(&reached),
            Err(found) => return Err(lint::beside(found, &build.dockerfile, &build.options)),
        }
        Ok(build)
    }

    /// What is worth knowing and stops nothing; beside it there is [`Build::lint`].
    pub fn warnings(&self) -> &Diagnostics {
        &self.warnings
    }

    /// The images that must still be pinned, given those that are. Call it until it gives none: a trigger
    /// (`ONBUILD COPY --from=`) of a pinned base may need another.
    pub fn bases(&self, pinned: &Bases) -> Result<Vec<ImageRef>, Diagnostics> {
        Ok(self.walk(pinned)?.images.into_iter().filter(|i| !pinned.contains_key(i)).collect())
    }

    /// Where the Dockerfile first asks for an image; `None` for one that only a trigger of a base asks for.
    pub fn place_of(&self, image: &ImageRef) -> Option<Asked> {
        for (index, stage) in self.dockerfile.stages.iter().enumerate() {
            if self.base_of(index, stage).is_ok_and(|f| f == From::Image(image.clone())) {
                return Some(self.asked(stage.span, &stage.text, self.near_stage(&stage.base.text, index)));
            }
            for i in &stage.instructions {
                let is_it =
                    |from: &&Word| self.source_of(index, from).is_ok_and(|f| f == From::Image(image.clone()));
                if let Some(from) = takes_from(i).into_iter().find(is_it) {
                    return Some(self.asked(i.span, &i.text, self.near_stage(&from.text, index)));
                }
            }
        }
        None
    }

    fn asked(&self, span: Span, text: &str, near: Option<&str>) -> Asked {
        let source = &self.dockerfile.source;
        let line = source.line_col(span.start).0;
        let text: String = text.lines().next().unwrap_or_default().chars().take(160).collect();
        Asked { place: format!("{}:{line}", source.name), text, near: near.map(str::to_owned) }
    }

    /// The earlier stage whose name is nearly this one; none for what can only be an image.
    fn near_stage(&self, name: &str, limit: usize) -> Option<&str> {
        if name.contains(['/', ':', '@', '.']) {
            return None;
        }
        let names: Vec<&str> = self.dockerfile.stages[..limit.min(self.dockerfile.stages.len())]
            .iter()
            .filter_map(|s| s.name.as_ref())
            .map(|n| n.text.as_str())
            .collect();
        keelway_dockerfile::nearest(&name.to_lowercase(), &names)
    }

    /// What the target copies from a context that does not have it. A source with a variable is not looked at.
    pub fn missing_sources(&self, context: &dyn Tree, ignore: &Ignore) -> Diagnostics {
        let mut found = Diagnostics::of(self.dockerfile.source.clone());
        let Ok(reached) = self.walk(&Bases::new()) else { return found };
        let source = Source::context(context, ignore);
        for located in reached.stages.values().flat_map(|(_, l)| l) {
            let kind = &located.instruction.kind;
            let parents = matches!(kind, Kind::Copy(t) if t.parents.is_some());
            let exclude = Ignore::default();
            for word in of_the_context(&located.instruction) {
                if word.text.contains(['$', '"', '\'', '\\']) {
                    continue;
                }
                let wanted = Wanted { sources: std::slice::from_ref(&word.text), parents, exclude: &exclude };
                if let Err(e) = source.select_all(&wanted) {
                    found.push(located.error("D0213", word.span, e.to_string()));
                }
            }
        }
        found
    }

    /// The plan, once [`Build::bases`] gives none. Its result is an `Assemble` node.
    pub fn lower(&self, pinned: &Bases) -> Result<Plan, Diagnostics> {
        let reached = self.walk(pinned)?;
        stage::lower(self, pinned, &reached)
    }

    /// Everything the target reaches. Stages need lower ones only, so one pass from the target down does.
    fn walk(&self, pinned: &Bases) -> Result<Reached, Diagnostics> {
        let mut found = Diagnostics::of(self.dockerfile.source.clone());
        let mut reached = Reached::default();
        let mut wanted = BTreeSet::from([self.target]);
        let mut count = 0;
        while let Some(index) = wanted.pop_last() {
            let stage = &self.dockerfile.stages[index];
            let given = self.replaced(index);
            let written = if given.is_some() { &[][..] } else { &stage.instructions[..] };
            let from = match given.map_or_else(|| self.base_of(index, stage), Ok) {
                Ok(from) => from,
                Err(d) => {
                    found.push(*d);
                    continue;
                }
            };
            let mut instructions = self.triggers(&from, pinned, &mut found);
            let own = |i: &Instruction| Located {
                file: self.dockerfile.source.name.clone(),
                instruction: i.clone(),
            };
            instructions.extend(written.iter().map(own));
            // The file alone is within the bound: what the triggers of its bases add counts too.
            count += instructions.len();
            if count > MAX_INSTRUCTIONS {
                let message = format!(
                    "with the triggers (ONBUILD) of its bases, the target needs more than {MAX_INSTRUCTIONS} instructions"
                );
                found.push(Diagnostic::error("D0204", &self.dockerfile.source.name, stage.span, message));
                break;
            }
            match &from {
                From::Scratch | From::Pinned(_) | From::Files(_) => {}
                From::Stage(below) => _ = wanted.insert(*below),
                From::Image(image) => _ = reached.images.insert(image.clone()),
            }
            for located in &instructions {
                refuse::unsupported(located, &self.options.allow, &mut found);
                for from in takes_from(&located.instruction) {
                    match self.source_of(index, from) {
                        Ok(From::Scratch | From::Pinned(_) | From::Files(_)) => {}
                        Ok(From::Stage(other)) => _ = wanted.insert(other),
                        Ok(From::Image(image)) => _ = reached.images.insert(image),
                        Err(message) => found.push(located.error("D0203", from.span, message)),
                    }
                }
            }
            reached.stages.insert(index, (from, instructions));
        }
        if found.has_errors() {
            found.items.truncate(MAX_ERRORS);
            return Err(found);
        }
        Ok(reached)
    }

    /// What `FROM` names.
    fn base_of(&self, index: usize, stage: &Stage) -> Result<From, Box<Diagnostic>> {
        let file = &self.dockerfile.source.name;
        let value = |word: &Word| {
            expand(&word.text, &self.globals.values, self.dockerfile.escape)
                .map_err(|e| Box::new(Diagnostic::error("D0204", file, word.span, e.to_string())))
        };
        if let Some(platform) = &stage.platform {
            let text = value(platform)?;
            let wanted: Platform =
                text.parse().map_err(|e: keelway_model::platform::PlatformParseError| {
                    Diagnostic::error("D0205", file, platform.span, e.to_string())
                })?;
            if !self.options.platform.accepts(&wanted) {
                let message = format!(
                    "FROM --platform={wanted} is not supported yet: this build is for {}",
                    self.options.platform
                );
                return Err(Box::new(Diagnostic::error("D0201", file, platform.span, message)));
            }
        }
        let name = value(&stage.base)?;
        if name.is_empty() {
            let d =
                Diagnostic::error("D0204", file, stage.base.span, format!("{:?} is empty", stage.base.text));
            return Err(Box::new(
                d.hint("an ARG before the first FROM gives it a default; --build-arg a value"),
            ));
        }
        if name == "scratch" {
            return Ok(From::Scratch);
        }
        if let Some(below) = self.stage_named(&name, index) {
            return Ok(From::Stage(below));
        }
        if let Some(given) = self.given(&name) {
            return Ok(given);
        }
        let image = name.parse().map_err(|e: keelway_model::reference::ReferenceError| {
            let d = Diagnostic::error("D0205", file, stage.base.span, e.to_string());
            match self.stage_named(&name, usize::MAX) {
                Some(_) => d.hint(format!("the stage {name} must be defined before this one")),
                None => d,
            }
        })?;
        Ok(From::Image(image))
    }

    /// What `--from` names, in the stage `index`.
    fn source_of(&self, index: usize, from: &Word) -> Result<From, String> {
        let name = from.text.as_str();
        if let Ok(number) = name.parse::<usize>() {
            return match number {
                n if n < index => Ok(From::Stage(n)),
                n => Err(format!("there is no stage {n} before this one (the first is 0)")),
            };
        }
        if let Some(other) = self.stage_named(name, index) {
            return Ok(From::Stage(other));
        }
        if self.stage_named(name, usize::MAX).is_some() {
            return Err(format!("the stage {name:?} must be defined before current stage: move it up"));
        }
        if name == "scratch" {
            return Ok(From::Scratch);
        }
        if let Some(given) = self.given(name) {
            return Ok(given);
        }
        name.parse().map(From::Image).map_err(|e: keelway_model::reference::ReferenceError| e.to_string())
    }

    /// What the command line gives under this name: as it is written, or as another way to write the same image.
    fn given(&self, name: &str) -> Option<From> {
        let contexts = &self.options.contexts;
        let image = name.parse::<ImageRef>().ok();
        let same = |known: &&String| {
            let (Some(a), Ok(b)) = (&image, known.parse::<ImageRef>()) else { return false };
            a.repository == b.repository && a.digest == b.digest && a.effective_tag() == b.effective_tag()
        };
        let lower = name.to_lowercase();
        let known = match contexts.get_key_value(&lower) {
            Some((known, _)) => known,
            None => contexts.keys().find(same)?,
        };
        Some(match &contexts[known] {
            NamedContext::Image(image) => From::Image(image.clone()),
            NamedContext::Pinned(_) => From::Pinned(known.clone()),
            NamedContext::Files => From::Files(known.clone()),
        })
    }

    /// What the command line gives in the place of a whole stage.
    fn replaced(&self, index: usize) -> Option<From> {
        self.given(&self.dockerfile.stages[index].name.as_ref()?.text)
    }

    /// The last stage of this name before `limit`.
    fn stage_named(&self, name: &str, limit: usize) -> Option<usize> {
        let name = name.to_lowercase();
        let before = &self.dockerfile.stages[..limit.min(self.dockerfile.stages.len())];
        before.iter().rposition(|s| s.name.as_ref().is_some_and(|n| n.text == name))
    }

    /// The image of a base, where it is one and known.
    fn pinned<'a>(&'a self, from: &From, pinned: &'a Bases) -> Option<&'a PinnedBase> {
        match from {
            From::Image(image) => pinned.get(image),
            From::Pinned(name) => match self.options.contexts.get(name)? {
                NamedContext::Pinned(base) => Some(base),
                NamedContext::Image(_) | NamedContext::Files => None,
            },
            From::Scratch | From::Stage(_) | From::Files(_) => None,
        }
    }

    /// The triggers that a base brings, parsed.
    fn triggers(&self, from: &From, pinned: &Bases, found: &mut Diagnostics) -> Vec<Located> {
        match from {
            From::Scratch | From::Files(_) => Vec::new(),
            From::Stage(below) => {
                if let Some(given) = self.replaced(*below) {
                    return self.triggers(&given, pinned, found);
                }
                let trigger = |i: &Instruction| match &i.kind {
                    Kind::Onbuild(t) => Some(Located {
                        file: self.dockerfile.source.name.clone(),
                        instruction: (*t.instruction).clone(),
                    }),
                    _ => None,
                };
                self.dockerfile.stages[*below].instructions.iter().filter_map(trigger).collect()
            }
            From::Image(_) | From::Pinned(_) => {
                let image = match from {
                    From::Image(image) => image.to_string(),
                    _ => "an image of the command line".to_owned(),
                };
                let texts =
                    self.pinned(from, pinned).map(|p| &p.config.config.on_build[..]).unwrap_or_default();
                let mut out = Vec::new();
                if texts.len() > MAX_TRIGGERS {
                    let message =
                        format!("the image {image} has more than {MAX_TRIGGERS} triggers (ONBUILD)");
                    found.push(Diagnostic::error(
                        "D0204",
                        &self.dockerfile.source.name,
                        Span::default(),
                        message,
                    ));
                    return out;
                }
                for (i, text) in texts.iter().enumerate() {
                    let source = SourceText::new(format!("ONBUILD {} of {image}", i + 1), text.clone());
                    let file = source.name.clone();
                    match parse_trigger(&source) {
                        Ok(instruction) => out.push(Located { file, instruction }),
                        Err(errors) => found.merge(errors),
                    }
                    if !found.sources.iter().any(|s| s.name == source.name) {
                        found.sources.push(source);
                    }
                }
                out
            }
        }
    }

    /// Unused build arguments, and images that are probably stages.
    fn warn(&mut self, reached: &Reached) {
        let all = reached.stages.iter().flat_map(|(i, (_, l))| l.iter().map(|l| (*i, l)));
        for (index, located, from) in
            all.flat_map(|(i, l)| takes_from(&l.instruction).into_iter().map(move |f| (i, l, f)))
        {
            let given = self.given(&from.text).is_some();
            let image = !given && matches!(self.source_of(index, from), Ok(From::Image(_)));
            if let Some(near) = self.near_stage(&from.text, index).filter(|_| image).map(str::to_owned) {
                let message =
                    format!("no stage before this one is named {:?}, so it means an image", from.text);
                let d = Diagnostic::warning("D0212", &located.file, from.span, message);
                self.warnings.items.push(d.hint(format!("did you mean the stage {near:?}?")));
            }
        }
        let mut declared: BTreeSet<&str> = BTreeSet::new();
        let instructions = reached.stages.values().flat_map(|(_, i)| i).map(|l| &l.instruction);
        for i in instructions.chain(&self.dockerfile.globals) {
            if let Kind::Arg(arguments) = &i.kind {
                declared.extend(arguments.iter().map(|a| a.name.text.as_str()));
            }
        }
        for name in self.options.args.keys() {
            if !declared.contains(name.as_str()) && !scope::is_proxy(name) && !scope::is_builtin(name) {
                let message =
                    format!("the build argument {name} is not declared by any ARG that the target needs");
                self.warnings.items.push(Diagnostic::warning(
                    "D0210",
                    &self.dockerfile.source.name,
                    Span::default(),
                    message,
                ));
            }
        }
    }
}

/// What a Dockerfile with errors asks for that cannot be executed, beside those errors, in order of the file; then what
/// lint rules find in it.
pub fn refused(file: &Dockerfile, mut found: Diagnostics, options: &BuildOptions) -> Diagnostics {
    for instruction in file.stages.iter().flat_map(|s| &s.instructions) {
        let located = Located { file: file.source.name.clone(), instruction: instruction.clone() };
        refuse::unsupported(&located, &options.allow, &mut found);
    }
    found.items.sort_by_key(|d| d.span);
    found.items.truncate(MAX_ERRORS);
    lint::beside(found, file, options)
}

fn one(file: &Dockerfile, d: Diagnostic) -> Diagnostics {
    let mut out = Diagnostics::of(file.source.clone());
    out.push(d);
    out
}

/// The stage that `--target` or `--no-cache-filter` names, by name or index.
fn stage_called(file: &Dockerfile, wanted: &str) -> Result<usize, Box<Diagnostic>> {
    let last = file.stages.len().saturating_sub(1);
    let name = wanted.to_lowercase();
    let by_name = file.stages.iter().rposition(|s| s.name.as_ref().is_some_and(|n| n.text == name));
    if let Some(found) = by_name.or_else(|| wanted.parse().ok().filter(|n| *n <= last)) {
        return Ok(found);
    }
    let names: Vec<&str> =
        file.stages.iter().filter_map(|s| s.name.as_ref()).map(|n| n.text.as_str()).collect();
    let d = Diagnostic::error(
        "D0202",
        &file.source.name,
        Span::default(),
        format!("there is no stage {wanted:?} to build"),
    );
    let d = match keelway_dockerfile::nearest(&name, &names) {
        Some(near) => d.hint(format!("did you mean {near:?}?")),
        None => d,
    };
    Err(Box::new(if names.is_empty() {
        d.hint("no stage has a name: leave the target out")
    } else {
        d.hint(format!("the stages are {}", names.join(", ")))
    }))
}

/// What an instruction takes from the context.
fn of_the_context(i: &Instruction) -> Vec<&Word> {
    match &i.kind {
        Kind::Copy(t) | Kind::Add(t) if t.from.is_none() => t.sources.iter().collect(),
        Kind::Run(run) => {
            let bound = |m: &&Mount| m.kind == MountKind::Bind && stage::mounts::from(m).is_none();
            let source = |m: &'_ Mount| m.options.iter().rposition(|(name, _)| name == "source");
            let bound = run.mounts.iter().filter(bound);
            bound.filter_map(|m| m.options[source(m)?].1.as_ref()).collect()
        }
        _ => Vec::new(),
    }
}

/// What an instruction takes files from: the `--from` of a copy, the `from` of mounts.
fn takes_from(i: &Instruction) -> Vec<&Word> {
    match &i.kind {
        Kind::Copy(t) | Kind::Add(t) => t.from.iter().collect(),
        Kind::Run(run) => run.mounts.iter().filter_map(stage::mounts::from).collect(),
        _ => Vec::new(),
    }
}
