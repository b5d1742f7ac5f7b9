//! Why a step failed, and who has to mend it.

use keelway_model::TreeError;
use keelway_store::{StoreError, UnpackError, content_asks_for_it};

/// Who has to mend what made a step fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// Whoever wrote the Dockerfile, its files or the base image: it fails everywhere.
    Build,
    /// This machine's disk, memory or descriptors: it may succeed elsewhere or later.
    Machine,
    /// We.
    Bug,
}

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

impl StepError {
    /// Who has to mend it.
    pub fn blame(&self) -> Blame {
        let build = match self {
            Self::Store(e) | Self::Unpack(UnpackError::Store(e)) => e.is_contents_fault(),
            // What the decompressor says has no number of the system.
            Self::Unpack(UnpackError::Compressed { source, .. }) => source.raw_os_error().is_none(),
            Self::Tree(TreeError::Io { source, .. }) | Self::Write { source, .. } => {
                content_asks_for_it(source)
            }
            Self::Unpack(_) | Self::Tree(_) | Self::User(_) | Self::Refused(_) => true,
            Self::Inputs { .. } => return Blame::Bug,
        };
        if build { Blame::Build } else { Blame::Machine }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelway_model::{Digest, TreePath};
    use std::io::Error;

    #[test]
    fn the_machine_is_blamed_for_its_state_and_the_build_for_what_it_asks() {
        let write = |e| StepError::Write { what: "create", path: "/x".into(), source: e };
        let tree = |source| StepError::Tree(TreeError::Io { path: TreePath::root(), source });
        let store = |source| StoreError::Io { what: "write", path: "/x".into(), source };
        let unpack = |e| StepError::Unpack(UnpackError::Store(store(e)));
        let compressed =
            |source| StepError::Unpack(UnpackError::Compressed { layer: Digest::of(b""), source });
        // EMFILE, ENOSPC, EIO.
        for number in [24, 28, 5] {
            let e = || Error::from_raw_os_error(number);
            for step in [write(e()), tree(e()), StepError::Store(store(e())), unpack(e()), compressed(e())] {
                assert_eq!(step.blame(), Blame::Machine, "{step}");
            }
        }
        // ENAMETOOLONG, ENOTDIR, ELOOP.
        for number in [36, 20, 40] {
            let e = || Error::from_raw_os_error(number);
            for step in [write(e()), tree(e()), StepError::Store(store(e())), unpack(e())] {
                assert_eq!(step.blame(), Blame::Build, "{step}");
            }
        }
        assert_eq!(compressed(Error::other("corrupt deflate stream")).blame(), Blame::Build);
        assert_eq!(StepError::Refused("no".into()).blame(), Blame::Build);
        let limit = TreeError::Limit { path: TreePath::root(), why: "too much".into() };
        assert_eq!(StepError::Tree(limit).blame(), Blame::Build);
        assert_eq!(StepError::Inputs { op: "copy", why: "none" }.blame(), Blame::Bug);
    }
}
