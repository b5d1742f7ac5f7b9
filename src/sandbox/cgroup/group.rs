//! Making, limiting, reading and removing the groups of one sandbox.

use super::device::Device;
use super::{BoxName, Controller, Layout, ParentName, Place, every_hierarchy};
use crate::end::Usage;
use crate::error::SetupError;
use keelway_model::limits::{DEFAULT_PIDS, Io};
use keelway_model::{Bytes, Limits};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Init itself counts as a process of the sandbox.
const INIT_PIDS: u64 = 1;
/// Period of the CPU limit in microseconds.
const CPU_PERIOD: u64 = 100_000;
/// How long removal and killing may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The groups one sandbox gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub layout: Layout,
    pub parent: ParentName,
    pub name: BoxName,
    pub limits: Limits,
    /// The disk whose traffic is bounded, where it is.
    pub device: Option<Device>,
    /// Whether the groups are made that count, also where nothing is bounded.
    pub counted: bool,
    /// Another runtime works in these groups, and makes its own of the same name in all other hierarchies.
    pub foreign: bool,
}

/// Groups that exist.
#[derive(Debug)]
pub(crate) struct Group {
    dirs: Vec<(Place, PathBuf)>,
    /// Groups of the same name that another runtime makes, and we only remove.
    others: Vec<PathBuf>,
    memory: Option<(bool, PathBuf)>,
    pids: Option<(bool, PathBuf)>,
}

/// What version 1 cannot do.
const V1_IO: &str = "`limits.io` bounds reads, and writes that go past the cache (direct io): this machine has cgroup v1, which does not bound what the kernel writes to the disk later";

impl Plan {
    /// The controllers that are needed, with the hierarchies that have them.
    fn wanted(&self) -> Result<Vec<(Controller, &Place)>, SetupError> {
        let mut wanted = Vec::new();
        for controller in Controller::ALL {
            let asked = match controller {
                Controller::Pids => self.limits.pids.is_some(),
                // In the v2 tree what is written to the disk later is charged to whose memory it was in.
                Controller::Memory => {
                    self.limits.memory.is_some()
                        || (!self.limits.io.is_empty()
                            && self.layout.memory.is_some()
                            && self.layout.io == self.layout.memory)
                }
                Controller::Cpu => self.limits.cpu_millis.is_some(),
                Controller::Io => !self.limits.io.is_empty(),
            };
            match self.layout.place(controller) {
                Some(place)
                    if asked
                        || controller == Controller::Pids
                        || (self.counted && controller != Controller::Io) =>
                {
                    wanted.push((controller, place));
                }
                // Processes are bounded by a resource limit then.
                None if asked && controller != Controller::Pids => {
                    return Err(SetupError::NoController { controller: controller.name().into() });
                }
                _ => {}
            }
        }
        Ok(wanted)
    }

    fn dir(&self, root: &Path) -> PathBuf {
        root.join(self.parent.as_str()).join(self.name.as_str())
    }

    /// Makes the groups and writes the limits. On error nothing of it stays.
    pub(crate) fn create(&self) -> Result<Group, SetupError> {
        let mut group = Group { dirs: Vec::new(), others: self.others(), memory: None, pids: None };
        match self.fill(&mut group) {
            Ok(()) => Ok(group),
            Err(e) => {
                let _ = group.remove();
                Err(e)
            }
        }
    }

    fn fill(&self, group: &mut Group) -> Result<(), SetupError> {
        let wanted = self.wanted()?;
        for (_, place) in &wanted {
            if group.dirs.iter().any(|(p, _)| p == *place) {
                continue;
            }
            let dir = self.dir(place.root());
            let controllers: Vec<_> = wanted.iter().filter(|(_, p)| p == place).map(|(c, _)| *c).collect();
            make(place, &self.parent, &dir, &controllers)?;
            group.dirs.push(((*place).clone(), dir));
        }
        self.limit(group)
    }

