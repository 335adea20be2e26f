//! Passive health: a circuit breaker that opens when consecutive requests to a node fail (outlier ejection).
//!
//! Closed, the node gets requests. Open, it gets none for a time, which grows with every consecutive opening. After
//! that it is half open: one request at a time is sent to it, until one succeeds and closes the circuit, or fails and
//! opens it for longer. While it is not closed, only such a trial counts: requests that were in flight before say
//! nothing new.

use crate::clock::SteadyMillis;
use crate::config::OutlierEjection;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The longest time for which a trial blocks other trials: its client may be slow, which says nothing about the node.
const TRIAL: u64 = 5_000;

/// The circuit of one node.
#[derive(Debug, Default)]
pub(super) struct Circuit {
    /// Failures in a row.
    failures: AtomicU32,
    /// Until when it is open; 0 where it is closed.
    until: AtomicU64,
    /// The begin of the trial in flight; 0 without one.
    trial: AtomicU64,
    history: Mutex<History>,
}

/// The history that the length of the next opening depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct History {
    /// Openings in a row.
    times: u32,
    /// When it first opened of those.
    opened: SteadyMillis,
    /// When it last closed; 0 where it did not since it opened.
    closed: SteadyMillis,
}

/// The ability of a node to get requests, according to earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fitness {
    Closed,
    /// One request may try it.
    HalfOpen,
    Open,
}

impl Circuit {
    pub(super) fn fitness(&self, now: SteadyMillis) -> Fitness {
        match self.until.load(Ordering::Relaxed) {
            0 => Fitness::Closed,
            until if until > now || self.is_tried(now) => Fitness::Open,
            _ => Fitness::HalfOpen,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.until.load(Ordering::Relaxed) == 0
    }

    /// Returns the time until the circuit is half open, in milliseconds; `None` where it is closed.
    pub(super) fn left(&self, now: SteadyMillis) -> Option<u64> {
        let until = self.until.load(Ordering::Relaxed);
        (until != 0).then(|| until.saturating_sub(now))
    }

    /// Failures in a row so far.
    pub(super) fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Returns whether a trial request is in flight.
    fn is_tried(&self, now: SteadyMillis) -> bool {
        let began = self.trial.load(Ordering::Relaxed);
        began != 0 && now.saturating_sub(began) < TRIAL
    }

    /// Takes the permit of the one trial; `false` where another request has it.
    pub(super) fn begin_trial(&self, now: SteadyMillis) -> bool {
        let began = self.trial.load(Ordering::Relaxed);
        let is_free = began == 0 || now.saturating_sub(began) >= TRIAL;
        is_free && self.trial.compare_exchange(began, now, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Returns the permit of the trial with this begin, if it still has it.
    pub(super) fn end_trial(&self, began: SteadyMillis) {
        let _ = self.trial.compare_exchange(began, 0, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// A request has succeeded.
    pub(super) fn succeeded(&self) {
        // Nearly always there is nothing to write.
        if self.failures.load(Ordering::Relaxed) != 0 && self.is_closed() {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a failed request; returns the number of consecutive ones.
    pub(super) fn failed(&self) -> u32 {
        self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// Opens the circuit, or keeps it open for longer; returns the time in milliseconds.
    pub(super) fn open(&self, rules: &OutlierEjection, now: SteadyMillis) -> u64 {
        let base = (rules.base_time.as_millis() as u64).max(1);
        let mut history = self.history.lock();
        if self.is_closed() {
            history.opened = now;
        }
        history.times = history.times_at(now, base).saturating_add(1);
        history.closed = 0;
        let length = base.saturating_mul(u64::from(history.times)).min((rules.max_time.as_millis() as u64).max(1));
        self.failures.store(0, Ordering::Relaxed);
        self.until.store(now.saturating_add(length), Ordering::Relaxed);
        length
    }

    /// Allows a trial at once, as another sign shows that the node is back.
    pub(super) fn half_open(&self, now: SteadyMillis) {
        let shorter = |until: SteadyMillis| (until > now).then_some(now);
        let _ = self.until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, shorter);
    }

    /// Closes the circuit; returns the time of its opening.
    pub(super) fn close(&self, now: SteadyMillis) -> SteadyMillis {
        let mut history = self.history.lock();
        history.closed = now;
        self.failures.store(0, Ordering::Relaxed);
        self.until.store(0, Ordering::Relaxed);
        history.opened
    }
}

impl History {
    /// One opening is forgotten for every `base` that the circuit has been closed since.
    fn times_at(self, now: SteadyMillis, base: u64) -> u32 {
        match self.closed {
            0 => self.times,
            closed => {
                let forgotten = now.saturating_sub(closed) / base;
                self.times.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn rules() -> OutlierEjection {
        let mut rules: OutlierEjection = crate::config::read::default_value("{}");
        (rules.base_time, rules.max_time) = (Duration::from_millis(100), Duration::from_millis(250));
        rules
    }

    #[test]
    fn it_opens_for_longer_every_time_in_a_row() {
        let circuit = Circuit::default();
        assert_eq!(circuit.fitness(1), Fitness::Closed);
        assert_eq!(circuit.open(&rules(), 1000), 100);
        assert_eq!((circuit.fitness(1099), circuit.left(1040)), (Fitness::Open, Some(60)));
        assert_eq!(circuit.fitness(1100), Fitness::HalfOpen);
        assert_eq!(circuit.open(&rules(), 1100), 200);
        assert_eq!(circuit.open(&rules(), 1300), 250, "as long as `max_time` at most");
        circuit.close(2000);
        assert_eq!(circuit.fitness(2000), Fitness::Closed);
        assert_eq!(circuit.open(&rules(), 2199), 250, "one of three was forgotten");
        circuit.close(3000);
        assert_eq!(circuit.open(&rules(), 9000), 100, "all of it was forgotten");
    }

    #[test]
    fn half_open_one_request_tries_it() {
        let circuit = Circuit::default();
        circuit.open(&rules(), 1000);
        assert!(circuit.begin_trial(5000) && !circuit.begin_trial(5001));
        assert_eq!(circuit.fitness(5001), Fitness::Open, "for all others");
        assert_eq!(circuit.fitness(5000 + TRIAL), Fitness::HalfOpen, "a trial may last for ever, its place does not");
        assert!(circuit.begin_trial(5000 + TRIAL));
        circuit.end_trial(5000);
        assert_eq!(circuit.fitness(5000 + TRIAL), Fitness::Open, "the place is another's now");
        circuit.end_trial(5000 + TRIAL);
        assert_eq!(circuit.fitness(5000 + TRIAL), Fitness::HalfOpen);
        circuit.open(&rules(), 5000);
        circuit.half_open(5001);
        assert_eq!(circuit.fitness(5001), Fitness::HalfOpen);
        circuit.close(5002);
        circuit.half_open(5003);
        assert_eq!(circuit.fitness(5003), Fitness::Closed);
    }

    #[test]
    fn only_failures_in_a_row_count() {
        let circuit = Circuit::default();
        assert_eq!((circuit.failed(), circuit.failed()), (1, 2));
        circuit.succeeded();
        assert_eq!(circuit.failed(), 1);
    }
}
