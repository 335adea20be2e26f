//! The step that asks nodes: attempts in the order of the ring, and what comes back.

use super::answer::{self, ResponseBody};
use super::body::Gate;
use super::client::{Client, Tunnel};
use super::engine::Engine;
use super::exchange::{BodyFault, Exchange};
use super::forward::{seconds_since_1970, session_node_gone};
use super::request::too_large;
use super::snapshot::Route;
use crate::cache::CacheStatus;
use crate::http::fields::{self, CACHE_STATUS, TransferCoding};
use crate::http::problem::Problem;
use crate::upstream::{AnswerBody, Failure, InFlight, Interim, Keep, Link, Node, Outcome, Outgoing, Patience, Pool};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, SET_COOKIE, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

/// How often a request is tried again where nothing was sent.
const RETRIES: u32 = 1;

/// A request on its way to the nodes of its pool.
pub(super) struct Journey {
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
    pub(super) body_limit: u64,
    /// What the cache says of it, where the route has one.
    pub(super) cache_status: Option<CacheStatus>,
    /// For a request that must not run twice: how far it has gone.
    pub(super) claimed: Option<Reach>,
}

/// How far a request has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    /// When it was ready to go: what its client took to send it is not the node's time.
    began: Instant,
    /// A part of it was sent.
    pub(super) sent: bool,
    /// All of it was, when the answer began.
    pub(super) whole: bool,
}

impl Reach {
    pub(super) fn begin() -> Reach {
        Reach { began: Instant::now(), sent: false, whole: false }
    }
}

/// A request that must not run twice goes out on a connection that is new, or was in use just now: one
/// that the node is closing would leave nobody knowing.
const FRESH: Duration = Duration::from_secs(1);

/// An affinity cookie, beside a response that is not for everybody.
#[derive(Clone)]
pub(super) struct NewCookie(pub(super) HeaderValue);

/// Which nodes are asked, and what cookie the answer brings.
#[derive(Clone)]
pub(super) struct Choice {
    pub(super) hash: u64,
    /// The node of a strict session, by its index; it comes before the ring.
    pub(super) pinned: Option<usize>,
    /// Whether a pinned session may go to another node.
    pub(super) may_leave: bool,
    /// The session's node is down, and it may go to no other.
    pub(super) is_gone: bool,
    pub(super) issue: Issue,
}

/// The affinity cookie that an answer brings.
#[derive(Clone)]
pub(super) enum Issue {
    Nothing,
    Soft(HeaderValue),
    /// One for the node that answered.
    Strict {
        secure: bool,
    },
    /// The same, where that is not the pinned one.
    IfMoved {
        secure: bool,
    },
}

impl Choice {
    pub(super) fn by_hash(hash: u64) -> Choice {
        Choice { hash, pinned: None, may_leave: true, is_gone: false, issue: Issue::Nothing }
    }

    /// The nodes to try, in order.
    fn candidates<'a>(&self, pool: &'a Pool) -> impl Iterator<Item = &'a Node> + use<'a> {
        let pinned = self.pinned.map(|index| &pool.nodes[index]);
        let on_ring = (pinned.is_none() || self.may_leave).then(|| pool.candidates(self.hash));
        let others = on_ring.into_iter().flatten().filter(move |node| pinned.is_none_or(|pinned| pinned.id != node.id));
        pinned.into_iter().chain(others)
    }
}

/// An attempt that brought an answer.
struct Answered {
    head: Response<Incoming>,
    link: Box<Link>,
    in_flight: InFlight,
    started: Instant,
    cookie: Option<HeaderValue>,
}

/// What became of one node.
enum Attempt {
    Answered(Response<Incoming>, Box<Link>),
    /// Nothing was sent, and the request is still here.
    Again(Failure),
    Over(Failure),
}

impl Journey {
    pub(super) async fn travel(mut self) -> Response<ResponseBody> {
        let response = match self.attempts().await {
            Ok(answered) if answered.head.status() == StatusCode::SWITCHING_PROTOCOLS => {
                Box::pin(self.switch(answered)).await
            }
            Ok(answered) => self.take_back(answered).await.map(|response| self.for_client(response)),
            Err(problem) => Err(problem),
        };
        let mut response = response.unwrap_or_else(|problem| answer::problem(&problem, &self.exchange));
        if let Some(status) = self.cache_status {
            response.headers_mut().append(CACHE_STATUS, status.to_value());
        }
        answer::leave(response, &self.client, &self.exchange)
    }

