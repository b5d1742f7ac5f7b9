//! Rooted paths by descriptor, write-then-publish, locks, lazy deletion, append-only logs.
//!
//! Invariants:
//! - a path that came from an image, a repository or a tar is only ever resolved by [`Root`], inside a
//!   directory descriptor, by openat2; no symlink in it can lead out;
//! - a file that others read is written under another name and published by rename ([`publish`]);
//! - a lock is a lock of the kernel on an open file ([`Lock`]): the death of its holder frees it;
//! - nothing on a hot path walks a tree to delete it: it is renamed into a [`Trash`].
//!
//! Nothing here knows what the files mean. It must not print, read the environment or start threads.

pub mod chunklog;
pub mod fault;
pub mod file;
pub mod lock;
pub mod near;
pub mod publish;
pub mod root;
pub mod trash;

pub use chunklog::{ChunkLog, ChunkReader};
pub use fault::{Faults, Step};
pub use file::{copy_bytes, set_attributes};
pub use lock::{Gate, Lock, LockError};
pub use near::Near;
pub use publish::{Sync, publish, publish_from, sync_dir};
pub use root::{DirItem, NodeKind, Root, Stat};
pub use trash::Trash;
