//! `keelway-rig`: the first command of the README, and the load generator it starts inside the rig.
//!
//! `keelway-rig demo KEELWAY EXAMPLE` makes the rig, pushes base images, makes a git repository of the example, runs the
//! pipeline for its first commit, then for a second one under load, and ends with
//! `requests: N, lost: N, duplicated: N`. It fails unless both zeros are there and the run proves something.

use keelway_tests::base::{self, Base};
use keelway_tests::demo;
use keelway_tests::rig;
use nix::sys::signal::{SigSet, Signal};
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    keelway_tests::main_if_asked();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["demo", ..] => guarded(&args),
        ["__demo", keelway, example] => {
            // The mask of whoever waits for us was inherited; we are to be ended by them.
            ending_signals()
                .thread_unblock()
                .map_err(io::Error::from)
                .and_then(|()| demo::run(Path::new(keelway), Path::new(example)))
        }
        ["bases"] => [Base::Busybox, Base::Python].into_iter().try_for_each(|b| {
            let layout = base::oci_layout(b)?;
            writeln!(io::stdout(), "{} {}", b.name(), layout.display())
        }),
        ["reap"] => {
            rig::reap();
            Ok(())
        }
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

/// What ends a program from outside.
fn ending_signals() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals
}

/// Does the work in a child and cleans up after it however it ended: a Ctrl-C ends the child, not us.
fn guarded(args: &[String]) -> io::Result<()> {
    ending_signals().thread_block()?;
    let mut child = Command::new(std::env::current_exe()?).arg("__demo").args(&args[1..]).spawn()?;
    let status = child.wait()?;
    rig::reap();
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("the demonstration ended with {status}")))
    }
}
