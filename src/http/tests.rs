//! The client against real servers of the kit: trust, credentials, redirects, deadlines, limits.

use super::*;
use keelway_model::Redacted;
use keelway_tests::server::{End, Reply, Server};
use keelway_tests::tls::Authority;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

fn settings() -> Settings {
    let deadlines = Deadlines {
        connect: Duration::from_secs(5),
        silence: Duration::from_millis(300),
        total: Some(Duration::from_secs(20)),
    };
    Settings { system_roots: None, deadlines, ..Settings::default() }
}

fn client() -> Client {
    Client::new(settings()).unwrap()
}

fn pem(path: &Path) -> Pem {
    Pem { origin: "test-ca".into(), text: std::fs::read(path).unwrap() }
}

fn login() -> Option<Auth> {
    Some(Auth::Basic { user: "alice".into(), password: Redacted::new("s3cret".into()) })
}

fn get(url: &str) -> Request {
    Request::get(url.parse().unwrap())
}

#[tokio::test]
async fn trust_is_by_host() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path()).unwrap();
    let server =
        Server::start(Some(&authority.issue(&["127.0.0.1"]).unwrap()), |_| Reply::bytes("hello")).unwrap();
    let host = server.host();

    let e = client().send(get(&server.url())).await.unwrap_err();
    assert!(matches!(&e, HttpError::Tls { problem: TlsProblem::UnknownAuthority, .. }), "{e:?}");
    assert_eq!(
        e.to_string(),
        format!(
            "{host} shows a certificate from an authority that is not trusted here; if it is yours, give the authority's \
             certificate (a PEM file) for this host"
        )
    );

    let ca = pem(authority.ca_path());
    for settings in [
        Settings { extra_roots: vec![ca.clone()], ..settings() },
        Settings { host_roots: BTreeMap::from([(host.clone(), vec![ca.clone()])]), ..settings() },
        Settings { host_roots: BTreeMap::from([("127.0.0.1".into(), vec![ca.clone()])]), ..settings() },
        Settings { system_roots: Some(authority.ca_path().to_owned()), ..settings() },
    ] {
        let response = Client::new(settings).unwrap().send(get(&server.url())).await.unwrap();
        assert_eq!(&response.bytes(5).await.unwrap()[..], b"hello");
    }
    let elsewhere =
        Settings { host_roots: BTreeMap::from([("127.0.0.2".into(), vec![ca.clone()])]), ..settings() };
    assert!(Client::new(elsewhere).unwrap().send(get(&server.url())).await.is_err());

    // The right authority, the wrong name or time, or no TLS at all.
    let trusting = Client::new(Settings { extra_roots: vec![ca], ..settings() }).unwrap();
    let named = format!("https://{}/", server.host_by_name());
    let e = trusting.send(get(&named)).await.unwrap_err();
    assert!(matches!(&e, HttpError::Tls { problem: TlsProblem::WrongName, .. }), "{e:?}");
    let old = authority.issue_expired(&["127.0.0.1"]).unwrap();
    let server = Server::start(Some(&old), |_| Reply::default()).unwrap();
    let e = trusting.send(get(&server.url())).await.unwrap_err();
    assert!(matches!(&e, HttpError::Tls { problem: TlsProblem::Expired, .. }), "{e:?}");
    let plain = Server::start(None, |_| Reply::default()).unwrap();
    let e = trusting.send(get(&plain.url().replace("http:", "https:"))).await.unwrap_err();
    assert!(matches!(&e, HttpError::Tls { problem: TlsProblem::NotTls, .. }), "{e:?}");
}

