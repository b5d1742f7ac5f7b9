//! The command line as it is typed. What it means is decided in [`crate::settings`] and [`crate::commands`].

use crate::container_args::ContainerVerb;
use clap::{Args, Parser, Subcommand, ValueEnum};
use keelway_container::network::Range;
use keelway_model::Bytes;
use std::path::PathBuf;

/// From a commit to running replicas: build, test, push, roll out.
#[derive(Debug, Parser)]
#[command(
    name = "keelway",
    version,
    propagate_version = true,
    after_help = "Examples:\n  keelway run                              the pipeline of this checkout\n  keelway run --repo https://example.com/shop.git --commit main\n  keelway image build -t shop/web:dev .    one image, no pipeline\n  keelway runs ls                          what ran\n\nExit codes: 0 done, 1 a step failed, 2 wrong usage or definition, 3 cancelled,\n4 the world outside failed, 10 to 14 deploys (docs/exit-codes.md)."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// How to say what happens
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub format: Format,
    /// Say only how it ended
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// When to use colour
    #[arg(long, global = true, value_enum, default_value_t = Colour::Auto, value_name = "WHEN")]
    pub color: Colour,
    /// Where the store, the ledger and mirrors are [default: /var/lib/keelway for root]
    #[arg(long, global = true, value_name = "DIR")]
    pub state: Option<PathBuf>,
}

/// How to say what happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Colour {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What this machine says of names in pipeline files.
#[derive(Debug, Clone, Default, Args)]
pub struct Names {
    /// The certificate authority that a pipeline file (or a registry's host name) calls NAME
    #[arg(long, value_name = "NAME=FILE", value_parser = named_file)]
    pub registry_ca: Vec<(String, PathBuf)>,
    /// A registry that may be spoken to without TLS
    #[arg(long, value_name = "HOST[:PORT]")]
    pub registry_http: Vec<String>,
    /// The ssh configuration file that a target calls NAME
    #[arg(long, value_name = "NAME=FILE", value_parser = named_file)]
    pub ssh_config: Vec<(String, PathBuf)>,
    /// A certificate authority to trust for everything, besides the system's
    #[arg(long, value_name = "FILE")]
    pub ca: Vec<PathBuf>,
    /// The OCI runtime (runc, crun, runsc) that a stage's `isolation` calls NAME
    #[arg(long, value_name = "NAME=PATH", value_parser = named_file)]
    pub runtime: Vec<(String, PathBuf)>,
    /// What a Dockerfile may have when it asks for it
    #[arg(long, value_enum, value_name = "WHAT")]
    pub allow: Vec<Allow>,
    /// The /16 of addresses for private networks [default: one that no route of this machine goes into]
    #[arg(long, value_name = "CIDR")]
    pub network_range: Option<Range>,
}

/// What a machine may allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Allow {
    /// This machine's network, for RUN --network=host
    HostNetwork,
}

/// The network of each RUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RunNetwork {
    /// A loopback of its own
    None,
    /// Reaches out, and nothing of this machine
    #[value(alias = "default")]
    Private,
    /// This machine's
    Host,
}

/// More that a build takes files from.
#[derive(Debug, Clone, Args)]
pub struct ContextArgs {
    /// Files or an image for FROM, --from and from= under a name: a folder, a repository, a tar's address, docker-image:// or oci-layout://
    #[arg(long, value_name = "NAME=WHAT")]
    pub build_context: Vec<String>,
    /// The ssh configuration file to reach repositories with [default: your own; for those that ADD names, none]
    #[arg(long, value_name = "FILE")]
    pub git_ssh_config: Option<PathBuf>,
}

fn named_file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => Ok((name.to_owned(), file.into())),
        _ => Err("write it as NAME=FILE".into()),
    }
}

/// Where the source is, and whether its uncommitted changes count.
#[derive(Debug, Clone, Default, Args)]
pub struct Source {
    #[command(flatten)]
    pub place: Place,
    /// Take the tree as it lies there, uncommitted changes included; never pushes or deploys
    #[arg(long, conflicts_with = "repo")]
    pub dirty: bool,
}

