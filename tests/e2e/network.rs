//! The networks of steps: each test has a machine of its own, a network namespace with an outside behind it, and runs the
//! binary there. The real machine's routes, rules and switches stay as they are.

use crate::build::{build, context};
use crate::{Ended, Test, World};
use keelway_tests::base::{self, Base};
use keelway_tests::env::{COMMAND_DEADLINE, Env, Output, run};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("network::r21_a_step_reaches_out_and_not_the_machine", r21_a_step_reaches_out_and_not_the_machine),
    ("network::the_machines_network_is_granted", the_machines_network_is_granted),
    ("network::none_is_none", none_is_none),
    ("network::twenty_at_once", twenty_at_once),
    ("network::kill_leaves_nothing", kill_leaves_nothing),
];

pub const MACHINE: &str = "203.0.113.1";
pub const OUTSIDE: &str = "203.0.113.2";
/// The machine's, of an interface that nothing is routed through.
pub const ASIDE: &str = "198.51.100.77";
const PORT: u16 = 4000;
/// The image of every step: it has a C library that looks names up as most programs do, and a program that says which of
/// its arguments, `HOST` or `HOST:PORT`, gave it a page.
const TOOLS: &str = "net/tools";
pub const FETCH: &str = "import socket, sys
for where in sys.argv[1:]:
    host, _, port = where.partition(':')
    try:
        with socket.create_connection((host, int(port or 4000)), 5) as s:
            s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')
            page = s.makefile().read().splitlines()[-1]
        print('came', where, 'from the', page)
    except OSError as e:
        print('refused', where, e)
";
const SOON: Duration = Duration::from_secs(20);

/// A machine: commands started by its thread run in its network.
pub struct Machine {
    env: Env,
    keelway: PathBuf,
    resolv_conf: PathBuf,
}

fn ip(args: &[&str]) {
    let out = Command::new("ip").args(args).output().expect("ip runs");
    assert!(out.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A page for whoever asks, until the process ends: threads of the calling thread's network.
fn serve_pages(text: &'static str) {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).expect("the port is free in a new network");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.set_read_timeout(Some(SOON));
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                request.push(byte[0]);
            }
            let page = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
            let _ = stream.write_all(page.as_bytes());
        }
    });
}

/// Every name has the address of the outside.
fn serve_names() {
    let socket = UdpSocket::bind(("0.0.0.0", 53)).expect("the port is free in a new network");
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((n, asker)) = socket.recv_from(&mut buffer) {
            let question = &buffer[..n];
            // The question ends after its name, which ends with a zero byte, its type and its class.
            let Some(zero) = question.get(12..).and_then(|q| q.iter().position(|b| *b == 0)) else {
                continue;
            };
            let Some(question) = question.get(..12 + zero + 5) else { continue };
            let is_address = question[question.len() - 3] == 1;
            let mut answer = question.to_vec();
            answer[2..4].copy_from_slice(&[0x81, 0x80]);
            answer[6..12].copy_from_slice(&[0, u8::from(is_address), 0, 0, 0, 0]);
            if is_address {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 203, 0, 113, 2]);
            }
            let _ = socket.send_to(&answer, asker);
        }
    });
}

/// Does `work` on a machine, in a thread of its network.
pub fn on_a_machine(world: &World, work: impl FnOnce(&Machine) + Send) {
    let env = world.env();
    let layout = base::oci_layout(Base::Python).expect("the base can be made");
    env.keelway(&["image", "load", layout.to_str().expect("UTF-8"), "base/python:12"]).expect(0);
    let tools = context(
        &env,
        "tools",
        &[("Dockerfile", "FROM base/python:12\nCOPY fetch /fetch\n"), ("fetch", FETCH)],
    );
    build(&env, &tools, &["-t", TOOLS]).expect(0);
    let resolv_conf = env.path().join("resolv.conf");
    fs::write(&resolv_conf, format!("nameserver {OUTSIDE}\n")).expect("files can be written");
    let machine = &Machine { env, keelway: world.keelway.clone(), resolv_conf };
    std::thread::scope(|scope| {
        let (tell_path, path) = mpsc::channel::<String>();
        let (tell_linked, linked) = mpsc::channel::<()>();
        let (tell_served, served) = mpsc::channel::<()>();
        let (done, finish) = mpsc::channel::<()>();
        scope.spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("tests are root");
            let me = format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid());
            tell_path.send(me).expect("the machine waits for it");
            linked.recv().expect("the machine tells");
            ip(&["addr", "add", &format!("{OUTSIDE}/24"), "dev", "eth0"]);
            ip(&["addr", "add", "169.254.169.254/32", "dev", "eth0"]);
            ip(&["link", "set", "lo", "up"]);
            ip(&["link", "set", "eth0", "up"]);
            serve_pages("outside\n");
            serve_names();
            tell_served.send(()).expect("the machine waits for it");
            // Until the test is over, or has panicked.
            let _ = finish.recv();
        });
        let worker = scope.spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("tests are root");
            let outside = path.recv().expect("the outside tells");
            ip(&["link", "set", "lo", "up"]);
            ip(&["link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", &outside]);
            ip(&["addr", "add", &format!("{MACHINE}/24"), "dev", "up0"]);
            ip(&["link", "set", "up0", "up"]);
            ip(&["link", "add", "aside0", "type", "bridge"]);
            ip(&["addr", "add", &format!("{ASIDE}/24"), "dev", "aside0"]);
            ip(&["link", "set", "aside0", "up"]);
            tell_linked.send(()).expect("the outside waits for it");
            served.recv().expect("the outside tells");
            ip(&["route", "add", "default", "via", OUTSIDE]);
            serve_pages("machine\n");
            work(machine);
        });
        let ended = worker.join();
        drop(done);
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    });
}

