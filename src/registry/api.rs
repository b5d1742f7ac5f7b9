//! One repository of one registry, spoken to: URLs, authentication, retries, and answers made into reasons.

use crate::auth::way_of;
use crate::client::api_host;
use crate::error::{Doing, Problem, RegistryError, cleaned};
use crate::progress::Wait;
use crate::{Client, auth::Way};
use keelway_http::{HttpError, Request, Response, StatusCode, Url, header};
use keelway_model::Repository;
use serde::Deserialize;
use std::future::Future;
use std::time::Duration;

/// How long a registry may be silent on a question, which it answers out of what it knows: it is asked four times.
const QUESTION: Duration = Duration::from_secs(20);
/// How much of an error's body is read, in bytes.
const MAX_SAID: u64 = 64 << 10;

/// A pull from, or push to, one repository.
#[derive(Clone)]
pub(crate) struct Session<'a> {
    pub(crate) client: &'a Client,
    pub(crate) repository: Repository,
    pub(crate) doing: Doing,
    what: String,
    base: Url,
    scope: String,
}

impl<'a> Session<'a> {
    pub(crate) fn new(
        client: &'a Client,
        repository: &Repository,
        doing: Doing,
        what: String,
    ) -> Result<Self, RegistryError> {
        let registry = repository.registry();
        let text = format!("{}://{}/v2/", client.scheme(registry), api_host(registry));
        let fail = |cause: String| RegistryError {
            doing,
            what: what.clone(),
            repository: repository.clone(),
            problem: Box::new(Problem::Http(HttpError::Invalid { host: registry.to_owned(), cause })),
        };
        let base: Url = text.parse().map_err(|_| fail("its name is not that of a host".into()))?;
        let actions = if doing == Doing::Push { "pull,push" } else { "pull" };
        let scope = format!("repository:{}:{actions}", repository.name());
        Ok(Self { client, repository: repository.clone(), doing, what, base, scope })
    }

    /// The error for a reason.
    pub(crate) fn fail(&self, problem: Problem) -> RegistryError {
        RegistryError {
            doing: self.doing,
            what: self.what.clone(),
            repository: self.repository.clone(),
            problem: Box::new(problem),
        }
    }

    /// `/v2/<name>/<rest>`. Names and digests are checked types, so nothing needs escaping.
    pub(crate) fn url(&self, rest: &str) -> Url {
        self.base
            .join(&format!("{}/{rest}", self.repository.name()))
            .expect("a repository's name is a URL path")
    }

    /// Whether a URL is the registry's own, and so may have its credentials.
    pub(crate) fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    /// Resolves the `Location` of an upload: relative to where it was given, never from https to http (a
    /// registry behind a TLS proxy often believes that it speaks http, so on its own host that is mended).
    pub(crate) fn location(&self, response: &Response) -> Result<Url, Problem> {
        let bad = |why: &str| {
            Problem::Http(HttpError::Redirect {
                host: self.repository.registry().to_owned(),
                why: why.into(),
            })
        };
        let text = response.header("location").ok_or_else(|| bad("an upload without a Location"))?;
        let mut url = response.url().join(text).map_err(|_| bad("an upload to something that is no URL"))?;
        if url.scheme() == "http" && self.base.scheme() == "https" {
            if url.host_str() != self.base.host_str() {
                return Err(bad("an upload from https to plain http"));
            }
            let _ = url.set_scheme("https");
            let _ = url.set_port(self.base.port());
        }
        if !matches!(url.scheme(), "http" | "https") {
            return Err(bad("an upload to something that is neither http nor https"));
        }
        Ok(url)
    }

    /// Sends once, with credentials where the URL is the registry's own; on its 401 once more with fresh ones.
    pub(crate) async fn send(
        &self,
        make: impl Fn() -> Result<Request, Problem>,
    ) -> Result<Response, Problem> {
        let registry = self.repository.registry();
        for fresh in [false, true] {
            let request = make()?;
            let own = self.is_own(request.url());
            let auth =
                if own { self.client.authorization(registry, &self.scope, &self.base).await? } else { None };
            let tried_with_auth = auth.is_some();
            let response = self.client.inner.http.send(request.auth(auth)).await?;
            if response.status() != StatusCode::UNAUTHORIZED || !own || !self.is_own(response.url()) {
                return Ok(response);
            }
            let headers = response.headers().get_all(header::WWW_AUTHENTICATE);
            let way = way_of(headers.iter().filter_map(|v| v.to_str().ok()))?;
            let basic = matches!(way, Way::Basic);
            self.client.forget(registry, &self.scope, way).await;
            // The same name and password would be refused again; a token may only have expired.
            if fresh || (tried_with_auth && basic) {
                let found = self.client.used_login(registry).await;
                return Err(match found {
                    Some(f) if basic => Problem::BadLogin { user: f.user().to_owned(), origin: f.origin },
                    Some(f) => {
                        Problem::Denied { user: Some(f.user().to_owned()), said: said_of(response).await }
                    }
                    None => Problem::NoLogin {
                        config: self.client.inner.settings.credentials.origin().to_owned(),
                    },
                });
            }
        }
        unreachable!("the second turn returns")
    }

