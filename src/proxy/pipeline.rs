//! The pipeline of a request, from its connection to its response: the steps in their order.
//!
//! `begin` is the synchronous part: normalisation, the route, and replies that need no waiting.

use super::body::BodyRules;
use super::caching;
use super::client_body::ClientBody;
use super::downstream::Downstream;
use super::exchange::Exchange;
use super::forward::RoutedRequest;
use super::idempotent;
use super::min_rate::MinRate;
use super::plan;
use super::problems::{ANSWERED_METHODS, bad_chunk};
use super::rate_limit::Uncounted;
use super::request::{Bounds, Form, enter, join_cookie_fields, underscores};
use super::respond::{self, Reply};
use super::saga::{self, SagaRequest};
use super::session::{self, Session};
use super::snapshot::{Action, Route};
use super::step::{PendingReply, ResponseFuture, Step};
use super::worker_context::WorkerContext;
use crate::http::head::{Peer, RequestFields};
use crate::http::method::is_safe;
use crate::http::problem::{Problem, ProblemKind};
use crate::io::Malformed;
use http::header::HOST;
use http::{Method, Request, StatusCode, Version, request};
use http_body::Body as _;
use std::rc::Rc;

/// Returns the response to one request. A refusal is a response too.
pub(crate) fn answer(
    worker: &Rc<WorkerContext>,
    downstream: &Rc<Downstream>,
    request: Request<impl Into<ClientBody>>,
) -> ResponseFuture {
    let (head, body) = request.into_parts();
    let body = body.into();
    downstream.begin_request(head.version);
    let exchange = Exchange::begin(&worker.recorder, downstream, &head);
    let body_follows = !body.is_end_stream();
    if body_follows {
        exchange.take_body(body);
    }
    match begin(worker, downstream, &exchange, head, body_follows) {
        // Boxed, for hyper moves a service's future about before it first polls it.
        Ok(Step::Forward(upstream_request)) => {
            ResponseFuture::Pending { reply: PendingReply(Box::pin(upstream_request.forward())), exchange }
        }
        Ok(Step::Later(reply)) => ResponseFuture::Pending { reply: PendingReply(reply), exchange },
        Ok(Step::Reply(reply)) => ResponseFuture::ready(reply, &exchange),
        Err(problem) => {
            if problem.status() == StatusCode::BAD_REQUEST && problem.close {
                downstream.note_malformed();
            }
            ResponseFuture::ready(Reply::problem(&problem, &exchange), &exchange)
        }
    }
}

/// Returns the response to a request that hyper could not read, as bytes to send before the connection closes.
pub(crate) fn unreadable(worker: &WorkerContext, downstream: &Downstream, problem: &Problem) -> Vec<u8> {
    worker.recorder.unreadable(downstream, problem);
    problem.to_http1()
}

