//! From the dispatcher to the sinks: a bounded queue and a thread of its own.
//!
//! The thread hands over whatever has gathered, so a sink that commits per call gets group commit for free. A full
//! queue slows the dispatcher down, and through it every node that logs; events are lost only when the sink
//! fails, or when it still hangs [`HUNG_SINK`] after the run was killed.

use crate::cancel::CancelToken;
use keelway_model::{EventSink, ExitCode, RunEvent, SinkError};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Events in the queue, and at most this many in one hand-over.
const QUEUE: usize = 512;
/// How long a sink may hang after the run was killed.
pub(crate) const HUNG_SINK: Duration = Duration::from_secs(10);

/// Drops everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Discard;

impl EventSink for Discard {
    fn events(&mut self, _: &[RunEvent]) -> Result<(), SinkError> {
        Ok(())
    }
}

/// Several sinks, one after the other. Put the ledger first: then nothing is shown before it is recorded. One that failed
/// is not called again; the others go on, so that a person still sees how a run ends that cannot be recorded.
#[derive(Default)]
pub struct Tee {
    sinks: Vec<Box<dyn EventSink>>,
    failed: Option<SinkError>,
}

impl Tee {
    /// In the order in which they are called.
    pub fn new(sinks: Vec<Box<dyn EventSink>>) -> Self {
        Self { sinks, failed: None }
    }
}

impl EventSink for Tee {
    fn events(&mut self, batch: &[RunEvent]) -> Result<(), SinkError> {
        let Self { sinks, failed } = self;
        sinks.retain_mut(|sink| match sink.events(batch) {
            Ok(()) => true,
            Err(error) => {
                failed.get_or_insert(error);
                false
            }
        });
        failed.clone().map_or(Ok(()), Err)
    }
}

/// The dispatcher's end of the queue.
pub(crate) struct Outlet {
    queue: mpsc::Sender<RunEvent>,
    /// How many events the sink refused.
    ended: oneshot::Receiver<u64>,
    failed: Arc<OnceLock<SinkFailure>>,
    run: CancelToken,
    lost: u64,
}

/// The first error of the sink, and the exit code it asks for.
#[derive(Debug, Clone)]
pub(crate) struct SinkFailure {
    pub exit: ExitCode,
    pub error: SinkError,
}

impl SinkFailure {
    fn new(exit: ExitCode, message: &str) -> Self {
        Self { exit, error: SinkError { message: message.into() } }
    }
}

/// Keeps the first failure and tells of it once, also when the sink's thread unwinds.
struct Teller<F: Fn()> {
    failed: Arc<OnceLock<SinkFailure>>,
    tell: F,
}

impl<F: Fn()> Teller<F> {
    fn failed(&self, failure: SinkFailure) {
        if self.failed.set(failure).is_ok() {
            (self.tell)();
        }
    }
}

impl<F: Fn()> Drop for Teller<F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let message = "the thread that records and shows events panicked: this is a bug in Keelway";
            self.failed(SinkFailure::new(ExitCode::Bug, message));
        }
    }
}

/// Starts the sink's thread; `tell` is called on it when the sink first fails or panics.
pub(crate) fn start(
    mut sink: Box<dyn EventSink>,
    run: CancelToken,
    tell: impl Fn() + Send + 'static,
) -> std::io::Result<Outlet> {
    let (queue, mut events) = mpsc::channel::<RunEvent>(QUEUE);
    let (end, ended) = oneshot::channel();
    let failed = Arc::new(OnceLock::new());
    let teller = Teller { failed: Arc::clone(&failed), tell };
    std::thread::Builder::new().name("keelway-events".into()).spawn(move || {
        let mut batch = Vec::with_capacity(QUEUE);
        let mut refused = 0;
        while let Some(first) = events.blocking_recv() {
            batch.push(first);
            while batch.len() < QUEUE
                && let Ok(next) = events.try_recv()
            {
                batch.push(next);
            }
            if let Err(error) = sink.events(&batch) {
                refused += batch.len() as u64;
                teller.failed(SinkFailure { exit: ExitCode::Outside, error });
            }
            batch.clear();
        }
        drop(sink);
        let _ = end.send(refused);
    })?;
    Ok(Outlet { queue, ended, failed, run, lost: 0 })
}

impl Outlet {
    /// Queues an event, waiting while the queue is full.
    pub async fn send(&mut self, event: RunEvent) {
        let event = match self.queue.try_send(event) {
            Ok(()) => return,
            Err(mpsc::error::TrySendError::Full(event)) if self.lost == 0 => event,
            Err(_) => {
                self.lost += 1;
                return;
            }
        };
        let sent = tokio::select! {
            sent = self.queue.send(event) => sent.is_ok(),
            () = hung(&self.run) => false,
        };
        self.lost += u64::from(!sent);
    }
    /// Why the sink failed, where it did by now.
    pub fn failure(&self) -> Option<SinkFailure> {
        self.failed.get().cloned()
    }
    /// Waits until the sink was offered everything; returns how many events were lost, and why.
    pub async fn finish(self) -> (u64, Option<SinkFailure>) {
        drop(self.queue);
        tokio::select! {
            // A thread that panicked sends nothing, and has said why.
            refused = self.ended => (self.lost + refused.unwrap_or(0), self.failed.get().cloned()),
            () = hung(&self.run) => {
                let message = "events could not be recorded and shown in time after the run was killed";
                (self.lost, Some(SinkFailure::new(ExitCode::Outside, message)))
            }
        }
    }
}

async fn hung(run: &CancelToken) {
    run.killed().await;
    tokio::time::sleep(HUNG_SINK).await;
}
