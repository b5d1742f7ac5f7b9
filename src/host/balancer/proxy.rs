//! One request: to one backend, once.
//!
//! Why nothing is lost, and nothing sent twice, without a retry:
//! - a request goes out on a connection that was opened for it. A kept-alive connection may be closed by
//!   the backend at the very moment when a request is written to it; nobody can then tell whether the
//!   request was worked on, so it is either lost or repeated. There is no such moment on a fresh one. The
//!   price, a connect a request, is some 50 microseconds on a host and one round trip between hosts;
//!   towards clients, connections are kept alive, also while the pool changes;
//! - another backend is tried only when connecting failed, that is before a byte was sent;
//! - the choice of the backend and its in-flight count are one step (see [`super::pool`]), and the count
//!   goes down only when the whole answer is through: a backend that is drained and shows zero has
//!   nothing left, and may be stopped.
//!
//! A request whose backend dies while it works is answered 502: it may have been worked on.
//!
//! Nobody holds an exchange for ever, and with it a drain: see [`super::patience`].

use super::headers;
use super::patience::{Counted, Progress, Silence, Wait};
use super::pool::{Pool, Ticket};
use crate::settings::Patience;
use http_body_util::Full;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Bounds of one request.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// For one connect.
    pub connect: Duration,
    /// Backends that are tried until one accepts the connection.
    pub backends: usize,
    /// Bytes of a request's target and headers.
    pub head: usize,
    /// For clients and replicas that stop in the middle.
    pub patience: Patience,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { connect: Duration::from_secs(1), backends: 3, head: 64 << 10, patience: Patience::default() }
    }
}

/// What turns requests into answers. Shared by all connections.
#[derive(Debug)]
pub struct Proxy {
    pool: Arc<Pool>,
    bounds: Bounds,
}

/// An answer's body.
pub enum ReplyBody {
    /// Our own words.
    Own(Full<Bytes>),
    /// The backend's.
    Passed(Passed),
}

/// A body on its way through, with what must live as long as it does.
pub struct Passed {
    body: Incoming,
    progress: Arc<Progress>,
    silence: Silence,
    // Whether the answer is through or the client is gone: then this connection has served.
    _connection: AbortOnDrop,
    _ticket: Ticket,
}

impl Passed {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.progress.moved();
                Poll::Ready(frame.map(|f| f.map_err(io::Error::other)))
            }
            Poll::Pending => Pin::new(&mut self.silence).poll(cx).map(|()| {
                let text = "neither the replica nor the client moves";
                Some(Err(io::Error::new(io::ErrorKind::TimedOut, text)))
            }),
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = io::Error;
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.get_mut() {
            Self::Own(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Passed(p) => p.poll_frame(cx),
        }
    }
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Passed(p) => p.body.is_end_stream(),
        }
    }
    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Passed(p) => p.body.size_hint(),
        }
    }
}

/// A client's body on its way to a backend.
struct Upload {
    body: Incoming,
    progress: Arc<Progress>,
    fate: Arc<Fate>,
    wait: Wait,
    bound: Duration,
}

/// What became of an upload, so that no replica is blamed for it.
#[derive(Debug, Default)]
struct Fate {
    /// It broke.
    broken: AtomicBool,
    /// Nothing came for too long.
    stalled: AtomicBool,
    /// The replica began to answer: now the client may well wait for more of that before it goes on.
    answered: AtomicBool,
}

