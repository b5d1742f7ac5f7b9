//! What the deployer and `keelway __host` say to each other over the standard streams of one ssh session.
//!
//! On the wire: the host writes [`MAGIC`] first (so that what a login shell prints before it can be skipped),
//! then both sides send frames (see [`crate::frame`]): the deployer one [`Hello`], the host one
//! [`Greeting`], then the deployer any number of [`Request`]s, answered by one [`Response`] each, in any order.
//!
//! Invariants:
//! - Every order that changes something carries a [`Fence`]; a host refuses an epoch lower than the highest it has
//!   seen for that app (see [`crate::lease::admit`]) before it does anything else.
//! - Orders are "ensure" orders: sent twice (after a lost connection) they do the work once, and answer the same.
//! - A host answers every request before `deadline_ms` has passed, with [`RefusalKind::Deadline`] at the latest.
//! - Secrets travel inside ssh only: [`WireSecret`] prints as nothing, and a host never stores or logs one.
//! - Additive only: a new field has a default, a new order is a new variant and raises [`VERSION`].

mod ids;
mod report;

pub use ids::{Epoch, ReplicaId, ReplicaIdError, Revision, WireSecret};
pub use report::{
    AppReport, Backend, BackendReport, BackendState, BalancerReport, HostReport, Release, ReleaseRecord,
    ReleaseState, ReplicaReport, ReplicaState,
};

use keelway_model::ids::AppName;
use keelway_model::plan::Health;
use keelway_model::{Bytes, Digest, Limits, Platform, PushedDigest};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::time::Duration;

/// Version of this protocol; both sides must speak the same one, which they do because the deployer brings its
/// own binary to the host.
pub const VERSION: u32 = 1;
/// What the host writes before its first frame.
pub const MAGIC: &[u8] = b"\nkeelway-host-stream\n";
/// Most bytes of one frame's JSON.
pub const MAX_FRAME: usize = 4 << 20;
/// Most bytes that a login shell may print before [`MAGIC`].
pub const MAX_NOISE: usize = 64 << 10;
/// Most log lines one answer carries.
pub const MAX_LOG_LINES: u32 = 1000;
/// Releases that a host keeps for each app, newest first.
pub const HISTORY: usize = 10;

/// On behalf of which lease an order is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// The app.
    pub app: AppName,
    /// The deployer's epoch.
    pub epoch: Epoch,
    /// The release that the deployer works towards.
    pub target: Revision,
}

/// First frame of the deployer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the deployer.
    pub version: u32,
    /// Version of the deployer's `keelway`.
    pub keelway: String,
    /// Digest of the binary that the deployer wants to talk to.
    pub binary: Option<Digest>,
}

/// First frame of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`VERSION`] of the host.
    pub version: u32,
    /// Version of the host's `keelway`.
    pub keelway: String,
    /// The host's own name (`uname -n`).
    pub hostname: String,
    /// Kernel release, for example `6.1.0-18-amd64`.
    pub kernel: String,
    /// What it runs.
    pub platform: Platform,
    /// Whether `__host` runs as root.
    pub root: bool,
    /// Address under which the target's other hosts reach this one: the server side of `SSH_CONNECTION` where it is
    /// known and not loopback.
    pub address: Option<IpAddr>,
    /// Changes with every boot of the host.
    pub boot_id: String,
}

/// How the host answers a [`Hello`]: its first frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Greeting {
    /// Go on.
    Welcome(Welcome),
    /// It will not talk; the stream ends after this frame.
    Refused(Refusal),
}

/// A question or an order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the deployer; not used twice on a connection.
    pub id: u64,
    /// The host answers within this many milliseconds.
    pub deadline_ms: u64,
    /// What.
    pub order: Order,
}

/// The answer to the request of the same id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// The request's.
    pub id: u64,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(clippy::large_enum_variant, reason = "one at a time, short lived")]
pub enum Outcome {
    /// Done.
    Done(Reply),
    /// Not done.
    Refused(Refusal),
}

/// Why a host did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub kind: RefusalKind,
    /// What failed, on what, and what to do next.
    pub message: String,
}

/// Kinds of [`Refusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    /// The order's epoch is lower than the highest seen; `highest` of the app.
    Fenced {
        /// Highest epoch seen.
        highest: Epoch,
    },
    /// The two sides speak different versions.
    Version,
    /// It was not done in time; it may be done later or not, ask again.
    Deadline,
    /// There is no such app, replica or image.
    NotFound,
    /// The registry does not have the image, or refuses the credentials.
    ImageDenied,
    /// The registry could not be reached; trying again may help.
    ImageUnavailable,
    /// The disk is full.
    DiskFull,
    /// A port or name is taken by something that is not ours.
    Taken,
    /// The frame or request makes no sense.
    Malformed,
    /// Anything else that failed on the host.
    Failed,
}

