//! An ordinary user's way in: the whole program becomes root of a user namespace of its own, once, before it has threads.
//!
//! Afterwards everything works as for root, within the ids that /etc/subuid and /etc/subgid give this user (or its own
//! single id, where they give none): files of the store have their owners, overlays are mounted, and nobody on the
//! machine gains a power that this user did not have. What a sandbox has to do differently there it sees by itself.

use crate::error::Errno as ShownErrno;
use crate::ids::IDS;
use crate::sys;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, getegid, geteuid, getpid, setgroups, setresgid, setresuid};
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// First argument of the program once it is root of its own namespace; the user's arguments follow.
pub const ROOTLESS_ARGUMENT: &str = "__rootless";
/// Where newuidmap(1) and newgidmap(1) are looked for. They are set-user-id programs of the system.
const HELPER_DIRS: [&str; 4] = ["/usr/bin", "/bin", "/usr/sbin", "/usr/local/bin"];
/// Largest /etc/subuid that is read, in bytes.
const MAX_TABLE: u64 = 1 << 20;

/// Ids that this user may map beside its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubRange {
    /// First id on the machine.
    pub start: u32,
    /// How many; at most 65535 are used.
    pub count: u32,
}

/// What this user may map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prospects {
    /// From /etc/subuid.
    pub users: Option<SubRange>,
    /// From /etc/subgid.
    pub groups: Option<SubRange>,
    /// newuidmap(1).
    pub newuidmap: Option<PathBuf>,
    /// newgidmap(1).
    pub newgidmap: Option<PathBuf>,
}

impl Prospects {
    /// Looks at the machine for the user of this process.
    pub fn look() -> Self {
        let uid = geteuid().as_raw();
        let name = user_name(&read_table("/etc/passwd"), uid);
        let helper = |program: &str| {
            HELPER_DIRS.iter().map(|d| Path::new(d).join(program)).find(|path| path.is_file())
        };
        Self {
            users: sub_range(&read_table("/etc/subuid"), name.as_deref(), uid),
            groups: sub_range(&read_table("/etc/subgid"), name.as_deref(), uid),
            newuidmap: helper("newuidmap"),
            newgidmap: helper("newgidmap"),
        }
    }

    /// Everything that more than one id takes.
    fn ranges(&self) -> Option<Plan<'_>> {
        let (users, groups) = (self.users?, self.groups?);
        Some(Plan {
            users,
            groups,
            newuidmap: self.newuidmap.as_deref()?,
            newgidmap: self.newgidmap.as_deref()?,
        })
    }

    /// Ids that a sandbox will have.
    pub fn ids(&self) -> u32 {
        self.ranges().map_or(1, |p| 1 + p.users.count.min(p.groups.count).min(IDS - 1))
    }
}

struct Plan<'a> {
    users: SubRange,
    groups: SubRange,
    newuidmap: &'a Path,
    newgidmap: &'a Path,
}

fn read_table(path: &str) -> String {
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|f| f.take(MAX_TABLE).read_to_string(&mut text));
    if read.is_ok() { text } else { String::new() }
}

fn user_name(passwd: &str, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    })
}

/// The first usable line for this user, by name or number.
fn sub_range(table: &str, name: Option<&str>, uid: u32) -> Option<SubRange> {
    let number = uid.to_string();
    table
        .lines()
        .filter_map(line_range)
        .find_map(|(who, range)| (Some(who) == name || who == number).then_some(range))
}

/// Every range that the machine's tables give to a user.
pub(crate) fn given_away() -> Vec<SubRange> {
    let all = [read_table("/etc/subuid"), read_table("/etc/subgid")].concat();
    all.lines().filter_map(|line| line_range(line).map(|(_, range)| range)).collect()
}

