//! cgroups of version 1, of version 2, and of both at once ("hybrid").
//!
//! What is mounted decides, controller by controller: a controller that a v1 hierarchy holds is used
//! there, else in the v2 tree if that offers it. A sandbox's group is `PARENT/BOX` below the root of
//! each hierarchy that it needs. Limits are written before the process starts; groups are removed
//! after it, and [`reap`] removes those of a dead owner. All work is done on directories given as
//! arguments, so that recorded layouts can be tested in a temporary folder.
//!
//! A sandbox's PID 1 puts itself into its groups (see `group::enter`): moving another process costs 10 ms
//! and more on v1 after an idle spell.

mod detect;
mod device;
mod group;

pub(crate) use detect::every_hierarchy;
pub use detect::{Controller, Layout, Place};
pub(crate) use device::disk_of;
pub(crate) use group::{Door, Group, Plan, enter, remove_everywhere, remove_parents};
pub use group::{ReapError, Reaped, reap};

use serde::{Deserialize, Serialize};
use std::fmt;

/// A relative cgroup path of one or more safe components, for example `keelway/run-1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ParentName(String);

/// One component below the parent, for example `step-3`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BoxName(String);

/// A text that cannot name a cgroup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} cannot name a cgroup: components of 1 to 200 letters, digits, '-', '_' and '.', not starting with '.'"
)]
pub struct NameError {
    text: String,
}

fn component(s: &str) -> bool {
    (1..=200).contains(&s.len())
        && !s.starts_with('.')
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

macro_rules! name {
    ($name:ident, $check:expr) => {
        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                let check: fn(&str) -> bool = $check;
                if check(&text) {
                    Ok(Self(text))
                } else {
                    Err(NameError { text: text.chars().take(100).collect() })
                }
            }
        }
        impl std::str::FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::try_from(text.to_owned())
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}
name!(ParentName, |s| s.len() <= 255 && s.split('/').all(component));
name!(BoxName, component);

#[cfg(test)]
mod tests;
