//! What one worker needs to take requests through the pipeline.

use super::answer::{self, ResponseBody};
use super::client::{Client, Phase};
use super::exchange::{Exchange, Ledger};
use super::forward::{self, Forward};
use super::request::{Bounds, Form};
use super::route::Query;
use super::snapshot::{Action, Snapshot};
use crate::http::forwarded::{client_address, is_trusted};
use crate::http::problem::Problem;
use crate::http::{fields, problem};
use crate::upstream::IdleLinks;
use arc_swap::ArcSwap;
use http::header::HOST;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One worker's way from requests to answers.
pub(crate) struct Engine {
    latest: RefCell<Latest>,
    pub(crate) ledger: Rc<Ledger>,
    pub(crate) links: Rc<IdleLinks>,
    pub(super) random: RefCell<fastrand::Rng>,
    draining: Arc<AtomicBool>,
}

/// The snapshot in force, as a handle that costs no shared counter a request.
struct Latest {
    cache: arc_swap::Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
    held: Rc<Arc<Snapshot>>,
}

impl Engine {
    pub(crate) fn new(snapshot: Arc<ArcSwap<Snapshot>>, ledger: Ledger, draining: Arc<AtomicBool>) -> Engine {
        let held = Rc::new(snapshot.load_full());
        Engine {
            latest: RefCell::new(Latest { cache: arc_swap::Cache::new(snapshot), held }),
            ledger: Rc::new(ledger),
            links: Rc::default(),
            random: RefCell::new(fastrand::Rng::new()),
            draining,
        }
    }

    /// The configuration that holds now; a request takes it once.
    pub(crate) fn snapshot(&self) -> Rc<Arc<Snapshot>> {
        let Latest { cache, held } = &mut *self.latest.borrow_mut();
        let current = cache.load();
        if !Arc::ptr_eq(current, held) {
            *held = Rc::new(Arc::clone(current));
            self.ledger.forget_counters();
        }
        Rc::clone(held)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Answers one request. What goes wrong becomes an answer too.
    pub(crate) async fn handle(
        self: Rc<Self>,
        client: Rc<Client>,
        request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        let (head, body) = request.into_parts();
        client.phase.set(Phase::Request);
        client.body_expired.set(false);
        let exchange = Exchange::begin(&self.ledger, &client, &head);
        let response = match self.route(&client, &exchange, head, body).await {
            Ok(response) => response,
            Err(problem) => answer::problem(&problem, &exchange),
        };
        answer::leave(response, &client, &exchange, self.is_draining())
    }

    async fn route(
        &self,
        client: &Rc<Client>,
        exchange: &Rc<Exchange>,
        head: http::request::Parts,
        body: Incoming,
    ) -> Result<Response<ResponseBody>, Problem> {
        let snapshot = self.snapshot();
        let settings = &snapshot.config.settings;
        let uri = head.uri.clone();
        let host = head.headers.get(HOST).cloned();
        let bounds = Bounds { body: settings.limits.request_body.0, default_port: client.default_port() };
        let host_text = host.as_ref().and_then(|value| value.to_str().ok());
        let form = Form::read(&head, &uri, host_text, bounds)?;
        if head.method == Method::TRACE {
            return Err(trace_refused());
        }
        let query = Query { host: &form.host, path: &form.path, method: &head.method, fields: &head.headers };
        let index = snapshot.table.find(query).ok_or_else(no_route)?;
        let route = &snapshot.routes[index];
        exchange.matched(route);
        let Action::Forward(pool) = &route.action else {
            return answer::fixed(route, exchange).ok_or_else(no_route);
        };
        let trusted = is_trusted(client.peer.ip(), &settings.trusted_proxies);
        let address =
            client_address(client.peer.ip(), &head.headers, &fields::X_FORWARDED_FOR, &settings.trusted_proxies);
        let forward = Forward {
            engine: self,
            client,
            exchange,
            route: Arc::clone(route),
            pool: Arc::clone(pool),
            form,
            address,
            trusted,
            body_limit: bounds.body,
        };
        forward::forward(forward, head, body).await
    }

    /// Answers a request that hyper could not read; gives the bytes to send before closing.
    pub(crate) fn unreadable(&self, client: &Client, problem: &problem::Problem) -> Vec<u8> {
        self.ledger.unreadable(client, problem.status, problem.kind);
        problem.to_http1()
    }
}

fn no_route() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "no-route",
        "destination_not_found",
        "no route matches this host, path, method and fields",
    )
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

/// The `Via` entry for a message received in this version.
pub(super) fn via(version: http::Version) -> HeaderValue {
    HeaderValue::from_static(if version == http::Version::HTTP_10 { "1.0 ringway" } else { "1.1 ringway" })
}
