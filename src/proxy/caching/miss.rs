//! The step that asks the nodes on the cache's behalf: one fetch for all who want the same, each by itself where that
//! cannot be.

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
use crate::proxy::response_body::{AskedRest, OwnRest, Rest};
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

/// Fields of a body and of a switch, which a fetch for everybody has not.
const FRAMING: [HeaderName; 6] = [CONTENT_LENGTH, TRANSFER_ENCODING, EXPECT, UPGRADE, CONNECTION, TE];

/// A request that the store could not answer.
pub(super) struct Miss {
    fetch: Fetch,
    context: UpstreamContext,
    caching: Arc<Route>,
    order: Rc<Order>,
    method: Method,
    why: ForwardReason,
    /// Where the request is still to be counted against the route's rate limit.
    uncounted: Option<Uncounted>,
}

/// A request that may go to the nodes several times: as its client has sent it, or as the whole response for all.
#[derive(Clone)]
struct Fetch {
    pool: Arc<Pool>,
    wanted: NodePreference,
    route: Arc<Route>,
    /// The head as the node gets it.
    head: request::Parts,
}

impl Fetch {
    /// Takes a request apart that is to be sent more than once. Its body is not kept.
    fn new(upstream_request: UpstreamRequest) -> (Fetch, UpstreamContext, Option<Uncounted>) {
        let UpstreamRequest { mut context, dispatch, uncounted, .. } = upstream_request;
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

    /// Returns the request for a response that is for all: the whole, or whether a stored one has changed.
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
            stored.ask_whether_changed(fields);
        }
        request
    }

    /// Returns the dispatch of a request that begins now, and is over by the end of the one that it is made for.
    fn dispatch(&self, request: Request<Outgoing>, until: Option<Instant>) -> Dispatch {
        let deadlines = Deadlines { started: Instant::now(), until, send_by: None };
        Dispatch::new(Arc::clone(&self.pool), self.wanted, request, deadlines, RetrySafety::ByMethod)
    }
}

/// The nodes, as the cache sees them on behalf of a client.
struct ClientOrigin {
    fetch: Fetch,
    context: UpstreamContext,
}

impl FetchOrigin for ClientOrigin {
    type Body = AnswerBody;
    type Failure = Problem;

    async fn fetch(&mut self, validated: Option<&Stored>) -> Result<Response<AnswerBody>, Problem> {
        fetch_for(&self.fetch, &self.context, self.fetch.shared(Method::GET, validated)).await
    }
}

/// The nodes, as the cache sees them when no client waits.
struct BackgroundOrigin {
    fetch: Fetch,
    connections: Rc<NodeConnections>,
    until: Option<Instant>,
}

impl FetchOrigin for BackgroundOrigin {
    type Body = AnswerBody;
    type Failure = DispatchError;

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
    // Boxed: it is large, and the cache's future is not all there is to a request.
    Box::pin(context.fetch(dispatch)).await
}

/// Validates a stored response, while the client has it already. The fetch has no client: it goes on when the one that
/// has met the stale response has left, and nothing of it is in that one's log.
pub(super) fn validate_in_background(upstream_request: UpstreamRequest, order: Order, lead: FetchLeader) {
    let (fetch, context, _) = Fetch::new(upstream_request);
    let (cache, connections) = (Arc::clone(&context.worker.cache), Rc::clone(&context.worker.connections));
    let until = Deadlines::from_now(&fetch.pool).until;
    let origin = BackgroundOrigin { fetch, connections, until };
    fetch_in_a_task(cache, Rc::new(order), lead, origin, false, drop);
}

