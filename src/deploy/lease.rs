//! The lease that keeps a second deploy out, and the fence that keeps a late one out.
//!
//! A deployer asks every host of the target for the lease at an epoch higher than any that it saw, and has it when
//! a majority of all hosts granted it ([`majority`]); it renews every [`RENEW`]. Hosts decide by [`decide`] and let
//! orders through by [`admit`]: both are pure, both sides use this one copy, and time is the host's own monotonic
//! clock, so that a wrong wall clock changes nothing.
//!
//! Invariants: `highest` never falls; at most one owner holds an unexpired lease; an epoch is granted to one owner
//! on a host (two owners that got the same epoch on different hosts cannot both have a majority, so sharing the
//! number of an epoch that never won is harmless).

use crate::protocol::{Epoch, LeaseAnswer, LeaseClaim, LeaseView, Refusal, RefusalKind};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a lease lives without renewal.
pub const TTL: Duration = Duration::from_secs(15);
/// How often it is renewed.
pub const RENEW: Duration = Duration::from_secs(5);
/// Longest life that a host grants, whatever is asked for.
pub const MAX_TTL: Duration = Duration::from_secs(60);

/// What a host keeps (synced to disk before it answers) for each app.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LeaseState {
    /// Highest epoch seen in a granted claim or an admitted order.
    #[serde(default)]
    pub highest: Epoch,
    /// Who has it, or had it last.
    #[serde(default)]
    pub holder: Option<Holder>,
}

/// Who has a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// See [`LeaseClaim::owner`].
    pub owner: String,
    /// For people.
    pub who: String,
    /// Epoch.
    pub epoch: Epoch,
    /// When it was granted, on the host's monotonic clock, milliseconds (`CLOCK_BOOTTIME`).
    pub since_ms: u64,
    /// When it ends, on the same clock.
    pub until_ms: u64,
    /// Boot during which that clock counts; in another boot the lease is over.
    pub boot_id: String,
}

/// Now, on a host: milliseconds of its monotonic clock, and its boot.
#[derive(Debug, Clone, Copy)]
pub struct HostTime<'a> {
    /// `CLOCK_BOOTTIME`, milliseconds.
    pub now_ms: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: &'a str,
}

impl Holder {
    /// Whether the lease still lives.
    pub fn lives(&self, time: HostTime<'_>) -> bool {
        self.boot_id == time.boot_id && time.now_ms < self.until_ms
    }
    /// As it is shown.
    pub fn view(&self, time: HostTime<'_>) -> LeaseView {
        let left = if self.lives(time) { self.until_ms - time.now_ms } else { 0 };
        LeaseView {
            owner: self.owner.clone(),
            who: self.who.clone(),
            epoch: self.epoch,
            age_ms: time.now_ms.saturating_sub(self.since_ms),
            left_ms: left,
        }
    }
}

/// Decides a claim (a first one or a renewal); the changed state, where there is one, is to be synced before the
/// answer is sent.
pub fn decide(
    state: &LeaseState,
    claim: &LeaseClaim,
    time: HostTime<'_>,
) -> (LeaseAnswer, Option<LeaseState>) {
    let ttl = claim.ttl_ms.min(u64::try_from(MAX_TTL.as_millis()).unwrap_or(u64::MAX));
    let ours = state.holder.as_ref().filter(|h| h.owner == claim.owner);
    let renews = ours.is_some_and(|h| h.epoch == claim.epoch);
    if let Some(h) = state.holder.as_ref().filter(|h| h.owner != claim.owner && h.lives(time)) {
        return (LeaseAnswer::Held(h.view(time)), None);
    }
    if claim.epoch < state.highest || (claim.epoch == state.highest && !renews) {
        return (LeaseAnswer::Stale { highest: state.highest }, None);
    }
    let since_ms = if renews { ours.map_or(time.now_ms, |h| h.since_ms) } else { time.now_ms };
    let holder = Holder {
        owner: claim.owner.clone(),
        who: claim.who.clone(),
        epoch: claim.epoch,
        since_ms,
        until_ms: time.now_ms.saturating_add(ttl),
        boot_id: time.boot_id.to_owned(),
    };
    (LeaseAnswer::Granted, Some(LeaseState { highest: claim.epoch, holder: Some(holder) }))
}

/// Gives a lease back: the changed state, or `None` where it is not this owner's at this epoch.
pub fn release(state: &LeaseState, owner: &str, epoch: Epoch) -> Option<LeaseState> {
    let ours = state.holder.as_ref().is_some_and(|h| h.owner == owner && h.epoch == epoch);
    ours.then_some(LeaseState { highest: state.highest, holder: None })
}

/// Whether an order of this epoch may be done; the changed state, where there is one, is to be synced first. A host
/// that was away when the lease was granted learns the epoch from the first order.
pub fn admit(state: &LeaseState, epoch: Epoch) -> Result<Option<LeaseState>, Refusal> {
    if epoch < state.highest {
        let highest = state.highest;
        return Err(Refusal::new(
            RefusalKind::Fenced { highest },
            format!(
                "this deploy has epoch {epoch}, but a later one took over with epoch {highest}: look at it with `keelway deploy status`, then deploy again"
            ),
        ));
    }
    Ok((epoch > state.highest).then(|| LeaseState { highest: epoch, ..state.clone() }))
}

/// How many of `hosts` make a majority: 1 of 1, 2 of 2, 2 of 3, 3 of 5.
pub const fn majority(hosts: usize) -> usize {
    hosts / 2 + 1
}

#[cfg(test)]
mod tests;
