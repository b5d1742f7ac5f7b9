//! What the hosts last reported, and the questions the rollout asks of it. No decisions here.

use crate::goal::{Numbered, place};
use crate::protocol::{
    AppReport, Backend, BackendReport, BackendState, ReleaseRecord, ReplicaId, ReplicaReport, ReplicaState,
    Revision,
};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A replica on a host.
pub(super) type Spot = (usize, ReplicaId);

/// One host of the target.
#[derive(Debug, Clone)]
pub struct HostView {
    /// Its name, for people.
    pub name: String,
    /// Where the other hosts reach it.
    pub address: Option<IpAddr>,
    /// What it said last about the app; empty where it never heard of it.
    pub report: AppReport,
    /// Since when it does not answer.
    pub(super) down: Option<(Duration, String)>,
}

impl HostView {
    /// A host with its last report.
    pub fn new(name: impl Into<String>, address: Option<IpAddr>, report: AppReport) -> Self {
        Self { name: name.into(), address, report, down: None }
    }
    /// Why it does not answer, where it does not.
    pub(crate) fn why_down(&self) -> Option<String> {
        self.down.as_ref().map(|d| d.1.clone())
    }
    /// The record of a revision.
    pub(super) fn record(&self, revision: Revision) -> Option<&ReleaseRecord> {
        self.report.releases.iter().find(|r| r.revision == revision)
    }
}

/// All hosts.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) hosts: Vec<HostView>,
}

impl World {
    pub(super) fn replica(&self, (host, id): Spot) -> Option<&ReplicaReport> {
        self.hosts.get(host)?.report.replicas.iter().find(|r| r.replica == id)
    }
    /// Every replica on every host, host after host.
    pub(super) fn spots(&self) -> Vec<Spot> {
        let of = |(h, view): (usize, &HostView)| {
            view.report.replicas.iter().map(move |r| (h, r.replica)).collect::<Vec<_>>()
        };
        self.hosts.iter().enumerate().flat_map(of).collect()
    }
    /// Where the replicas of a release belong, those that stand staying where they are.
    pub(super) fn placement(&self, release: &Numbered) -> Vec<Spot> {
        let standing: Vec<(usize, u32)> = self
            .spots()
            .into_iter()
            .filter(|(_, id)| id.revision == release.revision)
            .map(|(h, id)| (h, id.slot))
            .collect();
        place(self.hosts.len(), release.revision, release.release.replicas, &standing)
    }
    /// Where the balancer of host `at` dials a replica.
    pub(super) fn address(&self, at: usize, spot: Spot) -> Option<SocketAddr> {
        let report = self.replica(spot)?;
        if at == spot.0 {
            return report.address;
        }
        Some(SocketAddr::new(self.hosts.get(spot.0)?.address?, report.host_port?))
    }
    /// The entry of a replica in the balancer of host `at`.
    pub(super) fn entry(&self, at: usize, spot: Spot) -> Option<&BackendReport> {
        let address = self.address(at, spot)?;
        let mut pool = self.hosts.get(at)?.report.balancer.backends.iter();
        pool.find(|b| b.replica == spot.1 && b.address == address)
    }
    fn entries(&self, spot: Spot) -> impl Iterator<Item = Option<&BackendReport>> {
        (0..self.hosts.len()).map(move |at| self.entry(at, spot))
    }
    /// Any balancer knows it.
    pub(super) fn is_member(&self, spot: Spot) -> bool {
        self.entries(spot).any(|e| e.is_some())
    }
    /// Any balancer gives it new requests.
    pub(super) fn is_active(&self, spot: Spot) -> bool {
        self.entries(spot).flatten().any(|e| e.state == BackendState::Active)
    }
    /// Any balancer is draining it.
    pub(super) fn is_draining(&self, spot: Spot) -> bool {
        self.entries(spot).flatten().any(|e| e.state == BackendState::Draining)
    }
    /// Requests in flight, over all balancers.
    pub(super) fn in_flight(&self, spot: Spot) -> u32 {
        self.entries(spot).flatten().fold(0, |sum, e| sum.saturating_add(e.in_flight))
    }
    /// Healthy, and every balancer gives it requests and can reach it.
    pub(super) fn is_available(&self, spot: Spot) -> bool {
        self.state(spot) == Some(ReplicaState::Healthy)
            && self.entries(spot).all(|e| e.is_some_and(|e| e.state == BackendState::Active && e.usable))
    }
    pub(super) fn state(&self, spot: Spot) -> Option<ReplicaState> {
        self.replica(spot).map(|r| r.state)
    }
    /// The pool of host `at` with these replicas in these states, in a fixed order. A replica without an address
    /// (its process is gone) is left out.
    pub(super) fn pool(&self, at: usize, wanted: &[(Spot, BackendState)]) -> Vec<Backend> {
        let backend = |&(spot, state): &(Spot, BackendState)| {
            let health = self.replica(spot)?.spec.health.clone();
            Some(Backend { replica: spot.1, address: self.address(at, spot)?, state, health })
        };
        let mut pool: Vec<Backend> = wanted.iter().filter_map(backend).collect();
        pool.sort_by_key(|b| (b.replica, b.address));
        pool
    }
    /// Whether the balancer of host `at` runs with exactly this pool; what it still drains to its end may be more.
    pub(super) fn is_applied(&self, at: usize, pool: &[Backend]) -> bool {
        let balancer = &self.hosts[at].report.balancer;
        let same = |b: &Backend, r: &BackendReport| b.replica == r.replica && b.address == r.address;
        let all_there =
            pool.iter().all(|b| balancer.backends.iter().any(|r| same(b, r) && b.state == r.state));
        let none_more = balancer.backends.iter().all(|r| {
            pool.iter().any(|b| same(b, r)) || (r.state == BackendState::Draining && r.in_flight > 0)
        });
        balancer.running && all_there && none_more
    }
}
