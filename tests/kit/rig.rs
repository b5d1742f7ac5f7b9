//! The rig: three hosts, a registry, a deployer and a load generator, each a [`Node`] with namespaces
//! and a root of its own, joined by a bridge that lives in a node of its own as well. Nothing is in
//! the machine's own network, nothing is written outside the rig's folder and cgroups, and all of it
//! goes when the rig is dropped. What a killed rig left is removed when the next one starts.
//!
//! Addresses: registry 198.18.0.2, deployer .3, load generator .4, hosts from .11 on.

pub mod look;
pub mod node;

use node::Node;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The name under which the rig's registry is reached, with a certificate of the test authority.
pub const REGISTRY: &str = "registry.rig.test";

/// How a rig is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many target hosts.
    pub hosts: usize,
    /// The `keelway` binary; the deployer gets a copy as /usr/local/bin/keelway, the hosts get none.
    pub keelway: PathBuf,
}

/// A running rig.
#[derive(Debug)]
pub struct Rig {
    services: Vec<Service>,
    docker_registry: Option<Service>,
    /// The target hosts.
    pub hosts: Vec<Node>,
    /// Runs docker-registry.
    pub registry: Node,
    /// Where `keelway run` runs.
    pub deployer: Node,
    /// Where requests come from.
    pub load: Node,
    switch: Node,
    dir: PathBuf,
    id: String,
    _lock: File,
}

/// A program of the rig that runs until the rig ends.
#[derive(Debug)]
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where rigs keep their files: memory where there is plenty, because root file systems may have no
/// journal and are slow then; else the disk.
fn parent_dir() -> PathBuf {
    let free = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|t| {
            t.lines().find_map(|l| {
                l.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
            })
        })
        .unwrap_or(0);
    let shm = Path::new("/dev/shm");
    let room = nix::sys::statvfs::statvfs(shm).map_or(0, |s| s.blocks_available() * s.fragment_size());
    if free > 6 << 20 && room > 4 << 30 { shm.to_path_buf() } else { PathBuf::from("/var/tmp") }
}

