//! A request's head as every step after the entry reads it.
//!
//! [`RequestHead::sanitise`] is the entry: it removes the fields of the connection and the claims of strangers, and
//! resolves the facts about the client. From then on the names that the proxy itself tells nodes of
//! ([`is_fact`]) are read through [`RequestFields`], which answers from the facts, so that routing, limits, scopes,
//! keys and Vary see what the node will see. The fields of the facts are written when a node is asked.

use super::fields::{self, ForbiddenOption, HopByHop};
use super::forwarded::{Origin, is_trusted};
use super::trace::{is_request_id, is_traceparent};
use http::header::{HOST, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, header, request};
use ipnet::IpNet;
use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};

const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The peer that sent a request, and how far its word goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer<'a> {
    pub(crate) address: IpAddr,
    /// Whether the connection speaks TLS.
    pub(crate) is_secure: bool,
    /// The subject of the certificate that the peer has shown.
    pub(crate) certificate: Option<&'a HeaderValue>,
    pub(crate) trusted_proxies: &'a [IpNet],
    pub(crate) underscores: Underscores,
}

/// What becomes of fields with `_` in their names, which servers in the manner of CGI cannot tell from `-`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Underscores {
    #[default]
    Drop,
    Reject,
    /// They pass, except those that would be taken for a field that the proxy protects.
    Allow,
}

/// Why a head is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadHead {
    #[error("the Connection field names `{}`, which is not about the connection", .0.0)]
    ConnectionOption(ForbiddenOption),
    #[error("the field name `{0}` has an underscore, and `limits.underscores_in_headers` is `reject`")]
    Underscore(HeaderName),
    #[error("the value of the field `{0}` begins or ends with white space, which HTTP/2 forbids (RFC 9113 8.2.1)")]
    WhiteSpace(HeaderName),
}

/// A request's head without its fields of the connection, and without claims that its peer may not make.
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
    /// Never holds a name for which [`is_fact`] is true.
    map: HeaderMap,
    pub(crate) facts: Facts,
}

/// What the proxy knows of the client of a request, from the connection and from trusted proxies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The peer's address.
    pub(crate) peer: IpAddr,
    /// The client's address: the peer's, or the one that trusted proxies tell.
    pub(crate) address: IpAddr,
    /// Whether the client spoke TLS, with this proxy or with a trusted one before it.
    pub(crate) is_secure: bool,
    /// Whether the peer is a trusted proxy.
    pub(crate) is_peer_trusted: bool,
    /// What trusted proxies say of the way before the peer, for `X-Forwarded-For`.
    pub(crate) forwarded_for: Option<HeaderValue>,
    /// What a trusted proxy says of the host that the client asked for.
    pub(crate) forwarded_host: Option<HeaderValue>,
    /// The subject of the client's certificate.
    pub(crate) certificate: Option<HeaderValue>,
    /// What the request says about its own connection.
    pub(crate) hop: HopByHop,
}

impl Default for Facts {
    fn default() -> Facts {
        let unknown = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Facts {
            peer: unknown,
            address: unknown,
            is_secure: false,
            is_peer_trusted: false,
            forwarded_for: None,
            forwarded_host: None,
            certificate: None,
            hop: HopByHop::default(),
        }
    }
}

impl Facts {
    /// The scheme that the client used.
    pub(crate) fn scheme(&self) -> &'static str {
        if self.is_secure { "https" } else { "http" }
    }

    /// The port that this scheme implies.
    pub(crate) fn default_port(&self) -> u16 {
        if self.is_secure { 443 } else { 80 }
    }

    /// `X-Forwarded-For` as nodes get it.
    pub(crate) fn chain(&self) -> Vec<u8> {
        let peer = self.peer.to_canonical().to_string();
        match &self.forwarded_for {
            Some(before) => [before.as_bytes(), b", ", peer.as_bytes()].concat(),
            None => peer.into_bytes(),
        }
    }
}

/// What of a head has to be looked at more closely; most heads have none of it.
#[derive(Default)]
struct Marks {
    of_connection: bool,
    claims: bool,
    traced: bool,
    odd: bool,
}

impl Marks {
    fn of(fields: &HeaderMap) -> Marks {
        let mut marks = Marks::default();
        for name in fields.keys() {
            let name = name.as_str();
            marks.odd |= name.bytes().any(is_odd);
            match name.as_bytes()[0] {
                b'c' => marks.of_connection |= name == "connection",
                b'k' => marks.of_connection |= name == "keep-alive",
                b'p' => marks.of_connection |= name == "proxy-connection",
                b'u' => marks.of_connection |= name == "upgrade",
                b't' => {
                    marks.of_connection |= name == "te" || name == "transfer-encoding";
                    marks.traced |= name == "traceparent";
                }
                b'f' | b'x' => {
                    marks.claims |= is_claim(name);
                    marks.traced |= name == "x-request-id";
                }
                _ => {}
            }
        }
        marks
    }
}

