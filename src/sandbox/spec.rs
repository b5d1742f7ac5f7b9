//! What one sandbox is asked to be: plain data, made by the caller, sent to init as it is.
//!
//! Invariants: every id is a number (names are resolved by whoever can read the image), every
//! host path is absolute and trusted, every path inside the root is hostile and resolved by init
//! beneath the root only. Nothing here opens a file.

pub use crate::caps::{CapError, CapSet};
use crate::cgroup::BoxName;
use crate::ids::IDS;
use keelway_model::limits::DEFAULT_SHM;
use keelway_model::{Bytes, Limits};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Lower directories one overlay can hold; the kernel's own bound.
pub const MAX_LOWERS: usize = 500;
/// Environment and arguments together, in bytes; below the kernel's bound for one exec.
pub const MAX_ARGUMENT_BYTES: usize = 1 << 20;
/// Content of one [`MountKind::File`], in bytes.
pub const MAX_FILE_CONTENT: usize = 1 << 20;

/// The root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootFs {
    /// Writable: what the process changes is in `upper` afterwards.
    Overlay {
        /// Lowest first; may be empty, at most [`MAX_LOWERS`].
        lowers: Vec<PathBuf>,
        /// Takes the changes.
        upper: PathBuf,
        /// Overlayfs's own directory: empty, beside `upper`, thrown away afterwards.
        work: PathBuf,
    },
    /// A directory of the machine itself, with what is mounted below it: an OCI bundle's.
    Directory {
        /// Absolute path.
        path: PathBuf,
        /// May the process write to it? Mount points that it lacks are made and stay in any case.
        access: Access,
    },
    /// Nothing below `/` can be written but the mounts of the spec.
    ReadOnly {
        /// Lowest first; at least one.
        lowers: Vec<PathBuf>,
    },
}

impl RootFs {
    /// Is nothing below `/` to be written but the mounts of the spec?
    pub(crate) fn is_read_only(&self) -> bool {
        match self {
            Self::Overlay { .. } => false,
            Self::ReadOnly { .. } => true,
            Self::Directory { access, .. } => *access == Access::ReadOnly,
        }
    }

    /// Checks what can be checked without the machine.
    fn check(&self) -> Result<(), SpecError> {
        let lowers = match self {
            Self::Overlay { lowers, upper, work } => {
                absolute("the upper directory", upper)?;
                absolute("the work directory", work)?;
                if upper.parent() != work.parent()
                    || upper.file_name().is_none()
                    || work.file_name().is_none()
                {
                    let (upper, work) = (upper.clone(), work.clone());
                    return Err(SpecError::UpperAndWork { upper, work });
                }
                lowers
            }
            Self::ReadOnly { lowers } if lowers.is_empty() => return Err(SpecError::NoLowers),
            Self::ReadOnly { lowers } => lowers,
            Self::Directory { path, .. } => return absolute("the root directory", path),
        };
        if lowers.len() > MAX_LOWERS {
            return Err(SpecError::TooManyLowers { count: lowers.len() });
        }
        lowers.iter().try_for_each(|l| absolute("a lower directory", l))
    }
}

/// Who the process is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct User {
    /// User id; `u32::MAX` is refused.
    pub uid: u32,
    /// Group id; `u32::MAX` is refused.
    pub gid: u32,
    /// Supplementary groups, and no others.
    pub groups: Vec<u32>,
}

/// The network it sees.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// A network namespace of its own with nothing but its loopback, which is up.
    #[default]
    None,
    /// The machine's.
    Host,
    /// The namespace that this file names, for example `/run/netns/x` or `/proc/PID/ns/net`.
    Join(PathBuf),
}

/// May a bind mount be written?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// No.
    ReadOnly,
    /// Yes.
    ReadWrite,
}

/// What is mounted. Every mount is nosuid and nodev.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountKind {
    /// A file or directory of the host.
    Bind {
        /// Absolute path on the host.
        source: PathBuf,
        /// Read-only or not.
        access: Access,
        /// Whether what is mounted below it is seen, too.
        below: bool,
    },
    /// An empty directory in memory.
    Tmpfs {
        /// At most so much.
        size: Bytes,
        /// Mode of its root, for example `0o1777`.
        mode: u32,
    },
    /// A read-only file with this content, in memory, present only while the process runs.
    File {
        /// The bytes, at most [`MAX_FILE_CONTENT`].
        content: Vec<u8>,
        /// Its mode, for example `0o644`.
        mode: u32,
        /// User and group id in the sandbox.
        owner: (u32, u32),
    },
    /// A file or directory of another root file system. It may be written where that root may, and what is missing in it
    /// for further mounts is made.
    Layers {
        /// The layers. What is written is in the upper directory afterwards.
        root: RootFs,
        /// Absolute path in it; links are followed inside it.
        path: PathBuf,
    },
    /// A directory beneath a directory of the host in which sandboxes choose the names: links are followed inside it.
    Beneath {
        /// Absolute path on the host.
        directory: PathBuf,
        /// Absolute path, as seen from there.
        path: PathBuf,
        /// Read-only or not.
        access: Access,
    },
}

