//! Accepting from a listening socket. A connection has its options from there, and joins the reactor when something has
//! to wait for it.

use rustix::net::{SocketFlags, acceptfrom_with};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A listening socket in the reactor.
pub(in crate::server) struct Accepting(AsyncFd<TcpListener>);

impl Accepting {
    #[expect(
        deprecated,
        reason = "the method in its place is `unsafe`; a `TcpListener` has one descriptor for its life"
    )]
    pub(in crate::server) fn from(socket: TcpListener) -> io::Result<Accepting> {
        AsyncFd::with_interest(socket, Interest::READABLE).map(Accepting)
    }

    /// Waits for a connection; returns its socket, non-blocking, and the peer.
    pub(in crate::server) async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.0.async_io(Interest::READABLE, accept).await
    }

    pub(in crate::server) fn socket(&self) -> &TcpListener {
        self.0.get_ref()
    }

    pub(in crate::server) fn into_socket(self) -> TcpListener {
        self.0.into_inner()
    }
}

/// Accepts a connection that waits at a non-blocking socket; returns its own, non-blocking too, and the peer.
pub(in crate::server) fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (socket, peer) = acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).ok_or(io::ErrorKind::NotConnected)?;
    Ok((socket.into(), peer))
}

#[cfg(test)]
mod tests {
    use super::super::socket_set::{Beside, SocketSet};
    use super::*;
    use socket2::SockRef;
    use std::net::Ipv4Addr;

    #[test]
    fn connections_have_the_options_of_their_listening_socket() {
        let set = SocketSet::bind((Ipv4Addr::LOCALHOST, 0).into(), 1, Beside::default()).unwrap();
        let client = TcpStream::connect(set.address).unwrap();
        let (socket, peer) = accept(&set.sockets[0]).unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        assert!(SockRef::from(&socket).tcp_nodelay().unwrap(), "sends at once");
        assert!(SockRef::from(&socket).nonblocking().unwrap());
        assert_eq!(accept(&set.sockets[0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
