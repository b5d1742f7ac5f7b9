//! Restart policies: what follows the end of a container. Pure.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// When a container that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// When it failed; at most so many times in a row where a number is given.
    OnFailure(Option<u32>),
    /// Whenever it ended, and after a boot of the machine even where it had been stopped.
    Always,
    /// Whenever it ended, unless it was stopped.
    UnlessStopped,
}

/// A text that is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no restart policy: write no, on-failure, on-failure:N, always or unless-stopped")]
pub struct PolicyError(String);

impl FromStr for RestartPolicy {
    type Err = PolicyError;
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let bad = || PolicyError(text.chars().take(60).collect());
        Ok(match text.split_once(':') {
            None if text == "no" => Self::No,
            None if text == "on-failure" => Self::OnFailure(None),
            None if text == "always" => Self::Always,
            None if text == "unless-stopped" => Self::UnlessStopped,
            // docker reads 0 as "no bound".
            Some(("on-failure", "0")) => Self::OnFailure(None),
            Some(("on-failure", count)) => Self::OnFailure(Some(count.parse().map_err(|_| bad())?)),
            _ => return Err(bad()),
        })
    }
}

impl TryFrom<String> for RestartPolicy {
    type Error = PolicyError;
    fn try_from(text: String) -> Result<Self, PolicyError> {
        text.parse()
    }
}

impl From<RestartPolicy> for String {
    fn from(policy: RestartPolicy) -> Self {
        policy.to_string()
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.pad("no"),
            Self::OnFailure(None) => f.pad("on-failure"),
            Self::OnFailure(Some(count)) => f.pad(&format!("on-failure:{count}")),
            Self::Always => f.pad("always"),
            Self::UnlessStopped => f.pad("unless-stopped"),
        }
    }
}

/// What is known when a container has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// It exited with code 0.
    pub well: bool,
    /// Somebody stopped it.
    pub stopped: bool,
    /// The machine was booted since it was stopped.
    pub booted: bool,
    /// How often it was started again since somebody started it.
    pub restarts: u32,
}

impl RestartPolicy {
    /// Whether it is started again.
    pub const fn again(self, end: Ended) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure(most) => {
                !end.stopped
                    && !end.well
                    && match most {
                        Some(most) => end.restarts < most,
                        None => true,
                    }
            }
            Self::Always => !end.stopped || end.booted,
            Self::UnlessStopped => !end.stopped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        for text in ["no", "on-failure", "on-failure:3", "always", "unless-stopped"] {
            assert_eq!(text.parse::<RestartPolicy>().unwrap().to_string(), text);
        }
        assert_eq!("on-failure:0".parse(), Ok(RestartPolicy::OnFailure(None)));
        for bad in ["", "never", "always:3", "on-failure:", "on-failure:-1", "on-failure:99999999999"] {
            assert!(bad.parse::<RestartPolicy>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_follows_an_end() {
        let end = Ended { well: false, stopped: false, booted: false, restarts: 0 };
        let well = Ended { well: true, ..end };
        let stopped = Ended { stopped: true, ..end };
        let after_boot = Ended { booted: true, ..stopped };
        use RestartPolicy::{Always, No, OnFailure, UnlessStopped};
        for (policy, wants) in [
            (No, [false, false, false, false]),
            (OnFailure(None), [true, false, false, false]),
            (OnFailure(Some(1)), [true, false, false, false]),
            (Always, [true, true, false, true]),
            (UnlessStopped, [true, true, false, false]),
        ] {
            let got = [end, well, stopped, after_boot].map(|e| policy.again(e));
            assert_eq!(got, wants, "{policy}");
        }
        assert!(!OnFailure(Some(2)).again(Ended { restarts: 2, ..end }));
        assert!(Always.again(Ended { restarts: 10_000, ..end }));
    }
}