/// Fetches to the end of the body in a task, also when the client has left; `tell` gets the leader's result.
fn fetch_in_a_task<O: FetchOrigin + 'static>(
    cache: Arc<Cache>,
    order: Rc<Order>,
    lead: FetchLeader,
    mut origin: O,
    must_ask: bool,
    tell: impl FnOnce(LeaderResult<O::Body, O::Failure>) + 'static,
) {
    tokio::task::spawn_local(async move {
        let (led, arriving) = cache.fetch(lead, &order, &mut origin, must_ask).await;
        // The exchange is the client's own from here on.
        drop(origin);
        tell(led);
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
        upstream_request: UpstreamRequest,
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
            Ok(()) => self.find().await,
            Err(problem) => Reply::problem(&problem, self.exchange()),
        }
    }

    async fn find(&self) -> Reply {
        let lock_timeout = self.caching.cache.as_ref().map_or_else(Default::default, |rules| rules.lock_timeout);
        let (mut deadline, mut mismatched) = (None, None);
        loop {
            let group = self.cache().group(&self.order);
            // Only a GET brings what others can use; and what was not for this request a moment ago will
            // not be now.
            let is_alone = self.method == Method::HEAD || self.order.traits.no_store;
            if group.passes || is_alone || mismatched == Some(group) {
                return self.pass(group).await;
            }
            let fill = match self.cache().join(group, &self.order) {
                Joined::Leader(lead) => return self.lead(lead).await,
                Joined::Wait(fill) => fill,
            };
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + lock_timeout);
            match wait(fill, deadline).await {
                Waited::For(FetchOutcome::Streaming(growing)) if growing.head.is_for(&self.order.request) => {
                    match growing.read() {
                        Some(reader) => {
                            let (from, rest) = (ServedFrom::CollapsedFetch { why: self.why }, self.rest(&reader));
                            return self.replies().serve_arriving(reader, None, from, rest);
                        }
                        None => return self.pass(group).await,
                    }
                }
                Waited::For(FetchOutcome::Stored { stored, asked }) if stored.is_for(&self.order.request) => {
                    return self.stored(&stored, asked, true);
                }
                Waited::For(FetchOutcome::StandIn(stored)) if stored.is_for(&self.order.request) => {
                    return self.stand_in(&stored);
                }
                // It was for other fields; those by which it was chosen are known now.
                Waited::For(FetchOutcome::Streaming(_) | FetchOutcome::Stored { .. } | FetchOutcome::StandIn(_)) => {
                    mismatched = Some(group);
                }
                Waited::For(FetchOutcome::Released) | Waited::TooLong => return self.pass(group).await,
            }
        }
    }

    /// Fetches for all who want the same, in a task of its own: it ends well even if this client leaves.
    async fn lead(&self, lead: FetchLeader) -> Reply {
        let (tell, told) = oneshot::channel();
        // The client may have left.
        let (cache, order) = (Arc::clone(self.cache()), Rc::clone(&self.order));
        fetch_in_a_task(cache, order, lead, self.origin(), self.must_ask(), |led| drop(tell.send(led)));
        match told.await {
            Ok(led) => self.respond(led, false).await,
            Err(_) => self.problem(&stopped()),
        }
    }

    /// Asks the nodes for this request alone.
    async fn pass(&self, group: Group) -> Reply {
        if self.method == Method::GET && self.is_plain() && !self.order.traits.no_store {
            let mut origin = self.origin();
            let lead = self.cache().go_alone(group, &self.order);
            let (led, arriving) = self.cache().fetch(lead, &self.order, &mut origin, self.must_ask()).await;
            if let Some(arriving) = arriving {
                receive(Arc::clone(self.cache()), Rc::clone(&self.order), arriving);
            }
            return self.respond(led, true).await;
        }
        self.ask_as_it_is().await
    }

    /// Returns whether the request is for the whole response.
    fn is_plain(&self) -> bool {
        CONDITIONS.iter().all(|name| !self.fetch.head.headers.contains_key(name))
    }

    /// Asks just what the client asked.
    async fn ask_as_it_is(&self) -> Reply {
        let (token, asked) = (self.cache().begin(&self.order), self.cache().now());
        // A HEAD tells the store something, so it must be one that any client could have sent.
        let tells = self.method == Method::HEAD && self.is_plain() && !self.order.traits.no_store;
        let request = if tells { self.fetch.shared(Method::HEAD, None) } else { self.fetch.own() };
        let answer = fetch_for(&self.fetch, &self.context, request).await;
        let failed = answer.as_ref().map_or(true, |response| is_failure(response.status()));
        if failed
            && let Known::Response(held) = self.cache().look_up(self.order.key, &self.order.request)
            && let Some(stale) = held.stand_in(self.cache().now())
        {
            return self.stand_in(&stale);
        }
        match answer {
            Ok(response) => {
                let (head, body) = response.into_parts();
                if tells {
                    self.cache().learn_from_head(&self.order, &head, asked, &token);
                } else if self.method == Method::GET && !has_override(&self.fetch.head.headers) {
                    self.cache().note_private(&self.order, &token, &head, asked);
                }
                self.note(CacheResult::Pass);
                self.private(Response::from_parts(head, body))
            }
            Err(problem) => self.problem(&problem),
        }
    }

    /// How a reader whom others leave behind gets the rest of its body: by a range of the same response, which only a
    /// strong tag can tell. It keeps its place until a node has agreed to that.
    fn rest(&self, reader: &StreamingReader) -> Option<Rest> {
        // A short body is held whole, and leaves no reader behind.
        reader.growing().length.is_none_or(|length| length > SMALL_WINDOW).then_some(())?;
        let tag = reader.growing().head.strong_tag()?;
        let ClientOrigin { fetch, mut context } = self.origin();
        // Interim responses belong to the client's own request alone.
        context.observer.wants_interim = false;
        let origin = Rc::new((fetch, context));
        let more: Rc<dyn Fn(u64) -> AskedRest> = Rc::new(move |from| {
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
        let (ask, found) = (Rc::clone(&more), Rc::clone(&fetched));
        let task = tokio::task::spawn_local(async move {
            poll_fn(|cx| departure.poll_asked(cx)).await;
            match ask(departure.position()).await {
                Some(rest) => {
                    *found.borrow_mut() = Some(rest);
                    departure.leave();
                }
                None => departure.stay(),
            }
        });
        let task = task.abort_handle();
        Some(Rest { fetched, more: Box::new(move |from| more(from)), asking: None, task })
    }

    fn origin(&self) -> ClientOrigin {
        ClientOrigin { fetch: self.fetch.clone(), context: self.context.clone() }
    }

    /// Returns whether the client wants no stored response.
    fn must_ask(&self) -> bool {
        self.why == ForwardReason::Request
    }

    async fn respond(&self, led: LeaderResult<AnswerBody, Problem>, alone: bool) -> Reply {
        match led {
            // The whole was asked for to be stored; a part of what is not stored is asked for again.
            LeaderResult::Private(response) if !alone && self.fetch.head.headers.contains_key(RANGE) => {
                drop(response);
                self.ask_as_it_is().await
            }
            LeaderResult::Private(response) => {
                self.note(if alone { CacheResult::Pass } else { CacheResult::Miss });
                self.private(response)
            }
            LeaderResult::Streaming { reader, own, is_stored } => {
                let (from, rest) = (ServedFrom::OwnFetch { why: self.why, is_stored }, self.rest(&reader));
                self.replies().serve_arriving(reader, Some(own), from, rest)
            }
            LeaderResult::Confirmed { stored, asked } => self.stored(&stored, asked, false),
            LeaderResult::StandIn(stored) => self.stand_in(&stored),
            LeaderResult::Failed(problem) => {
                self.note(CacheResult::Miss);
                self.problem(&problem)
            }
        }
    }

    /// Returns the reply of a stored response that the node has confirmed, or that another fetch has stored meanwhile.
    fn stored(&self, stored: &Stored, asked: bool, collapsed: bool) -> Reply {
        let from = match asked {
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

/// Reads a body into the store in a task of its own.
fn receive(cache: Arc<Cache>, order: Rc<Order>, arriving: Arriving<AnswerBody>) {
    tokio::task::spawn_local(async move { cache.receive(&order, arriving).await });
}

async fn wait(fill: Arc<Fill>, deadline: Instant) -> Waited {
    match tokio::time::timeout_at(deadline.into(), fill.outcome()).await {
        Ok(outcome) => Waited::For(outcome),
        Err(_) => Waited::TooLong,
    }
}

/// Takes an answer for the rest of a response, if it is a part of it from that position on at the latest.
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
        // The node knows no ranges: what is missing is a part of the whole.
        StatusCode::OK => Some(OwnRest { body, at: 0, end: None, whole: None }),
        _ => None,
    }
}

/// Reads a `Content-Range`: where the part begins, where it ends, and the length of the whole where that is known.
fn content_range_of(value: &HeaderValue) -> Option<(u64, u64, Option<u64>)> {
    let (range, whole) = value.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let whole = if whole == "*" { None } else { Some(whole.parse().ok()?) };
    Some((first.parse().ok()?, last.parse::<u64>().ok()?.checked_add(1)?, whole))
}
