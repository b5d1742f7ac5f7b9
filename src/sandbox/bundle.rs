//! The same sandbox as an OCI runtime bundle, so that any OCI runtime can run it (runc, crun, gVisor, ..).
//!
//! Whoever asks mounts or unpacks the root file system, and writes files with content; a bundle can say neither "these
//! layers" nor "these bytes". The seccomp part has the allow list and the same closer looks at clone, socket and
//! personality. Capabilities reach as far as the user namespace, so new privileges are only left on where there is one.

use crate::ids::IdMap;
use crate::root::Stage;
use crate::spec::{Access, MountKind, Network, Resource, Spec};
use crate::{caps, root, seccomp};
use keelway_model::limits::DEFAULT_PIDS;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A spec that a bundle cannot express.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Content has no place in `config.json`.
    #[error(
        "the file for {target:?} has its content in the spec: write it to a file and bind-mount that for a bundle"
    )]
    FileMount {
        /// Where it should be.
        target: PathBuf,
    },
    /// A part of a tree, found inside that tree, is nothing that a path of the machine can say.
    #[error(
        "the mount for {target:?} is a part of another tree: bind-mount a directory of this machine for a bundle"
    )]
    TreeMount {
        /// Where it should be.
        target: PathBuf,
    },
}

/// Beyond the spec.
pub(crate) struct Bundle<'a> {
    rootfs: &'a Path,
    /// The ids of a user namespace of its own.
    ids: Option<IdMap>,
    /// The spec's files and its tmpfs, in the order of its mounts, where somebody has made them.
    made: &'a [PathBuf],
    /// A sysfs that is mounted already.
    sysfs: Option<&'a Path>,
    /// Another name of the network namespace to join.
    network: Option<&'a Path>,
    /// The container's group, below the root of every hierarchy.
    group: Option<&'a Path>,
}

impl<'a> Bundle<'a> {
    /// One whose parts are mounted.
    pub(crate) fn staged(stage: &'a Stage, ids: IdMap, group: &'a Path) -> Self {
        Self {
            rootfs: &stage.rootfs,
            ids: Some(ids),
            made: &stage.made,
            sysfs: stage.sysfs.as_deref(),
            network: stage.network.as_deref(),
            group: Some(group),
        }
    }
}

/// `config.json` of a bundle whose root file system is mounted or unpacked at `rootfs`, by version 1.0.2 of the
/// [OCI runtime specification](https://github.com/opencontainers/runtime-spec/blob/v1.0.2/config.md). Without a user
/// namespace: the ids are the machine's.
pub fn oci_config(spec: &Spec, rootfs: &Path) -> Result<Value, BundleError> {
    config(spec, &Bundle { rootfs, ids: None, made: &[], sysfs: None, network: None, group: None })
}

/// The same for a bundle that has more.
pub(crate) fn config(spec: &Spec, bundle: &Bundle<'_>) -> Result<Value, BundleError> {
    let capabilities = caps::names(spec.caps);
    let (masked, read_only) = root::protected_paths();
    let env: Vec<String> = spec.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let mut linux = json!({
        "namespaces": namespaces(spec, bundle),
        "maskedPaths": masked,
        "readonlyPaths": read_only,
        "resources": resources(spec),
        "seccomp": seccomp::oci_profile(),
    });
    if let Some(ids) = bundle.ids {
        let map = json!([{ "containerID": 0, "hostID": ids.base, "size": ids.count }]);
        linux["uidMappings"] = map.clone();
        linux["gidMappings"] = map;
    }
    if let Some(group) = bundle.group {
        linux["cgroupsPath"] = json!(group);
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {
                "uid": spec.user.uid,
                "gid": spec.user.gid,
                "additionalGids": spec.user.groups,
                "umask": 0o022,
            },
            "args": spec.argv,
            "env": env,
            "cwd": spec.cwd,
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
                "inheritable": [],
                "ambient": [],
            },
            "rlimits": rlimits(spec),
            "noNewPrivileges": bundle.ids.is_none() || !spec.caps.new_privileges(),
        },
        "root": { "path": bundle.rootfs, "readonly": spec.root.is_read_only() },
        "hostname": spec.hostname,
        "mounts": mounts(spec, bundle)?,
        "linux": linux,
    }))
}

