//! The open streams of an HTTP/2 connection: how much their bodies hold, and their tasks.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;

/// The bytes of nodes' responses that an HTTP/2 connection may hold over all of its streams, before more is read.
const UNSENT: u64 = 256 << 10;

/// The streams of a connection that are open.
#[derive(Default)]
pub(crate) struct Streams {
    /// Bytes that were read of their bodies.
    read: Cell<u64>,
    /// Requests that made no sense.
    malformed: Cell<u32>,
    /// Bytes of answers that were given to the connection, and those of them that it holds no more.
    given: Cell<u64>,
    gone: Cell<u64>,
    /// The bytes that were given to streams which were reset, and so never sent.
    dropped: Cell<u64>,
    /// When its bodies last waited unread for the process to hold less.
    starved: Cell<Option<Instant>>,
    /// `true` where answers wait until more of these are sent.
    has_waiting: Cell<bool>,
    /// The connection's task, which is told when there are fewer.
    task: RefCell<Option<Waker>>,
    /// The slot of the stream whose task is made next: hyper makes it as soon as it has called the service.
    begun: Cell<Option<usize>>,
    open: RefCell<Slots>,
}

/// The open streams by slot; a stream leaves its slot when it ends.
#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

/// One stream's slot. The task is there so that a stream can be ended whose client takes nothing of its answer: while
/// the client's window is shut, hyper asks for no more of the body, and no timer of ours would run.
#[derive(Default)]
struct Slot {
    task: Option<AbortHandle>,
    /// Since when a piece of the answer has been offered to the client; none while the node is waited for.
    offered: Option<Instant>,
    /// The answer's task, while it waits for the connection to hold less.
    waiting: Option<Waker>,
}

impl Slots {
    fn take(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        })
    }

    fn give_back(&mut self, slot: usize) {
        self.slots[slot] = Slot::default();
        self.free.push(slot);
    }

    fn are_all_free(&self) -> bool {
        self.free.len() == self.slots.len()
    }
}

impl Streams {
    pub(crate) fn are_none(&self) -> bool {
        self.open.borrow().are_all_free()
    }

    /// Returns how many bytes were read of all bodies so far.
    pub(crate) fn read(&self) -> u64 {
        self.read.get()
    }

    /// Notes that a piece of a body was read.
    pub(super) fn took(&self, bytes: u64) {
        self.read.set(self.read.get() + bytes);
    }

    /// Returns how many requests made no sense since this was asked last.
    pub(crate) fn take_malformed(&self) -> u32 {
        self.malformed.take()
    }

    /// Notes a request that made no sense.
    pub(super) fn note_malformed(&self) {
        self.malformed.set(self.malformed.get() + 1);
    }

    /// Notes that its bodies wait unread, for the process holds as much as it may.
    pub(crate) fn starve(&self, now: Instant) {
        self.starved.set(Some(now));
    }

    /// Returns whether its bodies waited unread at that time or later.
    pub(super) fn was_starved_since(&self, since: Instant) -> bool {
        self.starved.get().is_some_and(|starved| starved >= since)
    }

    /// Notes that so much of an answer was given to the connection.
    pub(super) fn gave(&self, bytes: u64) {
        self.given.set(self.given.get() + bytes);
    }

    /// Notes that so many bytes of answers have been sent so far; `is_all` that what clients' windows allow is out.
    pub(crate) fn sent(&self, bytes: u64, is_all: bool) {
        if is_all {
            self.dropped.set(self.given.get().saturating_sub(bytes));
        }
        self.gone.set(bytes + self.dropped.get());
        if self.unsent() < UNSENT && self.has_waiting.take() {
            let mut open = self.open.borrow_mut();
            open.slots.iter_mut().filter_map(|slot| slot.waiting.take()).for_each(Waker::wake);
        }
    }

    fn unsent(&self) -> u64 {
        self.given.get().saturating_sub(self.gone.get())
    }

    /// Has the connection's task look again.
    pub(crate) fn wake(&self) {
        if let Some(task) = &*self.task.borrow() {
            task.wake_by_ref();
        }
    }

