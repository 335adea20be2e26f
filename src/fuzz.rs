//! The functions that the fuzzers of `fuzz/` run: one per target, from arbitrary bytes to the parser that receives
//! them, with the properties that hold for all inputs.
//!
//! Only compiled for tests and with the feature `fuzzing`. It is a part of the crate because the rooms are private.

use crate::cache::directives::ResponseDirectives;
use crate::cache::policy::{CachePolicy, RequestTraits, Reuse, Timing, reuse, stands_in, storable};
use crate::cache::{Part, Ranges, RequestDirectives, content_range, multipart, ranges};
use crate::config::read::Spanned;
use crate::config::{AffinityMode, Config, Secrets};
use crate::http::fields::{self, is_hop_by_hop};
use crate::http::head::{Peer, RequestFields, Underscores, is_claim};
use crate::http::target::{normalize_path, parse_authority};
use crate::io::chunks::Chunks;
use crate::io::{Framing, Malformed, Messages};
use crate::proxy::affinity::{Affinity, Session};
use crate::proxy::{Bounds, Form, Table, enter, plan};
use crate::saga::{Context, Definition, Kept, MAX_KEPT, Respond, Retries, Step, StepRequest};
use crate::server::connection::flood::FloodMeter;
use crate::server::connection::interleavings;
use crate::server::connection::proxy_protocol::{SIGNATURE, parse_binary, parse_line};
use crate::template::{Template, Text};
use crate::upstream::http1::response::Asked;
use crate::upstream::http1::whole::read as read_response;
use http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, HOST, RANGE, TRAILER, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version, request};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

/// As many fields as the default configuration takes.
const MAX_FIELDS: usize = 100;
/// A day in 2027, in seconds since 1970.
const NOW: i64 = 1_800_000_000;
/// The largest number of seconds of a directive (RFC 9111 1.2.2).
const MAX_SECONDS: u32 = 1 << 31;

/// The configuration that several targets share.
static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let text = r#"
listeners: [{ name: l, address: 127.0.0.1:1 }]
pools: { p: { nodes: [] } }
routes:
  - { name: exact, hosts: [api.example.com], path: /pay, pool: p }
  - { name: wild, hosts: ["*.example.com"], path_prefix: /a/b, pool: p }
  - { name: below, path_prefix: /docs/, methods: [GET, POST], pool: p }
  - { name: address, hosts: ["127.0.0.1"], scheme: https, pool: p }
  - { name: flagged, headers: { x-flag: "*" }, path_prefix: /a, pool: p }
  - { name: session, path_prefix: /s, pool: p, affinity_cookie: { mode: soft } }
"#;
    Config::parse(Path::new("fuzz.yaml"), text, &|_| None).expect("the fixed configuration is valid").0
});

/// An event of the fleet's bus, from a server that others may write to: an event, or an error; and a second encoding of
/// an event has the same bytes.
pub fn fleet_event(data: &[u8]) {
    crate::fleet::read_any(data);
}

/// A session token from a client, and a write from the bus: refused, or read; what was read once is read again from its
/// own text.
pub fn session_token(data: &[u8]) {
    crate::consistency::read_any(data);
}

/// The head of a request: an accepted one has a path in the normal form, with a leading `/` (or `*`) and without dot
/// segments, and a host in the normal form, in lower case and without a trailing dot.
pub fn request_head(data: &[u8]) {
    static TABLE: LazyLock<Table> = LazyLock::new(|| Table::new(&CONFIG.settings.routes));
    let Some(head) = parse_head(data) else { return };
    let uri = head.uri.clone();
    let host = head.headers.get(HOST).cloned();
    // Every request of HTTP/1 is possible over HTTP/2 too.
    for version in [head.version, Version::HTTP_2] {
        let mut head = head.clone();
        head.version = version;
        let body_follows = (version == Version::HTTP_2).then_some(true);
        let bounds = Bounds { body: 1 << 20, body_follows };
        for is_secure in [false, true] {
            for underscores in [Underscores::Drop, Underscores::Reject, Underscores::Allow] {
                let peer = Peer { is_secure, underscores, ..STRANGER };
                // Fields of trusted proxies are parsed too.
                let trusted = Peer { trusted_proxies: &*EVERYBODY, ..peer };
                if let Ok((entered, _)) = enter(head.clone(), &uri, host.as_ref(), trusted, bounds) {
                    let chain = entered.fields.value(&fields::X_FORWARDED_FOR);
                    assert!(
                        chain.is_some_and(|chain| chain.ends_with(b"192.0.2.1")),
                        "the peer is the last of its chain"
                    );
                }
                let Ok((entered, form)) = enter(head.clone(), &uri, host.as_ref(), peer, bounds) else { continue };
                check_form(&form, entered.fields.facts.default_port());
                check_sanitised(&head.headers, &entered.fields, peer);
                let found = plan::route(&TABLE, &entered, &form);
                assert!(found.is_none_or(|index| index < CONFIG.settings.routes.len()), "there is no such route");
            }
        }
    }
}

