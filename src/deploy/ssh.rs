//! The way to a host by the user's own OpenSSH, keys and `ssh_config`.
//!
//! The argument vectors and remote commands are pure values, so that tests read them without a host. A remote command
//! holds only text of ours (a fixed script, a version, hexadecimal digits): nothing a user typed reaches a shell.
//! What a user typed, the host's name, is one argument after `--`, and is refused unless it is plain ([`SshHost`]).
//!
//! Invariants: host keys are checked strictly, nothing is ever asked or trusted on first use; every connection attempt
//! and every copy has a deadline; a link that is dropped ends its ssh. The link repairs itself: a call after the
//! connection was lost connects again first, in at most [`CONNECT`] and within the call's own deadline.

use crate::link::{ConnectError, HostLink, OpenError, Session};
use crate::protocol::{Hello, Order, Reply, VERSION, Welcome};
use crate::rollout::OrderError;
use async_trait::async_trait;
use keelway_model::Digest;
use keelway_model::plan::{Target, TargetHost};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

/// For one connection to stand.
pub const CONNECT: Duration = Duration::from_secs(20);
/// For the binary to be copied.
pub const COPY: Duration = Duration::from_secs(300);
/// Where binaries of ours lie on a host.
pub const BIN_DIR: &str = "/var/lib/keelway/bin";
/// Most bytes of ssh's stderr that are kept.
const MAX_STDERR: usize = 8 << 10;

/// A host as ssh may be given it: `user@host`, a name, an address, an alias.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SshHost(String);

/// A text that ssh must not be given as a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a host: write user@host or an alias of your ssh configuration (letters, digits, '.', '-', '_', ':', not starting with '-'); put ports and options into the ssh configuration"
)]
pub struct SshHostError(String);

impl FromStr for SshHost {
    type Err = SshHostError;
    fn from_str(s: &str) -> Result<Self, SshHostError> {
        let plain = |p: &str, more: &[char]| {
            !p.is_empty()
                && !p.starts_with('-')
                && p.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(&c))
        };
        let (user, host) = s.split_once('@').map_or((None, s), |(u, h)| (Some(u), h));
        let user_ok = user.is_none_or(|u| plain(u, &['.', '-', '_']));
        if s.len() <= 255 && user_ok && plain(host, &['.', '-', '_', ':', '%']) {
            Ok(Self(s.to_owned()))
        } else {
            Err(SshHostError(s.chars().take(100).collect()))
        }
    }
}

impl SshHost {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The binary that hosts shall run: this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binary {
    /// The file, for example `/proc/self/exe` resolved.
    pub path: PathBuf,
    /// Its content.
    pub digest: Digest,
    /// `CARGO_PKG_VERSION` of keelway.
    pub version: String,
    /// `uname -m` of the machine that it is built for, for example `x86_64`.
    pub machine: String,
    /// Directory for it on the hosts, absolute: [`BIN_DIR`].
    pub dir: String,
}

impl Binary {
    /// Reads and hashes the binary at `path`.
    pub fn read(path: &Path, version: &str) -> std::io::Result<Self> {
        use std::io::Read;
        let mut file = std::fs::File::open(path)?;
        let mut hasher = keelway_model::Hasher::new();
        let mut buffer = vec![0u8; 1 << 20];
        loop {
            let n = file.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
        }
        let machine = std::env::consts::ARCH.to_owned();
        Ok(Self {
            path: path.to_owned(),
            digest: hasher.finish(),
            version: version.to_owned(),
            machine,
            dir: BIN_DIR.to_owned(),
        })
    }
    /// Where it lies on a host: named by version and content, so another one never replaces it. Only characters that
    /// mean nothing to a shell.
    pub fn remote_path(&self) -> String {
        let version: String = self.version.chars().take(40).filter(|c| *c != '/').collect();
        plain(&format!("{}/keelway-{version}-{}", self.dir, self.digest.short()))
    }
}

/// Everything that is not plain becomes `_`.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/') { c } else { '_' })
        .collect()
}

