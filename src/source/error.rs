//! What can go wrong between a reference and its tree. No message holds a password: addresses are shown by
//! [`crate::RepoUrl`], which leaves them out; text of a remote is cleaned of control characters first.

use crate::url::RepoUrl;
use keelway_model::CommitId;
use std::path::PathBuf;
use std::time::Duration;

/// Why a repository, a commit or a tree could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The name does not resolve, nothing listens, the connection broke.
    #[error("cannot reach {url}: {cause}")]
    Unreachable {
        /// Where.
        url: RepoUrl,
        /// What the system said, and what to do.
        cause: String,
    },
    /// The certificate of an https server is signed by nobody we trust.
    #[error("cannot trust {url}: {cause}")]
    Certificate {
        /// Where.
        url: RepoUrl,
        /// What TLS said.
        cause: String,
    },
    /// Wrong or missing credentials.
    #[error("{url} asks for authentication and {given}; {mend}")]
    Authentication {
        /// Where.
        url: RepoUrl,
        /// What we gave.
        given: &'static str,
        /// What to do.
        mend: &'static str,
    },
    /// ssh does not know the host's key, or knows another one.
    #[error("the host key of {url} is {what}; {mend}")]
    HostKey {
        /// Where.
        url: RepoUrl,
        /// `not known` or `not the one that is known`.
        what: &'static str,
        /// What to do.
        mend: &'static str,
    },
    /// The server answers, the repository is not there (or we may not see it).
    #[error("there is no repository at {url}, or these credentials may not see it; check the path")]
    NoRepository {
        /// Where.
        url: RepoUrl,
    },
    /// A server that does not speak git as we do.
    #[error("{url} does not answer as a git server should: {what}")]
    Protocol {
        /// Where.
        url: RepoUrl,
        /// What is wrong, cleaned.
        what: String,
    },
    /// A bound was reached.
    #[error(
        "{url} exceeds the bound on {what} ({bound}); raise it in the settings if the repository is meant to be that big"
    )]
    TooBig {
        /// Where.
        url: RepoUrl,
        /// Of what.
        what: &'static str,
        /// The bound.
        bound: u64,
    },
    /// The deadline passed.
    #[error("{url} took longer than {} to answer; run again, or raise the bound in the settings", keelway_model::format_duration(*.after))]
    Deadline {
        /// Where.
        url: RepoUrl,
        /// After how long.
        after: Duration,
    },
    /// The person asked to stop.
    #[error("cancelled while reading {url}")]
    Cancelled {
        /// Where.
        url: RepoUrl,
    },
    /// No such branch, tag or commit.
    #[error("{url} has no branch, tag or commit {reference:?}{}", near(.nearest))]
    NoReference {
        /// Where.
        url: RepoUrl,
        /// What was asked for.
        reference: String,
        /// Names that are near.
        nearest: Vec<String>,
    },
    /// More than one commit begins so.
    #[error("{prefix:?} is the beginning of more than one object of {url}; give more digits")]
    Ambiguous {
        /// Where.
        url: RepoUrl,
        /// What was asked for.
        prefix: String,
    },
    /// A name that means two things.
    #[error(
        "{name:?} is a branch and a tag of {url}; give it in full: refs/heads/{name} or refs/tags/{name}"
    )]
    BranchAndTag {
        /// Where.
        url: RepoUrl,
        /// What was asked for.
        name: String,
    },
    /// A commit that no branch or tag of the repository reaches.
    #[error(
        "commit {commit} is on no branch or tag of {url}; push it to a branch first (after a force-push it may be gone)"
    )]
    NotReachable {
        /// Where.
        url: RepoUrl,
        /// Which.
        commit: CommitId,
    },
    /// A path that holds no work tree.
    #[error("{path} is not inside a git checkout; run in one, or give --repo")]
    NoCheckout {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A repository without a commit.
    #[error(
        "{path} has no commit yet; commit keelway.yml first, or take the tree as it lies there with --dirty"
    )]
    Empty {
        /// Where.
        path: PathBuf,
    },
    /// A repository that belongs to somebody else.
    #[error(
        "{path} belongs to another user, so git's settings in it are not trusted; run as its owner, or `git config --global --add safe.directory {path}`"
    )]
    Owner {
        /// Where.
        path: PathBuf,
    },
    /// Something that a commit may hold and Keelway does not support yet.
    #[error("{what} at {path}: not supported yet{hint}")]
    Unsupported {
        /// `a Git LFS pointer`.
        what: &'static str,
        /// Where in the tree.
        path: String,
        /// What to do instead.
        hint: &'static str,
    },
    /// libgit2 failed.
    #[error("{what}: {cause}")]
    Git {
        /// What was being done.
        what: String,
        /// What it said.
        cause: String,
    },
    /// The disk failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Another process holds the mirror for too long.
    #[error("the mirror {path} is in use by another keelway; wait for it, or run again")]
    Busy {
        /// The mirror's folder.
        path: PathBuf,
    },
}

fn near(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("; near it: {}", names.join(", ")) }
}

impl SourceError {
    pub(crate) fn git(what: impl Into<String>, e: &git2::Error) -> Self {
        Self::Git { what: what.into(), cause: clean(e.message(), 300) }
    }
    pub(crate) fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }
}

/// Text of somebody else for a message: control characters (escape sequences too) escaped, cut at `max` characters.
pub(crate) fn clean(text: &str, max: usize) -> String {
    let mut out = String::new();
    for c in text.trim().chars().take(max) {
        match c {
            '\n' | '\t' => out.push(' '),
            c if c.is_control() || is_bidi(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

fn is_bidi(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{061c}')
}
