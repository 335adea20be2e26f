//! The time by which records expire in a store of this machine, and the time of the rule of the half lease.
//!
//! Two clocks are read: the wall clock, which may be set, and a steady one that began with it. A record lives for its
//! time by both: its expiry is computed by the later one, and checked by the earlier one. If the wall clock differs for
//! long, it counts: it was wrong when the process began.

use super::record::Millis;
use crate::clock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The longest time for which a record outlives its time to live, as clocks differ a little.
const MAX_GRACE: Duration = Duration::from_secs(60);

/// The time for which the wall clock must differ by the same amount before it counts.
const TRUST: Duration = Duration::from_secs(3600);

/// Milliseconds since 1970.
#[derive(Debug)]
pub(crate) struct Clock {
    /// The wall's time when the machine was started.
    anchor: AtomicU64,
    /// Where the anchor would be by the wall's clock, and since when (by the machine's).
    seen: AtomicU64,
    seen_since: AtomicU64,
    /// A time that a test has set.
    #[cfg(test)]
    set: Option<std::sync::Arc<AtomicU64>>,
}

impl Clock {
    /// Returns a clock that a test sets.
    #[cfg(test)]
    pub(crate) fn set_by(time: std::sync::Arc<AtomicU64>) -> Clock {
        Clock { set: Some(time), ..Clock::new() }
    }

    pub(crate) fn new() -> Clock {
        Clock::beginning_at(wall())
    }

    fn beginning_at(wall: Millis) -> Clock {
        let anchor = wall.saturating_sub(running());
        Clock {
            anchor: anchor.into(),
            seen: anchor.into(),
            seen_since: running().into(),
            #[cfg(test)]
            set: None,
        }
    }

    /// Returns the time by which expiry is checked.
    pub(crate) fn now(&self) -> Millis {
        #[cfg(test)]
        if let Some(set) = &self.set {
            return set.load(Ordering::Relaxed);
        }
        self.steady().min(wall())
    }

    /// The time by which records are entered.
    pub(crate) fn latest(&self) -> Millis {
        #[cfg(test)]
        if let Some(set) = &self.set {
            return set.load(Ordering::Relaxed);
        }
        self.steady().max(wall())
    }

    fn steady(&self) -> Millis {
        self.anchor.load(Ordering::Relaxed) + running()
    }

    /// Returns the time at which a record with a time to live of `ttl` may be removed: a tenth later, at most a minute.
    pub(crate) fn expiry(&self, ttl: Duration) -> Millis {
        self.latest().saturating_add(millis(ttl + grace(ttl)))
    }

    /// Looks at the wall's clock; to be called every now and then, by one caller.
    pub(crate) fn follow(&self) {
        self.follow_at(wall(), running());
    }

    fn follow_at(&self, wall: Millis, running: Millis) {
        let anchor = wall.saturating_sub(running);
        if anchor.abs_diff(self.seen.load(Ordering::Relaxed)) >= millis(MAX_GRACE) {
            self.seen.store(anchor, Ordering::Relaxed);
            self.seen_since.store(running, Ordering::Relaxed);
        } else if running - self.seen_since.load(Ordering::Relaxed) >= millis(TRUST) {
            self.anchor.store(anchor, Ordering::Relaxed);
        }
    }
}

fn wall() -> Millis {
    millis(clock::since_1970())
}

fn running() -> Millis {
    millis(clock::since_boot())
}

/// Returns the time for which a record outlives its time to live.
pub(crate) fn grace(ttl: Duration) -> Duration {
    (ttl / 10).min(MAX_GRACE)
}

pub(crate) fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_expires_has_some_grace() {
        let clock = Clock::new();
        let ahead = |ttl| Duration::from_millis(clock.expiry(Duration::from_secs(ttl)) - clock.now());
        assert!(ahead(10).abs_diff(Duration::from_secs(11)) < Duration::from_secs(1));
        assert!(ahead(86_400).abs_diff(Duration::from_secs(86_460)) < Duration::from_secs(1));
    }

    #[test]
    fn a_clock_that_was_set_makes_nothing_expire_early() {
        let day = Duration::from_secs(86_400);
        // The wall's clock was set back, or forth, by two days since the process began.
        for began_at in [wall() + millis(2 * day), wall() - millis(2 * day)] {
            let (clock, now) = (Clock::beginning_at(began_at), wall());
            assert!(clock.now() <= now + 1000);
            assert!(clock.expiry(day) >= now + millis(day));
            assert!(clock.expiry(day) >= clock.now() + millis(day));
        }
    }

    #[test]
    fn a_clock_that_was_wrong_at_first_is_believed_in_the_end() {
        let (clock, hour) = (Clock::beginning_at(1000), millis(TRUST));
        let (set, began) = (wall(), running());
        let is_behind = |clock: &Clock| clock.now() < set - hour;
        clock.follow_at(set, began);
        clock.follow_at(set + hour - 1, began + hour - 1);
        assert!(is_behind(&clock), "not at once");
        // A little off is still the same; another jump is not.
        clock.follow_at(set + hour + 500, began + hour);
        assert!(!is_behind(&clock));
        clock.follow_at(set + 3 * hour, began + hour + 10);
        clock.follow_at(set + 3 * hour + 10, began + hour + 20);
        assert!(clock.steady() < set + 2 * hour);
    }
}
