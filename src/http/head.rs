//! The head of a request, as every step of the pipeline reads it.
//!
//! [`RequestHead::sanitise`] comes first: it removes the hop-by-hop fields and the claims of untrusted peers, and
//! determines the facts about the client. After it, the fields by which the proxy describes the client to nodes
//! ([`is_fact`]) are read through [`RequestFields`], which answers from the facts, so that routing, limits, scopes,
//! keys and `Vary` use the values that the node gets. The fields of the facts are written when the request is sent to a
//! node.

use super::fields::{self, ForbiddenOption, HopByHop};
use super::forwarded::{Origin, is_trusted};
use super::trace::{is_request_id, is_traceparent};
use http::header::{COOKIE, HOST, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, header, request};
use ipnet::IpNet;
use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};

const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// As many fields are added to most requests: the three of the facts, `Via` and the identifiers.
const ADDED: usize = 6;

/// The peer that sent a request, and its trust.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer<'a> {
    pub(crate) address: IpAddr,
    /// The connection uses TLS.
    pub(crate) is_secure: bool,
    /// The subject of the peer's certificate.
    pub(crate) certificate: Option<&'a HeaderValue>,
    pub(crate) trusted_proxies: &'a [IpNet],
    pub(crate) underscores: Underscores,
    /// The fields in which routes expect idempotency keys, and those that routes set: `Connection` must not name them.
    pub(crate) protected: &'a [HeaderName],
}

/// The treatment of fields with `_` in their names, which CGI and WSGI servers cannot tell from `-`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Underscores {
    #[default]
    Drop,
    Reject,
    /// They are kept, except those that could be taken for a field that the proxy protects.
    Allow,
}

/// The reasons for which a head is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadHead {
    #[error("the Connection field names `{}`, which is not about the connection", .0.0)]
    ConnectionOption(ForbiddenOption),
    #[error("the field name `{0}` has an underscore, and `limits.underscores_in_headers` is `reject`")]
    Underscore(HeaderName),
    #[error("the value of the field `{0}` begins or ends with white space, which HTTP/2 forbids (RFC 9113 8.2.1)")]
    WhiteSpace(HeaderName),
}

/// The head of a request without hop-by-hop fields, and without claims that its peer may not make.
#[derive(Clone, Debug)]
pub(crate) struct RequestHead {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) version: Version,
    pub(crate) fields: RequestFields,
}

/// The fields of a request, with the facts about its client.
#[derive(Clone, Debug)]
pub(crate) struct RequestFields {
    /// Never contains a name for which [`is_fact`] is true.
    map: HeaderMap,
    pub(crate) facts: Facts,
}

/// The facts about the client of a request, from the connection and from trusted proxies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The peer's address.
    pub(crate) peer: IpAddr,
    /// The client's address: the peer's, or the one that trusted proxies forward.
    pub(crate) address: IpAddr,
    /// `true` where the client used TLS, to this proxy or to a trusted one in front of it.
    pub(crate) is_secure: bool,
    /// `TE: trailers`.
    pub(crate) takes_trailers: bool,
    /// `Connection: close`.
    pub(crate) says_close: bool,
    /// Boxed, as most requests have none of these.
    more: Option<Box<More>>,
}

/// Facts that few requests have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct More {
    /// The addresses before the peer's own in `X-Forwarded-For`, from trusted proxies.
    forwarded_for: Option<HeaderValue>,
    /// `X-Forwarded-Host` of a trusted proxy.
    forwarded_host: Option<HeaderValue>,
    /// The subject of the client's certificate.
    certificate: Option<HeaderValue>,
    /// The protocol of the `Upgrade` that the client requests.
    upgrade: Option<HeaderValue>,
}

impl Default for Facts {
    fn default() -> Facts {
        let unknown = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Facts {
            peer: unknown,
            address: unknown,
            is_secure: false,
            takes_trailers: false,
            says_close: false,
            more: None,
        }
    }
}

