//! The step that sends a request to the nodes for a client: it makes a dispatch of the request, and a reply of the
//! response.

use super::body::Gate;
use super::client_body::BodyFault;
use super::downstream::Tunnel;
use super::exchange::Exchange;
use super::marked::send_marked;
use super::plan::{Choice, CookieRule};
use super::problems::body_problem;
use super::rate_limit::Uncounted;
use super::request_buffer;
use super::respond::Reply;
use super::response_body::ResponseBody;
use super::snapshot::Route;
use super::strong::MarkOrder;
use super::worker_context::WorkerContext;
use crate::cache::CacheStatus;
use crate::clock::{self, BootTime, steady_millis};
use crate::http::fields;
use crate::http::problem::Problem;
use crate::upstream::{
    AnswerBody, ClientPart, Deadlines, Dispatch, DispatchError, Interim, Node, NodeResponse, Observer, Outgoing, Pool,
    RetrySafety, UpstreamError,
};
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Response, StatusCode};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A client's request on its way to the nodes of its pool.
pub(super) struct UpstreamRequest {
    pub(super) context: UpstreamContext,
    pub(super) dispatch: Dispatch,
    pub(super) may_switch: bool,
    /// A body up to this length is buffered before a node gets the request.
    pub(super) request_buffer: u64,
    /// Where it is still to be counted against the route's rate limit.
    pub(super) uncounted: Option<Uncounted>,
    /// The mark that it needs, where it may change what a strong route caches.
    pub(super) mark: Option<Rc<MarkOrder>>,
    /// The entry in `Cache-Status`, where the route has a cache.
    pub(super) cache_status: Option<CacheStatus>,
}

/// The client's side of its requests to nodes: it outlives the single dispatch, for the cache may need several.
#[derive(Clone)]
pub(super) struct UpstreamContext {
    pub(super) worker: Rc<WorkerContext>,
    pub(super) observer: ExchangeObserver,
    pub(super) route: Arc<Route>,
    pub(super) choice: Choice,
    /// The most bytes of the request's body.
    pub(super) body_limit: u64,
}

/// Tells the exchange of a request's progress at the nodes.
#[derive(Clone)]
pub(super) struct ExchangeObserver {
    pub(super) exchange: Rc<Exchange>,
    /// Delays the request's body until a node wants it.
    pub(super) gate: Option<Rc<Gate>>,
    /// The client takes interim responses.
    pub(super) wants_interim: bool,
    /// The client takes trailers.
    pub(super) takes_trailers: bool,
}

/// An affinity cookie, beside a response that may be shared.
#[derive(Clone)]
pub(super) struct NewCookie(pub(super) HeaderValue);

impl UpstreamRequest {
    /// Returns the reply from the nodes' response or failure.
    pub(super) async fn forward(mut self: Box<Self>) -> Reply {
        let reply = match self.send().await {
            Ok(response) if response.head.status() == StatusCode::SWITCHING_PROTOCOLS => self.switch(response),
            Ok(response) => self.context.open(&self.dispatch, response).map(|response| self.context.reply(response)),
            Err(problem) => Err(problem),
        };
        let reply = reply.unwrap_or_else(|problem| Reply::problem(&problem, self.exchange()));
        reply.with_cache_status(self.cache_status)
    }

    /// Sends the request to the nodes. Returns the response without its hop-by-hop parts.
    pub(super) async fn fetch(&mut self) -> Result<Response<AnswerBody>, Problem> {
        let response = self.send().await?;
        self.context.open(&self.dispatch, response)
    }

    async fn send(&mut self) -> Result<NodeResponse, Problem> {
        self.count()?;
        if self.wait_for_small_body().await? {
            self.dispatch.deadlines.started = Instant::now();
        }
        match self.mark.take() {
            None => self.context.send(&mut self.dispatch).await,
            Some(order) => {
                let (context, dispatch) = (&self.context, &mut self.dispatch);
                let client = context.worker.quorum(order.rules());
                Box::pin(send_marked(&client, dispatch, &order, async |dispatch| context.send(dispatch).await)).await
            }
        }
    }

    /// Counts it against the route's rate limit, where that is still to be done.
    pub(super) fn count(&mut self) -> Result<(), Problem> {
        self.uncounted.take().map_or(Ok(()), |uncounted| self.context.observer.exchange.count(uncounted))
    }

