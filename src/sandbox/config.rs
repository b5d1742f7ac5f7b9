//! An OCI bundle as a [`Spec`]: what its `config.json` asks for, done by our own sandbox.
//!
//! The text is foreign. What the sandbox cannot do as asked is refused under the name that it has in the file; what is
//! stricter here and harms no program is done, and said as a warning where somebody might miss it. Properties that the
//! specification does not know are not looked at, as it demands.

mod mounts;

use crate::caps::CapSet;
use crate::cgroup::{BoxName, ParentName};
use crate::spec::{Access, CapProfile, Network, Resource, Rlimit, RootFs, Spec, User};
use keelway_model::{Bytes, Limits};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Why a bundle cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Something that the sandbox does not do.
    #[error("config.json: {what} is not supported: {why}")]
    Unsupported {
        /// Its name in the file, with its value where that matters.
        what: String,
        /// Why not, or what to do.
        why: String,
    },
    /// Not what the specification says.
    #[error("config.json: {what} must be {expected}")]
    Malformed {
        /// Its name in the file.
        what: String,
        /// What it should be.
        expected: &'static str,
    },
}

/// What a bundle asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundled {
    /// The sandbox.
    pub spec: Spec,
    /// Its cgroup's parent.
    pub parent: ParentName,
    /// `annotations`.
    pub annotations: Value,
    /// What is left out although it was asked for.
    pub warnings: Vec<String>,
}

type Read<T> = Result<T, ConfigError>;

fn unsupported<T>(what: impl Into<String>, why: impl Into<String>) -> Read<T> {
    Err(ConfigError::Unsupported { what: what.into(), why: why.into() })
}

fn malformed(what: &str, expected: &'static str) -> ConfigError {
    ConfigError::Malformed { what: what.into(), expected }
}

/// Nothing, or an empty form of it.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.values().all(is_empty),
        Value::Number(n) => n.as_i64() == Some(0),
        Value::Bool(true) => false,
    }
}

fn list<'a>(value: &'a Value, what: &str) -> Read<&'a [Value]> {
    match value {
        Value::Null => Ok(&[]),
        Value::Array(items) => Ok(items),
        _ => Err(malformed(what, "a list")),
    }
}

fn text<'a>(value: &'a Value, what: &str) -> Read<&'a str> {
    value.as_str().ok_or_else(|| malformed(what, "a text"))
}

fn texts(value: &Value, what: &str) -> Read<Vec<String>> {
    list(value, what)?.iter().map(|v| text(v, what).map(str::to_owned)).collect()
}

fn number(value: &Value, what: &str) -> Read<u32> {
    value.as_u64().and_then(|n| u32::try_from(n).ok()).ok_or_else(|| malformed(what, "a small number"))
}

fn shown(value: &Value) -> String {
    value.to_string().chars().take(80).collect()
}

/// Refuses whichever of these is there.
fn none_of(at: &Value, prefix: &str, names: &[(&str, &str)]) -> Read<()> {
    for (name, why) in names {
        let value = &at[*name];
        if !is_empty(value) {
            return unsupported(format!("{prefix}{name} {}", shown(value)), *why);
        }
    }
    Ok(())
}

