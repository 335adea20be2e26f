//! A new connection to a node, for requests and for health checks alike.

use super::Failure;
use crate::config::Protocol;
use crate::io::Stream;
use crate::tls::ClientTls;
use rustls::pki_types::ServerName;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Where a node is, and how it is spoken with.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) protocol: Protocol,
    /// With TLS: what it is met with, and the name that it must show.
    pub(crate) tls: Option<(Arc<ClientTls>, ServerName<'static>)>,
}

impl Target {
    /// All but the address, in a form that can be compared.
    pub(super) fn manner(&self) -> Vec<u8> {
        let mut manner = self.protocol.word().as_bytes().to_vec();
        if let Some((tls, name)) = &self.tls {
            manner.extend_from_slice(&tls.digest);
            manner.extend_from_slice(name.to_str().as_bytes());
        }
        manner
    }

    /// The same at another port.
    pub(super) fn at(&self, port: u16) -> Target {
        Target { address: SocketAddr::new(self.address.ip(), port), ..self.clone() }
    }

    /// Connects, and shakes hands where TLS is spoken. How long that may take is the caller's to say.
    pub(super) async fn connect(&self) -> Result<Stream, (Failure, String)> {
        let socket = TcpStream::connect(self.address).await.map_err(|error| {
            let failure = match error.kind() {
                io::ErrorKind::ConnectionRefused => Failure::ConnectionRefused,
                io::ErrorKind::TimedOut => Failure::ConnectTimeout,
                _ => Failure::Unreachable,
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

/// Why a handshake has failed.
fn failure_of(error: &io::Error) -> Failure {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_)) => Failure::TlsCertificate,
        Some(_) => Failure::TlsProtocol,
        None => Failure::Terminated,
    }
}
