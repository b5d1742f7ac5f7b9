//! The end-to-end tests: the fresh binary on real input.
//!
//! Each test is a function that gets a [`World`] and panics when a promise is broken. A test that cannot run here
//! returns [`Skip`] with the reason; CI compares the skips with `tests/skips.txt`.

mod bad_input;
mod build;
mod caches;
mod commands;
mod container;
mod container_death;
mod container_streams;
mod contexts;
mod copying;
mod deploy;
mod deploy_faults;
mod exports;
mod fetching;
mod fleet;
mod kill;
mod limits;
mod lint;
mod mounts;
mod network;
mod oci;
mod pipeline;
mod registries;
mod reproducible;
mod rootless;
mod shipped;
mod source;
mod store;
mod tools;
mod watch;

use keelway_tests::env;
use libtest_mimic::{Arguments, Failed, Trial};
use std::io::Write;
use std::path::PathBuf;

/// What every test is given.
pub struct World {
    /// The binary under test.
    pub keelway: PathBuf,
    /// The top of the project.
    pub project: PathBuf,
}

impl World {
    fn new() -> Self {
        let keelway = env::binary(option_env!("CARGO_BIN_EXE_keelway"))
            .expect("cargo builds the binary before this test");
        let project = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
            .canonicalize()
            .expect("the project is there");
        Self { keelway, project }
    }
    /// A hermetic environment of its own.
    pub fn env(&self) -> env::Env {
        env::Env::new(&self.keelway).expect("a temporary home can be made")
    }
}

/// Why a test cannot run here.
pub struct Skip(pub String);

/// A test: its name, and what it does.
pub type Test = (&'static str, fn(&World) -> Ended);

/// How a test ends when it does not panic.
pub type Ended = Result<(), Skip>;

fn main() {
    keelway_tests::main_if_asked();
    let mut arguments = Arguments::from_args();
    // One after the other: several look at the whole machine for what a run left behind.
    arguments.test_threads.get_or_insert(1);
    let tests: Vec<Test> = [
        build::TESTS,
        caches::TESTS,
        commands::TESTS,
        container::TESTS,
        container_death::TESTS,
        container_streams::TESTS,
        contexts::TESTS,
        copying::TESTS,
        fetching::TESTS,
        pipeline::TESTS,
        shipped::TESTS,
        bad_input::TESTS,
        kill::TESTS,
        limits::TESTS,
        lint::TESTS,
        mounts::TESTS,
        network::TESTS,
        oci::TESTS,
        deploy::TESTS,
        deploy_faults::TESTS,
        exports::TESTS,
        source::TESTS,
        store::TESTS,
        watch::TESTS,
        registries::TESTS,
        reproducible::TESTS,
        rootless::TESTS,
        tools::TESTS,
    ]
    .concat();
    let trials = tests
        .into_iter()
        .map(|(name, test)| {
            Trial::test(name, move || {
                let ran = std::panic::catch_unwind(|| test(&World::new()));
                match ran {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(Skip(reason))) => {
                        let _ = writeln!(std::io::stdout(), "SKIPPED {name}: {reason}");
                        Ok(())
                    }
                    Err(panic) => {
                        let text = panic
                            .downcast_ref::<String>()
                            .cloned()
                            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                        Err(Failed::from(text.unwrap_or_else(|| "it panicked".into())))
                    }
                }
            })
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit();
}
