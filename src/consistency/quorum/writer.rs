//! A write: its mark before the first byte, the renewals of the mark, and the stamps after the answer. Pure: the caller
//! sends, and tells what the nodes acknowledge and the time of CLOCK_BOOTTIME.

use super::nodes::{Needs, NodeSet};
use smallvec::SmallVec;

/// A time in milliseconds of CLOCK_BOOTTIME.
pub(crate) type Millis = u64;

/// The longest wait for W nodes, at the begin and at the end of a write.
const PATIENCE: Millis = 250;

/// An operation of a write at its nodes. Each is carried out on a node at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    /// A new stamp and a mark, before the first byte.
    Begin,
    /// The mark again, for another lease; also where it was lost.
    Renew,
    /// A new stamp, and no mark: the write was answered.
    End,
    /// A new stamp, and the mark until `settle` is over: the write may still take effect.
    Linger,
    /// No mark: nothing was sent.
    Unmark,
}

/// The outcome of a write at the nodes of its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// No byte of it was sent.
    NotSent,
    Answered,
    /// No whole answer, a 502 or 504, or an earlier attempt was not answered: it may still take effect.
    Unknown,
}

/// The result of the begin so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    /// W nodes of each slot have the mark.
    Marked,
    Waiting,
    /// They have not acknowledged it in time.
    Lost,
}

impl Op {
    /// Returns the last operation of a write.
    pub(crate) fn of(outcome: Outcome) -> Op {
        match outcome {
            Outcome::NotSent => Op::Unmark,
            Outcome::Answered => Op::End,
            Outcome::Unknown => Op::Linger,
        }
    }
}

/// The answer to a client: whether it may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// W nodes of each slot have the last stamp.
    Ended,
    /// They have not, and the mark protects the answer: it may leave while the end goes on.
    Protected,
    Wait,
}

/// One sending of an operation to all nodes of the slots.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Round {
    sent: Millis,
    acknowledged: NodeSet,
}

/// A write on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Writer {
    /// W nodes of each slot.
    needs: Needs,
    lease: Millis,
    /// The begin, and the renewals after it that may still be acknowledged.
    marks: SmallVec<[(u32, Round); 2]>,
    /// The number of the last round.
    last: u32,
    begun: Millis,
    /// When the last mark that W nodes have acknowledged was sent.
    protected: Option<Millis>,
    /// The last operation.
    end: Option<Round>,
}

impl Writer {
    /// Returns a write whose begin is sent now, as round 0.
    pub(crate) fn begin(needs: Needs, lease: Millis, now: Millis) -> Writer {
        let mut marks = SmallVec::new();
        marks.push((0, Round { sent: now, acknowledged: NodeSet::default() }));
        Writer { needs, lease, marks, last: 0, begun: now, protected: None, end: None }
    }

    /// Returns the nodes that each round goes to.
    pub(crate) fn nodes(&self) -> NodeSet {
        self.needs.nodes()
    }

    /// Notes that a node has carried out a round of marks.
    pub(crate) fn marked(&mut self, round: u32, node: u8) {
        let Some(place) = self.marks.iter().position(|(number, _)| *number == round) else { return };
        let found = &mut self.marks[place].1;
        found.acknowledged.insert(node);
        if self.needs.are_met_by(found.acknowledged) {
            self.protected = self.protected.max(Some(found.sent));
            // Earlier rounds protect no longer than this one.
            self.marks.drain(..=place);
        }
    }

    /// Notes that a node has carried out the last operation.
    pub(crate) fn ended(&mut self, node: u8) {
        if let Some(end) = &mut self.end {
            end.acknowledged.insert(node);
        }
    }

    /// Returns the result of the begin.
    pub(crate) fn begun(&self, now: Millis) -> Begun {
        match self.protected {
            Some(_) => Begun::Marked,
            None if now.saturating_sub(self.begun) < PATIENCE => Begun::Waiting,
            None => Begun::Lost,
        }
    }

    /// Returns the time from which nothing of the write may be sent that was not before: half a lease after the last mark
    /// that W nodes have acknowledged was sent. (A process that was stopped between the two must not send after its mark.)
    pub(crate) fn send_by(&self) -> Millis {
        self.protected.unwrap_or(self.begun) + self.lease / 2
    }

    /// Returns the time of the next renewal.
    pub(crate) fn renews_at(&self) -> Millis {
        self.marks.last().map(|(_, round)| round.sent).max(self.protected).unwrap_or(self.begun) + self.lease / 3
    }

