//! Smart HTTP over the one HTTP client: `info/refs`, then one POST to `git-upload-pack`.
//!
//! Credentials go to the host of the address alone: the client drops them on a redirect elsewhere, and the POST after
//! such a redirect is sent without them.

use crate::connection::{Connection, Sink, Watch};
use crate::protocol::{self, Advertisement, Packet, ProtocolError};
use crate::url::Transport;
use crate::{GitSettings, RepoUrl, SourceError};
use git2::Oid;
use keelway_http::{Auth, Blocking, BlockingResponse, Body, HttpError, Request, TlsProblem, Url, header};
use keelway_model::Redacted;
use std::collections::BTreeSet;
use std::time::Instant;

const SERVICE: &str = "/info/refs?service=git-upload-pack";

pub(crate) struct Http<'a> {
    url: &'a RepoUrl,
    settings: &'a GitSettings,
    watch: Watch<'a>,
    client: Blocking,
    /// Address of the repository, after a redirect the new one.
    base: Url,
    auth: Option<Auth>,
    capabilities: BTreeSet<String>,
}

impl<'a> Http<'a> {
    pub(crate) fn open(
        url: &'a RepoUrl,
        settings: &'a GitSettings,
        watch: Watch<'a>,
    ) -> Result<Self, SourceError> {
        let Transport::Http { tls, host, path, user, password } = url.transport() else {
            return Err(SourceError::Protocol { url: url.clone(), what: "it is no http address".into() });
        };
        let text = format!("{}://{host}{path}", if *tls { "https" } else { "http" });
        let base = text.parse().map_err(|e| SourceError::Protocol {
            url: url.clone(),
            what: format!("the address is not valid: {e}"),
        })?;
        let login = settings.credentials.for_host(host);
        let basic = |user: &str, password: &Redacted<String>| Auth::Basic {
            user: user.into(),
            password: password.clone(),
        };
        let auth = match (user, password, login) {
            (user, Some(password), _) => Some(basic(user.as_deref().unwrap_or("git"), password)),
            (None, None, Some(login)) => Some(basic(&login.user, &login.password)),
            (Some(user), None, Some(login)) if login.user == *user => Some(basic(user, &login.password)),
            // A token alone is often written as the user.
            (Some(user), None, _) => Some(basic(user, &Redacted::new(String::new()))),
            (None, None, None) => None,
        };
        let client =
            settings.http.blocking().map_err(|e| SourceError::io("cannot start the HTTP client", e))?;
        Ok(Self { url, settings, watch, client, base, auth, capabilities: BTreeSet::new() })
    }

    fn address(&self, suffix: &str) -> Result<Url, SourceError> {
        let base = self.base.as_str().trim_end_matches('/');
        format!("{base}{suffix}").parse().map_err(|_| self.protocol("the address is not valid"))
    }

    fn protocol(&self, what: impl Into<String>) -> SourceError {
        SourceError::Protocol { url: self.url.clone(), what: what.into() }
    }

    fn send(&self, request: Request) -> Result<BlockingResponse, SourceError> {
        self.watch.check()?;
        let left = self.watch.until.saturating_duration_since(Instant::now());
        let response =
            self.client.send(request.auth(self.auth.clone()).total(left)).map_err(|e| self.http(&e))?;
        let url = self.url.clone();
        match response.status().as_u16() {
            200 => Ok(response),
            401 | 403 => Err(match &self.auth {
                None => SourceError::Authentication {
                    url,
                    given: "none was given",
                    mend: "give a token by KEELWAY_GIT_TOKEN, or a login for its host in ~/.netrc",
                },
                Some(_) => SourceError::Authentication {
                    url,
                    given: "refuses the one given",
                    mend: "check that the token is valid and may read this repository",
                },
            }),
            404 | 410 => Err(SourceError::NoRepository { url }),
            status => Err(self.protocol(format!("it answers with HTTP status {status}"))),
        }
    }

    fn http(&self, e: &HttpError) -> SourceError {
        if let Err(stopped) = self.watch.check() {
            return stopped;
        }
        let url = self.url.clone();
        match e {
            HttpError::Tls { problem: TlsProblem::UnknownAuthority, .. } => SourceError::Certificate {
                url,
                cause: "its certificate is from an authority that is not trusted here; if it is yours, give the authority's \
                        certificate (a PEM file) with --ca FILE"
                    .into(),
            },
            HttpError::Tls { .. } => SourceError::Certificate { url, cause: e.to_string() },
            HttpError::Redirect { .. } | HttpError::TooLong { .. } => self.protocol(e.to_string()),
            other => SourceError::Unreachable { url, cause: other.to_string() },
        }
    }

    /// A read error of a body may be an error of HTTP.
    fn wire(&self, e: ProtocolError) -> SourceError {
        match e {
            ProtocolError::Io(io) => match io.get_ref().and_then(|inner| inner.downcast_ref::<HttpError>()) {
                Some(http) => self.http(http),
                None => self.watch.wire(ProtocolError::Io(io)),
            },
            other => self.watch.wire(other),
        }
    }
}

impl Connection for Http<'_> {
    fn advertise(&mut self) -> Result<Advertisement, SourceError> {
        let mut response = self.send(Request::get(self.address(SERVICE)?))?;
        let kind = response.header("content-type").unwrap_or("").to_owned();
        if kind != "application/x-git-upload-pack-advertisement" {
            let what = format!("it sends {:?}, not a list of references", crate::error::clean(&kind, 80));
            return Err(self.protocol(what));
        }
        let landed = response.url().clone();
        let advertisement = (|| {
            match protocol::read_packet(&mut response)? {
                Packet::Data(line) if line.starts_with(b"# service=git-upload-pack") => {}
                _ => return Err(ProtocolError::Bad("its list of references has no heading".into())),
            }
            if protocol::read_packet(&mut response)? != Packet::Flush {
                return Err(ProtocolError::Bad("its list of references has no heading".into()));
            }
            protocol::read_advertisement(&mut response, self.settings.limits.references)
        })()
        .map_err(|e| self.wire(e))?;
        let Some(base) = landed.as_str().strip_suffix(SERVICE).and_then(|b| b.parse::<Url>().ok()) else {
            return Err(self.protocol("it redirects to something that is no repository"));
        };
        if base.origin() != self.base.origin() {
            self.auth = None;
        }
        self.base = base;
        self.capabilities = advertisement.capabilities.clone();
        Ok(advertisement)
    }

    fn fetch(&mut self, wants: &[Oid], haves: &[Oid], sink: &mut Sink<'_>) -> Result<(), SourceError> {
        let body = protocol::request(&self.capabilities, wants, haves).map_err(|e| self.wire(e))?;
        let value = header::HeaderValue::from_static;
        let request = Request::post(self.address("/git-upload-pack")?)
            .header(header::CONTENT_TYPE, value("application/x-git-upload-pack-request"))
            .header(header::ACCEPT, value("application/x-git-upload-pack-result"))
            .body(Body::Bytes(body.into()));
        let mut response = self.send(request)?;
        if response.header("content-type") != Some("application/x-git-upload-pack-result") {
            return Err(self.protocol("it does not send a pack"));
        }
        protocol::read_pack(&mut response, sink).map_err(|e| self.wire(e))?
    }
}
