//! One client connection: a bare socket until something arrives, then hyper's, then bare again
//! when it has been idle for a while; with the timers of every phase.

pub(super) mod address_limit;
pub(super) mod context;
pub(crate) mod flood;
mod handshake;
mod http1_io;
mod http2;
mod http2_io;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod interleavings;
pub(super) mod limit;
pub(crate) mod proxy_protocol;
mod timer;
mod tunnel;
mod websocket;

use crate::clock::{TaskPoll, new_poll_time};
use crate::config::Limits;
use crate::http::problem::{Problem, ProblemKind};
use crate::io::{Framing, Seen, Stream};
use crate::proxy::{self, Downstream, Phase};
use crate::server::idle_memory;
use crate::telemetry::metrics::Abort;
use context::{Context, LINGER, is_readable, linger, refuse};
use flood::Glitch;
use handshake::Begun;
use http::Request;
use http1_io::{Http1Io, Pulse};
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::future::poll_fn;
use std::net::{SocketAddr, TcpStream};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};
use timer::Timer;
use tokio::io::AsyncWriteExt;

/// An idle connection returns hyper's buffers after this time.
const PARK_AFTER: Duration = Duration::from_secs(1);

/// The default number of fields in hyper: only this one causes no allocation per request.
const HYPERS_FIELDS: u32 = 100;

/// Serves a connection until it ends.
pub(in crate::server) async fn serve(context: Rc<Context>, socket: TcpStream, peer: SocketAddr) {
    let limits = |context: &Context| context.worker.snapshot().config.settings.limits.clone();
    let mut deadline = Instant::now() + limits(&context).header_timeout;
    let Some(begun) = handshake::begin(&context, socket, peer, deadline).await else { return };
    let Begun { mut stream, downstream, address_permit: _address_permit } = begun;
    while is_readable(&context, &mut stream, deadline).await {
        let limits = limits(&context);
        if !downstream.had_request.get() && speaks_http2(&mut stream, deadline).await {
            return Box::pin(http2::serve(&context, stream, &downstream, &limits)).await;
        }
        match Box::pin(session(&context, stream, &downstream, &limits)).await {
            Some(bare) => stream = bare,
            None => return,
        }
        // A connection without a request yet has no more time than it had.
        if downstream.had_request.get() {
            // It was idle for this time before hyper was dropped.
            deadline = Instant::now() - PARK_AFTER + limits.keep_alive_timeout;
        }
    }
}

/// Returns whether a new connection uses HTTP/2: by ALPN, or, in cleartext, by its preface.
async fn speaks_http2(stream: &mut Stream, deadline: Instant) -> bool {
    if stream.is_tls() {
        return stream.alpn_protocol() == Some(b"h2");
    }
    tokio::time::timeout_at(deadline.into(), stream.begins_with(&http2::PREFACE)).await.unwrap_or(false)
}

/// Why hyper is done with a connection.
enum SessionEnd {
    Closed(hyper::Result<()>),
    /// Idle long enough to do without hyper.
    Park,
    /// The head did not come in time.
    HeadTimeout,
    /// The client has gone, or does not take its answer.
    Abandon,
}

