//! https, loopback http, ssh and paths: private or not, trusted or not, and what people read when it fails.

use super::{World, fetch, settings, url};
use crate::{FetchLimits, GitCredentials, GitSettings, Login, SourceError, SshSettings};
use keelway_http::{Client, Pem, Settings};
use keelway_model::{Redacted, Tree, TreePath};
use keelway_tests::git::{GitHttp, GitSsh};
use keelway_tests::server::{End, Reply, Server};
use keelway_tests::tls::Authority;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

fn trusting(authority: &Authority) -> GitSettings {
    let pem = Pem { origin: "test".into(), text: std::fs::read(authority.ca_path()).unwrap() };
    let settings = Settings { system_roots: None, extra_roots: vec![pem], ..Settings::default() };
    GitSettings::new(Client::new(settings).unwrap())
}

fn login(host: &str, password: &str) -> GitCredentials {
    let mut credentials = GitCredentials::default();
    credentials.set(host, Login { user: "me".into(), password: Redacted::new(password.into()) });
    credentials
}

fn by_ssh(config: std::path::PathBuf) -> GitSettings {
    GitSettings { ssh: SshSettings { config: Some(config), ..SshSettings::default() }, ..settings() }
}

/// Fetches twice (the second after a new commit, as a thin pack) and reads a file at the exact commit.
fn works(world: &World, address: &str, settings: &GitSettings) {
    let mirror = world.mirror(&url(address));
    let first = fetch(&mirror, settings).unwrap();
    assert!(first.bytes > 0 && first.updated >= 1, "{first:?}");
    assert_eq!(mirror.resolve("main").unwrap().commit.as_str(), world.repo.head().unwrap());
    assert_eq!(fetch(&mirror, settings).unwrap().bytes, 0, "nothing new, nothing sent");
    let text: String = (0..2000).map(|i| format!("line {i}\n")).collect();
    world.repo.commit_file("big", &text).unwrap();
    fetch(&mirror, settings).unwrap();
    let commit = world.repo.commit_file("big", &format!("{text}one more\n")).unwrap();
    let small = fetch(&mirror, settings).unwrap();
    // Over the wire a delta is enough; between two folders of one machine nobody looks for one.
    let most = if address.contains("://127") || address.starts_with("ssh") { 3000 } else { 10_000 };
    assert!((1..most).contains(&small.bytes), "{} bytes", small.bytes);
    let pinned = mirror.resolve("HEAD").unwrap();
    assert_eq!((pinned.commit.as_str(), pinned.branch.as_deref()), (commit.as_str(), Some("main")));
    let tree = mirror.tree(&pinned.commit).unwrap();
    let mut got = String::new();
    tree.open(&TreePath::from("big")).unwrap().read_to_string(&mut got).unwrap();
    assert!(got.ends_with("one more\n"));
}

#[test]
fn a_path_and_a_file_address() {
    let world = World::new();
    works(&world, &world.repo.path().to_string_lossy(), &settings());
    let world = World::new();
    works(&world, &format!("file://{}", world.repo.path().display()), &settings());
}

#[test]
fn loopback_http() {
    let world = World::new();
    let server = GitHttp::start(&world.projects(), None, None).unwrap();
    works(&world, &server.url("shop/.git"), &settings());
}

#[test]
fn https_with_an_authority_and_a_password() {
    let world = World::new();
    let authority = Authority::new(world.dir.path()).unwrap();
    let cert = authority.issue(&["127.0.0.1", "localhost"]).unwrap();
    let server = GitHttp::start(&world.projects(), Some(&cert), Some(("me", "s3cret"))).unwrap();
    let host = server.server().host();
    let settings = GitSettings { credentials: login(&host, "s3cret"), ..trusting(&authority) };
    works(&world, &server.url("shop/.git"), &settings);
    // The password may stand in the address as well; the mirror keeps nothing of it.
    let with_password = server.url("shop/.git").replace("https://", "https://me:s3cret@");
    let mirror = world.mirror(&url(&with_password));
    fetch(&mirror, &trusting(&authority)).unwrap();
    for file in walk(&world.cache()) {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(6).any(|w| w == b"s3cret"), "s06: {file:?} holds the password");
    }
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { out.extend(walk(&path)) } else { out.push(path) }
    }
    out
}

