//! One HTTP/2 connection: hyper's over a wire that gathers frames, a client of its own for every stream, and
//! the timers of the whole.

use super::context;
use super::flood::{FloodMeter, Verdict};
use super::http2_io::{Http2Io, Notes};
use super::websocket;
use crate::config::Limits;
use crate::http::forwarded::is_trusted;
use crate::io::Stream;
use crate::proxy::{self, Downstream, ResponseBody, ResponseFuture, Streams};
use crate::telemetry::metrics::Abort;
use http::Response;
use http::header::EXPECT;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;

/// The preface of a cleartext connection that speaks HTTP/2 with prior knowledge (RFC 9113 3.4).
pub(super) const PREFACE: [u8; 24] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Requests of a connection at a time.
const MAX_STREAMS: u32 = 128;
/// The bytes that a client may send of one body, and of all bodies, before they are read.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// The window of a connection before anybody makes it larger (RFC 9113 6.9.2).
const FIRST_WINDOW: u32 = 65_535;
/// The bytes of a response that are held for a client which does not read.
const SEND_BUFFER: usize = 128 << 10;
/// The period at which streams are looked for whose clients read nothing.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a connection whose bodies wait unread waits before it asks again whether the process may hold more.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// The time that a connection without streams may take to end after GOAWAY.
const GRACE: Duration = Duration::from_secs(5);

/// Serves a connection until it ends.
pub(super) async fn serve(context: &Rc<context::Context>, stream: Stream, client: &Rc<Downstream>, limits: &Limits) {
    let streams: Rc<Streams> = Rc::default();
    let share = context.worker.budget.nothing();
    let recorder = Rc::clone(&context.worker.recorder);
    let meter = FloodMeter::new(PREFACE.len(), CONNECTION_WINDOW - FIRST_WINDOW, glitches(context, client, limits));
    let wire = Http2Io::new(stream, Notes { meter, streams: Rc::clone(&streams), recorder, share });
    let (out, wire_of_streams) = (wire.handle(), wire.stream_handle());
    let tasks = StreamTasks::default();
    let service = {
        let (worker, client, streams) = (Rc::clone(&context.worker), Rc::clone(client), Rc::clone(&streams));
        let (body_idle, begun) = (limits.body_idle_timeout, Rc::clone(&tasks.begun));
        service_fn(move |mut request| {
            client.had_request.set(true);
            let stream = Rc::new(client.for_stream(&streams, body_idle));
            if let (Some(number), true) = (wire_of_streams.accept(), request.headers().contains_key(EXPECT)) {
                stream.on_body(Box::new(wire_of_streams.continuing(number)));
            }
            *begun.borrow_mut() = Some(Rc::downgrade(&stream));
            DeferredResponse::new(match websocket::asked_for(&mut request) {
                None => proxy::answer(&worker, &stream, request),
                Some(upgrade) => {
                    let slot = Rc::new(RefCell::new(None));
                    let weak = Rc::downgrade(&slot);
                    stream.switches_at(weak);
                    let response = proxy::answer(&worker, &stream, request);
                    ResponseFuture::Upgrade(Box::pin(websocket::switch(response, (stream, slot), upgrade)))
                }
            })
        })
    };
    let mut builder = Builder::new(tasks.clone());
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        // The meter counts these, and forgets.
        .max_local_error_reset_streams(None)
        .enable_connect_protocol()
        .max_header_list_size(u32::try_from(limits.header_bytes.0).unwrap_or(u32::MAX));
    let mut connection = Box::pin(builder.serve_connection(TokioIo::new(wire), service));

    let mut drain = pin!(context.left());
    let mut timer = pin!(tokio::time::sleep(limits.header_timeout));
    let (mut idle_since, mut told_to_end, mut has_ended) = (Some(Instant::now()), None, false);
    let mut is_starved = false;
    poll_fn(|cx| {
        streams.watch(cx);
        out.take_turn();
        loop {
            if !has_ended && let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                has_ended = true;
                if ended.is_ok() && told_to_end.is_none() {
                    // hyper gives up without a word where a CONNECT has a length.
                    out.end_in_error();
                }
            }
            // One write for all frames that hyper has produced in this poll.
            let is_out = match out.poll_drain(cx) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => false,
            };
            out.tell_sent(is_out);
            if has_ended && is_out {
                return Poll::Ready(());
            }
            let verdict = out.verdict();
            if verdict == Verdict::Hostile {
                tracing::debug!(peer = %client.peer, "an HTTP/2 connection is cut: it is too odd");
                context.worker.recorder.aborted(Abort::Http2Glitches);
                out.rebuke();
                tasks.end_all();
                return Poll::Ready(());
            }
            let must_end = client.is_spent.get() || verdict == Verdict::Odd;
            if told_to_end.is_none() && (must_end || drain.as_mut().poll(cx).is_ready()) {
                connection.as_mut().graceful_shutdown();
                told_to_end = Some(Instant::now());
                continue;
            }
            idle_since = if streams.are_none() { idle_since.or_else(|| Some(Instant::now())) } else { None };
            let idle_limit = match (told_to_end, client.had_request.get()) {
                (Some(_), _) => GRACE,
                (None, true) => limits.keep_alive_timeout,
                (None, false) => limits.header_timeout,
            };
            let idle_end =
                idle_since.map(|since| told_to_end.map_or(since, |told: Instant| told.max(since)) + idle_limit);
            let write_end = out.blocked_since().map(|since| since + limits.write_timeout);
            let head_end = out.head_since().map(|since| since + limits.header_timeout);
            let was_starved = is_starved;
            is_starved = out.is_starved();
            if was_starved && !is_starved && !has_ended {
                // What has come meanwhile tells nobody again.
                continue;
            }
            let again = is_starved.then(|| Instant::now() + ASK_AGAIN);
            let look = (!streams.are_none()).then(|| tasks.next_look.get());
            let ends = idle_end.into_iter().chain(write_end).chain(head_end);
            let Some(deadline) = ends.chain(look).chain(again).min() else { return Poll::Pending };
            if timer.deadline().into_std() != deadline {
                timer.as_mut().reset(deadline.into());
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if look.is_some_and(|look| look <= now) {
                tasks.end_stalled(now, limits.write_timeout);
            }
            if write_end.is_some_and(|end| end <= now) {
                context.worker.recorder.aborted(Abort::Write);
                return Poll::Ready(());
            }
            if head_end.is_some_and(|end| end <= now) {
                context.worker.recorder.aborted(Abort::Head);
                return Poll::Ready(());
            }
            if idle_end.is_some_and(|end| end <= now) {
                if told_to_end.is_some() {
                    return Poll::Ready(());
                }
                connection.as_mut().graceful_shutdown();
                told_to_end = Some(now);
            }
        }
    })
    .await;
    // hyper lets go of the wire, which then ends well: a client that still sends must not have our last words
    // taken from it by a reset.
    drop(connection);
    out.close().await;
}

