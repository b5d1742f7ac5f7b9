//! Where a build's files come from: repositories, streams, and contexts with names.

use crate::build::{build, context, nodes, with_busybox};
use crate::{Ended, Test, World};
use keelway_tests::base::{self, Base};
use keelway_tests::env::{Env, Output, run};
use keelway_tests::git::{GitHttp, GitRepo, GitSsh};
use keelway_tests::server::{End, Reply, Seen, Server};
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("contexts::a_repository_is_a_context", a_repository_is_a_context),
    ("contexts::a_stream_is_a_context_or_a_dockerfile", a_stream_is_a_context_or_a_dockerfile),
    ("contexts::names_mean_what_the_command_line_says", names_mean_what_the_command_line_says),
];

fn a_repository_is_a_context(world: &World) -> Ended {
    let env = with_busybox(world);
    let projects = env.work().join("projects");
    let repo = GitRepo::init(&projects.join("app.git")).expect("a repository can be made");
    repo.write(
        "Dockerfile",
        "FROM busybox\nCOPY . /x/\nRUN ! test -e /x/left && ! test -e /x/.git && cat /x/sub/f\n",
    )
    .expect("files can be written");
    repo.write(".dockerignore", "left\n").expect("files can be written");
    repo.write("left", "").expect("files can be written");
    repo.write("sub/other", "FROM busybox\nCOPY f /f\nRUN cat /f\n").expect("files can be written");
    repo.commit_file("sub/f", "one\n").expect("git works");
    repo.git(&["tag", "v1"]).expect("git works");
    repo.commit_file("sub/f", "two\n").expect("git works");
    let http = GitHttp::start(&projects, None, None).expect("a server can be started");
    let url = http.url("app.git");
    let built = |args: &[&str]| {
        let mut all = vec!["image", "build"];
        all.extend(args);
        env.keelway(&all)
    };
    let first = built(&[&url]).expect(0);
    assert!(first.stderr.contains("two"), "{}", first.stderr);
    assert!(first.stderr.contains("the context is commit "), "{}", first.stderr);
    let old = built(&["-f", "other", &format!("{url}?tag=v1&subdir=sub")]).expect(0);
    assert!(old.stderr.contains("one"), "{}", old.stderr);
    let file = format!("file://{}#main", repo.path().display());
    assert_eq!(
        built(&[&file]).expect(0).stdout,
        first.stdout,
        "the same commit is the same image, whatever brings it"
    );
    // The commit's time is the image's, unless another is said.
    let dated =
        env.command(&world.keelway).args(["image", "build", &url]).env("SOURCE_DATE_EPOCH", "1000").output();
    assert_ne!(dated.expect("it runs").stdout, first.stdout.as_bytes());
    let ssh = GitSsh::start(&env.work().join("sshd")).expect("sshd starts");
    let config = ssh.config();
    let by_ssh =
        built(&["--git-ssh-config", config.to_str().expect("UTF-8"), &ssh.url(repo.path())]).expect(0);
    assert_eq!(by_ssh.stdout, first.stdout);
    // With its .git, where that is wanted.
    repo.commit_file("Dockerfile", "FROM busybox\nCOPY . /x/\nRUN test -e /x/.git/HEAD\n")
        .expect("git works");
    built(&[&url]).expect(1);
    built(&["--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1", &url]).expect(0);
    for (args, code, said) in [
        (vec![format!("{url}#gone")], 4, "has no branch, tag or commit"),
        (vec![format!("{url}?checksum=abcd")], 1, "and not abcd"),
        (vec![format!("{url}#v1:none")], 1, "none does not exist"),
        (vec!["-f".to_owned(), "none".to_owned(), url.clone()], 2, "none does not exist"),
        (vec!["http://example.com/a.git".to_owned()], 2, "plain http"),
    ] {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = built(&args).expect(code);
        assert!(output.stderr.contains(said), "{args:?}: {}", output.stderr);
    }
    Ok(())
}

fn from_stdin(world: &World, env: &Env, args: &[&str], stdin: &Path) -> Output {
    let mut command = env.command(&world.keelway);
    command.args(["image", "build"]).args(args).stdin(Stdio::from(File::open(stdin).expect("it is there")));
    run(&mut command, Duration::from_secs(120)).expect("it runs")
}

