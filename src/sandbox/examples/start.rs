//! How long a sandbox takes from start to exit, and how many a second: the figures of the docs, beside runc's.
//!
//! `tests/bench/start` runs it for root and for an ordinary user, on tmpfs and on a journaled ext4. By hand:
//! `cargo run --release -p keelway-sandbox --example start [RUNS [FOLDER]]`, with /bin/busybox static.

#![allow(clippy::print_stdout, reason = "a measurement that people read")]

use keelway_sandbox::{Launcher, LauncherConfig, Network, RootFs, Spec, Stdio, rootless};
use serde_json::json;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

type Failed = Box<dyn Error + Send + Sync>;

/// Runs before the clock counts.
const WARM: usize = 10;
/// How long nothing happens before a first start after an idle spell, and how many of those are measured.
const IDLE: Duration = Duration::from_secs(5);
const IDLE_ROUNDS: usize = 5;
/// Sandboxes side by side.
const SIDE_BY_SIDE: usize = 4;

fn main() -> Result<(), Failed> {
    let mut args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some(keelway_sandbox::INIT_ARGUMENT) => keelway_sandbox::init_main(),
        Some(rootless::ROOTLESS_ARGUMENT) => {
            args.remove(1);
        }
        _ if !nix::unistd::geteuid().is_root() => {
            return Err(rootless::enter(args.into_iter().skip(1).map(Into::into)).into());
        }
        _ => {}
    }
    let by_user = std::env::args().nth(1).as_deref() == Some(rootless::ROOTLESS_ARGUMENT);
    let runs: usize = args.get(1).map_or(Ok(200), |n| n.parse())?;
    let folder = args.get(2).map_or("/dev/shm", String::as_str);
    let base = tempfile::Builder::new().prefix("keelway-start-").tempdir_in(folder)?;
    let rootfs = base.path().join("root");
    std::fs::create_dir_all(rootfs.join("bin"))?;
    for dir in ["proc", "sys", "dev", "etc"] {
        std::fs::create_dir(rootfs.join(dir))?;
    }
    std::fs::copy("/bin/busybox", rootfs.join("bin/true"))?;
    let bench = Bench {
        launcher: Launcher::new(LauncherConfig::new(
            format!("keelway-start/run-{}", std::process::id()).parse()?,
        )),
        base: base.path().to_owned(),
        rootfs,
    };
    println!("{} in {folder}, {runs} runs", if by_user { "an ordinary user" } else { "root" });
    let mut cases = vec![
        ("the machine's network", Network::Host, false),
        ("own network namespace", Network::None, false),
    ];
    if !by_user {
        cases.push(("own network namespace, memory limit", Network::None, true));
    }
    for (name, network, memory) in &cases {
        bench.warm(name, runs, network, *memory)?;
    }
    bench.idle()?;
    if !by_user {
        bench.runc(runs.min(50))?;
    }
    Ok(())
}

struct Bench {
    launcher: Launcher,
    base: PathBuf,
    rootfs: PathBuf,
}

impl Bench {
    /// One sandbox from start to exit; the second time is until its program runs.
    fn one(&self, name: &str, network: &Network, memory: bool) -> Result<(Duration, Duration), Failed> {
        let spec = self.spec(name, network.clone(), memory)?;
        let stdio = Stdio::null()?;
        let begin = Instant::now();
        let mut running = self.launcher.spawn(&spec, stdio)?;
        let started = begin.elapsed();
        let exit = running.wait()?;
        match exit.success() {
            true => Ok((begin.elapsed(), started)),
            false => Err(format!("{exit:?}").into()),
        }
    }

