//! Registries that fail, lie, or point elsewhere. After each failure the store is as it was.

use super::*;
use crate::Problem;
use keelway_tests::server::End;
use keelway_tests::tls::Authority;
use std::sync::atomic::{AtomicUsize, Ordering};

fn image() -> Image {
    Image::new(vec![layer(1, 100_000)])
}

fn layer_path(image: &Image) -> String {
    format!("blobs/{}", Digest::of(&image.layers[0]))
}

/// Pulls from a registry whose layer is answered by `answer`; says the problem, with the store as before.
async fn broken_layer(answer: impl Fn(&Seen, &[u8]) -> Reply + Send + Sync + 'static) -> (String, Server) {
    let image = image();
    let (path, bytes) = (layer_path(&image), image.layers[0].clone());
    let server = registry_with(image, move |seen| seen.path.ends_with(&path).then(|| answer(seen, &bytes)));
    let (host, client, to) = (server.host(), client(), TestStore::new());
    let got =
        client.fetch_image(&to.store, &tagged(&host), &Platform::host(), crate::silent()).await.unwrap();
    let before = to.files();
    let e = client
        .fetch_layers(&to.store, &repository(&host), &got.manifest, &got.config, crate::silent())
        .await
        .unwrap_err();
    to.settles_at(&before);
    let text =
        e.to_string().replace(&host, "HOST").replace(&got.manifest.layers[0].digest.to_string(), "LAYER");
    (text, server)
}

const BROKEN: &str = "nothing of it was kept. HOST, or something between here and it, is broken or hostile: push the image \
                      again, or pull from elsewhere";

