//! How a process starts, talks and ends.

use crate::Test;
use crate::fixture::*;
use keelway_sandbox::{
    ExecError, ExitKind, Resource, Rlimit, RootFs, SetupError, SpawnError, Spec, SpecError, Stdio, User,
};
use libtest_mimic::Failed;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

pub const TESTS: &[Test] = &[
    ("process::exit_codes_are_its_own", exit_codes),
    ("process::signals_that_end_it", ending_signals),
    ("process::signals_reach_the_main_process", signals),
    ("process::kill_ends_what_ignores_sigterm", kill_stubborn),
    ("process::exec_failures_have_their_reason", exec_failures),
    ("process::specs_that_cannot_be", bad_specs),
    ("process::stdin_is_its_own", stdin),
    ("process::a_hundred_megabytes_flow", much_output),
    ("process::user_groups_environment_and_host_name", identity),
    ("process::working_directory", working_directory),
    ("process::limits_of_resources", rlimits),
    ("process::a_daemon_dies_with_it", daemon),
    ("process::orphans_are_reaped", orphans),
    ("process::readable_when_it_ended", readable),
];

fn exit_codes() -> Result<(), Failed> {
    for code in [0, 1, 7, 126, 127, 255] {
        assert_eq!(run(&sh(&format!("exit {code}"))).0.kind, ExitKind::Code(code));
    }
    Ok(())
}

fn ending_signals() -> Result<(), Failed> {
    for signal in [1, 6, 9, 11, 15, 40] {
        assert_eq!(run(&sh(&format!("kill -{signal} $$"))).0.kind, ExitKind::Signal(signal));
    }
    Ok(())
}

fn signals() -> Result<(), Failed> {
    let mut started = start(&sh("trap 'exit 42' USR1; echo ready; while :; do sleep 0.01; done"))?;
    assert_eq!(started.line(), "ready");
    started.running.signal(libc::SIGUSR1)?;
    assert_eq!(started.finish().0.kind, ExitKind::Code(42));
    Ok(())
}

fn kill_stubborn() -> Result<(), Failed> {
    let mut started = start(&sh("trap '' TERM INT HUP; echo ready; while :; do sleep 0.01; echo on; done"))?;
    assert_eq!(started.line(), "ready");
    started.running.signal(libc::SIGTERM)?;
    // It goes on after the signal.
    for _ in 0..3 {
        assert_eq!(started.line(), "on");
    }
    started.running.kill()?;
    assert_eq!(started.running.wait()?.kind, ExitKind::Signal(libc::SIGKILL));
    // Harmless afterwards.
    started.running.kill()?;
    started.running.signal(libc::SIGTERM)?;
    assert_eq!(started.running.wait()?.kind, ExitKind::Signal(libc::SIGKILL));
    Ok(())
}

fn exec_failures() -> Result<(), Failed> {
    let layer = fresh();
    for (name, content, mode) in
        [("plain", "x", 0o644), ("nonsense", "no program", 0o755), ("lost", "#!/opt/bin/python -u\n", 0o755)]
    {
        std::fs::write(layer.join(name), content)?;
        std::fs::set_permissions(layer.join(name), PermissionsExt::from_mode(mode))?;
    }
    let failure = |program: &str| {
        let spec = Spec::new(over(vec![busybox(), layer.clone()]), argv(&[program]), box_name());
        match start(&spec) {
            Err(SpawnError::Setup(SetupError::Exec(e))) => e,
            Err(e) => panic!("{program}: {e}"),
            Ok(s) => panic!("{program} ran: {:?}", s.finish()),
        }
    };
    assert!(matches!(failure("/absent"), ExecError::NotFound { .. }));
    let text = failure("absent").to_string();
    assert!(
        text.contains("\"absent\" does not exist in the image (searched PATH /usr/local/sbin:"),
        "{text}"
    );
    assert!(matches!(failure("/etc"), ExecError::Denied { .. }));
    assert!(matches!(failure("/plain"), ExecError::Denied { .. }));
    assert!(matches!(failure("/nonsense"), ExecError::Format { .. }));
    let lost = ExecError::Interpreter { program: "/lost".into(), interpreter: "/opt/bin/python".into() };
    assert_eq!(failure("/lost"), lost);
    let spec = Spec::new(over(vec![busybox()]), argv(&["true"]), box_name());
    ok(&spec);
    Ok(())
}

