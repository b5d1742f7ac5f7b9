//! Targets, releases, the rollout state machine and its journal, the host protocol, the ssh transport.
//!
//! [`protocol`] is what deployer and host say to each other, [`lease`] who may say it. [`goal`] reads from what the
//! hosts report where a deploy starts and where it goes, [`rollout`] decides, as a pure state machine, what is said
//! next. This crate never prints, and never runs anything on a host but `keelway __host`.

pub mod apply;
pub mod frame;
pub mod fuzz;
pub mod goal;
pub mod journal;
pub mod lease;
pub mod link;
pub mod links;
pub mod protocol;
pub mod rollout;
pub mod ssh;
pub mod status;
