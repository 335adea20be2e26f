//! The wire beneath an HTTP/2 connection. The h2 crate writes every frame by itself, and TLS would seal each in
//! a record of its own; here they are gathered, and go out when whoever polls the connection has polled it.
//!
//! A flush is acknowledged at once for that reason: the owner drains after every poll, and a shutdown waits
//! until all is out. What is held is bounded; over it a write waits.

use crate::io::Stream;
use bytes::{Buf, Bytes, BytesMut};
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// What is held at most.
const BOUND: usize = 64 << 10;
/// A buffer larger than this is not kept for the next frames.
const KEPT: usize = 16 << 10;
/// How long a closing connection is read from, so that a reset does not overtake its last words.
const LINGER: Duration = Duration::from_secs(1);

/// The wire as hyper has it.
pub(super) struct Gather(Rc<RefCell<Inner>>);

/// The wire as its owner has it.
pub(super) struct Handle(Rc<RefCell<Inner>>);

struct Inner {
    stream: Stream,
    /// What was read before hyper asked for it.
    ahead: Bytes,
    held: BytesMut,
    /// Since when the client takes nothing.
    blocked: Option<Instant>,
}

impl Gather {
    pub(super) fn new(stream: Stream, ahead: Bytes) -> Gather {
        Gather(Rc::new(RefCell::new(Inner { stream, ahead, held: BytesMut::new(), blocked: None })))
    }

    pub(super) fn handle(&self) -> Handle {
        Handle(Rc::clone(&self.0))
    }
}

impl Inner {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let written = Pin::new(&mut self.stream).poll_write(cx, &self.held);
            self.note(written.is_pending());
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                length => self.held.advance(length),
            }
        }
        if self.held.capacity() > KEPT {
            self.held = BytesMut::new();
        }
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.note(flushed.is_pending());
        flushed
    }

    fn note(&mut self, is_blocked: bool) {
        self.blocked = if is_blocked { self.blocked.or_else(|| Some(Instant::now())) } else { None };
    }
}

impl Handle {
    /// Sends all that is held.
    pub(super) fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_drain(cx)
    }

    /// Since when the client has taken nothing that is there for it.
    pub(super) fn blocked_since(&self) -> Option<Instant> {
        self.0.borrow().blocked
    }

    /// Ends the connection well.
    pub(super) async fn close(self) {
        // hyper is gone by now, and has no use for the wire.
        let Ok(inner) = Rc::try_unwrap(self.0) else { return };
        let mut stream = inner.into_inner().stream;
        let end = async {
            let mut discarded = [0; 1024];
            if stream.shutdown().await.is_ok() {
                while matches!(stream.read(&mut discarded).await, Ok(1..)) {}
            }
        };
        // What comes after that time is the client's loss.
        let _ = tokio::time::timeout(LINGER, end).await;
    }
}

impl AsyncRead for Gather {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        if !inner.ahead.is_empty() {
            let length = inner.ahead.len().min(buf.remaining());
            buf.put_slice(&inner.ahead.split_to(length));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut inner.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Gather {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.0.borrow_mut();
        if inner.held.len() >= BOUND {
            ready!(inner.poll_drain(cx))?;
        }
        let length = buf.len().min(BOUND - inner.held.len());
        inner.held.extend_from_slice(&buf[..length]);
        Poll::Ready(Ok(length))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.0.borrow_mut();
        if inner.held.len() >= BOUND {
            ready!(inner.poll_drain(cx))?;
        }
        let before = inner.held.len();
        for buf in bufs {
            let length = buf.len().min(BOUND - inner.held.len());
            inner.held.extend_from_slice(&buf[..length]);
        }
        Poll::Ready(Ok(inner.held.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The owner closes the connection, when all is out.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_drain(cx)
    }
}
