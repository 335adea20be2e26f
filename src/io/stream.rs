//! A connection beneath HTTP, of a client or to a node: a TCP socket, or TLS over one.
//!
//! The next bytes of a connection can be peeked at before they are read: to detect that the peer has left, or the
//! protocol. TLS shows nothing without a read, so bytes that a peek reads from the transport wait inside the
//! [`Stream`], before everything that follows. They are appended, never replaced, and no other place has bytes of the
//! peer: the owner of the `Stream` reads every byte that the peer has sent, in order, once.

use super::socket::{Socket, reset_at_end};
use bytes::{Buf, BytesMut};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// The most that one look takes off a connection: as much as hyper reads at first.
const LOOK: usize = 8 << 10;

/// A connection to a peer.
pub(crate) struct Stream {
    transport: Transport,
    /// Bytes of the peer that were taken off the transport and that no read has returned yet.
    unread: BytesMut,
    /// Since when there are such bytes.
    unread_since: Option<Instant>,
    /// A peek has seen bytes in the socket that no read has taken since.
    peeked: bool,
}

enum Transport {
    Tcp(Socket),
    Tls(Box<TlsStream<TcpStream>>),
}

/// The result of a peek at a connection's next bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The next read returns bytes.
    Bytes,
    /// The peer has closed or reset the connection, and everything that it sent before was read.
    End,
}

impl Stream {
    pub(crate) fn tcp(socket: TcpStream) -> Stream {
        Stream::over(Transport::Tcp(Socket::Joined(socket)))
    }

    /// Returns a connection over a socket that the reactor may not know yet.
    pub(crate) fn over_socket(socket: Socket) -> Stream {
        Stream::over(Transport::Tcp(socket))
    }

    pub(crate) fn tls(session: impl Into<TlsStream<TcpStream>>) -> Stream {
        Stream::over(Transport::Tls(Box::new(session.into())))
    }

    fn over(transport: Transport) -> Stream {
        Stream { transport, unread: BytesMut::new(), unread_since: None, peeked: false }
    }

    /// Returns whether the reactor does not know its socket yet.
    pub(crate) fn is_apart(&self) -> bool {
        matches!(self.transport, Transport::Tcp(Socket::Apart(_)))
    }

    pub(crate) fn is_tls(&self) -> bool {
        matches!(self.transport, Transport::Tls(_))
    }

    /// The protocol that a TLS handshake has settled.
    pub(crate) fn alpn_protocol(&self) -> Option<&[u8]> {
        match &self.transport {
            Transport::Tcp(_) => None,
            Transport::Tls(session) => session.get_ref().1.alpn_protocol(),
        }
    }

    /// Returns whether bytes that were taken off the transport wait for a read.
    pub(crate) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Since when bytes that were taken off the transport wait for a read.
    pub(crate) fn unread_since(&self) -> Option<Instant> {
        self.unread_since.filter(|_| self.has_unread())
    }

    /// Puts back bytes that a reader has taken and not used: the next read returns them first.
    pub(crate) fn unread(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut unread = BytesMut::with_capacity(bytes.len() + self.unread.len());
        unread.extend_from_slice(bytes);
        unread.extend_from_slice(&self.unread);
        self.unread = unread;
        self.unread_since.get_or_insert_with(Instant::now);
    }

