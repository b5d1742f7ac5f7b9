//! Whoever dies, nothing stays.

use crate::Test;
use crate::fixture::*;
use crate::isolation::parent_of;
use keelway_sandbox::cgroup::{Layout, reap};
use keelway_sandbox::{ExitKind, Ids, Launcher, LauncherConfig, ParentName, RootFs, Spec, Stdio};
use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio as ProcessStdio};

pub const TESTS: &[Test] = &[
    ("death::r28_the_owner_is_killed", owner_killed),
    ("death::the_supervisor_is_killed", supervisor_killed),
    ("death::owner_and_supervisor_are_killed_and_reaped", both_killed),
    ("death::reap_leaves_the_living_alone", reap_spares),
    ("death::dropping_it_ends_it", dropped),
    ("death::the_thread_that_started_it_may_end", thread_ends),
    ("death::many_leave_nothing", many_of_them),
    ("death::kills_at_random_moments_leave_nothing", at_random_moments),
    ("death::two_of_one_name_are_refused", same_name),
];

/// A process that runs one sandbox until it is killed: `__owner PARENT BASE MARKER [RUNTIME]`.
#[allow(clippy::print_stdout, reason = "the test reads it")]
pub fn owner(args: &[String]) -> ExitCode {
    let [parent, base, marker, runtime @ ..] = args else { return ExitCode::FAILURE };
    let base = Path::new(base);
    let launcher = Launcher::new(LauncherConfig::new(parent.parse().unwrap()));
    let root = RootFs::Overlay {
        lowers: vec![base.join("busybox")],
        upper: base.join("upper"),
        work: base.join("work"),
    };
    let script = format!("trap '' TERM HUP INT; (setsid sleep {marker} &); sleep {marker}; true");
    let mut spec = Spec::new(root, argv(&["/bin/sh", "-c", &script]), "box".parse().unwrap());
    spec.limits.memory = Some(keelway_model::Bytes(64 << 20));
    spec.runtime = runtime.first().map(PathBuf::from);
    let mut running = launcher.spawn(&spec, Stdio::null().unwrap()).unwrap();
    println!("{}", running.pid());
    running.wait().unwrap();
    ExitCode::SUCCESS
}

