//! git: a reference to a pinned commit to a tree.
//!
//! - [`RepoUrl`] checks an address before anything is opened or executed; [`Mirror`] keeps a bare copy of the
//!   repository under a cache folder and resolves references in it to a [`Pinned`] commit;
//! - [`CommitTree`] reads a commit's files straight from git's objects, so nothing is ever checked out (and writes a
//!   `.git` for who wants one); [`DirTree`] reads a plain directory; both are a [`keelway_model::Tree`];
//! - [`Checkout`] is the work tree somebody stands in.
//!
//! Objects are read and written by libgit2; the network side of git's protocol is ours ([`GitSettings`] says with
//! which HTTP client, ssh and bounds), so that there is one TLS stack and a bound on everything a server sends. Nothing
//! of a repository is ever executed: no hook, filter, textconv, fsmonitor or helper, whatever its configuration says.

mod connection;
mod dir_tree;
mod error;
pub mod fuzz;
mod git_dir;
mod history;
mod http;
mod local;
mod mirror;
mod protocol;
mod settings;
mod ssh;
mod tree;
mod url;
mod work_tree;

pub use dir_tree::DirTree;
pub use error::SourceError;
pub use history::Advance;
pub use mirror::{Fetched, Mirror, Pinned};
pub use settings::{FetchLimits, GitCredentials, GitSettings, Login, SshSettings};
pub use tree::CommitTree;
pub use url::{Origin, RepoUrl, Transport, UrlError};
pub use work_tree::{Checkout, DirtyFile};

#[cfg(test)]
mod cases;
