//! Cancellation: an ordered reason that escalates from asking to killing.
//!
//! A [`CancelSource`] belongs to whoever may cancel, a [`CancelToken`] to whoever must listen. The state only ever
//! rises: the worst reason wins, and `kill` is never taken back.

use std::sync::Arc;
use tokio::sync::watch;

/// Why something is cancelled; the greater reason wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CancelReason {
    /// Something else failed, so that its result is no longer wanted.
    FailureElsewhere,
    /// Its time is over.
    Timeout,
    /// The run can no longer be recorded or shown.
    SinkFailed,
    /// A person, or whoever stops the process, asked for it.
    Interrupt,
}

/// How far a cancellation has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cancel {
    /// False: stop in good order (SIGTERM; a deploy ends after the step it is at). True: stop now (SIGKILL).
    pub kill: bool,
    /// Why.
    pub reason: CancelReason,
}

/// The side that cancels. Clones share one state.
#[derive(Debug, Clone)]
pub struct CancelSource(Arc<watch::Sender<Option<Cancel>>>);

impl Default for CancelSource {
    fn default() -> Self {
        Self::new()
    }
}

impl CancelSource {
    /// Not cancelled.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
    /// Asks to stop in good order.
    pub fn cancel(&self, reason: CancelReason) {
        self.raise(Cancel { kill: false, reason });
    }
    /// Asks to stop now.
    pub fn kill(&self, reason: CancelReason) {
        self.raise(Cancel { kill: true, reason });
    }
    /// Raises the state to at least `to`, both in reason and in force.
    pub fn raise(&self, to: Cancel) {
        self.0.send_if_modified(|now| {
            let next = match *now {
                None => to,
                Some(n) => Cancel { kill: n.kill || to.kill, reason: n.reason.max(to.reason) },
            };
            let risen = *now != Some(next);
            *now = Some(next);
            risen
        });
    }
    /// A listener.
    pub fn token(&self) -> CancelToken {
        CancelToken { state: self.0.subscribe(), _source: self.clone() }
    }
    /// The state now.
    pub fn state(&self) -> Option<Cancel> {
        *self.0.borrow()
    }
}

/// The side that listens. Cheap to clone; every method is safe to drop half-way.
#[derive(Debug, Clone)]
pub struct CancelToken {
    state: watch::Receiver<Option<Cancel>>,
    // Keeps the channel open, so that a token without its source never reads as cancelled.
    _source: CancelSource,
}

impl CancelToken {
    /// A token that nobody cancels.
    pub fn never() -> Self {
        CancelSource::new().token()
    }
    /// The state now.
    pub fn state(&self) -> Option<Cancel> {
        *self.state.borrow()
    }
    /// Whether stopping was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.state().is_some()
    }
    /// Whether stopping at once was asked for.
    pub fn is_killed(&self) -> bool {
        self.state().is_some_and(|c| c.kill)
    }
    /// Waits until stopping is asked for; at once when it already was.
    pub async fn cancelled(&self) -> CancelReason {
        self.wait(|_| true).await.reason
    }
    /// Waits until stopping at once is asked for.
    pub async fn killed(&self) -> CancelReason {
        self.wait(|c| c.kill).await.reason
    }
    /// Waits until the state is no longer `seen`, and returns the new one.
    pub async fn changed_from(&self, seen: Option<Cancel>) -> Cancel {
        self.wait(|c| Some(c) != seen).await
    }

    async fn wait(&self, enough: impl Fn(Cancel) -> bool) -> Cancel {
        let mut state = self.state.clone();
        let found = state.wait_for(|s| s.is_some_and(&enough)).await.map(|s| *s);
        match found {
            Ok(Some(cancel)) => cancel,
            // The source is kept by the token, so the channel cannot close; and `enough` saw a `Some`.
            _ => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_reason_wins_and_killing_is_never_taken_back() {
        let source = CancelSource::new();
        let token = source.token();
        assert!(!token.is_cancelled());
        source.cancel(CancelReason::Timeout);
        source.cancel(CancelReason::FailureElsewhere);
        assert_eq!(token.state(), Some(Cancel { kill: false, reason: CancelReason::Timeout }));
        source.kill(CancelReason::FailureElsewhere);
        source.cancel(CancelReason::Interrupt);
        assert_eq!(token.state(), Some(Cancel { kill: true, reason: CancelReason::Interrupt }));
    }

    #[tokio::test]
    async fn waiting_ends_at_the_level_it_waits_for() {
        let source = CancelSource::new();
        let token = source.token();
        let (asked, killed) = (token.clone(), token.clone());
        let asked = tokio::spawn(async move { asked.cancelled().await });
        let killed = tokio::spawn(async move { killed.killed().await });
        source.cancel(CancelReason::Interrupt);
        assert_eq!(asked.await.unwrap(), CancelReason::Interrupt);
        assert!(!killed.is_finished());
        source.kill(CancelReason::Interrupt);
        assert_eq!(killed.await.unwrap(), CancelReason::Interrupt);
    }
}
