//! Processes of ours: their runtime, and how one starts another so that it outlives it.

use crate::diary::Diary;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::Stdio;

/// The binary that runs now, also when its file was replaced or removed.
const SELF: &str = "/proc/self/exe";

/// The end of a process that was started.
pub type Ending = tokio::task::JoinHandle<io::Result<std::process::ExitStatus>>;

/// A runtime for one of the host's processes.
pub fn runtime(name: &str) -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().thread_name(name).enable_all().build()
}

/// Leaves the session and the terminal of whoever started us, whose end would otherwise end us.
pub fn detach() {
    // Fails only for a leader of a process group, which is what we want to be.
    let _ = nix::unistd::setsid();
}

/// Starts this binary with `verb`, its input empty, what it says appended to the file `diary`. It is not
/// bound to us: it calls [`detach`] first. Its end is awaited by the runtime, so that it leaves no zombie, and seen by the
/// handle.
pub fn spawn(verb: &str, args: Vec<OsString>, diary: &Path) -> io::Result<Ending> {
    let out = Diary::at(diary).open()?;
    let mut child = tokio::process::Command::new(SELF)
        .arg(verb)
        .args(args)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()?;
    Ok(tokio::spawn(async move { child.wait().await }))
}
