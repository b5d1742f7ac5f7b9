//! The pool of backends: who may get the next request, and how many each one has.
//!
//! Invariants:
//! - choosing a backend and counting the request are one step under one lock, and so is swapping the
//!   pool: once [`Pool::swap`] returned, no request can start on a backend that the new pool drains or
//!   lacks, and an in-flight count of zero stays zero;
//! - a generation never goes back, and one generation names one pool;
//! - a backend that keeps its id and address over a swap keeps its counters and its health;
//! - health only ever narrows the choice: when it would leave nobody, everybody active is tried.
//!
//! It does no I/O.

use keelway_deploy::protocol::{Backend, BackendReport, BackendState, Epoch, ReplicaId};
use keelway_model::plan::Health;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long a backend that could not be connected to is passed over.
const HOLD_OFF: Duration = Duration::from_secs(1);

/// Most backends of one pool.
pub const MAX_BACKENDS: usize = 1024;

/// A whole pool.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PoolSpec {
    /// Epoch of the lease under which it was ordered.
    pub epoch: Epoch,
    /// Grows with every change under one epoch; an older one is refused.
    pub generation: u64,
    /// The backends.
    pub backends: Vec<Backend>,
}

/// Why a pool was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SwapError {
    /// A newer pool is there already.
    #[error(
        "the balancer already has a newer pool (epoch {epoch}, generation {generation}): look at it with `keelway deploy status`"
    )]
    Older {
        /// Epoch of what it has.
        epoch: Epoch,
        /// Generation of what it has.
        generation: u64,
    },
    /// The same number for another pool.
    #[error(
        "the balancer has another pool under epoch {epoch}, generation {generation}: read its report and count on from there"
    )]
    Conflict {
        /// Epoch of what it has.
        epoch: Epoch,
        /// Generation of what it has.
        generation: u64,
    },
    /// Two backends of one name.
    #[error("replica {0} is in the pool twice")]
    Twice(ReplicaId),
    /// Too many.
    #[error("{0} backends are more than {MAX_BACKENDS}")]
    TooMany(usize),
}

impl PoolSpec {
    /// Checks what a swap from `have` to `self` must hold; `Ok(false)` when nothing changes.
    pub fn follows(&self, have: &PoolSpec) -> Result<bool, SwapError> {
        if self.backends.len() > MAX_BACKENDS {
            return Err(SwapError::TooMany(self.backends.len()));
        }
        let mut names: Vec<ReplicaId> = self.backends.iter().map(|b| b.replica).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|w| w[0] == w[1]) {
            return Err(SwapError::Twice(pair[0]));
        }
        let PoolSpec { epoch, generation, .. } = *have;
        match (self.epoch, self.generation).cmp(&(epoch, generation)) {
            std::cmp::Ordering::Less => Err(SwapError::Older { epoch, generation }),
            std::cmp::Ordering::Equal if self == have => Ok(false),
            std::cmp::Ordering::Equal => Err(SwapError::Conflict { epoch, generation }),
            std::cmp::Ordering::Greater => Ok(true),
        }
    }
}

/// A backend with its counters.
#[derive(Debug)]
pub struct Member {
    /// Which replica.
    pub replica: ReplicaId,
    /// Where it listens.
    pub address: SocketAddr,
    in_flight: AtomicU32,
    marks: Mutex<Marks>,
    // Whether it gets nothing new and shall finish what it has.
    drained: watch::Sender<bool>,
}

/// What checks and failing connections say.
#[derive(Debug, Default)]
struct Marks {
    ejected: bool,
    good: u32,
    bad: u32,
    held_until: Option<Instant>,
}

impl Member {
    fn new(spec: &Backend) -> Self {
        Self {
            replica: spec.replica,
            address: spec.address,
            in_flight: AtomicU32::new(0),
            marks: Mutex::new(Marks::default()),
            drained: watch::Sender::new(spec.state == BackendState::Draining),
        }
    }
    /// Whether it is drained, now and from now on.
    pub fn drained(&self) -> watch::Receiver<bool> {
        self.drained.subscribe()
    }
    fn is_well(&self, now: Instant) -> bool {
        let m = lock(&self.marks);
        !m.ejected && m.held_until.is_none_or(|t| now >= t)
    }
    /// Nothing could be sent to it: it is passed over for a moment.
    pub fn refused(&self, now: Instant) {
        lock(&self.marks).held_until = Some(now + HOLD_OFF);
    }
    /// Takes in the result of one check; says whether the backend went out (`Some(false)`) or came back.
    pub fn checked(&self, good: bool, rule: &Health) -> Option<bool> {
        let mut m = lock(&self.marks);
        if good {
            m.bad = 0;
            m.good = m.good.saturating_add(1);
            // An answer proves that it accepts connections again.
            m.held_until = None;
            if m.ejected && m.good >= rule.healthy {
                m.ejected = false;
                return Some(true);
            }
        } else {
            m.good = 0;
            m.bad = m.bad.saturating_add(1);
            if !m.ejected && m.bad >= rule.unhealthy {
                m.ejected = true;
                return Some(false);
            }
        }
        None
    }
    fn report(&self, state: BackendState, now: Instant) -> BackendReport {
        BackendReport {
            replica: self.replica,
            address: self.address,
            state,
            usable: self.is_well(now),
            in_flight: self.in_flight.load(Ordering::SeqCst),
        }
    }
}

