//! Paths inside a directory descriptor: hostile names cannot leave it.
//!
//! A path is bytes, absolute or relative, and always means "inside this root": `/x` is `x`, `..` stops
//! at the root, and a symlink met on the way is followed *inside the root* (openat2 with
//! RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS). Operations on an entry itself never follow a symlink in
//! its last component, but for [`Root::open_dir`] and [`Root::open_file`], which follow it inside the root.

use crate::publish::temp_name;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat,
    chownat, fchmod, linkat, llistxattr, lremovexattr, lsetxattr, major, makedev, minor, mkdirat, mknodat,
    open, openat, openat2, readlinkat, renameat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

/// A directory as the root of paths.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
    /// A device node.
    Device {
        /// Character rather than block.
        character: bool,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// An entry's status, its symlink not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits, 07777.
    pub mode: u32,
    /// Owner on this disk.
    pub uid: u32,
    /// Group on this disk.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// Bytes that it takes of the disk.
    pub disk: u64,
    /// Number of names.
    pub links: u64,
    /// File system and inode.
    pub id: (u64, u64),
    /// Time of last change of content, whole seconds since the epoch.
    pub mtime: i64,
    /// The nanoseconds to it.
    pub mtime_nsec: i64,
    /// Time of last change of the inode, seconds and nanoseconds since the epoch.
    pub ctime: (i64, i64),
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirItem {
    /// The name, any bytes but `/` and NUL.
    pub name: Vec<u8>,
}

/// The directory that holds an entry.
enum Parent<'a> {
    Root(BorrowedFd<'a>),
    Inner(OwnedFd),
}

impl AsFd for Parent<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Root(fd) => *fd,
            Self::Inner(fd) => fd.as_fd(),
        }
    }
}

const DIR: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC).union(OFlags::RDONLY);

/// Longest list of attribute names, and longest value: the kernel's own bounds.
const XATTR_MAX: usize = 65536;

/// Deeper than this, a tree that is being removed is first cut into pieces: a descriptor is held for each
/// level, and their number is limited.
const REMOVE_DEPTH: usize = 32;

/// How often openat2 may lose against renames by others before we give up.
const RACES: usize = 100;

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