fn a_stream_is_a_context_or_a_dockerfile(world: &World) -> Ended {
    let env = with_busybox(world);
    let text = "FROM busybox\nCOPY . /x/\nRUN cat /x/f && ! test -e /x/left && stat -c %u:%a /x/f\n";
    let files = [
        ("Dockerfile", text),
        ("f", "from-the-tar\n"),
        ("left", ""),
        (".dockerignore", "left\n"),
        ("other", "FROM busybox\n"),
    ];
    let dir = context(&env, "c", &files);
    let plain = build(&env, &dir, &[]).expect(0).stdout;
    for (flag, name) in [("-cf", "a.tar"), ("-czf", "a.tgz"), ("-cJf", "a.txz")] {
        let made = env.command("tar").args([flag, &format!("../{name}"), "."]).current_dir(&dir).status();
        assert!(made.expect("tar runs").success());
        let output = from_stdin(world, &env, &["-"], &env.work().join(name)).expect(0);
        assert_eq!(output.stdout, plain, "{name}: the same files are the same image");
    }
    let tar = env.work().join("a.tar");
    from_stdin(world, &env, &["-f", "other", "-"], &tar).expect(0);
    // A Dockerfile alone, and one beside a folder.
    let alone = env.work().join("alone");
    fs::write(&alone, "FROM busybox\nCOPY <<F /f\nalone\nF\nRUN cat /f\n").expect("files can be written");
    let output = from_stdin(world, &env, &["-"], &alone).expect(0);
    assert!(output.stderr.contains("alone"), "{}", output.stderr);
    let beside = env.work().join("beside");
    fs::write(&beside, "FROM busybox\nCOPY f /\nRUN cat /f\nCOPY none /\n").expect("files can be written");
    let folder = dir.to_str().expect("UTF-8");
    let output = from_stdin(world, &env, &["-f", "-", folder], &beside).expect(1);
    assert!(output.stderr.contains("from-the-tar") && output.stderr.contains("none"), "{}", output.stderr);
    let cut = env.work().join("cut");
    let bytes = fs::read(&tar).expect("it is there");
    fs::write(&cut, &bytes[..bytes.len() / 2 - 700]).expect("files can be written");
    let wrong = env.work().join("wrong");
    fs::write(&wrong, "FROM busybox\nCOPPY a b\n").expect("files can be written");
    // The same by address.
    let served = env.work();
    let server = Server::start(None, move |seen: &Seen| match seen.path.as_str() {
        "/cut" => Reply::bytes(vec![0x1f, 0x8b, 8, 0]).with("content-length", "800").ending(End::Cut),
        path => match fs::read(served.join(path.trim_start_matches('/'))) {
            Ok(bytes) => Reply::bytes(bytes),
            Err(_) => Reply::status(404),
        },
    })
    .expect("a server can be started");
    let url = |path: &str| format!("{}/{path}", server.url());
    let by_address = |args: &[&str]| {
        let mut all = vec!["image", "build"];
        all.extend(args);
        env.keelway(&all)
    };
    assert_eq!(by_address(&[&url("a.tgz")]).expect(0).stdout, plain);
    by_address(&["-f", "other", &url("a.tar")]).expect(0);
    by_address(&[&url("alone")]).expect(0);
    let named =
        context(&env, "named", &[("Dockerfile", "FROM busybox\nCOPY --from=t f /\nRUN grep tar /f\n")]);
    build(&env, &named, &["--build-context", &format!("t={}", url("a.txz"))]).expect(0);
    for (args, code, said) in [
        (vec![url("none")], 4, "the server answers 404"),
        (vec![url("cut")], 4, "/cut"),
        (vec!["-f".to_owned(), "other".to_owned(), url("alone")], 2, "no tar"),
        (
            vec![
                "--build-context".to_owned(),
                format!("t={}", url("alone")),
                named.to_str().expect("UTF-8").to_owned(),
            ],
            2,
            "what is there is no tar",
        ),
    ] {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = by_address(&args).expect(code);
        assert!(output.stderr.contains(said), "{args:?}: {}", output.stderr);
    }
    for (args, stdin, said) in [
        (&["-f", "-", "-"][..], &alone, "both the context and the Dockerfile"),
        (&["-f", "-", folder], &tar, "is a tar, not a Dockerfile"),
        (&["-f", "other", "-"], &alone, "no tar"),
        (&["-"], &cut, "standard input"),
        (&["-"], &wrong, "standard input:2:1"),
    ] {
        let output = from_stdin(world, &env, args, stdin).expect(2);
        assert!(output.stderr.contains(said), "{args:?}: {}", output.stderr);
    }
    Ok(())
}