#[test]
fn roots_that_are_none_are_refused() {
    let bad = |text: &str| {
        let pem = Pem { origin: "our-ca".into(), text: text.into() };
        Client::new(Settings { extra_roots: vec![pem], ..settings() }).unwrap_err().to_string()
    };
    assert_eq!(
        bad("hello"),
        "our-ca holds no certificate: it must be a PEM file with one or more -----BEGIN CERTIFICATE----- blocks"
    );
    assert!(
        bad("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
            .starts_with("our-ca: certificate 1 ")
    );
}

#[tokio::test]
async fn credentials_stay_with_their_origin() {
    let trap = Server::start(None, |_| Reply::bytes("trap")).unwrap();
    // The same machine by another name is another origin; so is another port.
    for target in [trap.url(), format!("http://{}", trap.host_by_name())] {
        let server = Server::start(None, move |seen| match seen.path.as_str() {
            "/away" => Reply::status(307).with("location", format!("{target}/x")),
            "/home" => Reply::status(302).with("location", "/here"),
            _ => Reply::bytes("home"),
        })
        .unwrap();
        let response = client().send(get(&format!("{}/away", server.url())).auth(login())).await.unwrap();
        assert_eq!(&response.bytes(9).await.unwrap()[..], b"trap");
        let response = client().send(get(&format!("{}/home", server.url())).auth(login())).await.unwrap();
        assert_eq!(response.url().path(), "/here");
        assert!(server.seen().iter().all(|s| s.header("authorization").is_some()));
        assert!(trap.seen().iter().all(|s| s.header("authorization").is_none()));
    }
    assert_eq!(trap.seen().len(), 2);
}

#[tokio::test]
async fn redirects_have_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path()).unwrap();
    let trusting =
        Client::new(Settings { extra_roots: vec![pem(authority.ca_path())], ..settings() }).unwrap();
    let plain = Server::start(None, |_| Reply::bytes("down")).unwrap();
    let to = plain.url();
    let server = Server::start(Some(&authority.issue(&["127.0.0.1"]).unwrap()), move |seen| {
        match seen.path.as_str() {
            "/down" => Reply::status(302).with("location", to.clone()),
            "/ftp" => Reply::status(302).with("location", "ftp://x/"),
            _ => Reply::status(302).with("location", "/loop"),
        }
    })
    .unwrap();
    for (path, why) in [
        ("/down", "redirects from https to plain http; it is not followed"),
        ("/loop", "redirects more than 5 times; it is not followed"),
        ("/ftp", "redirects to something that is no URL; it is not followed"),
    ] {
        let e = trusting.send(get(&format!("{}{path}", server.url()))).await.unwrap_err();
        assert_eq!(e.to_string(), format!("{} {why}", server.host()));
    }
    assert!(plain.seen().is_empty());
    assert_eq!(server.count("GET", "/loop"), 6);
    let far = Server::start(None, |_| Reply::status(302).with("location", "http://192.0.2.1/")).unwrap();
    let e = client().send(get(&far.url())).await.unwrap_err();
    assert!(e.to_string().contains("to plain http on another host (192.0.2.1)"), "{e}");
    // A POST's redirect is the answer.
    let response = client().send(Request::post(far.url().parse().unwrap())).await.unwrap();
    assert_eq!(response.status(), 302);
}

#[tokio::test]
async fn failures_are_told_apart() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let e = client().send(get(&format!("http://{free}/"))).await.unwrap_err();
    assert_eq!(
        e.to_string(),
        format!(
            "cannot connect to {free}: connection refused; check that it runs and that the port is right"
        )
    );
    let e = client().send(get("http://no-such-host.invalid/")).await.unwrap_err();
    assert!(matches!(e, HttpError::Dns { .. }), "{e:?}");
    assert!(e.to_string().starts_with("cannot find no-such-host.invalid: its name has no address ("), "{e}");

    let server = Server::start(None, |seen| match seen.path.as_str() {
        "/cut" => Reply::bytes("half").with("content-length", "8").ending(End::Cut),
        "/stall" => Reply::bytes("half").ending(End::Stall),
        _ => Reply::bytes("x").ending(End::Endless),
    })
    .unwrap();
    let read = async |path: &str| {
        client().send(get(&format!("{}{path}", server.url()))).await.unwrap().bytes(1000).await.unwrap_err()
    };
    assert!(matches!(read("/cut").await, HttpError::Broken { .. }));
    let e = read("/stall").await;
    assert!(matches!(e, HttpError::Timeout { connecting: false, .. }), "{e:?}");
    assert!(matches!(read("/endless").await, HttpError::TooLong { limit: 1000, .. }));
}

#[tokio::test]
async fn an_upload_may_take_longer_than_silence_may() {
    struct Slow(u32);
    impl std::io::Read for Slow {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            // A slow disk: time passing is what is tested.
            std::thread::sleep(Duration::from_millis(100));
            self.0 = self.0.saturating_sub(1);
            buf[0] = b'x';
            Ok(usize::from(self.0 > 0))
        }
    }
    let server = Server::start(None, |seen| {
        if seen.path == "/late" {
            std::thread::sleep(Duration::from_millis(600));
        }
        Reply::bytes(seen.body.len().to_string())
    })
    .unwrap();
    // Eight pieces in 900 ms, where 300 ms of silence are the end.
    let request = Request::post(server.url().parse().unwrap()).body(Body::reader(Slow(9), None));
    assert_eq!(&client().send(request).await.unwrap().bytes(9).await.unwrap()[..], b"8");
    let late = || get(&format!("{}/late", server.url()));
    assert!(matches!(client().send(late()).await, Err(HttpError::Timeout { connecting: false, .. })));
    client().send(late().silence(Duration::from_secs(5))).await.unwrap();
}

