//! Health checks that go on after a deploy: each active backend, by its own rule.

use super::pool::{Member, Pool};
use keelway_container::health;
use keelway_deploy::protocol::ReplicaId;
use keelway_model::plan::Health;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How often we look whether a check is due: also the finest interval.
const TICK: Duration = Duration::from_millis(50);
/// Checks under way at one time.
const MAX_CHECKS: usize = 64;

/// Checks until dropped. A backend's checks never overlap.
pub async fn run(pool: Arc<Pool>) {
    let mut due: BTreeMap<(ReplicaId, SocketAddr), Instant> = BTreeMap::new();
    let mut running: JoinSet<(ReplicaId, SocketAddr)> = JoinSet::new();
    let mut tick = tokio::time::interval(TICK);
    loop {
        tick.tick().await;
        let now = Instant::now();
        let members = pool.to_check();
        due.retain(|key, _| members.iter().any(|(_, m)| (m.replica, m.address) == *key));
        while let Some(Ok(key)) = running.try_join_next() {
            let rule = members.iter().find(|(_, m)| (m.replica, m.address) == key).map(|(rule, _)| rule);
            if let Some(rule) = rule {
                due.insert(key, now + rule.interval);
            }
        }
        for (rule, member) in members {
            let key = (member.replica, member.address);
            let at = *due.entry(key).or_insert(now + rule.interval);
            if now >= at && running.len() < MAX_CHECKS {
                // Far away until this check is done, so that it is not started twice.
                due.insert(key, now + Duration::from_secs(86_400));
                running.spawn(check(rule, member));
            }
        }
    }
}

async fn check(rule: Health, member: Arc<Member>) -> (ReplicaId, SocketAddr) {
    let result = health::probe(member.address, &rule.http, rule.timeout).await;
    match member.checked(result.is_ok(), &rule) {
        Some(true) => tracing::info!(replica = %member.replica, "answers its checks again"),
        Some(false) => {
            let why = result.err().map(|e| e.to_string()).unwrap_or_default();
            tracing::warn!(replica = %member.replica, why, "fails its checks: no new requests");
        }
        None => {}
    }
    (member.replica, member.address)
}