impl From<&Place> for Source {
    fn from(place: &Place) -> Self {
        Self { place: place.clone(), dirty: false }
    }
}

/// Where the source is.
#[derive(Debug, Clone, Default, Args)]
pub struct Place {
    /// A repository: https, ssh, file URL or path [default: the checkout you stand in]
    #[arg(long, value_name = "URL")]
    pub repo: Option<String>,
    /// Branch, tag or commit of --repo
    #[arg(long, value_name = "REF", requires = "repo")]
    pub commit: Option<String>,
    /// The ssh configuration file to reach --repo with [default: your own]
    #[arg(long, value_name = "FILE", requires = "repo")]
    pub git_ssh_config: Option<PathBuf>,
}

impl Verb {
    /// Does it use the store, whose files belong to many users? An ordinary user then enters its own user namespace.
    pub fn needs_ids(&self) -> bool {
        match self {
            Self::Run { .. }
            | Self::Plan { .. }
            | Self::Watch { .. }
            | Self::Image(_)
            | Self::Store(_)
            | Self::Container(_) => true,
            Self::Lint(_) | Self::Explain { .. } | Self::Runs(_) | Self::Deploy(_) | Self::Doctor => false,
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run the pipeline of this checkout, or of --repo URL --commit REF
    #[command(
        after_help = "Examples:\n  keelway run\n  keelway run test                     one stage and what it needs\n  keelway run --dirty test\n  keelway run --repo git@git.example.com:shop/web.git --commit v1.2"
    )]
    Run {
        /// Stages to run, with what they need [default: all]
        stages: Vec<String>,
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        names: Names,
    },
    /// Show what would run, and why
    #[command(after_help = "Example:\n  keelway plan --repo https://example.com/shop.git --commit main")]
    Plan {
        /// Stages to plan, with what they need [default: all]
        stages: Vec<String>,
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        names: Names,
    },
    /// Report every problem of keelway.yml and the Dockerfiles it names, or of one Dockerfile
    #[command(
        after_help = "The files are read as they lie there, committed or not; nothing is built, fetched or stored.\n\nExamples:\n  keelway lint                             keelway.yml and its Dockerfiles\n  keelway lint --repo https://example.com/shop.git --commit main\n  keelway lint .                           the Dockerfile of a folder\n  keelway lint -f docker/Dockerfile --build-arg VERSION=3 ."
    )]
    Lint(Box<LintArgs>),
    /// Say what a diagnostic means and how to mend it
    #[command(after_help = "Example:\n  keelway explain K0102")]
    Explain {
        /// The code in brackets, for example K0102
        code: String,
    },
    /// Run the pipeline for every new commit of a branch
    #[command(after_help = "Example:\n  keelway watch --repo https://example.com/shop.git --branch main")]
    Watch {
        /// The repository
        #[arg(long, value_name = "URL")]
        repo: String,
        /// The ssh configuration file to reach it with [default: your own]
        #[arg(long, value_name = "FILE")]
        git_ssh_config: Option<PathBuf>,
        /// The branch
        #[arg(long, default_value = "main")]
        branch: String,
        /// Between two looks
        #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = duration)]
        every: std::time::Duration,
        /// Look once, run what is new, and end
        #[arg(long)]
        once: bool,
        #[command(flatten)]
        names: Names,
    },
    /// Runs, past and present
    #[command(subcommand)]
    Runs(RunsVerb),
    /// Images of this machine's store
    #[command(subcommand)]
    Image(ImageVerb),
    /// Containers of this machine
    #[command(subcommand)]
    Container(ContainerVerb),
    /// The store of images and caches
    #[command(subcommand)]
    Store(StoreVerb),
    /// What runs on a target's hosts
    #[command(subcommand)]
    Deploy(DeployVerb),
    /// Say what this machine can and cannot do, and how to mend it
    #[command(after_help = "Example:\n  keelway doctor")]
    Doctor,
}

