//! Why a step failed.

use keelway_model::TreeError;
use keelway_store::{StoreError, UnpackError};

/// A step of an image build failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A tree could not be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A layer could not be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// A user cannot be resolved.
    #[error(transparent)]
    User(#[from] crate::user::UserError),
    /// The inputs of a node are not what its op needs: a bug of the caller.
    #[error("{op} got inputs it cannot use: {why}")]
    Inputs {
        /// Kind of the op.
        op: &'static str,
        /// What is wrong.
        why: &'static str,
    },
    /// The instruction cannot be done.
    #[error("{0}")]
    Refused(String),
    /// Writing failed.
    #[error("cannot {what} {path} in the new layer: {source}")]
    Write {
        /// Verb phrase.
        what: &'static str,
        /// Path in the image.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}
