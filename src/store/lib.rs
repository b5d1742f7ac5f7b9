//! The content store: blobs, snapshots, layers, keys, references, cache index.
//!
//! Many processes work on one store and there is no daemon, so everything here follows three rules:
//! - what others may see is made under a private name in this process's run directory and published by
//!   one rename; so `kill -9` at any instruction leaves the store valid;
//! - names of content are derived from the content, so two processes that publish the same thing are
//!   both right and the second finds it there;
//! - what belongs to one process lives in its run directory, whose lock it holds for life; only a
//!   directory whose lock can be taken is cleaned up.
//!
//! Layout: `version`, `blobs/sha256/<2>/<hex>`, `snapshots/<id>/{fs,meta.json,layer-*.json}`,
//! `refs/`, `cache/{keys,last,steps,memo}`, `mounts/<name>/{fs,meta.json,size.json}`, `locks/`, `runs/<id>/`, `trash/`, and the
//! marks `boot` and `synced`, and `usage`, the size of it all.
//!
//! The store must not read the clock (but through the [`Clock`](keelway_model::Clock) given), print, or
//! decide what a step means: it keeps what it is given.

mod again;
mod blob;
mod cache;
mod cache_mount;
mod census;
mod check;
mod claim;
mod compare;
mod error;
pub mod fuzz;
mod hold;
mod key;
mod layer;
mod open;
mod prune;
mod record;
mod refs;
mod snapshot;
#[cfg(test)]
mod tests;
/// Reading foreign tars: the one reader of them, for layers and for `ADD`.
pub mod tar {
    pub use crate::layer::parse::{Archive, Member, MemberKind, ParseError, is_tar};
}
mod usage;
mod used;
mod view;
mod walk;

pub use blob::{BlobWriter, CommitError};
pub use cache_mount::{CacheMount, CacheMountEntry, CacheMountMeta};
pub use check::{Checked, Finding};
pub use claim::{Claim, ClaimError};
pub use compare::Difference;
pub use error::{OpenError, StoreError, content_asks_for_it};
pub use hold::Thing;
pub use key::{KeyRules, Verdict, keep_everything};
pub use layer::{Compression, Frames, Layer, TarWriter, UnpackError, UnpackLimits};
pub use open::{ReapedRun, Store};
pub use prune::{
    Aim, Collected, Kind, Limits, Need, NeedsFn, Plan, PruneError, Remaining, Removal, Space, Why,
};
pub use refs::Origin;
pub use snapshot::{LAYER_TIME, SnapshotMeta, Upper};
pub use view::View;
pub use walk::overlay::is_for_images;
