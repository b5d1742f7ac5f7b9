//! Could a deploy work here? Looks, and changes nothing.

use super::images::{blocking, free_bytes};
use super::state::Supervisor;
use crate::network::{self, NetworkError};
use crate::settings::listen_address;
use keelway_deploy::protocol::{Check, Finding, Preflight, PreflightReport, Refusal};
use keelway_model::{Bytes, Platform};
use keelway_sandbox::ProbeFailure;
use std::net::{SocketAddr, TcpListener};

fn finding(what: Check, problem: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { what, problem: problem.into(), mend: mend.into() }
}

impl Supervisor {
    pub(super) async fn preflight(&self, wanted: Preflight) -> Result<PreflightReport, Refusal> {
        let mut findings = blocking(|| Ok(machine())).await?;
        findings.extend(self.programs().await);
        let host = Platform::host();
        if !host.accepts(&wanted.platform) {
            findings.push(finding(
                Check::Platform,
                format!("the image is for {}, this host runs {host}", wanted.platform),
                format!("build and push the image for {host}"),
            ));
        }
        let disk_free = Bytes(free_bytes(self.store.path()).unwrap_or(0));
        if disk_free < wanted.disk_needed {
            let path = self.store.path().display();
            findings.push(finding(
                Check::Disk,
                format!("{} are needed in {path}, {disk_free} are free", wanted.disk_needed),
                format!("make room, or mount a larger disk at {path}"),
            ));
        }
        findings.extend(self.port(&wanted).await?);
        for digest in wanted.keep {
            if !self.has_image(digest).await? {
                findings.push(finding(
                    Check::PreviousImage,
                    format!(
                        "image {digest}, to which a failed deploy would return, is not complete in the store"
                    ),
                    "deploy the running release again first, so that the host pulls it",
                ));
            }
        }
        Ok(PreflightReport { findings, disk_free })
    }

    async fn programs(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for program in ["ip", "nft"] {
            if network::find(program).is_none() {
                let problem = format!("`{program}` is not installed");
                findings.push(finding(Check::Programs, problem, network::mend(program)));
            }
        }
        match network::run(&self.settings.network.ruleset_check()).await {
            Ok(_) | Err(NetworkError::Missing { .. }) => {}
            Err(error) => findings.push(finding(
                Check::Kernel,
                format!("the kernel does not take our firewall rules: {error}"),
                "modprobe -a nf_tables nft_chain_nat nft_nat nft_masq nft_ct nf_conntrack",
            )),
        }
        findings
    }

    /// The balancer's port: ours already, or free.
    async fn port(&self, wanted: &Preflight) -> Result<Option<Finding>, Refusal> {
        let Some(listen) = listen_address(&wanted.listen) else {
            let problem = format!("{:?} is not an address to listen on", wanted.listen);
            return Ok(Some(finding(
                Check::Port,
                problem,
                "write :80 or 192.0.2.1:80 in `balancer: {listen: ..}`",
            )));
        };
        if let Some(other) = self.listens_on(&wanted.app, listen.port()) {
            let problem = format!("port {} is taken by the balancer of app {other}", listen.port());
            return Ok(Some(finding(
                Check::Port,
                problem,
                "choose another port in `balancer: {listen: ..}`",
            )));
        }
        if let Some(app) = self.app(&wanted.app) {
            let ours = app.settings().and_then(|s| listen_address(&s.listen)) == Some(listen);
            if ours && self.balancer_report(&app).await.running {
                return Ok(None);
            }
        }
        blocking(move || Ok(taken(listen))).await
    }
}

/// What the sandbox needs of the machine.
fn machine() -> Vec<Finding> {
    let mut findings = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        findings.push(finding(
            Check::Root,
            "keelway does not run as root",
            "deploy as root, or allow sudo -n",
        ));
    }
    let probe = keelway_sandbox::probe();
    for (what, result) in [
        (Check::Kernel, &probe.kernel_version),
        (Check::Root, &probe.privileges),
        (Check::Overlay, &probe.overlay),
        (Check::Kernel, &probe.openat2),
        (Check::Kernel, &probe.seccomp),
        (Check::Cgroups, &probe.pids),
        (Check::Cgroups, &probe.memory),
    ] {
        if let Err(failure) = result {
            findings.push(finding(what, failure.to_string(), mend(failure)));
        }
    }
    findings
}

