//! One app on a host: its lease and fence, its settings, its releases. All of it synced before it counts.

use crate::files;
use crate::record;
use crate::settings::Settings;
use keelway_deploy::lease::{self, HostTime, LeaseState};
use keelway_deploy::protocol::{
    AppSettings, Epoch, HISTORY, LeaseAnswer, LeaseClaim, LeaseView, Refusal, RefusalKind, ReleaseRecord,
    ReleaseState, ReplicaId,
};
use keelway_model::ids::AppName;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::replicas::Replica;

const LEASE: &str = "lease.json";
const SETTINGS: &str = "app.json";
/// The file of the releases of an app.
pub(crate) const RELEASES: &str = "releases.json";

/// An app.
#[derive(Debug)]
pub(super) struct App {
    pub name: AppName,
    dir: PathBuf,
    inner: Mutex<Inner>,
    /// Held while the app's balancer is started or ended.
    pub balancer: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Inner {
    lease: LeaseState,
    settings: Option<AppSettings>,
    releases: Vec<ReleaseRecord>,
    replicas: BTreeMap<ReplicaId, Arc<Replica>>,
}

/// Milliseconds of CLOCK_BOOTTIME, and the boot it counts from.
#[derive(Debug, Clone)]
pub(super) struct Boot(String);

impl Boot {
    pub fn read() -> io::Result<Self> {
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| Self(id.trim().to_owned()))
    }
    pub fn now(&self) -> HostTime<'_> {
        HostTime { now_ms: boottime_ms(), boot_id: &self.0 }
    }
}

/// Sleeps of the machine count: a lease must not survive one.
fn boottime_ms() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    // It cannot fail on a kernel that we run on; if it did, no lease would live.
    let Ok(time) = time else { return u64::MAX };
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    seconds * 1000 + u64::try_from(time.tv_nsec()).unwrap_or(0) / 1_000_000
}

pub(super) fn disk(error: &io::Error, what: &str) -> Refusal {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let kind = if full { RefusalKind::DiskFull } else { RefusalKind::Failed };
    Refusal::new(kind, format!("cannot {what} on the host: {error}"))
}

impl App {
    /// An app that has a directory, or gets one.
    pub fn open(settings: &Settings, name: AppName) -> io::Result<Self> {
        let dir = record::app_dir(settings, &name);
        files::private_dir(&dir)?;
        let inner = Inner {
            lease: files::load(&dir.join(LEASE))?.unwrap_or_default(),
            settings: files::load(&dir.join(SETTINGS))?,
            releases: files::load(&dir.join(RELEASES))?.unwrap_or_default(),
            replicas: BTreeMap::new(),
        };
        Ok(Self { name, dir, inner: Mutex::new(inner), balancer: tokio::sync::Mutex::new(()) })
    }
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub fn replicas(&self) -> Vec<Arc<Replica>> {
        self.inner().replicas.values().cloned().collect()
    }
    pub fn replica(&self, id: ReplicaId) -> Option<Arc<Replica>> {
        self.inner().replicas.get(&id).cloned()
    }
    pub fn insert(&self, replica: Arc<Replica>) {
        self.inner().replicas.insert(replica.id, replica);
    }
    pub fn forget(&self, id: ReplicaId) {
        self.inner().replicas.remove(&id);
    }
    pub fn settings(&self) -> Option<AppSettings> {
        self.inner().settings.clone()
    }
    pub fn releases(&self) -> Vec<ReleaseRecord> {
        self.inner().releases.clone()
    }
    pub fn highest(&self) -> Epoch {
        self.inner().lease.highest
    }
    pub fn lease_view(&self, time: HostTime<'_>) -> Option<LeaseView> {
        self.inner().lease.holder.as_ref().map(|h| h.view(time))
    }

