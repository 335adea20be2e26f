//! The time by which records expire.
//!
//! Two clocks are asked: the wall's, which may be set, and a steady one that began with it, which stands
//! still while the machine sleeps. A record lives for its time by both: it is entered by the later one,
//! and judged by the earlier one.

use super::record::Millis;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The most that a record outlives its time to live, for clocks that differ a little.
const MAX_GRACE: Duration = Duration::from_secs(60);

/// Milliseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    began: Instant,
    wall: Duration,
}

impl Clock {
    pub(crate) fn new() -> Clock {
        Clock { began: Instant::now(), wall: wall() }
    }

    /// The time by which records are judged.
    pub(crate) fn now(&self) -> Millis {
        millis(self.steady().min(wall()))
    }

    fn steady(&self) -> Duration {
        self.wall + self.began.elapsed()
    }

    /// When something that lives for `ttl` from now on may go: a tenth later, or a minute.
    pub(crate) fn expiry(&self, ttl: Duration) -> Millis {
        millis(self.steady().max(wall()) + ttl + grace(ttl))
    }

    /// The same for what began a while ago, where the grace does not cover that while.
    pub(crate) fn later_expiry(&self, ttl: Duration, began: Instant) -> Option<Millis> {
        let slept = self.steady().abs_diff(wall()) >= grace(ttl);
        (slept || began.elapsed() >= grace(ttl)).then(|| self.expiry(ttl))
    }
}

fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn grace(ttl: Duration) -> Duration {
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
        let now = millis(wall());
        // The wall's clock was set back, or forth, by two days since the process began.
        for began_at in [wall() + 2 * day, wall().saturating_sub(2 * day)] {
            let clock = Clock { began: Instant::now(), wall: began_at };
            assert!(clock.now() <= now + 1000);
            assert!(clock.expiry(day) >= now + millis(day));
            assert!(clock.expiry(day) >= clock.now() + millis(day));
        }
    }
}
