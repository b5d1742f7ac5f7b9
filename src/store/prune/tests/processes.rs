//! Three processes that build and collect on one store, while one of them is killed.

use super::*;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

/// Workers that are killed, one after the other.
const ROUNDS: u64 = 20;
/// Steps of the chain that every worker builds; their keys are the same for all.
const STEPS: usize = 6;

struct Worker {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Worker {
    fn start(store: &Path, salt: u64) -> Self {
        Self::begin("worker_process", store, salt)
    }

    fn begin(name: &str, store: &Path, salt: u64) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let test = format!("prune::tests::processes::{name}");
        command.args(["--exact", &test, "--nocapture"]).env("KEELWAY_TEST_CHILD", "1");
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        writeln!(child.stdin.take().unwrap(), "{salt} {}", store.display()).unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Waits until it has said this so many times.
    fn says(&mut self, what: &str, times: usize) -> bool {
        let mut left = times;
        while left > 0 {
            match self.lines.next() {
                Some(Ok(line)) if line == what => left -= 1,
                Some(Ok(_)) => {}
                _ => return false,
            }
        }
        true
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The key that a step has in this generation of builds.
fn shared(generation: u64, n: usize) -> CacheKey {
    let part = Digest::of(format!("{generation} {n}").as_bytes());
    CacheKey::new(digest(n), vec![(KeyPart::Command, part)])
}

/// Builds a chain, as the engine does: look up, else claim, look up again, run, record. Everything that it was told is
/// there must be there whenever it looks.
fn build(store: &Store, generation: u64) {
    let mut chain: Vec<SnapshotId> = Vec::new();
    for n in 0..STEPS {
        let key = shared(generation, n);
        let output = store.cache_get(&key).or_else(|| {
            let claim = store.claim(&key.digest, far(), &|| false).unwrap();
            let found = store.cache_get(&key);
            if found.is_some() {
                return found;
            }
            let ran = store.path().join("../ran").join(format!("{generation}-{n}-{}", std::process::id()));
            let id = snapshot(store, |r| write(r, "data", &vec![n as u8; 30_000]));
            let snapshots = chain.iter().cloned().chain([id]).collect();
            let output = Output::Chain(Chain { snapshots, key: digest(n) });
            std::fs::write(ran, "").unwrap();
            store.cache_put(&key, &output).unwrap();
            drop(claim);
            Some(output)
        });
        let Some(Output::Chain(found)) = output else { panic!("a step without an output") };
        chain = found.snapshots;
        let view = store.view(&chain).expect("what the cache names is there");
        crate::tests::contents(&view);
        store.layer_of(chain.last().unwrap(), crate::Compression::Gzip).expect("a layer");
    }
    let made = image(store, &chain);
    let name: ImageRef = format!("r.example.com/g:{}", generation % 3).parse().unwrap();
    store.set_reference(&name, &made).unwrap();
    assert!(is_whole(store, &made.digest), "an image that was just named");
}

/// Not a test by itself: what each process does. It is told what to do on its standard input.
#[test]
#[allow(clippy::print_stdout, reason = "the lines tell the test how far the work is")]
fn worker_process() {
    if std::env::var_os("KEELWAY_TEST_CHILD").is_none() {
        return;
    }
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let Some((salt, path)) = line.trim_end().split_once(' ') else { return };
    let salt: u64 = salt.parse().unwrap();
    for turn in 0..100_000u64 {
        let store = store_at(Path::new(path));
        build(&store, (salt + turn) / 4);
        println!("\nbuilt");
        if (salt + turn).is_multiple_of(3) {
            let plan = store.prune_plan(|_| aim(200_000), &[]).unwrap();
            let done = store.prune(&plan, &nobody, far()).unwrap();
            assert!(done.finished);
            store.empty_trash(Duration::from_secs(10)).unwrap();
            println!("\ncollected");
        }
    }
}

#[test]
fn three_build_and_collect_while_one_is_killed() {
    let dir = crate::tests::temp();
    let path = dir.path().join("store");
    std::fs::create_dir(dir.path().join("ran")).unwrap();
    let root = open(&path);
    let mut living = [Worker::start(&path, 0), Worker::start(&path, 1)];
    for round in 0..ROUNDS {
        let mut victim = Worker::start(&path, 2 + round);
        // Somewhere else in its work each time.
        assert!(victim.says("built", 1 + (round % 3) as usize), "a worker failed");
        drop(victim);
        for worker in &mut living {
            assert!(worker.child.try_wait().unwrap().is_none(), "a worker failed");
            assert!(worker.says("built", 1), "a worker failed");
        }
        let checked = root.check(&[], round % 5 == 0, &|| false).unwrap();
        assert!(checked.is_clean(), "after round {round}: {:?}", checked.findings);
        for (name, target) in root.references().unwrap() {
            assert!(is_whole(&root, &target.digest), "{name} after round {round}");
        }
    }
    for worker in &mut living {
        assert!(worker.says("collected", 1), "a worker failed");
    }
    drop(living);
    let checked = open(&path).check(&[], true, &|| false).unwrap();
    assert!(checked.is_clean() && checked.snapshots > 0, "{:?}", checked.findings);
}

/// Not a test by itself: removes all that it may, a few things at a time.
#[test]
#[allow(clippy::print_stdout, reason = "the lines tell the test how far the work is")]
fn collector_process() {
    if std::env::var_os("KEELWAY_TEST_CHILD").is_none() {
        return;
    }
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let Some((_, path)) = line.trim_end().split_once(' ') else { return };
    let store = store_at(Path::new(path));
    let plan = store.prune_plan(|_| Aim { names: true, ..aim(0) }, &[]).unwrap();
    // Asked before each few removals.
    let asked = || {
        println!("\nremoves");
        Ok(Vec::new())
    };
    store.prune(&plan, &asked, far()).unwrap();
}

#[test]
fn a_collection_that_is_killed_leaves_a_store_that_is_right() {
    let dir = crate::tests::temp();
    let path = dir.path().join("store");
    for round in 0..8 {
        let store = open(&path);
        for n in 0..60 {
            let chain = step(&store, &step(&store, &[], 2 * n), 2 * n + 1);
            if n % 3 == 0 {
                let name: ImageRef = format!("r.example.com/k:{n}").parse().unwrap();
                store.set_reference(&name, &image(&store, &chain)).unwrap();
            }
        }
        drop(store);
        let before = std::fs::read_dir(path.join("snapshots")).unwrap().count();
        let mut victim = Worker::begin("collector_process", &path, 0);
        assert!(victim.says("removes", 2 + round % 4), "the collector failed");
        drop(victim);
        let next = open(&path);
        let after = std::fs::read_dir(path.join("snapshots")).unwrap().count();
        assert!(0 < after && after < before, "{after} of {before}");
        let checked = next.check(&[], true, &|| false).unwrap();
        assert!(checked.is_clean(), "killed in round {round}: {:?}", checked.findings);
        for (name, target) in next.references().unwrap() {
            assert!(is_whole(&next, &target.digest), "{name} after round {round}");
        }
    }
    collected(&open(&path), aim(0), &[]);
}

#[test]
fn equal_steps_run_once_while_others_collect() {
    let dir = crate::tests::temp();
    let path = dir.path().join("store");
    let ran = dir.path().join("ran");
    std::fs::create_dir(&ran).unwrap();
    let root = open(&path);
    // Held by somebody all the time, so that a second run could only be one that was not needed.
    build(&root, 0);
    let before = std::fs::read_dir(&ran).unwrap().count();
    assert_eq!(before, STEPS);
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                for _ in 0..5 {
                    let store = open(&path);
                    build(&store, 0);
                    collected(&store, aim(0), &[]);
                }
            });
        }
    });
    assert_eq!(std::fs::read_dir(&ran).unwrap().count(), STEPS);
}
