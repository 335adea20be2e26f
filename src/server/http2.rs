//! One HTTP/2 connection: hyper's over a wire that gathers frames, a client of its own for every stream, and
//! the timers of the whole.

use super::connection::Context;
use super::gather::Gather;
use super::tunnel;
use crate::config::Limits;
use crate::io::{OnThisThread, Stream};
use crate::proxy::{Answering, Client, Journeying, crumbs_to_one};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

/// How a connection in the clear begins that speaks HTTP/2 with prior knowledge (RFC 9113 3.4).
pub(super) const PREFACE: [u8; 24] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Requests of a connection at a time.
const MAX_STREAMS: u32 = 128;
/// What a client may send of one body, and of all, before somebody reads it.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// What is held of an answer that its client does not take.
const SEND_BUFFER: usize = 128 << 10;
/// How long a connection may take to end that was told to and has no stream left.
const GRACE: Duration = Duration::from_secs(5);

/// Serves a connection until it ends. `first` is what was read of it already.
pub(super) async fn serve(context: &Rc<Context>, stream: Stream, first: Bytes, client: &Rc<Client>, limits: &Limits) {
    let wire = Gather::new(stream, first);
    let out = wire.handle();
    let streams: Rc<()> = Rc::default();
    let service = {
        let (engine, client, streams) = (Rc::clone(&context.engine), Rc::clone(client), Rc::clone(&streams));
        let body_idle = limits.body_idle_timeout;
        service_fn(move |mut request| {
            crumbs_to_one(&mut request);
            client.had_request.set(true);
            let stream = Rc::new(client.for_stream(&streams, body_idle));
            match websocket(&mut request) {
                None => engine.answer(&stream, request),
                Some(upgrade) => {
                    let switching: Journeying = Box::pin(switch(engine.answer(&stream, request), stream, upgrade));
                    Answering::Later(switching)
                }
            }
        })
    };
    // What the service holds of the count of streams.
    let idle_count = 2;
    let mut builder = Builder::new(OnThisThread);
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .enable_connect_protocol()
        .max_header_list_size(u32::try_from(limits.header_bytes.0).unwrap_or(u32::MAX));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(wire), service));

    let mut drain = pin!(context.left());
    let mut timer = pin!(tokio::time::sleep(limits.header_timeout));
    let began = Instant::now();
    let (mut idle_since, mut told_to_end, mut has_ended) = (Some(began), None, false);
    poll_fn(|cx| {
        loop {
            if !has_ended {
                has_ended = connection.as_mut().poll(cx).is_ready();
            }
            // Once for all that hyper has written.
            let is_out = match out.poll_drain(cx) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => false,
            };
            if has_ended && is_out {
                return Poll::Ready(());
            }
            let is_idle = Rc::strong_count(&streams) == idle_count;
            idle_since = if is_idle { idle_since.or_else(|| Some(Instant::now())) } else { None };
            if told_to_end.is_none() && (client.is_spent.get() || drain.as_mut().poll(cx).is_ready()) {
                connection.as_mut().graceful_shutdown();
                told_to_end = Some(Instant::now());
                continue;
            }
            let idle_limit = match (told_to_end, client.had_request.get()) {
                (Some(_), _) => GRACE,
                (None, true) => limits.keep_alive_timeout,
                (None, false) => limits.header_timeout,
            };
            // What a stream has left behind may still be on its way.
            let idle_since = idle_since.map(|since| since.max(out.last_write()));
            let idle_end =
                idle_since.map(|since| told_to_end.map_or(since, |told: Instant| told.max(since)) + idle_limit);
            let write_end = out.blocked_since().map(|since| since + limits.write_timeout);
            let Some(deadline) = idle_end.into_iter().chain(write_end).min() else { return Poll::Pending };
            if timer.deadline().into_std() != deadline {
                timer.as_mut().reset(deadline.into());
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if told_to_end.is_some() || write_end.is_some_and(|end| end <= Instant::now()) {
                return Poll::Ready(());
            }
            connection.as_mut().graceful_shutdown();
            told_to_end = Some(Instant::now());
        }
    })
    .await;
    // A client that still sends must not have our last words taken from it by a reset.
    if let Poll::Ready(Ok(())) = poll_fn(|cx| Poll::Ready(out.poll_drain(cx))).await {
        out.close().await;
    }
}

/// A WebSocket handshake as HTTP/2 has it (RFC 8441), made into what HTTP/1.1 nodes know.
fn websocket(request: &mut Request<Incoming>) -> Option<OnUpgrade> {
    let is_websocket = request.extensions().get::<Protocol>().is_some_and(|protocol| protocol.as_str() == "websocket");
    if request.method() != Method::CONNECT || !is_websocket {
        return None;
    }
    let upgrade = hyper::upgrade::on(&mut *request);
    *request.method_mut() = Method::GET;
    let key = BASE64.encode(fastrand::u128(..).to_be_bytes());
    let fields = request.headers_mut();
    fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
    fields.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    fields.insert(SEC_WEBSOCKET_KEY, HeaderValue::try_from(key).ok()?);
    Some(upgrade)
}

/// Where the node has switched, the stream becomes the tunnel once its client has the answer.
async fn switch(
    answering: Answering<Journeying>,
    stream: Rc<Client>,
    upgrade: OnUpgrade,
) -> Response<crate::proxy::ResponseBody> {
    let Ok(mut response) = answering.await;
    if let Some(tunnel) = stream.tunnel.take() {
        *response.status_mut() = StatusCode::OK;
        for name in [UPGRADE, SEC_WEBSOCKET_ACCEPT] {
            response.headers_mut().remove(name);
        }
        tokio::task::spawn_local(async move {
            // A client that has gone meanwhile has no use for it.
            if let Ok(upgraded) = upgrade.await {
                tunnel::run(TokioIo::new(upgraded), Bytes::new(), tunnel).await;
            }
            drop(stream);
        });
    }
    response
}
