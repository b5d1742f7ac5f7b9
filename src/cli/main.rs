//! The `keelway` binary.

fn main() {}