/// Whether servers may take a name with this character for another one, with `-` in its place.
fn is_odd(byte: u8) -> bool {
    !(byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// Whether a field says what only trusted proxies may say of a client.
pub(crate) fn is_claim(name: &str) -> bool {
    name.starts_with("x-forwarded-") || matches!(name, "forwarded" | "x-real-ip" | "x-client-cert-subject")
}

/// Whether the proxy itself tells nodes of this field, and answers from the facts where it is asked for.
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

/// Whether a server in the manner of CGI would take a name for one that means something to this proxy.
fn passes_for_protected(name: &str) -> bool {
    let folded: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    is_claim(&folded)
        || fields::NEVER_HOP_BY_HOP.contains(&folded.as_str())
        || HeaderName::from_bytes(folded.as_bytes()).is_ok_and(|name| fields::is_hop_by_hop(&name))
}

impl Underscores {
    /// Whether a field of this name goes no further.
    pub(crate) fn drop(self, name: &str) -> bool {
        name.bytes().any(is_odd) && ((self != Underscores::Allow && name.contains('_')) || passes_for_protected(name))
    }
}

impl RequestHead {
    /// Makes the one view of a request from the head that its peer has sent.
    pub(crate) fn sanitise(head: request::Parts, peer: Peer<'_>) -> Result<RequestHead, BadHead> {
        let request::Parts { method, uri, version, headers: mut map, .. } = head;
        if version == Version::HTTP_2
            && let Some((name, _)) = map.iter().find(|(_, value)| value.as_bytes().trim_ascii().len() < value.len())
        {
            return Err(BadHead::WhiteSpace(name.clone()));
        }
        let address = peer.address.to_canonical();
        let mut facts = Facts {
            peer: address,
            address,
            is_secure: peer.is_secure,
            is_peer_trusted: is_trusted(address, peer.trusted_proxies),
            certificate: peer.certificate.cloned(),
            ..Facts::default()
        };
        let marks = Marks::of(&map);
        if marks.of_connection {
            facts.hop = fields::strip_request(&mut map).map_err(BadHead::ConnectionOption)?;
        }
        if marks.odd {
            drop_odd(&mut map, peer.underscores)?;
        }
        if marks.claims {
            facts.take_claims(&mut map, peer);
        }
        if marks.traced {
            drop_bad_traces(&mut map);
        }
        Ok(RequestHead { method, uri, version, fields: RequestFields { map, facts } })
    }
}

impl Facts {
    /// Takes claims out of a head: those of a trusted proxy become facts, or stay where they are none; all others go.
    fn take_claims(&mut self, map: &mut HeaderMap, peer: Peer<'_>) {
        if self.is_peer_trusted {
            let origin = Origin::of(self.peer, map, peer.trusted_proxies);
            self.address = origin.address;
            self.is_secure = origin.is_secure.unwrap_or(self.is_secure);
            self.forwarded_for = origin.chain;
            self.forwarded_host = map.remove(fields::X_FORWARDED_HOST);
            let subject = map.remove(fields::X_CLIENT_CERT_SUBJECT);
            self.certificate = self.certificate.take().or(subject);
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
    let odd: Vec<HeaderName> = map.keys().filter(|name| name.as_str().bytes().any(is_odd)).cloned().collect();
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

/// Drops identifiers that the proxy will not take on: a node gets others in their place.
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
    /// The fields that are no facts.
    pub(crate) fn plain(&self) -> &HeaderMap {
        &self.map
    }

    /// The fields of the request that a node gets, with the facts written into them. `peer` is the peer's address.
    pub(crate) fn for_node(self, peer: &HeaderValue) -> (HeaderMap, Facts) {
        let RequestFields { map: mut fields, mut facts } = self;
        let chain = match &facts.forwarded_for {
            None => peer.clone(),
            Some(_) => HeaderValue::try_from(facts.chain()).unwrap_or_else(|_| peer.clone()),
        };
        fields.insert(fields::X_FORWARDED_FOR, chain);
        fields.insert(fields::X_FORWARDED_PROTO, HeaderValue::from_static(facts.scheme()));
        if let Some(host) = facts.forwarded_host.take().or_else(|| fields.get(HOST).cloned()) {
            fields.insert(fields::X_FORWARDED_HOST, host);
        }
        if let Some(subject) = facts.certificate.take() {
            fields.insert(fields::X_CLIENT_CERT_SUBJECT, subject);
        }
        (fields, facts)
    }

    /// Gives the host in its one form.
    pub(crate) fn set_host(&mut self, host: HeaderValue) {
        self.map.insert(HOST, host);
    }

    /// The lines of a field as the node will see them.
    pub(crate) fn values(&self, name: &HeaderName) -> Values<'_> {
        if is_fact(name) {
            return Values::Fact(self.fact(name));
        }
        Values::Lines(self.map.get_all(name).iter())
    }

    /// The first line of a field as the node will see it.
    pub(crate) fn value(&self, name: &HeaderName) -> Option<Cow<'_, [u8]>> {
        self.values(name).next()
    }

    fn fact(&self, name: &HeaderName) -> Option<Cow<'_, [u8]>> {
        let facts = &self.facts;
        match name.as_str() {
            "x-forwarded-for" => Some(Cow::Owned(facts.chain())),
            "x-forwarded-proto" => Some(Cow::Borrowed(facts.scheme().as_bytes())),
            "x-forwarded-host" => facts.forwarded_host.as_ref().or_else(|| self.map.get(HOST)).map(bytes_of),
            "x-client-cert-subject" => facts.certificate.as_ref().map(bytes_of),
            "upgrade" => facts.hop.upgrade.as_ref().map(bytes_of),
            _ => None,
        }
    }
}

fn bytes_of(value: &HeaderValue) -> Cow<'_, [u8]> {
    Cow::Borrowed(value.as_bytes())
}

impl From<HeaderMap> for RequestFields {
    /// The fields of a request that no stranger has sent.
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
