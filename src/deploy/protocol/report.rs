//! What a host says of itself: replicas, balancer, apps, releases.

use super::{AppSettings, Epoch, LeaseView, ReplicaId, ReplicaSpec, Revision};
use keelway_model::Timestamp;
use keelway_model::ids::AppName;
use keelway_model::plan::Health;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::time::Duration;

/// Life of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicaState {
    /// Runs, not yet `healthy` good checks in a row.
    Starting,
    /// Runs and healthy.
    Healthy,
    /// Runs, was healthy, then `unhealthy` bad checks in a row.
    Unhealthy,
    /// Its process ended by itself; the supervisor may start it again.
    Exited,
    /// SIGTERM was sent.
    Stopping,
    /// Ended because it was told to.
    Stopped,
}

impl ReplicaState {
    /// Whether a process of it runs.
    pub const fn is_running(self) -> bool {
        matches!(self, Self::Starting | Self::Healthy | Self::Unhealthy | Self::Stopping)
    }
}

/// A replica as its host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// Which.
    pub replica: ReplicaId,
    /// What it is.
    pub spec: ReplicaSpec,
    /// Life.
    pub state: ReplicaState,
    /// Good checks in a row.
    pub good: u32,
    /// Bad checks in a row.
    pub bad: u32,
    /// What the last bad check said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_bad: Option<String>,
    /// Times the supervisor started it again.
    #[serde(default)]
    pub restarts: u32,
    /// How its process last ended: `exit code 1`, `signal 9`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// Process id on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Where the host's own balancer dials it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// Port of the host that is forwarded into it, for the other hosts' balancers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
    /// Since its process started.
    #[serde(default)]
    pub age_ms: u64,
}

/// Whether a balancer gives a backend new requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// Yes.
    Active,
    /// No; what it has is finished.
    Draining,
}

/// One entry of a balancer's pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Which replica.
    pub replica: ReplicaId,
    /// Where this balancer dials it: in its namespace on its own host, a host port elsewhere.
    pub address: SocketAddr,
    /// New requests or not.
    pub state: BackendState,
    /// How the balancer's own checks see it.
    pub health: Health,
}

/// A balancer as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BalancerReport {
    /// Whether its process runs.
    pub running: bool,
    /// Epoch of the pool it applied.
    pub epoch: Epoch,
    /// Generation of the pool it applied.
    pub generation: u64,
    /// Its backends; one that was removed but still has requests in flight is listed as draining.
    pub backends: Vec<BackendReport>,
}

/// One backend of a balancer as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendReport {
    /// Which.
    pub replica: ReplicaId,
    /// Where it is dialled.
    pub address: SocketAddr,
    /// New requests or not.
    pub state: BackendState,
    /// Whether the balancer's own checks let it have requests.
    pub usable: bool,
    /// Requests it has been given and not answered yet.
    pub in_flight: u32,
}

/// A host as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostReport {
    /// Its apps.
    pub apps: Vec<AppReport>,
}

/// An app on a host as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppReport {
    /// Which.
    pub app: AppName,
    /// What [`Order::EnsureApp`] said last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<AppSettings>,
    /// Every replica that is not removed, by id.
    pub replicas: Vec<ReplicaReport>,
    /// Its balancer.
    pub balancer: BalancerReport,
    /// The lease, over or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseView>,
    /// Highest epoch seen in a lease or a fence.
    pub highest_epoch: Epoch,
    /// Release records, newest revision first.
    pub releases: Vec<ReleaseRecord>,
}

/// Where a release has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReleaseState {
    /// Begun; not at an end on this host.
    Started,
    /// All replicas run it, verified.
    Completed,
    /// Did not work; the one before is being restored.
    RollingBack,
    /// Was given up and the one before restored.
    RolledBack,
}

/// A release as each host keeps it: enough to deploy it again from any machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRecord {
    /// Its number.
    pub revision: Revision,
    /// What runs.
    pub release: Release,
    /// Where it has come to.
    pub state: ReleaseState,
    /// When it was begun, by the deployer's clock.
    pub begun: Timestamp,
    /// By whom, for people.
    pub who: String,
}

/// Everything that says what runs: image and settings, no host names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// What each replica is.
    pub spec: ReplicaSpec,
    /// Over all hosts.
    pub replicas: u32,
    /// How long a drained replica may finish what it has.
    pub drain: Duration,
    /// Balancer address.
    pub listen: String,
}

impl AppReport {
    /// Of an app that the host never heard of.
    pub fn empty(app: AppName) -> Self {
        Self {
            app,
            settings: None,
            replicas: Vec::new(),
            balancer: BalancerReport::default(),
            lease: None,
            highest_epoch: Epoch::default(),
            releases: Vec::new(),
        }
    }
}
