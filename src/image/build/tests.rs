//! Stage graphs, scopes, triggers, refusals.

use super::*;
use keelway_dockerfile::parse;
use keelway_model::mount::RunMount;
use keelway_model::plan::{AssembleOp, CopyFrom, CopyOp, ExecOp, GitOp, MkdirOp, Network, Op, Unpack};
use keelway_model::{Digest, Node};

pub(super) fn options() -> BuildOptions {
    BuildOptions::new("linux/amd64".parse().unwrap())
}

pub(super) fn pinned(name: &str, change: impl FnOnce(&mut ImageConfig)) -> (ImageRef, PinnedBase) {
    let mut config = ImageConfig::scratch(options().platform);
    config.rootfs.diff_ids = vec![Digest::of(name.as_bytes())];
    config.config.env = vec!["PATH=/bin".into(), "BASE=1".into()];
    change(&mut config);
    let descriptor = Descriptor::new(keelway_model::oci::media::MANIFEST, Digest::of(b"m"), 1);
    (name.parse().unwrap(), PinnedBase { descriptor, config })
}

pub(super) fn bases() -> Bases {
    ["base", "a", "b", "c"].map(|n| pinned(n, |_| ())).into()
}

pub(super) fn try_plan(text: &str, options: BuildOptions, bases: &Bases) -> Result<Plan, String> {
    let file = parse(&SourceText::new("Dockerfile", text)).map_err(|e| e.to_string())?;
    let build = Build::new(file, options).map_err(|e| e.to_string())?;
    let missing = build.bases(bases).map_err(|e| e.to_string())?;
    assert!(missing.is_empty(), "{missing:?}");
    let plan = build.lower(bases).map_err(|e| e.to_string())?;
    plan.check().unwrap();
    Ok(plan)
}
pub(super) fn plan(text: &str) -> Plan {
    try_plan(text, options(), &bases()).unwrap_or_else(|e| panic!("{text}\n{e}"))
}
pub(super) fn refused(text: &str) -> String {
    match try_plan(text, options(), &bases()) {
        Err(e) => e,
        Ok(_) => panic!("planned: {text}"),
    }
}
pub(super) fn execs(plan: &Plan) -> Vec<&ExecOp> {
    plan.nodes.iter().filter_map(|n| if let Op::Exec(op) = &n.op { Some(op) } else { None }).collect()
}
pub(super) fn copies(plan: &Plan) -> Vec<&CopyOp> {
    plan.nodes.iter().filter_map(|n| if let Op::Copy(op) = &n.op { Some(op) } else { None }).collect()
}
fn mkdirs(plan: &Plan) -> Vec<&MkdirOp> {
    plan.nodes.iter().filter_map(|n| if let Op::Mkdir(op) = &n.op { Some(op) } else { None }).collect()
}
fn end(plan: &Plan) -> &AssembleOp {
    match &plan.node(plan.result.unwrap()).unwrap().op {
        Op::Assemble(op) => op,
        op => panic!("{op:?}"),
    }
}
pub(super) fn names(plan: &Plan) -> Vec<&str> {
    plan.nodes.iter().map(|n| n.name.as_str()).collect()
}
fn history(plan: &Plan) -> Vec<&str> {
    end(plan).history.iter().map(|h| h.created_by.as_deref().unwrap()).collect()
}
fn env<'a>(op: &'a ExecOp, name: &str) -> Option<&'a str> {
    op.env.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
}

