//! What runs on a target host: `__host` at the far end of ssh, the supervisor, a keeper for each replica,
//! a balancer for each app, fencing.
//!
//! Four kinds of process, each of which may be killed at any moment without taking another with it:
//! - `__host` ([`serve`]) lives as long as one ssh session; it hands every request on to the supervisor,
//!   which it starts when there is none;
//! - the supervisor ([`supervise`]), one a host, holds what shall be (on disk, synced), sees that it is,
//!   and answers; when it comes back it finds the others by their locks and sockets;
//! - a keeper ([`supervise`] with `--replica`) owns the sandbox of one replica, which dies with it;
//! - a balancer ([`balancer`]) owns the listening socket of one app.
//!
//! This crate never prints, exits or reads the environment: `cli` gives it arguments and streams.

pub mod balancer;
mod files;
mod keeper;
mod network;
mod process;
mod record;
pub mod settings;
pub mod supervise;

mod serve;
mod wire;

pub use serve::{ServeError, serve};
pub use settings::{ArgsError, BalancerSettings, HostSettings, NetworkSettings, Settings, SuperviseSettings};