#[tokio::test]
async fn layers_that_are_not_what_was_promised() {
    let wrong = Digest::of(&[7; 101_888]).to_string();
    let (e, _) = broken_layer(|_, b| Reply::bytes(vec![7; b.len()])).await;
    assert_eq!(e, format!("cannot pull HOST/shop/app: layer: expected LAYER, got {wrong}; {BROKEN}"));
    let (e, server) = broken_layer(|_, b| Reply::bytes(&b[..1000])).await;
    assert_eq!(
        e,
        format!(
            "cannot pull HOST/shop/app: layer LAYER must have 101888 bytes, the registry sent only 1000; {BROKEN}"
        )
    );
    assert_eq!(server.count("GET", "/blobs/"), 2, "the config and one try: a short answer does not grow");
    let too_long = format!(
        "cannot pull HOST/shop/app: layer LAYER must have 101888 bytes, the registry sent more; {BROKEN}"
    );
    let (e, _) = broken_layer(|_, b| Reply::bytes([b, b"x"].concat())).await;
    assert_eq!(e, too_long);
    let (e, _) = broken_layer(|_, b| Reply::bytes(b).ending(End::Endless)).await;
    assert_eq!(e, too_long);
    let (e, _) = broken_layer(|_, _| Reply::status(404)).await;
    assert!(e.starts_with("cannot pull HOST/shop/app: HOST has nothing by this name"), "{e}");
    let (e, server) = broken_layer(|_, _| Reply::status(503)).await;
    assert_eq!(
        e,
        "cannot pull HOST/shop/app: the registry answered 503 Service Unavailable to GET layer 3 times; try again later, or \
         look at the log of HOST"
    );
    assert_eq!(server.count("GET", "/blobs/"), 4);
    let (e, _) = broken_layer(|_, _| Reply::bytes("").with("content-length", "9").ending(End::Stall)).await;
    assert!(e.contains("HOST did not go on answering within"), "{e}");
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_stopped() {
    let image = image();
    let (path, bytes) = (layer_path(&image), image.layers[0].clone());
    let want = bytes.clone();
    for ranges in [true, false] {
        let (path, bytes, tries) = (path.clone(), bytes.clone(), AtomicUsize::new(0));
        let server = registry_with(self::image(), move |seen| {
            if !seen.path.ends_with(&path) {
                return None;
            }
            let from = match seen.header("range") {
                Some(r) if ranges => r.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap(),
                _ => 0,
            };
            let rest = &bytes[from..];
            let reply = match tries.fetch_add(1, Ordering::SeqCst) {
                // It breaks, fails once, breaks again further on.
                0 => Reply::bytes(&rest[..40_000])
                    .with("content-length", rest.len().to_string())
                    .ending(End::Cut),
                1 => Reply::status(500),
                2 => Reply::bytes(&rest[..50_000])
                    .with("content-length", rest.len().to_string())
                    .ending(End::Cut),
                _ => Reply::bytes(rest),
            };
            Some(match from {
                0 => reply,
                _ if reply.status == 500 => reply,
                n => Reply { status: 206, ..reply }
                    .with("content-range", format!("bytes {n}-{}/{}", bytes.len() - 1, bytes.len())),
            })
        });
        let to = TestStore::new();
        pull(&client(), &to.store, &server.host()).await.unwrap();
        assert!(to.store.read_blob(&Digest::of(&want), 1 << 30).unwrap() == want);
        let asked: Vec<_> =
            server.seen().iter().filter_map(|s| s.header("range").map(str::to_owned)).collect();
        assert_eq!(asked.len(), 3, "{asked:?}");
        if ranges {
            assert_eq!(asked, ["bytes=40000-", "bytes=40000-", "bytes=90000-"]);
        }
    }
}

#[tokio::test]
async fn documents_that_lie() {
    let serve = async |kind: &'static str, named: Option<&'static str>, body: Vec<u8>| {
        let server = Server::start(None, move |seen| match seen.path.as_str() {
            "/v2/" => Reply::status(200),
            _ if seen.method == "HEAD" => Reply::status(200),
            _ => {
                let reply = Reply::bytes(body.clone()).with("content-type", kind);
                match named {
                    Some(named) => reply.with("docker-content-digest", named),
                    None => reply,
                }
            }
        })
        .unwrap();
        let to = TestStore::new();
        let before = to.files();
        let e = pull(&client(), &to.store, &server.host()).await.unwrap_err();
        to.settles_at(&before);
        e.to_string().replace(&server.host(), "HOST")
    };
    let manifest = image().manifest;
    let e = serve(media::INDEX, None, manifest.clone()).await;
    assert!(e.starts_with("cannot pull HOST/shop/app:t: the manifest calls itself"), "{e}");
    let e = serve(
        media::MANIFEST,
        Some("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        manifest,
    )
    .await;
    assert!(e.contains("manifest: expected sha256:e3b0c442"), "{e}");
    let e = serve(
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        None,
        br#"{"schemaVersion":1,"fsLayers":[]}"#.to_vec(),
    )
    .await;
    assert_eq!(
        e,
        "cannot pull HOST/shop/app:t: the manifest is of the old schema 1, which cannot be verified; use another image, or push \
         one that fits to HOST"
    );
    let e = serve(media::MANIFEST, None, vec![b' '; (4 << 20) + 1]).await;
    assert_eq!(
        e,
        "cannot pull HOST/shop/app:t: HOST answered with more than 4194304 bytes where so many are the limit"
    );
    let e = serve("text/html", None, b"<html>".to_vec()).await;
    assert!(e.contains("the manifest is not the JSON of one"), "{e}");

    let mut foreign: Manifest = serde_json::from_slice(&image().manifest).unwrap();
    foreign.layers[0].urls = vec!["https://example.com/layer".into()];
    let e = serve(media::MANIFEST, None, serde_json::to_vec(&foreign).unwrap()).await;
    assert!(e.contains("is a foreign layer, kept outside the registry, which is not supported"), "{e}");
}

#[tokio::test]
async fn an_index_leads_to_the_platform() {
    let image = image();
    let entry = |os: &str, arch: &str| {
        let d = image.descriptor();
        serde_json::json!({"mediaType": d.media_type, "digest": d.digest, "size": d.size, "platform": {"os": os, "architecture": arch}})
    };
    let host = Platform::host();
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": media::INDEX,
        "manifests": [entry("linux", "s390x"), entry(&host.os, &host.architecture)]});
    let bytes = index.to_string().into_bytes();
    let pinned = Digest::of(&bytes);
    let descriptor = image.descriptor();
    let server = registry_with(self::image(), move |seen| {
        let kind = ("content-type", media::INDEX);
        seen.path.ends_with("/manifests/t").then(|| Reply::bytes(bytes.clone()).with(kind.0, kind.1))
    });
    let to = TestStore::new();
    let got = pull(&client(), &to.store, &server.host()).await.unwrap();
    assert_eq!((got.pinned.digest, got.descriptor), (pinned, descriptor));
    // Pinned by the index, everything is there: the registry may go.
    let (name, by_digest) = (server.host(), format!("{}/shop/app@{pinned}", server.host()));
    drop(server);
    let again =
        client().fetch_image(&to.store, &by_digest.parse().unwrap(), &host, crate::silent()).await.unwrap();
    assert_eq!(again.manifest, got.manifest);
    let e = client()
        .fetch_image(
            &to.store,
            &by_digest.parse().unwrap(),
            &"linux/riscv64".parse().unwrap(),
            crate::silent(),
        )
        .await
        .unwrap_err();
    assert!(e.to_string().contains("no image for linux/riscv64; there is linux/s390x, "), "{e}");
    let e = pull(&client(), &to.store, &name).await.unwrap_err();
    assert_eq!(
        e.to_string(),
        format!(
            "cannot pull {name}/shop/app:t: cannot connect to {name}: connection refused; check that it runs and that the port is right"
        )
    );
}

