//! Caches elsewhere: what steps gave on other machines, in a registry or in a directory.
//!
//! They are opened when a build begins and asked step by step, after this machine's own cache. Nothing that is missing or
//! damaged there fails a build: the step runs, and one line says why. See [`keelway_image::cache`] for whom one believes.

use crate::perform::{Performer, progress, telling};
use crate::{blocking, perform};
use keelway_engine::{Ctx, Failure, RunReport};
use keelway_image::cache::{self, Cache, MAX_CONFIG, Place};
use keelway_image::{export, import};
use keelway_model::plan::Chain;
use keelway_model::{CacheKey, ImageRef, Node, NodeId, Op, Output, Platform};
use keelway_registry::{Client, Problem};
use keelway_store::{Layer, Store};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::OnceCell;

/// How long a registry may take to say what a cache holds.
const ASK: Duration = Duration::from_secs(10);

/// Where a cache is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CachePlace {
    /// Under a name in a registry.
    Registry(ImageRef),
    /// Under a tag in an OCI layout directory.
    Directory(PathBuf, String),
}

impl fmt::Display for CachePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(name) => write!(f, "{name}"),
            Self::Directory(dir, tag) => write!(f, "{}:{tag}", dir.display()),
        }
    }
}

/// `--cache-to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheTo {
    /// Where to.
    pub place: CachePlace,
    /// All steps of the build, and not only those whose layers are in the image.
    pub max: bool,
}

/// The caches of a build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caches {
    /// `--cache-from`, in the order they are asked.
    pub from: Vec<CachePlace>,
    /// `--cache-to`.
    pub to: Vec<CacheTo>,
}

/// A cache that is read.
struct Source {
    place: CachePlace,
    cache: OnceCell<Cache>,
    /// It stopped to answer, and is not asked any more.
    gone: AtomicBool,
}

/// The caches of a build, and what it must remember for those that are written.
pub(crate) struct Remote {
    sources: Vec<Source>,
    to: Vec<CacheTo>,
    /// Keys of all steps, by their paths; only where a cache is written.
    keys: Mutex<HashMap<Vec<NodeId>, CacheKey>>,
    /// The steps whose layers are in the image.
    kept: Mutex<HashSet<Vec<NodeId>>>,
}

impl Remote {
    pub fn new(caches: Caches) -> Self {
        let source = |place| Source { place, cache: OnceCell::new(), gone: AtomicBool::new(false) };
        Self {
            sources: caches.from.into_iter().map(source).collect(),
            to: caches.to,
            keys: Mutex::default(),
            kept: Mutex::default(),
        }
    }

    /// Reads what the caches hold; each that cannot be read is said.
    pub async fn open(&self, ctx: &Ctx, store: &Store, registry: &Client) {
        for source in &self.sources {
            let cache = source.cache.get_or_init(|| async {
                match read(&source.place, store, &telling(registry, ctx)).await {
                    Ok(Some(cache)) => {
                        ctx.news(format!("cache {}: {} steps", source.place, cache.len())).await;
                        cache
                    }
                    Ok(None) => {
                        ctx.news(format!("cache {}: there is none yet", source.place)).await;
                        Cache::default()
                    }
                    Err(e) => {
                        ctx.notice(format!("cache {}: {e}; going on without it", source.place)).await;
                        Cache::default()
                    }
                }
            });
            cache.await;
        }
    }

    /// Remembers a step for a cache that is written.
    pub fn note(&self, path: &[NodeId], key: &CacheKey, in_image: bool) {
        if self.to.is_empty() {
            return;
        }
        perform::locked(&self.keys).insert(path.to_vec(), key.clone());
        if in_image {
            perform::locked(&self.kept).insert(path.to_vec());
        }
    }