/// A request on its way: counts against its backend until dropped.
#[derive(Debug)]
pub struct Ticket(Arc<Member>);

impl Ticket {
    /// The backend.
    pub fn member(&self) -> &Member {
        &self.0
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The pool. Cheap to share behind an `Arc`.
#[derive(Debug, Default)]
pub struct Pool {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    spec: PoolSpec,
    // Same order and length as `spec.backends`.
    members: Vec<Arc<Member>>,
    // Out of the pool, but not all of their requests are answered yet.
    leaving: Vec<Arc<Member>>,
    turn: usize,
}

/// No code that holds one of these locks can panic half-way, so a poisoned one is as good as any.
fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool that was in force before, for example before the balancer was killed.
    pub fn restored(spec: PoolSpec) -> Self {
        let members = spec.backends.iter().map(|b| Arc::new(Member::new(b))).collect();
        Self { inner: Mutex::new(Inner { spec, members, leaving: Vec::new(), turn: 0 }) }
    }
    /// What is in force.
    pub fn spec(&self) -> PoolSpec {
        lock(&self.inner).spec.clone()
    }
    /// Puts `spec` in force, all at once. The caller has stored it before ([`PoolSpec::follows`] is
    /// checked again here).
    pub fn swap(&self, spec: PoolSpec) -> Result<(), SwapError> {
        let mut inner = lock(&self.inner);
        if !spec.follows(&inner.spec)? {
            return Ok(());
        }
        let Inner { members, leaving, .. } = &mut *inner;
        let mut old: Vec<Arc<Member>> = members.drain(..).chain(leaving.drain(..)).collect();
        let new = spec.backends.iter().map(|b| {
            let at = old.iter().position(|have| have.replica == b.replica && have.address == b.address);
            at.map_or_else(|| Arc::new(Member::new(b)), |at| old.swap_remove(at))
        });
        inner.members = new.collect();
        for (member, backend) in inner.members.iter().zip(&spec.backends) {
            member.drained.send_replace(backend.state == BackendState::Draining);
        }
        for member in &old {
            member.drained.send_replace(true);
        }
        inner.leaving = old;
        inner.spec = spec;
        Ok(())
    }
    /// Chooses a backend for one request: the one with the least in flight, in turn among equals, not
    /// one of `tried`. `None` when there is none.
    pub fn choose(&self, tried: &[ReplicaId], now: Instant) -> Option<Ticket> {
        let mut inner = lock(&self.inner);
        let Inner { spec, members, turn, .. } = &mut *inner;
        let open: Vec<&Arc<Member>> = spec
            .backends
            .iter()
            .zip(members.iter())
            .filter(|(s, m)| s.state == BackendState::Active && !tried.contains(&m.replica))
            .map(|(_, m)| m)
            .collect();
        let well: Vec<&Arc<Member>> = open.iter().copied().filter(|m| m.is_well(now)).collect();
        let from = if well.is_empty() { open } else { well };
        if from.is_empty() {
            return None;
        }
        *turn = turn.wrapping_add(1);
        let start = *turn % from.len();
        let best = (0..from.len())
            .map(|i| from[(start + i) % from.len()])
            .min_by_key(|m| m.in_flight.load(Ordering::SeqCst))?;
        best.in_flight.fetch_add(1, Ordering::SeqCst);
        Some(Ticket(Arc::clone(best)))
    }
    /// The backends that checks look at, each with its rule.
    pub fn to_check(&self) -> Vec<(Health, Arc<Member>)> {
        let inner = lock(&self.inner);
        let active = inner.spec.backends.iter().zip(&inner.members);
        let active = active.filter(|(s, _)| s.state == BackendState::Active);
        active.map(|(s, m)| (s.health.clone(), Arc::clone(m))).collect()
    }
    /// All backends, as they are at one moment; one that left the pool with requests in flight is among
    /// them, as draining.
    pub fn report(&self, now: Instant) -> (Epoch, u64, Vec<BackendReport>) {
        let mut inner = lock(&self.inner);
        inner.leaving.retain(|m| m.in_flight.load(Ordering::SeqCst) > 0);
        let here = inner.spec.backends.iter().zip(&inner.members).map(|(s, m)| m.report(s.state, now));
        let leaving = inner.leaving.iter().map(|m| m.report(BackendState::Draining, now));
        (inner.spec.epoch, inner.spec.generation, here.chain(leaving).collect())
    }
    /// Everybody is to finish what it has: the balancer ends.
    pub fn drain_all(&self) {
        let inner = lock(&self.inner);
        for member in inner.members.iter().chain(&inner.leaving) {
            member.drained.send_replace(true);
        }
    }
    /// Requests on their way, over all backends.
    pub fn in_flight(&self) -> u32 {
        self.report(Instant::now()).2.iter().map(|b| b.in_flight).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> Health {
        Health {
            http: "/".into(),
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            healthy: 2,
            unhealthy: 2,
            deadline: Duration::from_secs(9),
        }
    }
    fn spec(epoch: u64, generation: u64, backends: &[(u32, BackendState)]) -> PoolSpec {
        let backends = backends.iter().map(|(slot, state)| Backend {
            replica: format!("r1-{slot}").parse().unwrap(),
            address: format!("127.0.0.1:{}", 1000 + slot).parse().unwrap(),
            state: *state,
            health: rule(),
        });
        PoolSpec { epoch: Epoch(epoch), generation, backends: backends.collect() }
    }
    use BackendState::{Active, Draining};

    #[test]
    fn least_in_flight_then_in_turn() {
        let pool = Pool::restored(spec(1, 1, &[(0, Active), (1, Active), (2, Draining)]));
        let now = Instant::now();
        let held: Vec<Ticket> = (0..6).map(|_| pool.choose(&[], now).unwrap()).collect();
        let of = |slot| held.iter().filter(|t| t.member().replica.slot == slot).count();
        assert_eq!((of(0), of(1), of(2)), (3, 3, 0));
        let tried: Vec<ReplicaId> = ["r1-0", "r1-1"].map(|id| id.parse().unwrap()).to_vec();
        assert!(pool.choose(&tried, now).is_none(), "a drained one is never chosen");
        drop(held);
        assert_eq!(pool.in_flight(), 0);
    }

    #[test]
    fn generations_never_go_back_and_counters_live_on() {
        let pool = Pool::restored(spec(2, 5, &[(0, Active)]));
        let ticket = pool.choose(&[], Instant::now()).unwrap();
        let older = Err(SwapError::Older { epoch: Epoch(2), generation: 5 });
        assert_eq!(pool.swap(spec(2, 4, &[])), older);
        assert_eq!(pool.swap(spec(1, 9, &[])), older, "an older epoch, whatever its generation");
        assert_eq!(pool.swap(spec(2, 5, &[])), Err(SwapError::Conflict { epoch: Epoch(2), generation: 5 }));
        assert_eq!(pool.swap(spec(2, 5, &[(0, Active)])), Ok(()));
        assert_eq!(pool.swap(spec(2, 6, &[(0, Draining)])), Ok(()));
        assert!(matches!(pool.swap(spec(3, 7, &[(0, Active), (0, Active)])), Err(SwapError::Twice(_))));
        let flying =
            || pool.report(Instant::now()).2.iter().map(|b| (b.state, b.in_flight)).collect::<Vec<_>>();
        assert_eq!(flying(), [(Draining, 1)], "the drained request still counts");
        let drained = ticket.member().drained();
        assert!(*drained.borrow(), "and is told");
        assert_eq!(pool.swap(spec(3, 1, &[])), Ok(()));
        assert_eq!(flying(), [(Draining, 1)], "also when the backend is out of the pool");
        assert!(*drained.borrow());
        assert_eq!(pool.swap(spec(3, 2, &[(0, Active)])), Ok(()));
        assert_eq!(flying(), [(Active, 1)], "and when it comes back");
        assert!(!*drained.borrow());
        drop(ticket);
        assert_eq!(flying(), [(Active, 0)]);
        pool.swap(spec(3, 3, &[])).unwrap();
        assert_eq!(flying(), []);
    }

    #[test]
    fn health_never_leaves_nobody() {
        let rule = rule();
        let pool = Pool::restored(spec(1, 1, &[(0, Active), (1, Active)]));
        let now = Instant::now();
        let members: Vec<Arc<Member>> = pool.to_check().into_iter().map(|(_, m)| m).collect();
        let chosen = |at| pool.choose(&[], at).unwrap().member().replica.slot;
        assert_eq!(members[0].checked(false, &rule), None, "once is not enough");
        assert_eq!(members[0].checked(true, &rule), None);
        assert_eq!(members[0].checked(false, &rule), None, "only in a row");
        assert_eq!(members[0].checked(false, &rule), Some(false));
        for _ in 0..4 {
            assert_eq!(chosen(now), 1);
        }
        members[1].refused(now);
        assert!(pool.choose(&[], now).is_some(), "the last ones are used whatever the checks say");
        assert_eq!(members[0].checked(true, &rule), None);
        assert_eq!(members[0].checked(true, &rule), Some(true));
        assert_eq!(chosen(now), 0, "the other one is passed over for a moment");
        let later = now + HOLD_OFF;
        assert_ne!(chosen(later), chosen(later));
    }
}
