//! `git-upload-pack` behind the system's `ssh`: its keys, agent, configuration and known hosts are the user's own.
//!
//! Never asks: no password, no passphrase, no new host key (D01). What is executed is a value that tests can look at.

use crate::connection::{Connection, Sink, Watch, missing};
use crate::error::clean;
use crate::protocol::{self, Advertisement, ProtocolError};
use crate::url::Transport;
use crate::{GitSettings, RepoUrl, SourceError, SshSettings};
use git2::Oid;
use keelway_http::Reach;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes of ssh's complaints that are kept.
const COMPLAINTS: u64 = 16 << 10;

/// The argument vector, program first; `to` is where the host is, where that was looked up. `None` for an address that is
/// not ssh.
pub(crate) fn argv(settings: &SshSettings, url: &RepoUrl, to: Option<IpAddr>) -> Option<Vec<OsString>> {
    let Transport::Ssh { user, host, port, path } = url.transport() else { return None };
    let mut argv: Vec<OsString> = vec![settings.program.clone().into_os_string()];
    argv.extend(settings.before.iter().cloned());
    for option in [
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        "UpdateHostKeys=no",
        "ClearAllForwardings=yes",
        "ConnectTimeout=30",
        "ServerAliveInterval=15",
        "ServerAliveCountMax=4",
    ] {
        argv.extend(["-o".into(), option.into()]);
    }
    let mut option = |text: String| argv.extend(["-o".into(), text.into()]);
    if let Some(agent) = &settings.agent {
        // As a word of ssh's configuration, in which `%` begins a token.
        let path = agent.display().to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
        option(format!("IdentityAgent=\"{path}\""));
        option("IdentityFile=none".to_owned());
        option("PreferredAuthentications=publickey".to_owned());
    }
    if let Some(address) = to {
        let alias = match port {
            Some(port) if *port != 22 => format!("[{host}]:{port}"),
            _ => host.clone(),
        };
        option(format!("HostName={address}"));
        option(format!("HostKeyAlias={alias}"));
        option("ProxyCommand=none".to_owned());
        option("ControlPath=none".to_owned());
        option("CanonicalizeHostname=no".to_owned());
    }
    argv.extend(["-T".into(), "-x".into()]);
    if let Some(config) = &settings.config {
        argv.extend(["-F".into(), config.clone().into_os_string()]);
    }
    if let Some(port) = port {
        argv.extend(["-p".into(), port.to_string().into()]);
    }
    argv.push("--".into());
    argv.push(user.as_ref().map_or_else(|| host.clone(), |u| format!("{u}@{host}")).into());
    argv.push(format!("git-upload-pack {}", quoted(path)).into());
    Some(argv)
}

/// For the shell at the far end.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''").replace('!', "'\\!'"))
}

pub(crate) struct Ssh<'a> {
    url: &'a RepoUrl,
    settings: &'a GitSettings,
    watch: Watch<'a>,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    child: Arc<Mutex<Child>>,
    complaints: Option<JoinHandle<String>>,
    guard: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
    capabilities: BTreeSet<String>,
}