impl MountKind {
    /// Can another runtime have it?
    fn is_for_runtimes(&self) -> bool {
        !matches!(self, Self::Layers { .. } | Self::Beneath { .. })
    }
}

/// One mount beyond the standard ones. Its mount point is made when the root lacks it, and does not
/// stay in the upper directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path inside the root; symbolic links of the image are followed inside the root.
    pub target: PathBuf,
    /// What.
    pub kind: MountKind,
}

/// Which capabilities stay (bounding, effective and permitted; the others are empty). They reach as far as the
/// sandbox's user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CapProfile {
    /// The 14 that containerd and Docker give by default: for a Dockerfile's RUN. Set-user-id programs and
    /// file capabilities work, as package managers and `su` need it.
    Build,
    /// Without `NET_RAW`, `MKNOD`, `AUDIT_WRITE` and `SETFCAP`, and with no_new_privs: for pipeline steps and
    /// replicas.
    Step,
    /// Exactly these, chosen by a person; otherwise as [`CapProfile::Build`].
    Only(CapSet),
}

impl CapProfile {
    /// May a program gain what its file gives it (set-user-id, file capabilities)? Only inside the sandbox's user
    /// namespace, in any case.
    pub(crate) fn new_privileges(self) -> bool {
        self != Self::Step
    }
}

/// The size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// What a process of a sandbox does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// It becomes the program of its arguments.
    #[default]
    Program,
    /// It writes a tar of this path to its output: see [`crate::archive`]. Nothing of the root is executed.
    Pack {
        /// Absolute, in the sandbox; a link at its end is packed itself.
        path: String,
    },
    /// It reads such a tar from its input.
    Unpack {
        /// Where it goes.
        to: crate::archive::Destination,
    },
}

/// One more process in a sandbox that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Program and arguments; a program without `/` is searched in the `PATH` of `env`.
    pub argv: Vec<String>,
    /// The whole environment; nothing is added.
    pub env: Vec<(String, String)>,
    /// Working directory, absolute; it must exist.
    pub cwd: PathBuf,
    /// Who.
    pub user: User,
    /// A terminal of its own, in place of the three descriptors.
    pub terminal: Option<Window>,
    /// Capabilities.
    pub caps: CapProfile,
    /// What it does.
    pub work: Work,
}

impl ExecSpec {
    /// `argv` as root in `/`; set the other fields afterwards.
    pub fn new(argv: Vec<String>) -> Self {
        Self {
            argv,
            env: vec![("PATH".into(), DEFAULT_PATH.into())],
            cwd: PathBuf::from("/"),
            user: User::default(),
            terminal: None,
            caps: CapProfile::Step,
            work: Work::Program,
        }
    }

    /// Checks what can be checked without the machine.
    pub fn check(&self) -> Result<(), SpecError> {
        check_process(&self.argv, &self.env, &self.cwd, &self.user)
    }
}

/// A resource limit of the process, as setrlimit(2) has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Which.
    pub resource: Resource,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit. Where it cannot be raised the highest possible value is taken, with a warning.
    pub hard: u64,
}

/// The resources that a [`Rlimit`] may bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resource {
    /// Core dumps in bytes; zero unless asked for.
    Core,
    /// Open files; 1024 to 524288 unless asked for.
    OpenFiles,
    /// Largest file in bytes.
    FileSize,
    /// Stack in bytes.
    Stack,
    /// Locked memory in bytes.
    LockedMemory,
    /// Processes of one user of the sandbox.
    Processes,
}