static EVERYBODY: LazyLock<[ipnet::IpNet; 2]> =
    LazyLock::new(|| ["0.0.0.0/0", "::/0"].map(|network| network.parse().expect("a network")));

/// A peer that is no trusted proxy.
const STRANGER: Peer<'_> = Peer {
    address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    is_secure: false,
    certificate: None,
    trusted_proxies: &[],
    underscores: Underscores::Drop,
    protected: &[],
};

/// Claims of an untrusted peer, fields of the connection and names that pass for these are removed; the facts are those
/// of the connection.
fn check_sanitised(before: &HeaderMap, after: &RequestFields, peer: Peer<'_>) {
    let named = named_by_connection(before);
    for name in after.plain().keys() {
        let folded = name.as_str().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        assert!(!is_claim(&folded), "{name} passes for a claim");
        assert!(!is_hop_by_hop(name) || *name == TRAILER, "{name} is about the connection");
        assert!(*name == TRAILER || named.iter().all(|named| named != name.as_str()), "{name} is named away");
        assert!(peer.underscores == Underscores::Allow || !name.as_str().contains('_'), "{name} has an underscore");
    }
    let of = |name| after.value(&name).map(|value| String::from_utf8_lossy(&value).into_owned());
    assert_eq!(of(fields::X_FORWARDED_FOR).as_deref(), Some("192.0.2.1"));
    assert_eq!(of(fields::X_FORWARDED_PROTO).as_deref(), Some(if peer.is_secure { "https" } else { "http" }));
    assert_eq!(of(fields::X_CLIENT_CERT_SUBJECT), None);
    assert_eq!(after.facts.address, peer.address);
}

fn check_form(form: &Form<'_>, default_port: u16) {
    let path = &*form.path;
    assert!(path.starts_with('/') || path == "*", "the path {path:?}");
    assert!(!path.split('/').any(|segment| matches!(segment, "." | "..")), "dot segments in {path:?}");
    assert_eq!(normalize_path(path).as_deref(), Ok(path), "the path has another form yet");
    let host = &*form.host;
    assert!(!host.ends_with('.') && !host.bytes().any(|byte| byte.is_ascii_uppercase()), "the host {host:?}");
    assert_eq!(form.authority.is_empty(), host.is_empty(), "{form:?}");
    if host.is_empty() {
        return;
    }
    let again = parse_authority(&form.authority, default_port).expect("an authority that was accepted is one");
    assert_eq!(&*again.host, host);
    assert!(again.normal, "the authority {:?} has another form yet", form.authority);
}

/// Returns the head of an HTTP/1 request as hyper hands it on.
fn parse_head(data: &[u8]) -> Option<request::Parts> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut lines);
    if parsed.parse(data).ok()?.is_partial() {
        return None;
    }
    let version = if parsed.version? == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    let request = Request::builder().method(parsed.method?).uri(parsed.path?).version(version).body(()).ok()?;
    let (mut head, ()) = request.into_parts();
    head.headers = to_map(parsed.headers)?;
    Some(head)
}

/// Returns a block of fields up to its empty line, and the bytes after it.
fn parse_fields(data: &[u8]) -> Option<(HeaderMap, &[u8])> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let httparse::Status::Complete((length, lines)) = httparse::parse_headers(data, &mut lines).ok()? else {
        return None;
    };
    Some((to_map(lines)?, &data[length..]))
}

