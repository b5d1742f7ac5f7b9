//! One more process in a sandbox that runs.

use crate::fixture::{Started, argv, ok, processes_with, sh, start, until};
use keelway_sandbox::{CapProfile, CapSet, ExecSpec, ExitKind, Handle, SpawnError, Stdio, User};
use libtest_mimic::Failed;
use std::io::Read;

pub const TESTS: &[crate::Test] = &[
    ("joined::it_is_where_the_others_are", it_is_where_the_others_are),
    ("joined::it_has_no_more_powers_than_the_others", it_has_no_more_powers_than_the_others),
    (
        "joined::r02_r03_no_descriptor_and_no_directory_of_the_machine",
        no_descriptor_and_no_directory_of_the_machine,
    ),
    ("joined::its_end_and_signals", its_end_and_signals),
    (
        "joined::it_ends_with_whoever_asked_and_with_the_sandbox",
        it_ends_with_whoever_asked_and_with_the_sandbox,
    ),
    ("joined::capabilities_are_chosen", capabilities_are_chosen),
];

/// A sandbox that says when it is ready, and waits.
fn waiting() -> Started {
    let mut spec = sh("echo ready; exec sleep 1000");
    spec.hostname = "joinme".into();
    let mut started = start(&spec).unwrap();
    assert_eq!(started.line(), "ready");
    started
}

fn shell(script: &str) -> ExecSpec {
    ExecSpec::new(argv(&["/bin/sh", "-c", script]))
}

fn exec(handle: &Handle, spec: &ExecSpec) -> (ExitKind, String) {
    let (mut output, writer) = std::io::pipe().unwrap();
    let executed = handle.exec(spec, Stdio::output_to(writer.into()).unwrap()).unwrap();
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    (executed.wait().unwrap(), text)
}

fn said(handle: &Handle, spec: &ExecSpec) -> String {
    let (end, text) = exec(handle, spec);
    assert_eq!(end, ExitKind::Code(0), "{text}");
    text
}

fn it_is_where_the_others_are() -> Result<(), Failed> {
    let s = waiting();
    let handle = s.running.handle();
    let spaces =
        "for n in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$n; done; cat /proc/self/cgroup";
    let mut same = shell("readlink /proc/1/ns/mnt >/dev/null 2>&1; true");
    said(&handle, &same);
    same = shell(spaces);
    let first = said(&handle, &same);
    assert_eq!(first, said(&handle, &same));
    for name in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        let theirs = std::fs::read_link(format!("/proc/{}/ns/{name}", s.running.pid())).unwrap();
        assert!(first.contains(theirs.to_str().unwrap()), "{name}: {theirs:?} is not in {first}");
    }
    assert!(first.lines().filter(|l| l.contains(":pids:")).all(|l| l.ends_with(":/")), "{first}");
    assert_eq!(
        said(&handle, &shell("hostname; cat /proc/1/comm; ls / | grep -c bin")),
        "joinme\nkeelway-init\n1\n".replace("keelway-init", &comm(s.running.pid()))
    );
    // It sees the others, and they it, as processes of one namespace.
    let list = said(&handle, &shell("ps -o args"));
    assert!(list.contains("sleep 1000"), "{list}");
    // What it writes they see.
    said(&handle, &shell("echo from-exec > /tmp/note"));
    assert_eq!(said(&handle, &shell("cat /tmp/note")), "from-exec\n");
    let mut spec = shell("pwd; id -u; id -g; echo $COLOUR");
    spec.cwd = "/tmp".into();
    spec.env.push(("COLOUR".into(), "blue".into()));
    spec.user = User { uid: 1000, gid: 1001, groups: vec![] };
    assert_eq!(said(&handle, &spec), "/tmp\n1000\n1001\nblue\n");
    Ok(())
}

fn comm(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim().to_owned()
}

fn it_has_no_more_powers_than_the_others() -> Result<(), Failed> {
    let lines = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status";
    for profile in [CapProfile::Build, CapProfile::Step] {
        let mut main = sh(lines);
        main.caps = profile;
        let mut joined = shell(lines);
        joined.caps = profile;
        let s = waiting();
        assert_eq!(said(&s.running.handle(), &joined), ok(&main), "{profile:?}");
    }
    let s = waiting();
    let handle = s.running.handle();
    // Bounds hold for all of them together.
    let groups = said(&handle, &shell("cat /proc/self/cgroup"));
    assert!(!groups.contains("keelway"), "{groups}");
    let theirs = std::fs::read_to_string(format!("/proc/{}/cgroup", s.running.pid())).unwrap();
    let executed = handle.exec(&shell("exec sleep 1000"), Stdio::null().unwrap()).unwrap();
    let its = std::fs::read_to_string(format!("/proc/{}/cgroup", executed.pid())).unwrap();
    assert_eq!(its, theirs);
    for (script, refused) in [
        ("mount -t tmpfs x /tmp", true),
        ("unshare -U true", true),
        ("mknod /tmp/d b 254 0", true),
        ("cat /proc/kcore | head -c1 | wc -c | grep -q '^0'", false),
    ] {
        let (end, text) = exec(&handle, &shell(script));
        assert_eq!(end != ExitKind::Code(0), refused, "{script}: {end:?}: {text}");
    }
    Ok(())
}