impl Rig {
    /// Makes the whole rig.
    pub fn start(options: &Options) -> io::Result<Self> {
        reap();
        let id = format!(
            "{}-{}",
            std::process::id(),
            std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.subsec_nanos())
        );
        let dir = parent_dir().join(format!("keelway-rig-{id}"));
        // Under another name until it is locked: another rig that starts now must not take it for a dead one.
        let new = parent_dir().join(format!("new-keelway-rig-{id}"));
        fs::create_dir_all(&new)?;
        let lock = File::create(new.join("lock"))?;
        lock.lock()?;
        fs::rename(&new, &dir)?;
        let hosts_file = hosts_file(options.hosts);
        let start =
            |name: &str| Node::start(name, &dir.join(name), &format!("keelway-rig-{id}/{name}"), &hosts_file);
        let switch = start("switch")?;
        let registry = start("registry")?;
        let deployer = start("deployer")?;
        let load = start("load")?;
        let hosts =
            (1..=options.hosts).map(|i| start(&format!("host{i}"))).collect::<io::Result<Vec<_>>>()?;
        let mut rig = Self {
            services: Vec::new(),
            docker_registry: None,
            hosts,
            registry,
            deployer,
            load,
            switch,
            dir,
            id,
            _lock: lock,
        };
        rig.connect()?;
        rig.install(&options.keelway)?;
        rig.start_registry()?;
        for i in 0..rig.hosts.len() {
            rig.start_sshd(i)?;
        }
        Ok(rig)
    }

    /// The rig's folder, for files of the test beside it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The bridge and a link into it for every node.
    fn connect(&self) -> io::Result<()> {
        self.switch.run(&["ip", "link", "add", "rig0", "type", "bridge"])?;
        self.switch.run(&["ip", "link", "set", "rig0", "up"])?;
        let named = [(&self.registry, 2), (&self.deployer, 3), (&self.load, 4)];
        for (node, last) in named.into_iter().chain(self.hosts.iter().zip(11..)) {
            self.plug(node, last)?;
        }
        Ok(())
    }

    fn plug(&self, node: &Node, last: u8) -> io::Result<()> {
        let link = format!("p{last}");
        // The switch's own pid namespace does not know the other node's pid, so the move is made from outside.
        let mut add = Command::new("nsenter");
        add.arg(format!("--target={}", self.switch.init_pid())).args([
            "--net", "--", "ip", "link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns",
        ]);
        let out = add.arg(node.init_pid().to_string()).output()?;
        if !out.status.success() {
            return Err(io::Error::other(format!(
                "linking {}: {}",
                node.name(),
                String::from_utf8_lossy(&out.stderr)
            )));
        }
        self.switch.run(&["ip", "link", "set", &link, "master", "rig0", "up"])?;
        // A machine keeps its hardware address over a reboot, and its neighbours remember it.
        node.run(&["ip", "link", "set", "eth0", "address", &format!("02:00:c6:12:00:{last:02x}")])?;
        node.run(&["ip", "addr", "add", &format!("198.18.0.{last}/24"), "dev", "eth0"])?;
        node.run(&["ip", "link", "set", "eth0", "up"])?;
        Ok(())
    }

    /// Takes a host's link down (`false`) or up again.
    pub fn link(&self, host: usize, up: bool) -> io::Result<()> {
        let link = format!("p{}", 11 + host);
        self.switch.run(&["ip", "link", "set", &link, if up { "up" } else { "down" }]).map(drop)
    }

    /// Keys, the binary, the authority.
    fn install(&self, keelway: &Path) -> io::Result<()> {
        let bin = self.deployer.file("usr/local/bin");
        fs::create_dir_all(&bin)?;
        fs::copy(keelway, bin.join("keelway"))?;
        fs::set_permissions(bin.join("keelway"), fs::Permissions::from_mode(0o755))?;
        let ssh = self.deployer.file("root/.ssh");
        fs::create_dir_all(&ssh)?;
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o700))?;
        let key = ssh.join("id_ed25519");
        keygen(&key)?;
        let public = fs::read_to_string(key.with_extension("pub"))?;
        let mut known = String::new();
        let mut config = String::new();
        for (i, host) in self.hosts.iter().enumerate() {
            let etc = host.file("etc/ssh");
            fs::create_dir_all(&etc)?;
            let host_key = etc.join("rig_host_key");
            keygen(&host_key)?;
            let line = fs::read_to_string(host_key.with_extension("pub"))?;
            known.push_str(&format!("198.18.0.{} {line}", 11 + i));
            config.push_str(&format!("Host {}\n    HostName 198.18.0.{}\n", host.name(), 11 + i));
            let root_ssh = host.file("root/.ssh");
            fs::create_dir_all(&root_ssh)?;
            fs::set_permissions(&root_ssh, fs::Permissions::from_mode(0o700))?;
            fs::write(root_ssh.join("authorized_keys"), &public)?;
            fs::write(
                etc.join("rig_sshd_config"),
                "Port 22\nHostKey /etc/ssh/rig_host_key\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n\
                 KbdInteractiveAuthentication no\nUsePAM no\nPidFile none\nPrintMotd no\nMaxStartups 100\n",
            )?;
        }
        config.push_str("Host *\n    User root\n    IdentityFile /root/.ssh/id_ed25519\n    IdentitiesOnly yes\n    UserKnownHostsFile /root/rig_known_hosts\n    GlobalKnownHostsFile /dev/null\n");
        fs::write(self.deployer.file("root/rig_known_hosts"), known)?;
        fs::write(self.deployer.file("root/rig_ssh_config"), config)?;
        let authority = crate::tls::Authority::new(&self.dir)?;
        let server = authority.issue(&[REGISTRY])?;
        for (from, to) in [(&server.cert, "cert.pem"), (&server.key, "key.pem")] {
            fs::copy(from, self.registry.file(&format!("root/{to}")))?;
        }
        for node in [&self.deployer, &self.load] {
            let certs = node.file(&format!("etc/docker/certs.d/{REGISTRY}"));
            fs::create_dir_all(&certs)?;
            fs::copy(authority.ca_path(), certs.join("ca.crt"))?;
            fs::copy(authority.ca_path(), node.file("root/rig_ca.pem"))?;
        }
        Ok(())
    }

    /// Starts the registry, or starts it again; what it holds is kept.
    pub fn start_registry(&mut self) -> io::Result<()> {
        fs::write(
            self.registry.file("root/registry.yml"),
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage:\n  filesystem: {rootdirectory: /var/lib/keelway/registry}\n\
             http:\n  addr: :443\n  tls: {certificate: /root/cert.pem, key: /root/key.pem}\n",
        )?;
        let log = File::create(self.dir.join("registry.log"))?;
        let child = self
            .registry
            .command("docker-registry")
            .args(["serve", "/root/registry.yml"])
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.docker_registry = Some(Service(child));
        wait_for(Duration::from_secs(20), "docker-registry", || {
            self.deployer
                .run(&["curl", "-sf", "--cacert", "/root/rig_ca.pem", &format!("https://{REGISTRY}/v2/")])
                .is_ok()
        })
    }

    /// Ends the registry as kill -9 does.
    pub fn stop_registry(&mut self) -> io::Result<()> {
        // It runs in the node's own pid namespace; what was started is what entered it.
        self.registry.run(&["pkill", "-KILL", "-x", "docker-registry"])?;
        self.docker_registry = None;
        Ok(())
    }

    /// Starts (or, after a reboot, restarts) a host's sshd.
    pub fn start_sshd(&mut self, host: usize) -> io::Result<()> {
        let node = &self.hosts[host];
        node.run(&["mkdir", "-p", "/run/sshd"])?;
        let log = File::create(self.dir.join(format!("{}-sshd.log", node.name())))?;
        let child = node
            .command("/usr/sbin/sshd")
            .args(["-D", "-e", "-f", "/etc/ssh/rig_sshd_config"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.services.push(Service(child));
        let address = format!("198.18.0.{}", 11 + host);
        let (name, deployer) = (node.name().to_owned(), &self.deployer);
        wait_for(Duration::from_secs(20), &format!("sshd of {name}"), || {
            deployer.run(&["bash", "-c", &format!("exec 3<>/dev/tcp/{address}/22")]).is_ok()
        })
    }

    /// Copies an image from an OCI layout into the rig's registry, by skopeo.
    pub fn push_base(&self, layout: &Path, repository: &str, tag: &str) -> io::Result<()> {
        // The layout may lie below a folder that is private in the nodes (/root, /tmp, /run, /var/lib/keelway).
        let inside = self.deployer.state_dir().join("bases").join(repository.replace('/', "-"));
        copy_dir(layout, &inside)?;
        let from = format!("oci:/var/lib/keelway/bases/{}:latest", repository.replace('/', "-"));
        let to = format!("docker://{REGISTRY}/{repository}:{tag}");
        let pushed = self.deployer.run(&[
            "skopeo",
            "--insecure-policy",
            "copy",
            "--quiet",
            "--preserve-digests",
            &from,
            &to,
        ]);
        fs::remove_dir_all(self.deployer.state_dir().join("bases"))?;
        pushed.map(drop)
    }

    /// Power failure of a host, then power again: its disk is as it was, its processes are gone.
    pub fn reboot(&mut self, host: usize) -> io::Result<()> {
        let name = self.hosts[host].name().to_owned();
        self.hosts[host].kill();
        let fresh = Node::start(
            &name,
            &self.dir.join(&name),
            &format!("keelway-rig-{}/{name}", self.id),
            &hosts_file(self.hosts.len()),
        )?;
        self.hosts[host] = fresh;
        let last = u8::try_from(11 + host).map_err(io::Error::other)?;
        // The old link went with the old network namespace.
        self.plug(&self.hosts[host], last)?;
        self.start_sshd(host)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.services.clear();
        self.docker_registry = None;
        for node in self.hosts.iter_mut().chain([
            &mut self.load,
            &mut self.deployer,
            &mut self.registry,
            &mut self.switch,
        ]) {
            node.kill();
        }
        remove_cgroups(&format!("keelway-rig-{}", self.id));
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn hosts_file(hosts: usize) -> String {
    let mut text =
        format!("127.0.0.1 localhost\n198.18.0.2 {REGISTRY}\n198.18.0.3 deployer\n198.18.0.4 load\n");
    for i in 0..hosts {
        text.push_str(&format!("198.18.0.{} host{}\n", 11 + i, i + 1));
    }
    text
}

fn keygen(path: &Path) -> io::Result<()> {
    let out = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "rig", "-f"])
        .arg(path)
        .output()?;
    if out.status.success() {
        Ok(())
    } else {
        Err(io::Error::other(String::from_utf8_lossy(&out.stderr).into_owned()))
    }
}

/// Copies a folder of plain files.
pub fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?
        } else {
            fs::copy(entry.path(), target).map(drop)?
        }
    }
    Ok(())
}

