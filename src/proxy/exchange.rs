//! The record of one request, from its head to the end of its response: then it is counted and logged.

use super::client_body::{BodyFault, ClientBody};
use super::downstream::{Downstream, Phase, TunnelRecord};
use super::field_rules::FieldRules;
use super::rate_limit::{Standing, Uncounted};
use super::session::Session;
use crate::clock::{new_poll_time, poll_time};
use crate::consistency::Requester;
use crate::http::fields::X_REQUEST_ID;
use crate::http::problem::Problem;
use crate::telemetry::access_log::{AccessLog, Entry, Sink, Text};
use crate::telemetry::metrics::{Abort, Metrics, method_label};
use crate::telemetry::observers::Observers;
use crate::telemetry::watched::Skipped;
use crate::upstream::ClientPart;
use http::header::{HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, request};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use prometheus::{Histogram, IntCounter};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

/// The recorder of one worker's requests, in metrics, in the access log and for observers.
pub(crate) struct RequestRecorder {
    metrics: Arc<Metrics>,
    log: RefCell<Option<AccessLog>>,
    observers: Arc<Observers>,
    skipped: Skipped,
    /// Counters of requests by route, method and code, found once.
    counters: RefCell<HashMap<(u64, &'static str, u16), IntCounter, foldhash::fast::RandomState>>,
}

/// The most counters that a worker keeps handles of.
const MAX_COUNTERS: usize = 4096;

/// The time for which a body is read behind its response, and the bytes of it that are read.
const DISCARD_FOR: Duration = Duration::from_secs(5);
const DISCARD_BYTES: usize = 1 << 20;

/// The serial of no route; routes count from 1.
const NO_ROUTE: u64 = 0;

impl RequestRecorder {
    pub(crate) fn new(metrics: Arc<Metrics>, observers: Arc<Observers>) -> RequestRecorder {
        let (log, counters) = (RefCell::default(), RefCell::default());
        RequestRecorder { metrics, log, observers, skipped: Skipped::default(), counters }
    }

    /// Writes to another log from now on, if it is another one.
    pub(crate) fn log_to(&self, sink: Option<&Arc<Sink>>) {
        let mut log = self.log.borrow_mut();
        if log.as_ref().map(AccessLog::sink).map(Arc::as_ptr) != sink.map(Arc::as_ptr) {
            *log = sink.map(|sink| AccessLog::new(Arc::clone(sink)));
        }
    }

    pub(crate) fn flush(&self) {
        if let Some(log) = &*self.log.borrow() {
            log.flush();
        }
    }

    /// Returns the metrics of the process.
    pub(super) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Returns whether the details of a request are recorded: for the access log, or for an observer.
    fn wants_details(&self) -> bool {
        self.log.borrow().is_some() || self.observers.is_watched()
    }

    /// Hands a finished request to the access log, unless its route has none, and to the observers.
    fn record(&self, entry: &Entry<'_>, is_logged: bool) {
        if let Some(log) = &*self.log.borrow()
            && is_logged
        {
            log.write(entry);
        }
        if self.observers.is_watched() {
            self.observers.observe(entry, &self.skipped);
        }
    }

    /// Counts and logs a request whose head could not be read.
    pub(crate) fn unreadable(&self, downstream: &Downstream, problem: &Problem) {
        let (status, body) = (problem.status().as_u16(), problem.render().1);
        self.count(NO_ROUTE, "none", "OTHER", status);
        self.metrics.response_bytes.inc_by(body.len() as u64);
        // The begin of the request is unknown.
        self.metrics.request_duration.with_label_values(&["none"]).observe(0.0);
        if self.wants_details() {
            let entry = Entry {
                listener: &downstream.connection.listener,
                client: downstream.connection.peer.ip().to_canonical(),
                method: "-",
                host: "",
                uri: "-",
                protocol: "HTTP/1.1",
                status,
                request_bytes: 0,
                response_bytes: body.len() as u64,
                duration: 0.0,
                connect: None,
                first_byte: None,
                route: "none",
                pool: None,
                node: None,
                attempts: 0,
                request_id: None,
                user_agent: None,
                error: Some(problem.name()),
                cache: None,
                idempotency: None,
                consistency: None,
                ended_by: "proxy",
                key: None,
            };
            self.record(&entry, true);
        }
    }

