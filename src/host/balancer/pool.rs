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

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a backend that could not be connected to is passed over.
const HOLD_OFF: Duration = Duration::from_secs(1);

/// Most backends of one pool.
pub const MAX_BACKENDS: usize = 1024;

/// Whether new requests go to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// Gets its share.
    Active,
    /// Finishes what it has and gets nothing new.
    Draining,
}

/// One backend as the pool's owner names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendSpec {
    /// Name, unique in the pool.
    pub id: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Whether it gets requests.
    pub state: BackendState,
}

/// How backends are checked while they serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// Path that must answer 2xx or 3xx.
    pub path: String,
    /// Between two checks.
    pub interval: Duration,
    /// For one check.
    pub timeout: Duration,
    /// Good answers in a row that bring a backend back.
    pub healthy: u32,
    /// Bad answers in a row that take it out.
    pub unhealthy: u32,
}

/// A whole pool.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PoolSpec {
    /// Grows with every change; an older one is refused.
    pub generation: u64,
    /// The backends.
    pub backends: Vec<BackendSpec>,
    /// How they are checked; `None` leaves only what failing connections tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
}

/// Why a pool was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SwapError {
    /// A newer pool is there already.
    #[error(
        "the balancer has pool generation {have}, generation {offered} is older: read its snapshot and count on from there"
    )]
    Older {
        /// What it has.
        have: u64,
        /// What was offered.
        offered: u64,
    },
    /// The same number for another pool.
    #[error("the balancer has another pool under generation {0}: read its snapshot and count on from there")]
    Conflict(u64),
    /// Two backends of one name.
    #[error("two backends are named {0:?}")]
    Twice(String),
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
        let mut names: Vec<&str> = self.backends.iter().map(|b| b.id.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|w| w[0] == w[1]) {
            return Err(SwapError::Twice(pair[0].to_owned()));
        }
        match self.generation.cmp(&have.generation) {
            std::cmp::Ordering::Less => {
                Err(SwapError::Older { have: have.generation, offered: self.generation })
            }
            std::cmp::Ordering::Equal if self == have => Ok(false),
            std::cmp::Ordering::Equal => Err(SwapError::Conflict(self.generation)),
            std::cmp::Ordering::Greater => Ok(true),
        }
    }
}

/// A backend with its counters.
#[derive(Debug)]
pub struct Backend {
    /// Name.
    pub id: String,
    /// Where it listens.
    pub address: SocketAddr,
    in_flight: AtomicUsize,
    served: AtomicU64,
    failed: AtomicU64,
    marks: Mutex<Marks>,
}

/// What checks and failing connections say.
#[derive(Debug, Default)]
struct Marks {
    ejected: bool,
    good: u32,
    bad: u32,
    held_until: Option<Instant>,
}

impl Backend {
    fn new(spec: &BackendSpec) -> Self {
        Self {
            id: spec.id.clone(),
            address: spec.address,
            in_flight: AtomicUsize::new(0),
            served: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            marks: Mutex::new(Marks::default()),
        }
    }
    fn is_well(&self, now: Instant) -> bool {
        let m = lock(&self.marks);
        !m.ejected && m.held_until.is_none_or(|t| now >= t)
    }
    /// Nothing could be sent to it: it is passed over for a moment.
    pub fn refused(&self, now: Instant) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        lock(&self.marks).held_until = Some(now + HOLD_OFF);
    }
    /// A request that was sent came to nothing.
    pub fn broke(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }
    /// Takes in the result of one check; says whether the backend went out (`Some(false)`) or came back.
    pub fn checked(&self, good: bool, rule: &HealthCheck) -> Option<bool> {
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
}

/// A request on its way: counts against its backend until dropped.
#[derive(Debug)]
pub struct Ticket(Arc<Backend>);

