//! `keelway __balancer`: the HTTP/1.1 reverse proxy of one app.
//!
//! A process of its own, in its own session, so that neither the deployer's nor the supervisor's death
//! touches traffic. It listens, passes requests on ([`proxy`]), checks its backends ([`checks`]) and takes
//! pools from the supervisor ([`control`]). When it is killed, the supervisor starts it again and it goes
//! on with the pool of its state file.
//!
//! Traffic is plain HTTP; TLS ends before it. Towards clients it refuses what cannot be passed on safely
//! ([`headers`]), bounds the size of a head, the time for one, and the number of connections, and gives up whoever
//! stops in the middle ([`patience`]).

pub mod checks;
pub mod control;
pub mod headers;
pub mod patience;
pub mod pool;
pub mod proxy;

use crate::settings::BalancerSettings;
use crate::{files, process, record, wire};
use control::Control;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use keelway_container::diary::Diary;
use keelway_disk::Lock;
use keelway_model::{Digest, ExitCode};
use patience::ClientStream;
use pool::Pool;
use proxy::{Bounds, Proxy};
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};

/// Connections of clients at one time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 8192;
/// For a request's head, and for a kept-alive connection between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// What is buffered of a connection, about, and so what is read of a head before it is refused. The exact
/// bound of a head is [`Bounds::head`].
const MAX_BUFFER: usize = 64 << 10;
/// For what is in flight when the balancer is told to end.
const DRAIN: Duration = Duration::from_secs(30);
/// After an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Why a balancer cannot run.
#[derive(Debug, thiserror::Error)]
pub enum BalancerError {
    /// Another one runs for this app.
    #[error("another balancer of this app runs already (it holds {path})")]
    Running {
        /// Its lock.
        path: PathBuf,
    },
    /// The address is taken.
    #[error("cannot listen on {address}: {source}; see who does with `ss -ltnp`")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The last pool cannot be read.
    #[error(transparent)]
    Pool(#[from] control::PoolFileError),
    /// Anything else.
    #[error("{what}: {source}")]
    Io {
        /// What failed.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> BalancerError {
    let what = what.into();
    move |source| BalancerError::Io { what, source }
}

impl BalancerSettings {
    /// Its state: the pool, the lock, the log.
    pub fn dir(&self) -> PathBuf {
        self.settings.state().join("apps").join(self.app.as_str()).join("balancer")
    }
    /// Its lock: held as long as it lives.
    pub fn lock(&self) -> PathBuf {
        self.dir().join("lock")
    }
    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        // The app's name may be longer than the name of a socket.
        self.settings.sockets().join(format!("b-{}", Digest::of(self.app.as_str().as_bytes()).short()))
    }
}

/// Runs until SIGTERM, making its own runtime. The caller has not started one.
pub fn run(settings: BalancerSettings) -> ExitCode {
    process::detach();
    process::allow_many_files();
    let done = process::runtime("balancer").and_then(|runtime| {
        let diary = Diary::at(&record::diary(&settings.settings, "balancers"));
        let done = runtime.block_on(async {
            tokio::spawn(diary.keep());
            balance(settings).await
        });
        runtime.shutdown_timeout(Duration::from_secs(1));
        done.map_err(|e| io::Error::other(e.to_string()))
    });
    match done {
        Ok(()) => ExitCode::Done,
        Err(error) => {
            tracing::error!(%error, "the balancer ends");
            ExitCode::Outside
        }
    }
}

async fn balance(settings: BalancerSettings) -> Result<(), BalancerError> {
    let dir = settings.dir();
    for needed in [&dir, &settings.settings.sockets()] {
        files::private_dir(needed).map_err(failed(format!("cannot make {}", needed.display())))?;
    }
    let path = settings.lock();
    let lock = Lock::try_take(&path).map_err(|e| failed("cannot lock")(io::Error::other(e)))?;
    let _lock = lock.ok_or(BalancerError::Running { path })?;

    let pool = Arc::new(Pool::restored(control::load_pool(&dir)?));
    let listener = TcpListener::bind(settings.listen)
        .await
        .map_err(|source| BalancerError::Listen { address: settings.listen, source })?;
    let socket = wire::listen(&settings.socket()).map_err(failed("cannot make the control socket"))?;
    let mut end = signal(SignalKind::terminate()).map_err(failed("cannot wait for signals"))?;

    let control = Arc::new(Control::new(Arc::clone(&pool), dir, &settings));
    let bounds = Bounds { patience: settings.patience, ..Bounds::default() };
    let proxy = Arc::new(Proxy::new(Arc::clone(&pool), bounds));
    let (ending, on_end) = watch::channel(false);
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    tokio::select! {
        () = accept(listener, proxy, Arc::clone(&room), on_end) => {}
        () = checks::run(Arc::clone(&pool)) => {}
        () = control.run(socket) => {}
        _ = end.recv() => {}
    }
    // The listener is closed; connections finish what they have, and are told to close.
    let _ = ending.send(true);
    pool.drain_all();
    let everything = room.acquire_many(u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX));
    let _ = tokio::time::timeout(DRAIN, async {
        let _ = everything.await;
        // Tunnels have left their connection, but count.
        while pool.in_flight() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    Ok(())
}

async fn accept(
    listener: TcpListener,
    proxy: Arc<Proxy>,
    room: Arc<Semaphore>,
    on_end: watch::Receiver<bool>,
) {
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (proxy, on_end) = (Arc::clone(&proxy), on_end.clone());
                tokio::spawn(async move {
                    serve(stream, peer.ip(), proxy, on_end).await;
                    drop(permit);
                });
            }
            // The client went away while it waited.
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One client connection, kept alive over changes of the pool.
async fn serve(
    stream: TcpStream,
    client: std::net::IpAddr,
    proxy: Arc<Proxy>,
    mut on_end: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let stream = ClientStream::new(stream, proxy.patience().client);
    let service = service_fn(move |request| {
        let proxy = Arc::clone(&proxy);
        async move { Ok::<_, Infallible>(proxy.answer(request, client).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_BUFFER)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = ending(&mut on_end) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%client, %error, "a client's connection ended");
    }
}

/// Until the balancer is told to end.
async fn ending(on_end: &mut watch::Receiver<bool>) {
    // The guard that it returns must not live over an await.
    let _ = on_end.wait_for(|end| *end).await.map(|_| ());
}
