//! Results of steps for other machines: what `--cache-to` writes and `--cache-from` reads.
//!
//! A cache is an OCI manifest whose layers are layers and whose config lists records: "this step on a base of these
//! layers gives that layer". Steps are named without what they stand on, bases by the digests of their plain layers, so a
//! record means the same on every machine. What a record gives is one layer on top of a base that is here already: it is
//! named by its content from then on, as a base image is, and never entered into the store's own index. So whoever
//! writes a cache decides what builds get that name it, and nothing else.
//!
//! Caches come from others: every bound and every digest is checked, and what is not sound is not there.

use crate::assemble::put;
use crate::base::chain_key;
use crate::error::StepError;
use keelway_model::oci::{Descriptor, Extra, Manifest, media};
use keelway_model::plan::Chain;
use keelway_model::{CacheKey, Digest, Platform, SnapshotId, document};
use keelway_store::{Compression, Layer, Store};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// The media type of a cache's config.
pub const CONFIG: &str = "application/vnd.keelway.cache.v1+json";
/// Largest config that is read, in bytes.
pub const MAX_CONFIG: u64 = 8 << 20;
/// Most records and layers of one cache.
const MAX_RECORDS: usize = 10_000;
const MAX_LAYERS: usize = 2_000;
/// How many exports by others a record outlives.
const MAX_AGE: u32 = 100;
/// The form of the config that this reads and writes.
const VERSION: u32 = 1;

/// A step on a base: what a record is found by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The step, whatever it stands on: [`CacheKey::step`].
    step: Digest,
    /// The layers below it.
    base: Digest,
    /// For which platform.
    platform: String,
}

impl Place {
    /// Of a step on a base whose layers are these, lowest first.
    pub fn new(key: &CacheKey, below: &[Digest], platform: &Platform) -> Self {
        Self { step: step(key), base: chain_key(below), platform: platform.to_string() }
    }
}