impl Facts {
    /// Returns the scheme of the client's request.
    pub(crate) fn scheme(&self) -> &'static str {
        if self.is_secure { "https" } else { "http" }
    }

    /// Returns the default port of that scheme.
    pub(crate) fn default_port(&self) -> u16 {
        if self.is_secure { 443 } else { 80 }
    }

    /// Returns the protocol of the `Upgrade` that the client requests.
    pub(crate) fn upgrade(&self) -> Option<&HeaderValue> {
        self.more.as_ref()?.upgrade.as_ref()
    }

    fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    /// Returns the value of `X-Forwarded-For` for nodes.
    pub(crate) fn chain(&self) -> Vec<u8> {
        let peer = self.peer.to_canonical().to_string();
        match self.more.as_ref().and_then(|more| more.forwarded_for.as_ref()) {
            Some(before) => [before.as_bytes(), b", ", peer.as_bytes()].concat(),
            None => peer.into_bytes(),
        }
    }
}

/// The groups of fields with special rules that a head has. Most heads have none.
#[derive(Default)]
pub(crate) struct Marks {
    /// `Content-Length`, `Transfer-Encoding` or `Expect`.
    pub(crate) framing: bool,
    connection: bool,
    claims: bool,
    traces: bool,
    odd: bool,
}

impl Marks {
    pub(crate) fn of(fields: &HeaderMap) -> Marks {
        let mut marks = Marks::default();
        for name in fields.keys() {
            let name = name.as_str().as_bytes();
            marks.odd |= name.iter().fold(false, |odd, &byte| odd | IS_ODD[usize::from(byte)]);
            match name {
                [b'c', ..] => {
                    marks.framing |= name == b"content-length";
                    marks.connection |= name == b"connection";
                }
                [b'e', ..] => marks.framing |= name == b"expect",
                [b'k', ..] => marks.connection |= name == b"keep-alive",
                [b'p', ..] => marks.connection |= name == b"proxy-connection",
                [b'u', ..] => marks.connection |= name == b"upgrade",
                [b't', ..] => {
                    marks.connection |= name == b"te" || name == b"transfer-encoding";
                    marks.framing |= name == b"transfer-encoding";
                    marks.traces |= name == b"traceparent";
                }
                [b'f' | b'x', ..] => {
                    marks.claims |= is_claim_in_bytes(name);
                    marks.traces |= name == b"x-request-id";
                }
                _ => {}
            }
        }
        marks
    }
}

/// For each byte, `true` where a CGI server may read it as `-` in a name.
static IS_ODD: [bool; 256] = {
    let mut table = [true; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = !matches!(byte as u8, b'a'..=b'z' | b'0'..=b'9' | b'-');
        byte += 1;
    }
    table
};

fn is_odd(name: &str) -> bool {
    name.bytes().any(|byte| IS_ODD[usize::from(byte)])
}

/// Returns whether a field is a claim about the client, which only trusted proxies may make.
pub(crate) fn is_claim(name: &str) -> bool {
    is_claim_in_bytes(name.as_bytes())
}

fn is_claim_in_bytes(name: &[u8]) -> bool {
    name.starts_with(b"x-forwarded-") || matches!(name, b"forwarded" | b"x-real-ip" | b"x-client-cert-subject")
}

/// Returns whether the proxy itself sets the field, so that it is read from the facts.
pub(crate) fn is_fact(name: &HeaderName) -> bool {
    [
        fields::X_FORWARDED_FOR,
        fields::X_FORWARDED_PROTO,
        fields::X_FORWARDED_HOST,
        fields::X_CLIENT_CERT_SUBJECT,
        UPGRADE,
    ]
    .contains(name)
}

/// Returns whether a CGI server would read a name as one that this proxy protects.
fn passes_for_protected(name: &str) -> bool {
    let folded: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    is_claim(&folded)
        || fields::NEVER_HOP_BY_HOP.contains(&folded.as_str())
        || HeaderName::from_bytes(folded.as_bytes()).is_ok_and(|name| fields::is_hop_by_hop(&name))
}

impl Underscores {
    /// Returns whether a field of this name is removed.
    pub(crate) fn drop(self, name: &str) -> bool {
        is_odd(name) && ((self != Underscores::Allow && name.contains('_')) || passes_for_protected(name))
    }
}

