//! Registries: TLS by an authority of one's own, logins, tokens, what is sent, what lies.

use crate::bad_input::content;
use crate::build::{build, context, with_busybox};
use crate::{Ended, Test, World};
use keelway_tests::base::{self, Base};
use keelway_tests::env::{Env, Leaks};
use keelway_tests::registry::{Front, Guard, Registry, User};
use keelway_tests::server::{Reply, Server};
use keelway_tests::tls::Authority;
use std::fs;
use std::path::Path;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("registries::tls_by_an_authority_of_ones_own", tls_by_an_authority_of_ones_own),
    ("registries::a_password_file", a_password_file),
    ("registries::a_token_server", a_token_server),
    ("registries::plain_http_beyond_loopback_is_asked_for", plain_http_beyond_loopback_is_asked_for),
    ("registries::layers_that_are_there_are_not_sent", layers_that_are_there_are_not_sent),
    ("registries::a_base_by_digest", a_base_by_digest),
    ("registries::a_tag_that_moved_is_seen", a_tag_that_moved_is_seen),
    ("registries::a_registry_that_lies_leaves_nothing", a_registry_that_lies_leaves_nothing),
];

const USER: User<'static> = User { name: "kit", password: "kit-registry-secret" };

fn image(env: &Env, name: &str) -> String {
    let dir = context(
        env,
        "app",
        &[("Dockerfile", "FROM busybox\nCOPY a /a\nCOPY b /b\n"), ("a", "1\n"), ("b", "2\n")],
    );
    build(env, &dir, &["-t", name]).expect(0).stdout.trim().to_owned()
}

fn log_in(env: &Env, registry: &str) {
    fs::create_dir_all(env.home().join(".docker")).expect("folders can be made");
    fs::write(env.home().join(".docker/config.json"), USER.docker_config(registry))
        .expect("files can be written");
}