fn mode_bits(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

impl Root {
    /// Opens a trusted path of the host as a root; links in it are followed.
    pub fn open(path: &Path) -> io::Result<Root> {
        Ok(Root { fd: open(path, DIR, Mode::empty())? })
    }
    /// A second handle on the same directory.
    pub fn try_clone(&self) -> io::Result<Root> {
        Ok(Root { fd: self.fd.try_clone()? })
    }

    fn resolve(&self, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..RACES {
            match openat2(&self.fd, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
                // The kernel could not rule out that a rename elsewhere led it out of the root.
                Err(Errno::AGAIN) => {}
                other => return Ok(other?),
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// The directory that holds `path`, and the last component, which is `.` for the root itself.
    fn split<'p>(&self, path: &'p [u8]) -> io::Result<(Parent<'_>, &'p [u8])> {
        let end = path.iter().rposition(|&b| b != b'/').map_or(0, |i| i + 1);
        let path = &path[..end];
        if path.is_empty() {
            return Ok((Parent::Root(self.fd.as_fd()), b"."));
        }
        let (dir, name) = match path.iter().rposition(|&b| b == b'/') {
            Some(i) => (&path[..i], &path[i + 1..]),
            None => (&b""[..], path),
        };
        if name == b".." {
            return Err(invalid("a path that ends in '..' names no entry"));
        }
        match dir.iter().all(|&b| b == b'/') {
            true => Ok((Parent::Root(self.fd.as_fd()), name)),
            false => Ok((Parent::Inner(self.resolve(dir, OFlags::PATH | OFlags::DIRECTORY)?), name)),
        }
    }

    /// A directory inside, as a root of its own; a link at the end is followed inside this root.
    pub fn open_dir(&self, path: &[u8]) -> io::Result<Root> {
        Ok(Root { fd: self.resolve(path, DIR)? })
    }
    /// A directory inside, reached by the very names of `path`: `None` where there is none, or where a link is on the way.
    pub fn open_dir_by_names(&self, path: &[u8]) -> io::Result<Option<Root>> {
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match openat2(&self.fd, path, DIR, Mode::empty(), how) {
            Ok(fd) => Ok(Some(Root { fd })),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
    /// A regular file inside, for reading; a link at the end is followed inside this root. Anything but a
    /// regular file is refused, without blocking on a FIFO.
    pub fn open_file(&self, path: &[u8]) -> io::Result<File> {
        regular(self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?)
    }
    /// The same, but a link at the end is refused.
    pub fn open_file_nofollow(&self, path: &[u8]) -> io::Result<File> {
        let (dir, name) = self.split(path)?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        regular(openat(&dir, name, flags, Mode::empty())?)
    }
    /// A new regular file with exactly this mode (no umask); fails when there is something.
    pub fn create_file(&self, path: &[u8], mode: u32) -> io::Result<File> {
        let file = self.create_new(path)?;
        fchmod(&file, mode_bits(mode))?;
        Ok(file)
    }
    /// The same for who sets the mode when it is written ([`crate::set_attributes`]): its owner's alone until then.
    pub fn create_new(&self, path: &[u8]) -> io::Result<File> {
        let (dir, name) = self.split(path)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(openat(&dir, name, flags, Mode::RUSR | Mode::WUSR)?))
    }
    /// A new directory with exactly this mode; fails when there is something.
    pub fn mkdir(&self, path: &[u8], mode: u32) -> io::Result<()> {
        let (dir, name) = self.split(path)?;
        mkdirat(&dir, name, Mode::RWXU)?;
        let made = openat(&dir, name, DIR | OFlags::NOFOLLOW, Mode::empty())?;
        Ok(fchmod(&made, mode_bits(mode))?)
    }
    /// The directory and its missing parents, each missing one made with this mode; links on the way are
    /// followed inside the root.
    pub fn mkdir_all(&self, path: &[u8], mode: u32) -> io::Result<()> {
        let mut made = Vec::with_capacity(path.len());
        for part in path.split(|&b| b == b'/').filter(|p| !p.is_empty()) {
            made.push(b'/');
            made.extend_from_slice(part);
            match self.resolve(&made, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => self.mkdir(&made, mode)?,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
    /// A symbolic link with any target bytes.
    pub fn symlink(&self, target: &[u8], path: &[u8]) -> io::Result<()> {
        let (dir, name) = self.split(path)?;
        Ok(symlinkat(target, &dir, name)?)
    }
    /// A second name `new` for `old`, both inside; a link at the end of `old` is linked itself.
    pub fn hard_link(&self, old: &[u8], new: &[u8]) -> io::Result<()> {
        self.hard_link_to(old, self, new)
    }
    /// The same, with the new name in another directory.
    pub fn hard_link_to(&self, old: &[u8], there: &Root, new: &[u8]) -> io::Result<()> {
        let (old_dir, old_name) = self.split(old)?;
        let (new_dir, new_name) = there.split(new)?;
        Ok(linkat(&old_dir, old_name, &new_dir, new_name, AtFlags::empty())?)
    }
    /// A FIFO or device node with exactly this mode; fails when there is something.
    pub fn mknod(&self, path: &[u8], kind: NodeKind, mode: u32) -> io::Result<()> {
        let (dir, name) = self.split(path)?;
        let (kind, device) = match kind {
            NodeKind::Fifo => (FileType::Fifo, 0),
            NodeKind::Device { character, major, minor } => (
                if character { FileType::CharacterDevice } else { FileType::BlockDevice },
                makedev(major, minor),
            ),
            _ => return Err(invalid("mknod makes FIFOs and device nodes")),
        };
        mknodat(&dir, name, kind, mode_bits(mode), device)?;
        self.set_mode_at(&dir, name, mode)
    }
    /// Renames inside the root, replacing a file.
    pub fn rename(&self, from: &[u8], to: &[u8]) -> io::Result<()> {
        let (from_dir, from_name) = self.split(from)?;
        let (to_dir, to_name) = self.split(to)?;
        Ok(renameat(&from_dir, from_name, &to_dir, to_name)?)
    }
    /// Removes a file, link or empty directory.
    pub fn remove(&self, path: &[u8]) -> io::Result<()> {
        let (dir, name) = self.split(path)?;
        match unlinkat(&dir, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => Ok(unlinkat(&dir, name, AtFlags::REMOVEDIR)?),
            other => Ok(other?),
        }
    }
    /// Removes an entry with everything beneath it, without following a link or leaving the file system; one
    /// that is not there is fine.
    pub fn remove_all(&self, path: &[u8]) -> io::Result<()> {
        self.remove_tree(path, None).map(|_| ())
    }
    /// The same until `deadline`; says whether it is gone.
    pub fn remove_all_until(&self, path: &[u8], deadline: Instant) -> io::Result<bool> {
        self.remove_tree(path, Some(deadline))
    }

    fn remove_tree(&self, path: &[u8], deadline: Option<Instant>) -> io::Result<bool> {
        let (dir, name) = self.split(path)?;
        if name == b"." {
            return Err(invalid("the root itself is not removed"));
        }
        match unlinkat(&dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(true),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(e) => return Err(e.into()),
        }
        let Some(top) = same_disk_dir(&dir, name)? else { return Ok(true) };
        // Pieces that lay too deep come to the top and are met in the next round.
        while remove_beneath(&top, &top, 0, deadline)? == Beneath::Cut {}
        match unlinkat(&dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY) if deadline.is_some() => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Status of an entry, `None` when it or a parent is not there or a parent is no directory.
    pub fn stat(&self, path: &[u8]) -> io::Result<Option<Stat>> {
        let found =
            self.split(path).and_then(|(dir, name)| Ok(statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?));
        match found {
            Ok(s) => Ok(Some(Stat::from_raw(&s))),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(e),
        }
    }
    /// Target of a symbolic link.
    pub fn read_link(&self, path: &[u8]) -> io::Result<Vec<u8>> {
        let (dir, name) = self.split(path)?;
        Ok(readlinkat(&dir, name, Vec::new())?.into_bytes())
    }
    /// Names of a directory inside (a link at the end is followed inside the root), sorted as bytes.
    pub fn list(&self, path: &[u8]) -> io::Result<Vec<DirItem>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(self.resolve(path, DIR)?)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(DirItem { name });
            }
        }
        names.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(names)
    }
    /// Owner and group. Clears set-id bits, as chown does: set the mode afterwards.
    pub fn set_owner(&self, path: &[u8], uid: u32, gid: u32) -> io::Result<()> {
        if uid == u32::MAX || gid == u32::MAX {
            return Err(no_owner());
        }
        let (dir, name) = self.split(path)?;
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        chownat(&dir, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| owner_error(e, uid, gid))
    }
    /// Permission bits, 07777; a symbolic link is refused (it has none).
    pub fn set_mode(&self, path: &[u8], mode: u32) -> io::Result<()> {
        let (dir, name) = self.split(path)?;
        self.set_mode_at(&dir, name, mode)
    }

    fn set_mode_at(&self, dir: &Parent<'_>, name: &[u8], mode: u32) -> io::Result<()> {
        // chmod by name would follow a link; by an O_PATH descriptor it cannot.
        let fd = openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        if Stat::from_raw(&rustix::fs::fstat(&fd)?).kind == NodeKind::Symlink {
            return Err(invalid("a symbolic link has no mode"));
        }
        Ok(chmodat(rustix::fs::CWD, by_descriptor(&fd, b""), mode_bits(mode), AtFlags::empty())?)
    }
    /// Access and modification time.
    pub fn set_mtime(&self, path: &[u8], seconds: i64, nanoseconds: u32) -> io::Result<()> {
        let (dir, name) = self.split(path)?;
        let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(nanoseconds.min(999_999_999)) };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(utimensat(&dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }
    /// Extended attributes, sorted by name; none where the file system has none.
    pub fn xattrs(&self, path: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let (dir, name) = self.split(path)?;
        let at = by_descriptor(&dir, name);
        let mut small = [0u8; 256];
        let names = match llistxattr(at.as_slice(), &mut small[..]) {
            Ok(0) | Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Ok(n) => small[..n].to_vec(),
            Err(Errno::RANGE) => {
                let mut big = vec![0u8; XATTR_MAX];
                let n = llistxattr(at.as_slice(), &mut big[..])?;
                big.truncate(n);
                big
            }
            Err(e) => return Err(e.into()),
        };
        let mut out = Vec::new();
        for name in names.split(|&b| b == 0).filter(|n| !n.is_empty()) {
            let mut value = vec![0u8; XATTR_MAX];
            match rustix::fs::lgetxattr(at.as_slice(), name, &mut value[..]) {
                Ok(n) => value.truncate(n),
                // Listed, but gone or not readable as this file system presents it.
                Err(Errno::NODATA | Errno::NOTSUP) => continue,
                Err(e) => return Err(e.into()),
            }
            out.push((name.to_vec(), value));
        }
        out.sort();
        Ok(out)
    }
    /// Sets one extended attribute.
    pub fn set_xattr(&self, path: &[u8], name: &[u8], value: &[u8]) -> io::Result<()> {
        let (dir, last) = self.split(path)?;
        Ok(lsetxattr(by_descriptor(&dir, last), name, value, XattrFlags::empty())?)
    }
    /// Removes one extended attribute; one that is not there is fine.
    pub fn remove_xattr(&self, path: &[u8], name: &[u8]) -> io::Result<()> {
        let (dir, last) = self.split(path)?;
        match lremovexattr(by_descriptor(&dir, last), name) {
            Ok(()) | Err(Errno::NODATA) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Stat {
    fn from_raw(s: &rustix::fs::Stat) -> Stat {
        let device =
            |character| NodeKind::Device { character, major: major(s.st_rdev), minor: minor(s.st_rdev) };
        let kind = match FileType::from_raw_mode(s.st_mode) {
            FileType::Directory => NodeKind::Directory,
            FileType::Symlink => NodeKind::Symlink,
            FileType::Fifo => NodeKind::Fifo,
            FileType::Socket => NodeKind::Socket,
            FileType::CharacterDevice => device(true),
            FileType::BlockDevice => device(false),
            _ => NodeKind::File,
        };
        Stat {
            kind,
            mode: s.st_mode & 0o7777,
            uid: s.st_uid,
            gid: s.st_gid,
            size: u64::try_from(s.st_size).unwrap_or(0),
            disk: u64::try_from(s.st_blocks).unwrap_or(0).saturating_mul(512),
            links: s.st_nlink,
            id: (s.st_dev, s.st_ino),
            mtime: s.st_mtime,
            mtime_nsec: i64::try_from(s.st_mtime_nsec).unwrap_or(0),
            ctime: (s.st_ctime, i64::try_from(s.st_ctime_nsec).unwrap_or(0)),
        }
    }
}

/// A path for the system calls that take no descriptor. The link in /proc leads to the very directory that
/// is open; only `name`, one component, is looked up, and those calls do not follow it.
fn by_descriptor(dir: &impl AsFd, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()).into_bytes();
    if !name.is_empty() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    path
}

/// No id: the kernel takes it for "leave it".
pub(crate) fn no_owner() -> io::Error {
    invalid("4294967295 is no owner")
}

/// Why an owner could not be set.
pub(crate) fn owner_error(e: Errno, uid: u32, gid: u32) -> io::Error {
    match e {
        // The only thing about such a call that can be invalid.
        Errno::INVAL => io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "its owner {uid}:{gid} is not among the ids that this user may give to files; `keelway doctor` says how to get more"
            ),
        ),
        other => other.into(),
    }
}

fn regular(fd: OwnedFd) -> io::Result<File> {
    let file = File::from(fd);
    if file.metadata()?.is_file() { Ok(file) } else { Err(invalid("not a regular file")) }
}

/// Opens a directory to empty it, if it lies on the file system of its parent; `None` when it is gone.
fn same_disk_dir(dir: &impl AsFd, name: &[u8]) -> io::Result<Option<Root>> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match openat2(dir, name, DIR, Mode::empty(), how) {
        Ok(fd) => Ok(Some(Root { fd })),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[derive(PartialEq, Eq)]
enum Beneath {
    /// Empty now, or the deadline passed.
    Done,
    /// Something was too deep and now lies at the top.
    Cut,
}

/// Empties `dir`. What lies deeper than [`REMOVE_DEPTH`] is moved up into `top`.
fn remove_beneath(top: &Root, dir: &Root, depth: usize, deadline: Option<Instant>) -> io::Result<Beneath> {
    let mut end = Beneath::Done;
    for item in dir.list(b"")? {
        if deadline.is_some_and(|d| Instant::now() >= d) {
            return Ok(Beneath::Done);
        }
        match unlinkat(dir, &item.name[..], AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(e) => return Err(e.into()),
        }
        if depth >= REMOVE_DEPTH {
            renameat(dir, &item.name[..], top, temp_name()?)?;
            end = Beneath::Cut;
            continue;
        }
        let Some(inner) = same_disk_dir(dir, &item.name)? else { continue };
        if remove_beneath(top, &inner, depth + 1, deadline)? == Beneath::Cut {
            end = Beneath::Cut;
        }
        match unlinkat(dir, &item.name[..], AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            // Others delete here too, or the deadline passed beneath.
            Err(Errno::NOTEMPTY) if deadline.is_some() => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(end)
}

#[cfg(test)]
mod tests;