    /// Waits until bytes of the peer are here, which the next read returns; `false` where the peer has ended the
    /// connection before. No buffer is held while it waits.
    pub(crate) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        Poll::Ready(self.has_unread() || matches!(ready!(self.poll_fill(cx)), Ok(1..)))
    }

    /// Waits until the peer's bytes either begin with these or cannot any more, and returns which. Takes no byte
    /// from the next read. An end or an error before that is a `false`.
    pub(crate) async fn begins_with(&mut self, expected: &[u8]) -> bool {
        while self.unread.len() < expected.len() && expected.starts_with(&self.unread) {
            if !matches!(poll_fn(|cx| self.poll_fill(cx)).await, Ok(1..)) {
                return false;
            }
        }
        self.unread.starts_with(expected)
    }

    /// Looks whether the next read would return bytes or the end.
    pub(crate) fn poll_peek(&mut self, cx: &mut Context<'_>) -> Poll<Seen> {
        if self.has_unread() || self.peeked {
            return Poll::Ready(Seen::Bytes);
        }
        let seen = match &mut self.transport {
            Transport::Tcp(socket) => {
                let seen = ready!(socket.poll_peek(cx, &mut ReadBuf::new(&mut [0])));
                self.peeked = matches!(seen, Ok(1..));
                seen
            }
            Transport::Tls(_) => ready!(self.poll_fill(cx)),
        };
        Poll::Ready(if matches!(seen, Ok(1..)) { Seen::Bytes } else { Seen::End })
    }

    /// Returns whether the reactor has heard of nothing since the last read: no byte, no end.
    pub(crate) fn is_quiet(&mut self) -> bool {
        if self.has_unread() || self.peeked {
            return false;
        }
        match &mut self.transport {
            Transport::Tcp(socket) => {
                let peeked = socket.peek_at_once();
                self.peeked = matches!(peeked, Some(Ok(1..)));
                peeked.is_none()
            }
            // Without the task's budget: an exhausted one would make any connection look quiet.
            Transport::Tls(_) => {
                let fill = pin!(poll_fn(|cx| self.poll_fill(cx)));
                let mut cx = Context::from_waker(Waker::noop());
                pin!(tokio::task::unconstrained(fill)).poll(&mut cx).is_pending()
            }
        }
    }

    /// Looks for what has arrived since the last read or look: pending also while bytes wait for a read, for then
    /// an end could not be told from what stands before it. Costs no system call where nothing has arrived.
    pub(crate) fn poll_arrival(&mut self, cx: &mut Context<'_>) -> Poll<Seen> {
        if self.has_unread() || self.peeked {
            return Poll::Pending;
        }
        if let Transport::Tls(session) = &self.transport
            && session.get_ref().0.poll_read_ready(cx).is_pending()
        {
            return Poll::Pending;
        }
        self.poll_peek(cx)
    }

    /// Takes bytes off the transport and appends them to those that wait; returns how many, 0 at the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut bytes = [MaybeUninit::uninit(); LOOK];
        if let Transport::Tcp(socket) = &self.transport
            && let Some(read) = socket.read_apart(&mut bytes)
        {
            return Poll::Ready(read.map(|read| self.take(read)));
        }
        let mut buffer = ReadBuf::uninit(&mut bytes);
        ready!(self.poll_transport(cx, &mut buffer))?;
        Poll::Ready(Ok(self.take(buffer.filled())))
    }

    /// Has bytes that were read wait; returns their number.
    fn take(&mut self, read: &[u8]) -> usize {
        if !read.is_empty() {
            self.unread.extend_from_slice(read);
            self.unread_since.get_or_insert_with(Instant::now);
        }
        read.len()
    }

    /// Reads from the transport, past the bytes that wait.
    fn poll_transport(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = match &mut self.transport {
            Transport::Tcp(socket) => socket.poll_read(cx, buf),
            Transport::Tls(session) => Pin::new(session).poll_read(cx, buf),
        };
        if result.is_ready() {
            self.peeked = false;
        }
        result
    }

    /// Sets the bytes that the kernel may hold unsent. Without effect over TLS, which writes in small pieces.
    pub(crate) fn allow_unsent(&self, bytes: u32) {
        if let Transport::Tcp(socket) = &self.transport {
            // Without it, writes stay small.
            let _ = socket.allow_unsent(bytes);
        }
    }

    #[cfg(test)]
    pub(crate) fn tcp_socket(&self) -> Option<&TcpStream> {
        match &self.transport {
            Transport::Tcp(Socket::Joined(socket)) => Some(socket),
            _ => None,
        }
    }

    /// Has the end of the connection be a reset.
    pub(crate) fn reset_at_end(&self) {
        // Where it cannot be had, the client sees an ordinary end.
        let _ = match &self.transport {
            Transport::Tcp(socket) => socket.reset_at_end(),
            Transport::Tls(session) => reset_at_end(session.get_ref().0),
        };
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.has_unread() {
            let length = this.unread.len().min(buf.remaining());
            buf.put_slice(&this.unread[..length]);
            this.unread.advance(length);
            if this.unread.is_empty() {
                // An idle connection holds no buffer.
                this.unread = BytesMut::new();
                this.unread_since = None;
            }
            return Poll::Ready(Ok(()));
        }
        this.poll_transport(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(socket) => socket.poll_write(cx, buf),
            Transport::Tls(session) => Pin::new(session).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(socket) => socket.poll_write_vectored(cx, bufs),
            // It seals the pieces together, as far as a record goes.
            Transport::Tls(session) => Pin::new(session).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(_) => Poll::Ready(Ok(())),
            Transport::Tls(session) => Pin::new(session).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Tcp(socket) => socket.poll_shutdown(cx),
            Transport::Tls(session) => Pin::new(session).poll_shutdown(cx),
        }
    }
}