    fn count(&self, serial: u64, route: &str, method: &'static str, code: u16) {
        let mut counters = self.counters.borrow_mut();
        // Drops the handles of routes that reloads have replaced.
        if counters.len() >= MAX_COUNTERS {
            counters.clear();
        }
        let counter = counters.entry((serial, method, code)).or_insert_with(|| {
            let mut digits = itoa::Buffer::new();
            self.metrics.requests.with_label_values(&[route, method, digits.format(code)])
        });
        counter.inc();
    }

    /// Counts HTTP/2 misbehaviour of a client.
    pub(crate) fn glitch(&self, kind: &'static str) {
        self.metrics.http2_glitches.with_label_values(&[kind]).inc();
    }

    /// Counts a connection that the proxy ends.
    pub(crate) fn aborted(&self, reason: Abort) {
        self.metrics.aborted(reason);
    }

    /// Counts a TLS handshake.
    pub(crate) fn handshaken(&self, listener: &str, well: bool) {
        let result = if well { "success" } else { "failure" };
        self.metrics.tls_handshakes.with_label_values(&[listener, result]).inc();
    }
}

/// The part of a route that metrics, logs and the last step need: a tunnel that outlives its configuration keeps this,
/// and not the pool with its ring.
pub(crate) struct RouteLabel {
    /// Unique in the process.
    pub(crate) serial: u64,
    pub(crate) name: Box<str>,
    pub(crate) duration: Histogram,
    pub(crate) response_fields: FieldRules,
    /// Its requests get lines in the access log.
    pub(crate) is_logged: bool,
}

/// One request and its answer.
pub(crate) struct Exchange {
    recorder: Rc<RequestRecorder>,
    downstream: Rc<Downstream>,
    pub(crate) started: Instant,
    method: Method,
    route: RefCell<Option<Arc<RouteLabel>>>,
    status: Cell<u16>,
    pub(crate) request_bytes: Cell<u64>,
    pub(crate) response_bytes: Cell<u64>,
    pub(crate) body_fault: Cell<Option<BodyFault>>,
    is_too_slow: Cell<bool>,
    /// The request's body, up to its end or that of the response; see [`Exchange::end_body`].
    pub(super) body: RefCell<Option<ClientBody>>,
    pub(crate) connect_time: Cell<Option<Duration>>,
    pub(crate) first_byte_time: Cell<Option<Duration>>,
    pub(crate) attempts: Cell<u32>,
    error: Cell<Option<&'static str>>,
    /// The cache's result.
    cache: Cell<Option<&'static str>>,
    /// The standing of its key under the route's rate limit.
    standing: RefCell<Option<Standing>>,
    /// The result for its `Idempotency-Key`.
    idempotency: Cell<Option<&'static str>>,
    /// What the guarantee of its route said of the stored response.
    consistency: Cell<Option<&'static str>>,
    ended_by: Cell<&'static str>,
    /// Its session, on a route with a guarantee.
    session: OnceCell<Box<Session>>,
    /// Only for the access log and for observers.
    details: Option<Box<Details>>,
}

struct Details {
    uri: Uri,
    version: Version,
    host: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    client_address: Cell<Option<IpAddr>>,
    request_id: RefCell<Option<HeaderValue>>,
    node: RefCell<Option<(Arc<str>, Arc<str>)>>,
    key: Cell<Option<u64>>,
}

impl Exchange {
    pub(crate) fn begin(
        recorder: &Rc<RequestRecorder>,
        downstream: &Rc<Downstream>,
        head: &request::Parts,
    ) -> Rc<Exchange> {
        recorder.metrics.requests_in_flight.inc();
        let details = recorder.wants_details().then(|| {
            Box::new(Details {
                uri: head.uri.clone(),
                version: head.version,
                host: head.headers.get(HOST).cloned(),
                user_agent: head.headers.get(USER_AGENT).cloned(),
                client_address: Cell::new(None),
                request_id: RefCell::default(),
                node: RefCell::default(),
                key: Cell::new(None),
            })
        });
        Rc::new(Exchange {
            recorder: Rc::clone(recorder),
            downstream: Rc::clone(downstream),
            started: poll_time(),
            method: head.method.clone(),
            route: RefCell::default(),
            status: Cell::new(0),
            request_bytes: Cell::new(0),
            response_bytes: Cell::new(0),
            body_fault: Cell::new(None),
            is_too_slow: Cell::new(false),
            body: RefCell::default(),
            connect_time: Cell::new(None),
            first_byte_time: Cell::new(None),
            attempts: Cell::new(0),
            error: Cell::new(None),
            cache: Cell::new(None),
            standing: RefCell::default(),
            idempotency: Cell::new(None),
            consistency: Cell::new(None),
            ended_by: Cell::new("client"),
            session: OnceCell::new(),
            details,
        })
    }

