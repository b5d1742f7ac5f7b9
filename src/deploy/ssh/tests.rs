//! What ssh is given, what it says, and what that means.

use super::*;

mod real;

fn binary(path: &Path) -> Binary {
    Binary {
        path: path.into(),
        digest: Digest::of(b"keelway"),
        version: "0.1.0".into(),
        machine: "x86_64".into(),
        dir: BIN_DIR.into(),
    }
}

#[test]
fn hosts_that_are_options_or_shell_are_refused() {
    for bad in [
        "",
        "-oProxyCommand=x",
        "a;b",
        "a\nb",
        "a b",
        "root@-x",
        "-x@host",
        "@host",
        "a@",
        "a@b@c",
        "$(x)",
        "a`b`",
        "h/x",
        "h\0",
        "é",
        &"a".repeat(300),
    ] {
        assert!(bad.parse::<SshHost>().is_err(), "{bad:?}");
    }
    for good in ["app1", "root@app1.example.com", "deploy_1@198.18.0.2", "root@fe80::1%eth0"] {
        assert_eq!(good.parse::<SshHost>().unwrap().as_str(), good);
    }
}

#[test]
fn the_argument_vector_is_this() {
    let host = "root@app1".parse().unwrap();
    let argv: Vec<String> = argv(Some(Path::new("/etc/x")), &host, "true")
        .into_iter()
        .map(|a| a.into_string().unwrap())
        .collect();
    assert_eq!(argv[..2], ["-F", "/etc/x"]);
    assert_eq!(argv[argv.len() - 4..], ["-T", "--", "root@app1", "true"]);
    for must in ["BatchMode=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=10"] {
        let at = argv.iter().position(|a| a == must).unwrap();
        assert_eq!(argv[at - 1], "-o");
    }
}

#[test]
fn a_host_key_that_is_unknown_or_changed_says_what_to_do() {
    let host = "root@app1";
    assert_eq!(
        classify(host, "Host key verification failed.").to_string(),
        "root@app1: its ssh host key is not known; compare it with what the host shows, then add it: \
         ssh-keyscan app1 >> ~/.ssh/known_hosts (or connect once by hand: ssh root@app1)"
    );
    assert_eq!(
        classify(host, "Offending ED25519 key in /x:1\nHost key verification failed.").to_string(),
        "root@app1: its ssh host key has CHANGED since it was recorded; if the host was not reinstalled, somebody may \
         be in between. If it was: ssh-keygen -R app1, then record the new key"
    );
}

#[test]
fn ssh_errors_are_told_apart() {
    let cases = [
        (
            "No ED25519 host key is known for h and you have requested strict checking.\nHost key verification failed.",
            "is not known",
        ),
        (
            "@@@\n@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
            "CHANGED",
        ),
        ("root@h: Permission denied (publickey).", "refused"),
        ("ssh: connect to host h port 22: Connection refused", "Connection refused"),
        ("ssh: Could not resolve hostname h: Name or service not known", "not resolve"),
        ("", "no answer"),
    ];
    for (stderr, want) in cases {
        let text = classify("h", stderr).to_string();
        assert!(text.contains(want) && text.contains("ssh"), "{text}");
    }
    let hostile = classify("h", "x\u{1b}[2J\u{7}evil").to_string();
    assert!(!hostile.contains('\u{1b}'), "{hostile}");
}

/// Runs what ssh would be given as the remote command, in a real shell with the paths moved to a temp folder.
fn local_shell(remote: &str, dir: &Path, stdin: &[u8]) -> std::process::Output {
    use std::io::Write;
    let moved = remote.replace(BIN_DIR, &dir.display().to_string());
    let mut child = std::process::Command::new("sh")
        .args(["-c", &moved])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn the_binary_arrives_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("bin");
    let content = b"#!/bin/sh\necho ran \"$1\" \"$SSH_CONNECTION\"\n";
    let b = Binary { digest: Digest::of(content), ..binary(&bin) };
    let missing = local_shell(&run_command(&b), &bin, b"");
    assert_eq!(missing.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&missing.stdout).starts_with("keelway-probe machine "));
    let torn = local_shell(&bring_command(&b), &bin, &content[..10]);
    assert!(!torn.status.success());
    assert_eq!(std::fs::read_dir(&bin).unwrap().count(), 0, "nothing is left of a torn copy");
    let whole = local_shell(&bring_command(&b), &bin, content);
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    assert_eq!(std::fs::read_dir(&bin).unwrap().count(), 1);
    let ran = local_shell(&run_command(&b), &bin, b"");
    assert!(String::from_utf8_lossy(&ran.stdout).starts_with("ran __host"), "{ran:?}");
    // Of three versions, the two that came last are kept; what is not ours stays.
    std::fs::write(bin.join("note"), "").unwrap();
    let versions = ["0.2.0", "0.3.0"].map(|v| Binary { version: v.into(), ..b.clone() });
    for version in &versions {
        let brought = local_shell(&bring_command(version), &bin, content);
        assert!(brought.status.success(), "{}", String::from_utf8_lossy(&brought.stderr));
    }
    let name = |b: &Binary| b.remote_path().rsplit('/').next().unwrap().to_owned();
    let mut left: Vec<String> =
        std::fs::read_dir(&bin).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, [name(&versions[0]), name(&versions[1]), "note".to_owned()]);
}

#[test]
fn the_binary_is_on_the_disk_before_it_has_its_name() {
    let command = bring_command(&binary(Path::new("/x")));
    let at = |what: &str| command.find(what).unwrap();
    assert!(at("sha256sum") < at("sync ") && at("sync ") < at("mv -f"), "{command}");
}

/// A stand-in for ssh: drops what is ours, then does `body` with the remote command in `$r`.
fn fake_ssh(dir: &Path, body: &str) -> SshSettings {
    use std::os::unix::fs::PermissionsExt;
    let program = dir.join("ssh");
    std::fs::write(&program, format!("#!/bin/sh\nfor r; do :; done\n{body}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    SshSettings { program, before: Vec::new(), config: None, binary: Arc::new(binary(&dir.join("none"))) }
}

async fn connect(settings: SshSettings) -> ConnectError {
    let link = SshLink::new(&TargetHost { ssh: "root@h".into() }, settings).unwrap();
    link.connect().await.unwrap_err()
}

#[tokio::test]
async fn what_the_far_end_does_becomes_the_right_error() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let e = connect(fake_ssh(d, "echo 'Host key verification failed.' >&2; exit 255")).await;
    assert!(matches!(e, ConnectError::HostKeyUnknown { .. }), "{e}");
    let e = connect(fake_ssh(d, "echo motd; echo keelway-probe login bob; exit 3")).await;
    assert!(matches!(&e, ConnectError::NoRoot { user, .. } if user == "bob"), "{e}");
    let e = connect(fake_ssh(d, "echo keelway-probe machine riscv64; exit 4")).await;
    assert!(matches!(&e, ConnectError::Architecture { theirs, .. } if theirs == "riscv64"), "{e}");
    let e = connect(fake_ssh(d, "echo keelway-probe machine x86_64; exit 4")).await;
    assert!(matches!(&e, ConnectError::Bring { .. }), "the local file is missing: {e}");
    let e = connect(fake_ssh(d, "echo This account is closed; exit 1")).await;
    assert!(e.to_string().contains("account is closed"), "{e}");
    let e = connect(SshSettings { program: d.join("nothing"), ..fake_ssh(d, "") }).await;
    assert!(matches!(&e, ConnectError::NoSsh { .. }), "{e}");
}