    /// Returns the number of a renewal that is sent now, where it is time for one.
    pub(crate) fn renew(&mut self, now: Millis) -> Option<u32> {
        // A renewal puts marks and no stamps: it must not make up for a beginning that W nodes have not acknowledged.
        if now < self.renews_at() || self.protected.is_none() {
            return None;
        }
        self.last += 1;
        // Only those of the last lease can still protect.
        let lease = self.lease;
        self.marks.retain(|(_, round)| now.saturating_sub(round.sent) < lease);
        self.marks.push((self.last, Round { sent: now, acknowledged: NodeSet::default() }));
        Some(self.last)
    }

    /// Returns when the mark ceases to protect, unless it is renewed: a lease after the last mark that W nodes have
    /// acknowledged was sent. Its connection must be closed by then, so that `settle` begins before the mark ends.
    pub(crate) fn lapses_at(&self) -> Millis {
        self.protected.unwrap_or(self.begun) + self.lease
    }

    /// Returns whether the mark may have ceased to protect.
    pub(crate) fn has_lapsed(&self, now: Millis) -> bool {
        now >= self.lapses_at()
    }

    /// Returns the last operation, which is sent now.
    pub(crate) fn finish(&mut self, outcome: Outcome, now: Millis) -> Op {
        self.end = Some(Round { sent: now, acknowledged: NodeSet::default() });
        Op::of(outcome)
    }

    /// Returns whether the client may have its answer.
    pub(crate) fn farewell(&self, now: Millis) -> Farewell {
        let Some(end) = &self.end else { return Farewell::Wait };
        if self.needs.are_met_by(end.acknowledged) {
            return Farewell::Ended;
        }
        let is_late = now.saturating_sub(end.sent) >= PATIENCE;
        match is_late && self.protected.is_some() && !self.has_lapsed(now) {
            true => Farewell::Protected,
            false => Farewell::Wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::nodes::Need;
    use super::*;

    fn writer() -> Writer {
        let needs = [Need { nodes: (0..3).collect(), count: 2 }].into_iter().collect();
        Writer::begin(needs, 9000, 1000)
    }

    #[test]
    fn a_write_is_sent_once_w_nodes_have_its_mark() {
        let mut write = writer();
        assert_eq!(write.begun(1249), Begun::Waiting);
        write.marked(0, 2);
        write.marked(0, 2);
        assert_eq!((write.begun(1249), write.begun(1250)), (Begun::Waiting, Begun::Lost), "twice one node is one");
        write.marked(0, 0);
        assert_eq!((write.begun(1300), write.send_by()), (Begun::Marked, 5500));
    }

    #[test]
    fn a_write_lapses_a_lease_after_its_last_acknowledged_mark_was_sent() {
        let mut write = writer();
        write.marked(0, 0);
        write.marked(0, 1);
        assert_eq!((write.lapses_at(), write.renews_at()), (10_000, 4000));
        assert_eq!((write.renew(3999), write.renew(4000)), (None, Some(1)));
        write.marked(1, 1);
        assert!(!write.has_lapsed(9999) && write.has_lapsed(10_000), "one node is not enough");
        assert_eq!(write.renew(7000), Some(2));
        write.marked(2, 1);
        write.marked(2, 2);
        assert_eq!(write.lapses_at(), 16_000);
        write.marked(1, 2);
        assert_eq!(write.lapses_at(), 16_000, "an earlier round changes nothing");
        assert_eq!((write.renews_at(), write.renew(10_000), write.renews_at()), (10_000, Some(3), 13_000));
    }

    #[test]
    fn an_answer_leaves_after_w_ends_or_under_the_protection_of_its_mark() {
        let mut write = writer();
        write.marked(0, 0);
        write.marked(0, 1);
        assert_eq!(write.finish(Outcome::Answered, 2000), Op::End);
        write.ended(0);
        assert_eq!((write.farewell(2249), write.farewell(2250)), (Farewell::Wait, Farewell::Protected));
        assert_eq!(write.farewell(10_000), Farewell::Wait, "nothing protects it any more");
        write.ended(2);
        assert_eq!(write.farewell(10_000), Farewell::Ended);
        assert_eq!(writer().finish(Outcome::NotSent, 0), Op::Unmark);
        assert_eq!(writer().finish(Outcome::Unknown, 0), Op::Linger);
        let mut unmarked = writer();
        unmarked.finish(Outcome::Answered, 2000);
        assert_eq!(unmarked.farewell(3000), Farewell::Wait);
    }
}