/// What names a step, whatever it stands on. The key of a link says nothing of a base.
fn step(key: &CacheKey) -> Digest {
    key.step().unwrap_or(key.digest)
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    place: Place,
    /// Which layer.
    layer: usize,
    /// How many exports did without it.
    age: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct Config {
    version: u32,
    /// Digests of the plain layers, in the order of the manifest.
    layers: Vec<Digest>,
    records: Vec<Record>,
}

/// The records of one cache.
#[derive(Debug, Clone, Default)]
pub struct Cache {
    /// The layer and the age of each.
    records: BTreeMap<Place, (Layer, u32)>,
}

impl Cache {
    /// Reads what a manifest and its config say. What is not sound as a whole is refused, with why.
    pub fn read(manifest: &Manifest, config: &[u8]) -> Result<Self, String> {
        if manifest.config.media_type != CONFIG {
            return Err(format!("it is no cache of Keelway's, but {:?}", cut(&manifest.config.media_type)));
        }
        let config: Config =
            serde_json::from_slice(config).map_err(|e| format!("its list of records is damaged: {e}"))?;
        if config.version != VERSION {
            return Err(format!("its form {} is not known to this Keelway", config.version));
        }
        if config.layers.len() != manifest.layers.len()
            || config.layers.len() > MAX_LAYERS
            || config.records.len() > MAX_RECORDS
        {
            return Err("its numbers of layers and records cannot be".into());
        }
        let mut layers = Vec::with_capacity(config.layers.len());
        for (descriptor, diff_id) in manifest.layers.iter().zip(config.layers) {
            if document::is_foreign(descriptor) || Compression::of_media_type(&descriptor.media_type).is_err()
            {
                return Err(format!("its layer {} is of no kind that is read", descriptor.digest));
            }
            let plain = Descriptor::new(&descriptor.media_type, descriptor.digest, descriptor.size);
            layers.push(Layer { diff_id, descriptor: plain });
        }
        let mut records = BTreeMap::new();
        for record in config.records {
            let layer = layers.get(record.layer).ok_or("a record names a layer that is not there")?;
            records.insert(record.place, (layer.clone(), record.age));
        }
        Ok(Self { records })
    }

    /// Whether the step is known on any base.
    pub fn knows(&self, key: &CacheKey) -> bool {
        let step = step(key);
        self.records.keys().any(|place| place.step == step)
    }
    /// What a step gave.
    pub fn get(&self, place: &Place) -> Option<&Layer> {
        self.records.get(place).map(|(layer, _)| layer)
    }
    /// How many records there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
    /// Its layers, each once.
    pub fn layers(&self) -> Vec<Layer> {
        let all: HashMap<Digest, &Layer> =
            self.records.values().map(|(layer, _)| (layer.descriptor.digest, layer)).collect();
        let mut all: Vec<Layer> = all.into_values().cloned().collect();
        all.sort_by_key(|l| l.descriptor.digest);
        all
    }

    /// Enters what a step gave: the layer on top of its chain.
    pub fn add(
        &mut self,
        store: &Store,
        key: &CacheKey,
        chain: &Chain,
        platform: &Platform,
    ) -> Result<(), StepError> {
        let Some((top, below)) = chain.snapshots.split_last() else { return Ok(()) };
        let place = Place::new(key, &diff_ids(store, below)?, platform);
        let layer = store.layer_of(top, Compression::Gzip)?;
        self.records.insert(place, (layer, 0));
        Ok(())
    }

    /// This one, with what an earlier one of the same place has and this has not: other branches feed the place, too.
    /// Records that nobody has used for long go, and the oldest of too many.
    #[must_use]
    pub fn after(mut self, earlier: Self) -> Self {
        for (place, (layer, age)) in earlier.records {
            let age = age.saturating_add(1);
            if age <= MAX_AGE {
                self.records.entry(place).or_insert((layer, age));
            }
        }
        let mut ages: Vec<(u32, Place)> =
            self.records.iter().map(|(p, (_, age))| (*age, p.clone())).collect();
        ages.sort();
        let mut layers = HashMap::new();
        for (at, (_, place)) in ages.iter().enumerate() {
            let layer = self.records.get(place).map(|(layer, _)| layer.descriptor.digest);
            layers.insert(layer, ());
            if at >= MAX_RECORDS || layers.len() > MAX_LAYERS {
                self.records.remove(place);
            }
        }
        self
    }

    /// Without the records of layers that are not there.
    pub fn retain(&mut self, there: impl Fn(&Layer) -> bool) {
        self.records.retain(|_, (layer, _)| there(layer));
    }

    /// Writes config and manifest into the store. Equal caches give equal bytes.
    pub fn write(&self, store: &Store) -> Result<Descriptor, StepError> {
        let layers = self.layers();
        let index: HashMap<Digest, usize> =
            layers.iter().enumerate().map(|(i, l)| (l.descriptor.digest, i)).collect();
        let record = |(place, (layer, age)): (&Place, &(Layer, u32))| Record {
            place: place.clone(),
            layer: index[&layer.descriptor.digest],
            age: *age,
        };
        let config = Config {
            version: VERSION,
            layers: layers.iter().map(|l| l.diff_id).collect(),
            records: self.records.iter().map(record).collect(),
        };
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media::MANIFEST.to_owned()),
            config: put(store, CONFIG, &config)?,
            layers: layers.into_iter().map(|l| l.descriptor).collect(),
            annotations: BTreeMap::new(),
            extra: Extra::new(),
        };
        put(store, media::MANIFEST, &manifest)
    }
}

/// What names the layers of a chain everywhere; those of steps are made where they were not yet.
pub fn diff_ids(store: &Store, snapshots: &[SnapshotId]) -> Result<Vec<Digest>, StepError> {
    let one = |id: &SnapshotId| match store.snapshot_meta(id)?.diff_id {
        Some(known) => Ok(known),
        None => Ok(store.layer_of(id, Compression::Gzip)?.diff_id),
    };
    snapshots.iter().map(one).collect()
}

/// A layer whose blob is in the store, on top of a chain. Its key is that of its content, like a base's.
pub fn on_top(store: &Store, below: &Chain, ids: &[Digest], layer: &Layer) -> Result<Chain, StepError> {
    let snapshot = store.unpack(&layer.descriptor, &layer.diff_id)?;
    let mut snapshots = below.snapshots.clone();
    snapshots.push(snapshot);
    Ok(Chain { snapshots, key: chain_key(&[ids, &[layer.diff_id]].concat()) })
}

fn cut(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests;
