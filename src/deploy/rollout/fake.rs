//! A simulated fleet: hosts that answer orders as real ones must, with virtual time, images that misbehave and
//! links that lose messages. It checks the rollout's invariants at every order and keeps what it found.

use super::OrderError;
use crate::lease::{self, HostTime, LeaseState};
use crate::protocol::*;
use keelway_model::plan::Health;
use keelway_model::{Bytes, Digest, PushedDigest, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What an image does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Image {
    Good,
    NeverReady,
    Exits,
    /// Healthy, and gone so long after its start.
    Dies(Duration),
}

/// What the link does to one order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Through,
    /// Never arrives.
    Lost,
    /// Is done, but the answer never arrives.
    AnswerLost,
    Refused(RefusalKind),
}

#[derive(Debug, Default)]
pub(crate) struct FakeHost {
    pub replicas: BTreeMap<ReplicaId, (ReplicaReport, Duration)>,
    pub balancer: BTreeMap<ReplicaId, (Backend, u32, Duration)>,
    pub pool: (Epoch, u64),
    pub settings: Option<AppSettings>,
    pub releases: BTreeMap<Revision, ReleaseRecord>,
    pub images: BTreeSet<Digest>,
    /// What it was told to pull, and with what.
    pub pulls: Vec<(PushedDigest, RegistryAccess)>,
    pub lease: LeaseState,
    pub findings: Vec<Finding>,
    pub down: bool,
    ports: u16,
}

#[derive(Debug)]
pub(crate) struct Fleet {
    pub hosts: Vec<FakeHost>,
    pub now: Duration,
    pub images: BTreeMap<Digest, Image>,
    pub floor: usize,
    pub drain: Duration,
    pub broken: Vec<String>,
    /// Changing orders that were done, newest last.
    pub done: Vec<String>,
    pub starts: BTreeMap<ReplicaId, u32>,
    /// Requests never end.
    pub stuck: bool,
}

pub(crate) fn app() -> keelway_model::ids::AppName {
    "web".parse().unwrap()
}
pub(crate) fn image(name: &str) -> PushedDigest {
    PushedDigest::attested_by_registry("r.example.com/web".parse().unwrap(), Digest::of(name.as_bytes()))
}
pub(crate) fn release(name: &str, replicas: u32) -> Release {
    let health = Health {
        http: "/healthz".into(),
        interval: Duration::from_millis(500),
        timeout: Duration::from_secs(1),
        healthy: 3,
        unhealthy: 3,
        deadline: Duration::from_secs(20),
    };
    let spec = ReplicaSpec {
        image: image(name),
        port: 8080,
        env: vec![],
        health,
        stop_grace: Duration::from_secs(10),
        limits: Default::default(),
    };
    Release { spec, replicas, drain: Duration::from_secs(5), listen: ":80".into() }
}

fn ms(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap()
}

impl Fleet {
    pub fn new(hosts: usize) -> Self {
        Self {
            hosts: (0..hosts).map(|_| FakeHost::default()).collect(),
            now: Duration::from_secs(1),
            images: BTreeMap::new(),
            floor: 0,
            drain: Duration::from_secs(5),
            broken: vec![],
            done: vec![],
            starts: BTreeMap::new(),
            stuck: false,
        }
    }
    pub fn behaves(&mut self, name: &str, image: Image) {
        self.images.insert(self::image(name).digest(), image);
    }
    pub fn ip(host: usize) -> std::net::IpAddr {
        format!("198.18.0.{}", host + 1).parse().unwrap()
    }
    pub fn report(&self, host: usize) -> HostReport {
        let h = &self.hosts[host];
        if h.settings.is_none() && h.releases.is_empty() && h.lease == LeaseState::default() {
            return HostReport::default();
        }
        let time = HostTime { now_ms: ms(self.now), boot_id: "boot" };
        let app = AppReport {
            settings: h.settings.clone(),
            replicas: h
                .replicas
                .values()
                .map(|r| ReplicaReport { age_ms: ms(self.now - r.1), ..r.0.clone() })
                .collect(),
            balancer: self.balancer(host),
            lease: h.lease.holder.as_ref().map(|l| l.view(time)),
            highest_epoch: h.lease.highest,
            releases: h.releases.values().rev().cloned().collect(),
            ..AppReport::empty(app())
        };
        HostReport { apps: vec![app] }
    }
    pub fn reports(&self) -> Vec<HostReport> {
        (0..self.hosts.len()).map(|h| self.report(h)).collect()
    }
    fn balancer(&self, host: usize) -> BalancerReport {
        let h = &self.hosts[host];
        let backends = h.balancer.values().map(|(b, in_flight, _)| BackendReport {
            replica: b.replica,
            address: b.address,
            state: b.state,
            usable: true,
            in_flight: *in_flight,
        });
        BalancerReport {
            running: h.settings.is_some(),
            epoch: h.pool.0,
            generation: h.pool.1,
            backends: backends.collect(),
        }
    }
    /// Replicas that are healthy and get requests from every balancer.
    pub fn available(&self) -> usize {
        self.count(|r, _| r.state == ReplicaState::Healthy)
    }
    /// The same as a deployer may believe it: one that died since its last look is still counted, because nothing can
    /// be known of it.
    fn believed(&self) -> usize {
        self.count(|r, age| self.seems_healthy(r, age))
    }
    /// Healthy now, or at the last look.
    fn seems_healthy(&self, r: &ReplicaReport, age: Duration) -> bool {
        let just_died = match self.images.get(&r.spec.image.digest()) {
            Some(Image::Dies(after)) => age <= *after + Duration::from_millis(60),
            _ => false,
        };
        r.state == ReplicaState::Healthy || (r.state == ReplicaState::Exited && just_died)
    }
    fn count(&self, well: impl Fn(&ReplicaReport, Duration) -> bool) -> usize {
        let all = self.hosts.iter().flat_map(|h| h.replicas.values());
        all.filter(|(r, started)| {
            let active =
                |h: &FakeHost| h.balancer.get(&r.replica).is_some_and(|b| b.0.state == BackendState::Active);
            well(r, self.now - *started) && self.hosts.iter().all(active)
        })
        .count()
    }
    /// Every replica that is there, as (host, id, state).
    pub fn standing(&self) -> Vec<(usize, ReplicaId, ReplicaState)> {
        let of = |(h, host): (usize, &FakeHost)| {
            host.replicas.values().map(move |r| (h, r.0.replica, r.0.state)).collect::<Vec<_>>()
        };
        self.hosts.iter().enumerate().flat_map(of).collect()
    }