    /// What a step gave elsewhere.
    pub async fn recall(
        &self,
        ctx: &Ctx,
        store: &Store,
        registry: &Client,
        key: &CacheKey,
        below: Chain,
        platform: &Platform,
    ) -> Option<Chain> {
        let known = |s: &&Source| {
            !s.gone.load(Ordering::Relaxed) && s.cache.get().is_some_and(|cache| cache.knows(key))
        };
        let sources: Vec<&Source> = self.sources.iter().filter(known).collect();
        if sources.is_empty() {
            return None;
        }
        let (own, snapshots) = (store.clone(), below.snapshots.clone());
        let ids = blocking(move || cache::diff_ids(&own, &snapshots).map_err(|e| perform::step_failure(&e)));
        let ids = match ids.await {
            Ok(ids) => Arc::new(ids),
            Err(e) => {
                ctx.notice(format!("no cache elsewhere was asked: {}", e.message)).await;
                return None;
            }
        };
        let place = Place::new(key, &ids, platform);
        for source in sources {
            let Some(layer) = source.cache.get().and_then(|cache| cache.get(&place)) else { continue };
            let had = source.fetch(ctx, store, registry, layer).await;
            let (own, below, ids, layer) = (store.clone(), below.clone(), Arc::clone(&ids), layer.clone());
            let chain = match had {
                Ok(()) => {
                    let put = move || {
                        cache::on_top(&own, &below, &ids, &layer).map_err(|e| perform::step_failure(&e))
                    };
                    blocking(put).await.map_err(|e| e.message)
                }
                Err(e) => Err(e),
            };
            match chain {
                Ok(chain) => return Some(chain),
                Err(e) => ctx.notice(format!("cache {}: {e}; the step runs", source.place)).await,
            }
        }
        None
    }
}

impl Source {
    /// The blob of a layer into the store.
    async fn fetch(&self, ctx: &Ctx, store: &Store, registry: &Client, layer: &Layer) -> Result<(), String> {
        let blob = layer.descriptor.clone();
        if store.has_blob(&blob.digest) {
            return Ok(());
        }
        match &self.place {
            CachePlace::Registry(name) => {
                let client = telling(registry, ctx);
                let fetched = client.fetch_blob(store, &name.repository, &blob, &progress(ctx)).await;
                fetched.map_err(|e| {
                    // What is said of one blob is about that one; anything else will be so for the next, too.
                    let of_the_blob = matches!(
                        *e.problem,
                        Problem::NotFound | Problem::WrongDigest { .. } | Problem::WrongSize { .. }
                    );
                    self.gone.fetch_or(!of_the_blob, Ordering::Relaxed);
                    format!("the layer {} cannot be had: {e}", blob.digest.short())
                })
            }
            CachePlace::Directory(dir, _) => {
                let (store, dir, digest) = (store.clone(), dir.clone(), blob.digest);
                let read =
                    move || import::blob(&store, &dir, &blob).map_err(|e| Failure::outside(e.to_string()));
                blocking(read)
                    .await
                    .map_err(|e| format!("the layer {} cannot be had: {}", digest.short(), e.message))
            }
        }
    }
}

/// What a cache holds; `None` where there is none.
async fn read(place: &CachePlace, store: &Store, registry: &Client) -> Result<Option<Cache>, String> {
    let found = match place {
        CachePlace::Registry(name) => tokio::time::timeout(ASK, registry.artifact(name, MAX_CONFIG))
            .await
            .map_err(|_| format!("no answer within {}", keelway_model::format_duration(ASK)))?
            .map_err(|e| e.to_string())?,
        CachePlace::Directory(dir, tag) => {
            let (store, dir, tag) = (store.clone(), dir.clone(), tag.clone());
            let read = move || {
                import::artifact(&store, &dir, &tag, MAX_CONFIG).map_err(|e| Failure::outside(e.to_string()))
            };
            blocking(read).await.map_err(|e| e.message)?
        }
    };
    found.map(|(manifest, config)| Cache::read(&manifest, &config)).transpose()
}

