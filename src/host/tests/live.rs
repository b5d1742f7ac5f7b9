//! The processes of a host, for real: balancer, supervisor, keepers, sandboxes, networks.
//!
//! The binary is the test and, by its first argument, each of those processes. The tests run in a pid, net
//! and mount namespace of their own, so that nothing of them outlives them, whatever happens.

#![allow(clippy::unwrap_used, reason = "clippy does not see that a test with a main of its own is one")]

#[path = "live/backend.rs"]
mod backend;
#[path = "live/balancing.rs"]
mod balancing;
#[path = "live/diary.rs"]
mod diary;
#[path = "live/http.rs"]
mod http;
#[path = "live/replicas.rs"]
mod replicas;
#[path = "live/stalling.rs"]
mod stalling;

use keelway_host::{BalancerSettings, SuperviseSettings};
use libtest_mimic::{Arguments, Trial};
use std::ffi::OsString;
use std::io::Write;
use std::process::{Command, ExitCode};

/// Set in the namespaces: where the tests may write.
const SCRATCH: &str = "KEELWAY_LIVE_SCRATCH";

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let rest = args.get(1..).unwrap_or_default();
    match args.first().and_then(|a| a.to_str()) {
        Some("__init") => keelway_sandbox::init_main(),
        Some("__backend") => backend::run(rest),
        Some("__chatter") => diary::run(rest),
        Some("__get") => http::run(rest),
        Some("__supervise") => {
            let settings = SuperviseSettings::from_args(rest).expect("our own arguments");
            keelway_host::supervise::run(settings).code().into()
        }
        Some("__balancer") => {
            let settings = BalancerSettings::from_args(rest).expect("our own arguments");
            keelway_host::balancer::run(settings).code().into()
        }
        _ if std::env::var_os(SCRATCH).is_some() => tests(),
        _ => outside(&args),
    }
}

/// Runs this binary again in namespaces of its own.
fn outside(args: &[OsString]) -> ExitCode {
    if !nix::unistd::geteuid().is_root() {
        let _ = writeln!(std::io::stderr(), "these tests make namespaces and need root");
        return ExitCode::FAILURE;
    }
    let base = if std::path::Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" };
    let scratch = tempfile::Builder::new().prefix("kwlive").tempdir_in(base).expect("a folder");
    let me = std::env::current_exe().expect("our own path");
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .args(["sh", "-c", "mount -t tmpfs run /run && ip link set lo up && exec \"$0\" \"$@\""])
        .arg(me)
        .args(args)
        .env(SCRATCH, scratch.path())
        .status()
        .expect("util-linux has unshare");
    replicas::reap(scratch.path());
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A folder for one test.
fn scratch(name: &str) -> std::path::PathBuf {
    let dir = std::path::PathBuf::from(std::env::var_os(SCRATCH).expect("set outside")).join(name);
    std::fs::create_dir_all(&dir).expect("a folder");
    dir
}

fn tests() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They share ports, a bridge and two cores.
    arguments.test_threads = Some(1);
    let trials = vec![
        Trial::test("swaps_lose_nothing", || run(balancing::swaps_lose_nothing)),
        Trial::test("swaps_without_drain_lose_some", || run(balancing::swaps_without_drain_lose_some)),
        Trial::test("a_killed_balancer_has_its_pool_again", || run(balancing::killed_balancer)),
        Trial::test("requests_pass_unchanged_and_once", || run(balancing::requests_pass)),
        Trial::test("a_sick_backend_gets_nothing", || run(balancing::sick_backend)),
        Trial::test("a_client_that_stops_reading_is_given_up", || run(stalling::client_stops_reading)),
        Trial::test("a_slow_reader_is_not_cut", || run(stalling::slow_reader_is_not_cut)),
        Trial::test("a_client_that_stops_sending_is_given_up", || run(stalling::client_stops_sending)),
        Trial::test("a_replica_that_stops_answering_is_given_up", || run(stalling::replica_stops_answering)),
        Trial::test("quiet_tunnels_end_in_a_drain", || run(stalling::quiet_tunnels)),
        Trial::test("a_diary_stays_small", || run(diary::stays_small)),
        Trial::test("life_of_a_replica", || run(replicas::life)),
        Trial::test("whoever_is_killed_comes_back", || run(replicas::kills)),
        Trial::test("a_balancer_is_watched_from_the_first", || run(replicas::watched)),
        Trial::test("stubborn_broken_and_missing", || run(replicas::stubborn)),
        Trial::test("late_orders_are_refused", || run(replicas::fencing)),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn run(test: fn()) -> Result<(), libtest_mimic::Failed> {
    std::panic::catch_unwind(test).map_err(|p| {
        let text = p.downcast_ref::<String>().cloned();
        let text = text.or_else(|| p.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        text.unwrap_or_else(|| "panicked".into()).into()
    })
}
