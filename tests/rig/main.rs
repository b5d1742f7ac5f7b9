//! `keelway-rig`: the first command of the README, and the load generator it starts inside the rig.
//!
//! `keelway-rig demo KEELWAY EXAMPLE` makes the rig, pushes base images, makes a git repository of the example, runs the
//! pipeline for its first commit, then for a second one under load, and ends with
//! `requests: N, lost: N, duplicated: N`. It fails unless both zeros are there and the run proves something.

use keelway_tests::base::{self, Base};
use keelway_tests::rig;
use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    // The demonstration is one of those, so that tests can be it too.
    keelway_tests::main_if_asked();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
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
