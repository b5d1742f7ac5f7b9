//! Logins: where they come from, where they go, and where they never go.

use super::*;
use crate::docker_config::Login;
use crate::{HelperError, Problem, helper};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};

fn image() -> Image {
    Image::new(vec![layer(1, 100)])
}

fn bearer(realm: &str) -> Reply {
    Reply::status(401).with("www-authenticate", format!("Bearer realm=\"{realm}\",service=\"svc\""))
}

#[tokio::test]
async fn a_redirect_never_gets_the_login() {
    // CVE-2020-15157: the other host even asks for it, as a registry would.
    for challenge in ["Basic realm=\"x\"", "Bearer realm=\"http://127.0.0.1:1/token\""] {
        let trap =
            Server::start(None, move |_| Reply::status(401).with("www-authenticate", challenge)).unwrap();
        let to = trap.url();
        let server = registry_with(image(), move |seen| {
            if seen.header("authorization").is_none() {
                return Some(Reply::status(401).with("www-authenticate", "Basic realm=\"x\""));
            }
            seen.path
                .contains("/blobs/")
                .then(|| Reply::status(307).with("location", format!("{to}/blob?sig=secret")))
        });
        let client = client_for(&server.host(), Some(("alice", "s")), None);
        let to = TestStore::new();
        let e = pull(&client, &to.store, &server.host()).await.unwrap_err();
        assert!(matches!(e.problem(), Problem::Unexpected { .. }), "{e}");
        assert!(!e.to_string().contains("secret"));
        assert!(!trap.seen().is_empty());
        assert!(trap.seen().iter().all(|s| s.header("authorization").is_none()));
    }
}

