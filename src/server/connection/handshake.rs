//! The beginning of a connection, before its first request: a PROXY protocol header, and the TLS handshake.

use super::address_limit::AddressPermit;
use super::context::{Context, Handshake, refuse, wait};
use super::proxy_protocol;
use crate::clock;
use crate::config::ProxyProtocol;
use crate::http::forwarded::is_trusted;
use crate::http::problem::{Problem, ProblemKind};
use crate::io::{Socket, Stream};
use crate::proxy::{Downstream, Secured};
use crate::telemetry::metrics::Abort;
use crate::tls::{ServerTls, identity};
use http::HeaderValue;
use rustls::server::Acceptor;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// The first byte of a TLS record with a handshake.
const HANDSHAKE: u8 = 0x16;

/// A connection that is ready for requests.
pub(super) struct Begun {
    pub(super) stream: Stream,
    pub(super) downstream: Rc<Downstream>,
    /// Its place among the connections of its address.
    pub(super) address_permit: Option<AddressPermit>,
}

/// Makes a new connection ready for requests, by the deadline; `None` where it is to be closed.
pub(super) async fn begin(
    context: &Context,
    socket: std::net::TcpStream,
    peer: SocketAddr,
    deadline: Instant,
) -> Option<Begun> {
    let handshake = Handshake::of(context);
    let mut socket = Socket::Apart(Some(socket));
    match (&handshake.proxy_protocol, &handshake.tls) {
        (None, None) => {
            if !context.eager_reads.take_next() {
                socket.joined().ok()?;
            }
            let address_permit = address_permit(context, peer)?;
            Some(Begun {
                stream: Stream::over_socket(socket),
                downstream: downstream(context, peer, None),
                address_permit,
            })
        }
        // Boxed, for the connection's task keeps the room that this takes.
        _ => Box::pin(shake_hands(context, handshake, socket, peer, deadline)).await,
    }
}

fn downstream(context: &Context, peer: SocketAddr, secured: Option<Secured>) -> Rc<Downstream> {
    Rc::new(Downstream::new(peer, Arc::clone(&context.name), Rc::clone(&context.leaving), secured))
}

/// Reads the PROXY protocol header and makes the TLS handshake, as the listener has them.
async fn shake_hands(
    context: &Context,
    Handshake { proxy_protocol, tls }: Handshake,
    mut socket: Socket,
    mut peer: SocketAddr,
    deadline: Instant,
) -> Option<Begun> {
    if let Some(protocol) = proxy_protocol {
        peer = source(context, &protocol, socket.joined().ok()?, peer, deadline).await?;
    }
    let address_permit = address_permit(context, peer)?;
    let Some(tls) = tls else {
        return Some(Begun {
            stream: Stream::over_socket(socket),
            downstream: downstream(context, peer, None),
            address_permit,
        });
    };
    let socket = socket.into_joined().ok()?;
    let first = wait(context, deadline, first_byte(&socket)).await?;
    if first != HANDSHAKE {
        context.worker.recorder.handshaken(&context.name, false);
        if first.is_ascii_alphabetic() {
            let problem =
                Problem::bad_request(ProblemKind::TlsRequired, "this address speaks HTTPS: ask for https:// here");
            refuse(context, Stream::tcp(socket), &downstream(context, peer, None), &problem).await;
        }
        return None;
    }
    let stream = match tokio::time::timeout_at(deadline.into(), tls_handshake(context, &tls, socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, %peer, listener = &*context.name, "a TLS handshake failed");
            context.worker.recorder.handshaken(&context.name, false);
            return None;
        }
        Err(_) => {
            context.worker.recorder.handshaken(&context.name, false);
            context.worker.recorder.aborted(Abort::Handshake);
            return None;
        }
    };
    let secured = secured(&tls, &stream);
    context.worker.recorder.handshaken(&context.name, secured.is_some());
    let secured = secured?;
    Some(Begun { stream: Stream::tls(stream), downstream: downstream(context, peer, Some(secured)), address_permit })
}

/// Waits for the first byte of a connection, and leaves it there; `None` where the connection ends before.
async fn first_byte(socket: &TcpStream) -> Option<u8> {
    let mut first = [0];
    matches!(socket.peek(&mut first).await, Ok(1)).then_some(first[0])
}

/// Returns the connection's permit among those of its address; `None` at the limit. Trusted proxies are exempt, as they
/// carry many clients.
fn address_permit(context: &Context, peer: SocketAddr) -> Option<Option<AddressPermit>> {
    let snapshot = context.worker.snapshot();
    let settings = &snapshot.config.settings;
    let limit = settings.limits.connections_per_address;
    if limit == 0 || is_trusted(peer.ip(), &settings.trusted_proxies) {
        return Some(None);
    }
    let address_permit = context.addresses.take(peer.ip(), limit);
    if address_permit.is_none() {
        tracing::debug!(%peer, limit, "closed: its address has as many connections as one may have");
        context.worker.recorder.aborted(Abort::AddressLimit);
    }
    address_permit.map(Some)
}

async fn tls_handshake(context: &Context, tls: &ServerTls, socket: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let start = LazyConfigAcceptor::new(Acceptor::default(), socket).await?;
    let config = Arc::clone(tls.config(start.client_hello().cipher_suites()));
    // Many handshakes at once are computed one after another, so that established connections run in between.
    let turn = context.handshakes.acquire().await.map_err(io::Error::other)?;
    let mut accept = pin!(start.into_stream(config));
    let computed = poll_fn(|cx| Poll::Ready(accept.as_mut().poll(cx))).await;
    tokio::task::yield_now().await;
    drop(turn);
    match computed {
        Poll::Ready(done) => done,
        Poll::Pending => accept.await,
    }
}

/// Returns the client's address from the load balancer in front. Connections from elsewhere are refused.
async fn source(
    context: &Context,
    protocol: &ProxyProtocol,
    socket: &mut TcpStream,
    peer: SocketAddr,
    deadline: Instant,
) -> Option<SocketAddr> {
    if !is_trusted(peer.ip(), &protocol.trusted) {
        tracing::debug!(%peer, listener = &*context.name, "refused: not one of `proxy_protocol.trusted`");
        return None;
    }
    match tokio::time::timeout_at(deadline.into(), proxy_protocol::read(socket)).await {
        Ok(Ok(source)) => Some(source.unwrap_or(peer)),
        Ok(Err(error)) => {
            tracing::debug!(%error, %peer, listener = &*context.name, "refused");
            None
        }
        Err(_) => {
            context.worker.recorder.aborted(Abort::Handshake);
            None
        }
    }
}

/// Returns the result of the handshake; `None` if the client's certificate has expired: a resumed session presents it
/// without another check.
fn secured(tls: &ServerTls, stream: &TlsStream<TcpStream>) -> Option<Secured> {
    let session = stream.get_ref().1;
    let name = session.server_name();
    let shown = session.peer_certificates().and_then(|chain| chain.first());
    let identity = shown.map(identity);
    let now = clock::unix_seconds().cast_signed();
    if identity.as_ref().is_some_and(|identity| identity.as_ref().is_none_or(|identity| identity.expiry < now)) {
        tracing::debug!("refused: the client's certificate has expired or cannot be read");
        return None;
    }
    Some(Secured {
        certificate: tls.wanted_names(name),
        subject: identity.flatten().and_then(|identity| HeaderValue::try_from(identity.subject).ok()),
    })
}
