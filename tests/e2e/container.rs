//! Containers by hand: run, look, enter, stop, copy.

use crate::build::with_busybox;
use crate::{Ended, Test, World};
use keelway_tests::env::{Env, Leaks, Output};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("container::it_ends_as_its_command_does", it_ends_as_its_command_does),
    ("container::a_terminal_that_follows_ours", a_terminal_that_follows_ours),
    ("container::signals_are_passed_on", signals_are_passed_on),
    ("container::life_in_the_background", life_in_the_background),
    ("container::what_is_shown_reads_as_dockers", what_is_shown_reads_as_dockers),
    ("container::what_is_asked_for_is_given", what_is_asked_for_is_given),
    ("container::r25_copies_stay_where_they_belong", copies_stay_where_they_belong),
];

/// Bound of every wait for something to happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// An environment whose containers go with it, and which sees what is left of them.
pub struct Yard {
    pub env: Env,
    keelway: PathBuf,
    before: Leaks,
}

impl Yard {
    pub fn new(world: &World) -> Self {
        let before = Leaks::record();
        Self { env: with_busybox(world), keelway: world.keelway.clone(), before }
    }
    /// `keelway container ..`.
    pub fn container(&self, args: &[&str]) -> Output {
        self.env.keelway(&[&["container"], args].concat())
    }
    /// `keelway container run ..` without a network, but for what `args` say.
    pub fn run(&self, args: &[&str]) -> Output {
        self.container(&[&["run", "--network", "none"], args].concat())
    }
    /// One container, as `inspect` has it.
    pub fn inspect(&self, name: &str) -> Value {
        let out = self.container(&["inspect", "--format", "json", name]).expect(0);
        serde_json::from_str(&out.stdout).expect("inspect prints JSON")
    }
    pub fn logs(&self, name: &str) -> String {
        self.container(&["logs", name]).expect(0).stdout
    }
    /// Waits for the log to hold this.
    pub fn until_logged(&self, name: &str, text: &str) {
        until(&format!("{name} says {text:?}"), || self.logs(name).contains(text));
    }
    /// The binary as a command that is not awaited.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.env.command(&self.keelway);
        command.arg("container").args(args);
        command
    }
    /// Removes all containers; nothing of them is left.
    pub fn end(self) {
        self.clear();
        self.before.assert_none();
    }
    fn clear(&self) {
        let all = self.container(&["ls", "-aq"]).stdout;
        let all: Vec<&str> = all.split_whitespace().collect();
        if !all.is_empty() {
            self.container(&[&["rm", "-f"], &all[..]].concat());
        }
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Waits for something that has no event.
#[track_caller]
pub fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < end, "did not happen: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Ends a command that is not awaited, whatever happens.
struct Ending(Child);

impl Ending {
    fn code(&mut self) -> i32 {
        let mut status = None;
        until("the command ends", || {
            status = self.0.try_wait().expect("it is our child");
            status.is_some()
        });
        status.and_then(|s| s.code()).unwrap_or(-1)
    }
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).expect("a pid"));
        kill(pid, signal).expect("our child can be signalled");
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn it_ends_as_its_command_does(world: &World) -> Ended {
    let yard = Yard::new(world);
    let sh = |script: &str| yard.run(&["--rm", "busybox", "sh", "-c", script]);
    let out = sh("echo out; echo err >&2; exit 7").expect(7);
    assert_eq!((out.stdout.as_str(), out.stderr.as_str()), ("out\n", "err\n"));
    sh("true").expect(0);
    sh("kill -9 $$").expect(137);
    sh("kill -TERM $$").expect(143);
    let out = yard.run(&["--rm", "busybox", "no-such-program"]).expect(127);
    assert!(out.stderr.contains("no-such-program"), "{}", out.stderr);
    yard.run(&["--rm", "busybox", "/etc/passwd"]).expect(126);
    yard.run(&["--rm", "-w", "/nowhere", "busybox", "true"]).expect(126);
    yard.run(&["--rm", "--cap-add", "SYS_ADMIN", "busybox", "true"]).expect(125);
    yard.run(&["--rm", "-v", "data:/data", "busybox", "true"]).expect(125);
    yard.run(&["--rm", "-u", "nobody-here", "busybox", "true"]).expect(125);
    yard.run(&["--rm", "-p", "1:1", "busybox", "true"]).expect(125);
    let out = yard.run(&["--rm", "--memory", "16m", "busybox", "sh", "-c", "tail /dev/zero"]).expect(137);
    assert_eq!(out.stdout, "");
    // What is typed is read, and nothing where nobody asked for input.
    let mut command = yard.command(&["run", "--rm", "-i", "--network", "none", "busybox", "cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    child.stdin.take().expect("piped").write_all(b"typed\n").expect("it reads");
    let out = child.wait_with_output().expect("it ends");
    assert_eq!((out.status.code(), &out.stdout[..]), (Some(0), &b"typed\n"[..]));
    assert_eq!(yard.container(&["ls", "-aq"]).expect(0).stdout, "", "--rm removes");
    // Without it the container stays, with its end and its words.
    yard.run(&["--name", "kept", "busybox", "sh", "-c", "echo kept words; exit 3"]).expect(3);
    let state = &yard.inspect("kept")["State"];
    assert_eq!((&state["Status"], &state["ExitCode"]), (&Value::from("exited"), &Value::from(3)));
    assert_eq!(yard.logs("kept"), "kept words\n");
    let out = yard.run(&["--name", "kept", "busybox", "true"]).expect(125);
    assert!(out.stderr.contains("in use by container"), "{}", out.stderr);
    yard.end();
    Ok(())
}

/// A command under a terminal of ours.
struct Seat {
    master: File,
    child: Ending,
    shown: mpsc::Receiver<Vec<u8>>,
    text: String,
}

impl Seat {
    fn take(yard: &Yard, args: &[&str]) -> Self {
        let size = Winsize { ws_row: 30, ws_col: 90, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).expect("a terminal can be had");
        let side = || Stdio::from(pty.slave.try_clone().expect("descriptors are left"));
        // setsid gives the command the terminal, as a shell does.
        let mut command = yard.env.command("setsid");
        command.arg("--ctty").arg("--wait").arg(&yard.keelway).arg("container").args(args);
        let child = command.stdin(side()).stdout(side()).stderr(side()).spawn().expect("setsid is there");
        drop(pty.slave);
        let master = File::from(pty.master);
        let mut from = master.try_clone().expect("descriptors are left");
        let (tell, shown) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut bytes) {
                if tell.send(bytes[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { master, child: Ending(child), shown, text: String::new() }
    }
    fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("it takes keys");
    }
    /// Waits until this is shown; gives all up to there, and forgets it.
    #[track_caller]
    fn until(&mut self, wanted: &str) -> String {
        let end = Instant::now() + PATIENCE;
        while !self.text.contains(wanted) {
            let left = end.saturating_duration_since(Instant::now());
            match self.shown.recv_timeout(left) {
                Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("{wanted:?} was not shown: {:?}", self.text),
            }
        }
        let rest = self.text.split_off(self.text.find(wanted).unwrap_or(0) + wanted.len());
        std::mem::replace(&mut self.text, rest)
    }
    /// A new size travels on its own, and what is typed may overtake it.
    #[track_caller]
    fn until_size(&mut self, wanted: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            self.press("stty size; echo as''ked\n");
            if self.until("asked\r\n").contains(wanted) {
                return;
            }
            assert!(Instant::now() < end, "the size does not become {wanted:?}");
        }
    }
    fn resize(&self, rows: u16, columns: u16) {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.master, size).expect("a terminal has a size");
    }
    fn is_raw(&self) -> bool {
        let modes = rustix::termios::tcgetattr(&self.master).expect("a terminal has modes");
        !modes.local_modes.contains(rustix::termios::LocalModes::ICANON)
    }
}

fn a_terminal_that_follows_ours(world: &World) -> Ended {
    let yard = Yard::new(world);
    let mut seat = Seat::take(&yard, &["run", "-it", "--name", "seat", "--network", "none", "busybox", "sh"]);
    seat.press("stty size; tty; echo $TERM; echo don''e\n");
    seat.until("30 90\r\n");
    seat.until("/dev/pts/0\r\n");
    seat.until("xterm\r\n");
    seat.until("done\r\n");
    assert!(seat.is_raw());
    // Ctrl-C is typed, not felt: the shell and we live on, the sleep does not.
    // Said by who will sleep: the shell itself has given the terminal away by then.
    seat.press("sh -c \"echo slee''ping; exec sleep 1000\"\n");
    seat.until("sleeping\r\n");
    seat.press("\x03");
    seat.resize(44, 120);
    seat.until_size("44 120\r\n");
    // Somebody else comes in by the same door.
    let mut other = Seat::take(&yard, &["exec", "-it", "-e", "WHO=other", "seat", "sh"]);
    other.press("stty size; echo $WHO; echo don''e\n");
    other.until("30 90\r\n");
    other.until("other\r\n");
    other.until("done\r\n");
    other.resize(20, 60);
    other.until_size("20 60\r\n");
    other.press("exit 6\n");
    assert_eq!(other.child.code(), 6);
    seat.press("exit 4\n");
    assert_eq!(seat.child.code(), 4);
    assert!(!seat.is_raw(), "our terminal is as it was");
    assert!(yard.logs("seat").contains("44 120"));
    drop((seat, other));
    // Keys need a keyboard.
    let out = yard.run(&["--rm", "-it", "busybox", "true"]).expect(125);
    assert!(out.stderr.contains("no terminal"), "{}", out.stderr);
    yard.end();
    Ok(())
}

fn signals_are_passed_on(world: &World) -> Ended {
    let yard = Yard::new(world);
    let script = "trap 'echo heard; exit 5' TERM INT USR1; echo ready; while :; do sleep 0.02; done";
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1] {
        let mut command =
            yard.command(&["run", "--network", "none", "--name", "sig", "busybox", "sh", "-c", script]);
        let mut child = Ending(command.stdout(Stdio::null()).spawn().expect("it starts"));
        until("it is there", || yard.container(&["logs", "sig"]).stdout.contains("ready"));
        child.signal(signal);
        assert_eq!(child.code(), 5, "{signal}");
        assert_eq!(yard.logs("sig"), "ready\nheard\n");
        yard.container(&["rm", "sig"]).expect(0);
    }
    // To a command in another's container, too.
    yard.run(&["-d", "--name", "host", "busybox", "sleep", "1000"]).expect(0);
    let mut command = yard.command(&["exec", "host", "sh", "-c", script]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut ready = [0; 6];
    child.stdout.as_mut().expect("piped").read_exact(&mut ready).expect("it says so");
    let mut child = Ending(child);
    child.signal(Signal::SIGTERM);
    assert_eq!(child.code(), 5);
    yard.end();
    Ok(())
}

fn life_in_the_background(world: &World) -> Ended {
    let yard = Yard::new(world);
    let script = "i=0; while [ $i -lt 5 ]; do echo line $i; echo e$i >&2; i=$((i+1)); done; trap '' TERM; echo ready; sleep 1000";
    let id = yard
        .run(&["-d", "--name", "bg", "-e", "COLOUR=blue", "-w", "/tmp", "busybox", "sh", "-c", script])
        .expect(0);
    assert_eq!(id.stdout.trim().len(), 64);
    yard.until_logged("bg", "ready");
    let logs = |args: &[&str]| yard.container(&[&["logs"], args, &["bg"]].concat()).expect(0);
    // The two streams come by two pipes: their order is kept, but not which of them is first.
    until("all of it is written", || logs(&[]).stderr.contains("e4"));
    let tail = logs(&["--tail", "2"]);
    assert_eq!(tail.stdout.lines().count() + tail.stderr.lines().count(), 2, "{tail:?}");
    let out = logs(&[]);
    assert_eq!(out.stdout, "line 0\nline 1\nline 2\nline 3\nline 4\nready\n");
    assert!(out.stderr.starts_with("e0\ne1\ne2\ne3\ne4\n"), "{}", out.stderr);
    let stamped = logs(&["-t"]).stdout;
    assert!(stamped.lines().all(|l| l.starts_with("20") && l.contains("Z ")), "{stamped}");
    assert_eq!(logs(&["--since", "2100-01-01T00:00:00Z"]).stdout, "");
    assert_eq!(logs(&["--since", "1h"]).stdout, out.stdout);
    // By the beginning of its id, too.
    let short = &id.stdout[..12];
    assert_eq!(yard.container(&["logs", short]).expect(0).stdout, out.stdout);
    let exec = |args: &[&str]| yard.container(&[&["exec"], args].concat());
    assert_eq!(exec(&["bg", "sh", "-c", "pwd; echo $COLOUR; id -u"]).expect(0).stdout, "/tmp\nblue\n0\n");
    let over = [
        "-e",
        "COLOUR=red",
        "-w",
        "/",
        "-u",
        "1000:1001",
        "bg",
        "sh",
        "-c",
        "pwd; echo $COLOUR; id -u; id -g",
    ];
    assert_eq!(exec(&over).expect(0).stdout, "/\nred\n1000\n1001\n");
    exec(&["bg", "sh", "-c", "exit 9"]).expect(9);
    exec(&["bg", "no-such-program"]).expect(127);
    exec(&["bg", "/etc/passwd"]).expect(126);
    exec(&["nobody", "true"]).expect(125);
    let out = yard.container(&["rm", "bg"]).expect(2);
    assert!(out.stderr.contains("is running"), "{}", out.stderr);
    // Whoever follows sees the end; the stop signal is ignored, so the grace is waited for, and not much longer.
    let mut follower = yard.command(&["logs", "-f", "bg"]);
    let mut follower =
        Ending(follower.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"));
    let begun = Instant::now();
    assert_eq!(yard.container(&["stop", "-t", "1", "bg"]).expect(0).stdout, "bg\n");
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(10), "{took:?}");
    assert_eq!(follower.code(), 0);
    assert_eq!(yard.inspect("bg")["State"]["ExitCode"], 137);
    exec(&["bg", "true"]).expect(125);
    yard.container(&["kill", "bg"]).expect(2);
    yard.container(&["rm", "bg"]).expect(0);
    yard.container(&["logs", "bg"]).expect(2);
    // A signal by name, and the log of one that heard it.
    yard.run(&[
        "-d",
        "--name",
        "sig",
        "busybox",
        "sh",
        "-c",
        "trap 'echo hup' HUP; echo ready; while :; do sleep 0.02; done",
    ])
    .expect(0);
    yard.until_logged("sig", "ready");
    yard.container(&["kill", "-s", "HUP", "sig"]).expect(0);
    yard.until_logged("sig", "hup");
    // Whoever reads slowly reads all of it, however long ago the command ended.
    let said = "head -c 90000 /dev/zero; touch /said";
    let mut slow = yard.command(&["exec", "sig", "sh", "-c", said]);
    let mut slow = Ending(slow.stdout(Stdio::piped()).spawn().expect("it starts"));
    until("the command has ended", || exec(&["sig", "test", "-e", "/said"]).code() == 0);
    let long = Instant::now() + Duration::from_secs(2);
    while Instant::now() < long {
        assert_eq!(slow.0.try_wait().expect("it is our child"), None, "it ends before it is read");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut bytes = Vec::new();
    slow.0.stdout.as_mut().expect("piped").read_to_end(&mut bytes).expect("a pipe can be read");
    assert_eq!((bytes.len(), slow.code()), (90_000, 0));
    yard.container(&["rm", "-f", "sig"]).expect(0);
    // With --rm nothing stays.
    yard.run(&["-d", "--rm", "busybox", "true"]).expect(0);
    until("it is gone", || yard.container(&["ls", "-aq"]).stdout.is_empty());
    yard.run(&["-d", "--rm", "busybox", "no-such-program"]).expect(127);
    assert_eq!(yard.container(&["ls", "-aq"]).expect(0).stdout, "");
    yard.end();
    Ok(())
}

fn what_is_shown_reads_as_dockers(world: &World) -> Ended {
    let yard = Yard::new(world);
    let words = [
        "-d",
        "--name",
        "shown",
        "-l",
        "team=blue",
        "--memory",
        "64m",
        "busybox",
        "sh",
        "-c",
        "echo up; exec sleep 1000",
    ];
    yard.run(&words).expect(0);
    yard.until_logged("shown", "up");
    let table = yard.container(&["ls"]).expect(0).stdout;
    let mut lines = table.lines();
    let head: Vec<&str> =
        lines.next().expect("a head").split("   ").map(str::trim).filter(|c| !c.is_empty()).collect();
    assert_eq!(head, ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]);
    let row: Vec<&str> =
        lines.next().expect("a row").split("   ").map(str::trim).filter(|c| !c.is_empty()).collect();
    assert_eq!((row[0].len(), row[1], row[2]), (12, "busybox", "\"sh -c echo up; exec…\""));
    assert!(row[3].ends_with(" ago") && row[4].starts_with("Up ") && row[5] == "shown", "{row:?}");
    assert_eq!(yard.container(&["ls", "-q"]).expect(0).stdout.trim(), row[0]);
    let json = yard.container(&["ls", "--format", "json"]).expect(0).stdout;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&json["State"], &json["Labels"]), (&Value::from("running"), &Value::from("team=blue")));
    let found = yard.inspect("shown");
    assert_eq!(found["Name"], "/shown");
    assert_eq!(found["HostConfig"]["Memory"], 64 << 20);
    assert_eq!(found["State"]["Running"], true);
    let pid = found["State"]["Pid"].as_i64().expect("a number");
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    let text = yard.container(&["inspect", "shown"]).expect(0).stdout;
    assert!(serde_json::from_str::<Vec<Value>>(&text).is_ok_and(|all| all == [found]), "{text}");
    let stats = yard.container(&["stats", "--no-stream"]).expect(0).stdout;
    let row = stats.lines().nth(1).expect("a row");
    assert!(row.contains("shown") && row.contains("% ") && row.contains("/ 64.0MiB"), "{stats}");
    let json = yard.container(&["stats", "--no-stream", "--format", "json", "shown"]).expect(0).stdout;
    assert_eq!(serde_json::from_str::<Value>(&json).expect("JSON")["PIDs"], "2");
    yard.container(&["stop", "-t", "0", "shown"]).expect(0);
    assert_eq!(yard.container(&["ls"]).expect(0).stdout.lines().count(), 1);
    assert!(
        yard.container(&["ls", "-a"]).expect(0).stdout.contains("Exited (1"),
        "it is listed with its end"
    );
    // Readable by its owner only.
    use std::os::unix::fs::PermissionsExt;
    let dir = yard.env.store().join("containers");
    let mode = |p: &std::path::Path| std::fs::metadata(p).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    yard.end();
    Ok(())
}

