//! What comes out of containers by hand, who reads it, and what they hold of who started them.

use crate::container::Yard;
use crate::{Ended, Test, World};
use std::process::Stdio;
use std::time::Duration;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("container_streams::whose_reader_leaves_ends", whose_reader_leaves_ends),
    ("container_streams::the_background_holds_nothing_of_ours", background),
];

const IMAGE: &str = "busybox";
/// Until something ends that must.
const PATIENCE: Duration = Duration::from_secs(60);

/// A line of shell with `$K` for `keelway container`; its output and its status.
fn shell(yard: &Yard, line: &str) -> (String, Option<i32>) {
    let keelway = yard.command(&[]).get_program().to_owned();
    let mut sh = yard.env.command("timeout");
    sh.arg(PATIENCE.as_secs().to_string()).args(["bash", "-o", "pipefail", "-c", line]).env("K", keelway);
    let output = sh.stdin(Stdio::null()).stderr(Stdio::inherit()).output().expect("bash runs");
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code())
}

fn whose_reader_leaves_ends(world: &World) -> Ended {
    let yard = Yard::new(world);
    let run = format!("$K container run --rm --network none {IMAGE}");
    // As in a pipe of its own: the program is told by a signal.
    let (out, code) = shell(&yard, &format!("{run} yes | head -n 1"));
    assert_eq!((out.as_str(), code), ("y\n", Some(128 + 13)));
    let (_, code) = shell(&yard, &format!("{run} yes >/dev/full"));
    assert_eq!(code, Some(128 + 13));
    yard.run(&["-d", "--name", "here", IMAGE, "sleep", "1000"]).expect(0);
    let (out, code) = shell(&yard, "$K container exec here yes | head -n 1");
    assert_eq!((out.as_str(), code), ("y\n", Some(128 + 13)));
    // What comes after the image or the container is its program's.
    let echo = ["--entrypoint", "/bin/echo", IMAGE, "--version", "-h", "--help", "-e", "x"];
    assert_eq!(yard.run(&[&["--rm"], &echo[..]].concat()).expect(0).stdout, "--version -h --help -e x\n");
    assert_eq!(yard.container(&["exec", "here", "echo", "-h", "--tty"]).expect(0).stdout, "-h --tty\n");
    yard.run(&["--nonsense", IMAGE]).expect(2);
    yard.end();
    Ok(())
}

fn background(world: &World) -> Ended {
    let yard = Yard::new(world);
    let (_, code) = shell(
        &yard,
        &format!(
            "exec 9>lock; flock 9; $K container run -d --name fast --network none {IMAGE} yes 9>&9 >/dev/null; \
             exec 9>&-; flock -n lock true"
        ),
    );
    assert_eq!(code, Some(0), "a container has the lock of who started it");
    let (_, code) = shell(&yard, "until $K container logs --tail 1 fast | grep -q y; do sleep 0.05; done");
    assert_eq!(code, Some(0), "it wrote nothing");
    // It writes faster than anybody reads, and what is there has an end.
    for arguments in ["--tail 3", "--since 1s | tail -n 3", "| tail -n 3"] {
        let (out, code) = shell(&yard, &format!("$K container logs fast {arguments}"));
        assert_eq!((out.as_str(), code), ("y\ny\ny\n", Some(0)), "{arguments}");
    }
    let (out, _) = shell(&yard, "$K container logs -f fast | head -n 2");
    assert_eq!(out, "y\ny\n");
    yard.end();
    Ok(())
}