#[tokio::test]
async fn busy_for_a_moment_is_no_failure() {
    let failures = AtomicUsize::new(0);
    let server = registry_with(image(), move |seen| {
        if seen.path == "/v2/" {
            return None;
        }
        let n = failures.fetch_add(1, Ordering::SeqCst);
        (n % 3 != 2)
            .then(|| Reply::status(if n.is_multiple_of(3) { 500 } else { 429 }).with("retry-after", "9999"))
    });
    let to = TestStore::new();
    let started = Instant::now();
    pull(&client(), &to.store, &server.host()).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(20), "Retry-After has a bound");
}

#[tokio::test]
async fn unknown_hosts_and_plain_http() {
    let name: ImageRef = "registry.no-such-host.invalid/shop/app:t".parse().unwrap();
    let e = client().resolve(&name, &Platform::host()).await.unwrap_err();
    assert!(
        e.to_string().starts_with("cannot pull registry.no-such-host.invalid/shop/app:t: cannot find registry.no-such-host.invalid: its name has no address ("),
        "{e}"
    );
    for (registry, scheme) in [
        ("r.example.com", "https"),
        ("10.0.0.1:5000", "https"),
        ("docker.io", "https"),
        ("127.0.0.1:5000", "http"),
        ("localhost:5000", "http"),
        ("[::1]:5000", "http"),
    ] {
        assert_eq!(client().scheme(registry), scheme, "{registry}");
    }
    let plain = HostSettings { plain_http: true, ..HostSettings::default() };
    let hosts = BTreeMap::from([
        ("r.example.com".to_owned(), plain),
        ("127.0.0.1:5000".to_owned(), HostSettings::default()),
    ]);
    let told = client_with(Credentials::default(), hosts);
    assert_eq!((told.scheme("r.example.com"), told.scheme("127.0.0.1:5000")), ("http", "https"));

    // A plain http registry that is taken for https.
    let server = Server::start(None, |_| Reply::status(200)).unwrap();
    let host = server.host();
    let hosts = BTreeMap::from([(host.clone(), HostSettings::default())]);
    let e = client_with(Credentials::default(), hosts)
        .resolve(&tagged(&host), &Platform::host())
        .await
        .unwrap_err();
    assert_eq!(
        e.to_string(),
        format!(
            "cannot pull {host}/shop/app:t: {host} does not speak TLS; if it is a plain http registry that you trust, say so in \
             keelway.yml (registries: {{{host}: {{http: true}}}}) or with --registry-http {host}"
        )
    );
    assert!(server.seen().is_empty());
}

/// Every request that a push makes, answered so that it succeeds; `start` answers the POST.
fn takes_all(seen: &Seen, digest: &str, start: Reply) -> Reply {
    match (seen.method.as_str(), seen.path_only()) {
        (_, "/v2/") => Reply::status(200),
        ("HEAD", p) if p.contains("/manifests/") => Reply::status(200).with("docker-content-digest", digest),
        ("HEAD", _) => Reply::status(404),
        ("POST", _) => start,
        ("PUT", p) if p.contains("/manifests/") => Reply::status(201).with("docker-content-digest", digest),
        ("PUT", _) => Reply::status(201),
        _ => Reply::status(404),
    }
}

#[tokio::test]
async fn uploads_to_another_host_carry_no_login() {
    let trap = Server::start(None, |_| Reply::status(201)).unwrap();
    let store = TestStore::new();
    let descriptor = image().put(&store.store);
    let digest = descriptor.digest.to_string();
    let to = trap.url();
    let server = Server::start(None, move |seen| {
        if seen.header("authorization").is_none() {
            return Reply::status(401).with("www-authenticate", "Basic realm=\"x\"");
        }
        takes_all(seen, &digest, Reply::status(202).with("location", format!("{to}/put?sig=1")))
    })
    .unwrap();
    let client = client_for(&server.host(), Some(("alice", "s")), None);
    client.push(&store.store, &descriptor, &repository(&server.host()), &[], crate::silent()).await.unwrap();
    let seen = trap.seen();
    assert_eq!(seen.len(), 2);
    for s in seen {
        assert_eq!(s.header("authorization"), None);
        assert!(s.path.starts_with("/put?sig=1&digest=sha256%3A"), "{}", s.path);
    }
}