#[test]
fn a_password_goes_to_no_other_host() {
    let world = World::new();
    let elsewhere = GitHttp::start(&world.projects(), None, None).unwrap();
    let target = elsewhere.url("shop/.git").replace("127.0.0.1", "localhost");
    let redirecting = Server::start(None, move |seen| {
        let rest = seen.path.trim_start_matches("/old");
        Reply::status(302).with("Location", format!("{target}{rest}"))
    })
    .unwrap();
    let settings = GitSettings { credentials: login(&redirecting.host(), "s3cret"), ..settings() };
    let mirror = world.mirror(&url(&format!("{}/old", redirecting.url())));
    fetch(&mirror, &settings).unwrap();
    assert!(redirecting.seen()[0].header("authorization").is_some());
    assert!(elsewhere.server().count("POST", "git-upload-pack") > 0, "the pack came from there");
    for seen in elsewhere.server().seen() {
        assert_eq!(seen.header("authorization"), None, "{} {}", seen.method, seen.path);
    }
}

#[test]
fn ssh_with_a_key() {
    let world = World::new();
    let server = GitSsh::start(&world.dir.path().join("ssh")).unwrap();
    works(&world, &server.url(world.repo.path()), &by_ssh(server.config()));
}

#[test]
fn messages_of_what_fails_outside() {
    let world = World::new();
    let authority = Authority::new(world.dir.path()).unwrap();
    let other_dir = world.dir.path().join("other");
    std::fs::create_dir(&other_dir).unwrap();
    let other = Authority::new(&other_dir).unwrap();
    let cert = authority.issue(&["127.0.0.1"]).unwrap();
    let private = GitHttp::start(&world.projects(), Some(&cert), Some(("me", "s3cret"))).unwrap();
    let open = GitHttp::start(&world.projects(), None, None).unwrap();
    let html = Server::start(None, |_| Reply::bytes("<html>").with("Content-Type", "text/html")).unwrap();
    let failing = Server::start(None, |_| Reply::status(503)).unwrap();
    let cut = Server::start(None, |_| {
        Reply::bytes("001e# service=git-upload-pack\n0000")
            .with("Content-Type", "application/x-git-upload-pack-advertisement")
    })
    .unwrap();
    let ssh = GitSsh::start(&world.dir.path().join("ssh")).unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let wrong = GitSettings { credentials: login(&private.server().host(), "wrong"), ..trusting(&authority) };
    let here = ssh.url(world.repo.path());
    let mut out = String::new();
    for (title, address, settings) in [
        ("wrong authority", private.url("shop/.git"), trusting(&other)),
        ("private, no password", private.url("shop/.git"), trusting(&authority)),
        ("private, wrong password", private.url("shop/.git"), wrong),
        ("no repository, http", open.url("nothing/.git"), settings()),
        ("nobody listens", format!("http://{nobody}/shop"), settings()),
        ("a web page", format!("{}/shop", html.url()), settings()),
        ("a server that fails", format!("{}/shop", failing.url()), settings()),
        ("an answer that ends early", format!("{}/shop", cut.url()), settings()),
        ("no repository, path", world.dir.path().join("nothing").display().to_string(), settings()),
        ("no repository, ssh", ssh.url(&world.dir.path().join("nothing")), by_ssh(ssh.config())),
        ("unknown host key", here.clone(), by_ssh(ssh.config_of_unknown_host())),
        ("changed host key", here.clone(), by_ssh(ssh.config_of_changed_host())),
        ("wrong key", here, by_ssh(ssh.config_with_wrong_key())),
    ] {
        let error = fetch(&world.mirror(&url(&address)), &settings).expect_err(title);
        out += &format!("{title}:\n  {}\n", world.shown(&error));
    }
    assert!(!out.contains("s3cret") && !out.contains("me:"));
    insta::assert_snapshot!(out);
}