pub struct Owner {
    pub child: Child,
    pub pid1: i32,
    pub parent: ParentName,
    pub marker: String,
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start_owner(name: &str, number: u32) -> Owner {
    start_owner_under(name, number, None)
}

pub fn start_owner_under(name: &str, number: u32, runtime: Option<&Path>) -> Owner {
    let base: PathBuf = fresh();
    make_busybox(&base.join("busybox"));
    std::fs::create_dir(base.join("upper")).unwrap();
    std::fs::create_dir(base.join("work")).unwrap();
    let parent: ParentName = format!("keelway-test/{name}-{}", std::process::id()).parse().unwrap();
    let marker = format!("7{number}{}", std::process::id());
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["__owner", parent.as_str(), base.to_str().unwrap(), &marker])
        .args(runtime)
        .stdout(ProcessStdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let owner = Owner { child, pid1: line.trim().parse().unwrap(), parent, marker };
    until("both sleeps run", || sleeping(&owner.marker) == 2);
    owner
}

pub fn sleeping(marker: &str) -> usize {
    processes_with(&format!("sleep\0{marker}")).len()
}

pub fn stop(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
}

pub fn end(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// A parent's directories in every hierarchy of the machine.
pub fn groups_named(parent: &ParentName) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let roots = mounts.lines().filter(|l| l.contains(" - cgroup")).filter_map(|l| l.split(' ').nth(4));
    roots.map(|root| Path::new(root).join(parent.as_str())).filter(|dir| dir.exists()).collect()
}

/// How many hierarchies hold the groups of an owner's sandbox: those of pids and memory, which cgroup v2 has in one.
pub fn hierarchies() -> usize {
    let layout = Layout::detect();
    if layout.pids == layout.memory { 1 } else { 2 }
}

fn owner_killed() -> Result<(), Failed> {
    let mut owner = start_owner("owner", 1);
    assert_eq!(groups_below(&owner.parent).len(), hierarchies(), "pids and memory");
    let supervisor = parent_of(owner.pid1);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    owner.child.kill()?;
    owner.child.wait()?;
    until("everything is dead", || sleeping(&owner.marker) == 0);
    until("the supervisor is gone", || !Path::new(&format!("/proc/{supervisor}/root/proc")).exists());
    assert_eq!(std::fs::read_to_string("/proc/self/mountinfo")?, mounts);
    // The supervisor removed the sandbox's own groups; the owner's parent groups go with the next start.
    for parent in groups_below(&owner.parent) {
        assert!(!parent.join("box").exists(), "{parent:?}");
    }
    reap(&Layout::detect(), std::slice::from_ref(&owner.parent))?;
    assert!(groups_below(&owner.parent).is_empty());
    Ok(())
}

fn supervisor_killed() -> Result<(), Failed> {
    let marker = format!("72{}", std::process::id());
    let mut started = start(&sh(&format!("(setsid sleep {marker} &); echo ready; sleep {marker}; true")))?;
    assert_eq!(started.line(), "ready");
    kill(Pid::from_raw(parent_of(started.running.pid())), Signal::SIGKILL)?;
    let exit = started.running.wait()?;
    assert_eq!(exit.kind, ExitKind::InitKilled);
    assert_eq!(sleeping(&marker), 0);
    for parent in groups_below(&parent()) {
        for entry in std::fs::read_dir(&parent)?.flatten() {
            let procs = std::fs::read_to_string(entry.path().join("cgroup.procs")).unwrap_or_default();
            assert!(!procs.lines().any(|p| p == started.running.pid().to_string()));
        }
    }
    Ok(())
}

fn both_killed() -> Result<(), Failed> {
    let mut owner = start_owner("both", 3);
    let supervisor = parent_of(owner.pid1);
    // Stopped, it cannot clean up when its owner dies.
    kill(Pid::from_raw(supervisor), Signal::SIGSTOP)?;
    owner.child.kill()?;
    owner.child.wait()?;
    kill(Pid::from_raw(supervisor), Signal::SIGKILL)?;
    until("everything is dead", || sleeping(&owner.marker) == 0);
    assert_eq!(groups_below(&owner.parent).len(), hierarchies(), "nobody was left to remove them");
    let reaped = reap(&Layout::detect(), std::slice::from_ref(&owner.parent))?;
    assert_eq!(reaped.removed.len(), hierarchies());
    assert!(groups_below(&owner.parent).is_empty());
    assert_eq!(reap(&Layout::detect(), std::slice::from_ref(&owner.parent))?.removed.len(), 0);
    Ok(())
}

fn reap_spares() -> Result<(), Failed> {
    let owner = start_owner("alive", 4);
    let other: ParentName = format!("keelway-test/dead-{}", std::process::id()).parse()?;
    reap(&Layout::detect(), &[other])?;
    assert_eq!(sleeping(&owner.marker), 2);
    // And kills what is alive where it is told to.
    reap(&Layout::detect(), std::slice::from_ref(&owner.parent))?;
    assert_eq!(sleeping(&owner.marker), 0);
    Ok(())
}

fn dropped() -> Result<(), Failed> {
    let marker = format!("75{}", std::process::id());
    let mut started = start(&sh(&format!("trap '' TERM; echo ready; sleep {marker}; true")))?;
    assert_eq!(started.line(), "ready");
    drop(started);
    assert_eq!(sleeping(&marker), 0);
    Ok(())
}

fn thread_ends() -> Result<(), Failed> {
    let spec = sh("echo ready; read x; echo $x");
    let (input, mut feed) = std::io::pipe()?;
    let (output, write) = std::io::pipe()?;
    let stdio = Stdio { stdin: input.into(), stdout: write.into(), stderr: Stdio::null()?.stderr };
    let mut running = std::thread::spawn(move || launcher().spawn(&spec, stdio)).join().unwrap()?;
    std::io::Write::write_all(&mut feed, b"alive\n")?;
    let mut text = String::new();
    std::io::Read::read_to_string(&mut BufReader::new(output), &mut text)?;
    assert_eq!(text, "ready\nalive\n");
    assert!(running.wait()?.success());
    Ok(())
}

/// How many: the environment's word for soaks, else this.
fn how_many(variable: &str, usual: usize) -> usize {
    std::env::var(variable).ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// Sandboxes in a process of its own, so that other tests do not count: `__loop PARENT BASE`.
#[allow(clippy::print_stdout, reason = "the test reads it")]
pub fn many(args: &[String]) -> ExitCode {
    let [parent, base] = args else { return ExitCode::FAILURE };
    let base = Path::new(base);
    let parent: ParentName = parent.parse().unwrap();
    let launcher = Launcher::new(LauncherConfig::new(parent.clone()));
    let state = || {
        let count = |dir: &str| std::fs::read_dir(dir).map_or(0, Iterator::count);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        (mounts, children, count("/proc/self/fd"))
    };
    let run = |i: usize| {
        let dir = base.join(i.to_string());
        let (upper, work) = (dir.join("upper"), dir.join("work"));
        std::fs::create_dir_all(&upper).unwrap();
        std::fs::create_dir(&work).unwrap();
        let root = RootFs::Overlay { lowers: vec![base.join("busybox")], upper, work };
        let program = if i % 5 == 4 { "/absent" } else { "/bin/true" };
        let mut spec = Spec::new(root, argv(&[program]), format!("box-{i}").parse().unwrap());
        spec.limits.memory = Some(keelway_model::Bytes(64 << 20));
        spec.limits.cpu_millis = Some(2000);
        match launcher.spawn(&spec, Stdio::null().unwrap()) {
            Ok(mut running) => assert!(running.wait().unwrap().success()),
            Err(e) => assert!(e.exec().is_some(), "{e}"),
        }
        std::fs::remove_dir_all(dir).unwrap();
    };
    // The first one makes what stays for the life of the process: the sealed copy.
    run(0);
    let before = state();
    (1..=how_many("KEELWAY_SANDBOXES", 50)).for_each(run);
    assert_eq!(state(), before);
    drop(launcher);
    assert!(groups_below(&parent).is_empty());
    println!("clean");
    ExitCode::SUCCESS
}

fn many_of_them() -> Result<(), Failed> {
    let base = fresh();
    make_busybox(&base.join("busybox"));
    let parent = format!("keelway-test/many-{}", std::process::id());
    let output = Command::new(std::env::current_exe()?)
        .args(["__loop", &parent, base.to_str().unwrap_or_default()])
        .output()?;
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "clean\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Starts sandboxes, four at a time, until it is killed: `__storm PARENT BASE`.
pub fn storm(args: &[String]) -> ExitCode {
    let [parent, base] = args else { return ExitCode::FAILURE };
    let base = Path::new(base);
    let mut config = LauncherConfig::new(parent.parse().unwrap());
    config.ids = Ids::Own { claims: Some(base.join("ids")) };
    let launcher = Launcher::new(config);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let launcher = &launcher;
            scope.spawn(move || {
                for i in 0.. {
                    let dir = base.join(format!("{}-{thread}-{i}", std::process::id()));
                    let (upper, work) = (dir.join("upper"), dir.join("work"));
                    std::fs::create_dir_all(&upper).unwrap();
                    std::fs::create_dir(&work).unwrap();
                    let root = RootFs::Overlay { lowers: vec![base.join("busybox")], upper, work };
                    let script = "trap '' TERM; (setsid sleep 30 &); sleep 0.01";
                    let name = format!("box-{thread}-{i}").parse().unwrap();
                    let mut spec = Spec::new(root, argv(&["/bin/sh", "-c", script]), name);
                    spec.limits.memory = Some(keelway_model::Bytes(64 << 20));
                    launcher.spawn(&spec, Stdio::null().unwrap()).unwrap().wait().unwrap();
                }
            });
        }
    });
    ExitCode::SUCCESS
}

