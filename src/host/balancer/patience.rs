//! For whom the balancer waits, and when it stops: clients that stall, exchanges and tunnels in which nothing moves.
//!
//! Invariants: whoever makes progress, however slowly, is never given up; what is given up is never sent again, here or
//! anywhere; every wait ends without a byte from anybody.
//!
//! The bounds themselves are [`crate::settings::Patience`].

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use std::future::Future;
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

/// How often within its bound a client that takes nothing is looked at.
const LOOKS: u32 = 4;

/// When something moved last, in either direction. Shared by all parts of one exchange.
#[derive(Debug)]
pub struct Progress {
    begun: Instant,
    // Milliseconds after `begun`.
    last: AtomicU64,
}

impl Progress {
    /// Something moved now.
    pub fn begin() -> Arc<Self> {
        Arc::new(Self { begun: Instant::now(), last: AtomicU64::new(0) })
    }
    /// Something moves.
    pub fn moved(&self) {
        let ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(ms, Ordering::Relaxed);
    }
    fn last(&self) -> Instant {
        self.begun + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

/// A future that ends when nothing has moved for so long.
#[derive(Debug)]
pub struct Silence {
    progress: Arc<Progress>,
    bound: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Silence {
    /// Nothing of `progress` for `bound`.
    pub fn of(progress: &Arc<Progress>, bound: Duration) -> Self {
        let timer = Box::pin(sleep_until(progress.last() + bound));
        Self { progress: Arc::clone(progress), bound, timer }
    }
}

impl Future for Silence {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            // A timer for each byte would cost more than this look back.
            let end = self.progress.last() + self.bound;
            if end <= Instant::now() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(end);
        }
    }
}

/// A timer that runs only while it is waited for the same thing; made when it is needed first.
#[derive(Debug, Default)]
pub struct Wait {
    timer: Option<Pin<Box<Sleep>>>,
    running: bool,
}

impl Wait {
    /// What was waited for has come.
    pub fn end(&mut self) {
        self.running = false;
    }
    /// Whether it has been waited for `bound` now, without [`Wait::end`].
    pub fn poll_over(&mut self, bound: Duration, cx: &mut Context<'_>) -> bool {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(bound)));
        if !self.running {
            self.running = true;
            timer.as_mut().reset(Instant::now() + bound);
        }
        timer.as_mut().poll(cx).is_ready()
    }
}

/// A client's connection, given up when its machine takes none of our bytes for a while.
///
/// The kernel says that a socket can be written again only when a third of its buffer is free, which is megabytes: a
/// slow client may need minutes for them. But it takes bytes as soon as any are free. So as long as it is waited for, we
/// offer some again and again, and what it takes shows that the client has taken as much.
#[derive(Debug)]
pub struct ClientStream {
    stream: TcpStream,
    bound: Duration,
    look: Wait,
    // Set while nothing can be written.
    give_up: Option<Instant>,
}

impl ClientStream {
    /// Over an accepted connection.
    pub fn new(stream: TcpStream, bound: Duration) -> Self {
        Self { stream, bound, look: Wait::default(), give_up: None }
    }

    fn unless_stalled(
        &mut self,
        tried: Poll<io::Result<usize>>,
        bytes: &[u8],
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if tried.is_ready() {
            self.look.end();
            self.give_up = None;
            return tried;
        }
        let give_up = *self.give_up.get_or_insert_with(|| Instant::now() + self.bound);
        while self.look.poll_over(self.bound / LOOKS, cx) {
            self.look.end();
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(self.stream.as_raw_fd(), bytes, flags) {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                taken => {
                    self.give_up = None;
                    return Poll::Ready(taken.map_err(io::Error::from));
                }
            }
            if Instant::now() >= give_up {
                let text = format!("the client has taken nothing for {:?}", self.bound);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, text)));
            }
        }
        Poll::Pending
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let tried = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.unless_stalled(tried, bytes, cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let tried = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        let first = slices.iter().find(|s| !s.is_empty()).map_or(&[][..], |s| s);
        self.unless_stalled(tried, first, cx)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// One side of a tunnel: what is read from it is progress.
#[derive(Debug)]
pub struct Counted<T> {
    inner: T,
    progress: Arc<Progress>,
}

impl<T> Counted<T> {
    /// Around a stream.
    pub fn new(inner: T, progress: &Arc<Progress>) -> Self {
        Self { inner, progress: Arc::clone(progress) }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.progress.moved();
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_counts_from_the_last_byte() {
        let begun = Instant::now();
        let progress = Progress::begin();
        let (second, moving) = (Duration::from_secs(1), Arc::clone(&progress));
        let mover = tokio::spawn(async move {
            for _ in 0..5 {
                tokio::time::sleep(second).await;
                moving.moved();
            }
        });
        Silence::of(&progress, 2 * second).await;
        assert!(mover.is_finished());
        assert!((6..=7).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_was_ended_begins_anew() {
        let second = Duration::from_secs(1);
        let mut wait = Wait::default();
        let over =
            |wait: &mut Wait| wait.poll_over(second, &mut Context::from_waker(std::task::Waker::noop()));
        assert!(!over(&mut wait));
        wait.end();
        tokio::time::advance(2 * second).await;
        assert!(!over(&mut wait), "nobody waited meanwhile");
        tokio::time::advance(2 * second).await;
        assert!(over(&mut wait));
    }
}
