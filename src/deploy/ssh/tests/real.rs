//! The transport over a real sshd on loopback, with a host key, a user key and a `known_hosts` of its own in a temp
//! folder. The far end is this test binary, brought there as keelway would be: run with `__host` it acts as a host.

use super::*;
use crate::frame;
use crate::link::HostLink;
use crate::protocol::{Greeting, HostReport, Outcome, Request, Response};
use std::process::{Child as Process, Command as Run};

/// When this test binary is started as `<path> __host`: that argument is also the filter that selects this function.
/// Answers until asked for a log, then goes away without a word. In a plain test run there is nothing to do.
#[tokio::test]
#[allow(non_snake_case, reason = "the argument selects it by its name")]
async fn acts_as__host() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args != ["__host"] {
        return;
    }
    let (mut from, mut to) = (tokio::io::stdin(), tokio::io::stdout());
    frame::write_magic(&mut to).await.unwrap();
    let hello: Hello = frame::read(&mut from).await.unwrap().unwrap();
    let welcome = Welcome {
        version: VERSION,
        keelway: hello.keelway,
        hostname: "real".into(),
        kernel: "6".into(),
        platform: keelway_model::Platform::host(),
        root: true,
        address: std::env::var("SSH_CONNECTION").ok().and_then(|c| c.split(' ').nth(2)?.parse().ok()),
        boot_id: "b".into(),
    };
    frame::write(&mut to, &Greeting::Welcome(welcome)).await.unwrap();
    while let Ok(Some(request)) = frame::read::<Request>(&mut from).await {
        if matches!(request.order, Order::ReadLogs { .. }) {
            break;
        }
        let outcome = Outcome::Done(Reply::Status(HostReport::default()));
        frame::write(&mut to, &Response { id: request.id, outcome }).await.unwrap();
    }
}

struct Sshd {
    dir: tempfile::TempDir,
    process: Process,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(program: &str, args: &[&str]) {
    let done = Run::new(program).args(args).output().unwrap();
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

impl Sshd {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        for key in ["host", "user"] {
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &at(key)]);
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        std::fs::copy(at("user.pub"), at("authorized")).unwrap();
        let host_key = std::fs::read_to_string(at("host.pub")).unwrap();
        std::fs::write(at("known"), format!("[127.0.0.1]:{port} {host_key}")).unwrap();
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\nPasswordAuthentication no\n",
            at("host"),
            at("authorized")
        );
        std::fs::write(at("sshd"), config).unwrap();
        let client = |known: &str, key: &str| {
            format!(
                "Host h\n HostName 127.0.0.1\n Port {port}\n User root\n IdentityFile {}\n IdentitiesOnly yes\n IdentityAgent none\n UserKnownHostsFile {}\n GlobalKnownHostsFile /dev/null\n",
                at(key),
                at(known)
            )
        };
        std::fs::write(at("ssh"), client("known", "user")).unwrap();
        std::fs::write(at("ssh-unknown"), client("none", "user")).unwrap();
        std::fs::write(at("ssh-denied"), client("known", "host")).unwrap();
        std::fs::write(at("ssh-changed"), client("changed", "user")).unwrap();
        let other = std::fs::read_to_string(at("user.pub")).unwrap();
        std::fs::write(at("changed"), format!("[127.0.0.1]:{port} {other}")).unwrap();
        // sshd wants /run/sshd: given in a mount namespace of its own, so the machine keeps its /run as it is.
        let script = "mount -t tmpfs none /run && mkdir /run/sshd && exec /usr/sbin/sshd -D -e -f \"$0\"";
        let process = Run::new("unshare")
            .args(["-m", "sh", "-c", script, &at("sshd")])
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(at("log")).unwrap())
            .spawn()
            .unwrap();
        let began = std::time::Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let log = std::fs::read_to_string(at("log")).unwrap();
            assert!(began.elapsed() < Duration::from_secs(20), "sshd does not listen: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { dir, process }
    }
    fn link(&self, config: &str) -> SshLink {
        let path = std::fs::canonicalize("/proc/self/exe").unwrap();
        let mut binary = Binary::read(&path, "0.0.0-test").unwrap();
        binary.dir = self.dir.path().join("bin").display().to_string();
        let settings = SshSettings {
            before: Vec::new(),
            program: "ssh".into(),
            config: Some(self.dir.path().join(config)),
            binary: Arc::new(binary),
        };
        SshLink::new(&TargetHost { ssh: "h".into() }, settings).unwrap()
    }
}

#[tokio::test]
async fn over_a_real_sshd() {
    let sshd = Sshd::start();
    let fails = async |config: &str| sshd.link(config).connect().await.unwrap_err();
    let e = fails("ssh-unknown").await;
    assert!(matches!(e, ConnectError::HostKeyUnknown { .. }), "{e}");
    let e = fails("ssh-changed").await;
    assert!(matches!(e, ConnectError::HostKeyChanged { .. }), "{e}");
    let e = fails("ssh-denied").await;
    assert!(matches!(e, ConnectError::Auth { .. }), "{e}");
    assert!(
        !sshd.dir.path().join("bin").exists() && !sshd.dir.path().join("none").exists(),
        "nothing was trusted or brought"
    );
    // The first connection brings the binary, and learns where the host was reached.
    let link = sshd.link("ssh");
    let welcome = link.connect().await.unwrap();
    assert_eq!(welcome.address, Some("127.0.0.1".parse().unwrap()));
    let bin: Vec<_> =
        std::fs::read_dir(sshd.dir.path().join("bin")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(bin.len(), 1);
    assert_eq!(Binary::read(&bin[0], "").unwrap().digest, link.settings.binary.digest);
    let status = || link.call(Order::Status { app: None }, Duration::from_secs(20));
    assert_eq!(status().await, Ok(Reply::Status(HostReport::default())));
    // The far end goes away in the middle of an order; the next call connects again by itself.
    let (app, replica) = ("web".parse().unwrap(), "r1-0".parse().unwrap());
    let lost = link.call(Order::ReadLogs { app, replica, tail: 1 }, Duration::from_secs(20)).await;
    assert!(matches!(lost, Err(OrderError::Unreachable(_))), "{lost:?}");
    assert_eq!(status().await, Ok(Reply::Status(HostReport::default())));
    // What a crash may leave of the file: it is brought again. The first is an empty script, the second not even that.
    for spoilt in [&b""[..], b"\x7fELF"] {
        let other = bin[0].with_extension("other");
        std::fs::write(&other, spoilt).unwrap();
        std::fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::rename(&other, &bin[0]).unwrap();
        let link = sshd.link("ssh");
        link.connect().await.unwrap();
        assert_eq!(Binary::read(&bin[0], "").unwrap().digest, link.settings.binary.digest);
    }
    drop(sshd);
}