    /// Has this task told of every stream that ends.
    pub(crate) fn watch(&self, cx: &Context<'_>) {
        let mut task = self.task.borrow_mut();
        if !task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            *task = Some(cx.waker().clone());
        }
    }

    /// Notes a task; it belongs to the stream that has begun, where there is one.
    pub(crate) fn started(&self, task: AbortHandle) {
        if let Some(slot) = self.begun.take() {
            self.open.borrow_mut().slots[slot].task = Some(task);
        }
    }

    /// Ends all streams: what has not reached a node yet never will.
    pub(crate) fn end_all(&self) {
        self.open.borrow().slots.iter().filter_map(|slot| slot.task.as_ref()).for_each(AbortHandle::abort);
    }

    /// Resets the streams whose clients have taken nothing for so long.
    pub(crate) fn end_stalled(&self, now: Instant, limit: Duration) {
        let open = self.open.borrow();
        let is_stalled = |slot: &&Slot| slot.offered.is_some_and(|since| now >= since + limit);
        open.slots.iter().filter(is_stalled).filter_map(|slot| slot.task.as_ref()).for_each(AbortHandle::abort);
    }
}

/// One open stream among those of its connection.
pub(super) struct OpenStream {
    pub(super) streams: Rc<Streams>,
    slot: usize,
}

impl OpenStream {
    /// Opens a stream, whose task is made next.
    pub(super) fn new(streams: &Rc<Streams>) -> OpenStream {
        let slot = streams.open.borrow_mut().take();
        streams.begun.set(Some(slot));
        OpenStream { streams: Rc::clone(streams), slot }
    }

    /// Waits until the connection holds little of the answers of nodes.
    pub(super) fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        if self.streams.unsent() < UNSENT {
            return Poll::Ready(());
        }
        self.streams.open.borrow_mut().slots[self.slot].waiting = Some(cx.waker().clone());
        self.streams.has_waiting.set(true);
        Poll::Pending
    }

    /// Notes since when a piece of its answer is with the client; `None` while it is still to come from the node.
    pub(super) fn offer(&self, since: Option<Instant>) {
        self.streams.open.borrow_mut().slots[self.slot].offered = since;
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let streams = &self.streams;
        streams.open.borrow_mut().give_back(self.slot);
        if streams.begun.get() == Some(self.slot) {
            streams.begun.set(None);
        }
        streams.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client may begin and reset streams as long as the connection is full: none of them leaves anything behind.
    #[test]
    fn a_stream_that_ends_while_it_waits_leaves_its_slot() {
        let streams = Rc::new(Streams::default());
        let cx = Context::from_waker(Waker::noop());
        streams.gave(UNSENT);
        for _ in 0..1000 {
            let stream = OpenStream::new(&streams);
            assert!(stream.poll_room(&cx).is_pending());
        }
        assert!(streams.are_none());
        assert_eq!(streams.open.borrow().slots.len(), 1);
        assert!(streams.open.borrow().slots.iter().all(|slot| slot.waiting.is_none()));
    }

    #[test]
    fn waiting_streams_are_woken_once_the_connection_holds_less() {
        let streams = Rc::new(Streams::default());
        let woken = std::sync::Arc::new(Woken::default());
        let waker = Waker::from(std::sync::Arc::clone(&woken));
        let cx = Context::from_waker(&waker);
        streams.gave(UNSENT);
        let (first, second) = (OpenStream::new(&streams), OpenStream::new(&streams));
        assert!(first.poll_room(&cx).is_pending() && second.poll_room(&cx).is_pending());
        streams.sent(0, false);
        assert_eq!(woken.count(), 0);
        streams.sent(1, false);
        assert_eq!(woken.count(), 2);
        assert!(first.poll_room(&cx).is_ready());
    }

    #[derive(Default)]
    struct Woken(std::sync::atomic::AtomicUsize);

    impl Woken {
        fn count(&self) -> usize {
            self.0.load(std::sync::atomic::Ordering::Relaxed)
        }
    }

    impl std::task::Wake for Woken {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
}