#[tokio::test]
async fn a_token_server_elsewhere_needs_leave_to_get_the_login() {
    let tokens = Server::start(None, |_| Reply::bytes(r#"{"access_token":"tok","expires_in":300}"#)).unwrap();
    // The same server by another name: another host.
    let realm = format!("http://{}/token", tokens.host_by_name());
    let server = registry_with(image(), move |seen| {
        (seen.header("authorization") != Some("Bearer tok")).then(|| bearer(&realm))
    });
    let host = server.host();
    let far = tokens.host_by_name();

    let e = client_for(&host, Some(("alice", "s")), None)
        .resolve(&tagged(&host), &Platform::host())
        .await
        .unwrap_err();
    assert_eq!(
        e.to_string(),
        format!(
            "cannot pull {host}/shop/app:t: {host} wants the login sent to {far}, which is another server; if that is right, \
             allow {far} as a token server of {host} in the settings of this machine"
        )
    );
    assert!(tokens.seen().is_empty());

    // Without a login there is nothing to lose.
    client().resolve(&tagged(&host), &Platform::host()).await.unwrap();
    assert!(tokens.seen().iter().all(|s| s.header("authorization").is_none()));
    assert_eq!(tokens.seen()[0].path, "/token?service=svc&scope=repository%3Ashop%2Fapp%3Apull");
    tokens.forget();

    let text = keelway_tests::registry::User { name: "alice", password: "s" }.docker_config(&host);
    let allowed =
        HostSettings { plain_http: true, token_realms: vec!["localhost".into()], ..HostSettings::default() };
    let client = client_with(
        docker_config::load(&text, "config.json").unwrap(),
        BTreeMap::from([(host.clone(), allowed)]),
    );
    for _ in 0..2 {
        client.resolve(&tagged(&host), &Platform::host()).await.unwrap();
    }
    assert_eq!(tokens.seen().len(), 1, "the token is kept");
    assert_eq!(tokens.seen()[0].header("authorization"), Some("Basic YWxpY2U6cw=="));
}

#[tokio::test]
async fn a_token_that_is_refused_is_replaced_once() {
    let given = Arc::new(AtomicUsize::new(0));
    for good in ["Bearer t1", "Bearer never"] {
        let (count, host) = (Arc::clone(&given), Arc::new(std::sync::Mutex::new(String::new())));
        let own = Arc::clone(&host);
        count.store(0, Ordering::SeqCst);
        let server = registry_with(image(), move |seen| {
            if seen.path_only() == "/token" {
                let n = count.fetch_add(1, Ordering::SeqCst);
                return Some(Reply::bytes(format!(r#"{{"token":"t{n}"}}"#)));
            }
            let realm = format!("http://{}/token", own.lock().unwrap());
            (seen.header("authorization") != Some(good)).then(|| bearer(&realm))
        });
        *host.lock().unwrap() = server.host();
        let client = client_for(&server.host(), Some(("alice", "s")), None);
        let result = client.resolve(&tagged(&server.host()), &Platform::host()).await;
        assert_eq!(given.load(Ordering::SeqCst), 2);
        if good == "Bearer t1" {
            result.unwrap();
        } else {
            let e = result.unwrap_err();
            assert!(matches!(e.problem(), Problem::Denied { user: Some(u), .. } if u == "alice"), "{e}");
            assert!(e.to_string().contains("give \"alice\" the right to pull"), "{e}");
        }
    }
}

#[tokio::test]
async fn an_identity_token_is_exchanged() {
    let host = Arc::new(std::sync::Mutex::new(String::new()));
    let own = Arc::clone(&host);
    let server = registry_with(image(), move |seen| {
        if seen.path == "/token" && seen.method == "POST" {
            let form = "grant_type=refresh_token&client_id=keelway&scope=repository%3Ashop%2Fapp%3Apull&refresh_token=r%26t&service=svc";
            let fits = seen.body == form.as_bytes() && seen.header("authorization").is_none();
            return Some(if fits { Reply::bytes(r#"{"access_token":"ok"}"#) } else { Reply::status(400) });
        }
        let realm = format!("http://{}/token", own.lock().unwrap());
        (seen.header("authorization") != Some("Bearer ok")).then(|| bearer(&realm))
    });
    *host.lock().unwrap() = server.host();
    let text = serde_json::json!({"auths": {server.host(): {"identitytoken": "r&t"}}}).to_string();
    let client = client_with(docker_config::load(&text, "config.json").unwrap(), BTreeMap::new());
    client.resolve(&tagged(&server.host()), &Platform::host()).await.unwrap();
}

#[test]
fn config_files_as_docker_writes_them() {
    let load = |text: &str| docker_config::load(text, "config.json");
    let c = load(
        r#"{"auths":{"https://index.docker.io/v1/":{"auth":"YTpiOmM="},"R.example.com":{"username":"u","password":"p"},
            "https://old.example.com/v2/":{"identitytoken":"t"},"empty.example.com":{}},
            "credHelpers":{"h.example.com":"pass","off.example.com":""},"credsStore":"secretservice","HttpHeaders":{"x":"y"}}"#,
    )
    .unwrap();
    let password = |u: &str, p: &str| Login::Password { user: u.into(), password: p.to_owned().into() };
    assert_eq!(c.logins["docker.io"], password("a", "b:c"));
    assert_eq!(c.logins["r.example.com"], password("u", "p"));
    assert_eq!(c.logins["old.example.com"], Login::Identity { token: "t".to_owned().into() });
    assert!(!c.logins.contains_key("empty.example.com"));
    assert_eq!(c.helper_of("h.example.com"), Some("pass"));
    assert_eq!(c.helper_of("off.example.com"), None);
    assert_eq!(c.helper_of("other.example.com"), Some("secretservice"));
    assert!(!format!("{c:?}").contains("b:c"), "secrets do not print");
    assert!(load("{}").is_ok() && load(r#"{"auths":null}"#).is_ok());
    for (text, want) in [
        (
            "{\"auths\": 7}",
            "config.json is not docker's config.json (line 1, column 11): mend it, or move it away and log in again",
        ),
        (
            r#"{"auths":{"r.io":{"auth":"c2VjcmV0"}}}"#,
            "config.json: the auth of r.io is not base64 of user:password; run `docker login r.io` again",
        ),
        (
            r#"{"credsStore":"../x"}"#,
            "config.json: \"../x\" is no credential helper's name (letters, digits, '.', '_' and '-')",
        ),
    ] {
        assert_eq!(load(text).unwrap_err().to_string(), want);
    }
}

fn helper_script(dir: &Path, body: &str) {
    let path = dir.join("docker-credential-kit");
    std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn helpers_are_asked_within_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let get = async |body: &str, deadline: Duration| {
        helper_script(dir.path(), body);
        helper::get("kit", &[dir.path().to_owned()], "docker.io", deadline).await
    };
    let long = Duration::from_secs(20);
    let answers = r#"[ "$1" = get ] && read key && printf '{"ServerURL":"%s","Username":"u","Secret":"%s"}' "$key" "$key""#;
    let login = get(answers, long).await.unwrap().unwrap();
    assert_eq!(
        login,
        Login::Password { user: "u".into(), password: "https://index.docker.io/v1/".to_owned().into() }
    );
    let login = get(r#"echo '{"Username":"<token>","Secret":"t"}'"#, long).await.unwrap().unwrap();
    assert_eq!(login, Login::Identity { token: "t".to_owned().into() });
    assert_eq!(get("echo 'credentials not found in native keychain'; exit 1", long).await.unwrap(), None);
    let e = get("echo 'keychain is locked' >&2; exit 1", long).await.unwrap_err();
    assert_eq!(e.to_string(), "the credential helper docker-credential-kit failed: keychain is locked");
    assert!(matches!(get("echo nonsense", long).await, Err(HelperError::Answer { .. })));
    assert!(matches!(get("exec yes", Duration::from_millis(300)).await, Err(HelperError::Timeout { .. })));
    assert!(matches!(
        get("exec sleep 600", Duration::from_millis(100)).await,
        Err(HelperError::Timeout { .. })
    ));
    let e = helper::get("not-there", &[], "r.io", long).await.unwrap_err();
    assert!(
        e.to_string().starts_with("the credential helper docker-credential-not-there could not be started:"),
        "{e}"
    );
}

#[tokio::test]
async fn a_login_from_a_helper_is_used() {
    let dir = tempfile::tempdir().unwrap();
    helper_script(dir.path(), r#"echo run >> "$0.runs"; echo '{"Username":"alice","Secret":"s"}'"#);
    let server = registry_with(image(), |seen| {
        (seen.header("authorization") != Some("Basic YWxpY2U6cw=="))
            .then(|| Reply::status(401).with("www-authenticate", "Basic realm=\"x\""))
    });
    let text = serde_json::json!({"credHelpers": {server.host(): "kit"}}).to_string();
    let credentials =
        docker_config::load(&text, "config.json").unwrap().with_helper_dirs(vec![dir.path().to_owned()]);
    let client = client_with(credentials, BTreeMap::new());
    for _ in 0..2 {
        client.resolve(&tagged(&server.host()), &Platform::host()).await.unwrap();
    }
    let runs = std::fs::read_to_string(dir.path().join("docker-credential-kit.runs")).unwrap();
    assert_eq!(runs, "run\n", "asked once");
}
