//! Rolling updates on the rig of three hosts, reached over real OpenSSH.

use crate::{Ended, Test, World};
use keelway_tests::demo::{self, Sender};
use keelway_tests::load;
use keelway_tests::rig::Rig;
use std::fs;
use std::process::Output;
use std::time::Duration;

/// The tests of this file. One rig serves them in turn: they are one story.
pub const TESTS: &[Test] =
    &[("deploy::a_fleet_from_first_deploy_to_rollback", a_fleet_from_first_deploy_to_rollback)];

fn keelway(rig: &Rig, args: &[&str]) -> Output {
    rig.deployer.command("keelway").args(args).output().expect("the binary starts")
}

fn run(rig: &Rig) -> Output {
    keelway(rig, &demo::RUN)
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

#[track_caller]
fn expect(out: Output, code: i32) -> String {
    let text = said(&out);
    assert_eq!(out.status.code(), Some(code), "{text}");
    text
}

const NAMES: [&str; 7] = [
    "production",
    "--repo",
    "/root/web",
    "--ssh-config",
    "rig=/root/rig_ssh_config",
    "--registry-ca",
    "rig=/root/rig_ca.pem",
];

fn deploy(rig: &Rig, verb: &str) -> Output {
    keelway(rig, &[&["deploy", verb][..], &NAMES[..]].concat())
}

fn version_at(rig: &Rig, host: usize) -> String {
    rig.load
        .run(&["curl", "-sf", "--max-time", "5", &format!("http://198.18.0.{}/version", 11 + host)])
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn a_fleet_from_first_deploy_to_rollback(world: &World) -> Ended {
    let rig = demo::prepare(&world.keelway, &world.project.join("examples/web")).expect("the rig stands");
    first_deploy(&rig);
    an_update_under_load_loses_nothing(&rig);
    the_same_commit_again_changes_nothing(&rig);
    a_version_that_never_gets_healthy_is_rolled_back(&rig);
    rollback_goes_back(&rig);
    a_naive_stop_loses_requests(&rig);
    a_changed_host_key_is_refused(&rig);
    Ok(())
}

fn first_deploy(rig: &Rig) {
    expect(run(rig), 0);
    for host in 0..3 {
        assert_eq!(version_at(rig, host), "1", "host {host}");
    }
    // One host's balancer is answered by replicas of all three: the logs of all hosts grow.
    for n in 0..60 {
        rig.load
            .run(&["curl", "-sf", "--max-time", "5", &format!("http://198.18.0.11/work?id=spread-{n}")])
            .expect("the balancer answers");
    }
    let ids = demo::logged_ids_by_host(rig).expect("logs can be read");
    for (host, ids) in ids.iter().enumerate() {
        assert!(ids.iter().any(|i| i.starts_with("spread-")), "host {host} answered nothing");
    }
    let status = expect(deploy(rig, "status"), 0);
    for wanted in ["host1", "host2", "host3", "healthy", "sha256:"] {
        assert!(status.contains(wanted), "{wanted:?} is not in\n{status}");
    }
}

fn an_update_under_load_loses_nothing(rig: &Rig) {
    let sender = Sender::start(rig, "update", 200, 60_000).expect("the load starts");
    demo::new_version(rig, "2").expect("git commits");
    std::thread::sleep(Duration::from_secs(1));
    let out = run(rig);
    std::thread::sleep(Duration::from_secs(10));
    let book = sender.stop().expect("the load ends");
    expect(out, 0);
    let verdict = load::judge(&book, demo::logged_ids(rig).expect("logs can be read"));
    demo::check(&book, &verdict).expect("nothing lost, nothing twice");
}

/// Which replica of which digest runs where.
fn replicas(rig: &Rig) -> Vec<String> {
    let out = keelway(rig, &[&["--format", "json", "deploy", "status"][..], &NAMES[..]].concat());
    let text = expect(out, 0);
    let hosts = text.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
    let mut found = Vec::new();
    for host in hosts {
        for app in host["apps"].as_array().into_iter().flatten() {
            for r in app["replicas"].as_array().into_iter().flatten() {
                found.push(format!(
                    "{} {} {} restarts {}",
                    host["host"], r["replica"], r["digest"], r["restarts"]
                ));
            }
        }
    }
    assert!(!found.is_empty(), "{text}");
    found
}

fn the_same_commit_again_changes_nothing(rig: &Rig) {
    let before = replicas(rig);
    expect(run(rig), 0);
    assert_eq!(replicas(rig), before);
}

fn a_version_that_never_gets_healthy_is_rolled_back(rig: &Rig) {
    let app = rig.deployer.file("root/web/app.py");
    let good = fs::read_to_string(&app).expect("the example is there");
    fs::write(&app, good.replace("self.answer(200, \"ok\")", "self.answer(500, \"not ok\")"))
        .expect("files can be written");
    let yml = rig.deployer.file("root/web/keelway.yml");
    let slow = fs::read_to_string(&yml).expect("the example is there");
    fs::write(&yml, slow.replace("deadline: 30s", "deadline: 3s")).expect("files can be written");
    demo::new_version(rig, "3").expect("git commits");
    let sender = Sender::start(rig, "bad", 50, 60_000).expect("the load starts");
    let out = run(rig);
    let book = sender.stop().expect("the load ends");
    expect(out, 10);
    let lost: Vec<_> = book.iter().filter(|e| e.result.is_err()).collect();
    assert!(lost.is_empty(), "{lost:?}");
    assert!(book.iter().all(|e| e.result.as_deref() == Ok("2")), "the bad version answered nobody");
    fs::write(&app, good).expect("files can be written");
    fs::write(&yml, slow).expect("files can be written");
}

fn rollback_goes_back(rig: &Rig) {
    expect(deploy(rig, "rollback"), 0);
    for host in 0..3 {
        assert_eq!(version_at(rig, host), "1", "host {host}");
    }
}

/// The control: without draining, the same load loses some, so the zeros above mean something.
fn a_naive_stop_loses_requests(rig: &Rig) {
    let sender = Sender::start(rig, "naive", 200, 60_000).expect("the load starts");
    std::thread::sleep(Duration::from_secs(1));
    for _ in 0..5 {
        let _ = rig.hosts[0].run(&["pkill", "-KILL", "-f", "/srv/app/app.py"]);
        std::thread::sleep(Duration::from_secs(1));
    }
    let book = sender.stop().expect("the load ends");
    assert!(
        book.iter().any(|e| e.result.is_err()),
        "a replica killed under {} requests lost none",
        book.len()
    );
}

fn a_changed_host_key_is_refused(rig: &Rig) {
    let file = rig.deployer.file("root/rig_known_hosts");
    let known = fs::read_to_string(&file).expect("the file is there");
    // Two hosts' keys change places.
    fs::write(
        &file,
        known.replace("198.18.0.11", "X").replace("198.18.0.12", "198.18.0.11").replace('X', "198.18.0.12"),
    )
    .expect("files can be written");
    let text = expect(deploy(rig, "status"), 4);
    assert!(text.contains("host key") && text.contains("host1"), "{text}");
    fs::write(&file, known).expect("files can be written");
}
