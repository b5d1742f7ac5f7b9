//! The address of a repository, checked before anything is opened, connected or executed.

use keelway_model::Redacted;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Who wrote an address: what a pushed file may name is less than what the command line may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The command line or the machine's settings: paths, `file://` and loopback `http://` too.
    CommandLine,
    /// A file of a repository: `https` and `ssh` only.
    File,
}

/// How a repository is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// A directory of this machine.
    Local {
        /// Absolute path.
        path: PathBuf,
    },
    /// Smart HTTP.
    Http {
        /// TLS; without it loopback only.
        tls: bool,
        /// Host, with port where one is written.
        host: String,
        /// Absolute path on the server, as written.
        path: String,
        /// User of the address.
        user: Option<String>,
        /// Password or token of the address.
        password: Option<Redacted<String>>,
    },
    /// ssh.
    Ssh {
        /// User, where one is written.
        user: Option<String>,
        /// Host or alias of the ssh configuration.
        host: String,
        /// Port, where one is written.
        port: Option<u16>,
        /// Path on the server.
        path: String,
    },
}

/// A checked address. `Display` and `Debug` never show a password.
#[derive(Clone, PartialEq, Eq)]
pub struct RepoUrl {
    /// Shared, since every error carries its address.
    transport: Arc<Transport>,
}

/// Why a text is no address that may be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Not allowed where it stands.
    #[error("{what} is not allowed here: use https or ssh")]
    NotAllowed {
        /// `a local path`, ..
        what: &'static str,
    },
    /// A scheme that we do not speak.
    #[error("{scheme:?} is not a transport Keelway uses: use https, ssh, a path, or http on loopback")]
    Scheme {
        /// The scheme as written.
        scheme: String,
    },
    /// Malformed.
    #[error("the repository address is not valid: {what}")]
    Malformed {
        /// What is wrong; never the address itself, which may hold a password.
        what: String,
    },
}

fn malformed<T>(what: impl Into<String>) -> Result<T, UrlError> {
    Err(UrlError::Malformed { what: what.into() })
}

impl RepoUrl {
    fn of(transport: Transport) -> Self {
        Self { transport: Arc::new(transport) }
    }

    /// Longest address that is read.
    const MAX: usize = 2000;

    /// Reads a path, `file://`, `http://` (loopback), `https://`, `ssh://` or `user@host:path` address.
    ///
    /// A relative path stays relative to the working directory of the caller and should be made absolute before.
    ///
    /// # Errors
    /// What is not one of these, what `origin` may not name, and what could be read as an option, another host or
    /// a command by a program behind us. No message holds the address.
    pub fn parse(text: &str, origin: Origin) -> Result<Self, UrlError> {
        if text.is_empty() {
            return malformed("it is empty");
        }
        if text.len() > Self::MAX {
            return malformed("it is longer than 2000 bytes");
        }
        if text.chars().any(|c| c.is_control() || c == '\u{7f}') {
            return malformed("it holds a control character");
        }
        if text.starts_with('-') {
            return malformed("it starts with '-', which a program could take for an option");
        }
        let local = |path: &str| {
            if origin == Origin::File {
                return Err(UrlError::NotAllowed { what: "a local path" });
            }
            Ok(Self::of(Transport::Local { path: PathBuf::from(path) }))
        };
        match text.split_once("://") {
            Some((scheme, rest)) if is_scheme(scheme) => match scheme.to_ascii_lowercase().as_str() {
                "https" => Self::http(rest, true, origin),
                "http" => Self::http(rest, false, origin),
                "ssh" | "git+ssh" | "ssh+git" => Self::ssh(rest),
                "file" => match rest.strip_prefix("localhost").unwrap_or(rest) {
                    path if path.starts_with('/') => local(&percent_decode(path)?),
                    _ => malformed("a file address has an absolute path: file:///srv/repo.git"),
                },
                _ => Err(UrlError::Scheme { scheme: scheme.chars().take(40).collect() }),
            },
            // `ext::sh -c ..`, `fd::17`: remote helpers of git.
            _ if helper(text) => {
                Err(UrlError::Scheme { scheme: text.chars().take_while(|&c| c != ':').take(40).collect() })
            }
            _ => match text.find([':', '/']) {
                // `user@host:path`: a colon before the first slash, as git reads it.
                Some(colon) if text.as_bytes()[colon] == b':' => {
                    let (user, host) = split_user(&text[..colon]);
                    Self::ssh_parts(user, host, None, &text[colon + 1..])
                }
                _ => local(text),
            },
        }
    }

