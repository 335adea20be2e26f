//! The step for requests with an `Idempotency-Key`: the claim, the single run, and the response.
//!
//! Refusals by the head alone come before the body is read. The run is a task of its own, which continues when the
//! client leaves.

use super::body::RequestBody;
use super::caching::invalidation::{Invalidation, invalidation};
use super::caching::request::route_of;
use super::client_body::BodyFault;
use super::exchange::Exchange;
use super::forward::RoutedRequest;
use super::plan;
use super::problems::{over_budget, too_large};
use super::request::Form;
use super::respond::{Reply, add_route_fields};
use super::response_body::ResponseBody;
use super::snapshot::{IdempotencyResult, IdempotencyRules, Route, Snapshot};
use super::step::Step;
use super::upstream::{NewCookie, UpstreamRequest};
use crate::cache::{CacheStatus, ForwardReason};
use crate::clock::{self, BootTime};
use crate::http::budget::Share;
use crate::http::buffered_body::BufferedBody;
use crate::http::date;
use crate::http::head::RequestHead;
use crate::http::problem::{Problem, ProblemKind};
use crate::idempotency::{
    Claim, Fingerprint, Fingerprinting, Id, KeyedRequest, Origin, Outcome, Pieces, Refused, Sent, Settled, Started,
    StoredResponse, Subject, key_of, run, start,
};
use crate::upstream::{AnswerBody, Outgoing};
use http::header::{CONTENT_LENGTH, DATE, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, Response};
use http_body_util::BodyExt;
use std::rc::Rc;
use std::sync::Arc;

/// In an answer that was stored, and not just made.
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The bytes that are reserved for a body before its first byte; more are reserved as it arrives.
pub(super) const FIRST_SHARE: u64 = 64 << 10;

/// The rules for a request that must run once.
pub(super) fn rules<'a>(route: &'a Route, head: &RequestHead) -> Option<&'a Arc<IdempotencyRules>> {
    route.idempotency.as_ref().filter(|rules| {
        rules.methods.contains(&head.method) && (rules.required || head.fields.plain().contains_key(&rules.key_header))
    })
}

/// The identity of a request with a key.
pub(super) struct Identified {
    pub(super) id: Id,
    pub(super) subject: Arc<Subject>,
}

/// Returns the identity of a request with a key, or why it has none.
pub(super) fn identify(
    rules: &IdempotencyRules,
    exchange: &Exchange,
    form: &Form<'_>,
    head: &RequestHead,
) -> Result<Identified, Problem> {
    let refuse = |result: IdempotencyResult, kind, detail| {
        note(rules, exchange, result);
        Problem::new(kind, detail)
    };
    let name = &rules.key_header;
    let key = key_of(head.fields.plain(), name)
        .map_err(|bad| {
            refuse(IdempotencyResult::Invalid, ProblemKind::IdempotencyKeyInvalid, format!("`{name}`: {bad}"))
        })?
        .ok_or_else(|| refuse(IdempotencyResult::Missing, ProblemKind::IdempotencyKeyMissing, missing(name)))?;
    let scope = rules.scope.read(form, &head.fields).ok_or_else(|| {
        let sources = rules.scope.names().join(", ");
        let detail = format!("the request has none of the fields that tell callers apart: {sources}");
        refuse(IdempotencyResult::Invalid, ProblemKind::ScopeMissing, detail)
    })?;
    let subject = plan::subject(&rules.namespace, head, form, key);
    Ok(Identified { id: subject.identify(&scope), subject: Arc::new(subject) })
}