    pub(crate) fn matched(&self, route: &Arc<RouteLabel>) {
        *self.route.borrow_mut() = Some(Arc::clone(route));
    }

    pub(crate) fn answered(&self, status: StatusCode) {
        self.status.set(status.as_u16());
    }

    /// The proxy's own answer, by its problem's name.
    pub(crate) fn refused(&self, problem: &'static str) {
        self.error.set(Some(problem));
    }

    /// Notes the cache's result for the log.
    pub(crate) fn cached(&self, result: &'static str) {
        self.cache.set(Some(result));
    }

    /// Begins its session, on a route with a guarantee.
    pub(super) fn begin_session(&self, session: Session) {
        let _ = self.session.set(Box::new(session));
    }

    pub(super) fn session(&self) -> Option<&Session> {
        self.session.get().map(|session| &**session)
    }

    /// Returns its requester, on a route with a guarantee.
    pub(super) fn requester(&self) -> Option<&Rc<Requester>> {
        self.session().map(Session::requester)
    }

    /// Notes the result for its `Idempotency-Key`, for the log.
    pub(crate) fn keyed(&self, result: &'static str) {
        self.idempotency.set(Some(result));
    }

    /// Notes what the guarantee of its route said of the stored response, for the log.
    pub(super) fn checked(&self, result: &'static str) {
        self.consistency.set(Some(result));
    }

    /// Counts it against the rate limit of its route. The problem is the reply to one request too many.
    pub(super) fn count(&self, uncounted: Uncounted) -> Result<(), Problem> {
        let (standing, verdict) = uncounted.count();
        *self.standing.borrow_mut() = Some(standing);
        verdict
    }

    /// Adds the `RateLimit` fields, where the request was counted.
    pub(super) fn add_rate_limit(&self, fields: &mut HeaderMap) {
        if let Some(standing) = &*self.standing.borrow() {
            standing.add_to(fields);
        }
    }

    /// Applies the `response_headers` of its route.
    pub(super) fn apply_response_fields(&self, fields: &mut HeaderMap) {
        if let Some(route) = &*self.route.borrow() {
            route.response_fields.apply(fields);
        }
    }

    /// Returns the connection that it came on.
    pub(super) fn downstream(&self) -> &Downstream {
        &self.downstream
    }

    /// Notes whether a piece of the response is with the connection now, or still has to come from the node.
    pub(crate) fn offer(&self, is_offered: bool) {
        self.downstream.offer(is_offered);
    }

    /// Returns whether the request came on a stream of HTTP/2.
    pub(super) fn is_on_stream(&self) -> bool {
        self.downstream.stream.is_some()
    }