/// Questions and orders. Those with a [`Fence`] change something.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub enum Order {
    /// Looks whether a deploy could work here; changes nothing. -> [`Reply::Preflight`]
    Preflight(Preflight),
    /// Asks for the lease of an app; see [`crate::lease::decide`]. -> [`Reply::Lease`]
    AcquireLease(LeaseClaim),
    /// Keeps a lease that this owner holds at this epoch. -> [`Reply::Lease`]
    RenewLease(LeaseClaim),
    /// Gives a lease back; one that is not held by this owner at this epoch is left alone. -> [`Reply::Ok`]
    ReleaseLease {
        /// The app.
        app: AppName,
        /// Who.
        owner: String,
        /// Under which epoch.
        epoch: Epoch,
    },
    /// Brings an image into the host's store, digest checked; at once where it is there. -> [`Reply::Image`]
    EnsureImage {
        /// Lease.
        fence: Fence,
        /// Exactly this.
        image: PushedDigest,
        /// How to reach the registry.
        registry: RegistryAccess,
    },
    /// Makes bridge, firewall and the balancer process of an app. -> [`Reply::Ok`]
    EnsureApp {
        /// Lease.
        fence: Fence,
        /// What to make.
        settings: AppSettings,
    },
    /// Starts a replica unless it is there; answers when its process has started, healthy or not. The same id with
    /// another spec is refused. One that is stopped is started again. -> [`Reply::Replica`]
    EnsureReplica {
        /// Lease.
        fence: Fence,
        /// Which.
        replica: ReplicaId,
        /// What it is.
        spec: Box<ReplicaSpec>,
    },
    /// Gives the host's balancer its whole pool; answers when the balancer process has applied it, with a pool
    /// written to disk first. A generation lower than (epoch, generation) applied before is refused as
    /// [`RefusalKind::Fenced`]; an equal one answers again. -> [`Reply::Balancer`]
    SetBackends {
        /// Lease.
        fence: Fence,
        /// Grows with every change of the pool.
        generation: u64,
        /// The whole pool.
        backends: Vec<Backend>,
    },
    /// SIGTERM, after `grace_ms` SIGKILL; answers when it has ended. Not restarted by itself after that. Missing or
    /// stopped already is fine. -> [`Reply::Ok`]
    StopReplica {
        /// Lease.
        fence: Fence,
        /// Which.
        replica: ReplicaId,
        /// From SIGTERM to SIGKILL, milliseconds.
        grace_ms: u64,
    },
    /// Removes what is left of a stopped replica (namespaces, cgroup, root file system, ports), its log excepted.
    /// A running one is refused; a missing one is fine. -> [`Reply::Ok`]
    RemoveReplica {
        /// Lease.
        fence: Fence,
        /// Which.
        replica: ReplicaId,
    },
    /// Everything about one app or all of them. -> [`Reply::Status`]
    Status {
        /// One app; all without it.
        app: Option<AppName>,
    },
    /// The last lines of a replica's log, of a stopped and removed one too while it is kept. -> [`Reply::Logs`]
    ReadLogs {
        /// The app.
        app: AppName,
        /// Which.
        replica: ReplicaId,
        /// How many lines, at most [`MAX_LOG_LINES`].
        tail: u32,
    },
    /// Writes (or replaces, by revision) a release record, synced; keeps [`HISTORY`] completed ones and the images
    /// that they name. -> [`Reply::Ok`]
    RecordRelease {
        /// Lease.
        fence: Fence,
        /// The record.
        record: Box<ReleaseRecord>,
    },
}

/// Answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", content = "value", rename_all = "kebab-case")]
pub enum Reply {
    /// Done, nothing to say.
    Ok,
    /// See [`Order::Preflight`].
    Preflight(PreflightReport),
    /// See [`Order::AcquireLease`].
    Lease(LeaseAnswer),
    /// See [`Order::EnsureImage`].
    Image(ImageReport),
    /// See [`Order::EnsureReplica`].
    Replica(Box<ReplicaReport>),
    /// See [`Order::SetBackends`].
    Balancer(BalancerReport),
    /// See [`Order::Status`].
    Status(HostReport),
    /// See [`Order::ReadLogs`].
    Logs(Vec<String>),
}

/// What a deploy will need from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preflight {
    /// The app.
    pub app: AppName,
    /// Balancer address.
    pub listen: String,
    /// Free space wanted.
    pub disk_needed: Bytes,
    /// Platform of the image.
    pub platform: Platform,
    /// Manifests that a rollback would need, besides the new one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keep: Vec<Digest>,
}

/// What the host found. Each finding stops the deploy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreflightReport {
    /// Empty when all is well.
    pub findings: Vec<Finding>,
    /// Free space in the store.
    pub disk_free: Bytes,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What.
    pub what: Check,
    /// In words, with names and numbers.
    pub problem: String,
    /// The command that mends it, or in words what to do.
    pub mend: String,
}

