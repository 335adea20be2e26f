//! The step that fetches for the cache: one fetch for all requests of a group, or one for each request where the
//! response cannot be shared.

use super::request::{OVERRIDES, has_override};
use super::serving::{ReplyBuilder, ServedFrom};
use crate::cache::{
    Arriving, CONDITIONS, Cache, CacheStatus, FetchLeader, FetchOrigin, FetchOutcome, Fill, ForwardReason, Group,
    Joined, Known, LeaderResult, Order, SMALL_WINDOW, Stored, StreamingReader, is_failure,
};
use crate::http::fields::X_FORWARDED_HOST;
use crate::http::problem::Problem;
use crate::proxy::exchange::Exchange;
use crate::proxy::problems::stopped;
use crate::proxy::rate_limit::Uncounted;
use crate::proxy::respond::Reply;
use crate::proxy::response_body::{OwnRest, Rest, RestFuture};
use crate::proxy::snapshot::{CacheResult, Route};
use crate::proxy::upstream::{UpstreamContext, UpstreamRequest};
use crate::upstream::{
    AnswerBody, Deadlines, Dispatch, DispatchError, NoClient, NodeConnections, NodePreference, Outgoing, Pool,
    RetrySafety,
};
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, EXPECT, FORWARDED, HOST, IF_RANGE, RANGE, TE, TRANSFER_ENCODING,
    UPGRADE,
};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, request};
use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::oneshot;

/// Fields of a body and of a protocol switch, which a shared fetch does not have.
const FRAMING: [HeaderName; 6] = [CONTENT_LENGTH, TRANSFER_ENCODING, EXPECT, UPGRADE, CONNECTION, TE];

/// A request that the store could not answer.
pub(super) struct Miss {
    fetch: Fetch,
    context: UpstreamContext,
    caching: Arc<Route>,
    order: Rc<Order>,
    method: Method,
    why: ForwardReason,
    /// Set where the request still has to be counted against the rate limit of its route.
    uncounted: Option<Uncounted>,
}

/// A request that may go to the nodes several times: as its client has sent it, or for a response that can be shared.
#[derive(Clone)]
struct Fetch {
    pool: Arc<Pool>,
    wanted: NodePreference,
    route: Arc<Route>,
    /// The head for the node.
    head: request::Parts,
}

impl Fetch {
    /// Returns the parts of a request that may be sent more than once. Its body is dropped.
    fn new(upstream_request: Box<UpstreamRequest>) -> (Fetch, UpstreamContext, Option<Uncounted>) {
        let UpstreamRequest { mut context, dispatch, uncounted, .. } = *upstream_request;
        context.observer.gate = None;
        let Dispatch { pool, wanted, request, .. } = dispatch;
        let request = request.expect("an upstream request begins with its request");
        let fetch = Fetch { pool, wanted, route: Arc::clone(&context.route), head: request.into_parts().0 };
        (fetch, context, uncounted)
    }

    /// Returns the request as its client has sent it.
    fn own(&self) -> Request<Outgoing> {
        Request::from_parts(self.head.clone(), Outgoing::Empty)
    }

    /// Returns the request for a response that can be shared: the complete one, or the validation of a stored one.
    fn shared(&self, method: Method, validated: Option<&Stored>) -> Request<Outgoing> {
        let mut request = self.own();
        *request.method_mut() = method;
        let fields = request.headers_mut();
        for name in &OVERRIDES {
            fields.remove(name);
        }
        self.route.request_fields.apply(fields);
        for name in CONDITIONS.iter().chain([&FORWARDED]).chain(&FRAMING) {
            fields.remove(name);
        }
        match fields.get(HOST).cloned() {
            Some(host) => drop(fields.insert(X_FORWARDED_HOST, host)),
            None => drop(fields.remove(X_FORWARDED_HOST)),
        }
        if let Some(stored) = validated {
            stored.add_conditions(fields);
        }
        request
    }

