//! Everything the supervisor knows, loaded from disk.

use super::apps::{App, Boot, disk};
use super::replicas::Replica;
use super::{SuperviseError, failed};
use crate::files;
use crate::network::{self, Forward, NetworkError, Slot};
use crate::record::{self, ReplicaFiles};
use crate::settings::Settings;
use keelway_deploy::protocol::{Refusal, RefusalKind, ReplicaId};
use keelway_disk::Trash;
use keelway_model::Digest;
use keelway_model::ids::AppName;
use keelway_store::Store;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

const NETWORK: &str = "network.json";

/// The supervisor.
pub(super) struct Supervisor {
    pub settings: Settings,
    pub store: Store,
    /// What holds the images that came in last.
    pub fresh: Mutex<VecDeque<(Digest, Store)>>,
    pub boot: Boot,
    apps: Mutex<BTreeMap<AppName, Arc<App>>>,
    /// The slot that was given out last. Held while the network is changed.
    network: tokio::sync::Mutex<Option<Slot>>,
}

impl Supervisor {
    /// Loads everything, clears away what belongs to nobody, and starts to watch over the rest.
    pub async fn open(settings: Settings) -> Result<Arc<Self>, SuperviseError> {
        let copy = settings.clone();
        let loaded = tokio::task::spawn_blocking(move || load(&copy)).await;
        let (store, apps, last) = loaded.map_err(|e| failed("cannot load")(io::Error::other(e)))??;
        let boot = Boot::read().map_err(failed("cannot read the boot id"))?;
        let this = Arc::new(Self {
            settings,
            store,
            fresh: Mutex::default(),
            boot,
            apps: Mutex::new(apps),
            network: tokio::sync::Mutex::new(last),
        });
        if let Err(error) = this.clear_network().await {
            tracing::warn!(%error, "network leftovers");
        }
        for app in this.apps() {
            this.watch_balancer(&app);
            for replica in app.replicas() {
                this.watch_replica(&app, &replica);
            }
        }
        Ok(this)
    }
    pub fn apps(&self) -> Vec<Arc<App>> {
        self.apps.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
    pub fn app(&self, name: &AppName) -> Option<Arc<App>> {
        self.apps.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }
    /// The app, made where it is not there. Its balancer is watched over from then on: once for each app that is made
    /// or loaded, and never elsewhere.
    pub fn ensure_app(self: &Arc<Self>, name: &AppName) -> Result<Arc<App>, Refusal> {
        let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(app) = apps.get(name) {
            return Ok(Arc::clone(app));
        }
        let app = tokio::task::block_in_place(|| App::open(&self.settings, name.clone()));
        let app = Arc::new(app.map_err(|e| disk(&e, &format!("use the directory of {name}")))?);
        apps.insert(name.clone(), Arc::clone(&app));
        self.watch_balancer(&app);
        Ok(app)
    }
    fn all_replicas(&self) -> Vec<(Arc<App>, Arc<Replica>)> {
        let of = |app: Arc<App>| app.replicas().into_iter().map(move |r| (Arc::clone(&app), r));
        self.apps().into_iter().flat_map(of).collect()
    }

    /// A place for a new replica: `with` writes it down before anybody else gets one.
    pub async fn take_slot<T>(&self, with: impl FnOnce(Slot) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let mut last = self.network.lock().await;
        let taken: BTreeSet<Slot> = self.all_replicas().iter().map(|(_, r)| r.slot).collect();
        let slot = self.settings.network.next_slot(*last, &taken).map_err(|e| net(&e))?;
        tokio::task::block_in_place(|| files::save(&self.settings.state(), NETWORK, &slot))
            .map_err(|e| disk(&e, "write network.json"))?;
        *last = Some(slot);
        with(slot)
    }
    /// Bridge, forwarding and firewall as they shall be.
    pub async fn ensure_firewall(&self) -> Result<(), NetworkError> {
        let _one_at_a_time = self.network.lock().await;
        self.firewall().await
    }
    /// The same, and a replica's namespace.
    pub async fn ensure_network(&self, slot: Slot) -> Result<(), NetworkError> {
        let _one_at_a_time = self.network.lock().await;
        network::run_all(&self.settings.network.bridge_commands()).await?;
        network::allow_forwarding()?;
        network::run_all(&self.settings.network.replica_commands(slot)).await?;
        self.firewall().await
    }
    /// Takes a replica's namespace and port away. The replica is forgotten already.
    pub async fn remove_network(&self, slot: Slot) -> Result<(), NetworkError> {
        let _one_at_a_time = self.network.lock().await;
        self.firewall().await?;
        network::run_all(&self.settings.network.removal_commands(slot)).await
    }
    async fn firewall(&self) -> Result<(), NetworkError> {
        let forwards = self.all_replicas().into_iter().map(|(app, replica)| Forward {
            slot: replica.slot,
            port: replica.spec.port,
            peers: app.settings().map(|s| network::ipv4_peers(&s.peers)).unwrap_or_default(),
        });
        let forwards: Vec<Forward> = forwards.collect();
        network::run(&self.settings.network.ruleset_command(&forwards)).await.map(drop)
    }
    /// Removes namespaces that no replica has: those of replicas whose removal was cut short.
    async fn clear_network(&self) -> Result<(), NetworkError> {
        let names = std::fs::read_dir("/run/netns").into_iter().flatten();
        let names = names.filter_map(|e| e.ok()?.file_name().into_string().ok());
        let taken: BTreeSet<Slot> = self.all_replicas().iter().map(|(_, r)| r.slot).collect();
        for slot in self.settings.network.slots_of(names).difference(&taken) {
            tracing::info!(slot = slot.0, "removing a namespace that belongs to no replica");
            network::run_all(&self.settings.network.removal_commands(*slot)).await?;
        }
        Ok(())
    }
    /// Throws away the files of a replica.
    pub fn discard(&self, dir: &Path) -> io::Result<()> {
        let trash = self.settings.state().join("trash");
        files::private_dir(&trash)?;
        let trash = Trash::at(trash);
        trash.discard(dir)?;
        // A handful of small files; what does not go now goes with the next one.
        trash.empty(std::time::Instant::now() + std::time::Duration::from_secs(1)).map(drop)
    }
}

/// A network failure as an answer.
pub(super) fn net(error: &NetworkError) -> Refusal {
    Refusal::new(RefusalKind::Failed, error.to_string())
}

type Loaded = (Store, BTreeMap<AppName, Arc<App>>, Option<Slot>);

fn load(settings: &Settings) -> Result<Loaded, SuperviseError> {
    let bad = |path: &Path| failed(format!("cannot read {}", path.display()));
    let store = record::open_store(settings)?;
    let path = settings.state().join(NETWORK);
    let last = files::load(&path).map_err(bad(&path))?;
    let mut apps = BTreeMap::new();
    let dir = settings.state().join("apps");
    for name in names(&dir).map_err(bad(&dir))? {
        let Ok(name) = name.parse::<AppName>() else { continue };
        let app = App::open(settings, name.clone()).map_err(bad(&dir.join(name.as_str())))?;
        let replicas = dir.join(name.as_str()).join("replicas");
        for id in names(&replicas).map_err(bad(&replicas))? {
            let Ok(id) = id.parse::<ReplicaId>() else { continue };
            let files = ReplicaFiles::of(settings, &name, id);
            // Without a record it was never begun.
            if let Some(record) = files.load().map_err(bad(&files.dir))? {
                app.insert(Arc::new(Replica::new(id, files, record)));
            }
        }
        apps.insert(name, Arc::new(app));
    }
    Ok((store, apps, last))
}

fn names(dir: &PathBuf) -> io::Result<Vec<String>> {
    match std::fs::read_dir(dir) {
        Ok(entries) => entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}
