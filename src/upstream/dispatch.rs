//! A request to the nodes of a pool, with or without a client behind it: the first node that its key finds, and the
//! next ones where that is allowed, until one responds.
//!
//! A request without a client takes four steps:
//!
//! ```text
//! let wanted = Wanted { hash: pool.ring.hash_key(key), pinned: None, may_leave: true };
//! let mut request = Request::new(Outgoing::from(BufferedBody::new(bytes, None)));   // or Outgoing::Empty
//! (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (method, path, fields);
//! let deadlines = Deadlines::from_now(&pool);                                       // `until` may be shortened
//! let mut dispatch = Dispatch::new(pool, wanted, request, deadlines, RetrySafety::ByMethod);
//! let response = dispatch.fetch(&worker.connections, &NoClient).await?;
//! ```
//!
//! The request's target is in origin form, and its fields name the `Host`; the length of a body is added. The error
//! tells its status and problem type (`problem`); after one, `dispatch.reach` tells whether a request of
//! [`RetrySafety::AtMostOnce`] may have run. Where a client waits, an [`Observer`] of its own stands for it.
//!
//! A request is sent again in these cases, each within the pool's `attempts` and budget: no byte of it was sent; a node
//! has declared that it did not begin with it; it may run twice and has met a stale connection; and, where the pool's
//! `retries` say so, it may run twice and is all still here. A request that must run at most once is sent again only
//! where it has not run for sure.

use super::attempt::{Attempt, AttemptResult, Reach};
use super::connections::NodeConnections;
use super::deadlines::Deadlines;
use super::node::InFlight;
use super::node_response::NodeResponse;
use super::observer::Observer;
use super::pick::PickError;
use super::pool::{Picked, Pool, Tried};
use super::replay_body::ReplayBody;
use super::retry::{RetrySafety, Setback};
use super::{AnswerBody, NodePreference, Outgoing, UpstreamError};
use crate::clock::steady_millis;
use crate::config::Protocol;
use crate::http::budget::Budget;
use crate::http::problem::{Problem, ProblemKind};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

/// A request on its way to the nodes of a pool.
pub(crate) struct Dispatch {
    pub(crate) pool: Arc<Pool>,
    pub(crate) wanted: NodePreference,
    /// Here until it is sent.
    pub(crate) request: Option<Request<Outgoing>>,
    pub(crate) deadlines: Deadlines,
    pub(crate) retries: RetrySafety,
    /// The part of the request that was sent, of one that must run at most once.
    pub(crate) reach: Reach,
}

/// Why a request has got no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DispatchError {
    #[error("no node of the pool takes requests")]
    NoNode,
    #[error("every node of the pool has as many requests as it may have")]
    QueueFull,
    #[error("the node that holds this session is down")]
    SessionNodeDown,
    /// The last attempt has failed.
    #[error("{0}")]
    Failed(UpstreamError),
}

/// The attempts that were made for a request.
#[derive(Clone, Copy)]
struct SoFar<'a> {
    tried: &'a Tried,
    made: u32,
    in_panic: bool,
}

/// A copy of a request as it was before it was sent, for the next node.
struct Spare {
    method: Method,
    uri: Uri,
    fields: HeaderMap,
    body: Option<ReplayBody>,
}

impl DispatchError {
    /// Returns the problem document for the client.
    pub(crate) fn problem(self) -> Problem {
        let unavailable = |kind| Problem::new(kind, self.to_string()).retry_after(1);
        match self {
            DispatchError::NoNode => unavailable(ProblemKind::NoHealthyNode),
            DispatchError::QueueFull => unavailable(ProblemKind::ConnectionLimitReached),
            DispatchError::SessionNodeDown => unavailable(ProblemKind::SessionNodeDown),
            DispatchError::Failed(failure) => {
                let kind = match failure {
                    UpstreamError::ClaimLapsed => ProblemKind::StoreUnavailable,
                    UpstreamError::ConnectTimeout | UpstreamError::Timeout => ProblemKind::UpstreamTimeout,
                    _ => ProblemKind::UpstreamFailed,
                };
                Problem::new(kind, failure.to_string()).with_token(failure.proxy_status())
            }
        }
    }
}

impl Spare {
    fn is_whole(&self) -> bool {
        self.body.as_ref().is_none_or(ReplayBody::is_whole)
    }

    fn request(&self) -> Request<Outgoing> {
        let mut request = Request::new(self.body.as_ref().map_or(Outgoing::Empty, ReplayBody::outgoing));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.fields.clone();
        request
    }
}

impl Dispatch {
    pub(crate) fn new(
        pool: Arc<Pool>,
        wanted: NodePreference,
        request: Request<Outgoing>,
        deadlines: Deadlines,
        retries: RetrySafety,
    ) -> Dispatch {
        Dispatch { pool, wanted, request: Some(request), deadlines, retries, reach: Reach::default() }
    }