/// Reads a `config.json` that lies in `bundle`, for a container of this name.
pub fn from_oci(config: &Value, bundle: &Path, id: &str) -> Read<Bundled> {
    let version = text(&config["ociVersion"], "ociVersion")?;
    if !version.starts_with("1.") {
        return unsupported(format!("ociVersion {version:?}"), "1.0 to 1.2 are");
    }
    let hooks = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    for hook in hooks {
        none_of(&config["hooks"], "hooks.", &[(hook, "no program of the machine is run for a container")])?;
    }
    let other = "only linux is";
    none_of(
        config,
        "",
        &[
            ("domainname", "a container has a host name only"),
            ("windows", other),
            ("solaris", other),
            ("vm", other),
            ("zos", other),
        ],
    )?;
    let mut warnings = Vec::new();
    let access = if config["root"]["readonly"].as_bool().unwrap_or(false) {
        Access::ReadOnly
    } else {
        Access::ReadWrite
    };
    let path = bundle.join(text(&config["root"]["path"], "root.path")?);
    let (parent, name) = group(config, id)?;
    let argv = texts(&config["process"]["args"], "process.args")?;
    let mut spec = Spec::new(RootFs::Directory { path, access }, argv, name);
    if let Value::String(hostname) = &config["hostname"] {
        spec.hostname.clone_from(hostname);
    }
    process(&config["process"], &mut spec)?;
    mounts::read(&config["mounts"], bundle, &mut spec, &mut warnings)?;
    linux(&config["linux"], &mut spec, &mut warnings)?;
    Ok(Bundled { spec, parent, annotations: config["annotations"].clone(), warnings })
}

/// Where its cgroup is.
fn group(config: &Value, id: &str) -> Read<(ParentName, BoxName)> {
    let path = config["linux"]["cgroupsPath"].as_str().unwrap_or_default();
    let path = if path.is_empty() { format!("keelway-oci/{id}") } else { path.trim_matches('/').to_owned() };
    let (parent, name) = path.rsplit_once('/').unwrap_or((path.as_str(), "container"));
    match (parent.parse(), name.parse()) {
        (Ok(parent), Ok(name)) => Ok((parent, name)),
        (Err(e), _) | (_, Err(e)) => unsupported(format!("linux.cgroupsPath {path:?}"), e.to_string()),
    }
}

fn process(process: &Value, spec: &mut Spec) -> Read<()> {
    let ours = "leave it out";
    none_of(
        process,
        "process.",
        &[
            ("terminal", "this runtime gives no terminal by --console-socket"),
            ("apparmorProfile", ours),
            ("selinuxLabel", ours),
            ("oomScoreAdj", ours),
            ("scheduler", ours),
            ("ioPriority", ours),
            ("commandLine", "only linux is"),
            ("execCPUAffinity", ours),
        ],
    )?;
    let user = &process["user"];
    let id = |name: &str| match &user[name] {
        Value::Null => Ok(0),
        value => number(value, &format!("process.user.{name}")),
    };
    let groups = list(&user["additionalGids"], "process.user.additionalGids")?;
    spec.user = User {
        uid: id("uid")?,
        gid: id("gid")?,
        groups: groups.iter().map(|g| number(g, "process.user.additionalGids")).collect::<Read<_>>()?,
    };
    if !user["umask"].is_null() && user["umask"] != 0o022 {
        return unsupported(format!("process.user.umask {}", shown(&user["umask"])), "it is 18 (0022)");
    }
    spec.env.clear();
    for pair in texts(&process["env"], "process.env")? {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(malformed("process.env", "a list of NAME=VALUE"));
        };
        spec.env.push((name.into(), value.into()));
    }
    spec.cwd = PathBuf::from(text(&process["cwd"], "process.cwd")?);
    spec.no_new_privileges = process["noNewPrivileges"].as_bool().unwrap_or(false);
    capabilities(&process["capabilities"], spec)?;
    for limit in list(&process["rlimits"], "process.rlimits")? {
        let kind = text(&limit["type"], "process.rlimits.type")?;
        let resource = match kind {
            "RLIMIT_CORE" => Resource::Core,
            "RLIMIT_NOFILE" => Resource::OpenFiles,
            "RLIMIT_FSIZE" => Resource::FileSize,
            "RLIMIT_STACK" => Resource::Stack,
            "RLIMIT_MEMLOCK" => Resource::LockedMemory,
            "RLIMIT_NPROC" => Resource::Processes,
            other => return unsupported(format!("process.rlimits {other:?}"), ours),
        };
        let value = |name: &str| limit[name].as_u64().ok_or_else(|| malformed("process.rlimits", "numbers"));
        spec.rlimits.push(Rlimit { resource, soft: value("soft")?, hard: value("hard")? });
    }
    Ok(())
}