fn what_is_asked_for_is_given(world: &World) -> Ended {
    let yard = Yard::new(world);
    let dir = yard.env.work().join("bound");
    std::fs::create_dir(&dir).expect("folders can be made");
    std::fs::write(dir.join("file"), "from here\n").expect("files can be written");
    std::fs::write(yard.env.work().join("vars"), "# words\nFROM_FILE=yes\n").expect("files can be written");
    let said = |args: &[&str], script: &str| {
        yard.run(&[&["--rm"], args, &["busybox", "sh", "-c", script]].concat()).expect(0).stdout
    };
    assert_eq!(
        said(&["-v", "./bound:/in"], "cat /in/file; stat -c %u /in/file; echo back > /in/new"),
        "from here\n0\n"
    );
    assert_eq!(std::fs::read_to_string(dir.join("new")).expect("it was written"), "back\n");
    use std::os::unix::fs::MetadataExt;
    assert_eq!(
        std::fs::metadata(dir.join("new")).expect("it was written").uid(),
        0,
        "owners are those of here"
    );
    assert_eq!(said(&["-v", "./bound:/in:ro"], "touch /in/x 2>/dev/null || echo refused"), "refused\n");
    assert_eq!(said(&["--env-file", "vars", "-e", "A=b"], "echo $FROM_FILE $A"), "yes b\n");
    assert_eq!(
        said(
            &["--read-only", "--tmpfs", "/t:size=1m"],
            "touch /x 2>/dev/null || echo ro; echo t > /t/x && cat /t/x"
        ),
        "ro\nt\n"
    );
    assert_eq!(
        said(&["--cap-drop", "ALL", "--cap-add", "CHOWN"], "grep CapEff /proc/self/status"),
        "CapEff:\t0000000000000001\n"
    );
    assert_eq!(said(&["--hostname", "named"], "hostname; cat /etc/hostname"), "named\nnamed\n");
    assert_eq!(
        said(
            &["--pids-limit", "5"],
            "(for i in 1 2 3 4 5 6 7 8; do sleep 1 & done) 2>/dev/null || echo no more"
        ),
        "no more\n"
    );
    let out = yard.run(&["--rm", "--entrypoint", "echo", "busybox", "in its place"]).expect(0);
    assert_eq!(out.stdout, "in its place\n");
    // Orphans are reaped: the sleeps whose parent has ended leave no zombie.
    assert_eq!(said(&["--init"], "(sleep 0.05 &) ; sleep 0.3; ps -o stat | grep -c Z || true"), "0\n");
    // A private network: out of it, and into it by a port.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("a port is free")
        .port();
    let publish = format!("127.0.0.1:{port}:8080");
    let script = "mkdir /www; echo served > /www/x; exec httpd -f -p 8080 -h /www";
    yard.container(&["run", "-d", "--name", "web", "-p", &publish, "busybox", "sh", "-c", script]).expect(0);
    let get = || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(b"GET /x HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    };
    until("it answers", || get().is_ok_and(|text| text.ends_with("served\n")));
    assert!(yard.container(&["ls"]).expect(0).stdout.contains(&format!("127.0.0.1:{port}->8080/tcp")));
    let out = yard.container(&["run", "-d", "--name", "late", "-p", &publish, "busybox", "true"]).expect(125);
    assert!(out.stderr.contains("cannot listen"), "{}", out.stderr);
    yard.container(&["rm", "-f", "web"]).expect(0);
    assert!(get().is_err(), "the port is free again");
    yard.end();
    Ok(())
}

fn copies_stay_where_they_belong(world: &World) -> Ended {
    let yard = Yard::new(world);
    let work = yard.env.work();
    let sentinel = work.join("sentinel");
    std::fs::create_dir_all(sentinel.join("etc")).expect("folders can be made");
    std::fs::write(sentinel.join("etc/secret"), "of this machine\n").expect("files can be written");
    let outside = sentinel.to_str().expect("UTF-8").to_owned();
    // While it runs, a directory and a link to a path of the machine take each other's place without end.
    let script = format!(
        "mkdir -p /swap/etc /keep; echo inside > /swap/etc/secret; ln -s {outside} /away; echo ready; \
         while :; do mv /swap /keep/swap; ln -s {outside} /swap; rm /swap; mv /keep/swap /swap; done"
    );
    yard.run(&["-d", "--name", "hostile", "busybox", "sh", "-c", &script]).expect(0);
    yard.until_logged("hostile", "ready");
    let cp = |from: &str, to: &str| yard.container(&["cp", from, to]);
    std::fs::write(work.join("mine"), "mine\n").expect("files can be written");
    for n in 0..15 {
        let to = work.join(format!("out-{n}"));
        let to = to.to_str().expect("UTF-8");
        if cp("hostile:/swap/etc/secret", to).code() == 0 {
            let text = std::fs::read_to_string(to).expect("it was copied");
            assert!(matches!(text.as_str(), "inside\n" | "mine\n"), "{text}");
        }
        // Wherever it goes, it stays inside.
        cp("mine", "hostile:/swap/etc/secret");
    }
    let out = cp("hostile:/away/etc/secret", "stolen").expect(2);
    assert!(out.stderr.contains("No such file"), "{}", out.stderr);
    cp("mine", "hostile:/away/etc/secret");
    let secret = || std::fs::read_to_string(sentinel.join("etc/secret")).expect("it is there");
    assert_eq!(secret(), "of this machine\n");
    assert_eq!(std::fs::read_dir(&sentinel).expect("it is there").count(), 1);
    yard.container(&["rm", "-f", "hostile"]).expect(0);
    // Both ways, running and ended.
    yard.run(&["-d", "--name", "box", "busybox", "sh", "-c", "mkdir -p /d/sub; echo deep > /d/sub/f; chmod 640 /d/sub/f; ln -s sub/f /d/l; echo ready; exec sleep 1000"]).expect(0);
    yard.until_logged("box", "ready");
    for phase in ["running", "ended"] {
        let to = format!("tree-{phase}");
        cp("box:/d", &to).expect(0);
        assert_eq!(std::fs::read_to_string(work.join(&to).join("sub/f")).expect("it was copied"), "deep\n");
        assert!(work.join(&to).join("l").is_symlink());
        cp(&to, "box:/root/").expect(0);
        cp("mine", &format!("box:/root/{phase}")).expect(0);
        cp(&format!("box:/root/{to}/sub/f"), &format!("again-{phase}")).expect(0);
        assert_eq!(
            std::fs::read_to_string(work.join(format!("again-{phase}"))).expect("it was copied"),
            "deep\n"
        );
        cp("mine", "box:/nowhere/at/all").expect(2);
        if phase == "running" {
            let stat =
                yard.container(&["exec", "box", "stat", "-c", "%u:%g %a", "/root/running"]).expect(0).stdout;
            assert!(stat.starts_with("0:0 "), "{stat}");
            yard.container(&["stop", "-t", "0", "box"]).expect(0);
        }
    }
    // A program that runs as its owner does so in a container only.
    let mode = |name: &str| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(work.join(name)).expect("it was copied").permissions().mode() & 0o7777
    };
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(work.join("mine"), PermissionsExt::from_mode(0o4755)).expect("it is ours");
    cp("mine", "box:/root/setid").expect(0);
    cp("box:/root/setid", "setid").expect(0);
    assert_eq!(mode("setid"), 0o755);
    let tar = yard.command(&["cp", "box:/root/setid", "-"]).output().expect("it runs").stdout;
    assert!(tar.windows(8).any(|w| w == b"0000755\0"), "the mode of a tar, too");
    let upper = yard.env.store().join("containers").join(yard.inspect("box")["Id"].as_str().expect("an id"));
    let inside = std::fs::metadata(upper.join("fs/root/setid")).expect("it is there").permissions().mode();
    assert_eq!(inside & 0o7777, 0o4755, "it keeps what it has there");
    cp("box:/root/ended", "ended").expect(0);
    assert_eq!(std::fs::read_to_string(work.join("ended")).expect("it was copied"), "mine\n");
    yard.end();
    Ok(())
}
