//! The events that wait to be published at one node: bounded; where too many wait, they become one that says so.

use super::event::ProcessId;
use bytes::Bytes;
use std::collections::VecDeque;

/// The most events and bytes that wait.
const MAX_EVENTS: usize = 65_536;
const MAX_BYTES: usize = 16 << 20;
/// The most events and bytes of one call.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 1 << 20;

/// An encoded event.
#[derive(Clone, Debug)]
pub(super) struct Encoded {
    pub(super) number: u64,
    pub(super) bytes: Bytes,
    pub(super) entry: Entry,
}

/// The change of a member's entry in the table of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Stays,
    /// The event is the heartbeat of this process, which the table keeps.
    IsBeat,
    /// A process has left.
    Gone(ProcessId),
}

/// The queue of a node.
#[derive(Debug, Default)]
pub(super) struct Queue {
    events: VecDeque<(u64, Encoded)>,
    bytes: usize,
    /// The place of the next event, by which a batch is removed.
    place: u64,
}

impl Queue {
    /// Adds an event. Returns whether the queue is full: then it is empty now, and takes what replaces its events.
    pub(super) fn push(&mut self, event: Encoded) -> bool {
        if self.events.len() >= MAX_EVENTS || self.bytes + event.bytes.len() > MAX_BYTES {
            (self.events, self.bytes) = (VecDeque::new(), 0);
            return true;
        }
        self.bytes += event.bytes.len();
        self.events.push_back((self.place, event));
        self.place += 1;
        false
    }

    /// Returns the next batch, which stays until it is removed.
    pub(super) fn batch(&self) -> Vec<Encoded> {
        let mut bytes = 0;
        let fits = |(_, event): &&(u64, Encoded)| {
            bytes += event.bytes.len();
            bytes == event.bytes.len() || bytes <= BATCH_BYTES
        };
        self.events.iter().take(BATCH).take_while(fits).map(|(_, event)| event.clone()).collect()
    }

    /// Returns the place behind the first `count` events.
    pub(super) fn place_after(&self, count: usize) -> u64 {
        self.events.get(count.wrapping_sub(1)).map_or(0, |(place, _)| place + 1)
    }

    /// Removes the events before a place.
    pub(super) fn remove_before(&mut self, place: u64) {
        while let Some((_, event)) = self.events.pop_front_if(|(at, _)| *at < place) {
            self.bytes -= event.bytes.len();
        }
    }

    /// Returns whether the node takes events more slowly than they come.
    pub(super) fn is_half_full(&self) -> bool {
        self.events.len() > MAX_EVENTS / 2 || self.bytes > MAX_BYTES / 2
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: u64, size: usize) -> Encoded {
        Encoded { number, bytes: Bytes::from(vec![0; size]), entry: Entry::Stays }
    }

    #[test]
    fn a_batch_stays_until_it_is_removed() {
        let mut queue = Queue::default();
        (0..BATCH as u64 + 3).for_each(|number| assert!(!queue.push(event(number, 8))));
        let batch = queue.batch();
        assert_eq!((batch.len(), batch[0].number), (BATCH, 0));
        let place = queue.place_after(batch.len());
        queue.remove_before(place);
        assert_eq!(queue.batch().iter().map(|event| event.number).collect::<Vec<_>>(), [256, 257, 258]);
        // An overflow meanwhile: the batch is gone already, and its removal removes nothing else.
        let place = queue.place_after(3);
        while !queue.push(event(7, 60 << 10)) {}
        assert!(!queue.push(event(9, 8)));
        queue.remove_before(place);
        assert_eq!((queue.len(), queue.bytes), (1, 8));
        assert!(!queue.is_half_full());
    }

    #[test]
    fn a_batch_is_bounded_by_bytes_and_never_empty() {
        let mut queue = Queue::default();
        assert!((0..4).all(|number| !queue.push(event(number, 600 << 10))));
        assert_eq!(queue.batch().len(), 1);
    }
}
