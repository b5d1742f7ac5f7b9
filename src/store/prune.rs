//! Collection: what nothing needs goes, the least recently used first, until the store is small enough.
//!
//! First a plan, which can be shown, then the doing of it. [`plan`] is a function of a count of the store and of what
//! must stay; it touches nothing. Applying it takes things away a few at a time, each few while nobody takes holds
//! (see [`crate::hold`]) and after what must stay was looked at again: what has come into use since the plan was made stays.
//! What is taken away goes by a rename into the trash, records before what they name; so a kill at any moment
//! leaves a store that is right, and a process that was quicker finds a miss.
//!
//! What must stay: what living processes hold, images that have a name, images that the caller says are needed (for
//! containers and deployments), and what these stand on. A name by digest keeps nothing: it says no more than the digest
//! does, and what a deployment needs of it the deployment says itself.

use crate::census::{Census, Documents, Mass, Name, User};
use crate::error::StoreError;
use crate::hold::{Held, Thing, held};
use crate::open::Store;
use keelway_model::{Digest, Timestamp};
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

mod apply;
#[cfg(test)]
pub(crate) mod tests;

pub use apply::{Collected, Limits, NeedsFn, PruneError, Space};

/// An image that somebody needs who does not hold it at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// Its manifest.
    pub manifest: Digest,
    /// Who, for people: `container web`.
    pub who: String,
}

/// Why something stays.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// A process that runs now uses it.
    Running,
    /// Somebody needs it who is not running: a container, a deployment.
    Needed(String),
    /// It belongs to an image that has a name.
    Named,
    /// There is room for it.
    Room,
    /// The store's own books.
    Books,
}

/// What a collection shall come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aim {
    /// Bytes that the store may take afterwards.
    pub keep: u64,
    /// Only what was not used for so long.
    pub unused_for: Duration,
    /// Names of images, too, that nothing needs.
    pub names: bool,
}

impl Aim {
    /// Whether this name alone keeps nothing.
    fn is_soft(&self, name: &Name) -> bool {
        self.names || name.name.digest.is_some()
    }
}

/// What is removed, for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removal {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Bytes that it takes, with the records that go with it.
    pub bytes: u64,
    /// When it was used last, by itself or by what needs it.
    pub used: Timestamp,
}

/// Kinds of what is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Files that a step wrote, or an unpacked layer.
    Snapshot,
    /// A packed layer, or a document of an image.
    Blob,
    /// What a `RUN --mount=type=cache` keeps; named by its id.
    Mount,
    /// A record of the step cache.
    Record,
    /// The name of an image.
    Name,
}

/// Some of what stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remaining {
    /// For what reason.
    pub why: Why,
    /// How many things.
    pub count: usize,
    /// Bytes.
    pub bytes: u64,
}

/// What would be removed, in order, and what would stay.
#[derive(Debug)]
pub struct Plan {
    /// Bytes that the store takes now.
    pub before: u64,
    /// Bytes that it would take then.
    pub after: u64,
    /// The aim that it was made for.
    pub aim: Aim,
    pub(crate) steps: Vec<Step>,
    /// The names that were counted: file and inode.
    pub(crate) names: HashSet<(PathBuf, u64)>,
    /// Why what stays does, by reason.
    pub remaining: Vec<Remaining>,
}

/// One removal.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) target: Target,
    pub(crate) shown: Removal,
    /// Records that are of no use without it, and names; they go first.
    pub(crate) users: Vec<PathBuf>,
}

/// What goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// A thing, as it was counted.
    Thing(Thing, Mass),
    /// A small file that stands for itself, as it was counted.
    File(PathBuf, Mass),
    /// A record that names what is not here.
    Dead(PathBuf, Thing),
}

impl Plan {
    /// What would be removed, in order.
    pub fn removals(&self) -> impl Iterator<Item = &Removal> {
        self.steps.iter().map(|s| &s.shown)
    }
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

/// What must stay, and why.
#[derive(Debug, Default)]
pub(crate) struct Pins(HashMap<Thing, Why>);

impl Pins {
    /// The first reason counts.
    fn add(&mut self, things: impl IntoIterator<Item = Thing>, why: &Why) {
        for thing in things {
            self.0.entry(thing).or_insert_with(|| why.clone());
        }
    }
    pub(crate) fn has(&self, thing: &Thing) -> bool {
        self.0.contains_key(thing)
    }

