//! The one trait between the engine and operations: a key, and the doing.

use crate::cancel::CancelToken;
use crate::dispatcher::Message;
use async_trait::async_trait;
use keelway_model::{Attempt, CacheKey, EventKind, ExitCode, LogStream, Node, NodeId, Output, Plan};
use tokio::sync::mpsc;

/// Does what nodes say. Implemented by `runner` for every `Op`, by tests for fakes.
#[async_trait]
pub trait Perform: Send + Sync + 'static {
    /// The key of a node whose inputs are known (in the order of its needs); `None` means it is never cached.
    /// Called at most once a node, before [`Perform::perform`].
    async fn key(&self, ctx: &Ctx, node: &Node, inputs: &[Output]) -> Result<Option<CacheKey>, Failure>;

    /// The output of a keyed node, where it is not in the cache here but kept elsewhere, asked once a node, before
    /// [`Perform::perform`]. It is not recorded here: what is elsewhere is believed by who names the place, and by nobody
    /// else. That it cannot be had is no failure.
    async fn recall(&self, _: &Ctx, _: &Node, _: &CacheKey, _: &[Output]) -> Option<Output> {
        None
    }

    /// Does it. Must listen to `ctx.cancel`: end in good order soon after it is cancelled, at once when it is
    /// killed; otherwise its future is dropped. Blocking work belongs on `spawn_blocking`.
    async fn perform(&self, ctx: Ctx, node: &Node, inputs: Vec<Output>) -> Result<Performed, Failure>;
}

/// What performing gave.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "one short-lived value a node")]
pub enum Performed {
    /// Done: the output, and a line for people (a digest, a tag, an address).
    Output(Output, Option<String>),
    /// More work: the output of the plan's result node becomes the output of this node. Such a node is not
    /// recorded in the cache itself; its steps are.
    SubPlan(Plan),
}

impl Performed {
    /// An output without a line for people.
    pub const fn output(output: Output) -> Self {
        Self::Output(output, None)
    }
}

/// A node failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The exit code it asks for.
    pub exit: ExitCode,
    /// What failed, on what, what to do next.
    pub message: String,
}

impl Failure {
    /// With an exit code.
    pub fn new(exit: ExitCode, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
    /// A step, stage or build failed by its own doing.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Failed, message)
    }
    /// Something outside failed: registry, repository, host, disk, permission.
    pub fn outside(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Outside, message)
    }
    /// A bug in Keelway.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Bug, message)
    }
}

/// What a performer is given besides its node: where it is, how to report, when to stop.
#[derive(Debug, Clone)]
pub struct Ctx {
    /// The attempt of the run.
    pub attempt: Attempt,
    /// The node's place: the ids of its parents, then its own.
    pub path: Vec<NodeId>,
    /// When to stop.
    pub cancel: CancelToken,
    pub(crate) index: usize,
    pub(crate) messages: mpsc::Sender<Message>,
    pub(crate) runtime: tokio::runtime::Handle,
}

/// The longest text of one [`EventKind::Log`], in bytes; longer text becomes several events.
pub const LOG_EVENT_BYTES: usize = 16 * 1024;

impl Ctx {
    /// Output of a process. Any length: it is split so that no event is longer than 16 KiB. Waits while the queue
    /// is full, so a fast writer is slowed down and nothing is lost; only after a kill is output dropped.
    pub async fn log(&self, stream: LogStream, text: &str) {
        let mut rest = text;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(cut(rest, LOG_EVENT_BYTES));
            self.send(EventKind::Log { stream, text: now.to_owned() }).await;
            rest = later;
        }
    }
    /// [`Ctx::log`] for threads of the blocking pool; must not be called on an async thread.
    pub fn log_blocking(&self, stream: LogStream, text: &str) {
        self.runtime.block_on(self.log(stream, text));
    }
    /// A line that a person should know.
    pub async fn notice(&self, text: impl Into<String>) {
        self.send(EventKind::Notice { text: text.into() }).await;
    }
    /// A line about what went as it should.
    pub async fn news(&self, text: impl Into<String>) {
        self.send(EventKind::News { text: text.into() }).await;
    }
    /// The same from where nothing may wait: where the queue is full, it is left out.
    pub fn try_news(&self, text: impl Into<String>) {
        let kind = EventKind::News { text: text.into() };
        let _ = self.messages.try_send(Message::Event { index: self.index, kind });
    }
    /// [`Ctx::notice`] for threads of the blocking pool; must not be called on an async thread.
    pub fn notice_blocking(&self, text: impl Into<String>) {
        self.runtime.block_on(self.notice(text));
    }
    /// Bytes or items done. Never waits: where the queue is full, this report is left out, the next one says more.
    pub fn progress(&self, what: impl Into<String>, done: u64, total: Option<u64>) {
        let kind = EventKind::Progress { what: what.into(), done, total };
        let _ = self.messages.try_send(Message::Event { index: self.index, kind });
    }

    pub(crate) async fn send(&self, kind: EventKind) {
        let message = Message::Event { index: self.index, kind };
        if let Err(mpsc::error::TrySendError::Full(message)) = self.messages.try_send(message) {
            tokio::select! {
                _ = self.messages.send(message) => {}
                _ = self.cancel.killed() => {}
            }
        }
    }
}

/// The greatest length at most `max` that does not cut a character.
fn cut(text: &str, max: usize) -> usize {
    if text.len() <= max {
        return text.len();
    }
    (1..=max).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(text.len())
}
