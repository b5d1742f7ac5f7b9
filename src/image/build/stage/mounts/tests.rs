//! Options, their defaults, what they need, and what is refused.

use crate::build::tests::{bases, copies, execs, names, options, plan, refused, try_plan};
use keelway_model::Bytes;
use keelway_model::mount::{FileAccess, RunMount, Sharing};
use keelway_model::plan::{CopyFrom, Op};

fn mounts(text: &str) -> Vec<RunMount> {
    let p = plan(text);
    execs(&p).last().expect("it has a RUN").mounts.clone()
}

fn access(mode: u32, uid: u32, gid: u32) -> FileAccess {
    FileAccess { mode, uid, gid }
}

#[test]
fn binds_need_what_they_show() {
    let p = plan(
        "FROM a AS one\nRUN x\nFROM base\nWORKDIR /w\nRUN --mount=from=one,src=../o,dst=here,rw --mount=target=/c --mount=type=bind,source=s*,target=/s,rw,ro --mount=from=b,target=/b y\nRUN --mount=target=/again z\n",
    );
    let run = execs(&p)[1];
    let bind = |target: &str, need, source: &str, writable| RunMount::Bind {
        target: target.into(),
        need,
        source: source.into(),
        writable,
    };
    assert_eq!(
        run.mounts,
        [
            bind("/w/here", 1, "/o", true),
            bind("/c", 2, "/bound", false),
            bind("/s", 3, "/bound", false),
            bind("/b", 4, "/", false)
        ]
    );
    let node = |wanted: &str| p.nodes.iter().find(|n| n.name.ends_with(wanted)).expect("it is planned");
    let (first, second) = (node("y"), node("z"));
    let needs: Vec<&str> = first.needs.iter().map(|n| p.node(*n).unwrap().name.as_str()).collect();
    assert_eq!(
        needs,
        [
            "[stage-1 2/4] WORKDIR /w",
            "[one 2/2] RUN x",
            "[stage-1 context] .",
            "[stage-1 context] s*",
            "FROM docker.io/library/b:latest"
        ]
    );
    assert_eq!(second.needs[1], first.needs[2], "one copy of the context for both");
    let shown = copies(&p);
    assert_eq!(shown.len(), 2);
    assert!(shown.iter().all(|c| c.from == CopyFrom::Context && c.dest == "/bound"));
    assert_eq!(shown[1].sources, ["/s\\*"], "a source is no pattern");
    assert!(matches!(&p.node(first.needs[2]).unwrap().needs[..],
        [base] if matches!(&p.node(*base).unwrap().op, Op::Base(b) if b.manifest.is_none())));
    assert_eq!(names(&p).last(), Some(&"image"));
}

#[test]
fn caches_have_the_references_defaults() {
    let cache = |target: &str, id: &str, sharing, read_only| RunMount::Cache {
        target: target.into(),
        id: id.into(),
        sharing,
        read_only,
        source: "/".into(),
        seed: None,
        access: access(0o755, 0, 0),
    };
    assert_eq!(
        mounts("FROM base\nWORKDIR /w\nRUN --mount=type=cache,target=c/../d y\n"),
        [cache("/w/d", "/w/d", Sharing::Shared, false)]
    );
    assert_eq!(
        mounts("FROM base\nARG I=n T=/c\nRUN --mount=type=cache,id=$I-1,target=${T},ro,sharing=private y\n"),
        [cache("/c", "n-1", Sharing::Private, true)]
    );
    let all = "type=cache,target=/c,from=a,source=/s,mode=1770,uid=7,gid=8,sharing=locked,readonly=false";
    assert_eq!(
        mounts(&format!("FROM base\nRUN --mount={all} y\n")),
        [RunMount::Cache {
            target: "/c".into(),
            id: "/c".into(),
            sharing: Sharing::Locked,
            read_only: false,
            source: "/".into(),
            seed: Some((1, "/s".into())),
            access: access(0o1770, 7, 8),
        }]
    );
}

