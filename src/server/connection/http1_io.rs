//! The I/O between a client's socket and hyper.
//!
//! It notes when bytes moved, for the connection's timers; writes interim responses before the final one; and withholds
//! the bare error responses that hyper writes when it cannot parse a head, so that the connection can send its own.

use crate::clock::poll_time;
use crate::io::{Framing, Malformed, Messages, Seen, Stream};
use crate::proxy::{Downstream, Phase, Tunnel, TunnelSlot};
use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A client that has taken so many bytes in a session reads fast enough for more of them at a time.
const TAKEN: usize = 1 << 20;
/// The bytes that the kernel may hold for such a client and has not sent. One write then takes a response of a MiB,
/// which costs 0.6 of the CPU time of several writes. For HTTP/2 the bound stays low, where a more urgent stream would
/// have to wait behind those bytes.
const UNSENT: u32 = 1 << 20;

/// A client's socket for hyper.
pub(super) struct Http1Io {
    stream: Rc<RefCell<Stream>>,
    downstream: Rc<Downstream>,
    pub(super) pulse: Rc<Pulse>,
    /// The bytes that the client is still to take before the kernel may hold more for it.
    until_fast: usize,
}

/// The activity on a socket, shared with the connection that owns hyper.
pub(super) struct Pulse {
    pub(super) last_read: Cell<Instant>,
    pub(super) last_write: Cell<Instant>,
    /// A write waits for the client to take more.
    pub(super) write_blocked: Cell<bool>,
    /// Bytes have come since the last answer was out: a head has begun.
    pub(super) head_began: Cell<Option<Instant>>,
    /// The boundaries of requests; malformed framing is not passed to hyper.
    messages: RefCell<Messages>,
    /// An error response of hyper was withheld.
    pub(super) held_back: Cell<bool>,
    /// The client closed its side.
    pub(super) ended: Cell<bool>,
    /// The tunnel that the connection becomes after a 101.
    pub(super) tunnel: RefCell<Option<Tunnel>>,
}

impl TunnelSlot for Pulse {
    fn put(&self, tunnel: Tunnel) {
        self.tunnel.replace(Some(tunnel));
    }
}

impl Pulse {
    /// Returns where the connection's client hands over a tunnel.
    pub(super) fn as_tunnel_slot(self: &Rc<Self>) -> Weak<dyn TunnelSlot> {
        Rc::<Pulse>::downgrade(self)
    }

    /// Sets the framing of the content after hyper has parsed a head. An error where hyper should have refused the
    /// request, as far as it has arrived.
    pub(super) fn framed(&self, framing: Framing) -> Result<(), Malformed> {
        self.messages.borrow_mut().framed(framing)
    }

    /// Returns whether all requests that have begun were read to their end.
    pub(super) fn is_between_requests(&self) -> bool {
        self.messages.borrow().is_between()
    }

    /// Notes a read of hyper, and whether there were bytes that may begin a head.
    fn read(&self, has_bytes: bool) {
        let now = poll_time();
        self.last_read.set(now);
        if has_bytes && self.head_began.get().is_none() {
            self.head_began.set(Some(now));
        }
    }
}

impl Http1Io {
    pub(super) fn new(stream: Stream, downstream: Rc<Downstream>) -> Http1Io {
        let now = poll_time();
        let began = stream.unread_since();
        let pulse = Rc::new(Pulse {
            last_read: Cell::new(now),
            last_write: Cell::new(now),
            write_blocked: Cell::new(false),
            head_began: Cell::new(began),
            messages: RefCell::new(Messages::requests()),
            held_back: Cell::new(false),
            ended: Cell::new(false),
            tunnel: RefCell::default(),
        });
        Http1Io { stream: Rc::new(RefCell::new(stream)), downstream, pulse, until_fast: TAKEN }
    }

    /// A second handle on the socket, to watch it while hyper has the wire.
    pub(super) fn watch(&self) -> Watch {
        Watch { stream: Rc::clone(&self.stream), pulse: Rc::clone(&self.pulse) }
    }

    /// Sends the interim answers that wait.
    fn poll_inject(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut waiting = self.downstream.http1.inject.borrow_mut();
        while !waiting.is_empty() {
            let written = Pin::new(&mut *self.stream.borrow_mut()).poll_write(cx, &waiting);
            self.pulse.write_blocked.set(written.is_pending());
            let written = ready!(written)?;
            waiting.drain(..written);
            self.pulse.last_write.set(poll_time());
        }
        Poll::Ready(Ok(()))
    }

