//! Network namespaces without a name: held by a descriptor, gone with it.
//!
//! A namespace is entered by a thread that ends afterwards, so no thread of the program ever finds itself in another
//! network than it was started in. What is written to `/proc/sys/net` by such a thread is written there.

use super::NetworkError;
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;

/// A network namespace.
#[derive(Debug)]
pub(super) struct Namespace(File);

impl Namespace {
    /// The one of the calling thread.
    pub(super) fn current() -> Result<Self, NetworkError> {
        let open = File::open("/proc/thread-self/ns/net");
        open.map(Self).map_err(NetworkError::kernel("open the network namespace of this thread"))
    }

    /// A new one, and what `work` made in it.
    pub(super) fn make<T: Send>(
        work: impl FnOnce(&Self) -> Result<T, NetworkError> + Send,
    ) -> Result<(Self, T), NetworkError> {
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|e| NetworkError::kernel("make a network namespace")(e.into()))?;
            let namespace = Self::current()?;
            let made = work(&namespace)?;
            Ok((namespace, made))
        })
    }

    /// What `work` gives when it is done inside.
    pub(super) fn inside<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, NetworkError> + Send,
    ) -> Result<T, NetworkError> {
        on_a_thread(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET)
                .map_err(|e| NetworkError::kernel("enter a network namespace")(e.into()))?;
            work()
        })
    }

    /// A name of it that holds as long as this value, for other processes too.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()))
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T, NetworkError> + Send) -> Result<T, NetworkError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("network".into());
        let started = thread.spawn_scoped(scope, work);
        match started.map_err(NetworkError::kernel("start a thread"))?.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Sets a switch below `/proc/sys/net` of the calling thread's namespace.
pub(super) fn set(name: &str, value: &str) -> Result<(), NetworkError> {
    let path = format!("/proc/sys/net/{name}");
    std::fs::write(&path, value).map_err(|source| NetworkError::Setting { path, source })
}

/// The same where a kernel that lacks the switch does not need it.
pub(super) fn set_if_there(name: &str, value: &str) -> Result<(), NetworkError> {
    match set(name, value) {
        Err(NetworkError::Setting { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Lets this machine pass packets on between its interfaces: there is one switch for all of them. It stays on
/// when we are gone, because who else came to rely on it cannot be known.
///
/// # Errors
/// The switch cannot be written, as in a container whose /proc/sys is read-only.
pub fn allow_forwarding() -> Result<(), NetworkError> {
    const NAME: &str = "ipv4/ip_forward";
    let path = format!("/proc/sys/net/{NAME}");
    let now = std::fs::read_to_string(&path).map_err(|source| NetworkError::Setting { path, source })?;
    if now.trim() == "1" { Ok(()) } else { set(NAME, "1") }
}
