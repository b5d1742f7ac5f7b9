//! Where a deploy starts and where it goes, read from what the hosts report: no I/O.
//!
//! Truth is on the hosts. Their release records say which release was completed last (the one to go back to), which
//! was begun and not finished, and whether its rollback had begun; so a deploy from another machine, or after the
//! deployer was killed, comes to the same decision as the first one would have.
//!
//! Invariants: a revision number names one [`ReplicaSpec`] for ever (scaling keeps the number, anything else takes a
//! new one); replicas of one revision are spread evenly, and those that stand already stay where they are.

use crate::protocol::{HostReport, Release, ReleaseRecord, ReleaseState, ReplicaId, Revision};
use keelway_model::Timestamp;
use keelway_model::ids::AppName;
use std::collections::BTreeMap;

/// A release with its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbered {
    /// Its number.
    pub revision: Revision,
    /// What runs.
    pub release: Release,
}

/// Which way a rollout goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// To the new release.
    Forward,
    /// Back to the last completed one.
    Back,
}

/// What a deploy is to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Goal {
    /// The app.
    pub app: AppName,
    /// The release that is wanted.
    pub new: Numbered,
    /// The release that was completed last: what a failure goes back to. `None` on a first deploy.
    pub base: Option<Numbered>,
    /// [`Direction::Back`] where a rollback of exactly this release was begun and not finished.
    pub direction: Direction,
    /// An unfinished rollout of this very release is gone on with.
    pub resumed: bool,
    /// Releases that were begun and never finished, other than `new`: closed when this deploy is done.
    pub unfinished: Vec<ReleaseRecord>,
    /// When the new release was begun first.
    pub begun: Timestamp,
    /// By whom.
    pub who: String,
}

impl Goal {
    /// Reads the goal of deploying `release` from the reports of all hosts of the target.
    pub fn resolve(
        app: &AppName,
        release: Release,
        reports: &[HostReport],
        now: Timestamp,
        who: &str,
    ) -> Self {
        let records = merge_records(app, reports);
        let highest = highest_revision(app, reports);
        let base = records
            .values()
            .rev()
            .find(|r| r.state == ReleaseState::Completed)
            .map(|r| Numbered { revision: r.revision, release: r.release.clone() });
        // The newest unfinished attempt at this very spec is gone on with; the completed release of this spec is
        // kept; everything else is a new number.
        let newest = records
            .values()
            .rev()
            .find(|r| matches!(r.state, ReleaseState::Started | ReleaseState::RollingBack))
            .filter(|r| {
                r.release.spec == release.spec && base.as_ref().is_none_or(|b| b.revision < r.revision)
            });
        let (revision, direction, resumed) = match (newest, &base) {
            (Some(r), _) if r.state == ReleaseState::RollingBack => (r.revision, Direction::Back, true),
            (Some(r), _) => (r.revision, Direction::Forward, true),
            (None, Some(b)) if b.release.spec == release.spec => (b.revision, Direction::Forward, false),
            _ => (Revision(highest.0 + 1), Direction::Forward, false),
        };
        let (begun, who) = match records.get(&revision) {
            Some(r) => (r.begun, r.who.clone()),
            None => (now, who.to_owned()),
        };
        let unfinished = records
            .into_values()
            .filter(|r| {
                r.revision != revision && matches!(r.state, ReleaseState::Started | ReleaseState::RollingBack)
            })
            .collect();
        Self {
            app: app.clone(),
            new: Numbered { revision, release },
            base,
            direction,
            resumed,
            unfinished,
            begun,
            who,
        }
    }

    /// Replicas that must answer at any moment: as many as both releases promise.
    pub fn floor(&self) -> u32 {
        self.base.as_ref().map_or(0, |b| b.release.replicas.min(self.new.release.replicas))
    }

    /// The record of the new release in this state.
    pub fn record(&self, state: ReleaseState) -> ReleaseRecord {
        ReleaseRecord {
            revision: self.new.revision,
            release: self.new.release.clone(),
            state,
            begun: self.begun,
            who: self.who.clone(),
        }
    }

    /// Whether new and base are one and the same release: there is nothing to go back to.
    pub fn is_same(&self) -> bool {
        self.base.as_ref() == Some(&self.new)
    }
}

/// The records of all hosts as one, by revision. Where hosts differ (a deployer died between two of them), what was
/// verified wins, then what is still to be finished.
pub fn merge_records(app: &AppName, reports: &[HostReport]) -> BTreeMap<Revision, ReleaseRecord> {
    let rank = |s: ReleaseState| match s {
        ReleaseState::Started => 0,
        ReleaseState::RolledBack => 1,
        ReleaseState::RollingBack => 2,
        ReleaseState::Completed => 3,
    };
    let mut merged: BTreeMap<Revision, ReleaseRecord> = BTreeMap::new();
    for record in reports.iter().flat_map(|h| &h.apps).filter(|a| a.app == *app).flat_map(|a| &a.releases) {
        let better = merged.get(&record.revision).is_none_or(|have| rank(have.state) < rank(record.state));
        if better {
            merged.insert(record.revision, record.clone());
        }
    }
    merged
}

/// Highest revision that any host knows, from a record or from a replica; 0 where there is none.
pub fn highest_revision(app: &AppName, reports: &[HostReport]) -> Revision {
    let apps = || reports.iter().flat_map(|h| &h.apps).filter(|a| a.app == *app);
    let records = apps().flat_map(|a| a.releases.iter().map(|r| r.revision));
    let replicas = apps().flat_map(|a| a.replicas.iter().map(|r| r.replica.revision));
    records.chain(replicas).max().unwrap_or(Revision(0))
}

/// Which release a rollback goes to: the completed one under an unfinished rollout, else the completed one before
/// the current.
pub fn previous(records: &BTreeMap<Revision, ReleaseRecord>) -> Option<&ReleaseRecord> {
    let mut completed = records.values().rev().filter(|r| r.state == ReleaseState::Completed);
    let current = completed.next()?;
    let half_done = records.values().any(|r| {
        r.revision > current.revision && matches!(r.state, ReleaseState::Started | ReleaseState::RollingBack)
    });
    if half_done { Some(current) } else { completed.next() }
}

/// Spreads slots 0 to `replicas` over `hosts`: those in `standing` (host, slot) stay, each other one goes to the
/// host with the fewest, the first of equals. The result is in the order of work: host after host, slot after slot.
pub fn place(
    hosts: usize,
    revision: Revision,
    replicas: u32,
    standing: &[(usize, u32)],
) -> Vec<(usize, ReplicaId)> {
    if hosts == 0 {
        return Vec::new();
    }
    let mut of_slot: BTreeMap<u32, usize> = BTreeMap::new();
    for &(host, slot) in standing {
        if slot < replicas && host < hosts {
            of_slot.entry(slot).or_insert(host);
        }
    }
    let mut count = vec![0usize; hosts];
    for &host in of_slot.values() {
        count[host] += 1;
    }
    for slot in 0..replicas {
        of_slot.entry(slot).or_insert_with(|| {
            let fewest = (0..hosts).min_by_key(|&h| (count[h], h)).unwrap_or(0);
            count[fewest] += 1;
            fewest
        });
    }
    let mut placed: Vec<_> =
        of_slot.into_iter().map(|(slot, host)| (host, ReplicaId { revision, slot })).collect();
    placed.sort();
    placed
}

#[cfg(test)]
mod tests;
