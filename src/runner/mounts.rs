//! What a RUN's mounts are on this machine: mounts for its sandbox, and what has to live as long as it.
//!
//! Secrets are read here from the settings and go to the sandbox alone: its memory, its environment.

use crate::Settings;
use crate::agent::Proxy;
use keelway_engine::{Ctx, Failure};
use keelway_image::StepError;
use keelway_model::mount::{FileAccess, RunMount, Sharing};
use keelway_model::plan::Chain;
use keelway_model::{Bytes, Digest, ExitCode, Hasher, Op, Output, Plan, Redacted};
use keelway_sandbox::{Access, Mount, MountKind, RootFs};
use keelway_store::{CacheMount, Store, Upper};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Size of a tmpfs that names none, as `container run --tmpfs` has it.
const TMPFS: Bytes = Bytes(1 << 30);
/// How long a RUN waits for a cache that another has locked. Who dies frees it, so this is for steps that never end.
const CACHE_WAIT: Duration = Duration::from_secs(6 * 3600);
/// A wait that is longer is said.
const TELL: Duration = Duration::from_millis(250);
/// Between two looks at whether it is free.
const LOOK: Duration = Duration::from_millis(10);

/// What a step needs to have its mounts made.
pub(crate) struct Maker<'a> {
    pub store: &'a Store,
    pub settings: &'a Settings,
    pub ctx: &'a Ctx,
    pub inputs: &'a [Output],
    /// The environment of the step.
    pub env: &'a [(String, String)],
}

/// The mounts of one RUN. It must be dropped after the sandbox has ended, and not before.
#[derive(Default)]
pub(crate) struct Mounted {
    /// For the sandbox, in order.
    pub mounts: Vec<Mount>,
    /// Variables beyond those of the step: secrets, and where the agent is.
    pub env: Vec<(String, String)>,
    /// What must not be seen in logs.
    pub hidden: Vec<Redacted<String>>,
    /// Where binds write, thrown away afterwards.
    uppers: Vec<Upper>,
    agents: Vec<Proxy>,
    caches: BTreeMap<CacheName, CacheMount>,
}

/// A cache: its id, and what it is filled with when it is new.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct CacheName {
    id: String,
    seed: Option<Digest>,
}

/// What is not possible in a stage with another runtime is refused before anything runs.
pub(crate) fn check_runtime(plan: &Plan) -> Result<(), Failure> {
    for node in &plan.nodes {
        let Op::Exec(op) = &node.op else { continue };
        let (kind, target) = match op.mounts.iter().find_map(|m| match m {
            RunMount::Bind { target, .. } => Some(("bind", target)),
            RunMount::Cache { target, .. } => Some(("cache", target)),
            RunMount::Agent { target, .. } => Some(("ssh", target)),
            _ => None,
        }) {
            Some(found) => found,
            None => continue,
        };
        return Err(Failure::new(
            ExitCode::Usage,
            format!(
                "{}: the mount at {target} (type={kind}) is not possible under another runtime; leave `isolation` out of \
                 this stage",
                node.name
            ),
        ));
    }
    Ok(())
}

fn outside(e: impl std::fmt::Display) -> Failure {
    Failure::outside(e.to_string())
}

fn usage(message: String) -> Failure {
    Failure::new(ExitCode::Usage, message)
}