    /// Sends an idempotent request, again after failures that may pass.
    pub(crate) async fn send_retrying(
        &self,
        name: &'static str,
        make: impl Fn() -> Result<Request, Problem>,
    ) -> Result<Response, Problem> {
        let ask = || Ok(make()?.silence(QUESTION));
        self.client.retrying(self.repository.registry(), name, || self.send(&ask)).await
    }

    /// The reason behind an answer that is none of those expected.
    pub(crate) async fn refusal(&self, request: &'static str, response: Response) -> Problem {
        let status = response.status();
        let own = self.is_own(response.url());
        let body = body_of(response).await;
        let (codes, said) = read_errors(&body);
        let code = |c: &str| codes.iter().any(|x| x == c);
        match status {
            // Another host's opinion (a redirect's target) says nothing about our login.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if own => {
                let user =
                    self.client.used_login(self.repository.registry()).await.map(|f| f.user().to_owned());
                Problem::Denied { user, said }
            }
            _ if code("NAME_INVALID") => Problem::NameInvalid { said },
            StatusCode::NOT_FOUND if own => Problem::NotFound,
            status if is_transient(status) => Problem::Server { status, request, attempts: 1, said },
            status => Problem::Unexpected { status, request, said },
        }
    }
}

/// Statuses that may be another a moment later.
pub(crate) fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// Whether trying again may help.
pub(crate) fn may_pass(problem: &Problem) -> bool {
    match problem {
        Problem::Http(e) => e.is_transient(),
        Problem::Server { .. } => true,
        _ => false,
    }
}

impl Client {
    /// Repeats `send` while it fails in a way that may pass, within the settings' bounds.
    pub(crate) async fn retrying<F>(
        &self,
        registry: &str,
        name: &'static str,
        send: impl Fn() -> F,
    ) -> Result<Response, Problem>
    where
        F: Future<Output = Result<Response, Problem>>,
    {
        let attempts = self.inner.settings.retries.attempts.max(1);
        let mut attempt = 1;
        loop {
            let result = self.watched(registry, attempt, attempts, send()).await;
            let mut after = None;
            match result {
                Ok(response) if is_transient(response.status()) => {
                    let status = response.status();
                    after = retry_after(&response);
                    if attempt >= attempts {
                        let said = said_of(response).await;
                        return Err(Problem::Server { status, request: name, attempts, said });
                    }
                }
                Err(problem) if may_pass(&problem) && attempt < attempts => {
                    tracing::debug!(request = name, attempt, error = %problem, "trying again");
                }
                Err(Problem::Server { status, request, said, .. }) => {
                    return Err(Problem::Server { status, request, attempts: attempt, said });
                }
                other => return other,
            }
            self.wait_before_retry(attempt, after).await;
            attempt += 1;
        }
    }

    /// `work`, told of when it takes long.
    async fn watched<T>(
        &self,
        registry: &str,
        attempt: u32,
        attempts: u32,
        work: impl Future<Output = T>,
    ) -> T {
        tokio::pin!(work);
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(self.inner.settings.told_after), if self.waits.is_some() => {}
        }
        if let Some(waits) = &self.waits {
            waits(Wait { registry: registry.to_owned(), attempt, attempts });
        }
        work.await
    }

    /// Waits before try number `attempt + 1`.
    pub(crate) async fn wait_before_retry(&self, attempt: u32, asked: Option<Duration>) {
        let retries = &self.inner.settings.retries;
        let wait = retries.first_wait.saturating_mul(1 << attempt.saturating_sub(1).min(10));
        tokio::time::sleep(asked.unwrap_or(wait).max(wait).min(retries.longest_wait)).await;
    }
}

fn retry_after(response: &Response) -> Option<Duration> {
    response.header("retry-after")?.parse().ok().map(Duration::from_secs)
}

async fn body_of(response: Response) -> Vec<u8> {
    // Whatever goes wrong here, the status is what counts.
    match tokio::time::timeout(Duration::from_secs(5), response.bytes(MAX_SAID)).await {
        Ok(Ok(bytes)) => bytes.to_vec(),
        _ => Vec::new(),
    }
}

pub(crate) async fn said_of(response: Response) -> String {
    read_errors(&body_of(response).await).1
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<OneError>,
}

#[derive(Deserialize)]
struct OneError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The codes of a registry's error document, and a line for people.
pub(crate) fn read_errors(body: &[u8]) -> (Vec<String>, String) {
    match serde_json::from_slice::<Errors>(body) {
        Ok(doc) => {
            let texts: Vec<String> =
                doc.errors
                    .iter()
                    .take(3)
                    .map(|e| {
                        if e.message.is_empty() {
                            e.code.clone()
                        } else {
                            format!("{}, {}", e.code, e.message)
                        }
                    })
                    .collect();
            (doc.errors.into_iter().take(16).map(|e| e.code).collect(), cleaned(&texts.join("; ")))
        }
        // A page for browsers helps nobody; a line of text may.
        Err(_) => {
            let text = String::from_utf8_lossy(&body[..body.len().min(400)]);
            (Vec::new(), if text.trim_start().starts_with('<') { String::new() } else { cleaned(&text) })
        }
    }
}
