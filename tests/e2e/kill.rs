//! `kill -9` of a build at random moments: the next start finds nothing left and builds right.

use crate::build::{build, context, with_busybox};
use crate::{Ended, Test, World};
use keelway_tests::env::Leaks;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("kill::at_random_moments_of_a_build", at_random_moments_of_a_build),
    ("kill::the_next_start_does_not_touch_a_living_build", the_next_start_does_not_touch_a_living_build),
];

/// How many kills: 20, or what `KEELWAY_KILLS` says (tests/soak says 100).
fn kills() -> u32 {
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
