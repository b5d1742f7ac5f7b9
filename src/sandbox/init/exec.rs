//! The last steps of the main process before it becomes the program of the spec.

use super::interpreter::interpreter;
use crate::error::{ExecError, SetupError};
use crate::spec::{DEFAULT_PATH, Spec};
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
    /// A NUL byte was refused by [`Spec::check`]; a text with one is cut there.
    pub(super) fn new(spec: &Spec) -> Self {
        let name = spec.argv.first().cloned().unwrap_or_default();
        let (candidates, searched) = if name.contains('/') {
            (vec![text(&name)], String::new())
        } else {
            let path =
                spec.env.iter().rev().find(|(k, _)| k == "PATH").map_or(DEFAULT_PATH, |(_, v)| v.as_str());
            let in_dir = |d: &str| if d.is_empty() { format!("./{name}") } else { format!("{d}/{name}") };
            let all = path.split(':').map(|d| text(&in_dir(d))).collect();
            (all, format!(" (searched PATH {path})"))
        };
        Self {
            candidates,
            searched,
            argv: Vector::new(spec.argv.iter().map(|a| text(a)).collect()),
            env: Vector::new(spec.env.iter().map(|(k, v)| text(&format!("{k}={v}"))).collect()),
            name,
        }
    }
}

fn text(s: &str) -> CString {
    CString::new(s.split('\0').next().unwrap_or_default()).unwrap_or_default()
}

/// Becomes the program, or reports why not and ends.
pub(super) fn become_program(
    spec: &Spec,
    program: &Program,
    stdio: [OwnedFd; 3],
    mut report: PipeWriter,
) -> ! {
    let error = match prepare(spec, &stdio) {
        Ok(()) => SetupError::Exec(execute(program)),
        Err((action, errno)) => SetupError::Step { action: action.into(), errno: errno.into() },
    };
    let _ = report.write_all(&serde_json::to_vec(&error).unwrap_or_default());
    sys::exit_now(127)
}

fn prepare(spec: &Spec, stdio: &[OwnedFd; 3]) -> Result<(), (&'static str, Errno)> {
    let what = |action: &'static str| move |errno| (action, errno);
    nix::unistd::setsid().map_err(what("begin a session"))?;
    for (fd, at) in stdio.iter().zip(0..) {
        sys::place_fd(fd.as_fd(), at).map_err(what("set up standard input and output"))?;
    }
    let groups: Vec<Gid> = spec.user.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    setgroups(&groups).map_err(what("set the groups"))?;
    let (gid, uid) = (Gid::from_raw(spec.user.gid), Uid::from_raw(spec.user.uid));
    setresgid(gid, gid, gid).map_err(what("set the group"))?;
    setresuid(uid, uid, uid).map_err(what("set the user"))?;
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