#[test]
fn secrets_and_agents_are_named() {
    let file = |target: &str, id: &str, required, access| RunMount::Secret {
        target: target.into(),
        id: id.into(),
        required,
        access,
    };
    let variable = |name: &str, id: &str, required| RunMount::SecretVariable {
        name: name.into(),
        id: id.into(),
        required,
    };
    let plain = access(0o400, 0, 0);
    assert_eq!(
        mounts(
            "FROM base\nRUN --mount=type=secret,id=a/b --mount=type=secret,target=/x/c,required,mode=0444,uid=1,gid=2 --mount=type=secret,id=d,env=D --mount=type=secret,id=e,env=E,target=/e,required=true y\n"
        ),
        [
            file("/run/secrets/b", "a/b", false, plain),
            file("/x/c", "c", true, access(0o444, 1, 2)),
            variable("D", "d", false),
            variable("E", "e", true),
            file("/e", "e", true, plain),
        ]
    );
    let agent = |target: &str, id: &str, required, access| RunMount::Agent {
        target: target.into(),
        id: id.into(),
        required,
        access,
    };
    assert_eq!(
        mounts(
            "FROM base\nRUN --mount=type=ssh --mount=type=ssh,id=k,required,uid=5 --mount=type=ssh,target=/s y\n"
        ),
        [
            agent("/run/buildkit/ssh_agent.0", "default", false, access(0o600, 0, 0)),
            agent("/run/buildkit/ssh_agent.1", "k", true, access(0o600, 5, 0)),
            agent("/s", "default", false, access(0o600, 0, 0)),
        ]
    );
    assert_eq!(
        mounts("FROM base\nRUN --mount=type=tmpfs,target=/t --mount=type=tmpfs,target=/u,size=64m y\n"),
        [
            RunMount::Tmpfs { target: "/t".into(), size: None },
            RunMount::Tmpfs { target: "/u".into(), size: Some(Bytes(64 << 20)) }
        ]
    );
}

#[test]
fn what_cannot_be_is_refused_where_it_stands() {
    for (mount, what) in [
        ("type=bind", "it needs a target"),
        ("type=cache,id=x", "it needs a target"),
        ("type=tmpfs,size=1m", "it needs a target"),
        ("target=/", "cannot be /"),
        ("target=/x/..", "cannot be /"),
        ("type=tmpfs,target=/x,size=many", "not a size"),
        ("type=cache,target=/x,sharing=lokced", "did you mean locked?"),
        ("type=cache,target=/x,sharing=$NOPE", "one of shared, private, locked"),
        ("type=cache,target=/x,mode=9", "not a mode"),
        ("type=cache,target=/x,mode=17777", "not a mode"),
        ("type=cache,target=/x,uid=65536", "not a number from 0 to 65535"),
        ("type=secret", "needs an id or a target"),
        ("type=secret,id=..", "names no file"),
        ("type=secret,id=a,env=A=B", "cannot be the name of a variable"),
        ("type=secret,id=a,required=$BASE$BASE", "neither true nor false"),
        ("from=later,target=/x", "defined before current stage"),
        ("from=7,target=/x", "no stage 7 before"),
        ("from=Not/Valid,target=/x", "not an image reference"),
        ("type=cache,from=$BASE,target=/x", "not an image reference"),
    ] {
        let text = format!("FROM base AS me\nRUN --mount={mount} y\nFROM a AS later\nCOPY --from=me /a /b\n");
        let e = refused(&text);
        assert!(e.contains(what) && e.contains("Dockerfile:2:"), "{mount}: {e}");
    }
    // A stage that only a mount needs is built, and its errors are found.
    let e = refused("FROM base AS tools\nRUN --device=x y\nFROM base\nRUN --mount=from=tools,target=/t z\n");
    assert!(e.contains("--device"), "{e}");
    let text = "FROM base\nRUN --mount=from=nowhere/at/all,target=/t z\n";
    assert!(
        std::panic::catch_unwind(|| try_plan(text, options(), &bases())).is_err(),
        "its image is asked for"
    );
}
