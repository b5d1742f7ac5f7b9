//! What a transfer tells while it goes on.

use keelway_model::Digest;
use std::sync::Arc;

/// Where one blob or manifest is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// It was there already; nothing was transferred.
    Present,
    /// On its way: `done` grows. It can fall back when a transfer has to begin again.
    Moving,
    /// Transferred and checked.
    Done,
}

/// One report. Reports of several blobs are interleaved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Which content.
    pub digest: Digest,
    /// Its media type: tells a layer from a config from a manifest.
    pub media_type: String,
    /// Where it is.
    pub stage: Stage,
    /// Bytes transferred.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Takes reports; called often, from async tasks, so it must return at once.
pub type ProgressFn = Arc<dyn Fn(Progress) + Send + Sync>;

/// A registry does not answer yet: `waiting for 127.0.0.1:5000 (try 2 of 4)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// As references name it.
    pub registry: String,
    /// Which try of the request, from 1.
    pub attempt: u32,
    /// How many there will be.
    pub attempts: u32,
}

impl std::fmt::Display for Wait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "waiting for {} (try {} of {})", self.registry, self.attempt, self.attempts)
    }
}

/// Hears of waits; called from async tasks, so it must return at once.
pub type WaitFn = Arc<dyn Fn(Wait) + Send + Sync>;

/// Takes reports and forgets them.
pub fn silent() -> ProgressFn {
    Arc::new(|_| {})
}
