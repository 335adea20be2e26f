//! The step that asks nodes: a request on its way to them, and what comes back. `attempts` goes from node to node.

use super::body::Gate;
use super::client::{Client, Tunnel};
use super::engine::Engine;
use super::exchange::{BodyFault, Exchange};
use super::plan::Choice;
use super::problems::{bad_chunk, too_large};
use super::rate_limit::Uncounted;
use super::respond::Reply;
use super::response_body::ResponseBody;
use super::snapshot::Route;
use crate::cache::CacheStatus;
use crate::http::fields::{self, TransferCoding};
use crate::http::problem::{Problem, ProblemKind};
use crate::idempotency::BootTime;
use crate::upstream::{AnswerBody, Carrier, Failure, InFlight, Keep, Outgoing, Pool};
use http::header::{CONNECTION, CONTENT_LENGTH, TRAILER, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

/// A request on its way to the nodes of its pool.
pub(super) struct UpstreamRequest {
    pub(super) engine: Rc<Engine>,
    pub(super) client: Rc<Client>,
    pub(super) exchange: Rc<Exchange>,
    pub(super) route: Arc<Route>,
    pub(super) pool: Arc<Pool>,
    pub(super) choice: Choice,
    /// Here until it is sent.
    pub(super) request: Option<Request<Outgoing>>,
    pub(super) gate: Option<Rc<Gate>>,
    pub(super) wants_interim: bool,
    pub(super) may_switch: bool,
    /// The client takes trailers.
    pub(super) takes_trailers: bool,
    pub(super) body_limit: u64,
    /// Up to this length a body is awaited before a node is asked.
    pub(super) request_buffer: u64,
    /// Where it is still to be counted against the route's rate limit.
    pub(super) uncounted: Option<Uncounted>,
    /// The entry in `Cache-Status`, where the route has a cache.
    pub(super) cache_status: Option<CacheStatus>,
    /// For a request that must not run twice: how far it has gone.
    pub(super) claimed: Option<Reach>,
}

/// The part of a request that has been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    /// When it was ready to go: what its client took to send it is not the node's time.
    pub(super) began: Instant,
    /// A part of it was sent.
    pub(super) sent: bool,
    /// All of it was, when the answer began.
    pub(super) whole: bool,
    /// The time by which its first byte must be sent, where it holds a claim.
    pub(super) by: Option<BootTime>,
}

impl Reach {
    pub(super) fn begin(by: Option<BootTime>) -> Reach {
        Reach { began: Instant::now(), sent: false, whole: false, by }
    }
}

/// An affinity cookie, beside a response that is not for everybody.
#[derive(Clone)]
pub(super) struct NewCookie(pub(super) HeaderValue);

/// An attempt that brought an answer.
pub(super) struct Answered {
    pub(super) head: Response<Incoming>,
    pub(super) carrier: Carrier,
    pub(super) in_flight: InFlight,
    pub(super) started: Instant,
    pub(super) cookie: Option<HeaderValue>,
}

impl UpstreamRequest {
    /// Returns the reply of the nodes, or why there is none.
    pub(super) async fn forward(mut self) -> Reply {
        let reply = match self.attempts().await {
            Ok(answered) if answered.head.status() == StatusCode::SWITCHING_PROTOCOLS => {
                Box::pin(self.switch(answered)).await
            }
            Ok(answered) => self.take_back(answered).await.map(|response| self.reply(response)),
            Err(problem) => Err(problem),
        };
        let reply = reply.unwrap_or_else(|problem| Reply::problem(&problem, &self.exchange));
        reply.with_cache_status(self.cache_status)
    }

