//! One HTTP/2 connection: hyper's, over I/O that gathers frames, with a downstream for every stream, and the timers of
//! the connection.

use super::context;
use super::flood::{FloodMeter, Verdict};
use super::http2_io::{Http2Io, Notes, StreamHandle, WireHandle};
use super::websocket;
use crate::config::Limits;
use crate::http::forwarded::is_trusted;
use crate::io::Stream;
use crate::proxy::{self, Downstream, ResponseBody, ResponseFuture, Streams, WorkerContext};
use crate::telemetry::metrics::Abort;
use http::header::EXPECT;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::cell::RefCell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::Sleep;

/// The preface of a cleartext HTTP/2 connection with prior knowledge (RFC 9113 3.4).
pub(super) const PREFACE: [u8; 24] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Requests of a connection at a time.
const MAX_STREAMS: u32 = 128;
/// The bytes that a client may send of one body, and of all bodies, before they are read.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// The window of a connection before WINDOW_UPDATE makes it larger (RFC 9113 6.9.2).
const FIRST_WINDOW: u32 = 65_535;
/// The bytes of a response that are buffered for a client that does not read.
const SEND_BUFFER: usize = 128 << 10;
/// The period at which streams are looked for whose clients read nothing.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The interval at which a connection with unread bodies checks whether the budget has room.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// The time that a connection without streams may take to end after GOAWAY.
const GRACE: Duration = Duration::from_secs(5);

/// Serves a connection until it ends.
pub(super) async fn serve(
    context: &Rc<context::Context>,
    stream: Stream,
    downstream: &Rc<Downstream>,
    limits: &Limits,
) {
    let streams: Rc<Streams> = Rc::default();
    let share = context.worker.budget.nothing();
    let recorder = Rc::clone(&context.worker.recorder);
    let meter = FloodMeter::new(PREFACE.len(), CONNECTION_WINDOW - FIRST_WINDOW, glitches(context, downstream, limits));
    let wire = Http2Io::new(stream, Notes { meter, streams: Rc::clone(&streams), recorder, share });
    let tasks = StreamTasks(Rc::clone(&streams));
    let mut session = Session {
        context,
        downstream,
        limits,
        streams: Rc::clone(&streams),
        out: wire.handle(),
        next_look: Instant::now() + LOOK_EVERY,
        idle_since: Some(Instant::now()),
        told_to_end: None,
        has_ended: false,
        is_starved: false,
    };
    let service = StreamService {
        worker: Rc::clone(&context.worker),
        downstream: Rc::clone(downstream),
        streams,
        body_idle: limits.body_idle_timeout,
        wire: wire.stream_handle(),
    };
    let service = service_fn(move |request| service.answer(request));
    let mut connection = Box::pin(builder(tasks, limits).serve_connection(TokioIo::new(wire), service));
    let mut drain = pin!(context.left());
    let mut timer = pin!(tokio::time::sleep(limits.header_timeout));
    poll_fn(|cx| {
        session.streams.watch(cx);
        session.out.take_turn();
        loop {
            if !session.has_ended
                && let Poll::Ready(ended) = connection.as_mut().poll(cx)
            {
                session.note_end(ended.is_ok());
            }
            match session.step(cx, drain.as_mut(), timer.as_mut()) {
                Next::Wait => return Poll::Pending,
                Next::Again => {}
                Next::GoAway => connection.as_mut().graceful_shutdown(),
                Next::End => return Poll::Ready(()),
            }
        }
    })
    .await;
    // hyper drops the wire, which then ends well: a reset would take the last response from a client that still sends.
    drop(connection);
    session.out.close().await;
}

/// Returns the settings of hyper's connection.
fn builder(tasks: StreamTasks, limits: &Limits) -> Builder<StreamTasks> {
    let mut builder = Builder::new(tasks);
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        // The flood meter counts these, with decay.
        .max_local_error_reset_streams(None)
        .enable_connect_protocol()
        .max_header_list_size(u32::try_from(limits.header_bytes.0).unwrap_or(u32::MAX));
    builder
}

