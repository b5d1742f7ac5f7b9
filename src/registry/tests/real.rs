//! Against Debian's docker-registry, and skopeo as the witness.

use super::*;
use crate::Stage;
use keelway_tests::registry::{Front, Guard, Registry, User};
use keelway_tests::tls::Authority;
use std::process::Command;
use std::sync::Mutex;

const ALICE: User<'static> = User { name: "alice", password: "wonder land:1" };

fn skopeo(args: &[&str]) -> String {
    let out = Command::new("skopeo").args(args).output().unwrap();
    assert!(out.status.success(), "skopeo {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Pushes, lets skopeo look, pulls into an empty store, pushes again.
async fn there_and_back(host: &str, login: Option<(&str, &str)>, ca: Option<&Path>) {
    let image = Image::new(vec![layer(1, 10_000), layer(2, 3_000_000), layer(3, 0)]);
    let from = TestStore::new();
    let descriptor = image.put(&from.store);
    let client = client_for(host, login, ca);
    let tags = ["t".parse().unwrap(), "4f2c".parse().unwrap()];
    let pushed =
        client.push(&from.store, &descriptor, &repository(host), &tags, crate::silent()).await.unwrap();
    assert_eq!(pushed.digest(), descriptor.digest);
    assert_eq!(pushed.to_string(), format!("{host}/shop/app@{}", descriptor.digest));

    let dir = tempfile::tempdir().unwrap();
    let creds = login.map(|(n, p)| format!("{n}:{p}"));
    let mut args = vec!["--tls-verify=false"];
    let certs = dir.path().join("certs");
    if let Some(ca) = ca {
        std::fs::create_dir(&certs).unwrap();
        std::fs::copy(ca, certs.join("ca.crt")).unwrap();
        args = vec!["--cert-dir", certs.to_str().unwrap()];
    }
    if let Some(creds) = &creds {
        args.extend(["--creds", creds]);
    }
    for tag in ["t", "4f2c"] {
        let name = format!("docker://{host}/shop/app:{tag}");
        let seen = skopeo(&[&["inspect", "--format", "{{.Digest}}"], &args[..], &[&name]].concat());
        assert_eq!(seen.trim(), descriptor.digest.to_string());
    }
    let copy = dir.path().join("copy");
    let target = format!("dir:{}", copy.display());
    let args: Vec<&str> = args
        .iter()
        .map(|a| match *a {
            "--tls-verify=false" => "--src-tls-verify=false",
            "--cert-dir" => "--src-cert-dir",
            "--creds" => "--src-creds",
            a => a,
        })
        .collect();
    skopeo(
        &[
            &["copy", "-q", "--insecure-policy"],
            &args[..],
            &[&format!("docker://{host}/shop/app:t"), &target],
        ]
        .concat(),
    );
    assert_eq!(std::fs::read(copy.join("manifest.json")).unwrap(), image.manifest);
    for bytes in &image.layers {
        assert!(std::fs::read(copy.join(Digest::of(bytes).hex())).unwrap() == *bytes);
    }

    let to = TestStore::new();
    let got = pull(&client, &to.store, host).await.unwrap();
    assert_eq!(got.pinned, descriptor);
    assert_eq!(got.descriptor, descriptor);
    assert_eq!(got.manifest_bytes, image.manifest);
    for bytes in image.layers.iter().chain([&image.config, &image.manifest]) {
        assert!(to.store.read_blob(&Digest::of(bytes), 1 << 30).unwrap() == *bytes);
    }
    let by_digest: ImageRef = format!("{host}/shop/app@{}", descriptor.digest).parse().unwrap();
    let alone = client.resolve(&by_digest, &Platform::host()).await.unwrap();
    assert_eq!(alone.config_bytes, image.config);
}

#[tokio::test]
async fn plain() {
    let registry = Registry::start(None, None).unwrap();
    there_and_back(&registry.host(), None, None).await;
    assert_eq!(registry.tags("shop/app"), ["4f2c", "t"]);
}

#[tokio::test]
async fn tls() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path()).unwrap();
    let registry = Registry::start(Some(&authority.issue(&["127.0.0.1"]).unwrap()), None).unwrap();
    there_and_back(&registry.host(), None, Some(authority.ca_path())).await;

    let hosts = BTreeMap::from([(registry.host(), HostSettings::default())]);
    let e = client_with(Credentials::default(), hosts)
        .resolve(&tagged(&registry.host()), &Platform::host())
        .await
        .unwrap_err();
    let host = registry.host();
    assert_eq!(
        e.to_string(),
        format!(
            "cannot pull {host}/shop/app:t: {host} shows a certificate from an authority that is not trusted here; if it is \
             yours, name it in keelway.yml (registries: {{{host}: {{ca: NAME}}}}) and give the file with --registry-ca NAME=FILE"
        )
    );
}