    /// Returns the dispatch of a request that begins now and ends at the deadline of the client's request.
    fn dispatch(&self, request: Request<Outgoing>, until: Option<Instant>) -> Dispatch {
        let deadlines = Deadlines { started: Instant::now(), until, send_by: None };
        Dispatch::new(Arc::clone(&self.pool), self.wanted, request, deadlines, RetrySafety::ByMethod)
    }
}

/// The origin of a fetch that has a client.
struct ClientOrigin {
    fetch: Fetch,
    context: UpstreamContext,
}

impl FetchOrigin for ClientOrigin {
    type Body = AnswerBody;
    type Error = Problem;

    async fn fetch(&mut self, validated: Option<&Stored>) -> Result<Response<AnswerBody>, Problem> {
        fetch_for(&self.fetch, &self.context, self.fetch.shared(Method::GET, validated)).await
    }
}

/// The origin of a fetch without a client.
struct BackgroundOrigin {
    fetch: Fetch,
    connections: Rc<NodeConnections>,
    until: Option<Instant>,
}

impl FetchOrigin for BackgroundOrigin {
    type Body = AnswerBody;
    type Error = DispatchError;

    async fn fetch(&mut self, validated: Option<&Stored>) -> Result<Response<AnswerBody>, DispatchError> {
        let request = self.fetch.shared(Method::GET, validated);
        let mut dispatch = self.fetch.dispatch(request, self.until);
        let connections = Rc::clone(&self.connections);
        Box::pin(async move { dispatch.fetch(&connections, &NoClient).await }).await
    }
}

/// Returns the nodes' response to a request on behalf of a client.
async fn fetch_for(
    fetch: &Fetch,
    context: &UpstreamContext,
    request: Request<Outgoing>,
) -> Result<Response<AnswerBody>, Problem> {
    let dispatch = fetch.dispatch(request, context.deadlines(&fetch.pool).until);
    // Boxed: the future is large and would be a part of every request's future.
    Box::pin(context.fetch(dispatch)).await
}

/// Validates a stored response after a client got it stale. The fetch has no client: it continues when that client
/// disconnects, and does not appear in its log line.
pub(super) fn validate_in_background(upstream_request: Box<UpstreamRequest>, order: Order, leader: FetchLeader) {
    let (fetch, context, _) = Fetch::new(upstream_request);
    let (cache, connections) = (Arc::clone(&context.worker.cache), Rc::clone(&context.worker.connections));
    let until = Deadlines::from_now(&fetch.pool).until;
    let origin = BackgroundOrigin { fetch, connections, until };
    fetch_in_a_task(cache, Rc::new(order), leader, origin, false, drop);
}

/// Fetches to the end of the body in a task, which continues when the client disconnects; `deliver` gets the leader's
/// result.
fn fetch_in_a_task<O: FetchOrigin + 'static>(
    cache: Arc<Cache>,
    order: Rc<Order>,
    leader: FetchLeader,
    mut origin: O,
    must_fetch: bool,
    deliver: impl FnOnce(LeaderResult<O::Body, O::Error>) + 'static,
) {
    tokio::task::spawn_local(async move {
        let (result, arriving) = cache.fetch(leader, &order, &mut origin, must_fetch).await;
        // From here on only the client's own future holds the exchange.
        drop(origin);
        deliver(result);
        if let Some(arriving) = arriving {
            cache.receive(&order, arriving).await;
        }
    });
}

/// The result of the wait for another request's fetch.
enum Waited {
    For(FetchOutcome),
    TooLong,
}

impl Miss {
    pub(super) fn new(
        upstream_request: Box<UpstreamRequest>,
        caching: Arc<Route>,
        order: Rc<Order>,
        method: Method,
        why: ForwardReason,
    ) -> Miss {
        let (fetch, context, uncounted) = Fetch::new(upstream_request);
        Miss { fetch, context, caching, order, method, why, uncounted }
    }

    fn cache(&self) -> &Arc<Cache> {
        &self.context.worker.cache
    }

    fn exchange(&self) -> &Rc<Exchange> {
        &self.context.observer.exchange
    }