#[tokio::test]
async fn uploads_are_not_led_from_https_to_http() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path()).unwrap();
    let trap = Server::start(None, |_| Reply::status(201)).unwrap();
    let store = TestStore::new();
    let descriptor = image().put(&store.store);
    for (location, fails) in
        [(format!("http://{}/put", trap.host_by_name()), true), ("http://127.0.0.1/put".to_owned(), false)]
    {
        let digest = descriptor.digest.to_string();
        let server = Server::start(Some(&authority.issue(&["127.0.0.1"]).unwrap()), move |seen| {
            takes_all(seen, &digest, Reply::status(202).with("location", location.clone()))
        })
        .unwrap();
        let client = client_for(&server.host(), None, Some(authority.ca_path()));
        let result =
            client.push(&store.store, &descriptor, &repository(&server.host()), &[], crate::silent()).await;
        if fails {
            let e = result.unwrap_err().to_string();
            assert!(e.ends_with("redirects an upload from https to plain http; it is not followed"), "{e}");
        } else {
            // A registry behind a TLS proxy that believes it speaks http: its own host, so https is kept.
            result.unwrap();
            assert_eq!(server.count("PUT", "/put?digest="), 2);
        }
    }
    assert!(trap.seen().is_empty());
}

#[tokio::test]
async fn pushes_that_the_registry_does_not_take() {
    let store = TestStore::new();
    let descriptor = image().put(&store.store);
    let before = store.files();
    let push = async |twist: fn(&Seen) -> Option<Reply>| {
        let digest = descriptor.digest.to_string();
        let server = Server::start(None, move |seen| {
            twist(seen).unwrap_or_else(|| {
                takes_all(seen, &digest, Reply::status(202).with("location", "/v2/shop/app/blobs/uploads/1"))
            })
        })
        .unwrap();
        let result = client()
            .push(
                &store.store,
                &descriptor,
                &repository(&server.host()),
                &["t".parse().unwrap()],
                crate::silent(),
            )
            .await;
        store.settles_at(&before);
        (result.map_err(|e| e.to_string().replace(&server.host(), "HOST")), server)
    };
    assert!(push(|_| None).await.0.is_ok());
    let (r, server) = push(|s| {
        let body = r#"{"errors":[{"code":"DENIED","message":"no\u001b[31m way"}]}"#;
        (s.method == "POST").then(|| Reply { body: body.into(), ..Reply::status(403) })
    })
    .await;
    let e = r.unwrap_err();
    assert_eq!(
        e,
        "cannot push HOST/shop/app: denied: DENIED, no [31m way; nobody is logged in: run `docker login HOST` (or another tool \
         that writes docker's config.json)"
    );
    assert_eq!(server.count("PUT", ""), 0);
    let (r, _) = push(|s| {
        let body = r#"{"errors":[{"code":"NAME_INVALID","message":"too deep"}]}"#;
        (s.method == "POST").then(|| Reply { body: body.into(), ..Reply::status(400) })
    })
    .await;
    assert_eq!(
        r.unwrap_err(),
        "cannot push HOST/shop/app: the name is invalid for this registry: NAME_INVALID, too deep; choose another name than \
         \"shop/app\""
    );
    // It names another digest for a blob, for the manifest, or has forgotten the manifest.
    let (r, server) = push(|s| {
        (s.method == "PUT" && s.path.contains("uploads"))
            .then(|| Reply::status(201).with("docker-content-digest", "sha256:00"))
    })
    .await;
    assert!(r.unwrap_err().contains("the registry answered for sha256:00 and not for sha256:"));
    assert_eq!(server.count("PUT", "/manifests/"), 0);
    let (r, _) = push(|s| {
        (s.method == "PUT" && s.path.contains("manifests"))
            .then(|| Reply::status(201).with("docker-content-digest", "sha256:00"))
    })
    .await;
    assert!(r.unwrap_err().contains("nothing was deployed"));
    let (r, _) =
        push(|s| (s.method == "HEAD" && s.path.contains("manifests")).then(|| Reply::status(404))).await;
    assert!(r.unwrap_err().contains("the registry answered for nothing and not for sha256:"));
}

