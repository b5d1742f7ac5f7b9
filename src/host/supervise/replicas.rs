//! Replicas: started, watched over, stopped, removed; each in the hands of its keeper.
//!
//! Invariants: what a replica shall do is on disk before anything is done about it; a keeper is started
//! only while its lock is free and only under the replica's own lock, and the keeper takes that lock
//! itself, so there are never two; a replica is forgotten only when nothing of it runs.

use super::apps::{App, disk};
use super::state::{Supervisor, net};
use crate::keeper::Ask;
use crate::record::{self, ReplicaFiles, ReplicaRecord, VERSION, Want};
use crate::settings::{Role, SuperviseSettings};
use crate::{network::Slot, process, wire};
use keelway_container::{Backoff, State, Status};
use keelway_deploy::protocol::{Refusal, RefusalKind, ReplicaId, ReplicaReport, ReplicaSpec, ReplicaState};
use keelway_disk::Lock;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How often a keeper is asked how it is; also how soon its death is seen.
const TICK: Duration = Duration::from_millis(200);
/// For one answer of a keeper.
const ANSWER: Duration = Duration::from_secs(2);
/// For a keeper to start its replica, unpacking of the image included.
const START: Duration = Duration::from_secs(120);
/// Beyond the grace: for the kernel to end everything and for the keeper to clear up.
const BEYOND_GRACE: Duration = Duration::from_secs(40);
/// Between two looks while something is awaited.
const LOOK: Duration = Duration::from_millis(20);
/// For deleting what replicas wrote; the rest goes with the next one.
const TRASH: Duration = Duration::from_secs(10);
/// For making room where there is too little.
const COLLECT: Duration = Duration::from_secs(5);
/// Logs of removed replicas that are kept for each app.
const KEPT_LOGS: usize = 40;

/// One replica.
#[derive(Debug)]
pub(super) struct Replica {
    pub id: ReplicaId,
    pub slot: Slot,
    pub spec: ReplicaSpec,
    pub files: ReplicaFiles,
    inner: Mutex<Inner>,
    /// Held while we look whether the keeper's lock is free, so that we never meet ourselves there.
    looking: Mutex<()>,
    /// Held while a keeper is started or the replica removed.
    changing: tokio::sync::Mutex<Starts>,
    look: Notify,
}

#[derive(Debug)]
struct Inner {
    want: Want,
    status: Status,
    kept: bool,
    /// Whether a keeper of it has ever answered us.
    seen: bool,
    gone: bool,
    /// Whether this supervisor was ordered to stop it, and passes the order on with its own grace.
    ordered: bool,
    /// Keepers that were started because one had ended.
    again: u32,
}

#[derive(Debug, Default)]
struct Starts {
    backoff: Backoff,
    last: Option<Instant>,
    next: Option<Instant>,
}

