//! Making room in the store: the plan, what stays, the limit that is kept unasked.

use crate::build::{build, context, with_busybox};
use crate::{Ended, Test, World};
use keelway_tests::env::{Env, Leaks, Output};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("store::prune_shows_its_plan_and_keeps_what_is_needed", prune_shows_its_plan_and_keeps_what_is_needed),
    ("store::a_build_above_the_limit_makes_room_by_itself", a_build_above_the_limit_makes_room_by_itself),
    ("store::three_build_and_prune_while_one_is_killed", three_build_and_prune_while_one_is_killed),
    ("store::what_is_damaged_is_found_and_mended", what_is_damaged_is_found_and_mended),
];

fn prune(env: &Env, flags: &[&str]) -> Output {
    env.keelway(&[&["image", "prune"], flags].concat())
}

/// Bytes that the store takes, by its own count.
fn taken(env: &Env) -> u64 {
    let out = env.keelway(&["store", "df", "--format", "json"]).expect(0);
    let last = out.stdout.lines().last().expect("a line");
    let total: serde_json::Value = serde_json::from_str(last).expect("JSON");
    total["total"].as_u64().expect("a number")
}

fn hits(out: &Output) -> usize {
    out.stdout.lines().filter(|l| l.contains("\"cache-hit\"")).count()
}

fn prune_shows_its_plan_and_keeps_what_is_needed(world: &World) -> Ended {
    let env = with_busybox(world);
    let fill = |n: u32| format!("RUN head -c 3000000 /dev/zero | tr '\\0' {n} > /f{n}\n");
    let dockerfile = format!("FROM busybox\n{}{}", fill(1), fill(2));
    let dir = context(&env, "c", &[("Dockerfile", &dockerfile)]);
    build(&env, &dir, &["-t", "kept:1"]).expect(0);
    let cached = "RUN --mount=type=cache,target=/c head -c 3000000 /dev/zero > /c/f; head -c 3000000 /dev/zero | tr '\\0' 3 > /f3\n";
    let other = context(&env, "o", &[("Dockerfile", &format!("FROM busybox\n{cached}"))]);
    build(&env, &other, &[]).expect(0);
    env.keelway(&["container", "run", "-d", "--name", "web", "--network", "none", "kept:1", "sleep", "1000"])
        .expect(0);
    let before = taken(&env);
    assert!(before > 12_000_000, "{before}");

    // Without a word nothing is removed; a plan changes nothing.
    let asked = prune(&env, &["--keep-storage", "0"]).expect(2);
    assert!(asked.stderr.contains("--yes"), "{}", asked.stderr);
    let shown = prune(&env, &["--keep-storage", "0", "--dry-run"]).expect(0);
    for words in ["LAST USED", "cache mounts of RUN", "in use by what runs now", "an image that has a name"] {
        assert!(shown.stdout.contains(words), "{words}: {}", shown.stdout);
    }
    assert_eq!(taken(&env), before);

    // What runs goes on; what has a name can be used.
    prune(&env, &["--keep-storage", "0", "--yes"]).expect(0);
    let after = taken(&env);
    assert!(after < before - 6_000_000, "{after} of {before}");
    env.keelway(&["store", "check", "--read-data"]).expect(0);
    env.keelway(&["container", "exec", "web", "sh", "-c", "test $(head -c 1 /f2) = 2"]).expect(0);
    let again = build(&env, &other, &["--format", "json"]).expect(0);
    assert_eq!(hits(&again), 0, "{}", again.stdout);
    assert_eq!(hits(&build(&env, &other, &["--format", "json"]).expect(0)), 1);

    // All that no container needs, also by name.
    prune(&env, &["--all", "--yes"]).expect(0);
    let names = env.keelway(&["image", "ls"]).expect(0).stdout;
    assert!(!names.contains("busybox"), "{names}");
    env.keelway(&["container", "stop", "-t", "0", "web"]).expect(0);
    prune(&env, &["-a", "-f"]).expect(0);
    // It does not run, but it can be started: its image is there.
    let record = env.keelway(&["container", "inspect", "web"]).expect(0).stdout;
    let df = env.keelway(&["store", "df"]).expect(0).stdout;
    assert!(df.contains("needed by container web"), "{df}\n{record}");
    env.keelway(&["container", "rm", "web"]).expect(0);
    prune(&env, &["-a", "-f"]).expect(0);
    assert!(taken(&env) < 1_000_000, "{}", taken(&env));
    assert_eq!(env.keelway(&["image", "ls"]).expect(0).stdout.lines().count(), 1);
    Ok(())
}

