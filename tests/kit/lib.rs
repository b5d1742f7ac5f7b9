//! The test kit: hermetic environments, git servers, registries, the rig of hosts.
//!
//! It depends on no crate of Keelway: it starts real programs, among them the `keelway` binary, and
//! looks at what they do. What it starts it ends, also when a test panics.

pub mod base;
pub mod demo;
pub mod env;
pub mod git;
pub mod load;
pub mod registry;
pub mod rig;
pub mod server;
pub mod tls;

/// Becomes a node of a rig, a load generator or the demonstration when the arguments say so; else returns at once. The kit starts
/// the test binary itself for these: every program that uses a rig calls this first in `main`.
pub fn main_if_asked() {
    rig::node::main_if_asked();
    load::main_if_asked();
    demo::main_if_asked();
}
