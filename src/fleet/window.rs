//! The events that were heard already: each comes from every node. A pure table of ranges of numbers, bounded; where it
//! forgets, an event counts as new once more, which does no harm.

use super::event::ProcessId;
use std::collections::HashMap;

/// The most processes that are remembered.
const MAX_PROCESSES: usize = 4096;
/// The most ranges of one process; its earliest are forgotten.
const MAX_RANGES: usize = 512;

/// The numbers of events that were heard, by their process.
#[derive(Debug, Default)]
pub(super) struct Window {
    heard: HashMap<ProcessId, Ranges>,
    /// Counts the events, so that the process that was silent for longest is forgotten first.
    clock: u64,
}

#[derive(Debug, Default)]
struct Ranges {
    /// First and last number of each range, in their order, apart from each other.
    ranges: Vec<(u64, u64)>,
    used: u64,
}

impl Window {
    /// Notes an event. Returns whether it is new.
    pub(super) fn is_new(&mut self, process: ProcessId, number: u64) -> bool {
        self.clock += 1;
        if self.heard.len() >= MAX_PROCESSES && !self.heard.contains_key(&process) {
            let oldest = self.heard.iter().min_by_key(|(_, ranges)| ranges.used).map(|(process, _)| *process);
            oldest.map(|oldest| self.heard.remove(&oldest));
        }
        let ranges = self.heard.entry(process).or_default();
        ranges.used = self.clock;
        ranges.add(number)
    }
}

impl Ranges {
    fn add(&mut self, number: u64) -> bool {
        // The first range that begins after the number.
        let after = self.ranges.partition_point(|&(first, _)| first <= number);
        let before = after.checked_sub(1);
        if before.is_some_and(|before| self.ranges[before].1 >= number) {
            return false;
        }
        let joins_before = before.filter(|&before| self.ranges[before].1 + 1 == number);
        let joins_after = self.ranges.get(after).is_some_and(|&(first, _)| number.checked_add(1) == Some(first));
        match (joins_before, joins_after) {
            (Some(before), true) => {
                self.ranges[before].1 = self.ranges[after].1;
                self.ranges.remove(after);
            }
            (Some(before), false) => self.ranges[before].1 = number,
            (None, true) => self.ranges[after].0 = number,
            (None, false) => self.ranges.insert(after, (number, number)),
        }
        if self.ranges.len() > MAX_RANGES {
            self.ranges.remove(0);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    proptest! {
        #[test]
        fn each_number_is_new_once(numbers in proptest::collection::vec(0..200u64, 0..300)) {
            let (mut window, mut known) = (Window::default(), HashSet::new());
            for number in numbers {
                prop_assert_eq!(window.is_new(ProcessId(1), number), known.insert(number));
                let ranges = &window.heard[&ProcessId(1)].ranges;
                prop_assert!(ranges.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{ranges:?}");
            }
        }
    }

    #[test]
    fn the_table_is_bounded() {
        let mut window = Window::default();
        for process in 0..MAX_PROCESSES as u64 + 10 {
            assert!(window.is_new(ProcessId(process), u64::MAX));
        }
        assert_eq!(window.heard.len(), MAX_PROCESSES);
        for number in 0..MAX_RANGES as u64 + 10 {
            assert!(window.is_new(ProcessId(0), number * 2));
        }
        assert_eq!(window.heard[&ProcessId(0)].ranges.len(), MAX_RANGES);
        assert!(window.is_new(ProcessId(0), 0), "forgotten");
    }
}
