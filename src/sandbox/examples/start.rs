//! How long a sandbox takes from start to exit, and how many a second: the figures of the docs.
//!
//! `cargo run --release -p keelway-sandbox --example start [RUNS]`, as root, with /bin/busybox static.

#![allow(clippy::print_stdout, reason = "a measurement that people read")]

use keelway_sandbox::{Launcher, LauncherConfig, Network, RootFs, Spec, Stdio};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).map(String::as_str) == Some(keelway_sandbox::INIT_ARGUMENT) {
        keelway_sandbox::init_main();
    }
    let runs: usize = args.get(1).map_or(Ok(200), |n| n.parse())?;
    let base = tempfile::Builder::new().prefix("keelway-start-").tempdir_in("/dev/shm")?;
    let rootfs = base.path().join("root");
    std::fs::create_dir_all(rootfs.join("bin"))?;
    for dir in ["proc", "sys", "dev", "etc"] {
        std::fs::create_dir(rootfs.join(dir))?;
    }
    std::fs::copy("/bin/busybox", rootfs.join("bin/true"))?;
    let parent = format!("keelway-start/run-{}", std::process::id()).parse()?;
    let launcher = Launcher::new(LauncherConfig::new(parent));
    for (name, network, memory) in [
        ("no network namespace, pids cgroup", Network::Host, false),
        ("own network namespace, pids cgroup", Network::None, false),
        ("own network namespace, pids and memory cgroups", Network::None, true),
    ] {
        let one = |i: usize| -> Result<(Duration, Duration), Box<dyn std::error::Error + Send + Sync>> {
            let spec = spec(base.path(), &rootfs, i, network.clone(), memory)?;
            let stdio = Stdio::null()?;
            let begin = Instant::now();
            let mut running = launcher.spawn(&spec, stdio)?;
            let started = begin.elapsed();
            let exit = running.wait()?;
            assert!(exit.success(), "{exit:?}");
            Ok((begin.elapsed(), started))
        };
        let mut times = Vec::with_capacity(runs);
        for i in 0..runs + 10 {
            let time = one(i).map_err(|e| e.to_string())?;
            // The first ones warm the machine.
            if i >= 10 {
                times.push(time);
            }
        }
        times.sort();
        let (median, started) = times[times.len() / 2];
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for thread in 1..=4 {
                let one = &one;
                scope.spawn(move || {
                    for i in 0..runs {
                        one(thread * 1_000_000 + i).expect("it ran before");
                    }
                });
            }
        });
        let rate = (4 * runs) as f64 / begin.elapsed().as_secs_f64();
        println!(
            "{name}: median {:.2} ms (until it runs {:.2} ms), min {:.2} ms, p90 {:.2} ms; 4 at a time {rate:.0} a second",
            ms(median),
            ms(started),
            ms(times[0].0),
            ms(times[times.len() * 9 / 10].0),
        );
    }
    Ok(())
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

fn spec(
    base: &Path,
    rootfs: &Path,
    i: usize,
    network: Network,
    memory: bool,
) -> Result<Spec, Box<dyn std::error::Error + Send + Sync>> {
    let dir: PathBuf = base.join(format!("{i}-{memory}-{network:?}"));
    let (upper, work) = (dir.join("upper"), dir.join("work"));
    std::fs::create_dir_all(&upper)?;
    std::fs::create_dir(&work)?;
    let root = RootFs::Overlay { lowers: vec![rootfs.to_owned()], upper, work };
    let mut spec = Spec::new(root, vec!["/bin/true".into()], format!("box-{i}").parse()?);
    spec.network = network;
    if memory {
        spec.limits.memory = Some(keelway_model::Bytes(256 << 20));
    }
    Ok(spec)
}
