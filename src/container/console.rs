//! A container's input and output: where they go besides its log.

use keelway_model::LogStream;
use std::io;
use std::os::fd::OwnedFd;

/// What a container's process is given as standard input, output and error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// No input; output and error together, as they come, into the log.
    Log,
    /// Output and error apart, as lines with their time.
    Lines {
        /// Whether there is input; else it is empty.
        input: bool,
    },
    /// A terminal of its own; what it shows goes into the log as lines.
    Terminal {
        /// Rows and columns at the start.
        size: (u16, u16),
    },
}

/// How to reach a container that runs.
#[derive(Debug)]
pub enum Input {
    /// It reads nothing.
    Closed,
    /// The writing end of its standard input; dropping it ends the input.
    Pipe(OwnedFd),
    /// The terminal's other side: what is written there is typed; its window can be resized.
    Terminal(OwnedFd),
}

/// Somebody at a container's input and output while it runs.
pub trait Tee: Send + Sync {
    /// It runs.
    fn started(&self, input: Input);
    /// It wrote this. Blocks for as long as whoever reads it does. On an error the stream is closed, so that the container
    /// learns as from a pipe of its own that nobody reads any more.
    fn output(&self, stream: LogStream, bytes: &[u8]) -> io::Result<()>;
}
