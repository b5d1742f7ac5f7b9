//! HTTP health: one check, and what a row of checks means.

use http_body_util::Empty;
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper_util::rt::TokioIo;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;

/// What a bad check saw.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nobody listens, or the network is down.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Not HTTP, or the connection ended.
    #[error("no HTTP answer from {address}: {source}")]
    Answer {
        /// Where.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: hyper::Error,
    },
    /// Neither 2xx nor 3xx.
    #[error("{address} answered {status}")]
    Status {
        /// Where.
        address: SocketAddr,
        /// What.
        status: hyper::StatusCode,
    },
    /// Too slow.
    #[error("no answer from {address} within {timeout:?}")]
    TimedOut {
        /// Where.
        address: SocketAddr,
        /// The bound.
        timeout: Duration,
    },
    /// The path cannot be asked for.
    #[error("{path:?} is not a path that can be asked for")]
    Path {
        /// The path.
        path: String,
    },
}

/// Asks `path` of `address` once; a status of 2xx or 3xx is good. The body is not read.
pub async fn probe(address: SocketAddr, path: &str, timeout: Duration) -> Result<(), ProbeError> {
    match tokio::time::timeout(timeout, ask(address, path)).await {
        Ok(result) => result,
        Err(_) => Err(ProbeError::TimedOut { address, timeout }),
    }
}

async fn ask(address: SocketAddr, path: &str) -> Result<(), ProbeError> {
    let bad_path = || ProbeError::Path { path: path.chars().take(200).collect() };
    let host = HeaderValue::from_str(&address.to_string()).map_err(|_| bad_path())?;
    let request = Request::get(path)
        .header(HOST, host)
        .header(USER_AGENT, "keelway-health")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|_| bad_path())?;
    let stream =
        TcpStream::connect(address).await.map_err(|source| ProbeError::Connect { address, source })?;
    let answer = |source| ProbeError::Answer { address, source };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(answer)?;
    tokio::pin!(connection);
    let response = sender.send_request(request);
    tokio::pin!(response);
    let response = tokio::select! {
        response = &mut response => response,
        // A short answer and the end of its connection can be seen in one go.
        ended = &mut connection => {
            ended.map_err(answer)?;
            response.await
        }
    };
    let response = response.map_err(answer)?;
    let status = response.status();
    if status.is_success() || status.is_redirection() {
        Ok(())
    } else {
        Err(ProbeError::Status { address, status })
    }
}

/// Good and bad checks in a row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row {
    /// Good ones, since the last bad one.
    pub good: u32,
    /// Bad ones, since the last good one.
    pub bad: u32,
}

impl Row {
    /// Takes one in.
    pub fn push(&mut self, good: bool) {
        if good {
            self.bad = 0;
            self.good = self.good.saturating_add(1);
        } else {
            self.good = 0;
            self.bad = self.bad.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn answers(reply: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0u8; 1024];
            let n = stream.read(&mut head).await.unwrap();
            assert!(head[..n].starts_with(b"GET /healthz?deep=1 HTTP/1.1\r\n"));
            stream.write_all(reply).await.unwrap();
            if reply.is_empty() {
                std::future::pending::<()>().await;
            }
        });
        address
    }

    #[tokio::test]
    async fn only_2xx_and_3xx_are_good() {
        let wait = Duration::from_secs(5);
        for (reply, good) in [
            (&b"HTTP/1.1 204 No Content\r\n\r\n"[..], true),
            (b"HTTP/1.0 200 OK\r\n\r\nbody without a length", true),
            (b"HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n", true),
            (b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", false),
            (b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n", false),
            (b"SSH-2.0-x\r\n", false),
            (b"HTTP/1.1 200", false),
        ] {
            let result = probe(answers(reply).await, "/healthz?deep=1", wait).await;
            assert_eq!(result.is_ok(), good, "{:?}: {result:?}", String::from_utf8_lossy(reply));
        }
        let silent = answers(b"").await;
        let result = probe(silent, "/healthz?deep=1", Duration::from_millis(50)).await;
        assert!(matches!(result, Err(ProbeError::TimedOut { .. })), "{result:?}");
        assert!(matches!(probe(silent, "no path\n", wait).await, Err(ProbeError::Path { .. })));
    }

    #[test]
    fn rows() {
        let mut row = Row::default();
        for (good, want) in [(true, (1, 0)), (true, (2, 0)), (false, (0, 1)), (false, (0, 2)), (true, (1, 0))]
        {
            row.push(good);
            assert_eq!((row.good, row.bad), want);
        }
    }
}
