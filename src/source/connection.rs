//! The other end of a fetch: an HTTP server, a `git-upload-pack` behind ssh, or a repository of this machine.

use crate::protocol::{Advertisement, ProtocolError};
use crate::url::Transport;
use crate::{GitSettings, RepoUrl, SourceError};
use git2::Oid;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Takes the bytes of a pack.
pub(crate) type Sink<'a> = dyn FnMut(&[u8]) -> Result<(), SourceError> + 'a;

/// One conversation with a repository: first the references, then at most one pack.
pub(crate) trait Connection {
    /// Branches and tags.
    fn advertise(&mut self) -> Result<Advertisement, SourceError>;
    /// The pack that brings `wants` to somebody who has `haves`.
    fn fetch(&mut self, wants: &[Oid], haves: &[Oid], sink: &mut Sink<'_>) -> Result<(), SourceError>;
}

/// Opens a conversation.
pub(crate) fn open<'a>(
    url: &'a RepoUrl,
    settings: &'a GitSettings,
    clock: Watch<'a>,
) -> Result<Box<dyn Connection + 'a>, SourceError> {
    Ok(match url.transport() {
        Transport::Http { .. } => Box::new(crate::http::Http::open(url, settings, clock)?),
        Transport::Ssh { .. } => Box::new(crate::ssh::Ssh::open(url, settings, clock)?),
        Transport::Local { path } => Box::new(crate::local::Local::open(url, path, settings, clock)?),
    })
}

/// Deadline and cancellation of one fetch.
#[derive(Clone, Copy)]
pub(crate) struct Watch<'a> {
    url: &'a RepoUrl,
    settings: &'a GitSettings,
    pub(crate) until: Instant,
}

impl<'a> Watch<'a> {
    pub(crate) fn start(url: &'a RepoUrl, settings: &'a GitSettings) -> Self {
        Self { url, settings, until: Instant::now() + settings.limits.deadline }
    }
    /// An error once the fetch should stop.
    pub(crate) fn check(&self) -> Result<(), SourceError> {
        if self.settings.cancel.load(Ordering::Relaxed) {
            return Err(SourceError::Cancelled { url: self.url.clone() });
        }
        if Instant::now() >= self.until {
            return Err(SourceError::Deadline {
                url: self.url.clone(),
                after: self.settings.limits.deadline,
            });
        }
        Ok(())
    }
    /// Names what went wrong on the wire.
    pub(crate) fn wire(&self, e: ProtocolError) -> SourceError {
        if let Err(stopped) = self.check() {
            return stopped;
        }
        let url = self.url.clone();
        match e {
            ProtocolError::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                SourceError::Protocol { url, what: "the answer ends early".into() }
            }
            ProtocolError::Io(e) => SourceError::Unreachable { url, cause: format!("{e}; run again") },
            ProtocolError::Bad(what) => SourceError::Protocol { url, what },
            ProtocolError::Remote(text) if missing(&text) => SourceError::NoRepository { url },
            ProtocolError::Remote(text) => SourceError::Protocol { url, what: format!("it says {text:?}") },
            ProtocolError::References => SourceError::TooBig {
                url,
                what: "the number of references",
                bound: self.settings.limits.references as u64,
            },
        }
    }
}

/// Whether a server's words mean that there is no such repository.
pub(crate) fn missing(text: &str) -> bool {
    let text = text.to_lowercase();
    [
        "not found",
        "does not exist",
        "no such",
        "not appear to be a git repository",
        "could not read from remote",
    ]
    .iter()
    .any(|t| text.contains(t))
}