    pub fn advance(&mut self, by: Duration) {
        self.now += by;
        let now = self.now;
        for host in &mut self.hosts {
            for (report, started) in host.replicas.values_mut() {
                let behaviour = self.images.get(&report.spec.image.digest()).copied().unwrap_or(Image::Good);
                let age = now - *started;
                if !report.state.is_running() || report.state == ReplicaState::Stopping {
                    continue;
                }
                report.state = match behaviour {
                    Image::Exits if age > Duration::from_millis(300) => ReplicaState::Exited,
                    Image::Dies(after) if age > after => ReplicaState::Exited,
                    Image::Good | Image::Dies(_) if age > Duration::from_millis(1500) => {
                        ReplicaState::Healthy
                    }
                    _ => ReplicaState::Starting,
                };
                if report.state == ReplicaState::Exited {
                    report.ended = Some("exit code 1".into());
                }
            }
            for (backend, in_flight, since) in host.balancer.values_mut() {
                match backend.state {
                    BackendState::Active => *in_flight = 3,
                    BackendState::Draining if !self.stuck && now - *since > Duration::from_millis(700) => {
                        *in_flight = 0
                    }
                    BackendState::Draining => {}
                }
            }
        }
    }

    /// One order over one link.
    pub fn call(&mut self, host: usize, order: &Order, fate: Fate) -> Result<Reply, OrderError> {
        if self.hosts[host].down || fate == Fate::Lost {
            return Err(OrderError::Unreachable("connection lost".into()));
        }
        if let Fate::Refused(kind) = fate {
            return Err(Refusal::new(kind, "refused by the test").into());
        }
        let before = self.believed();
        let answer = self.perform(host, order);
        if before >= self.floor && self.believed() < self.floor {
            self.broken.push(format!(
                "{order:?} let capacity fall to {} of {}",
                self.available(),
                self.floor
            ));
        }
        if fate == Fate::AnswerLost { Err(OrderError::Late) } else { answer.map_err(Into::into) }
    }

    fn perform(&mut self, host: usize, order: &Order) -> Result<Reply, Refusal> {
        if let Some(fence) = order.fence() {
            if let Some(next) = lease::admit(&self.hosts[host].lease, fence.epoch)? {
                self.hosts[host].lease = next;
            }
            let text = format!("{order:?}");
            self.done.push(format!("{host} {}", text.split([' ', '{']).next().unwrap_or_default()));
        }
        let now_ms = ms(self.now);
        let time = HostTime { now_ms, boot_id: "boot" };
        match order {
            Order::Preflight(_) => Ok(Reply::Preflight(PreflightReport {
                findings: self.hosts[host].findings.clone(),
                disk_free: Bytes(1 << 40),
            })),
            Order::AcquireLease(claim) | Order::RenewLease(claim) => {
                let (answer, next) = lease::decide(&self.hosts[host].lease, claim, time);
                self.hosts[host].lease = next.unwrap_or(self.hosts[host].lease.clone());
                Ok(Reply::Lease(answer))
            }
            Order::ReleaseLease { owner, epoch, .. } => {
                if let Some(next) = lease::release(&self.hosts[host].lease, owner, *epoch) {
                    self.hosts[host].lease = next;
                }
                Ok(Reply::Ok)
            }
            Order::EnsureImage { image, registry, .. } => {
                self.hosts[host].pulls.push((image.clone(), registry.clone()));
                let local = !self.hosts[host].images.insert(image.digest());
                Ok(Reply::Image(ImageReport { local, fetched: Bytes(0) }))
            }
            Order::EnsureApp { settings, .. } => {
                self.hosts[host].settings = Some(settings.clone());
                Ok(Reply::Ok)
            }
            Order::EnsureReplica { replica, spec, .. } => self.start(host, *replica, spec),
            Order::SetBackends { fence, generation, backends } => {
                self.pool(host, (fence.epoch, *generation), backends)
            }
            Order::StopReplica { replica, .. } => self.stop(host, *replica),
            Order::RemoveReplica { replica, .. } => {
                if self.hosts[host].replicas.get(replica).is_some_and(|r| r.0.state != ReplicaState::Stopped)
                {
                    self.broken.push(format!("{replica} was removed while it ran"));
                }
                self.hosts[host].replicas.remove(replica);
                Ok(Reply::Ok)
            }
            Order::Status { .. } => Ok(Reply::Status(self.report(host))),
            Order::ReadLogs { replica, .. } => Ok(Reply::Logs(vec![format!("last line of {replica}")])),
            Order::RecordRelease { record, .. } => {
                self.hosts[host].releases.insert(record.revision, (**record).clone());
                Ok(Reply::Ok)
            }
        }
    }

