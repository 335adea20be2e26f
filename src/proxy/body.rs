//! The body of a request to a node: bounded, counted, and delayed while the client waits for `100 Continue`.

use super::client_body::BodyFault;
use super::downstream::Downstream;
use super::exchange::Exchange;
use super::min_rate::MinRate;
use crate::http::fields;
use crate::http::head::Underscores;
use crate::upstream::BodyError;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};
use tokio::time::Sleep;

/// A client that waits for `100 Continue` gets it after this time even without a response of the node, as not every
/// node supports the expectation.
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// A piece of a body, its end, or its error.
type Piece<E> = Option<Result<Frame<Bytes>, E>>;

/// The body of a client's request, as the steps read it. The exchange owns hyper's body and drops it at the end of the
/// response, as a connection to a node that others share may still have a reference to this one.
pub(super) struct RequestBody {
    /// Weak, as a node that reads no more of the body may keep it for any time.
    downstream: Weak<Downstream>,
    exchange: Weak<Exchange>,
    /// It was read to its end.
    has_ended: bool,
    gate: Option<Rc<Gate>>,
    rules: BodyRules,
    /// Runs while a stream of HTTP/2 waits for its next piece.
    stall: Option<Pin<Box<Sleep>>>,
}

/// The limits of a request's body.
#[derive(Clone, Copy)]
pub(super) struct BodyRules {
    /// The most bytes of it.
    pub(super) limit: u64,
    /// The rate at which it must arrive.
    pub(super) min_rate: MinRate,
    /// The treatment of trailers with `_` in their names.
    pub(super) underscores: Underscores,
}

/// Delays the reading of a body until the node wants it: the first read sends the client `100 Continue`.
pub(crate) struct Gate {
    open: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    timer: RefCell<Pin<Box<Sleep>>>,
}

impl Gate {
    pub(crate) fn new() -> Gate {
        let timer = Box::pin(tokio::time::sleep(CONTINUE_WAIT));
        Gate { open: Cell::new(false), waker: RefCell::default(), timer: RefCell::new(timer) }
    }

    pub(crate) fn open(&self) {
        self.open.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.get()
    }

    fn poll_open(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.open.get() {
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            ready!(self.timer.borrow_mut().as_mut().poll(cx));
            self.open.set(true);
        }
        Poll::Ready(())
    }
}

impl RequestBody {
    pub(super) fn new(
        downstream: &Rc<Downstream>,
        exchange: &Rc<Exchange>,
        gate: Option<Rc<Gate>>,
        rules: BodyRules,
    ) -> RequestBody {
        RequestBody {
            downstream: Rc::downgrade(downstream),
            exchange: Rc::downgrade(exchange),
            has_ended: false,
            gate,
            rules,
            stall: None,
        }
    }

    fn fault(exchange: &Exchange, fault: BodyFault) -> Poll<Piece<BodyError>> {
        exchange.body_failed(fault);
        Poll::Ready(Some(Err(BodyFailed::because_of(fault))))
    }

    /// Returns the next piece; nothing where the answer has ended.
    fn poll_piece(
        downstream: &Downstream,
        exchange: &Exchange,
        cx: &mut Context<'_>,
    ) -> Option<Poll<Piece<BodyFault>>> {
        let mut incoming = exchange.body.borrow_mut();
        let frame = Pin::new(incoming.as_mut()?).poll_frame(cx);
        let mut waker = downstream.body_waker.borrow_mut();
        if frame.is_pending() && !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Some(frame)
    }

