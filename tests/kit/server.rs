//! A small HTTP server on loopback that answers as a test tells it, remembers what it was asked, and can
//! misbehave: cut bodies, bodies that stall, bodies without end. It ends when it is dropped.

use crate::tls::ServerCert;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// One request that came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `GET`, ..
    pub method: String,
    /// Path, and query behind a `?`.
    pub path: String,
    /// Headers, names in lower case, in order.
    pub headers: Vec<(String, String)>,
    /// The body as far as it came; cut at 64 MiB.
    pub body: Vec<u8>,
}

impl Seen {
    /// The first header of this name (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
    /// The path without its query.
    pub fn path_only(&self) -> &str {
        self.path.split('?').next().unwrap_or("")
    }
}

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum End {
    /// As HTTP wants it.
    #[default]
    Whole,
    /// The connection is closed after the bytes given, whatever Content-Length says.
    Cut,
    /// Nothing more comes and the connection stays.
    Stall,
    /// The bytes given, again and again, until the client goes.
    Endless,
}

/// One answer.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// Status; 0 counts as 200.
    pub status: u16,
    /// Headers.
    pub headers: Vec<(String, String)>,
    /// Bytes of the body.
    pub body: Vec<u8>,
    /// What happens after them.
    pub end: End,
}

impl Reply {
    /// A status and nothing else.
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }
    /// 200 with these bytes.
    pub fn bytes(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, body: body.into(), ..Self::default() }
    }
    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
    /// Sets how the body ends.
    #[must_use]
    pub fn ending(mut self, end: End) -> Self {
        self.end = end;
        self
    }
}

/// The server.
pub struct Server {
    address: SocketAddr,
    tls: bool,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

type Handler = Arc<dyn Fn(&Seen) -> Reply + Send + Sync>;

impl Server {
    /// Starts on a free port of 127.0.0.1, with TLS where a certificate is given. The handler runs on a
    /// thread that may block.
    pub fn start(
        cert: Option<&ServerCert>,
        handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let tls = cert.map(ServerCert::server_config).transpose()?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (is_tls, log, handler) = (tls.is_some(), Arc::clone(&seen), Arc::new(handler) as Handler);
        let thread = std::thread::Builder::new().name("kit-server".into()).spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    _ = accept(listener, tls, log, handler) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(Self { address, tls: is_tls, seen, stop: Some(stop), thread: Some(thread) })
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }
    /// `localhost:port`: the same server by another host name.
    pub fn host_by_name(&self) -> String {
        format!("localhost:{}", self.address.port())
    }
    /// `http://127.0.0.1:port`, or https.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.address)
    }
    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    /// Forgets them.
    pub fn forget(&self) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
    /// How many requests were of a method (`""`: any) whose path contains a text.
    pub fn count(&self, method: &str, path: &str) -> usize {
        let fits = |s: &&Seen| (method.is_empty() || s.method == method) && s.path.contains(path);
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(fits).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(
    listener: std::net::TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    log: Arc<Mutex<Vec<Seen>>>,
    handler: Handler,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (tls, log, handler) = (tls.clone(), Arc::clone(&log), Arc::clone(&handler));
        tokio::spawn(async move {
            match tls {
                None => serve(stream, log, handler).await,
                Some(config) => {
                    if let Ok(stream) = tokio_rustls::TlsAcceptor::from(config).accept(stream).await {
                        serve(stream, log, handler).await;
                    }
                }
            }
        });
    }
}

trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static {}
impl Stream for TcpStream {}
impl Stream for tokio_rustls::server::TlsStream<TcpStream> {}

async fn serve(stream: impl Stream, log: Arc<Mutex<Vec<Seen>>>, handler: Handler) {
    let service = service_fn(move |request| {
        let (log, handler) = (Arc::clone(&log), Arc::clone(&handler));
        async move { Ok::<_, Infallible>(answer(request, log, handler).await) }
    });
    // A connection that a client cuts is no failure of the server.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: Request<Incoming>, log: Arc<Mutex<Vec<Seen>>>, handler: Handler) -> Response<Told> {
    let (parts, mut incoming) = request.into_parts();
    let mut body = Vec::new();
    while let Some(Ok(frame)) = incoming.frame().await {
        if let Some(data) = frame.data_ref().filter(|_| body.len() < 64 << 20) {
            body.extend_from_slice(data);
        }
    }
    let text = |v: &hyper::header::HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
    let seen = Seen {
        method: parts.method.to_string(),
        path: parts.uri.path_and_query().map_or_else(String::new, ToString::to_string),
        headers: parts.headers.iter().map(|(n, v)| (n.to_string(), text(v))).collect(),
        body,
    };
    log.lock().unwrap_or_else(PoisonError::into_inner).push(seen.clone());
    let reply =
        tokio::task::spawn_blocking(move || handler(&seen)).await.unwrap_or_else(|_| Reply::status(599));
    let mut response = Response::builder().status(if reply.status == 0 { 200 } else { reply.status });
    for (name, value) in &reply.headers {
        response = response.header(name, value);
    }
    let told = Told { bytes: Bytes::from(reply.body), sent: false, cutting: false, end: reply.end };
    response.body(told).unwrap_or_else(|e| {
        let mut broken = Response::new(Told {
            bytes: Bytes::from(e.to_string()),
            sent: false,
            cutting: false,
            end: End::Whole,
        });
        *broken.status_mut() = hyper::StatusCode::from_u16(599).expect("599 is a status");
        broken
    })
}

/// A body that does as it was told.
struct Told {
    bytes: Bytes,
    sent: bool,
    cutting: bool,
    end: End,
}

impl Body for Told {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if !self.sent || self.end == End::Endless {
            self.sent = true;
            if !self.bytes.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(self.bytes.clone()))));
            }
        }
        match self.end {
            End::Whole => Poll::Ready(None),
            // One more turn, so that the bytes before are written out first.
            End::Cut if !self.cutting => {
                self.cutting = true;
                context.waker().wake_by_ref();
                Poll::Pending
            }
            End::Cut | End::Endless => Poll::Ready(Some(Err(io::Error::other("cut")))),
            End::Stall => Poll::Pending,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.end {
            End::Whole if !self.sent => SizeHint::with_exact(self.bytes.len() as u64),
            _ => SizeHint::default(),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.end == End::Whole && (self.sent || self.bytes.is_empty())
    }
}
