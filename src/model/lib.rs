//! Keelway's nouns, and no I/O: what every other crate agrees on.
//!
//! Data flows one way: definition -> plan -> run -> image -> push -> deploy. The types here are the
//! hand-over points of that flow, so a reader can follow it by following them: [`diagnostic`] for
//! what is wrong with a definition, [`plan`] for what shall happen, [`event`] for what does happen,
//! [`oci`] and [`reference`](mod@reference) for images, [`exit`] for how it ended.
//!
//! Nothing here opens a file, reads the clock or prints.

pub mod cache;
pub mod chmod;
pub mod clock;
pub mod diagnostic;
pub mod digest;
pub mod document;
pub mod event;
pub mod exit;
pub mod ids;
pub mod limits;
pub mod mount;
pub mod oci;
pub mod plan;
pub mod platform;
pub mod redacted;
pub mod reference;
pub mod tree;
pub mod units;

pub use cache::{CacheKey, KeyPart, MissReason};
pub use chmod::Chmod;
pub use clock::{Clock, Timestamp};
pub use diagnostic::{Diagnostic, Diagnostics, Severity, SourceText, Span};
pub use digest::{Digest, DigestParseError, Hasher};
pub use event::{EventKind, EventSink, LogStream, Outcome, RunEvent, SinkError, SkipReason, WaitReason};
pub use exit::ExitCode;
pub use ids::{Attempt, CommitId, NodeId, RunId, SnapshotId, StageName};
pub use limits::Limits;
pub use plan::{Node, Op, Output, Plan};
pub use platform::Platform;
pub use redacted::Redacted;
pub use reference::{ImageRef, PushedDigest, Repository, Tag};
pub use tree::{Stamp, Tree, TreeEntry, TreeError, TreeKind, TreePath};
pub use units::{Bytes, format_duration, parse_duration};