    /// Returns whether the request is a HEAD, whose response has no body.
    pub(super) fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    /// Waits until the client's connection has room for more of a node's answer.
    pub(super) fn poll_room(&self, cx: &std::task::Context<'_>) -> Poll<()> {
        self.downstream.poll_room(cx)
    }

    /// Notes that these bytes of the response were handed to the client's connection.
    pub(super) fn gave(&self, bytes: u64) {
        self.downstream.gave(bytes);
    }

    /// Returns whether the response has begun.
    pub(super) fn has_answer(&self) -> bool {
        self.status.get() > 0
    }

    /// Notes that the request's body did not arrive completely.
    pub(super) fn body_failed(&self, fault: BodyFault) {
        self.body_fault.set(Some(fault));
        if fault == BodyFault::Stalled {
            self.recorder.aborted(Abort::Body);
        }
    }

    /// Notes that the response's body is dropped: nothing else will be written for it. The request's body ends with it,
    /// as bytes of the client after the response must not be read as the rest of the body.
    pub(crate) fn left(&self) {
        self.end_body();
        self.downstream.http1.phase.set(Phase::Ending);
    }

    /// The request has a body.
    pub(super) fn take_body(&self, body: ClientBody) {
        *self.body.borrow_mut() = Some(body);
    }

    /// Notes that no step reads the request's body any more. On a stream that has no response yet, its rest waits for
    /// that: a stream whose body is dropped is reset together with its response.
    pub(super) fn release_body(&self) {
        if self.downstream.stream.is_some() && !self.has_answer() {
            self.downstream.awaits_body.set(None);
        } else {
            self.end_body();
        }
    }

    /// Drops the request's body, even while a step reads it. The rest of an incomplete body of a stream is read for a
    /// while; over HTTP/1, hyper reads what has arrived, or closes the connection after the response.
    fn end_body(&self) {
        if let Some(body) = self.body.take() {
            self.downstream.awaits_body.set(None);
            self.downstream.http1.drains_body.set(!body.is_end_stream());
            if self.downstream.stream.is_some() && self.has_answer() && !body.is_end_stream() {
                tokio::task::spawn_local(discard(body, Rc::clone(&self.downstream)));
            }
            self.downstream.wake_body();
        }
    }

    /// Notes that the client was slower than the least rate while other readers waited for it.
    pub(super) fn too_slow(&self) {
        self.is_too_slow.set(true);
        self.recorder.aborted(Abort::Write);
    }

    /// Notes that the response ends before it is complete.
    pub(super) fn broke_off(&self) {
        let is_the_clients = self.body_fault.get().is_some() || self.is_too_slow.get();
        self.ended(if is_the_clients { "client" } else { "upstream" });
    }

    pub(crate) fn ended(&self, by: &'static str) {
        self.ended_by.set(by);
    }

    /// Notes the client's address, and the request's id among the fields that its node gets.
    pub(crate) fn identified(&self, client: IpAddr, fields: &HeaderMap) {
        if let Some(details) = &self.details {
            details.client_address.set(Some(client));
            *details.request_id.borrow_mut() = fields.get(&X_REQUEST_ID).cloned();
        }
    }

    pub(crate) fn sent_to(&self, pool: &Arc<str>, node: &Arc<str>) {
        if let Some(details) = &self.details {
            *details.node.borrow_mut() = Some((Arc::clone(pool), Arc::clone(node)));
        }
    }

    /// Notes the place of its hash key on the ring.
    pub(super) fn hashed(&self, key: u64) {
        if let Some(details) = &self.details {
            details.key.set(Some(key));
        }
    }