#[test]
fn only_needed_stages_and_independent_ones_side_by_side() {
    let text = "FROM a AS one\nRUN x\nFROM nowhere/at/all AS unused\nRUN --device=x y\nFROM b AS two\nRUN z\nFROM scratch AS app\nCOPY --from=one /x /\nCOPY --from=2 /z /\n";
    let plan = plan(text);
    assert_eq!(
        names(&plan),
        [
            "[one 1/2] FROM docker.io/library/a:latest",
            "[one 2/2] RUN x",
            "[two 1/2] FROM docker.io/library/b:latest",
            "[two 2/2] RUN z",
            "[app 1/3] FROM scratch",
            "[app 2/3] COPY --from=one /x /",
            "[app 3/3] COPY --from=2 /z /",
            "image",
        ]
    );
    let needs: Vec<Vec<u32>> = plan.nodes.iter().map(|n| n.needs.iter().map(|i| i.0).collect()).collect();
    assert_eq!(needs, [vec![], vec![0], vec![], vec![2], vec![], vec![4, 1], vec![5, 3], vec![6]]);
    assert!(end(&plan).base.is_none());
    let target = |t: &str| BuildOptions { target: Some(t.into()), ..options() };
    assert_eq!(try_plan(text, target("ONE"), &bases()).unwrap().nodes.len(), 3);
    assert_eq!(try_plan(text, target("2"), &bases()).unwrap().nodes.len(), 3);
    let e = try_plan(text, target("tow"), &bases()).unwrap_err();
    assert!(e.contains("there is no stage \"tow\"") && e.contains("one, unused, two, app"), "{e}");
}

#[test]
fn names_of_the_command_line_go_first() {
    let given = pinned("given", |c| c.config.on_build = vec!["RUN trigger".into()]).1;
    let contexts = BTreeMap::from([
        ("base".to_owned(), NamedContext::Image("c".parse().unwrap())),
        ("alpine".to_owned(), NamedContext::Image("b".parse().unwrap())),
        ("whole".to_owned(), NamedContext::Pinned(Box::new(given.clone()))),
        ("files".to_owned(), NamedContext::Files),
    ]);
    let with = BuildOptions { contexts, ..options() };
    let p = try_plan(
        "FROM nowhere AS Base\nRUN never\nFROM docker.io/library/alpine:latest\nCOPY --link --from=FILES a /a\n\
         COPY --from=0 b /b\nRUN --mount=from=files,source=s,target=/m x\nFROM whole AS w\nCOPY --from=1 c /c\n",
        with.clone(),
        &bases(),
    )
    .unwrap();
    let roots: Vec<_> = p
        .nodes
        .iter()
        .filter_map(|n| {
            if let Op::Base(b) = &n.op { Some((b.reference.clone(), b.manifest.clone())) } else { None }
        })
        .collect();
    let name = |text: &str| Some(text.parse().unwrap());
    for wanted in [(name("b"), true), (name("c"), true), (None, true), (None, false)] {
        assert!(
            roots.iter().any(|(r, m)| (r, m.is_some()) == (&wanted.0, wanted.1)),
            "{wanted:?} in {roots:?}"
        );
    }
    assert_eq!(roots.len(), 4);
    let from: Vec<_> =
        copies(&p).iter().map(|c| (c.context.as_deref(), c.dest.as_str(), c.from.clone())).collect();
    let files = Some("files");
    assert_eq!(
        from,
        [
            (files, "/a", CopyFrom::Context),
            (None, "/b", CopyFrom::Stage),
            (files, "/bound", CopyFrom::Context),
            (None, "/c", CopyFrom::Stage)
        ]
    );
    let commands: Vec<_> = execs(&p).iter().map(|e| e.argv.last().unwrap().as_str()).collect();
    assert_eq!(commands, ["x", "trigger"], "what a name replaces is not run, what its image brings is");
    assert_eq!(end(&p).base.as_ref(), Some(&given.descriptor));
    // Files as a root are one layer.
    let p = try_plan("FROM files\nCOPY a /a\n", with, &bases()).unwrap();
    assert_eq!(copies(&p).iter().map(|c| c.dest.as_str()).collect::<Vec<_>>(), ["/", "/a"]);
    assert_eq!(end(&p).history.iter().filter(|h| !h.empty_layer).count(), 2);
    assert!(end(&p).base.is_none());
}