/// Who, and what of the ids.
fn line_range(line: &str) -> Option<(&str, SubRange)> {
    let mut fields = line.trim().split(':');
    let who = fields.next()?;
    let start: u32 = fields.next()?.parse().ok()?;
    let count: u32 = fields.next()?.parse().ok()?;
    // An end beyond the ids there are is no range.
    (count > 0 && start > 0 && start.checked_add(count).is_some()).then_some((who, SubRange { start, count }))
}

/// Why an ordinary user cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RootlessError {
    /// The kernel or its settings.
    #[error(
        "an ordinary user may not make user namespaces on this machine: {errno}; `keelway doctor` says what forbids it, or run as root"
    )]
    Namespace {
        /// How it failed.
        errno: ShownErrno,
    },
    /// The helpers.
    #[error(
        "cannot map the ids that /etc/subuid and /etc/subgid give this user: {detail}; `keelway doctor` says more"
    )]
    Map {
        /// What failed.
        detail: String,
    },
    /// Something else.
    #[error("cannot become root of an own user namespace: {action}: {source}")]
    Step {
        /// What was tried.
        action: &'static str,
        /// How it failed.
        source: io::Error,
    },
}

fn step(action: &'static str) -> impl FnOnce(Errno) -> RootlessError {
    move |errno| RootlessError::Step { action, source: errno.into() }
}

/// Executes this program again as root of a new user namespace with `arguments` after [`ROOTLESS_ARGUMENT`]. Returns only
/// when that fails. Only for a process with one thread.
pub fn enter(arguments: impl Iterator<Item = OsString>) -> RootlessError {
    // By its path: the link of /proc leads into the mount namespace that is left.
    let program = match fs::read_link("/proc/self/exe") {
        Ok(program) => program,
        Err(source) => return RootlessError::Step { action: "find this program", source },
    };
    if let Err(e) = become_root() {
        return e;
    }
    let source = Command::new(program).arg0("keelway").arg(ROOTLESS_ARGUMENT).args(arguments).exec();
    RootlessError::Step { action: "execute this program again", source }
}

/// First argument of the program when it shall start another as this user, with its own id: such as ssh, which looks for
/// the user's keys by id.
pub const OUTSIDE_ARGUMENT: &str = "__outside";

/// Executes a program as the user that this namespace belongs to, with its own ids and no other. Returns only when that
/// fails. Only for a process with one thread.
pub fn leave(command: &[OsString]) -> RootlessError {
    let Some((program, arguments)) = command.split_first() else {
        let source = io::Error::from(io::ErrorKind::InvalidInput);
        return RootlessError::Step { action: "start a program: none is named", source };
    };
    if let Err(e) = become_user() {
        return e;
    }
    let source = Command::new(program).args(arguments).exec();
    RootlessError::Step { action: "execute a program as this user", source }
}

fn become_user() -> Result<(), RootlessError> {
    let own = |map: &str| -> Option<u32> {
        let text = fs::read_to_string(format!("/proc/self/{map}")).ok()?;
        let first = text.lines().next()?;
        first.split_whitespace().nth(1)?.parse().ok()
    };
    let (Some(uid), Some(gid)) = (own("uid_map"), own("gid_map")) else {
        return Err(step("read the maps of this namespace")(Errno::ENODATA));
    };
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|e| RootlessError::Namespace { errno: e.into() })?;
    let write = |name: &str, text: String| {
        fs::write(format!("/proc/self/{name}"), text)
            .map_err(|source| RootlessError::Step { action: "map this user's own id back", source })
    };
    write("setgroups", "deny".into())?;
    write("uid_map", format!("{uid} 0 1"))?;
    write("gid_map", format!("{gid} 0 1"))
}

