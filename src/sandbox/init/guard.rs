//! What the supervisor watches itself, because the kernel only refuses it or does not bound it at all: forks at the
//! limit of processes, and what is written into the root.
//!
//! Forks cost next to nothing to watch: the kernel says when it has refused one (cgroup v2), or is asked four times a
//! second (v1). A program that copes with that is left alone;
//! one that goes on and on is a bomb, and is ended. Without a group of cgroups only each of its users is bounded, by a
//! resource limit: then the processes that its own /proc shows are counted, and a crowd that stays at the limit is ended.
//!
//! What is written is in the upper directory. Measuring it is a walk, so it is done only when it can have reached the
//! limit: statfs(2) says, for a microsecond, how much more the whole file system holds than when it was measured last. The
//! walk is done by a process of its own, so that the owner's orders and its death are heard meanwhile. What other
//! processes of the machine free could hide what this one writes, so it is measured every other second in any case,
//! and once more when everything is dead: nothing above its limit ever counts as a success. Walks take at most
//! a fifth of one core.
//!
//! Deleted files that are still open are found through /proc where the sandbox has cgroups; one that is only mapped is
//! not.

use crate::cgroup::Group;
use crate::end::ExitKind;
use crate::spec::{RootFs, Spec};
use crate::sys;
use keelway_model::Bytes;
use keelway_model::limits::DEFAULT_PIDS;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, stat};
use nix::sys::statvfs::fstatvfs;
use std::collections::HashSet;
use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Refused forks that no program shrugs off.
const MOST_REFUSALS: u64 = 1000;
/// Between two looks at refused forks where the kernel does not tell.
const FORKS: Duration = Duration::from_millis(250);
/// How long a crowd may stay at the limit where nothing counts what was refused it.
const CROWDED: Duration = Duration::from_secs(3);
/// Between two counts of it.
const COUNTS: Duration = Duration::from_millis(500);
/// Nobody is taken to write faster than so many bytes a second, or to make more files.
const SPEED: u64 = 2 << 30;
const FILES_SPEED: u64 = 100_000;
/// Between two looks at the file system.
const LOOKS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));
/// Between two walks in any case.
const WALKS: Duration = Duration::from_secs(2);
/// A walk is followed by so many times its own duration without one.
const REST: u32 = 4;
/// Folders nested deeper than this cannot be counted: two descriptors are held for each level.
const DEEPEST: usize = 400;
/// Open files that are looked at for deleted ones.
const MOST_OPEN: usize = 65_536;
/// Blocks of stat(2).
const BLOCK: u64 = 512;
const PROC_MAGIC: i64 = 0x9fa0;

/// Watches one sandbox.
pub(super) struct Guard<'a> {
    group: &'a Group,
    pid1: i32,
    /// Descriptors of the supervisor that a process of ours must not hold open.
    private: [RawFd; 2],
    forks: Option<Forks>,
    crowd: Option<Crowd>,
    disk: Option<Disk>,
    verdict: Option<ExitKind>,
}

struct Forks {
    refused: File,
    /// Whether the kernel says when it changes.
    told: bool,
    limit: u32,
}

/// The processes of a sandbox without a group of cgroups.
struct Crowd {
    pid1: i32,
    limit: u32,
    /// Since when there are as many as there may be.
    full: Option<Instant>,
    counted: Instant,
}

struct Disk {
    upper: OwnedFd,
    bounds: Bounds,
    /// The file system when it was measured last.
    then: Room,
    measured: Measured,
    at: Instant,
    took: Duration,
    walk: Option<Walk>,
}

#[derive(Debug, Clone, Copy)]
struct Bounds {
    bytes: Option<u64>,
    files: Option<u64>,
}

/// What a file system holds, all of it.
#[derive(Debug, Clone, Copy, Default)]
struct Room {
    bytes: u64,
    files: u64,
}

/// What an upper directory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Measured {
    bytes: u64,
    files: u64,
    too_deep: bool,
}

/// A measurement that goes on.
struct Walk {
    pid: i32,
    answer: PipeReader,
    room: Room,
    begun: Instant,
}

impl<'a> Guard<'a> {
    /// For a sandbox whose PID 1 has been made.
    pub(super) fn new(spec: &Spec, group: &'a Group, pid1: i32, private: [RawFd; 2]) -> Self {
        let forks = group.refusals().map(|(refused, told)| {
            let forks = Forks { refused, told, limit: spec.limits.pids.unwrap_or(DEFAULT_PIDS) };
            // The first look is what later ones are told apart from.
            forks.refused();
            forks
        });
        let limit = spec.limits.pids.unwrap_or(DEFAULT_PIDS);
        let crowd = forks.is_none().then(|| Crowd { pid1, limit, full: None, counted: Instant::now() });
        Self { group, pid1, private, forks, crowd, disk: Disk::new(spec), verdict: None }
    }