    /// Asks the nodes, and gives the answer as it came, without what was about the connection.
    pub(super) async fn ask(&mut self) -> Result<Response<AnswerBody>, Problem> {
        let answered = self.attempts().await?;
        if answered.head.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.failed(Failure::Malformed));
        }
        self.take_back(answered).await
    }

    /// Counts it against the route's rate limit, where that is still to be done.
    pub(super) fn count(&mut self) -> Result<(), Problem> {
        self.uncounted.take().map_or(Ok(()), |uncounted| self.exchange.count(uncounted))
    }

    /// Returns the same way to the same nodes, with another request.
    pub(super) fn again(&self, request: Request<Outgoing>) -> UpstreamRequest {
        UpstreamRequest {
            engine: Rc::clone(&self.engine),
            client: Rc::clone(&self.client),
            exchange: Rc::clone(&self.exchange),
            route: Arc::clone(&self.route),
            pool: Arc::clone(&self.pool),
            choice: self.choice.clone(),
            request: Some(request),
            gate: None,
            wants_interim: self.wants_interim,
            may_switch: false,
            takes_trailers: self.takes_trailers,
            body_limit: self.body_limit,
            request_buffer: self.request_buffer,
            uncounted: None,
            cache_status: None,
            claimed: None,
        }
    }

    /// Returns the reply that a node's response makes for this request's client.
    pub(super) fn reply(&self, response: Response<AnswerBody>) -> Reply {
        let (mut head, body) = response.into_parts();
        let cookie = head.extensions.remove().map(|NewCookie(cookie)| cookie);
        Reply::new(Response::from_parts(head, ResponseBody::answer(body, &self.exchange))).with_cookie(cookie)
    }

    /// When the whole request must be over.
    pub(super) fn until(&self) -> Option<Instant> {
        let total = self.pool.timeouts.total;
        (!total.is_zero()).then(|| self.began() + total)
    }

    /// When it began to look for a node.
    pub(super) fn began(&self) -> Instant {
        self.claimed.map_or(self.exchange.started, |reach| reach.began)
    }

    /// Returns the problem for a request that no node has answered.
    pub(super) fn failed(&self, failure: Failure) -> Problem {
        if let Some(fault) = self.exchange.body_fault.get() {
            return self.body_problem(fault);
        }
        self.exchange.ended("upstream");
        tracing::debug!(pool = &*self.pool.name, failure = failure.label(), "no answer from a node");
        let kind = match failure {
            Failure::ClaimLapsed => ProblemKind::StoreUnavailable,
            Failure::ConnectTimeout | Failure::Timeout => ProblemKind::UpstreamTimeout,
            _ => ProblemKind::UpstreamFailed,
        };
        Problem::new(kind, failure.to_string()).with_token(failure.proxy_status())
    }

    /// Returns the problem for a request whose body did not arrive whole.
    pub(super) fn body_problem(&self, fault: BodyFault) -> Problem {
        match fault {
            BodyFault::TooLarge => too_large(self.body_limit),
            BodyFault::Malformed => bad_chunk(),
            BodyFault::ClientGone | BodyFault::Answered => {
                Problem::bad_request(ProblemKind::IncompleteRequest, "the request's body ended early")
            }
            BodyFault::Stalled => {
                let detail = "the request's body stopped arriving, or came too slowly";
                Problem::new(ProblemKind::RequestTimeout, detail).closing()
            }
        }
    }

    /// Takes a node's answer off its connection.
    async fn take_back(&self, answered: Answered) -> Result<Response<AnswerBody>, Problem> {
        let Answered { head, carrier, in_flight, started, cookie } = answered;
        let (mut head, body) = head.into_parts();
        let coding = fields::transfer_coding(&head.headers);
        match coding {
            TransferCoding::Unsupported => return Err(self.failed(Failure::Malformed)),
            // The chunks are what was read; a length beside them is not to be believed (RFC 9112 6.3).
            TransferCoding::Chunked => drop(head.headers.remove(CONTENT_LENGTH)),
            TransferCoding::None => {
                if fields::unify_content_length(&mut head.headers).is_err() {
                    return Err(self.failed(Failure::Malformed));
                }
                if head.status == StatusCode::NO_CONTENT {
                    head.headers.remove(CONTENT_LENGTH);
                }
            }
        }
        if let Some(named) = fields::strip_response(&mut head.headers).named {
            head.extensions.insert(named);
        }
        // Only content in chunks, or on a stream, may be followed by trailers.
        if !self.takes_trailers && (coding == TransferCoding::Chunked || matches!(carrier, Carrier::Shared(_))) {
            head.headers.remove(TRAILER);
        }
        if let Some(cookie) = cookie {
            head.extensions.insert(NewCookie(cookie));
        }
        let connections = &self.pool.connections;
        let keep = Keep {
            links: Rc::clone(&self.engine.links),
            timeout: connections.idle_timeout,
            max_idle: connections.max_idle_per_node,
        };
        let client: Weak<Exchange> = Rc::downgrade(&self.exchange);
        let times = (self.pool.timeouts.idle, self.until());
        let mut body = AnswerBody::new(body, carrier, in_flight, started, times, keep, client);
        poll_fn(|cx| {
            body.finish_if_empty(cx);
            Poll::Ready(())
        })
        .await;
        head.version = Version::HTTP_11;
        Ok(Response::from_parts(head, body))
    }

    /// A 101: where it was asked for, the connection becomes a tunnel once the client has the answer.
    async fn switch(&self, answered: Answered) -> Result<Reply, Problem> {
        let (mut head, _) = answered.head.into_parts();
        // A node that switches before it has the request cannot have understood it (RFC 9110 7.8).
        let may_switch =
            self.may_switch && self.exchange.body.borrow().as_ref().is_none_or(http_body::Body::is_end_stream);
        let protocol = fields::strip_response(&mut head.headers).upgrade.filter(|_| may_switch);
        let Some(protocol) = protocol else {
            return Err(self.failed(Failure::Malformed));
        };
        // HTTP/2 knows no 101.
        let Carrier::Own(link) = answered.carrier else { return Err(self.failed(Failure::Malformed)) };
        let Some(node) = link.into_switched().await else {
            return Err(self.failed(Failure::Terminated));
        };
        let mut in_flight = answered.in_flight;
        in_flight.finished();
        in_flight.is_told();
        let timeouts = &self.pool.timeouts;
        let (idle, half_closed_idle) = (timeouts.tunnel, timeouts.idle);
        let record = Rc::<Exchange>::clone(&self.exchange);
        if !self.client.switch_to(Tunnel { node, in_flight, record, idle, half_closed_idle }) {
            return Err(self.failed(Failure::Malformed));
        }
        head.headers.insert(UPGRADE, protocol);
        head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        let response = Response::from_parts(head, ResponseBody::empty(&self.exchange));
        Ok(Reply::new(response).with_cookie(answered.cookie))
    }
}
