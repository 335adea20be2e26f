//! What one worker needs to take requests through the pipeline, and the part of the way that needs
//! no waiting: the request's form, its route, and what is answered at once.

use super::answer::{self, ResponseBody};
use super::caching;
use super::client::{Client, Phase};
use super::exchange::{Exchange, RequestRecorder};
use super::forward::RoutedRequest;
use super::idempotent;
use super::min_rate::MinRate;
use super::request::{Bounds, bad_chunk, crumbs_to_one, enter, underscores};
use super::route::Query;
use super::snapshot::{Action, Snapshot};
use super::upstream::UpstreamRequest;
use crate::cache::Cache;
use crate::http::budget::Budget;
use crate::http::head::Peer;
use crate::http::problem::Problem;
use crate::io::Malformed;
use crate::upstream::{IdleLinks, SharedLinks};
use arc_swap::ArcSwap;
use http::header::HOST;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

/// One worker's way from requests to answers.
pub(crate) struct Engine {
    latest: RefCell<Latest>,
    pub(crate) recorder: Rc<RequestRecorder>,
    pub(crate) links: Rc<IdleLinks>,
    pub(crate) shared_links: SharedLinks,
    pub(super) random: RefCell<fastrand::Rng>,
    pub(super) cache: Arc<Cache>,
    /// What the process may hold back of bodies.
    pub(crate) budget: Arc<Budget>,
    /// Held by every task that must end well before the worker does.
    pub(super) tasks: Rc<()>,
}

/// The snapshot in force, as a handle that costs no shared counter a request.
type Latest = arc_swap::Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>;

/// An answer, now or after a node was asked.
pub(crate) enum Answering<F> {
    Now(Option<Response<ResponseBody>>),
    Later(F),
}

/// An answer that takes its time.
pub(crate) type Journeying = Pin<Box<dyn Future<Output = Response<ResponseBody>>>>;

impl Future for Answering<Journeying> {
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Answering::Now(answer) => Poll::Ready(Ok(answer.take().expect("an answer is polled for once"))),
            Answering::Later(upstream_request) => upstream_request.as_mut().poll(cx).map(Ok),
        }
    }
}

impl Engine {
    pub(crate) fn new(
        snapshot: Arc<ArcSwap<Snapshot>>,
        cache: Arc<Cache>,
        budget: Arc<Budget>,
        recorder: RequestRecorder,
    ) -> Engine {
        Engine {
            latest: RefCell::new(Latest::new(snapshot)),
            recorder: Rc::new(recorder),
            links: Rc::default(),
            shared_links: SharedLinks::default(),
            random: RefCell::new(fastrand::Rng::new()),
            cache,
            budget,
            tasks: Rc::default(),
        }
    }

    /// Returns whether nothing runs that must end well.
    pub(crate) fn is_quiet(&self) -> bool {
        Rc::strong_count(&self.tasks) == 1
    }