    /// Asks the nodes, and gives the answer as it came, without what was about the connection.
    pub(super) async fn ask(&mut self) -> Result<Response<AnswerBody>, Problem> {
        let answered = self.attempts().await?;
        if answered.head.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.failed(Failure::Malformed));
        }
        self.take_back(answered).await
    }

    /// The same way to the same nodes, with another request.
    pub(super) fn again(&self, request: Request<Outgoing>) -> Journey {
        Journey {
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
            body_limit: self.body_limit,
            cache_status: None,
            claimed: None,
        }
    }

    /// Makes a node's answer this client's: the route's fields, and the cookie.
    pub(super) fn for_client(&self, response: Response<AnswerBody>) -> Response<ResponseBody> {
        let (mut head, body) = response.into_parts();
        self.route.response_fields.apply(&mut head.headers);
        if let Some(NewCookie(cookie)) = head.extensions.remove() {
            head.headers.append(SET_COOKIE, cookie);
        }
        Response::from_parts(head, ResponseBody::answer(body, &self.exchange))
    }

    /// Tries the key's nodes in turn, as long as nothing was sent.
    async fn attempts(&mut self) -> Result<Answered, Problem> {
        let pool = Arc::clone(&self.pool);
        let mut failure = None;
        let mut full = false;
        let mut attempts = 0;
        if self.choice.is_gone {
            return Err(session_node_gone());
        }
        for node in self.choice.candidates(&pool) {
            if attempts > RETRIES {
                break;
            }
            let Some(in_flight) = node.runtime.begin(pool.connections.max_per_node) else {
                full = true;
                continue;
            };
            if let Some(failed) = failure {
                self.engine.ledger.retried(&pool.name, failed);
            }
            attempts += 1;
            self.exchange.attempts.set(attempts);
            self.exchange.sent_to(&pool.name, &node.id);
            // The first attempt begins with the exchange: one look at the clock is enough for both.
            let started = if attempts == 1 { self.began() } else { Instant::now() };
            match self.attempt(node, started).await {
                Attempt::Answered(head, link) => {
                    node.runtime.count("answer");
                    self.exchange.first_byte_time.set(Some(link.last_activity() - started));
                    let cookie = self.cookie(node);
                    return Ok(Answered { head, link, in_flight, started, cookie });
                }
                Attempt::Again(failed) => {
                    node.runtime.count(failed.label());
                    failure = Some(failed);
                }
                Attempt::Over(failed) => {
                    node.runtime.count(failed.label());
                    return Err(self.failed(failed));
                }
            }
        }
        Err(match failure {
            Some(_) if self.choice.pinned.is_some() && !self.choice.may_leave => session_node_gone(),
            Some(failed) => self.failed(failed),
            None => unavailable(full),
        })
    }

    /// The affinity cookie that this node's answer brings.
    fn cookie(&self, node: &Node) -> Option<HeaderValue> {
        let secure = match &self.choice.issue {
            Issue::Nothing => return None,
            Issue::Soft(cookie) => return Some(cookie.clone()),
            Issue::IfMoved { .. } if self.choice.pinned.is_some_and(|index| self.pool.nodes[index].id == node.id) => {
                return None;
            }
            Issue::Strict { secure } | Issue::IfMoved { secure } => *secure,
        };
        self.route.affinity.as_ref()?.strict_cookie(&node.id, &self.pool.name, secure, seconds_since_1970())
    }

    /// One node: on a kept connection if there is one, on a new one where that turns out to be dead.
    async fn attempt(&mut self, node: &Node, started: Instant) -> Attempt {
        self.name_host(node);
        let length = self.claimed.and(self.request.as_ref()).map(length_of);
        loop {
            let kept = self.engine.links.take(&node.runtime, self.claimed.map(|_| FRESH));
            let is_new = kept.is_none();
            let (mut link, started) = match kept {
                Some(link) => (link, started),
                None => match self.connect(node).await {
                    Ok(link) => (link, Instant::now()),
                    Err(failure) => return Attempt::Again(failure),
                },
            };
            let patience = Patience { started, first_byte: self.pool.timeouts.first_byte, until: self.until() };
            let on_interim = self.wants_interim.then_some(|interim: Interim| match &self.gate {
                Some(gate) if interim.is_continue() => gate.open(),
                _ => self.client.interim(&interim.to_http1()),
            });
            let before = link.sent();
            let outcome =
                link.send(&mut self.request, patience, on_interim, || self.client.awaits_body.get().is_some()).await;
            if let Some(reach) = &mut self.claimed {
                reach.sent = !matches!(outcome, Outcome::NotSent(_));
                reach.whole = length.is_some_and(|length| link.sent() - before >= length);
            }
            match outcome {
                Outcome::Answer(head) => return Attempt::Answered(head, link),
                Outcome::NotSent(_) if !is_new && self.request.is_some() => {}
                Outcome::NotSent(failure) if self.request.is_some() => return Attempt::Again(failure),
                Outcome::NotSent(failure) | Outcome::SentNoAnswer(failure) => return Attempt::Over(failure),
            }
        }
    }

    async fn connect(&self, node: &Node) -> Result<Box<Link>, Failure> {
        let started = Instant::now();
        let timeout = connect_timeout(self.pool.timeouts.connect, self.until());
        // Boxed, for most requests find a kept connection.
        let link = Box::pin(Link::connect(node.address, timeout)).await?;
        self.exchange.connect_time.set(Some(started.elapsed()));
        Ok(link)
    }

    /// HTTP/1.0 clients may name no host; HTTP/1.1 nodes want one.
    fn name_host(&mut self, node: &Node) {
        if let Some(request) = &mut self.request
            && !request.headers().contains_key(HOST)
            && let Ok(host) = HeaderValue::try_from(node.address.to_string())
        {
            request.headers_mut().insert(HOST, host);
        }
    }

    /// When the whole request must be over.
    fn until(&self) -> Option<Instant> {
        let total = self.pool.timeouts.total;
        (!total.is_zero()).then(|| self.began() + total)
    }

    fn began(&self) -> Instant {
        self.claimed.map_or(self.exchange.started, |reach| reach.began)
    }

    /// What the client is told when no node answered.
    fn failed(&self, failure: Failure) -> Problem {
        if let Some(fault) = self.exchange.body_fault.get() {
            return self.body_problem(fault);
        }
        self.exchange.ended("upstream");
        tracing::debug!(pool = &*self.pool.name, failure = failure.label(), "no answer from a node");
        let (status, kind) = match failure {
            Failure::ConnectTimeout | Failure::Timeout => (StatusCode::GATEWAY_TIMEOUT, "upstream-timeout"),
            _ => (StatusCode::BAD_GATEWAY, "upstream-failed"),
        };
        Problem::new(status, kind, failure.proxy_status(), failure.to_string())
    }

    /// What the client is told of its own body.
    pub(super) fn body_problem(&self, fault: BodyFault) -> Problem {
        match fault {
            BodyFault::TooLarge => too_large(self.body_limit),
            BodyFault::Malformed => Problem::bad_request("bad-chunk", "the request's chunked body is malformed"),
            BodyFault::ClientGone => Problem::bad_request("incomplete-request", "the request's body ended early"),
            BodyFault::Stalled => {
                let detail = "the request's body stopped arriving";
                Problem::new(StatusCode::REQUEST_TIMEOUT, "request-timeout", "http_request_error", detail).closing()
            }
        }
    }

    /// Takes a node's answer off its connection.
    async fn take_back(&self, answered: Answered) -> Result<Response<AnswerBody>, Problem> {
        let Answered { head, link, in_flight, started, cookie } = answered;
        let (mut head, body) = head.into_parts();
        match fields::transfer_coding(&head.headers) {
            TransferCoding::Unsupported => return Err(self.failed(Failure::Malformed)),
            // The chunks are what was read; a length beside them is not to be believed (RFC 9112 6.3).
            TransferCoding::Chunked => drop(head.headers.remove(CONTENT_LENGTH)),
            TransferCoding::None => {}
        }
        fields::strip_response(&mut head.headers);
        if let Some(cookie) = cookie {
            head.extensions.insert(NewCookie(cookie));
        }
        let connections = &self.pool.connections;
        let keep = Keep {
            links: Rc::clone(&self.engine.links),
            timeout: connections.idle_timeout,
            max_idle: connections.max_idle_per_node,
        };
        let mut body = AnswerBody::new(body, link, in_flight, started, (self.pool.timeouts.idle, self.until()), keep);
        poll_fn(|cx| {
            body.finish_if_empty(cx);
            Poll::Ready(())
        })
        .await;
        head.version = Version::HTTP_11;
        Ok(Response::from_parts(head, body))
    }

    /// A 101: where it was asked for, the connection becomes a tunnel once the client has the answer.
    async fn switch(&self, answered: Answered) -> Result<Response<ResponseBody>, Problem> {
        let (mut head, _) = answered.head.into_parts();
        let protocol = fields::strip_response(&mut head.headers).filter(|_| self.may_switch);
        let Some(protocol) = protocol else {
            return Err(self.failed(Failure::Malformed));
        };
        let Some(node) = answered.link.into_switched().await else {
            return Err(self.failed(Failure::Terminated));
        };
        self.route.response_fields.apply(&mut head.headers);
        if let Some(cookie) = answered.cookie {
            head.headers.append(SET_COOKIE, cookie);
        }
        *self.client.tunnel.borrow_mut() = Some(Tunnel {
            node,
            in_flight: answered.in_flight,
            exchange: Rc::clone(&self.exchange),
            idle: self.pool.timeouts.tunnel,
        });
        head.headers.insert(UPGRADE, protocol);
        head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        Ok(Response::from_parts(head, ResponseBody::empty(&self.exchange)))
    }
}

/// How many bytes a request takes on the wire, at least.
fn length_of(request: &Request<Outgoing>) -> u64 {
    let target = request.uri().path_and_query().map_or(1, |target| target.as_str().len());
    let line = request.method().as_str().len() + target + "  HTTP/1.1\r\n\r\n".len();
    let fields: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    (line + fields) as u64 + http_body::Body::size_hint(request.body()).lower()
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