/// Refuses a request by its head, or begins to answer it.
pub(super) fn begin(
    snapshot: &Snapshot,
    mut routed: RoutedRequest<'_>,
    rules: &Arc<IdempotencyRules>,
    head: RequestHead,
) -> Result<Step, Problem> {
    let Identified { id, subject } = identify(rules, routed.exchange, &routed.form, &head)?;
    let announced = routed.form.content_length.unwrap_or_default();
    if announced > rules.max_request {
        return Err(too_large(rules.max_request));
    }
    let budget = &routed.worker.budget;
    let held = budget.share(announced.min(FIRST_SHARE)).ok_or_else(over_budget)?;
    let share = budget.share(FIRST_SHARE.min(rules.policy.max_response)).ok_or_else(over_budget)?;

    let begin = if rules.is_canonical { Fingerprint::canonical } else { Fingerprint::exact };
    let fingerprint = begin(routed.form.query.as_deref(), head.fields.plain());
    let invalidation = route_of(snapshot, &routed, &head).and_then(|caching| invalidation(&routed, &caching, &head));
    // The proxy reads the body itself, so the expectation is not forwarded.
    routed.form.expects_continue = false;
    let mut upstream_request = routed.upstream_request_with(head, Outgoing::Empty)?;
    upstream_request.context.body_limit = rules.max_request;
    upstream_request.cache_status = routed.route.cache.as_ref().map(|_| CacheStatus::forwarded(ForwardReason::Method));
    let body_rules = routed.body_rules(rules.max_request);
    let body = routed.form.has_body.then(|| RequestBody::new(routed.downstream, routed.exchange, None, body_rules));
    let keyed = Box::new(Keyed {
        upstream_request,
        rules: Arc::clone(rules),
        body,
        held,
        id,
        subject,
        fingerprint,
        invalidation,
        share,
    });
    Ok(Step::Later(Box::pin(keyed.reply())))
}

pub(super) fn note(rules: &IdempotencyRules, exchange: &Exchange, result: IdempotencyResult) {
    rules.count(result);
    exchange.keyed(result.label());
}

/// A request with a key.
struct Keyed {
    /// Without its body.
    upstream_request: Box<UpstreamRequest>,
    rules: Arc<IdempotencyRules>,
    body: Option<RequestBody>,
    /// For the body.
    held: Share,
    id: Id,
    subject: Arc<Subject>,
    fingerprint: Fingerprinting,
    invalidation: Option<Invalidation>,
    /// For the answer.
    share: Share,
}

impl Keyed {
    async fn reply(self: Box<Self>) -> Reply {
        let exchange = Rc::clone(self.upstream_request.exchange());
        self.find().await.unwrap_or_else(|problem| Reply::problem(&problem, &exchange))
    }

    async fn find(mut self: Box<Self>) -> Result<Reply, Problem> {
        let body = match self.body.take() {
            Some(body) => self.read(body).await?,
            None => BufferedBody::default(),
        };
        let (id, subject, fingerprint) =
            (self.id, Arc::clone(&self.subject), self.fingerprint.clone().finish(&body.data));
        self.give(body);
        let asked = KeyedRequest { id, subject, fingerprint };
        match start(&self.rules.records, &asked, &self.rules.policy, None).await {
            Started::First(claim) => {
                self.note(IdempotencyResult::First);
                self.run(claim).await
            }
            Started::Replay(response) => {
                self.note(IdempotencyResult::Replayed);
                self.replay(response)
            }
            Started::Refused(refused) => {
                self.note(result_of(&refused));
                Err(refusal(&refused, self.rules.policy.retries_unknown))
            }
            Started::Unprotected(error) => {
                self.note(IdempotencyResult::StoreFailure);
                tracing::debug!(%error, %id, "a request is forwarded without the idempotency store");
                self.forward().await
            }
        }
    }

    fn note(&self, result: IdempotencyResult) {
        note(&self.rules, self.upstream_request.exchange(), result);
    }

    /// Reads the request's body to its end.
    async fn read(&mut self, mut body: RequestBody) -> Result<BufferedBody, Problem> {
        let mut pieces = Pieces::default();
        let mut trailers = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| {
                let fault = self.upstream_request.exchange().body_fault.get().unwrap_or(BodyFault::ClientGone);
                self.upstream_request.context.body_problem(fault)
            })?;
            match frame.into_data() {
                Ok(data) => {
                    if !self.held.cover(pieces.length + data.len() as u64) {
                        return Err(over_budget().closing());
                    }
                    pieces.push(data);
                }
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        Ok(BufferedBody::new(pieces.join(), trailers))
    }

