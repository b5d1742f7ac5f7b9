//! Credential helpers: `docker-credential-NAME get`, the registry on standard input, JSON on standard output.

use std::time::Duration;

/// How long a helper may take: long enough for a person to unlock a key chain.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A credential helper failed.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// It could not be started.
    #[error("the credential helper {program} could not be started: {cause}")]
    Start {
        /// The program.
        program: String,
        /// The cause.
        cause: String,
    },
    /// It ended badly.
    #[error("the credential helper {program} failed: {said}")]
    Failed {
        /// The program.
        program: String,
        /// Its words, bounded and cleaned.
        said: String,
    },
    /// It did not end.
    #[error("the credential helper {program} did not answer within {}", keelway_model::format_duration(*.after))]
    Timeout {
        /// The program.
        program: String,
        /// How long it was given.
        after: Duration,
    },
    /// Its answer makes no sense.
    #[error("the credential helper {program} answered with something that is no login")]
    Answer {
        /// The program.
        program: String,
    },
}
