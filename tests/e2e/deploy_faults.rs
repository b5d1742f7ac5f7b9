//! What goes wrong around a rolling update, on the rig of three hosts.

use crate::{Ended, World};

/// The tests of this file.
pub const TESTS: &[(&str, fn(&World) -> Ended)] = &[];
