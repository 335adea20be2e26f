//! The time by which records expire: wall time, read once, that then runs as steadily as the machine.
//!
//! A clock that is set while the proxy runs changes nothing; processes that read it at different
//! times differ by little, which the grace allows for.

use super::record::Millis;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The most that a record outlives its time to live.
const MAX_GRACE: Duration = Duration::from_secs(60);

/// Milliseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    began: Instant,
    wall: Duration,
}

impl Clock {
    pub(crate) fn new() -> Clock {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { began: Instant::now(), wall }
    }

    pub(crate) fn now(&self) -> Millis {
        millis(self.wall + self.began.elapsed())
    }

    /// When something that lives for `ttl` from now on may go: a tenth later, or a minute.
    pub(crate) fn expiry(&self, ttl: Duration) -> Millis {
        self.now().saturating_add(millis(ttl + grace(ttl)))
    }

    /// The same for what began a while ago, where the grace does not cover that while.
    pub(crate) fn later_expiry(&self, ttl: Duration, began: Instant) -> Option<Millis> {
        (began.elapsed() >= grace(ttl)).then(|| self.expiry(ttl))
    }
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
}
