//! `COPY` and `ADD` with their flags, in real builds: what a `RUN` after them finds, and what hits.

use crate::build::{build, context, nodes, with_busybox};
use crate::{Ended, Test, World};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("copying::what_a_copy_takes", what_a_copy_takes),
    ("copying::a_link_outlives_its_base", a_link_outlives_its_base),
    ("copying::archives_of_every_kind", archives_of_every_kind),
];

fn what_a_copy_takes(world: &World) -> Ended {
    let env = with_busybox(world);
    let dockerfile = "FROM busybox\n\
        COPY --exclude=**/*.md --exclude=!README.md --chmod=u=rwX,go=rX src /src/\n\
        COPY --parents src/./lib/**/*.c src/run /p/\n\
        RUN set -e; cd /; find src p | sort > /list; \\\n\
        for f in src/run src/lib/a.c src/lib; do stat -c '%a %n' $f; done > /modes\n\
        FROM scratch\n\
        COPY <<WANT /want\n\
        p\np/lib\np/lib/a.c\np/lib/deep\np/lib/deep/b.c\np/src\np/src/run\n\
        src\nsrc/README.md\nsrc/lib\nsrc/lib/a.c\nsrc/lib/deep\nsrc/lib/deep/b.c\nsrc/run\n\
        755 src/run\n644 src/lib/a.c\n755 src/lib\n\
        WANT\n\
        FROM busybox\n\
        COPY --from=0 /list /modes /\n\
        COPY --from=1 /want /\n\
        RUN cat /list /modes | diff /want -\n";
    let files = [
        ("Dockerfile", dockerfile),
        ("src/README.md", "read"),
        ("src/run", "#!"),
        ("src/lib/a.c", "a"),
        ("src/lib/notes.md", "n"),
        ("src/lib/deep/b.c", "b"),
    ];
    let dir = context(&env, "c", &files);
    let mode = |path: &str, mode: u32| {
        fs::set_permissions(dir.join(path), PermissionsExt::from_mode(mode)).expect("its mode can be set");
    };
    mode("src/run", 0o700);
    mode("src/lib/a.c", 0o600);
    build(&env, &dir, &["--format", "json"]).expect(0);
    // What is left out, and what --chmod hides, changes nothing.
    fs::write(dir.join("src/lib/notes.md"), "changed").expect("files can be written");
    mode("src/lib/a.c", 0o640);
    mode("src/lib/deep", 0o750);
    let again = build(&env, &dir, &["--format", "json"]).expect(0);
    let hits = nodes(&again, "cache-hit");
    assert!(hits.iter().any(|n| n.contains("COPY --exclude")), "{hits:?}");
    let misses = nodes(&again, "cache-miss");
    assert!(misses[0].contains("COPY --parents"), "it keeps the modes of the source: {misses:?}");
    Ok(())
}

fn a_link_outlives_its_base(world: &World) -> Ended {
    let env = with_busybox(world);
    // The same layer twice: a mount that took one directory two times would fail.
    let dockerfile = "FROM busybox\n\
        ARG V\n\
        RUN echo $V > /v; mkdir -m 1777 /open; echo app:x:71:72::/:/bin/sh >> /etc/passwd\n\
        COPY --link --chown=app --chmod=u=rwX,go= a /open/\n\
        COPY --link a /n\n\
        RUN [ $(stat -c %u:%g:%a /open/a) = 71:71:600 ] && echo changed > /n && cat /v\n\
        COPY --link a /n\n\
        RUN cmp /n /open/a && ls -ld /open\n";
    let dir = context(&env, "c", &[("Dockerfile", dockerfile), ("a", "A\n")]);
    let first = build(&env, &dir, &["--build-arg", "V=1"]).expect(0).stdout;
    let again = build(&env, &dir, &["--build-arg", "V=2", "--format", "json"]).expect(0);
    let (hits, misses) = (nodes(&again, "cache-hit"), nodes(&again, "cache-miss"));
    assert_eq!(hits.iter().filter(|n| n.contains("COPY --link")).count(), 3, "{hits:?}");
    assert!(misses.len() == 3 && misses.iter().all(|n| n.contains("RUN")), "{misses:?}");
    assert_eq!(build(&env, &dir, &["--build-arg", "V=1"]).expect(0).stdout, first, "the same image again");
    Ok(())
}

fn archives_of_every_kind(world: &World) -> Ended {
    let env = with_busybox(world);
    let kinds = [("gzip", "gz"), ("bzip2", "bz2"), ("xz", "xz"), ("zstd", "zst")];
    let mut dockerfile = String::from("FROM busybox\n");
    for (_, end) in kinds {
        dockerfile.push_str(&format!("ADD a.tar.{end} /{end}/\nADD --unpack=false a.tar.{end} /as-is/\n"));
    }
    dockerfile.push_str(
        "ADD --unpack=true --chown=7:8 a.tar.zst /owned/\n\
         RUN set -e; for d in gz bz2 xz zst owned; do cmp /$d/f /gz/f; test $(du -k /$d/holes | cut -f1) -lt 100; \\\n\
         test $(stat -c %s /$d/holes) = 3000000; done; test $(stat -c %u:%g /owned/f) = 7:8; ls /as-is | wc -l | grep -x 4\n",
    );
    let dir = context(&env, "c", &[("Dockerfile", &dockerfile), ("f", &"some text\n".repeat(5000))]);
    fs::File::create(dir.join("holes"))
        .and_then(|f| f.set_len(3_000_000))
        .expect("a file of a hole can be made");
    let made = env.command("tar").args(["--sparse", "-cf", "a.tar", "f", "holes"]).current_dir(&dir).status();
    assert!(made.expect("tar runs").success());
    for (tool, _) in kinds {
        let mut pack = env.command(tool);
        assert!(
            pack.args(["-q", "-k", "a.tar"]).current_dir(&dir).status().expect("it runs").success(),
            "{tool}"
        );
    }
    build(&env, &dir, &[]).expect(0);
    Ok(())
}