    fn http(rest: &str, tls: bool, origin: Origin) -> Result<Self, UrlError> {
        if rest.contains(['?', '#', '\\', ' ']) {
            return malformed("it holds a query, a fragment, a space or a backslash");
        }
        let (authority, path) = rest.find('/').map_or((rest, ""), |i| (&rest[..i], &rest[i..]));
        let (login, host) = authority.rsplit_once('@').map_or((None, authority), |(l, h)| (Some(l), h));
        let (name, port) = split_port(host)?;
        check_host(name)?;
        if !tls && !keelway_http::is_loopback(host) {
            return Err(UrlError::NotAllowed { what: "plain http to another machine" });
        }
        if !tls && origin == Origin::File {
            return Err(UrlError::NotAllowed { what: "plain http" });
        }
        if path.trim_matches('/').is_empty() {
            return malformed("it has no path to a repository");
        }
        check_percent(path)?;
        let (user, password) = match login.map(|l| l.split_once(':').map_or((l, None), |(u, p)| (u, Some(p))))
        {
            Some((user, password)) => {
                let user = percent_decode(user)?;
                let password = password.map(percent_decode).transpose()?;
                (Some(user).filter(|u| !u.is_empty()), password.map(Redacted::new))
            }
            None => (None, None),
        };
        let default = if tls { 443 } else { 80 };
        let host = match port {
            Some(p) if p != default => format!("{}:{p}", name.to_ascii_lowercase()),
            _ => name.to_ascii_lowercase(),
        };
        let path = path.trim_end_matches('/').to_owned();
        Ok(Self::of(Transport::Http { tls, host, path, user, password }))
    }

    fn ssh(rest: &str) -> Result<Self, UrlError> {
        let Some(slash) = rest.find('/') else { return malformed("it has no path to a repository") };
        let (user, host) = split_user(&rest[..slash]);
        let (name, port) = split_port(host)?;
        let path = &rest[slash..];
        // `ssh://host/~user/repo` is relative to a home folder, as git reads it.
        let path = if path.starts_with("/~") { &path[1..] } else { path };
        Self::ssh_parts(user, name, port, &percent_decode(path)?)
    }

    fn ssh_parts(user: Option<&str>, host: &str, port: Option<u16>, path: &str) -> Result<Self, UrlError> {
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        check_host(host)?;
        if let Some(user) = user {
            let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'+');
            if user.contains(':') {
                return malformed("a password in an ssh address is not used; use a key");
            }
            if user.is_empty() || user.starts_with('-') || !user.bytes().all(ok) {
                return malformed("the user holds characters that a user name cannot hold");
            }
        }
        if path.is_empty() || path == "/" {
            return malformed("it has no path to a repository");
        }
        if path.starts_with('-') {
            return malformed("its path starts with '-', which a program could take for an option");
        }
        Ok(Self::of(Transport::Ssh {
            user: user.map(str::to_owned),
            host: host.to_owned(),
            port,
            path: path.to_owned(),
        }))
    }

    /// How it is reached.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// The same address without its password (and without a user of http, which may be a token).
    #[must_use]
    pub fn without_password(&self) -> Self {
        let mut out = self.clone();
        if let Transport::Http { user, password, .. } = Arc::make_mut(&mut out.transport) {
            *user = None;
            *password = None;
        }
        out
    }

    /// The folder name of its mirror: a digest of the address without its user and password, so that two logins
    /// share nothing but what both may read is fetched again for each. Safe as a file name.
    pub fn cache_name(&self) -> String {
        let user = match &*self.transport {
            Transport::Http { user: Some(u), .. } => u.as_str(),
            _ => "",
        };
        let mut hasher = keelway_model::Hasher::new();
        hasher.field(self.to_string().as_bytes()).field(user.as_bytes());
        hasher.finish().hex()
    }
}

/// Without password; a user of http is left out as well, since tokens are often written there.
impl fmt::Display for RepoUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.transport {
            Transport::Local { path } => write!(f, "{}", path.display().to_string().escape_debug()),
            Transport::Http { tls, host, path, .. } => {
                write!(f, "{}://{host}{path}", if *tls { "https" } else { "http" })
            }
            Transport::Ssh { user, host, port, path } => {
                f.write_str("ssh://")?;
                if let Some(user) = user {
                    write!(f, "{user}@")?;
                }
                if host.contains(':') {
                    write!(f, "[{host}]")?
                } else {
                    f.write_str(host)?
                }
                if let Some(port) = port {
                    write!(f, ":{port}")?;
                }
                if !path.starts_with('/') {
                    f.write_str("/")?;
                }
                f.write_str(path)
            }
        }
    }
}

