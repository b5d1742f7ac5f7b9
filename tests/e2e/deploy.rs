//! Rolling updates on the rig of three hosts, reached over real OpenSSH: what works when nothing goes wrong, and what
//! happens to a bad version. Faults of machines and processes are in `deploy_faults.rs`.

use crate::fleet::{Fleet, Pipeline, expect, holds, rows};
use crate::{Ended, Test, World};
use keelway_tests::demo::{self, Sender};
use keelway_tests::load;
use keelway_tests::rig::{REGISTRY, look};

/// The tests of this file. One rig serves them in turn: they are one story.
pub const TESTS: &[Test] =
    &[("deploy::a_fleet_from_first_deploy_to_rollback", a_fleet_from_first_deploy_to_rollback)];

/// Rolling updates in a row: 3, or what `KEELWAY_UPDATES` says (tests/soak/run says 10 and more).
fn updates() -> u32 {
    std::env::var("KEELWAY_UPDATES").ok().and_then(|n| n.parse().ok()).unwrap_or(3)
}

fn a_fleet_from_first_deploy_to_rollback(world: &World) -> Ended {
    let mut fleet = Fleet::new(world);
    first_deploy(&fleet);
    an_update_under_load_loses_nothing(&fleet);
    the_digest_is_the_same_everywhere(&fleet);
    the_same_commit_again_changes_nothing(&fleet);
    updates_in_a_row_lose_nothing_and_leave_nothing(&mut fleet);
    a_version_that_never_gets_healthy_is_rolled_back(&mut fleet);
    a_version_that_exits_at_once_is_rolled_back(&mut fleet);
    rollback_goes_back(&mut fleet);
    a_naive_stop_loses_requests(&mut fleet);
    Ok(())
}

fn first_deploy(fleet: &Fleet) {
    expect(fleet.run(), 0);
    for host in 0..3 {
        assert_eq!(fleet.version_at(host), "1", "host {host}");
    }
    // One host's balancer is answered by replicas of all three: the logs of all hosts grow.
    let ask = "for n in $(seq 60); do curl -sf --max-time 5 \"http://198.18.0.11/work?id=spread-$n\" || exit 1; done";
    fleet.rig.load.run(&["sh", "-c", ask]).expect("the balancer answers");
    let ids = demo::logged_ids_by_host(&fleet.rig).expect("logs can be read");
    for (host, ids) in ids.iter().enumerate() {
        assert!(ids.iter().any(|i| i.starts_with("spread-")), "host {host} answered nothing");
    }
    holds(
        &expect(fleet.deploy(&[], "status"), 0),
        &["host1", "host2", "host3", "healthy", "r1-0", "3 of 3 backends usable"],
    );
    fleet.assert_settled();
}

fn an_update_under_load_loses_nothing(fleet: &Fleet) {
    let before = demo::answered(&fleet.rig).expect("logs can be read");
    let sender = Sender::start(&fleet.rig, "update", 200, 60_000).expect("the load starts");
    let capacity = look::Capacity::watch(&fleet.rig).expect("balancers answer");
    demo::new_version(&fleet.rig, "2").expect("git commits");
    fleet.flow(150);
    let out = fleet.run();
    let seen = capacity.end();
    fleet.flow(500);
    demo::until_answered(&fleet.rig, before + demo::FEWEST + 100).expect("the load flows");
    let book = sender.stop().expect("the load ends");
    expect(out, 0);
    let verdict = load::judge(&book, demo::logged_ids(&fleet.rig).expect("logs can be read"));
    demo::check(&book, &verdict).expect("nothing lost, nothing twice");
    for (host, seen) in seen.iter().enumerate() {
        let fewest = seen.fewest.as_ref().map_or(0, |f| f.0);
        assert!(
            fewest >= 3 && seen.looks > 20 && seen.silent == 0,
            "host {host} could use fewer than 3 replicas: {seen:?}"
        );
    }
    fleet.assert_settled();
}

/// The registry, another tool, the status, the hosts' records and what runs agree.
fn the_digest_is_the_same_everywhere(fleet: &Fleet) {
    let image = format!("docker://{REGISTRY}/shop/web:main");
    let inspected = fleet
        .rig
        .deployer
        .run(&["skopeo", "inspect", "--format", "{{.Digest}}", &image])
        .expect("skopeo reads it");
    let digest = inspected.trim();
    assert!(digest.starts_with("sha256:"), "{digest}");
    let url = format!("https://{REGISTRY}/v2/shop/web/manifests/main");
    let accept = "Accept: application/vnd.oci.image.manifest.v1+json";
    let head = fleet
        .rig
        .deployer
        .run(&["curl", "-sfI", "--cacert", "/root/rig_ca.pem", "-H", accept, &url])
        .expect("the registry answers");
    assert!(
        head.lines().any(|l| l.to_lowercase().starts_with("docker-content-digest:") && l.contains(digest)),
        "{head}"
    );
    let status = fleet.status();
    for (host, row) in rows(&status) {
        assert_eq!(row["digest"], digest, "{host}");
    }
    holds(&expect(fleet.keelway(&["runs", "show"]), 0), &[digest]);
    for host in &fleet.rig.hosts {
        // The app's process sees the files of that commit.
        let app = *look::pids(host, "^python3 /srv/app", None).first().expect("the app runs");
        let version = host
            .run(&["cat", &format!("/proc/{app}/root/srv/app/version.py")])
            .expect("its root can be read");
        assert_eq!(version, "VERSION = \"2\"\n", "{}", host.name());
    }
}

