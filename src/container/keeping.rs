//! The keeper of a container that was made by hand: from its record to its process to its end.
//!
//! It does little, so that there is little to die of: it owns the sandbox, writes the log, answers at its socket,
//! and writes down how it ended. Restarts and health are the supervisor's, a process of its own; the keeper
//! only sees to it that there is one. A detached container's keeper is a process of its own, an attached one's is
//! the command that its user looks at.

use crate::console::{Console, Tee};
use crate::container::{Container, Kept, NOT_STARTED, Settings, Shape, Status};
use crate::containers::{Containers, Entry};
use crate::image::Image;
use crate::keeper::{Desk, KeepError, Keeper, Life};
use crate::network::{self, Networks, Uplink};
use crate::record::{ContainerFiles, EndRecord, NetworkMode, Record, RunRecord};
use crate::{ContainerId, Overrides, process};
use keelway_model::Clock;
use keelway_model::clock::SystemClock;
use keelway_sandbox::cgroup::ParentName;
use keelway_sandbox::{
    Access, CapError, CapProfile, CapSet, Launcher, LauncherConfig, Mount, MountKind, Network,
};
use keelway_store::Store;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The hidden verb of keepers and supervisors.
pub const VERB: &str = "__container";
/// Between two looks at whether there is a supervisor.
const LOOK: Duration = Duration::from_secs(1);
/// The size of a terminal that nobody looks at.
const WINDOW: (u16, u16) = (24, 80);

/// One container and where everything is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    /// The state directory.
    pub state: PathBuf,
    /// Which.
    pub id: ContainerId,
}

/// What a process of ours is for a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Owns its sandbox.
    Keeper,
    /// Starts it again and checks its health.
    Supervisor,
}

/// Arguments of the hidden verb that are none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("usage: {VERB} keep|supervise STATE ID")]
pub struct ArgsError;

impl Post {
    /// The containers that it is one of.
    pub fn containers(&self) -> Containers {
        Containers::of(&self.state)
    }
    /// Its files.
    pub fn files(&self) -> ContainerFiles {
        self.containers().files(&self.id)
    }
    /// Starts a process for it that outlives us.
    pub fn spawn(&self, role: Role) -> io::Result<process::Ending> {
        let word = match role {
            Role::Keeper => "keep",
            Role::Supervisor => "supervise",
        };
        let args: Vec<OsString> = vec![word.into(), self.state.clone().into(), self.id.as_str().into()];
        process::spawn(VERB, args, &self.files().diary())
    }
    /// Reads the arguments of the hidden verb.
    pub fn from_args(args: &[OsString]) -> Result<(Role, Self), ArgsError> {
        let [role, state, id] = args else { return Err(ArgsError) };
        let role = match role.to_str() {
            Some("keep") => Role::Keeper,
            Some("supervise") => Role::Supervisor,
            _ => return Err(ArgsError),
        };
        let id = id.to_str().and_then(|id| id.parse().ok()).ok_or(ArgsError)?;
        Ok((role, Self { state: state.into(), id }))
    }
}

