//! The engine's events into the ledger, a transaction a batch.

use crate::error::LedgerError;
use crate::logs::NodeLogs;
use crate::open::{Durable, Ledger};
use crate::runs::{AttemptHandle, AttemptState, end_attempt, insert_event};
use keelway_model::{EventKind, EventSink, RunEvent, SinkError};

/// Records the events of one attempt. What a batch says is recorded when [`EventSink::events`] returns: output first, in
/// the log files, then the events, with the change of state they tell of, in one transaction.
#[derive(Debug)]
pub struct LedgerSink {
    ledger: Ledger,
    attempt: AttemptHandle,
    logs: NodeLogs,
}

impl LedgerSink {
    pub(crate) fn new(ledger: Ledger, attempt: AttemptHandle) -> Self {
        let logs = ledger.log_store().writer(attempt.run(), attempt.attempt());
        Self { ledger, attempt, logs }
    }

    /// Records a batch; see [`EventSink::events`].
    pub fn record(&mut self, batch: &[RunEvent]) -> Result<(), LedgerError> {
        for event in batch {
            match &event.kind {
                EventKind::Log { .. } => self.logs.append(event)?,
                EventKind::Finished { .. } => self.logs.close(&event.node)?,
                _ => {}
            }
        }
        let rows =
            || batch.iter().filter(|e| !matches!(e.kind, EventKind::Log { .. } | EventKind::Progress { .. }));
        if rows().next().is_none() {
            return Ok(());
        }
        // What a person or a later start acts on is synced; the rest goes with the next sync.
        let durable = if rows().any(|e| changes_state(&e.kind)) { Durable::Yes } else { Durable::Soon };
        let token = self.attempt.sql_token();
        self.ledger.write_with(durable, "record events", |tx| {
            let state: String = tx
                .prepare_cached("SELECT state FROM attempts WHERE token = ?1")?
                .query_row([token], |r| r.get(0))?;
            if state != AttemptState::Running.as_str() {
                let (run, attempt) = (self.attempt.run().clone(), self.attempt.attempt());
                return Err(LedgerError::Fenced { run, attempt }.into());
            }
            for event in rows() {
                insert_event(tx, token, event)?;
                if let EventKind::RunFinished { outcome, interrupted, .. } = &event.kind {
                    end_attempt(tx, token, event.at, outcome, *interrupted)?;
                }
            }
            Ok(())
        })
    }
}

const fn changes_state(kind: &EventKind) -> bool {
    matches!(
        kind,
        EventKind::RunStarted { .. }
            | EventKind::Started { .. }
            | EventKind::Finished { .. }
            | EventKind::RunFinished { .. }
    )
}

impl EventSink for LedgerSink {
    fn events(&mut self, batch: &[RunEvent]) -> Result<(), SinkError> {
        self.record(batch).map_err(|e| SinkError { message: e.to_string() })
    }
}
