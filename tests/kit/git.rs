//! Real git servers: https with a test authority, loopback http, ssh; private repositories.
//!
//! Commits have fixed authors and dates, so the same files give the same commit ids on every machine. Nothing of the
//! caller's git or ssh configuration is read. Everything ends when it is dropped.

use crate::env::run;
use crate::server::{Reply, Seen, Server};
use crate::tls::ServerCert;
use base64::Engine as _;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long one git command may run.
const DEADLINE: Duration = Duration::from_secs(120);
/// The first commit's time; each later one of a [`GitRepo`] is a minute younger.
const FIRST: u64 = 1_767_225_600;

/// A git command with a clean environment, in a folder.
pub fn git(dir: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/nonexistent")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("LC_ALL", "C")
        .args(["-c", "init.defaultBranch=main", "-c", "gc.auto=0", "-c", "protocol.file.allow=always"])
        .current_dir(dir)
        .stdin(Stdio::null());
    command
}

/// A repository with a work tree.
pub struct GitRepo {
    dir: PathBuf,
    commits: AtomicU64,
}

impl GitRepo {
    /// An empty repository, its branch named `main`, in a folder that is made.
    pub fn init(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let repo = Self { dir: dir.to_owned(), commits: AtomicU64::new(0) };
        repo.git(&["init", "-q"])?;
        Ok(repo)
    }

    /// A repository in `dir` whose first commit has the files of `folder` (its `.git` left out).
    pub fn from_folder(dir: &Path, folder: &Path) -> io::Result<Self> {
        let repo = Self::init(dir)?;
        copy_tree(folder, dir, 0)?;
        repo.commit("First version")?;
        Ok(repo)
    }

    /// The work tree.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Runs git in the work tree and gives what it printed, trimmed.
    pub fn git(&self, args: &[&str]) -> io::Result<String> {
        let date = format!("{} +0000", FIRST + 60 * self.commits.load(Ordering::Relaxed));
        let mut command = git(&self.dir);
        for who in ["AUTHOR", "COMMITTER"] {
            command
                .env(format!("GIT_{who}_NAME"), "Keelway Test")
                .env(format!("GIT_{who}_EMAIL"), "test@example.com")
                .env(format!("GIT_{who}_DATE"), &date);
        }
        let out = run(command.args(args), DEADLINE)?;
        if !out.status.success() {
            return Err(io::Error::other(format!("git {args:?}: {}{}", out.stdout, out.stderr)));
        }
        Ok(out.stdout.trim().to_owned())
    }

    /// Writes a file of the work tree, with its folders.
    pub fn write(&self, path: &str, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let path = self.dir.join(path);
        fs::create_dir_all(path.parent().unwrap_or(&self.dir))?;
        fs::write(path, bytes)
    }

    /// Commits everything that lies there; gives the commit's id.
    pub fn commit(&self, message: &str) -> io::Result<String> {
        self.git(&["add", "-A"])?;
        self.git(&["commit", "-q", "--allow-empty", "-m", message])?;
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.head()
    }

    /// Writes a file and commits it.
    pub fn commit_file(&self, path: &str, text: &str) -> io::Result<String> {
        self.write(path, text)?;
        self.commit(&format!("Change {path}"))
    }

    /// The commit of HEAD.
    pub fn head(&self) -> io::Result<String> {
        self.git(&["rev-parse", "HEAD"])
    }

    /// Makes a tree object of raw bytes (`mode name\0` and 20 bytes of id, for each entry), as git itself would not, and a
    /// commit of it on the branch `name`; gives the commit's id.
    pub fn commit_raw_tree(&self, branch: &str, tree: &[u8]) -> io::Result<String> {
        let id = self.raw_object("tree", tree)?;
        let commit = self.git(&["commit-tree", &id, "-m", "raw"])?;
        self.git(&["update-ref", &format!("refs/heads/{branch}"), &commit])?;
        Ok(commit)
    }