impl RequestHead {
    /// Returns the sanitised head of a peer's request; an error where it is refused. `marks` are those of its fields.
    pub(crate) fn sanitise(mut head: request::Parts, marks: &Marks, peer: Peer<'_>) -> Result<RequestHead, BadHead> {
        let map = &mut head.headers;
        if head.version == Version::HTTP_2
            && let Some((name, _)) = map.iter().find(|(_, value)| value.as_bytes().trim_ascii().len() < value.len())
        {
            return Err(BadHead::WhiteSpace(name.clone()));
        }
        let address = peer.address.to_canonical();
        let mut facts = Facts { peer: address, address, is_secure: peer.is_secure, ..Facts::default() };
        if let Some(subject) = peer.certificate {
            facts.more().certificate = Some(subject.clone());
        }
        if marks.connection {
            let HopByHop { upgrade, trailers, close } =
                fields::strip_request(map, peer.protected).map_err(BadHead::ConnectionOption)?;
            (facts.takes_trailers, facts.says_close) = (trailers, close);
            if upgrade.is_some() {
                facts.more().upgrade = upgrade;
            }
        }
        if marks.odd {
            drop_odd(map, peer.underscores)?;
        }
        if marks.claims {
            facts.take_claims(map, peer);
        }
        if marks.traces {
            drop_bad_traces(map);
        }
        let fields = RequestFields { map: head.headers, facts };
        Ok(RequestHead { method: head.method, uri: head.uri, version: head.version, fields })
    }
}

impl Facts {
    /// Removes claims from a head: those of a trusted proxy become facts, or stay where they are none; all others are
    /// dropped.
    fn take_claims(&mut self, map: &mut HeaderMap, peer: Peer<'_>) {
        if is_trusted(self.peer, peer.trusted_proxies) {
            let origin = Origin::of(self.peer, map, peer.trusted_proxies);
            self.address = origin.address;
            self.is_secure = origin.is_secure.unwrap_or(self.is_secure);
            let subject = map.remove(fields::X_CLIENT_CERT_SUBJECT);
            let more = self.more();
            more.forwarded_for = origin.chain;
            more.forwarded_host = map.remove(fields::X_FORWARDED_HOST);
            more.certificate = more.certificate.take().or(subject);
            map.remove(fields::X_FORWARDED_FOR);
            map.remove(fields::X_FORWARDED_PROTO);
            return;
        }
        let claims: Vec<HeaderName> = map.keys().filter(|name| is_claim(name.as_str())).cloned().collect();
        for name in claims {
            map.remove(name);
        }
    }
}

fn drop_odd(map: &mut HeaderMap, underscores: Underscores) -> Result<(), BadHead> {
    let odd: Vec<HeaderName> = map.keys().filter(|name| is_odd(name.as_str())).cloned().collect();
    for name in odd {
        if underscores == Underscores::Reject && name.as_str().contains('_') {
            return Err(BadHead::Underscore(name));
        }
        if underscores.drop(name.as_str()) {
            map.remove(name);
        }
    }
    Ok(())
}

/// Drops malformed identifiers; the node gets new ones in their place.
fn drop_bad_traces(map: &mut HeaderMap) {
    for (name, is_good) in
        [(fields::X_REQUEST_ID, is_request_id as fn(&[u8]) -> bool), (fields::TRACEPARENT, is_traceparent)]
    {
        let mut lines = map.get_all(&name).iter();
        let is_one = lines.next().is_none_or(|value| is_good(value.as_bytes())) && lines.next().is_none();
        if !is_one {
            map.remove(&name);
            if name == fields::TRACEPARENT {
                map.remove(TRACESTATE);
            }
        }
    }
}

impl RequestFields {
    /// Returns the fields that are not facts.
    pub(crate) fn plain(&self) -> &HeaderMap {
        &self.map
    }

