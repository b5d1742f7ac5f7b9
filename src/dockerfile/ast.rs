//! What a Dockerfile says: typed instructions, nothing expanded, a span for everything.
//!
//! Every text that may hold variables is a [`Word`] as written; [`crate::expand`] turns it into a value once
//! the environment is known. Nothing here decides what is supported: an instruction that is valid but not
//! executed yet is represented in full, and the planner refuses it by name.

use keelway_model::{SourceText, Span};

/// A whole file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// The text that all spans point into.
    pub source: SourceText,
    /// The escape character: a backslash unless a directive says backtick.
    pub escape: char,
    /// Parser directives in order, keys in lower case.
    pub directives: Vec<Directive>,
    /// `ARG`s before the first `FROM`.
    pub globals: Vec<Instruction>,
    /// The stages, in order; at least one.
    pub stages: Vec<Stage>,
}

/// A `# key=value` line at the head of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// `syntax`, `escape` or `check`.
    pub key: String,
    /// The value as written.
    pub value: Word,
}

/// Text as written, with its place. The span covers where it came from; in a continued instruction that
/// may include what the lexer dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// The text, continuation resolved, nothing expanded.
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

/// How an instruction is written, beside what it says: what only lint rules look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Its name, as it is written.
    pub keyword: String,
    /// The comments since the instruction before it, without their `#`; an empty one begins anew.
    pub comments: Vec<Word>,
    /// The first blank line inside it.
    pub blank: Option<Span>,
    /// `ENV name value` or `LABEL name value`, without a `=`.
    pub old_form: bool,
}

/// One `FROM` and what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// The base: an image, an earlier stage or `scratch`.
    pub base: Word,
    /// `AS name`, in lower case.
    pub name: Option<Word>,
    /// `--platform=`.
    pub platform: Option<Word>,
    /// The whole `FROM` instruction.
    pub span: Span,
    /// Its text, for people.
    pub text: String,
    /// How it is written.
    pub written: Written,
    /// The instructions that follow.
    pub instructions: Vec<Instruction>,
}

/// One instruction inside a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// The whole instruction, heredocs included.
    pub span: Span,
    /// Its first logical line as written, for people: `RUN make`.
    pub text: String,
    /// How it is written.
    pub written: Written,
    /// What it is.
    pub kind: Kind,
}

/// The instructions; `FROM` opens a [`Stage`] instead.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "a Dockerfile holds tens of these")]
pub enum Kind {
    /// `ADD`.
    Add(Transfer),
    /// `ARG`.
    Arg(Vec<Argument>),
    /// `CMD`.
    Cmd(Command),
    /// `COPY`.
    Copy(Transfer),
    /// `ENTRYPOINT`.
    Entrypoint(Command),
    /// `ENV`, names and values.
    Env(Vec<(Word, Word)>),
    /// `EXPOSE`.
    Expose(Vec<Word>),
    /// `HEALTHCHECK`.
    Healthcheck(Health),
    /// `LABEL`, names and values.
    Label(Vec<(Word, Word)>),
    /// `MAINTAINER`.
    Maintainer(Word),
    /// `ONBUILD`, with the text that goes into the config.
    Onbuild(Trigger),
    /// `RUN`.
    Run(Run),
    /// `SHELL`.
    Shell(Vec<String>),
    /// `STOPSIGNAL`.
    StopSignal(Word),
    /// `USER`.
    User(Word),
    /// `VOLUME`.
    Volume(Vec<Word>),
    /// `WORKDIR`.
    Workdir(Word),
}

impl Kind {
    /// The instruction's name in capitals.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Add(_) => "ADD",
            Self::Arg(_) => "ARG",
            Self::Cmd(_) => "CMD",
            Self::Copy(_) => "COPY",
            Self::Entrypoint(_) => "ENTRYPOINT",
            Self::Env(_) => "ENV",
            Self::Expose(_) => "EXPOSE",
            Self::Healthcheck(_) => "HEALTHCHECK",
            Self::Label(_) => "LABEL",
            Self::Maintainer(_) => "MAINTAINER",
            Self::Onbuild(_) => "ONBUILD",
            Self::Run(_) => "RUN",
            Self::Shell(_) => "SHELL",
            Self::StopSignal(_) => "STOPSIGNAL",
            Self::User(_) => "USER",
            Self::Volume(_) => "VOLUME",
            Self::Workdir(_) => "WORKDIR",
        }
    }
}