/// Serves a session by hyper; returns the socket when the connection is idle.
async fn session(
    context: &Rc<Context>,
    mut stream: Stream,
    downstream: &Rc<Downstream>,
    limits: &Limits,
) -> Option<Stream> {
    *downstream.http1.task.borrow_mut() = Some(poll_fn(|cx| Poll::Ready(cx.waker().clone())).await);
    loop {
        let wire = Http1Io::new(stream, Rc::clone(downstream));
        let pulse = Rc::clone(&wire.pulse);
        downstream.switches_at(pulse.as_tunnel_slot());
        let watch = wire.watch();
        let (worker, owner) = (Rc::clone(&context.worker), Rc::clone(downstream));
        let framed = Rc::clone(&pulse);
        let service = service_fn(move |request: Request<Incoming>| {
            let framing = Framing::of(request.headers(), request.body());
            owner.http1.malformed.set(framed.framed(framing).err());
            proxy::answer(&worker, &owner, request)
        });
        let mut connection = builder(limits).serve_connection(TokioIo::new(wire), service);
        let sleep = pin!(tokio::time::sleep(PARK_AFTER));
        let mut timer = Timer::over(sleep);
        let end = poll_fn(|cx| {
            let task_poll = TaskPoll::begin();
            loop {
                if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
                    return Poll::Ready(SessionEnd::Closed(result));
                }
                let is_waiting = downstream.http1.phase.get() != Phase::Idle && downstream.awaits_body.get().is_none();
                if is_waiting {
                    match watch.poll_look(cx) {
                        Poll::Ready(Seen::End) => return Poll::Ready(SessionEnd::Abandon),
                        Poll::Ready(Seen::Bytes) => continue,
                        Poll::Pending => {}
                    }
                }
                let Poll::Ready(expired) =
                    timers((downstream, &pulse, limits, task_poll.poll_again_by()), &mut timer, cx)
                else {
                    return Poll::Pending;
                };
                if let Some(end) = expire(expired, context, downstream) {
                    return Poll::Ready(end);
                }
            }
        })
        .await;

        let parts = connection.into_parts();
        drop(parts.io);
        let first_line = memchr::memchr(b'\n', &parts.read_buf);
        let is_first_line = first_line.is_none_or(|length| length >= limits.header_bytes.0 as usize);
        stream = watch.into_stream()?;
        stream.unread(&parts.read_buf);
        match end {
            // A part of a head was read together with the request before it.
            SessionEnd::Park if stream.has_unread() => {}
            SessionEnd::Park => {
                idle_memory::parked();
                return Some(stream);
            }
            SessionEnd::HeadTimeout => {
                context.worker.recorder.aborted(Abort::Head);
                let detail = "the request's head did not arrive in time";
                let problem = Problem::new(ProblemKind::RequestTimeout, detail);
                refuse(context, stream, downstream, &problem).await;
                return None;
            }
            SessionEnd::Abandon => {
                return None;
            }
            SessionEnd::Closed(result) => {
                close(context, stream, downstream, &pulse, (result, is_first_line)).await;
                return None;
            }
        }
    }
}

/// Returns the settings of hyper's connection.
fn builder(limits: &Limits) -> Builder {
    let mut builder = Builder::new();
    let head = limits.header_bytes.0 as usize;
    // With half_close hyper does not detect a client that has left.
    builder.max_buf_size(head).max_header_size(head).half_close(true);
    if limits.headers != HYPERS_FIELDS {
        builder.max_headers(limits.headers as usize);
    }
    builder
}

/// Handles an expired timer. Returns the end of the session, where it is one.
fn expire(expired: Expired, context: &Context, downstream: &Downstream) -> Option<SessionEnd> {
    match expired {
        Expired::Park => Some(SessionEnd::Park),
        Expired::Head => Some(SessionEnd::HeadTimeout),
        Expired::Write => {
            context.worker.recorder.aborted(Abort::Write);
            Some(SessionEnd::Abandon)
        }
        // The body ends in an error, which the pipeline answers.
        Expired::Body => {
            downstream.http1.body_expired.set(true);
            downstream.wake_body();
            None
        }
        Expired::Poll => None,
    }
}

/// Which timer has run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expired {
    Park,
    Head,
    Body,
    Write,
    /// A future of the request is to be polled again: its node may be late.
    Poll,
}

/// Waits for the deadline of the current phase. The timer may be armed for an earlier time than needed; it is moved
/// only when it fires, so that a request arms no timer.
fn timers(
    (downstream, pulse, limits, again_by): (&Downstream, &Pulse, &Limits, Option<Instant>),
    timer: &mut Timer<'_>,
    cx: &mut std::task::Context<'_>,
) -> Poll<Expired> {
    let next = next_deadline(downstream, pulse, limits);
    let again = again_by.map(|time| (time, Expired::Poll));
    let next = next.into_iter().chain(again).min_by_key(|&(deadline, _)| deadline);
    loop {
        if let Some((deadline, _)) = next
            && timer.deadline() > deadline
        {
            timer.reset(deadline);
        }
        if timer.poll(cx).is_pending() {
            return Poll::Pending;
        }
        // A future that is polled again by its deadline must find it passed.
        let now = new_poll_time();
        match next {
            Some((deadline, expired)) if deadline <= now => return Poll::Ready(expired),
            Some((deadline, _)) => timer.reset(deadline),
            None => timer.reset(now + Duration::from_secs(3600)),
        }
    }
}