fn the_same_commit_again_changes_nothing(fleet: &Fleet) {
    let before = (fleet.replicas(), fleet.counts());
    holds(&expect(fleet.run(), 0), &["nothing to do"]);
    assert_eq!((fleet.replicas(), fleet.counts()), before);
}

fn updates_in_a_row_lose_nothing_and_leave_nothing(fleet: &mut Fleet) {
    let before = fleet.counts();
    let sender = fleet.load(&[0, 1, 2], 200);
    let capacity = look::Capacity::watch(&fleet.rig).expect("balancers answer");
    let last = 2 + updates();
    for version in 3..=last {
        fleet.commit(&version.to_string(), &Pipeline::default(), |app| app);
        expect(fleet.run(), 0);
        assert_eq!(fleet.version_at(0), version.to_string());
    }
    let seen = capacity.end();
    let book = fleet.assert_lossless(sender);
    for version in 2..=last {
        let version = version.to_string();
        assert!(
            book.iter().any(|e| e.result.as_ref() == Ok(&version)),
            "version {version} answered none of {}",
            book.len()
        );
    }
    assert!(seen.iter().all(|s| s.fewest.as_ref().is_some_and(|f| f.0 >= 3)), "{seen:?}");
    fleet.assert_settled();
    fleet.assert_nothing_left(&before);
    assert!(
        fleet.beginnings().values().all(|n| *n <= 1),
        "a replica was started twice: {:?}",
        fleet.beginnings()
    );
}

fn a_version_that_never_gets_healthy_is_rolled_back(fleet: &mut Fleet) {
    let (before, counts) = (fleet.replicas(), fleet.counts());
    let sender = fleet.load(&[0, 1, 2], 100);
    let good = fleet.version_at(0);
    fleet.commit("bad", &Pipeline { deadline: "3s", ..Pipeline::default() }, |app| {
        app.replace("self.answer(200, \"ok\")", "self.answer(500, \"not ok\")")
    });
    let text = expect(fleet.run(), 10);
    holds(&text, &["rolled back to revision", "was not healthy within 3.0s (GET /healthz:", "500"]);
    let book = fleet.assert_lossless(sender);
    assert!(book.iter().all(|e| e.result.as_ref() == Ok(&good)), "the bad version answered somebody");
    assert_eq!(fleet.replicas(), before);
    fleet.assert_settled();
    fleet.assert_nothing_left(&counts);
}

fn a_version_that_exits_at_once_is_rolled_back(fleet: &mut Fleet) {
    let (before, counts) = (fleet.replicas(), fleet.counts());
    let sender = fleet.load(&[0, 1, 2], 200);
    let main = "    print(\"these are my last words\", flush=True)\n    sys.exit(7)\n    signal.signal(";
    fleet.commit("worse", &Pipeline::default(), |app| app.replacen("    signal.signal(", main, 1));
    let text = expect(fleet.run(), 10);
    holds(&text, &["rolled back to revision", "did not stay up: exit code 7", "these are my last words"]);
    fleet.assert_lossless(sender);
    assert_eq!(fleet.replicas(), before);
    fleet.assert_settled();
    fleet.assert_nothing_left(&counts);
}

fn rollback_goes_back(fleet: &mut Fleet) {
    let counts = fleet.counts();
    let sender = fleet.load(&[0, 1, 2], 100);
    let wanted = (1 + updates()).to_string();
    expect(fleet.deploy(&[], "rollback"), 0);
    fleet.assert_lossless(sender);
    for host in 0..3 {
        assert_eq!(fleet.version_at(host), wanted, "host {host}");
    }
    fleet.assert_settled();
    fleet.assert_nothing_left(&counts);
}

/// The control: without draining, the same load loses some, so the zeros above mean something.
fn a_naive_stop_loses_requests(fleet: &mut Fleet) {
    let sender = fleet.load(&[0, 1, 2], 200);
    fleet.flow(150);
    for _ in 0..3 {
        let _ = fleet.rig.hosts[0].run(&["pkill", "-KILL", "-f", "/srv/app/app.py"]);
        fleet.flow(100);
    }
    let (_, verdict) = fleet.judge(sender);
    assert!(!verdict.lost.is_empty(), "a replica killed under load lost none: {}", verdict.line());
    assert!(verdict.duplicated.is_empty(), "and was asked twice: {:?}", verdict.duplicated);
}