fn capabilities(given: &Value, spec: &mut Spec) -> Read<()> {
    let set = |name: &str| texts(&given[name], &format!("process.capabilities.{name}"));
    let bounding = set("bounding")?;
    for name in ["effective", "permitted", "inheritable", "ambient"] {
        if let Some(beyond) = set(name)?.iter().find(|c| !bounding.contains(c)) {
            return unsupported(
                format!("process.capabilities.{name} {beyond:?}"),
                "it is not in the bounding set",
            );
        }
    }
    // Ambient ones would make a difference for others than root.
    if spec.user.uid != 0 && !set("ambient")?.is_empty() {
        return unsupported("process.capabilities.ambient", "only root has capabilities here");
    }
    // Executing a program gives root all of the bounding set, and nothing new where new privileges are forbidden.
    let chosen = if spec.no_new_privileges { set("permitted")? } else { bounding };
    match CapSet::chosen(&chosen, &["ALL".to_owned()]) {
        Ok(set) => spec.caps = CapProfile::Only(set),
        Err(e) => return unsupported("process.capabilities.bounding", e.to_string()),
    }
    Ok(())
}

fn linux(linux: &Value, spec: &mut Spec, warnings: &mut Vec<String>) -> Read<()> {
    let no = "leave it out";
    none_of(
        linux,
        "linux.",
        &[
            ("devices", "a container has the six usual devices"),
            (
                "seccomp",
                "every container has this runtime's own filter, and no other: use seccomp=unconfined",
            ),
            ("mountLabel", no),
            ("intelRdt", no),
            ("timeOffsets", no),
            ("personality", no),
        ],
    )?;
    for (name, value) in linux["sysctl"].as_object().into_iter().flatten() {
        // Other engines ask for it everywhere, and few programs send pings.
        if name == "net.ipv4.ping_group_range" {
            warnings.push(format!("linux.sysctl {name} is left out: it is as the network has it"));
            continue;
        }
        return unsupported(format!("linux.sysctl {name} {}", shown(value)), no);
    }
    match linux["rootfsPropagation"].as_str() {
        None | Some("" | "private" | "rprivate") => {}
        Some(other) => {
            return unsupported(format!("linux.rootfsPropagation {other:?}"), "every mount is private");
        }
    }
    namespaces(linux, spec)?;
    let paths = |name: &str| -> Read<Vec<PathBuf>> {
        let all = texts(&linux[name], &format!("linux.{name}"))?;
        if all.iter().any(|p| !p.starts_with('/')) {
            return Err(malformed(&format!("linux.{name}"), "a list of absolute paths"));
        }
        Ok(all.into_iter().map(PathBuf::from).collect())
    };
    // What is protected in any case needs no second cover.
    let (masked, read_only) = crate::root::protected_paths();
    let new = |path: &PathBuf, have: &[String]| !have.iter().any(|h| path.starts_with(h));
    spec.masked = paths("maskedPaths")?.into_iter().filter(|p| new(p, &masked)).collect();
    spec.read_only =
        paths("readonlyPaths")?.into_iter().filter(|p| new(p, &masked) && new(p, &read_only)).collect();
    spec.limits = Limits { shm: spec.limits.shm, ..resources(&linux["resources"])? };
    Ok(())
}