#[test]
fn stages_stand_on_stages() {
    let p = plan(
        "FROM base AS B\nARG X=1\nENV E=2\nWORKDIR /w\nCMD [\"c\"]\nFROM b\nRUN echo\nENTRYPOINT [\"e\"]\n",
    );
    let run = execs(&p)[0];
    assert_eq!((env(run, "X"), env(run, "E"), run.cwd.as_str()), (Some("1"), Some("2"), "/w"));
    let config = &end(&p).config.config;
    assert_eq!(
        (config.cmd.as_ref(), config.entrypoint.as_deref()),
        (None, Some(&["e".to_owned()][..])),
        "a new ENTRYPOINT drops an inherited CMD"
    );
    let kept = plan("FROM base\nCMD [\"c\"]\nENTRYPOINT [\"e\"]\n");
    assert_eq!(
        end(&kept).config.config.cmd.as_deref(),
        Some(&["c".to_owned()][..]),
        "but not one of the same stage"
    );
    // A stage's name is no image, whatever its case, and a second one of the same name wins from there on.
    let p = plan("FROM a AS x\nFROM b AS x\nFROM X\nRUN y\n");
    assert_eq!(names(&p)[0], "[x 1/1] FROM docker.io/library/b:latest");
}

#[test]
fn arguments_and_environment() {
    let text = "ARG V=1\nARG W=${V}0\nFROM base\nARG V\nARG W=own\nARG N\nARG D=$V-$BASE\nENV a=1 b=$a c=\"$V x\"\nENV b=$a\nARG V=last\nRUN x\n";
    let p = plan(text);
    let run = execs(&p)[0];
    let got: Vec<_> = ["V", "W", "N", "D", "a", "b", "c", "BASE", "PATH"].map(|n| env(run, n)).into();
    assert_eq!(
        got,
        [
            Some("last"),
            Some("own"),
            None,
            Some("1-1"),
            Some("1"),
            Some("1"),
            Some("1 x"),
            Some("1"),
            Some("/bin")
        ]
    );
    let config = &end(&p).config.config;
    assert_eq!(config.env, ["PATH=/bin", "BASE=1", "a=1", "b=1", "c=1 x"], "arguments are not in the image");
    assert!(
        history(&p).contains(&"ENV a=1 b= c=1 x"),
        "one instruction sees one environment: {:?}",
        history(&p)
    );
    assert!(history(&p).contains(&"RUN |3 V=last W=own D=1-1 /bin/sh -c x"), "{:?}", history(&p));
    let given = BuildOptions {
        args: [("V".into(), "2".into()), ("N".into(), "n".into()), ("X".into(), "".into())].into(),
        ..options()
    };
    let p = try_plan(text, given.clone(), &bases()).unwrap();
    let run = execs(&p)[0];
    assert_eq!(
        (env(run, "V"), env(run, "N"), env(run, "D"), env(run, "X")),
        (Some("2"), Some("n"), Some("2-1"), None)
    );
    let build = Build::new(parse(&SourceText::new("D", text)).unwrap(), given).unwrap();
    assert!(build.warnings().to_string().contains("build argument X"), "{}", build.warnings());
    // The scope before FROM is not seen in a stage; a stage's scope is not seen in its sibling.
    let p = plan("ARG G=1\nFROM a AS x\nARG S=1\nRUN x\nFROM b\nCOPY --from=x / /\nRUN y\n");
    assert!(execs(&p).iter().all(|e| env(e, "G").is_none()));
    assert_eq!(env(execs(&p)[1], "S"), None);
    // Platform arguments are there for those who ask.
    let p = plan("FROM --platform=$BUILDPLATFORM base\nARG TARGETARCH TARGETPLATFORM TARGETSTAGE\nRUN x\n");
    let run = execs(&p)[0];
    assert_eq!(
        (env(run, "TARGETARCH"), env(run, "TARGETPLATFORM"), env(run, "TARGETSTAGE")),
        (Some("amd64"), Some("linux/amd64"), Some("default"))
    );
    assert!(refused("ARG T\nFROM $T\n").contains("2:6: error[D0204]"));
}

#[test]
fn proxies_reach_run_without_a_trace() {
    let proxied = BuildOptions {
        proxy: vec![("http_proxy".into(), "p".into()), ("SECRET".into(), "s".into())],
        ..options()
    };
    let p = try_plan("FROM base\nRUN x\n", proxied.clone(), &bases()).unwrap();
    assert_eq!(execs(&p)[0].unkeyed_env, [("http_proxy".to_owned(), "p".to_owned())]);
    assert!(!serde_json::to_string(end(&p)).unwrap().contains("http_proxy"));
    let p = try_plan("FROM base\nARG http_proxy\nRUN x\n", proxied, &bases()).unwrap();
    assert_eq!((execs(&p)[0].unkeyed_env.len(), env(execs(&p)[0], "http_proxy")), (0, Some("p")));
}

