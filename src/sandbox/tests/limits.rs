//! Bounds that hold.

use crate::Test;
use crate::fixture::*;
use keelway_model::Bytes;
use keelway_model::limits::Io;
use keelway_sandbox::{ExitKind, Launcher, LauncherConfig, Limit, RootFs, Stdio};
use libtest_mimic::Failed;

pub const TESTS: &[Test] = &[
    ("limits::x01_a_fork_bomb_is_bounded", fork_bomb),
    ("limits::x02_out_of_memory_is_told", out_of_memory),
    ("limits::out_of_memory_of_a_child", child_out_of_memory),
    ("limits::memory_that_suffices", enough_memory),
    ("limits::cpu_time", cpu),
    ("limits::shared_memory_is_bounded", shm),
    ("limits::usage_is_counted", usage),
    ("limits::a_bomb_that_goes_on_is_ended", endless_bomb),
    ("limits::x03_a_disk_filler_is_ended_with_its_overshoot", disk_filler),
    ("limits::deleted_files_that_are_open_count", deleted_files),
    ("limits::x03_files_without_end", file_filler),
    ("limits::what_was_too_much_never_succeeds", quick_filler),
    ("limits::a_disk_that_suffices", enough_disk),
    ("limits::what_was_there_before_counts", kept_upper),
    ("limits::open_files", open_files),
    ("limits::traffic_with_the_disk", traffic),
    ("limits::a_disk_that_is_none_is_refused_by_name", no_disk),
    ("limits::sigterm_ignored_is_killed", stubborn),
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
    spec.limits.shm = Some(Bytes(100 << 10));
    assert!(ok(&spec).ends_with("full\n"));
    Ok(())
}

fn usage() -> Result<(), Failed> {
    let (exit, _) = run(&sh("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"));
    assert!(exit.usage.cpu > std::time::Duration::from_millis(10), "{exit:?}");
    Ok(())
}

fn endless_bomb() -> Result<(), Failed> {
    // A shell ends when it cannot fork, and the limit is named all the same.
    let mut spec = sh("while :; do sleep 100 & done");
    spec.limits.pids = Some(40);
    let (exit, _) = run(&spec);
    assert!(matches!(exit.kind, ExitKind::Code(1..)) && exit.limit() == Some(Limit::Processes), "{exit:?}");
    assert!(exit.to_string().contains("raise `limits.pids`"), "{exit}");
    // One that copes with every refusal never would.
    let mut spec = probe(&["fork-for-ever"]);
    spec.limits.pids = Some(40);
    let (exit, _) = run(&spec);
    assert_eq!(exit.kind, ExitKind::TooManyProcesses { limit: 40 });
    assert!(exit.usage.pids_refused >= 1000, "{exit:?}");
    Ok(())
}

/// What a filler that is ended has written, and its limit.
fn over_disk(kind: &ExitKind) -> (u64, u64) {
    match kind {
        ExitKind::OutOfDisk { used, limit } => (used.0, limit.0),
        other => panic!("{other:?}"),
    }
}

fn disk_filler() -> Result<(), Failed> {
    let mut spec = sh("cat /dev/zero > /tmp/fill; exit 0");
    spec.limits.disk = Some(Bytes(32 << 20));
    let (exit, _) = run(&spec);
    let (used, limit) = over_disk(&exit.kind);
    // Into memory, by the fastest writer there is.
    assert!(used > limit && used < limit + (256 << 20), "{used}");
    assert!(exit.to_string().contains("raise `limits.disk` or --disk"), "{exit}");
    Ok(())
}

fn deleted_files() -> Result<(), Failed> {
    let mut spec = sh("exec 3> /tmp/fill; rm /tmp/fill; cat /dev/zero >&3");
    spec.limits.disk = Some(Bytes(16 << 20));
    let (used, limit) = over_disk(&run(&spec).0.kind);
    assert!(used > limit);
    Ok(())
}

fn file_filler() -> Result<(), Failed> {
    let mut spec = sh("mkdir /tmp/d; i=0; while :; do i=$((i+1)); : > /tmp/d/$i; done");
    spec.limits.files = Some(500);
    let (exit, _) = run(&spec);
    let ExitKind::TooManyFiles { used, limit: 500 } = exit.kind else { panic!("{exit:?}") };
    assert!((501..100_000).contains(&used), "{used}");
    // A bound on bytes brings one along.
    let mut spec = sh("i=0; while [ $i -lt 11000 ]; do i=$((i+1)); : > /tmp/$i; done");
    spec.limits.disk = Some(Bytes(1 << 30));
    assert!(run(&spec).0.success(), "so many are fine");
    renew(&mut spec);
    spec.limits.disk = Some(Bytes(4 << 20));
    let (exit, _) = run(&spec);
    assert!(matches!(exit.kind, ExitKind::TooManyFiles { limit: 10_000, .. }), "{exit:?}");
    Ok(())
}