    /// The configuration that holds now.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(self.latest.borrow_mut().load())
    }

    /// Answers one request. What goes wrong becomes an answer too.
    pub(crate) fn answer(self: &Rc<Self>, client: &Rc<Client>, request: Request<Incoming>) -> Answering<Journeying> {
        let (head, body) = request.into_parts();
        client.phase.set(Phase::Request);
        client.had_request.set(true);
        client.is_http10.set(head.version == Version::HTTP_10);
        client.body_expired.set(false);
        client.drains_body.set(false);
        let exchange = Exchange::begin(&self.recorder, client, &head);
        let body_follows = !body.is_end_stream();
        if body_follows {
            exchange.take_body(body);
        }
        match self.begin(client, &exchange, head, body_follows) {
            // Boxed, for hyper moves a service's future about before it first polls it.
            Ok(Begun::Forward(upstream_request)) => Answering::Later(Box::pin(upstream_request.travel())),
            Ok(Begun::Later(answering)) => Answering::Later(answering),
            Ok(Begun::Answer(response)) => Answering::Now(Some(answer::leave(response, client, &exchange))),
            Err(problem) => {
                if problem.status == StatusCode::BAD_REQUEST && problem.close {
                    client.note_malformed();
                }
                let response = answer::problem(&problem, &exchange);
                Answering::Now(Some(answer::leave(response, client, &exchange)))
            }
        }
    }

    fn begin(
        self: &Rc<Self>,
        client: &Rc<Client>,
        exchange: &Rc<Exchange>,
        mut head: http::request::Parts,
        body_follows: bool,
    ) -> Result<Begun, Problem> {
        if let Some(malformed) = client.malformed.get() {
            return Err(match malformed {
                Malformed::Chunks => bad_chunk(),
                Malformed::Fragment => Problem::bad_request("bad-target", "the request's target has a fragment"),
            });
        }
        // Taken once: the whole way is decided by one configuration.
        let mut latest = self.latest.borrow_mut();
        let snapshot = latest.load();
        let settings = &snapshot.config.settings;
        let uri = head.uri.clone();
        let host = head.headers.get(HOST).cloned();
        client.count_request(settings.limits.requests_per_connection);
        let bounds = Bounds {
            body: settings.limits.request_body.0,
            body_follows: (head.version == Version::HTTP_2).then_some(body_follows),
        };
        if head.version == Version::HTTP_2 {
            if head.headers.len() > settings.limits.headers as usize {
                return Err(too_many_fields());
            }
            // Counted one by one before.
            crumbs_to_one(&mut head.headers);
        }
        let underscores = underscores(settings.limits.underscores_in_headers);
        let peer = Peer {
            address: client.peer.ip(),
            is_secure: client.is_secure(),
            certificate: client.secured.as_ref().and_then(|secured| secured.subject.as_ref()),
            trusted_proxies: &settings.trusted_proxies,
            underscores,
            key_headers: &snapshot.key_headers,
        };
        let (head, form) = enter(head, &uri, host.as_ref(), peer, bounds)?;
        if head.method == Method::TRACE {
            return Err(trace_refused());
        }
        if let Some(secured) = &client.secured
            && let Some(names) = &secured.certificate
            && !names.cover(&form.host)
        {
            return Err(misdirected());
        }
        let query = Query { host: &form.host, path: &form.path, method: &head.method, fields: &head.fields };
        let index = snapshot.table.find(query).ok_or_else(no_route)?;
        let route = &snapshot.routes[index];
        exchange.matched(&route.label);
        let rules = idempotent::concerns(route, &head);
        let mut uncounted = route.rate_limit.as_ref().map(|limit| limit.uncounted(&form, &head.fields));
        if let Some(limit) = &route.rate_limit {
            let waits = match rules {
                Some(_) => !limit.counts_replays(),
                None => route.cache.is_some() && !limit.counts_hits(),
            };
            if let Some(uncounted) = uncounted.take_if(|_| !waits) {
                uncounted.count(exchange)?;
            }
        }
        let Action::Forward(pool) = &route.action else {
            return answer::fixed(route, &form, exchange)?.map(Begun::Answer).ok_or_else(no_route);
        };
        let routed = RoutedRequest {
            engine: self,
            client,
            exchange,
            route,
            pool,
            form,
            uncounted,
            underscores,
            body_limit: bounds.body,
            request_buffer: settings.limits.request_buffer.0,
            pace: MinRate::of(&settings.limits, head.fields.plain()),
        };
        if let Some(rules) = rules {
            return idempotent::begin(snapshot, routed, rules, head);
        }
        match caching::concerns(snapshot, &routed, &head) {
            Some(route) => caching::begin(&routed, &route, head),
            None => routed.begin(head),
        }
    }

    /// Answers a request that hyper could not read; gives the bytes to send before closing.
    pub(crate) fn unreadable(&self, client: &Client, problem: &Problem) -> Vec<u8> {
        self.recorder.unreadable(client, problem.status, problem.kind);
        problem.to_http1()
    }
}

/// What a request has come to without waiting.
#[expect(clippy::large_enum_variant, reason = "it lives for one match, and most requests are the large one")]
pub(super) enum Begun {
    Answer(Response<ResponseBody>),
    Forward(UpstreamRequest),
    Later(Journeying),
}

fn no_route() -> Problem {
    let detail = "no route matches this host, path, method and fields";
    Problem::new(StatusCode::NOT_FOUND, "no-route", "destination_not_found", detail)
}

/// HTTP/1 is counted as it is read; here hyper knows only the size of all.
fn too_many_fields() -> Problem {
    let detail = "the request has more fields than allowed";
    Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "header-too-large", "http_request_error", detail)
}

/// The client took a connection for another host than the one whose certificate it was shown
/// (RFC 9110 15.5.20).
fn misdirected() -> Problem {
    let detail = "the certificate of this connection does not cover the request's host; open another one";
    Problem::new(StatusCode::MISDIRECTED_REQUEST, "misdirected-request", "http_request_error", detail)
}

/// A TRACE answer would show a client the fields that proxies add.
fn trace_refused() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        "http_request_denied",
        "TRACE is not answered here",
    )
    .closing()
}
