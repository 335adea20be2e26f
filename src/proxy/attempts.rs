//! A request's way from node to node: the first one that its key finds, and the next ones where that is
//! allowed, until one answers.
//!
//! What is tried again: anything of which no byte was sent; what a node declares that it did not begin with; what may
//! run twice and met a stale connection; and, where the pool says so, what may run twice and is still all here. Each is
//! within `attempts` and the budget. A request that must run once is sent again only where it has not run for sure.

use super::exchange::BodyFault;
use super::plan::CookieRule;
use super::problems::session_node_gone;
use super::request_buffer;
use super::upstream::{Answered, UpstreamRequest};
use crate::config::Protocol;
use crate::http::date;
use crate::http::problem::{Problem, ProblemKind};
use crate::idempotency::BootTime;
use crate::upstream::{
    Carrier, Failure, InFlight, Interim, Link, Nobody, Node, Outcome, Outgoing, Patience, Picked, Pool, ReplayBody,
    Setback, Tried, is_idempotent, millis,
};
use http::header::HOST;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A request that must not run twice goes out on a connection that is new, or was in use just now: one
/// that the node is closing would leave nobody knowing.
const FRESH: Duration = Duration::from_secs(1);

/// The result of one attempt at a node.
enum Attempt {
    Answered(Response<Incoming>, Carrier),
    /// No answer; what may be done about it, and whether it speaks against the node.
    Failed(Failure, Option<Setback>, bool),
}

/// The attempts that were made for a request.
#[derive(Clone, Copy)]
struct SoFar<'a> {
    tried: &'a Tried,
    made: u32,
    in_panic: bool,
}

/// A request as it was before it was sent, for the next node.
struct Spare {
    method: Method,
    uri: Uri,
    fields: HeaderMap,
    body: Option<ReplayBody>,
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

impl UpstreamRequest {
    /// Asks the key's nodes in turn. The last one's answer is given, or why there is none.
    pub(super) async fn attempts(&mut self) -> Result<Answered, Problem> {
        self.count()?;
        let pool = Arc::clone(&self.pool);
        let mut tried = Tried::new();
        // The first attempt begins with the exchange, where nothing was waited for: one look at the clock is enough
        // for both.
        let mut started = if self.wait_for_small_body().await? { Instant::now() } else { self.began() };
        // Nobody overtakes those who wait.
        let picked = match pool.group.queue.waiting() {
            0 => pool.pick(&self.choice.wanted, &tried, started),
            _ => Err(Nobody::Full),
        };
        let mut picked = match picked {
            Ok(picked) => picked,
            Err(nobody) => {
                let picked = Box::pin(self.wait_for_room(&pool, nobody)).await?;
                started = Instant::now();
                picked
            }
        };
        pool.group.budget.deposit(pool.retries.budget);
        let spare = self.spare(&pool);
        let mut made = 0;
        // A kept connection has turned out to be stale: the next attempt takes a new one.
        let mut wants_new = false;
        // The node of a strict session could not be reached.
        let mut has_lost_its_node = false;
        loop {
            let node = &pool.nodes[picked.node];
            if !tried.contains(&picked.node) {
                tried.push(picked.node);
            }
            made += 1;
            self.exchange.attempts.set(made);
            self.exchange.sent_to(&pool.name, &node.id);
            let mut in_flight = picked.in_flight;
            let (result, setback) = match match pool.protocol {
                Protocol::Http1 => self.attempt(node, started, wants_new).await,
                Protocol::Http2 => Box::pin(self.attempt_http2(node, started, wants_new)).await,
            } {
                Attempt::Answered(head, carrier) => {
                    in_flight.comes_to("answer");
                    judge(head.status(), &mut in_flight);
                    self.exchange.first_byte_time.set(Some(carrier.last_activity().saturating_duration_since(started)));
                    let setback = Setback::Status(head.status());
                    (Ok(Answered { head, carrier, in_flight, started, cookie: None }), Some(setback))
                }
                Attempt::Failed(failure, setback, is_the_nodes) => {
                    if matches!(failure, Failure::TlsCertificate(_)) && node.runtime.may_warn(started) {
                        let (pool, node, address) = (&*pool.name, &*node.id, node.address());
                        tracing::warn!(pool, node, %address, "{failure}");
                    }
                    node.runtime.count(failure.label());
                    if is_the_nodes {
                        in_flight.failed();
                    }
                    (Err(failure), setback)
                }
            };
            has_lost_its_node |= setback == Some(Setback::NotSent) && self.choice.wanted.pinned == Some(picked.node);
            wants_new = setback == Some(Setback::StaleConnection);
            let so_far = SoFar { tried: &tried, made, in_panic: picked.in_panic };
            let next = setback.and_then(|setback| self.next(&pool, setback, so_far, spare.as_ref()));
            match (next, result) {
                (Some(next), result) => {
                    match (setback.and_then(Setback::reason), &result) {
                        (Some(reason), _) => pool.group.retried(reason),
                        (None, Ok(answered)) => pool.group.retried(answered.head.status().as_str()),
                        (None, Err(failure)) => pool.group.retried(failure.label()),
                    }
                    // Its connection is closed, and its place is free for others.
                    drop(result);
                    (picked, started) = (next, Instant::now());
                }
                (None, Ok(mut answered)) => {
                    answered.cookie = self.cookie(node, has_lost_its_node);
                    return Ok(answered);
                }
                (None, Err(_)) if setback == Some(Setback::NotSent) && self.is_bound() => {
                    return Err(session_node_gone());
                }
                (None, Err(failure)) => return Err(self.failed(failure)),
            }
        }
    }

