//! Rules for the fields of a message that an intermediary forwards (RFC 9110 7.6.1).

use http::header::{
    ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, ACCEPT_RANGES, AGE, CACHE_CONTROL, CONNECTION,
    CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_RANGE,
    CONTENT_TYPE, DATE, EXPECT, EXPIRES, FROM, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, LOCATION, MAX_FORWARDS, ORIGIN, PRAGMA, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, RANGE,
    REFERER, RETRY_AFTER, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, USER_AGENT, VARY, WARNING,
    WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderName, HeaderValue};

pub(crate) const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const CLOSE: HeaderName = HeaderName::from_static("close");
pub(crate) const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// The subject of the client's TLS certificate.
pub(crate) const X_CLIENT_CERT_SUBJECT: HeaderName = HeaderName::from_static("x-client-cert-subject");
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(crate) const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
pub(crate) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Fields that a request must not name in `Connection`: their removal would change the meaning of the request, or
/// remove facts about the client that the proxy adds.
pub(super) const NEVER_HOP_BY_HOP: &[&str] = &[
    "host",
    "content-length",
    "authorization",
    "cookie",
    "idempotency-key",
    "via",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-client-cert-subject",
    "x-request-id",
    "traceparent",
    "tracestate",
];

/// Returns whether a field is about a single connection: a configuration must not set it, and it is not forwarded.
pub(crate) fn is_hop_by_hop(name: &HeaderName) -> bool {
    [&CONNECTION, &KEEP_ALIVE, &PROXY_CONNECTION, &TE, &TRAILER, &TRANSFER_ENCODING, &UPGRADE].contains(&name)
}

/// The hop-by-hop facts of a request, read before those fields were removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HopByHop {
    /// The protocol of `Upgrade`, where `Connection` names `upgrade` too.
    pub(crate) upgrade: Option<HeaderValue>,
    /// `TE: trailers`.
    pub(crate) trailers: bool,
    /// The connection ends with this message.
    pub(crate) close: bool,
}

/// A field that `Connection` must not name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForbiddenOption(pub(crate) HeaderName);

/// Removes the hop-by-hop fields of a request, including those that `Connection` names. `protected` are further fields
/// that it must not name.
pub(crate) fn strip_request(fields: &mut HeaderMap, protected: &[HeaderName]) -> Result<HopByHop, ForbiddenOption> {
    let mut found = HopByHop::default();
    if let Some(close) = says_only_whether_to_close(fields) {
        found.close = close;
    } else {
        let options = connection_options(fields);
        let is_forbidden =
            |option: &&HeaderName| NEVER_HOP_BY_HOP.contains(&option.as_str()) || protected.contains(option);
        if let Some(forbidden) = options.iter().find(is_forbidden) {
            return Err(ForbiddenOption(forbidden.clone()));
        }
        if options.contains(&UPGRADE) {
            found.upgrade = fields.get(UPGRADE).cloned();
        }
        found.close = options.contains(&CLOSE);
        remove_named(fields, &options);
    }
    if let Some(te) = fields.get(TE) {
        found.trailers = list_has(te, "trailers");
    }
    strip_always(fields);
    Ok(found)
}

/// The hop-by-hop facts of a response, read before those fields were removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StrippedAnswer {
    /// The protocol that it switches to.
    pub(crate) upgrade: Option<HeaderValue>,
    /// The fields that are hop-by-hop only because `Connection` names them.
    pub(crate) named: Option<NamedByConnection>,
}

/// Fields of a response that its `Connection` names. They are not forwarded, but they count for storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedByConnection(pub(crate) HeaderMap);