fn text(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

/// The digest that skopeo finds.
fn found(env: &Env, name: &str, flags: &[&str]) -> String {
    let mut c = env.command("skopeo");
    c.args(["inspect", "--format", "{{.Digest}}"]).args(flags).arg(format!("docker://{name}"));
    let out = c.output().expect("skopeo runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

#[track_caller]
fn has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in\n{text}");
    }
}

fn tls_by_an_authority_of_ones_own(world: &World) -> Ended {
    let env = with_busybox(world);
    let authority = Authority::new(env.path()).expect("an authority can be made");
    let cert = authority.issue(&["127.0.0.1"]).expect("it signs");
    let registry = Registry::start(Some(&cert), None).expect("docker-registry starts");
    let name = format!("{}/shop/web:1", registry.host());
    let digest = image(&env, &name);
    // Loopback is asked by plain http until something says otherwise; the answer then says what.
    let plain = env.keelway(&["image", "push", &name]).expect(4);
    has(&plain.stderr, &[&registry.host(), "if it speaks TLS", "--registry-ca"]);
    let other = env.path().join("other");
    fs::create_dir(&other).expect("folders can be made");
    let stranger = Authority::new(&other).expect("an authority can be made");
    let ca = format!("{}={}", registry.host(), text(stranger.ca_path()));
    let refused = env.keelway(&["image", "push", &name, "--registry-ca", &ca]).expect(4);
    has(&refused.stderr, &[&registry.host(), "authority that is not trusted", "--registry-ca"]);
    assert!(registry.tags("shop/web").is_empty());
    let ca = format!("{}={}", registry.host(), text(authority.ca_path()));
    let out = env.keelway(&["image", "push", &name, "--registry-ca", &ca]).expect(0);
    assert_eq!(out.stdout.trim(), digest);
    let certs = env.path().join("certs");
    fs::create_dir(&certs).expect("folders can be made");
    fs::copy(authority.ca_path(), certs.join("ca.crt")).expect("files can be copied");
    assert_eq!(found(&env, &name, &["--cert-dir", &text(&certs)]), digest);
    // In a pipeline the file names the authority, and only this machine says what the name means.
    let repo = crate::pipeline::repository(&env, &registry.host(), "true");
    let with_ca = fs::read_to_string(repo.join("keelway.yml")).expect("it was written");
    let with_ca = format!("{with_ca}registries:\n  {}: {{ca: ours}}\n", registry.host());
    fs::write(repo.join("keelway.yml"), with_ca).expect("files can be written");
    crate::pipeline::commit(&env, &repo, "authority");
    let unknown = env.keelway_in(&repo, &["run"]).expect(2);
    has(&(unknown.stdout + &unknown.stderr), &["ours", "--registry-ca ours=FILE"]);
    env.keelway_in(&repo, &["run", "--registry-ca", &format!("ours={}", text(authority.ca_path()))])
        .expect(0);
    assert_eq!(registry.tags("shop/web").len(), 3);
    Ok(())
}

fn a_password_file(world: &World) -> Ended {
    let env = with_busybox(world);
    let registry = Registry::start(None, Some(USER)).expect("docker-registry starts");
    let name = format!("{}/shop/web:1", registry.host());
    let digest = image(&env, &name);
    let out = env.keelway(&["image", "push", &name]).expect(4);
    has(&out.stderr, &["asks for a login", "docker login"]);
    log_in(&env, &registry.host());
    let pushed = env.keelway(&["image", "push", &name]).expect(0);
    assert_eq!(pushed.stdout.trim(), digest);
    assert_eq!(registry.tags("shop/web"), ["1"]);
    // Another store gets the same image back by it.
    let there = Env::new(&world.keelway).expect("a temporary home can be made");
    log_in(&there, &registry.host());
    assert_eq!(there.keelway(&["image", "pull", &name]).expect(0).stdout.trim(), digest);
    assert!(!(pushed.stdout + &pushed.stderr + &out.stderr).contains(USER.password));
    Ok(())
}

fn a_token_server(world: &World) -> Ended {
    let env = with_busybox(world);
    let registry = Registry::start(None, None).expect("docker-registry starts");
    // Tokens of one second: a push that takes longer asks for another by itself.
    let guard = Guard { user: USER.name.into(), password: USER.password.into(), expires_in: 1 };
    let front = Front::start(&registry.host(), None, Some(guard)).expect("the front starts");
    let name = format!("{}/shop/web:1", front.host());
    let digest = image(&env, &name);
    env.keelway(&["image", "push", &name]).expect(4);
    log_in(&env, &front.host());
    let out = env.keelway(&["image", "push", &name]).expect(0);
    assert_eq!(out.stdout.trim(), digest);
    assert_eq!(registry.tags("shop/web"), ["1"]);
    assert!(front.tokens_given() > 0);
    // The password went to the token server alone.
    let basic =
        |s: &keelway_tests::server::Seen| s.header("authorization").is_some_and(|a| a.starts_with("Basic"));
    assert!(front.server().seen().iter().filter(|s| basic(s)).all(|s| s.path_only() == "/token"));
    assert_eq!(found(&env, &format!("{}/shop/web:1", registry.host()), &["--tls-verify=false"]), digest);
    Ok(())
}

fn plain_http_beyond_loopback_is_asked_for(world: &World) -> Ended {
    let env = with_busybox(world);
    // A name that is not loopback's: nothing is sent in the clear, whatever the file says.
    let repo = crate::pipeline::repository(&env, "registry.example.test:5000", "true");
    let file = fs::read_to_string(repo.join("keelway.yml")).expect("it was written");
    fs::write(
        repo.join("keelway.yml"),
        format!("{file}registries:\n  registry.example.test:5000: {{http: true}}\n"),
    )
    .expect("files can be written");
    crate::pipeline::commit(&env, &repo, "plain");
    let out = env.keelway_in(&repo, &["run"]).expect(2);
    has(
        &(out.stdout + &out.stderr),
        &["registry.example.test:5000", "plain http", "--registry-http registry.example.test:5000"],
    );
    // Allowed, it is tried: an address of this machine that is no loopback one, in a network of its own.
    let script = "ip link set lo up && ip addr add 192.0.2.7/32 dev lo && exec \"$@\"";
    let name = "192.0.2.7:9/shop/web:1";
    image(&env, name);
    let push = |flags: &[&str]| {
        let mut c = env.command("unshare");
        c.args(["--net", "sh", "-c", script, "sh"])
            .arg(&world.keelway)
            .args(["image", "push", name])
            .args(flags);
        let out = c.output().expect("unshare runs");
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (code, said) = push(&["--registry-http", "192.0.2.7:9"]);
    assert_eq!(code, Some(4), "{said}");
    has(&said, &["192.0.2.7:9", "connection refused"]);
    Ok(())
}

fn layers_that_are_there_are_not_sent(world: &World) -> Ended {
    let env = with_busybox(world);
    let registry = Registry::start(None, None).expect("docker-registry starts");
    let front = Front::start(&registry.host(), None, None).expect("the front starts");
    let name = format!("{}/shop/web:1", front.host());
    image(&env, &name);
    env.keelway(&["image", "push", &name]).expect(0);
    assert!(
        front.server().count("PUT", "/blobs/uploads/") + front.server().count("PATCH", "/blobs/uploads/")
            >= 4
    );
    front.server().forget();
    env.keelway(&["image", "push", &name]).expect(0);
    for method in ["POST", "PATCH", "PUT"] {
        assert_eq!(front.server().count(method, "/blobs/"), 0, "{method}: nothing is sent twice");
    }
    // One more file: one more layer and a config.
    let dir = env.work().join("app");
    fs::write(dir.join("Dockerfile"), "FROM busybox\nCOPY a /a\nCOPY b /b\nCOPY a /c\n")
        .expect("files can be written");
    build(&env, &dir, &["-t", &name]).expect(0);
    front.server().forget();
    env.keelway(&["image", "push", &name]).expect(0);
    assert_eq!(front.server().count("POST", "/blobs/uploads/"), 2);
    Ok(())
}

fn a_base_by_digest(world: &World) -> Ended {
    let env = with_busybox(world);
    let registry = Registry::start(None, None).expect("docker-registry starts");
    let tag = format!("{}/base/app:1", registry.host());
    let digest = image(&env, &tag);
    env.keelway(&["image", "push", &tag]).expect(0);
    let there = Env::new(&world.keelway).expect("a temporary home can be made");
    let by_digest = format!("{}/base/app@{digest}", registry.host());
    let dir =
        context(&there, "c", &[("Dockerfile", &format!("FROM {by_digest}\nRUN cat /a /b > /c; cat /c\n"))]);
    let out = build(&there, &dir, &[]).expect(0);
    has(&out.stderr, &["| 1", "| 2"]);
    // The digest is all there is to it: without the registry it is still known.
    drop(registry);
    build(&there, &dir, &["--quiet"]).expect(0);
    Ok(())
}

fn a_registry_that_lies_leaves_nothing(world: &World) -> Ended {
    let layout = base::oci_layout(Base::Busybox).expect("a busybox image can be made");
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(layout.join("index.json")).expect("the layout is there"))
            .expect("JSON");
    let blob = |digest: &str| fs::read(layout.join("blobs").join(digest.replace(':', "/"))).ok();
    let manifest = index["manifests"][0]["digest"].as_str().expect("an image").to_owned();
    let document: serde_json::Value =
        serde_json::from_slice(&blob(&manifest).expect("it is there")).expect("JSON");
    let digest_of = |v: &serde_json::Value| v["digest"].as_str().expect("a digest").to_owned();
    let (config, layer) = (digest_of(&document["config"]), digest_of(&document["layers"][0]));
    for lie in [&manifest, &config, &layer] {
        let (layout, wrong) = (layout.clone(), lie.clone());
        let server = Server::start(None, move |seen| {
            if seen.path_only() == "/v2/" {
                return Reply::status(200);
            }
            let digest = seen.path_only().rsplit('/').next().unwrap_or_default();
            let Ok(mut bytes) = fs::read(layout.join("blobs").join(digest.replace(':', "/"))) else {
                return Reply::status(404);
            };
            if digest == wrong {
                // As long as it should be, and one bit off.
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            }
            let kind = if seen.path.contains("/manifests/") {
                "application/vnd.oci.image.manifest.v1+json"
            } else {
                "application/octet-stream"
            };
            Reply::bytes(bytes).with("content-type", kind)
        })
        .expect("the server starts");
        let env = world.env();
        env.keelway(&["image", "ls"]).expect(0);
        // The config and the manifest of an honest image are no partial blobs: only what lied must not be there.
        let (leaks, before) = (Leaks::record(), content(&env.store()));
        let name = format!("{}/base/busybox@{manifest}", server.host());
        let dir = context(&env, "c", &[("Dockerfile", &format!("FROM {name}\nRUN true\n"))]);
        for out in [build(&env, &dir, &[]), env.keelway(&["image", "pull", &name])] {
            let out = out.expect(4);
            has(&out.stderr, &[&server.host(), "expected", lie, "nothing of it was kept"]);
            assert!(!out.stderr.contains("panicked"), "{}", out.stderr);
        }
        let after = content(&env.store());
        let honest: Vec<String> =
            [&manifest, &config].iter().map(|d| d["sha256:".len()..].to_owned()).collect();
        let new: Vec<&String> = after
            .iter()
            .filter(|f| !before.contains(f) && !honest.iter().any(|h| f.contains(h.as_str())))
            .collect();
        assert!(new.is_empty(), "{lie}: the store got {new:?}");
        assert!(
            !after.iter().any(|f| f.contains(&lie["sha256:".len()..]) && !before.contains(f)),
            "{lie} is in the store"
        );
        leaks.assert_none();
    }
    Ok(())
}

fn a_tag_that_moved_is_seen(world: &World) -> Ended {
    let (here, there) = (with_busybox(world), world.env());
    let registry = Registry::start(None, None).expect("docker-registry starts");
    let name = format!("{}/shop/base:12", registry.host());
    let base = |text: &str| {
        let dir = context(&here, "base", &[("Dockerfile", "FROM busybox\nCOPY a /a\n"), ("a", text)]);
        let digest = build(&here, &dir, &["-t", &name]).expect(0).stdout.trim().to_owned();
        here.keelway(&["image", "push", &name]).expect(0);
        digest
    };
    let dir = context(&there, "c", &[("Dockerfile", &format!("FROM {name}\nRUN true\n"))]);
    let first = base("1\n");
    let one = build(&there, &dir, &[]).expect(0).stdout;
    assert_eq!(build(&there, &dir, &[]).expect(0).stdout, one, "nothing moved");
    let second = base("2\n");
    let out = build(&there, &dir, &[]).expect(0);
    assert_ne!(out.stdout, one);
    has(&out.stderr, &[&format!("{name} has moved from {first} to {second}")]);
    // Where the name was given, the store decides, and says so.
    let own = context(&here, "c", &[("Dockerfile", &format!("FROM {name}\nRUN true\n"))]);
    let own = build(&here, &own, &[]).expect(0);
    assert_eq!(own.stdout, out.stdout);
    has(&own.stderr, &[&format!("{name}@{second} (from the store)")]);
    // Without its registry the machine builds on with what it has, and says that, too.
    drop(registry);
    let alone = build(&there, &dir, &[]).expect(0);
    assert_eq!(alone.stdout, out.stdout);
    has(&alone.stderr, &[&format!("{name}@{second} (from the store; whether it has moved is not known")]);
    Ok(())
}
