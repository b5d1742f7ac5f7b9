//! Bounds that hold.

use crate::Test;
use crate::fixture::*;
use keelway_model::Bytes;
use keelway_sandbox::ExitKind;
use libtest_mimic::Failed;

pub const TESTS: &[Test] = &[
    ("limits::x01_a_fork_bomb_is_bounded", fork_bomb),
    ("limits::x02_out_of_memory_is_told", out_of_memory),
    ("limits::out_of_memory_of_a_child", child_out_of_memory),
    ("limits::memory_that_suffices", enough_memory),
    ("limits::cpu_time", cpu),
    ("limits::shared_memory_is_bounded", shm),
    ("limits::usage_is_counted", usage),
];

fn fork_bomb() -> Result<(), Failed> {
    let mut spec = sh("f() { f | f & }; f; i=0; while [ $i -lt 200 ]; do i=$((i+1)); sleep 9 & done; exit 0");
    spec.limits.pids = Some(20);
    let mut started = start(&spec)?;
    // The bomb goes off until it hits the bound; then all of it dies at once.
    let mut one = [0];
    std::io::Read::read_exact(&mut started.output, &mut one)?;
    let drain = std::thread::spawn(move || std::io::copy(&mut started.output, &mut std::io::sink()));
    started.running.kill()?;
    let exit = started.running.wait()?;
    drain.join().unwrap()?;
    assert!(exit.usage.pids_refused > 0, "{exit:?}");
    Ok(())
}

fn out_of_memory() -> Result<(), Failed> {
    let mut spec = probe(&["eat"]);
    spec.limits.memory = Some(Bytes(64 << 20));
    let (exit, _) = run(&spec);
    assert_eq!(exit.kind, ExitKind::OutOfMemory);
    assert!(exit.usage.oom_kills >= 1);
    let peak = exit.usage.peak_memory.expect("counted").0;
    assert!((32 << 20..=64 << 20).contains(&peak), "{peak}");
    Ok(())
}

fn child_out_of_memory() -> Result<(), Failed> {
    let mut spec = sh("dd if=/dev/zero of=/dev/null bs=200M count=1; exit 5");
    spec.limits.memory = Some(Bytes(32 << 20));
    assert_eq!(run(&spec).0.kind, ExitKind::OutOfMemory);
    Ok(())
}

fn enough_memory() -> Result<(), Failed> {
    let mut spec = sh("dd if=/dev/zero of=/dev/null bs=8M count=1 2>/dev/null");
    spec.limits.memory = Some(Bytes(64 << 20));
    assert!(run(&spec).0.success());
    Ok(())
}

fn cpu() -> Result<(), Failed> {
    // A tenth of a core: burning a tenth of a second of CPU takes about a second.
    let mut spec = sh("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done");
    let begin = std::time::Instant::now();
    let free = run(&spec).0.usage.cpu;
    let took_free = begin.elapsed();
    spec.root = over(vec![busybox()]);
    spec.limits.cpu_millis = Some(100);
    let begin = std::time::Instant::now();
    assert!(run(&spec).0.success());
    let took = begin.elapsed();
    assert!(took > took_free && took > free * 3, "{took:?} against {free:?} of CPU time");
    Ok(())
}

fn shm() -> Result<(), Failed> {
    let mut spec = sh("head -c 1000000 /dev/zero > /dev/shm/x || echo full");
    spec.shm_size = Bytes(100 << 10);
    assert!(ok(&spec).ends_with("full\n"));
    Ok(())
}

fn usage() -> Result<(), Failed> {
    let (exit, _) = run(&sh("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"));
    assert!(exit.usage.cpu > std::time::Duration::from_millis(10), "{exit:?}");
    Ok(())
}
