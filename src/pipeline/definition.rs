//! A checked pipeline file.
//!
//! Invariants of a [`Definition`] that [`crate::parse`] returned: stage names are unique, `needs` name stages
//! and have no cycle, every stage image is built by a (transitive) need, every deploy names a push among its needs
//! and a target of the file, and every text has been parsed into its type.

use keelway_model::ids::AppName;
use keelway_model::plan::{Health, Network, Step, TagRule, Target};
use keelway_model::{Diagnostics, ImageRef, Limits, Repository, SourceText, Span, StageName};
use std::collections::BTreeMap;
use std::time::Duration;

use crate::trigger::Event;

/// A pipeline file, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    /// The text it was read from.
    pub source: SourceText,
    /// What starts it.
    pub on: On,
    /// Environment of every step of every stage, in order of the file.
    pub env: Vec<(String, String)>,
    /// The stages, in order of the file.
    pub stages: Vec<Stage>,
    /// Hosts by name.
    pub targets: BTreeMap<String, Target>,
    /// What is asked for about registries, by host (with port).
    pub registries: BTreeMap<String, RegistryRule>,
    /// What is worth knowing though it stops nothing.
    pub warnings: Diagnostics,
}

impl Definition {
    /// A stage by name.
    pub fn stage(&self, name: &str) -> Option<&Stage> {
        self.stages.iter().find(|s| s.name.as_str() == name)
    }
}

/// What starts a run. Without `on` in the file, every event does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct On {
    /// The events named, with their filter; `None` where the file has no `on`.
    pub events: Option<BTreeMap<Event, Filter>>,
}

/// Which branches an event counts for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Patterns of branches; empty is every branch.
    pub branches: Vec<Pattern>,
}

/// A name with `*` for any run of characters (slashes too).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(pub String);

/// One stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// Its name.
    pub name: StageName,
    /// Where the name stands.
    pub span: Span,
    /// Stages that must have succeeded before.
    pub needs: Vec<StageName>,
    /// When it runs; the default is always.
    pub when: When,
    /// Bound on one attempt.
    pub timeout: Option<Duration>,
    /// What it does.
    pub kind: Kind,
}

/// Conditions of a stage: each that is there must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct When {
    /// One of these matches the branch.
    pub branch: Vec<Pattern>,
    /// The event is one of these.
    pub event: Vec<Event>,
}

/// What a stage does.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "a file has tens of stages; clarity over a few bytes")]
pub enum Kind {
    /// `build`
    Build(Build),
    /// `steps`
    Steps(Steps),
    /// `push`
    Push(Push),
    /// `deploy`
    Deploy(Deploy),
}

impl Kind {
    /// The key that names it in the file.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Build(_) => "build",
            Self::Steps(_) => "steps",
            Self::Push(_) => "push",
            Self::Deploy(_) => "deploy",
        }
    }
}

/// A Dockerfile build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// Directory inside the repository; `.` where none is written.
    pub context: String,
    /// Dockerfile, relative to the context; `Dockerfile` where none is written.
    pub file: String,
    /// Dockerfile stage to build; the last where none is written.
    pub target: Option<String>,
    /// Where that stands.
    pub target_span: Option<Span>,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// Bounds of each RUN.
    pub limits: Limits,
    /// Network of each RUN that names none.
    pub network: Network,
    /// The name of the runtime that isolates each RUN.
    pub runtime: Option<String>,
}

/// An image of a stage, or one by reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StageImage {
    /// The image that a build stage of this file makes.
    Stage(StageName),
    /// An image by reference.
    Reference(ImageRef),
}

/// Serial steps in one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Steps {
    /// In which image.
    pub image: StageImage,
    /// Environment of every step of this stage, over the pipeline's.
    pub env: Vec<(String, String)>,
    /// Bounds of the container.
    pub limits: Limits,
    /// The steps, at least one.
    pub steps: Vec<Step>,
    /// Network of the container.
    pub network: Network,
    /// The name of the runtime that isolates each step.
    pub runtime: Option<String>,
}

/// A push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// The build stage whose image is pushed.
    pub image: StageName,
    /// Where to.
    pub to: Repository,
    /// Under which tags, at least one.
    pub tags: Vec<TagRule>,
}

/// A rolling update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deploy {
    /// The push stage whose digest is deployed.
    pub image: StageName,
    /// Name of the target.
    pub to: String,
    /// Name of the app on its hosts.
    pub app: AppName,
    /// Replicas over all hosts.
    pub replicas: u32,
    /// Port the app listens on.
    pub port: u16,
    /// Environment of the replicas; the pipeline's `env` is not among it.
    pub env: Vec<(String, String)>,
    /// Bounds of each replica.
    pub limits: Limits,
    /// When a replica counts as healthy.
    pub health: Health,
    /// How long a drained replica may finish what it has.
    pub drain: Duration,
    /// From SIGTERM to SIGKILL.
    pub stop_grace: Duration,
}

/// What the file asks for about a registry. The machine's settings or the command line say what the names mean
/// and whether it is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryRule {
    /// `ca: NAME`: trust the certificate authority that the deploying machine knows by this name.
    Authority(String),
    /// `http: true`: plain http.
    PlainHttp,
}