fn duration(text: &str) -> Result<std::time::Duration, String> {
    keelway_model::parse_duration(text).map_err(|e| e.to_string())
}

fn until_filter(text: &str) -> Result<std::time::Duration, String> {
    match text.split_once('=') {
        Some(("until", value)) => duration(value),
        _ => Err("the one filter is until=DURATION, for example until=168h".into()),
    }
}

/// What `keelway lint` looks at: a pipeline, or with DIR or a flag of builds one Dockerfile.
#[derive(Debug, Args)]
pub struct LintArgs {
    /// Look at one Dockerfile, with this build context [default: ., where a flag asks for it]
    #[arg(conflicts_with = "repo")]
    pub dir: Option<PathBuf>,
    /// The Dockerfile [default: DIR/Dockerfile]
    #[arg(long, short = 'f', value_name = "FILE", conflicts_with = "repo")]
    pub file: Option<PathBuf>,
    /// The stage that would be built [default: all are looked at]
    #[arg(long, value_name = "STAGE", conflicts_with = "repo")]
    pub target: Option<String>,
    /// A build argument; without a value it is taken from the environment
    #[arg(long, value_name = "NAME[=VALUE]", conflicts_with = "repo")]
    pub build_arg: Vec<String>,
    #[command(flatten)]
    pub place: Place,
    /// What it does anyway, without --repo
    #[arg(long, hide = true, conflicts_with = "repo")]
    pub dirty: bool,
}

/// Runs, past and present.
#[derive(Debug, Subcommand)]
pub enum RunsVerb {
    /// List runs, newest first
    Ls {
        /// At most so many
        #[arg(long, short = 'n', default_value_t = 20, value_name = "N")]
        limit: u32,
    },
    /// Show one run: attempts, stages, steps
    Show {
        /// The run, or the unique beginning of its id [default: the newest]
        run: Option<String>,
    },
    /// Print the output of a run's stages, and why they failed
    #[command(
        after_help = "Examples:\n  keelway runs logs --stage test           of the newest run\n  keelway runs logs 20261123-140309-3fa2c1 test"
    )]
    Logs {
        /// The run, or the unique beginning of its id [default: the newest]
        run: Option<String>,
        /// Only this stage
        stage: Option<String>,
        /// The same, for the newest run
        #[arg(long = "stage", value_name = "STAGE", conflicts_with = "stage")]
        only: Option<String>,
    },
}

/// Images of this machine's store.
#[derive(Debug, Subcommand)]
pub enum ImageVerb {
    /// Build an image from a Dockerfile
    #[command(
        after_help = "Examples:\n  keelway image build .\n  keelway image build -t shop/web:dev -f docker/Dockerfile --build-arg VERSION=3 ."
    )]
    Build {
        /// The build context: a folder, a repository as URL[#REF[:FOLDER]], the address of a tar or Dockerfile, or - for one on standard input
        #[arg(value_name = "CONTEXT")]
        dir: PathBuf,
        /// Name the image in the store
        #[arg(long, short = 't', value_name = "NAME[:TAG]")]
        tag: Vec<String>,
        /// The Dockerfile; - for standard input [default: CONTEXT/Dockerfile]
        #[arg(long, short = 'f', value_name = "FILE")]
        file: Option<PathBuf>,
        /// The stage to build [default: the last]
        #[arg(long, value_name = "STAGE")]
        target: Option<String>,
        /// A build argument; without a value it is taken from the environment
        #[arg(long, value_name = "NAME[=VALUE]")]
        build_arg: Vec<String>,
        #[command(flatten)]
        contexts: Box<ContextArgs>,
        /// A secret for RUN --mount=type=secret, from a file or a variable
        #[arg(long, value_name = "id=ID,src=FILE|env=NAME")]
        secret: Vec<String>,
        /// An ssh agent for RUN --mount=type=ssh [default socket: that of SSH_AUTH_SOCK]
        #[arg(long, value_name = "ID[=SOCKET]")]
        ssh: Vec<String>,
        /// The network of each RUN that names none
        #[arg(long, value_enum, default_value_t = RunNetwork::Private, value_name = "NETWORK")]
        network: RunNetwork,
        #[command(flatten)]
        flags: Box<crate::build_args::BuildFlags>,
        #[command(flatten)]
        limits: Box<crate::limit_args::LimitArgs>,
        #[command(flatten)]
        names: Names,
    },
    /// Bring an image from its registry into the store
    Pull {
        /// The image
        image: String,
        #[command(flatten)]
        names: Names,
    },
    /// Push an image of the store to the registry in its name
    Push {
        /// The image
        image: String,
        #[command(flatten)]
        names: Names,
    },
    /// Take an image from an OCI layout directory into the store
    #[command(after_help = "Example:\n  keelway image load ./layout --select latest base/python:12")]
    Load {
        /// The layout directory
        layout: PathBuf,
        /// The name it gets
        image: String,
        /// Its tag or digest in the layout, where the layout holds several
        #[arg(long, value_name = "TAG|DIGEST")]
        select: Option<String>,
    },
    /// List the images that have a name
    Ls,
    /// Remove what nothing needs, the least recently used first; shows what before it does so
    #[command(
        after_help = "Never removed: what a build, a container or a deployment needs, and, without --all, images that have a name.\n\nExamples:\n  keelway image prune --dry-run            what would go, and why the rest stays\n  keelway image prune --keep-storage 20G\n  keelway image prune --until 168h --yes   what was not used for a week\n  keelway image prune --all"
    )]
    Prune(PruneArgs),
}