/// Everything about one sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The root file system.
    pub root: RootFs,
    /// Program and arguments; a program without `/` is searched in the `PATH` of `env`.
    pub argv: Vec<String>,
    /// The whole environment; nothing is added.
    pub env: Vec<(String, String)>,
    /// Working directory, absolute; it must exist.
    pub cwd: PathBuf,
    /// Who.
    pub user: User,
    /// Host name.
    pub hostname: String,
    /// Network.
    pub network: Network,
    /// Mounts beyond /proc, /sys and /dev, in order.
    pub mounts: Vec<Mount>,
    /// Bounds; processes have one in any case ([`keelway_model::limits::DEFAULT_PIDS`]).
    pub limits: Limits,
    /// Capabilities.
    pub caps: CapProfile,
    /// Name of its cgroup below the launcher's; unique among the living sandboxes of the launcher.
    pub cgroup: BoxName,
    /// Resource limits beyond the defaults.
    pub rlimits: Vec<Rlimit>,
    /// A terminal of its own, in place of the three descriptors; it is /dev/console, too. The owner gets its
    /// other side: see [`crate::Running::take_terminal`].
    pub terminal: Option<Window>,
    /// Whether memory, processes and CPU are counted, also where they have no bound.
    pub counted: bool,
    /// What its process does.
    pub work: Work,
    /// An OCI runtime of this machine (runc, crun, runsc, ..) that isolates it instead of us: see
    /// [`crate::oci_config`] for what it is told. Only root can have one, and neither a terminal nor further
    /// processes are possible.
    pub runtime: Option<PathBuf>,
    /// Forbid new privileges, also where the capabilities' profile would not.
    pub no_new_privileges: bool,
    /// More paths that are empty for the process, as the others: absolute; those that are not there are left out.
    pub masked: Vec<PathBuf>,
    /// More paths that are read-only.
    pub read_only: Vec<PathBuf>,
}

impl User {
    /// Is it one of so many ids?
    pub(crate) fn check(&self, count: u32) -> Result<(), SpecError> {
        let hint = if count < IDS {
            ": `keelway doctor` says how this user gets more"
        } else {
            ": choose a smaller one"
        };
        let mut ids = [self.uid, self.gid].into_iter().chain(self.groups.iter().copied());
        ids.find(|id| *id >= count).map_or(Ok(()), |id| Err(SpecError::IdOutside { id, count, hint }))
    }
}

impl Spec {
    /// A sandbox that runs `argv` as root in `/` without a network; set the other fields afterwards.
    pub fn new(root: RootFs, argv: Vec<String>, cgroup: BoxName) -> Self {
        Self {
            root,
            argv,
            env: vec![("PATH".into(), DEFAULT_PATH.into())],
            cwd: PathBuf::from("/"),
            user: User::default(),
            hostname: "keelway".into(),
            network: Network::None,
            mounts: Vec::new(),
            limits: Limits::default(),
            caps: CapProfile::Step,
            cgroup,
            rlimits: Vec::new(),
            terminal: None,
            counted: false,
            work: Work::Program,
            runtime: None,
            no_new_privileges: false,
            masked: Vec::new(),
            read_only: Vec::new(),
        }
    }

    /// Size of /dev/shm.
    pub fn shm_size(&self) -> Bytes {
        self.limits.shm.unwrap_or(DEFAULT_SHM)
    }

    /// The resource limits that were asked for, in either way; the more exact one counts.
    pub fn resource_limits(&self) -> Vec<Rlimit> {
        let mut all = self.rlimits.clone();
        if let Some(most) = self.limits.open_files
            && !all.iter().any(|l| l.resource == Resource::OpenFiles)
        {
            all.push(Rlimit { resource: Resource::OpenFiles, soft: most.into(), hard: most.into() });
        }
        all
    }

    /// Checks what can be checked without the machine.
    pub fn check(&self) -> Result<(), SpecError> {
        if let Some(runtime) = &self.runtime {
            absolute("the OCI runtime", runtime)?;
            if self.terminal.is_some() || self.work != Work::Program {
                return Err(SpecError::Runtime);
            }
            if let Some(mount) = self.mounts.iter().find(|m| !m.kind.is_for_runtimes()) {
                return Err(SpecError::RuntimeMount { target: mount.target.clone() });
            }
        }
        self.root.check()?;
        check_process(&self.argv, &self.env, &self.cwd, &self.user)?;
        if self.hostname.is_empty() || self.hostname.len() > 64 || self.hostname.contains('\0') {
            return Err(SpecError::Hostname { hostname: self.hostname.chars().take(80).collect() });
        }
        if let Network::Join(path) = &self.network {
            absolute("the network namespace", path)?;
        }
        for mount in &self.mounts {
            absolute("the target of a mount", &mount.target)?;
            if mount.target.components().count() < 2 {
                return Err(SpecError::MountOverRoot);
            }
            match &mount.kind {
                MountKind::Bind { source, .. } => absolute("the source of a bind mount", source)?,
                MountKind::File { content, .. } if content.len() > MAX_FILE_CONTENT => {
                    return Err(SpecError::FileTooLarge {
                        target: mount.target.clone(),
                        bytes: content.len(),
                    });
                }
                MountKind::File { owner: (uid, gid), .. } => {
                    User { uid: *uid, gid: *gid, groups: Vec::new() }.check(IDS)?;
                }
                MountKind::Tmpfs { .. } => {}
                MountKind::Layers { root, path } => {
                    root.check()?;
                    absolute("the path in another root", path)?;
                }
                MountKind::Beneath { directory, path, .. } => {
                    absolute("a directory to mount from", directory)?;
                    absolute("the path beneath it", path)?;
                }
            }
        }
        Ok(())
    }
}