/// How hosts are reached.
#[derive(Debug, Clone)]
pub struct SshSettings {
    /// The ssh program; `ssh` is looked up in PATH.
    pub program: PathBuf,
    /// What it is given before ssh's own arguments, where it is a program that starts ssh.
    pub before: Vec<OsString>,
    /// File for `ssh -F`.
    pub config: Option<PathBuf>,
    /// What to run there.
    pub binary: Arc<Binary>,
}

/// The whole argument vector, program excluded, that runs `remote` (a text of ours) on `host`.
pub fn argv(config: Option<&Path>, host: &SshHost, remote: &str) -> Vec<std::ffi::OsString> {
    let mut argv: Vec<std::ffi::OsString> = Vec::new();
    if let Some(config) = config {
        argv.push("-F".into());
        argv.push(config.into());
    }
    for option in [
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        "ConnectTimeout=10",
        "ServerAliveInterval=5",
        "ServerAliveCountMax=3",
        "ForwardAgent=no",
        "ForwardX11=no",
        "ClearAllForwardings=yes",
        "PermitLocalCommand=no",
        // Its errors are how we tell what is wrong.
        "LogLevel=ERROR",
    ] {
        argv.push("-o".into());
        argv.push(option.into());
    }
    argv.push("-T".into());
    argv.push("--".into());
    argv.push(host.as_str().into());
    argv.push(remote.into());
    argv
}

const ROOT: &str = r#"if [ "$(id -u)" = 0 ]; then s=; elif sudo -n true 2>/dev/null; then s="sudo -n"; else echo "keelway-probe login $(id -un)"; exit 3; fi"#;

/// Runs `__host` where the binary is there, else says which machine it is. Balancers learn from `SSH_CONNECTION` under
/// which address the host was reached.
pub fn run_command(binary: &Binary) -> String {
    let path = binary.remote_path();
    format!(
        r#"sh -c '{ROOT}; if $s test -x {path}; then exec $s env SSH_CONNECTION="$SSH_CONNECTION" {path} __host; fi; echo "keelway-probe machine $(uname -m)"; exit 4'"#
    )
}

/// Takes the binary from standard input, checks it, and puts it in its place by rename, on the disk before it has its
/// name. Of the binaries there, the two that came last are kept; one that runs does not need its file.
pub fn bring_command(binary: &Binary) -> String {
    let (path, dir, sum) = (binary.remote_path(), plain(&binary.dir), binary.digest.hex());
    // `sh` below gets the script as its argument, quoted for the shell around it; `$t` is a name that mktemp made.
    format!(
        r#"sh -c '{ROOT}; exec $s sh -c "set -e; umask 022; mkdir -p {dir}; t=\$(mktemp {dir}/.new.XXXXXX); trap \"rm -f \$t\" EXIT; cat >\$t; echo {sum} \$t | sha256sum -c - >/dev/null; chmod 755 \$t; sync \$t; mv -f \$t {path}; cd {dir}; ls -t | grep ^keelway- | tail -n +3 | while read old; do rm -f ./\$old; done || true"'"#
    )
}

/// What ssh's exit and its errors mean.
pub fn classify(host: &str, stderr: &str) -> ConnectError {
    let host = host.to_owned();
    let said = tail(stderr);
    let has = |text: &str| stderr.contains(text);
    if has("REMOTE HOST IDENTIFICATION HAS CHANGED") || has("has been revoked") || has("Offending") {
        ConnectError::HostKeyChanged { host }
    } else if has("host key is known for") || has("Host key verification failed") {
        ConnectError::HostKeyUnknown { host }
    } else if has("Permission denied")
        || has("Too many authentication failures")
        || has("No more authentication methods")
    {
        ConnectError::Auth { host, said }
    } else {
        ConnectError::Unreachable { host, said }
    }
}