fn quick_filler() -> Result<(), Failed> {
    // Over before anybody looks.
    for _ in 0..5 {
        let mut spec = sh("head -c 200000 /dev/zero > /tmp/fill");
        spec.limits.disk = Some(Bytes(100_000));
        over_disk(&run(&spec).0.kind);
    }
    Ok(())
}

fn enough_disk() -> Result<(), Failed> {
    // Written again and again, it is never more than its limit.
    let mut spec =
        sh("i=0; while [ $i -lt 20 ]; do i=$((i+1)); head -c 4000000 /dev/zero > /tmp/f; rm /tmp/f; done");
    spec.limits.disk = Some(Bytes(6_000_000));
    let (exit, _) = run(&spec);
    assert!(exit.success(), "{exit}");
    Ok(())
}

fn kept_upper() -> Result<(), Failed> {
    let mut spec = sh("sleep 30");
    std::fs::write(upper(&spec).join("old"), vec![1; 1 << 20])?;
    spec.limits.disk = Some(Bytes(1 << 19));
    over_disk(&run(&spec).0.kind);
    Ok(())
}

fn open_files() -> Result<(), Failed> {
    let mut spec = sh("ulimit -n; ulimit -Hn");
    spec.limits.open_files = Some(77);
    assert_eq!(ok(&spec), "77\n77\n");
    Ok(())
}

fn traffic() -> Result<(), Failed> {
    let layout = keelway_sandbox::cgroup::Layout::detect();
    if layout.io.is_none() {
        let mut spec = sh("true");
        spec.root = on_disk()?.1;
        spec.limits.io = Io { read: Some(Bytes(1 << 20)), ..Io::default() };
        assert!(refused(&spec).contains("cannot limit io"));
        return Ok(());
    }
    // Two megabytes past the cache, at one in a second.
    let (_base, root) = on_disk()?;
    let mut spec = sh("dd if=/dev/zero of=/tmp/f bs=64k count=32 oflag=direct 2>&1 | tail -1");
    spec.root = root;
    spec.limits.io = Io { write: Some(Bytes(1 << 20)), ..Io::default() };
    let parent = format!("keelway-test/io-{}", std::process::id()).parse().unwrap();
    let launcher = Launcher::new(LauncherConfig::new(parent));
    let begin = std::time::Instant::now();
    let mut running = launcher.spawn(&spec, Stdio::null()?)?;
    let v1 = matches!(layout.io, Some(keelway_sandbox::cgroup::Place::V1(_)));
    assert_eq!(running.warnings().iter().any(|w| w.contains("direct io")), v1, "{:?}", running.warnings());
    assert!(running.wait()?.success());
    let took = begin.elapsed();
    assert!(took > std::time::Duration::from_millis(1000), "{took:?}");
    Ok(())
}

/// A root on a disk, which /dev/shm is not.
fn on_disk() -> Result<(tempfile::TempDir, RootFs), Failed> {
    let base = tempfile::tempdir_in("/var/tmp")?;
    let (upper, work) = (base.path().join("upper"), base.path().join("work"));
    std::fs::create_dir(&upper)?;
    std::fs::create_dir(&work)?;
    Ok((base, RootFs::Overlay { lowers: vec![busybox()], upper, work }))
}

fn no_disk() -> Result<(), Failed> {
    let mut spec = sh("true");
    // In memory, wherever the other tests work.
    let memory = tempfile::tempdir_in("/dev/shm")?;
    let (upper, work) = (memory.path().join("upper"), memory.path().join("work"));
    std::fs::create_dir(&upper)?;
    std::fs::create_dir(&work)?;
    spec.root = keelway_sandbox::RootFs::Overlay { lowers: vec![busybox()], upper, work };
    spec.limits.io = Io { write: Some(Bytes(1 << 20)), ..Io::default() };
    let error = refused(&spec);
    assert!(error.contains("cannot limit io") && error.contains("is on no disk"), "{error}");
    Ok(())
}

fn stubborn() -> Result<(), Failed> {
    let mut started = start(&sh("trap '' TERM; echo up; while :; do sleep 1; done"))?;
    assert_eq!(started.line(), "up");
    started.running.signal(libc::SIGTERM)?;
    started.running.kill()?;
    assert_eq!(started.finish().0.kind, ExitKind::Signal(9));
    Ok(())
}
