//! Plans over random counts, collections of real stores, and processes that build and collect at once.

use super::*;
use crate::Store;
use crate::census::SnapshotItem;
use crate::tests::{open, rig, snapshot, write};
use crate::used::set_last_use;
use keelway_model::oci::{Descriptor, ImageConfig, Manifest, media};
use keelway_model::plan::Chain;
use keelway_model::{CacheKey, ImageRef, KeyPart, Output, SnapshotId};
use proptest::prelude::*;
use std::path::Path;
use std::time::Instant;

mod mounts;
mod processes;

const DAY: i64 = 86_400_000;

fn far() -> Instant {
    Instant::now() + Duration::from_secs(120)
}

fn nobody() -> Result<Vec<Need>, String> {
    Ok(Vec::new())
}

fn aim(keep: u64) -> Aim {
    Aim { keep, unused_for: Duration::ZERO, names: false }
}

fn snapshot_id(n: usize) -> SnapshotId {
    format!("s-{n:024}").parse().unwrap()
}
fn digest(n: usize) -> Digest {
    Digest::of(&n.to_le_bytes())
}

/// A count of a store that never was: chains that branch, outputs of steps, unpacked layers with their blobs.
fn random_census() -> impl Strategy<Value = (Census, Vec<Thing>)> {
    let part = (any::<proptest::sample::Index>(), 0u64..50, 0i64..40, 0u8..8, any::<bool>());
    (proptest::collection::vec(part, 1..40), 0i64..40).prop_map(|(parts, age)| {
        let mut census = Census { other: 7, ..Census::default() };
        let mut pinned = Vec::new();
        let mut chains: Vec<Vec<SnapshotId>> = vec![Vec::new()];
        for (n, (below, size, used, what, pin)) in parts.into_iter().enumerate() {
            let mass = Mass { size, used: Timestamp(used * DAY) };
            let mut needs = Vec::new();
            if what == 0 {
                census.blobs.insert(digest(n), Mass { size, used: Timestamp(age * DAY) });
                needs.push(digest(n));
            }
            census.snapshots.insert(snapshot_id(n), SnapshotItem { mass, needs });
            let mut chain = below.get(&chains).clone();
            chain.push(snapshot_id(n));
            let mut things: Vec<Thing> = chain.iter().cloned().map(Thing::Snapshot).collect();
            if pin && what == 1 {
                pinned.extend(things.iter().cloned());
            }
            match what {
                2 => things.push(Thing::Snapshot(snapshot_id(1000 + n))),
                3 => things.clear(),
                _ => {}
            }
            // Some outputs were never recorded.
            if what != 4 {
                let path = PathBuf::from(format!("k{n}"));
                let mass = Mass { size: 4, used: Timestamp((used + age) / 2 * DAY) };
                census.records.push(User { path, mass, things });
            }
            chains.push(chain);
        }
        (census, pinned)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_is_small_enough_and_takes_nothing_that_is_needed(
        (census, pinned) in random_census(),
        keep in 0u64..900,
        unused in proptest::option::of(0u64..40),
    ) {
        let mut pins = Pins::default();
        pins.add(pinned, &Why::Running);
        pins.close(&census);
        let now = Timestamp(40 * DAY);
        let unused_for = Duration::from_secs(unused.unwrap_or(0) * 86_400);
        let plan = plan(&census, &pins, Aim { keep, unused_for, names: false }, now);

        let removed: HashSet<Thing> = plan.steps.iter().filter_map(|s| match &s.target {
            Target::Thing(thing, _) => Some(thing.clone()),
            _ => None,
        }).collect();
        let gone: HashSet<PathBuf> = plan.steps.iter().flat_map(|s| {
            let own = match &s.target { Target::File(p, _) | Target::Dead(p, _) => Some(p.clone()), Target::Thing(..) => None };
            s.users.iter().cloned().chain(own)
        }).collect();
        // Nothing that is pinned, and nothing twice.
        prop_assert!(removed.iter().all(|t| !pins.has(t)));
        let things = plan.steps.iter().filter(|s| matches!(s.target, Target::Thing(..))).count();
        prop_assert_eq!(things, removed.len());
        // The sum is right.
        let bytes: u64 = plan.removals().map(|r| r.bytes).sum();
        prop_assert_eq!(plan.before, census.total());
        prop_assert_eq!(plan.after, plan.before - bytes);
        prop_assert_eq!(plan.remaining.iter().map(|r| r.bytes).sum::<u64>(), plan.after);
        // A record that stays finds all that it names; and no snapshot stays without the blob that it needs.
        for record in census.records.iter().filter(|r| !gone.contains(&r.path)) {
            prop_assert!(record.things.iter().all(|t| census.mass(t).is_some() && !removed.contains(t)));
        }
        for (id, item) in &census.snapshots {
            let stays = !removed.contains(&Thing::Snapshot(id.clone()));
            prop_assert!(!stays || item.needs.iter().all(|b| !removed.contains(&Thing::Blob(*b))));
        }
        // Small enough, wherever that can be: else everything that may go went.
        let all = census.snapshots.keys().cloned().map(Thing::Snapshot).chain(census.blobs.keys().copied().map(Thing::Blob));
        let left = all.filter(|t| !removed.contains(t) && !pins.has(t)).count();
        let recorded = census.records.iter().filter(|r| r.things.is_empty() && !gone.contains(&r.path)).count();
        if unused.is_none_or(|d| d == 0) {
            prop_assert!(plan.after <= keep || left + recorded == 0, "{} above {}, {} left", plan.after, keep, left);
        }
        // No more than needed: without the last removal it would not have been enough.
        if let Some(last) = plan.steps.iter().rev().find(|s| !matches!(s.target, Target::Dead(..))) {
            prop_assert!(plan.after + last.shown.bytes > keep);
        }
        // The oldest first; and nothing younger than was asked for.
        let ages: Vec<Timestamp> = plan.steps.iter().filter(|s| !matches!(s.target, Target::Dead(..))).map(|s| s.shown.used).collect();
        prop_assert!(ages.is_sorted());
        if let Some(days) = unused.filter(|d| *d > 0) {
            let limit = Timestamp(now.0 - i64::try_from(days).unwrap() * DAY);
            prop_assert!(ages.iter().all(|at| *at <= limit));
        }
    }
}

#[test]
fn leaves_go_before_what_they_stand_on() {
    let mut census = Census::default();
    let mass = Mass { size: 10, used: Timestamp(DAY) };
    for n in 0..3 {
        census.snapshots.insert(snapshot_id(n), SnapshotItem { mass, needs: Vec::new() });
        let things = (0..=n).map(|i| Thing::Snapshot(snapshot_id(i))).collect();
        census.records.push(User { path: format!("k{n}").into(), mass, things });
    }
    // Only the lowest was looked at lately; what stands on it is old.
    census.snapshots.get_mut(&snapshot_id(0)).unwrap().mass.used = Timestamp(9 * DAY);
    let names = |keep| -> Vec<String> {
        let plan = plan(&census, &Pins::default(), aim(keep), Timestamp(10 * DAY));
        plan.removals().map(|r| r.name.clone()).collect()
    };
    assert_eq!(names(60), Vec::<String>::new());
    assert_eq!(names(40), [snapshot_id(2).to_string()]);
    assert_eq!(names(0), [2, 1, 0].map(|n| snapshot_id(n).to_string()));
    // The top was used a moment ago: then all that it stands on was.
    census.records[2].mass.used = Timestamp(9 * DAY);
    let plan = plan(
        &census,
        &Pins::default(),
        Aim { unused_for: Duration::from_secs(86_400 * 5), ..aim(0) },
        Timestamp(10 * DAY),
    );
    assert!(plan.is_empty());
}

pub(crate) fn key(n: usize) -> CacheKey {
    CacheKey::new(digest(n), vec![(KeyPart::Command, digest(n))])
}

/// A step on a chain: a snapshot of some size, recorded.
pub(crate) fn step(store: &Store, below: &[SnapshotId], n: usize) -> Vec<SnapshotId> {
    let id = snapshot(store, |r| write(r, "data", &vec![n as u8; 20_000]));
    let snapshots: Vec<SnapshotId> = below.iter().cloned().chain([id]).collect();
    let output = Output::Chain(Chain { snapshots: snapshots.clone(), key: digest(n) });
    store.cache_put(&key(n), &output).unwrap();
    snapshots
}

/// An image over a chain, every layer of it.
pub(crate) fn image(store: &Store, chain: &[SnapshotId]) -> Descriptor {
    let mut config = ImageConfig::scratch(keelway_model::Platform::host());
    let layers: Vec<_> =
        chain.iter().map(|id| store.layer_of(id, crate::Compression::Gzip).unwrap()).collect();
    config.rootfs.diff_ids = layers.iter().map(|l| l.diff_id).collect();
    let config = serde_json::to_vec(&config).unwrap();
    let manifest = Manifest {
        schema_version: 2,
        media_type: None,
        config: Descriptor::new(media::CONFIG, store.put_blob(&config).unwrap(), config.len() as u64),
        layers: layers.into_iter().map(|l| l.descriptor).collect(),
        annotations: BTreeMap::new(),
        extra: BTreeMap::new(),
    };
    let bytes = serde_json::to_vec(&manifest).unwrap();
    Descriptor::new(media::MANIFEST, store.put_blob(&bytes).unwrap(), bytes.len() as u64)
}

/// Whether all of an image is here, without a hold.
fn is_whole(store: &Store, manifest: &Digest) -> bool {
    let things = Documents::default().image(store, manifest);
    things.len() > 1
        && things.iter().all(|t| match t {
            Thing::Blob(d) => store.blob_is_there(d),
            Thing::Snapshot(id) => store.snapshot_path(id).exists(),
            Thing::Mount(_) => false,
        })
}

fn there(store: &Store, chain: &[SnapshotId]) -> usize {
    chain.iter().filter(|id| store.snapshot_path(id).exists()).count()
}

/// Everything looks as if it had been used this many days ago.
fn aged(store: &Store, days: i64) {
    let at = Timestamp(store.inner.clock.now().0 - days * DAY);
    let mut stack = vec![store.path().to_path_buf()];
    while let Some(dir) = stack.pop() {
        for path in crate::census::listed(&dir).unwrap() {
            match path.is_dir() {
                true if path.ends_with("runs") || path.ends_with("trash") => {}
                true => stack.push(path),
                false => set_last_use(&path, at).unwrap(),
            }
        }
    }
}

fn collected(store: &Store, aim: Aim, needs: &[Need]) -> Collected {
    let plan = store.prune_plan(|_| aim, needs).unwrap();
    let done = store.prune(&plan, &|| Ok(needs.to_vec()), far()).unwrap();
    assert!(done.finished);
    done
}

#[test]
fn what_is_held_named_or_needed_stays() {
    let (_dir, builder) = rig();
    let other = open(builder.path());
    let (held, named, needed, loose) =
        (step(&builder, &[], 1), step(&builder, &[], 2), step(&builder, &[], 3), step(&builder, &[], 4));
    let held = step(&builder, &held, 5);
    let name: ImageRef = "r.example.com/a:1".parse().unwrap();
    let by_digest: ImageRef = format!("r.example.com/a@{}", Digest::of(b"x")).parse().unwrap();
    let (named, needed) = (image(&builder, &named), image(&builder, &needed));
    let digest_only = image(&builder, &loose);
    builder.set_reference(&name, &named).unwrap();
    builder.set_reference(&by_digest, &digest_only).unwrap();
    let path = builder.path().to_path_buf();

    // All of it is held by who made it.
    collected(&other, aim(0), &[]);
    assert_eq!((there(&other, &held), there(&other, &loose)), (2, 1));
    drop(builder);
    let session = other.session().unwrap();
    let output = session.cache_get(&key(5)).unwrap();
    let need = [Need { manifest: needed.digest, who: "container web".into() }];
    let plan = other.prune_plan(|_| aim(0), &need).unwrap();
    let why: Vec<&Why> = plan.remaining.iter().map(|r| &r.why).collect();
    assert_eq!(why, [&Why::Running, &Why::Needed("container web".into()), &Why::Named, &Why::Books]);
    let done = collected(&other, aim(0), &need);
    assert!(done.bytes >= 3 * 20_000 && done.spared == 0, "{done:?}");
    assert_eq!(there(&other, &held), 2);
    assert_eq!(session.cache_get(&key(5)), Some(output));
    assert_eq!(there(&other, &loose), 0);
    assert_eq!(other.reference(&by_digest).unwrap(), None);
    assert!(is_whole(&other, &named.digest) && is_whole(&other, &needed.digest));
    drop(session);
    // Nothing is held any more, but by us: we have looked one name up.
    drop(other);
    let other = open(&path);
    let all = Aim { names: true, ..aim(0) };
    collected(&other, all, &need);
    assert!(is_whole(&other, &needed.digest) && !is_whole(&other, &named.digest));
    assert_eq!(other.references().unwrap(), []);
    assert_eq!(other.broken_references().unwrap(), []);
    assert!(other.empty_trash(Duration::from_secs(60)).unwrap());
}

#[test]
fn what_comes_into_use_after_the_plan_stays() {
    let (_dir, store) = rig();
    let path = store.path().to_path_buf();
    let chain = step(&store, &[], 1);
    let gone = step(&store, &[], 2);
    let name: ImageRef = "r.example.com/a:1".parse().unwrap();
    let made = image(&store, &chain);
    store.set_reference(&name, &made).unwrap();
    drop(store);
    let collector = open(&path);
    aged(&collector, 30);
    let plan = collector.prune_plan(|_| Aim { names: true, ..aim(0) }, &[]).unwrap();
    let builder = open(&path);
    assert!(builder.cache_get(&key(1)).is_some());
    builder.set_reference(&name, &made).unwrap();
    drop(builder);
    let done = collector.prune(&plan, &nobody, far()).unwrap();
    assert!(done.finished && done.spared > 0, "{done:?}");
    assert!(is_whole(&collector, &made.digest));
    assert_eq!(there(&collector, &gone), 0);
    assert!(open(&path).cache_get(&key(1)).is_some(), "used a moment ago");
    // What must stay cannot be told: nothing goes.
    let plan = collector.prune_plan(|_| aim(0), &[]).unwrap();
    let error = collector.prune(&plan, &|| Err("no".into()), far()).unwrap_err();
    assert!(matches!(error, PruneError::Needs(_)), "{error}");
    assert!(is_whole(&collector, &made.digest));
}

#[test]
fn a_use_is_noted_once_an_hour() {
    let (_dir, store) = rig();
    let chain = step(&store, &[], 1);
    aged(&store, 2);
    let used = |store: &Store| {
        let census = store.census(&mut Documents::default(), None).unwrap().unwrap();
        let mass = census.snapshots[&chain[0]].mass;
        assert!(mass.size >= 20_000, "{mass:?}");
        mass.used
    };
    let now = store.inner.clock.now();
    assert_eq!(used(&store), Timestamp(now.0 - 2 * DAY), "looking is no use");
    assert!(store.cache_get(&key(1)).is_some());
    assert_eq!(used(&store), now);
    let meta = store.snapshot_path(&chain[0]).join("meta.json");
    for (minutes, noted) in [(59, false), (61, true)] {
        let before = Timestamp(now.0 - minutes * 60_000);
        set_last_use(&meta, before).unwrap();
        assert!(store.cache_get(&key(1)).is_some());
        assert_eq!(used(&store), if noted { now } else { before });
    }
}

#[test]
fn a_process_that_says_nothing_of_its_use_stops_the_collection() {
    let (_dir, store) = rig();
    let chain = step(&store, &[], 1);
    let path = store.path().to_path_buf();
    drop(store);
    let old = path.join("runs/r-old");
    std::fs::create_dir(&old).unwrap();
    let lock = keelway_disk::Lock::try_take(&old.join("lock")).unwrap().unwrap();
    let store = open(&path);
    let plan = store.prune_plan(|_| aim(0), &[]).unwrap();
    assert!(!plan.is_empty());
    let error = store.prune(&plan, &nobody, far()).unwrap_err();
    assert!(matches!(&error, PruneError::Silent { runs } if runs == "r-old"), "{error}");
    assert_eq!(there(&store, &chain), 1);
    drop(lock);
    assert!(store.prune(&plan, &nobody, far()).unwrap().bytes > 0);
}

#[test]
fn unasked_only_above_the_limit_and_not_again_when_nothing_can_go() {
    let (_dir, store) = rig();
    let path = store.path().to_path_buf();
    for n in 0..20 {
        step(&store, &[], n);
    }
    drop(store);
    let collect = |storage: u64| {
        let store = open(&path);
        let given = (Some(keelway_model::Bytes(storage)), Some(keelway_model::Bytes(0)));
        store.collect(given, &nobody, Duration::from_secs(60)).unwrap()
    };
    assert_eq!(collect(100 << 20), None);
    let known = crate::usage::read(&path).unwrap();
    assert!(known.bytes >= 20 * 20_000);
    // What is added is known without counting.
    let store = open(&path);
    let chain = step(&store, &[], 30);
    drop(store);
    let more = crate::usage::read(&path).unwrap().bytes;
    assert!(more >= known.bytes + 20_000, "{more} {known:?}");
    let done = collect(more - 1).unwrap();
    assert!(done.after <= more - more / 11 && done.finished, "{done:?}");
    assert_eq!(crate::usage::read(&path).unwrap().bytes, done.after);
    assert_eq!(collect(more - 1), None);
    assert_eq!(there(&open(&path), &chain), 1, "the youngest stays");
    // What cannot be made small enough is not tried again and again.
    let holder = open(&path);
    for id in crate::census::listed(&path.join("snapshots")).unwrap() {
        assert!(holder.has_snapshot(&crate::census::file_name(&id).parse().unwrap()));
    }
    assert!(collect(1).is_some());
    assert_eq!(collect(1), None);
    assert!(crate::usage::read(&path).unwrap().stuck.is_some());
}

#[test]
fn two_that_collect_at_once() {
    let (_dir, store) = rig();
    let path = store.path().to_path_buf();
    for n in 0..100 {
        step(&store, &[], n);
    }
    let kept = step(&store, &[], 200);
    drop(store);
    let holder = open(&path);
    assert!(holder.cache_get(&key(200)).is_some());
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| assert!(collected(&open(&path), aim(0), &[]).finished));
        }
    });
    let census = holder.census(&mut Documents::default(), None).unwrap().unwrap();
    assert_eq!(census.snapshots.keys().collect::<Vec<_>>(), kept.iter().collect::<Vec<_>>());
    assert_eq!(census.records.len(), 1);
}

