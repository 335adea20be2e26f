//! One attempt: a request at one node, on a kept connection if there is one, and on a new one if that is stale.

use super::answer::Carrier;
use super::connections::NodeConnections;
use super::deadlines::Deadlines;
use super::http2::Admission;
use super::interim::Interim;
use super::link::{AttemptLimits, Link, SendResult};
use super::observer::Observer;
use super::pool::{Node, Pool};
use super::retry::{RetrySafety, Setback};
use super::{Outgoing, UpstreamError};
use http::header::HOST;
use http::{HeaderValue, Request, Response};
use std::time::{Duration, Instant};

/// The longest idle time of a kept connection for a request that must not run twice: the node may be closing one that
/// was idle for longer, which would leave it unknown whether the request has run.
const FRESH: Duration = Duration::from_secs(1);

/// The part of a request that has been sent. `sent` and `whole` are noted for requests that run at most once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    /// A part of the request was sent.
    pub(crate) sent: bool,
    /// All of the request was sent when the response began.
    pub(crate) whole: bool,
    /// A part of the request was sent to a node that has not answered it, or not for itself (502, 504), so that it may
    /// still take effect. Noted for all requests.
    pub(crate) unanswered: bool,
}

/// The result of one attempt.
pub(super) enum AttemptResult {
    Response(Response<()>, Carrier),
    Failed {
        failure: UpstreamError,
        /// The grounds for another attempt; none where there may be none.
        setback: Option<Setback>,
        /// The failure counts against the node.
        is_the_nodes: bool,
    },
}

/// The result of an attempt that has found its connection too late to send anything.
const LAPSED: AttemptResult =
    AttemptResult::Failed { failure: UpstreamError::ClaimLapsed, setback: None, is_the_nodes: false };

/// An attempt at a node, with its terms.
pub(super) struct Attempt<'a, O> {
    pub(super) connections: &'a NodeConnections,
    pub(super) pool: &'a Pool,
    pub(super) node: &'a Node,
    pub(super) observer: &'a O,
    pub(super) retries: RetrySafety,
    pub(super) deadlines: Deadlines,
    /// When the attempt began.
    pub(super) started: Instant,
    /// Kept connections are not used: one has just turned out to be stale.
    pub(super) wants_new: bool,
}