    /// Awaits the body where it is small. Gives whether there was one.
    async fn wait_for_small_body(&mut self) -> Result<bool, Problem> {
        let (limit, until) = (self.request_buffer, self.until());
        let Some(request) = self.request.as_mut().filter(|request| request_buffer::is_small(request.body(), limit))
        else {
            return Ok(false);
        };
        // One that the node has to ask for is waited for by the node. Where much is held already bodies stream: slow
        // clients are not to take the rest.
        if self.gate.is_some() || self.engine.budget.is_half_held() {
            return Ok(false);
        }
        let share = self.engine.budget.nothing();
        let body = std::mem::replace(request.body_mut(), Outgoing::Empty);
        let waiting = Box::pin(request_buffer::wait_for(body, share));
        let awaited = match until {
            Some(until) => tokio::time::timeout_at(until.into(), waiting).await,
            None => Ok(waiting.await),
        };
        match awaited {
            Ok(Ok(body)) => *request.body_mut() = body,
            Ok(Err(_)) => return Err(self.failed(Failure::RequestBody)),
            Err(_) => {
                self.exchange.body_failed(BodyFault::Stalled);
                return Err(self.failed(Failure::RequestBody));
            }
        }
        Ok(true)
    }

    /// The node for another attempt, if there may be one; the request is here again then.
    fn next(&mut self, pool: &Pool, setback: Setback, so_far: SoFar<'_>, spare: Option<&Spare>) -> Option<Picked> {
        let spare = spare.filter(|spare| spare.is_whole());
        let is_here = self.request.is_some() || spare.is_some();
        let now = Instant::now();
        // In panic all nodes are tried, as far as the budget reaches.
        let is_within = so_far.made <= pool.retries.attempts;
        // What is here again after it was written may run twice, if it is not to run once.
        let method = self.request.as_ref().map(Request::method).or(spare.map(|spare| &spare.method));
        let repeatable = self.claimed.is_none() && method.is_some_and(is_idempotent);
        if !is_here
            || !pool.retries.cover(setback, repeatable)
            || self.until().is_some_and(|until| now >= until)
            || !(is_within || so_far.in_panic || pool.is_panic(millis(now)))
        {
            return None;
        }
        let next = match pool.pick(&self.choice.wanted, so_far.tried, now) {
            Err(_) if setback.leaves_the_node() && is_within => pool.pick(&self.choice.wanted, &[], now).ok()?,
            picked => picked.ok()?,
        };
        if !pool.group.budget.withdraw(millis(now)) {
            pool.group.retries_denied.inc();
            return None;
        }
        if let (None, Some(spare)) = (&self.request, spare) {
            self.request = Some(spare.request());
        }
        Some(next)
    }