fn to_map(lines: &[httparse::Header<'_>]) -> Option<HeaderMap> {
    let mut map = HeaderMap::new();
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes()).ok()?;
        map.append(name, HeaderValue::from_bytes(line.value).ok()?);
    }
    Some(map)
}

/// A chunked body: the result does not depend on how it is cut, and ends within its bytes; an accepted body is decoded
/// to the end by any decoder.
pub fn chunks(data: &[u8]) {
    let Some((&cut, body)) = data.split_first() else { return };
    let whole = Chunks::default().pass(body);
    if let Ok(Some(end)) = whole {
        assert!(end <= body.len() && body[..end].ends_with(b"\r\n\r\n") || &body[..end] == b"0\r\n\r\n");
    }
    let mut chunks = Chunks::default();
    let mut from = 0;
    for piece in body.chunks(usize::from(cut).max(1)) {
        let outcome = chunks.pass(piece).map(|end| end.map(|end| end + from));
        if outcome != Ok(None) {
            assert_eq!(outcome, whole);
            return;
        }
        from += piece.len();
    }
    assert_eq!(whole, Ok(None));
}

/// A byte that says how the rest is cut, then a stream of HTTP/1 requests: the found messages do not depend on the
/// cuts. Every third head is announced as chunked, every other one with a length.
pub fn messages(data: &[u8]) {
    let Some((&cut, stream)) = data.split_first() else { return };
    let follow = |size: usize| {
        let (mut messages, mut heads) = (Messages::requests(), 0u64);
        for piece in stream.chunks(size) {
            if messages.read(piece).is_err() {
                return (heads, Some(Malformed::Chunks));
            }
            while messages.is_waiting() {
                heads += 1;
                let framing = if heads % 3 == 0 { Framing::Chunked } else { Framing::Length(heads % 7) };
                if let Err(malformed) = messages.framed(framing) {
                    return (heads, Some(malformed));
                }
            }
        }
        (heads, None)
    };
    assert_eq!(follow(usize::from(cut).max(1)), follow(usize::MAX));
}

/// A byte that says how the rest is cut and whether the request is a HEAD, then the bytes of a node: the response does
/// not depend on the cuts, and its content has the announced length.
pub fn response(data: &[u8]) {
    let Some((&cut, stream)) = data.split_first() else { return };
    let asked = Asked { is_head: cut & 1 == 1, wants_interim: cut & 2 == 2 };
    let pieces: Vec<&[u8]> = stream.chunks(usize::from(cut >> 2).max(1)).collect();
    let found = read_response(&[stream], asked);
    assert_eq!(read_response(&pieces, asked), found);
    let Ok(Some(response)) = found else { return };
    let Some((content, trailers)) = response.content else { return };
    let has_none = asked.is_head || matches!(response.status.as_u16(), 101 | 204 | 304);
    if has_none {
        assert!(content.is_empty() && trailers.is_empty(), "the response has no content");
    } else if response.fields.contains_key(TRANSFER_ENCODING) {
        assert!(content.len() < stream.len());
    } else {
        assert!(trailers.is_empty(), "only chunks have trailers");
        let mut fields = response.fields;
        fields::unify_content_length(&mut fields).expect("lengths that differ are refused");
        if let Some(length) = fields::content_length(&fields) {
            assert_eq!(content.len() as u64, length);
        }
    }
}

/// A block of fields that is forwarded: no hop-by-hop field and none that `Connection` names is left, and all others
/// are unchanged.
pub fn field_rules(data: &[u8]) {
    let Some((before, _)) = parse_fields(data) else { return };
    let named = named_by_connection(&before);
    let mut request = before.clone();
    if let Ok(found) = fields::strip_request(&mut request, &[]) {
        check_stripped(&before, &request, &named);
        assert!(found.upgrade.is_none() || named.iter().any(|name| name == "upgrade"));
    }
    let mut response = before.clone();
    fields::strip_response(&mut response);
    // A node cannot have the framing taken away.
    let named: Vec<String> = named.into_iter().filter(|name| CONTENT_LENGTH != name.as_str()).collect();
    check_stripped(&before, &response, &named);
}