    /// Sends the request. Returns the response, whose body comes over the node's connection. A node that switches
    /// protocols has failed.
    pub(crate) async fn fetch(
        &mut self,
        connections: &NodeConnections,
        observer: &impl Observer,
    ) -> Result<Response<AnswerBody>, DispatchError> {
        let response = self.send(connections, observer).await?;
        self.open(response, connections, observer).map_err(DispatchError::Failed)
    }

    /// Returns a node's response without the parts that concern its connection, and with the body that drives it.
    pub(crate) fn open(
        &self,
        response: NodeResponse,
        connections: &NodeConnections,
        observer: &impl Observer,
    ) -> Result<Response<AnswerBody>, UpstreamError> {
        response.open(&self.pool, self.deadlines.until, connections, observer)
    }

    /// Sends the request to the key's nodes in turn. Returns the last response.
    pub(crate) async fn send<O: Observer>(
        &mut self,
        connections: &NodeConnections,
        observer: &O,
    ) -> Result<NodeResponse, DispatchError> {
        let pool = Arc::clone(&self.pool);
        let mut tried = Tried::new();
        let mut started = self.deadlines.started;
        let mut picked = match self.pick_first() {
            Ok(picked) => picked,
            Err(error) => {
                let picked = Box::pin(self.wait_for_room(error)).await?;
                started = Instant::now();
                picked
            }
        };
        pool.group.budget.deposit(pool.retries.budget);
        let spare = self.spare(&connections.budget);
        let mut made = 0;
        // A kept connection was stale: the next attempt uses a new one.
        let mut wants_new = false;
        // The node of a strict session could not be reached.
        let mut has_lost_pinned = false;
        loop {
            let node = &pool.nodes[picked.node];
            if !tried.contains(&picked.node) {
                tried.push(picked.node);
            }
            made += 1;
            observer.sent_to(&pool.name, &node.id, made);
            let (retries, deadlines) = (self.retries, self.deadlines);
            let attempt = Attempt { connections, pool: &pool, node, observer, retries, deadlines, started, wants_new };
            let (request, reach) = (&mut self.request, &mut self.reach);
            let attempted = match pool.protocol {
                Protocol::Http1 => attempt.http1(request, reach).await,
                Protocol::Http2 => Box::pin(attempt.http2(request, reach)).await,
            };
            let mut in_flight = picked.in_flight;
            let (result, setback) = match attempted {
                AttemptResult::Response(head, carrier) => {
                    in_flight.set_outcome("answer");
                    judge(head.status(), &mut in_flight);
                    observer.responded(carrier.last_activity().saturating_duration_since(started));
                    let setback = Setback::Status(head.status());
                    let node = picked.node;
                    let response = NodeResponse { head, carrier, in_flight, started, node, has_lost_pinned };
                    (Ok(response), Some(setback))
                }
                AttemptResult::Failed { failure, setback, is_the_nodes } => {
                    attempt.note_failure(failure);
                    if is_the_nodes {
                        in_flight.failed();
                    }
                    (Err(failure), setback)
                }
            };
            has_lost_pinned |= setback == Some(Setback::NotSent) && self.wanted.pinned == Some(picked.node);
            wants_new = setback == Some(Setback::StaleConnection);
            let so_far = SoFar { tried: &tried, made, in_panic: picked.in_panic };
            let next = setback.and_then(|setback| self.next(setback, so_far, spare.as_ref()));
            match (next, result) {
                (Some(next), result) => {
                    let is_gateway = |status| matches!(status, StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT);
                    self.reach.unanswered |= matches!(setback, Some(Setback::Status(status)) if is_gateway(status));
                    count_retry(&pool, setback, &result);
                    // Closes its connection, and returns its permit.
                    drop(result);
                    (picked, started) = (next, Instant::now());
                }
                (None, Ok(response)) => return Ok(response),
                (None, Err(_)) if setback == Some(Setback::NotSent) && self.is_bound() => {
                    return Err(DispatchError::SessionNodeDown);
                }
                (None, Err(failure)) => return Err(DispatchError::Failed(failure)),
            }
        }
    }

    /// Returns the node for the first attempt, unless requests wait for room: those come first.
    fn pick_first(&self) -> Result<Picked, PickError> {
        match self.pool.group.queue.waiting() {
            0 => self.pool.pick(&self.wanted, &[], self.deadlines.started),
            _ => Err(PickError::Full),
        }
    }