    /// What is kept of a request that may be sent more than once. Requests without a body come back by other ways
    /// where a kept connection was stale, or a stream was not processed; see [`Outcome`].
    fn spare(&mut self, pool: &Pool) -> Option<Spare> {
        let reaches_further = pool.retries.reach_beyond_sending() && pool.nodes.len() > 1;
        let (claimed, is_http2) = (self.claimed.is_some(), pool.protocol == Protocol::Http2);
        let request = self.request.as_mut().filter(|request| {
            let has_body = !matches!(request.body(), Outgoing::Empty);
            let may_run_twice = is_idempotent(request.method()) && !claimed;
            pool.retries.attempts > 0 && ((may_run_twice && (has_body || reaches_further)) || (has_body && is_http2))
        })?;
        let share = self.engine.budget.nothing();
        let body = match std::mem::replace(request.body_mut(), Outgoing::Empty) {
            Outgoing::Empty => None,
            Outgoing::Stream(body) => match ReplayBody::new(body, pool.retries.max_body, share) {
                Ok(held) => {
                    *request.body_mut() = held.outgoing();
                    Some(held)
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
    async fn wait_for_room(&self, pool: &Pool, nobody: Nobody) -> Result<Picked, Problem> {
        if nobody == Nobody::Unavailable {
            return Err(self.unavailable());
        }
        let limits = &pool.connections;
        let wanted = &self.choice.wanted;
        let queue = match wanted.pinned {
            Some(node) if self.is_bound() => &pool.nodes[node].runtime.queue,
            _ => &pool.group.queue,
        };
        let mut others_wait = queue.waiting() > 0;
        let waiting = queue.join(limits.max_queued).ok_or_else(full)?;
        let deadline = Instant::now() + limits.queue_timeout;
        let deadline = self.until().map_or(deadline, |until| until.min(deadline));
        let picked = loop {
            let mut room = pin!(waiting.room());
            // From here on nothing goes unheard.
            room.as_mut().enable();
            if !std::mem::take(&mut others_wait) {
                match pool.pick(wanted, &[], Instant::now()) {
                    Ok(picked) => break Ok(picked),
                    Err(Nobody::Unavailable) => break Err(self.unavailable()),
                    Err(Nobody::Full) => {}
                }
            }
            if tokio::time::timeout_at(deadline.into(), room).await.is_err() {
                break Err(full());
            }
        };
        if picked.is_err() && self.is_bound() {
            // What was told here may have been of use to somebody there.
            pool.group.queue.let_one_in();
        }
        picked
    }

    /// Returns whether the request may go to no other node than that of its session.
    fn is_bound(&self) -> bool {
        self.choice.wanted.pinned.is_some() && !self.choice.wanted.may_leave
    }

    /// No node could even be tried.
    fn unavailable(&self) -> Problem {
        if self.is_bound() {
            return session_node_gone();
        }
        let detail = "no node of the pool takes requests";
        Problem::new(ProblemKind::NoHealthyNode, detail).retry_after(1)
    }

    /// Returns the affinity cookie that this node's answer brings.
    fn cookie(&self, node: &Node, has_lost_its_node: bool) -> Option<HeaderValue> {
        let holder = self.choice.wanted.pinned.map(|index| &self.pool.nodes[index]);
        let is_holder = holder.is_some_and(|holder| holder.id == node.id);
        if let (true, Some(end)) = (is_holder, self.choice.session_end) {
            node.runtime.sessions.used(end, date::unix_seconds());
        }
        // A session whose node was only full, or failed once, is its own all the same.
        let stays = |holder: &Node| !has_lost_its_node && holder.runtime.takes_sessions(millis(Instant::now()));
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
        let now = date::unix_seconds();
        node.runtime.sessions.issued(now + affinity.ttl);
        affinity.strict_cookie(&node.id, &self.pool.name, secure, now)
    }

    /// One node: on a kept connection if there is one, on a new one where that turns out to be dead.
    async fn attempt(&mut self, node: &Node, started: Instant, mut wants_new: bool) -> Attempt {
        self.name_host(node);
        let length = self.claimed.and(self.request.as_ref()).map(length_of);
        loop {
            let take = || self.engine.links.take(&node.runtime, self.claimed.map(|_| FRESH));
            let kept = if wants_new { None } else { take() };
            let is_new = kept.is_none();
            let (mut link, started) = match kept {
                Some(link) => (link, started),
                None => match self.connect(node).await {
                    Ok(link) => (link, Instant::now()),
                    Err((failure, had_its_time)) => {
                        return Attempt::Failed(failure, Some(Setback::NotSent), had_its_time);
                    }
                },
            };
            if self.has_lapsed() {
                return Attempt::Failed(Failure::ClaimLapsed, None, false);
            }
            let first_byte = self.pool.timeouts.first_byte;
            let patience = Patience { started, first_byte, until: self.until() };
            let is_heard = self.wants_interim || self.gate.is_some();
            let on_interim = is_heard.then_some(|interim: Interim| match &self.gate {
                Some(gate) if interim.is_continue() => gate.open(),
                _ if self.wants_interim => self.client.interim(&interim.to_http1()),
                _ => {}
            });
            let before = link.sent();
            let waits_for_client =
                || self.client.awaits_body.get().is_some() || self.gate.as_ref().is_some_and(|gate| !gate.is_open());
            let outcome = link.send(&mut self.request, patience, on_interim, waits_for_client).await;
            let client_is_slow = waits_for_client();
            if let Some(reach) = &mut self.claimed {
                reach.sent = !matches!(outcome, Outcome::NotSent(_));
                reach.whole = length.is_some_and(|length| link.sent() - before >= length);
            }
            let (failure, sent) = match outcome {
                Outcome::Answer(head) => return Attempt::Answered(head, Carrier::Own(link)),
                Outcome::NotSent(_) if !is_new && self.request.is_some() => {
                    wants_new = true;
                    continue;
                }
                Outcome::Stale(failure) if self.claimed.is_none() => {
                    return Attempt::Failed(failure, Some(Setback::StaleConnection), false);
                }
                Outcome::NotSent(failure) => (failure, false),
                Outcome::Unprocessed { .. } => (Failure::Terminated, true),
                Outcome::Stale(failure) | Outcome::SentNoAnswer(failure) => (failure, true),
            };
            return judge_failure(self.blame(failure), sent, client_is_slow, link.last_activity(), first_byte);
        }
    }

    /// Returns whether the request holds a claim that is too old to send anything under it.
    fn has_lapsed(&self) -> bool {
        self.claimed.and_then(|reach| reach.by).is_some_and(|by| BootTime::now() >= by)
    }

    /// Returns the failure of an attempt: the client's, once the request's body has failed, whatever the node did.
    fn blame(&self, failure: Failure) -> Failure {
        if self.exchange.body_fault.get().is_some() { Failure::RequestBody } else { failure }
    }

    /// Returns the same over a connection that requests share.
    async fn attempt_http2(&mut self, node: &Node, started: Instant, mut wants_new: bool) -> Attempt {
        let mut has_waited = false;
        loop {
            let take = || self.engine.shared_links.take(&node.runtime, self.claimed.map(|_| FRESH));
            let kept = if wants_new { None } else { take() };
            let is_new = kept.is_none();
            let mut link = match kept {
                Some(link) => link,
                // Once: whoever connects may fail, and each request has that for itself then.
                None if !std::mem::replace(&mut has_waited, true)
                    && self
                        .engine
                        .shared_links
                        .wait(&node.runtime, connect_timeout(self.pool.timeouts.connect, self.until()))
                        .await =>
                {
                    // What there is now was made after the stale one.
                    wants_new = false;
                    continue;
                }
                None => {
                    let (began, configured) = (Instant::now(), self.pool.timeouts.connect);
                    let timeout = connect_timeout(configured, self.until());
                    match self.engine.shared_links.connect(&node.runtime, &node.target, timeout).await {
                        Ok(link) => {
                            self.exchange.connect_time.set(Some(began.elapsed()));
                            link
                        }
                        Err(failure) => {
                            let had_its_time = failure != Failure::ConnectTimeout || timeout == configured;
                            return Attempt::Failed(failure, Some(Setback::NotSent), had_its_time);
                        }
                    }
                }
            };
            if self.has_lapsed() {
                return Attempt::Failed(Failure::ClaimLapsed, None, false);
            }
            let first_byte = self.pool.timeouts.first_byte;
            let started = if is_new { Instant::now() } else { started };
            let patience = Patience { started, first_byte, until: self.until() };
            if let Some(gate) = &self.gate {
                // Its interim answer would not be heard.
                gate.open();
            }
            let waits_for_client = || self.client.awaits_body.get().is_some();
            let outcome = link.send(&node.target, &mut self.request, patience, is_new, waits_for_client).await;
            let client_is_slow = waits_for_client();
            if let Some(reach) = &mut self.claimed {
                reach.sent = !matches!(outcome, Outcome::NotSent(_) | Outcome::Unprocessed { .. });
                // How much was sent nobody tells: all of it, as far as is known.
                reach.whole = reach.sent;
            }
            let (failure, sent) = match outcome {
                Outcome::Answer(head) => return Attempt::Answered(head, Carrier::Shared(link)),
                Outcome::NotSent(_) if !is_new && self.request.is_some() => {
                    wants_new = true;
                    continue;
                }
                // A client that has failed is not to have another node asked.
                Outcome::Unprocessed { is_refusal } if self.exchange.body_fault.get().is_none() => {
                    return Attempt::Failed(Failure::Terminated, Some(Setback::UnprocessedStream), is_refusal);
                }
                Outcome::Stale(failure) if self.claimed.is_none() && self.exchange.body_fault.get().is_none() => {
                    return Attempt::Failed(failure, Some(Setback::StaleConnection), false);
                }
                Outcome::NotSent(failure) => (failure, false),
                Outcome::Unprocessed { .. } => (Failure::Terminated, true),
                Outcome::Stale(failure) | Outcome::SentNoAnswer(failure) => (failure, true),
            };
            // hyper resets a stream whose body breaks, and says no more than that.
            let failure = self.blame(failure);
            return judge_failure(failure, sent, client_is_slow, link.last_activity(), first_byte);
        }
    }

    /// Returns a new connection; or why there is none, and whether the node had the time that it may take.
    async fn connect(&self, node: &Node) -> Result<Box<Link>, (Failure, bool)> {
        let started = Instant::now();
        let configured = self.pool.timeouts.connect;
        let timeout = connect_timeout(configured, self.until());
        // Boxed, for most requests find a kept connection.
        let link = Box::pin(Link::connect(&node.target, timeout)).await;
        let link = link.map_err(|failure| (failure, failure != Failure::ConnectTimeout || timeout == configured))?;
        self.exchange.connect_time.set(Some(started.elapsed()));
        Ok(link)
    }

    /// HTTP/1.0 clients may name no host; HTTP/1.1 nodes want one.
    fn name_host(&mut self, node: &Node) {
        if let Some(request) = &mut self.request
            && !request.headers().contains_key(HOST)
            && let Ok(host) = HeaderValue::try_from(node.address().to_string())
        {
            request.headers_mut().insert(HOST, host);
        }
    }
}

/// What an attempt without an answer means: for the request, and for its node.
fn judge_failure(
    failure: Failure,
    sent: bool,
    client_is_slow: bool,
    last_activity: Instant,
    first_byte: Duration,
) -> Attempt {
    let setback = match failure {
        Failure::RequestBody => None,
        Failure::Timeout if client_is_slow => None,
        _ if !sent => Some(Setback::NotSent),
        Failure::Timeout => Some(Setback::Late),
        _ => Some(Setback::Reset),
    };
    // The end of the whole request is not the node's fault, if it had no time of its own.
    let had_its_time = failure != Failure::Timeout
        || (!client_is_slow && !first_byte.is_zero() && last_activity.elapsed() >= first_byte);
    Attempt::Failed(failure, setback, failure.is_the_nodes() && had_its_time)
}

/// Tells a node's place what its answer says of the node: 502, 503 and 504 speak against it, and never 500.
fn judge(status: StatusCode, in_flight: &mut InFlight) {
    match status {
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => in_flight.failed(),
        _ => in_flight.answered(),
    }
}

/// Returns how many bytes a request takes on the wire, at least.
fn length_of(request: &Request<Outgoing>) -> u64 {
    let target = request.uri().path_and_query().map_or(1, |target| target.as_str().len());
    let line = request.method().as_str().len() + target + "  HTTP/1.1\r\n\r\n".len();
    let fields: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    (line + fields) as u64 + http_body::Body::size_hint(request.body()).lower()
}

/// Returns the time to connect within, shortened by the end of the whole request.
fn connect_timeout(connect: Duration, until: Option<Instant>) -> Duration {
    let Some(until) = until else { return connect };
    let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    if connect.is_zero() { left } else { connect.min(left) }
}

/// Every node that could take the request has as many as it may.
fn full() -> Problem {
    let detail = "every node of the pool has as many requests as it may have";
    Problem::new(ProblemKind::ConnectionLimitReached, detail).retry_after(1)
}