/// Returns the options of `Connection`, in lower case. `close` names no field.
fn named_by_connection(fields: &HeaderMap) -> Vec<String> {
    let lines = fields.get_all(CONNECTION).iter();
    let lines = lines.map(|line| String::from_utf8_lossy(line.as_bytes()).to_ascii_lowercase());
    let options: Vec<String> = lines.flat_map(|line| line.split(',').map(str::to_owned).collect::<Vec<_>>()).collect();
    options.iter().map(|option| option.trim().to_owned()).filter(|option| option != "close").collect()
}

fn check_stripped(before: &HeaderMap, after: &HeaderMap, named: &[String]) {
    for name in before.keys() {
        // `Trailer` is kept with the trailers that it announces, whatever `Connection` names.
        let must_go = *name != TRAILER && (is_hop_by_hop(name) || named.iter().any(|named| name == named.as_str()));
        match must_go {
            true => assert!(!after.contains_key(name), "{name} is left"),
            // The removal of `close` does no harm: no field has that name.
            false if name == "close" => {}
            false => assert!(before.get_all(name).iter().eq(after.get_all(name)), "{name} has changed"),
        }
    }
    assert!(after.keys().all(|name| before.contains_key(name)), "a field was made up");
}

/// The fields of a response (its status as a field `status`), an empty line, the fields of a request: directives that
/// forbid storage are obeyed, numbers are bounded, and no response is used beyond its terms.
pub fn cache_control(data: &[u8]) {
    let Some((response, rest)) = parse_fields(data) else { return };
    let request = parse_fields(rest).map(|(request, _)| request).unwrap_or_default();
    let status = response.get("status").and_then(|status| StatusCode::from_bytes(status.as_bytes()).ok());
    let said = ResponseDirectives::of(&response);
    let requested = RequestDirectives::of(&request);
    let numbers = [said.max_age, said.s_maxage, said.stale_while_revalidate, said.stale_if_error];
    let numbers = numbers.into_iter().chain([requested.max_age, requested.min_fresh, requested.max_stale]);
    assert!(numbers.flatten().all(|seconds| seconds <= MAX_SECONDS), "{said:?} {requested:?}");
    let traits = RequestTraits {
        is_post: false,
        has_authorization: request.contains_key(AUTHORIZATION),
        has_cookie: request.contains_key(COOKIE),
        no_store: requested.no_store,
    };
    let strict = CachePolicy { honours_clients: true, ..CachePolicy::plain() };
    let generous = CachePolicy {
        default_ttl: 3_600_000,
        negative_ttl: 60_000,
        stale_while_revalidate: 600_000,
        stale_if_error: 86_400_000,
        stores_set_cookie: true,
        ..strict
    };
    let timing = Timing { requested: 1_000, received: 2_000, received_at: NOW };
    for policy in [strict, generous] {
        for traits in [traits, RequestTraits { is_post: true, ..traits }] {
            let status = status.unwrap_or(StatusCode::OK);
            let Ok((terms, withheld)) = storable(traits, status, &response, timing, &policy) else { continue };
            assert!(!traits.no_store && !said.private && (!said.no_store || said.must_understand), "{said:?}");
            assert_eq!(withheld, said.withheld);
            assert!(terms.lifetime >= 0 && terms.born <= timing.received, "{terms:?}");
            assert_eq!(terms.always_validate, said.no_cache);
            let stale_at = terms.born + terms.lifetime;
            for now in [timing.received, stale_at - 1, stale_at, stale_at + 1, stale_at + 10_000_000_000] {
                let is_fresh = now < stale_at;
                for (requested, is_soft_purged) in
                    [(None, false), (None, true), (Some(&requested), false), (Some(&requested), true)]
                {
                    let decision = reuse(&terms, now, is_soft_purged, requested);
                    match decision {
                        Reuse::Yes { stale: false } => assert!(is_fresh && !is_soft_purged, "{terms:?} at {now}"),
                        Reuse::Yes { stale: true } => assert!(!terms.never_stale && requested.is_some(), "{terms:?}"),
                        Reuse::WhileValidating => assert!(!terms.never_stale, "{terms:?} at {now}"),
                        Reuse::AfterValidation => {}
                    }
                    let only_validated = terms.always_validate || requested.is_some_and(|requested| requested.no_cache);
                    assert!(!only_validated || decision == Reuse::AfterValidation, "{terms:?} at {now}");
                }
                assert!(!(terms.never_stale && stands_in(&terms, now)), "{terms:?} at {now}");
            }
        }
    }
}

