//! What can go wrong with a registry. Each message names the registry and repository, what failed, and
//! what to do next.

use keelway_http::{HttpError, StatusCode, TlsProblem};
use keelway_model::{Digest, Platform, Repository};
use keelway_store::{CommitError, StoreError};

/// What was being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Doing {
    /// Reading.
    Pull,
    /// Writing.
    Push,
}

impl std::fmt::Display for Doing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pull => "pull",
            Self::Push => "push",
        })
    }
}

/// A pull or push failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {what}: {}", problem_text(problem, repository, *doing))]
pub struct RegistryError {
    /// Pull or push.
    pub doing: Doing,
    /// The reference, as far as it was given.
    pub what: String,
    /// Its repository.
    pub repository: Repository,
    /// Why.
    #[source]
    pub problem: Box<Problem>,
}

impl RegistryError {
    /// The reason.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }
}

/// Why. The texts here lack the names; [`RegistryError`] has them.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The registry asks for a login and we have none.
    #[error("a login is needed and there is none in {config}")]
    NoLogin {
        /// The credential file.
        config: String,
    },
    /// The registry, or its token server, refuses the login.
    #[error("the login of {user:?} from {origin} was refused")]
    BadLogin {
        /// The user name.
        user: String,
        /// The entry of the credential file, or the helper.
        origin: String,
    },
    /// The login is good but may not do this.
    #[error("denied{}", tail(.said))]
    Denied {
        /// Who asked, where a login was used.
        user: Option<String>,
        /// The registry's words, bounded and cleaned.
        said: String,
    },
    /// The tag, digest or repository is not there.
    #[error("not found")]
    NotFound,
    /// The registry does not take this name.
    #[error("the name is invalid for this registry{}", tail(.said))]
    NameInvalid {
        /// The registry's words.
        said: String,
    },
    /// The request itself failed.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// A status that the protocol does not expect here.
    #[error("unexpected answer {status} to {request}{}", tail(.said))]
    Unexpected {
        /// The status.
        status: StatusCode,
        /// Which request.
        request: &'static str,
        /// The registry's words.
        said: String,
    },
    /// The registry failed or was busy, again and again.
    #[error("the registry answered {status} to {request} {attempts} times{}", tail(.said))]
    Server {
        /// The last status.
        status: StatusCode,
        /// Which request.
        request: &'static str,
        /// How often it was tried.
        attempts: u32,
        /// The registry's words.
        said: String,
    },
    /// Bytes that are not what their digest promises.
    #[error("{what}: expected {expected}, got {found}")]
    WrongDigest {
        /// What was read.
        what: &'static str,
        /// The digest asked for.
        expected: Digest,
        /// The digest of what came.
        found: String,
    },
    /// Fewer or more bytes than promised.
    #[error("{what} {digest} must have {expected} bytes, the registry sent {found}")]
    WrongSize {
        /// What was read.
        what: &'static str,
        /// Its digest.
        digest: Digest,
        /// Bytes promised.
        expected: u64,
        /// `only 17`, `more`.
        found: String,
    },
    /// A document that cannot be an image.
    #[error("the {document} {why}")]
    BadDocument {
        /// `manifest`, `index`, `config`.
        document: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The index has nothing for the platform.
    #[error("no image for {wanted}; there is {have}")]
    NoPlatform {
        /// What was wanted.
        wanted: Platform,
        /// What there is.
        have: String,
    },
    /// A layer that lives elsewhere.
    #[error("layer {digest} is a foreign layer, kept outside the registry, which is not supported")]
    ForeignLayer {
        /// The layer.
        digest: Digest,
    },
    /// The token server is one that may not have the login.
    #[error("the registry wants the login sent to {realm}, which is another server")]
    Realm {
        /// Host of the token server, and its port where it is not the usual one.
        realm: String,
    },
    /// The registry's challenge cannot be met.
    #[error("the registry asks for authentication in a way that is not understood: {0}")]
    Challenge(String),
    /// The token server's answer is no token.
    #[error("the token server {realm} gave no token: {why}")]
    Token {
        /// Its host.
        realm: String,
        /// In which way.
        why: String,
    },
    /// A credential helper failed.
    #[error(transparent)]
    Helper(#[from] crate::HelperError),
    /// What is to be pushed is no image manifest.
    #[error("{0} is not the manifest of one image")]
    NotAnImage(Digest),
    /// The registry took the manifest but does not vouch for its digest.
    #[error("the registry answered for {found} and not for {expected}")]
    NotAttested {
        /// What was sent.
        expected: Digest,
        /// What it named.
        found: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Problem {
    pub(crate) fn of_commit(e: CommitError, what: &'static str) -> Self {
        match e {
            CommitError::Store(e) => Self::Store(e),
            CommitError::Mismatch { expected, expected_size, found, found_size } => {
                if expected_size == found_size {
                    Self::WrongDigest { what, expected, found: found.to_string() }
                } else {
                    let found = format!("only {found_size}");
                    Self::WrongSize { what, digest: expected, expected: expected_size, found }
                }
            }
        }
    }
}

fn tail(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

/// The reason with its names and the next thing to do.
fn problem_text(problem: &Problem, repository: &Repository, doing: Doing) -> String {
    let registry = repository.registry();
    let login = format!("`docker login {registry}` (or another tool that writes docker's config.json)");
    match problem {
        Problem::NoLogin { config } => {
            format!("{registry} asks for a login and {config} has none for it; run {login}")
        }
        Problem::BadLogin { user, origin } => {
            format!("{registry} refuses the login of {user:?} that {origin} holds; run {login} again")
        }
        Problem::Denied { user: Some(user), .. } => {
            format!(
                "{problem}; give {user:?} the right to {doing} {repository}, or log in as somebody who has it"
            )
        }
        Problem::Denied { user: None, .. } => format!("{problem}; nobody is logged in: run {login}"),
        Problem::NotFound => {
            format!(
                "{registry} has nothing by this name, or hides it from this login; check the name, or run {login}"
            )
        }
        Problem::NameInvalid { .. } => format!("{problem}; choose another name than {:?}", repository.name()),
        Problem::Http(HttpError::Tls { host, problem: TlsProblem::UnknownAuthority }) => format!(
            "{host} shows a certificate from an authority that is not trusted here; if it is yours, name it in keelway.yml \
             (registries: {{{registry}: {{ca: NAME}}}}) and give the file with --registry-ca NAME=FILE"
        ),
        Problem::Http(HttpError::Tls { host, problem: TlsProblem::NotTls }) => format!(
            "{host} does not speak TLS; if it is a plain http registry that you trust, say so in keelway.yml \
             (registries: {{{registry}: {{http: true}}}}) or with --registry-http {registry}"
        ),
        Problem::Http(e) => e.to_string(),
        Problem::Unexpected { status: StatusCode::BAD_REQUEST, .. }
            if keelway_http::is_loopback(registry) =>
        {
            format!(
                "{problem}; loopback is asked by plain http: if it speaks TLS, say so by its authority's certificate, with \
             --registry-ca {registry}=FILE"
            )
        }
        Problem::Unexpected { .. } => {
            format!("{problem}; check that {registry} is an OCI registry and what its log says")
        }
        Problem::Server { .. } => format!("{problem}; try again later, or look at the log of {registry}"),
        Problem::WrongDigest { .. } | Problem::WrongSize { .. } => format!(
            "{problem}; nothing of it was kept. {registry}, or something between here and it, is broken or hostile: \
             push the image again, or pull from elsewhere"
        ),
        Problem::BadDocument { .. } | Problem::NoPlatform { .. } | Problem::ForeignLayer { .. } => {
            format!("{problem}; use another image, or push one that fits to {registry}")
        }
        Problem::Realm { realm } => format!(
            "{registry} wants the login sent to {realm}, which is another server; if that is right, allow {realm} as a token \
             server of {registry} in the settings of this machine"
        ),
        Problem::Challenge(_) | Problem::Token { .. } => {
            format!("{problem}; look at the log of {registry} and its token server")
        }
        Problem::Helper(_) => format!("{problem}; mend the helper, or run {login}"),
        Problem::NotAnImage(_) => format!("{problem}; push the image that a build stage made"),
        Problem::NotAttested { .. } => {
            format!("{problem}; nothing was deployed. Look at the log of {registry}")
        }
        Problem::Store(_) => problem.to_string(),
    }
}

/// A registry's words, fit to print: one line, no control characters, bounded.
pub(crate) fn cleaned(text: &str) -> String {
    let mut out: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
    // Direction marks could make a message read as another.
    out.retain(|c| !matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}'));
    out.trim().to_owned()
}
