//! From the dispatcher to the sinks: a bounded queue and a thread of its own.
//!
//! The thread hands over whatever has gathered, so a sink that commits per call gets group commit for free. A full
//! queue slows the dispatcher down, and through it every node that logs; events are dropped only after the sink
//! failed, or when it still hangs [`HUNG_SINK`] after the run was killed.

use crate::cancel::CancelToken;
use keelway_model::{EventSink, RunEvent, SinkError};
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

/// Several sinks, one after the other. Put the ledger first: then nothing is shown that was not recorded.
#[derive(Default)]
pub struct Tee(pub Vec<Box<dyn EventSink>>);

impl EventSink for Tee {
    fn events(&mut self, batch: &[RunEvent]) -> Result<(), SinkError> {
        self.0.iter_mut().try_for_each(|sink| sink.events(batch))
    }
}

/// The dispatcher's end of the queue.
pub(crate) struct Outlet {
    queue: mpsc::Sender<RunEvent>,
    ended: oneshot::Receiver<Option<SinkError>>,
    run: CancelToken,
    lost: u64,
}

/// Starts the sink's thread; `failed` is called on it when the sink fails.
pub(crate) fn start(
    mut sink: Box<dyn EventSink>,
    run: CancelToken,
    failed: impl FnOnce() + Send + 'static,
) -> std::io::Result<Outlet> {
    let (queue, mut events) = mpsc::channel::<RunEvent>(QUEUE);
    let (end, ended) = oneshot::channel();
    std::thread::Builder::new().name("keelway-events".into()).spawn(move || {
        let mut batch = Vec::with_capacity(QUEUE);
        while let Some(first) = events.blocking_recv() {
            batch.push(first);
            while batch.len() < QUEUE
                && let Ok(next) = events.try_recv()
            {
                batch.push(next);
            }
            if let Err(error) = sink.events(&batch) {
                drop(events);
                failed();
                let _ = end.send(Some(error));
                return;
            }
            batch.clear();
        }
        drop(sink);
        let _ = end.send(None);
    })?;
    Ok(Outlet { queue, ended, run, lost: 0 })
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
    /// Waits until the sink has everything; returns how many events were lost, and why.
    pub async fn finish(self) -> (u64, Option<SinkError>) {
        drop(self.queue);
        tokio::select! {
            ended = self.ended => match ended {
                Ok(error) => (self.lost, error),
                Err(_) => (self.lost, Some(SinkError { message: "the thread that records and shows events panicked: a bug in Keelway".into() })),
            },
            () = hung(&self.run) => (self.lost, Some(SinkError { message: "events could not be recorded and shown in time after the run was killed".into() })),
        }
    }
}

async fn hung(run: &CancelToken) {
    run.killed().await;
    tokio::time::sleep(HUNG_SINK).await;
}
