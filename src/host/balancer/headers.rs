//! What a proxy must do to headers before it passes a message on. Pure.
//!
//! hyper has parsed the message: conflicting lengths were refused, and where both a transfer coding and
//! a length were given it read the body by the coding but left the length in an answer's headers, where it
//! would cut the body short. Here go the length that does not count (RFC 9112, 6.3) and the headers that
//! concern one connection only, so that what is sent on is framed anew, by hyper, from the body it carries.

use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE,
};
use hyper::{Method, Request, StatusCode, Version};
use std::net::IpAddr;

/// Headers of one connection (RFC 9110, 7.6.1, and those that older software still sends).
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "upgrade",
];

/// What a backend believes about where a request came from: only what this balancer saw itself. Everything named
/// `x-forwarded-..` goes, too, but the chain of addresses, to which it adds; `proxy` would become the
/// variable `HTTP_PROXY` of a CGI program.
const CLAIMS: [&str; 3] = ["forwarded", "proxy", "x-real-ip"];
const FORWARDED: &str = "x-forwarded-";
const CHAIN: &str = "x-forwarded-for";

/// Why a request is answered without being passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal(pub StatusCode, pub &'static str);

/// Refuses what cannot be passed on safely, and heads of more than `max_head` bytes.
pub fn check<B>(request: &Request<B>, max_head: usize) -> Result<(), Refusal> {
    let headers = request.headers();
    // Of each line: the name, ": ", the value, the end of the line.
    let lines = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    if lines.sum::<usize>() + request.uri().path().len() + request.uri().query().map_or(0, str::len)
        > max_head
    {
        return Err(Refusal(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "the target and the headers of the request are too long",
        ));
    }
    if request.method() == Method::CONNECT {
        return Err(Refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            "this balancer is no tunnel: CONNECT is refused",
        ));
    }
    if headers.contains_key(TRANSFER_ENCODING)
        && (!only_chunked(headers) || headers.contains_key(CONTENT_LENGTH))
    {
        return Err(Refusal(
            StatusCode::BAD_REQUEST,
            "the only transfer coding accepted is chunked, without a content length",
        ));
    }
    let target = request.uri().authority().map(|a| a.as_str().as_bytes());
    if target.is_some_and(|a| !is_host(a)) {
        return Err(Refusal(StatusCode::BAD_REQUEST, "the target does not name a valid host"));
    }
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if request.version() == Version::HTTP_11 => {
            Err(Refusal(StatusCode::BAD_REQUEST, "HTTP/1.1 needs a Host header"))
        }
        (Some(_), Some(_)) => Err(Refusal(StatusCode::BAD_REQUEST, "more than one Host header")),
        (Some(host), None) if !is_host(host.as_bytes()) => {
            Err(Refusal(StatusCode::BAD_REQUEST, "the Host header is not a host name or address"))
        }
        _ => Ok(()),
    }
}

/// A name or an address, and perhaps a port. Narrower than RFC 3986 allows: no name in use has more, and backends
/// build links from it.
fn is_host(text: &[u8]) -> bool {
    let (host, rest) = match text.split_first() {
        Some((b'[', inside)) => match inside.iter().position(|b| *b == b']') {
            Some(end) => (&inside[..end], &inside[end + 1..]),
            None => return false,
        },
        _ => text.split_at(text.iter().position(|b| *b == b':').unwrap_or(text.len())),
    };
    let known: fn(&u8) -> bool = match text.first() {
        Some(b'[') => |b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'),
        _ => |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'~' | b'%'),
    };
    let port = rest.strip_prefix(b":").unwrap_or(rest);
    let port_fits =
        port.iter().all(u8::is_ascii_digit) && port.len() <= 5 && (rest.is_empty() || rest[0] == b':');
    !host.is_empty() && host.iter().all(known) && port_fits
}

/// Whether the message has no transfer coding that the next connection would not know of.
pub fn only_chunked(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    codings.next().is_none_or(|v| v.as_bytes().eq_ignore_ascii_case(b"chunked")) && codings.next().is_none()
}

/// Whether the message asks for, or agrees to, WebSocket: the only protocol that is passed through.
pub fn is_websocket(headers: &HeaderMap) -> bool {
    let lists_upgrade = tokens(headers).any(|t| t.eq_ignore_ascii_case("upgrade"));
    lists_upgrade && headers.get(UPGRADE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',').map(str::trim))
}