/// What every process must be.
fn check_process(
    argv: &[String],
    env: &[(String, String)],
    cwd: &Path,
    user: &User,
) -> Result<(), SpecError> {
    if argv.first().is_none_or(String::is_empty) {
        return Err(SpecError::NoProgram);
    }
    let words = argv.iter().chain(env.iter().flat_map(|(k, v)| [k, v]));
    if words.clone().any(|w| w.contains('\0')) {
        return Err(SpecError::Nul);
    }
    let bytes: usize = words.map(|w| w.len() + 2).sum();
    if bytes > MAX_ARGUMENT_BYTES {
        return Err(SpecError::ArgumentsTooLong { bytes });
    }
    if let Some((name, _)) = env.iter().find(|(k, _)| k.is_empty() || k.contains('=')) {
        return Err(SpecError::EnvName { name: name.clone() });
    }
    absolute("the working directory", cwd)?;
    if [user.uid, user.gid].iter().chain(&user.groups).any(|id| *id == u32::MAX) {
        return Err(SpecError::Id);
    }
    user.check(IDS)?;
    if user.groups.len() > 65_536 {
        return Err(SpecError::TooManyGroups { count: user.groups.len() });
    }
    Ok(())
}

pub use keelway_model::oci::DEFAULT_PATH;

fn absolute(what: &'static str, path: &Path) -> Result<(), SpecError> {
    if path.is_absolute() && !path.as_os_str().as_encoded_bytes().contains(&0) {
        Ok(())
    } else {
        Err(SpecError::NotAbsolute { what, path: path.to_owned() })
    }
}

/// A [`Spec`] that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No lower directory.
    #[error("a read-only root needs at least one lower directory")]
    NoLowers,
    /// Beyond the kernel's bound.
    #[error(
        "the root has {count} layers, the kernel's overlayfs takes at most {MAX_LOWERS}: flatten the image or join RUN and COPY instructions"
    )]
    TooManyLowers {
        /// How many were asked for.
        count: usize,
    },
    /// Empty argv.
    #[error("there is no program to run: the argument vector is empty")]
    NoProgram,
    /// A NUL byte.
    #[error("an argument or environment variable contains a NUL byte, which no process can be given")]
    Nul,
    /// Beyond [`MAX_ARGUMENT_BYTES`].
    #[error(
        "arguments and environment are {bytes} bytes, at most {MAX_ARGUMENT_BYTES} can be given to a process: pass large values in a file"
    )]
    ArgumentsTooLong {
        /// How many bytes.
        bytes: usize,
    },
    /// A name that no environment can hold.
    #[error("{name:?} cannot be the name of an environment variable")]
    EnvName {
        /// The name.
        name: String,
    },
    /// A relative path, or one with a NUL byte.
    #[error("{what} must be an absolute path, not {path:?}")]
    NotAbsolute {
        /// Which path.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// The reserved id.
    #[error("4294967295 is no user or group id: the kernel keeps it for \"unchanged\"")]
    Id,
    /// Beyond the kernel's bound.
    #[error("{count} supplementary groups are more than the kernel's 65536")]
    TooManyGroups {
        /// How many.
        count: usize,
    },
    /// Not a host name.
    #[error("{hostname:?} is not a host name: 1 to 64 bytes")]
    Hostname {
        /// The name.
        hostname: String,
    },
    /// Beyond the ids of a sandbox.
    #[error("the user or group id {id} is outside the sandbox, which has {count} ids from 0 on{hint}")]
    IdOutside {
        /// The id.
        id: u32,
        /// So many there are.
        count: u32,
        /// What to do; starts with a separator.
        hint: &'static str,
    },
    /// overlayfs wants both in one mount, and the sandbox makes one for both.
    #[error("the upper directory {upper:?} and the work directory {work:?} must lie beside one another")]
    UpperAndWork {
        /// The one.
        upper: PathBuf,
        /// The other.
        work: PathBuf,
    },
    /// What only our own sandbox does.
    #[error("a terminal, and copying files, are not possible under another runtime: leave `runtime` out")]
    Runtime,
    /// A mount that only our own sandbox makes.
    #[error(
        "the mount at {target:?} is not possible under another runtime: leave the mount or the runtime out"
    )]
    RuntimeMount {
        /// Where it should be.
        target: PathBuf,
    },
    /// A mount at `/`.
    #[error("a mount cannot take the place of /: name a path below it")]
    MountOverRoot,
    /// Beyond [`MAX_FILE_CONTENT`].
    #[error(
        "the file for {target:?} is {bytes} bytes, at most {MAX_FILE_CONTENT} are possible: bind-mount it instead"
    )]
    FileTooLarge {
        /// Where it should be.
        target: PathBuf,
        /// Its size.
        bytes: usize,
    },
}