    /// Writes the limits into groups that are there.
    pub(super) fn limit(&self, group: &mut Group) -> Result<(), SetupError> {
        for (controller, place) in self.wanted()? {
            let dir = self.dir(place.root());
            let v2 = matches!(place, Place::V2(_));
            match controller {
                Controller::Pids => {
                    let max = u64::from(self.limits.pids.unwrap_or(DEFAULT_PIDS)) + INIT_PIDS;
                    write(&dir, "pids.max", &max.to_string())?;
                    group.pids = Some((v2, dir));
                }
                Controller::Memory => {
                    if let Some(bytes) = self.limits.memory {
                        limit_memory(&dir, v2, bytes)?;
                    }
                    group.memory = Some((v2, dir));
                }
                Controller::Cpu => {
                    let Some(millis) = self.limits.cpu_millis else { continue };
                    let quota = u64::from(millis) * (CPU_PERIOD / 1000);
                    // The kernel refuses less than a millisecond a period.
                    let quota = quota.max(1000);
                    if v2 {
                        write(&dir, "cpu.max", &format!("{quota} {CPU_PERIOD}"))?;
                    } else {
                        write(&dir, "cpu.cfs_period_us", &CPU_PERIOD.to_string())?;
                        write(&dir, "cpu.cfs_quota_us", &quota.to_string())?;
                    }
                }
                Controller::Io => limit_io(&dir, v2, &self.limits.io, self.device)?,
            }
        }
        Ok(())
    }

    /// What the limits do not hold here.
    pub(crate) fn warnings(&self) -> Option<String> {
        let v1 = matches!(self.layout.io, Some(Place::V1(_)));
        (v1 && self.limits.io.is_throttled()).then(|| V1_IO.to_owned())
    }

    /// The group directories, for an owner that has to clean up after its init.
    pub(crate) fn groups(&self) -> Group {
        let dirs = self.layout.places().into_iter().map(|p| (p.clone(), self.dir(p.root()))).collect();
        Group { dirs, others: self.others(), memory: None, pids: None }
    }

    fn others(&self) -> Vec<PathBuf> {
        if !self.foreign {
            return Vec::new();
        }
        every_hierarchy().iter().map(|root| self.dir(root)).collect()
    }

    /// The path of the sandbox's groups below the root of every hierarchy.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir(Path::new("/"))
    }

    /// What was counted in groups that are there.
    pub(crate) fn usage(&self) -> Usage {
        let mut group = self.groups();
        group.pids =
            self.layout.place(Controller::Pids).map(|p| (matches!(p, Place::V2(_)), self.dir(p.root())));
        let memory = self.layout.place(Controller::Memory);
        group.memory = memory.map(|p| (matches!(p, Place::V2(_)), self.dir(p.root())));
        group.usage()
    }
}

fn limit_memory(dir: &Path, v2: bool, bytes: Bytes) -> Result<(), SetupError> {
    let value = bytes.0.to_string();
    if v2 {
        write(dir, "memory.max", &value)?;
        // Swap is part of the limit; a kernel without swap accounting has no such file.
        write_if_there(dir, "memory.swap.max", "0")?;
        return write_if_there(dir, "memory.oom.group", "1");
    }
    write(dir, "memory.limit_in_bytes", &value)?;
    write_if_there(dir, "memory.memsw.limit_in_bytes", &value)
}

fn limit_io(dir: &Path, v2: bool, io: &Io, device: Option<Device>) -> Result<(), SetupError> {
    let bounds = [
        ("rbps", "blkio.throttle.read_bps_device", io.read.map(|b| b.0)),
        ("wbps", "blkio.throttle.write_bps_device", io.write.map(|b| b.0)),
        ("riops", "blkio.throttle.read_iops_device", io.read_ops.map(u64::from)),
        ("wiops", "blkio.throttle.write_iops_device", io.write_ops.map(u64::from)),
    ];
    if let Some(device) = device {
        let mut line = device.to_string();
        for (key, file, bound) in bounds {
            let Some(bound) = bound else { continue };
            if v2 {
                line.push_str(&format!(" {key}={bound}"));
            } else {
                write(dir, file, &format!("{device} {bound}"))?;
            }
        }
        if v2 && io.is_throttled() {
            write(dir, "io.max", &line)?;
        }
    }
    let Some(weight) = io.weight else { return Ok(()) };
    // Who shares a disk by weight depends on its scheduler; bfq and version 1 know less of a range.
    let files: &[(&str, u16)] = if v2 {
        &[("io.weight", 10_000), ("io.bfq.weight", 1000)]
    } else {
        &[("blkio.bfq.weight", 1000), ("blkio.weight", 1000)]
    };
    match files.iter().find(|(file, _)| dir.join(file).exists()) {
        Some((file, most)) => write(dir, file, &weight.min(*most).to_string()),
        None => Err(SetupError::NoController { controller: "io by weight".into() }),
    }
}

