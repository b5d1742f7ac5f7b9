//! The address of a repository, checked before anything is opened, connected or executed.

use keelway_model::Redacted;
use std::fmt;
use std::path::PathBuf;

/// Who wrote an address: what a pushed file may name is less than what the command line may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The command line or the machine's settings: paths, `file://` and loopback `http://` too.
    CommandLine,
    /// A file of a repository: `https` and `ssh` only.
    File,
}

/// How a repository is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// A directory of this machine.
    Local {
        /// Absolute path.
        path: PathBuf,
    },
    /// Smart HTTP.
    Http {
        /// TLS; without it loopback only.
        tls: bool,
        /// Host, with port where one is written.
        host: String,
        /// Absolute path on the server, as written.
        path: String,
        /// User of the address.
        user: Option<String>,
        /// Password or token of the address.
        password: Option<Redacted<String>>,
    },
    /// ssh.
    Ssh {
        /// User, where one is written.
        user: Option<String>,
        /// Host or alias of the ssh configuration.
        host: String,
        /// Port, where one is written.
        port: Option<u16>,
        /// Path on the server.
        path: String,
    },
}

/// A checked address. `Display` and `Debug` never show a password.
#[derive(Clone, PartialEq, Eq)]
pub struct RepoUrl {
    transport: Transport,
}

/// Why a text is no address that may be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Not allowed where it stands.
    #[error("{what} is not allowed here: use https or ssh")]
    NotAllowed {
        /// `a local path`, ..
        what: &'static str,
    },
    /// A scheme that we do not speak.
    #[error("{scheme:?} is not a transport Keelway uses: use https, ssh, a path, or http on loopback")]
    Scheme {
        /// The scheme as written.
        scheme: String,
    },
    /// Malformed.
    #[error("the repository address is not valid: {what}")]
    Malformed {
        /// What is wrong; never the address itself, which may hold a password.
        what: String,
    },
}