impl Body for Upload {
    type Data = Bytes;
    type Error = io::Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                this.wait.end();
                this.progress.moved();
                if let Some(Err(_)) = &frame {
                    this.fate.broken.store(true, Ordering::Release);
                }
                Poll::Ready(frame.map(|f| f.map_err(io::Error::other)))
            }
            // We are asked for bytes only while the replica takes them, so it is the client who is late.
            Poll::Pending
                if this.wait.poll_over(this.bound, cx) && !this.fate.answered.load(Ordering::Acquire) =>
            {
                this.fate.stalled.store(true, Ordering::Release);
                let text = "the client sends nothing more";
                Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::TimedOut, text))))
            }
            Poll::Pending => Poll::Pending,
        }
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer of our own.
fn own(status: StatusCode, text: &str) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::Own(Full::from(format!("keelway: {text}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

impl Proxy {
    /// Over a pool.
    pub const fn new(pool: Arc<Pool>, bounds: Bounds) -> Self {
        Self { pool, bounds }
    }

    /// How long it waits for whom.
    pub const fn patience(&self) -> &Patience {
        &self.bounds.patience
    }

    /// Answers one request of `client`.
    pub async fn answer(&self, request: Request<Incoming>, client: IpAddr) -> Response<ReplyBody> {
        if let Err(headers::Refusal(status, text)) = headers::check(&request, self.bounds.head) {
            return own(status, text);
        }
        let (ticket, stream) = match self.connect().await {
            Ok(connected) => connected,
            Err(text) => return own(StatusCode::SERVICE_UNAVAILABLE, text),
        };
        match self.pass(request, client, ticket, stream).await {
            Ok(response) => response,
            Err((status, text)) => own(status, &text),
        }
    }

    /// A backend that accepted a connection. Nothing is sent here, so trying several is no retry.
    async fn connect(&self) -> Result<(Ticket, TcpStream), &'static str> {
        let mut tried = Vec::new();
        while tried.len() < self.bounds.backends {
            let Some(ticket) = self.pool.choose(&tried, Instant::now()) else { break };
            let member = ticket.member();
            match tokio::time::timeout(self.bounds.connect, TcpStream::connect(member.address)).await {
                Ok(Ok(stream)) => return Ok((ticket, stream)),
                Ok(Err(error)) => tracing::debug!(replica = %member.replica, %error, "cannot connect"),
                Err(_) => tracing::debug!(replica = %member.replica, "no answer to a connect"),
            }
            member.refused(Instant::now());
            tried.push(member.replica);
        }
        Err(if tried.is_empty() { "no replica is in the pool" } else { "no replica accepts connections" })
    }

    async fn pass(
        &self,
        request: Request<Incoming>,
        client: IpAddr,
        ticket: Ticket,
        stream: TcpStream,
    ) -> Result<Response<ReplyBody>, (StatusCode, String)> {
        let replica = ticket.member().replica;
        let lost = |what: &str| (StatusCode::BAD_GATEWAY, format!("replica {replica} {what}"));
        stream.set_nodelay(true).map_err(|_| lost("closed the connection"))?;
        let (mut sender, connection): (SendRequest<Upload>, _) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|_| lost("closed the connection"))?;
        // Ends by itself or is aborted: when the answer is through, or on any way out of here.
        let task = tokio::spawn(connection.with_upgrades());
        let connection = AbortOnDrop(Some(task.abort_handle()));

        let (mut request, client_side) =
            outgoing(request, client).map_err(|text| (StatusCode::BAD_REQUEST, text))?;
        *request.version_mut() = Version::HTTP_11;
        let patience = &self.bounds.patience;
        let (progress, fate) = (Progress::begin(), Arc::new(Fate::default()));
        let request = request.map(|body| Upload {
            body,
            progress: Arc::clone(&progress),
            fate: Arc::clone(&fate),
            wait: Wait::default(),
            bound: patience.client,
        });
        let answer = tokio::select! {
            answer = sender.send_request(request) => Some(answer),
            () = Silence::of(&progress, patience.exchange) => None,
        };
        let mut response = match answer {
            Some(Ok(response)) => response,
            Some(Err(_)) if fate.stalled.load(Ordering::Acquire) => {
                let text = format!("nothing more of the request's body came for {:?}", patience.client);
                return Err((StatusCode::REQUEST_TIMEOUT, text));
            }
            Some(Err(_)) if fate.broken.load(Ordering::Acquire) => {
                return Err((
                    StatusCode::BAD_REQUEST,
                    "the body of the request is broken or ends early".into(),
                ));
            }
            Some(Err(error)) => {
                tracing::debug!(%replica, %error, "no answer");
                return Err(lost("ended before it answered; the request may have been worked on"));
            }
            None => {
                let text = format!("replica {replica} did not answer within {:?}", patience.exchange);
                return Err((StatusCode::GATEWAY_TIMEOUT, text));
            }
        };
        fate.answered.store(true, Ordering::Release);
        progress.moved();

        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return match client_side {
                Some(client_side) if headers::is_websocket(response.headers()) => {
                    // hyper's connection task ends by itself once it has handed the stream over.
                    connection.keep();
                    tunnel(client_side, hyper::upgrade::on(&mut response), ticket, patience.clone());
                    let mut reply = Response::new(ReplyBody::Own(Full::default()));
                    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                    *reply.headers_mut() = std::mem::take(response.headers_mut());
                    headers::strip(reply.headers_mut());
                    headers::set_websocket(reply.headers_mut());
                    Ok(reply)
                }
                _ => Err(lost("switched to a protocol that nobody asked for")),
            };
        }
        if !headers::only_chunked(response.headers()) {
            return Err(lost("answered with a transfer coding other than chunked"));
        }
        let (mut head, body) = response.into_parts();
        headers::strip(&mut head.headers);
        head.version = Version::HTTP_11;
        let silence = Silence::of(&progress, patience.exchange);
        let passed = Passed { body, progress, silence, _connection: connection, _ticket: ticket };
        Ok(Response::from_parts(head, ReplyBody::Passed(passed)))
    }
}

