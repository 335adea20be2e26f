//! Requests that wait while every node that could take them has as many as it may.

use std::sync::atomic::{AtomicU32, Ordering, fence};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// The requests that wait for the same permit, in the order of their arrival.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: AtomicU32,
    room: Notify,
}

/// A ticket of a waiting request, returned on drop.
pub(crate) struct QueueTicket<'a>(&'a Queue);

impl Queue {
    pub(crate) fn waiting(&self) -> u32 {
        // Pairs with the counter of requests in flight: either the request that frees a permit sees the waiting one, or
        // the one that begins to wait sees the permit.
        self.waiting.load(Ordering::SeqCst)
    }

    /// Joins the queue, if fewer than `limit` wait there.
    pub(crate) fn join(&self, limit: u32) -> Option<QueueTicket<'_>> {
        let joined = |waiting: u32| (waiting < limit).then_some(waiting + 1);
        let has_joined = self.waiting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, joined).is_ok();
        // Later reads must not be older than this.
        fence(Ordering::SeqCst);
        // Made only where it was counted, for dropping it counts down.
        has_joined.then(|| QueueTicket(self))
    }

    /// Wakes one waiting request. Returns whether there was one.
    pub(crate) fn wake_one(&self) -> bool {
        let anybody = self.waiting() > 0;
        if anybody {
            self.room.notify_one();
        }
        anybody
    }

    /// Wakes all waiting requests, so that each looks for a permit again.
    pub(super) fn wake_all(&self) {
        self.room.notify_waiters();
    }
}

impl<'a> QueueTicket<'a> {
    /// Returns a future that resolves when there may be room; it receives all notifications from its creation on.
    pub(crate) fn room(&self) -> Notified<'a> {
        self.0.room.notified()
    }
}

impl Drop for QueueTicket<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_and_given_back() {
        let queue = Queue::default();
        assert!(!queue.wake_one(), "nobody waits");
        let first = queue.join(1).unwrap();
        assert!(queue.join(1).is_none() && queue.join(0).is_none());
        assert_eq!(queue.waiting(), 1, "who did not join has no place to give back");
        assert!(queue.wake_one());
        drop(first);
        assert_eq!(queue.waiting(), 0);
    }
}