    fn start(&mut self, host: usize, id: ReplicaId, spec: &ReplicaSpec) -> Result<Reply, Refusal> {
        let now = self.now;
        let h = &mut self.hosts[host];
        if !h.images.contains(&spec.image.digest()) {
            return Err(Refusal::new(RefusalKind::NotFound, "the image is not here"));
        }
        if let Some((have, _)) = h.replicas.get(&id).filter(|r| r.0.state != ReplicaState::Stopped) {
            return Ok(Reply::Replica(Box::new(have.clone())));
        }
        h.ports += 1;
        let report = ReplicaReport {
            replica: id,
            spec: spec.clone(),
            state: ReplicaState::Starting,
            good: 0,
            bad: 0,
            last_bad: None,
            restarts: 0,
            ended: None,
            pid: Some(1),
            address: Some(format!("10.0.0.{}:8080", h.ports).parse().unwrap()),
            host_port: Some(20_000 + h.ports),
            age_ms: 0,
        };
        h.replicas.insert(id, (report.clone(), now));
        *self.starts.entry(id).or_default() += 1;
        Ok(Reply::Replica(Box::new(report)))
    }

    fn pool(&mut self, host: usize, number: (Epoch, u64), backends: &[Backend]) -> Result<Reply, Refusal> {
        if number < self.hosts[host].pool {
            return Err(Refusal::new(
                RefusalKind::Fenced { highest: self.hosts[host].pool.0 },
                "an older pool",
            ));
        }
        for b in backends {
            let mut all = self.hosts.iter().filter_map(|h| h.replicas.get(&b.replica));
            let healthy = all.any(|(r, started)| self.seems_healthy(r, self.now - *started));
            let new_here = self.hosts.iter().all(|h| !h.balancer.contains_key(&b.replica));
            if new_here && b.state == BackendState::Active && !healthy {
                self.broken.push(format!("{} joined the balancers before it was healthy", b.replica));
            }
        }
        let now = self.now;
        let h = &mut self.hosts[host];
        h.pool = number;
        let mut next = BTreeMap::new();
        for b in backends {
            let (in_flight, since) = match h.balancer.get(&b.replica) {
                Some((have, n, since)) if have.state == b.state => (*n, *since),
                Some((_, n, _)) => (*n, now),
                None => (0, now),
            };
            next.insert(b.replica, (b.clone(), in_flight, since));
        }
        for (id, (b, n, since)) in &h.balancer {
            if !next.contains_key(id) && *n > 0 {
                next.insert(*id, (Backend { state: BackendState::Draining, ..b.clone() }, *n, *since));
            }
        }
        h.balancer = next;
        Ok(Reply::Balancer(self.balancer(host)))
    }

    fn stop(&mut self, host: usize, id: ReplicaId) -> Result<Reply, Refusal> {
        for h in &self.hosts {
            let Some((backend, in_flight, since)) = h.balancer.get(&id) else { continue };
            let running = self.hosts[host].replicas.get(&id).is_some_and(|r| r.0.state.is_running());
            if backend.state == BackendState::Active {
                self.broken.push(format!("{id} was stopped while a balancer sent to it"));
            } else if running && *in_flight > 0 && self.now - *since < self.drain {
                self.broken.push(format!("{id} was stopped with {in_flight} requests in flight"));
            }
        }
        if let Some(r) = self.hosts[host].replicas.get_mut(&id) {
            r.0.state = ReplicaState::Stopped;
            r.0.pid = None;
        }
        for h in &mut self.hosts {
            if let Some(b) = h.balancer.get_mut(&id) {
                b.1 = 0;
            }
        }
        Ok(Reply::Ok)
    }
    /// Records of a revision, one a host.
    pub fn states(&self, revision: u64) -> Vec<Option<ReleaseState>> {
        self.hosts.iter().map(|h| h.releases.get(&Revision(revision)).map(|r| r.state)).collect()
    }
    pub fn wall() -> Timestamp {
        Timestamp(1_795_442_589_000)
    }
}