    /// Returns whether hyper's next write is an error response to a malformed head: between requests, after the last
    /// response, it writes nothing else.
    fn is_error_answer(&self) -> bool {
        self.downstream.http1.phase.get() == Phase::Idle
    }

    /// Counts what the client takes, up to where the kernel may hold more for it.
    fn took(&mut self, bytes: usize) {
        if self.until_fast > 0 {
            self.until_fast = self.until_fast.saturating_sub(bytes);
            if self.until_fast == 0 {
                self.stream.borrow().allow_unsent(UNSENT);
            }
        }
    }

    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        length: usize,
        write: impl FnOnce(Pin<&mut Stream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.is_error_answer() {
            self.pulse.held_back.set(true);
            return Poll::Ready(Ok(length));
        }
        ready!(self.poll_inject(cx))?;
        let written = write(Pin::new(&mut *self.stream.borrow_mut()), cx);
        match &written {
            Poll::Ready(result) => {
                self.pulse.last_write.set(poll_time());
                self.pulse.write_blocked.set(false);
                if let Ok(written) = result {
                    self.took(*written);
                }
            }
            Poll::Pending => self.pulse.write_blocked.set(true),
        }
        written
    }
}

/// Watches for a client that leaves while it waits for its response. hyper would do so by reading, for which it
/// allocates a new buffer each time.
pub(super) struct Watch {
    stream: Rc<RefCell<Stream>>,
    pulse: Rc<Pulse>,
}

impl Watch {
    /// Resolves when the client has closed or reset the connection ([`Seen::End`]). If bytes have arrived, hyper has to
    /// be polled once more: it may wait for them, and this poll may have taken the wake-up. A client with unread bytes
    /// counts as connected.
    pub(super) fn poll_look(&self, cx: &mut Context<'_>) -> Poll<Seen> {
        let seen = self.stream.borrow_mut().poll_arrival(cx);
        if seen == Poll::Ready(Seen::End) {
            self.pulse.ended.set(true);
        }
        seen
    }

    /// Returns the connection, once hyper has dropped its side.
    pub(super) fn into_stream(self) -> Option<Stream> {
        Some(Rc::into_inner(self.stream)?.into_inner())
    }
}

impl AsyncRead for Http1Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut *self.stream.borrow_mut()).poll_read(cx, buf);
        if result.is_ready() {
            if self.pulse.messages.borrow_mut().read(&buf.filled()[before..]).is_err() {
                buf.set_filled(before);
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::InvalidData)));
            }
            // The rest of an abandoned body begins no head.
            let has_bytes = buf.filled().len() > before && !self.downstream.http1.drains_body.take();
            self.pulse.read(has_bytes);
            self.pulse.ended.set(buf.filled().len() == before);
        }
        result
    }
}

impl AsyncWrite for Http1Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, buf.len(), |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = bufs.iter().map(|buf| buf.len()).sum();
        self.poll_write_with(cx, length, |stream, cx| stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// hyper calls this only when its own buffer is empty.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_inject(cx))?;
        let flushed = Pin::new(&mut *self.stream.borrow_mut()).poll_flush(cx);
        self.pulse.write_blocked.set(flushed.is_pending());
        ready!(flushed)?;
        if self.downstream.http1.phase.get() == Phase::Ending {
            self.downstream.http1.phase.set(Phase::Idle);
            self.pulse.head_began.set(None);
        }
        Poll::Ready(Ok(()))
    }

    /// The owner of the connection, which gets the socket back, decides how it ends.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::SockRef;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn the_kernel_holds_more_for_a_client_that_has_taken_much() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, peer) = listener.accept().await.unwrap();
        let unsent = |socket: &TcpStream| SockRef::from(socket).tcp_notsent_lowat().unwrap();
        SockRef::from(&socket).set_tcp_notsent_lowat(1 << 10).unwrap();
        let downstream = Rc::new(Downstream::new(peer, "web".into(), Rc::default(), None));
        downstream.http1.phase.set(Phase::Answer);
        let mut wire = Http1Io::new(Stream::tcp(socket), downstream);
        let mut taken = vec![0; TAKEN - 1];
        let most = vec![7; TAKEN - 1];
        let (written, read) = tokio::join!(wire.write_all(&most), client.read_exact(&mut taken));
        written.unwrap();
        read.unwrap();
        let watch = wire.watch();
        let socket = |watch: &Watch| watch.stream.borrow().tcp_socket().map(unsent);
        assert_eq!(socket(&watch), Some(1 << 10));
        wire.write_all(b"8").await.unwrap();
        assert_eq!(socket(&watch), Some(UNSENT));
    }
}