    /// Adds what the pinned snapshots stand on: below them in the chain that they are the top of, and the blobs without
    /// which they are of no use.
    fn close(&mut self, census: &Census) {
        for record in &census.records {
            if let Some((top, below)) = chain_of(record).split_last()
                && let Some(why) = self.0.get(*top).cloned()
            {
                self.add(below.iter().map(|t| (*t).clone()), &why);
            }
        }
        let snapshots: Vec<_> = self.0.iter().map(|(t, w)| (t.clone(), w.clone())).collect();
        for (thing, why) in snapshots {
            if let Thing::Snapshot(id) = &thing
                && let Some(item) = census.snapshots.get(id)
            {
                self.add(item.needs.iter().map(|d| Thing::Blob(*d)), &why);
            }
        }
    }
}

/// The snapshots of a record, lowest first.
fn chain_of(record: &User) -> Vec<&Thing> {
    record.things.iter().filter(|t| matches!(t, Thing::Snapshot(_))).collect()
}

/// What must stay of what was counted.
pub(crate) fn pins(
    store: &Store,
    census: &Census,
    documents: &mut Documents,
    held: &Held,
    needs: &[Need],
    soft: &dyn Fn(&Name) -> bool,
) -> Pins {
    let mut out = Pins::default();
    for thing in &held.things {
        out.add([thing.clone()], &Why::Running);
        // Who holds a manifest is about to use the image.
        if let Thing::Blob(digest) = thing {
            out.add(documents.image(store, digest), &Why::Running);
        }
    }
    for need in needs {
        let why = Why::Needed(need.who.clone());
        out.add(documents.image(store, &need.manifest), &why);
        // Unpacked, so that it can be started again when there is no room to unpack.
        out.add(documents.unpacked(store, &need.manifest), &why);
    }
    for name in census.names.iter().filter(|n| !soft(n)) {
        out.add(name.user.things.iter().cloned(), &Why::Named);
    }
    out.close(census);
    out
}

/// In which order things go: by their last use, and of the same age what nothing stands on first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    used: Timestamp,
    class: u8,
    depth: Reverse<usize>,
}

/// Decides what goes.
pub(crate) fn plan(census: &Census, pins: &Pins, aim: Aim, now: Timestamp) -> Plan {
    let before = census.total();
    let mut remaining = before;
    let here = |thing: &Thing| census.mass(thing).is_some();
    let mut steps = Vec::new();

    // Records of what is gone are of no use to anybody.
    let (mut alive, mut dead) = (Vec::new(), Vec::new());
    for record in &census.records {
        match record.things.iter().find(|t| !here(t)) {
            Some(missing) => dead.push((record, missing)),
            None => alive.push((record, Kind::Record)),
        }
    }
    for (record, missing) in dead {
        remaining = remaining.saturating_sub(record.mass.size);
        let shown = shown(Kind::Record, &record.path, record.mass);
        steps.push(Step {
            target: Target::Dead(record.path.clone(), missing.clone()),
            shown,
            users: Vec::new(),
        });
    }
    let names: HashMap<&PathBuf, String> =
        census.names.iter().map(|n| (&n.user.path, n.name.to_string())).collect();
    alive.extend(census.names.iter().filter(|n| aim.is_soft(n)).map(|n| (&n.user, Kind::Name)));

    // A thing is as young as the youngest that needs it.
    let mut used: HashMap<Thing, Timestamp> = HashMap::new();
    let mut depth: HashMap<&Thing, usize> = HashMap::new();
    let mut users: HashMap<&Thing, Vec<usize>> = HashMap::new();
    let mut raise = |thing: Thing, at: Timestamp| {
        let known = used.entry(thing).or_insert(at);
        *known = (*known).max(at);
    };
    for (index, (user, kind)) in alive.iter().enumerate() {
        for thing in &user.things {
            raise(thing.clone(), user.mass.used);
            users.entry(thing).or_default().push(index);
        }
        if *kind == Kind::Record {
            for (position, thing) in chain_of(user).into_iter().enumerate() {
                let known = depth.entry(thing).or_insert(position);
                *known = (*known).min(position);
            }
        }
    }
    for (id, item) in &census.snapshots {
        raise(Thing::Snapshot(id.clone()), item.mass.used);
    }
    for (digest, mass) in &census.blobs {
        raise(Thing::Blob(*digest), mass.used);
    }
    for (name, (mass, _)) in &census.mounts {
        raise(Thing::Mount(name.clone()), mass.used);
    }
    for (id, item) in &census.snapshots {
        let at = used.get(&Thing::Snapshot(id.clone())).copied().unwrap_or(item.mass.used);
        for blob in &item.needs {
            let known = used.entry(Thing::Blob(*blob)).or_insert(at);
            *known = (*known).max(at);
        }
    }

    let mut order: Vec<(Rank, Target)> = Vec::new();
    for (thing, at) in &used {
        let (Some(mass), false) = (census.mass(thing), pins.has(thing)) else { continue };
        let class = if matches!(thing, Thing::Blob(_)) { 2 } else { 1 };
        let depth = Reverse(depth.get(thing).copied().unwrap_or(0));
        order.push((Rank { used: *at, class, depth }, Target::Thing(thing.clone(), mass)));
    }
    let alone =
        alive.iter().filter(|(u, kind)| u.things.is_empty() && *kind == Kind::Record).map(|(u, _)| *u);
    for file in alone.chain(&census.last) {
        let rank = Rank { used: file.mass.used, class: 0, depth: Reverse(0) };
        order.push((rank, Target::File(file.path.clone(), file.mass)));
    }
    order.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| name_of(&a.1).cmp(&name_of(&b.1))));

    let unused = i64::try_from(aim.unused_for.as_millis()).unwrap_or(i64::MAX);
    let since = Timestamp(now.0.saturating_sub(unused));
    let mut gone: HashSet<usize> = HashSet::new();
    let mut removed: HashSet<Thing> = HashSet::new();
    for (rank, target) in order {
        if remaining <= aim.keep || (unused > 0 && rank.used > since) {
            break;
        }
        let (mass, kind) = match &target {
            Target::Thing(thing @ Thing::Snapshot(_), mass) => (*mass, (Kind::Snapshot, Some(thing))),
            Target::Thing(thing @ Thing::Blob(_), mass) => (*mass, (Kind::Blob, Some(thing))),
            Target::Thing(thing @ Thing::Mount(_), mass) => (*mass, (Kind::Mount, Some(thing))),
            Target::File(_, mass) => (*mass, (Kind::Record, None)),
            Target::Dead(..) => continue,
        };
        let mut bytes = mass.size;
        let mut paths = Vec::new();
        for &index in kind.1.and_then(|t| users.get(t)).into_iter().flatten() {
            if !gone.insert(index) {
                continue;
            }
            let (user, what) = &alive[index];
            bytes = bytes.saturating_add(user.mass.size);
            paths.push(user.path.clone());
            if *what == Kind::Name
                && let Some(name) = names.get(&user.path)
            {
                let shown = Removal { kind: Kind::Name, name: name.clone(), bytes: 0, used: rank.used };
                let target = Target::File(user.path.clone(), user.mass);
                steps.push(Step { target, shown, users: Vec::new() });
                paths.pop();
            }
        }
        remaining = remaining.saturating_sub(bytes);
        removed.extend(kind.1.cloned());
        let id = match &target {
            Target::Thing(Thing::Mount(name), _) => census.mounts.get(name).map(|(_, id)| id.clone()),
            _ => None,
        };
        let name = id.unwrap_or_else(|| name_of(&target));
        let shown = Removal { kind: kind.0, name, bytes, used: rank.used };
        steps.push(Step { target, shown, users: paths });
    }
    let remains = remains(census, pins, &removed, &used, remaining);
    let names = census.names.iter().map(|n| (n.user.path.clone(), n.inode)).collect();
    Plan { before, after: remaining, aim, steps, names, remaining: remains }
}

