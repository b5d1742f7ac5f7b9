//! Others' tools read what we push: skopeo copies it, umoci unpacks it to the tree that our own steps see, runc runs it.

use crate::build::{context, with_busybox};
use crate::pipeline::{commit, git};
use crate::{Ended, Test, World};
use keelway_tests::env::Env;
use keelway_tests::registry::Registry;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The tests of this file.
pub const TESTS: &[Test] =
    &[("tools::skopeo_umoci_and_runc_read_what_was_pushed", skopeo_umoci_and_runc_read_what_was_pushed)];

/// How long one tool may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// Everything that a layer can hold, and everything that a later layer can do to it.
pub const DOCKERFILE: &str = "FROM busybox AS other\nRUN mkdir -p /made/deep && echo made > /made/deep/file && ln -s ../deep/file /made/deep/link\n\
FROM busybox AS all\n\
COPY --chown=1000:2000 --chmod=750 files/ /data/files/\n\
RUN mkdir -p /data/empty /data/old /data/opaque && echo 1 > /data/old/a && echo 2 > /data/old/b && echo 3 > /data/opaque/c\n\
RUN cd /data && echo suid > suid && chmod 4755 suid && echo sticky > group && chmod 2711 group && chown 7:8 group && ln suid hard && ln -s /nowhere dangling && mkdir t && chmod 1777 t && mkfifo pipe && chmod 600 pipe\n\
RUN rm /data/old/a && rm -r /data/opaque && mkdir /data/opaque && echo 4 > /data/opaque/d && mv /data/old/b /data/moved && rm -r /data/old && echo new > /data/old\n\
RUN chmod 700 /root && dd if=/dev/zero of=/data/zeros bs=1M count=3 && chown 1000:5 /data/files && echo more >> /data/files/a\n\
COPY --from=other /made /data/made\n\
FROM all\n\
ENV GREETING=hello\nWORKDIR /data/files\nUSER 1000:2000\n\
CMD [\"sh\", \"-c\", \"id -u; pwd; cat a; echo $GREETING from runc\"]\n";

/// One line for each entry: name, kind and mode, owner, and what is in it. Times are left out.
pub const LIST: &str = "for top in bin data etc/passwd etc/group root tmp usr var; do find $top; done | sort | while read -r f; do \
stat -c \"%n %F %a %u:%g\" \"$f\"; if [ -L \"$f\" ]; then readlink \"$f\"; elif [ -f \"$f\" ]; then stat -c \"%s %h\" \"$f\"; sha256sum < \"$f\"; fi; done";

/// What a program says that must succeed.
#[track_caller]
pub fn tool(env: &Env, program: &str, args: &[&str]) -> String {
    run(env.command(program).args(args))
}

/// The same of a command.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let out = keelway_tests::env::run(command, DEADLINE).expect("the tool runs");
    assert!(out.status.success(), "{command:?}\n{}{}", out.stdout, out.stderr);
    out.stdout
}

fn text(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

/// A repository whose pipeline builds, lists the image's files in a step, and pushes.
fn repository(env: &Env, registry: &str) -> std::path::PathBuf {
    // The step reads everything, so its image is the one before USER: the same layers.
    let pipeline = format!(
        "version: 1\nstages:\n  image:\n    build: {{context: .}}\n  all:\n    build: {{context: ., target: all}}\n  list:\n    needs: [all]\n    image: {{stage: all}}\n    steps:\n      \
         - name: list\n        run: |\n          cd /\n          {LIST}\n  publish:\n    needs: [image]\n    push: {{image: {{stage: image}}, to: '{registry}/shop/web', tags: [commit, branch]}}\n"
    );
    let dir = context(
        env,
        "repo",
        &[
            ("Dockerfile", DOCKERFILE),
            ("files/a", "a\n"),
            ("files/sub/b", "b\n"),
            ("files/ü mlaut", "c\n"),
            ("keelway.yml", &pipeline),
        ],
    );
    git(env, &dir, &["init", "-q", "-b", "main"]);
    commit(env, &dir, "first");
    dir
}

fn skopeo_umoci_and_runc_read_what_was_pushed(world: &World) -> Ended {
    let env = with_busybox(world);
    let registry = Registry::start(None, None).expect("docker-registry starts");
    let repo = repository(&env, &registry.host());
    let out = env.keelway_in(&repo, &["run"]).expect(0);
    let name = format!("docker://{}/shop/web:main", registry.host());
    // One digest: in the registry, in what the run said, and in the record.
    let digest = tool(&env, "skopeo", &["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &name])
        .trim()
        .to_owned();
    assert!(
        digest.starts_with("sha256:") && out.stderr.contains(&digest),
        "{digest} is not in\n{}",
        out.stderr
    );
    let show = env.keelway(&["runs", "show"]).expect(0).stdout;
    for stage in ["image:", "publish:"] {
        let line = show.lines().find(|l| l.trim().starts_with(stage)).expect("the stage is shown");
        assert!(line.contains(&digest), "{digest} is not in {line}");
    }
    // skopeo copies every byte and checks every digest; the copy has the same one.
    let layout = env.work().join("layout");
    let oci = format!("oci:{}:main", text(&layout));
    tool(&env, "skopeo", &["copy", "--quiet", "--src-tls-verify=false", &name, &oci]);
    assert_eq!(tool(&env, "skopeo", &["inspect", "--format", "{{.Digest}}", &oci]).trim(), digest);
    // umoci makes the tree that our own step saw.
    let bundle = env.work().join("bundle");
    tool(&env, "umoci", &["unpack", "--image", &format!("{}:main", text(&layout)), &text(&bundle)]);
    let ours = env.keelway(&["runs", "logs", "--stage", "list"]).expect(0).stdout;
    let theirs = run(env
        .command("/bin/busybox")
        .args(["sh", "-c", &LIST.replace("for top", "cd rootfs; for top")])
        .current_dir(&bundle)
        .env("PATH", text(&bundle.join("rootfs/bin"))));
    let (ours, theirs): (Vec<&str>, Vec<&str>) = (ours.lines().collect(), theirs.lines().collect());
    assert!(ours.len() > 100 && ours.iter().any(|l| l.contains("data/suid")), "{ours:?}");
    for (a, b) in ours.iter().zip(&theirs) {
        assert_eq!(a, b, "ours, then umoci's");
    }
    assert_eq!(ours.len(), theirs.len());
    runs_in_runc(&env, &bundle);
    // Bundles hold files of other users and modes; removed here, where a failure is seen.
    fs::remove_dir_all(&bundle).expect("the bundle can be removed");
    Ok(())
}

/// Debian's runc runs the bundle as the image says: user, folder, environment, command.
fn runs_in_runc(env: &Env, bundle: &Path) {
    let file = bundle.join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&fs::read(&file).expect("umoci wrote it")).expect("JSON");
    // Nobody sits at a terminal here.
    config["process"]["terminal"] = false.into();
    fs::write(&file, config.to_string()).expect("files can be written");
    let state = env.path().join("runc");
    let id = format!("keelway-kit-{}", std::process::id());
    let said =
        run(env.command("runc").args(["--root", &text(&state), "run", "--bundle", &text(bundle), &id]));
    assert_eq!(said, "1000\n/data/files\na\nmore\nhello from runc\n");
}
