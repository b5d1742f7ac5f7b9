//! What started a run, and whether a file wants to be started by it.

use crate::definition::{Definition, Pattern};
use keelway_model::{CommitId, SkipReason};
use std::fmt;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Event {
    /// Commits arrived on a branch.
    Push,
    /// A pull request was opened or changed.
    PullRequest,
    /// A tag arrived.
    Tag,
    /// A time came.
    Schedule,
    /// A person asked: `keelway run`.
    Manual,
    /// A program asked.
    Api,
    /// A deployment was asked for.
    Deploy,
}

impl Event {
    /// All, in the order of the documentation.
    pub const ALL: [Event; 7] =
        [Self::Push, Self::PullRequest, Self::Tag, Self::Schedule, Self::Manual, Self::Api, Self::Deploy];
    /// The word in the file.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::PullRequest => "pull_request",
            Self::Tag => "tag",
            Self::Schedule => "schedule",
            Self::Manual => "manual",
            Self::Api => "api",
            Self::Deploy => "deploy",
        }
    }
    /// From the word in the file.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|e| e.word() == word)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What a plan is made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trigger {
    /// What happened.
    pub event: Event,
    /// The branch, where there is one (a detached head or a tag has none).
    pub branch: Option<String>,
    /// The pinned commit; `None` for a tree that is no commit.
    pub commit: Option<CommitId>,
    /// Whether the tree has changes that are in no commit.
    pub dirty: bool,
}

/// Which stages are asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// Names; empty is all. What they need comes with them.
    pub stages: Vec<String>,
}

impl Pattern {
    /// Whether `name` matches: `*` is any run of characters, all else is itself. Linear in practice and
    /// bounded by `pattern * name` steps.
    pub fn matches(&self, name: &str) -> bool {
        let (p, n) = (self.0.as_bytes(), name.as_bytes());
        let (mut i, mut j, mut star) = (0, 0, None);
        while j < n.len() {
            if i < p.len() && p[i] == b'*' {
                star = Some((i, j));
                i += 1;
            } else if i < p.len() && p[i] == n[j] {
                i += 1;
                j += 1;
            } else if let Some((si, sj)) = star {
                i = si + 1;
                j = sj + 1;
                star = Some((si, sj + 1));
            } else {
                return false;
            }
        }
        p[i..].iter().all(|&b| b == b'*')
    }
}

/// Whether the file wants to be run for this trigger. A person who asks by hand (`manual`) is never refused.
///
/// # Errors
/// Why not, in words.
pub fn triggers(definition: &Definition, trigger: &Trigger) -> Result<(), SkipReason> {
    let Some(events) = &definition.on.events else { return Ok(()) };
    if trigger.event == Event::Manual {
        return Ok(());
    }
    let Some(filter) = events.get(&trigger.event) else {
        let names: Vec<&str> = events.keys().map(|e| e.word()).collect();
        return Err(SkipReason::When {
            text: format!("the event is {}, and `on` names {}", trigger.event, words(&names)),
        });
    };
    branch_mismatch(&filter.branches, trigger).map_or(Ok(()), |text| Err(SkipReason::When { text }))
}

/// Why a branch does not match, in words; `None` when it does.
pub(crate) fn branch_mismatch(patterns: &[Pattern], trigger: &Trigger) -> Option<String> {
    if patterns.is_empty() {
        return None;
    }
    let wanted: Vec<&str> = patterns.iter().map(|p| p.0.as_str()).collect();
    match &trigger.branch {
        Some(branch) if patterns.iter().any(|p| p.matches(branch)) => None,
        Some(branch) => Some(format!("the branch is {branch:?}, not {}", words(&wanted))),
        None => Some(format!("there is no branch, and it wants {}", words(&wanted))),
    }
}

/// `a`, `a or b`, `a, b or c`.
pub(crate) fn words(list: &[&str]) -> String {
    match list {
        [] => "nothing".into(),
        [one] => (*one).to_owned(),
        [rest @ .., last] => format!("{} or {last}", rest.join(", ")),
    }
}
