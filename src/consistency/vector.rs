//! Dots, vectors of them, and the clock of a process.

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The most processes of a vector. Processes are new at each start; those that were silent longest are forgotten, which
/// costs validations.
const MAX_PROCESSES: usize = 64;
/// The most processes of a whole clock, with its own.
pub(super) const MAX_CLOCK: usize = MAX_PROCESSES + 1;

/// One answer: the process that gave it, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Dot {
    pub(crate) process: u64,
    pub(crate) number: u64,
}

/// The highest number of each process: it covers that number and all before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Vector(Vec<Dot>);

impl Vector {
    /// Returns the highest number of a process; 0 for none.
    pub(crate) fn of(&self, process: u64) -> u64 {
        self.0.binary_search_by_key(&process, |dot| dot.process).map_or(0, |at| self.0[at].number)
    }

    pub(crate) fn covers(&self, dot: Dot) -> bool {
        self.of(dot.process) >= dot.number
    }

    /// Covers a dot, and all numbers of its process before.
    pub(crate) fn join(&mut self, dot: Dot) {
        match self.0.binary_search_by_key(&dot.process, |known| known.process) {
            Ok(at) => self.0[at].number = self.0[at].number.max(dot.number),
            Err(at) => self.0.insert(at, dot),
        }
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = Dot> + '_ {
        self.0.iter().copied()
    }

    /// Forgets a process. Returns whether it was known.
    pub(super) fn forget(&mut self, process: u64) -> bool {
        let before = self.0.len();
        self.0.retain(|dot| dot.process != process);
        self.0.len() < before
    }
}

impl FromIterator<Dot> for Vector {
    fn from_iter<I: IntoIterator<Item = Dot>>(dots: I) -> Vector {
        let mut vector = Vector::default();
        dots.into_iter().for_each(|dot| vector.join(dot));
        vector
    }
}

/// The clock of a process: the numbers that it has given out, and the highest one of each other process that it has
/// heard.
pub(crate) struct Clock {
    process: u64,
    given: AtomicU64,
    heard: ArcSwap<Vector>,
    /// The other processes, the one that was heard last at the end.
    order: Mutex<Vec<u64>>,
}

impl Clock {
    pub(crate) fn new(process: u64) -> Clock {
        Clock { process, given: AtomicU64::new(0), heard: ArcSwap::default(), order: Mutex::default() }
    }

    /// Takes the number of an answer whose head has arrived.
    pub(crate) fn next(&self) -> Dot {
        Dot { process: self.process, number: self.given.fetch_add(1, Ordering::AcqRel) + 1 }
    }

    /// Returns the last number that was taken: what begins now is later than all answers up to it.
    pub(crate) fn now(&self) -> Dot {
        Dot { process: self.process, number: self.given.load(Ordering::Acquire) }
    }

    /// Returns what was heard of the other processes.
    pub(crate) fn heard(&self) -> Arc<Vector> {
        self.heard.load_full()
    }

    /// Returns the whole clock.
    pub(crate) fn vector(&self) -> Vector {
        let mut vector = Vector::clone(&self.heard());
        vector.join(self.now());
        vector
    }

    /// Notes dots of other processes. Returns the processes that are forgotten for them.
    pub(super) fn hear(&self, dots: impl IntoIterator<Item = Dot>) -> Vec<u64> {
        let mut forgotten = Vec::new();
        let mut order = self.order.lock();
        let mut heard = Vector::clone(&self.heard.load());
        for dot in dots.into_iter().filter(|dot| dot.process != self.process) {
            order.retain(|process| *process != dot.process);
            order.push(dot.process);
            heard.join(dot);
            if order.len() > MAX_PROCESSES {
                let process = order.remove(0);
                heard.forget(process);
                forgotten.push(process);
            }
        }
        self.heard.store(Arc::new(heard));
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(process: u64, number: u64) -> Dot {
        Dot { process, number }
    }

    #[test]
    fn a_vector_covers_what_came_before() {
        let vector: Vector = [dot(2, 5), dot(1, 7), dot(2, 3)].into_iter().collect();
        for (asked, covered) in [(dot(2, 5), true), (dot(2, 1), true), (dot(2, 6), false), (dot(3, 1), false)] {
            assert_eq!(vector.covers(asked), covered, "{asked:?}");
        }
        assert_eq!(vector.iter().collect::<Vec<_>>(), [dot(1, 7), dot(2, 5)]);
    }

    #[test]
    fn a_clock_knows_its_own_numbers_and_those_it_hears() {
        let clock = Clock::new(1);
        assert_eq!((clock.next(), clock.next(), clock.now()), (dot(1, 1), dot(1, 2), dot(1, 2)));
        clock.hear([dot(2, 9), dot(1, 99), dot(2, 4)]);
        assert_eq!(clock.vector(), [dot(1, 2), dot(2, 9)].into_iter().collect());
    }

    #[test]
    fn a_clock_forgets_the_processes_that_were_silent_longest() {
        let clock = Clock::new(1);
        clock.hear((0..MAX_PROCESSES as u64).map(|process| dot(100 + process, 1)));
        clock.hear([dot(100, 2)]);
        clock.hear([dot(999, 1)]);
        let heard = clock.heard();
        assert_eq!((heard.iter().len(), heard.of(100), heard.of(101), heard.of(999)), (MAX_PROCESSES, 2, 0, 1));
    }
}
