//! The blocking face: the async one, driven by a small runtime of its own, for synchronous crates.

use crate::{Client, HttpError, Request, Response};
use bytes::Bytes;
use reqwest::{StatusCode, Url};
use std::future::Future;
use std::io::Read;
use std::sync::Arc;
use tokio::runtime::Runtime;

/// Sends requests from threads that may block (`spawn_blocking` included). Calling it on an async task
/// is a bug in the caller, and tokio says so by a panic. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Blocking {
    client: Client,
    runtime: Arc<Background>,
}

/// A runtime that may be dropped anywhere: dropping a tokio runtime inside another one panics.
#[derive(Debug)]
struct Background(Option<Runtime>);

impl Background {
    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.0.as_ref().expect("taken only by drop").block_on(future)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Blocking {
    pub(crate) fn new(client: Client) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(8)
            .thread_name("keelway-http")
            .enable_all()
            .build()?;
        Ok(Self { client, runtime: Arc::new(Background(Some(runtime))) })
    }

    /// Sends a request (see [`Client::send`]); the answer's body is read through [`Read`].
    pub fn send(&self, request: Request) -> Result<BlockingResponse, HttpError> {
        let response = self.runtime.run(self.client.send(request))?;
        Ok(BlockingResponse { response, runtime: Arc::clone(&self.runtime), piece: Bytes::new() })
    }
}

/// An answer; reading it gives the body. A body that ends early, or falls silent, is a read error whose
/// inner error is an [`HttpError`].
#[derive(Debug)]
pub struct BlockingResponse {
    response: Response,
    runtime: Arc<Background>,
    piece: Bytes,
}

impl BlockingResponse {
    /// The status.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }
    /// One header as text, when it is there and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.header(name)
    }
    /// Where the answer came from, after redirects.
    pub fn url(&self) -> &Url {
        self.response.url()
    }
    /// The whole body, refused beyond `limit` bytes.
    pub fn bytes(self, limit: u64) -> Result<Bytes, HttpError> {
        self.runtime.run(self.response.bytes(limit))
    }
}

impl Read for BlockingResponse {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        while self.piece.is_empty() {
            match self.runtime.run(self.response.chunk()).map_err(std::io::Error::other)? {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let n = buf.len().min(self.piece.len());
        buf[..n].copy_from_slice(&self.piece.split_to(n));
        Ok(n)
    }
}
