//! The I/O beneath an HTTP/2 connection. The h2 crate writes every frame by itself, and TLS would make a record of
//! each; here frames are gathered, and written after the connection was polled.
//!
//! Therefore a flush succeeds at once: the owner writes after every poll, and a shutdown waits until everything is
//! written. The buffer is bounded; above the bound a write waits.
//!
//! All bytes pass the flood meter. A connection above its limit is not read any further, nor one with unread bodies
//! while the budget of the process is spent.

use super::flood::{FloodMeter, Glitch, Verdict};
use crate::http::budget::Share;
use crate::io::Stream;
use crate::proxy::{RequestRecorder, Streams};
use bytes::{Buf, BytesMut};
use std::cell::RefCell;
use std::io;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// The most buffered bytes.
const BOUND: usize = 64 << 10;
/// A buffer larger than this is not kept by a connection that is idle.
const KEPT: usize = 16 << 10;
/// The time for which a closing connection is read, so that a reset does not overtake its last response, and the bytes.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 << 10;

/// The most bytes that are read in one turn. A byte of a head takes as much time as many of a body.
const TURN: u64 = 64 << 10;
const WEIGHT_OF_HEADS: u64 = 8;

/// A GOAWAY frame up to the last stream (RFC 9113 6.8).
const GOAWAY: [u8; 9] = [0, 0, 8, 7, 0, 0, 0, 0, 0];
const ENHANCE_YOUR_CALM: u32 = 0xb;
const PROTOCOL_ERROR: u32 = 0x1;

/// The wire as hyper has it.
pub(super) struct Http2Io(Rc<RefCell<Inner>>);

/// The wire as its owner has it.
pub(super) struct WireHandle(Rc<RefCell<Inner>>);

/// The same for a request on it.
pub(super) struct StreamHandle(Weak<RefCell<Inner>>);

impl StreamHandle {
    /// Returns the stream of the newest request, where it is certain.
    pub(super) fn accept(&self) -> Option<u32> {
        self.0.upgrade()?.borrow_mut().meter.accept()
    }

    /// Returns a function that sends `100 Continue` on a stream, where that is possible between two frames.
    pub(super) fn continuing(&self, stream: u32) -> impl FnOnce() + 'static {
        let wire = Weak::clone(&self.0);
        move || {
            let Some(wire) = wire.upgrade() else { return };
            let mut inner = wire.borrow_mut();
            if inner.meter.last_stream_at_boundary().is_some() {
                // HEADERS with END_HEADERS; `:status` by its static name, not indexed (RFC 7541 6.2.2).
                inner.held.extend_from_slice(&[0, 0, 5, 1, 4]);
                inner.held.extend_from_slice(&stream.to_be_bytes());
                inner.held.extend_from_slice(&[0x08, 3, b'1', b'0', b'0']);
                inner.streams.wake();
            }
        }
    }
}

struct Inner {
    stream: Stream,
    held: BytesMut,
    /// Since when the client takes nothing.
    blocked: Option<Instant>,
    meter: FloodMeter,
    /// The head that the client is in the middle of, and since when.
    open_head: Option<(u64, Instant)>,
    streams: Rc<Streams>,
    recorder: Rc<RequestRecorder>,
    /// The share of the budget for unread bodies.
    share: Share,
    /// The share could not grow: nothing is read before it can.
    is_starved: bool,
    /// The bytes that may still be read in this turn.
    turn: u64,
    /// The client has closed its side.
    has_ended: bool,
}

/// The destinations of what the I/O notes.
pub(super) struct Notes {
    pub(super) meter: FloodMeter,
    pub(super) streams: Rc<Streams>,
    pub(super) recorder: Rc<RequestRecorder>,
    /// Of the process's budget; empty.
    pub(super) share: Share,
}

impl Http2Io {
    pub(super) fn new(stream: Stream, notes: Notes) -> Http2Io {
        let Notes { meter, streams, recorder, share } = notes;
        Http2Io(Rc::new(RefCell::new(Inner {
            stream,
            held: BytesMut::new(),
            blocked: None,
            meter,
            open_head: None,
            streams,
            recorder,
            share,
            is_starved: false,
            turn: TURN,
            has_ended: false,
        })))
    }

    pub(super) fn handle(&self) -> WireHandle {
        WireHandle(Rc::clone(&self.0))
    }

    pub(super) fn stream_handle(&self) -> StreamHandle {
        StreamHandle(Rc::downgrade(&self.0))
    }
}

impl Inner {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let written = Pin::new(&mut self.stream).poll_write(cx, &self.held);
            self.note(written.is_pending());
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                length if length == self.held.len() => self.held.clear(),
                length => self.held.advance(length),
            }
        }
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.note(flushed.is_pending());
        flushed
    }

    fn note(&mut self, is_blocked: bool) {
        self.blocked = if is_blocked { self.blocked.or_else(|| Some(Instant::now())) } else { None };
    }

    /// Meters received bytes.
    fn came(&mut self, bytes: &[u8]) {
        let recorder = &self.recorder;
        self.meter.inward(bytes, |glitch| recorder.glitch(glitch.label()));
        self.open_head = self.meter.open_head().map(|head| match self.open_head {
            Some((known, since)) if known == head => (head, since),
            _ => (head, Instant::now()),
        });
    }

    /// Meters the bytes that were added to the buffer.
    fn added(&mut self, before: usize) {
        let recorder = &self.recorder;
        self.meter.outward(&self.held[before..], |glitch| recorder.glitch(glitch.label()));
    }

    /// Adjusts the share to the unread bytes. Returns whether more may be read.
    fn settle(&mut self) -> bool {
        let unread = if self.streams.are_none() { 0 } else { self.meter.unread(self.streams.read()) };
        self.share.shrink(unread);
        self.is_starved = !self.share.cover(unread);
        if self.is_starved {
            // While nothing is read, the client is not late.
            let now = Instant::now();
            self.streams.starve(now);
            self.open_head = self.open_head.map(|(head, _)| (head, now));
        }
        !self.is_starved
    }
}