    /// Returns the node for another attempt, if there may be one; the request is here again then.
    fn next(&mut self, setback: Setback, so_far: SoFar<'_>, spare: Option<&Spare>) -> Option<Picked> {
        let pool = &self.pool;
        let spare = spare.filter(|spare| spare.is_whole());
        let is_here = self.request.is_some() || spare.is_some();
        let method = self.request.as_ref().map(Request::method).or(spare.map(|spare| &spare.method));
        let may_run_twice = method.is_some_and(|method| self.retries.may_run_twice(method));
        if !is_here || !pool.retries.cover(setback, may_run_twice) {
            return None;
        }
        let now = Instant::now();
        // In panic all nodes are tried, as far as the budget reaches.
        let is_within = so_far.made <= pool.retries.attempts;
        if self.deadlines.until.is_some_and(|until| now >= until)
            || !(is_within || so_far.in_panic || pool.is_panic(steady_millis(now)))
        {
            return None;
        }
        let next = match pool.pick(&self.wanted, so_far.tried, now) {
            Err(_) if setback.leaves_the_node() && is_within => pool.pick(&self.wanted, &[], now).ok()?,
            picked => picked.ok()?,
        };
        if !pool.group.budget.withdraw(steady_millis(now)) {
            pool.group.retries_denied.inc();
            return None;
        }
        if let (None, Some(spare)) = (&self.request, spare) {
            self.request = Some(spare.request());
        }
        Some(next)
    }

    /// Returns a copy of a request that may be sent more than once. A request without a body is returned by
    /// [`SendResult`](super::link::SendResult) itself after a stale connection or an unprocessed stream.
    fn spare(&mut self, budget: &Arc<Budget>) -> Option<Spare> {
        let (pool, retries) = (&self.pool, self.retries);
        let reaches_further = pool.retries.reach_beyond_sending() && pool.nodes.len() > 1;
        let is_http2 = pool.protocol == Protocol::Http2;
        let request = self.request.as_mut().filter(|request| {
            let has_body = !matches!(request.body(), Outgoing::Empty);
            let may_run_twice = retries.may_run_twice(request.method());
            pool.retries.attempts > 0 && ((may_run_twice && (has_body || reaches_further)) || (has_body && is_http2))
        })?;
        let body = match std::mem::replace(request.body_mut(), Outgoing::Empty) {
            Outgoing::Empty => None,
            Outgoing::Stream(body) => match ReplayBody::new(body, pool.retries.max_body, budget.nothing()) {
                Ok(kept) => {
                    *request.body_mut() = kept.outgoing();
                    Some(kept)
                }
                Err(body) => {
                    *request.body_mut() = body;
                    return None;
                }
            },
        };
        Some(Spare {
            method: request.method().clone(),
            uri: request.uri().clone(),
            fields: request.headers().clone(),
            body,
        })
    }

    /// Waits until a node has room, where all that could take the request have as many as they may.
    async fn wait_for_room(&self, error: PickError) -> Result<Picked, DispatchError> {
        if error == PickError::Unavailable {
            return Err(self.unavailable());
        }
        let (pool, wanted) = (&self.pool, &self.wanted);
        let limits = &pool.connections;
        let queue = match wanted.pinned {
            Some(node) if self.is_bound() => &pool.nodes[node].runtime.queue,
            _ => &pool.group.queue,
        };
        let mut others_wait = queue.waiting() > 0;
        let waiting = queue.join(limits.max_queued).ok_or(DispatchError::QueueFull)?;
        let deadline = Instant::now() + limits.queue_timeout;
        let deadline = self.deadlines.until.map_or(deadline, |until| until.min(deadline));
        let picked = loop {
            let mut room = pin!(waiting.room());
            // From here on every notification reaches this request.
            room.as_mut().enable();
            if !std::mem::take(&mut others_wait) {
                match pool.pick(wanted, &[], Instant::now()) {
                    Ok(picked) => break Ok(picked),
                    Err(PickError::Unavailable) => break Err(self.unavailable()),
                    Err(PickError::Full) => {}
                }
            }
            if tokio::time::timeout_at(deadline.into(), room).await.is_err() {
                break Err(DispatchError::QueueFull);
            }
        };
        if picked.is_err() && self.is_bound() {
            // The notification that was taken here may be of use to a request there.
            pool.group.queue.wake_one();
        }
        picked
    }

    /// Returns whether the request may only go to the node of its session.
    fn is_bound(&self) -> bool {
        self.wanted.pinned.is_some() && !self.wanted.may_leave
    }

    /// Returns the error where no node takes the request.
    fn unavailable(&self) -> DispatchError {
        if self.is_bound() { DispatchError::SessionNodeDown } else { DispatchError::NoNode }
    }
}

/// Counts a retry by its reason.
fn count_retry(pool: &Pool, setback: Option<Setback>, result: &Result<NodeResponse, UpstreamError>) {
    match (setback.and_then(Setback::reason), result) {
        (Some(reason), _) => pool.group.retried(reason),
        (None, Ok(response)) => pool.group.retried(response.head.status().as_str()),
        (None, Err(failure)) => pool.group.retried(failure.label()),
    }
}

