//! The strict sessions of a node, as far as a proxy can know them: the cookies are with the clients, but each has an
//! end. So a proxy knows when the last one has left a draining node.

use std::sync::atomic::{AtomicU64, Ordering};

/// The strict sessions of one node; times are seconds since 1970.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    /// When the last cookie ends that was issued or shown.
    end: AtomicU64,
    /// When a request last came with one.
    seen: AtomicU64,
}

impl Sessions {
    /// A cookie was issued.
    pub(crate) fn issued(&self, expiry: u64) {
        if self.end.load(Ordering::Relaxed) < expiry {
            self.end.fetch_max(expiry, Ordering::Relaxed);
        }
    }

    /// A request came with a cookie.
    pub(crate) fn used(&self, expiry: u64, now: u64) {
        self.issued(expiry);
        self.seen.store(now, Ordering::Relaxed);
    }

    /// Returns the time until the last one ends, in seconds; 0 without any.
    pub(crate) fn left(&self, now: u64) -> u64 {
        self.end.load(Ordering::Relaxed).saturating_sub(now)
    }

    /// Returns the time since the last request with one, in seconds.
    pub(crate) fn last_seen(&self, now: u64) -> Option<u64> {
        let seen = self.seen.load(Ordering::Relaxed);
        (seen != 0).then(|| now.saturating_sub(seen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_cookie_counts() {
        let sessions = Sessions::default();
        assert_eq!((sessions.left(50), sessions.last_seen(50)), (0, None));
        sessions.issued(150);
        sessions.used(120, 60);
        assert_eq!((sessions.left(70), sessions.last_seen(70)), (80, Some(10)));
        assert_eq!(sessions.left(200), 0);
    }
}
