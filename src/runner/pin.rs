//! What image references mean, asked once a run: every stage of a run sees the same image under the same name.
//!
//! A tag that came from a registry is asked for again in each run, because it may have moved; where the registry does
//! not answer, what the store has is used, and that is said. A name that was given on this machine (`image load`,
//! `image build -t`) means what the store says: no registry knows better.

use crate::perform::progress;
use crate::{blocking, lower};
use keelway_engine::{Ctx, Failure};
use keelway_image::PinnedBase;
use keelway_model::{ImageRef, Platform};
use keelway_store::{Origin, Store};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::OnceCell;

/// How long a registry may take to say what a tag means that the store knows, too.
const ASK: Duration = Duration::from_secs(10);

type Cell = Arc<OnceCell<PinnedBase>>;

/// The answers of one run.
pub(crate) struct Pins {
    /// Whether only the registry's answer counts.
    pull: bool,
    cells: Mutex<HashMap<(ImageRef, Platform), Cell>>,
}

impl Pins {
    /// Nothing was asked yet. With `pull` a registry must answer, whatever the store has.
    pub fn new(pull: bool) -> Self {
        Self { pull, cells: Mutex::default() }
    }

    /// What `name` means for a platform. Its manifest and config are in the store then, not always its layers.
    pub async fn pin(
        &self,
        ctx: &Ctx,
        store: &Store,
        registry: &keelway_registry::Client,
        name: &ImageRef,
        platform: &Platform,
    ) -> Result<PinnedBase, Failure> {
        let cell = {
            // Each change is one insertion, so a panic elsewhere leaves nothing half done.
            let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(cells.entry((name.clone(), platform.clone())).or_default())
        };
        cell.get_or_try_init(|| ask(ctx, store, registry, name, platform, self.pull)).await.cloned()
    }
}

async fn ask(
    ctx: &Ctx,
    store: &Store,
    registry: &keelway_registry::Client,
    name: &ImageRef,
    platform: &Platform,
    pull: bool,
) -> Result<PinnedBase, Failure> {
    let known = known(store, name, platform).await?.filter(|_| !pull || name.digest.is_some());
    let from_store = |base: &PinnedBase| format!("{name}@{} (from the store", base.descriptor.digest);
    match known {
        // A digest never means anything else.
        Some((base, _)) if name.digest.is_some() => Ok(base),
        Some((base, Origin::Local)) => {
            ctx.news(from_store(&base) + ")").await;
            Ok(base)
        }
        Some((base, Origin::Registry)) => {
            let asked = registry.fetch_image(store, name, platform, progress(ctx));
            let why = match tokio::time::timeout(ASK, asked).await {
                Ok(Ok(found)) => {
                    let (old, new) = (base.descriptor.digest, found.descriptor.digest);
                    if old != new {
                        ctx.news(format!("{name} has moved from {old} to {new}")).await;
                    }
                    return Ok(PinnedBase { descriptor: found.descriptor, config: found.config });
                }
                Ok(Err(e)) => e.to_string(),
                Err(_) => format!("no answer within {}", keelway_model::format_duration(ASK)),
            };
            ctx.notice(from_store(&base) + &format!("; whether it has moved is not known: {why})")).await;
            Ok(base)
        }
        None => {
            // The registry's own messages name registry and repository.
            let found = registry.fetch_image(store, name, platform, progress(ctx)).await;
            let found = found.map_err(|e| Failure::outside(e.to_string()))?;
            Ok(PinnedBase { descriptor: found.descriptor, config: found.config })
        }
    }
}

/// What the store has under a name, for this platform, and where it had that from.
async fn known(
    store: &Store,
    name: &ImageRef,
    platform: &Platform,
) -> Result<Option<(PinnedBase, Origin)>, Failure> {
    let (store, name, platform) = (store.clone(), name.clone(), platform.clone());
    blocking(move || {
        let found = store.reference_with_origin(&name);
        let Some((descriptor, origin)) = found.map_err(|e| Failure::outside(format!("{name}: {e}")))? else {
            return Ok(None);
        };
        let config = lower::config_of(&store, &descriptor)?.1;
        Ok(platform.accepts(&config.platform).then_some((PinnedBase { descriptor, config }, origin)))
    })
    .await
}
