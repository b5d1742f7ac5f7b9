//! From an address to a commit's files: every transport, private repositories, references, refusals.

use crate::build::with_busybox;
use crate::{Ended, Test, World};
use keelway_tests::env::{Env, Output};
use keelway_tests::git::{GitHttp, GitRepo, GitSsh};
use keelway_tests::tls::Authority;
use std::fs;
use std::path::Path;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("source::https_by_an_authority_of_ones_own", https_by_an_authority_of_ones_own),
    ("source::a_private_repository_over_https", a_private_repository_over_https),
    ("source::paths_file_addresses_and_loopback_http", paths_file_addresses_and_loopback_http),
    ("source::ssh_by_a_configuration_file", ssh_by_a_configuration_file),
    ("source::branches_tags_and_commits", branches_tags_and_commits),
    ("source::addresses_that_are_not_used", addresses_that_are_not_used),
    ("source::submodules_and_lfs_are_refused_by_name", submodules_and_lfs_are_refused_by_name),
    ("source::attributes_that_are_not_applied_are_said", attributes_that_are_not_applied_are_said),
];

const SECRET: &str = "kit-secret-4711";

/// A repository at `projects/web` whose image is built from a folder of it and says `text` on the way.
fn repository(env: &Env, text: &str) -> GitRepo {
    let repo = GitRepo::init(&env.path().join("projects/web")).expect("git makes a repository");
    for (path, content) in [
        ("keelway.yml", "version: 1\nstages:\n  image:\n    build: {context: services/app}\n"),
        ("services/app/Dockerfile", "FROM busybox\nCOPY greeting /greeting\nRUN cat /greeting\n"),
        ("services/app/greeting", text),
    ] {
        repo.write(path, content).expect("files can be written");
    }
    repo.commit("first").expect("git commits");
    repo
}

fn run(env: &Env, url: &str, more: &[&str]) -> Output {
    env.keelway(&[&["run", "--repo", url][..], more].concat())
}

fn said(out: Output) -> String {
    out.stdout + &out.stderr
}

#[track_caller]
fn has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in\n{text}");
    }
}

/// Files below a folder that hold these bytes.
fn holding(dir: &Path, bytes: &[u8], out: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => holding(&path, bytes, out),
            Ok(kind) if kind.is_file() => {
                let content = fs::read(&path).unwrap_or_default();
                if content.windows(bytes.len()).any(|w| w == bytes) {
                    out.push(path.display().to_string());
                }
            }
            _ => {}
        }
    }
}

#[track_caller]
fn kept_nowhere(env: &Env) {
    let mut found = Vec::new();
    for dir in [env.store(), env.tmp(), env.work()] {
        holding(&dir, SECRET.as_bytes(), &mut found);
    }
    assert!(found.is_empty(), "the password is in {found:?}");
}

fn https_by_an_authority_of_ones_own(world: &World) -> Ended {
    let env = with_busybox(world);
    repository(&env, "hello by https\n");
    let authority = Authority::new(env.path()).expect("an authority can be made");
    let other = env.path().join("other");
    fs::create_dir(&other).expect("folders can be made");
    let stranger = Authority::new(&other).expect("an authority can be made");
    let cert = authority.issue(&["127.0.0.1"]).expect("it signs");
    let server = GitHttp::start(&env.path().join("projects"), Some(&cert), None).expect("the server starts");
    let url = server.url("web/.git");
    for ca in [&[][..], &["--ca", stranger.ca_path().to_str().expect("UTF-8")]] {
        let out = run(&env, &url, ca).expect(4);
        has(&out.stderr, &["cannot trust", &url, "authority", "--ca FILE"]);
    }
    let out = run(&env, &url, &["--ca", authority.ca_path().to_str().expect("UTF-8")]).expect(0);
    has(&said(out), &["hello by https"]);
    // A second look brings nothing twice.
    let packs = server.server().count("POST", "git-upload-pack");
    run(&env, &url, &["--ca", authority.ca_path().to_str().expect("UTF-8")]).expect(0);
    assert_eq!(server.server().count("POST", "git-upload-pack"), packs);
    Ok(())
}

