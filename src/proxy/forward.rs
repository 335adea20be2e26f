//! The step that makes a request ready for a node: its key, its target and its fields.

use super::affinity::Session;
use super::answer::ResponseBody;
use super::body::{Gate, RequestBody};
use super::client::Client;
use super::engine::{Begun, Engine};
use super::exchange::Exchange;
use super::hash_key::find_key;
use super::pace::Pace;
use super::rate_limit::Uncounted;
use super::request::Form;
use super::snapshot::Route;
use super::upstream::{Choice, Issue, Journey};
use crate::config::{OnGone, Protocol};
use crate::http::fields::{self, HopByHop};
use crate::http::problem::Problem;
use crate::http::target;
use crate::telemetry::trace;
use crate::upstream::{Outgoing, Pool, Wanted};
use bytes::Bytes;
use http::header::{
    CONNECTION, EXPECT, FORWARDED, HOST, HeaderName, MAX_FORWARDS, TE, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, request};
use hyper::body::Incoming;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// A request that has found its route and pool.
pub(super) struct Forward<'a> {
    pub(super) engine: &'a Rc<Engine>,
    pub(super) client: &'a Rc<Client>,
    pub(super) exchange: &'a Rc<Exchange>,
    pub(super) route: &'a Arc<Route>,
    pub(super) pool: &'a Arc<Pool>,
    pub(super) form: Form<'a>,
    /// The client's address, behind trusted proxies.
    pub(super) address: IpAddr,
    /// Whether the peer is such a proxy.
    pub(super) trusted: bool,
    /// Whether the client speaks TLS, with us or with a trusted proxy before us.
    pub(super) is_secure: bool,
    pub(super) body_limit: u64,
    pub(super) held_body: u64,
    /// Where the rate limit counts it only once a node is to be asked.
    pub(super) uncounted: Option<Uncounted>,
    /// How fast its body must come.
    pub(super) pace: Pace,
}

