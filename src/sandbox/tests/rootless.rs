//! Sandboxes of an ordinary user: this binary goes on as user 54321 in a mount namespace where that user has ids.

use crate::Test;
use crate::fixture::*;
use keelway_sandbox::{
    CapProfile, ExecSpec, Exit, Launcher, LauncherConfig, Network, RootFs, Spec, Stdio, User,
};
use libtest_mimic::Failed;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

pub const TESTS: &[Test] =
    &[("rootless::with_the_ids_of_etc_subuid", many), ("rootless::with_a_single_id", single)];

/// A user that no machine has.
const USER: u32 = 54_321;
/// What it may map.
const SUB: u32 = 200_000;

/// Runs `inside` as the user; gives what it printed.
fn as_user(sub_ids: bool) -> Result<(PathBuf, String), Failed> {
    let home = fresh();
    chown(&home, Some(USER), Some(USER))?;
    let etc = fresh();
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    std::fs::write(etc.join("passwd"), format!("{passwd}keelway-ann:x:{USER}:{USER}::/:/bin/sh\n"))?;
    let range = if sub_ids { format!("keelway-ann:{SUB}:65536\n") } else { String::new() };
    for name in ["subuid", "subgid"] {
        std::fs::write(etc.join(name), &range)?;
    }
    // The machine's own files are covered in a mount namespace that ends with the command.
    let script = "mount --make-rprivate / && for f in passwd subuid subgid; do \
         [ -e /etc/$f ] || exit 9; mount --bind \"$1/$f\" /etc/$f || exit 9; done && \
         exec setpriv --reuid 54321 --regid 54321 --clear-groups \"$2\" __as_user \"$3\"";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .args([etc.as_os_str(), std::env::current_exe()?.as_os_str(), home.as_os_str()])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    Ok((home, text))
}

fn many() -> Result<(), Failed> {
    let (home, text) = as_user(true)?;
    let expected = "\
        ids: 65536\n\
        first: 0:0 33:33 gone fresh 1 1000\n\
        fork bomb: TooManyProcesses { limit: 20 }\n\
        joined: 21\n\
        terminal and more\n\
        set-user-id: 0\n";
    assert!(text.starts_with(expected), "{text}");
    // What an id inside is on disk.
    let upper = home.join("up/upper");
    let owner = |name: &str| std::fs::symlink_metadata(upper.join(name)).map(|m| m.uid());
    assert_eq!(owner("made")?, USER);
    assert_eq!(owner("given")?, SUB + 33 - 1);
    Ok(())
}

fn single() -> Result<(), Failed> {
    let (_, text) = as_user(false)?;
    assert!(text.starts_with("ids: 1\nfirst: 0:0 refused gone fresh 1 1000\n"), "{text}");
    assert!(text.contains("which has 1 ids from 0 on: `keelway doctor` says how"), "{text}");
    Ok(())
}

/// As the user, before its namespace.
pub fn enter(args: &[String]) -> ! {
    let error = keelway_sandbox::rootless::enter(args.iter().map(Into::into));
    panic!("{error}")
}

struct Place {
    launcher: Launcher,
    base: PathBuf,
}

impl Place {
    fn spec(&self, upper: &str, script: &str) -> Spec {
        let dir = self.base.join(upper);
        let (upper, work) = (dir.join("upper"), dir.join("work"));
        std::fs::create_dir_all(&upper).unwrap();
        std::fs::create_dir_all(&work).unwrap();
        let lowers = vec![self.base.join("busybox")];
        Spec::new(RootFs::Overlay { lowers, upper, work }, argv(&["/bin/sh", "-c", script]), box_name())
    }

    /// How many processes one that joined may have.
    fn joined_limit(&self, spec: &Spec) -> String {
        let running = self.launcher.spawn(spec, Stdio::null().unwrap()).unwrap();
        let (mut output, write) = std::io::pipe().unwrap();
        let command = ExecSpec::new(argv(&[
            "/bin/sh",
            "-c",
            "while read a b c d; do [ \"$a $b\" = \"Max processes\" ] && echo \"$c\"; done </proc/self/limits",
        ]));
        let stdio = Stdio::output_to(write.into()).unwrap();
        let executed = running.handle().exec(&command, stdio).unwrap();
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        executed.wait().unwrap();
        text.trim().to_owned()
    }

    fn run(&self, spec: &Spec) -> (Exit, String) {
        let (mut output, write) = std::io::pipe().unwrap();
        let mut running = self.launcher.spawn(spec, Stdio::output_to(write.into()).unwrap()).unwrap();
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        (running.wait().unwrap(), text)
    }
}

/// As root of the user's namespace.
#[allow(clippy::print_stdout, reason = "its parent reads it")]
pub fn inside(args: &[String]) -> ExitCode {
    let base = Path::new(&args[0]).to_owned();
    make_busybox(&base.join("busybox"));
    let parent = format!("keelway-test/user-{}", std::process::id()).parse().unwrap();
    let place = Place { launcher: Launcher::new(LauncherConfig::new(parent)), base };
    let ids = keelway_ids();
    println!("ids: {ids}");

    // A lower directory is deleted (which plain overlays of users cannot) and made again; ids; a network of its own.
    let script = "touch /made /given; a=$(stat -c %u:%g /made); b=$(chown 33:33 /given 2>/dev/null && stat -c %u:%g /given || echo refused); \
         rm -rf /root /etc && c=gone; mkdir /etc && ls /etc && d=fresh; e=$(ip link | grep -c LOOPBACK,UP); \
         f=$(wc -c < /dev/urandom & sleep 0.01; kill $!; head -c 1000 /dev/zero | wc -c); echo first: $a $b $c $d $e $f";
    let (exit, text) = place.run(&place.spec("up", script));
    assert!(exit.success(), "{exit:?} {text}");
    print!("{}", text.lines().last().map(|l| format!("{l}\n")).unwrap_or_default());

    let mut other = place.spec("other", "true");
    other.user = User { uid: 33, gid: 33, groups: vec![] };
    if ids == 1 {
        println!("{}", place.launcher.spawn(&other, Stdio::null().unwrap()).unwrap_err());
        return ExitCode::SUCCESS;
    }

    // Without a group of cgroups; it does not mind that it may not fork.
    let mut bomb = place.spec("bomb", "while :; do (sleep 100 &) 2>/dev/null; sleep 0.01; done");
    bomb.limits.pids = Some(20);
    bomb.network = Network::Host;
    let (exit, _) = place.run(&bomb);
    println!("fork bomb: {:?}", exit.kind);
    let mut joined = place.spec("joined", "sleep 100");
    joined.limits.pids = Some(20);
    println!("joined: {}", place.joined_limit(&joined));

    let (exit, text) = place.run(
        &place.spec("more", "cat /dev/null && ls -d /dev/pts/ptmx >/dev/null && echo terminal and more"),
    );
    assert!(exit.success(), "{exit:?} {text}");
    print!("{text}");

    let mut spec = place.spec("suid", "cp /bin/busybox /tmp/x; chmod 4755 /tmp/x; echo prepared");
    spec.caps = CapProfile::Build;
    place.run(&spec);
    let program = std::fs::metadata(place.base.join("suid/upper/tmp/x")).unwrap();
    println!("set-user-id: {}", program.uid());
    ExitCode::SUCCESS
}

/// How many ids this namespace has, as a sandbox would count.
fn keelway_ids() -> u32 {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    let counts = map.lines().filter_map(|l| l.split_whitespace().nth(2)?.parse::<u32>().ok());
    counts.sum::<u32>().min(keelway_sandbox::IDS)
}
