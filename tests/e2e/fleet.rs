//! A rig with the example on it, and what the tests of deploys do to it again and again.

use crate::World;
use keelway_tests::demo::{self, Sender};
use keelway_tests::load::{self, Entry, Verdict};
use keelway_tests::rig::node::Node;
use keelway_tests::rig::{REGISTRY, Rig, look, wait_for};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

/// The names that `keelway deploy` needs besides its verb.
const NAMES: [&str; 7] = [
    "production",
    "--repo",
    "/root/web",
    "--ssh-config",
    "rig=/root/rig_ssh_config",
    "--registry-ca",
    "rig=/root/rig_ca.pem",
];

/// How long a deploy of the tests may take.
const DEPLOY: Duration = Duration::from_secs(180);

/// The rig and its example.
pub struct Fleet {
    pub rig: Rig,
    app: String,
    sent: u32,
}

/// What differs from the example in a pipeline of the tests. It has no stage for unit tests.
pub struct Pipeline {
    pub listen: &'static str,
    pub deadline: &'static str,
    pub drain: &'static str,
    pub grace: &'static str,
}

impl Default for Pipeline {
    fn default() -> Self {
        Self { listen: ":80", deadline: "20s", drain: "10s", grace: "5s" }
    }
}

/// A `keelway` that runs on the deployer.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Fleet {
    /// A fresh rig; nothing is deployed.
    pub fn new(world: &World) -> Self {
        let rig = demo::prepare(&world.keelway, &world.project.join("examples/web")).expect("the rig stands");
        let app =
            fs::read_to_string(world.project.join("examples/web/app.py")).expect("the example is there");
        // Each start of a replica shows in its log, which outlives it.
        let app = app.replace("def main():\n", "def main():\n    print(\"the app begins\", flush=True)\n");
        Self { rig, app, sent: 0 }
    }

    /// A command on the deployer, to its end.
    pub fn keelway(&self, args: &[&str]) -> Output {
        self.rig.deployer.command("keelway").args(args).output().expect("the binary starts")
    }
    /// The pipeline, to its end.
    pub fn run(&self) -> Output {
        self.keelway(&demo::RUN)
    }
    /// `keelway deploy VERB production`, to its end.
    pub fn deploy(&self, flags: &[&str], verb: &str) -> Output {
        self.keelway(&[flags, &["deploy", verb], &NAMES[..]].concat())
    }
    /// The pipeline, begun.
    pub fn begin(&self) -> Running {
        self.begin_with(&demo::RUN)
    }
    /// `keelway deploy VERB production`, begun.
    pub fn begin_deploy(&self, flags: &[&str], verb: &str) -> Running {
        self.begin_with(&[flags, &["deploy", verb], &NAMES[..]].concat())
    }
    /// Any command on the deployer, begun.
    pub fn begin_with(&self, args: &[&str]) -> Running {
        let mut child = self
            .rig
            .deployer
            .command("keelway")
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let (tell, lines) = mpsc::channel();
        let (out, err) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let second = tell.clone();
        std::thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).try_for_each(|l| second.send(l))
        });
        std::thread::spawn(move || {
            BufReader::new(err).lines().map_while(Result::ok).try_for_each(|l| tell.send(l))
        });
        Running { child, lines, said: Vec::new() }
    }

    /// A commit with this version and a pipeline without unit tests. `change` makes the app another one.
    pub fn commit(&self, version: &str, pipeline: &Pipeline, change: impl Fn(String) -> String) {
        let file = |name: &str| self.rig.deployer.file(&format!("root/web/{name}"));
        fs::write(file("app.py"), change(self.app.clone())).expect("files can be written");
        let Pipeline { listen, deadline, drain, grace } = pipeline;
        let text = format!(
            "version: 1\nstages:\n  image:\n    build: {{context: ., target: app}}\n  publish:\n    needs: [image]\n    \
             push: {{image: {{stage: image}}, to: {REGISTRY}/shop/web, tags: [commit, branch]}}\n  production:\n    needs: [publish]\n    \
             deploy:\n      image: {{stage: publish}}\n      to: production\n      app: web\n      replicas: 3\n      port: 8080\n      \
             health: {{http: /healthz, interval: 200ms, healthy: 2, deadline: {deadline}}}\n      drain: {drain}\n      stop_grace: {grace}\n\
             targets:\n  production:\n    hosts: [{{ssh: host1}}, {{ssh: host2}}, {{ssh: host3}}]\n    ssh_config: rig\n    balancer: {{listen: \"{listen}\"}}\n\
             registries:\n  {REGISTRY}: {{ca: rig}}\n"
        );
        fs::write(file("keelway.yml"), text).expect("files can be written");
        demo::new_version(&self.rig, version).expect("git commits");
    }

    /// What `deploy status` says, host by host.
    pub fn status(&self) -> Vec<Value> {
        let text = expect(self.deploy(&["--format", "json"], "status"), 0);
        text.lines()
            .filter_map(|l| serde_json::from_str(l).ok())
            .filter(|v: &Value| v["host"].is_string())
            .collect()
    }
    /// Which replica of which digest runs where, and how often it was started again.
    pub fn replicas(&self) -> Vec<String> {
        let status = self.status();
        let found: Vec<String> = rows(&status)
            .map(|(host, r)| {
                format!(
                    "{host} {} {} {} restarts {}",
                    r["replica"].as_str().unwrap_or("?"),
                    r["digest"].as_str().unwrap_or("?"),
                    r["state"].as_str().unwrap_or("?"),
                    r["restarts"]
                )
            })
            .collect();
        assert!(!found.is_empty(), "{status:?}");
        found
    }
    /// What each host has recorded of releases: the revision and where it has come to, newest first.
    pub fn releases(&self) -> Vec<Vec<(u64, String)>> {
        let of = |host: &Node| -> Option<Vec<(u64, String)>> {
            let bytes = fs::read(host.state_dir().join("host/apps/web/releases.json")).ok()?;
            let records: Vec<Value> = serde_json::from_slice(&bytes).ok()?;
            records.iter().map(|r| Some((r["revision"].as_u64()?, r["state"].as_str()?.to_owned()))).collect()
        };
        self.rig.hosts.iter().map(|h| of(h).expect("a host has records of releases")).collect()
    }
    /// Panics unless three replicas of one digest are healthy, one on each host, every balancer can use all of them, no
    /// lease is held, and the hosts themselves hold exactly what the status says.
    #[track_caller]
    pub fn assert_settled(&self) {
        let status = self.status();
        let digests: Vec<&Value> = rows(&status).map(|(_, r)| &r["digest"]).collect();
        assert_eq!(digests.len(), 3, "{status:#?}");
        assert!(digests.iter().all(|d| *d == digests[0]), "{status:#?}");
        for (host, node) in status.iter().zip(&self.rig.hosts) {
            let app = &host["apps"][0];
            assert!(app["balancer"] == true && app["usable"] == 3 && app["backends"] == 3, "{host:#}");
            assert!(app["lease"].is_null() && app["unfinished"].is_null(), "{host:#}");
            let mut told: Vec<&str> = app["replicas"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|r| r["replica"].as_str())
                .collect();
            assert!(
                app["replicas"].as_array().is_some_and(|r| r.len() == 1 && r[0]["state"] == "healthy"),
                "{host:#}"
            );
            // The keepers that run, and the pool that is in force.
            let processes = node.run(&["pgrep", "-fa", " __supervise .* --replica "]).unwrap_or_default();
            let mut kept: Vec<&str> = processes
                .lines()
                .filter_map(|l| l.split(" --replica ").nth(1))
                .map(|r| r.split(' ').next().unwrap_or(r))
                .collect();
            told.sort_unstable();
            kept.sort_unstable();
            assert_eq!(kept, told, "keepers of {}", node.name());
            let mut pool = look::usable(&look::balancer(node).expect("the balancer answers"));
            let mut all: Vec<String> =
                rows(&status).filter_map(|(_, r)| Some(r["replica"].as_str()?.to_owned())).collect();
            pool.sort_unstable();
            all.sort_unstable();
            assert_eq!(pool, all, "pool of {}", node.name());
        }
    }
    /// What each host holds of everything that replicas need.
    pub fn counts(&self) -> Vec<BTreeMap<String, u64>> {
        self.rig.hosts.iter().map(|h| look::counts(h).expect("a host can be looked at")).collect()
    }
    /// Panics unless the hosts come to hold just as much as they did; less may wait for its deletion.
    #[track_caller]
    pub fn assert_nothing_left(&self, before: &[BTreeMap<String, u64>]) {
        const WAITING: &str = "thrown away";
        // An image that came in for a deploy that was killed before it said what it is for is held, and the four last such are.
        const HOLDING: (&str, u64) = ("run directories", 4);
        let same = |now: &[BTreeMap<String, u64>]| {
            now.iter().zip(before).all(|(now, before)| {
                now.iter().all(|(kind, n)| {
                    *n == before[kind]
                        || (kind == WAITING && *n < before[kind])
                        || (kind == HOLDING.0 && *n <= before[kind] + HOLDING.1)
                })
            })
        };
        let end = Instant::now() + Duration::from_secs(10);
        let mut now = self.counts();
        while !same(&now) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(200));
            now = self.counts();
        }
        assert!(same(&now), "the hosts hold something else than before\nbefore {before:?}\nnow    {now:?}");
    }

    /// The version that a host's balancer answers with.
    pub fn version_at(&self, host: usize) -> String {
        self.rig
            .load
            .run(&["curl", "-sf", "--max-time", "5", &format!("http://198.18.0.{}/version", 11 + host)])
            .unwrap_or_default()
            .trim()
            .to_owned()
    }

    /// Waits until the load has flowed for a while: so many more requests are answered.
    pub fn flow(&self, more: usize) {
        let before = demo::answered(&self.rig).expect("logs can be read");
        demo::until_answered(&self.rig, before + more).expect("the load flows");
    }
    /// Begins to send through these hosts' balancers.
    pub fn load(&mut self, hosts: &[usize], rate: u32) -> Sender {
        self.sent += 1;
        Sender::through(&self.rig, hosts, &format!("load{}", self.sent), rate, 200_000)
            .expect("the load starts")
    }
    /// Ends a load: its book, held against the logs of all replicas.
    pub fn judge(&self, sender: Sender) -> (Vec<Entry>, Verdict) {
        let book = sender.stop().expect("the load ends");
        let verdict = load::judge(&book, demo::logged_ids(&self.rig).expect("logs can be read"));
        // For whoever looks on; tests/soak/run quotes it.
        let _ = writeln!(
            std::io::stdout(),
            "{}: {}",
            book.first().map_or("", |e| e.id.split('-').next().unwrap_or("")),
            verdict.line()
        );
        (book, verdict)
    }
    /// Ends a load of which nothing may be lost, nothing answered twice.
    #[track_caller]
    pub fn assert_lossless(&self, sender: Sender) -> Vec<Entry> {
        let (book, verdict) = self.judge(sender);
        assert!(
            verdict.lost.is_empty(),
            "{}: {:?}",
            verdict.line(),
            &verdict.lost[..verdict.lost.len().min(10)]
        );
        assert!(verdict.duplicated.is_empty(), "{}: {:?}", verdict.line(), verdict.duplicated);
        assert!(
            verdict.unlogged.is_empty(),
            "{} ids stand in no log, {:?} for one",
            verdict.unlogged.len(),
            verdict.unlogged.first()
        );
        assert!(verdict.requests > 100, "{}: that proves nothing", verdict.line());
        book
    }

    /// Kills the deployer: every `keelway` on its machine, as a power failure there would.
    pub fn kill_deployer(&self) {
        let _ = self.rig.deployer.run(&["pkill", "-KILL", "-x", "keelway"]);
    }
    /// How often each replica's app has begun, by its log, on all hosts.
    pub fn beginnings(&self) -> BTreeMap<String, usize> {
        let mut all = BTreeMap::new();
        for host in &self.rig.hosts {
            let text = host
                .run(&[
                    "sh",
                    "-c",
                    "cd /var/lib/keelway/host/apps/web/logs && grep -c 'the app begins' */log",
                ])
                .unwrap_or_default();
            for line in text.lines() {
                if let Some((file, n)) = line.rsplit_once(':') {
                    all.insert(
                        format!("{} {}", host.name(), file.trim_end_matches("/log")),
                        n.parse().unwrap_or(0),
                    );
                }
            }
        }
        all
    }
}

