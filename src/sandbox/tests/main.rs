//! Real sandboxes, as root, over a busybox root on /dev/shm.
//!
//! This binary is its own init (`__init`), the owner that gets killed (`__owner`, `__loop`) and the program
//! that tries forbidden system calls inside (`__probe`).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod death;
mod files;
mod fixture;
mod foreign;
mod hardening;
mod hostile;
mod isolation;
mod joined;
mod limits;
mod probe;
mod process;
mod rootless;
mod terminals;
mod trees;
mod users;

use libtest_mimic::{Arguments, Failed, Trial};

type Test = (&'static str, fn() -> Result<(), Failed>);

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some(keelway_sandbox::INIT_ARGUMENT) => keelway_sandbox::init_main(),
        Some("__as_user") => rootless::enter(&args[2..]),
        Some(keelway_sandbox::rootless::ROOTLESS_ARGUMENT) => return rootless::inside(&args[2..]),
        Some("__probe") => return probe::main(&args[2..]),
        Some("__owner") => return death::owner(&args[2..]),
        Some("__loop") => return death::many(&args[2..]),
        Some("__storm") => return death::storm(&args[2..]),
        _ => {}
    }
    let tests: Vec<Test> = [
        process::TESTS,
        files::TESTS,
        foreign::TESTS,
        hardening::TESTS,
        hostile::TESTS,
        isolation::TESTS,
        limits::TESTS,
        death::TESTS,
        users::TESTS,
        rootless::TESTS,
        joined::TESTS,
        terminals::TESTS,
        trees::TESTS,
    ]
    .concat();
    let trials = tests.into_iter().map(|(name, test)| Trial::test(name, test)).collect();
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials);
    fixture::clean();
    conclusion.exit_code()
}