    /// Sets the body of the request, which is sent with its length unless it has trailers.
    fn give(&mut self, body: BufferedBody) {
        let Some(request) = &mut self.upstream_request.dispatch.request else { return };
        if let (Some(length), true) = (body.length(), request.headers().contains_key(TRANSFER_ENCODING)) {
            request.headers_mut().remove(TRANSFER_ENCODING);
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        *request.body_mut() = Outgoing::from(body);
    }

    /// Runs the request, in a task of its own.
    async fn run(mut self: Box<Self>, claim: Claim) -> Result<Reply, Problem> {
        let (exchange, rules) = (Rc::clone(self.upstream_request.exchange()), Arc::clone(&self.rules));
        let retries_unknown = rules.policy.retries_unknown;
        let here = Rc::clone(&self.upstream_request.context.worker.tasks);
        let told = tokio::task::spawn_local(async move {
            let mut share = self.share.take();
            let outcome = run(claim, &mut *self, &rules.policy, &mut share).await;
            match &outcome {
                Outcome::Unknown => self.note(IdempotencyResult::Unknown),
                Outcome::Large { .. } => self.note(IdempotencyResult::TooLarge),
                Outcome::Answer { settled: Settled::Failed, .. } => self.note(IdempotencyResult::StoreFailure),
                Outcome::Answer { .. } | Outcome::Passed(_) | Outcome::NotSent(_) => {}
            }
            // The exchange is the client's own from here on.
            drop(self);
            drop(here);
            (outcome, share)
        });
        let (outcome, share) = told.await.map_err(|_| unknown(retries_unknown))?;
        match outcome {
            Outcome::Answer { response, mut beside, .. } => {
                // Repetitions do not get the fields beside the stored response.
                let cookie = beside.remove().map(|NewCookie(cookie)| cookie);
                Ok(Reply::complete(restored(response, share, &exchange)?).with_cookie(cookie))
            }
            Outcome::Passed(response) => Ok(passed(response, &exchange)),
            Outcome::Large { head, beginning, rest } => {
                Ok(complete(head.map(|()| ResponseBody::rest(beginning, rest, share, &exchange))))
            }
            Outcome::Unknown => Err(unknown(retries_unknown)),
            Outcome::NotSent(problem) => Err(problem),
        }
    }

    fn replay(mut self: Box<Self>, response: StoredResponse) -> Result<Reply, Problem> {
        if !self.share.cover(response.body.len() as u64) {
            return Err(over_budget());
        }
        replay(response, self.share, self.upstream_request.exchange(), true)
    }

    /// Forwards the request as if it had no key.
    async fn forward(mut self: Box<Self>) -> Result<Reply, Problem> {
        let exchange = Rc::clone(self.upstream_request.exchange());
        match self.send_within(None).await {
            Sent::Answer { response, .. } => Ok(passed(response, &exchange)),
            Sent::Nothing(problem) => Err(problem),
            // A client that took it for a failure would retry.
            Sent::NoAnswer(_) => Err(unprotected()),
        }
    }
}

/// The nodes, as the origin of a run.
impl Origin for Keyed {
    type Body = AnswerBody;
    type Error = Problem;