/// Removes the hop-by-hop fields of a response.
pub(crate) fn strip_response(fields: &mut HeaderMap) -> StrippedAnswer {
    let mut stripped = StrippedAnswer::default();
    if says_only_whether_to_close(fields).is_none() {
        let mut options = connection_options(fields);
        // A node cannot have the framing removed.
        options.retain(|option| option != "content-length");
        if options.contains(&UPGRADE) {
            stripped.upgrade = fields.get(UPGRADE).cloned();
        }
        let mut named = HeaderMap::new();
        for name in options.iter().filter(|name| !is_hop_by_hop(name)) {
            // A repeated name is kept once.
            if !named.contains_key(name) {
                named.extend(fields.get_all(name).iter().map(|value| (name.clone(), value.clone())));
            }
        }
        stripped.named = (!named.is_empty()).then_some(NamedByConnection(named));
        remove_named(fields, &options);
    }
    strip_always(fields);
    stripped
}

/// Returns whether a plain `Connection` is `close`: it is nearly always absent, `close` or `keep-alive`. `None` where
/// it is anything else.
fn says_only_whether_to_close(fields: &HeaderMap) -> Option<bool> {
    let mut values = fields.get_all(CONNECTION).iter();
    let (first, second) = (values.next().map(HeaderValue::as_bytes), values.next());
    match first {
        _ if second.is_some() => None,
        None => Some(false),
        Some(value) if value.eq_ignore_ascii_case(b"keep-alive") => Some(false),
        Some(value) => value.eq_ignore_ascii_case(b"close").then_some(true),
    }
}

fn connection_options(fields: &HeaderMap) -> Vec<HeaderName> {
    fields
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .filter_map(|option| HeaderName::from_bytes(option.trim_ascii()).ok())
        .collect()
}

fn remove_named(fields: &mut HeaderMap, options: &[HeaderName]) {
    for option in options {
        // `TE` and `Trailer` have rules of their own.
        if option != TE && option != TRAILER {
            fields.remove(option);
        }
    }
}

fn strip_always(fields: &mut HeaderMap) {
    static NAMES: [HeaderName; 6] = [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TE, TRANSFER_ENCODING, UPGRADE];
    // One pass over the few fields of a message is cheaper than a look-up of each of these.
    let mut present = [false; 6];
    for name in fields.keys() {
        for (found, candidate) in present.iter_mut().zip(&NAMES) {
            *found |= name == candidate;
        }
    }
    for (name, _) in NAMES.iter().zip(present).filter(|(_, present)| *present) {
        fields.remove(name);
    }
}

/// Fields that must not be in trailers (RFC 9110 6.5.1): framing, routing, authentication, request modifiers, content,
/// control and caching. Hop-by-hop fields and those that the proxy protects have rules of their own.
const NEVER_IN_TRAILERS: &[HeaderName] = &[
    ACCEPT,
    ACCEPT_CHARSET,
    ACCEPT_ENCODING,
    ACCEPT_LANGUAGE,
    ACCEPT_RANGES,
    AGE,
    CACHE_CONTROL,
    CONTENT_DISPOSITION,
    CONTENT_ENCODING,
    CONTENT_LANGUAGE,
    CONTENT_LOCATION,
    CONTENT_RANGE,
    CONTENT_TYPE,
    DATE,
    EXPECT,
    EXPIRES,
    FROM,
    IF_MATCH,
    IF_MODIFIED_SINCE,
    IF_NONE_MATCH,
    IF_RANGE,
    IF_UNMODIFIED_SINCE,
    LOCATION,
    MAX_FORWARDS,
    ORIGIN,
    PRAGMA,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    RANGE,
    REFERER,
    RETRY_AFTER,
    SET_COOKIE,
    USER_AGENT,
    VARY,
    WARNING,
    WWW_AUTHENTICATE,
];

/// Returns whether a field is removed from trailers.
pub(crate) fn is_barred_from_trailers(name: &HeaderName) -> bool {
    is_hop_by_hop(name)
        || NEVER_HOP_BY_HOP.contains(&name.as_str())
        || super::head::is_claim(name.as_str())
        || NEVER_IN_TRAILERS.contains(name)
}

/// Removes the trailers for which `is_barred` returns true.
pub(crate) fn sanitise_trailers(trailers: &mut HeaderMap, is_barred: impl Fn(&HeaderName) -> bool) {
    let barred: Vec<HeaderName> = trailers.keys().filter(|name| is_barred(name)).cloned().collect();
    for name in barred {
        trailers.remove(name);
    }
}

