//! Processes of ours: their runtime, and how one starts another so that it outlives it.

use std::io;

/// A runtime for one of the host's processes.
pub fn runtime(name: &str) -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().thread_name(name).enable_all().build()
}