fn bad_specs() -> Result<(), Failed> {
    let refused_as = |change: fn(&mut Spec)| {
        let mut spec = sh("true");
        change(&mut spec);
        match start(&spec) {
            Err(SpawnError::Spec(e)) => e,
            other => panic!("{:?}", other.err()),
        }
    };
    assert_eq!(refused_as(|s| s.argv.clear()), SpecError::NoProgram);
    assert_eq!(refused_as(|s| s.argv.push("a\0b".into())), SpecError::Nul);
    assert_eq!(refused_as(|s| s.user.uid = u32::MAX), SpecError::Id);
    assert_eq!(refused_as(|s| s.user.groups.push(u32::MAX)), SpecError::Id);
    assert_eq!(
        refused_as(|s| s.user.gid = 65_536),
        SpecError::IdOutside { id: 65_536, count: 65_536, hint: ": choose a smaller one" }
    );
    let apart = |s: &mut Spec| {
        let RootFs::Overlay { work, .. } = &mut s.root else { return };
        *work = "/dev/shm/elsewhere/work".into();
    };
    assert!(matches!(refused_as(apart), SpecError::UpperAndWork { .. }));
    assert!(matches!(refused_as(|s| s.cwd = "tmp".into()), SpecError::NotAbsolute { .. }));
    assert!(matches!(refused_as(|s| s.env.push(("A=B".into(), String::new()))), SpecError::EnvName { .. }));
    let mut spec = sh("true");
    spec.root = over(vec![busybox(); 501]);
    assert!(refused(&spec).contains("501 layers, the kernel's overlayfs takes at most 500"));
    Ok(())
}

fn stdin() -> Result<(), Failed> {
    let (output, write) = std::io::pipe()?;
    let (input, mut feed) = std::io::pipe()?;
    let stdio = Stdio { stdin: input.into(), stdout: write.into(), stderr: Stdio::null()?.stderr };
    let mut running = launcher().spawn(&sh("cat; echo to-stderr >&2"), stdio)?;
    feed.write_all(b"through the pipe")?;
    drop(feed);
    let mut text = String::new();
    std::io::BufReader::new(output).read_to_string(&mut text)?;
    assert!(running.wait()?.success());
    assert_eq!(text, "through the pipe");
    Ok(())
}

fn much_output() -> Result<(), Failed> {
    let mut started = start(&sh("head -c 104857600 /dev/zero"))?;
    let copied = std::io::copy(&mut started.output, &mut std::io::sink())?;
    assert_eq!(copied, 104_857_600);
    assert!(started.running.wait()?.success());
    Ok(())
}

fn identity() -> Result<(), Failed> {
    let mut spec = sh(
        "id -u; id -g; id -G; hostname; echo $KEY; pwd; umask; env | wc -l; grep NoNewPrivs /proc/self/status",
    );
    spec.user = User { uid: 1000, gid: 1001, groups: vec![7, 1001] };
    spec.hostname = "ship".into();
    spec.env = vec![("KEY".into(), "a b\n$c".into())];
    spec.cwd = "/tmp".into();
    let text = ok(&spec);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..4], ["1000", "1001", "1001 7", "ship"], "{text}");
    assert_eq!(lines[4..8], ["a b $c", "/tmp", "0022", lines[7]], "{text}");
    assert!(text.contains("NoNewPrivs:\t1"), "{text}");
    // A process that is not root can open its own outputs again.
    let mut spec = sh("echo again > /dev/stdout");
    spec.user = User { uid: 1000, gid: 1000, groups: Vec::new() };
    assert_eq!(ok(&spec), "again\n");
    Ok(())
}

fn working_directory() -> Result<(), Failed> {
    let mut spec = sh("pwd");
    spec.cwd = "/absent/here".into();
    let text = refused(&spec);
    assert!(text.contains("\"/absent/here\": it does not exist in the image"), "{text}");
    renew(&mut spec);
    spec.cwd = "/etc/passwd".into();
    assert!(refused(&spec).contains("it is not a directory"));
    Ok(())
}

fn rlimits() -> Result<(), Failed> {
    assert_eq!(ok(&sh("ulimit -c; ulimit -n")), "0\n1024\n");
    let mut spec = sh("ulimit -n");
    spec.rlimits.push(Rlimit { resource: Resource::OpenFiles, soft: 100, hard: 200 });
    assert_eq!(ok(&spec), "100\n");
    Ok(())
}

fn daemon() -> Result<(), Failed> {
    let marker = format!("31{}", std::process::id());
    let script =
        format!("(setsid sh -c 'trap \"\" TERM HUP; sleep {marker}' >/dev/null 2>&1 &); sleep 0.05; exit 3");
    assert_eq!(run(&sh(&script)).0.kind, ExitKind::Code(3));
    assert_eq!(processes_with(&format!("sleep\0{marker}")), Vec::<i32>::new());
    Ok(())
}

fn orphans() -> Result<(), Failed> {
    // Each is reparented to PID 1; none may stay a zombie.
    let text = ok(&sh(
        "for i in 1 2 3 4 5; do (sh -c 'true' &) ; done; sleep 0.1; ps -o stat,comm | grep -c '^Z' || true",
    ));
    assert_eq!(text, "0\n");
    Ok(())
}

fn readable() -> Result<(), Failed> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut started = start(&sh("echo ready; read x < /dev/ptmx; sleep 100"))?;
    assert_eq!(started.line(), "ready");
    let ready = |s: &Started, wait: u16| {
        let mut fds = [PollFd::new(s.running.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(wait)).unwrap() == 1
    };
    assert!(!ready(&started, 0));
    started.running.handle().kill()?;
    assert!(ready(&started, 20_000));
    started.running.wait()?;
    Ok(())
}
