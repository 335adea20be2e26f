//! A connection beneath HTTP, of a client or to a node: a bare socket, or TLS over one.

use super::poll_write_gathered;
use bytes::Bytes;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// What is read at once where it is only looked whether anything comes.
const LOOK: usize = 2048;

/// A connection.
pub(crate) enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Stream::Tcp(stream) => stream,
            Stream::Tls(stream) => stream.get_ref().0,
        }
    }

    /// The protocol that a TLS handshake has settled.
    pub(crate) fn alpn_protocol(&self) -> Option<&[u8]> {
        match self {
            Stream::Tcp(_) => None,
            Stream::Tls(stream) => stream.get_ref().1.alpn_protocol(),
        }
    }

    /// Waits for the first bytes of a request without holding a buffer for them. Gives those that had
    /// to be read for it, or nothing where the connection has ended.
    ///
    /// It looks, for the reactor may call a socket readable that is not, and hyper would take its
    /// buffers for nothing.
    pub(crate) async fn first_bytes(&mut self) -> Option<Bytes> {
        match self {
            Stream::Tcp(stream) => matches!(stream.peek(&mut [0]).await, Ok(1..)).then(Bytes::new),
            Stream::Tls(_) => poll_fn(|cx| self.poll_look(cx)).await,
        }
    }

    /// Reads what is there; nothing where the connection has ended.
    pub(crate) fn poll_look(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut bytes = [0; LOOK];
        let mut buffer = ReadBuf::new(&mut bytes);
        Pin::new(self).poll_read(cx, &mut buffer).map(|result| match result {
            Ok(()) if !buffer.filled().is_empty() => Some(Bytes::copy_from_slice(buffer.filled())),
            _ => None,
        })
    }

    /// Has the end of the connection be a reset.
    pub(crate) fn reset_at_end(&self) {
        // Where it cannot be had, the client sees an ordinary end.
        let _ = socket2::SockRef::from(self.socket()).set_linger(Some(std::time::Duration::ZERO));
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => poll_write_gathered(Pin::new(stream), cx, bufs),
            // It seals the pieces together, as far as a record goes.
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(_) => Poll::Ready(Ok(())),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