/// Returns the items of a comma-separated list, without white space around them and without empty ones. Commas in
/// quoted strings are no separators.
pub(crate) fn items(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = list;
    let next = move || {
        if rest.is_empty() {
            return None;
        }
        let end = end_of_item(rest);
        let item = &rest[..end.unwrap_or(rest.len())];
        rest = end.map_or(&[], |end| &rest[end + 1..]);
        Some(item.trim_ascii())
    };
    std::iter::from_fn(next).filter(|item| !item.is_empty())
}

/// Returns the position of the comma that ends the first item of a list.
fn end_of_item(list: &[u8]) -> Option<usize> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    list.iter().position(|&byte| {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b',' => return !is_quoted,
            _ => {}
        }
        false
    })
}

/// Returns whether a quoted string in an item of a list has no end.
pub(crate) fn is_unclosed(item: &[u8]) -> bool {
    // Behind such an item, a comma is still a part of it.
    item.contains(&b'"') && end_of_item(&[item, b","].concat()).is_none()
}

/// Returns whether a comma-separated list has a member, regardless of case and parameters.
pub(crate) fn list_has(value: &HeaderValue, member: &str) -> bool {
    value.as_bytes().split(|&byte| byte == b',').any(|item| {
        let name = item.split(|&byte| byte == b';').next().unwrap_or_default();
        name.trim_ascii().eq_ignore_ascii_case(member.as_bytes())
    })
}

/// Returns the announced length, where it is a valid number (RFC 9110 8.6).
pub(crate) fn content_length(fields: &HeaderMap) -> Option<u64> {
    parse_length(fields.get(CONTENT_LENGTH)?)
}

/// Returns the number that a value is, without a sign.
pub(crate) fn parse_length(value: &HeaderValue) -> Option<u64> {
    let text = value.to_str().ok()?;
    if text.starts_with('+') { None } else { text.parse().ok() }
}

/// The values of Content-Length differ or are invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message announces more than one length, or none that is a number")]
pub(crate) struct BadLength;

/// Replaces equal values of Content-Length, in several lines or in one, by a single one (RFC 9110 8.6). An error where
/// they differ or are invalid.
pub(crate) fn unify_content_length(fields: &mut HeaderMap) -> Result<(), BadLength> {
    let Some(first) = fields.get(CONTENT_LENGTH) else { return Ok(()) };
    // A map with as many values as names has no repeated field.
    if first.as_bytes().iter().all(u8::is_ascii_digit) && fields.len() == fields.keys_len() {
        return if parse_length(first).is_some() { Ok(()) } else { Err(BadLength) };
    }
    let mut values = fields.get_all(CONTENT_LENGTH).iter().flat_map(|line| line.as_bytes().split(|&byte| byte == b','));
    let first = values.next().unwrap_or_default().trim_ascii();
    if values.any(|value| value.trim_ascii() != first) {
        return Err(BadLength);
    }
    let value = HeaderValue::from_bytes(first).map_err(|_| BadLength)?;
    fields.insert(CONTENT_LENGTH, value);
    if content_length(fields).is_some() { Ok(()) } else { Err(BadLength) }
}

/// The transfer coding of a message (RFC 9112 6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransferCoding {
    None,
    Chunked,
    /// Anything but exactly one `chunked`.
    Unsupported,
}