fn mounts(spec: &Spec, bundle: &Bundle<'_>) -> Result<Vec<Value>, BundleError> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    let shm = format!("size={}", spec.shm_size().0);
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "noexec", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &shm]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ];
    if let Some(sysfs) = bundle.sysfs {
        let options = ["bind", "nosuid", "noexec", "nodev", "ro"];
        mounts[1] = json!({ "destination": "/sys", "type": "bind", "source": sysfs, "options": options });
    }
    let mut made = bundle.made.iter();
    for extra in &spec.mounts {
        mounts.push(match &extra.kind {
            MountKind::Bind { source, access, below } => {
                let access = match access {
                    Access::ReadOnly => "ro",
                    Access::ReadWrite => "rw",
                };
                let bind = if *below { "rbind" } else { "bind" };
                let options = [bind, "nosuid", "nodev", "private", access];
                json!({ "destination": extra.target, "type": "bind", "source": source, "options": options })
            }
            MountKind::Tmpfs { size, mode } => match made.next() {
                Some(source) => made_by_us(&extra.target, source, "rw"),
                None => {
                    let (size, mode) = (format!("size={}", size.0), format!("mode={mode:o}"));
                    let options = ["nosuid", "nodev", &size, &mode];
                    json!({ "destination": extra.target, "type": "tmpfs", "source": "tmpfs", "options": options })
                }
            },
            MountKind::File { .. } => match made.next() {
                Some(source) => made_by_us(&extra.target, source, "ro"),
                None => return Err(BundleError::FileMount { target: extra.target.clone() }),
            },
            MountKind::Layers { .. } | MountKind::Beneath { .. } => {
                return Err(BundleError::TreeMount { target: extra.target.clone() });
            }
        });
    }
    Ok(mounts)
}

fn made_by_us(target: &Path, source: &Path, access: &str) -> Value {
    let options = ["bind", "nosuid", "nodev", "private", access];
    json!({ "destination": target, "type": "bind", "source": source, "options": options })
}

fn namespaces(spec: &Spec, bundle: &Bundle<'_>) -> Vec<Value> {
    let mut namespaces: Vec<Value> =
        ["mount", "pid", "ipc", "uts", "cgroup"].iter().map(|kind| json!({ "type": kind })).collect();
    match &spec.network {
        Network::None => namespaces.push(json!({ "type": "network" })),
        Network::Join(path) => {
            let path = bundle.network.unwrap_or(path);
            namespaces.push(json!({ "type": "network", "path": path }));
        }
        Network::Host => {}
    }
    if bundle.ids.is_some() {
        namespaces.push(json!({ "type": "user" }));
    }
    namespaces
}

fn resources(spec: &Spec) -> Value {
    let mut resources = json!({
        "devices": [{ "allow": false, "access": "rwm" }],
        "pids": { "limit": spec.limits.pids.unwrap_or(DEFAULT_PIDS) },
    });
    if let Some(memory) = spec.limits.memory {
        resources["memory"] = json!({ "limit": memory.0, "swap": memory.0 });
    }
    if let Some(millis) = spec.limits.cpu_millis {
        resources["cpu"] = json!({ "quota": u64::from(millis) * 100, "period": 100_000 });
    }
    resources
}

fn rlimits(spec: &Spec) -> Vec<Value> {
    let limit = |name: &str, soft: u64, hard: u64| json!({ "type": name, "soft": soft, "hard": hard });
    let mut limits: Vec<Value> = spec
        .resource_limits()
        .iter()
        .map(|l| {
            let name = match l.resource {
                Resource::Core => "RLIMIT_CORE",
                Resource::OpenFiles => "RLIMIT_NOFILE",
                Resource::FileSize => "RLIMIT_FSIZE",
                Resource::Stack => "RLIMIT_STACK",
                Resource::LockedMemory => "RLIMIT_MEMLOCK",
                Resource::Processes => "RLIMIT_NPROC",
            };
            limit(name, l.soft.min(l.hard), l.hard)
        })
        .collect();
    if !spec.rlimits.iter().any(|l| l.resource == Resource::Core) {
        limits.push(limit("RLIMIT_CORE", 0, 0));
    }
    limits
}
