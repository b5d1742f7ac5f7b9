//! `keelway container ..` as it is typed: the flags that people know from docker.

use clap::{Args, Subcommand};
use keelway_container::publish::Publish;
use keelway_container::{ContainerName, RestartPolicy};
use std::path::PathBuf;
use std::time::Duration;

/// Containers of this machine.
#[derive(Debug, Subcommand)]
pub enum ContainerVerb {
    /// Run a command in a new container
    #[command(
        after_help = "Examples:\n  keelway container run --rm -it busybox sh\n  keelway container run -d --name web -p 8080:80 --restart on-failure:3 shop/web:dev\n\nExit codes: that of the command; 125 it was not started, 126 it cannot be executed,\n127 there is no such command, 128+N a signal ended it."
    )]
    Run(Box<RunArgs>),
    /// List containers
    Ls {
        /// Those that have ended, too
        #[arg(long, short)]
        all: bool,
    },
    /// Print what a container wrote
    Logs {
        /// Name or id
        container: String,
        /// Go on while it runs
        #[arg(long, short)]
        follow: bool,
        /// Only what was written since: a time (2026-11-23T14:00:00Z) or a span (10m)
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// The last lines only
        #[arg(long, short = 'n', value_name = "N|all", value_parser = tail)]
        tail: Option<Tail>,
        /// With the time of each line
        #[arg(long, short = 't')]
        timestamps: bool,
    },
    /// Run a command in a running container
    #[command(after_help = "Example:\n  keelway container exec -it web sh")]
    Exec(ExecArgs),
    /// Stop containers: their stop signal, and SIGKILL when that does not end them
    Stop {
        /// Seconds until SIGKILL [default: the container's own, else 10]
        #[arg(long, short, value_name = "SECONDS")]
        time: Option<u32>,
        /// Names or ids
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Send containers a signal
    Kill {
        /// Which
        #[arg(long, short, default_value = "KILL", value_name = "SIGNAL")]
        signal: String,
        /// Names or ids
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Remove containers
    Rm {
        /// Those that run, too: they are killed
        #[arg(long, short)]
        force: bool,
        /// Names or ids
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Show what running containers use
    Stats {
        /// Once
        #[arg(long)]
        no_stream: bool,
        /// Names or ids [default: all that run]
        containers: Vec<String>,
    },
    /// Show everything about containers
    Inspect {
        /// Names or ids
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Copy files out of a container, or into it
    #[command(
        after_help = "Examples:\n  keelway container cp web:/var/log/app.log .\n  keelway container cp config/ web:/etc/app"
    )]
    Cp {
        /// CONTAINER:PATH, or a path here
        from: String,
        /// CONTAINER:PATH, or a path here
        to: String,
    },
}

/// How many lines of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// Every one.
    All,
    /// So many.
    Last(usize),
}

fn tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" => Ok(Tail::All),
        number => number.parse().map(Tail::Last).map_err(|_| "write a number, or all".into()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    keelway_model::parse_duration(text).map_err(|e| e.to_string())
}

/// The flags of `container run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Keep its standard input open
    #[arg(long, short)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// Remove it when it ends
    #[arg(long)]
    pub rm: bool,
    /// In the background; prints its id
    #[arg(long, short)]
    pub detach: bool,
    /// Its name [default: two words]
    #[arg(long, value_name = "NAME")]
    pub name: Option<ContainerName>,
    /// An environment variable; without a value it is taken from here
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// A file of environment variables, one a line
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// A directory or file of this machine in the container: an absolute path, or one that begins with ./
    #[arg(long, short, value_name = "PATH:TARGET[:ro]")]
    pub volume: Vec<String>,
    /// Its working directory [default: the image's]
    #[arg(long, short, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Who: a name or number, and a group after a colon [default: the image's]
    #[arg(long, short, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// A port of this machine that leads to one of the container
    #[arg(long, short, value_name = "[IP:]HOST:CONTAINER")]
    pub publish: Vec<Publish>,
    /// Its network: private (out through NAT, nothing in), none, or host (this machine's)
    #[arg(long, value_name = "MODE", default_value = "private")]
    pub network: String,
    #[command(flatten)]
    pub limits: crate::limit_args::LimitArgs,
    /// Nothing below / can be written
    #[arg(long)]
    pub read_only: bool,
    /// An empty directory in memory
    #[arg(long, value_name = "TARGET[:size=64m,mode=1777]")]
    pub tmpfs: Vec<String>,
    /// One capability more
    #[arg(long, value_name = "CAP")]
    pub cap_add: Vec<String>,
    /// One capability less, or ALL
    #[arg(long, value_name = "CAP")]
    pub cap_drop: Vec<String>,
    /// The program in place of the image's ENTRYPOINT
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Reap orphans: always done
    #[arg(long)]
    pub init: bool,
    /// When it ended: no, on-failure[:N], always, unless-stopped
    #[arg(long, value_name = "POLICY", default_value = "no")]
    pub restart: RestartPolicy,
    /// A shell command that ends with 0 while the container is well
    #[arg(long, value_name = "COMMAND")]
    pub health_cmd: Option<String>,
    /// Between two checks [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub health_interval: Option<Duration>,
    /// For one check [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub health_timeout: Option<Duration>,
    /// Failures in a row that make it unhealthy [default: 3]
    #[arg(long, value_name = "N")]
    pub health_retries: Option<u32>,
    /// Failures do not count for so long after a start
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub health_start_period: Option<Duration>,
    /// Its host name [default: the beginning of its id]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// What stops it [default: the image's, else SIGTERM]
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Seconds from the stop signal to SIGKILL [default: 10]
    #[arg(long, value_name = "SECONDS")]
    pub stop_timeout: Option<u32>,
    /// A word about it
    #[arg(long, short, value_name = "KEY[=VALUE]")]
    pub label: Vec<String>,
    #[command(flatten)]
    pub names: crate::args::Names,
    /// The image, which is pulled when the store does not have it, and a command in place of the image's. Whatever comes
    /// after the image is the command's
    #[arg(required = true, trailing_var_arg = true, value_name = "IMAGE [COMMAND]")]
    words: Vec<String>,
}

impl RunArgs {
    /// The image.
    pub fn image(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }
    /// The command, empty for the image's.
    pub fn command(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }
}

/// The flags of `container exec`.
#[derive(Debug, Clone, Args)]
pub struct ExecArgs {
    /// Keep its standard input open
    #[arg(long, short)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// An environment variable; without a value it is taken from here
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Who [default: as the container]
    #[arg(long, short, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Where [default: as the container]
    #[arg(long, short, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Name or id, and the command. Whatever comes after the name is the command's
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, value_name = "CONTAINER COMMAND")]
    words: Vec<String>,
}

impl ExecArgs {
    /// Name or id.
    pub fn container(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }
    /// The command.
    pub fn command(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }
}
