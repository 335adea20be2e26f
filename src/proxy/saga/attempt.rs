//! One request of a step or of its undo.

use super::executor::Executor;
use crate::clock::BootTime;
use crate::http::buffered_body::BufferedBody;
use crate::proxy::saga::executor::Lost;
use crate::saga::keys::step_key;
use crate::saga::log::Millis;
use crate::saga::machine::{Answer, Way};
use crate::saga::{Context, Kept, Outgoing as StepOutgoing};
use crate::upstream::{AnswerBody, Deadlines, Dispatch, NoClient, NodePreference, Outgoing, Pool, RetrySafety};
use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, HOST, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri};
use http_body_util::BodyExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The most bytes that are read of an answer.
const MAX_ANSWER: usize = 1 << 20;

impl Executor {
    /// Sends a request of a step, once. The first byte is sent while no other process may take this one for dead.
    pub(super) async fn attempt(&mut self, step: usize, way: Way, give_up: Option<Millis>) -> Result<Answer, Lost> {
        if !self.open.may_send() {
            self.open.renew().await?;
        }
        let Some(request) = self.request(step, way) else { return Ok(Answer::Unresolved) };
        let Some(pool) = self.pool(&request.pool) else { return Ok(Answer::NotSent) };
        let now = self.open.now();
        let timeout = self.definition.steps[step].timeout;
        let left = give_up.map_or(timeout, |give_up| Duration::from_millis(give_up.saturating_sub(now)).min(timeout));
        let send_by = self.open.send_by();
        let send_by = self.mark.send_by.map_or(send_by, |by| by.min(send_by));
        let answer = send(&self.worker.connections, pool, request, Instant::now() + left, send_by).await;
        let (head, body) = match answer {
            Ok(answer) => answer.into_parts(),
            Err(reach) => return Ok(if reach { Answer::None } else { Answer::NotSent }),
        };
        let status = head.status;
        let body = read(body).await;
        if !status.is_success() {
            return Ok(Answer::Status { status: status.as_u16(), retry_after: retry_after(&head.headers) });
        }
        if way == Way::Undo {
            return Ok(Answer::Success { status: status.as_u16(), outputs: String::new() });
        }
        // The parts of an answer that templates use must have arrived whole; of other answers the status is enough.
        let mut outputs = match (body, self.definition.has_outputs(step)) {
            (Some(body), _) => self.definition.outputs(step, status, &body),
            (None, false) => self.definition.outputs(step, status, b""),
            (None, true) => return Ok(Answer::None),
        };
        if !self.kept.has_room_for(&outputs) {
            tracing::warn!(id = %self.open.id, route = self.definition.route, "an answer is too large for its saga");
            outputs = Kept::default();
        }
        let outputs = String::from_utf8(outputs.to_bytes()).unwrap_or_default();
        Ok(Answer::Success { status: status.as_u16(), outputs })
    }

    /// Returns the request of a step; nothing where a template names what is not there.
    fn request(&self, step: usize, way: Way) -> Option<StepOutgoing> {
        let step_of = &self.definition.steps[step];
        let template = match way {
            Way::Do => &step_of.request,
            Way::Undo => step_of.compensate.as_ref()?,
        };
        let rendered = self.with_context(|context| template.render(context));
        let mut request = match rendered {
            Ok(request) => request,
            Err(error) => {
                tracing::warn!(id = %self.open.id, step = step_of.name, ?way, %error, "a step of a saga cannot be sent");
                return None;
            }
        };
        let key = step_key(&self.seed, step, way);
        request.headers.insert(IDEMPOTENCY_KEY, HeaderValue::try_from(key).expect("hexadecimal digits"));
        Some(request)
    }

    /// Calls a function with all that templates may name.
    pub(super) fn with_context<T>(&self, call: impl FnOnce(&Context<'_>) -> T) -> T {
        let index = |name: &str| self.definition.steps.iter().position(|step| step.name == name);
        let key = |name: &str| index(name).map(|step| step_key(&self.seed, step, Way::Do));
        let environment = |name: &str| std::env::var(name).ok();
        call(&Context { kept: &self.kept, key: &key, environment: &environment })
    }

    /// Returns a pool by its name: that of the configuration in force, or else the one that the saga has begun with.
    fn pool(&self, name: &str) -> Option<Arc<Pool>> {
        let found = |pools: &[Arc<Pool>]| pools.iter().find(|pool| *pool.name == *name).cloned();
        self.worker.with_snapshot(|snapshot| found(&snapshot.pools)).or_else(|| found(&self.pools))
    }
}

/// Sends a request at most once. Fails with whether some of it was sent.
async fn send(
    connections: &crate::upstream::NodeConnections,
    pool: Arc<Pool>,
    outgoing: StepOutgoing,
    until: Instant,
    send_by: BootTime,
) -> Result<Response<AnswerBody>, bool> {
    let StepOutgoing { method, target, mut headers, body, .. } = outgoing;
    // Every attempt goes to the same node first, which knows the key.
    let hash = pool.ring.hash_key(headers.get(IDEMPOTENCY_KEY).map_or(&[][..], HeaderValue::as_bytes));
    let wanted = NodePreference { hash, pinned: None, may_leave: true };
    if !headers.contains_key(HOST)
        && let Ok(host) = HeaderValue::from_str(&pool.name)
    {
        headers.insert(HOST, host);
    }
    if !headers.contains_key(ACCEPT) {
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    }
    let body = body.map(|body| BufferedBody::new(Bytes::from(body), None));
    let mut request = Request::new(body.map_or(Outgoing::Empty, Outgoing::from));
    (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (method, Uri::from(target), headers);
    let deadlines = Deadlines { started: Instant::now(), until: Some(until), send_by: Some(send_by) };
    let mut dispatch = Dispatch::new(pool, wanted, request, deadlines, RetrySafety::AtMostOnce);
    let fetched = tokio::time::timeout_at(until.into(), dispatch.fetch(connections, &NoClient)).await;
    match fetched {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(_)) => Err(dispatch.reach.sent),
        // Cut off, it is not known how far it has come.
        Err(_) => Err(true),
    }
}

/// Reads the body of an answer; nothing where it breaks off, or is too large.
async fn read(mut body: AnswerBody) -> Option<Bytes> {
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.ok()?.into_data() {
            if read.len() + data.len() > MAX_ANSWER {
                return None;
            }
            read.extend_from_slice(&data);
        }
    }
    Some(read.freeze())
}

/// Returns the time that `Retry-After` asks for, in milliseconds; a date counts as no time.
fn retry_after(fields: &HeaderMap) -> Option<Millis> {
    let value = fields.get(RETRY_AFTER)?;
    let seconds: Option<u64> = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    Some(seconds.unwrap_or_default().saturating_mul(1000))
}