/// The header of the PROXY protocol in either version: an address is returned only where the header contains it
/// completely, it is the header's source, and extensions after it change nothing.
pub fn proxy_protocol(data: &[u8]) {
    if let Some(found) = parse_line(data) {
        assert!(data.starts_with(b"PROXY ") && data.ends_with(b"\r\n"));
        if let Some(source) = found {
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            let line = format!("PROXY {family} {0} {0} {1} {1}\r\n", source.ip(), source.port());
            assert_eq!(parse_line(line.as_bytes()), Some(Some(source)), "{line:?}");
        }
    }
    let Some([command, family, high, low, rest @ ..]) = data.strip_prefix(SIGNATURE) else { return };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    let Some(addresses) = rest.get(..length) else { return };
    let found = parse_binary(*command, *family, addresses);
    let Some(found) = found else { return };
    assert_eq!(parse_binary(*command, *family, &[addresses, b"\x04\0\x01x"].concat()), Some(found));
    match found {
        Some(SocketAddr::V4(source)) => {
            assert_eq!(addresses.get(..4), Some(&source.ip().octets()[..]));
            assert_eq!(addresses.get(8..10), Some(&source.port().to_be_bytes()[..]));
        }
        Some(SocketAddr::V6(source)) => {
            assert_eq!(addresses.get(..16), Some(&source.ip().octets()[..]));
            assert_eq!(addresses.get(32..34), Some(&source.port().to_be_bytes()[..]));
        }
        None => {}
    }
}

/// A line with a body's length, then lines with values of `Range`: the parts are few, none is empty or leaves
/// the body, together they are no longer than it, and the multipart body is made of just them.
pub fn range(data: &[u8]) {
    let mut lines = data.split(|&byte| byte == b'\n');
    let length = lines.next().and_then(|line| std::str::from_utf8(line).ok()?.trim().parse().ok()).unwrap_or(10_u64);
    let mut request = HeaderMap::new();
    for value in lines.take(MAX_FIELDS).filter(|line| !line.is_empty()) {
        let Ok(value) = HeaderValue::from_bytes(value) else { return };
        request.append(RANGE, value);
    }
    let Ranges::Some(parts) = ranges(&request, length) else { return };
    assert!((1..=32).contains(&parts.len()), "{} parts", parts.len());
    for &(from, end) in &parts {
        assert!(from < end && end <= length, "from {from} to {end} of {length}");
    }
    let together: u128 = parts.iter().map(|(from, end)| u128::from(end - from)).sum();
    assert!(together <= u128::from(length), "{parts:?} of {length}");
    let (body, _) = multipart(&parts, length, None);
    let slices = body.iter().filter_map(|part| match part {
        Part::Slice(from, end) => Some((*from, *end)),
        Part::Literal(_) => None,
    });
    assert!(slices.eq(parts.iter().copied()));
    assert!(parts.iter().all(|&part| HeaderValue::try_from(content_range(part, length)).is_ok()));
}

/// Lines with values of `Cookie`: without the secret no client makes a strict cookie that opens, and a soft key
/// is one of the shape that the proxy issues.
pub fn cookie(data: &[u8]) {
    static SOFT: LazyLock<Affinity> = LazyLock::new(|| affinity(AffinityMode::Soft));
    static STRICT: LazyLock<Affinity> = LazyLock::new(|| affinity(AffinityMode::Strict));
    let mut request = HeaderMap::new();
    for value in data.split(|&byte| byte == b'\n').take(MAX_FIELDS) {
        let Ok(value) = HeaderValue::from_bytes(value) else { return };
        request.append(COOKIE, value);
    }
    let now = NOW.unsigned_abs();
    assert_eq!(STRICT.read(&request, "p", now), Session::None, "a strict cookie was forged");
    match SOFT.read(&request, "p", now) {
        Session::None => {}
        Session::Soft(key) => {
            let is_ours = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            assert!(key.len() == 22 && key.iter().all(is_ours), "{key:?}");
        }
        Session::Strict { .. } => panic!("a soft cookie names no node"),
    }
}