    /// Stores an object of any bytes, unchecked; gives its id.
    pub fn raw_object(&self, kind: &str, bytes: &[u8]) -> io::Result<String> {
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        file.write_all(bytes)?;
        let path = file.path().to_string_lossy().into_owned();
        self.git(&["hash-object", "-t", kind, "--literally", "-w", &path])
    }
}

fn copy_tree(from: &Path, to: &Path, depth: usize) -> io::Result<()> {
    if depth > 32 {
        return Err(io::Error::other("folders are nested too deep"));
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if entry.file_name() == ".git" {
            continue;
        }
        if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_dir() {
            fs::create_dir_all(&target)?;
            copy_tree(&source, &target, depth + 1)?;
        } else {
            fs::copy(&source, &target)?;
        }
    }
    Ok(())
}

/// Serves all repositories beneath a folder by smart HTTP.
pub struct GitHttp {
    server: Server,
}

impl GitHttp {
    /// Starts on loopback, with TLS where a certificate is given, behind a user and password where they are given.
    pub fn start(
        projects: &Path,
        cert: Option<&ServerCert>,
        login: Option<(&str, &str)>,
    ) -> io::Result<Self> {
        let projects = projects.to_owned();
        let wanted = login.map(|(user, password)| {
            format!(
                "Basic {}",
                base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
            )
        });
        let server = Server::start(cert, move |seen| {
            if wanted.is_some() && seen.header("authorization") != wanted.as_deref() {
                return Reply::status(401).with("WWW-Authenticate", "Basic realm=\"git\"");
            }
            backend(&projects, seen)
                .unwrap_or_else(|e| Reply { body: e.to_string().into_bytes(), ..Reply::status(500) })
        })?;
        Ok(Self { server })
    }

    /// `http(s)://127.0.0.1:port/NAME`; a work tree is served as `NAME/.git`.
    pub fn url(&self, name: &str) -> String {
        format!("{}/{name}", self.server.url())
    }

    /// The server, with what it was asked.
    pub fn server(&self) -> &Server {
        &self.server
    }
}