#[derive(Debug, Clone)]
enum Move {
    Step { on: proptest::sample::Index, hold: bool },
    Hit { which: proptest::sample::Index },
    Tag { which: proptest::sample::Index, name: u8 },
    End { which: proptest::sample::Index },
    Cache { id: u8, bytes: usize, hold: bool },
    Collect { keep: u64, names: bool },
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let index = || any::<proptest::sample::Index>();
    let one = prop_oneof![
        4 => (index(), any::<bool>()).prop_map(|(on, hold)| Move::Step { on, hold }),
        2 => index().prop_map(|which| Move::Hit { which }),
        1 => (index(), 0u8..3).prop_map(|(which, name)| Move::Tag { which, name }),
        2 => index().prop_map(|which| Move::End { which }),
        1 => (0u8..3, 0usize..90_000, any::<bool>()).prop_map(|(id, bytes, hold)| Move::Cache { id, bytes, hold }),
        2 => (0u64..300_000, proptest::bool::weighted(0.2)).prop_map(|(keep, names)| Move::Collect { keep, names }),
    ];
    proptest::collection::vec(one, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_store_that_is_used_and_collected(moves in moves()) {
        let (_dir, root) = rig();
        let mut chains: Vec<(usize, Vec<SnapshotId>)> = Vec::new();
        let mut sessions: Vec<(Store, Vec<SnapshotId>)> = Vec::new();
        let mut names: BTreeMap<ImageRef, Digest> = BTreeMap::new();
        let mut caches: Vec<crate::CacheMount> = Vec::new();
        for (n, one) in moves.into_iter().enumerate() {
            match one {
                Move::Step { on, hold } => {
                    let session = root.session().unwrap();
                    let below = match chains.is_empty() {
                        true => Vec::new(),
                        false => on.get(&chains).1.clone(),
                    };
                    // What it stands on may be gone: then it begins anew.
                    let below = if below.iter().all(|s| session.has_snapshot(s)) { below } else { Vec::new() };
                    let chain = step(&session, &below, n);
                    chains.push((n, chain.clone()));
                    if hold {
                        sessions.push((session, chain));
                    }
                }
                Move::Hit { which } if !chains.is_empty() => {
                    let session = root.session().unwrap();
                    let (n, chain) = which.get(&chains);
                    if session.cache_get(&key(*n)).is_some() {
                        prop_assert_eq!(there(&root, chain), chain.len());
                        sessions.push((session, chain.clone()));
                    }
                }
                Move::Tag { which, name } if !chains.is_empty() => {
                    let session = root.session().unwrap();
                    let (n, chain) = which.get(&chains);
                    if session.cache_get(&key(*n)).is_some() {
                        let name: ImageRef = format!("r.example.com/a:{name}").parse().unwrap();
                        let made = image(&session, chain);
                        session.set_reference(&name, &made).unwrap();
                        names.insert(name, made.digest);
                    }
                }
                Move::End { which } if !sessions.is_empty() => {
                    let at = which.index(sessions.len());
                    sessions.swap_remove(at);
                }
                Move::Cache { id, bytes, hold } => {
                    let cache = mounts::used(&root.session().unwrap(), &id.to_string(), bytes);
                    match hold {
                        true => caches.push(cache),
                        false => caches.clear(),
                    }
                }
                Move::Collect { keep, names: soft } => {
                    let collector = root.session().unwrap();
                    let plan = collector.prune_plan(|_| Aim { names: soft, ..aim(keep) }, &[]).unwrap();
                    let done = collector.prune(&plan, &nobody, far()).unwrap();
                    prop_assert_eq!(done.spared, 0);
                    let now = collector.census(&mut Documents::default(), None).unwrap().unwrap().total();
                    prop_assert_eq!(now, plan.after);
                    let room = plan.remaining.iter().any(|r| r.why == Why::Room && r.count > 0);
                    prop_assert!(now <= keep || !room, "{} of {}: {:?}", now, keep, plan.remaining);
                    if soft {
                        names = root.references().unwrap().into_iter().map(|(n, d)| (n, d.digest)).collect();
                    }
                }
                _ => {}
            }
            for (_, chain) in &sessions {
                prop_assert_eq!(there(&root, chain), chain.len(), "held");
            }
            for manifest in names.values() {
                prop_assert!(is_whole(&root, manifest), "named");
            }
            prop_assert!(caches.iter().all(|c| c.fs().is_dir()), "in use");
            let checked = root.check(&[], false, &|| false).unwrap();
            prop_assert!(checked.is_clean(), "{:?}", checked);
        }
    }
}

/// Where the store of a worker is, for tests of processes.
pub(super) fn store_at(path: &Path) -> Store {
    open(path)
}