fn shown(kind: Kind, path: &std::path::Path, mass: Mass) -> Removal {
    let name = crate::census::file_name(path).to_owned();
    Removal { kind, name, bytes: mass.size, used: mass.used }
}

fn name_of(target: &Target) -> String {
    match target {
        Target::Thing(Thing::Snapshot(id), _) => id.to_string(),
        Target::Thing(Thing::Blob(digest), _) => digest.to_string(),
        Target::Thing(Thing::Mount(name), _) => name.clone(),
        Target::File(path, _) | Target::Dead(path, _) => crate::census::file_name(path).to_owned(),
    }
}

/// What stays, by reason.
fn remains(
    census: &Census,
    pins: &Pins,
    removed: &HashSet<Thing>,
    all: &HashMap<Thing, Timestamp>,
    total: u64,
) -> Vec<Remaining> {
    let mut by: BTreeMap<Why, (usize, u64)> = BTreeMap::new();
    let mut things = 0u64;
    for thing in all.keys().filter(|t| !removed.contains(*t)) {
        let Some(mass) = census.mass(thing) else { continue };
        let entry = by.entry(pins.0.get(thing).cloned().unwrap_or(Why::Room)).or_default();
        *entry = (entry.0 + 1, entry.1.saturating_add(mass.size));
        things = things.saturating_add(mass.size);
    }
    let books = by.entry(Why::Books).or_default();
    *books = (1, total.saturating_sub(things));
    by.into_iter().map(|(why, (count, bytes))| Remaining { why, count, bytes }).collect()
}

impl Store {
    /// Decides what would go; `aim` is given the bytes that the store takes. Holds nothing and changes nothing.
    pub fn prune_plan(&self, aim: impl FnOnce(u64) -> Aim, needs: &[Need]) -> Result<Plan, StoreError> {
        let mut documents = Documents::default();
        let held = held(self.path())?;
        let census = self.census(&mut documents, None)?.unwrap_or_default();
        let aim = aim(census.total());
        let pins = pins(self, &census, &mut documents, &held, needs, &|n| aim.is_soft(n));
        Ok(plan(&census, &pins, aim, self.inner.clock.now()))
    }
}