impl<'a> Ssh<'a> {
    pub(crate) fn open(
        url: &'a RepoUrl,
        settings: &'a GitSettings,
        watch: Watch<'a>,
    ) -> Result<Self, SourceError> {
        let to = match (settings.ssh.reach, url.transport()) {
            (Reach::Anywhere, _) => None,
            (reach, Transport::Ssh { host, .. }) => Some(
                reach
                    .find(host)
                    .map_err(|e| SourceError::Unreachable { url: url.clone(), cause: e.to_string() })?,
            ),
            _ => None,
        };
        let argv = argv(&settings.ssh, url, to)
            .ok_or_else(|| SourceError::Protocol { url: url.clone(), what: "it is no ssh address".into() })?;
        let mut child = Command::new(&argv[0])
            .args(&argv[1..])
            .env("LC_ALL", "C")
            .env_remove("GIT_PROTOCOL")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| {
                SourceError::io(
                    format!("cannot start {} (is openssh-client installed?)", argv[0].display()),
                    e,
                )
            })?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let child = Arc::new(Mutex::new(child));
        let (Some(stdin), Some(stdout), Some(mut stderr)) = (stdin, stdout, stderr) else {
            return Err(SourceError::Protocol {
                url: url.clone(),
                what: "ssh has no standard streams".into(),
            });
        };
        let complaints = std::thread::spawn(move || {
            let mut kept = Vec::new();
            let _ = (&mut stderr).take(COMPLAINTS).read_to_end(&mut kept);
            // Goes on reading, so that ssh never waits for us.
            let _ = std::io::copy(&mut stderr, &mut std::io::sink());
            String::from_utf8_lossy(&kept).into_owned()
        });
        // Reads of a pipe have no deadline: somebody else ends ssh when it is time, and the read ends with it.
        let (done, stop) = mpsc::channel();
        let (ends, cancel, until) = (Arc::clone(&child), Arc::clone(&settings.cancel), watch.until);
        let guard = std::thread::spawn(move || {
            while stop.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
                if cancel.load(std::sync::atomic::Ordering::Relaxed) || std::time::Instant::now() >= until {
                    let _ = ends.lock().unwrap_or_else(PoisonError::into_inner).kill();
                    return;
                }
            }
        });
        Ok(Self {
            url,
            settings,
            watch,
            stdin: Some(stdin),
            stdout,
            child,
            complaints: Some(complaints),
            guard: Some((done, guard)),
            capabilities: BTreeSet::new(),
        })
    }

    /// Ends ssh and gives what it complained about.
    fn end(&mut self) -> String {
        self.stdin = None;
        {
            let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
            // It has said all it will say: either it ended, or the conversation did.
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some((done, guard)) = self.guard.take() {
            drop(done);
            let _ = guard.join();
        }
        self.complaints.take().and_then(|c| c.join().ok()).unwrap_or_default()
    }

    /// ssh's own words say more than a broken pipe.
    fn wire(&mut self, e: ProtocolError) -> SourceError {
        if let Err(stopped) = self.watch.check() {
            return stopped;
        }
        // Its streams ended: give ssh the moment it needs to say why before it is ended.
        if matches!(e, ProtocolError::Io(_)) {
            let until = std::time::Instant::now() + Duration::from_secs(5);
            while std::time::Instant::now() < until {
                let ended = self.child.lock().unwrap_or_else(PoisonError::into_inner).try_wait();
                if !matches!(ended, Ok(None)) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let complaints = self.end();
        explain(self.url, &complaints).unwrap_or_else(|| self.watch.wire(e))
    }
}

/// What ssh's complaints mean.
fn explain(url: &RepoUrl, complaints: &str) -> Option<SourceError> {
    let url = url.clone();
    let has = |texts: &[&str]| texts.iter().any(|t| complaints.contains(t));
    let last = || {
        let mut lines = complaints.lines().map(str::trim).filter(|l| !l.is_empty());
        clean(lines.next_back().unwrap_or("ssh ended without a word"), 200)
    };
    Some(if has(&["REMOTE HOST IDENTIFICATION HAS CHANGED", "has changed and you have requested"]) {
        SourceError::HostKey {
            url,
            what: "not the one that is known, so another machine may be answering",
            mend: "ask its owner whether the key was changed; only then replace it in known_hosts (ssh-keygen -R HOST)",
        }
    } else if has(&["Host key verification failed", "host key is known for"]) {
        SourceError::HostKey {
            url,
            what: "not known",
            mend: "compare it with what its owner says (ssh-keyscan HOST prints it), then add it to known_hosts",
        }
    } else if has(&[
        "Permission denied",
        "Too many authentication failures",
        "No supported authentication methods",
    ]) {
        SourceError::Authentication {
            url,
            given: "refuses the keys that ssh offers",
            mend: "check the key with ssh -v, and that ssh-agent or the ssh configuration names it",
        }
    } else if has(&[
        "Could not resolve",
        "Connection refused",
        "timed out",
        "No route to host",
        "unreachable",
        "Connection reset",
    ]) {
        SourceError::Unreachable { url, cause: format!("{}; check the address and the network", last()) }
    } else if missing(complaints) {
        SourceError::NoRepository { url }
    } else if complaints.contains("command not found") {
        SourceError::Protocol { url, what: "git is not installed there".into() }
    } else if complaints.trim().is_empty() {
        return None;
    } else {
        SourceError::Protocol { url, what: format!("ssh says {:?}", last()) }
    })
}

impl Connection for Ssh<'_> {
    fn advertise(&mut self) -> Result<Advertisement, SourceError> {
        match protocol::read_advertisement(&mut self.stdout, self.settings.limits.references) {
            Ok(advertisement) => {
                self.capabilities = advertisement.capabilities.clone();
                Ok(advertisement)
            }
            Err(e) => Err(self.wire(e)),
        }
    }

    fn fetch(&mut self, wants: &[Oid], haves: &[Oid], sink: &mut Sink<'_>) -> Result<(), SourceError> {
        let request = match protocol::request(&self.capabilities, wants, haves) {
            Ok(request) => request,
            Err(e) => return Err(self.wire(e)),
        };
        let sent = self.stdin.as_mut().map(|s| s.write_all(&request).and_then(|()| s.flush()));
        if let Some(Err(e)) = sent {
            return Err(self.wire(e.into()));
        }
        match protocol::read_pack(&mut self.stdout, sink) {
            Ok(done) => done,
            Err(e) => Err(self.wire(e)),
        }
    }
}

impl Drop for Ssh<'_> {
    fn drop(&mut self) {
        // A server that waits for wants reads a flush as good-bye.
        if let Some(stdin) = &mut self.stdin {
            let _ = stdin.write_all(b"0000");
        }
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Origin;

    #[test]
    fn s01_what_is_executed_is_a_value_with_an_end_of_options() {
        let url = RepoUrl::parse("ssh://git@example.com:2222/srv/it's!.git", Origin::File).unwrap();
        let words = |settings: &SshSettings, to: Option<IpAddr>| -> Vec<String> {
            argv(settings, &url, to).unwrap().into_iter().map(|a| a.into_string().unwrap()).collect()
        };
        let settings = SshSettings { config: Some("/etc/k/ssh".into()), ..SshSettings::default() };
        let argv = words(&settings, None);
        let end = argv.iter().position(|a| a == "--").unwrap();
        assert_eq!(&argv[end + 1..], ["git@example.com", "git-upload-pack '/srv/it'\\''s'\\!'.git'"]);
        let options = argv[..end].join(" ");
        for wanted in ["BatchMode=yes", "StrictHostKeyChecking=yes", "-F /etc/k/ssh", "-p 2222"] {
            assert!(options.contains(wanted), "{options}");
        }
        assert!(!options.contains("HostName") && !options.contains("Identity"), "{options}");
        let settings = SshSettings { agent: Some("/run/a \"b%/s".into()), ..settings };
        let argv = words(&settings, Some([192, 0, 2, 7].into()));
        let options = argv[..argv.iter().position(|a| a == "--").unwrap()].join(" ");
        for wanted in [
            "IdentityAgent=\"/run/a \\\"b%%/s\"",
            "IdentityFile=none",
            "HostName=192.0.2.7",
            "HostKeyAlias=[example.com]:2222",
            "ProxyCommand=none",
            "ControlPath=none",
        ] {
            assert!(options.contains(wanted), "{options}");
        }
    }

    #[test]
    fn ssh_asks_no_machine_out_of_reach() {
        let http = keelway_http::Client::new(keelway_http::Settings::default()).unwrap();
        let mut settings = GitSettings::new(http);
        settings.ssh = SshSettings {
            program: "/this/program/is/never/started".into(),
            reach: Reach::Strangers,
            ..SshSettings::default()
        };
        for host in ["127.0.0.1", "localhost"] {
            let url = RepoUrl::parse(&format!("git@{host}:x"), Origin::File).unwrap();
            let e = Ssh::open(&url, &settings, Watch::start(&url, &settings)).err().unwrap();
            assert!(e.to_string().contains("which a private network does not reach"), "{e}");
        }
    }
}