fn affinity(mode: AffinityMode) -> Affinity {
    let cookie = CONFIG.settings.routes.iter().find_map(|route| route.affinity_cookie.clone());
    let mut cookie = cookie.expect("a route of the fixed configuration has a cookie");
    let secrets = ["a secret of the fuzzers, in force", "a secret of the fuzzers, an old one"].map(str::to_owned);
    let secrets = Secrets { affinity: HashMap::from([("key".to_owned(), secrets.to_vec())]), ..Secrets::default() };
    cookie.mode = mode;
    cookie.secret_file = Some(Spanned { value: "key".to_owned(), span: cookie.name.span });
    Affinity::new(&cookie, &secrets)
}

/// The text of a configuration: it is accepted or refused with an error, and every diagnostic has a position within the
/// text.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let environment = |name: &str| (name == "EDGE").then(|| "blue".to_owned());
    // A folder that is not there, so that the files that the text names are not either.
    let parsed = Config::parse(Path::new("/nowhere/to/be/found/ringway.yaml"), text, &environment);
    let report = match &parsed {
        Ok((_, report)) => {
            assert_eq!(report.errors(), 0, "taken with an error: {report}");
            report
        }
        Err(report) => {
            assert!(report.errors() > 0 && report.first_error().is_some(), "refused without an error");
            report
        }
    };
    assert!(!report.to_string().contains('\r'), "the report breaks a line where it should not");
    // YAML has three line endings; after the last one there is one more line, which may be empty.
    let lines = text.replace("\r\n", "\n").replace('\r', "\n").split('\n').count();
    for (line, column) in report.places() {
        assert!((1..=lines).contains(&line) && column >= 1, "line {line}, column {column} of {lines} lines: {report}");
    }
}

/// A line with the path of a saga's step, then the body of a request: what is kept is bounded and reads back, the path
/// has the segments of its template, and the step's body is JSON.
pub fn saga(data: &[u8]) {
    let end = data.iter().position(|&byte| byte == b'\n').unwrap_or(data.len());
    let (line, body) = (&data[..end], data.get(end + 1..).unwrap_or_default());
    let Some(path) = std::str::from_utf8(line).ok().and_then(|line| Text::parse(line).ok()) else { return };
    assert_eq!(path.to_string().as_bytes(), line, "a template that was read is written in the same way");
    let request = StepRequest {
        pool: "p".to_owned(),
        method: Method::POST,
        path: path.clone(),
        headers: Vec::new(),
        body: Some(Template::List(vec![Template::Text(path.clone())])),
    };
    let step = Step {
        name: "only".to_owned(),
        request,
        compensate: None,
        timeout: Duration::ZERO,
        retries: Retries { attempts: 0, backoff: Duration::ZERO },
    };
    let definition = Definition {
        route: "r".to_owned(),
        deadline: Duration::ZERO,
        stuck_after: Duration::ZERO,
        changes: Vec::new(),
        steps: vec![step],
        respond: Respond { status: StatusCode::OK, body: None },
    };
    assert_eq!(Definition::from_bytes(&definition.to_bytes()).ok().as_ref(), Some(&definition));
    let Ok(kept) = definition.inputs(&HeaderMap::new(), body) else { return };
    assert!(kept.size() <= MAX_KEPT, "{} bytes are kept", kept.size());
    assert_eq!(Kept::from_bytes(&kept.to_bytes()).as_ref(), Some(&kept));
    let text = |_: &str| Some("x".to_owned());
    let context = Context { kept: &kept, key: &text, environment: &text };
    let Ok(outgoing) = definition.steps[0].request.render(&context) else { return };
    let is_json = |text: &str| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
    assert!(outgoing.body.as_deref().is_some_and(is_json), "{:?} is no JSON", outgoing.body);
    let stand_in = path.with_stand_ins("x");
    if stand_in.starts_with('/') && !stand_in.contains('#') {
        let segments = |target: &str| target.split('?').next().map(|path| path.split('/').count());
        assert_eq!(segments(outgoing.target.as_str()), segments(&stand_in), "{}", outgoing.target);
    }
}

