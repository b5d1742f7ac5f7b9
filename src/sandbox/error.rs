//! Why a sandbox did not start or could not be waited for.
//!
//! [`SetupError`] crosses the control socket: it is made by init, where things fail, and shown by
//! the owner, where people read it. A failure here is never the process's own exit code.

use crate::spec::SpecError;
use nix::libc;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;

/// An errno, shown as the system words it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Errno(pub i32);

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl From<nix::errno::Errno> for Errno {
    fn from(e: nix::errno::Errno) -> Self {
        Self(e as i32)
    }
}

impl From<io::Error> for Errno {
    fn from(e: io::Error) -> Self {
        Self(e.raw_os_error().unwrap_or(nix::libc::EIO))
    }
}

/// A sandbox did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The spec cannot be.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Init could not be started by the owner.
    #[error("cannot start the sandbox's init: {action}: {source}")]
    Launch {
        /// What was tried.
        action: &'static str,
        /// How it failed.
        source: io::Error,
    },
    /// Init died or spoke nonsense before the process ran.
    #[error(
        "the sandbox's init ended before the process ran ({detail}); `dmesg | tail` shows whether the kernel killed it for want of memory"
    )]
    InitLost {
        /// What is known.
        detail: String,
    },
    /// Init says what failed.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

impl SpawnError {
    /// Whether the image, or what shall run in it, is at fault, and not this machine: a program that is not there,
    /// a working directory that cannot be, a /proc that is a link, more layers than a root can have.
    pub fn is_the_images_fault(&self) -> bool {
        match self {
            Self::Spec(_) => true,
            Self::Setup(SetupError::Exec(ExecError::Other { errno, .. })) => {
                ![libc::ENOMEM, libc::EMFILE, libc::ENFILE, libc::EAGAIN, libc::EIO].contains(&errno.0)
            }
            Self::Setup(
                SetupError::Exec(_)
                | SetupError::Cwd { .. }
                | SetupError::HostileRoot { .. }
                | SetupError::MountSource { .. },
            ) => true,
            Self::Setup(_) | Self::Launch { .. } | Self::InitLost { .. } => false,
        }
    }
    /// The process's program could not be executed (as opposed to: the sandbox could not be built).
    pub fn exec(&self) -> Option<&ExecError> {
        match self {
            Self::Setup(SetupError::Exec(e)) => Some(e),
            _ => None,
        }
    }
}

/// What failed inside init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum SetupError {
    /// The program cannot be executed.
    #[error(transparent)]
    Exec(ExecError),
    /// The working directory.
    #[error("cannot enter the working directory {path:?}: {why}; create it in the image or choose another")]
    Cwd {
        /// As the spec has it.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The root holds something that must not be there.
    #[error("the image's {path:?} is refused: {why}")]
    HostileRoot {
        /// Path inside the root.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A mount.
    #[error("cannot mount {what} at {target:?}: {errno}{hint}")]
    Mount {
        /// What.
        what: String,
        /// Path inside the root.
        target: PathBuf,
        /// How it failed.
        errno: Errno,
        /// What the kernel or we know beyond that; empty or starting with a separator.
        hint: String,
    },
    /// A part of another tree that is not there.
    #[error("cannot mount {path:?} at {target:?}: in the tree that it is a part of: {errno}")]
    MountSource {
        /// Path in that tree.
        path: PathBuf,
        /// Path inside the root.
        target: PathBuf,
        /// How it failed.
        errno: Errno,
    },
    /// A bind source that is not there.
    #[error("cannot bind-mount {path:?} of this machine: {errno}")]
    BindSource {
        /// Host path.
        path: PathBuf,
        /// How it failed.
        errno: Errno,
    },
    /// The kernel makes no user namespace.
    #[error("cannot make a user namespace: {errno}{hint}")]
    UserNamespace {
        /// How it failed.
        errno: Errno,
        /// What mends it; empty or starting with a separator.
        hint: String,
    },
    /// A file system whose mounts cannot translate ids. The launcher then takes the machine's own ids.
    #[error("the file system of {path:?} cannot translate user ids: {errno}; `keelway doctor` says what can")]
    IdMap {
        /// Host path.
        path: PathBuf,
        /// How it failed.
        errno: Errno,
    },
    /// A cgroup.
    #[error("cannot {action} the cgroup {path:?}: {errno}")]
    Cgroup {
        /// What was tried.
        action: String,
        /// Its directory.
        path: PathBuf,
        /// How it failed.
        errno: Errno,
    },
    /// A limit that nothing can hold.
    #[error(
        "cannot limit {controller}: this machine has no cgroup controller for it that this user may use; `keelway doctor` says how to get it, or leave the limit out"
    )]
    NoController {
        /// As the kernel names it.
        controller: String,
    },
    /// A disk to limit that is none.
    #[error(
        "cannot limit io: {path:?} is on no disk of this machine but in memory, or on several; keep the state directory on a disk, or leave `limits.io` out"
    )]
    NoDisk {
        /// Host path.
        path: PathBuf,
    },
    /// A namespace to join.
    #[error("cannot join the network namespace {path:?}: {errno}")]
    JoinNetwork {
        /// Its file.
        path: PathBuf,
        /// How it failed.
        errno: Errno,
    },
    /// The OCI runtime that isolates in our place.
    #[error("the runtime {runtime:?} cannot {action} the container: {detail}")]
    Runtime {
        /// Its path.
        runtime: PathBuf,
        /// What was asked of it.
        action: String,
        /// What it says, or how it ended.
        detail: String,
    },
    /// Any other step of the set-up.
    #[error("cannot set the sandbox up: {action}: {errno}")]
    Step {
        /// What was tried.
        action: String,
        /// How it failed.
        errno: Errno,
    },
    /// The two sides of the control socket do not fit together.
    #[error("the sandbox's init got a message it cannot read: {detail}")]
    Protocol {
        /// What is wrong with it.
        detail: String,
    },
}

/// Why a program could not be executed. Exit codes 126 and 127 stay the process's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum ExecError {
    /// It is not there.
    #[error("{program:?} does not exist in the image{searched}")]
    NotFound {
        /// As the spec has it.
        program: String,
        /// Where it was looked for; empty, or ` (searched PATH ...)`.
        searched: String,
    },
    /// It is there, but the user may not execute it.
    #[error(
        "{program:?} may not be executed by this user: is it a directory, or does its mode lack the x bit?"
    )]
    Denied {
        /// As found.
        program: String,
    },
    /// Neither a program of this machine's architecture nor a script with `#!`.
    #[error(
        "{program:?} is not a program this machine can run: another architecture, or a script without a #! line"
    )]
    Format {
        /// As found.
        program: String,
    },
    /// Its `#!` line or its dynamic linker names a file that is not there.
    #[error("{program:?} needs the interpreter {interpreter:?}, which does not exist in the image")]
    Interpreter {
        /// As found.
        program: String,
        /// What it names, as far as known.
        interpreter: String,
    },
    /// Anything else.
    #[error("cannot execute {program:?}: {errno}")]
    Other {
        /// As found.
        program: String,
        /// How it failed.
        errno: Errno,
    },
}

/// A running sandbox could not be signalled or waited for.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// The control socket or a system call failed.
    #[error("cannot {action} the sandbox: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// How it failed.
        source: io::Error,
    },
    /// Killed, but some of its processes do not die (stuck in the kernel).
    #[error("the sandbox was killed, but its processes have not ended after {seconds} s")]
    Stuck {
        /// How long it was waited for.
        seconds: u64,
    },
}