    /// Returns the fields of the request for a node, including the facts, and the protocol of an `Upgrade`. `peer` is
    /// the address of the peer.
    pub(crate) fn for_node(self, peer: &HeaderValue) -> (HeaderMap, Option<HeaderValue>) {
        let RequestFields { map: mut fields, facts } = self;
        fields.reserve(ADDED);
        let scheme = HeaderValue::from_static(facts.scheme());
        let mut chain = peer.clone();
        let mut more = More::default();
        if let Some(told) = facts.more.as_deref() {
            more = told.clone();
            if more.forwarded_for.is_some() {
                chain = HeaderValue::try_from(facts.chain()).unwrap_or(chain);
            }
        }
        fields.insert(fields::X_FORWARDED_FOR, chain);
        fields.insert(fields::X_FORWARDED_PROTO, scheme);
        if let Some(host) = more.forwarded_host.or_else(|| fields.get(HOST).cloned()) {
            fields.insert(fields::X_FORWARDED_HOST, host);
        }
        if let Some(subject) = more.certificate {
            fields.insert(fields::X_CLIENT_CERT_SUBJECT, subject);
        }
        (fields, more.upgrade)
    }

    /// Removes a field that is for the proxy alone.
    pub(crate) fn remove(&mut self, name: &HeaderName) {
        self.map.remove(name);
    }

    /// Removes the cookies of a name, which are for the proxy alone.
    pub(crate) fn remove_cookie(&mut self, name: &str) {
        let is_other = |pair: &&[u8]| {
            let rest = pair.trim_ascii().strip_prefix(name.as_bytes());
            !rest.is_some_and(|rest| rest.starts_with(b"="))
        };
        let is_alone = |line: &HeaderValue| !line.as_bytes().contains(&b';') && !is_other(&line.as_bytes());
        if self.map.get_all(COOKIE).iter().all(is_alone) {
            self.map.remove(COOKIE);
            return;
        }
        let lines: Vec<HeaderValue> = self.map.get_all(COOKIE).iter().cloned().collect();
        self.map.remove(COOKIE);
        for line in lines {
            let kept: Vec<&[u8]> = line.as_bytes().split(|&byte| byte == b';').filter(is_other).collect();
            let kept = kept.join(&b";"[..]);
            // A part of a value is a value.
            if let (false, Ok(kept)) = (kept.trim_ascii().is_empty(), HeaderValue::from_bytes(kept.trim_ascii())) {
                self.map.append(COOKIE, kept);
            }
        }
    }

    /// Sets the normalised host.
    pub(crate) fn set_host(&mut self, host: HeaderValue) {
        self.map.insert(HOST, host);
    }

    /// Returns the lines of a field, with the values that the node gets.
    pub(crate) fn values(&self, name: &HeaderName) -> Values<'_> {
        if is_fact(name) {
            return Values::Fact(self.fact(name));
        }
        Values::Lines(self.map.get_all(name).iter())
    }

    /// Returns the first line of a field, with the value that the node gets.
    pub(crate) fn value(&self, name: &HeaderName) -> Option<Cow<'_, [u8]>> {
        self.values(name).next()
    }

    fn fact(&self, name: &HeaderName) -> Option<Cow<'_, [u8]>> {
        let more = self.facts.more.as_deref();
        let bytes =
            |value: Option<&'_ HeaderValue>| value.map(HeaderValue::as_bytes).map(<[u8]>::to_vec).map(Cow::Owned);
        match name.as_str() {
            "x-forwarded-for" => Some(Cow::Owned(self.facts.chain())),
            "x-forwarded-proto" => Some(Cow::Borrowed(self.facts.scheme().as_bytes())),
            "x-forwarded-host" => {
                bytes(more.and_then(|more| more.forwarded_host.as_ref()).or_else(|| self.map.get(HOST)))
            }
            "x-client-cert-subject" => bytes(more.and_then(|more| more.certificate.as_ref())),
            "upgrade" => bytes(self.facts.upgrade()),
            _ => None,
        }
    }
}

impl From<HeaderMap> for RequestFields {
    /// Returns fields that were not sent by a client.
    fn from(map: HeaderMap) -> RequestFields {
        RequestFields { map, facts: Facts::default() }
    }
}

/// The lines of one field.
pub(crate) enum Values<'a> {
    Lines(header::ValueIter<'a, HeaderValue>),
    Fact(Option<Cow<'a, [u8]>>),
}

impl<'a> Iterator for Values<'a> {
    type Item = Cow<'a, [u8]>;

    fn next(&mut self) -> Option<Cow<'a, [u8]>> {
        match self {
            Values::Lines(lines) => lines.next().map(|value| Cow::Borrowed(value.as_bytes())),
            Values::Fact(value) => value.take(),
        }
    }
}