#[test]
fn s10_bounds_hold() {
    let world = World::new();
    for i in 0..20 {
        world.repo.git(&["branch", &format!("b{i}")]).unwrap();
    }
    let server = GitHttp::start(&world.projects(), None, None).unwrap();
    for address in [server.url("shop/.git"), world.repo.path().to_string_lossy().into_owned()] {
        for (limits, what) in [
            (FetchLimits { references: 5, ..FetchLimits::default() }, "the number of references"),
            (FetchLimits { pack_objects: 2, ..FetchLimits::default() }, "objects to fetch"),
            (FetchLimits { pack_bytes: 100, ..FetchLimits::default() }, "bytes to fetch"),
        ] {
            let error =
                fetch(&world.mirror(&url(&address)), &GitSettings { limits, ..settings() }).unwrap_err();
            assert!(matches!(&error, SourceError::TooBig { what: w, .. } if *w == what), "{error}");
        }
        fetch(&world.mirror(&url(&address)), &settings())
            .expect("a fetch that failed leaves the mirror as it was");
    }
}

#[test]
fn a_server_that_stalls_is_left_and_cancelling_works() {
    let world = World::new();
    let stalling = Server::start(None, |_| {
        Reply::bytes("001e# service")
            .with("Content-Type", "application/x-git-upload-pack-advertisement")
            .ending(End::Stall)
    })
    .unwrap();
    let limits = FetchLimits { deadline: Duration::from_millis(300), ..FetchLimits::default() };
    let begun = Instant::now();
    let mirror = world.mirror(&url(&format!("{}/shop", stalling.url())));
    let error = fetch(&mirror, &GitSettings { limits, ..settings() }).unwrap_err();
    assert!(matches!(error, SourceError::Deadline { .. }), "{error}");
    // ssh: a program that never says anything.
    let script = world.dir.path().join("ssh-that-hangs");
    std::fs::write(&script, "#!/bin/sh\nexec sleep 60\n").unwrap();
    std::process::Command::new("chmod").arg("755").arg(&script).status().unwrap();
    let ssh = SshSettings { program: script, ..SshSettings::default() };
    let mirror = world.mirror(&url("ssh://host/shop"));
    let error = fetch(&mirror, &GitSettings { limits, ssh: ssh.clone(), ..settings() }).unwrap_err();
    assert!(matches!(error, SourceError::Deadline { .. }), "{error}");
    let stopped = GitSettings { ssh, ..settings() };
    stopped.cancel.store(true, Ordering::Relaxed);
    let error = fetch(&mirror, &stopped).unwrap_err();
    assert!(matches!(error, SourceError::Cancelled { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn credentials_come_from_netrc_text() {
    let mut c = GitCredentials::default();
    c.add_netrc("machine a.example.com login x password y # comment\ndefault login z password w\nmachine B login u\n password v\n");
    let of = |host: &str| c.for_host(host).map(|l| (l.user.clone(), l.password.reveal().clone()));
    assert_eq!(of("A.example.com"), Some(("x".into(), "y".into())));
    assert_eq!(of("b"), Some(("u".into(), "v".into())));
    assert_eq!(of("elsewhere"), None);
    assert!(!format!("{c:?}").contains("\"y\""));
}

#[test]
fn foreign_bytes_never_panic() {
    use proptest::prelude::*;
    proptest!(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) }, |(data in proptest::collection::vec(any::<u8>(), 0..200))| {
        crate::fuzz::fuzz_url(&data);
        crate::fuzz::fuzz_protocol(&data);
    });
    proptest!(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) }, |(text in "[0-9a-f]{0,4}(0000|ERR |NAK\n|\u{1}|refs/heads/|[0-9a-f]{40} | |\0|\n){0,12}")| {
        crate::fuzz::fuzz_protocol(text.as_bytes());
    });
    proptest!(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) }, |(text in "(https|ssh|file|git|ext)?(://|::|:)?([a-z@%:/.\\-0-9\\[\\]]|%[0-9a-f]{2}){0,40}")| {
        crate::fuzz::fuzz_url(text.as_bytes());
    });
}
