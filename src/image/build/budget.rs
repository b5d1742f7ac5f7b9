//! What bounds the planning of a build: how much text its instructions may expand to, and variables that are
//! found by name at once.
//!
//! Every copy that grows with what came before (the environment of a RUN, the state of a stage that another
//! stands on) is charged, so that planning takes time and memory in proportion to the file and this bound.

use keelway_dockerfile::Environment;
use std::cell::Cell;
use std::collections::HashMap;

/// How much all instructions of a build may expand to together, in bytes.
pub(super) const MAX_EXPANDED: usize = 64 << 20;

/// What is left of [`MAX_EXPANDED`].
#[derive(Debug)]
pub(super) struct Budget(Cell<usize>);

/// It is used up.
#[derive(Debug, thiserror::Error)]
#[error(
    "the instructions up to here expand to more than {} MiB of variables, settings and commands: use fewer or shorter ones",
    MAX_EXPANDED >> 20
)]
pub(super) struct UsedUp;

impl Budget {
    pub(super) fn new() -> Self {
        Self(Cell::new(MAX_EXPANDED))
    }
    /// Takes some; once it was too much, there is none left.
    pub(super) fn charge(&self, bytes: usize) -> Result<(), UsedUp> {
        let left = self.0.get().checked_sub(bytes);
        self.0.set(left.unwrap_or(0));
        left.map(drop).ok_or(UsedUp)
    }
    pub(super) fn is_used_up(&self) -> bool {
        self.0.get() == 0
    }
}

/// Variables in order of first appearance.
#[derive(Debug, Clone, Default)]
pub(super) struct Vars {
    pairs: Vec<(String, String)>,
    places: HashMap<String, usize>,
}

impl Vars {
    /// Sets a variable where it stands, or at the end.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        match self.places.get(name).and_then(|i| self.pairs.get_mut(*i)) {
            Some((_, old)) => value.clone_into(old),
            None => {
                self.places.insert(name.to_owned(), self.pairs.len());
                self.pairs.push((name.to_owned(), value.to_owned()));
            }
        }
    }
    /// All of them.
    pub(super) fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }
    /// What a copy of them takes, in bytes.
    pub(super) fn size(&self) -> usize {
        self.pairs.iter().map(|(k, v)| k.len() + v.len() + 16).sum()
    }
}

impl Environment for Vars {
    fn get(&self, name: &str) -> Option<&str> {
        self.places.get(name).and_then(|i| self.pairs().get(*i)).map(|(_, v)| v.as_str())
    }
}
