//! What shall happen: one graph for pipeline stages and Dockerfile instructions alike.
//!
//! [`Op`] is closed on purpose: adding one is a compile error wherever ops are performed or keyed.
//! `pipeline` emits the stage ops ([`Op::Build`], [`Op::Steps`], [`Op::Push`], [`Op::Deploy`]); `image` lowers
//! an `Op::Build` to a sub-plan of step ops ([`Op::Base`], [`Op::Exec`], [`Op::Fetch`], [`Op::Git`], [`Op::Copy`],
//! [`Op::Link`], [`Op::Mkdir`], [`Op::Assemble`]). A plan is a value: it can be printed, tested and journalled before anything acts.

use crate::chmod::Chmod;
use crate::digest::Digest;
use crate::ids::{AppName, NodeId, SnapshotId, StageName};
use crate::limits::Limits;
use crate::mount::RunMount;
use crate::oci::{Descriptor, History, ImageConfig};
use crate::platform::Platform;
use crate::reference::{ImageRef, PushedDigest, Repository, Tag};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// A graph of nodes. Invariant (checked by [`Plan::check`]): node `i` has id `i` and needs only lower ids,
/// so the order of the list is a valid order to run in, and there is no cycle.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Plan {
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The node whose output is the output of the whole plan, in a sub-plan.
    pub result: Option<NodeId>,
}

/// One unit of work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its place in the plan.
    pub id: NodeId,
    /// For people: the stage's name, or `[app 3/7] RUN make`.
    pub name: String,
    /// Nodes that must be done first; their outputs are handed over in this order.
    pub needs: Vec<NodeId>,
    /// What to do.
    pub op: Op,
    /// Bound on one attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Why it does not run, decided when planning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip: Option<crate::event::SkipReason>,
    /// It runs whatever earlier runs have left in the cache.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub anew: bool,
}

/// Why a plan is not valid: always a bug of the planner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("plan is not valid at node {node}: {what}")]
pub struct PlanError {
    node: usize,
    what: &'static str,
}

impl Plan {
    /// Checks the invariant.
    pub fn check(&self) -> Result<(), PlanError> {
        for (i, n) in self.nodes.iter().enumerate() {
            if n.id.index() != i {
                return Err(PlanError { node: i, what: "its id is not its place" });
            }
            if n.needs.iter().any(|d| d.index() >= i) {
                return Err(PlanError { node: i, what: "it needs a later node" });
            }
        }
        match self.result {
            Some(r) if r.index() >= self.nodes.len() => {
                Err(PlanError { node: r.index(), what: "the result is not a node" })
            }
            _ => Ok(()),
        }
    }
    /// Appends a node and returns its id.
    pub fn add(&mut self, name: impl Into<String>, needs: Vec<NodeId>, op: Op) -> NodeId {
        let id = NodeId(u32::try_from(self.nodes.len()).expect("a plan has fewer than 2^32 nodes"));
        self.nodes.push(Node { id, name: name.into(), needs, op, timeout: None, skip: None, anew: false });
        id
    }
    /// A node by id.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.index())
    }
}

/// What a node does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
#[allow(clippy::large_enum_variant, reason = "plans hold tens of nodes; clarity over a few bytes")]
pub enum Op {
    /// Build an image from a Dockerfile; lowered to a sub-plan when it starts.
    Build(BuildOp),
    /// Run the steps of a stage in one container.
    Steps(StepsOp),
    /// Push an image that a stage of this run made.
    Push(PushOp),
    /// Roll a pushed image out.
    Deploy(DeployOp),
    /// The layers of a pinned base image (or of scratch), as a chain of snapshots.
    Base(BaseOp),
    /// `RUN`: one process in a sandbox over the chain of need 0; its mounts name the other needs.
    Exec(ExecOp),
    /// `ADD` of an address: a file as a chain of its own, for a copy to take it from.
    Fetch(FetchOp),
    /// `ADD` of a repository: its files as a chain of their own, likewise.
    Git(GitOp),
    /// `COPY`, `ADD`: files into the chain of need 0, from the context or the chain of need 1.
    Copy(CopyOp),
    /// `COPY --link`: the snapshots of need 1, which was made on its own, on top of the chain of need 0.
    Link,
    /// `WORKDIR`: a directory in the chain of need 0.
    Mkdir(MkdirOp),
    /// Config and manifest over the chain of need 0.
    Assemble(AssembleOp),
}

impl Op {
    /// One word for people.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Build(_) => "build",
            Self::Steps(_) => "steps",
            Self::Push(_) => "push",
            Self::Deploy(_) => "deploy",
            Self::Base(_) => "base",
            Self::Exec(_) => "exec",
            Self::Fetch(_) => "fetch",
            Self::Git(_) => "git",
            Self::Copy(_) => "copy",
            Self::Link => "link",
            Self::Mkdir(_) => "mkdir",
            Self::Assemble(_) => "assemble",
        }
    }
}

