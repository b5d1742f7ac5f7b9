//! What a run came to: an outcome a node, and one exit code for all.

use keelway_model::{ExitCode, NodeId, Outcome, Output, SinkError};
use std::time::Duration;

/// One node, after the run.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeReport {
    /// Its place: the ids of its parents, then its own.
    pub path: Vec<NodeId>,
    /// Its name.
    pub name: String,
    /// `build`, `exec`, ..
    pub kind: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it ran, waiting for a place not counted.
    pub elapsed: Duration,
    /// What it gave, where it succeeded.
    pub output: Option<Output>,
    /// What it gave, for people.
    pub result: Option<String>,
}

/// A whole run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunReport {
    /// How it ended.
    pub outcome: Outcome,
    /// What the command line returns: see [`overall_exit`].
    pub exit: ExitCode,
    /// Whether it was stopped before all was done: by whoever asked for it, or because it could not be recorded or shown.
    pub interrupted: bool,
    /// Every node of the plan and of its sub-plans: first the plan's, in order, then each sub-plan's as it came.
    pub nodes: Vec<NodeReport>,
    /// The output of the plan's result node.
    pub output: Option<Output>,
    /// How long it took.
    pub elapsed: Duration,
    /// How many events it made.
    pub events: u64,
    /// How many of them the sink did not take: only when it failed or hung.
    pub events_lost: u64,
    /// Why the sink failed, where it did.
    pub sink_error: Option<SinkError>,
}

impl RunReport {
    /// The nodes that failed, those of the plan before those of sub-plans.
    pub fn failed(&self) -> impl Iterator<Item = &NodeReport> {
        self.nodes.iter().filter(|n| matches!(n.outcome, Outcome::Failed { .. }))
    }
    /// A node of the plan itself, by id.
    pub fn node(&self, id: NodeId) -> Option<&NodeReport> {
        self.nodes.iter().find(|n| n.path == [id])
    }
}

/// The exit code of a run whose nodes asked for `codes`: the one that asks most of the reader wins.
/// First what a deploy did to its hosts (14, 11, 10: the first two mean "look at them now"), then a bug (5), cancelled (3),
/// a deploy that changed nothing (12, 13), the world outside (4), wrong usage (2), failed (1), done (0).
pub fn overall_exit(codes: impl IntoIterator<Item = ExitCode>) -> ExitCode {
    codes.into_iter().max_by_key(|c| urgency(*c)).unwrap_or(ExitCode::Done)
}

const fn urgency(code: ExitCode) -> u8 {
    match code {
        ExitCode::Done => 0,
        ExitCode::Failed => 1,
        ExitCode::Usage => 2,
        ExitCode::Outside => 3,
        ExitCode::Preflight => 4,
        ExitCode::LeaseHeld => 5,
        ExitCode::Cancelled => 6,
        ExitCode::Bug => 7,
        ExitCode::RolledBack => 8,
        ExitCode::Halted => 9,
        ExitCode::RollbackFailed => 10,
    }
}

/// The exit code that an outcome asks for.
pub(crate) fn exit_of(outcome: &Outcome) -> ExitCode {
    match outcome {
        Outcome::Succeeded | Outcome::Cached | Outcome::Skipped { .. } => ExitCode::Done,
        Outcome::Failed { exit, .. } => ExitCode::from_code(*exit).unwrap_or(ExitCode::Bug),
        Outcome::Cancelled => ExitCode::Cancelled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_urgent_code_wins() {
        use ExitCode::*;
        let order = [
            Done,
            Failed,
            Usage,
            Outside,
            Preflight,
            LeaseHeld,
            Cancelled,
            Bug,
            RolledBack,
            Halted,
            RollbackFailed,
        ];
        assert_eq!(order.len(), ExitCode::ALL.len());
        for pair in order.windows(2) {
            assert_eq!(overall_exit([pair[1], pair[0]]), pair[1]);
            assert_eq!(overall_exit([pair[0], pair[1]]), pair[1]);
        }
        assert_eq!(overall_exit([]), Done);
    }
}
