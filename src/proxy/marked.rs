//! The way of a write under its mark: the mark before the first byte, its renewal while the nodes work, and its end before
//! the answer goes on.

use super::strong::MarkOrder;
use crate::consistency::quorum::Outcome;
use crate::fleet::quorum::{Lapsed, MarkLost, QuorumClient};
use crate::http::problem::{Problem, ProblemKind};
use crate::upstream::{BodyError, Dispatch, NodeResponse, Outgoing};
use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame};
use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

/// Sends a write under its mark, and ends the mark by its outcome, before the answer goes on.
pub(super) async fn send_marked(
    client: &Rc<QuorumClient>,
    dispatch: &mut Dispatch,
    order: &Rc<MarkOrder>,
    send: impl AsyncFnOnce(&mut Dispatch) -> Result<NodeResponse, Problem>,
) -> Result<NodeResponse, Problem> {
    let mark = order.begin(client).await.map_err(|MarkLost| write_refused())?;
    let (given, by) = (dispatch.deadlines.send_by, mark.send_by());
    let is_sooner = by.is_some_and(|by| given.is_none_or(|given| by < given));
    if is_sooner {
        dispatch.deadlines.send_by = by;
    }
    let is_whole = Rc::new(Cell::new(true));
    if let Some(request) = &mut dispatch.request
        && !matches!(request.body(), Outgoing::Empty)
    {
        let body = std::mem::replace(request.body_mut(), Outgoing::Empty);
        is_whole.set(body.is_end_stream());
        let (has_lapsed, is_whole) = (mark.lapse(), Rc::clone(&is_whole));
        *request.body_mut() = Outgoing::Stream(Box::pin(GuardedBody { body, has_lapsed, is_whole }));
    }
    let sent = mark.protect(send(dispatch)).await;
    // A piece that is sent after the answer has begun may take effect after its end.
    let is_unanswered = dispatch.reach.unanswered || (!is_whole.get() && matches!(sent, Ok(Ok(_))));
    let outcome = match &sent {
        Ok(Ok(response)) if !is_unanswered && !is_unknown(response.head.status()) => Outcome::Answered,
        Ok(Err(_)) if !is_unanswered => Outcome::NotSent,
        _ => Outcome::Unknown,
    };
    let is_final = matches!(&sent, Ok(Ok(response)) if !is_unknown(response.head.status()));
    let may_leave = match &sent {
        // Its client learns the same whatever the nodes say to the end.
        Err(Lapsed) | Ok(Err(_)) if outcome == Outcome::Unknown => {
            let order = Rc::clone(order);
            tokio::task::spawn_local(async move { order.end(mark, outcome).await });
            false
        }
        _ => order.end(mark, outcome).await,
    };
    match sent {
        // The mark was too old for another attempt.
        Ok(Err(problem)) if is_sooner && problem.kind == ProblemKind::StoreUnavailable => match outcome {
            Outcome::NotSent => Err(write_refused()),
            _ => Err(lapsed()),
        },
        Ok(sent) if may_leave || !is_final => sent,
        Ok(_) => Err(end_lost()),
        Err(Lapsed) => Err(lapsed()),
    }
}

/// Returns whether a status leaves it open what has become of a request.
fn is_unknown(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT)
}

/// A request's body, each piece of which is sent under the mark of the request.
struct GuardedBody {
    body: Outgoing,
    has_lapsed: Rc<dyn Fn() -> bool>,
    /// All of it was taken.
    is_whole: Rc<Cell<bool>>,
}

impl Body for GuardedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if (self.has_lapsed)() {
            return Poll::Ready(Some(Err("the mark of this write has ceased to protect it".into())));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.is_whole.set(frame.is_none() || self.body.is_end_stream());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

fn unavailable(detail: &'static str) -> Problem {
    Problem::new(ProblemKind::ConsistencyUnavailable, detail).retry_after(1)
}

fn write_refused() -> Problem {
    unavailable(
        "too few nodes of `fleet.redis` take the mark of this write, and nothing was forwarded; repeat it later",
    )
}

/// Returns the problem of a write that may have run, or has: no client is to repeat it by itself.
fn unknown(detail: &'static str) -> Problem {
    Problem::new(ProblemKind::OutcomeUnknown, detail)
}

fn lapsed() -> Problem {
    unknown(
        "the write may have run: the nodes of `fleet.redis` went away meanwhile, and its connection was closed; find out what it did before you send another",
    )
}

fn end_lost() -> Problem {
    unknown(
        "the write has run, and too few nodes of `fleet.redis` know that it has ended; its answer is held back: find out what it did before you send another",
    )
}