    /// Refuses an order of an older lease; remembers a newer one.
    pub fn admit(&self, epoch: Epoch) -> Result<(), Refusal> {
        let mut inner = self.inner();
        if let Some(state) = lease::admit(&inner.lease, epoch)? {
            self.save(LEASE, &state)?;
            inner.lease = state;
        }
        Ok(())
    }
    pub fn claim(&self, claim: &LeaseClaim, time: HostTime<'_>) -> Result<LeaseAnswer, Refusal> {
        let mut inner = self.inner();
        let (answer, state) = lease::decide(&inner.lease, claim, time);
        if let Some(state) = state {
            self.save(LEASE, &state)?;
            inner.lease = state;
        }
        Ok(answer)
    }
    pub fn release(&self, owner: &str, epoch: Epoch) -> Result<(), Refusal> {
        let mut inner = self.inner();
        if let Some(state) = lease::release(&inner.lease, owner, epoch) {
            self.save(LEASE, &state)?;
            inner.lease = state;
        }
        Ok(())
    }
    pub fn set_settings(&self, settings: AppSettings) -> Result<(), Refusal> {
        let mut inner = self.inner();
        if inner.settings.as_ref() != Some(&settings) {
            self.save(SETTINGS, &settings)?;
            inner.settings = Some(settings);
        }
        Ok(())
    }
    pub fn record_release(&self, record: ReleaseRecord) -> Result<(), Refusal> {
        let mut inner = self.inner();
        let releases = with_release(&inner.releases, record);
        if releases != inner.releases {
            self.save(RELEASES, &releases)?;
            inner.releases = releases;
        }
        Ok(())
    }
    fn save<T: serde::Serialize>(&self, name: &str, value: &T) -> Result<(), Refusal> {
        // A few milliseconds for the sync, under the app's lock: nothing may be answered before.
        tokio::task::block_in_place(|| files::save(&self.dir, name, value))
            .map_err(|e| disk(&e, &format!("write {name} of {}", self.name)))
    }
}

/// The records with one more, or one replaced: newest revision first, the last [`HISTORY`] completed ones
/// and as many of the others.
fn with_release(have: &[ReleaseRecord], record: ReleaseRecord) -> Vec<ReleaseRecord> {
    let mut all: Vec<ReleaseRecord> =
        have.iter().filter(|r| r.revision != record.revision).cloned().collect();
    all.push(record);
    all.sort_by_key(|r| std::cmp::Reverse(r.revision));
    let (mut completed, mut others) = (0, 0);
    all.retain(|r| {
        let count = if r.state == ReleaseState::Completed { &mut completed } else { &mut others };
        *count += 1;
        *count <= HISTORY
    });
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelway_deploy::protocol::{Release, ReplicaSpec, Revision};
    use keelway_model::plan::Health;
    use keelway_model::{Digest, Limits, PushedDigest, Timestamp};
    use std::time::Duration;

    fn record(revision: u64, state: ReleaseState) -> ReleaseRecord {
        let second = Duration::from_secs(1);
        let image = PushedDigest::attested_by_registry("r.example/a".parse().unwrap(), Digest::of(b"x"));
        let health = Health {
            http: "/".into(),
            interval: second,
            timeout: second,
            healthy: 1,
            unhealthy: 1,
            deadline: second,
        };
        let spec = ReplicaSpec {
            image,
            port: 1,
            env: vec![],
            health,
            stop_grace: second,
            limits: Limits::default(),
        };
        let release = Release { spec, replicas: 1, drain: second, listen: ":80".into() };
        ReleaseRecord { revision: Revision(revision), release, state, begun: Timestamp(0), who: "x".into() }
    }

    #[test]
    fn the_last_completed_releases_are_kept() {
        let mut all = Vec::new();
        for n in 1..=30 {
            let state = if n % 2 == 0 { ReleaseState::Completed } else { ReleaseState::RolledBack };
            all = with_release(&all, record(n, ReleaseState::Started));
            all = with_release(&all, record(n, state));
        }
        let completed: Vec<u64> =
            all.iter().filter(|r| r.state == ReleaseState::Completed).map(|r| r.revision.0).collect();
        assert_eq!(completed, (6..=15).rev().map(|n| n * 2).collect::<Vec<_>>());
        assert!(all.is_sorted_by(|a, b| a.revision > b.revision));
        assert!(all.len() <= 2 * HISTORY, "{}", all.len());
    }
}