fn a_private_repository_over_https(world: &World) -> Ended {
    let env = with_busybox(world);
    repository(&env, "hello, friend\n");
    let authority = Authority::new(env.path()).expect("an authority can be made");
    let ca = authority.ca_path().to_str().expect("UTF-8").to_owned();
    let cert = authority.issue(&["127.0.0.1"]).expect("it signs");
    let server =
        GitHttp::start(&env.path().join("projects"), Some(&cert), Some(("git", SECRET))).expect("it starts");
    let url = server.url("web/.git");
    let none = run(&env, &url, &["--ca", &ca]).expect(4);
    has(&none.stderr, &["asks for authentication", "KEELWAY_GIT_TOKEN", ".netrc"]);
    // By netrc.
    let netrc = env.home().join(".netrc");
    let host = server.server().host();
    fs::write(&netrc, format!("machine {host} login git password {SECRET}\n")).expect("files can be written");
    let mut all = said(run(&env, &url, &["--ca", &ca]).expect(0));
    has(&all, &["hello, friend"]);
    fs::remove_file(&netrc).expect("it is there");
    // By a token in the environment; a wrong one is refused and not shown.
    let env = env.with_var("KEELWAY_GIT_TOKEN", "kit-secret-4711-but-wrong");
    let wrong = run(&env, &url, &["--ca", &ca]).expect(4);
    has(&wrong.stderr, &["refuses the one given"]);
    all += &said(wrong);
    let env = env.with_var("KEELWAY_GIT_TOKEN", SECRET);
    all += &said(run(&env, &url, &["--ca", &ca]).expect(0));
    let env = env.with_var("KEELWAY_GIT_TOKEN", "");
    // In the address itself.
    let with_login = url.replace("https://", &format!("https://git:{SECRET}@"));
    all += &said(run(&env, &with_login, &["--ca", &ca]).expect(0));
    for verb in
        [&["runs", "ls"][..], &["runs", "show"], &["runs", "show", "--format", "json"], &["runs", "logs"]]
    {
        all += &said(env.keelway(verb).expect(0));
    }
    assert!(!all.contains(SECRET), "{all}");
    kept_nowhere(&env);
    Ok(())
}

fn paths_file_addresses_and_loopback_http(world: &World) -> Ended {
    let env = with_busybox(world);
    let repo = repository(&env, "hello from here\n");
    let server = GitHttp::start(&env.path().join("projects"), None, None).expect("the server starts");
    let path = repo.path().to_str().expect("UTF-8").to_owned();
    for url in [server.url("web/.git"), format!("file://{path}"), path.clone(), "../projects/web".into()] {
        run(&env, &url, &[]).expect(0);
    }
    let ls = env.keelway(&["runs", "ls"]).expect(0).stdout;
    // A relative path is the path it means.
    assert_eq!(ls.lines().filter(|l| l.trim_end().ends_with(&path)).count(), 3, "{ls}");
    let gone = run(&env, &server.url("no/such"), &[]).expect(4);
    has(&gone.stderr, &["there is no repository at", "no/such"]);
    let none = run(&env, "../nowhere", &[]).expect(2);
    has(&none.stderr, &["nowhere"]);
    Ok(())
}

fn ssh_by_a_configuration_file(world: &World) -> Ended {
    let env = with_busybox(world);
    let repo = repository(&env, "hello by ssh\n");
    let server = GitSsh::start(&env.path().join("ssh")).expect("sshd starts");
    let url = server.url(repo.path());
    let with = |config: &Path| run(&env, &url, &["--git-ssh-config", config.to_str().expect("UTF-8")]);
    has(&said(with(&server.config()).expect(0)), &["hello by ssh"]);
    has(&with(&server.config_of_unknown_host()).expect(4).stderr, &["host key", "not known"]);
    has(&with(&server.config_of_changed_host()).expect(4).stderr, &["host key", "not the one that is known"]);
    has(&with(&server.config_with_wrong_key()).expect(4).stderr, &["authentication"]);
    has(&with(Path::new("/no/such")).expect(2).stderr, &["--git-ssh-config", "/no/such"]);
    Ok(())
}

