//! The judgement of a history: each register is linearizable, by Wing and Gong's search with memoisation (Lowe, "Testing
//! for linearizability", 2017): operations take effect in some order, each between its call and its return, in which every
//! read has the value of the last write before it.

use std::collections::HashSet;

/// The value of a register before the first write.
pub const INITIAL: u64 = 0;

/// An operation on a register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The client, which does one operation at a time.
    pub process: usize,
    pub call: u64,
    /// `None` for a write of unknown outcome: it takes effect at any time after its call, or never.
    pub end: Option<u64>,
    pub action: Action,
    /// Where the operation was done, for readers of a violation.
    pub place: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Read(u64),
    Write(u64),
}

impl Operation {
    pub fn new(process: usize, call: u64, end: Option<u64>, action: Action) -> Operation {
        Operation { process, call, end, action, place: String::new() }
    }

    /// Returns the value of a register after this operation; `None` where it does not fit the value before.
    fn apply(&self, before: u64) -> Option<u64> {
        match self.action {
            Action::Read(value) => (value == before).then_some(before),
            Action::Write(value) => Some(value),
        }
    }

    fn is_read_of(&self, value: u64) -> bool {
        self.action == Action::Read(value)
    }
}

/// Returns whether the operations on one register are linearizable.
pub fn is_linearizable(operations: &[Operation]) -> bool {
    // Without an unknown write whose value is never read each order of the others stays right.
    let matters = |operation: &&Operation| match (operation.action, operation.end) {
        (Action::Write(value), None) => operations.iter().any(|other| other.is_read_of(value)),
        _ => true,
    };
    let operations: Vec<&Operation> = operations.iter().filter(matters).collect();
    assert!(operations.iter().all(|it| it.end.is_some() || matches!(it.action, Action::Write(_))), "a read that ended");
    Search::new(&operations).run()
}

/// Returns a shortest part of a history that is not linearizable, as far as the removal of one operation after the other
/// finds it. Every value that it reads is written in it.
pub fn shortest(operations: &[Operation]) -> Vec<Operation> {
    let mut left = operations.to_vec();
    let mut at = left.len();
    while at > 0 {
        at -= 1;
        let removed = left.remove(at);
        let is_closed = match removed.action {
            Action::Write(value) => left.iter().all(|it| !it.is_read_of(value)),
            Action::Read(_) => true,
        };
        if !is_closed || is_linearizable(&left) {
            left.insert(at, removed);
        } else {
            // An operation that only the removed one needed may be superfluous now.
            at = left.len();
        }
    }
    left
}

/// The call or the return of an operation.
#[derive(Clone, Copy)]
struct Event {
    operation: usize,
    is_call: bool,
}

/// The search for an order. The events that are left form a list in the order of time, linked by their places; the first
/// place is its beginning.
struct Search<'a> {
    operations: &'a [&'a Operation],
    events: Vec<Event>,
    next: Vec<usize>,
    previous: Vec<usize>,
    /// The place of the return of each operation that has one.
    ends: Vec<Option<usize>>,
}

impl Search<'_> {
    fn new<'a>(operations: &'a [&'a Operation]) -> Search<'a> {
        let calls = operations.iter().enumerate().map(|(at, it)| (it.call, false, at));
        let ends = operations.iter().enumerate().filter_map(|(at, it)| Some((it.end?, true, at)));
        let mut times: Vec<(u64, bool, usize)> = calls.chain(ends).collect();
        // A call and a return at one time overlap.
        times.sort_unstable();
        let events: Vec<Event> = std::iter::once(Event { operation: usize::MAX, is_call: false })
            .chain(times.into_iter().map(|(_, is_end, operation)| Event { operation, is_call: !is_end }))
            .collect();
        let mut places = vec![None; operations.len()];
        for (place, event) in events.iter().enumerate().skip(1).filter(|(_, event)| !event.is_call) {
            places[event.operation] = Some(place);
        }
        let count = events.len();
        let next = (1..=count).collect();
        let previous = (0..=count).map(|place| place.saturating_sub(1)).collect();
        Search { operations, events, next, previous, ends: places }
    }

    fn run(mut self) -> bool {
        let mut waiting = self.operations.iter().filter(|it| it.end.is_some()).count();
        let mut done = vec![0_u64; self.operations.len().div_ceil(64)];
        let mut seen: HashSet<(Vec<u64>, u64)> = HashSet::new();
        let mut chosen: Vec<(usize, u64)> = Vec::new();
        let (mut value, mut place) = (INITIAL, self.next[0]);
        while waiting > 0 {
            let event = self.events[place];
            let operation = event.operation;
            if !event.is_call {
                // An operation has ended that did not fit: the last choice was wrong.
                let Some((last, before)) = chosen.pop() else { return false };
                let operation = self.events[last].operation;
                done[operation / 64] &= !(1 << (operation % 64));
                waiting += usize::from(self.ends[operation].is_some());
                self.restore(last);
                (value, place) = (before, self.next[last]);
                continue;
            }
            place = self.next[place];
            if let Some(after) = self.operations[operation].apply(value) {
                done[operation / 64] |= 1 << (operation % 64);
                if seen.insert((done.clone(), after)) {
                    let call = self.previous[place];
                    chosen.push((call, value));
                    waiting -= usize::from(self.ends[operation].is_some());
                    self.remove(call);
                    (value, place) = (after, self.next[0]);
                } else {
                    done[operation / 64] &= !(1 << (operation % 64));
                }
            }
        }
        true
    }

    /// Takes the call at a place and its return out of the list.
    fn remove(&mut self, call: usize) {
        let end = self.ends[self.events[call].operation];
        for place in [Some(call), end].into_iter().flatten() {
            let (before, after) = (self.previous[place], self.next[place]);
            self.next[before] = after;
            self.previous[after] = before;
        }
    }

    /// Puts them back.
    fn restore(&mut self, call: usize) {
        let end = self.ends[self.events[call].operation];
        for place in [end, Some(call)].into_iter().flatten() {
            let (before, after) = (self.previous[place], self.next[place]);
            self.next[before] = place;
            self.previous[after] = place;
        }
    }
}