/// Polls until `ready` or the deadline.
pub fn wait_for(deadline: Duration, what: &str, mut ready: impl FnMut() -> bool) -> io::Result<()> {
    let end = Instant::now() + deadline;
    while !ready() {
        if Instant::now() > end {
            return Err(io::Error::other(format!("{what} was not ready within {deadline:?}")));
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    Ok(())
}

/// Removes a rig's cgroups, deepest first, waiting a moment for the last processes to go.
fn remove_cgroups(name: &str) {
    fn remove(dir: &Path) -> bool {
        let Ok(entries) = fs::read_dir(dir) else { return !dir.exists() };
        let mut gone = true;
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                gone &= remove(&entry.path());
            }
        }
        gone && (fs::remove_dir(dir).is_ok() || !dir.exists())
    }
    for (at, _, _) in node::hierarchies() {
        let dir = at.join(name);
        let _ = wait_for(Duration::from_secs(5), "a cgroup", || remove(&dir));
    }
}

/// Removes what rigs left that were killed: folders whose lock nobody holds, and their cgroups.
pub fn reap() {
    for parent in ["/dev/shm", "/var/tmp"] {
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with("keelway-rig-") {
                continue;
            }
            let free = File::open(entry.path().join("lock")).is_ok_and(|f| f.try_lock().is_ok());
            if free {
                remove_cgroups(&name);
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}