fn next_deadline(downstream: &Downstream, pulse: &Pulse, limits: &Limits) -> Option<(Instant, Expired)> {
    if downstream.http1.phase.get() == Phase::Idle {
        return Some(match pulse.head_began.get() {
            Some(began) => (began + limits.header_timeout, Expired::Head),
            None => (pulse.last_read.get().max(pulse.last_write.get()) + PARK_AFTER, Expired::Park),
        });
    }
    let write = pulse.write_blocked.get().then(|| (pulse.last_write.get() + limits.write_timeout, Expired::Write));
    let body = downstream.awaits_body.get().filter(|_| !downstream.http1.body_expired.get()).map(|since| {
        let mut moved = pulse.last_read.get().max(since);
        if downstream.http1.phase.get() == Phase::Answer {
            // Once the response has begun, its progress counts too.
            moved = moved.max(pulse.last_write.get());
        }
        (moved + limits.body_idle_timeout, Expired::Body)
    });
    write.into_iter().chain(body).min_by_key(|&(deadline, _)| deadline)
}

/// Ends a connection after hyper: as a tunnel, with an error response, or normally. `is_first_line`: the first line of
/// a head is itself longer than a head may be.
async fn close(
    context: &Context,
    mut stream: Stream,
    downstream: &Downstream,
    pulse: &Pulse,
    (result, is_first_line): (hyper::Result<()>, bool),
) {
    match (pulse.tunnel.take(), result) {
        (Some(tunnel), Ok(())) => tunnel::run(stream, tunnel).await,
        (_, Err(error))
            if pulse.held_back.get() || (downstream.http1.phase.get() == Phase::Idle && error.is_parse()) =>
        {
            context.worker.recorder.glitch(Glitch::Malformed.label());
            refuse(context, stream, downstream, &unreadable(&error, is_first_line)).await;
        }
        (_, Err(error)) => {
            tracing::debug!(%error, "a connection ended early");
            // A truncated response must not look complete, which HTTP/1.0 can only show by a reset.
            if downstream.http1.is_http10.get() {
                stream.reset_at_end();
            }
        }
        (None, Ok(())) => {
            // A client that has asked for the end sends nothing more that could reset the connection under its
            // response.
            let is_over = downstream.http1.says_close.get() && pulse.is_between_requests() && !stream.has_unread();
            if is_over && !stream.is_tls() {
                return;
            }
            let shut = tokio::time::timeout(LINGER, stream.shutdown()).await;
            if matches!(shut, Ok(Ok(()))) && !is_over && !pulse.ended.get() {
                linger(&mut stream).await;
            }
        }
    }
}

/// Returns the problem of a head that hyper could not parse. Some causes are only in the text of hyper's error.
fn unreadable(error: &hyper::Error, is_first_line: bool) -> Problem {
    let words = error.to_string();
    if words.contains("URI too long") || (error.is_parse_too_large() && is_first_line) {
        return Problem::new(ProblemKind::UriTooLong, "the request's target is too long");
    }
    if error.is_parse_too_large() {
        let detail = "the request's head is larger, or has more fields, than allowed";
        return Problem::new(ProblemKind::HeaderTooLarge, detail);
    }
    if words.contains("content-length") {
        let detail = "`Content-Length` is not a number, or several differ";
        return Problem::bad_request(ProblemKind::BadContentLength, detail);
    }
    if words.contains("invalid transfer-encoding") {
        return crate::proxy::unsupported_coding();
    }
    Problem::bad_request(ProblemKind::BadRequest, format!("the request cannot be read: {words}"))
}
