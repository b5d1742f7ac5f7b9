//! One measured command: wall time and the largest resident memory of any one of its processes.
//!
//! The command is started by a small process of its own (this binary again), because a child is charged with the
//! memory of whoever spawned it, and getrusage(2) has one figure for all children.

use nix::sys::resource::{UsageWho, getrusage};
use std::fs::File;
use std::io::{self, Read, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// First argument of the small process.
pub const ARGUMENT: &str = "__measure";

/// What was measured.
#[derive(Clone, Copy)]
pub struct Figure {
    /// Start to exit.
    pub wall: Duration,
    /// Largest resident set of any process of the command that was waited for, in bytes.
    pub peak: u64,
}

/// Runs a command to success in a process that measures it.
pub fn run(command: &Command) -> io::Result<Figure> {
    let mut errors = tempfile::tempfile()?;
    let mut outer = Command::new("/proc/self/exe");
    outer.arg(ARGUMENT).arg(command.get_program()).args(command.get_args());
    let out = outer.stdin(Stdio::null()).stderr(errors.try_clone()?).output()?;
    if !out.status.success() {
        let mut text = String::new();
        io::Seek::rewind(&mut errors)?;
        errors.read_to_string(&mut text)?;
        return Err(io::Error::other(format!("{command:?}: {}\n{text}", out.status)));
    }
    let text = String::from_utf8_lossy(&out.stdout);
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(nanos)), Some(Ok(peak))) => Ok(Figure { wall: Duration::from_nanos(nanos), peak }),
        _ => Err(io::Error::other(format!("the measuring process answered {text:?}"))),
    }
}

/// The small process: runs the command of its arguments, prints nanoseconds and bytes.
pub fn main(mut args: impl Iterator<Item = std::ffi::OsString>) -> io::Result<ExitCode> {
    let program = args.next().ok_or_else(|| io::Error::other("nothing to measure"))?;
    let quiet = File::options().write(true).open("/dev/null")?;
    let mut command = Command::new(program);
    command.args(args).stdout(quiet);
    let begun = Instant::now();
    let status = command.status()?;
    let wall = begun.elapsed().as_nanos();
    if !status.success() {
        return Ok(ExitCode::FAILURE);
    }
    // In KiB on Linux.
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss() * 1024;
    writeln!(io::stdout(), "{wall} {peak}")?;
    Ok(ExitCode::SUCCESS)
}
