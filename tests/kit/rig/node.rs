//! One machine of the rig: a process tree in namespaces of its own (mount, pid, uts, ipc, net, cgroup),
//! with its own root: an overlay over the machine's, so that nothing it writes touches the machine.
//!
//! A node is two processes: a *keeper*, which enters the cgroups and makes the namespaces, and the node's
//! *init*, PID 1 inside. The init ends when its standard input ends, and with it everything in the node,
//! so a rig that is killed takes its nodes along. Both are the test binary itself: every program that
//! uses a rig calls [`main_if_asked`] first.

#![expect(clippy::exit, reason = "these are processes of their own, whose end is their meaning")]

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, chdir, pivot_root, sethostname};
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The users of a node, whatever the machine has: sshd asks for its own.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n\
                      sshd:x:104:65534::/run/sshd:/usr/sbin/nologin\n";
const KEEPER: &str = "__rig-keeper";
const INIT: &str = "__rig-init";

/// Becomes a node's keeper or init when the arguments say so; else returns at once. Call it first in `main`.
pub fn main_if_asked() {
    let mut args = std::env::args_os().skip(1);
    let (Some(verb), Some(dir)) = (args.next(), args.next()) else { return };
    let result = match verb.to_str() {
        Some(KEEPER) => keeper(Path::new(&dir)),
        Some(INIT) => init(Path::new(&dir)),
        _ => return,
    };
    if let Err(e) = result {
        let _ = writeln!(io::stderr(), "rig node {}: {e}", dir.display());
        std::process::exit(1);
    }
    std::process::exit(0);
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    name: String,
    dir: PathBuf,
    keeper: Child,
    init: u32,
}

impl Node {
    /// Starts a node whose files live in `dir`; `hosts` becomes its `/etc/hosts`, and `cgroup` is the
    /// name of its cgroup below each hierarchy.
    pub fn start(name: &str, dir: &Path, cgroup: &str, hosts: &str) -> io::Result<Self> {
        for sub in ["up/etc", "up/root", "work", "root", "state"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        fs::set_permissions(dir.join("up/root"), fs::Permissions::from_mode(0o700))?;
        for sub in ["up", "up/etc"] {
            fs::set_permissions(dir.join(sub), fs::Permissions::from_mode(0o755))?;
        }
        fs::write(dir.join("name"), name)?;
        fs::write(dir.join("cgroup"), cgroup)?;
        fs::write(dir.join("up/etc/hosts"), hosts)?;
        fs::write(dir.join("up/etc/hostname"), format!("{name}\n"))?;
        fs::write(dir.join("up/etc/passwd"), PASSWD)?;
        fs::write(dir.join("up/etc/resolv.conf"), "")?;
        let mut keeper = Command::new(std::env::current_exe()?)
            .arg(KEEPER)
            .arg(dir)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        // The keeper prints the init's pid, then the init prints "ready" when its root stands.
        let mut out = BufReader::new(keeper.stdout.take().expect("standard output is piped"));
        let mut line = String::new();
        out.read_line(&mut line)?;
        let init = line.trim().parse::<u32>();
        let mut ready = String::new();
        out.read_line(&mut ready)?;
        match (init, ready.trim()) {
            (Ok(init), "ready") => Ok(Self { name: name.to_owned(), dir: dir.to_owned(), keeper, init }),
            _ => {
                let _ = keeper.kill();
                let _ = keeper.wait();
                Err(io::Error::other(format!("node {name} did not start; its message is above")))
            }
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The pid of its init, as seen from outside.
    pub const fn init_pid(&self) -> u32 {
        self.init
    }

    /// A file of its root as seen from outside, through the node's own mounts: the upper directory of a mounted
    /// overlay must not be written directly.
    pub fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.init)).join(path.trim_start_matches('/'))
    }

    /// Its private /var/lib/keelway as seen from outside.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// A command that runs inside, with a clean environment.
    pub fn command(&self, program: &str) -> Command {
        let mut c = Command::new("nsenter");
        c.arg(format!("--target={}", self.init))
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--wdns=/", "--"])
            // Namespaces are entered, cgroups are not: the command joins the node's own first.
            .args([
                "sh",
                "-c",
                "for p in /sys/fs/cgroup/*/cgroup.procs; do echo $$ >$p; done; exec \"$@\"",
                "sh",
                program,
            ])
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .env("LANG", "C.UTF-8")
            .stdin(Stdio::null());
        c
    }

    /// Runs a command inside to its end; an error holds what it printed.
    pub fn run(&self, argv: &[&str]) -> io::Result<String> {
        let out = self.command(argv[0]).args(&argv[1..]).output()?;
        if out.status.success() {
            return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
        }
        let (o, e) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        Err(io::Error::other(format!("{}: {argv:?} ended with {}\n{o}{e}", self.name, out.status)))
    }

