//! What goes wrong in a store.

use std::io;
use std::path::{Path, PathBuf};

/// A store operation failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk failed.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// Verb phrase.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Content that should be there is not.
    #[error("{what} {name} is not in the store: build or pull it again")]
    Missing {
        /// `blob`, `snapshot`, ..
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// Content is larger than the caller accepts.
    #[error("blob {name} has {size} bytes, more than the {max} allowed here")]
    TooLarge {
        /// Its digest.
        name: String,
        /// Its length.
        size: u64,
        /// The bound.
        max: u64,
    },
    /// A file of the store does not hold what it should.
    #[error("{path} in the store is damaged ({why}): remove it and run again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In which way.
        why: String,
    },
}

impl StoreError {
    /// Whether the content asks for what cannot be (a name that is too long, one that means a deletion), rather
    /// than the disk failing.
    pub fn is_contents_fault(&self) -> bool {
        matches!(self, Self::Io { source, .. } if content_asks_for_it(source))
    }
    pub(crate) fn io(what: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, path: path.as_ref().to_path_buf(), source }
    }
}

/// Whether an error of a file operation tells of the names and kinds it was asked for, and would come on any
/// machine, rather than of this machine's state (no space, too many open files).
pub fn content_asks_for_it(e: &io::Error) -> bool {
    use io::ErrorKind as K;
    let kinds = [
        K::NotADirectory,
        K::IsADirectory,
        K::AlreadyExists,
        K::InvalidInput,
        K::InvalidFilename,
        K::UnexpectedEof,
    ];
    // ELOOP and ENAMETOOLONG have no stable kind of their own everywhere.
    kinds.contains(&e.kind()) || matches!(e.raw_os_error(), Some(40 | 36))
}

/// A store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It was written by a newer Keelway.
    #[error(
        "the store {path} has format {found}, this keelway knows up to {known}: use the newer keelway, or another store"
    )]
    TooNew {
        /// The store.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// The folder holds something that is not a store.
    #[error("{path} is not a keelway store ({why}): give an empty or new folder")]
    NotAStore {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Anything else.
    #[error(transparent)]
    Store(#[from] StoreError),
}
