//! A new connection to a node, for requests and for health checks alike.

use super::{CertificateFault, UpstreamError};
use crate::config::Protocol;
use crate::io::Stream;
use crate::tls::ClientTls;
use rustls::pki_types::ServerName;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

/// The time that one address of a name may take before the next one is tried beside it.
const STAGGER: Duration = Duration::from_millis(250);

/// The address and the protocol of a node.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    /// The further addresses of the node's name, which are tried if this one does not answer.
    pub(crate) others: Arc<[SocketAddr]>,
    /// The host name in the configuration.
    pub(crate) host: Option<Arc<str>>,
    pub(crate) protocol: Protocol,
    /// With TLS: the settings, and the name that the certificate must cover.
    pub(crate) tls: Option<(Arc<ClientTls>, ServerName<'static>)>,
}

impl Endpoint {
    /// All but the address, in a form that can be compared.
    pub(super) fn manner(&self) -> Vec<u8> {
        let mut manner = self.protocol.word().as_bytes().to_vec();
        if let Some((tls, name)) = &self.tls {
            manner.extend_from_slice(&tls.digest);
            manner.extend_from_slice(name.to_str().as_bytes());
        }
        manner
    }

    /// Returns the same at another port.
    pub(super) fn at(&self, port: u16) -> Endpoint {
        let at = |address: &SocketAddr| SocketAddr::new(address.ip(), port);
        Endpoint { address: at(&self.address), others: self.others.iter().map(at).collect(), ..self.clone() }
    }

    /// Connects, with a TLS handshake where TLS is used. The caller sets the timeout.
    pub(super) async fn connect(&self) -> Result<Stream, (UpstreamError, String)> {
        let connected = match self.others.is_empty() {
            true => TcpStream::connect(self.address).await,
            false => connect_to_any(std::iter::once(&self.address).chain(&*self.others)).await,
        };
        let socket = connected.map_err(|error| {
            let failure = match error.kind() {
                io::ErrorKind::ConnectionRefused => UpstreamError::ConnectionRefused,
                io::ErrorKind::TimedOut => UpstreamError::ConnectTimeout,
                _ => UpstreamError::Unreachable,
            };
            (failure, error.to_string())
        })?;
        // Without it a small body behind its head may wait for an acknowledgement.
        let _ = socket.set_nodelay(true);
        let Some((tls, name)) = &self.tls else { return Ok(Stream::tcp(socket)) };
        let shaken = TlsConnector::from(Arc::clone(&tls.config)).connect(name.clone(), socket).await;
        match shaken {
            Ok(stream) => Ok(Stream::tls(stream)),
            Err(error) => Err((failure_of(&error), error.to_string())),
        }
    }
}

/// Connects to the first of several addresses that answers. The next one is tried after a failure, or if there is no
/// answer for a moment (RFC 8305 5); if none answers, the last failure is returned.
async fn connect_to_any(mut addresses: impl Iterator<Item = &SocketAddr>) -> io::Result<TcpStream> {
    let mut attempts = JoinSet::new();
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let mut next = addresses.next();
    loop {
        if let Some(&address) = next.take() {
            attempts.spawn(TcpStream::connect(address));
        }
        match tokio::time::timeout(STAGGER, attempts.join_next()).await {
            Ok(Some(Ok(Ok(socket)))) => return Ok(socket),
            Ok(Some(Ok(Err(error)))) => failure = error,
            Ok(Some(Err(error))) => failure = io::Error::other(error),
            Ok(None) => return Err(failure),
            Err(_) => {}
        }
        next = addresses.next();
    }
}

/// Why a handshake has failed.
fn failure_of(error: &io::Error) -> UpstreamError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(error)) => UpstreamError::TlsCertificate(CertificateFault::of(error)),
        Some(_) => UpstreamError::TlsProtocol,
        None => UpstreamError::Terminated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_address_of_a_name_is_tried() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap();
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        for addresses in [vec![closed, here], vec![here, closed], vec![closed, closed, here]] {
            assert!(connect_to_any(addresses.iter()).await.is_ok(), "{addresses:?}");
        }
        let refused = connect_to_any([closed, closed].iter()).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }

    /// An address that does not answer delays the next one only briefly.
    #[tokio::test]
    async fn a_silent_address_is_not_waited_for() {
        let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        full.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        full.listen(0).unwrap();
        let silent = full.local_addr().unwrap().as_socket().unwrap();
        // Its queue is full with these.
        let _waiting: Vec<_> = (0..4)
            .map(|_| {
                let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                socket.set_nonblocking(true).unwrap();
                let _ = socket.connect(&silent.into());
                socket
            })
            .collect();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = [silent, listener.local_addr().unwrap()];
        let within = tokio::time::timeout(Duration::from_secs(5), connect_to_any(addresses.iter()));
        assert!(within.await.unwrap().is_ok());
    }
}
