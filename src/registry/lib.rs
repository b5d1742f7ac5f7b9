//! OCI distribution (v1.1, with docker's quirks): the client, and docker's credential config.
//!
//! Invariants:
//! - No byte enters the store under a digest that it does not have, and none is read beyond the size that
//!   its descriptor promised. Nothing half-done is visible: dropping a future leaves nothing.
//! - A [`PushedDigest`](keelway_model::PushedDigest) is made only after the registry answered for that digest.
//! - Credentials go to the registry they are for and to token servers that may have them (see
//!   [`HostSettings::token_realms`]); never along a redirect, never to another upload host.
//! - Plain http is spoken only with hosts whose [`HostSettings`] say so, and with loopback addresses that
//!   have no settings. Everything else is https.
//!
//! This crate reads no environment and no file of its own choosing: docker's config arrives as text.

mod api;
mod artifact;
mod auth;
mod check;
mod client;
pub mod docker_config;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod helper;
mod progress;
mod pull;
mod push;

pub use client::{Client, HostSettings, RegistrySettings, Retries};
pub use docker_config::{ConfigError, Credentials};
pub use error::{Doing, Problem, RegistryError};
pub use helper::HelperError;
pub use progress::{Progress, ProgressFn, Stage, Wait, WaitFn, silent};
pub use pull::Resolved;

#[cfg(test)]
mod tests;
