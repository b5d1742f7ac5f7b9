//! How large the store is, without looking at all of it.
//!
//! `usage` says what a count of everything gave, and each process adds what it put there when it closes the store. Where
//! that cannot be told any more (a process was killed, the file is damaged) the file is removed, and the next one who
//! needs to know counts.

use crate::error::StoreError;
use crate::open::Inner;
use crate::record;
use keelway_disk::{Faults, Lock, Sync, publish_from};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const FILE: &str = "usage";

/// Held for one small read and write.
const WAIT: Duration = Duration::from_millis(200);

/// What is known of the size of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// Bytes of the disk that everything takes.
    pub(crate) bytes: u64,
    /// What was left when a collection could not remove enough: as long as little was added since, another would be
    /// for nothing.
    #[serde(default)]
    pub(crate) stuck: Option<u64>,
}

pub(crate) fn read(root: &Path) -> Option<Usage> {
    record::read(&root.join(FILE))
}

/// From now on nobody knows.
pub(crate) fn forget(root: &Path) {
    let _ = std::fs::remove_file(root.join(FILE));
}

/// What a count gave.
pub(crate) fn set(inner: &Inner, usage: Usage) -> Result<(), StoreError> {
    let file = inner.root.join(FILE);
    let bytes = record::encode(&usage).map_err(|e| StoreError::io("write", &file)(e.into()))?;
    publish_from(&inner.run, &inner.root, FILE, &bytes, Sync::No, &Faults::NONE)
        .map_err(StoreError::io("write", file))?;
    // What was added so far has been counted.
    inner.grown.store(0, Ordering::Relaxed);
    Ok(())
}

/// Adds what this process has put into the store.
pub(crate) fn add(inner: &Inner) {
    // Nobody has looked how large these are now.
    if !inner.mounts.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).is_empty() {
        return forget(&inner.root);
    }
    let grown = inner.grown.swap(0, Ordering::Relaxed);
    if grown == 0 {
        return;
    }
    let done = || -> io::Result<()> {
        let lock = inner.root.join("locks/usage");
        let _alone = Lock::take(&lock, Instant::now() + WAIT, &|| false).map_err(io::Error::other)?;
        let Some(mut usage) = read(&inner.root) else { return Ok(()) };
        usage.bytes = usage.bytes.saturating_add_signed(grown);
        set(inner, usage).map_err(io::Error::other)
    };
    if let Err(e) = done() {
        tracing::debug!("the size of the store is not kept: {e}");
        forget(&inner.root);
    }
}