impl Performer {
    /// The chain that a step adds a layer to; none for what is no step with one layer.
    pub(crate) fn stands_on(op: &Op, inputs: &[Output]) -> Option<Chain> {
        match op {
            Op::Exec(_) | Op::Mkdir(_) => perform::chain_of(inputs.first()).ok().cloned(),
            Op::Copy(op) => keelway_image::copy::below(op, inputs).ok(),
            _ => None,
        }
    }

    pub(crate) async fn recalled(
        &self,
        ctx: &Ctx,
        node: &Node,
        key: &CacheKey,
        inputs: &[Output],
        platform: &Platform,
    ) -> Option<Output> {
        let below = Self::stands_on(&node.op, inputs)?;
        self.remote.recall(ctx, self.store(), &self.registry, key, below, platform).await.map(Output::Chain)
    }

    /// Writes the caches that were asked for, when the build is done: a line for each, or why not.
    pub(crate) async fn write_caches(
        &self,
        report: &RunReport,
        platform: &Platform,
    ) -> Vec<Result<String, Failure>> {
        let mut said = Vec::new();
        for to in &self.remote.to {
            let steps = self.steps_of(report, to.max);
            let written = self.write_cache(to, steps, platform).await;
            said.push(written.map_err(|e| {
                Failure::new(e.exit, format!("the cache {} was not written: {}", to.place, e.message))
            }));
        }
        said
    }

    /// The steps of a build with what they gave.
    fn steps_of(&self, report: &RunReport, all: bool) -> Vec<(CacheKey, Chain)> {
        let (keys, kept) = (perform::locked(&self.remote.keys), perform::locked(&self.remote.kept));
        let step = |node: &keelway_engine::NodeReport| match &node.output {
            Some(Output::Chain(chain)) if all || kept.contains(&node.path) => {
                Some((keys.get(&node.path)?.clone(), chain.clone()))
            }
            _ => None,
        };
        report.nodes.iter().filter_map(step).collect()
    }

    async fn write_cache(
        &self,
        to: &CacheTo,
        steps: Vec<(CacheKey, Chain)>,
        platform: &Platform,
    ) -> Result<String, Failure> {
        let (store, platform) = (self.store().clone(), platform.clone());
        let gather = move || {
            let mut cache = Cache::default();
            for (key, chain) in &steps {
                cache.add(&store, key, chain, &platform).map_err(|e| perform::step_failure(&e))?;
            }
            Ok(cache)
        };
        let cache: Cache = blocking(gather).await?;
        let (place, store) = (&to.place, self.store().clone());
        let cache = match place {
            CachePlace::Directory(dir, tag) => {
                let (dir, tag) = (dir.clone(), tag.clone());
                blocking(move || {
                    export::cache(&store, cache, &tag, &dir).map_err(|e| Failure::outside(e.to_string()))
                })
                .await?
            }
            CachePlace::Registry(name) => self.push_cache(name, cache).await?,
        };
        Ok(format!("wrote the cache {place}: {} steps in {} layers", cache.len(), cache.layers().len()))
    }

    async fn push_cache(&self, name: &ImageRef, cache: Cache) -> Result<Cache, Failure> {
        let outside = |e: keelway_registry::RegistryError| Failure::outside(e.to_string());
        // What cannot be read there is replaced.
        let mut earlier = read(&CachePlace::Registry(name.clone()), self.store(), &self.registry)
            .await
            .ok()
            .flatten()
            .unwrap_or_default();
        let digests: Vec<_> = earlier.layers().iter().map(|l| l.descriptor.digest).collect();
        let there = self.registry.present(&name.repository, &digests).await.map_err(outside)?;
        earlier.retain(|layer| there.contains(&layer.descriptor.digest));
        let cache = cache.after(earlier);
        let (store, own) = (self.store().clone(), cache.clone());
        let manifest = blocking(move || own.write(&store).map_err(|e| perform::step_failure(&e))).await?;
        let tags: Vec<_> = name.effective_tag().into_iter().collect();
        let push =
            self.registry.push(self.store(), &manifest, &name.repository, &tags, keelway_registry::silent());
        push.await.map_err(outside)?;
        Ok(cache)
    }
}
