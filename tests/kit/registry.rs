//! Real registries: Debian's docker-registry plain, with TLS, with htpasswd, behind a token server.
//!
//! The token server is a [`Front`] of the kit: a proxy before a plain docker-registry that speaks the Bearer
//! challenge, gives tokens for a user and password, and lets only requests with a token of the right scope
//! through. (docker-registry's own token mode needs signed JWTs; a client sees no difference.) A front without
//! a login is a counting proxy.

use crate::server::{Reply, Seen, Server};
use crate::tls::ServerCert;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long docker-registry may take to listen.
const READY: Duration = Duration::from_secs(20);

/// A user and password of the kit's registries.
#[derive(Debug, Clone, Copy)]
pub struct User<'a> {
    /// Name.
    pub name: &'a str,
    /// Password.
    pub password: &'a str,
}

impl User<'_> {
    /// docker's config.json with this login for one registry.
    pub fn docker_config(&self, registry: &str) -> String {
        let auth = STANDARD.encode(format!("{}:{}", self.name, self.password));
        serde_json::json!({"auths": {registry: {"auth": auth}}}).to_string()
    }
}

/// A docker-registry process with storage of its own; killed when dropped. (It also dies with the thread that
/// started it, so a registry that several tests share is held by a thread that outlives them.)
pub struct Registry {
    child: Child,
    address: SocketAddr,
    dir: TempDir,
}

impl Registry {
    /// Starts one on a free port of 127.0.0.1 and waits until it listens.
    pub fn start(cert: Option<&ServerCert>, user: Option<User<'_>>) -> io::Result<Self> {
        let mut last = None;
        // The port is free when it is chosen; if somebody takes it first, another is chosen.
        for _ in 0..3 {
            match Self::start_once(cert, user) {
                Ok(registry) => return Ok(registry),
                Err(e) => last = Some(e),
            }
        }
        Err(last.unwrap_or_else(|| io::Error::other("docker-registry did not start")))
    }

    fn start_once(cert: Option<&ServerCert>, user: Option<User<'_>>) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("kit-registry-").tempdir_in(crate::env::place())?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut http = serde_json::json!({"addr": address.to_string(), "relativeurls": true});
        if let Some(cert) = cert {
            http["tls"] = serde_json::json!({"certificate": cert.cert, "key": cert.key});
        }
        let mut config = serde_json::json!({
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": dir.path().join("data")}, "delete": {"enabled": true}},
            "http": http,
        });
        if let Some(user) = user {
            let file = dir.path().join("htpasswd");
            fs::write(&file, htpasswd(user)?)?;
            config["auth"] = serde_json::json!({"htpasswd": {"realm": "kit", "path": file}});
        }
        // JSON is YAML.
        let file = dir.path().join("config.yml");
        fs::write(&file, config.to_string())?;
        let log = fs::File::create(dir.path().join("log"))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "docker-registry", "serve"])
            .arg(&file)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            // The client library inside would otherwise export traces to nowhere.
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut registry = Self { child, address, dir };
        let deadline = Instant::now() + READY;
        while TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_err() {
            if let Some(status) = registry.child.try_wait()? {
                return Err(io::Error::other(format!(
                    "docker-registry ended ({status}): {}",
                    registry.log()
                )));
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("docker-registry does not listen: {}", registry.log())));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(registry)
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }
    /// What it wrote, for messages of failing tests.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
    /// The tags of a repository as they are on its disk, sorted.
    pub fn tags(&self, repository: &str) -> Vec<String> {
        let base = self.dir.path().join("data/docker/registry/v2/repositories").join(repository);
        let mut tags: Vec<String> = fs::read_dir(base.join("_manifests/tags"))
            .into_iter()
            .flatten()
            .filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()))
            .collect();
        tags.sort();
        tags
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn htpasswd(user: User<'_>) -> io::Result<Vec<u8>> {
    let out = Command::new("htpasswd").args(["-Bbn", user.name, user.password]).output()?;
    if out.status.success() {
        Ok(out.stdout)
    } else {
        Err(io::Error::other(String::from_utf8_lossy(&out.stderr)))
    }
}

/// What a [`Front`] asks of its clients.
#[derive(Debug, Clone)]
pub struct Guard {
    /// Who may get tokens.
    pub user: String,
    /// Password.
    pub password: String,
    /// What tokens live, in seconds.
    pub expires_in: u64,
}

/// A proxy of the kit before a registry: counts, and asks for tokens when it has a guard.
pub struct Front {
    server: Server,
    given: Arc<AtomicU64>,
}

struct Tokens {
    guard: Guard,
    // Token to scope, and until when.
    valid: Mutex<BTreeMap<String, (String, Instant)>>,
    given: Arc<AtomicU64>,
}