#[tokio::test]
async fn tls_and_htpasswd() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path()).unwrap();
    let registry = Registry::start(Some(&authority.issue(&["127.0.0.1"]).unwrap()), Some(ALICE)).unwrap();
    there_and_back(&registry.host(), Some((ALICE.name, ALICE.password)), Some(authority.ca_path())).await;

    let host = registry.host();
    let store = TestStore::new();
    let descriptor = Image::new(vec![layer(1, 10)]).put(&store.store);
    let before = store.files();
    for (login, want) in [
        (
            Some(("alice", "wrong")),
            format!(
                "cannot push {host}/shop/app: {host} refuses the login of \"alice\" that /home/me/.docker/config.json holds; run \
                 `docker login {host}` (or another tool that writes docker's config.json) again"
            ),
        ),
        (
            None,
            format!(
                "cannot push {host}/shop/app: {host} asks for a login and ~/.docker/config.json has none for it; run `docker login \
                 {host}` (or another tool that writes docker's config.json)"
            ),
        ),
    ] {
        let client = client_for(&host, login, Some(authority.ca_path()));
        let tags = ["other".parse().unwrap()];
        let e = client
            .push(&store.store, &descriptor, &repository(&host), &tags, crate::silent())
            .await
            .unwrap_err();
        assert_eq!(e.to_string(), want);
        store.settles_at(&before);
    }
    assert_eq!(registry.tags("shop/app"), ["4f2c", "t"]);
}

#[tokio::test]
async fn behind_a_token_server() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path()).unwrap();
    let registry = Registry::start(None, None).unwrap();
    // Tokens live so short that several are needed on the way.
    let guard = Guard { user: "alice".into(), password: "s".into(), expires_in: 1 };
    let front =
        Front::start(&registry.host(), Some(&authority.issue(&["127.0.0.1"]).unwrap()), Some(guard)).unwrap();
    there_and_back(&front.host(), Some(("alice", "s")), Some(authority.ca_path())).await;
    assert!(front.tokens_given() >= 2, "one to push, one to pull");

    let host = front.host();
    let e = client_for(&host, Some(("alice", "x")), Some(authority.ca_path()))
        .resolve(&tagged(&host), &Platform::host())
        .await
        .unwrap_err();
    assert!(matches!(e.problem(), crate::Problem::BadLogin { user, .. } if user == "alice"), "{e}");
    let e = client_for(&host, None, Some(authority.ca_path()))
        .resolve(&tagged(&host), &Platform::host())
        .await
        .unwrap_err();
    assert!(matches!(e.problem(), crate::Problem::NoLogin { .. }), "{e}");
}

#[tokio::test]
async fn what_the_registry_has_is_not_sent_and_what_the_store_has_is_not_fetched() {
    let registry = Registry::start(None, None).unwrap();
    let front = Front::start(&registry.host(), None, None).unwrap();
    let host = front.host();
    let store = TestStore::new();
    let client = client();
    let base = layer(1, 2_000_000);
    let push = async |image: &Image, tag: &str| {
        front.server().forget();
        let stages = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&stages);
        let progress: crate::ProgressFn = Arc::new(move |p| log.lock().unwrap().push(p.stage));
        let d = image.put(&store.store);
        client.push(&store.store, &d, &repository(&host), &[tag.parse().unwrap()], progress).await.unwrap();
        let present = stages.lock().unwrap().iter().filter(|s| **s == Stage::Present).count();
        (front.server().count("POST", "/blobs/uploads/"), present)
    };
    let first = Image::new(vec![base.clone(), layer(2, 1000)]);
    assert_eq!(push(&first, "t").await, (3, 0));
    assert_eq!(push(&first, "again").await, (0, 3));
    assert_eq!(push(&Image::new(vec![base, layer(3, 1000)]), "next").await, (2, 1));

    let to = TestStore::new();
    pull(&client, &to.store, &host).await.unwrap();
    front.server().forget();
    pull(&client, &to.store, &host).await.unwrap();
    let seen: Vec<_> = front.server().seen().iter().map(|s| format!("{} {}", s.method, s.path)).collect();
    assert_eq!(seen, ["HEAD /v2/shop/app/manifests/t"]);
}

#[tokio::test]
async fn a_push_that_is_dropped_moves_no_tag() {
    let registry = Registry::start(None, None).unwrap();
    let store = TestStore::new();
    let descriptor = Image::new(vec![layer(1, 24_000_000), layer(2, 24_000_000)]).put(&store.store);
    let before = store.files();
    let (moving, moved) = tokio::sync::oneshot::channel();
    let moving = Mutex::new(Some(moving));
    let progress: crate::ProgressFn = Arc::new(move |p| {
        if p.stage == Stage::Moving
            && p.done > 1_000_000
            && let Some(tell) = moving.lock().unwrap().take()
        {
            let _ = tell.send(());
        }
    });
    let (client, host) = (client(), registry.host());
    let (repository, tags) = (repository(&host), ["t".parse().unwrap()]);
    tokio::select! {
        _ = client.push(&store.store, &descriptor, &repository, &tags, progress) => panic!("the push ended before it was dropped"),
        _ = moved => {}
    }
    assert!(registry.tags("shop/app").is_empty());
    store.settles_at(&before);
    // And a second push is none the worse for it.
    client.push(&store.store, &descriptor, &repository, &tags, crate::silent()).await.unwrap();
    assert_eq!(registry.tags("shop/app"), ["t"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_can_be_spawned() {
    let registry = Registry::start(None, None).unwrap();
    let (host, store, client) = (registry.host(), TestStore::new(), client());
    let descriptor = Image::new(vec![layer(1, 1000), layer(2, 1000)]).put(&store.store);
    let (to, tags) = (repository(&host), ["t".parse().unwrap()]);
    let (from, pushing) = (store.store.clone(), client.clone());
    tokio::spawn(async move { pushing.push(&from, &descriptor, &to, &tags, crate::silent()).await })
        .await
        .unwrap()
        .unwrap();
    let to = TestStore::new();
    let into = to.store.clone();
    tokio::spawn(async move { pull(&client, &into, &host).await }).await.unwrap().unwrap();
}