/// How odd a client may be. A proxy that is trusted speaks for many, whom one stranger must not take the connection
/// from.
fn glitches(context: &context::Context, client: &Downstream, limits: &Limits) -> u32 {
    let trusted = &context.worker.snapshot().config.settings.trusted_proxies;
    if is_trusted(client.peer.ip(), trusted) { 0 } else { limits.http2_glitches }
}

/// The tasks of a connection's streams, so that one can be ended whose client takes nothing of its answer: while
/// the client's window is shut, hyper asks for no more of the body, and no timer of ours would run.
#[derive(Clone)]
struct StreamTasks {
    /// The stream whose task is made next: hyper makes it as soon as it has called the service.
    begun: Rc<RefCell<Option<Weak<Downstream>>>>,
    all: Rc<RefCell<Vec<Running>>>,
    next_look: Rc<Cell<Instant>>,
}

/// A stream and its task.
type Running = (Weak<Downstream>, AbortHandle);

impl Default for StreamTasks {
    fn default() -> StreamTasks {
        StreamTasks {
            begun: Rc::default(),
            all: Rc::default(),
            next_look: Rc::new(Cell::new(Instant::now() + LOOK_EVERY)),
        }
    }
}

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for StreamTasks {
    fn execute(&self, future: F) {
        let task = tokio::task::spawn_local(future).abort_handle();
        if let Some(stream) = self.begun.borrow_mut().take() {
            self.all.borrow_mut().push((stream, task));
        }
    }
}

impl StreamTasks {
    /// Ends all streams: what has not reached a node yet never will.
    fn end_all(&self) {
        self.all.borrow_mut().drain(..).for_each(|(_, task)| task.abort());
    }

    /// Resets the streams whose clients have taken nothing for so long.
    fn end_stalled(&self, now: Instant, limit: Duration) {
        self.next_look.set(now + LOOK_EVERY);
        self.all.borrow_mut().retain(|(stream, task)| {
            let Some(stream) = stream.upgrade() else { return false };
            let is_stalled = stream.offered_since().is_some_and(|since| now >= since + limit);
            if is_stalled {
                task.abort();
            }
            !is_stalled
        });
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