fn become_root() -> Result<(), RootlessError> {
    let prospects = Prospects::look();
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let namespaces = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS;
    let no_namespace = |e: Errno| RootlessError::Namespace { errno: e.into() };
    match prospects.ranges() {
        Some(plan) => {
            let helper = Helper::start(&plan, uid, gid)?;
            unshare(namespaces).map_err(no_namespace)?;
            helper.map()?;
        }
        None => {
            unshare(namespaces).map_err(no_namespace)?;
            let write = |name: &str, text: String| {
                fs::write(format!("/proc/self/{name}"), text)
                    .map_err(|source| RootlessError::Step { action: "map this user's own id", source })
            };
            write("setgroups", "deny".into())?;
            write("uid_map", format!("0 {uid} 1"))?;
            write("gid_map", format!("0 {gid} 1"))?;
        }
    }
    match setgroups(&[]) {
        // With a single id it is forbidden, and this user's groups stay.
        Ok(()) | Err(Errno::EPERM) => {}
        Err(e) => return Err(step("leave the groups")(e)),
    }
    let (root, group) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(group, group, group).map_err(step("become group 0"))?;
    setresuid(root, root, root).map_err(step("become user 0"))
}

/// A child that stays outside, since only from there the helpers work.
struct Helper {
    pid: i32,
    go: io::PipeWriter,
    answer: io::PipeReader,
}

impl Helper {
    fn start(plan: &Plan<'_>, uid: u32, gid: u32) -> Result<Self, RootlessError> {
        let pipe = || io::pipe().map_err(|source| RootlessError::Step { action: "make a pipe", source });
        let ((wait, go), (answer, mut tell)) = (pipe()?, pipe()?);
        let parent = getpid().as_raw();
        match sys::fork().map_err(step("fork"))? {
            Some(pid) => Ok(Self { pid, go, answer }),
            None => {
                drop((go, answer));
                let mut wait = wait;
                // Without the word the parent has failed or died.
                if wait.read(&mut [0]).is_ok_and(|n| n == 1) {
                    let mapped = run(plan.newuidmap, parent, uid, plan.users)
                        .and_then(|()| run(plan.newgidmap, parent, gid, plan.groups));
                    let _ = tell.write_all(mapped.err().unwrap_or_else(|| "done".into()).as_bytes());
                }
                sys::exit_now(0)
            }
        }
    }

    fn map(mut self) -> Result<(), RootlessError> {
        let told = self.go.write_all(b"!");
        drop(self.go);
        let mut answer = String::new();
        let heard = self.answer.read_to_string(&mut answer);
        sys::reap(self.pid, true);
        told.and(heard).map_err(|source| RootlessError::Step { action: "talk to the helper", source })?;
        if answer == "done" { Ok(()) } else { Err(RootlessError::Map { detail: answer }) }
    }
}

/// One of the system's two helpers: id 0 is the user's own, the others follow.
fn run(program: &Path, parent: i32, own: u32, range: SubRange) -> Result<(), String> {
    let count = range.count.min(IDS - 1);
    let numbers = [parent.to_string(), "0".into(), own.to_string(), "1".into()];
    let more = ["1".to_owned(), range.start.to_string(), count.to_string()];
    let output = Command::new(program).args(numbers).args(more).env_clear().output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(format!("{} said {said:?}", program.display()))
        }
        Err(e) => Err(format!("{}: {e}", program.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_name_or_number() {
        let passwd = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000:,,,:/home/ann:/bin/sh\nbroken\n";
        assert_eq!(user_name(passwd, 1000).as_deref(), Some("ann"));
        assert_eq!(user_name(passwd, 7), None);
        let table = "bob:1:2\nann:nonsense:1\nann:100000:65536\n7:300000:10\n8:4294967295:10\n9:0:5\n";
        let range = |start, count| Some(SubRange { start, count });
        assert_eq!(sub_range(table, Some("ann"), 1000), range(100_000, 65_536));
        assert_eq!(sub_range(table, None, 7), range(300_000, 10));
        assert_eq!(sub_range(table, None, 8), None, "beyond the ids there are");
        assert_eq!(sub_range(table, None, 9), None, "root's id is nobody's to give");
        assert_eq!(sub_range("", Some("ann"), 1000), None);
    }
}