/// The request as the backend gets it, and the client's side of a WebSocket where it asks for one.
fn outgoing(
    mut request: Request<Incoming>,
    client: IpAddr,
) -> Result<(Request<Incoming>, Option<hyper::upgrade::OnUpgrade>), String> {
    let websocket = request.method() == Method::GET && headers::is_websocket(request.headers());
    let client_side = websocket.then(|| hyper::upgrade::on(&mut request));
    // Clients may write the whole address; a backend gets the path, and the host in its own header.
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    let path: Uri = path.parse().map_err(|e| format!("the request's path cannot be passed on: {e}"))?;
    // The host of the target counts, whatever the header says (RFC 9112, 3.2.2).
    if let Some(host) = request.uri().authority() {
        let host = HeaderValue::from_str(host.as_str()).map_err(|e| format!("the target's host: {e}"))?;
        request.headers_mut().insert(HOST, host);
    }
    *request.uri_mut() = path;
    headers::towards_backend(request.headers_mut(), client, websocket);
    Ok((request, client_side))
}

/// A task that ends with the scope that started it.
struct AbortOnDrop(Option<AbortHandle>);

impl AbortOnDrop {
    /// The task lives on; it ends by itself.
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
        }
    }
}

/// Joins the two sides of a WebSocket until one of them ends, or nobody says anything for too long; it counts as in
/// flight all that time.
fn tunnel(
    client: hyper::upgrade::OnUpgrade,
    backend: hyper::upgrade::OnUpgrade,
    ticket: Ticket,
    patience: Patience,
) {
    tokio::spawn(async move {
        let replica = ticket.member().replica;
        let progress = Progress::begin();
        let joined = async {
            let client = TokioIo::new(client.await.map_err(io::Error::other)?);
            let backend = TokioIo::new(backend.await.map_err(io::Error::other)?);
            let (mut client, mut backend) =
                (Counted::new(client, &progress), Counted::new(backend, &progress));
            tokio::io::copy_bidirectional(&mut client, &mut backend).await.map(drop)
        };
        tokio::select! {
            joined = joined => if let Err(error) = joined {
                tracing::debug!(%replica, %error, "a tunnel broke");
            },
            () = quiet(&progress, ticket.member().drained(), &patience) => {
                tracing::debug!(%replica, "a tunnel was quiet for too long");
            }
        }
        drop(ticket);
    });
}

/// Until nothing has moved for as long as a tunnel may be quiet, which is short while its replica is drained: a
/// WebSocket never ends by itself, and a quiet one loses nothing when its client connects again.
async fn quiet(progress: &Arc<Progress>, mut drained: watch::Receiver<bool>, patience: &Patience) {
    loop {
        let draining = *drained.borrow_and_update();
        let bound = if draining { patience.tunnel_drain } else { patience.tunnel };
        let silence = Silence::of(progress, bound);
        tokio::select! {
            () = silence => return,
            changed = drained.changed() => if changed.is_err() {
                // Nobody can drain it any more.
                return Silence::of(progress, bound).await;
            },
        }
    }
}