/// One name of an `ARG`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument {
    /// Its name.
    pub name: Word,
    /// Its default, unexpanded.
    pub default: Option<Word>,
}

/// A command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Text for the shell.
    Shell(Word),
    /// The JSON form: an argument vector.
    Exec(Vec<String>),
}

/// `<<NAME` with its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// The name, quotes taken off.
    pub name: String,
    /// The body as written, line feeds included.
    pub content: String,
    /// Whether variables in the body are expanded (the name was not quoted).
    pub expand: bool,
    /// Whether `<<-` was written.
    pub strip_tabs: bool,
    /// Descriptor before `<<`; 0 where none is written.
    pub fd: u32,
    /// The body with its terminator.
    pub span: Span,
}

impl Heredoc {
    /// The body, without the leading tabs of each line where `<<-` was written.
    pub fn body(&self) -> String {
        if !self.strip_tabs {
            return self.content.clone();
        }
        self.content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

/// `RUN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// What to run; for a shell command the text without heredoc bodies.
    pub command: Command,
    /// Heredocs, in order of appearance.
    pub heredocs: Vec<Heredoc>,
    /// `--mount=`.
    pub mounts: Vec<Mount>,
    /// `--network=`.
    pub network: Option<Word>,
    /// `--security=`.
    pub security: Option<Word>,
    /// `--device=`.
    pub devices: Vec<Word>,
}

/// The types of `RUN --mount`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountKind {
    /// Files of the context or a stage, writes dropped.
    Bind,
    /// A directory that outlives the build.
    Cache,
    /// Memory.
    Tmpfs,
    /// A secret.
    Secret,
    /// An ssh agent.
    Ssh,
}

/// One `--mount`. Option names and their fit to the type are checked; values may hold variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its type.
    pub kind: MountKind,
    /// The options in order, `type` left out; aliases are resolved (`dst` is `target`).
    pub options: Vec<(String, Option<Word>)>,
    /// The whole flag.
    pub span: Span,
}

/// `COPY` or `ADD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// Sources that are paths, patterns or (`ADD`) addresses.
    pub sources: Vec<Word>,
    /// Sources that are heredocs.
    pub contents: Vec<Heredoc>,
    /// The destination.
    pub dest: Word,
    /// `--from=`.
    pub from: Option<Word>,
    /// `--chown=`.
    pub chown: Option<Word>,
    /// `--chmod=`.
    pub chmod: Option<Word>,
    /// `--link`, where it is set and not `false`.
    pub link: Option<Span>,
    /// `--parents`, likewise.
    pub parents: Option<Span>,
    /// `--exclude=`.
    pub exclude: Vec<Word>,
    /// `--checksum=`.
    pub checksum: Option<Word>,
    /// `--keep-git-dir`, where it is set and not `false`.
    pub keep_git_dir: Option<Span>,
    /// `--unpack=`.
    pub unpack: Option<(bool, Span)>,
}

/// `HEALTHCHECK`. Times in nanoseconds, as the image config has them; 0 means the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// What is run; `None` for `NONE`.
    pub test: Option<Command>,
    /// `--interval`.
    pub interval: u64,
    /// `--timeout`.
    pub timeout: u64,
    /// `--start-period`.
    pub start_period: u64,
    /// `--start-interval`.
    pub start_interval: u64,
    /// `--retries`.
    pub retries: u64,
}

/// `ONBUILD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trigger {
    /// The instruction as text, heredocs included: what the image config keeps.
    pub text: String,
    /// The same, parsed.
    pub instruction: Box<Instruction>,
}