fn namespaces(linux: &Value, spec: &mut Spec) -> Read<()> {
    let mut have = Vec::new();
    spec.network = Network::Host;
    for namespace in list(&linux["namespaces"], "linux.namespaces")? {
        let kind = text(&namespace["type"], "linux.namespaces.type")?;
        match (kind, namespace["path"].as_str().filter(|p| !p.is_empty())) {
            ("network", Some(path)) => spec.network = Network::Join(path.into()),
            ("network", None) => spec.network = Network::None,
            ("pid" | "mount" | "ipc" | "uts" | "cgroup" | "user", None) => {}
            (_, path) => {
                return unsupported(
                    format!("linux.namespaces {kind:?} {}", path.unwrap_or_default()),
                    "only a network can be joined",
                );
            }
        }
        have.push(kind);
    }
    if let Some(missing) = ["pid", "mount", "ipc", "uts"].iter().find(|kind| !have.contains(kind)) {
        return unsupported(
            format!("linux.namespaces without {missing:?}"),
            "the machine's is given to no container",
        );
    }
    for name in ["uidMappings", "gidMappings"] {
        for map in list(&linux[name], &format!("linux.{name}"))? {
            let whole = map["containerID"] == 0 && map["hostID"] == 0;
            if !whole {
                return unsupported(
                    format!("linux.{name} {}", shown(map)),
                    "every container has a range of its own already",
                );
            }
        }
    }
    Ok(())
}