fn no_descriptor_and_no_directory_of_the_machine() -> Result<(), Failed> {
    // Open in this process, which is the owner, without close-on-exec.
    let open = std::fs::File::open("/").unwrap();
    let leaked = nix::unistd::dup(&open).unwrap();
    let s = waiting();
    let handle = s.running.handle();
    let fds = said(&handle, &shell("ls /proc/self/fd | tr '\\n' ' '"));
    // 3 is the directory that ls reads.
    assert_eq!(fds.trim(), "0 1 2 3");
    for n in 0..=64 {
        let mut spec = shell("pwd");
        spec.cwd = format!("/proc/self/fd/{n}").into();
        let (_, writer) = std::io::pipe().unwrap();
        let refused = handle.exec(&spec, Stdio::output_to(writer.into()).unwrap());
        assert!(matches!(refused, Err(SpawnError::Setup(_))), "{n}: {refused:?}");
    }
    // A directory that is a link into the machine leads nowhere but inside.
    said(&handle, &shell("ln -s /proc/1/root /tmp/out; ln -s ../../../../../.. /tmp/up"));
    let mut spec = shell("pwd; ls -d /work 2>/dev/null; true");
    spec.cwd = "/tmp/up".into();
    assert_eq!(said(&handle, &spec), "/\n");
    spec.cwd = "/tmp/out".into();
    let (_, writer) = std::io::pipe().unwrap();
    assert!(handle.exec(&spec, Stdio::output_to(writer.into()).unwrap()).is_err());
    drop(leaked);
    Ok(())
}

fn its_end_and_signals() -> Result<(), Failed> {
    let s = waiting();
    let handle = s.running.handle();
    assert_eq!(exec(&handle, &shell("exit 7")).0, ExitKind::Code(7));
    assert_eq!(exec(&handle, &shell("kill -9 $$")).0, ExitKind::Signal(9));
    let trap = "trap 'echo heard; exit 3' USR1; echo ready; while :; do sleep 0.01; done";
    let (mut output, writer) = std::io::pipe().unwrap();
    let executed = handle.exec(&shell(trap), Stdio::output_to(writer.into()).unwrap()).unwrap();
    let mut ready = [0; 6];
    output.read_exact(&mut ready).unwrap();
    executed.handle().signal(10).unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), executed.wait().unwrap()), ("heard\n", ExitKind::Code(3)));
    let missing =
        handle.exec(&ExecSpec::new(argv(&["no-such-program"])), Stdio::null().unwrap()).unwrap_err();
    assert!(missing.to_string().contains("no-such-program"), "{missing}");
    let denied = handle.exec(&ExecSpec::new(argv(&["/etc/passwd"])), Stdio::null().unwrap()).unwrap_err();
    assert!(denied.to_string().contains("/etc/passwd"), "{denied}");
    Ok(())
}

fn it_ends_with_whoever_asked_and_with_the_sandbox() -> Result<(), Failed> {
    let mut s = waiting();
    let handle = s.running.handle();
    let executed = handle.exec(&shell("exec sleep 86399"), Stdio::null().unwrap()).unwrap();
    until("it runs", || !processes_with("sleep\086399").is_empty());
    drop(executed);
    until("it was killed", || processes_with("sleep\086399").is_empty());
    let executed = handle.exec(&shell("exec sleep 86398"), Stdio::null().unwrap()).unwrap();
    s.running.kill().unwrap();
    assert_eq!(executed.wait().unwrap(), ExitKind::Signal(9));
    s.running.wait().unwrap();
    assert!(processes_with("sleep\086398").is_empty());
    let late = handle.exec(&shell("true"), Stdio::null().unwrap());
    assert!(matches!(late, Err(SpawnError::InitLost { .. } | SpawnError::Launch { .. })), "{late:?}");
    // The group was emptied: nothing of the process or of what helped it is left.
    assert!(processes_with("__init").iter().all(|pid| *pid != s.running.pid()));
    Ok(())
}

fn capabilities_are_chosen() -> Result<(), Failed> {
    let words = |w: &[&str]| w.iter().map(|w| (*w).to_owned()).collect::<Vec<String>>();
    let mut spec = sh("grep CapEff /proc/self/status; chown 5 /tmp 2>/dev/null && echo chown");
    spec.caps = CapProfile::Only(CapSet::chosen(&words(&["SYS_NICE"]), &words(&["ALL"])).unwrap());
    let (_, text) = crate::fixture::run(&spec);
    assert_eq!(text, "CapEff:\t0000000000800000\n");
    // A user without capabilities can be had with none at all; PID 1 can signal it all the same.
    spec.caps = CapProfile::Only(CapSet::chosen(&[], &words(&["ALL"])).unwrap());
    spec.user = User { uid: 1000, gid: 1000, groups: vec![1001] };
    crate::fixture::renew(&mut spec);
    assert_eq!(crate::fixture::run(&spec).1, "CapEff:\t0000000000000000\n");
    spec.argv = words(&["/bin/sleep", "1000"]);
    crate::fixture::renew(&mut spec);
    let mut started = start(&spec).unwrap();
    started.running.signal(9).unwrap();
    assert_eq!(started.running.wait().unwrap().kind, ExitKind::Signal(9));
    let mut spec = sh("grep CapEff /proc/self/status");
    spec.caps = CapProfile::Only(CapSet::chosen(&[], &words(&["CHOWN"])).unwrap());
    crate::fixture::renew(&mut spec);
    let (_, text) = crate::fixture::run(&spec);
    assert_eq!(text, "CapEff:\t00000000a80425fa\n");
    Ok(())
}
