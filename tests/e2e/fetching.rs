//! `ADD` of files by address, from a server on the loopback: what is asked, what is kept, and what is out of reach.

use crate::build::{build, context, nodes, with_busybox};
use crate::{Ended, Test, World};
use keelway_tests::git::{GitHttp, GitRepo, GitSsh};
use keelway_tests::server::{End, Reply, Seen, Server};
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("fetching::a_file_is_fetched_once_and_asked_about", a_file_is_fetched_once_and_asked_about),
    ("fetching::what_does_not_come_whole_is_not_taken", what_does_not_come_whole_is_not_taken),
    ("fetching::the_machine_itself_is_out_of_reach", the_machine_itself_is_out_of_reach),
    ("fetching::a_repository_is_known_by_its_commit", a_repository_is_known_by_its_commit),
    ("fetching::a_repository_by_ssh_and_by_token", a_repository_by_ssh_and_by_token),
];

fn sha512(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().expect("a folder can be made");
    fs::write(dir.path().join("f"), bytes).expect("files can be written");
    let out = Command::new("sha512sum").arg(dir.path().join("f")).output().expect("sha512sum runs");
    String::from_utf8_lossy(&out.stdout).split(' ').next().unwrap_or_default().to_owned()
}

fn a_file_is_fetched_once_and_asked_about(world: &World) -> Ended {
    let env = with_busybox(world);
    let tar = {
        let dir = context(&env, "t", &[("in/tar", "from the tar\n")]);
        let made = Command::new("tar").args(["-cJf", "a.txz", "in"]).current_dir(&dir).status();
        assert!(made.expect("tar runs").success());
        fs::read(dir.join("a.txz")).expect("it is there")
    };
    let sum = sha512(&tar);
    let changed = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&changed);
    let server = Server::start(None, move |seen: &Seen| {
        let tag = if now.load(Ordering::Relaxed) { "\"2\"" } else { "\"1\"" };
        match seen.path.as_str() {
            "/dir/old" => Reply::status(302).with("location", "/dir/new%20name?x=y"),
            "/dir/new%20name?x=y" if seen.header("if-none-match") == Some(tag) => Reply::status(304),
            "/dir/new%20name?x=y" => Reply::bytes(format!("text {tag}\n")).with("etag", tag),
            "/a.txz" => Reply::bytes(tar.clone()),
            _ => Reply::status(404),
        }
    })
    .expect("a server can be started");
    let url = server.url();
    let dockerfile = format!(
        "FROM busybox\n\
         ADD {url}/dir/old {url}/dir/new%20name?x=y /got/\n\
         ADD --checksum=sha512:{sum} {url}/a.txz /tar/\n\
         ADD --checksum=sha512:{sum} --unpack=true --chown=7:8 {url}/a.txz /tar/\n\
         ADD --chmod=u=rwx,go= --link {url}/dir/old /got/it\n\
         RUN set -e; cmp /got/old '/got/new name'; grep -q text /got/it; [ $(stat -c %a:%u /got/old) = 600:0 ]; \\\n\
         [ $(stat -c %a /got/it) = 700 ]; [ $(stat -c %u:%g /tar/in/tar) = 7:8 ]; [ $(stat -c %a /tar/a.txz) = 600 ]\n"
    );
    let dir = context(&env, "c", &[("Dockerfile", &dockerfile)]);
    let flags = ["--network", "host", "--format", "json"];
    build(&env, &dir, &flags).expect(0);
    assert_eq!(server.count("GET", "/a.txz"), 1, "two that want the same bytes fetch them once");
    server.forget();
    // Nothing changed: what has a checksum is not asked for, of the rest only whether it changed.
    let again = build(&env, &dir, &flags).expect(0);
    assert_eq!(server.count("", "/a.txz"), 0);
    let about = server.seen().iter().filter(|s| s.path.contains("new%20name")).cloned().collect::<Vec<_>>();
    assert!(about.iter().all(|s| s.header("if-none-match") == Some("\"1\"")), "{about:?}");
    let misses = nodes(&again, "cache-miss");
    assert_eq!(misses, [""; 0], "{}", again.stdout);
    changed.store(true, Ordering::Relaxed);
    let later = build(&env, &dir, &flags).expect(0);
    let misses = nodes(&later, "cache-miss");
    assert!(misses.iter().any(|n| n.contains("ADD") && n.contains("/got/")), "{misses:?}");
    Ok(())
}