impl Forward<'_> {
    /// Gives the journey to the nodes, or an answer where none is needed.
    pub(super) fn begin(&self, mut head: request::Parts, body: Incoming) -> Result<Begun, Problem> {
        if self.is_last_hop(&mut head) {
            let mut response = Response::new(ResponseBody::empty(self.exchange));
            *response.status_mut() = StatusCode::NO_CONTENT;
            return Ok(Begun::Answer(response));
        }
        self.journey(head, body).map(Begun::Forward)
    }

    /// The journey to the nodes.
    pub(super) fn journey(&self, head: request::Parts, body: Incoming) -> Result<Journey, Problem> {
        let gate = self.form.expects_continue.then(|| Rc::new(Gate::new()));
        let outgoing = self.outgoing(body, gate.clone());
        Ok(Journey { gate, ..self.journey_with(head, outgoing)? })
    }

    /// The journey of a request with another body.
    pub(super) fn journey_with(&self, mut head: request::Parts, body: Outgoing) -> Result<Journey, Problem> {
        let choice = self.choose(&head.headers);
        let hop = self.prepare(&mut head)?;
        let version = std::mem::replace(&mut head.version, Version::HTTP_11);
        Ok(Journey {
            engine: Rc::clone(self.engine),
            client: Rc::clone(self.client),
            exchange: Rc::clone(self.exchange),
            route: Arc::clone(self.route),
            pool: Arc::clone(self.pool),
            choice,
            request: Some(Request::from_parts(head, body)),
            gate: None,
            // An HTTP/1.0 client would take an interim answer for the final one, and HTTP/2 has another form for it.
            wants_interim: version == Version::HTTP_11,
            may_switch: hop.upgrade.is_some(),
            body_limit: self.body_limit,
            held_body: self.held_body,
            uncounted: self.uncounted.clone(),
            cache_status: None,
            claimed: None,
        })
    }

    /// Decides which nodes are asked, in which order: by the affinity cookie, else by the first source
    /// of `hash_on` that is present, else at random.
    fn choose(&self, fields: &HeaderMap) -> Choice {
        let keyed = find_key(&self.route.hash_on, &self.form, fields, self.address);
        let hash = keyed.as_ref().map(|found| self.pool.ring.hash_key(&found.key));
        let at_random = || self.engine.random.borrow_mut().u64(..);
        let Some(affinity) = &self.route.affinity else {
            return Choice::by_hash(hash.unwrap_or_else(at_random));
        };
        match affinity.read(fields, &self.pool.name, seconds_since_1970()) {
            Session::Soft(key) => Choice::by_hash(self.pool.ring.hash_key(&key)),
            Session::Strict { node, end, fresh } => {
                let choice = Choice::by_hash(hash.unwrap_or_else(at_random));
                let secure = self.is_secure;
                let Some(index) = self.pool.nodes.iter().position(|known| *known.id == *node) else {
                    return Choice { issue: Issue::Strict { secure }, ..choice };
                };
                let may_leave = affinity.on_gone == OnGone::Next;
                let wanted = Wanted { pinned: Some(index), may_leave, ..choice.wanted };
                let issue = if fresh { Issue::IfMoved { secure } } else { Issue::Strict { secure } };
                Choice { wanted, session_end: Some(end), issue }
            }
            Session::None if affinity.is_strict() => {
                let issue = Issue::Strict { secure: self.is_secure };
                Choice { issue, ..Choice::by_hash(hash.unwrap_or_else(at_random)) }
            }
            Session::None => match (hash, affinity.soft_cookie(self.is_secure)) {
                (None, Some((key, cookie))) => {
                    Choice { issue: Issue::Soft(cookie), ..Choice::by_hash(self.pool.ring.hash_key(&key)) }
                }
                (hash, _) => Choice::by_hash(hash.unwrap_or_else(at_random)),
            },
        }
    }

    /// Rewrites the head as the node gets it. What is about this connection goes first, so that
    /// nothing the proxy adds can be named away.
    fn prepare(&self, head: &mut request::Parts) -> Result<HopByHop, Problem> {
        let mut hop =
            fields::strip_request(&mut head.headers).map_err(|forbidden| bad_connection_option(&forbidden))?;
        if let Some(uri) = self.new_target(&head.uri)? {
            head.uri = uri;
        }
        hop.upgrade = hop.upgrade.filter(|to| self.may_upgrade(head, to));
        let fields = &mut head.headers;
        if self.form.has_body && self.form.content_length.is_none() {
            // Said outright, for without it hyper sends a GET without its body.
            fields.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        if !self.form.expects_continue {
            fields.remove(EXPECT);
        }
        if let Some(host) = &self.form.new_host {
            let host = HeaderValue::try_from(host.as_str())
                .map_err(|_| Problem::bad_request("bad-host", "the host is not a field value"))?;
            fields.insert(HOST, host);
        }
        let (request_id, traceparent) = (fields.get(&fields::X_REQUEST_ID), fields.get(&fields::TRACEPARENT));
        let trace = trace::ids(request_id, traceparent, &mut self.engine.random.borrow_mut());
        self.exchange.identified(self.address, &trace.request_id);
        self.add_forwarded(fields);
        fields.append(VIA, via(head.version));
        fields.insert(fields::X_REQUEST_ID, trace.request_id);
        fields.insert(fields::TRACEPARENT, trace.traceparent);
        self.route.request_fields.apply(fields);
        if let Some(protocol) = &hop.upgrade {
            fields.insert(UPGRADE, protocol.clone());
            fields.append(CONNECTION, HeaderValue::from_static("upgrade"));
        }
        if hop.trailers {
            fields.insert(TE, HeaderValue::from_static("trailers"));
            fields.append(CONNECTION, HeaderValue::from_static("te"));
        }
        Ok(hop)
    }

    /// The target in origin form, where it is not what the client wrote.
    fn new_target(&self, uri: &Uri) -> Result<Option<Uri>, Problem> {
        let path = match &self.route.strip_prefix {
            Some(prefix) => target::strip_prefix(&self.form.path, prefix).unwrap_or(&self.form.path),
            None => &self.form.path,
        };
        if uri.path() == path {
            let Some(_) = uri.authority() else { return Ok(None) };
            let mut parts = http::uri::Parts::default();
            parts.path_and_query = uri.path_and_query().cloned();
            if let Ok(own) = Uri::from_parts(parts) {
                return Ok(Some(own));
            }
        }
        let text = match self.form.query {
            Some(query) => [path, "?", query].concat(),
            None => path.to_owned(),
        };
        let parsed = Uri::from_maybe_shared(Bytes::from(text));
        parsed.map(Some).map_err(|_| Problem::bad_request("bad-target", "the request's target is not a valid path"))
    }

    /// Says who the client is; what an untrusted peer says of it is dropped.
    fn add_forwarded(&self, fields: &mut HeaderMap) {
        let mut chain = self.client.peer_text.clone();
        if self.trusted {
            let before: Vec<&[u8]> =
                fields.get_all(fields::X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect();
            if !before.is_empty() {
                let joined = [&before.join(&b", "[..]), &b", "[..], chain.as_bytes()].concat();
                chain = HeaderValue::from_bytes(&joined).unwrap_or(chain);
            }
        } else {
            drop_claims(fields);
        }
        fields.insert(fields::X_FORWARDED_FOR, chain);
        // What a client says of a certificate of its own is worth nothing.
        match self.client.secured.as_ref().and_then(|secured| secured.subject.clone()) {
            Some(subject) => drop(fields.insert(fields::X_CLIENT_CERT_SUBJECT, subject)),
            None if self.trusted => {}
            None => drop(fields.remove(fields::X_CLIENT_CERT_SUBJECT)),
        }
        if !self.trusted || !fields.contains_key(fields::X_FORWARDED_PROTO) {
            fields.insert(fields::X_FORWARDED_PROTO, HeaderValue::from_static(self.client.scheme()));
        }
        if (!self.trusted || !fields.contains_key(fields::X_FORWARDED_HOST))
            && let Some(host) = fields.get(HOST).cloned()
        {
            fields.insert(fields::X_FORWARDED_HOST, host);
        }
    }

    /// Only a request without a body switches protocols, and never to cleartext HTTP/2: that would
    /// be a second HTTP connection past every rule of this one.
    fn may_upgrade(&self, head: &request::Parts, protocol: &HeaderValue) -> bool {
        head.version >= Version::HTTP_11
            && self.pool.protocol == Protocol::Http1
            && head.method == Method::GET
            && !self.form.has_body
            && !protocol.is_empty()
            && !fields::list_has(protocol, "h2c")
    }

    /// Whether an OPTIONS request may go no further (RFC 9110 7.6.2); counts the hop otherwise.
    fn is_last_hop(&self, head: &mut request::Parts) -> bool {
        if head.method != Method::OPTIONS {
            return false;
        }
        let left = head.headers.get(MAX_FORWARDS).and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
        match left {
            None => false,
            Some(0) => true,
            Some(left) => {
                head.headers.insert(MAX_FORWARDS, HeaderValue::from(left - 1));
                false
            }
        }
    }

    fn outgoing(&self, incoming: Incoming, gate: Option<Rc<Gate>>) -> Outgoing {
        if !self.form.has_body {
            return Outgoing::Empty;
        }
        let (client, exchange) = (self.client, self.exchange);
        Outgoing::Stream(Box::pin(RequestBody::new(incoming, client, exchange, self.body_limit, gate, self.pace)))
    }
}

/// 400 for a request that would have something taken away that is not about the connection.
pub(super) fn bad_connection_option(forbidden: &fields::ForbiddenOption) -> Problem {
    let detail = format!("the Connection field names `{}`, which is not about the connection", forbidden.0);
    Problem::bad_request("bad-connection-option", detail)
}

/// 503 for a session that belongs to a node that is down, and to no other.
pub(super) fn session_node_gone() -> Problem {
    let detail = "the node that holds this session is down";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "session-node-down", "destination_unavailable", detail).retry_after(1)
}

/// For cookies, whose expiry is a wall-clock time.
pub(super) fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Removes what only trusted proxies may say about the client.
fn drop_claims(fields: &mut HeaderMap) {
    let is_claim =
        |name: &HeaderName| name.as_str().starts_with("x-forwarded-") || *name == FORWARDED || *name == X_REAL_IP;
    if fields.keys().any(is_claim) {
        let claims: Vec<HeaderName> = fields.keys().filter(|name| is_claim(name)).cloned().collect();
        for name in claims {
            fields.remove(name);
        }
    }
}

/// The `Via` entry for a message received in this version.
fn via(version: Version) -> HeaderValue {
    HeaderValue::from_static(match version {
        Version::HTTP_10 => "1.0 ringway",
        Version::HTTP_2 => "2.0 ringway",
        _ => "1.1 ringway",
    })
}