#[tokio::test]
async fn proxies_take_what_they_should() {
    let proxy = Server::start(None, |_| Reply::bytes("by proxy")).unwrap();
    let refusing = Server::start(None, |_| Reply::status(403)).unwrap();
    let with = |no_proxy: &str| {
        let proxy = ProxySettings {
            http: Some(format!("http://bob:hush@{}", proxy.host()).parse().unwrap()),
            https: Some(refusing.host().parse().unwrap()),
            no_proxy: no_proxy.into(),
        };
        assert!(!format!("{proxy:?}").contains("hush"));
        Client::new(Settings { proxy, ..settings() }).unwrap()
    };
    let response = with("").send(get("http://no-such-host.invalid/x")).await.unwrap();
    assert_eq!(&response.bytes(99).await.unwrap()[..], b"by proxy");
    assert_eq!(proxy.seen()[0].header("proxy-authorization"), Some("Basic Ym9iOmh1c2g="));
    assert!(matches!(
        with("other.example, .invalid").send(get("http://no-such-host.invalid/x")).await,
        Err(HttpError::Dns { .. })
    ));
    // Loopback is never proxied.
    let server = Server::start(None, |_| Reply::bytes("direct")).unwrap();
    let response = with("").send(get(&server.url())).await.unwrap();
    assert_eq!(&response.bytes(99).await.unwrap()[..], b"direct");
    let e = with("").send(get("https://no-such-host.invalid/")).await.unwrap_err();
    assert!(matches!(&e, HttpError::Proxy { .. }), "{e:?}");
    assert!(!e.to_string().contains("hush"));
    assert!("ftp://x".parse::<ProxyUrl>().is_err());
}

#[test]
fn the_blocking_face_streams_both_ways() {
    let server = Server::start(None, |seen| Reply::bytes(seen.body.clone())).unwrap();
    let blocking = client().blocking().unwrap();
    let sent: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    for len in [None, Some(sent.len() as u64)] {
        let body = Body::reader(std::io::Cursor::new(sent.clone()), len);
        let request = Request::post(server.url().parse().unwrap()).auth(login()).body(body);
        let mut response = blocking.send(request).unwrap();
        assert_eq!(response.status(), 200);
        let mut got = Vec::new();
        response.read_to_end(&mut got).unwrap();
        assert!(got == sent);
    }
    let seen = server.seen();
    assert_eq!(seen[0].header("transfer-encoding"), Some("chunked"));
    assert_eq!(seen[1].header("content-length"), Some("3000000"));
    assert_eq!(seen[1].header("authorization"), Some("Basic YWxpY2U6czNjcmV0"));

    struct Failing;
    impl std::io::Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("disk on fire"))
        }
    }
    let e = blocking
        .send(Request::post(server.url().parse().unwrap()).body(Body::reader(Failing, None)))
        .unwrap_err();
    assert!(matches!(&e, HttpError::Body { cause, .. } if cause == "disk on fire"), "{e:?}");
}

#[tokio::test]
async fn the_blocking_face_may_be_used_and_dropped_beside_async_code() {
    let server = Server::start(None, |_| Reply::bytes("hi")).unwrap();
    let client = client();
    let (blocking, url) = (client.blocking().unwrap(), server.url());
    let got = tokio::task::spawn_blocking(move || blocking.send(get(&url)).unwrap().bytes(9).unwrap())
        .await
        .unwrap();
    assert_eq!(&got[..], b"hi");
    drop(client);
}

#[test]
fn loopback_is_known_by_sight() {
    for yes in [
        "localhost",
        "LOCALHOST:5000",
        "a.localhost",
        "127.0.0.1",
        "127.9.9.9:80",
        "[::1]",
        "[::1]:5000",
        "::1",
    ] {
        assert!(is_loopback(yes), "{yes}");
    }
    for no in [
        "localhost.example.com",
        "128.0.0.1",
        "[::2]:1",
        "example.com:443",
        "",
        "127.0.0.1.example.com",
        "0.0.0.0",
    ] {
        assert!(!is_loopback(no), "{no}");
    }
}

#[tokio::test]
async fn a_name_leads_to_no_address_of_this_machine() {
    let server = Server::start(None, |_| Reply::bytes("secret")).unwrap();
    let strangers = client().for_strangers().unwrap();
    for url in [server.url(), format!("http://{}/", server.host_by_name())] {
        client().send(get(&url)).await.unwrap();
        let e = strangers.send(get(&url)).await.unwrap_err();
        assert!(matches!(&e, HttpError::OutOfReach { .. }), "{e:?}");
        assert!(!e.is_transient());
    }
    assert_eq!(server.seen().len(), 2, "the second client never connected");
    // A proxy may be on this machine: its name gives no way to what else is there.
    let proxy = ProxySettings {
        https: Some(format!("http://{}", server.host_by_name()).parse().unwrap()),
        ..ProxySettings::default()
    };
    let strangers = Client::new(Settings { proxy, ..settings() }).unwrap().for_strangers().unwrap();
    let e = strangers.send(get(&format!("http://{}/", server.host_by_name()))).await.unwrap_err();
    assert!(matches!(&e, HttpError::OutOfReach { .. }), "{e:?}");
    assert_eq!(server.seen().len(), 2);
}