impl fmt::Debug for RepoUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn is_scheme(s: &str) -> bool {
    s.starts_with(|c: char| c.is_ascii_alphabetic())
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

fn helper(text: &str) -> bool {
    text.split_once("::").is_some_and(|(name, _)| is_scheme(name))
}

fn split_user(text: &str) -> (Option<&str>, &str) {
    text.rsplit_once('@').map_or((None, text), |(u, h)| (Some(u), h))
}

fn split_port(host: &str) -> Result<(&str, Option<u16>), UrlError> {
    let (name, port) = match host.rfind(']') {
        Some(end) => (&host[..=end], host[end + 1..].strip_prefix(':')),
        None => host.split_once(':').map_or((host, None), |(h, p)| (h, Some(p))),
    };
    match port {
        None if name.len() == host.len() => Ok((name, None)),
        Some(p) if p.bytes().all(|b| b.is_ascii_digit()) => match p.parse::<u16>() {
            Ok(p) if p > 0 => Ok((name, Some(p))),
            _ => malformed("its port is not a number from 1 to 65535"),
        },
        _ => malformed("its port is not a number from 1 to 65535"),
    }
}

/// Letters, digits, `.`, `-`, `_`, or an IPv6 address: what OpenSSH takes for a host name, without `%`.
fn check_host(host: &str) -> Result<(), UrlError> {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if bare.contains(':') && bare.parse::<std::net::Ipv6Addr>().is_ok() {
        return Ok(());
    }
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if host.is_empty() {
        return malformed("it has no host");
    }
    if host.starts_with('-') {
        return malformed("its host starts with '-', which a program could take for an option");
    }
    if host.len() > 253 || !host.bytes().all(ok) {
        return malformed("its host holds characters that a host name cannot hold");
    }
    Ok(())
}

fn check_percent(text: &str) -> Result<(), UrlError> {
    percent_decode(text).map(|_| ())
}

/// Decodes `%41`; an encoded control character or slash-dot trick is refused.
fn percent_decode(text: &str) -> Result<String, UrlError> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        if bytes[i] != b'%' {
            out.push(bytes[i]);
            i += 1;
            continue;
        }
        let hex = text.get(i + 1..i + 3).filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit()));
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(b) if b < 0x20 || b == 0x7f => return malformed("it holds an encoded control character"),
            Some(b) => out.push(b),
            None => return malformed("it holds a '%' that is no encoded character"),
        }
        i += 3;
    }
    String::from_utf8(out).or_else(|_| malformed("its encoded characters are not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cli(text: &str) -> Result<RepoUrl, UrlError> {
        RepoUrl::parse(text, Origin::CommandLine)
    }

    #[test]
    fn addresses_as_people_write_them() {
        for (given, shown) in [
            ("https://Example.com/a/b.git", "https://example.com/a/b.git"),
            ("https://example.com:443/a/", "https://example.com/a"),
            ("https://u:s3cret@example.com:8443/a", "https://example.com:8443/a"),
            ("http://127.0.0.1:80/a", "http://127.0.0.1/a"),
            ("http://[::1]:3000/a", "http://[::1]:3000/a"),
            ("ssh://git@example.com:2222/srv/a.git", "ssh://git@example.com:2222/srv/a.git"),
            ("ssh://example.com/~me/a", "ssh://example.com/~me/a"),
            ("git@example.com:shop/web.git", "ssh://git@example.com/shop/web.git"),
            ("alias:web", "ssh://alias/web"),
            ("file:///srv/a%20b", "/srv/a b"),
            ("/srv/a", "/srv/a"),
            ("./a:b", "./a:b"),
        ] {
            assert_eq!(cli(given).map(|u| u.to_string()), Ok(shown.to_owned()), "{given}");
        }
    }

    #[test]
    fn s01_s02_s05_s06_hostile_addresses_are_refused() {
        for bad in [
            "ssh://-oProxyCommand=x/a",
            "ssh://u@-oProxyCommand=x/a",
            "-u./x",
            "--upload-pack=x",
            "git@-oProxyCommand=x:a",
            "git@host:-x",
            "ssh://-x@host/a",
            "ext::sh -c x",
            "fd::17",
            "EXT::x",
            "git://example.com/a",
            "ftp://example.com/a",
            "http://example.com/a",
            "http://127.0.0.1.example.com/a",
            "https:///host/a",
            "https://example.com/%0ahost=evil",
            "https://example.com%0a.evil/a",
            "https://exa\nmple.com/a",
            "https://a`id`/x",
            "ssh://$(id)/x",
            "ssh://a;b/x",
            "git@a b:x",
            "https://example.com/a?x=1",
            "https://example.com/a#x",
            "https://example.com:0/a",
            "https://example.com:99999/a",
            "https://example.com",
            "https://example.com/",
            "ssh://host",
            "host:",
            "file://other/srv/a",
            "file://a",
            "https://exa%mple.com/a",
            "ssh://u:p@host/a",
            "",
        ] {
            assert!(cli(bad).is_err(), "{bad:?} was taken as {:?}", cli(bad));
        }
    }

    #[test]
    fn a_file_may_name_only_https_and_ssh() {
        for bad in ["/srv/a", "a", "../x", "file:///srv/a", "http://127.0.0.1/a"] {
            assert!(matches!(RepoUrl::parse(bad, Origin::File), Err(UrlError::NotAllowed { .. })), "{bad}");
        }
        assert!(RepoUrl::parse("https://example.com/a", Origin::File).is_ok());
        assert!(RepoUrl::parse("git@example.com:a", Origin::File).is_ok());
    }

    #[test]
    fn s06_a_password_is_never_shown() {
        let url = cli("https://me:hunter2@example.com/a").unwrap();
        let Transport::Http { user, password, .. } = url.transport() else { panic!() };
        assert_eq!(user.as_deref(), Some("me"));
        assert_eq!(password.as_ref().map(|p| p.reveal().as_str()), Some("hunter2"));
        for text in [format!("{url}"), format!("{url:?}"), format!("{:?}", url.transport())] {
            assert!(!text.contains("hunter2"), "{text}");
        }
        assert!(!cli("https://me:hunter2@exa mple.com/a").unwrap_err().to_string().contains("hunter2"));
    }
}