/// A Dockerfile build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildOp {
    /// Context directory inside the source tree, as written.
    pub context: String,
    /// Dockerfile, relative to the context, as written.
    pub file: String,
    /// Stage to build; the last one where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// `--build-arg`s.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, String>,
    /// For which platform.
    pub platform: Platform,
    /// Bounds of each RUN.
    #[serde(default)]
    pub limits: Limits,
    /// Network of each RUN that names none.
    #[serde(default)]
    pub network: Network,
    /// The name of the runtime that isolates each RUN instead of our own sandbox; the machine says what it means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Labels of the image beside those of its Dockerfile, which they replace.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Which steps run whatever is in the cache.
    #[serde(default, skip_serializing_if = "Anew::is_nothing")]
    pub anew: Anew,
}

/// Which steps of a build run whatever earlier builds have left in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Anew {
    /// None.
    #[default]
    Nothing,
    /// All.
    Everything,
    /// Those of these stages, by name or number.
    Stages(Vec<String>),
}

impl Anew {
    const fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing)
    }
}

/// Where a stage's image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageSource {
    /// The output of a node of this plan, which is among the node's needs.
    Node(NodeId),
    /// An image by reference.
    Reference(ImageRef),
}

/// The network of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Only a loopback of its own.
    None,
    /// A network of its own that reaches out through NAT, and neither the machine nor any other sandbox.
    #[default]
    Private,
    /// The machine's network, shared.
    Host,
}

/// What a machine allows that a pushed file may only ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grant {
    /// The machine's network, for a `RUN` that names it.
    HostNetwork,
}

/// Serial steps in one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepsOp {
    /// The stage.
    pub stage: StageName,
    /// In which image.
    pub image: ImageSource,
    /// Environment of every step, in order of the file.
    pub env: Vec<(String, String)>,
    /// The steps.
    pub steps: Vec<Step>,
    /// Bounds.
    pub limits: Limits,
    /// Network.
    pub network: Network,
    /// The name of the runtime that isolates each step instead of our own sandbox; the machine says what it means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
}

/// One step of a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// A script for `sh -eu`.
    pub run: String,
    /// Environment of this step alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, String)>,
}

/// What a tag is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TagRule {
    /// The full commit id.
    Commit,
    /// The branch name, made to fit; left out where there is no branch.
    Branch,
    /// Just this.
    Literal(Tag),
}

/// A push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushOp {
    /// The node that made the image.
    pub image: NodeId,
    /// Where to.
    pub to: Repository,
    /// Under which tags.
    pub tags: Vec<TagRule>,
}

/// A rolling update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployOp {
    /// The push node whose digest is deployed.
    pub image: NodeId,
    /// Name of the app on its hosts.
    pub app: AppName,
    /// Name of the target.
    pub target_name: String,
    /// The hosts and their balancer.
    pub target: Target,
    /// Replicas over all hosts.
    pub replicas: u32,
    /// Port the app listens on inside its own network namespace.
    pub port: u16,
    /// Environment of the replicas.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, String)>,
    /// When a replica counts as healthy.
    pub health: Health,
    /// How long a drained replica may finish what it has.
    pub drain: Duration,
    /// From SIGTERM to SIGKILL.
    pub stop_grace: Duration,
    /// Bounds of each replica.
    #[serde(default)]
    pub limits: Limits,
}

/// HTTP health of a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Path that must answer 2xx or 3xx.
    pub http: String,
    /// Between two checks.
    pub interval: Duration,
    /// For one check.
    pub timeout: Duration,
    /// Good answers in a row that make it healthy.
    pub healthy: u32,
    /// Bad answers in a row that make it unhealthy again.
    pub unhealthy: u32,
    /// From the start of a replica to healthy, at the latest.
    pub deadline: Duration,
}

/// Hosts that share an app, with their balancers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The hosts, in order.
    pub hosts: Vec<TargetHost>,
    /// Name of an ssh configuration that the deploying machine maps to a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_config: Option<String>,
    /// Address each host's balancer listens on, for example `:80`.
    pub listen: String,
}

/// One host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TargetHost {
    /// `user@host` or an alias of the ssh configuration; never starts with `-`.
    pub ssh: String,
}

/// The pinned base of a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseOp {
    /// What the Dockerfile says, for people.
    pub reference: Option<ImageRef>,
    /// The manifest; `None` is scratch.
    pub manifest: Option<Descriptor>,
    /// Its config.
    pub config: Box<ImageConfig>,
}

/// A user of a container as an image writes it: `name|uid[:name|gid]`; resolved in the root file system.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserSpec(pub String);