    /// Makes the request run at most once, with a total time that begins now: the time in which its client sent it does
    /// not count. With a claim, nothing of it is sent from `send_by` on.
    pub(super) fn run_at_most_once(&mut self, send_by: Option<BootTime>) {
        self.dispatch.deadlines = Deadlines { send_by, ..Deadlines::from_now(&self.dispatch.pool) };
        self.dispatch.retries = RetrySafety::AtMostOnce;
    }

    pub(super) fn exchange(&self) -> &Rc<Exchange> {
        &self.context.observer.exchange
    }

    /// Buffers the body where it is small. Returns whether there was one.
    async fn wait_for_small_body(&mut self) -> Result<bool, Problem> {
        let (limit, until) = (self.request_buffer, self.dispatch.deadlines.until);
        let request = self.dispatch.request.as_mut();
        let Some(request) = request.filter(|request| request_buffer::is_small(request.body(), limit)) else {
            return Ok(false);
        };
        let budget = &self.context.worker.budget;
        // With `Expect` the node asks for the body. With half of the budget spent all bodies stream, so that slow
        // clients do not take the rest.
        if self.context.observer.gate.is_some() || budget.is_half_held() {
            return Ok(false);
        }
        let body = std::mem::replace(request.body_mut(), Outgoing::Empty);
        let waiting = Box::pin(request_buffer::wait_for(body, budget.nothing()));
        let awaited = match until {
            Some(until) => tokio::time::timeout_at(until.into(), waiting).await,
            None => Ok(waiting.await),
        };
        match awaited {
            Ok(Ok(body)) => *request.body_mut() = body,
            Ok(Err(_)) => return Err(self.context.failed(UpstreamError::RequestBody)),
            Err(_) => {
                self.exchange().body_failed(BodyFault::Stalled);
                return Err(self.context.failed(UpstreamError::RequestBody));
            }
        }
        Ok(true)
    }

    /// Makes the connection a tunnel, once the client has received the 101.
    fn switch(&self, mut response: NodeResponse) -> Result<Reply, Problem> {
        let failed = |failure| self.context.failed(failure);
        // A node that switches before it has the request cannot have understood it (RFC 9110 7.8).
        let may_switch =
            self.may_switch && self.exchange().body.borrow().as_ref().is_none_or(http_body::Body::is_end_stream);
        let cookie = self.context.cookie(&self.dispatch.pool, &response);
        let protocol = fields::strip_response(response.head.headers_mut()).upgrade.filter(|_| may_switch);
        let protocol = protocol.ok_or_else(|| failed(UpstreamError::Malformed))?;
        let (mut head, node, in_flight) = response.into_switched().map_err(failed)?;
        let timeouts = &self.dispatch.pool.timeouts;
        let (idle, half_closed_idle) = (timeouts.tunnel, timeouts.idle);
        let record = Rc::<Exchange>::clone(self.exchange());
        if !self.exchange().downstream().switch_to(Tunnel { node, in_flight, record, idle, half_closed_idle }) {
            return Err(failed(UpstreamError::Malformed));
        }
        head.headers_mut().insert(UPGRADE, protocol);
        head.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        let response = head.map(|()| ResponseBody::empty(self.exchange()));
        Ok(Reply::new(response).with_cookie(cookie))
    }
}

impl UpstreamContext {
    /// Returns the deadlines of the client's request.
    pub(super) fn deadlines(&self, pool: &Pool) -> Deadlines {
        Deadlines::from(self.observer.exchange.started, pool)
    }

    /// Sends a dispatch to the nodes. Returns the response without its hop-by-hop parts.
    pub(super) async fn fetch(&self, mut dispatch: Dispatch) -> Result<Response<AnswerBody>, Problem> {
        let response = self.send(&mut dispatch).await?;
        self.open(&dispatch, response)
    }

    async fn send(&self, dispatch: &mut Dispatch) -> Result<NodeResponse, Problem> {
        dispatch.send(&self.worker.connections, &self.observer).await.map_err(|error| match error {
            DispatchError::Failed(failure) => self.failed(failure),
            error => error.problem(),
        })
    }

