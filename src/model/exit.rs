//! How a command ended, as a number. `docs/exit-codes.md` is this table; a test compares them.

/// The exit codes of `keelway`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ExitCode {
    /// Done.
    Done = 0,
    /// A step, stage or build failed by its own doing.
    Failed = 1,
    /// Wrong usage, or a definition that is not valid.
    Usage = 2,
    /// Cancelled.
    Cancelled = 3,
    /// The world outside failed: registry, repository, host, disk, permission.
    Outside = 4,
    /// A bug in Keelway.
    Bug = 5,
    /// Deploy: rolled back.
    RolledBack = 10,
    /// Deploy: halted, revisions mixed, resumable.
    Halted = 11,
    /// Deploy: lease held by another, or lost.
    LeaseHeld = 12,
    /// Deploy: refused in preflight, nothing changed.
    Preflight = 13,
    /// Deploy: the rollback failed too.
    RollbackFailed = 14,
}

impl ExitCode {
    /// All of them, in order.
    pub const ALL: [ExitCode; 11] = [
        Self::Done,
        Self::Failed,
        Self::Usage,
        Self::Cancelled,
        Self::Outside,
        Self::Bug,
        Self::RolledBack,
        Self::Halted,
        Self::LeaseHeld,
        Self::Preflight,
        Self::RollbackFailed,
    ];
    /// The number.
    pub const fn code(self) -> u8 {
        self as u8
    }
    /// What it means, in the words of the table.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "a step, stage or build failed by its own doing",
            Self::Usage => "wrong usage, or a definition that is not valid",
            Self::Cancelled => "cancelled",
            Self::Outside => "the world outside failed: registry, repository, host, disk, permission",
            Self::Bug => "a bug in Keelway",
            Self::RolledBack => "deploy: rolled back",
            Self::Halted => "deploy: halted, revisions mixed, resumable",
            Self::LeaseHeld => "deploy: lease held by another, or lost",
            Self::Preflight => "deploy: refused in preflight, nothing changed",
            Self::RollbackFailed => "deploy: the rollback failed too",
        }
    }
    /// From the number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.code() == code)
    }
}