/// What shall be removed.
#[derive(Debug, Clone, Args)]
pub struct PruneArgs {
    /// Images that have a name, too, and down to nothing: all that no container, deployment or running build needs
    #[arg(long, short = 'a')]
    pub all: bool,
    /// Until the store takes no more than this [default: its limit; 0 with --all or --until]
    #[arg(long, value_name = "SIZE", visible_alias = "max-used-space")]
    pub keep_storage: Option<Bytes>,
    /// Until so much of its disk is free
    #[arg(long, value_name = "SIZE", visible_alias = "min-free-space")]
    pub keep_free: Option<Bytes>,
    /// Only what was not used for so long
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub until: Option<std::time::Duration>,
    /// The same, as docker says it: until=DURATION
    #[arg(long, value_name = "FILTER", value_parser = until_filter, conflicts_with = "until")]
    pub filter: Option<std::time::Duration>,
    /// Show the plan, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do it without asking
    #[arg(long, short = 'y', visible_short_alias = 'f', visible_alias = "force")]
    pub yes: bool,
}

/// The store of images and caches.
#[derive(Debug, Subcommand)]
pub enum StoreVerb {
    /// Say what takes how much room, and why it stays
    #[command(after_help = "Example:\n  keelway store df")]
    Df,
    /// Look whether everything in it is what it says it is
    #[command(
        after_help = "Ends with 4 when something is wrong. Builds may go on meanwhile.\n\nExamples:\n  keelway store check               names, records and lengths\n  keelway store check --read-data   every byte: as long as reading the store takes\n  keelway store check --repair"
    )]
    Check {
        /// Read every byte: blobs against their digests, files against the layers that they are
        #[arg(long)]
        read_data: bool,
        /// Remove what is damaged, so that it is pulled or made again when it is needed
        #[arg(long)]
        repair: bool,
    },
}

/// What runs on a target's hosts.
#[derive(Debug, Subcommand)]
pub enum DeployVerb {
    /// Show hosts, replicas, digests and health
    #[command(after_help = "Example:\n  keelway deploy status production")]
    Status {
        /// A target of the pipeline file
        target: String,
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        names: Names,
    },
    /// Go back to the release before this one
    #[command(after_help = "Example:\n  keelway deploy rollback production")]
    Rollback {
        /// A target of the pipeline file
        target: String,
        /// The app, where the target has several
        #[arg(long)]
        app: Option<String>,
        #[command(flatten)]
        source: Source,
        #[command(flatten)]
        names: Names,
    },
}
