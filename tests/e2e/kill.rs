//! `kill -9` of builds and of whole pipelines, at each step boundary and at random moments: after the next start
//! nothing is left that was not there before, and what it does is right.

use crate::build::{build, context, with_busybox};
use crate::pipeline::{commit, repository};
use crate::{Ended, Test, World};
use keelway_tests::demo;
use keelway_tests::env::{Env, Leaks, signal_group};
use keelway_tests::registry::Registry;
use keelway_tests::rig::wait_for;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("kill::at_random_moments_of_a_build", at_random_moments_of_a_build),
    ("kill::at_each_boundary_of_a_pipeline", at_each_boundary_of_a_pipeline),
    ("kill::at_random_moments_of_a_pipeline", at_random_moments_of_a_pipeline),
    ("kill::the_next_start_does_not_touch_a_living_build", the_next_start_does_not_touch_a_living_build),
    ("kill::ctrl_c_in_the_first_command_leaves_nothing", ctrl_c_in_the_first_command_leaves_nothing),
];

/// How many kills: 20, or what `KEELWAY_KILLS` says (tests/soak says more).
pub fn kills() -> u32 {
    std::env::var("KEELWAY_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(20)
}

const DOCKERFILE: &str = "FROM busybox AS a\nRUN echo 1 > /1; sleep 0.02\nRUN echo 2 > /2; sleep 0.02\nRUN dd if=/dev/zero of=/3 bs=64k count=64\n\
                          FROM busybox\nCOPY --from=a /3 /3\nCOPY files /files\nRUN sleep 0.02; cat /files/* > /4\nWORKDIR /w\n";

fn at_random_moments_of_a_build(world: &World) -> Ended {
    let leaks = Leaks::record();
    let wanted = {
        let env = with_busybox(world);
        let dir = context(&env, "c", &[("Dockerfile", DOCKERFILE), ("files/a", "a\n"), ("files/b", "b\n")]);
        build(&env, &dir, &[]).expect(0).stdout
    };
    let env = with_busybox(world);
    let dir = context(&env, "c", &[("Dockerfile", DOCKERFILE), ("files/a", "a\n"), ("files/b", "b\n")]);
    // How long a whole build takes here, so that the moments fall all over it.
    let begun = Instant::now();
    {
        let env = with_busybox(world);
        let dir = context(&env, "c", &[("Dockerfile", DOCKERFILE), ("files/a", "a\n"), ("files/b", "b\n")]);
        build(&env, &dir, &[]).expect(0);
    }
    let whole = begun.elapsed();
    let mut random = std::process::id() | 1;
    for round in 0..kills() {
        // Each round has a step of its own at the start, so that something is always to be built.
        let fresh =
            DOCKERFILE.replace("RUN echo 1 > /1", &format!("RUN echo 1 > /1; echo {round} > /dev/null"));
        std::fs::write(dir.join("Dockerfile"), fresh).expect("files can be written");
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let after = whole.mul_f64(f64::from(random >> 8) / f64::from(1u32 << 24));
        let mut child = env
            .command(&world.keelway)
            .args(["image", "build", "--quiet"])
            .arg(&dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let end = Instant::now() + after;
        while Instant::now() < end && child.try_wait().expect("it can be waited for").is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
    std::fs::write(dir.join("Dockerfile"), DOCKERFILE).expect("files can be written");
    let out = build(&env, &dir, &[]).expect(0);
    assert_eq!(out.stdout, wanted, "the build after the kills is the build without them");
    let runs: Vec<_> = std::fs::read_dir(env.store().join("store/runs"))
        .expect("the store is there")
        .flatten()
        .map(|e| e.file_name())
        .collect();
    let what =
        env.command("find").arg(env.store().join("store/runs")).arg("-ls").output().expect("find runs");
    assert!(runs.is_empty(), "run directories are left: {}", String::from_utf8_lossy(&what.stdout));
    env.keelway(&["store", "check", "--read-data"]).expect(0);
    leaks.assert_none();
    Ok(())
}

fn the_next_start_does_not_touch_a_living_build(world: &World) -> Ended {
    let env = with_busybox(world);
    let slow = context(
        &env,
        "slow",
        &[("Dockerfile", "FROM busybox\nRUN touch /begun; sleep 2; echo done > /x\nRUN cat /x\n")],
    );
    let child = env
        .command(&world.keelway)
        .args(["image", "build"])
        .arg(&slow)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let quick = context(&env, "quick", &[("Dockerfile", "FROM busybox\nRUN echo quick > /x\n")]);
    for round in 0..5 {
        std::fs::write(quick.join("Dockerfile"), format!("FROM busybox\nRUN echo {round} > /x\n"))
            .expect("files can be written");
        build(&env, &quick, &[]).expect(0);
    }
    let out = child.wait_with_output().expect("it ends");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

/// A pipeline that builds, tests and pushes to a registry of its own, to be killed again and again.
struct Victim {
    env: Env,
    registry: Registry,
    repo: PathBuf,
    commits: u32,
}

/// What a test step does: it leaves a process behind that only its sandbox ends.
const STEP: &str = "sleep 300 & grep good /check; sleep 0.05";

impl Victim {
    fn new(world: &World) -> Self {
        let env = with_busybox(world);
        let registry = Registry::start(None, None).expect("docker-registry starts");
        let repo = repository(&env, &registry.host(), STEP);
        Self { env, registry, repo, commits: 0 }
    }
    /// A commit that changes both images, so that every step has something to do.
    fn change(&mut self) {
        self.commits += 1;
        for file in ["greeting", "check"] {
            std::fs::write(self.repo.join(file), format!("good {}\n", self.commits))
                .expect("files can be written");
        }
        commit(&self.env, &self.repo, "another one");
    }
    /// Runs the pipeline, and kills it right after event `last`, or after that long. True when it was killed.
    fn run_and_kill(&self, world: &World, last: Option<usize>, after: Duration) -> bool {
        let mut command = self.env.command(&world.keelway);
        command
            .args(["run", "--format", "json"])
            .current_dir(&self.repo)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().expect("the binary starts");
        let out = BufReader::new(child.stdout.take().expect("it is piped"));
        if let Some(last) = last {
            let _ = out.lines().take(last + 1).count();
        } else {
            let end = Instant::now() + after;
            while Instant::now() < end && child.try_wait().expect("it can be waited for").is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let _ = child.kill();
        !child.wait().expect("it can be waited for").success()
    }
    /// The digest that a tag has in the registry, by another tool.
    fn digest(&self, tag: &str) -> String {
        let image = format!("docker://{}/shop/web:{tag}", self.registry.host());
        let out = self
            .env
            .command("skopeo")
            .args(["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &image])
            .output();
        String::from_utf8_lossy(&out.expect("skopeo runs").stdout).trim().to_owned()
    }
    /// One more run, which is not killed: it is right, and nothing is left of all those that were.
    fn assert_mended(&mut self, world: &World, was: &BTreeMap<String, usize>) {
        self.change();
        self.env.keelway_in(&self.repo, &["run"]).expect(0);
        let mut fresh = Self::new(world);
        fresh.commits = self.commits - 1;
        fresh.change();
        fresh.env.keelway_in(&fresh.repo, &["run"]).expect(0);
        let digest = self.digest("main");
        assert!(digest.starts_with("sha256:"), "{digest}");
        assert_eq!(digest, fresh.digest("main"), "the image after the kills is the image without them");
        assert_eq!(&leftovers(&self.env), was);
    }
}

/// How many files there are in the places of a store that hold something only while a run lives.
fn leftovers(env: &Env) -> BTreeMap<String, usize> {
    let count = |dir: &Path| std::fs::read_dir(dir).map_or(0, |d| d.flatten().count());
    let mut found: BTreeMap<String, usize> = ["runs", "trash"]
        .into_iter()
        .map(|d| (d.to_owned(), count(&env.store().join("store").join(d))))
        .collect();
    found.insert("temporary files".into(), count(&env.tmp()));
    found
}

fn at_each_boundary_of_a_pipeline(world: &World) -> Ended {
    let leaks = Leaks::record();
    let mut victim = Victim::new(world);
    let events = victim.env.keelway_in(&victim.repo, &["run", "--format", "json"]).expect(0).stdout;
    let was = leftovers(&victim.env);
    let kinds = ["run-started", "planned", "started", "finished", "cache-miss", "notice"];
    let is_boundary = |line: &str| {
        let event: Option<serde_json::Value> = serde_json::from_str(line).ok();
        event.is_some_and(|e| e["event"].as_str().is_some_and(|k| kinds.contains(&k)))
    };
    let boundaries: Vec<usize> =
        events.lines().enumerate().filter(|(_, l)| is_boundary(l)).map(|(n, _)| n).collect();
    assert!(boundaries.len() > 15, "that few events are no pipeline:\n{events}");
    let mut killed = 0;
    for &boundary in &boundaries {
        victim.change();
        killed += usize::from(victim.run_and_kill(world, Some(boundary), Duration::ZERO));
        // The next start clears up; one run directory may be there now: that of the one just killed.
        assert!(leftovers(&victim.env)["runs"] <= 1, "after event {boundary}: {:?}", leftovers(&victim.env));
    }
    // The last events come when nothing is left to be killed.
    assert!(killed * 10 > boundaries.len() * 8, "only {killed} of {} were killed in time", boundaries.len());
    victim.assert_mended(world, &was);
    let runs = victim.env.keelway(&["runs", "ls", "-n", "100"]).expect(0).stdout;
    assert!(!runs.contains("running"), "killed runs are shown as if they lived:\n{runs}");
    drop(victim);
    leaks.assert_none();
    Ok(())
}

fn at_random_moments_of_a_pipeline(world: &World) -> Ended {
    let leaks = Leaks::record();
    let mut victim = Victim::new(world);
    victim.env.keelway_in(&victim.repo, &["run"]).expect(0);
    let was = leftovers(&victim.env);
    victim.change();
    let begun = Instant::now();
    victim.env.keelway_in(&victim.repo, &["run"]).expect(0);
    let whole = begun.elapsed();
    let mut random = std::process::id() | 1;
    for _ in 0..kills() {
        victim.change();
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        victim.run_and_kill(world, None, whole.mul_f64(f64::from(random >> 8) / f64::from(1u32 << 24)));
        assert!(leftovers(&victim.env)["runs"] <= 1, "{:?}", leftovers(&victim.env));
    }
    victim.assert_mended(world, &was);
    drop(victim);
    leaks.assert_none();
    Ok(())
}

/// The folders of rigs, which are all they leave on a disk.
fn rigs() -> Vec<PathBuf> {
    let in_dir = |dir: &str| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
        entries.filter(|p| p.to_string_lossy().contains("keelway-rig-")).collect()
    };
    ["/dev/shm", "/var/tmp"].map(in_dir).concat()
}

/// A Ctrl-C goes to everything in the foreground at once: while the rig is being made, and while the load runs, for which
/// the run after the first one must have worked. The whole of it runs once more in `.ci/run`.
fn ctrl_c_in_the_first_command_leaves_nothing(world: &World) -> Ended {
    let (leaks, before) = (Leaks::record(), rigs());
    for (said, then) in [
        // Some of its machines stand.
        ("==> the rig", Some("host1")),
        ("==> commit 2", None),
    ] {
        // A shell that runs us in the background has signals of the keyboard ignored, and that is inherited.
        let mut shown = std::process::Command::new("env")
            .arg("--default-signal=INT,TERM")
            .arg(std::env::current_exe().expect("our own path"))
            .arg(demo::VERB)
            .arg(&world.keelway)
            .arg(world.project.join("examples/web"))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let group = shown.id();
        let mut lines =
            BufReader::new(shown.stderr.take().expect("it is piped")).lines().map_while(Result::ok);
        let heard: Vec<String> = lines.by_ref().take_while(|l| !l.starts_with(said)).collect();
        let new = || rigs().into_iter().find(|r| !before.contains(r));
        if let Some(node) = then {
            let stands = || new().is_some_and(|rig| rig.join(node).join("cgroup").exists());
            wait_for(Duration::from_secs(30), node, stands).expect("it is made");
        }
        signal_group(group, "SIGINT").expect("it runs");
        // What it says to its end is read, so that nobody waits for us to read it.
        let rest: Vec<String> = lines.collect();
        let status = shown.wait().expect("it can be waited for");
        let text = [heard, rest].concat().join("\n");
        assert_eq!(status.code(), Some(1), "{text}");
        assert!(text.contains("the demonstration ended with signal: 2"), "{text}");
        assert!(!text.contains("panicked"), "{text}");
        assert_eq!(rigs(), before, "rigs are left: {text}");
        leaks.assert_none();
        // Orphans are gone when whoever adopts them has looked.
        let gone = || signal_group(group, "SIGCONT").is_err();
        wait_for(Duration::from_secs(10), "the end of all its processes", gone).expect("none is left");
    }
    Ok(())
}