fn names_mean_what_the_command_line_says(world: &World) -> Ended {
    let env = with_busybox(world);
    let text = "FROM no.such.registry/base AS base\nRUN false\n\
        FROM replaced AS made\nRUN false\n\
        FROM base\n\
        COPY --from=files a /a\nCOPY --from=made /bin/busybox /made\nCOPY --from=repo f /repo\n\
        RUN --mount=from=files,target=/m --mount=type=cache,from=files,source=sub,target=/c \\\n\
        cat /a /repo /m/sub/b /c/b; ! test -e /m/left && test -x /made\n\
        FROM files AS last\nCOPY b /b\n";
    let dir = context(&env, "c", &[("Dockerfile", text), ("b", "B\n")]);
    let named = context(
        &env,
        "named",
        &[("a", "from-a-folder\n"), ("left", ""), ("sub/b", "from-beneath\n"), (".dockerignore", "left\n")],
    );
    let repo = GitRepo::init(&env.work().join("repo.git")).expect("a repository can be made");
    repo.commit_file("f", "from-a-repository\n").expect("git works");
    let layout = base::oci_layout(Base::Busybox).expect("a busybox image can be made");
    let flags = [
        "--build-context".to_owned(),
        format!("files={}", named.display()),
        "--build-context".to_owned(),
        "Base=docker-image://busybox".to_owned(),
        "--build-context".to_owned(),
        format!("made=oci-layout://{}", layout.display()),
        "--build-context".to_owned(),
        format!("repo=file://{}#main", repo.path().display()),
    ];
    let with = |more: &[&'static str]| {
        let mut all: Vec<&str> = flags.iter().map(String::as_str).collect();
        all.extend(more);
        all
    };
    let middle = with(&["--target", "2"]);
    let output = build(&env, &dir, &middle).expect(0);
    for wanted in ["from-a-folder", "from-a-repository", "from-beneath"] {
        assert!(output.stderr.contains(wanted), "{wanted}: {}", output.stderr);
    }
    let again = build(&env, &dir, &with(&["--target", "2", "--format", "json"])).expect(0);
    assert_eq!(nodes(&again, "cache-miss"), [""; 0], "{}", again.stdout);
    // A change in a context changes what takes from it, and no more.
    fs::write(named.join("a"), "changed\n").expect("files can be written");
    let later = build(&env, &dir, &with(&["--target", "2", "--format", "json"])).expect(0);
    let misses = nodes(&later, "cache-miss");
    assert!(misses.iter().any(|n| n.contains("COPY --from=files")), "{misses:?}");
    // A name may stand for an image in FROM, also where it is written in another way; its files are a root.
    build(&env, &dir, &with(&["-t", "last:1"])).expect(0);
    let short = context(&env, "short", &[("Dockerfile", "FROM docker.io/library/alpine:latest\nRUN true\n")]);
    build(&env, &short, &["--build-context", "alpine=docker-image://busybox"]).expect(0);
    let whole = format!("alpine=oci-layout://{}", layout.display());
    build(&env, &short, &["--build-context", &whole]).expect(0);
    for (flag, said) in [
        ("files", "write it as NAME="),
        ("x=ftp://x/y", "no kind of context"),
        ("x=-", "standard input"),
        ("x::linux/amd64=.", "one platform"),
        ("x=docker-image://Not/Valid", "not an image reference"),
        ("x=/does/not/exist", "cannot open"),
    ] {
        let output = build(&env, &short, &["--build-context", flag]).expect(2);
        assert!(output.stderr.contains(said), "{flag}: {}", output.stderr);
    }
    let empty = context(&env, "empty", &[("index.json", "{}")]);
    let flag = format!("x=oci-layout://{}", empty.display());
    let output = build(&env, &short, &["--build-context", &flag]);
    assert!(output.code() != 0 && output.stderr.contains("layout"), "{}", output.stderr);
    Ok(())
}