    /// Returns the reply to the request.
    pub(super) async fn reply(mut self) -> Reply {
        match self.uncounted.take().map_or(Ok(()), |uncounted| self.exchange().count(uncounted)) {
            Ok(()) => self.find_or_fetch().await,
            Err(problem) => Reply::problem(&problem, self.exchange()),
        }
    }

    async fn find_or_fetch(&self) -> Reply {
        let lock_timeout = self.caching.cache.as_ref().map_or_else(Default::default, |rules| rules.lock_timeout);
        let (mut deadline, mut mismatched) = (None, None);
        loop {
            let group = self.cache().group(&self.order);
            // Only the response to a GET can be shared; and a group whose response did not match this request once
            // is not joined again.
            let is_alone = self.method == Method::HEAD || self.order.traits.no_store;
            if group.passes || is_alone || mismatched == Some(group) {
                return self.pass(group).await;
            }
            let fill = match self.cache().join(group, &self.order) {
                Joined::Leader(leader) => return self.fetch_for_all(leader).await,
                Joined::Wait(fill) => fill,
            };
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + lock_timeout);
            match wait(fill, deadline).await {
                Waited::For(outcome) if !self.accepts(&outcome) => return self.pass(group).await,
                Waited::For(FetchOutcome::Streaming(streaming)) if streaming.head.is_for(&self.order.request) => {
                    match streaming.read() {
                        Some(reader) => {
                            let (from, rest) = (ServedFrom::CollapsedFetch { why: self.why }, self.rest(&reader));
                            return self.replies().serve_arriving(reader, None, from, rest);
                        }
                        None => return self.pass(group).await,
                    }
                }
                Waited::For(FetchOutcome::Stored { stored, validated }) if stored.is_for(&self.order.request) => {
                    return self.stored(&stored, validated, true);
                }
                Waited::For(FetchOutcome::StandIn(stored)) if stored.is_for(&self.order.request) => {
                    return self.stand_in(&stored);
                }
                // The response is another variant. Its `Vary` is known now, so the group is computed anew.
                Waited::For(FetchOutcome::Streaming(_) | FetchOutcome::Stored { .. } | FetchOutcome::StandIn(_)) => {
                    mismatched = Some(group);
                }
                Waited::For(FetchOutcome::Released) | Waited::TooLong => return self.pass(group).await,
            }
        }
    }

    /// Returns whether the guarantee of the route allows this outcome of another request's fetch.
    fn accepts(&self, outcome: &FetchOutcome) -> bool {
        let now = self.cache().now();
        match outcome {
            FetchOutcome::Streaming(streaming) => self.order.accepts(&streaming.head, now),
            FetchOutcome::Stored { stored, .. } | FetchOutcome::StandIn(stored) => self.order.accepts(stored, now),
            FetchOutcome::Released => true,
        }
    }

    /// Fetches for all requests of the group, in a task of its own that continues when this client disconnects.
    async fn fetch_for_all(&self, leader: FetchLeader) -> Reply {
        let (sender, receiver) = oneshot::channel();
        // Sending the result fails where the client has disconnected.
        let (cache, order) = (Arc::clone(self.cache()), Rc::clone(&self.order));
        fetch_in_a_task(cache, order, leader, self.origin(), self.must_fetch(), |result| drop(sender.send(result)));
        match receiver.await {
            Ok(result) => self.respond(result, false).await,
            Err(_) => self.problem(&stopped()),
        }
    }

    /// Fetches for this request alone.
    async fn pass(&self, group: Group) -> Reply {
        if self.method == Method::GET && self.is_plain() && !self.order.traits.no_store {
            let mut origin = self.origin();
            let leader = self.cache().fetch_alone(group, &self.order);
            let (result, arriving) = self.cache().fetch(leader, &self.order, &mut origin, self.must_fetch()).await;
            if let Some(arriving) = arriving {
                receive(Arc::clone(self.cache()), Rc::clone(&self.order), arriving);
            }
            return self.respond(result, true).await;
        }
        self.fetch_unshared().await
    }

    /// Returns whether the request has no conditions and no range.
    fn is_plain(&self) -> bool {
        CONDITIONS.iter().all(|name| !self.fetch.head.headers.contains_key(name))
    }

    /// Sends the request with the client's own conditions and range. Its response is not shared.
    async fn fetch_unshared(&self) -> Reply {
        let (token, requested) = (self.cache().begin(&self.order), self.cache().now());
        // The response to a HEAD updates the store, so its request must be one that any client could have sent.
        let updates_store = self.method == Method::HEAD && self.is_plain() && !self.order.traits.no_store;
        let request = if updates_store { self.fetch.shared(Method::HEAD, None) } else { self.fetch.own() };
        let answer = fetch_for(&self.fetch, &self.context, request).await;
        let failed = answer.as_ref().map_or(true, |response| is_failure(response.status()));
        if failed
            && let Known::Response(hit) = self.cache().look_up(self.order.key, &self.order.request)
            && self.order.accepts(&hit, self.cache().now())
            && let Some(stale) = hit.stand_in(self.cache().now())
        {
            return self.stand_in(&stale);
        }
        match answer {
            Ok(response) => {
                let (head, body) = response.into_parts();
                if updates_store {
                    self.cache().learn_from_head(&self.order, &head, requested, &token);
                } else if self.method == Method::GET && !has_override(&self.fetch.head.headers) {
                    self.cache().note_private(&self.order, &token, &head, requested);
                }
                self.note(CacheResult::Pass);
                self.private(Response::from_parts(head, body))
            }
            Err(problem) => self.problem(&problem),
        }
    }

    /// Returns the means by which a slow reader gets the rest of its body once it leaves the streaming body: a range
    /// request with a strong validator. The reader keeps its position until a node has agreed to send that range.
    fn rest(&self, reader: &StreamingReader) -> Option<Rest> {
        // A short body is buffered completely, so no reader has to leave.
        reader.body().length.is_none_or(|length| length > SMALL_WINDOW).then_some(())?;
        let tag = reader.body().head.strong_tag()?;
        let ClientOrigin { fetch, mut context } = self.origin();
        // Interim responses belong to the client's own request alone.
        context.observer.wants_interim = false;
        let origin = Rc::new((fetch, context));
        let more: Rc<dyn Fn(u64) -> RestFuture> = Rc::new(move |from| {
            let origin = Rc::clone(&origin);
            let mut request = origin.0.shared(Method::GET, None);
            request.headers_mut().insert(IF_RANGE, tag.clone());
            if let Ok(range) = HeaderValue::try_from(format!("bytes={from}-")) {
                request.headers_mut().insert(RANGE, range);
            }
            let tag = tag.clone();
            Box::pin(async move { rest_of(fetch_for(&origin.0, &origin.1, request).await.ok()?, &tag, from) })
        });
        let (departure, fetched): (_, Rc<RefCell<Option<OwnRest>>>) = (reader.departure(), Rc::default());
        let (fetch_rest, found) = (Rc::clone(&more), Rc::clone(&fetched));
        let task = tokio::task::spawn_local(async move {
            poll_fn(|cx| departure.poll_leave_request(cx)).await;
            match fetch_rest(departure.position()).await {
                Some(rest) => {
                    *found.borrow_mut() = Some(rest);
                    departure.leave();
                }
                None => departure.stay(),
            }
        });
        let task = task.abort_handle();
        Some(Rest { fetched, more: Box::new(move |from| more(from)), pending: None, task })
    }

    fn origin(&self) -> ClientOrigin {
        ClientOrigin { fetch: self.fetch.clone(), context: self.context.clone() }
    }

    /// Returns whether the request forbids a stored response without validation.
    fn must_fetch(&self) -> bool {
        self.why == ForwardReason::Request
    }

    async fn respond(&self, result: LeaderResult<AnswerBody, Problem>, alone: bool) -> Reply {
        match result {
            // The fetch was for the complete response, which is not stored; the client's range needs its own request.
            LeaderResult::Private(response) if !alone && self.fetch.head.headers.contains_key(RANGE) => {
                drop(response);
                self.fetch_unshared().await
            }
            LeaderResult::Private(response) => {
                self.note(if alone { CacheResult::Pass } else { CacheResult::Miss });
                self.private(response)
            }
            LeaderResult::Streaming { reader, own, is_stored } => {
                let (from, rest) = (ServedFrom::OwnFetch { why: self.why, is_stored }, self.rest(&reader));
                self.replies().serve_arriving(reader, Some(own), from, rest)
            }
            LeaderResult::Confirmed { stored, validated } => self.stored(&stored, validated, false),
            LeaderResult::StandIn(stored) => self.stand_in(&stored),
            LeaderResult::Failed(problem) => {
                self.note(CacheResult::Miss);
                self.problem(&problem)
            }
        }
    }

    /// Returns the reply from a stored response that a node has validated, or that another fetch has stored meanwhile.
    fn stored(&self, stored: &Stored, validated: bool, collapsed: bool) -> Reply {
        let from = match validated {
            true => ServedFrom::Validation { why: self.why, is_collapsed: collapsed },
            false => ServedFrom::LookUpAfterWait,
        };
        self.replies().serve(stored, from)
    }

    fn stand_in(&self, stored: &Stored) -> Reply {
        self.replies().serve(stored, ServedFrom::StandIn)
    }

    /// Returns a response for this client alone.
    fn private(&self, response: Response<AnswerBody>) -> Reply {
        self.context.reply(response).with_cache_status(Some(CacheStatus::forwarded(self.why)))
    }

    fn problem(&self, problem: &Problem) -> Reply {
        Reply::problem(problem, self.exchange()).with_cache_status(Some(CacheStatus::forwarded(self.why)))
    }

    fn replies(&self) -> ReplyBuilder<'_> {
        ReplyBuilder {
            method: &self.method,
            fields: self.order.request.plain(),
            rules: self.caching.cache.as_ref(),
            exchange: self.exchange(),
            now: self.cache().now(),
        }
    }

    fn note(&self, result: CacheResult) {
        if let Some(rules) = &self.caching.cache {
            rules.count(result);
        }
        self.exchange().cached(result.label());
    }
}