/// Makes the parents and the group itself; in the v2 tree also hands the controllers down.
fn make(
    place: &Place,
    parent: &ParentName,
    dir: &Path,
    controllers: &[Controller],
) -> Result<(), SetupError> {
    // The parents may be there without a controller that no sandbox of the run has needed so far.
    if matches!(place, Place::V2(_)) {
        prepare_parents(place, parent, controllers)?;
    }
    // Another process may remove an empty parent between our two steps.
    for attempt in 0..10 {
        match fs::create_dir(dir) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound && attempt < 9 => {
                prepare_parents(place, parent, controllers)?;
            }
            Err(e) => return Err(failed("create", dir, e)),
        }
    }
    Err(failed("create", dir, io::Error::from_raw_os_error(nix::libc::ENOENT)))
}

/// Makes the parents. One that vanishes meanwhile is left to the next attempt.
pub(super) fn prepare_parents(
    place: &Place,
    parent: &ParentName,
    controllers: &[Controller],
) -> Result<(), SetupError> {
    let mut at = place.root().to_owned();
    for part in parent.as_str().split('/') {
        if matches!(place, Place::V2(_)) {
            hand_down(&at, controllers)?;
        }
        at.push(part);
        match fs::create_dir(&at) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed("create", &at, e)),
            _ => {}
        }
    }
    if matches!(place, Place::V2(_)) { hand_down(&at, controllers) } else { Ok(()) }
}

/// Lets the children of a v2 group use the controllers.
fn hand_down(dir: &Path, controllers: &[Controller]) -> Result<(), SetupError> {
    let have = fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap_or_default();
    let missing: Vec<String> = controllers
        .iter()
        .filter(|c| !have.split_whitespace().any(|h| h == c.name()))
        .map(|c| format!("+{}", c.name()))
        .collect();
    if missing.is_empty() { Ok(()) } else { write(dir, "cgroup.subtree_control", &missing.join(" ")) }
}

fn failed(action: &str, path: &Path, error: io::Error) -> SetupError {
    SetupError::Cgroup { action: action.into(), path: path.to_owned(), errno: error.into() }
}

/// cgroup files are written by one write to a file that exists; `create` would hide a missing controller.
fn write(dir: &Path, file: &str, value: &str) -> Result<(), SetupError> {
    put(dir, file, value).map_err(|e| failed(&format!("write {value:?} to {file} of"), dir, e))
}

fn put(dir: &Path, file: &str, value: &str) -> io::Result<()> {
    use io::Write as _;
    fs::OpenOptions::new().write(true).truncate(true).open(dir.join(file))?.write_all(value.as_bytes())
}

fn write_if_there(dir: &Path, file: &str, value: &str) -> Result<(), SetupError> {
    match put(dir, file, value) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(failed(&format!("write {value:?} to {file} of"), dir, e))
        }
        _ => Ok(()),
    }
}

fn number(dir: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok()
}

/// The value of one `key value` line.
fn keyed(dir: &Path, file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(dir.join(file)).ok()?;
    text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

impl Group {
    /// Files by which a process with one thread puts itself into every group: see [`enter`].
    pub(crate) fn doors(&self) -> Result<Vec<Door>, SetupError> {
        let open = |(place, dir): &(Place, PathBuf)| {
            let name = match place {
                Place::V1(_) => "tasks",
                Place::V2(_) => "cgroup.procs",
            };
            let path = dir.join(name);
            let file =
                fs::OpenOptions::new().write(true).open(&path).map_err(|e| failed("open", &path, e))?;
            Ok(Door { path, file })
        };
        self.dirs.iter().map(open).collect()
    }

    /// What was counted so far; CPU time comes from elsewhere.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        if let Some((v2, dir)) = &self.memory {
            let (events, peak) = if *v2 {
                ("memory.events", "memory.peak")
            } else {
                ("memory.oom_control", "memory.max_usage_in_bytes")
            };
            usage.oom_kills = keyed(dir, events, "oom_kill").unwrap_or(0);
            usage.peak_memory = number(dir, peak).map(Bytes);
        }
        if let Some((_, dir)) = &self.pids {
            usage.pids_refused = keyed(dir, "pids.events", "max").unwrap_or(0);
        }
        usage
    }

    /// Its file of refused forks, and whether the kernel tells of its changes: version 2 does.
    pub(crate) fn refusals(&self) -> Option<(fs::File, bool)> {
        let (v2, dir) = self.pids.as_ref()?;
        Some((fs::File::open(dir.join("pids.events")).ok()?, *v2))
    }

    /// The processes in it now, as this machine numbers them.
    pub(crate) fn members(&self) -> Vec<i32> {
        let Some((_, dir)) = self.dirs.first() else { return Vec::new() };
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|l| l.parse().ok()).collect()
    }

    /// Kills what is left inside and removes the groups. Missing ones are fine.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut first = Ok(());
        for dir in self.dirs.iter().map(|(_, dir)| dir).chain(&self.others) {
            if let Err(e) = remove_tree(dir, end) {
                first = first.and(Err(e));
            }
        }
        first
    }
}