    /// Returns whether the next piece of a stream is overdue. The timer of a whole connection belongs to its owner.
    fn stalls(&mut self, downstream: &Downstream, is_waiting: bool, cx: &mut Context<'_>) -> bool {
        let Some(stream) = &downstream.stream else { return false };
        if !is_waiting {
            self.stall = None;
            return false;
        }
        let idle = stream.body_idle;
        let timer = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
        while timer.as_mut().poll(cx).is_ready() {
            let armed = timer.deadline().into_std() - idle;
            // Once the response has begun, its progress counts too.
            let moved = downstream.gave_last().filter(|&moved| moved > armed);
            let starved = downstream.was_starved_since(armed).then(Instant::now);
            let Some(since) = moved.max(starved) else { return true };
            timer.as_mut().reset((since + idle).into());
        }
        false
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Piece<BodyError>> {
        if let Some(gate) = &self.gate {
            ready!(gate.poll_open(cx));
        }
        if self.has_ended {
            return Poll::Ready(None);
        }
        let answered = || Poll::Ready(Some(Err(BodyFailed::because_of(BodyFault::Answered))));
        let (Some(downstream), Some(exchange)) = (self.downstream.upgrade(), self.exchange.upgrade()) else {
            return answered();
        };
        downstream.ask_for_body(exchange.has_answer());
        let Some(frame) = RequestBody::poll_piece(&downstream, &exchange, cx) else { return answered() };
        if downstream.http1.body_expired.get() || self.stalls(&downstream, frame.is_pending(), cx) {
            return RequestBody::fault(&exchange, BodyFault::Stalled);
        }
        let mut waited = Duration::ZERO;
        match frame.is_pending() {
            true if downstream.awaits_body.get().is_none() => downstream.awaits_body.set(Some(Instant::now())),
            true => {}
            false => {
                let since = downstream.awaits_body.take().filter(|&since| !downstream.was_starved_since(since));
                waited = since.map_or(Duration::ZERO, |since| since.elapsed());
            }
        }
        match ready!(frame) {
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    let underscores = self.rules.underscores;
                    fields::sanitise_trailers(trailers, |name| {
                        fields::is_barred_from_trailers(name) || underscores.drop(name.as_str())
                    });
                }
                let length = frame.data_ref().map_or(0, Bytes::len);
                downstream.took(length);
                let received = exchange.request_bytes.get() + length as u64;
                exchange.request_bytes.set(received);
                if !waited.is_zero() && !exchange.has_answer() && self.rules.min_rate.waited(waited, received) {
                    return RequestBody::fault(&exchange, BodyFault::Stalled);
                }
                if received > self.rules.limit {
                    return RequestBody::fault(&exchange, BodyFault::TooLarge);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(fault)) => RequestBody::fault(&exchange, fault),
            // A stream that is reset without an error has no end, so that the body is incomplete.
            None if downstream.stream.is_some() && !self.is_end_stream() => {
                RequestBody::fault(&exchange, BodyFault::ClientGone)
            }
            None => {
                // hyper has nothing of it left to read.
                self.has_ended = true;
                drop(exchange.body.take());
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let is_whole = |exchange: Rc<Exchange>| exchange.body.borrow().as_ref().is_some_and(Body::is_end_stream);
        self.has_ended || self.exchange.upgrade().is_some_and(is_whole)
    }

    fn size_hint(&self) -> SizeHint {
        if self.has_ended {
            return SizeHint::with_exact(0);
        }
        let hint = |exchange: Rc<Exchange>| exchange.body.borrow().as_ref().map(Body::size_hint);
        self.exchange.upgrade().and_then(hint).unwrap_or_default()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(exchange) = self.exchange.upgrade() {
            exchange.release_body();
        }
    }
}

/// The failure of a body, as hyper passes it to an HTTP/2 node: its stream is cancelled (RFC 9113 8.1) without an error
/// of either side.
#[derive(Debug)]
struct BodyFailed {
    fault: BodyFault,
    reset: h2::Error,
}

impl BodyFailed {
    fn because_of(fault: BodyFault) -> BodyError {
        Box::new(BodyFailed { fault, reset: h2::Reason::CANCEL.into() })
    }
}

impl std::fmt::Display for BodyFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.fault.fmt(f)
    }
}

impl std::error::Error for BodyFailed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.reset)
    }
}