    /// What to wait for.
    pub(super) fn fds(&self) -> Vec<PollFd<'_>> {
        let forks =
            self.forks.iter().filter(|f| f.told).map(|f| PollFd::new(f.refused.as_fd(), PollFlags::POLLPRI));
        let walk = self.disk.iter().filter_map(|d| d.walk.as_ref());
        forks.chain(walk.map(|w| PollFd::new(w.answer.as_fd(), PollFlags::POLLIN))).collect()
    }

    /// How long.
    pub(super) fn patience(&self) -> PollTimeout {
        if self.verdict.is_some() {
            return PollTimeout::NONE;
        }
        let forks = self.forks.iter().filter(|f| !f.told).map(|_| FORKS);
        let disk = self.disk.iter().filter(|d| d.walk.is_none()).map(Disk::patience);
        let crowd = self.crowd.iter().map(|_| COUNTS);
        let soonest = forks.chain(disk).chain(crowd).min();
        soonest.map_or(PollTimeout::NONE, |s| PollTimeout::try_from(s).unwrap_or(PollTimeout::MAX))
    }

    /// Looks; true when the sandbox has to be killed.
    pub(super) fn look(&mut self) -> bool {
        if self.verdict.is_some() {
            return false;
        }
        if let Some(forks) = self.forks.take_if(|f| f.refused() >= MOST_REFUSALS) {
            self.verdict = Some(ExitKind::TooManyProcesses { limit: forks.limit });
            return true;
        }
        if let Some(crowd) = self.crowd.take_if(|c| c.is_too_much()) {
            self.verdict = Some(ExitKind::TooManyProcesses { limit: crowd.limit });
            return true;
        }
        if let Some(disk) = &mut self.disk {
            disk.hear();
            self.verdict = disk.verdict();
            if self.verdict.is_none() && disk.must_walk() {
                disk.begin(self.group, self.pid1, self.private);
            }
        }
        self.verdict.is_some()
    }

    /// The last word, when every process of the sandbox is dead.
    pub(super) fn finish(mut self) -> Option<ExitKind> {
        if let Some(disk) = &mut self.disk {
            disk.stop();
            if self.verdict.is_none() {
                disk.measured = measure(&disk.upper);
                self.verdict = disk.verdict();
            }
        }
        self.verdict.take()
    }
}

impl Forks {
    fn refused(&self) -> u64 {
        let mut text = [0; 256];
        let length = self.refused.read_at(&mut text, 0).unwrap_or(0);
        let text = std::str::from_utf8(&text[..length]).unwrap_or_default();
        text.lines().find_map(|l| l.strip_prefix("max ")?.trim().parse().ok()).unwrap_or(0)
    }
}

impl Crowd {
    fn is_too_much(&mut self) -> bool {
        if self.counted.elapsed() < COUNTS {
            return false;
        }
        let (now, limit) = (Instant::now(), u64::from(self.limit));
        self.counted = now;
        match self.count(limit * 2) {
            // Many users of the sandbox, each within its bound.
            n if n >= limit * 2 => true,
            n if n >= limit => now.duration_since(*self.full.get_or_insert(now)) >= CROWDED,
            _ => {
                self.full = None;
                false
            }
        }
    }

    /// The processes that the sandbox's own /proc shows, up to `most`; none where it is not really that.
    fn count(&self, most: u64) -> u64 {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let Ok(proc) = open(format!("/proc/{}/root/proc", self.pid1).as_str(), flags, Mode::empty()) else {
            return 0;
        };
        if sys::fs_type(&proc) != Ok(PROC_MAGIC) {
            return 0;
        }
        let Ok(mut dir) = Dir::from_fd(proc) else { return 0 };
        let mut n = 0;
        for entry in dir.iter().flatten() {
            n += u64::from(entry.file_name().to_bytes().first().is_some_and(u8::is_ascii_digit));
            if n >= most {
                break;
            }
        }
        n
    }
}

impl Room {
    fn of(directory: &OwnedFd) -> Self {
        let Ok(all) = fstatvfs(directory) else { return Self::default() };
        Self {
            bytes: all.blocks().saturating_sub(all.blocks_free()).saturating_mul(all.fragment_size()),
            files: all.files().saturating_sub(all.files_free()),
        }
    }
}