#[test]
fn commands_and_shells() {
    let p = plan(
        "FROM base\nRUN a $b\nSHELL [\"/bin/bash\", \"-ec\"]\nRUN c\nRUN [\"d\", \"$e\"]\nCMD f\nRUN --network=none g\n",
    );
    let argv: Vec<String> = execs(&p).iter().map(|e| e.argv.join("|")).collect();
    assert_eq!(argv, ["/bin/sh|-c|a $b", "/bin/bash|-ec|c", "d|$e", "/bin/bash|-ec|g"]);
    assert_eq!(
        execs(&p).iter().map(|e| e.network).collect::<Vec<_>>(),
        [Network::Private, Network::Private, Network::Private, Network::None]
    );
    assert_eq!(end(&p).config.config.cmd.as_ref().unwrap().join("|"), "/bin/bash|-ec|f");
    let p = plan(
        "FROM base\nRUN <<EOF\na\nb\nEOF\nRUN <<-X\n\t#!/bin/py\n\tp\nX\nRUN <<-X\n\t#!x\n\tX\nRUN cat <<-E > f\n\tt\n\tE\n",
    );
    let runs = execs(&p);
    assert_eq!(runs[0].argv[2], "a\nb\n");
    assert_eq!(runs[3].argv[2], "cat <<-E > f\n\tt\nE", "the shell reads its own heredoc");
    // BuildKit looks for #! in the body as written: a tab before it makes it shell text.
    assert_eq!(runs[1].argv[2], "#!/bin/py\np\n");
    let p = plan("FROM base\nRUN <<PY\n#!/bin/py\np\nPY\n");
    let script =
        RunMount::Script { target: "/dev/pipes/PY".to_owned(), content: "#!/bin/py\np\n".to_owned() };
    assert_eq!(execs(&p)[0].mounts, [script]);
    assert_eq!(execs(&p)[0].argv[2], "/dev/pipes/PY");
    assert!(refused("FROM base\nRUN <<../x\n#!/bin/sh\n../x\n").contains("cannot be the name of a script"));
}

#[test]
fn metadata() {
    let p = plan(
        "FROM base\nLABEL a=b \"c d\"='e f'\nEXPOSE 80 8000-8002/udp 53/UDP\nUSER u:g\nVOLUME /v [\"x\"]\nVOLUME [\"/w w\"]\nSTOPSIGNAL sigterm\nHEALTHCHECK --interval=3s CMD a b\nONBUILD RUN <<E\nx\nE\nMAINTAINER me\nWORKDIR a\nWORKDIR b/../c\nWORKDIR /\n",
    );
    let c = &end(&p).config.config;
    assert_eq!(c.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(), ["a=b", "c d=e f"]);
    assert_eq!(
        c.exposed_ports.keys().collect::<Vec<_>>(),
        ["53/udp", "80/tcp", "8000/udp", "8001/udp", "8002/udp"]
    );
    assert_eq!(c.volumes.keys().collect::<Vec<_>>(), ["/v", "/w w", "[x]"]);
    assert_eq!(
        (c.user.as_deref(), c.stop_signal.as_deref(), c.working_dir.as_deref()),
        (Some("u:g"), Some("sigterm"), Some("/"))
    );
    let check = c.healthcheck.as_ref().unwrap();
    assert_eq!((check.test.join("|"), check.interval), ("CMD-SHELL|a b".to_owned(), 3_000_000_000));
    assert_eq!(c.on_build, ["RUN <<E\nx\nE"]);
    assert_eq!(end(&p).config.author.as_deref(), Some("me"));
    assert_eq!(
        mkdirs(&p).iter().map(|m| (m.path.as_str(), m.user.0.as_str())).collect::<Vec<_>>(),
        [("/a", "u:g"), ("/a/c", "u:g")]
    );
    let layers = end(&p).history.iter().filter(|h| !h.empty_layer).count();
    assert_eq!(layers, 2, "history and steps agree");
    let scratch = plan("FROM scratch\nENV A=1\n");
    assert!(end(&scratch).config.config.env[0].starts_with("PATH=/usr/local/sbin"));
    for (line, what) in [
        ("EXPOSE x", "not a port"),
        ("EXPOSE 0", "not a port"),
        ("EXPOSE 70000", "not a port"),
        ("EXPOSE 9-8", "not a port"),
        ("EXPOSE 80/http", "not a port"),
        ("STOPSIGNAL SIGNOPE", "not a signal"),
        ("STOPSIGNAL 65", "not a signal"),
        ("USER 4294967296", "not a user"),
        ("USER -1", "not a user"),
        ("USER 2147483648", "not a user"),
        ("USER 0x0", "not a user"),
        ("ENV $BASE=$NOPE =x", "without a name"),
        ("ENV a=${b:?gone}", "gone"),
        ("USER a b", "not a user"),
        ("VOLUME $NOPE", "empty"),
    ] {
        let e = refused(&format!("FROM base\n{line}\n"));
        assert!(e.contains(what) && e.contains("Dockerfile:2:"), "{line}: {e}");
    }
}