/// The frames of an HTTP/2 connection, after a byte that says how they are cut: the result of the meter does not depend
/// on the cuts, its verdict never becomes milder, and no more bytes are unread than were received.
pub fn frame_meter(data: &[u8]) {
    let Some((cut, frames)) = data.split_first() else { return };
    let (mut whole, mut cut_up) = (FloodMeter::new(0, 0, 200), FloodMeter::new(0, 0, 200));
    let (mut expected, mut found) = (Vec::new(), Vec::new());
    whole.inward(frames, |glitch| expected.push(glitch));
    let mut worst = cut_up.verdict();
    for piece in frames.chunks(usize::from(*cut).max(1)) {
        cut_up.inward(piece, |glitch| found.push(glitch));
        assert!(cut_up.verdict() >= worst);
        worst = cut_up.verdict();
    }
    assert_eq!(found, expected);
    assert_eq!((cut_up.open_head(), cut_up.unread(0)), (whole.open_head(), whole.unread(0)));
    // A frame may announce more than has come of it.
    assert!(whole.unread(0) <= frames.len() as u64 + (1 << 24));
    // The same bytes in the other direction: the end of a complete frame is recognised.
    let mut out = FloodMeter::new(0, 0, 0);
    out.outward(frames, |_| ());
    if let Some(stream) = out.last_stream_at_boundary() {
        out.outward(&frame_head(5, 0x77), |_| ());
        assert_eq!(out.last_stream_at_boundary(), None, "after {stream}");
        out.outward(&[0; 5], |_| ());
        assert_eq!(out.last_stream_at_boundary(), Some(stream));
    }
}

/// Steps of a client connection, in any order: the client sends, in pieces, and closes; hyper reads, writes and
/// flushes; the connection's owner looks ahead and hands over. Every byte is read, in order, once.
pub fn interleavings(data: &[u8]) {
    interleavings::run(data);
}

fn frame_head(length: u8, kind: u8) -> [u8; 9] {
    [0, 0, length, kind, 0, 0, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fs;

    type Target = fn(&[u8]);

    const TARGETS: [(&str, Target); 15] = [
        ("request_head", request_head),
        ("field_rules", field_rules),
        ("cache_control", cache_control),
        ("fleet_event", fleet_event),
        ("session_token", session_token),
        ("proxy_protocol", proxy_protocol),
        ("range", range),
        ("cookie", cookie),
        ("configuration", configuration),
        ("frame_meter", frame_meter),
        ("interleavings", interleavings),
        ("chunks", chunks),
        ("messages", messages),
        ("saga", saga),
        ("response", response),
    ];

    fn names(folder: &Path) -> BTreeSet<String> {
        let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    }

    /// A target calls the function of its name and nothing else, so that `--features fuzzing` compiles all of it.
    #[test]
    fn every_target_calls_its_function() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
        for (name, _) in TARGETS {
            let text = fs::read_to_string(fuzz.join("fuzz_targets").join(name).with_extension("rs")).unwrap();
            let call = format!("fuzz_target!(|data: &[u8]| ringway::fuzz::{name}(data));");
            assert_eq!(text, format!("#![no_main]\n\nuse libfuzzer_sys::fuzz_target;\n\n{call}\n"));
            assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"\n")), "{name}");
        }
    }

    /// Seeds have an extension; the files of a fuzzer have none.
    #[test]
    fn every_seed_holds() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let known: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(names(&fuzz.join("corpus")), known);
        assert_eq!(names(&fuzz.join("fuzz_targets")), known);
        for (name, target) in TARGETS {
            let files = fs::read_dir(fuzz.join("corpus").join(name)).unwrap().map(|file| file.unwrap().path());
            let seeds: Vec<_> = files.filter(|file| file.extension().is_some()).collect();
            assert!(!seeds.is_empty(), "{name} has no seeds");
            for seed in seeds {
                // Names the seed when the target panics.
                println!("{}", seed.display());
                target(&fs::read(&seed).unwrap());
            }
        }
    }
}