fn what_does_not_come_whole_is_not_taken(world: &World) -> Ended {
    let env = with_busybox(world);
    let server = Server::start(None, |seen: &Seen| match seen.path.as_str() {
        "/cut" => Reply::bytes("half").with("content-length", "8").ending(End::Cut),
        "/round" => Reply::status(302).with("location", "/round"),
        "/other" => Reply::bytes("other"),
        _ => Reply::status(404),
    })
    .expect("a server can be started");
    for (path, flag, code, said) in [
        ("/cut", "", 4, "ADD of cut: "),
        ("/round", "", 4, "more than 5 times"),
        ("/none", "", 4, "ADD of none: the server answers 404"),
        ("/other", "--checksum=sha512:", 1, "--checksum says sha512:00"),
    ] {
        let flag = if flag.is_empty() { String::new() } else { format!("{flag}{}", "0".repeat(128)) };
        let text = format!("FROM busybox\nADD {flag} {}{path} /x\nRUN true\n", server.url());
        let dir = context(&env, "c", &[("Dockerfile", &text)]);
        let output = build(&env, &dir, &["--network", "host"]).expect(code);
        assert!(output.stderr.contains(said), "{path}: {}", output.stderr);
    }
    Ok(())
}

fn the_machine_itself_is_out_of_reach(world: &World) -> Ended {
    let env = with_busybox(world);
    let server = Server::start(None, |_: &Seen| Reply::bytes("secret")).expect("a server can be started");
    let port = server.host().rsplit_once(':').map(|(_, p)| p.to_owned()).unwrap_or_default();
    for host in ["127.0.0.1", "localhost", "2130706433", "[::1]", "0.0.0.0", "169.254.169.254"] {
        let text = format!("FROM busybox\nADD http://{host}:{port}/x /x\n");
        let dir = context(&env, "c", &[("Dockerfile", &text)]);
        let output = build(&env, &dir, &[]).expect(4);
        assert!(
            output.stderr.contains("which a private network does not reach"),
            "{host}: {}",
            output.stderr
        );
        let output = build(&env, &dir, &["--network", "none"]).expect(2);
        assert!(output.stderr.contains("this build has no network"), "{}", output.stderr);
    }
    for (address, said) in [
        (format!("https://localhost:{port}/x.git"), "which a private network does not reach"),
        ("https://169.254.169.254/x.git".to_owned(), "which a private network does not reach"),
        (format!("http://localhost:{port}/x.git"), "plain http"),
        ("git@localhost:x".to_owned(), "this build has no ssh agent"),
        ("file:///etc".to_owned(), "not supported"),
    ] {
        let dir = context(&env, "c", &[("Dockerfile", &format!("FROM busybox\nADD {address} /x\n"))]);
        let output = build(&env, &dir, &[]);
        assert!(output.code() != 0 && output.stderr.contains(said), "{address}: {}", output.stderr);
    }
    assert_eq!(server.seen().len(), 0, "nobody was asked");
    Ok(())
}