impl Front {
    /// A front before a plain registry (`host:port`).
    pub fn start(upstream: &str, cert: Option<&ServerCert>, guard: Option<Guard>) -> io::Result<Self> {
        let upstream = upstream.to_owned();
        let given = Arc::new(AtomicU64::new(0));
        let tokens = guard.map(|guard| Tokens {
            guard,
            valid: Mutex::new(BTreeMap::new()),
            given: Arc::clone(&given),
        });
        let scheme = if cert.is_some() { "https" } else { "http" };
        let server = Server::start(cert, move |seen| {
            if let Some(tokens) = &tokens {
                if seen.path_only() == "/token" {
                    return tokens.give(seen);
                }
                if !tokens.admits(seen) {
                    let host = seen.header("host").unwrap_or("");
                    return Reply::status(401).with(
                        "www-authenticate",
                        format!(r#"Bearer realm="{scheme}://{host}/token",service="kit""#),
                    );
                }
            }
            forward(&upstream, seen)
                .unwrap_or_else(|e| Reply { body: e.to_string().into(), ..Reply::status(502) })
        })?;
        Ok(Self { server, given })
    }

    /// The server: its address and what it was asked.
    pub fn server(&self) -> &Server {
        &self.server
    }
    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        self.server.host()
    }
    /// Tokens given so far.
    pub fn tokens_given(&self) -> u64 {
        self.given.load(Ordering::SeqCst)
    }
}

impl Tokens {
    fn give(&self, seen: &Seen) -> Reply {
        let want =
            format!("Basic {}", STANDARD.encode(format!("{}:{}", self.guard.user, self.guard.password)));
        if seen.header("authorization") != Some(&want) {
            return Reply::status(401);
        }
        let scope = query(&seen.path, "scope").unwrap_or_default();
        let n = self.given.fetch_add(1, Ordering::SeqCst);
        let token = format!("kit-token-{n}");
        let until = Instant::now() + Duration::from_secs(self.guard.expires_in);
        self.valid.lock().unwrap_or_else(PoisonError::into_inner).insert(token.clone(), (scope, until));
        Reply::bytes(serde_json::json!({"token": token, "expires_in": self.guard.expires_in}).to_string())
    }

    /// Whether the request's token is valid for its repository and does what its scope allows.
    fn admits(&self, seen: &Seen) -> bool {
        let Some(token) = seen.header("authorization").and_then(|a| a.strip_prefix("Bearer ")) else {
            return false;
        };
        let valid = self.valid.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((scope, until)) = valid.get(token) else { return false };
        if *until < Instant::now() {
            return false;
        }
        let path = seen.path_only().trim_start_matches("/v2/");
        let name =
            ["/manifests/", "/blobs/", "/tags/"].iter().find_map(|m| path.find(m)).map_or("", |i| &path[..i]);
        let action = if matches!(seen.method.as_str(), "GET" | "HEAD") { "pull" } else { "push" };
        let mut parts = scope.split(':');
        parts.next() == Some("repository")
            && parts.next() == Some(name)
            && parts.next().is_some_and(|a| a.split(',').any(|a| a == action))
    }
}

/// One value of a query, percent-decoded as far as scopes need it.
fn query(path: &str, name: &str) -> Option<String> {
    let pair = path.split_once('?')?.1.split('&').find_map(|p| p.strip_prefix(name)?.strip_prefix('='))?;
    Some(pair.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",").replace('+', " "))
}

/// The request to the registry behind, and its answer.
fn forward(upstream: &str, seen: &Seen) -> io::Result<Reply> {
    let work = async {
        let stream = tokio::net::TcpStream::connect(upstream).await?;
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(io).await.map_err(io::Error::other)?;
        let task = tokio::spawn(connection);
        let mut request = hyper::Request::builder().method(seen.method.as_str()).uri(&seen.path);
        for (name, value) in
            seen.headers.iter().filter(|(n, _)| !matches!(n.as_str(), "authorization" | "transfer-encoding"))
        {
            request = request.header(name, value);
        }
        let body = Full::new(Bytes::copy_from_slice(&seen.body));
        let request = request.body(body).map_err(io::Error::other)?;
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        task.abort();
        let headers = parts
            .headers
            .iter()
            .filter(|(n, _)| *n != "transfer-encoding" && *n != "connection")
            .map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned()))
            .collect();
        Ok(Reply { status: parts.status.as_u16(), headers, body: body.to_vec(), ..Reply::default() })
    };
    tokio::runtime::Handle::current().block_on(async {
        tokio::time::timeout(Duration::from_secs(60), work).await.unwrap_or_else(|e| Err(io::Error::other(e)))
    })
}
