//! Early cut-off: a step whose base was made anew and came out the same is not run again.
//!
//! A step's key stands on the key of the step below it, so that it can be looked up before anything is read. When the
//! step below had to run, every key above it is new. So beside the key's record there is one by the step alone,
//! whatever it stood on: the last few bases that it ran on, with what came of it. A base of other snapshots that
//! hold the same bytes is the same base.

use crate::error::StoreError;
use crate::open::Store;
use crate::record;
use keelway_model::plan::Chain;
use keelway_model::{CacheKey, Digest, Output, SnapshotId};
use serde::{Deserialize, Serialize};

/// Bases that are remembered for a step; each may cost a comparison.
const BASES: usize = 4;

/// The folder of the cache.
const STEPS: &str = "steps";

/// A step, whatever it stands on.
#[derive(Default, Serialize, Deserialize)]
struct Step {
    step: Option<Digest>,
    /// The newest first.
    ran: Vec<Ran>,
}

#[derive(Serialize, Deserialize)]
struct Ran {
    base: Vec<SnapshotId>,
    output: Output,
}

impl Store {
    fn step(&self, step: &Digest) -> Step {
        let found: Option<Step> = record::read(&self.cache(STEPS).join(step.hex()));
        found.filter(|s| s.step == Some(*step)).unwrap_or_default()
    }

    /// What the step of this key gave on a base that holds the same as this one. A record that is damaged, or whose
    /// snapshots are gone, is a miss, never an error.
    pub fn cache_again(&self, key: &CacheKey, base: &Chain) -> Option<Output> {
        let ran = self.step(&key.step()?).ran;
        let found = ran.into_iter().find(|ran| {
            let here = ran.base.len() == base.snapshots.len() && self.is_here(&ran.output);
            here && ran.base.iter().zip(&base.snapshots).all(|(a, b)| a == b || self.is_same(a, b))
        });
        let found = found?;
        self.use_file(&self.cache(STEPS).join(key.step()?.hex()));
        Some(found.output)
    }

    /// Remembers what the step of this key gave on this base.
    pub fn cache_ran(&self, key: &CacheKey, base: &Chain, output: &Output) -> Result<(), StoreError> {
        let Some(name) = key.step() else { return Ok(()) };
        let mut step = self.step(&name);
        step.step = Some(name);
        step.ran.retain(|ran| ran.base != base.snapshots);
        step.ran.truncate(BASES - 1);
        step.ran.insert(0, Ran { base: base.snapshots.clone(), output: output.clone() });
        // Of two processes at the same moment one is forgotten, which costs a later build time.
        self.put_record(STEPS, &name, &step)
    }

    fn is_same(&self, a: &SnapshotId, b: &SnapshotId) -> bool {
        let is_step = |id| self.snapshot_meta(id).is_ok_and(|meta| meta.diff_id.is_none());
        // Layers from elsewhere are named by their content.
        is_step(a) && is_step(b) && matches!(self.first_difference(a, b), Ok(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{rig, snapshot, write};
    use keelway_model::KeyPart;

    fn key(base: &str, command: &str) -> CacheKey {
        let part = |part, text: &str| (part, Digest::of(text.as_bytes()));
        CacheKey::new(Digest::of(b"step"), vec![part(KeyPart::Base, base), part(KeyPart::Command, command)])
    }

    #[test]
    fn a_step_is_found_by_what_its_base_holds() {
        let (_dir, store) = rig();
        let holding = |bytes: &[u8]| snapshot(&store, |root| write(root, "a", bytes));
        let chain = |key: &str, snapshots: &[&SnapshotId]| Chain {
            snapshots: snapshots.iter().map(|s| (*s).clone()).collect(),
            key: Digest::of(key.as_bytes()),
        };
        let (one, same, other) = (holding(b"1"), holding(b"1"), holding(b"2"));
        let top = holding(b"made");
        let output = Output::Chain(chain("made", &[&one, &top]));
        store.cache_ran(&key("x", "make"), &chain("x", &[&one]), &output).unwrap();
        let again = |command, base: &[&SnapshotId]| store.cache_again(&key("y", command), &chain("y", base));
        assert_eq!(again("make", &[&same]), Some(output.clone()));
        assert_eq!(again("make", &[&one]), Some(output.clone()));
        assert_eq!(again("make", &[&other]), None);
        assert_eq!(again("make", &[&same, &same]), None);
        assert_eq!(again("make", &[]), None);
        assert_eq!(again("make all", &[&same]), None);
        // Only the last few are kept, each once.
        for _ in 0..2 {
            for n in 1..BASES {
                let base = holding(&[b'a'; 9][..n]);
                store.cache_ran(&key("z", "make"), &chain("z", &[&base]), &Output::Nothing).unwrap();
            }
            if again("make", &[&same]).is_none() {
                return;
            }
        }
        panic!("the oldest base is still known");
    }

    #[test]
    fn what_is_gone_or_damaged_is_a_miss() {
        let (_dir, store) = rig();
        let base = snapshot(&store, |root| write(root, "a", b"1"));
        let chain = |snapshots| Chain { snapshots, key: Digest::of(b"") };
        let gone = "s-000000000000000000000000".parse().unwrap();
        let output = Output::Chain(chain(vec![base.clone(), gone]));
        let (key, base) = (key("x", "make"), chain(vec![base]));
        store.cache_ran(&key, &base, &output).unwrap();
        assert_eq!(store.cache_again(&key, &base), None, "a snapshot of the output is gone");
        store.cache_ran(&key, &base, &Output::Nothing).unwrap();
        assert_eq!(store.cache_again(&key, &base), Some(Output::Nothing));
        let path = store.cache(STEPS).join(key.step().unwrap().hex());
        std::fs::write(path, b"{}").unwrap();
        assert_eq!(store.cache_again(&key, &base), None);
    }
}