    fn warm(&self, name: &str, runs: usize, network: &Network, memory: bool) -> Result<(), Failed> {
        let label = format!("{memory}-{network:?}");
        let mut times = Vec::with_capacity(runs);
        for i in 0..runs + WARM {
            let time = self.one(&format!("{label}-{i}"), network, memory)?;
            if i >= WARM {
                times.push(time);
            }
        }
        let begin = Instant::now();
        std::thread::scope(|scope| -> Result<(), Failed> {
            let work = |thread: usize| {
                let label = &label;
                move || {
                    (0..runs).try_for_each(|i| {
                        self.one(&format!("{label}-{thread}-{i}"), network, memory).map(drop)
                    })
                }
            };
            let threads: Vec<_> = (0..SIDE_BY_SIDE).map(|t| scope.spawn(work(t))).collect();
            threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|_| Err("a thread panicked".into())))
        })?;
        let rate = (SIDE_BY_SIDE * runs) as f64 / begin.elapsed().as_secs_f64();
        let started = middle(times.iter().map(|t| t.1));
        println!(
            "  {name}: {}, until it runs {:.2} ms; {SIDE_BY_SIDE} at a time {rate:.0} a second",
            spread(times.iter().map(|t| t.0)),
            ms(started)
        );
        Ok(())
    }

    fn idle(&self) -> Result<(), Failed> {
        let mut times = Vec::new();
        for i in 0..IDLE_ROUNDS {
            std::thread::sleep(IDLE);
            times.push(self.one(&format!("idle-{i}"), &Network::None, false)?.0);
        }
        println!(
            "  the first after {} s of nothing, own network namespace: {}",
            IDLE.as_secs(),
            spread(times.into_iter())
        );
        Ok(())
    }

    /// The same program under Debian's runc, with the same namespaces, its cgroup and its seccomp list: `runc run`.
    fn runc(&self, runs: usize) -> Result<(), Failed> {
        let bundle = self.base.join("bundle");
        std::fs::create_dir(&bundle)?;
        match Command::new("runc").arg("spec").current_dir(&bundle).status() {
            Ok(status) if status.success() => {}
            _ => {
                println!("  runc: not installed, not measured");
                return Ok(());
            }
        }
        let path = bundle.join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        config["process"]["args"] = json!(["/bin/true"]);
        config["process"]["terminal"] = json!(false);
        config["root"]["path"] = json!(self.rootfs);
        std::fs::write(&path, serde_json::to_vec(&config)?)?;
        let mut times = Vec::with_capacity(runs);
        for i in 0..runs + WARM {
            let begin = Instant::now();
            let name = format!("keelway-start-{}-{i}", std::process::id());
            let output = Command::new("runc").args(["run", "--bundle"]).arg(&bundle).arg(&name).output()?;
            if !output.status.success() {
                return Err(String::from_utf8_lossy(&output.stderr).into());
            }
            if i >= WARM {
                times.push(begin.elapsed());
            }
        }
        println!("  runc run, its own network namespace, no user namespace: {}", spread(times.into_iter()));
        Ok(())
    }

    fn spec(&self, name: &str, network: Network, memory: bool) -> Result<Spec, Failed> {
        let dir = self.base.join(name);
        let (upper, work) = (dir.join("upper"), dir.join("work"));
        std::fs::create_dir_all(&upper)?;
        std::fs::create_dir(&work)?;
        let root = RootFs::Overlay { lowers: vec![self.rootfs.clone()], upper, work };
        let mut spec = Spec::new(root, vec!["/bin/true".into()], format!("box-{name}").parse()?);
        spec.network = network;
        if memory {
            spec.limits.memory = Some(keelway_model::Bytes(256 << 20));
        }
        Ok(spec)
    }
}

fn middle(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<_> = times.collect();
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn spread(times: impl Iterator<Item = Duration>) -> String {
    let mut times: Vec<_> = times.collect();
    times.sort();
    let at =
        |part: usize| ms(times.get(times.len().saturating_sub(1) * part / 10).copied().unwrap_or_default());
    format!("median {:.2} ms, fastest {:.2}, nine of ten below {:.2}", at(5), at(0), at(9))
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}