/// A `RUN`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecOp {
    /// The argument vector, shell included.
    pub argv: Vec<String>,
    /// The whole environment, in order.
    pub env: Vec<(String, String)>,
    /// Proxy variables that are passed on but never part of a key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unkeyed_env: Vec<(String, String)>,
    /// Working directory, absolute.
    pub cwd: String,
    /// User.
    pub user: UserSpec,
    /// Network.
    pub network: Network,
    /// What it has beyond its root, present only while it runs, in the order it is mounted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<RunMount>,
    /// Bounds; no part of the key.
    #[serde(default)]
    pub limits: Limits,
    /// What names this step across builds: see [`crate::cache::CacheKey::identity`].
    pub identity: Digest,
}

/// An `ADD` of a file by address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchOp {
    /// http or https.
    pub url: String,
    /// What the file is called.
    pub name: String,
    /// `--checksum`: `sha256:..`, `sha384:..` or `sha512:..`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
    /// What a `RUN` of this build would reach; the fetch reaches no more. No part of the key.
    pub network: Network,
    /// What names this step across builds.
    pub identity: Digest,
}

/// An `ADD` of a git repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitOp {
    /// The address, without reference and folder.
    pub url: String,
    /// Branch, tag, full reference or commit; `HEAD`.
    pub reference: String,
    /// Only this folder of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// The id of the commit that it must be, or its beginning, in lower case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
    /// `--keep-git-dir`: with a `.git`.
    pub keep_git_dir: bool,
    /// Whether submodules are wanted; else their folders are empty.
    pub submodules: bool,
    /// What a `RUN` of this build would reach; the fetch reaches no more. No part of the key.
    pub network: Network,
    /// What names this step across builds.
    pub identity: Digest,
}

/// Where a copy's files come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyFrom {
    /// The build context, behind its ignore patterns.
    Context,
    /// The chain of need 1.
    Stage,
    /// Heredocs: file name and content.
    Inline(Vec<(String, String)>),
}

/// Whether local archives are unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unpack {
    /// `COPY`.
    Never,
    /// `ADD`: archives, told by their content.
    Archives,
}

/// A `COPY` or `ADD`. Its needs: the chain that it copies into, unless it is a [`link`](Self::link); the chain that it
/// copies from, with [`CopyFrom::Stage`]; and for a link whose owner is given by name, the chain whose files know the
/// names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyOp {
    /// Source patterns, expanded, as written.
    pub sources: Vec<String>,
    /// From where.
    pub from: CopyFrom,
    /// With [`CopyFrom::Context`], the name of the context; the build's own where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// Destination, absolute; a trailing `/` is kept.
    pub dest: String,
    /// `--chown`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chown: Option<UserSpec>,
    /// `--chmod`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chmod: Option<Chmod>,
    /// `--exclude`: patterns as in an ignore file, of paths from the source that is copied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// `--parents`: a source keeps its path, or what follows `/./` in it, beneath the destination.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub parents: bool,
    /// `--link`: into an empty root, whatever lies below; an [`Op::Link`] puts it there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub link: bool,
    /// Archives.
    pub unpack: Unpack,
    /// What names this step across builds.
    pub identity: Digest,
}

/// A `WORKDIR`'s directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MkdirOp {
    /// Absolute path.
    pub path: String,
    /// Owner of what is made.
    pub user: UserSpec,
    /// What names this step across builds.
    pub identity: Digest,
}

/// The end of a build: config and manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AssembleOp {
    /// The config, without `rootfs`, `created` and history times, which are filled in when the layers are known.
    pub config: Box<ImageConfig>,
    /// The base's layers, taken over as they are, compressed as they are.
    pub base: Option<Descriptor>,
    /// History of this build, one line an instruction.
    pub history: Vec<History>,
}

/// What a node gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Output {
    /// Nothing that others use.
    Nothing,
    /// A root file system.
    Chain(Chain),
    /// An image in the store.
    Image(ImageOutput),
    /// A manifest in a registry.
    Pushed(PushedDigest),
}

/// A root file system: snapshots, lowest first, and the key that names them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Snapshots of the store, lowest first; empty is an empty root.
    pub snapshots: Vec<SnapshotId>,
    /// What the next step's key stands on.
    pub key: Digest,
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageOutput {
    /// The manifest: media type, digest, size.
    pub manifest: Descriptor,
    /// Its root file system.
    pub chain: Chain,
    /// How many of its layers, the lowest, are its base's.
    #[serde(default)]
    pub base_layers: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_may_not_need_a_later_one() {
        let mut plan = Plan::default();
        let op =
            || Op::Mkdir(MkdirOp { path: "/".into(), user: UserSpec::default(), identity: Digest::of(b"") });
        let a = plan.add("a", vec![], op());
        plan.add("b", vec![a], op());
        assert!(plan.check().is_ok());
        plan.nodes[0].needs.push(NodeId(1));
        assert!(plan.check().is_err());
    }
}