/// Counts the status for a node: 502, 503 and 504 count against it, 500 never.
fn judge(status: StatusCode, in_flight: &mut InFlight) {
    if status.is_server_error() {
        in_flight.node().count_server_error();
    }
    match status {
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => in_flight.failed(),
        _ => in_flight.answered(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::http::buffered_body::BufferedBody;
    use crate::telemetry::metrics::Metrics;
    use crate::upstream::{NoClient, Registry};
    use http::HeaderValue;
    use http::header::HOST;
    use http_body_util::BodyExt as _;
    use std::path::Path;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    fn pool(addresses: &[String]) -> Arc<Pool> {
        let nodes: Vec<_> = addresses
            .iter()
            .enumerate()
            .map(|(n, address)| format!("{{ id: n{n}, address: \"{address}\" }}"))
            .collect();
        let text = format!(
            "listeners: [{{ name: l, address: 127.0.0.1:1 }}]\npools: {{ p: {{ nodes: [{}] }} }}\nroutes: []",
            nodes.join(", ")
        );
        let (config, _) = Config::parse(Path::new("t.yaml"), &text, &|_| None).unwrap();
        let registry = Registry::new(Arc::new(Metrics::new()), crate::control::Events::new());
        let settings = config.settings.pools.get("p").unwrap();
        let pool = Arc::new(Pool::build("p", settings, &[], (&registry, &config.secrets), None).unwrap());
        registry.adopt(&[Arc::clone(&pool)]);
        pool
    }

    fn post(pool: &Arc<Pool>, pinned: usize, retries: RetrySafety) -> Dispatch {
        let mut request = Request::new(Outgoing::from(BufferedBody::new("body".into(), None)));
        (*request.method_mut(), *request.uri_mut()) = (Method::POST, Uri::from_static("/path"));
        request.headers_mut().insert(HOST, HeaderValue::from_static("orders.example"));
        let wanted = NodePreference { hash: 0, pinned: Some(pinned), may_leave: true };
        Dispatch::new(Arc::clone(pool), wanted, request, Deadlines::from_now(pool), retries)
    }

    /// A node that reads one request with the body `body`, and then sends these bytes. Returns the request, and the
    /// connection.
    async fn node(listener: TcpListener, response: &'static str) -> (String, TcpStream) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\nbody") {
            assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0);
        }
        stream.write_all(response.as_bytes()).await.unwrap();
        (String::from_utf8(read).unwrap(), stream)
    }

    async fn unused_address() -> String {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string()
    }

    #[tokio::test]
    async fn a_request_without_a_client_passes_a_dead_node_over() {
        let (listener, dead) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), unused_address().await);
        let address = listener.local_addr().unwrap().to_string();
        let pool = pool(&[dead, address]);
        let connections = NodeConnections::new(Budget::new(1 << 20));
        let mut dispatch = post(&pool, 0, RetrySafety::AtMostOnce);
        let (response, (read, _stream)) = tokio::join!(
            dispatch.fetch(&connections, &NoClient),
            node(listener, "HTTP/1.1 201 Created\r\ncontent-length: 4\r\nkeep-alive: timeout=1\r\n\r\ndone")
        );
        let response = response.unwrap();
        assert_eq!((response.status(), response.headers().contains_key("keep-alive")), (StatusCode::CREATED, false));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "done");
        assert_eq!(read, "POST /path HTTP/1.1\r\nhost: orders.example\r\ncontent-length: 4\r\n\r\nbody");
        assert_eq!(dispatch.reach, Reach { sent: true, whole: true, unanswered: false });
        assert_eq!(pool.nodes[1].runtime.idle(), 1, "its connection is kept");
    }

    #[tokio::test]
    async fn a_request_that_may_have_run_says_so() {
        let (listener, dead) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), unused_address().await);
        let pool = pool(&[listener.local_addr().unwrap().to_string(), dead]);
        let connections = NodeConnections::new(Budget::new(1 << 20));
        let mut dispatch = post(&pool, 0, RetrySafety::AtMostOnce);
        let closing = async { drop(node(listener, "").await) };
        let (response, ()) = tokio::join!(dispatch.fetch(&connections, &NoClient), closing);
        assert_eq!(response.err(), Some(DispatchError::Failed(UpstreamError::Terminated)));
        assert_eq!(dispatch.reach, Reach { sent: true, whole: true, unanswered: true });
        let mut dispatch = post(&pool, 1, RetrySafety::AtMostOnce);
        dispatch.wanted.may_leave = false;
        let error = dispatch.fetch(&connections, &NoClient).await.err().unwrap();
        assert_eq!((error, dispatch.reach), (DispatchError::SessionNodeDown, Reach::default()));
        assert_eq!(error.problem().name(), "session-node-down");
    }
}