impl Disk {
    fn new(spec: &Spec) -> Option<Self> {
        let bounds = Bounds { bytes: spec.limits.disk.map(|d| d.0), files: spec.limits.files_at_most() };
        let RootFs::Overlay { upper, .. } = &spec.root else { return None };
        if bounds.bytes.is_none() && bounds.files.is_none() {
            return None;
        }
        // One that cannot be opened cannot be mounted, which PID 1 says better.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let upper = open(upper, flags, Mode::empty()).ok()?;
        let empty = Dir::openat(&upper, ".", flags, Mode::empty()).is_ok_and(|mut dir| {
            dir.iter().all(|e| e.is_ok_and(|e| matches!(e.file_name().to_bytes(), b"." | b"..")))
        });
        let (then, now) = (Room::of(&upper), Instant::now());
        // What is there already, in a container that was started before, is measured at once.
        let at = if empty { Some(now) } else { now.checked_sub(WALKS) };
        let at = at.unwrap_or(now);
        let measured = Measured::default();
        Some(Self { upper, bounds, then, measured, at, took: Duration::ZERO, walk: None })
    }

    /// How much it may still grow: bytes, files.
    fn left(&self) -> (u64, u64) {
        let now = Room::of(&self.upper);
        let left = |bound: Option<u64>, had: u64, now: u64, then: u64| {
            bound.map_or(u64::MAX, |b| b.saturating_sub(had.saturating_add(now.saturating_sub(then))))
        };
        (
            left(self.bounds.bytes, self.measured.bytes, now.bytes, self.then.bytes),
            left(self.bounds.files, self.measured.files, now.files, self.then.files),
        )
    }

    /// Until it could have reached a limit.
    fn patience(&self) -> Duration {
        let (bytes, files) = self.left();
        let of = |left: u64, speed: u64| Duration::from_micros(left / (speed / 1_000_000).max(1));
        let files = Duration::from_millis(files.saturating_mul(1000) / FILES_SPEED);
        of(bytes, SPEED).min(files).clamp(LOOKS.0, LOOKS.1)
    }

    fn must_walk(&self) -> bool {
        if self.walk.is_some() {
            return false;
        }
        let since = self.at.elapsed();
        let (bytes, files) = self.left();
        since >= self.took * REST && (bytes == 0 || files == 0 || since >= WALKS)
    }

    fn begin(&mut self, group: &Group, pid1: i32, private: [RawFd; 2]) {
        let (room, begun) = (Room::of(&self.upper), Instant::now());
        let Ok((answer, mut tell)) = std::io::pipe() else { return };
        match sys::fork() {
            Ok(None) => {
                super::pid1::die_with_the_supervisor();
                for fd in private {
                    let _ = nix::unistd::close(fd);
                }
                let mut measured = measure(&self.upper);
                measured.bytes = measured.bytes.saturating_add(deleted(group, pid1, &self.upper));
                let _ = tell.write_all(&measured.to_bytes());
                sys::exit_now(0)
            }
            Ok(Some(pid)) => self.walk = Some(Walk { pid, answer, room, begun }),
            // The next look tries again.
            Err(_) => {}
        }
    }

    /// Takes the answer of a walk that is over.
    fn hear(&mut self) {
        let Some(walk) = &mut self.walk else { return };
        let mut fds = [PollFd::new(walk.answer.as_fd(), PollFlags::POLLIN)];
        if !matches!(nix::poll::poll(&mut fds, PollTimeout::ZERO), Ok(1..)) {
            return;
        }
        let mut bytes = [0; Measured::LENGTH];
        let whole = walk.answer.read_exact(&mut bytes).is_ok();
        sys::reap(walk.pid, true);
        if whole {
            self.measured = Measured::from_bytes(bytes);
            self.then = walk.room;
        }
        (self.at, self.took) = (Instant::now(), walk.begun.elapsed());
        self.walk = None;
    }

    fn stop(&mut self) {
        if let Some(walk) = self.walk.take() {
            let _ = sys::kill(walk.pid, libc::SIGKILL);
            sys::reap(walk.pid, true);
        }
    }

    fn verdict(&self) -> Option<ExitKind> {
        let Measured { bytes, files, too_deep } = self.measured;
        match self.bounds {
            Bounds { bytes: Some(limit), .. } if bytes > limit => {
                Some(ExitKind::OutOfDisk { used: Bytes(bytes), limit: Bytes(limit) })
            }
            Bounds { files: Some(limit), .. } if files > limit || too_deep => {
                Some(ExitKind::TooManyFiles { used: files, limit })
            }
            _ => None,
        }
    }
}

impl Measured {
    const LENGTH: usize = 17;

    fn to_bytes(self) -> [u8; Self::LENGTH] {
        let mut out = [0; Self::LENGTH];
        out[..8].copy_from_slice(&self.bytes.to_le_bytes());
        out[8..16].copy_from_slice(&self.files.to_le_bytes());
        out[16] = self.too_deep.into();
        out
    }

