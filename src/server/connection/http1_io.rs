//! The wire between a client's socket and hyper.
//!
//! It notes when bytes moved, for the connection's timers; puts interim answers out ahead of the
//! final one; and holds back the bare error answers that hyper writes when it cannot read a head,
//! so that the connection can give its own.

use crate::io::{Framing, Malformed, Messages, Seen, Stream};
use crate::proxy::{Downstream, Phase, Tunnel, TunnelSlot};
use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A client's socket as hyper sees it.
pub(super) struct Http1Io {
    stream: Rc<RefCell<Stream>>,
    client: Rc<Downstream>,
    pub(super) pulse: Rc<Pulse>,
}

/// The activity on a socket, shared with the connection that owns hyper.
pub(super) struct Pulse {
    pub(super) last_read: Cell<Instant>,
    pub(super) last_write: Cell<Instant>,
    /// A write waits for the client to take more.
    pub(super) write_blocked: Cell<bool>,
    /// Bytes have come since the last answer was out: a head has begun.
    pub(super) head_began: Cell<Option<Instant>>,
    /// Where requests begin and end; what is not framed as it should be is not given to hyper.
    messages: RefCell<Messages>,
    /// An answer of hyper's own was held back.
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

    /// hyper has parsed a head, whose content is framed so. An error where the request is one that hyper should have
    /// refused, as far as it has come.
    pub(super) fn framed(&self, framing: Framing) -> Result<(), Malformed> {
        self.messages.borrow_mut().framed(framing)
    }

    /// Returns whether all requests that have begun were read to their end.
    pub(super) fn is_between_requests(&self) -> bool {
        self.messages.borrow().is_between()
    }

    /// hyper has read; whether there were bytes that may begin a head.
    fn read(&self, has_bytes: bool) {
        let now = Instant::now();
        self.last_read.set(now);
        if has_bytes && self.head_began.get().is_none() {
            self.head_began.set(Some(now));
        }
    }
}

impl Http1Io {
    pub(super) fn new(stream: Stream, client: Rc<Downstream>) -> Http1Io {
        let now = Instant::now();
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
        Http1Io { stream: Rc::new(RefCell::new(stream)), client, pulse }
    }

    /// A second handle on the socket, to watch it while hyper has the wire.
    pub(super) fn watch(&self) -> Watch {
        Watch { stream: Rc::clone(&self.stream), pulse: Rc::clone(&self.pulse) }
    }

    /// Sends the interim answers that wait.
    fn poll_inject(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut waiting = self.client.http1.inject.borrow_mut();
        while !waiting.is_empty() {
            let written = Pin::new(&mut *self.stream.borrow_mut()).poll_write(cx, &waiting);
            self.pulse.write_blocked.set(written.is_pending());
            let written = ready!(written)?;
            waiting.drain(..written);
            self.pulse.last_write.set(Instant::now());
        }
        Poll::Ready(Ok(()))
    }

    /// Returns whether what hyper writes now is an error answer to a head that it could not read: nothing
    /// else is written between requests, once the last answer is out.
    fn is_error_answer(&self) -> bool {
        self.client.http1.phase.get() == Phase::Idle
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
            Poll::Ready(_) => {
                self.pulse.last_write.set(Instant::now());
                self.pulse.write_blocked.set(false);
            }
            Poll::Pending => self.pulse.write_blocked.set(true),
        }
        written
    }
}

/// Looks at the connection for a client that leaves while it waits for its answer. hyper would look by
/// reading, for which it takes a new buffer each time.
pub(super) struct Watch {
    stream: Rc<RefCell<Stream>>,
    pulse: Rc<Pulse>,
}

impl Watch {
    /// Looks whether the client has closed or reset the connection ([`Seen::End`]). Where bytes have arrived, hyper
    /// has to be polled once more: it may wait for them, and the look may have taken the wake-up. A client whose
    /// bytes wait for hyper has not left, as far as can be told.
    pub(super) fn poll_look(&self, cx: &mut Context<'_>) -> Poll<Seen> {
        let seen = self.stream.borrow_mut().poll_arrival(cx);
        if seen == Poll::Ready(Seen::End) {
            self.pulse.ended.set(true);
        }
        seen
    }

    /// Returns the connection, once hyper has let go of the wire.
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
            // What is left of a body that was let go of begins no head.
            let has_bytes = buf.filled().len() > before && !self.client.http1.drains_body.take();
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

    /// hyper calls this only when it holds nothing any more.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_inject(cx))?;
        let flushed = Pin::new(&mut *self.stream.borrow_mut()).poll_flush(cx);
        self.pulse.write_blocked.set(flushed.is_pending());
        ready!(flushed)?;
        if self.client.http1.phase.get() == Phase::Ending {
            self.client.http1.phase.set(Phase::Idle);
            self.pulse.head_began.set(None);
        }
        Poll::Ready(Ok(()))
    }

    /// How the connection ends is for its owner to say, who gets the socket back.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