fn resources(resources: &Value) -> Read<Limits> {
    let no = "limits are those of pids, memory and cpu";
    none_of(
        resources,
        "linux.resources.",
        &[("blockIO", no), ("hugepageLimits", no), ("network", no), ("rdma", no), ("unified", no)],
    )?;
    for device in list(&resources["devices"], "linux.resources.devices")? {
        if device["allow"].as_bool().unwrap_or(false) {
            return unsupported(
                format!("linux.resources.devices {}", shown(device)),
                "a container has the six usual devices",
            );
        }
    }
    let (memory, cpu) = (&resources["memory"], &resources["cpu"]);
    none_of(
        memory,
        "linux.resources.memory.",
        &[
            ("reservation", no),
            ("kernel", no),
            ("kernelTCP", no),
            ("swappiness", no),
            ("disableOOMKiller", no),
        ],
    )?;
    none_of(
        cpu,
        "linux.resources.cpu.",
        &[
            ("shares", no),
            ("cpus", no),
            ("mems", no),
            ("realtimeRuntime", no),
            ("realtimePeriod", no),
            ("burst", no),
            ("idle", no),
        ],
    )?;
    let positive = |value: &Value| value.as_i64().filter(|n| *n > 0).and_then(|n| u64::try_from(n).ok());
    let limit = positive(&memory["limit"]);
    if positive(&memory["swap"]).is_some_and(|swap| Some(swap) != limit) {
        return unsupported(
            "linux.resources.memory.swap",
            "swap is part of the memory limit: say the same number",
        );
    }
    let quota = positive(&cpu["quota"]).map(|quota| {
        let period = positive(&cpu["period"]).unwrap_or(100_000);
        u32::try_from((quota.saturating_mul(1000) / period).max(1)).unwrap_or(u32::MAX)
    });
    let pids = positive(&resources["pids"]["limit"]).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    Ok(Limits { memory: limit.map(Bytes), pids, cpu_millis: quota, ..Limits::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::oci_config;

    fn config() -> Value {
        let root = RootFs::ReadOnly { lowers: vec!["/x".into()] };
        let spec = Spec::new(root, vec!["/bin/true".into()], "box".parse().unwrap());
        let mut config = oci_config(&spec, Path::new("rootfs")).unwrap();
        config["linux"]["seccomp"] = Value::Null;
        config
    }

    fn read(config: &Value) -> Read<Bundled> {
        from_oci(config, Path::new("/bundle"), "one")
    }

    #[test]
    fn our_own_bundle_is_read_back() {
        let read = read(&config()).unwrap();
        assert_eq!(
            read.spec.root,
            RootFs::Directory { path: "/bundle/rootfs".into(), access: Access::ReadOnly }
        );
        assert_eq!((read.parent.as_str(), read.spec.cgroup.as_str()), ("keelway-oci", "one"));
        assert_eq!(crate::caps::mask(read.spec.caps), crate::caps::mask(CapProfile::Step));
        assert!(
            read.spec.no_new_privileges && read.spec.network == Network::None && read.warnings.is_empty()
        );
        assert_eq!((read.spec.masked, read.spec.read_only), (vec![], vec![]));
    }

    #[test]
    fn nobody_gets_more_capabilities_than_executing_would_give() {
        let mut config = config();
        config["process"]["capabilities"]["permitted"] = serde_json::json!(["CAP_KILL"]);
        config["process"]["capabilities"]["effective"] = serde_json::json!([]);
        let caps = |config: &Value| crate::caps::names(read(config).unwrap().spec.caps);
        assert_eq!(caps(&config), ["CAP_KILL"]);
        config["process"]["noNewPrivileges"] = false.into();
        assert_eq!(caps(&config).len(), 10);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        use serde_json::json;
        let cases: &[(&[&str], Value)] = &[
            (&["hooks", "prestart"], json!([{ "path": "/bin/true" }])),
            (&["process", "terminal"], json!(true)),
            (&["process", "apparmorProfile"], json!("x")),
            (&["process", "oomScoreAdj"], json!(-5)),
            (&["process", "rlimits"], json!([{ "type": "RLIMIT_CPU", "soft": 1, "hard": 1 }])),
            (&["process", "capabilities", "bounding"], json!(["CAP_SYS_ADMIN"])),
            (&["process", "user", "umask"], json!(0)),
            (&["linux", "seccomp"], json!({ "defaultAction": "SCMP_ACT_ALLOW" })),
            (&["linux", "sysctl"], json!({ "net.ipv4.ping_group_range": "0 0", "kernel.x": "1" })),
            (&["linux", "devices"], json!([{ "path": "/dev/fuse" }])),
            (&["linux", "namespaces"], json!([{ "type": "mount" }])),
            (&["linux", "namespaces"], json!([{ "type": "pid", "path": "/proc/1/ns/pid" }])),
            (&["linux", "uidMappings"], json!([{ "containerID": 0, "hostID": 1000, "size": 1 }])),
            (&["linux", "resources", "cpu"], json!({ "shares": 5 })),
            (&["linux", "resources", "unified"], json!({ "x": "y" })),
            (&["linux", "rootfsPropagation"], json!("shared")),
            (&["linux", "cgroupsPath"], json!("system.slice:a:b")),
            (&["mounts"], json!([{ "destination": "/x", "type": "nfs", "source": "y" }])),
            (&["mounts"], json!([{ "destination": "/sys", "type": "sysfs" }])),
            (&["ociVersion"], json!("2.0.0")),
        ];
        for (path, value) in cases {
            let mut config = config();
            let at = path.iter().fold(&mut config, |at, name| &mut at[*name]);
            *at = value.clone();
            let error = read(&config).expect_err(&path.join("."));
            assert!(
                matches!(&error, ConfigError::Unsupported { what, .. } if what.starts_with(path[0])),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_stricter_and_harms_nobody_is_said() {
        use serde_json::json;
        let mut config = config();
        config["mounts"].as_array_mut().unwrap().extend([
            json!({ "destination": "/dev/shm", "type": "bind", "source": "x", "options": ["bind", "noexec"] }),
            json!({ "destination": "/sys/fs/cgroup", "type": "cgroup2", "source": "cgroup2" }),
        ]);
        config["linux"]["sysctl"] = json!({ "net.ipv4.ping_group_range": "0 0" });
        let read = read(&config).unwrap();
        assert_eq!((read.warnings.len(), read.spec.mounts), (3, vec![]), "{:?}", read.warnings);
    }

    #[test]
    fn foreign_shapes_do_not_panic() {
        let base = config().to_string();
        for at in (0..base.len()).step_by(3) {
            for with in ["0", "\"", "[", "null", "-1", "{}"] {
                let mut text = base.clone().into_bytes();
                text.splice(at..(at + 4).min(base.len()), with.bytes());
                if let Ok(value) = serde_json::from_slice::<Value>(&text) {
                    let _ = read(&value);
                }
            }
        }
    }
}