/// Returns the transfer coding of a message; anything but exactly `chunked` is unsupported.
pub(crate) fn transfer_coding(fields: &HeaderMap) -> TransferCoding {
    let mut values = fields.get_all(TRANSFER_ENCODING).iter();
    match (values.next(), values.next()) {
        (None, _) => TransferCoding::None,
        (Some(only), None) if only.as_bytes().eq_ignore_ascii_case(b"chunked") => TransferCoding::Chunked,
        _ => TransferCoding::Unsupported,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &[(&str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| {
                (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
            })
            .collect()
    }

    #[test]
    fn fields_of_the_connection_go_no_further() {
        let mut request = fields(&[
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers;q=0.5, deflate"),
            ("upgrade", "websocket"),
            ("accept", "*/*"),
        ]);
        let found = strip_request(&mut request, &[]).unwrap();
        assert_eq!(found, HopByHop { upgrade: None, trailers: true, close: true });
        assert_eq!(request, fields(&[("accept", "*/*")]));
    }

    #[test]
    fn an_answer_does_not_carry_te_on() {
        for lines in [&[("te", "gzip"), ("server", "x")][..], &[("connection", "te"), ("te", "x"), ("server", "x")]] {
            let mut answer = fields(lines);
            strip_response(&mut answer);
            assert_eq!(answer, fields(&[("server", "x")]), "{lines:?}");
        }
    }

    #[test]
    fn an_upgrade_counts_only_where_connection_names_it() {
        let mut request = fields(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(strip_request(&mut request, &[]).unwrap().upgrade, Some(HeaderValue::from_static("websocket")));
        assert!(request.is_empty());
    }

    #[test]
    fn a_request_cannot_have_its_meaning_removed() {
        for name in ["host", "Content-Length", "AUTHORIZATION", "cookie", "x-forwarded-for", "via"] {
            let mut request = fields(&[("connection", &format!("close, {name}"))]);
            assert!(strip_request(&mut request, &[]).is_err(), "{name}");
        }
    }

    #[test]
    fn trailers_carry_no_field_that_belongs_before_the_content() {
        for (name, is_barred) in [
            ("transfer-encoding", true),
            ("Connection", true),
            ("content-length", true),
            ("cookie", true),
            ("set-cookie", true),
            ("authorization", true),
            ("idempotency-key", true),
            ("x-forwarded-for", true),
            ("x-real-ip", true),
            ("x-client-cert-subject", true),
            ("host", true),
            ("range", true),
            ("cache-control", true),
            ("content-type", true),
            ("trailer", true),
            ("grpc-status", false),
            ("grpc-message", false),
            ("content-digest", false),
            ("server-timing", false),
            ("etag", false),
            ("x-anything", false),
        ] {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            assert_eq!(is_barred_from_trailers(&name), is_barred, "{name}");
        }
    }

    #[test]
    fn equal_lengths_are_one() {
        for (lines, expected) in [
            (&[][..], Ok(None)),
            (&["5"], Ok(Some("5"))),
            (&["5, 5"], Ok(Some("5"))),
            (&["5", "5"], Ok(Some("5"))),
            (&["5,5", " 5"], Ok(Some("5"))),
            (&["5", "6"], Err(BadLength)),
            (&["5, 6"], Err(BadLength)),
            (&["5, "], Err(BadLength)),
            (&["+5"], Err(BadLength)),
            (&["five"], Err(BadLength)),
        ] {
            let lines: Vec<_> = lines.iter().map(|value| ("content-length", *value)).collect();
            let mut message = fields(&lines);
            let unified = unify_content_length(&mut message);
            assert_eq!(unified.map(|()| message.get(CONTENT_LENGTH).map(|value| value.to_str().unwrap())), expected);
            assert!(unified.is_err() || message.get_all(CONTENT_LENGTH).iter().count() <= 1);
        }
    }

    #[test]
    fn only_exactly_chunked_is_understood() {
        for (lines, expected) in [
            (&[][..], TransferCoding::None),
            (&[("transfer-encoding", "chunked")], TransferCoding::Chunked),
            (&[("transfer-encoding", "Chunked")], TransferCoding::Chunked),
            (&[("transfer-encoding", "gzip, chunked")], TransferCoding::Unsupported),
            (&[("transfer-encoding", "chunked, chunked")], TransferCoding::Unsupported),
            (&[("transfer-encoding", "chunked;q=1")], TransferCoding::Unsupported),
            (&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], TransferCoding::Unsupported),
        ] {
            assert_eq!(transfer_coding(&fields(lines)), expected, "{lines:?}");
        }
    }
}