fn at_random_moments() -> Result<(), Failed> {
    let base = fresh();
    make_busybox(&base.join("busybox"));
    let parent: ParentName = format!("keelway-test/storm-{}", std::process::id()).parse()?;
    let mut random = std::process::id() | 1;
    for round in 0..how_many("KEELWAY_KILLS", 20) {
        let mut owner = Command::new(std::env::current_exe()?)
            .args(["__storm", parent.as_str(), base.to_str().unwrap_or_default()])
            .stdin(ProcessStdio::null())
            .spawn()?;
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        std::thread::sleep(std::time::Duration::from_micros(u64::from(random >> 8) % 80_000));
        owner.kill()?;
        owner.wait()?;
        // A supervisor holds its range until every process of its sandbox is dead.
        until(&format!("all sandboxes of round {round} are dead"), || {
            std::fs::read_dir(base.join("ids")).map_or(true, |dir| {
                dir.flatten().all(|lock| keelway_disk::Lock::try_take(&lock.path()).unwrap().is_some())
            })
        });
        // As the next start does, on the word of a dead run.
        reap(&Layout::detect(), std::slice::from_ref(&parent))?;
        assert!(groups_below(&parent).is_empty(), "round {round}");
    }
    // Mounts end with their namespaces: nothing of it is in ours, and the folders can go.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    assert!(!mounts.contains(base.to_str().unwrap_or("?")), "{mounts}");
    std::fs::remove_dir_all(&base)?;
    Ok(())
}

fn same_name() -> Result<(), Failed> {
    let mut started = start(&sh("echo ready; sleep 100"))?;
    assert_eq!(started.line(), "ready");
    let mut twin = sh("true");
    let name = started_name(&started.running);
    twin.cgroup = name.parse()?;
    assert!(refused(&twin).contains("File exists"));
    assert_eq!(sleeping("no-such-marker"), 0);
    started.running.kill()?;
    started.running.wait()?;
    Ok(())
}

fn started_name(running: &keelway_sandbox::Running) -> String {
    let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", running.pid())).unwrap();
    let line = cgroups.lines().find(|l| l.contains("/run-")).unwrap();
    line.rsplit('/').next().unwrap().to_owned()
}