impl WireHandle {
    /// Writes the buffer.
    pub(super) fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_drain(cx)
    }

    /// Returns whether the buffer of frames is larger than an idle connection's.
    pub(super) fn has_large_buffer(&self) -> bool {
        self.0.borrow().held.capacity() > KEPT
    }

    /// Lets go of a large buffer that holds nothing.
    pub(super) fn shrink_buffer(&self) {
        let held = &mut self.0.borrow_mut().held;
        if held.is_empty() && held.capacity() > KEPT {
            *held = BytesMut::new();
        }
    }

    /// Since when the client has taken nothing that is there for it.
    pub(super) fn blocked_since(&self) -> Option<Instant> {
        self.0.borrow().blocked
    }

    /// Tells the streams how much of their responses was sent; `is_all`: nothing is left to send.
    pub(super) fn tell_sent(&self, is_all: bool) {
        let inner = self.0.borrow();
        inner.streams.sent(inner.meter.sent(), is_all);
    }

    /// Begins another turn, in which a bounded amount is read.
    pub(super) fn take_turn(&self) {
        let mut inner = self.0.borrow_mut();
        inner.turn = TURN;
        inner.meter.begin_turn();
    }

    /// Returns the verdict on the connection's glitches.
    pub(super) fn verdict(&self) -> Verdict {
        let mut inner = self.0.borrow_mut();
        for _ in 0..inner.streams.take_malformed() {
            inner.meter.note(Glitch::Malformed, Instant::now());
            inner.recorder.glitch(Glitch::Malformed.label());
        }
        inner.meter.verdict()
    }

    /// Returns the begin of an incomplete head.
    pub(super) fn head_since(&self) -> Option<Instant> {
        self.0.borrow().open_head.map(|(_, since)| since)
    }

    /// Releases the budget of bodies that were read. Returns whether the connection waits for budget.
    pub(super) fn is_starved(&self) -> bool {
        let mut inner = self.0.borrow_mut();
        (inner.is_starved || !inner.streams.are_none() || inner.share.is_held()) && !inner.settle()
    }

    /// Sends GOAWAY with ENHANCE_YOUR_CALM.
    pub(super) fn rebuke(&self) {
        self.go_away(ENHANCE_YOUR_CALM);
    }

    /// Sends GOAWAY for an error of the client, unless the client has ended the connection.
    pub(super) fn end_in_error(&self) {
        let is_the_clients = |inner: &Inner| inner.has_ended || inner.meter.has_goaway();
        if !is_the_clients(&self.0.borrow()) {
            self.go_away(PROTOCOL_ERROR);
        }
    }

    /// Sends the reason for the end of the connection, where that is possible between two frames.
    fn go_away(&self, reason: u32) {
        let mut inner = self.0.borrow_mut();
        if let Some(last) = inner.meter.last_stream_at_boundary() {
            inner.held.extend_from_slice(&GOAWAY);
            inner.held.extend_from_slice(&last.to_be_bytes());
            inner.held.extend_from_slice(&reason.to_be_bytes());
        }
    }

    /// Ends the connection well.
    pub(super) async fn close(self) {
        // hyper is gone by now, and has no use for the wire.
        let Ok(inner) = Rc::try_unwrap(self.0) else { return };
        let Inner { mut stream, held, .. } = inner.into_inner();
        let end = async {
            let (mut discarded, mut left) = ([0; 4096], LINGER_BYTES);
            stream.write_all(&held).await?;
            stream.shutdown().await?;
            while left > 0 {
                match stream.read(&mut discarded).await? {
                    0 => break,
                    length => left = left.saturating_sub(length),
                }
            }
            io::Result::Ok(())
        };
        // After that time the client may lose the last response.
        let _ = tokio::time::timeout(LINGER, end).await;
    }
}

impl AsyncRead for Http2Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        // The owner sees the reason, and ends the connection or polls again.
        if inner.meter.verdict() == Verdict::Hostile || inner.is_starved {
            return Poll::Pending;
        }
        if inner.turn == 0 {
            // Woken again only after the tasks for which bytes have arrived meanwhile.
            let _ = pin!(tokio::task::yield_now()).poll(cx);
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut inner.stream).poll_read(cx, buf))?;
        inner.has_ended = buf.filled().len() == before;
        let heads = inner.meter.head_bytes();
        inner.came(&buf.filled()[before..]);
        let work = (buf.filled().len() - before) as u64 + WEIGHT_OF_HEADS * (inner.meter.head_bytes() - heads);
        inner.turn = inner.turn.saturating_sub(work);
        if inner.meter.verdict() == Verdict::Hostile {
            buf.set_filled(before);
            return Poll::Pending;
        }
        inner.settle();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Http2Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.0.borrow_mut();
        if inner.held.len() >= BOUND {
            ready!(inner.poll_drain(cx))?;
        }
        let before = inner.held.len();
        let length = buf.len().min(BOUND - before);
        inner.held.extend_from_slice(&buf[..length]);
        inner.added(before);
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
        inner.added(before);
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