#[tokio::test]
async fn a_broken_upload_goes_on_where_it_stopped() {
    let store = TestStore::new();
    let big = layer(9, 3 << 20);
    let image = Image::new(vec![big.clone()]);
    let descriptor = image.put(&store.store);
    let digest = descriptor.digest.to_string();
    let got = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (held, patches) = (Arc::clone(&got), AtomicUsize::new(0));
    let server = Server::start(None, move |seen| {
        let location = "/v2/shop/app/blobs/uploads/1";
        let mut held = held.lock().unwrap();
        match seen.method.as_str() {
            "PATCH" if patches.fetch_add(1, Ordering::SeqCst) == 0 => {
                held.extend_from_slice(&seen.body[..1_000_000]);
                Reply::status(502)
            }
            "PATCH" => {
                held.extend_from_slice(&seen.body);
                Reply::status(202).with("location", location)
            }
            "GET" if seen.path == location => {
                Reply::status(204).with("location", location).with("range", format!("0-{}", held.len() - 1))
            }
            _ => takes_all(seen, &digest, Reply::status(202).with("location", location)),
        }
    })
    .unwrap();
    client()
        .push(&store.store, &descriptor, &repository(&server.host()), &[], crate::silent())
        .await
        .unwrap();
    assert!(*got.lock().unwrap() == big);
    let ranges: Vec<_> =
        server.seen().iter().filter_map(|s| s.header("content-range").map(str::to_owned)).collect();
    assert_eq!(ranges, [format!("1000000-{}", big.len() - 1)]);
}

#[tokio::test]
async fn what_is_not_an_image_is_not_pushed() {
    let store = TestStore::new();
    let digest = store.store.put_blob(b"{}").unwrap();
    let e = client()
        .push(
            &store.store,
            &Descriptor::new(media::MANIFEST, digest, 2),
            &repository("127.0.0.1:1"),
            &[],
            crate::silent(),
        )
        .await
        .unwrap_err();
    assert!(matches!(e.problem(), Problem::NotAnImage(_)), "{e}");
    let gone = Descriptor::new(media::MANIFEST, Digest::of(b"gone"), 4);
    let e = client()
        .push(&store.store, &gone, &repository("127.0.0.1:1"), &[], crate::silent())
        .await
        .unwrap_err();
    assert!(matches!(e.problem(), Problem::Store(_)), "{e}");
}

#[tokio::test]
async fn a_pull_that_is_dropped_leaves_nothing() {
    let image = image();
    let (path, bytes) = (layer_path(&image), image.layers[0].clone());
    let server = registry_with(image, move |seen| {
        seen.path.ends_with(&path).then(|| Reply::bytes(&bytes[..50_000]).ending(End::Stall))
    });
    let (host, client, to) = (server.host(), client(), TestStore::new());
    let got =
        client.fetch_image(&to.store, &tagged(&host), &Platform::host(), crate::silent()).await.unwrap();
    let before = to.files();
    let (moving, moved) = tokio::sync::oneshot::channel();
    let moving = std::sync::Mutex::new(Some(moving));
    let progress: crate::ProgressFn = Arc::new(move |p| {
        if p.done > 0
            && let Some(tell) = moving.lock().unwrap().take()
        {
            let _ = tell.send(());
        }
    });
    let repository = repository(&host);
    tokio::select! {
        r = client.fetch_layers(&to.store, &repository, &got.manifest, &got.config, progress) => panic!("it ended: {r:?}"),
        _ = moved => {}
    }
    to.settles_at(&before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_stays_silent_is_told_of_with_each_try() {
    // Takes connections into its queue and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = silent.local_addr().unwrap().to_string();
    let http = keelway_http::Settings {
        system_roots: None,
        deadlines: keelway_http::Deadlines {
            connect: Duration::from_secs(5),
            silence: Duration::from_millis(100),
            total: None,
        },
        ..Default::default()
    };
    let mut settings = RegistrySettings { told_after: Duration::from_millis(30), ..Default::default() };
    settings.retries.attempts = 2;
    settings.retries.first_wait = Duration::from_millis(1);
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let client = Client::new(&keelway_http::Client::new(http).unwrap(), settings)
        .unwrap()
        .telling(Arc::new(move |wait| tell.lock().unwrap().push(wait.to_string())));
    assert!(client.resolve(&tagged(&host), &Platform::host()).await.is_err());
    let told = told.lock().unwrap();
    assert_eq!(told[..2], [1, 2].map(|n| format!("waiting for {host} (try {n} of 2)")));
}
