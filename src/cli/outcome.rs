//! How a command ended, and how that is said.

use keelway_engine::{Failure, RunReport};
use keelway_model::{Diagnostics, ExitCode};
use keelway_runner::RunnerError;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub enum CommandError {
    /// The definition is not valid: shown with snippets.
    Definition(Diagnostics),
    /// Anything else: a message, what to do next in it, and the exit code.
    Failed(Failure),
    /// A run or deploy ended that way and has said so itself.
    Ended(ExitCode),
    /// `container run` and `container exec` end as what they ran, in the numbers that shells and docker use.
    Container {
        /// The number.
        code: u8,
        /// What to say about it, if anything.
        message: Option<String>,
    },
}

impl CommandError {
    /// Wrong usage.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Failed(Failure::new(ExitCode::Usage, message))
    }
    /// The world outside failed.
    pub fn outside(e: impl std::fmt::Display) -> Self {
        Self::Failed(Failure::outside(e.to_string()))
    }
    /// How a run ended. Its story was told by its events; that they could not be recorded or shown is said here.
    pub fn of_report(report: &RunReport) -> Result<(), Self> {
        match &report.sink_error {
            Some(e) => Err(Self::Failed(Failure::new(report.exit, e.to_string()))),
            None if report.exit == ExitCode::Done => Ok(()),
            None => Err(Self::Ended(report.exit)),
        }
    }
    /// As what a container ran.
    pub const fn code(code: u8, message: Option<String>) -> Self {
        Self::Container { code, message }
    }
    /// Whatever failed before a container's process ran is 125, so that no number of its own is mistaken for one of ours.
    pub fn not_started(self) -> Self {
        match self {
            Self::Failed(f) => Self::code(keelway_container::NOT_STARTED, Some(f.message)),
            other => other,
        }
    }
    /// The exit code as a number.
    pub fn number(&self) -> u8 {
        match self {
            Self::Definition(found) => found.exit().code(),
            Self::Failed(f) => f.exit.code(),
            Self::Ended(code) => code.code(),
            Self::Container { code, .. } => *code,
        }
    }
}

impl From<RunnerError> for CommandError {
    fn from(e: RunnerError) -> Self {
        match e {
            RunnerError::Definition(d) => Self::Definition(d),
            RunnerError::Failed(f) => Self::Failed(f),
            // Not wanted is no failure, but nothing was done either: it is said and the exit code is 0.
            e @ RunnerError::NotTriggered(_) => Self::Failed(Failure::new(ExitCode::Done, e.to_string())),
        }
    }
}

impl From<Failure> for CommandError {
    fn from(f: Failure) -> Self {
        Self::Failed(f)
    }
}
