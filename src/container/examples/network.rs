//! How long a private network takes: the first of a run, then one after the other, then four at a time.
//!
//! `cargo run --release -p keelway-container --example network [ROUNDS]`, as root. It works in a network namespace of its
//! own, and leaves the machine as it was.

use keelway_container::network::{Networks, Settings, Uplink};
use nix::sched::{CloneFlags, unshare};
use std::io::Write;
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(200), |n| n.parse())?;
    let rounds = rounds.max(4);
    unshare(CloneFlags::CLONE_NEWNET)?;
    let networks =
        Networks::new("example", Settings { range: None, resolv_conf: Vec::new(), uplink: Uplink::Machine });
    let mut out = std::io::stdout();
    let begun = Instant::now();
    networks.prepare()?;
    writeln!(out, "the router of a run: {:?}", begun.elapsed())?;
    let one = || -> Result<Duration, keelway_container::network::NetworkError> {
        let begun = Instant::now();
        let attached = networks.private()?;
        let took = begun.elapsed();
        drop(attached);
        Ok(took)
    };
    let mut times = (0..rounds).map(|_| one()).collect::<Result<Vec<_>, _>>()?;
    times.sort();
    writeln!(
        out,
        "one after the other: median {:?}, fastest {:?}, slowest {:?}",
        times[rounds / 2],
        times[0],
        times[rounds - 1]
    )?;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..rounds / 4).try_for_each(|_| one().map(drop)));
        }
    });
    let each = f64::from(u32::try_from(rounds)?) / begun.elapsed().as_secs_f64();
    writeln!(out, "four at a time: {each:.0} a second")?;
    Ok(())
}