impl<O: Observer> Attempt<'_, O> {
    /// Sends the request over HTTP/1. It is taken, and put back where it was not sent.
    pub(super) async fn http1(&self, request: &mut Option<Request<Outgoing>>, reach: &mut Reach) -> AttemptResult {
        self.name_host(request);
        let observer = self.observer;
        let length = self.within().and(request.as_ref()).map(length_of);
        let mut wants_new = self.wants_new;
        loop {
            let take = || self.connections.idle.take(&self.node.runtime, self.within());
            let kept = if wants_new { None } else { take() };
            let is_new = kept.is_none();
            let (mut link, started) = match kept {
                Some(link) => (link, self.started),
                None => match self.connect().await {
                    Ok(link) => (link, Instant::now()),
                    Err(failed) => return failed,
                },
            };
            if self.deadlines.has_lapsed() {
                return LAPSED;
            }
            let on_interim = observer.wants_interim().then_some(|interim: Interim| observer.interim(&interim));
            let before = link.sent();
            let outcome = link.send(request, self.limits(started), on_interim, || observer.is_client_slow()).await;
            let is_client_slow = observer.is_client_slow();
            reach.unanswered |= matches!(outcome, SendResult::Stale(_) | SendResult::SentNoAnswer(_));
            if self.retries == RetrySafety::AtMostOnce {
                reach.sent = !matches!(outcome, SendResult::NotSent(_));
                reach.whole = length.is_some_and(|length| link.sent() - before >= length);
            }
            let (failure, sent) = match outcome {
                SendResult::Answer(head) => return AttemptResult::Response(head, Carrier::Own(link)),
                SendResult::NotSent(_) if !is_new && request.is_some() => {
                    wants_new = true;
                    continue;
                }
                SendResult::Stale(failure) if self.retries == RetrySafety::ByMethod => {
                    return failed(failure, Setback::StaleConnection, false);
                }
                SendResult::NotSent(failure) => (failure, false),
                SendResult::Unprocessed { .. } => (UpstreamError::Terminated, true),
                SendResult::Stale(failure) | SendResult::SentNoAnswer(failure) => (failure, true),
            };
            return self.judge(failure, sent, is_client_slow, link.last_activity());
        }
    }

    /// Sends the request over a connection of HTTP/2, which requests share.
    pub(super) async fn http2(&self, request: &mut Option<Request<Outgoing>>, reach: &mut Reach) -> AttemptResult {
        let observer = self.observer;
        let (mut wants_new, mut has_waited) = (self.wants_new, false);
        loop {
            let links = &self.connections.shared;
            let take = || links.take(&self.node.runtime, self.within());
            let kept = if wants_new { None } else { take() };
            let is_new = kept.is_none();
            let mut link = match kept {
                Some(link) => link,
                // Once: the request that connects may fail, and then each other one connects for itself.
                None if !std::mem::replace(&mut has_waited, true)
                    && links.wait(&self.node.runtime, self.connect_timeout()).await =>
                {
                    // The connections there are now were made after the stale one.
                    wants_new = false;
                    continue;
                }
                None => {
                    let (began, timeout) = (Instant::now(), self.connect_timeout());
                    match links.connect(&self.node.runtime, &self.node.endpoint, timeout).await {
                        Ok(link) => {
                            observer.connected(began.elapsed());
                            link
                        }
                        Err(failure) => return self.not_connected(failure, timeout),
                    }
                }
            };
            if self.within().is_some() {
                let timeout = self.deadlines.before_lapse(self.connect_timeout());
                match link.admission(timeout).await {
                    Admission::Admitted => {}
                    _ if self.deadlines.has_lapsed() => return LAPSED,
                    Admission::Full => {
                        wants_new = true;
                        continue;
                    }
                    Admission::Unknown => return self.not_connected(UpstreamError::ConnectTimeout, timeout),
                }
            }
            if self.deadlines.has_lapsed() {
                return LAPSED;
            }
            let started = if is_new { Instant::now() } else { self.started };
            observer.cannot_hear_interim();
            let is_slow = || observer.is_client_slow();
            let outcome = link.send(&self.node.endpoint, request, self.limits(started), is_new, is_slow).await;
            let is_client_slow = is_slow();
            reach.unanswered |= matches!(outcome, SendResult::Stale(_) | SendResult::SentNoAnswer(_));
            if self.retries == RetrySafety::AtMostOnce {
                reach.sent = !matches!(outcome, SendResult::NotSent(_) | SendResult::Unprocessed { .. });
                // The connection does not report how much of a stream was sent; all of it is assumed.
                reach.whole = reach.sent;
            }
            let (failure, sent) = match outcome {
                SendResult::Answer(head) => return AttemptResult::Response(head, Carrier::Shared(link)),
                SendResult::NotSent(_) if !is_new && request.is_some() => {
                    wants_new = true;
                    continue;
                }
                // The request of a client that has failed is not sent to another node.
                SendResult::Unprocessed { is_refusal } if !observer.has_body_failed() => {
                    return failed(UpstreamError::Terminated, Setback::UnprocessedStream, is_refusal);
                }
                SendResult::Stale(failure) if self.retries == RetrySafety::ByMethod && !observer.has_body_failed() => {
                    return failed(failure, Setback::StaleConnection, false);
                }
                SendResult::NotSent(failure) => (failure, false),
                SendResult::Unprocessed { .. } => (UpstreamError::Terminated, true),
                SendResult::Stale(failure) | SendResult::SentNoAnswer(failure) => (failure, true),
            };
            // hyper resets a stream whose body fails, and reports nothing else.
            return self.judge(failure, sent, is_client_slow, link.last_activity());
        }
    }

    /// Returns a new connection.
    async fn connect(&self) -> Result<Box<Link>, AttemptResult> {
        let (started, timeout) = (Instant::now(), self.connect_timeout());
        // Boxed, for most requests find a kept connection.
        let link = Box::pin(Link::connect(&self.node.endpoint, timeout)).await;
        let link = link.map_err(|failure| self.not_connected(failure, timeout))?;
        self.observer.connected(started.elapsed());
        Ok(link)
    }

    /// Returns the result of a connection that was not established within `timeout`. It counts against the node, unless
    /// the end of the request has shortened the time.
    fn not_connected(&self, failure: UpstreamError, timeout: Duration) -> AttemptResult {
        let had_its_time = failure != UpstreamError::ConnectTimeout || timeout == self.pool.timeouts.connect;
        failed(failure, Setback::NotSent, had_its_time)
    }

    /// Returns the result of an attempt without a response: for the request, and for its node.
    fn judge(&self, failure: UpstreamError, sent: bool, is_client_slow: bool, last_activity: Instant) -> AttemptResult {
        let first_byte = self.pool.timeouts.first_byte;
        // Once the request's body has failed, all that follows is the client's failure.
        let failure = if self.observer.has_body_failed() { UpstreamError::RequestBody } else { failure };
        let setback = match failure {
            UpstreamError::RequestBody => None,
            UpstreamError::Timeout if is_client_slow => None,
            _ if !sent => Some(Setback::NotSent),
            UpstreamError::Timeout => Some(Setback::Late),
            _ => Some(Setback::Reset),
        };
        // The end of the whole request is not the node's failure, if the node's own timeout had not passed.
        let had_its_time = failure != UpstreamError::Timeout
            || (!is_client_slow && !first_byte.is_zero() && last_activity.elapsed() >= first_byte);
        AttemptResult::Failed { failure, setback, is_the_nodes: failure.is_the_nodes() && had_its_time }
    }

    /// Returns the longest time for which a kept connection may have been idle; none where that does not matter.
    fn within(&self) -> Option<Duration> {
        (self.retries == RetrySafety::AtMostOnce).then_some(FRESH)
    }

    fn limits(&self, started: Instant) -> AttemptLimits {
        AttemptLimits { started, first_byte: self.pool.timeouts.first_byte, until: self.deadlines.until }
    }

    /// Returns the timeout of connecting, shortened by the end of the whole request.
    fn connect_timeout(&self) -> Duration {
        let connect = self.pool.timeouts.connect;
        let Some(until) = self.deadlines.until else { return connect };
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        if connect.is_zero() { left } else { connect.min(left) }
    }

    /// Adds the node's address as `Host` where it is missing: HTTP/1.0 clients may send none; HTTP/1.1 nodes require
    /// one.
    fn name_host(&self, request: &mut Option<Request<Outgoing>>) {
        if let Some(request) = request
            && !request.headers().contains_key(HOST)
            && let Ok(host) = HeaderValue::try_from(self.node.address().to_string())
        {
            request.headers_mut().insert(HOST, host);
        }
    }
}

impl<O> Attempt<'_, O> {
    /// Counts a failure at the node, and logs one that an operator has to mend.
    pub(super) fn note_failure(&self, failure: UpstreamError) {
        let (node, runtime) = (self.node, &self.node.runtime);
        if matches!(failure, UpstreamError::TlsCertificate(_)) && runtime.may_warn(self.started) {
            tracing::warn!(pool = &*self.pool.name, node = &*node.id, address = %node.address(), "{failure}");
        }
        runtime.count(failure.label());
    }
}

fn failed(failure: UpstreamError, setback: Setback, is_the_nodes: bool) -> AttemptResult {
    AttemptResult::Failed { failure, setback: Some(setback), is_the_nodes }
}

/// Returns the least number of bytes that a request takes on a connection of HTTP/1.
fn length_of(request: &Request<Outgoing>) -> u64 {
    let target = request.uri().path_and_query().map_or(1, |target| target.as_str().len());
    let line = request.method().as_str().len() + target + "  HTTP/1.1\r\n\r\n".len();
    let fields: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    (line + fields) as u64 + http_body::Body::size_hint(request.body()).lower()
}