/// What to do about something that the machine does not have.
fn mend(failure: &ProbeFailure) -> String {
    match failure {
        ProbeFailure::Privilege { capability } => {
            format!("deploy as root of the machine itself; a container would have to be given {capability}")
        }
        ProbeFailure::Kernel { feature: "overlayfs", .. } => "modprobe overlay".into(),
        ProbeFailure::Kernel { .. } => {
            "boot Linux 6.1 or later with seccomp (`uname -r`; Debian 12 and Ubuntu 24.04 have it)".into()
        }
        ProbeFailure::Controller { controller: "memory" } => {
            "mount -t cgroup2 none /sys/fs/cgroup, or boot with cgroup_enable=memory (`cat /proc/cgroups`)"
                .into()
        }
        ProbeFailure::Controller { .. } => {
            "mount -t cgroup2 none /sys/fs/cgroup (`cat /proc/cgroups` shows what the kernel has)".into()
        }
    }
}

/// Tries the address; names who has it.
fn taken(listen: SocketAddr) -> Option<Finding> {
    let error = TcpListener::bind(listen).err()?;
    let port = listen.port();
    let holder = holder(port).map_or_else(String::new, |(pid, name)| format!(" by {name} (pid {pid})"));
    let problem = if error.kind() == std::io::ErrorKind::AddrInUse {
        format!("port {port} is taken{holder}")
    } else {
        format!("cannot listen on {listen}: {error}")
    };
    let mend = format!(
        "stop what uses it (`ss -ltnp sport = :{port}`), or choose another port in `balancer: {{listen: ..}}`"
    );
    Some(finding(Check::Port, problem, mend))
}

/// The process that listens on a TCP port: by the socket's inode in /proc/net and in /proc/PID/fd.
fn holder(port: u16) -> Option<(u32, String)> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        let table = std::fs::read_to_string(table).ok()?;
        table.lines().skip(1).find_map(|line| listener_inode(line, port))
    })?;
    let wanted = format!("socket:[{inode}]");
    let processes = std::fs::read_dir("/proc").ok()?.filter_map(|e| {
        let e = e.ok()?;
        Some((e.file_name().to_str()?.parse::<u32>().ok()?, e.path()))
    });
    for (pid, path) in processes {
        let has = std::fs::read_dir(path.join("fd")).into_iter().flatten().flatten();
        let mut links = has.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        if links.any(|l| l.as_os_str() == wanted.as_str()) {
            let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            return Some((pid, name.trim().to_owned()));
        }
    }
    None
}

/// The inode of a line of /proc/net/tcp that listens on `port`.
fn listener_inode(line: &str, port: u16) -> Option<u64> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, _remote, state) = (fields.next()?, fields.next()?, fields.next()?);
    let local = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
    (state == LISTEN && local == port).then(|| fields.nth(5)?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finding_has_a_mend_of_its_own() {
        let overlay = ProbeFailure::Kernel { feature: "overlayfs", detail: "ENODEV".into() };
        assert_eq!(mend(&overlay), "modprobe overlay");
        let memory = mend(&ProbeFailure::Controller { controller: "memory" });
        assert!(memory.contains("cgroup_enable=memory"), "{memory}");
        let privilege = mend(&ProbeFailure::Privilege { capability: "CAP_SYS_ADMIN" });
        assert!(privilege.contains("CAP_SYS_ADMIN"), "{privilege}");
    }

    #[test]
    fn the_holder_of_a_port_is_named() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0 100 0 0 10 0";
        assert_eq!(listener_inode(line, 8080), Some(4242));
        assert_eq!(listener_inode(line, 8081), None);
        for bad in ["", "0:", "x y z", "0: 1 2 0A"] {
            assert_eq!(listener_inode(bad, 1), None);
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(holder(address.port()).map(|(pid, _)| pid), Some(std::process::id()));
        let finding = taken(address).expect("it is taken");
        assert!(finding.problem.contains(&format!("pid {}", std::process::id())), "{}", finding.problem);
        drop(listener);
        assert!(taken(address).is_none());
    }
}
