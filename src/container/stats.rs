//! What a running container uses now: from its cgroups where they count, else from its processes.

use keelway_sandbox::cgroup::{Controller, Layout, Place};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Clock ticks of a second in /proc; the same on every Linux machine that we run on.
const TICKS: u64 = 100;
/// Most processes that are looked at one by one.
const MAX_PROCESSES: usize = 65_536;
const PAGE: u64 = 4096;

/// One look.
#[derive(Debug, Clone)]
pub struct Sample {
    at: Instant,
    /// CPU time so far.
    pub cpu: Duration,
    /// Bytes of memory, files that can be dropped left out.
    pub memory: u64,
    /// Its bound, or the machine's memory.
    pub memory_limit: u64,
    /// Bytes received and sent, where it has a network of its own.
    pub network: Option<(u64, u64)>,
    /// Bytes read from and written to disks.
    pub disk: (u64, u64),
    /// Processes and threads.
    pub pids: u64,
}

impl Sample {
    /// CPU in use since an earlier look: 1.0 is one core.
    pub fn cores_since(&self, earlier: &Self) -> f64 {
        let wall = self.at.duration_since(earlier.at).as_secs_f64();
        let cpu = self.cpu.saturating_sub(earlier.cpu).as_secs_f64();
        if wall > 0.0 { cpu / wall } else { 0.0 }
    }
}

/// Looks at the container whose first process this is; `None` when it has ended.
pub fn sample(pid: i32, own_network: bool) -> Option<Sample> {
    let at = Instant::now();
    let layout = Layout::detect();
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let group = |controller| Group::find(&layout, controller, &table);
    let members = group(Controller::Pids).map_or_else(|| vec![pid], |g| g.members());
    let memory = group(Controller::Memory);
    let machine = machine_memory();
    Some(Sample {
        at,
        cpu: group(Controller::Cpu).and_then(|g| g.cpu()).unwrap_or_else(|| cpu_of(&members)),
        memory: memory.as_ref().and_then(Group::memory).unwrap_or_else(|| resident(&members)),
        memory_limit: memory.as_ref().and_then(Group::memory_limit).unwrap_or(machine).min(machine),
        network: own_network.then(|| network(pid)),
        disk: disk(&members),
        pids: group(Controller::Pids).and_then(|g| g.number("pids.current")).unwrap_or(members.len() as u64),
    })
}

/// A container's group in one hierarchy.
struct Group {
    dir: PathBuf,
    v2: bool,
}

impl Group {
    /// By proc_pid_cgroup(5): `ID:CONTROLLERS:PATH`; v2 has no controllers. One that is at the root is not its own.
    fn find(layout: &Layout, controller: Controller, table: &str) -> Option<Self> {
        let place = layout.place(controller)?;
        let v2 = matches!(place, Place::V2(_));
        let path = table.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let is_it = match v2 {
                true => controllers.is_empty(),
                false => controllers.split(',').any(|c| c == controller.name()),
            };
            is_it.then_some(path)
        })?;
        let path = path.strip_prefix('/').filter(|p| !p.is_empty() && !p.contains(".."))?;
        Some(Self { dir: place.root().join(path), v2 })
    }
    fn number(&self, file: &str) -> Option<u64> {
        fs::read_to_string(self.dir.join(file)).ok()?.trim().parse().ok()
    }
    fn keyed(&self, file: &str, key: &str) -> Option<u64> {
        let text = fs::read_to_string(self.dir.join(file)).ok()?;
        text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
    }
    fn members(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|l| l.parse().ok()).take(MAX_PROCESSES).collect()
    }
    fn cpu(&self) -> Option<Duration> {
        // A v1 machine counts CPU time in a hierarchy of its own, which sandboxes are not in.
        self.v2.then(|| self.keyed("cpu.stat", "usage_usec"))?.map(Duration::from_micros)
    }
    fn memory(&self) -> Option<u64> {
        let (all, file, key) = match self.v2 {
            true => ("memory.current", "memory.stat", "inactive_file"),
            false => ("memory.usage_in_bytes", "memory.stat", "total_inactive_file"),
        };
        let all = self.number(all)?;
        Some(all.saturating_sub(self.keyed(file, key).unwrap_or(0)))
    }
    fn memory_limit(&self) -> Option<u64> {
        self.number(if self.v2 { "memory.max" } else { "memory.limit_in_bytes" })
    }
}

fn machine_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Their own time and that of children they have waited for. What was waited for by nobody is not counted.
fn cpu_of(pids: &[i32]) -> Duration {
    let ticks: u64 =
        pids.iter().filter_map(|pid| ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)).sum();
    Duration::from_millis(ticks * 1000 / TICKS)
}

/// Fields 14 to 17 of proc_pid_stat(5); the name before them may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let rest = stat.rsplit_once(')')?.1;
    let fields: Vec<u64> = rest.split_whitespace().skip(11).take(4).map_while(|f| f.parse().ok()).collect();
    (fields.len() == 4).then(|| fields.iter().sum())
}

fn resident(pids: &[i32]) -> u64 {
    let pages = |pid: &i32| -> Option<u64> {
        fs::read_to_string(format!("/proc/{pid}/statm")).ok()?.split_whitespace().nth(1)?.parse().ok()
    };
    pids.iter().filter_map(pages).sum::<u64>() * PAGE
}

fn disk(pids: &[i32]) -> (u64, u64) {
    let mut total = (0, 0);
    for pid in pids {
        let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let of = |key: &str| {
            text.lines().find_map(|l| l.strip_prefix(key)?.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        total.0 += of("read_bytes:");
        total.1 += of("write_bytes:");
    }
    total
}

fn network(pid: i32) -> (u64, u64) {
    traffic(Path::new(&format!("/proc/{pid}/net/dev")))
}

fn traffic(table: &Path) -> (u64, u64) {
    let text = fs::read_to_string(table).unwrap_or_default();
    let mut total = (0, 0);
    for (name, counters) in text.lines().filter_map(|l| l.split_once(':')) {
        let counters: Vec<u64> = counters.split_whitespace().map_while(|c| c.parse().ok()).collect();
        if name.trim() != "lo"
            && let (Some(received), Some(sent)) = (counters.first(), counters.get(8))
        {
            total.0 += received;
            total.1 += sent;
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_counted() {
        assert_eq!(ticks("7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 10 20 30 40 20 0"), Some(100));
        assert_eq!(ticks("no process"), None);
        let me = i32::try_from(std::process::id()).unwrap();
        let first = sample(me, true).unwrap();
        assert!(first.memory > 0 && first.memory_limit > 0 && first.pids > 0);
        let end = Instant::now() + Duration::from_millis(60);
        let mut spin = 0u64;
        while Instant::now() < end {
            spin = spin.wrapping_add(1);
        }
        assert!(spin > 0 && resident(&[me]) > 0);
        assert!(sample(-1, false).is_none());
    }
}