/// Why a container is not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepingError {
    /// It is gone.
    #[error("container {0} is not there any more")]
    Gone(ContainerId),
    /// Another process has it.
    #[error(transparent)]
    Keep(#[from] KeepError),
    /// The disk.
    #[error("cannot {what}: {source}")]
    Io {
        /// What failed.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> KeepingError {
    move |source| KeepingError::Io { what, source }
}

/// Who is at the container's input and output.
#[derive(Clone, Default)]
pub struct Attachment {
    /// Gets them.
    pub tee: Option<Arc<dyn Tee>>,
    /// Rows and columns of its terminal.
    pub window: Option<(u16, u16)>,
}

/// Keeps a container from its start to its end. What it is told comes through the desk, too.
pub async fn keep(
    post: &Post,
    attachment: Attachment,
    (desk, mut life): (Desk, Life),
) -> Result<EndRecord, KeepingError> {
    let files = post.files();
    let gone = || KeepingError::Gone(post.id.clone());
    let record = files.load().map_err(failed("read the container's record"))?.ok_or_else(gone)?;
    let keeper = Keeper::begin(files.keeper_lock(), files.socket()).await?;
    // Whoever stopped it before we had the lock was told that nothing runs, and so it must stay.
    if files.want().map_err(failed("read what it shall do"))?.is_some_and(|want| want.is_stopped_now()) {
        let end = match files.end().map_err(failed("read how it ended"))? {
            Some(last) => last,
            None => never_began(&files)?,
        };
        drop(keeper);
        return Ok(end);
    }
    files.clear_cgroup().map_err(failed("remove the cgroup of the last run"))?;
    files.forget_run().map_err(failed("begin a run"))?;
    let noting = tokio::spawn(note_start(desk.clone(), files.clone()));
    let supervised = record.asked.is_supervised();
    let watching = supervised.then(|| tokio::spawn(see_to_a_supervisor(post.clone())));
    let made = tokio::task::spawn_blocking({
        let (post, record) = (post.clone(), record.clone());
        move || prepare(&post, &record, attachment)
    });
    let status = keeper.keep(&desk, async {
        match made.await {
            Ok(Ok(container)) => container.run(&mut life).await,
            Ok(Err(error)) => life.unfit(&error, NOT_STARTED),
            Err(error) => life.unfit(&error.to_string(), NOT_STARTED),
        }
        // What is noted from it is noted before it is over.
        drop(life);
    });
    let status = status.await;
    let noted = noting.await.unwrap_or(None);
    let end = end_of(&status, noted);
    files.save_end(&end).map_err(failed("write how the container ended"))?;
    if let Some(watching) = watching {
        watching.abort();
        if !files.is_supervised() {
            // Killed a moment ago, perhaps.
            post.spawn(Role::Supervisor).map_err(failed("start a supervisor"))?;
        }
    }
    // One that never ran is left to whoever asked for it, who says why. A supervisor removes after its own end.
    if record.asked.remove && end.started.is_some() && !(supervised && record.asked.detached) {
        let entry = Entry { record, files };
        let containers = post.containers();
        let removed = tokio::task::spawn_blocking(move || containers.remove_own(&entry)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(%error, "cannot remove it");
        }
    }
    drop(keeper);
    Ok(end)
}

/// The end of a run that did not come to be, written down.
fn never_began(files: &ContainerFiles) -> Result<EndRecord, KeepingError> {
    let end = EndRecord {
        code: NOT_STARTED,
        out_of_memory: false,
        error: Some("it was stopped before it began".into()),
        started: None,
        ended: SystemClock.now(),
    };
    files.save_end(&end).map_err(failed("write how the container ended"))?;
    Ok(end)
}

fn end_of(status: &Status, noted: Option<RunRecord>) -> EndRecord {
    let started = noted.map(|run| run.started).or(status.started);
    EndRecord {
        code: status.code.unwrap_or(NOT_STARTED),
        out_of_memory: status.out_of_memory,
        error: status.ended.clone().filter(|_| started.is_none()).or_else(|| status.limit.clone()),
        started,
        ended: SystemClock.now(),
    }
}

/// Writes down that its process runs, once it does.
async fn note_start(mut desk: Desk, files: ContainerFiles) -> Option<RunRecord> {
    loop {
        let status = desk.status();
        if let (Some(pid), Some(started)) = (status.pid, status.started) {
            let run = RunRecord { keeper: std::process::id(), pid, started, warnings: status.warnings };
            if let Err(error) = files.save_run(&run) {
                tracing::error!(%error, "cannot write down that the container runs");
            }
            return Some(run);
        }
        if status.code.is_some() || !desk.changed().await {
            return None;
        }
    }
}

/// Starts a supervisor whenever there is none.
async fn see_to_a_supervisor(post: Post) {
    loop {
        let files = post.files();
        let held = tokio::task::spawn_blocking(move || files.is_supervised()).await;
        if matches!(held, Ok(false))
            && let Err(error) = post.spawn(Role::Supervisor)
        {
            tracing::warn!(%error, "cannot start a supervisor");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Opens the store, and ends what a keeper that was killed left in the cgroup tree. Blocking.
pub fn open_store(state: &Path) -> Result<Store, keelway_store::OpenError> {
    let store = Store::open(&state.join("store"), Arc::new(SystemClock))?;
    let dead: Vec<_> =
        store.reaped().iter().flat_map(|run| &run.cgroups).filter_map(|name| name.parse().ok()).collect();
    if !dead.is_empty()
        && let Err(error) = keelway_sandbox::cgroup::reap(&keelway_sandbox::cgroup::Layout::detect(), &dead)
    {
        tracing::warn!(%error, "left over");
    }
    Ok(store)
}

/// The capabilities that a record asks for.
pub fn capabilities(record: &Record) -> Result<CapProfile, CapError> {
    let (add, drop) = (&record.asked.cap_add, &record.asked.cap_drop);
    if add.is_empty() && drop.is_empty() {
        return Ok(CapProfile::Build);
    }
    CapSet::chosen(add, drop).map(CapProfile::Only)
}

/// What a record sets over its image.
pub fn overrides(record: &Record) -> Overrides {
    let asked = &record.asked;
    let mut env = asked.env.clone();
    if asked.terminal && !env.iter().any(|(name, _)| name == "TERM") {
        env.push(("TERM".into(), "xterm".into()));
    }
    Overrides {
        env,
        entrypoint: asked.entrypoint.clone(),
        command: asked.command.clone(),
        cwd: asked.cwd.clone(),
        user: asked.user.clone(),
        stop_signal: asked.stop_signal.clone(),
    }
}

/// A record's host name.
pub fn hostname(record: &Record) -> String {
    record.asked.hostname.clone().unwrap_or_else(|| record.id.short().to_owned())
}

/// What of this machine a record asks for.
pub(crate) fn binds(record: &Record) -> Vec<Mount> {
    let mount = |b: &crate::record::Bind| Mount {
        target: b.target.clone(),
        kind: MountKind::Bind {
            source: b.source.clone(),
            access: if b.writable { Access::ReadWrite } else { Access::ReadOnly },
            below: true,
        },
    };
    record.asked.binds.iter().map(mount).collect()
}

fn prepare(post: &Post, record: &Record, attachment: Attachment) -> Result<Container, String> {
    let say = |error: &dyn std::fmt::Display| error.to_string();
    let store = open_store(&post.state).map_err(|e| say(&e))?;
    let image = Image::prepare(&store, record.digest).map_err(|e| say(&e))?;
    // The run directory's name is nobody else's, on this store or another of this machine.
    let run = store.run_dir().file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let parent: ParentName = format!("keelway/container-{run}").parse().map_err(|e| say(&e))?;
    let (asked, files) = (&record.asked, post.files());
    // Whoever finds the container without its keeper removes it, and so does who opens the store next.
    store.note_cgroup(parent.as_str()).map_err(|e| say(&e))?;
    files.save_cgroup(&parent).map_err(|e| say(&e))?;
    let launcher = Launcher::new(LauncherConfig::new(parent));
    let tmpfs = asked
        .tmpfs
        .iter()
        .map(|t| Mount { target: t.target.clone(), kind: MountKind::Tmpfs { size: t.size, mode: t.mode } });
    let (network, networks) = match asked.network {
        NetworkMode::None => (Network::None, None),
        NetworkMode::Host => (Network::Host, None),
        NetworkMode::Private => {
            let uplink = Uplink::look().ok_or(
                "a private network of an ordinary user needs pasta: `keelway doctor` says more; or use --network none or host",
            )?;
            let settings = network::Settings { uplink, ..network::Settings::default() };
            (Network::None, Some(Networks::new(record.id.short(), settings)))
        }
    };
    let settings = Settings {
        image,
        overrides: overrides(record),
        hostname: hostname(record),
        network,
        limits: asked.limits.clone(),
        cgroup: record.id.short().parse().map_err(|e| say(&e))?,
        health: None,
        log_dir: files.log(),
        shape: Shape {
            kept: Some(Kept { upper: files.upper(), work: files.work() }),
            read_only: asked.read_only,
            mounts: tmpfs.chain(binds(record)).collect(),
            networks,
            ports: asked.publish.clone(),
            caps: capabilities(record).map_err(|e| say(&e))?,
            console: match (asked.terminal, asked.input) {
                (true, _) => Console::Terminal { size: attachment.window.unwrap_or(WINDOW) },
                (false, input) => Console::Lines { input },
            },
            tee: attachment.tee,
            again: false,
            counted: true,
        },
    };
    Container::new(store, launcher, settings).map_err(|e| say(&e))
}
