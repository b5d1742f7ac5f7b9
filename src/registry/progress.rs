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

/// Takes reports and forgets them.
pub fn silent() -> ProgressFn {
    Arc::new(|_| {})
}
