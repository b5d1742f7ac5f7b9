//! A Dockerfile lowered to a sub-plan of cached steps; COPY and ADD; the image's config and manifest.
//!
//! The way of a build: [`Build::new`] checks the file against the target and refuses what cannot be executed;
//! [`Build::bases`] says which images must be pinned; [`Build::lower`] gives the plan. For each node of it,
//! [`key()`] gives the cache key; [`base::unpack`], [`copy::run`], [`link`], [`mkdir::run`] and (by the caller's sandbox) an
//! `Exec` make its output; [`assemble()`] writes config and manifest.
//!
//! Nothing here starts a process, mounts, reads the environment or the clock.

pub mod assemble;
pub mod base;
pub mod build;
pub mod cache;
pub mod copy;
mod error;
pub mod export;
pub mod fetch;
mod form;
pub mod fuzz;
pub mod git;
pub mod import;
pub mod key;
pub mod mkdir;
pub mod received;
pub mod seed;
mod select;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod user;
mod writer;

pub use assemble::{assemble, prepare_layer};
pub use base::{extend, extend_anew, link};
pub use build::{Asked, Bases, Build, BuildOptions, Look, NamedContext, PinnedBase, refused};
pub use error::{Blame, StepError};
pub use form::{Form, in_form};
pub use key::{KeyContext, key};
pub use user::User;
