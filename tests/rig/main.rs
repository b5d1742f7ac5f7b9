//! `keelway-rig`: the first command of the README, and the load generator it starts inside the rig.
//!
//! `keelway-rig demo KEELWAY EXAMPLE` makes the rig, pushes base images, makes a git repository of the example, runs the
//! pipeline for its first commit, then for a second one under load, and ends with
//! `requests: N, lost: N, duplicated: N`. It fails unless both zeros are there and the run proves something.

use keelway_tests::base::{self, Base};
use keelway_tests::demo;
use keelway_tests::load::{self, Load};
use keelway_tests::rig;
use nix::sys::signal::{SigSet, Signal};
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    rig::node::main_if_asked();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["demo", ..] => guarded(&args),
        ["__demo", keelway, example] => demo::run(Path::new(keelway), Path::new(example)),
        ["bases"] => [Base::Busybox, Base::Python].into_iter().try_for_each(|b| {
            let layout = base::oci_layout(b)?;
            writeln!(io::stdout(), "{} {}", b.name(), layout.display())
        }),
        ["reap"] => {
            rig::reap();
            Ok(())
        }
        ["__load", prefix, rate, most, targets @ ..] => send(prefix, rate, most, targets),
        _ => Err(io::Error::other("usage: keelway-rig demo KEELWAY EXAMPLE | bases | reap")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "keelway-rig: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Does the work in a child and cleans up after it however it ended: a Ctrl-C ends the child, not us.
fn guarded(args: &[String]) -> io::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    let mut child = Command::new(std::env::current_exe()?).arg("__demo").args(&args[1..]).spawn()?;
    let status = child.wait()?;
    rig::reap();
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("the demonstration ended with {status}")))
    }
}

/// Sends until standard input ends, then writes the book to standard output. A line `first` goes out
/// before it, when the first 50 requests were answered.
fn send(prefix: &str, rate: &str, most: &str, targets: &[&str]) -> io::Result<()> {
    let number = |s: &str| s.parse::<u32>().map_err(io::Error::other);
    let targets =
        targets.iter().map(|t| t.parse().map_err(io::Error::other)).collect::<io::Result<Vec<_>>>()?;
    let load = Load { targets, rate: number(rate)?, most: number(most)?, prefix: prefix.to_owned() };
    let (tell, told) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _ = io::stdin().lock().lines().count();
        let _ = tell.send(());
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let book = runtime.block_on(load::run(load, async {
        let _ = told.await;
    }));
    let mut out = io::BufWriter::new(io::stdout().lock());
    for entry in book {
        writeln!(out, "{}", entry.to_json())?;
    }
    out.flush()
}
