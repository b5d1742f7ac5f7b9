//! The last steps of the main process before it becomes the program of the spec.

use super::interpreter::interpreter;
use super::terminal::Terminal;
use crate::archive;
use crate::caps;
use crate::error::{ExecError, SetupError};
use crate::spec::{CapProfile, DEFAULT_PATH, User, Work};
use crate::sys::{self, Vector};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use std::ffi::CString;
use std::io::{PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

/// How much of a file tells its interpreter.
const HEAD: u64 = 64 << 10;

/// Arguments, environment and where to look, ready for exec.
pub(super) struct Program {
    name: String,
    candidates: Vec<CString>,
    searched: String,
    argv: Vector,
    env: Vector,
}

impl Program {
    /// A NUL byte was refused when the spec was checked; a text with one is cut there.
    pub(super) fn new(argv: &[String], env: &[(String, String)]) -> Self {
        let name = argv.first().cloned().unwrap_or_default();
        let (candidates, searched) = if name.contains('/') {
            (vec![text(&name)], String::new())
        } else {
            let path = env.iter().rev().find(|(k, _)| k == "PATH").map_or(DEFAULT_PATH, |(_, v)| v.as_str());
            let in_dir = |d: &str| if d.is_empty() { format!("./{name}") } else { format!("{d}/{name}") };
            let all = path.split(':').map(|d| text(&in_dir(d))).collect();
            (all, format!(" (searched PATH {path})"))
        };
        Self {
            candidates,
            searched,
            argv: Vector::new(argv.iter().map(|a| text(a)).collect()),
            env: Vector::new(env.iter().map(|(k, v)| text(&format!("{k}={v}"))).collect()),
            name,
        }
    }
}

fn text(s: &str) -> CString {
    CString::new(s.split('\0').next().unwrap_or_default()).unwrap_or_default()
}

/// Where a program reads and writes.
pub(super) enum Streams {
    Three([OwnedFd; 3]),
    /// All three, and the terminal of its session.
    Terminal(OwnedFd),
}

impl Streams {
    /// A terminal takes the place of the three; its owner's side comes back.
    pub(super) fn of(three: [OwnedFd; 3], terminal: Option<Terminal>) -> (Self, Option<OwnedFd>) {
        match terminal {
            Some(Terminal { owner, process }) => (Self::Terminal(process), Some(owner)),
            None => (Self::Three(three), None),
        }
    }
}

/// Becomes the program, or reports why not and ends.
pub(super) fn become_program(
    user: &User,
    caps: CapProfile,
    work: &Work,
    program: &Program,
    streams: Streams,
    report: PipeWriter,
) -> ! {
    let error = match prepare(user, caps, &streams) {
        Ok(()) if *work != Work::Program => {
            // No exec closes them. That of the report says that all is well.
            let _ = sys::close_from(3);
            sys::exit_now(archive::work(work))
        }
        Ok(()) => SetupError::Exec(execute(program)),
        Err((action, errno)) => SetupError::Step { action: action.into(), errno: errno.into() },
    };
    self::report(&error, report)
}

/// Says why the program is not executed, and ends.
pub(super) fn report(error: &SetupError, mut to: PipeWriter) -> ! {
    let _ = to.write_all(&serde_json::to_vec(error).unwrap_or_default());
    sys::exit_now(127)
}

fn prepare(user: &User, caps: CapProfile, streams: &Streams) -> Result<(), (&'static str, Errno)> {
    let what = |action: &'static str| move |errno| (action, errno);
    nix::unistd::setsid().map_err(what("begin a session"))?;
    let fds = match streams {
        Streams::Three(fds) => fds.each_ref(),
        Streams::Terminal(terminal) => {
            sys::take_terminal(terminal.as_fd()).map_err(what("take the terminal"))?;
            [terminal; 3]
        }
    };
    for (fd, at) in fds.iter().zip(0..) {
        sys::place_fd(fd.as_fd(), at).map_err(what("set up standard input and output"))?;
    }
    let groups: Vec<Gid> = user.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    match setgroups(&groups) {
        // In the namespace of a user who may map only its own group, whose groups stay as they are.
        Err(Errno::EPERM) if groups.is_empty() => {}
        other => other.map_err(what("set the groups"))?,
    }
    let (gid, uid) = (Gid::from_raw(user.gid), Uid::from_raw(user.uid));
    setresgid(gid, gid, gid).map_err(what("set the group"))?;
    setresuid(uid, uid, uid).map_err(what("set the user"))?;
    caps::narrow(caps, user.uid).map_err(what("drop capabilities"))?;
    sys::default_signals();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(what("unblock signals"))?;
    sys::close_on_exec_from(3).map_err(what("close descriptors"))
}

/// As execvp(3) searches, but every failure has its reason.
fn execute(program: &Program) -> ExecError {
    let mut found: Option<ExecError> = None;
    for candidate in &program.candidates {
        let errno = sys::exec(candidate, &program.argv, &program.env);
        let path = candidate.to_string_lossy().into_owned();
        match errno {
            Errno::ENOENT | Errno::ENOTDIR if std::fs::symlink_metadata(&path).is_ok_and(|m| m.is_file()) => {
                found.get_or_insert(ExecError::Interpreter {
                    interpreter: named_interpreter(&path),
                    program: path,
                });
            }
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => {
                found.get_or_insert(ExecError::Denied { program: path });
            }
            Errno::ENOEXEC => return ExecError::Format { program: path },
            other => return ExecError::Other { program: path, errno: other.into() },
        }
    }
    found.unwrap_or_else(|| ExecError::NotFound {
        program: program.name.clone(),
        searched: program.searched.clone(),
    })
}

fn named_interpreter(path: &str) -> String {
    let mut head = Vec::new();
    let read = std::fs::File::open(path).and_then(|f| f.take(HEAD).read_to_end(&mut head));
    read.ok().and_then(|_| interpreter(&head)).unwrap_or_else(|| "its interpreter".into())
}