/// Removes what concerns one connection only, the headers that `Connection` names included.
pub fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> =
        tokens(headers).filter_map(|t| HeaderName::from_bytes(t.as_bytes()).ok()).collect();
    for name in named {
        // A message could otherwise have its own length or host removed on the way.
        if name != CONTENT_LENGTH && name != HOST && name != TRANSFER_ENCODING {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    if headers.remove(TRANSFER_ENCODING).is_some() {
        headers.remove(CONTENT_LENGTH);
    }
}

/// Asks for, or agrees to, WebSocket on the next connection.
pub fn set_websocket(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

/// Makes the headers of a request those that a backend shall get.
pub fn towards_backend(headers: &mut HeaderMap, client: IpAddr, websocket: bool) {
    strip(headers);
    // Our own server answers it, as soon as the backend reads the body.
    headers.remove(EXPECT);
    let claims: Vec<HeaderName> = headers.keys().filter(|n| is_claim(n.as_str())).cloned().collect();
    for name in claims {
        headers.remove(name);
    }
    if websocket {
        set_websocket(headers);
    } else {
        // Each request has a connection of its own; see the module text of `proxy`.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let name = HeaderName::from_static(CHAIN);
    let address = client.to_string();
    let mut chain: Vec<u8> = Vec::new();
    for value in headers.get_all(&name) {
        chain.extend_from_slice(value.as_bytes());
        chain.extend_from_slice(b", ");
    }
    chain.extend_from_slice(address.as_bytes());
    for (name, value) in
        [(name, chain.as_slice()), (HeaderName::from_static("x-real-ip"), address.as_bytes())]
    {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.insert(name, value);
        }
    }
    headers.insert(HeaderName::from_static("x-forwarded-proto"), HeaderValue::from_static("http"));
    if let Some(host) = headers.get(HOST).cloned() {
        headers.insert(HeaderName::from_static("x-forwarded-host"), host);
    }
}

/// Whether a client's header claims what only the balancer can say. A name with underscores is taken for the one with
/// dashes that many backends cannot tell it from: such a name never passes.
fn is_claim(name: &str) -> bool {
    let dashed = name.replace('_', "-");
    let ours = CLAIMS.contains(&dashed.as_str()) || dashed.starts_with(FORWARDED);
    let framing = || {
        HOP_BY_HOP.contains(&dashed.as_str())
            || [CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING].iter().any(|n| n.as_str() == dashed)
    };
    if name == dashed { ours && name != CHAIN } else { ours || framing() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut h = HeaderMap::new();
        for (n, v) in pairs {
            h.append(HeaderName::from_static(n), HeaderValue::from_static(v));
        }
        h
    }

    #[test]
    fn what_concerns_one_connection_is_not_passed_on() {
        let mut h = map(&[
            ("host", "a"),
            ("connection", "keep-alive, x-secret , content-length"),
            ("x-secret", "1"),
            ("content-length", "3"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-port", "443"),
            ("x-forwarded-prefix", "/evil"),
            ("x_forwarded_for", "192.0.2.9"),
            ("x-real_ip", "192.0.2.9"),
            ("x-real-ip", "192.0.2.9"),
            ("content_length", "9"),
            ("forwarded", "for=192.0.2.9"),
            ("proxy", "http://evil"),
            ("x_of_the_app", "1"),
        ]);
        towards_backend(&mut h, "198.51.100.7".parse().unwrap(), false);
        for gone in ["x-secret", "te", "upgrade", "expect", "x-forwarded-port", "x-forwarded-prefix"] {
            assert!(!h.contains_key(gone), "{gone}");
        }
        for gone in ["x_forwarded_for", "x-real_ip", "content_length", "forwarded", "proxy"] {
            assert!(!h.contains_key(gone), "{gone}");
        }
        assert_eq!(h["x-real-ip"], "198.51.100.7");
        assert_eq!(h["x_of_the_app"], "1");
        assert_eq!(h["connection"], "close");
        assert_eq!(h["content-length"], "3", "Connection cannot take the framing away");
        assert_eq!(h["x-forwarded-for"], "192.0.2.1, 198.51.100.7");
        assert_eq!(h["x-forwarded-proto"], "http");
        assert_eq!(h["x-forwarded-host"], "a");
    }

    #[test]
    fn a_length_beside_a_transfer_coding_does_not_count() {
        let mut h = map(&[("content-length", "2"), ("transfer-encoding", "Chunked")]);
        assert!(only_chunked(&h));
        strip(&mut h);
        assert!(h.is_empty(), "{h:?}");
        assert!(!only_chunked(&map(&[("transfer-encoding", "gzip, chunked")])));
    }

    #[test]
    fn only_websocket_is_an_upgrade() {
        assert!(is_websocket(&map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")])));
        assert!(!is_websocket(&map(&[("connection", "upgrade"), ("upgrade", "h2c")])));
        assert!(!is_websocket(&map(&[("upgrade", "websocket")])));
    }

    #[test]
    fn ambiguous_requests_are_refused() {
        let request = |method: Method, pairs: &[(&'static str, &'static str)]| {
            let mut r = Request::new(());
            *r.method_mut() = method;
            *r.headers_mut() = map(pairs);
            check(&r, 1000).map_err(|r| r.0.as_u16())
        };
        assert_eq!(request(Method::GET, &[("host", "a")]), Ok(()));
        assert_eq!(request(Method::GET, &[]), Err(400));
        assert_eq!(request(Method::GET, &[("host", "a"), ("host", "b")]), Err(400));
        assert_eq!(request(Method::CONNECT, &[("host", "a")]), Err(405));
        assert_eq!(request(Method::POST, &[("host", "a"), ("transfer-encoding", "gzip, chunked")]), Err(400));
        let both = [("host", "a"), ("transfer-encoding", "chunked"), ("content-length", "3")];
        assert_eq!(request(Method::POST, &both), Err(400));
        assert_eq!(request(Method::POST, &both[..2]), Ok(()));
        let long: &'static str = Box::leak("x".repeat(990).into_boxed_str());
        assert_eq!(request(Method::GET, &[("host", "a"), ("x", long)]), Err(431));
    }

    #[test]
    fn a_host_is_a_name_or_an_address() {
        for good in ["a", "a.example:8080", "a_b.example.", "192.0.2.1:80", "[2001:db8::1]:80", "[::1]", "a:"]
        {
            assert!(is_host(good.as_bytes()), "{good}");
        }
        for bad in [
            "", ":80", "a b", "a/b", "a\"", "<a>", "a@b", "a:b", "a:1:2", "[::1", "[]", "[::1]a", "a,b", "é",
            "a:123456",
        ] {
            assert!(!is_host(bad.as_bytes()), "{bad}");
        }
    }
}