/// What preflight looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// Runs as root.
    Root,
    /// Kernel at least 6.1.
    Kernel,
    /// The image's platform is the host's.
    Platform,
    /// overlayfs can be mounted.
    Overlay,
    /// cgroups with memory and pids can be made.
    Cgroups,
    /// Free disk.
    Disk,
    /// The balancer's port is free or ours.
    Port,
    /// `ip`, `nft`, or another program that is missing.
    Programs,
    /// The address for the other hosts is not known.
    Address,
    /// An image that a rollback needs is not in the store.
    PreviousImage,
    /// The image cannot be had.
    Image,
    /// Anything else.
    Other,
}

/// A claim on a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseClaim {
    /// Of which app.
    pub app: AppName,
    /// Unguessable id of the deployer's state directory: one living process uses it at a time.
    pub owner: String,
    /// For people: `user@machine pid 123`.
    pub who: String,
    /// The epoch that is asked for.
    pub epoch: Epoch,
    /// How long without renewal.
    pub ttl_ms: u64,
}

/// What a host says to a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "lease", rename_all = "kebab-case")]
pub enum LeaseAnswer {
    /// It is yours.
    Granted,
    /// Another living owner has it.
    Held(LeaseView),
    /// The epoch is not higher than one seen before; ask again with a higher one.
    Stale {
        /// Highest epoch seen.
        highest: Epoch,
    },
}

/// A lease as a host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseView {
    /// Unguessable id of the owner.
    pub owner: String,
    /// For people.
    pub who: String,
    /// Its epoch.
    pub epoch: Epoch,
    /// Since it was granted.
    pub age_ms: u64,
    /// Until it ends unless renewed; 0 is over.
    pub left_ms: u64,
}

/// How a host reaches one registry, and no other.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RegistryAccess {
    /// The registry (`host` or `host:port`) that all of this is for.
    #[serde(default)]
    pub registry: String,
    /// http instead of https.
    #[serde(default)]
    pub plain_http: bool,
    /// Certificate authorities for this registry besides the system's, PEM.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roots: Vec<String>,
    /// Certificate authorities for every host that a pull may lead to, PEM.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_roots: Vec<String>,
    /// Hosts besides the registry's own that may see the login as token servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub token_realms: Vec<String>,
    /// User and password for basic and token authentication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<Login>,
}

/// User and password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// User.
    pub user: String,
    /// Password or token.
    pub password: WireSecret,
}

/// What an app needs on each host besides replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppSettings {
    /// Balancer address, for example `:80`.
    pub listen: String,
    /// Addresses of the target's other hosts, which alone may reach the replicas' host ports.
    pub peers: Vec<IpAddr>,
}

/// What a replica is; equal specs are the same replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaSpec {
    /// Its image, which must be in the store.
    pub image: PushedDigest,
    /// Port it listens on inside its namespace.
    pub port: u16,
    /// Environment over the image's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, String)>,
    /// When it counts as healthy; checked by the host as long as it runs.
    pub health: Health,
    /// From SIGTERM to SIGKILL where the host stops it by itself.
    pub stop_grace: Duration,
    /// Bounds.
    #[serde(default)]
    pub limits: Limits,
}

/// What came of [`Order::EnsureImage`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageReport {
    /// It was there: nothing was fetched.
    pub local: bool,
    /// Bytes fetched.
    pub fetched: Bytes,
}

impl Refusal {
    /// Of this kind, with these words.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl RegistryAccess {
    /// What of this is for the registry of `image`: all of it or nothing. A release of before may lie in another
    /// registry, which must not see this one's login.
    pub fn for_image(self, image: &PushedDigest) -> Self {
        if self.registry == image.repository().registry() { self } else { Self::default() }
    }
}

impl ReplicaSpec {
    /// Names what makes two replicas the same: image and every setting.
    pub fn digest(&self) -> Digest {
        Digest::of(&serde_json::to_vec(self).expect("a spec is strings and numbers"))
    }
}

impl Order {
    /// The fence of an order that changes something.
    pub fn fence(&self) -> Option<&Fence> {
        match self {
            Self::EnsureImage { fence, .. }
            | Self::EnsureApp { fence, .. }
            | Self::EnsureReplica { fence, .. }
            | Self::SetBackends { fence, .. }
            | Self::StopReplica { fence, .. }
            | Self::RemoveReplica { fence, .. }
            | Self::RecordRelease { fence, .. } => Some(fence),
            Self::Preflight(_)
            | Self::AcquireLease(_)
            | Self::RenewLease(_)
            | Self::ReleaseLease { .. }
            | Self::Status { .. }
            | Self::ReadLogs { .. } => None,
        }
    }
}
