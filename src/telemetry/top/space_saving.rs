//! The most frequent names of a stream, in bounded memory: Space-Saving (Metwally, Agrawal, El Abbadi, 2005).
//!
//! A summary keeps a fixed number of counters. A name without a counter takes over the smallest one, with its value,
//! which is recorded as the possible excess. So a value is never less than the true one, exceeds it by at most its
//! excess, and the excess is at most the total divided by the number of counters: a name with more than that is there.

use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::sync::Arc;

/// The counters of a stream.
#[derive(Clone, Debug)]
pub(super) struct Summary {
    capacity: usize,
    counters: Vec<Counter>,
    /// The places of names among the counters.
    places: HashMap<Arc<str>, usize, RandomState>,
    total: u64,
}

/// A name and its value, which exceeds the true one by at most `excess`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Counter {
    pub(super) name: Arc<str>,
    pub(super) value: u64,
    pub(super) excess: u64,
}

impl Summary {
    pub(super) fn new(capacity: usize) -> Summary {
        Summary { capacity: capacity.max(1), counters: Vec::new(), places: HashMap::default(), total: 0 }
    }

    /// Adds a weight to a name.
    pub(super) fn add(&mut self, name: &str, weight: u64) {
        self.total += weight;
        if let Some(&place) = self.places.get(name) {
            self.counters[place].value += weight;
            return;
        }
        let name: Arc<str> = name.into();
        if self.counters.len() < self.capacity {
            self.places.insert(Arc::clone(&name), self.counters.len());
            self.counters.push(Counter { name, value: weight, excess: 0 });
            return;
        }
        let smallest = self.counters.iter().enumerate().min_by_key(|(_, counter)| counter.value);
        let Some(place) = smallest.map(|(place, _)| place) else { return };
        let excess = self.counters[place].value;
        self.places.remove(&self.counters[place].name);
        self.places.insert(Arc::clone(&name), place);
        self.counters[place] = Counter { name, value: excess + weight, excess };
    }

    /// Returns the sum of all weights.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Returns the largest counters of two summaries of consecutive parts of a stream, the largest first.
    pub(super) fn largest_of(earlier: &Summary, later: &Summary, most: usize) -> Vec<Counter> {
        let mut merged: Vec<Counter> = later.counters.clone();
        for counter in &mut merged {
            let (value, excess) = earlier.known(&counter.name);
            counter.value += value;
            counter.excess += excess;
        }
        for counter in earlier.counters.iter().filter(|counter| !later.places.contains_key(&counter.name)) {
            let (value, excess) = later.known(&counter.name);
            let Counter { name, value: before, excess: over } = counter.clone();
            merged.push(Counter { name, value: before + value, excess: over + excess });
        }
        merged.sort_by(|a, b| b.value.cmp(&a.value).then_with(|| a.name.cmp(&b.name)));
        merged.truncate(most);
        merged
    }

    /// Returns the value and the excess of a name: of one without a counter, what it may have had at most.
    fn known(&self, name: &str) -> (u64, u64) {
        match self.places.get(name) {
            Some(&place) => (self.counters[place].value, self.counters[place].excess),
            None if self.counters.len() < self.capacity => (0, 0),
            None => {
                let least = self.counters.iter().map(|counter| counter.value).min().unwrap_or_default();
                (least, least)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Stream = Vec<(u8, u64)>;

    /// Streams in which some names are far more frequent than others.
    fn streams() -> impl Strategy<Value = Stream> {
        let name = prop_oneof![0u8..4, 0u8..40, any::<u8>()];
        prop::collection::vec((name, 1u64..20), 0..400)
    }

    fn summary(capacity: usize, stream: &Stream) -> Summary {
        let mut summary = Summary::new(capacity);
        stream.iter().for_each(|(name, weight)| summary.add(&name.to_string(), *weight));
        summary
    }

    fn truth<'a>(streams: impl Iterator<Item = &'a (u8, u64)>) -> BTreeMap<String, u64> {
        let mut truth = BTreeMap::new();
        streams.for_each(|(name, weight)| *truth.entry(name.to_string()).or_default() += weight);
        truth
    }

    /// Checks the bounds of counters, of which `parts` summaries were merged.
    fn hold(counters: &[Counter], truth: &BTreeMap<String, u64>, bound: u64) {
        for Counter { name, value, excess } in counters {
            let exact = truth.get(&**name).copied().unwrap_or_default();
            assert!(exact <= *value && value - excess <= exact, "{name}: {value} -{excess}, exactly {exact}");
            assert!(*excess <= bound, "{name}: {excess} over the bound {bound}");
        }
        for (name, exact) in truth.iter().filter(|(_, exact)| **exact > bound) {
            assert!(counters.iter().any(|counter| *counter.name == **name), "{name} with {exact} is missing");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

        #[test]
        fn values_keep_their_bounds(stream in streams(), capacity in 1usize..64) {
            let summary = summary(capacity, &stream);
            prop_assert!(summary.counters.len() <= capacity && summary.places.len() == summary.counters.len());
            prop_assert_eq!(summary.total(), stream.iter().map(|(_, weight)| weight).sum::<u64>());
            hold(&summary.counters, &truth(stream.iter()), summary.total() / capacity as u64);
        }

        #[test]
        fn a_merge_keeps_the_sum_of_the_bounds(first in streams(), second in streams(), capacity in 1usize..64) {
            let (one, two) = (summary(capacity, &first), summary(capacity, &second));
            let merged = Summary::largest_of(&one, &two, usize::MAX);
            prop_assert!(merged.windows(2).all(|pair| pair[0].value >= pair[1].value));
            let bound = one.total() / capacity as u64 + two.total() / capacity as u64;
            hold(&merged, &truth(first.iter().chain(&second)), bound);
        }

        #[test]
        fn few_names_are_counted_exactly(stream in prop::collection::vec((0u8..8, 1u64..20), 0..200)) {
            let summary = summary(8, &stream);
            let exact = truth(stream.iter());
            prop_assert!(summary.counters.iter().all(|counter| exact[&*counter.name] == counter.value && counter.excess == 0));
        }
    }
}