/// Answers the requests of a connection, each with a downstream of its own.
struct StreamService {
    worker: Rc<WorkerContext>,
    downstream: Rc<Downstream>,
    streams: Rc<Streams>,
    body_idle: Duration,
    wire: StreamHandle,
}

impl StreamService {
    fn answer(&self, mut request: Request<Incoming>) -> DeferredResponse {
        self.downstream.had_request.set(true);
        let stream = Rc::new(self.downstream.for_stream(&self.streams, self.body_idle));
        if let (Some(number), true) = (self.wire.accept(), request.headers().contains_key(EXPECT)) {
            stream.on_body(Box::new(self.wire.continuing(number)));
        }
        DeferredResponse::new(match websocket::asked_for(&mut request) {
            None => proxy::answer(&self.worker, &stream, request),
            Some(upgrade) => {
                let slot = Rc::new(RefCell::new(None));
                let weak = Rc::downgrade(&slot);
                stream.switches_at(weak);
                let response = proxy::answer(&self.worker, &stream, request);
                ResponseFuture::Upgrade(Box::pin(websocket::switch(response, (stream, slot), upgrade)))
            }
        })
    }
}

/// The next action of a connection's task.
enum Next {
    /// Wait until the task is woken.
    Wait,
    /// Poll hyper again.
    Again,
    /// Send GOAWAY, and poll hyper again.
    GoAway,
    /// End the connection.
    End,
}

/// The timers and the end of one connection, beside hyper's.
struct Session<'a> {
    context: &'a context::Context,
    downstream: &'a Downstream,
    limits: &'a Limits,
    streams: Rc<Streams>,
    out: WireHandle,
    next_look: Instant,
    /// Since when the connection has no stream.
    idle_since: Option<Instant>,
    /// When GOAWAY was sent.
    told_to_end: Option<Instant>,
    /// hyper has ended; the I/O may still have bytes to write.
    has_ended: bool,
    is_starved: bool,
}

/// The deadlines of a connection; `None` without such a wait.
struct Waits {
    idle: Option<Instant>,
    write: Option<Instant>,
    head: Option<Instant>,
    /// When streams are looked for whose clients read nothing, and a buffer that is not used.
    look: Option<Instant>,
}