    /// Returns a node's response with its body, and its affinity cookie beside it as [`NewCookie`].
    fn open(&self, dispatch: &Dispatch, response: NodeResponse) -> Result<Response<AnswerBody>, Problem> {
        let cookie = self.cookie(&dispatch.pool, &response);
        let opened = dispatch.open(response, &self.worker.connections, &self.observer);
        let mut response = opened.map_err(|failure| self.failed(failure))?;
        if let Some(cookie) = cookie {
            response.extensions_mut().insert(NewCookie(cookie));
        }
        Ok(response)
    }

    /// Returns the reply that a node's response makes for this request's client.
    pub(super) fn reply(&self, response: Response<AnswerBody>) -> Reply {
        let (mut head, body) = response.into_parts();
        if let Some(requester) = self.observer.exchange.requester() {
            requester.passes_on(head.status);
        }
        let cookie = head.extensions.remove().map(|NewCookie(cookie)| cookie);
        let body = ResponseBody::answer(body, &self.observer.exchange);
        Reply::new(Response::from_parts(head, body)).with_cookie(cookie)
    }

    /// Returns the affinity cookie that a node's response brings.
    fn cookie(&self, pool: &Pool, response: &NodeResponse) -> Option<HeaderValue> {
        let node = &pool.nodes[response.node];
        let holder = self.choice.wanted.pinned.map(|index| &pool.nodes[index]);
        let is_holder = holder.is_some_and(|holder| holder.id == node.id);
        if let (true, Some(end)) = (is_holder, self.choice.session_end) {
            node.runtime.sessions.used(end, clock::unix_seconds());
        }
        // A session whose node was only full, or failed once, is its own all the same.
        let stays =
            |holder: &Node| !response.has_lost_pinned && holder.runtime.takes_sessions(steady_millis(Instant::now()));
        if holder.is_some_and(|holder| !is_holder && stays(holder)) {
            return None;
        }
        let secure = match &self.choice.cookie {
            CookieRule::Nothing => return None,
            CookieRule::Soft(cookie) => return Some(cookie.clone()),
            CookieRule::IfMoved { .. } if is_holder => return None,
            CookieRule::Strict { secure } | CookieRule::IfMoved { secure } => *secure,
        };
        let affinity = self.route.affinity.as_ref()?;
        let now = clock::unix_seconds();
        node.runtime.sessions.issued(now + affinity.ttl);
        affinity.strict_cookie(&node.id, &pool.name, secure, now)
    }

    /// Returns the problem for a request that no node has answered.
    fn failed(&self, failure: UpstreamError) -> Problem {
        let exchange = &self.observer.exchange;
        if let Some(fault) = exchange.body_fault.get() {
            return self.body_problem(fault);
        }
        exchange.ended("upstream");
        tracing::debug!(route = &*self.route.label.name, failure = failure.label(), "no answer from a node");
        DispatchError::Failed(failure).problem()
    }

    /// Returns the problem for a request whose body did not arrive whole.
    pub(super) fn body_problem(&self, fault: BodyFault) -> Problem {
        body_problem(fault, self.body_limit)
    }
}

impl Observer for ExchangeObserver {
    fn sent_to(&self, pool: &Arc<str>, node: &Arc<str>, attempt: u32) {
        self.exchange.attempts.set(attempt);
        self.exchange.sent_to(pool, node);
    }

    fn connected(&self, time: Duration) {
        self.exchange.connect_time.set(Some(time));
    }

    fn responded(&self, time: Duration) {
        self.exchange.first_byte_time.set(Some(time));
    }

    fn wants_interim(&self) -> bool {
        self.wants_interim || self.gate.is_some()
    }

    fn interim(&self, interim: &Interim) {
        match &self.gate {
            Some(gate) if interim.is_continue() => gate.open(),
            _ if self.wants_interim => self.exchange.downstream().interim(&interim.to_http1()),
            _ => {}
        }
    }

    fn cannot_hear_interim(&self) {
        if let Some(gate) = &self.gate {
            gate.open();
        }
    }

    fn is_client_slow(&self) -> bool {
        self.exchange.is_awaited() || self.gate.as_ref().is_some_and(|gate| !gate.is_open())
    }

    fn has_body_failed(&self) -> bool {
        self.exchange.has_failed()
    }

    fn takes_trailers(&self) -> bool {
        self.takes_trailers
    }

    fn client_part(&self) -> Weak<dyn ClientPart> {
        let exchange: Weak<Exchange> = Rc::downgrade(&self.exchange);
        exchange
    }
}