/// The last line that says something, without control characters.
fn tail(stderr: &str) -> String {
    let last = stderr.lines().map(str::trim).rfind(|l| !l.is_empty()).unwrap_or("no answer");
    last.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// One link a host of the target, not connected yet.
pub fn links(target: &Target, settings: &SshSettings) -> Result<Vec<Arc<dyn HostLink>>, SshHostError> {
    let link = |h: &TargetHost| SshLink::new(h, settings.clone()).map(|l| Arc::new(l) as Arc<dyn HostLink>);
    target.hosts.iter().map(link).collect()
}

/// A link by ssh.
pub struct SshLink {
    host: SshHost,
    settings: SshSettings,
    // Held while connecting, so that two calls do not connect twice.
    live: tokio::sync::Mutex<Option<Live>>,
}

struct Live {
    session: Arc<Session>,
    welcome: Welcome,
    // Killed when dropped.
    _child: Child,
}

impl SshLink {
    /// To this host; refuses names that are no plain host.
    pub fn new(host: &TargetHost, settings: SshSettings) -> Result<Self, SshHostError> {
        Ok(Self { host: host.ssh.parse()?, settings, live: tokio::sync::Mutex::new(None) })
    }

    fn spawn(&self, remote: &str) -> Result<(Child, tokio::task::JoinHandle<String>), ConnectError> {
        let mut command = Command::new(&self.settings.program);
        command
            .args(&self.settings.before)
            .args(argv(self.settings.config.as_deref(), &self.host, remote))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C is for us; ssh ends when we say so.
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|e| ConnectError::NoSsh {
            host: self.host.0.clone(),
            program: self.settings.program.display().to_string(),
            said: e.to_string(),
        })?;
        let stderr = child.stderr.take();
        let said = tokio::spawn(async move {
            let (mut said, mut buffer) = (Vec::new(), [0u8; 1024]);
            let Some(mut stderr) = stderr else { return String::new() };
            while let Ok(n @ 1..) = stderr.read(&mut buffer).await {
                said.extend_from_slice(&buffer[..n.min(MAX_STDERR.saturating_sub(said.len()))]);
            }
            String::from_utf8_lossy(&said).into_owned()
        });
        Ok((child, said))
    }

    async fn open(&self) -> Result<Live, ConnectError> {
        match self.attempt().await? {
            Attempt::Live(live) => return Ok(*live),
            Attempt::Missing(machine) => {
                let ours = &self.settings.binary.machine;
                if machine != *ours {
                    return Err(ConnectError::Architecture {
                        host: self.host.0.clone(),
                        theirs: machine,
                        ours: ours.clone(),
                    });
                }
                self.bring().await?;
            }
            // A crash or a disk may have spoilt the file: brought again, once. Where that does not work either, what
            // the far end said first is the better news.
            Attempt::Broken(error) => self.bring().await.map_err(|_| error)?,
        }
        match self.attempt().await? {
            Attempt::Live(live) => Ok(*live),
            Attempt::Missing(_) => Err(self.bring_error("it is not there after it was copied")),
            Attempt::Broken(error) => Err(error),
        }
    }

    async fn attempt(&self) -> Result<Attempt, ConnectError> {
        let binary = &self.settings.binary;
        let (mut child, said) = self.spawn(&run_command(binary))?;
        let (from, to) = (child.stdout.take(), child.stdin.take());
        let (Some(from), Some(to)) = (from, to) else { unreachable!("both were asked for as pipes") };
        let hello = Hello { version: VERSION, keelway: binary.version.clone(), binary: Some(binary.digest) };
        let opened = tokio::time::timeout(CONNECT, Session::open(from, to, &hello)).await;
        let host = self.host.0.clone();
        let printed = match opened {
            Ok(Ok((session, welcome))) => {
                return Ok(Attempt::Live(Box::new(Live {
                    session: Arc::new(session),
                    welcome,
                    _child: child,
                })));
            }
            Ok(Err(OpenError::Frame(crate::frame::FrameError::NotKeelway(printed)))) => printed,
            Ok(Err(OpenError::Frame(e))) => e.to_string(),
            Ok(Err(OpenError::Refused(no))) => return Err(ConnectError::Refused { host, said: no.message }),
            Ok(Err(other)) => return Err(ConnectError::Protocol { host, said: other.to_string() }),
            Err(_) => {
                return Err(ConnectError::Unreachable {
                    host,
                    said: format!("no answer within {}s", CONNECT.as_secs()),
                });
            }
        };
        // The far end closed its output: ssh ends too, and its exit says whether it was ssh or what it ran.
        let status = tokio::time::timeout(Duration::from_secs(5), child.wait()).await;
        let code = status.ok().and_then(Result::ok).and_then(|s| s.code());
        let probe = |key: &str| {
            let start = printed.rfind(&format!("keelway-probe {key} "))?;
            printed[start..].split_whitespace().nth(2).map(|w| w.chars().take(60).collect::<String>())
        };
        if let Some(user) = probe("login") {
            return Err(ConnectError::NoRoot { host, user });
        }
        if let Some(machine) = probe("machine") {
            return Ok(Attempt::Missing(machine));
        }
        let stderr = all_of(said).await;
        if code == Some(255) {
            return Err(classify(&host, &stderr));
        }
        let said = format!("{} {}", tail(&printed), tail(&stderr));
        Ok(Attempt::Broken(ConnectError::Protocol { host, said }))
    }

    async fn bring(&self) -> Result<(), ConnectError> {
        let binary = &self.settings.binary;
        let (mut child, said) = self.spawn(&bring_command(binary))?;
        let mut file =
            tokio::fs::File::open(&binary.path).await.map_err(|e| self.bring_error(&e.to_string()))?;
        let copy = async {
            if let Some(mut stdin) = child.stdin.take() {
                // Where the far end stops reading, its exit says why.
                let _ = tokio::io::copy(&mut file, &mut stdin).await;
            }
            child.wait().await
        };
        match tokio::time::timeout(COPY, copy).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => {
                let stderr = all_of(said).await;
                Err(match status.code() {
                    Some(255) => classify(&self.host.0, &stderr),
                    _ => self.bring_error(&tail(&stderr)),
                })
            }
            Ok(Err(e)) => Err(self.bring_error(&e.to_string())),
            Err(_) => Err(self.bring_error(&format!("not done within {}s", COPY.as_secs()))),
        }
    }

    fn bring_error(&self, said: &str) -> ConnectError {
        let path = self.settings.binary.remote_path();
        ConnectError::Bring { host: self.host.0.clone(), path, said: said.to_owned() }
    }

    async fn session(&self) -> Result<(Arc<Session>, Welcome), ConnectError> {
        let mut live = self.live.lock().await;
        if let Some(l) = live.as_ref().filter(|l| l.session.is_open()) {
            return Ok((l.session.clone(), l.welcome.clone()));
        }
        *live = None;
        let l = live.insert(self.open().await?);
        Ok((l.session.clone(), l.welcome.clone()))
    }
}

/// What ssh said, once its end is read; a child of its that keeps the pipe open does not hold us up.
async fn all_of(said: tokio::task::JoinHandle<String>) -> String {
    tokio::time::timeout(Duration::from_secs(2), said).await.ok().and_then(Result::ok).unwrap_or_default()
}

enum Attempt {
    Live(Box<Live>),
    /// What is there does not run, or does not speak the protocol: what it did instead.
    Broken(ConnectError),
    /// The binary is not there; `uname -m`.
    Missing(String),
}

#[async_trait]
impl HostLink for SshLink {
    fn name(&self) -> &str {
        self.host.as_str()
    }
    async fn connect(&self) -> Result<Welcome, ConnectError> {
        Ok(self.session().await?.1)
    }
    async fn call(&self, order: Order, deadline: Duration) -> Result<Reply, OrderError> {
        let began = tokio::time::Instant::now();
        let session = match tokio::time::timeout(deadline, self.session()).await {
            Ok(Ok((session, _))) => session,
            Ok(Err(e)) => return Err(OrderError::Unreachable(e.to_string())),
            Err(_) => return Err(OrderError::Late),
        };
        session.call(order, deadline.saturating_sub(began.elapsed())).await
    }
}

#[cfg(test)]
mod tests;