impl Machine {
    /// The binary with the machine's name servers.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.env.command("unshare");
        let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
        command.args(["--mount", "sh", "-c", script]).arg(&self.resolv_conf).arg(&self.keelway).args(args);
        command
    }
    fn keelway(&self, args: &[&str]) -> Output {
        run(&mut self.command(args), COMMAND_DEADLINE).expect("the binary starts and ends in time")
    }
    /// Builds a Dockerfile that is `FROM` the tools and these lines.
    fn build(&self, name: &str, lines: &str, flags: &[&str]) -> Output {
        let dir = self.context(name, lines);
        let mut args = vec!["image", "build"];
        args.extend(flags);
        args.push(dir.to_str().expect("UTF-8"));
        self.keelway(&args)
    }
    fn context(&self, name: &str, lines: &str) -> PathBuf {
        context(&self.env, name, &[("Dockerfile", &format!("FROM {TOOLS}\n{lines}\n"))])
    }
    /// Runs a pipeline of one step, whose stage has these further lines.
    fn pipeline(&self, lines: &str, script: &str) -> Output {
        let repo = crate::pipeline::repository(&self.env, "registry.example.com", "true");
        let file = format!(
            "version: 1\nstages:\n  a:\n    image: {TOOLS}\n{lines}    steps: [{{run: '{script}'}}]\n"
        );
        fs::write(repo.join("keelway.yml"), file).expect("files can be written");
        crate::pipeline::commit(&self.env, &repo, "network");
        run(self.command(&["run"]).current_dir(&repo), COMMAND_DEADLINE).expect("it ends in time")
    }
    /// What private networks have on it: interfaces and tables.
    fn left(&self) -> String {
        let tool = |name: &str, args: &[&str]| {
            let out = Command::new(name).args(args).output().expect("it runs");
            String::from_utf8_lossy(&out.stdout).into_owned()
        };
        let links = tool("ip", &["-o", "link"]);
        let links = links.lines().filter(|l| l.contains("kwn-")).collect::<Vec<_>>().join("\n");
        links + &tool("nft", &["list", "tables"])
    }
    #[track_caller]
    fn assert_nothing_left(&self) {
        let end = Instant::now() + SOON;
        while !self.left().is_empty() {
            assert!(Instant::now() < end, "left on the machine:\n{}", self.left());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Asks all of these for a page.
fn fetch(hosts: &[&str]) -> String {
    format!("python3 /fetch {}", hosts.join(" "))
}

/// Everything that a private network shall not reach.
const FORBIDDEN: [&str; 4] = ["127.0.0.1", MACHINE, ASIDE, "169.254.169.254"];
/// And what it shall.
const OPEN: [&str; 2] = [OUTSIDE, "www.example.com"];

/// That all of these came, or did not.
#[track_caller]
fn all(said: &str, word: &str, hosts: &[&str]) {
    has(said, &hosts.iter().map(|h| format!("{word} {h} ")).collect::<Vec<_>>());
}

#[track_caller]
fn has(text: &str, wanted: &[String]) {
    for wanted in wanted {
        assert!(text.contains(wanted.as_str()), "{wanted:?} is not in\n{text}");
    }
}

fn r21_a_step_reaches_out_and_not_the_machine(world: &World) -> Ended {
    on_a_machine(world, |machine| {
        let every = [&OPEN[..], &FORBIDDEN].concat();
        let begun = Instant::now();
        let out = machine.build("c", &format!("RUN {}; cat /etc/hosts", fetch(&every)), &[]).expect(0);
        all(&out.stderr, "came", &OPEN);
        all(&out.stderr, "refused", &FORBIDDEN);
        assert!(begun.elapsed() < SOON, "what is refused is said, not left to wait");
        // A port below 1024 and any other are everybody's, whoever runs.
        machine
            .build("p", "USER 1000\nRUN python3 -c 'import socket; socket.create_server((\"\", 80))'", &[])
            .expect(0);
        // The steps of a stage have the same.
        let out = machine.pipeline("", &fetch(&every)).expect(0);
        let said = out.stdout + &out.stderr;
        all(&said, "came", &OPEN);
        all(&said, "refused", &FORBIDDEN);
        machine.assert_nothing_left();
    });
    Ok(())
}

fn the_machines_network_is_granted(world: &World) -> Ended {
    on_a_machine(world, |machine| {
        let here = ["127.0.0.1"];
        let out = machine.build("a", &format!("RUN {}", fetch(&here)), &["--network", "host"]).expect(0);
        all(&out.stderr, "came", &here);
        has(&out.stderr, &["this machine's network".into()]);
        let line = format!("RUN --network=host echo asked for; {}", fetch(&here));
        let out = machine.build("b", &line, &[]).expect(2);
        has(&out.stderr, &["D0208".into(), "--allow host-network".into()]);
        let out = machine.build("b", &line, &["--allow", "host-network"]).expect(0);
        all(&out.stderr, "came", &here);
        // By key for steps, as before, with a warning.
        let out = machine.pipeline("    network: host\n", &fetch(&here)).expect(0);
        let said = out.stdout + &out.stderr;
        all(&said, "came", &here);
        has(&said, &["warning[K0302]".into()]);
        assert!(machine.left().is_empty(), "the machine's network makes none: {}", machine.left());
    });
    Ok(())
}

fn none_is_none(world: &World) -> Ended {
    on_a_machine(world, |machine| {
        let every = [&OPEN[..], &FORBIDDEN].concat();
        let line = format!("RUN {}; ls /sys/class/net", fetch(&every));
        let out = machine.build("c", &line, &["--network", "none"]).expect(0);
        all(&out.stderr, "refused", &every);
        assert!(!out.stderr.contains("eth0"), "{}", out.stderr);
        let out = machine.pipeline("    network: none\n", &fetch(&every)).expect(0);
        all(&(out.stdout + &out.stderr), "refused", &every);
        assert!(machine.left().is_empty());
    });
    Ok(())
}

fn twenty_at_once(world: &World) -> Ended {
    on_a_machine(world, |machine| {
        let children: Vec<_> = (0..20)
            .map(|i| {
                let lines = format!("RUN echo {i}; {}", fetch(&OPEN));
                let dir = machine.context(&format!("c{i}"), &lines);
                let mut command = machine.command(&["image", "build", dir.to_str().expect("UTF-8")]);
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
                (i, command.spawn().expect("it starts"))
            })
            .collect();
        for (i, child) in children {
            let out = child.wait_with_output().expect("it ends");
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(out.status.success(), "{i}: {said}");
            all(&said, "came", &OPEN);
        }
        machine.assert_nothing_left();
    });
    Ok(())
}

fn kill_leaves_nothing(world: &World) -> Ended {
    on_a_machine(world, |machine| {
        let dir = machine.context("c", "RUN sleep 100");
        let mut child = machine
            .command(&["image", "build", dir.to_str().expect("UTF-8")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        // Another one lives on meanwhile, and keeps its network.
        let other = machine.context("o", &format!("RUN sleep 3; {}", fetch(&OPEN)));
        let living = machine
            .command(&["image", "build", other.to_str().expect("UTF-8")])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let end = Instant::now() + SOON;
        while machine.left().matches("kwn-").count() < 4 {
            assert!(Instant::now() < end, "two routers are expected:\n{}", machine.left());
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().expect("it lives");
        child.wait().expect("it ends");
        let end = Instant::now() + SOON;
        while machine.left().matches("kwn-").count() > 2 {
            assert!(Instant::now() < end, "the dead one's are expected to go:\n{}", machine.left());
            std::thread::sleep(Duration::from_millis(5));
        }
        let out = living.wait_with_output().expect("it ends");
        all(&String::from_utf8_lossy(&out.stderr), "came", &OPEN);
        machine.assert_nothing_left();
    });
    Ok(())
}