impl Session<'_> {
    /// Notes that hyper has ended.
    fn note_end(&mut self, is_well: bool) {
        self.has_ended = true;
        if is_well && self.told_to_end.is_none() {
            // hyper drops the connection without an error if a CONNECT has a length.
            self.out.end_in_error();
        }
    }

    /// Writes the frames of hyper, and checks the meter, the drain and the timers of the connection.
    fn step(
        &mut self,
        cx: &mut Context<'_>,
        drain: Pin<&mut impl Future<Output = ()>>,
        timer: Pin<&mut Sleep>,
    ) -> Next {
        // One write for all frames that hyper has produced in this poll.
        let is_out = match self.out.poll_drain(cx) {
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(_)) => return Next::End,
            Poll::Pending => false,
        };
        self.out.tell_sent(is_out);
        if self.has_ended && is_out {
            return Next::End;
        }
        let verdict = self.out.verdict();
        if verdict == Verdict::Hostile {
            tracing::debug!(peer = %self.downstream.connection.peer, "an HTTP/2 connection is cut: it is too odd");
            self.context.worker.recorder.aborted(Abort::Http2Glitches);
            self.out.rebuke();
            self.streams.end_all();
            return Next::End;
        }
        let must_end = self.downstream.connection.is_spent.get() || verdict == Verdict::Odd;
        if self.told_to_end.is_none() && (must_end || drain.poll(cx).is_ready()) {
            self.told_to_end = Some(Instant::now());
            return Next::GoAway;
        }
        self.poll_waits(cx, timer)
    }

    /// Waits for the first end of a wait.
    fn poll_waits(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Next {
        let waits = self.waits();
        let was_starved = std::mem::replace(&mut self.is_starved, self.out.is_starved());
        if was_starved && !self.is_starved && !self.has_ended {
            // Bytes that have arrived meanwhile cause no further wake-up.
            return Next::Again;
        }
        let again = self.is_starved.then(|| Instant::now() + ASK_AGAIN);
        let ends = waits.idle.into_iter().chain(waits.write).chain(waits.head);
        let Some(deadline) = ends.chain(waits.look).chain(again).min() else { return Next::Wait };
        // A timer for an earlier time is left alone: most waits end before they are over.
        if timer.deadline().into_std() > deadline {
            timer.as_mut().reset(deadline.into());
        }
        loop {
            if timer.as_mut().poll(cx).is_pending() {
                return Next::Wait;
            }
            let now = Instant::now();
            if deadline <= now {
                return self.expire(&waits, now);
            }
            timer.as_mut().reset(deadline.into());
        }
    }

    fn waits(&mut self) -> Waits {
        let is_idle = self.streams.are_none();
        self.idle_since = if is_idle { self.idle_since.or_else(|| Some(Instant::now())) } else { None };
        let idle_limit = match (self.told_to_end, self.downstream.had_request.get()) {
            (Some(_), _) => GRACE,
            (None, true) => self.limits.keep_alive_timeout,
            (None, false) => self.limits.header_timeout,
        };
        let told_to_end = self.told_to_end;
        Waits {
            idle: self.idle_since.map(|since| told_to_end.map_or(since, |told| told.max(since)) + idle_limit),
            write: self.out.blocked_since().map(|since| since + self.limits.write_timeout),
            head: self.out.head_since().map(|since| since + self.limits.header_timeout),
            look: (!is_idle || self.out.has_large_buffer()).then_some(self.next_look),
        }
    }

    /// Acts on the waits that are over.
    fn expire(&mut self, waits: &Waits, now: Instant) -> Next {
        let is_over = |end: Option<Instant>| end.is_some_and(|end| end <= now);
        if is_over(waits.look) {
            self.next_look = now + LOOK_EVERY;
            self.streams.end_stalled(now, self.limits.write_timeout);
            if self.streams.are_none() {
                self.out.shrink_buffer();
            }
        }
        if is_over(waits.write) {
            self.context.worker.recorder.aborted(Abort::Write);
            return Next::End;
        }
        if is_over(waits.head) {
            self.context.worker.recorder.aborted(Abort::Head);
            return Next::End;
        }
        match (is_over(waits.idle), self.told_to_end) {
            (true, Some(_)) => Next::End,
            (true, None) => {
                self.told_to_end = Some(now);
                Next::GoAway
            }
            (false, _) => Next::Again,
        }
    }
}

/// Returns the limit of glitches. A trusted proxy has none, as it carries many clients, and one of them must not end
/// the connection of the others.
fn glitches(context: &context::Context, downstream: &Downstream, limits: &Limits) -> u32 {
    let trusted = &context.worker.snapshot().config.settings.trusted_proxies;
    if is_trusted(downstream.connection.peer.ip(), trusted) { 0 } else { limits.http2_glitches }
}

/// Runs the tasks of a connection's streams, and notes them.
#[derive(Clone)]
struct StreamTasks(Rc<Streams>);

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for StreamTasks {
    fn execute(&self, future: F) {
        self.0.started(tokio::task::spawn_local(future).abort_handle());
    }
}

/// An answer that takes its time only after the frames that have come with its request were read: a client that
/// resets it at once (CVE-2023-44487) is not to reach a node.
struct DeferredResponse {
    answering: ResponseFuture,
    was_polled: bool,
}

impl DeferredResponse {
    fn new(answering: ResponseFuture) -> DeferredResponse {
        DeferredResponse { answering, was_polled: false }
    }
}

impl Future for DeferredResponse {
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if !matches!(self.answering, ResponseFuture::Ready(_)) && !std::mem::replace(&mut self.was_polled, true) {
            // hyper looks for a reset whenever this has to wait.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.answering).poll(cx)
    }
}
