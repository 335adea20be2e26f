//! Slow start: a node that joins or comes back gets its keys one by one.
//!
//! Each key has a place of its own on the ramp of each node, made of both their hashes: once the ramp
//! has passed it the key is the node's, and stays. So a key moves once; no coin is thrown a request.

use crate::clock::SteadyMillis;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Since when a node takes requests again.
#[derive(Debug, Default)]
pub(super) struct Ramp {
    /// 0 where it always has.
    since: AtomicU64,
}

impl Ramp {
    pub(super) fn begin(&self, now: SteadyMillis) {
        self.since.store(now, Ordering::Relaxed);
    }

    /// Begins, unless it has begun since `then`.
    pub(super) fn begin_since(&self, then: SteadyMillis, now: SteadyMillis) {
        if self.since.load(Ordering::Relaxed) <= then {
            self.begin(now);
        }
    }

    /// Returns the progress of the slow start, from 0 to 1, with a total time of `length`.
    pub(super) fn progress(&self, now: SteadyMillis, length: Duration) -> f64 {
        match self.since.load(Ordering::Relaxed) {
            0 => 1.0,
            since => match length.as_millis() as f64 {
                0.0 => 1.0,
                length => (now.saturating_sub(since) as f64 / length).min(1.0),
            },
        }
    }

    /// Returns whether the node has this key already.
    pub(super) fn has_reached(&self, key: u64, node: u64, now: SteadyMillis, length: Duration) -> bool {
        let progress = self.progress(now, length);
        progress >= 1.0 || place(key, node) < progress
    }
}

/// Returns the position of a key on a node's ramp, from 0 to 1; the mixing is SplitMix64's (Steele et al., 2014).
fn place(key: u64, node: u64) -> f64 {
    let mut mixed = (key ^ node).wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) as f64 / 2f64.powi(64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LENGTH: Duration = Duration::from_secs(10);

    #[test]
    fn keys_come_evenly_over_the_whole_time() {
        let ramp = Ramp::default();
        assert!(ramp.has_reached(7, 7, 1, LENGTH), "a node that was always there has no ramp");
        ramp.begin(1000);
        for (now, expected) in [(1000, 0), (3500, 2500), (6000, 5000), (11_000, 10_000), (20_000, 10_000)] {
            let reached = (0..10_000u64).filter(|&key| ramp.has_reached(key << 40, 99, now, LENGTH)).count();
            assert!(reached.abs_diff(expected) < 200, "{reached} of 10000 at {now}");
        }
        assert!(ramp.has_reached(1, 2, 1000, Duration::ZERO), "without a length there is no ramp");
    }

    proptest! {
        #[test]
        fn a_key_moves_once(key: u64, node: u64, steps in prop::collection::vec(0u64..3000, 1..20)) {
            let ramp = Ramp::default();
            ramp.begin(5000);
            let (mut now, mut had) = (5000, false);
            for step in steps {
                now += step;
                let has = ramp.has_reached(key, node, now, LENGTH);
                prop_assert!(has || !had, "the key went back");
                had = has;
            }
        }
    }
}