impl Replica {
    pub fn new(id: ReplicaId, files: ReplicaFiles, record: ReplicaRecord) -> Self {
        let status = files.load_end().unwrap_or_default();
        let inner = Inner {
            want: record.want,
            status,
            kept: false,
            seen: false,
            gone: false,
            ordered: false,
            again: 0,
        };
        let (slot, spec) = (record.slot, record.spec);
        let inner = Mutex::new(inner);
        let (looking, changing, look) = Default::default();
        Self { id, slot, spec, files, inner, looking, changing, look }
    }
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Whether a keeper has it.
    fn is_kept(&self) -> bool {
        let _one_at_a_time = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        // An error is no proof of a free lock.
        !matches!(Lock::try_take(&self.files.lock()), Ok(Some(_)))
    }
    fn save(&self, want: Want) -> Result<(), Refusal> {
        let record = ReplicaRecord { version: VERSION, spec: self.spec.clone(), slot: self.slot, want };
        tokio::task::block_in_place(|| self.files.save(&record))
            .map_err(|e| disk(&e, &format!("write the record of replica {}", self.id)))?;
        self.inner().want = want;
        Ok(())
    }
    /// As it is.
    pub fn report(&self, supervisor: &Supervisor) -> ReplicaReport {
        let inner = self.inner();
        let (status, want, kept) = (inner.status.clone(), inner.want, inner.kept);
        drop(inner);
        let state = match (kept, want, status.state) {
            (false, Want::Stopped, _) => ReplicaState::Stopped,
            (false, Want::Running, _) => ReplicaState::Exited,
            (true, _, State::Starting) => ReplicaState::Starting,
            (true, _, State::Healthy) => ReplicaState::Healthy,
            (true, _, State::Unhealthy) => ReplicaState::Unhealthy,
            (true, _, State::Exited) => ReplicaState::Exited,
            // A keeper that is about to end has stopped its replica, but not cleared up.
            (true, _, State::Stopping | State::Stopped) => ReplicaState::Stopping,
        };
        let network = &supervisor.settings.network;
        ReplicaReport {
            replica: self.id,
            spec: self.spec.clone(),
            state,
            good: status.good,
            bad: status.bad,
            last_bad: status.last_bad,
            restarts: status.restarts,
            ended: status.ended,
            pid: status.pid.filter(|_| state.is_running()).and_then(|p| u32::try_from(p).ok()),
            address: Some(network.socket(self.slot, self.spec.port)),
            host_port: Some(network.host_port(self.slot)),
            age_ms: u64::try_from(status.age.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Supervisor {
    async fn ask(&self, replica: &Replica, ask: Ask) -> Result<Status, wire::CallError> {
        wire::call(&record::keeper_socket(&self.settings, replica.slot), &ask, ANSWER).await
    }

    /// Asks the keeper how the replica is, and notes it.
    pub(super) async fn refresh(&self, replica: &Replica) {
        if let Ok(mut status) = self.ask(replica, Ask::Status).await {
            let mut inner = replica.inner();
            // A keeper that was killed took its count of restarts with it.
            status.restarts = status.restarts.saturating_add(inner.again);
            inner.status = status;
            inner.kept = true;
            inner.seen = true;
        } else if !replica.is_kept() {
            let end = replica.files.load_end();
            let mut inner = replica.inner();
            match end {
                Some(end) => inner.status = end,
                None if inner.kept => inner.status.ended = Some("its keeper was killed".into()),
                None => {}
            }
            inner.kept = false;
        }
    }

    /// Sees to a replica until it is removed.
    pub(super) fn watch_replica(self: &Arc<Self>, app: &Arc<App>, replica: &Arc<Replica>) {
        let (this, app, replica) = (Arc::clone(self), Arc::clone(app), Arc::clone(replica));
        tokio::spawn(async move {
            while !replica.inner().gone {
                this.refresh(&replica).await;
                let (want, kept, state, ordered) = {
                    let inner = replica.inner();
                    (inner.want, inner.kept, inner.status.state, inner.ordered)
                };
                match (want, kept) {
                    (Want::Running, false) => {
                        if let Err(error) = this.start_keeper(&app, &replica, Pace::Patient).await {
                            tracing::warn!(app = %app.name, replica = %replica.id, %error, "cannot start");
                        }
                    }
                    // Told so by a supervisor that died before it passed it on.
                    (Want::Stopped, true)
                        if !ordered && !matches!(state, State::Stopping | State::Stopped) =>
                    {
                        let _ = this.ask(&replica, Ask::Stop { grace: replica.spec.stop_grace }).await;
                    }
                    _ => {}
                }
                let _ = tokio::time::timeout(TICK, replica.look.notified()).await;
            }
        });
    }

    /// Starts a keeper unless there is one.
    async fn start_keeper(&self, app: &App, replica: &Replica, pace: Pace) -> Result<(), Refusal> {
        let mut starts = replica.changing.lock().await;
        let now = Instant::now();
        let wait = pace == Pace::Patient && starts.next.is_some_and(|next| now < next);
        let (want, gone) = {
            let inner = replica.inner();
            (inner.want, inner.gone)
        };
        if wait || gone || want != Want::Running || replica.is_kept() {
            return Ok(());
        }
        let ran = starts.last.map_or(Duration::ZERO, |last| now - last);
        {
            let mut inner = replica.inner();
            inner.again = inner.again.saturating_add(u32::from(pace == Pace::Patient && inner.seen));
        }
        starts.next = Some(now + starts.backoff.after(ran));
        starts.last = Some(now);
        self.ensure_network(replica.slot).await.map_err(|e| net(&e))?;
        // How the last keeper left it is no news of the next one.
        replica.files.forget_end().map_err(|e| disk(&e, "start a keeper"))?;
        replica.inner().status.ended = None;
        let args = SuperviseSettings {
            settings: self.settings.clone(),
            role: Role::Keeper { app: app.name.clone(), replica: replica.id },
        };
        let diary = record::diary(&self.settings, "keepers");
        process::spawn("__supervise", args.to_args(), &diary).map_err(|e| disk(&e, "start a keeper"))?;
        // Until the keeper has its lock, nobody else starts one.
        let end = now + ANSWER;
        while !replica.is_kept() && Instant::now() < end {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Makes a replica run, and waits until its process has started, or could not be.
    pub(super) async fn ensure_replica(
        self: &Arc<Self>,
        app: &Arc<App>,
        id: ReplicaId,
        spec: ReplicaSpec,
    ) -> Result<ReplicaReport, Refusal> {
        let replica = match app.replica(id) {
            Some(replica) if replica.spec == spec => replica,
            Some(_) => {
                let text =
                    format!("replica {id} of {} is there with other settings: remove it first", app.name);
                return Err(Refusal::new(RefusalKind::Taken, text));
            }
            None => self.new_replica(app, id, spec).await?,
        };
        if replica.inner().want != Want::Running {
            // What was stopped is started again only when nothing of it is left.
            self.wait_until_free(&replica, BEYOND_GRACE).await?;
            replica.save(Want::Running)?;
        }
        let already = replica.is_kept();
        self.start_keeper(app, &replica, Pace::AtOnce).await?;
        let end = Instant::now() + START;
        loop {
            self.refresh(&replica).await;
            let report = replica.report(self);
            let over = report.state == ReplicaState::Exited && (report.ended.is_some() || already);
            if over || report.pid.is_some() {
                return Ok(report);
            }
            if Instant::now() > end {
                let text = format!("replica {id} of {} has not started within {START:?}", app.name);
                return Err(Refusal::new(RefusalKind::Deadline, text));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn new_replica(
        self: &Arc<Self>,
        app: &Arc<App>,
        id: ReplicaId,
        spec: ReplicaSpec,
    ) -> Result<Arc<Replica>, Refusal> {
        let files = ReplicaFiles::of(&self.settings, &app.name, id);
        let replica = self
            .take_slot(|slot| {
                // Somebody else may have made it while we waited.
                if let Some(replica) = app.replica(id) {
                    return Ok((replica, false));
                }
                let record = ReplicaRecord { version: VERSION, spec, slot, want: Want::Running };
                let replica = Arc::new(Replica::new(id, files, record));
                replica.save(Want::Running)?;
                app.insert(Arc::clone(&replica));
                Ok((replica, true))
            })
            .await?;
        let (replica, new) = replica;
        if new {
            self.watch_replica(app, &replica);
        }
        Ok(replica)
    }

    /// Stops a replica and waits for its end.
    pub(super) async fn stop_replica(&self, replica: &Replica, grace: Duration) -> Result<(), Refusal> {
        replica.inner().ordered = true;
        let stopped = self.pass_stop(replica, grace).await;
        replica.inner().ordered = false;
        stopped
    }

    async fn pass_stop(&self, replica: &Replica, grace: Duration) -> Result<(), Refusal> {
        replica.save(Want::Stopped)?;
        // A keeper that is being started is waited for, so that it hears the order.
        drop(replica.changing.lock().await);
        let end = Instant::now() + ANSWER;
        while replica.is_kept()
            && self.ask(replica, Ask::Stop { grace }).await.is_err()
            && Instant::now() < end
        {
            tokio::time::sleep(LOOK).await;
        }
        self.wait_until_free(replica, grace + BEYOND_GRACE).await
    }

    async fn wait_until_free(&self, replica: &Replica, patience: Duration) -> Result<(), Refusal> {
        let end = Instant::now() + patience;
        while replica.is_kept() {
            if Instant::now() > end {
                let text = format!(
                    "replica {} has not ended within {patience:?}; look at its processes",
                    replica.id
                );
                return Err(Refusal::new(RefusalKind::Deadline, text));
            }
            tokio::time::sleep(LOOK).await;
        }
        self.refresh(replica).await;
        Ok(())
    }

    /// Removes what is left of a stopped replica, its log excepted.
    pub(super) async fn remove_replica(&self, app: &App, replica: &Replica) -> Result<(), Refusal> {
        let changing = replica.changing.lock().await;
        if replica.is_kept() || replica.inner().want == Want::Running {
            let text = format!("replica {} of {} is running: stop it first", replica.id, app.name);
            return Err(Refusal::new(RefusalKind::Failed, text));
        }
        // Cut short anywhere from here on, the record is still there and the removal is done again, or it is
        // gone and the next supervisor finds a namespace that belongs to nobody.
        {
            let mut inner = replica.inner();
            inner.gone = true;
        }
        replica.look.notify_one();
        app.forget(replica.id);
        let removed = self.remove_network(replica.slot).await;
        drop(changing);
        removed.map_err(|e| net(&e))?;
        let (settings, dir) = (self.settings.clone(), replica.files.dir.clone());
        let _ = std::fs::remove_file(record::keeper_socket(&settings, replica.slot));
        let logs = record::app_dir(&settings, &app.name).join("logs");
        tokio::task::block_in_place(|| {
            self.discard(&dir)?;
            prune_logs(&logs, app)
        })
        .map_err(|e| disk(&e, &format!("remove the files of replica {}", replica.id)))?;
        // What a killed keeper left in the store and the cgroup tree is found when the store is opened, and what
        // replicas wrote is deleted.
        // A host that is deployed to again and again must not fill up: what no release and no replica needs goes, when there
        // is too much.
        let cleared = tokio::task::spawn_blocking(move || {
            let store = record::open_store(&settings).map_err(|e| e.to_string())?;
            store.empty_trash(TRASH).map_err(|e| e.to_string())?;
            let needs = || crate::needed_images(&settings.root).map_err(|e| e.to_string());
            let collected = store.collect((None, None), &needs, COLLECT).map_err(|e| e.to_string())?;
            if let Some(done) = collected {
                tracing::info!(bytes = done.bytes, after = done.after, "removed what nobody needs");
                store.empty_trash(TRASH).map_err(|e| e.to_string())?;
            }
            Ok::<(), String>(())
        });
        if let Ok(Err(error)) = cleared.await {
            tracing::warn!(%error, "cannot clear up the store");
        }
        Ok(())
    }
}

/// Whether a start waits for its turn after failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// Ordered: now.
    AtOnce,
    /// By itself: ever more slowly.
    Patient,
}

/// Keeps the logs of the newest replicas that are gone.
fn prune_logs(logs: &std::path::Path, app: &App) -> std::io::Result<()> {
    let mut gone: Vec<ReplicaId> = std::fs::read_dir(logs)?
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .filter(|id| app.replica(*id).is_none())
        .collect();
    gone.sort_unstable();
    let surplus = gone.len().saturating_sub(KEPT_LOGS);
    for id in &gone[..surplus] {
        std::fs::remove_dir_all(logs.join(id.to_string()))?;
    }
    Ok(())
}