    /// As a power failure: everything in the node dies at once.
    pub fn kill(&mut self) {
        let _ = self.keeper.kill();
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
        // The init saw its input end; the kernel ends the rest of the pid namespace with it.
        let proc = PathBuf::from(format!("/proc/{}", self.init));
        for _ in 0..500 {
            if !proc.exists() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The cgroup hierarchies of this machine: where each is mounted, and whether it is v2.
pub fn hierarchies() -> Vec<(PathBuf, String, bool)> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let at = PathBuf::from(left.split(' ').nth(4)?);
            let mut right = right.split(' ');
            let kind = right.next()?;
            let options = right.nth(1)?;
            // The controllers of a v1 hierarchy are its mount options without `rw` and the like.
            let v1: Vec<&str> = options
                .split(',')
                .filter(|o| !matches!(*o, "rw" | "ro" | "xattr" | "clone_children"))
                .collect();
            match kind {
                "cgroup2" => Some((at, String::new(), true)),
                "cgroup" => Some((at, v1.join(","), false)),
                _ => None,
            }
        })
        .collect()
}

/// Enters the cgroups, makes the namespaces, starts the init and waits for it.
fn keeper(dir: &Path) -> io::Result<()> {
    let cgroup = fs::read_to_string(dir.join("cgroup"))?;
    for (at, _, _) in hierarchies() {
        let group = at.join(&cgroup);
        fs::create_dir_all(&group)?;
        if at.ends_with("cpuset") {
            inherit_cpuset(&at, &cgroup)?;
        }
        // A whole rig would have the share of one process among those of the machine: seven machines are more. Where
        // the controller is not here, there is no such file.
        if let Some(rig) = Path::new(&cgroup).parent()
            && at.join(rig).join("cpu.shares").exists()
        {
            fs::write(at.join(rig).join("cpu.shares"), "8192")?;
        }
        fs::write(group.join("cgroup.procs"), std::process::id().to_string())?;
    }
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWCGROUP,
    )?;
    // The init shares our standard input, so it sees the end of it when the rig dies, and our output,
    // where it reports. We keep no end of the pipe that would hide that.
    let mut init = Command::new("/proc/self/exe")
        .arg(INIT)
        .arg(dir)
        .stdin(Stdio::inherit())
        .stdout(Stdio::inherit())
        .spawn()?;
    let mut out = io::stdout();
    writeln!(out, "{}", init.id())?;
    out.flush()?;
    init.wait()?;
    Ok(())
}

/// A v1 cpuset group takes no process until it has CPUs and memory nodes.
fn inherit_cpuset(at: &Path, cgroup: &str) -> io::Result<()> {
    let mut group = at.to_path_buf();
    for part in Path::new(cgroup) {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let value = fs::read_to_string(group.join(file))?;
            fs::write(group.join(part).join(file), value.trim())?;
        }
        group.push(part);
    }
    Ok(())
}

fn init(dir: &Path) -> io::Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let hierarchies = hierarchies();
    let root = dir.join("root");
    let d = dir.display();
    let overlay = format!("lowerdir=/,upperdir={d}/up,workdir={d}/work");
    mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(overlay.as_str()))?;
    mount(Some("proc"), &root.join("proc"), Some("proc"), MsFlags::empty(), none)?;
    mount(Some("sysfs"), &root.join("sys"), Some("sysfs"), MsFlags::empty(), none)?;
    mount(Some("/dev"), &root.join("dev"), none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    mount(Some("tmpfs"), &root.join("dev/shm"), Some("tmpfs"), MsFlags::empty(), none)?;
    for tmp in ["run", "tmp"] {
        mount(
            Some("tmpfs"),
            &root.join(tmp),
            Some("tmpfs"),
            MsFlags::empty(),
            Some(if tmp == "tmp" { "mode=1777" } else { "mode=755" }),
        )?;
    }
    fs::create_dir_all(root.join("var/lib/keelway"))?;
    mount(Some(&dir.join("state")), &root.join("var/lib/keelway"), none, MsFlags::MS_BIND, none)?;
    cgroups(&root, &hierarchies)?;
    chdir(&root)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    sethostname(fs::read_to_string("/etc/hostname")?.trim())?;
    if !Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success() {
        return Err(io::Error::other("ip link set lo up failed"));
    }
    fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0").ok();
    let mut out = io::stdout();
    writeln!(out, "ready")?;
    out.flush()?;
    // Nobody else may hold the pipe's end: children get /dev/null below, and reports are over.
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null)?;
    std::thread::spawn(|| {
        let mut rest = Vec::new();
        let _ = io::stdin().read_to_end(&mut rest);
        std::process::exit(0);
    });
    reap_forever()
}

/// Each hierarchy once more, mounted from inside the cgroup namespace: the node sees its own group as the root.
fn cgroups(root: &Path, hierarchies: &[(PathBuf, String, bool)]) -> io::Result<()> {
    let none: Option<&str> = None;
    let top = root.join("sys/fs/cgroup");
    if let [(_, _, true)] = hierarchies {
        mount(Some("cgroup2"), &top, Some("cgroup2"), MsFlags::empty(), none)?;
        return Ok(());
    }
    mount(Some("tmpfs"), &top, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
    for (at, options, v2) in hierarchies {
        let here = top.join(at.file_name().unwrap_or_default());
        fs::create_dir_all(&here)?;
        let kind = if *v2 { "cgroup2" } else { "cgroup" };
        let data = (!v2).then_some(options.as_str());
        mount(Some(kind), &here, Some(kind), MsFlags::empty(), data)?;
    }
    Ok(())
}

/// PID 1's other duty: whoever is orphaned in the node ends here.
fn reap_forever() -> io::Result<()> {
    loop {
        if waitpid(Pid::from_raw(-1), None) == Err(nix::errno::Errno::ECHILD) {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}