fn a_build_above_the_limit_makes_room_by_itself(world: &World) -> Ended {
    let env = with_busybox(world).with_var("KEELWAY_KEEP_STORAGE", "14M").with_var("KEELWAY_KEEP_FREE", "0");
    for n in 0..6 {
        let fill = format!("RUN head -c 4000000 /dev/zero | tr '\\0' {n} > /f\n");
        let dir = context(&env, &format!("c{n}"), &[("Dockerfile", &format!("FROM busybox\n{fill}"))]);
        build(&env, &dir, &[]).expect(0);
        assert!(taken(&env) <= 14 << 20, "{} after build {n}", taken(&env));
        let again = build(&env, &dir, &["--format", "json"]).expect(0);
        assert_eq!(hits(&again), 1, "the newest stays: {}", again.stdout);
    }
    assert!(env.keelway(&["image", "ls"]).expect(0).stdout.contains("busybox"));
    Ok(())
}

fn three_build_and_prune_while_one_is_killed(world: &World) -> Ended {
    const ROUNDS: usize = 6;
    let env = with_busybox(world);
    let leaks = Leaks::record();
    let kept = context(&env, "k", &[("Dockerfile", "FROM busybox\nRUN echo kept > /kept\n")]);
    build(&env, &kept, &["-t", "kept:1"]).expect(0);
    env.keelway(&["container", "run", "-d", "--name", "web", "--network", "none", "kept:1", "sleep", "1000"])
        .expect(0);
    let dirs: Vec<_> = (0..ROUNDS)
        .map(|n| {
            let text = format!(
                "FROM busybox AS a\nRUN head -c 200000 /dev/zero > /f; sleep 0.05\nRUN echo {n} > /n; sleep 0.05\n\
                 FROM kept:1\nCOPY --from=a /f /n /\nRUN cat /kept /n > /both\n"
            );
            context(&env, &format!("d{n}"), &[("Dockerfile", &text)])
        })
        .collect();
    let wanted: Vec<String> = dirs.iter().map(|dir| build(&env, dir, &[]).expect(0).stdout).collect();
    // Two build and make room, and so does a third, which is killed again and again.
    let ended = AtomicBool::new(false);
    std::thread::scope(|s| {
        let builders: Vec<_> = (0..2)
            .map(|_| {
                s.spawn(|| {
                    for (dir, wanted) in dirs.iter().zip(&wanted) {
                        assert_eq!(&build(&env, dir, &[]).expect(0).stdout, wanted);
                        prune(&env, &["--keep-storage", "0", "--yes"]).expect(0);
                    }
                })
            })
            .collect();
        s.spawn(|| {
            let mut random = std::process::id() | 1;
            for round in 0.. {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let dir = dirs[round % ROUNDS].to_str().expect("UTF-8");
                let prune = ["image", "prune", "--keep-storage", "0", "--yes"];
                let args: &[&str] = if round % 3 == 0 { &["image", "build", dir] } else { &prune };
                let mut victim = env.command(&world.keelway);
                victim.args(args).stdout(Stdio::null()).stderr(Stdio::null());
                let mut victim = victim.spawn().expect("the binary starts");
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let end = Instant::now() + Duration::from_millis(u64::from(random >> 24));
                while Instant::now() < end && victim.try_wait().expect("it can be waited for").is_none() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                let _ = victim.kill();
                let _ = victim.wait();
            }
        });
        let done: Vec<_> = builders.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        ended.store(true, Ordering::Relaxed);
        assert!(done.iter().all(Result::is_ok), "a builder failed");
    });
    env.keelway(&["container", "exec", "web", "grep", "kept", "/kept"]).expect(0);
    env.keelway(&["store", "check", "--read-data"]).expect(0);
    env.keelway(&["container", "stop", "-t", "0", "web"]).expect(0);
    env.keelway(&["container", "rm", "web"]).expect(0);
    leaks.assert_none();
    Ok(())
}

fn what_is_damaged_is_found_and_mended(world: &World) -> Ended {
    let env = with_busybox(world);
    let dir = context(&env, "c", &[("Dockerfile", "FROM busybox\nRUN echo 1 > /f\n")]);
    let image = build(&env, &dir, &["-t", "mine:1"]).expect(0).stdout;
    env.keelway(&["store", "check"]).expect(0);
    let hex = image.trim().strip_prefix("sha256:").expect("a digest");
    let blob = env.store().join("store/blobs/sha256").join(&hex[..2]).join(hex);
    let mut bytes = std::fs::read(&blob).expect("the manifest is there");
    let last = bytes.len() - 1;
    bytes[last] = b' ';
    std::fs::write(&blob, bytes).expect("it can be written");
    let found = env.keelway(&["store", "check", "--read-data"]).expect(4);
    for words in [hex, "its bytes are sha256:", "mine:1", "--repair"] {
        assert!(found.stdout.contains(words), "{words}: {}", found.stdout);
    }
    let mended = env.keelway(&["store", "check", "--read-data", "--repair"]).expect(0);
    assert!(mended.stdout.contains("repaired"), "{}", mended.stdout);
    env.keelway(&["store", "check", "--read-data"]).expect(0);
    assert_eq!(build(&env, &dir, &["-t", "mine:1"]).expect(0).stdout, image);
    env.keelway(&["store", "check", "--read-data"]).expect(0);
    Ok(())
}