    /// Hands the finished request to the access log and to observers.
    fn record(&self, details: &Details, status: u16, route: Option<&RouteLabel>, duration: Duration) {
        let node = details.node.borrow();
        let request_id = details.request_id.borrow();
        let connection = &self.downstream.connection;
        let entry = Entry {
            listener: &connection.listener,
            client: details.client_address.get().unwrap_or_else(|| connection.peer.ip().to_canonical()),
            method: self.method.as_str(),
            host: text_of(&details.host).or_else(|| details.uri.host()).unwrap_or_default(),
            uri: details.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str),
            protocol: match details.version {
                Version::HTTP_10 => "HTTP/1.0",
                Version::HTTP_2 => "HTTP/2.0",
                _ => "HTTP/1.1",
            },
            status,
            request_bytes: self.request_bytes.get(),
            response_bytes: self.response_bytes.get(),
            duration: duration.as_secs_f64(),
            connect: self.connect_time.get().map(|time| time.as_secs_f64()),
            first_byte: self.first_byte_time.get().map(|time| time.as_secs_f64()),
            route: route.map_or("none", |route| &*route.name),
            pool: node.as_ref().map(|(pool, _)| &**pool),
            node: node.as_ref().map(|(_, node)| &**node),
            attempts: self.attempts.get(),
            request_id: request_id.as_ref().map(Text::of),
            user_agent: details.user_agent.as_ref().map(Text::of),
            error: self.error.get(),
            cache: self.cache.get(),
            idempotency: self.idempotency.get(),
            consistency: self.consistency.get(),
            ended_by: self.ended_by.get(),
            key: details.key.get(),
        };
        self.recorder.record(&entry, route.is_none_or(|route| route.is_logged));
    }
}

/// Returns a field's value, where it is text.
fn text_of(value: &Option<HeaderValue>) -> Option<&str> {
    value.as_ref().and_then(|value| value.to_str().ok())
}

/// Reads the rest of a stream's body after the response, up to a bound: after a reset at the same time as the response,
/// some clients lose it (curl 7.88, for example). Then the stream is reset without an error (RFC 9113 8.1).
async fn discard(mut body: ClientBody, downstream: Rc<Downstream>) {
    let until = tokio::time::Instant::now() + DISCARD_FOR;
    let mut left = DISCARD_BYTES;
    while left > 0 {
        let Ok(Some(Ok(frame))) = tokio::time::timeout_at(until, body.frame()).await else { break };
        let length = frame.data_ref().map_or(0, bytes::Bytes::len);
        downstream.took(length);
        left = left.saturating_sub(length);
    }
}

impl TunnelRecord for Exchange {
    fn request_bytes(&self) -> &Cell<u64> {
        &self.request_bytes
    }

    fn response_bytes(&self) -> &Cell<u64> {
        &self.response_bytes
    }

    fn ended(&self, by: &'static str) {
        self.ended_by.set(by);
    }
}

impl ClientPart for Exchange {
    fn has_failed(&self) -> bool {
        self.body_fault.get().is_some()
    }

    fn is_awaited(&self) -> bool {
        self.downstream.awaits_body.get().is_some()
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.end_body();
        let duration = new_poll_time().saturating_duration_since(self.started);
        // As nginx has it: the client left before it had an answer.
        let status = match self.status.get() {
            0 => 499,
            status => status,
        };
        let route = self.route.borrow();
        let recorder = &self.recorder;
        match &*route {
            Some(route) => {
                recorder.count(route.serial, &route.name, method_label(&self.method), status);
                route.duration.observe(duration.as_secs_f64());
            }
            None => {
                recorder.count(NO_ROUTE, "none", method_label(&self.method), status);
                recorder.metrics.request_duration.with_label_values(&["none"]).observe(duration.as_secs_f64());
            }
        }
        recorder.metrics.requests_in_flight.dec();
        if self.request_bytes.get() > 0 {
            recorder.metrics.request_bytes.inc_by(self.request_bytes.get());
        }
        recorder.metrics.response_bytes.inc_by(self.response_bytes.get());
        if let Some(details) = &self.details {
            self.record(details, status, route.as_deref(), duration);
        }
    }
}
