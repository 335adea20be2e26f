//! The step that takes a request to a node: its fields, the attempts, and what comes back.

use super::answer::ResponseBody;
use super::body::{Gate, RequestBody};
use super::client::{Client, Tunnel};
use super::engine::{Engine, via};
use super::exchange::{BodyFault, Exchange};
use super::hash_key::find_key;
use super::interim;
use super::request::{Form, too_large};
use super::snapshot::Route;
use crate::http::fields::{self, HopByHop, TransferCoding};
use crate::http::problem::Problem;
use crate::http::target;
use crate::telemetry::trace;
use crate::upstream::{AnswerBody, Failure, InFlight, Keep, Link, Node, Outcome, Outgoing, Patience, Pool};
use bytes::Bytes;
use http::header::{CONNECTION, EXPECT, FORWARDED, HOST, HeaderName, MAX_FORWARDS, TE, UPGRADE, VIA};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, request, response};
use hyper::body::Incoming;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a request is tried again where nothing was sent.
const RETRIES: u32 = 1;

const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// A request that has found its pool.
pub(super) struct Forward<'a> {
    pub(super) engine: &'a Engine,
    pub(super) client: &'a Rc<Client>,
    pub(super) exchange: &'a Rc<Exchange>,
    pub(super) route: Arc<Route>,
    pub(super) pool: Arc<Pool>,
    pub(super) form: Form<'a>,
    /// The client's address, behind trusted proxies.
    pub(super) address: IpAddr,
    /// Whether the peer is such a proxy.
    pub(super) trusted: bool,
    pub(super) body_limit: u64,
}

/// Sends the request to the node that its key belongs to, or to the next one where nothing was sent.
pub(super) async fn forward(
    way: Forward<'_>,
    mut head: request::Parts,
    body: Incoming,
) -> Result<Response<ResponseBody>, Problem> {
    let hash = match find_key(&way.route.hash_on, &way.form, &head.headers, way.address) {
        Some(found) => way.pool.ring.hash_key(&found.key),
        None => way.engine.random.borrow_mut().u64(..),
    };
    let hop = way.prepare(&mut head)?;
    if let Some(answer) = way.max_forwards(&mut head) {
        return answer;
    }
    let version = std::mem::replace(&mut head.version, Version::HTTP_11);
    let gate = way.form.expects_continue.then(|| Rc::new(Gate::new()));
    let outgoing = way.outgoing(body, gate.clone());
    let request = Request::from_parts(head, outgoing);

    let client = Rc::clone(way.client);
    let on_interim = |status: StatusCode, fields: &HeaderMap| match &gate {
        Some(gate) if status == StatusCode::CONTINUE => gate.open(),
        _ => client.inject.borrow_mut().extend(interim::encode(status, fields)),
    };
    // An HTTP/1.0 client would take an interim answer for the final one.
    let on_interim: Option<&dyn Fn(StatusCode, &HeaderMap)> = (version >= Version::HTTP_11).then_some(&on_interim);
    let attempt = way.attempts(hash, request, on_interim).await?;
    way.answer(attempt, hop).await
}

/// An attempt that brought an answer.
struct Answered {
    head: response::Parts,
    body: Incoming,
    link: Box<Link>,
    in_flight: InFlight,
    started: Instant,
}