fn branches_tags_and_commits(world: &World) -> Ended {
    let env = with_busybox(world);
    let repo = repository(&env, "one\n");
    let one = repo.head().expect("there is a commit");
    repo.git(&["tag", "-a", "v1", "-m", "the first"]).expect("git tags");
    repo.git(&["checkout", "-q", "-b", "fix/two"]).expect("git branches");
    let two = repo.commit_file("services/app/greeting", "two\n").expect("git commits");
    repo.git(&["checkout", "-q", "main"]).expect("git switches");
    let url = repo.path().to_str().expect("UTF-8").to_owned();
    let mut digests = Vec::new();
    for (reference, commit) in
        [("v1", &one), ("main", &one), (&one[..8], &one), ("fix/two", &two), (two.as_str(), &two)]
    {
        let out = said(run(&env, &url, &["--commit", reference]).expect(0));
        has(&out, &[&commit[..12]]);
        let show = env.keelway(&["runs", "show"]).expect(0).stdout;
        has(&show, &[commit]);
        let line = show.lines().find(|l| l.trim().starts_with("image:")).unwrap_or_default();
        digests.push(line.split("-> ").nth(1).expect("a digest").to_owned());
    }
    assert!(digests[..3].iter().all(|d| *d == digests[0]) && digests[3] == digests[4], "{digests:?}");
    assert_ne!(digests[0], digests[3], "each is built of its own files");
    let near = run(&env, &url, &["--commit", "fix/tow"]).expect(4);
    has(&near.stderr, &["no branch, tag or commit", "fix/tow", "fix/two"]);
    // A commit that a force-push took away is not run, though the mirror still holds it.
    repo.git(&["branch", "-D", "fix/two"]).expect("git deletes");
    has(&run(&env, &url, &["--commit", &two]).expect(4).stderr, &[&two, "on no branch or tag"]);
    Ok(())
}

fn addresses_that_are_not_used(world: &World) -> Ended {
    let env = world.env();
    for (url, words) in [
        ("http://git.example.com/web.git", &["plain http", "https or ssh"][..]),
        ("http://192.0.2.7/web.git", &["plain http"]),
        ("ext::sh -c 'touch /tmp/ran'", &["ext"]),
        ("git://git.example.com/web.git", &["git", "https"]),
        ("--upload-pack=touch /tmp/ran", &["--repo"]),
        ("ssh://-oProxyCommand=touch/x", &["--repo"]),
    ] {
        let out = env.keelway(&["run", &format!("--repo={url}")]).expect(2);
        has(&out.stderr, words);
    }
    Ok(())
}

fn submodules_and_lfs_are_refused_by_name(world: &World) -> Ended {
    let env = with_busybox(world);
    let repo = repository(&env, "hello\n");
    let url = repo.path().to_str().expect("UTF-8").to_owned();
    let head = repo.head().expect("there is a commit");
    // A submodule that nothing copies does no harm; one that a build wants is named.
    repo.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{head},services/app/vendor")])
        .expect("git adds");
    repo.git(&["commit", "-q", "-m", "a submodule"]).expect("git commits");
    run(&env, &url, &[]).expect(0);
    repo.write("services/app/Dockerfile", "FROM busybox\nCOPY . /all\n").expect("files can be written");
    repo.git(&["commit", "-q", "-m", "copied", "services/app/Dockerfile"]).expect("git commits");
    let out = run(&env, &url, &[]);
    assert_ne!(out.code(), 0, "{}", out.stderr);
    has(&out.stderr, &["submodule", "vendor", "not supported yet"]);
    repo.git(&["rm", "-q", "--cached", "services/app/vendor"]).expect("git removes");
    let pointer =
        format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 123456\n", "a".repeat(64));
    repo.commit_file("services/app/model.bin", &pointer).expect("git commits");
    let out = run(&env, &url, &[]);
    assert_ne!(out.code(), 0, "{}", out.stderr);
    has(&out.stderr, &["Git LFS", "model.bin", "not supported yet"]);
    assert!(!out.stderr.contains("panicked"), "{}", out.stderr);
    Ok(())
}

fn attributes_that_are_not_applied_are_said(world: &World) -> Ended {
    let env = with_busybox(world);
    let repo = repository(&env, "$Id$\n");
    let quiet = said(env.keelway_in(repo.path(), &["run"]).expect(0));
    assert!(!quiet.contains("gitattributes"), "{quiet}");
    repo.commit_file(".gitattributes", "* text=auto\ngreeting ident\n*.psd filter=lfs\n")
        .expect("git commits");
    let url = repo.path().to_str().expect("UTF-8").to_owned();
    for out in [env.keelway_in(repo.path(), &["run"]), run(&env, &url, &[])] {
        has(&out.expect(0).stderr, &[".gitattributes", "ident, filter", "byte for byte"]);
    }
    Ok(())
}
