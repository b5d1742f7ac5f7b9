//! A Plan to events: one dispatcher, cache keys, timeouts, cancellation.
//!
//! [`run`] takes a [`Plan`](keelway_model::Plan) and a [`Perform`], and gives events and a [`RunReport`]. One dispatcher
//! owns the state of the run; every node is a task that reports by message. What the engine promises:
//!
//! - a node starts only when everything it needs succeeded, and at most once;
//! - events have a gapless `seq`, made in one place, and a node's log lines come before its end;
//! - whatever a performer does (fail, hang, panic), the run ends: see [`Options::grace`];
//! - a step with a key runs once, however many nodes, runs and processes want it.
//!
//! The policy on failure: nodes that need a failed node are skipped; stages that do not need it go on, because a
//! person reading the result wants to know what else is wrong. Inside a build (a sub-plan) the first failure
//! cancels the rest of that build, because its result can no longer exist.
//!
//! The engine never looks into an operation: it knows a node's name, its needs and which lane its kind runs in.

mod cache;
mod cancel;
mod dispatcher;
mod node;
mod perform;
mod report;
mod sink;

#[cfg(test)]
pub(crate) use cache::memory::MemoryCache;
pub use cache::{CacheError, Claim, StepCache};
pub use cancel::{Cancel, CancelReason, CancelSource, CancelToken};
pub use dispatcher::{Options, RunError, run};
pub use perform::{Ctx, Failure, LOG_EVENT_BYTES, Perform, Performed};
pub use report::{NodeReport, RunReport, overall_exit};
pub use sink::{Discard, Tee};