fn a_repository_is_known_by_its_commit(world: &World) -> Ended {
    let env = with_busybox(world);
    let projects = env.work().join("projects");
    let repo = GitRepo::init(&projects.join("app.git")).expect("a repository can be made");
    repo.write("docs/a b", "1\n").expect("files can be written");
    repo.write("run", "#!/bin/sh\n").expect("files can be written");
    repo.git(&["add", "-A"])
        .and_then(|_| repo.git(&["update-index", "--chmod=+x", "run"]))
        .expect("git works");
    repo.git(&["commit", "-q", "-m", "one"]).expect("git works");
    let first = repo.head().expect("there is one");
    repo.git(&["tag", "v1"]).expect("git works");
    repo.commit_file("more", "2\n").expect("git works");
    let http = GitHttp::start(&projects, None, None).expect("a server can be started");
    let url = http.url("app.git");
    let text = format!(
        "FROM busybox\n\
         ADD --exclude=run --chown=7:8 {url} /head\n\
         ADD {url}#v1:docs /docs/\n\
         ADD --checksum={} --link {url}?tag=v1 /v1\n\
         ADD --checksum={first} {url} /pinned\n\
         ADD --keep-git-dir=true {url}#main /main/\n\
         RUN set -e; cat /head/more /docs/a*; test ! -e /head/run; test ! -e /head/.git; test -x /v1/run; test ! -e /v1/more; \\\n\
         [ $(stat -c %u:%g:%a /head/more) = 7:8:644 ]; cmp /pinned/run /v1/run; test ! -e /pinned/more; \\\n\
         grep -q 'refs/heads/main' /main/.git/HEAD; test -s /main/.git/shallow; ls /main/.git/objects/pack/*.idx\n",
        &first[..7]
    );
    let dir = context(&env, "c", &[("Dockerfile", &text)]);
    let flags = ["--network", "host", "--format", "json"];
    build(&env, &dir, &flags).expect(0);
    http.server().forget();
    let again = build(&env, &dir, &flags).expect(0);
    assert_eq!(nodes(&again, "cache-miss"), [""; 0], "{}", again.stdout);
    assert_eq!(http.server().count("POST", ""), 0, "nothing was sent again");
    // A commit that is named whole is asked for by nobody.
    let pinned = format!("FROM busybox\nADD --checksum={first} {url} /pinned\n");
    let alone = context(&env, "alone", &[("Dockerfile", &pinned)]);
    http.server().forget();
    build(&env, &alone, &flags).expect(0);
    let asked = http.server().seen().len();
    build(&env, &alone, &flags).expect(0);
    assert_eq!(http.server().seen().len(), asked);
    // What stands on a branch is made again when the branch moves, and the rest is not.
    repo.commit_file("more", "3\n").expect("git works");
    let later = build(&env, &dir, &flags).expect(0);
    let misses = nodes(&later, "cache-miss");
    let fetched: Vec<_> = misses.iter().filter(|n| n.ends_with("(fetch)")).collect();
    assert!(
        fetched.len() == 2 && fetched.iter().all(|n| n.contains("/head") || n.contains("/main/")),
        "{misses:?}"
    );
    assert!(misses.iter().all(|n| !n.contains("--link")), "{misses:?}");
    for (flag, address, code, said) in [
        ("--checksum=abcdef0", url.clone(), 1, "the checksum says abcdef0"),
        ("", format!("{url}#gone"), 4, "has no branch, tag or commit"),
        ("", format!("{url}#v1:none"), 1, "none does not exist"),
        ("", http.url("none.git"), 4, "there is no repository"),
    ] {
        let text = format!("FROM busybox\nADD {flag} {address} /x\n");
        let output = build(&env, &context(&env, "c", &[("Dockerfile", &text)]), &["--network", "host"]);
        let output = output.expect(code);
        assert!(output.stderr.contains(said), "{address}: {}", output.stderr);
    }
    Ok(())
}

fn a_repository_by_ssh_and_by_token(world: &World) -> Ended {
    let env = with_busybox(world).with_var("KEELWAY_GIT_TOKEN", "of-the-person");
    let projects = env.work().join("projects");
    let repo = GitRepo::init(&projects.join("app.git")).expect("a repository can be made");
    repo.commit_file("f", "1\n").expect("git works");
    let ssh = GitSsh::start(&env.work().join("sshd")).expect("sshd starts");
    let text = format!("FROM busybox\nADD {} /x\nRUN cat /x/f\n", ssh.url(repo.path()));
    let dir = context(&env, "c", &[("Dockerfile", &text)]);
    let config = ssh.config();
    let config = config.to_str().expect("UTF-8");
    build(&env, &dir, &["--network", "host", "--git-ssh-config", config]).expect(0);
    let refused = build(&env, &dir, &["--network", "host"]).expect(1);
    assert!(refused.stderr.contains("--ssh default"), "{}", refused.stderr);
    // A private network leads to no machine by an alias.
    let out = build(&env, &dir, &["--git-ssh-config", config]).expect(4);
    assert!(out.stderr.contains(GitSsh::HOST), "{}", out.stderr);

    let http =
        GitHttp::start(&projects, None, Some(("x-access-token", "s3cret"))).expect("a server can be started");
    let text = format!("FROM busybox\nADD {} /x\nRUN cat /x/f\n", http.url("app.git"));
    let dir = context(&env, "c", &[("Dockerfile", &text)]);
    let without = build(&env, &dir, &["--network", "host"]).expect(4);
    assert!(without.stderr.contains("asks for authentication"), "{}", without.stderr);
    // The person's own token is for what the person names.
    assert!(http.server().seen().iter().all(|s| s.header("authorization").is_none()));
    let token = env.with_var("GIT_AUTH_TOKEN", "s3cret");
    build(&token, &dir, &["--network", "host", "--secret", "id=GIT_AUTH_TOKEN"]).expect(0);
    Ok(())
}