/// One request through `git http-backend`.
fn backend(projects: &Path, seen: &Seen) -> io::Result<Reply> {
    let (path, query) = seen.path.split_once('?').unwrap_or((&seen.path, ""));
    let mut command = git(projects);
    let mut child = command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", projects)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("REQUEST_METHOD", &seen.method)
        .env("CONTENT_TYPE", seen.header("content-type").unwrap_or(""))
        .env("CONTENT_LENGTH", seen.body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", seen.header("content-encoding").unwrap_or(""))
        .env("REMOTE_ADDR", "127.0.0.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut stdin = child.stdin.take().ok_or_else(|| io::Error::other("no standard input"))?;
    let body = seen.body.clone();
    let feed = std::thread::spawn(move || stdin.write_all(&body));
    let mut out = Vec::new();
    if let Some(stdout) = &mut child.stdout {
        stdout.read_to_end(&mut out)?;
    }
    child.wait()?;
    // A backend that ends without reading everything has said why.
    let _ = feed.join();
    let end = out.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(|| io::Error::other("no head"))?;
    let mut reply = Reply::bytes(&out[end + 4..]);
    for line in String::from_utf8_lossy(&out[..end]).lines() {
        match line.split_once(": ") {
            Some(("Status", status)) => {
                reply.status = status.split(' ').next().and_then(|s| s.parse().ok()).unwrap_or(500);
            }
            Some((name, value)) => reply = reply.with(name, value),
            None => {}
        }
    }
    Ok(reply)
}

/// A real sshd on loopback with its own host key, which lets one key in as the user that runs the tests.
pub struct GitSsh {
    dir: PathBuf,
    port: u16,
    child: Child,
}

impl GitSsh {
    /// The alias of the server in the files of [`GitSsh::config`].
    pub const HOST: &'static str = "keelway-git-test";

    /// Starts it; keys and configuration go into `dir`, which is made.
    pub fn start(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        for key in ["host_key", "other_host_key", "user_key", "stranger_key"] {
            let path = dir.join(key);
            let mut command = Command::new("ssh-keygen");
            command.args(["-q", "-t", "ed25519", "-N", "", "-C", key, "-f"]).arg(&path).stdin(Stdio::null());
            let out = run(&mut command, DEADLINE)?;
            if !out.status.success() {
                return Err(io::Error::other(format!("ssh-keygen: {}", out.stderr)));
            }
        }
        fs::copy(dir.join("user_key.pub"), dir.join("authorized_keys"))?;
        // sshd refuses to start without it; where sshd was never started by the system it is missing.
        fs::create_dir_all("/run/sshd")?;
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            let config = format!(
                "ListenAddress 127.0.0.1:{port}\nHostKey {0}/host_key\nAuthorizedKeysFile {0}/authorized_keys\nPidFile none\n\
                 StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n\
                 PrintMotd no\nLogLevel ERROR\n",
                dir.display()
            );
            fs::write(dir.join("sshd_config"), config)?;
            let log = fs::File::create(dir.join("sshd.log"))?;
            let child = Command::new("/usr/sbin/sshd")
                .arg("-D")
                .arg("-e")
                .arg("-f")
                .arg(dir.join("sshd_config"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()?;
            let mut server = Self { dir: dir.to_owned(), port, child };
            if server.listens()? {
                server.write_configs()?;
                return Ok(server);
            }
        }
        Err(io::Error::other(format!(
            "sshd does not start: {}",
            fs::read_to_string(dir.join("sshd.log")).unwrap_or_default()
        )))
    }

    fn listens(&mut self) -> io::Result<bool> {
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until && self.child.try_wait()?.is_none() {
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(false)
    }

    fn write_configs(&self) -> io::Result<()> {
        let known = |key: &str| -> io::Result<String> {
            Ok(format!("{} {}", Self::HOST, fs::read_to_string(self.dir.join(format!("{key}.pub")))?))
        };
        fs::write(self.dir.join("known"), known("host_key")?)?;
        fs::write(self.dir.join("changed"), known("other_host_key")?)?;
        fs::write(self.dir.join("unknown"), "")?;
        for (name, hosts, key) in [
            ("ssh_config", "known", "user_key"),
            ("ssh_config_unknown_host", "unknown", "user_key"),
            ("ssh_config_changed_host", "changed", "user_key"),
            ("ssh_config_wrong_key", "known", "stranger_key"),
        ] {
            let text = format!(
                "Host {host}\n  HostName 127.0.0.1\n  HostKeyAlias {host}\n  Port {port}\n  IdentityFile {dir}/{key}\n  IdentitiesOnly yes\n  \
                 IdentityAgent none\n  UserKnownHostsFile {dir}/{hosts}\n  GlobalKnownHostsFile /dev/null\n",
                host = Self::HOST,
                port = self.port,
                dir = self.dir.display()
            );
            fs::write(self.dir.join(name), text)?;
        }
        Ok(())
    }

    /// A file for `ssh -F` that gets in.
    pub fn config(&self) -> PathBuf {
        self.dir.join("ssh_config")
    }
    /// One that does not know the host's key.
    pub fn config_of_unknown_host(&self) -> PathBuf {
        self.dir.join("ssh_config_unknown_host")
    }
    /// One that knows another key of the host.
    pub fn config_of_changed_host(&self) -> PathBuf {
        self.dir.join("ssh_config_changed_host")
    }
    /// One with a key that is not let in.
    pub fn config_with_wrong_key(&self) -> PathBuf {
        self.dir.join("ssh_config_wrong_key")
    }
    /// The address of a repository at an absolute path, by the alias of [`GitSsh::config`].
    pub fn url(&self, path: &Path) -> String {
        format!("ssh://{}{}", Self::HOST, path.display())
    }
}

impl Drop for GitSsh {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