/// The replicas of a status, each with its host.
pub fn rows(status: &[Value]) -> impl Iterator<Item = (&str, &Value)> {
    status.iter().flat_map(|h| {
        let name = h["host"].as_str().unwrap_or("?");
        h["apps"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|a| a["replicas"].as_array().into_iter().flatten())
            .map(move |r| (name, r))
    })
}

impl Running {
    /// Waits for a line that holds `text`; false when it ends before.
    pub fn wait_line(&mut self, text: &str) -> bool {
        let end = Instant::now() + DEPLOY;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    let found = line.contains(text);
                    self.said.push(line);
                    if found {
                        return true;
                    }
                }
                Err(_) => return false,
            }
        }
    }
    /// Goes on after its program was stopped and continued: what entered the node for it stops itself with it.
    pub fn wake(&self) {
        keelway_tests::env::signal(self.child.id(), "SIGCONT").expect("it is not waited for yet");
    }
    /// Waits for its end: the exit code (-1 when it was killed) and everything it said.
    pub fn end(mut self) -> (i32, String) {
        let end = Instant::now() + DEPLOY;
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            self.said.push(line);
        }
        let child = &mut self.child;
        let ended = wait_for(Duration::from_secs(10), "the end of a deploy", || {
            child.try_wait().is_ok_and(|s| s.is_some())
        });
        ended.unwrap_or_else(|e| panic!("{e}\n{}", self.said.join("\n")));
        let code = self.child.wait().ok().and_then(|s| s.code()).unwrap_or(-1);
        (code, self.said.join("\n"))
    }
}

/// Everything that a command said, when it ended with this code.
#[track_caller]
pub fn expect(out: Output, code: i32) -> String {
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{text}");
    text
}

/// Panics unless every one of `wanted` is in `text`.
#[track_caller]
pub fn holds(text: &str, wanted: &[&str]) {
    for w in wanted {
        assert!(text.contains(w), "{w:?} is not in\n{text}");
    }
}