impl Forward<'_> {
    /// Rewrites the head as the node gets it. What is about this connection goes first, so that
    /// nothing the proxy adds can be named away.
    fn prepare(&self, head: &mut request::Parts) -> Result<HopByHop, Problem> {
        let hop = fields::strip_request(&mut head.headers).map_err(|forbidden| {
            let detail = format!("the Connection field names `{}`, which is not about the connection", forbidden.0);
            Problem::bad_request("bad-connection-option", detail)
        })?;
        if let Some(uri) = self.new_target(&head.uri)? {
            head.uri = uri;
        }
        let fields = &mut head.headers;
        if !self.form.expects_continue {
            fields.remove(EXPECT);
        }
        if let Some(host) = &self.form.new_host {
            let host = HeaderValue::try_from(host.as_str())
                .map_err(|_| Problem::bad_request("bad-host", "the host is not a field value"))?;
            fields.insert(HOST, host);
        }
        let trace = trace::ids(
            fields.get(&fields::X_REQUEST_ID),
            fields.get(&fields::TRACEPARENT),
            &mut self.engine.random.borrow_mut(),
        );
        self.exchange.identified(self.address, &trace.request_id);
        self.add_forwarded(fields);
        fields.append(VIA, via(head.version));
        fields.insert(fields::X_REQUEST_ID, trace.request_id);
        fields.insert(fields::TRACEPARENT, trace.traceparent);
        self.route.request_fields.apply(fields);
        let hop = HopByHop { upgrade: hop.upgrade.filter(|to| self.may_upgrade(head, to)), ..hop };
        let fields = &mut head.headers;
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
        if uri.authority().is_none() && uri.path() == path {
            return Ok(None);
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
        let host = fields.get(HOST).cloned();
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
        if !fields.contains_key(fields::X_FORWARDED_PROTO) {
            fields.insert(fields::X_FORWARDED_PROTO, HeaderValue::from_static(self.client.scheme()));
        }
        if let Some(host) = host
            && !fields.contains_key(fields::X_FORWARDED_HOST)
        {
            fields.insert(fields::X_FORWARDED_HOST, host);
        }
    }

    /// Only a request without a body switches protocols, and never to cleartext HTTP/2: that would
    /// be a second HTTP connection past every rule of this one.
    fn may_upgrade(&self, head: &request::Parts, protocol: &HeaderValue) -> bool {
        head.version == Version::HTTP_11
            && head.method == Method::GET
            && !self.form.has_body
            && !protocol.is_empty()
            && !fields::list_has(protocol, "h2c")
    }

    /// RFC 9110 7.6.2, for OPTIONS; TRACE is not forwarded at all.
    fn max_forwards(&self, head: &mut request::Parts) -> Option<Result<Response<ResponseBody>, Problem>> {
        if head.method != Method::OPTIONS {
            return None;
        }
        let left: u32 = head.headers.get(MAX_FORWARDS)?.to_str().ok()?.parse().ok()?;
        if left == 0 {
            let mut response = Response::new(ResponseBody::empty(self.exchange));
            *response.status_mut() = StatusCode::NO_CONTENT;
            return Some(Ok(response));
        }
        head.headers.insert(MAX_FORWARDS, HeaderValue::from(left - 1));
        None
    }

    fn outgoing(&self, incoming: Incoming, gate: Option<Rc<Gate>>) -> Outgoing {
        if !self.form.has_body {
            return Outgoing::Empty;
        }
        Outgoing::Stream(Box::pin(RequestBody {
            incoming,
            client: Rc::clone(self.client),
            exchange: Rc::clone(self.exchange),
            limit: self.body_limit,
            gate,
        }))
    }

    /// Tries the key's nodes in turn, as long as nothing was sent.
    async fn attempts(
        &self,
        hash: u64,
        mut request: Request<Outgoing>,
        on_interim: Option<&dyn Fn(StatusCode, &HeaderMap)>,
    ) -> Result<Answered, Problem> {
        let timeouts = &self.pool.timeouts;
        let until = (!timeouts.total.is_zero()).then(|| self.exchange.started + timeouts.total);
        let patience = Patience { first_byte: timeouts.first_byte, until };
        let mut failure = None;
        let mut full = false;
        let mut attempts = 0;
        for node in self.pool.candidates(hash) {
            if attempts > RETRIES {
                break;
            }
            let Some(in_flight) = node.runtime.begin(self.pool.connections.max_per_node) else {
                full = true;
                continue;
            };
            if let Some(failed) = failure {
                self.engine.ledger.retried(&self.pool.name, failed);
            }
            attempts += 1;
            self.exchange.attempts.set(attempts);
            self.exchange.sent_to(&self.pool.name, &node.id);
            let started = Instant::now();
            match self.attempt(node, request, patience, on_interim).await {
                Attempt::Answered(head, body, link) => {
                    node.runtime.count("answer");
                    self.exchange.first_byte_time.set(Some(started.elapsed()));
                    return Ok(Answered { head, body, link, in_flight, started });
                }
                Attempt::Again(failed, unsent) => {
                    node.runtime.count(failed.label());
                    failure = Some(failed);
                    request = unsent;
                }
                Attempt::Over(failed) => {
                    node.runtime.count(failed.label());
                    return Err(self.failed(failed));
                }
            }
        }
        Err(match failure {
            Some(failed) => self.failed(failed),
            None => unavailable(full),
        })
    }

    /// One node: on a kept connection if there is one, on a new one where that turns out to be dead.
    async fn attempt(
        &self,
        node: &Node,
        mut request: Request<Outgoing>,
        patience: Patience,
        on_interim: Option<&dyn Fn(StatusCode, &HeaderMap)>,
    ) -> Attempt {
        if !request.headers().contains_key(HOST)
            && let Ok(host) = HeaderValue::try_from(node.address.to_string())
        {
            // HTTP/1.0 clients may name no host; HTTP/1.1 nodes want one.
            request.headers_mut().insert(HOST, host);
        }
        loop {
            let kept = self.engine.links.take(&node.runtime);
            let is_new = kept.is_none();
            let link = match kept {
                Some(link) => link,
                None => {
                    let started = Instant::now();
                    match Link::connect(node.address, connect_timeout(self.pool.timeouts.connect, patience.until)).await
                    {
                        Ok(link) => {
                            self.exchange.connect_time.set(Some(started.elapsed()));
                            link
                        }
                        Err(failure) => return Attempt::Again(failure, request),
                    }
                }
            };
            match link.send(request, patience, on_interim).await {
                Outcome::Answer { head, link } => {
                    let (head, body) = head.into_parts();
                    return Attempt::Answered(head, body, link);
                }
                Outcome::NotSent { request: Some(unsent), .. } if !is_new => request = unsent,
                Outcome::NotSent { failure, request: Some(unsent) } => return Attempt::Again(failure, unsent),
                Outcome::NotSent { failure, request: None } | Outcome::SentNoAnswer(failure) => {
                    return Attempt::Over(failure);
                }
            }
        }
    }

    /// What the client is told when no node answered.
    fn failed(&self, failure: Failure) -> Problem {
        if let Some(fault) = self.exchange.body_fault.get() {
            return match fault {
                BodyFault::TooLarge => too_large(self.body_limit),
                BodyFault::Stalled => Problem::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "request-timeout",
                    "http_request_error",
                    "the request's body stopped arriving",
                )
                .closing(),
                BodyFault::Malformed => Problem::bad_request("bad-chunk", "the request's chunked body is malformed"),
                BodyFault::ClientGone => Problem::bad_request("incomplete-request", "the request's body ended early"),
            };
        }
        self.exchange.ended("upstream");
        tracing::debug!(pool = &*self.pool.name, failure = failure.label(), "no answer from a node");
        let status = match failure {
            Failure::ConnectTimeout | Failure::Timeout => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        };
        let kind = if status == StatusCode::GATEWAY_TIMEOUT { "upstream-timeout" } else { "upstream-failed" };
        Problem::new(status, kind, failure.proxy_status(), failure.to_string())
    }

    /// Takes a node's answer to the client.
    async fn answer(&self, answered: Answered, hop: HopByHop) -> Result<Response<ResponseBody>, Problem> {
        let Answered { mut head, body, link, in_flight, started } = answered;
        if fields::transfer_coding(&head.headers) == TransferCoding::Unsupported {
            return Err(self.failed(Failure::Malformed));
        }
        let upgrade = fields::strip_response(&mut head.headers);
        self.route.response_fields.apply(&mut head.headers);
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(head, upgrade.filter(|_| hop.upgrade.is_some()), link, in_flight).await;
        }
        let timeouts = &self.pool.timeouts;
        let until = (!timeouts.total.is_zero()).then(|| self.exchange.started + timeouts.total);
        let connections = &self.pool.connections;
        let keep = Keep {
            links: Rc::clone(&self.engine.links),
            timeout: connections.idle_timeout,
            max_idle: connections.max_idle_per_node,
        };
        let mut body = AnswerBody::new(body, link, in_flight, started, (timeouts.idle, until), keep);
        std::future::poll_fn(|cx| {
            body.finish_if_empty(cx);
            std::task::Poll::Ready(())
        })
        .await;
        head.version = Version::HTTP_11;
        Ok(Response::from_parts(head, ResponseBody::answer(body, self.exchange)))
    }

    /// A 101 that was asked for: the connection becomes a tunnel once the client has the answer.
    async fn switch(
        &self,
        mut head: response::Parts,
        protocol: Option<HeaderValue>,
        link: Box<Link>,
        in_flight: InFlight,
    ) -> Result<Response<ResponseBody>, Problem> {
        let Some(protocol) = protocol else {
            return Err(self.failed(Failure::Malformed));
        };
        let Some(node) = link.into_switched().await else {
            return Err(self.failed(Failure::Terminated));
        };
        *self.client.tunnel.borrow_mut() =
            Some(Tunnel { node, in_flight, exchange: Rc::clone(self.exchange), idle: self.pool.timeouts.tunnel });
        head.headers.insert(UPGRADE, protocol);
        head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        Ok(Response::from_parts(head, ResponseBody::empty(self.exchange)))
    }
}

/// What became of one node.
enum Attempt {
    Answered(response::Parts, Incoming, Box<Link>),
    /// Nothing was sent; here is the request again.
    Again(Failure, Request<Outgoing>),
    Over(Failure),
}

/// Removes what only trusted proxies may say about the client.
fn drop_claims(fields: &mut HeaderMap) {
    let claimed: Vec<HeaderName> =
        fields.keys().filter(|name| name.as_str().starts_with("x-forwarded-")).cloned().collect();
    for name in claimed {
        fields.remove(name);
    }
    fields.remove(FORWARDED);
    fields.remove(X_REAL_IP);
}

/// The time to connect within, shortened by the end of the whole request.
fn connect_timeout(connect: Duration, until: Option<Instant>) -> Duration {
    let Some(until) = until else { return connect };
    let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    if connect.is_zero() { left } else { connect.min(left) }
}

/// No node could even be tried.
fn unavailable(full: bool) -> Problem {
    let (kind, error, detail) = match full {
        true => (
            "connection-limit-reached",
            "connection_limit_reached",
            "every node of the pool has as many requests as it may have",
        ),
        false => ("no-healthy-node", "destination_unavailable", "no node of the pool takes requests"),
    };
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, kind, error, detail).retry_after(1)
}
