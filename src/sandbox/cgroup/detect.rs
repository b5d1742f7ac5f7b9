//! Which cgroup hierarchies this machine has, from its mount table.

use nix::unistd::{AccessFlags, access};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Component, Path, PathBuf};

/// The controllers that bound a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Controller {
    /// Number of processes.
    Pids,
    /// Memory and swap.
    Memory,
    /// CPU time.
    Cpu,
    /// Traffic with disks.
    Io,
}

impl Controller {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pids, Self::Memory, Self::Cpu, Self::Io];
    /// As version 2 names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pids => "pids",
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Io => "io",
        }
    }
    /// As version 1 names it.
    pub const fn v1_name(self) -> &'static str {
        match self {
            Self::Io => "blkio",
            other => other.name(),
        }
    }
}

/// Where a controller is: the root directory of its hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// A hierarchy of version 1.
    V1(PathBuf),
    /// The tree of version 2.
    V2(PathBuf),
}

impl Place {
    /// The root directory.
    pub fn root(&self) -> &Path {
        match self {
            Self::V1(p) | Self::V2(p) => p,
        }
    }
}

/// Where each controller is, if anywhere.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Layout {
    /// Process limit.
    pub pids: Option<Place>,
    /// Memory limit.
    pub memory: Option<Place>,
    /// CPU limit.
    pub cpu: Option<Place>,
    /// Disk traffic limit.
    #[serde(default)]
    pub io: Option<Place>,
    /// The v2 tree, whatever controllers it has.
    pub unified: Option<PathBuf>,
}

impl Layout {
    /// Looks at this machine, and takes what this process may use. An unreadable mount table is a machine without
    /// cgroups.
    pub fn detect() -> Self {
        let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
        let all = Self::from_mountinfo(&table, controllers_of);
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        all.usable(&own, |dir| access(dir, AccessFlags::W_OK).is_ok(), controllers_of)
    }

    /// What is left for an ordinary user: hierarchies that it may write to, and in the v2 tree the highest group above
    /// this process that was handed to it (as systemd does with `user@UID.service`). `own` is /proc/self/cgroup.
    pub fn usable(
        mut self,
        own: &str,
        writable: impl Fn(&Path) -> bool,
        controllers: impl Fn(&Path) -> String,
    ) -> Self {
        let given = self.unified.clone().filter(|root| !writable(root)).map(|root| {
            let inside = own.lines().find_map(|l| l.strip_prefix("0::/")).unwrap_or_default();
            let mut path = root;
            let parts = Path::new(inside).components();
            parts
                .filter(|part| matches!(part, Component::Normal(_)))
                .map(|part| {
                    path.push(part);
                    path.clone()
                })
                .find(|dir| writable(dir) && writable(&dir.join("cgroup.procs")))
        });
        for controller in Controller::ALL {
            let slot = self.slot(controller);
            let usable = match slot.take() {
                Some(Place::V1(dir)) => writable(&dir).then_some(Place::V1(dir)),
                Some(Place::V2(root)) => match &given {
                    None => Some(Place::V2(root)),
                    Some(Some(dir)) => {
                        let offered = controllers(dir);
                        let has = offered.split_whitespace().any(|o| o == controller.name());
                        has.then(|| Place::V2(dir.clone()))
                    }
                    Some(None) => None,
                },
                None => None,
            };
            *slot = usable;
        }
        if let Some(given) = given {
            self.unified = given;
        }
        self
    }

    /// Reads a mount table as proc_pid_mountinfo(5) has it; `controllers` gives the content of
    /// `cgroup.controllers` at the root of the v2 tree.
    pub fn from_mountinfo(table: &[u8], controllers: impl Fn(&Path) -> String) -> Self {
        let mut layout = Self::default();
        for line in table.split(|b| *b == b'\n') {
            let Ok(line) = std::str::from_utf8(line) else { continue };
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let Some(target) = before.split(' ').nth(4).map(|t| PathBuf::from(unescape(t))) else { continue };
            let mut after = after.split(' ');
            match after.next() {
                Some("cgroup2") => {
                    layout.unified.get_or_insert(target);
                }
                Some("cgroup") => {
                    for option in after.nth(1).unwrap_or_default().split(',') {
                        if let Some(c) = Controller::ALL.into_iter().find(|c| c.v1_name() == option) {
                            layout.slot(c).get_or_insert_with(|| Place::V1(target.clone()));
                        }
                    }
                }
                _ => {}
            }
        }
        if let Some(root) = layout.unified.clone() {
            let offered = controllers(&root);
            for c in Controller::ALL {
                if offered.split_whitespace().any(|o| o == c.name()) {
                    layout.slot(c).get_or_insert_with(|| Place::V2(root.clone()));
                }
            }
        }
        layout
    }

    fn slot(&mut self, controller: Controller) -> &mut Option<Place> {
        match controller {
            Controller::Pids => &mut self.pids,
            Controller::Memory => &mut self.memory,
            Controller::Cpu => &mut self.cpu,
            Controller::Io => &mut self.io,
        }
    }

    /// Where a controller is.
    pub fn place(&self, controller: Controller) -> Option<&Place> {
        match controller {
            Controller::Pids => self.pids.as_ref(),
            Controller::Memory => self.memory.as_ref(),
            Controller::Cpu => self.cpu.as_ref(),
            Controller::Io => self.io.as_ref(),
        }
    }

    /// The distinct hierarchies, in a fixed order.
    pub fn places(&self) -> Vec<&Place> {
        let mut places: Vec<&Place> = Vec::new();
        for place in Controller::ALL.into_iter().filter_map(|c| self.place(c)) {
            if !places.contains(&place) {
                places.push(place);
            }
        }
        places
    }
}

/// The roots of all hierarchies of this machine, also of those that bound nothing of ours: another runtime makes groups
/// in each.
pub(crate) fn every_hierarchy() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut roots: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split_once(" - "))
        .filter(|(_, after)| after.starts_with("cgroup ") || after.starts_with("cgroup2 "))
        .filter_map(|(before, _)| before.split(' ').nth(4).map(|t| PathBuf::from(unescape(t))))
        .collect();
    roots.sort();
    roots.dedup();
    roots
}

fn controllers_of(root: &Path) -> String {
    fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default()
}

/// Undoes the `\040` form of blanks in a mount table.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'\\'
            && let Some(digits) = tail.get(..3)
            && let Some(value) = std::str::from_utf8(digits).ok().and_then(|d| u8::from_str_radix(d, 8).ok())
        {
            out.push(value);
            rest = &tail[3..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