#[test]
fn copies_as_planned() {
    let p = plan(
        "FROM base\nARG d=/dst\nWORKDIR /w\nCOPY a .\nCOPY a b ./\nCOPY [\"a b\", \"x\"]\nCOPY --chown=$BASE:2 --chmod=4755 *.c $d/\nADD x.tar /y\nADD --unpack=false x.tar /y\nCOPY a <<f <<\"g\" /h/\n$d\nf\n$d\ng\nCOPY --from=c /q /r\n",
    );
    let c = copies(&p);
    assert_eq!(
        c.iter().map(|c| c.dest.as_str()).collect::<Vec<_>>(),
        ["/w/", "/w/", "/w/x", "/dst/", "/y", "/y", "/h/", "/h/", "/r"]
    );
    assert_eq!(
        (c[3].chown.as_ref().unwrap().0.as_str(), c[3].chmod.as_ref().unwrap().to_string()),
        ("1:2", "4755".to_owned())
    );
    assert_eq!(
        c.iter().map(|c| c.unpack == Unpack::Archives).collect::<Vec<_>>(),
        [false, false, false, false, true, false, false, false, false]
    );
    assert_eq!(c[7].from, CopyFrom::Inline(vec![("f".into(), "/dst\n".into()), ("g".into(), "$d\n".into())]));
    assert_eq!(c[8].from, CopyFrom::Stage);
    assert_eq!(end(&p).history.iter().filter(|h| !h.empty_layer).count(), 10);
    // A link needs nothing of what it is put on, but the files that know the names of its owner.
    let p = plan(
        "FROM base\nCOPY --link a /a\nCOPY --link --chown=1 --from=c a /a\nCOPY --link --chown=u --from=c a /a\n",
    );
    let made: Vec<&Node> = p.nodes.iter().filter(|n| matches!(n.op, Op::Copy(_))).collect();
    let links: Vec<&Node> = p.nodes.iter().filter(|n| n.op == Op::Link).collect();
    assert_eq!(made.iter().map(|n| n.needs.len()).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(made[2].needs, [made[1].needs[0], links[1].id]);
    assert_eq!(links[2].needs, [links[1].id, made[2].id]);
    // What is fetched is a chain of its own, and its own layer.
    let sum = format!("sha256:{}", "0".repeat(64));
    let p = plan(&format!(
        "FROM base\nARG u=https://x/a*b\nADD a $u /d/\nADD --checksum={sum} --unpack=true --link --chmod=755 $u/c /d\n"
    ));
    let fetches: Vec<&Node> = p.nodes.iter().filter(|n| matches!(n.op, Op::Fetch(_))).collect();
    let c = copies(&p);
    assert_eq!(c.iter().map(|c| c.sources[0].as_str()).collect::<Vec<_>>(), ["a", "/file/a\\*b", "/file/c"]);
    assert_eq!(c.iter().map(|c| c.unpack == Unpack::Archives).collect::<Vec<_>>(), [true, false, true]);
    assert!(fetches.len() == 2 && fetches.iter().all(|n| n.needs.is_empty()));
    let Op::Fetch(second) = &fetches[1].op else { unreachable!() };
    assert_eq!((second.url.as_str(), second.checksum.as_deref()), ("https://x/a*b/c", Some(sum.as_str())));
    assert_eq!(end(&p).history.iter().filter(|h| !h.empty_layer).count(), 3);
    // So is a repository.
    let p = plan(
        "FROM base\nARG r=v1\nADD --keep-git-dir=true git@x:y.git#$r /d\n\
         ADD --checksum=AB12 --link --exclude=*.md https://x/y.git?ref=${r}&subdir=a/b&submodules=false /d/\n",
    );
    let gits: Vec<&GitOp> =
        p.nodes.iter().filter_map(|n| if let Op::Git(op) = &n.op { Some(op) } else { None }).collect();
    let shown = |g: &GitOp| {
        format!(
            "{} {} {:?} {:?} {} {}",
            g.url, g.reference, g.folder, g.checksum, g.keep_git_dir, g.submodules
        )
    };
    assert_eq!(shown(gits[0]), "git@x:y.git v1 None None true true");
    assert_eq!(shown(gits[1]), "https://x/y.git v1 Some(\"a/b\") Some(\"ab12\") false false");
    let c = copies(&p);
    let from: Vec<_> = c.iter().map(|c| (c.sources[0].as_str(), c.from == CopyFrom::Stage, c.link)).collect();
    assert_eq!(from, [("/tree", true, false), ("/tree", true, true)]);
    assert!(c[1].exclude == ["*.md"] && c[1].unpack == Unpack::Never);
    let none = BuildOptions { network: Network::None, ..options() };
    let e = try_plan("FROM base\nADD git@x:y /z\n", none.clone(), &bases()).unwrap_err();
    assert!(e.contains("this build has no network"), "{e}");
    let e = try_plan("FROM base\nADD https://x/y /z\n", none, &bases()).unwrap_err();
    assert!(e.contains("Dockerfile:2:5") && e.contains("this build has no network"), "{e}");
    for (line, what) in [
        ("ADD https://x/ /d/", "names no file"),
        ("ADD --checksum=sha256:12 https://x/y /d", "write sha256:"),
        ("ADD --checksum=sha256:12 y /d", "for an ADD of one address"),
        ("ADD --checksum=sha256:12 https://x/y https://x/z /d/", "for an ADD of one address"),
        ("COPY --checksum=sha256:12 y /d", "COPY has no flag --checksum"),
        ("ADD --checksum=sha256:12 git@x:y /d", "commit's id"),
        ("ADD --checksum=12 https://x/y.git?checksum=13 /d", "two ways"),
        ("ADD https://x/y.git?rev=13 /d", "\"rev\" means nothing"),
        ("ADD --keep-git-dir git@x:y#:sub /d", "names a folder of it"),
        ("ADD --keep-git-dir https://x/y a /d/", "for an ADD of git repositories"),
        ("COPY a b c", "ends in /"),
        ("COPY --chmod=u+z a b", "changes like u=rwX"),
        ("COPY --exclude=a --exclude=[ a b", "--exclude: malformed pattern"),
        ("COPY --exclude=! a b", "--exclude: a ! must be followed"),
        ("COPY --exclued=a a b", "did you mean --exclude?"),
        ("COPY --chmod=9 a b", "octal"),
        ("COPY --chmod=17777 a b", "octal"),
        ("COPY --chown=a,b a b", "not a user"),
        ("COPY --from=later /a /b\nFROM a AS later", "defined before current stage"),
        ("COPY --from=0 /a /b", "no stage 0 before"),
        ("COPY --from=7 /a /b", "no stage 7 before"),
        ("COPY --from=Not/Valid /a /b", "not an image reference"),
    ] {
        let text = format!("FROM base AS me\n{line}\n");
        let target = BuildOptions { target: Some("me".into()), ..options() };
        let e = try_plan(&text, target, &bases()).unwrap_err();
        assert!(e.contains(what) && e.contains("Dockerfile:2:"), "{line}: {e}");
    }
}

#[test]
fn the_machines_network_is_granted_and_never_taken() {
    let text = "FROM base\nRUN a\nRUN --network=default b\nRUN --network=none c\nRUN --network=host d\n";
    let refused = refused(text);
    assert!(refused.contains("Dockerfile:5:") && refused.contains("--allow host-network"), "{refused}");
    let granted = BuildOptions { allow: [Grant::HostNetwork].into(), network: Network::None, ..options() };
    let networks: Vec<Network> =
        execs(&try_plan(text, granted, &bases()).unwrap()).iter().map(|e| e.network).collect();
    assert_eq!(networks, [Network::None, Network::None, Network::None, Network::Host]);
}

/// Valid lines that are refused, and how they are named.
const REFUSED: [(&str, &str); 4] = [
    ("RUN --network=web y", "RUN --network=web"),
    ("RUN --security=insecure y", "RUN --security=insecure"),
    ("RUN --device=x y", "RUN --device"),
    ("ADD ftp://x.example/y /z", "ADD of the address"),
];

#[test]
fn what_is_not_there_yet_is_refused_by_line_and_name() {
    for (line, name) in REFUSED {
        let e = refused(&format!("FROM base\nENV U=http://x\n{line}\n"));
        assert!(
            e.contains(name) && e.contains("not supported yet") && e.contains("Dockerfile:3:"),
            "{line}: {e}"
        );
    }
    assert!(
        refused("FROM --platform=linux/s390x base\n")
            .contains("FROM --platform=linux/s390x is not supported yet")
    );
    plan("FROM --platform=linux/amd64 base\nRUN --network=default --security=sandbox x\n");
    plan("FROM base\nRUN --network=none x\nADD --unpack=false a.tar b\nADD --unpack a.tar b\n");
    plan("FROM base\nONBUILD RUN --device=x y\n");
    assert!(
        refused("FROM base AS x\nONBUILD RUN --device=x y\nFROM x\n").contains("2:13"),
        "where it would run"
    );
}

/// What docs/dockerfile.md lists as refused is refused, and what is refused is listed there.
#[test]
fn the_documentation_lists_what_is_refused() {
    let docs = include_str!("../../../docs/dockerfile.md");
    let (_, section) = docs.split_once("## Refused by name").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let examples: Vec<&str> = section
        .lines()
        .filter_map(|l| l.strip_prefix("| ")?.strip_suffix("` |")?.rsplit_once("| `"))
        .map(|(_, example)| example)
        .collect();
    // What a message names, without the value that it has in one file.
    let thing = |line: &str| {
        let text = match line.starts_with("FROM") {
            true => format!("{line}\n"),
            false => format!("FROM base\nENV U=http://x\n{line}\n"),
        };
        let said = refused(&text);
        let named = said.split_once(" is not supported yet").unwrap_or_else(|| panic!("{line}: {said}")).0;
        let named = named.rsplit_once(": ").map_or(named, |(_, n)| n);
        named.split(['=', '"']).next().unwrap().trim().to_owned()
    };
    let things = |lines: &[&str]| lines.iter().map(|l| thing(l)).collect::<BTreeSet<_>>();
    let mut all = REFUSED.map(|(line, _)| line).to_vec();
    all.push("FROM --platform=linux/s390x base");
    assert_eq!(things(&examples), things(&all));
}

#[test]
fn triggers_of_bases_run_first_and_reach_further() {
    let on = pinned("on", |c| {
        c.config.on_build = vec!["COPY --from=c /t /t".into(), "RUN [\"t\"]".into(), "ARG Q=1".into()];
        c.config.working_dir = Some("/on".into());
    });
    let text = "FROM on AS x\nRUN own $Q\nONBUILD USER late\nFROM x\nRUN z\n";
    let build = Build::new(parse(&SourceText::new("Dockerfile", text)).unwrap(), options()).unwrap();
    let mut have = Bases::new();
    let first = build.bases(&have).unwrap();
    assert_eq!(first.iter().map(ToString::to_string).collect::<Vec<_>>(), ["docker.io/library/on:latest"]);
    have.insert(on.0, on.1);
    let second = build.bases(&have).unwrap();
    assert_eq!(second.iter().map(ToString::to_string).collect::<Vec<_>>(), ["docker.io/library/c:latest"]);
    have.extend([pinned("c", |_| ())]);
    assert!(build.bases(&have).unwrap().is_empty());
    let plan = build.lower(&have).unwrap();
    let runs = execs(&plan);
    assert_eq!(
        runs.iter().map(|r| r.argv.last().unwrap().as_str()).collect::<Vec<_>>(),
        ["t", "own $Q", "z"]
    );
    assert_eq!(
        (env(runs[1], "Q"), runs[1].cwd.as_str(), runs[2].user.0.as_str()),
        (Some("1"), "/on", "late")
    );
    assert!(end(&plan).config.config.on_build.is_empty(), "triggers fire once");
    for bad in ["ONBUILD RUN x", "FROM x", "NOPE", "RUN --device=d x"] {
        let (image, base) = pinned("bad", |c| c.config.on_build = vec![bad.into()]);
        let e = try_plan("FROM bad\n", options(), &[(image, base)].into());
        assert!(e.is_err_and(|e| e.contains("ONBUILD 1 of docker.io/library/bad:latest:1:")), "{bad}");
    }
}

#[test]
fn identities_stay_when_content_changes() {
    let id = |text: &str| execs(&plan(text)).iter().map(|e| e.identity).collect::<Vec<_>>();
    assert_eq!(id("FROM base AS x\nRUN a\nRUN b\n"), id("FROM base AS x\nRUN a2\nRUN b2\n"));
    assert_ne!(id("FROM base AS x\nRUN a\n"), id("FROM base AS y\nRUN a\n"));
    let all = id("FROM base AS x\nRUN a\nRUN b\n");
    assert_ne!(all[0], all[1]);
}

#[test]
fn names_of_nodes_are_one_harmless_line() {
    let p = plan(&format!("FROM base\nRUN a\u{1b}[2J \\\n b {}\n", "x".repeat(500)));
    let name = names(&p)[1];
    assert!(name.len() < 200 && !name.contains(|c: char| c.is_control()), "{name:?}");
}

#[test]
fn an_image_is_known_by_where_it_is_asked_for() {
    let text = "FROM base AS build\nRUN true\n\nFROM a\nCOPY --from=bild /x /\n";
    let file = parse(&SourceText::new("Dockerfile", text)).unwrap();
    let build = Build::new(file, options()).unwrap();
    let place = |name: &str| build.place_of(&name.parse().unwrap());
    let asked = place("bild").unwrap();
    assert_eq!((asked.place.as_str(), asked.text.as_str()), ("Dockerfile:5", "COPY --from=bild /x /"));
    assert_eq!(asked.near.as_deref(), Some("build"));
    assert_eq!(place("a").unwrap().near, None);
    assert_eq!(place("elsewhere"), None);
    let warned = build.warnings().to_string();
    assert!(warned.contains("Dockerfile:5:6: warning[D0212]"), "{warned}");
    assert!(warned.contains("did you mean the stage \"build\"?"), "{warned}");
}

#[test]
fn a_file_with_errors_is_looked_through_for_others() {
    let source = SourceText::new("Dockerfile", "FROM base\nWORKDR /x\nRUN --device=x true\n");
    let (file, found) = keelway_dockerfile::parse_all(&source);
    let all = super::refused(&file, found, &options());
    let codes: Vec<&str> = all.items.iter().map(|d| d.code.as_str()).collect();
    assert_eq!(codes, ["D0003", "D0201"]);
}

#[test]
fn what_the_context_does_not_have_is_found_without_a_build() {
    let text = "FROM base\nCOPY ap/ /app/\nCOPY app/secret /x\nCOPY *.key /x\nCOPY app $X ./\n";
    let file = parse(&SourceText::new("Dockerfile", text)).unwrap();
    let build = Build::new(file, options()).unwrap();
    let ignore = keelway_dockerfile::Ignore::parse(b"app/secret\n*.key\n").unwrap();
    let tree = crate::testing::MemTree::with(&[("app/secret", "x"), ("a.key", "x")]);
    let found: Vec<String> =
        build.missing_sources(&tree, &ignore).items.into_iter().map(|d| d.message).collect();
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].ends_with("is not in the build context; did you mean \"app\"?"), "{found:?}");
    assert!(found[1].contains(".dockerignore") && found[2].contains(".dockerignore"), "{found:?}");
}
