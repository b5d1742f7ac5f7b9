//! `keelway __host`: one ssh session's end of the host protocol.

use crate::settings::HostSettings;
use tokio::io::{AsyncRead, AsyncWrite};

/// Why a session ended early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The far side of ssh went wrong.
    #[error("{0}")]
    Frame(#[from] keelway_deploy::frame::FrameError),
    /// The host's own state cannot be used.
    #[error("cannot use {path}: {source}")]
    State {
        /// Which path.
        path: std::path::PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// Answers the requests of one session until its input ends.
pub async fn serve<R, W>(input: R, output: W, settings: HostSettings) -> Result<(), ServeError>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let _ = (input, output, settings);
    Err(keelway_deploy::frame::FrameError::Cut.into())
}
