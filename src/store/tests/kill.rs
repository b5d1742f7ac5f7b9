//! kill -9 in the middle of everything, and many processes on one store.

use super::*;
use keelway_model::Digest;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn worker(store: &Path) -> Worker {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "tests::kill::worker_process", "--nocapture"]).env("KEELWAY_TEST_CHILD", "1");
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut worker = Worker(child);
    writeln!(worker.0.stdin.take().unwrap(), "{}", store.display()).unwrap();
    worker
}

/// Not a test by itself: what the killed process does. It is told the store on its standard input.
#[test]
#[allow(clippy::print_stdout, reason = "the line tells the test that the work has begun")]
fn worker_process() {
    if std::env::var_os("KEELWAY_TEST_CHILD").is_none() {
        return;
    }
    let mut path = String::new();
    std::io::stdin().read_line(&mut path).unwrap();
    if path.is_empty() {
        return;
    }
    let store = open(Path::new(path.trim_end()));
    store.note_cgroup("left-behind").unwrap();
    println!("\nbegun");
    for n in 0u32..100_000 {
        store.put_blob(&n.to_le_bytes().repeat(50_000)).unwrap();
        let id = snapshot(&store, |r| {
            for f in 0..20 {
                write(r, &format!("d/{f}"), &n.to_le_bytes());
            }
        });
        store.layer_of(&id, Compression::Gzip).unwrap();
        let _claim = store.try_claim(&Digest::of(&n.to_le_bytes())).unwrap();
    }
}

#[test]
fn after_kill_9_the_next_start_is_clean() {
    let dir = temp();
    let path = dir.path().join("store");
    let living = open(&path);
    for round in 0..12u64 {
        let mut victim = worker(&path);
        let mut lines = BufReader::new(victim.0.stdout.take().unwrap()).lines();
        assert!(lines.any(|l| l.unwrap() == "begun"));
        // Somewhere in the work, another place each round: after so many blobs.
        let far = std::time::Instant::now() + Duration::from_secs(60);
        while blobs(&path) < 7 * (round + 1) as usize {
            assert!(std::time::Instant::now() < far, "the worker does nothing");
            std::thread::yield_now();
        }
        drop(victim);
        let next = open(&path);
        assert_eq!(next.reaped().len(), 1, "the victim and nobody else");
        assert_eq!(next.reaped()[0].cgroups, ["left-behind"]);
        assert!(living.run_dir().exists());
        for file in files(&path.join("blobs/sha256")).iter().filter(|f| f.components().count() == 2) {
            let digest = Digest::from_hex(file.file_name().unwrap().to_str().unwrap()).unwrap();
            next.read_blob(&digest, u64::MAX).unwrap();
        }
        for entry in std::fs::read_dir(path.join("snapshots")).unwrap() {
            let id: SnapshotId = entry.unwrap().file_name().to_str().unwrap().parse().unwrap();
            assert_eq!(contents(&next.view(&[id]).unwrap()).len(), 21);
        }
    }
    drop(living);
    assert_clean(&path);
}

fn blobs(path: &Path) -> usize {
    files(&path.join("blobs/sha256")).iter().filter(|f| f.components().count() == 2).count()
}