/// Takes a request as far as it goes without waiting, by one configuration.
fn begin(
    worker: &Rc<WorkerContext>,
    downstream: &Rc<Downstream>,
    exchange: &Rc<Exchange>,
    mut head: request::Parts,
    body_follows: bool,
) -> Result<Step, Problem> {
    check_framing(downstream)?;
    worker.with_snapshot(|snapshot| {
        let settings = &snapshot.config.settings;
        downstream.count_request(settings.limits.requests_per_connection);
        let (uri, host) = (head.uri.clone(), head.headers.get(HOST).cloned());
        let is_http2 = head.version == Version::HTTP_2;
        let bounds = Bounds { body: settings.limits.request_body.0, body_follows: is_http2.then_some(body_follows) };
        if is_http2 {
            // HTTP/1 counts the fields while parsing; for HTTP/2 hyper limits only the size of all.
            if head.headers.len() > settings.limits.headers as usize {
                return Err(too_many_fields());
            }
            join_cookie_fields(&mut head.headers);
        }
        let underscores = underscores(settings.limits.underscores_in_headers);
        let peer = Peer {
            address: downstream.connection.peer.ip(),
            is_secure: downstream.is_secure(),
            certificate: downstream.connection.secured.as_ref().and_then(|secured| secured.subject.as_ref()),
            trusted_proxies: &settings.trusted_proxies,
            underscores,
            protected: &snapshot.protected_fields,
        };
        let (mut head, form) = enter(head, &uri, host.as_ref(), peer, bounds)?;
        let given = &downstream.connection.session;
        let received = snapshot.sessions.as_ref().map(|rules| {
            let metrics = worker.recorder.metrics();
            (rules, session::take(rules, &mut head.fields, given, metrics))
        });
        downstream.http1.says_close.set(head.fields.facts.says_close);
        check_admission(downstream, &head.method, &form)?;

        let index = plan::route(&snapshot.table, &head, &form).ok_or_else(no_route)?;
        let route = &snapshot.routes[index];
        exchange.matched(&route.label);

        let idempotency = idempotent::rules(route, &head);
        let uncounted = count(route, idempotency.is_some(), &form, &head.fields, exchange)?;
        let min_rate = || MinRate::of(&settings.limits, head.fields.plain());
        let pool = match &route.action {
            Action::Forward(pool) => pool,
            Action::Saga(saga) => {
                let changes = &saga.definition.changes;
                if let (false, Some(received)) = (changes.is_empty(), received) {
                    let is_secure = head.fields.facts.is_secure;
                    exchange.begin_session(Session::of_groups(
                        (&worker.causality, given),
                        changes,
                        received,
                        is_secure,
                    ));
                }
                let body_rules = BodyRules { limit: bounds.body, min_rate: min_rate(), underscores };
                let request =
                    SagaRequest { worker, downstream, exchange, saga, rules: idempotency, form, uncounted, body_rules };
                return saga::begin(request, &head);
            }
            Action::SagaStates => return saga::show(snapshot, &form, exchange, &head),
            Action::Redirect { .. } | Action::Respond { .. } => {
                return respond::fixed(route, &form, exchange)?.map(Step::Reply).ok_or_else(no_route);
            }
        };
        let mut routed = RoutedRequest {
            worker,
            downstream,
            exchange,
            route,
            pool,
            form,
            uncounted,
            underscores,
            body_limit: bounds.body,
            request_buffer: settings.limits.request_buffer.0,
            min_rate: min_rate(),
            mark: None,
        };
        if let Some(strong) = snapshot.strong.as_ref().filter(|_| !is_safe(&head.method)) {
            routed.mark = strong.mark(&routed.form, &head.fields);
        }
        let caching = match idempotency {
            Some(_) if !snapshot.has_guarantees => None,
            _ => caching::request::route_of(snapshot, &routed, &head),
        };
        if let Some(rules) = caching.as_ref().and_then(|route| route.consistency.as_ref()) {
            let request = (&routed.form, &head.fields);
            let session = Session::begin((&worker.causality, given), rules, received, request);
            // A repetition with a key has its stored result, whatever others have written since: it is checked as its
            // first byte is about to be sent.
            if idempotency.is_none() {
                session.check_write(&head.method)?;
            }
            exchange.begin_session(session);
        }
        if let Some(rules) = idempotency {
            return idempotent::begin(snapshot, routed, rules, head);
        }
        match caching {
            Some(route) => caching::begin(&routed, &route, head),
            None => routed.begin(head),
        }
    })
}

/// Refuses a request whose bytes were malformed, also where hyper has accepted them.
fn check_framing(downstream: &Downstream) -> Result<(), Problem> {
    match downstream.http1.malformed.get() {
        None => Ok(()),
        Some(Malformed::Chunks) => Err(bad_chunk()),
        Some(Malformed::Fragment) => {
            Err(Problem::bad_request(ProblemKind::BadTarget, "the request's target has a fragment"))
        }
    }
}

/// Refuses a method that is never answered, and a host that the connection's certificate does not cover.
fn check_admission(downstream: &Downstream, method: &Method, form: &Form<'_>) -> Result<(), Problem> {
    if *method == Method::TRACE {
        return Err(trace_refused());
    }
    let certificate = downstream.connection.secured.as_ref().and_then(|secured| secured.certificate.as_ref());
    match certificate {
        Some(names) if !names.cover(&form.host) => Err(misdirected()),
        _ => Ok(()),
    }
}

/// Counts a request against the rate limit of its route. Returns the limit that is still to be counted, where hits of
/// the cache or replays are not.
fn count(
    route: &Route,
    is_keyed: bool,
    form: &Form<'_>,
    fields: &RequestFields,
    exchange: &Exchange,
) -> Result<Option<Uncounted>, Problem> {
    let Some(limit) = &route.rate_limit else { return Ok(None) };
    let uncounted = limit.uncounted(form, fields);
    let may_be_free = if is_keyed { !limit.counts_replays() } else { route.cache.is_some() && !limit.counts_hits() };
    if may_be_free {
        return Ok(Some(uncounted));
    }
    exchange.count(uncounted).map(|()| None)
}

fn no_route() -> Problem {
    let detail = "no route matches this host, path, method and fields";
    Problem::new(ProblemKind::NoRoute, detail)
}

fn too_many_fields() -> Problem {
    let detail = "the request has more fields than allowed";
    Problem::new(ProblemKind::HeaderTooLarge, detail)
}

/// The client took a connection for another host than the one whose certificate it was shown
/// (RFC 9110 15.5.20).
fn misdirected() -> Problem {
    let detail = "the certificate of this connection does not cover the request's host; open another one";
    Problem::new(ProblemKind::MisdirectedRequest, detail)
}

/// A TRACE answer would show a client the fields that proxies add.
fn trace_refused() -> Problem {
    Problem::method_not_allowed("TRACE is not answered here", ANSWERED_METHODS).closing()
}
