//! What the deployer and `keelway __host` say to each other over the standard streams of one ssh session.
//!
//! On the wire: the host writes [`MAGIC`] first (so that what a login shell prints before it can be skipped),
//! then both sides send frames (see [`crate::frame`]): the deployer one [`Hello`], the host one [`Welcome`] or a
//! [`Refusal`], then the deployer any number of [`Request`]s, answered by one [`Response`] each, in any order.
//!
//! Invariants:
//! - Every order that changes something carries a [`Fence`]; a host refuses an epoch lower than the highest it has
//!   seen for that app (see [`crate::lease::admit`]) before it does anything else.
//! - Orders are "ensure" orders: sent twice (after a lost connection) they do the work once, and answer the same.
//! - A host answers every request before `deadline_ms` has passed, with [`RefusalKind::Deadline`] at the latest.
//! - Secrets travel inside ssh only: [`WireSecret`] prints as nothing, and a host never stores or logs one.
//! - Additive only: a new field has a default, a new order is a new variant and raises [`VERSION`].

use keelway_model::ids::AppName;
use keelway_model::plan::Health;
use keelway_model::{Bytes, Digest, Limits, Platform, PushedDigest, Redacted, Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
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

/// Number of a release of an app: 1 for the first, growing; a rollback to an older image is a new revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// Fencing number of a lease: a higher one was granted later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// One replica of an app, unique over all hosts of its target; written `r3-0` (revision 3, slot 0), which is safe
/// as a file name, an interface suffix and a cgroup name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReplicaId {
    /// Which release it runs.
    pub revision: Revision,
    /// Its place among the replicas of that release, from 0, counted over all hosts.
    pub slot: u32,
}

/// A text that is not a [`ReplicaId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a replica id: write it as r<revision>-<slot>, for example r3-0")]
pub struct ReplicaIdError(String);

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
    /// Whether the image is complete in the host's store. -> [`Reply::HasImage`]
    HasImage {
        /// Manifest digest.
        digest: Digest,
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
    /// How a replica is. -> [`Reply::Replica`], or refused with [`RefusalKind::NotFound`]
    ReplicaStatus {
        /// The app.
        app: AppName,
        /// Which.
        replica: ReplicaId,
        /// Last lines of its log to send along, at most [`MAX_LOG_LINES`].
        log_lines: u32,
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
    /// What the balancer does now. -> [`Reply::Balancer`]
    Balancer {
        /// The app.
        app: AppName,
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
    /// The release records of an app, newest revision first. -> [`Reply::History`]
    History {
        /// The app.
        app: AppName,
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
    /// See [`Order::HasImage`].
    HasImage(bool),
    /// See [`Order::EnsureImage`].
    Image(ImageReport),
    /// See [`Order::ReplicaStatus`].
    Replica(Box<ReplicaReport>),
    /// See [`Order::SetBackends`].
    Balancer(BalancerReport),
    /// See [`Order::Status`].
    Status(HostReport),
    /// See [`Order::ReadLogs`].
    Logs(Vec<String>),
    /// See [`Order::History`].
    History(Vec<ReleaseRecord>),
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
    /// Kernel at least 5.10.
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

/// How a host reaches a registry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RegistryAccess {
    /// http instead of https.
    #[serde(default)]
    pub plain_http: bool,
    /// Certificate authorities besides the system's, PEM.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roots: Vec<String>,
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

/// A secret that is written out only by serialising a request into an ssh session.
#[derive(Clone)]
pub struct WireSecret(pub Redacted<String>);

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
    /// Last log lines, as many as were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
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

impl Refusal {
    /// Of this kind, with these words.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
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
            | Self::HasImage { .. }
            | Self::ReplicaStatus { .. }
            | Self::Balancer { .. }
            | Self::Status { .. }
            | Self::ReadLogs { .. }
            | Self::History { .. } => None,
        }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("r{}-{}", self.revision, self.slot))
    }
}
impl FromStr for ReplicaId {
    type Err = ReplicaIdError;
    fn from_str(s: &str) -> Result<Self, ReplicaIdError> {
        let parsed = s.strip_prefix('r').and_then(|rest| rest.split_once('-')).and_then(|(r, slot)| {
            let id = Self { revision: Revision(r.parse().ok()?), slot: slot.parse().ok()? };
            // One way to write each id: no signs, no leading zeros.
            (id.to_string() == s).then_some(id)
        });
        parsed.ok_or_else(|| ReplicaIdError(s.chars().take(60).collect()))
    }
}
impl TryFrom<String> for ReplicaId {
    type Error = ReplicaIdError;
    fn try_from(s: String) -> Result<Self, ReplicaIdError> {
        s.parse()
    }
}
impl From<ReplicaId> for String {
    fn from(id: ReplicaId) -> String {
        id.to_string()
    }
}

impl fmt::Debug for WireSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
impl PartialEq for WireSecret {
    fn eq(&self, other: &Self) -> bool {
        self.0.reveal() == other.0.reveal()
    }
}
impl Eq for WireSecret {}
impl Serialize for WireSecret {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.0.reveal())
    }
}
impl<'de> Deserialize<'de> for WireSecret {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(Self(Redacted::from(String::deserialize(d)?)))
    }
}