    fn from_bytes(bytes: [u8; Self::LENGTH]) -> Self {
        let number = |at: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(eight)
        };
        Self { bytes: number(0), files: number(8), too_deep: bytes[16] != 0 }
    }
}

/// Walks an upper directory, by descriptors, while its sandbox may change it: no link is followed, a file with
/// several names counts once, and so does a folder that is moved meanwhile.
fn measure(upper: &OwnedFd) -> Measured {
    let mut seen = HashSet::new();
    let mut measured = Measured::default();
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let Ok(mut top) = Dir::openat(upper, ".", flags, Mode::empty()) else { return measured };
    walk(&mut top, 1, &mut seen, &mut measured);
    measured
}

fn walk(dir: &mut Dir, depth: usize, seen: &mut HashSet<u64>, measured: &mut Measured) {
    let Ok(at) = dir.as_fd().try_clone_to_owned() else {
        measured.too_deep = true;
        return;
    };
    for entry in dir.iter() {
        // What vanishes in between is not there.
        let Ok(entry) = entry else { return };
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let Ok(found) = fstatat(&at, name, AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
        let folder = is(&found, SFlag::S_IFDIR);
        if (folder || found.st_nlink > 1) && !seen.insert(found.st_ino) {
            continue;
        }
        measured.files += 1;
        measured.bytes = measured.bytes.saturating_add(blocks(&found));
        if !folder {
            continue;
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match Dir::openat(&at, name, flags, Mode::empty()) {
            Ok(_) | Err(Errno::EMFILE) if depth >= DEEPEST => measured.too_deep = true,
            Ok(mut inner) => walk(&mut inner, depth + 1, seen, measured),
            Err(Errno::EMFILE) => measured.too_deep = true,
            Err(_) => {}
        }
    }
}

fn is(found: &FileStat, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == kind
}

fn blocks(found: &FileStat) -> u64 {
    u64::try_from(found.st_blocks).unwrap_or(0).saturating_mul(BLOCK)
}

/// Bytes of deleted files of the root that the sandbox's processes have open.
fn deleted(group: &Group, pid1: i32, upper: &OwnedFd) -> u64 {
    // Overlayfs shows a file with the number of its own file system, or with that of the upper directory's.
    let own = [fstat(upper).map(|s| s.st_dev), stat(format!("/proc/{pid1}/root").as_str()).map(|s| s.st_dev)];
    let mut seen = HashSet::new();
    let mut bytes = 0u64;
    let mut looked = 0;
    for pid in group.members() {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let Ok(mut fds) = Dir::open(format!("/proc/{pid}/fd").as_str(), flags, Mode::empty()) else {
            continue;
        };
        let Ok(at) = fds.as_fd().try_clone_to_owned() else { continue };
        for fd in fds.iter().flatten() {
            looked += 1;
            if looked > MOST_OPEN {
                return bytes;
            }
            let Ok(found) = fstatat(&at, fd.file_name(), AtFlags::empty()) else { continue };
            let gone = found.st_nlink == 0 && is(&found, SFlag::S_IFREG);
            if gone && own.contains(&Ok(found.st_dev)) && seen.insert((found.st_dev, found.st_ino)) {
                bytes = bytes.saturating_add(blocks(&found));
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::openat;
    use std::fs;

    fn opened(path: &std::path::Path) -> OwnedFd {
        File::open(path).unwrap().into()
    }

    #[test]
    fn files_count_once_whatever_their_names() {
        let base = tempfile::tempdir_in("/dev/shm").unwrap();
        let at = |name: &str| base.path().join(name);
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/a"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(at("d/a"), at("b")).unwrap();
        std::os::unix::fs::symlink("/", at("out")).unwrap();
        // A hole takes no room.
        File::create(at("hole")).unwrap().set_len(1 << 30).unwrap();
        let measured = measure(&opened(base.path()));
        assert_eq!((measured.files, measured.too_deep), (4, false));
        assert!((1 << 20..(1 << 20) + 65_536).contains(&measured.bytes), "{measured:?}");
        assert_eq!(Measured::from_bytes(measured.to_bytes()), measured);
    }

    #[test]
    fn what_is_too_deep_to_count_is_said() {
        let base = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut deep = opened(base.path());
        for _ in 0..DEEPEST + 5 {
            nix::sys::stat::mkdirat(&deep, "d", Mode::S_IRWXU).unwrap();
            deep = openat(&deep, "d", OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        }
        assert!(measure(&opened(base.path())).too_deep);
    }
}
