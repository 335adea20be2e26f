//! What comes before the first request of a connection: a PROXY protocol header, and the TLS handshake.

use super::connection::{Context, is_readable, refuse};
use super::proxy_protocol;
use crate::config::Listener;
use crate::http::forwarded::is_trusted;
use crate::http::problem::Problem;
use crate::io::Stream;
use crate::proxy::{Client, Secured};
use crate::tls::{ServerTls, subject};
use http::HeaderValue;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How a TLS record begins that holds a handshake.
const HANDSHAKE: u8 = 0x16;

/// Makes a new connection ready for requests, by the deadline; `None` where it is to be closed.
pub(super) async fn greet(
    context: &Context,
    mut socket: TcpStream,
    mut peer: SocketAddr,
    deadline: Instant,
) -> Option<(Stream, Rc<Client>)> {
    let snapshot = context.engine.snapshot();
    let listeners = &snapshot.config.settings.listeners;
    let listener = listeners.iter().find(|listener| listener.name.as_str() == &*context.name)?;
    if listener.proxy_protocol.is_some() {
        peer = source(context, listener, &mut socket, peer, deadline).await?;
    }
    let client = |secured| Rc::new(Client::new(peer, Arc::clone(&context.name), Rc::clone(&context.leaving), secured));
    let Some(tls) = snapshot.config.secrets.tls.get(listener.name.as_str()).cloned() else {
        return Some((Stream::Tcp(socket), client(None)));
    };
    drop(snapshot);
    let mut stream = Stream::Tcp(socket);
    is_readable(context, &mut stream, deadline).await?;
    let Stream::Tcp(socket) = stream else { return None };
    let mut first = [0];
    if matches!(socket.peek(&mut first).await, Ok(1)) && first[0] != HANDSHAKE {
        context.engine.ledger.handshaken(&context.name, false);
        if first[0].is_ascii_alphabetic() {
            let problem = Problem::bad_request("tls-required", "this address speaks HTTPS: ask for https:// here");
            refuse(context, Stream::Tcp(socket), &client(None), &problem).await;
        }
        return None;
    }
    let handshake = TlsAcceptor::from(Arc::clone(&tls.config)).accept(socket);
    let stream = match tokio::time::timeout_at(deadline.into(), handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, %peer, listener = &*context.name, "a TLS handshake failed");
            context.engine.ledger.handshaken(&context.name, false);
            return None;
        }
        Err(_) => {
            context.engine.ledger.handshaken(&context.name, false);
            return None;
        }
    };
    context.engine.ledger.handshaken(&context.name, true);
    let secured = secured(&tls, &stream);
    Some((Stream::Tls(Box::new(stream.into())), client(Some(Rc::new(secured)))))
}

/// Whom the load balancer in front speaks for. Nobody else may connect here.
async fn source(
    context: &Context,
    listener: &Listener,
    socket: &mut TcpStream,
    peer: SocketAddr,
    deadline: Instant,
) -> Option<SocketAddr> {
    let trusted = listener.proxy_protocol.as_ref().map(|protocol| &protocol.trusted)?;
    if !is_trusted(peer.ip(), trusted) {
        tracing::debug!(%peer, listener = &*context.name, "refused: not one of `proxy_protocol.trusted`");
        return None;
    }
    match tokio::time::timeout_at(deadline.into(), proxy_protocol::read(socket)).await {
        Ok(Ok(source)) => Some(source.unwrap_or(peer)),
        Ok(Err(error)) => {
            tracing::debug!(%error, %peer, listener = &*context.name, "refused");
            None
        }
        Err(_) => None,
    }
}

/// What the handshake has told.
fn secured(tls: &ServerTls, stream: &TlsStream<TcpStream>) -> Secured {
    let session = stream.get_ref().1;
    let name = session.server_name();
    let shown = session.peer_certificates().and_then(|chain| chain.first());
    Secured {
        certificate: name
            .and_then(|name| tls.certificate(Some(name)))
            .map(|certificate| Arc::clone(&certificate.names)),
        subject: shown.and_then(|certificate| HeaderValue::try_from(subject(certificate)?).ok()),
    }
}