/// An open membership file of a group.
#[derive(Debug)]
pub(crate) struct Door {
    path: PathBuf,
    file: fs::File,
}

/// Puts the calling process, which has one thread, into the groups. On v1 that goes through `tasks` and "0":
/// for the caller alone the kernel takes no lock over all forks, while any other way waits for an RCU grace
/// period, 10 ms and more, after each idle spell.
pub(crate) fn enter(doors: &[Door]) -> Result<(), SetupError> {
    use io::Write as _;
    doors.iter().try_for_each(|d| (&d.file).write_all(b"0").map_err(|e| failed("join", &d.path, e)))
}

/// Kills every process of a group and of those below it, then removes them.
fn remove_tree(dir: &Path, end: Instant) -> io::Result<()> {
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if Instant::now() >= end => return Err(e),
            Err(_) => {}
        }
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                remove_tree(&entry.path(), end)?;
            }
        }
        kill_members(dir);
        // A killed process leaves its group when the kernel gets to it; there is no event to wait for on v1.
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn kill_members(dir: &Path) {
    if put(dir, "cgroup.kill", "1").is_ok() {
        return;
    }
    let members = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in members.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 1) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Removes a launcher's empty parent groups.
pub(crate) fn remove_parents(layout: &Layout, parent: &ParentName) {
    for place in layout.places() {
        remove_empty(place.root(), parent);
    }
}

/// The same where other runtimes made groups too.
pub(crate) fn remove_everywhere(parent: &ParentName) {
    for root in every_hierarchy() {
        remove_empty(&root, parent);
    }
}

fn remove_empty(root: &Path, parent: &ParentName) {
    let mut path = parent.as_str();
    loop {
        match fs::remove_dir(root.join(path)) {
            Ok(()) => {}
            // What was above it may be empty for that very reason.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            // Another launcher lives below.
            Err(_) => break,
        }
        match path.rsplit_once('/') {
            Some((up, _)) => path = up,
            None => break,
        }
    }
}

/// What [`reap`] removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reaped {
    /// Group directories that are gone now and were there before.
    pub removed: Vec<PathBuf>,
}

/// A group of a dead run could not be removed.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot remove the cgroup {path:?} of a dead run: {source}; processes in it do not die, look at its cgroup.procs"
)]
pub struct ReapError {
    /// Its directory.
    pub path: PathBuf,
    /// How it failed.
    pub source: io::Error,
}

/// Kills what dead runs left and removes their groups. Only call it with parents whose owner is known to
/// be dead (its lock was taken): everything below them dies.
pub fn reap(layout: &Layout, parents: &[ParentName]) -> Result<Reaped, ReapError> {
    let mut reaped = Reaped::default();
    for parent in parents {
        let own = layout.places().into_iter().map(|p| p.root().to_owned());
        // A run may have asked another runtime, which makes groups everywhere.
        let mut roots: Vec<PathBuf> = own.chain(every_hierarchy()).collect();
        roots.sort();
        roots.dedup();
        for root in roots {
            let path = root.join(parent.as_str());
            if path.is_dir() {
                let end = Instant::now() + PATIENCE;
                remove_tree(&path, end).map_err(|source| ReapError { path: path.clone(), source })?;
                reaped.removed.push(path);
            }
        }
        remove_parents(layout, parent);
        remove_everywhere(parent);
    }
    Ok(reaped)
}
