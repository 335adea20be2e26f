//! WebSockets on streams of HTTP/2 (RFC 8441): to nodes they are the handshake of HTTP/1.1, and then a tunnel.

use super::tunnel;
use crate::proxy::{Downstream, ResponseBody, ResponseFuture, Tunnel};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Converts a WebSocket handshake of HTTP/2 (RFC 8441) into that of HTTP/1.1.
pub(super) fn asked_for(request: &mut Request<Incoming>) -> Option<OnUpgrade> {
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

/// The stream of a tunnel, whose bytes are counted like those of bodies.
struct Counted {
    io: TokioIo<Upgraded>,
    stream: Rc<Downstream>,
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.stream.took(buf.filled().len() - before);
        }
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(length)) = written {
            self.stream.gave(length as u64);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Returns the response to a WebSocket handshake; after a protocol switch of the node the stream becomes a tunnel.
pub(super) async fn switch(
    response: ResponseFuture,
    (stream, slot): (Rc<Downstream>, Rc<RefCell<Option<Tunnel>>>),
    upgrade: OnUpgrade,
) -> Response<ResponseBody> {
    let Ok(mut response) = response.await;
    if let Some(tunnel) = slot.take() {
        *response.status_mut() = StatusCode::OK;
        for name in [UPGRADE, SEC_WEBSOCKET_ACCEPT] {
            response.headers_mut().remove(name);
        }
        tokio::task::spawn_local(async move {
            // The client may have left meanwhile.
            if let Ok(upgraded) = upgrade.await {
                tunnel::run(Counted { io: TokioIo::new(upgraded), stream }, tunnel).await;
            }
        });
    }
    response
}
