//! The body of a node's answer, which drives the connection that it comes from.

use super::http2::SharedLink;
use super::idle::IdleLinks;
use super::link::Link;
use super::node::InFlight;
use crate::http::fields;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// A node that sent something so short a time ago is sending.
const SENDING: Duration = Duration::from_secs(5);

/// Why a body ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the node ended its answer early")]
    Incomplete,
    #[error("the node stopped in the middle of its answer")]
    Stalled,
}

/// The client's part of an exchange, as far as it tells whose fault a failure is.
pub(crate) trait ClientPart {
    /// Returns whether the client has failed: its request did not come whole.
    fn has_failed(&self) -> bool;
    /// Returns whether more of the request's body is waited for.
    fn is_awaited(&self) -> bool;
}

/// The body of an answer. When it ends well the connection goes back to the idle ones; when it is
/// dropped before, the connection closes, which tells the node.
pub(crate) struct AnswerBody {
    /// `None` once it has ended, well or not.
    source: Option<ResponseSource>,
    /// All of it was read.
    is_over: bool,
}

struct ResponseSource {
    carrier: Carrier,
    in_flight: InFlight,
    started: Instant,
    idle_timeout: Duration,
    until: Option<Instant>,
    keep: Keep,
    /// Weak, for what is stored is read to its end after the client has left.
    client: Weak<dyn ClientPart>,
}

/// The connection that a response comes over.
pub(crate) enum Carrier {
    /// A connection of its own, which is driven from here.
    Own(Box<Link>),
    /// A part of one that others share, which drives itself.
    Shared(Box<SharedLink>),
}

impl Carrier {
    /// When bytes last moved.
    pub(crate) fn last_activity(&self) -> Instant {
        match self {
            Carrier::Own(link) => link.last_activity(),
            Carrier::Shared(link) => link.last_activity(),
        }
    }

    fn is_late(&mut self, cx: &mut Context<'_>, limit: Duration, until: Option<Instant>) -> bool {
        match self {
            Carrier::Own(link) => link.is_late(cx, limit, until),
            Carrier::Shared(link) => link.is_late(cx, limit, until),
        }
    }

    /// Returns the next part of the body.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self {
            Carrier::Own(link) => link.poll_frame(cx).map_err(|_| Broken::Incomplete),
            Carrier::Shared(link) => link.poll_frame(cx).map_err(|_| Broken::Incomplete),
        }
    }

    /// Returns whether the fields of the response are known to go on as they are.
    pub(super) fn has_plain_head(&self) -> bool {
        matches!(self, Carrier::Own(link) if link.has_plain_head())
    }

    /// Returns whether all of the body was read.
    fn is_over(&self) -> bool {
        match self {
            Carrier::Own(link) => link.is_over(),
            Carrier::Shared(link) => link.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Carrier::Own(link) => link.left().map_or_else(SizeHint::default, SizeHint::with_exact),
            Carrier::Shared(link) => link.size_hint(),
        }
    }
}

/// Where a connection goes when its answer has ended.
pub(crate) struct Keep {
    pub(crate) links: Rc<IdleLinks>,
    pub(crate) timeout: Duration,
    pub(crate) max_idle: u32,
}

impl AnswerBody {
    /// `idle_timeout` bounds the time between two pieces; `until` is the end of the whole request.
    pub(crate) fn new(
        carrier: Carrier,
        in_flight: InFlight,
        started: Instant,
        (idle_timeout, until): (Duration, Option<Instant>),
        keep: Keep,
        client: Weak<dyn ClientPart>,
    ) -> AnswerBody {
        let source = ResponseSource { carrier, in_flight, started, idle_timeout, until, keep, client };
        let mut body = AnswerBody { source: Some(source), is_over: false };
        // One that is empty ends at once.
        body.finish_if_over();
        body
    }

    fn finish_if_over(&mut self) {
        if self.source.as_ref().is_some_and(|source| source.carrier.is_over()) {
            self.finish();
        }
    }

    fn finish(&mut self) {
        self.is_over = true;
        let Some(ResponseSource { carrier, mut in_flight, started, keep, .. }) = self.source.take() else { return };
        in_flight.finished();
        let now = carrier.last_activity();
        in_flight.node().duration.observe(now.saturating_duration_since(started).as_secs_f64());
        if let Carrier::Own(mut link) = carrier
            && link.is_reusable()
        {
            link.rest();
            keep.links.put(in_flight.node(), link, now, keep.timeout, keep.max_idle);
        }
    }

    fn fail(&mut self, broken: Broken) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if let Some(mut source) = self.source.take() {
            let client = source.client.upgrade();
            let is_the_clients = client
                .as_ref()
                .is_some_and(|client| client.has_failed() || (broken == Broken::Stalled && client.is_awaited()));
            let (outcome, is_the_nodes) = match broken {
                // Nothing that follows in an exchange whose client has failed speaks against the node.
                _ if is_the_clients => ("request_body", false),
                Broken::Incomplete => ("incomplete", true),
                // The end of the whole request may have come because its client was slow.
                Broken::Stalled => {
                    let idle = source.idle_timeout;
                    ("stalled", !idle.is_zero() && source.carrier.last_activity().elapsed() >= idle)
                }
            };
            source.in_flight.set_outcome(outcome);
            let took = Instant::now().saturating_duration_since(source.started);
            source.in_flight.node().duration.observe(took.as_secs_f64());
            if is_the_nodes {
                source.in_flight.failed();
            }
        }
        Poll::Ready(Some(Err(broken)))
    }
}

impl Drop for AnswerBody {
    /// A client that has had enough says nothing against a node that was sending.
    fn drop(&mut self) {
        if let Some(source) = &mut self.source
            && source.carrier.last_activity().elapsed() < SENDING
        {
            source.in_flight.finished();
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let Some(source) = &mut self.source else { return Poll::Ready(None) };
        let frame = source.carrier.poll_frame(cx);
        if frame.is_pending() && source.carrier.is_late(cx, source.idle_timeout, source.until) {
            return self.fail(Broken::Stalled);
        }
        match ready!(frame) {
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    fields::sanitise_trailers(trailers, fields::is_barred_from_trailers);
                }
                if let Carrier::Shared(link) = &mut source.carrier {
                    link.note_activity();
                }
                self.finish_if_over();
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(broken)) => self.fail(broken),
            // A stream that is reset without an error has no end, and is not whole.
            None if !source.carrier.is_over() => self.fail(Broken::Incomplete),
            None => {
                self.finish();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Some(source) => source.carrier.size_hint(),
            None if self.is_over => SizeHint::with_exact(0),
            None => SizeHint::default(),
        }
    }
}
