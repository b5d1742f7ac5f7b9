//! Processes of ours: their runtime, and how one starts another so that it outlives it.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;

/// The binary that runs now, also when its file was replaced or removed.
const SELF: &str = "/proc/self/exe";
/// A diary that has grown to this is begun anew at the next start.
const MAX_DIARY: u64 = 4 << 20;

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
/// bound to us: it calls [`detach`] first. Its end is awaited by the runtime, so that it leaves no zombie.
pub fn spawn(verb: &str, args: Vec<OsString>, diary: &Path) -> io::Result<()> {
    let out = open_diary(diary)?;
    let mut child = tokio::process::Command::new(SELF)
        .arg(verb)
        .args(args)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()?;
    tokio::spawn(async move { child.wait().await });
    Ok(())
}

fn open_diary(path: &Path) -> io::Result<File> {
    // Always appending: living processes share the file, and none may write at an offset of its own.
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    if file.metadata()?.len() > MAX_DIARY {
        file.set_len(0)?;
    }
    Ok(file)
}