/// Receives a body into the store, in a task of its own.
fn receive(cache: Arc<Cache>, order: Rc<Order>, arriving: Arriving<AnswerBody>) {
    tokio::task::spawn_local(async move { cache.receive(&order, arriving).await });
}

async fn wait(fill: Arc<Fill>, deadline: Instant) -> Waited {
    match tokio::time::timeout_at(deadline.into(), fill.outcome()).await {
        Ok(outcome) => Waited::For(outcome),
        Err(_) => Waited::TooLong,
    }
}

/// Returns the body of a response to a range request, if its tag is equal and its part begins at `from` or before.
fn rest_of(answer: Response<AnswerBody>, tag: &HeaderValue, from: u64) -> Option<OwnRest> {
    let (head, body) = answer.into_parts();
    if head.headers.get(ETAG) != Some(tag) {
        return None;
    }
    match head.status {
        StatusCode::PARTIAL_CONTENT => {
            let (at, end, whole) = content_range_of(head.headers.get(CONTENT_RANGE)?)?;
            (at <= from && from < end).then_some(OwnRest { body, at, end: Some(end), whole })
        }
        // The node does not support ranges: the rest is a part of the complete body.
        StatusCode::OK => Some(OwnRest { body, at: 0, end: None, whole: None }),
        _ => None,
    }
}

/// Returns the values of a `Content-Range`: the start and end of the part, and the complete length where it is known.
fn content_range_of(value: &HeaderValue) -> Option<(u64, u64, Option<u64>)> {
    let (range, whole) = value.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let whole = if whole == "*" { None } else { Some(whole.parse().ok()?) };
    Some((first.parse().ok()?, last.parse::<u64>().ok()?.checked_add(1)?, whole))
}
