//! One isolated process: a Spec in, an Exit out.