impl Ticket {
    /// The backend.
    pub fn backend(&self) -> &Backend {
        &self.0
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One backend in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendSnapshot {
    /// Name.
    pub id: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Whether it gets requests.
    pub state: BackendState,
    /// False while checks or failing connections keep requests away.
    pub well: bool,
    /// Requests on their way.
    pub in_flight: usize,
    /// Requests it was given in all.
    pub served: u64,
    /// Connections refused and requests that came to nothing.
    pub failed: u64,
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
    backends: Vec<Arc<Backend>>,
    turn: usize,
}

/// No code that holds one of these locks can panic half-way, so a poisoned one is as good as any.
fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool that was in force before, for example before the balancer was killed.
    pub fn restored(spec: PoolSpec) -> Self {
        let backends = spec.backends.iter().map(|b| Arc::new(Backend::new(b))).collect();
        Self { inner: Mutex::new(Inner { spec, backends, turn: 0 }) }
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
        let backends = spec
            .backends
            .iter()
            .map(|b| {
                let kept = inner.backends.iter().find(|have| have.id == b.id && have.address == b.address);
                kept.map_or_else(|| Arc::new(Backend::new(b)), Arc::clone)
            })
            .collect();
        inner.backends = backends;
        inner.spec = spec;
        Ok(())
    }
    /// Chooses a backend for one request: the one with the least in flight, in turn among equals, not
    /// one of `tried`. `None` when there is none.
    pub fn choose(&self, tried: &[String], now: Instant) -> Option<Ticket> {
        let mut inner = lock(&self.inner);
        let Inner { spec, backends, turn } = &mut *inner;
        let open: Vec<&Arc<Backend>> = spec
            .backends
            .iter()
            .zip(backends.iter())
            .filter(|(s, b)| s.state == BackendState::Active && !tried.contains(&b.id))
            .map(|(_, b)| b)
            .collect();
        let well: Vec<&Arc<Backend>> = open.iter().copied().filter(|b| b.is_well(now)).collect();
        let from = if well.is_empty() { open } else { well };
        if from.is_empty() {
            return None;
        }
        *turn = turn.wrapping_add(1);
        let start = *turn % from.len();
        let best = (0..from.len())
            .map(|i| from[(start + i) % from.len()])
            .min_by_key(|b| b.in_flight.load(Ordering::SeqCst))?;
        best.in_flight.fetch_add(1, Ordering::SeqCst);
        best.served.fetch_add(1, Ordering::Relaxed);
        Some(Ticket(Arc::clone(best)))
    }
    /// The backends that checks look at, with the rule.
    pub fn to_check(&self) -> Option<(HealthCheck, Vec<Arc<Backend>>)> {
        let inner = lock(&self.inner);
        let active = inner.spec.backends.iter().zip(&inner.backends);
        let active = active.filter(|(s, _)| s.state == BackendState::Active).map(|(_, b)| Arc::clone(b));
        inner.spec.health.clone().map(|rule| (rule, active.collect()))
    }
    /// All backends, as they are at one moment.
    pub fn snapshot(&self, now: Instant) -> (u64, Vec<BackendSnapshot>) {
        let inner = lock(&self.inner);
        let backends = inner.spec.backends.iter().zip(&inner.backends).map(|(s, b)| BackendSnapshot {
            id: b.id.clone(),
            address: b.address,
            state: s.state,
            well: b.is_well(now),
            in_flight: b.in_flight.load(Ordering::SeqCst),
            served: b.served.load(Ordering::Relaxed),
            failed: b.failed.load(Ordering::Relaxed),
        });
        (inner.spec.generation, backends.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(generation: u64, backends: &[(&str, BackendState)]) -> PoolSpec {
        let backends = backends
            .iter()
            .enumerate()
            .map(|(i, (id, state))| BackendSpec {
                id: (*id).to_owned(),
                address: format!("127.0.0.1:{}", 1000 + i).parse().unwrap(),
                state: *state,
            })
            .collect();
        PoolSpec { generation, backends, health: None }
    }
    use BackendState::{Active, Draining};

    #[test]
    fn least_in_flight_then_in_turn() {
        let pool = Pool::restored(spec(1, &[("a", Active), ("b", Active), ("c", Draining)]));
        let now = Instant::now();
        let held: Vec<Ticket> = (0..6).map(|_| pool.choose(&[], now).unwrap()).collect();
        let of = |id: &str| held.iter().filter(|t| t.backend().id == id).count();
        assert_eq!((of("a"), of("b"), of("c")), (3, 3, 0));
        drop(held);
        assert!(pool.snapshot(now).1.iter().all(|b| b.in_flight == 0));
        assert!(pool.choose(&["a".into(), "b".into()], now).is_none(), "a drained one is never chosen");
    }

    #[test]
    fn generations_never_go_back_and_counters_live_on() {
        let pool = Pool::restored(spec(5, &[("a", Active)]));
        let ticket = pool.choose(&[], Instant::now()).unwrap();
        assert_eq!(pool.swap(spec(4, &[])), Err(SwapError::Older { have: 5, offered: 4 }));
        assert_eq!(pool.swap(spec(5, &[])), Err(SwapError::Conflict(5)));
        assert_eq!(pool.swap(spec(5, &[("a", Active)])), Ok(()));
        assert_eq!(pool.swap(spec(6, &[("a", Draining)])), Ok(()));
        assert_eq!(pool.swap(spec(7, &[("a", Active), ("a", Active)])), Err(SwapError::Twice("a".into())));
        assert_eq!(pool.snapshot(Instant::now()).1[0].in_flight, 1, "the drained request still counts");
        drop(ticket);
        assert_eq!(pool.snapshot(Instant::now()).1[0].in_flight, 0);
    }

    #[test]
    fn health_never_leaves_nobody() {
        let rule = HealthCheck {
            path: "/".into(),
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            healthy: 2,
            unhealthy: 2,
        };
        let pool = Pool::restored(PoolSpec {
            health: Some(rule.clone()),
            ..spec(1, &[("a", Active), ("b", Active)])
        });
        let now = Instant::now();
        let (_, backends) = pool.to_check().unwrap();
        assert_eq!(backends[0].checked(false, &rule), None, "once is not enough");
        assert_eq!(backends[0].checked(true, &rule), None);
        assert_eq!(backends[0].checked(false, &rule), None, "only in a row");
        assert_eq!(backends[0].checked(false, &rule), Some(false));
        for _ in 0..4 {
            assert_eq!(pool.choose(&[], now).unwrap().backend().id, "b");
        }
        backends[1].refused(now);
        assert!(pool.choose(&[], now).is_some(), "the last ones are used whatever the checks say");
        assert_eq!(backends[0].checked(true, &rule), None);
        assert_eq!(backends[0].checked(true, &rule), Some(true));
        assert_eq!(pool.choose(&[], now).unwrap().backend().id, "a", "b is passed over for a moment");
        let later = now + HOLD_OFF;
        let two: Vec<Ticket> = (0..2).map(|_| pool.choose(&[], later).unwrap()).collect();
        assert_ne!(two[0].backend().id, two[1].backend().id);
    }
}