    async fn send(&mut self, by: BootTime) -> Sent<AnswerBody, Problem> {
        self.send_within(Some(by)).await
    }
}

impl Keyed {
    /// Sends the request; with a claim its first byte is sent by `by` or never.
    async fn send_within(&mut self, by: Option<BootTime>) -> Sent<AnswerBody, Problem> {
        let method = self.upstream_request.dispatch.request.as_ref().map(|request| request.method());
        if let (Some(session), Some(method)) = (self.upstream_request.exchange().session(), method)
            && let Err(problem) = session.check_write(method)
        {
            return Sent::Nothing(problem);
        }
        self.upstream_request.run_at_most_once(by);
        // Boxed: the future is large and would be a part of every request's future.
        let answer = Box::pin(async { self.upstream_request.fetch().await }).await;
        let reach = self.upstream_request.dispatch.reach;
        let mut response = match answer {
            Ok(response) => response,
            Err(problem) if reach.sent => return Sent::NoAnswer(problem),
            Err(problem) => return Sent::Nothing(problem),
        };
        if let Some(invalidation) = &self.invalidation {
            invalidation.carry_out(&self.upstream_request.context.worker, response.status(), response.headers(), None);
        }
        let fields = response.headers_mut();
        add_route_fields(fields, self.upstream_request.exchange(), self.upstream_request.cache_status);
        if !fields.contains_key(DATE)
            && let Some(now) = date::format(clock::unix_seconds().cast_signed())
        {
            fields.insert(DATE, now);
        }
        Sent::Answer { response, whole: reach.whole }
    }
}

/// Returns a stored response as the reply to a client. `is_replayed`: another request has had it before.
pub(super) fn replay(
    response: StoredResponse,
    share: Share,
    exchange: &Rc<Exchange>,
    is_replayed: bool,
) -> Result<Reply, Problem> {
    let mut response = restored(response, share, exchange)?;
    if is_replayed {
        response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(Reply::complete(response))
}

/// Returns the response of a stored one.
fn restored(
    response: StoredResponse,
    share: Share,
    exchange: &Rc<Exchange>,
) -> Result<Response<ResponseBody>, Problem> {
    let (head, data, trailers) = response.take_apart().map_err(|damaged| {
        tracing::error!(%damaged, "a stored response cannot be read");
        unknown(false)
    })?;
    Ok(head.map(|()| ResponseBody::whole(BufferedBody::new(data, trailers), Some(share), exchange)))
}

/// Returns a node's response, which is not stored, as the reply to its client.
fn passed(response: Response<AnswerBody>, exchange: &Rc<Exchange>) -> Reply {
    complete(response.map(|body| ResponseBody::answer(body, exchange)))
}

/// Returns a reply that has the route's fields already. The affinity cookie beside it is for this client only, and is
/// never stored.
fn complete(mut response: Response<ResponseBody>) -> Reply {
    let cookie = response.extensions_mut().remove().map(|NewCookie(cookie)| cookie);
    Reply::complete(response).with_cookie(cookie)
}

pub(super) fn result_of(refused: &Refused) -> IdempotencyResult {
    match refused {
        Refused::Running => IdempotencyResult::Conflict,
        Refused::Mismatch => IdempotencyResult::Mismatch,
        Refused::Unknown => IdempotencyResult::Unknown,
        Refused::TooLarge => IdempotencyResult::TooLarge,
        Refused::StoreFailed(_) => IdempotencyResult::StoreFailure,
    }
}

fn missing(name: &HeaderName) -> String {
    format!("this request needs a field `{name}`: one key for one intention, the same when it is repeated")
}

pub(super) fn refusal(refused: &Refused, retries_unknown: bool) -> Problem {
    match refused {
        Refused::Running => Problem::new(
            ProblemKind::RequestInProgress,
            "a request with this Idempotency-Key is still running; repeat it later",
        )
        .retry_after(1),
        Refused::Mismatch => Problem::new(
            ProblemKind::IdempotencyKeyReused,
            "this Idempotency-Key was used for another request: its query, content type or body differ; use a new key",
        ),
        Refused::Unknown => unknown(retries_unknown),
        Refused::TooLarge => Problem::new(
            ProblemKind::ResultTooLarge,
            "a request with this Idempotency-Key has run, and its result was too large to be kept; it will not run again",
        ),
        Refused::StoreFailed(error) => {
            tracing::debug!(%error, "a request was refused, for the idempotency store failed");
            let detail = "the idempotency store does not work, and nothing was forwarded; repeat the request later";
            Problem::new(ProblemKind::StoreUnavailable, detail).retry_after(1)
        }
    }
}

/// 409 for a request that may have run.
fn unknown(retries_unknown: bool) -> Problem {
    let problem = |detail: &'static str| Problem::new(ProblemKind::OutcomeUnknown, detail);
    match retries_unknown {
        true => {
            problem("the request may have run, and no whole answer came; repeat it with the same key").retry_after(1)
        }
        false => problem(
            "the request may have run, and no whole answer came; it will not run again: find out what it did before you send another",
        ),
    }
}

/// 409 for a request that may have run, and of which nothing is kept.
fn unprotected() -> Problem {
    let detail = "the request may have run, and no whole answer came; the idempotency store does not work, and a repetition would run again: find out what it did before you send another";
    Problem::new(ProblemKind::OutcomeUnknown, detail)
}