impl Maker<'_> {
    /// Makes them ready; blocking, since a cache may be locked by another step.
    pub(crate) fn prepare(&self, mounts: &[RunMount]) -> Result<Mounted, Failure> {
        let mut out = Mounted { caches: self.caches(mounts)?, ..Mounted::default() };
        for mount in mounts {
            let Some(kind) = self.kind(mount, &mut out)? else { continue };
            if let Some(target) = mount.target() {
                out.mounts.push(Mount { target: target.into(), kind });
            }
        }
        // One that lies in another comes after it.
        out.mounts.sort_by_key(|m| m.target.components().count());
        Ok(out)
    }

    /// What is mounted, if anything is.
    fn kind(&self, mount: &RunMount, out: &mut Mounted) -> Result<Option<MountKind>, Failure> {
        Ok(Some(match mount {
            RunMount::Script { content, .. } => {
                MountKind::File { content: content.clone().into_bytes(), mode: 0o755, owner: (0, 0) }
            }
            RunMount::Bind { need, source, writable, .. } => {
                let root = self.root(self.chain(*need)?, *writable, out)?;
                MountKind::Layers { root, path: source.into() }
            }
            RunMount::Cache { id, seed, source, read_only, access, .. } => {
                let name = self.cache_name(id, seed.as_ref())?;
                let cache = out.caches.get(&name).ok_or_else(|| Failure::bug("a cache was not taken"))?;
                if cache.is_new() {
                    cache.fill(self.first_content(seed.as_ref(), *access)?).map_err(outside)?;
                } else {
                    cache.touch().map_err(outside)?;
                }
                let access = if *read_only { Access::ReadOnly } else { Access::ReadWrite };
                MountKind::Beneath { directory: cache.fs(), path: source.into(), access }
            }
            RunMount::Tmpfs { size, .. } => MountKind::Tmpfs { size: size.unwrap_or(TMPFS), mode: 0o1777 },
            RunMount::Secret { id, required, access, .. } => match self.secret(id, *required)? {
                Some(content) => {
                    out.hide(content);
                    let owner = (access.uid, access.gid);
                    MountKind::File { content: content.clone(), mode: access.mode, owner }
                }
                None => return Ok(None),
            },
            RunMount::SecretVariable { name, id, required } => {
                if let Some(content) = self.secret(id, *required)? {
                    let Ok(text) = String::from_utf8(content.clone()) else {
                        return Err(usage(format!(
                            "the secret {id:?} is not UTF-8 text: no variable can hold it; leave env= out and read the file"
                        )));
                    };
                    out.hide(content);
                    out.env.push((name.clone(), text));
                }
                return Ok(None);
            }
            RunMount::Agent { target, id, required, access } => {
                let Some(socket) = self.settings.agents.get(id) else {
                    return match required {
                        false => Ok(None),
                        true => Err(usage(format!(
                            "the ssh agent {id:?} is required here and was not given: give it with `keelway image build --ssh {id}[=SOCKET]`"
                        ))),
                    };
                };
                let place = self.store.begin().map_err(outside)?;
                let proxy = Proxy::start(socket, place, *access).map_err(|e| {
                    Failure::outside(format!("cannot reach the ssh agent at {}: {e}", socket.display()))
                })?;
                let source = proxy.path();
                // What the Dockerfile says of it counts.
                if out.agents.is_empty() && !self.env.iter().any(|(k, _)| k == "SSH_AUTH_SOCK") {
                    out.env.push(("SSH_AUTH_SOCK".to_owned(), target.clone()));
                }
                out.agents.push(proxy);
                MountKind::Bind { source, access: Access::ReadOnly, below: true }
            }
        }))
    }

    fn chain(&self, need: usize) -> Result<&Chain, Failure> {
        crate::perform::chain_of(self.inputs.get(need))
    }

    fn root(&self, chain: &Chain, writable: bool, out: &mut Mounted) -> Result<RootFs, Failure> {
        let lowers = self.store.lowers(&chain.snapshots);
        if !writable && !lowers.is_empty() {
            return Ok(RootFs::ReadOnly { lowers });
        }
        let upper = self.store.begin().map_err(outside)?;
        let root = RootFs::Overlay { lowers, upper: upper.fs().into(), work: upper.work().into() };
        out.uppers.push(upper);
        Ok(root)
    }

    fn secret(&self, id: &str, required: bool) -> Result<Option<&Vec<u8>>, Failure> {
        match self.settings.secrets.get(id) {
            Some(secret) => Ok(Some(secret.reveal())),
            None if !required => Ok(None),
            None => {
                let names: Vec<&str> = self.settings.secrets.keys().map(String::as_str).collect();
                let near = keelway_dockerfile::nearest(id, &names);
                let near = near.map(|n| format!("; did you mean {n:?}?")).unwrap_or_default();
                Err(usage(format!(
                    "the secret {id:?} is required here and was not given: give it with `keelway image build --secret id={id},src=FILE`{near}"
                )))
            }
        }
    }

    fn cache_name(&self, id: &str, seed: Option<&(usize, String)>) -> Result<CacheName, Failure> {
        let seed = match seed {
            None => None,
            Some((need, source)) => {
                let mut h = Hasher::new();
                h.field(self.chain(*need)?.key.as_bytes()).field(source.as_bytes());
                Some(h.finish())
            }
        };
        Ok(CacheName { id: id.to_owned(), seed })
    }

    /// Takes every cache, each once and all in one order, so that two steps never wait for one another.
    fn caches(&self, mounts: &[RunMount]) -> Result<BTreeMap<CacheName, CacheMount>, Failure> {
        let mut wanted: BTreeMap<CacheName, Sharing> = BTreeMap::new();
        for mount in mounts {
            let RunMount::Cache { id, sharing, seed, .. } = mount else { continue };
            let most = wanted.entry(self.cache_name(id, seed.as_ref())?).or_insert(*sharing);
            *most = (*most).max(*sharing);
        }
        let mut taken = BTreeMap::new();
        for (name, sharing) in wanted {
            let cache = self.take(&name, sharing)?;
            taken.insert(name, cache);
        }
        Ok(taken)
    }

    fn take(&self, name: &CacheName, sharing: Sharing) -> Result<CacheMount, Failure> {
        let begun = Instant::now();
        let mut told = false;
        loop {
            let cache = self.store.try_cache_mount(&name.id, name.seed.as_ref(), sharing).map_err(outside)?;
            if let Some(cache) = cache {
                return Ok(cache);
            }
            if self.ctx.cancel.is_cancelled() {
                return Err(Failure::new(ExitCode::Cancelled, "cancelled"));
            }
            if begun.elapsed() > CACHE_WAIT {
                return Err(Failure::outside(format!(
                    "another RUN has used the cache {:?} for {} hours: end it, or give this one another id",
                    name.id,
                    CACHE_WAIT.as_secs() / 3600
                )));
            }
            if !told && begun.elapsed() > TELL {
                told = true;
                self.ctx
                    .notice_blocking(format!("waits for the cache {:?}, which another RUN uses", name.id));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// A new cache: empty, or a copy of what it is from.
    fn first_content(&self, seed: Option<&(usize, String)>, access: FileAccess) -> Result<Upper, Failure> {
        let upper = match seed {
            None => self.store.begin().map_err(outside)?,
            Some((need, source)) => keelway_image::seed::directory(self.store, self.chain(*need)?, source)
                .map_err(|e: StepError| crate::perform::step_failure(&e))?,
        };
        let made = || -> std::io::Result<()> {
            use std::os::unix::fs::{PermissionsExt, chown};
            chown(upper.fs(), Some(access.uid), Some(access.gid))?;
            std::fs::set_permissions(upper.fs(), std::fs::Permissions::from_mode(access.mode))
        };
        made().map_err(|e| Failure::outside(format!("cannot make a cache: {e}")))?;
        Ok(upper)
    }
}

impl Mounted {
    /// The locks of the caches, for the sandbox.
    pub(crate) fn locks(&self) -> std::io::Result<Vec<OwnedFd>> {
        self.caches.values().map(|c| c.lock().as_fd().try_clone_to_owned()).collect()
    }

    /// Keeps a secret and its lines out of logs. What is shorter would be everywhere.
    fn hide(&mut self, content: &[u8]) {
        const SHORTEST: usize = 4;
        let text = String::from_utf8_lossy(content);
        let lines = text.lines().map(str::trim).filter(|l| l.len() >= SHORTEST);
        self.hidden.extend(lines.map(|l| Redacted::new(l.to_owned())));
    }
}
