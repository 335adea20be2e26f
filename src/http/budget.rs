//! The bound of all bytes that the process buffers (`limits.buffered_bytes`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The budget for buffers, and the bytes in use.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: AtomicU64,
    held: AtomicU64,
}

/// A part of the budget, returned on drop.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Arc<Budget> {
        Arc::new(Budget { limit: AtomicU64::new(limit), held: AtomicU64::new(0) })
    }

    /// Changes the bound; existing shares stay.
    pub(crate) fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Returns the bytes in use.
    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Returns whether half of the budget is in use.
    pub(crate) fn is_half_held(&self) -> bool {
        self.held() > self.limit.load(Ordering::Relaxed) / 2
    }

    /// Returns an empty share, which may grow.
    pub(crate) fn nothing(self: &Arc<Self>) -> Share {
        Share { budget: Arc::clone(self), bytes: 0 }
    }

    /// Returns a share of this size, if the budget allows it.
    pub(crate) fn share(self: &Arc<Self>, bytes: u64) -> Option<Share> {
        let mut share = self.nothing();
        share.cover(bytes).then_some(share)
    }
}

impl Share {
    /// Grows the share to at least this size; `false` where the budget does not allow it.
    pub(crate) fn cover(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let limit = self.budget.limit.load(Ordering::Relaxed);
        let grown = self.budget.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            let wanted = held.checked_add(more)?;
            (more == 0 || wanted <= limit).then_some(wanted)
        });
        if grown.is_ok() {
            self.bytes += more;
        }
        grown.is_ok()
    }

    /// Shrinks the share to this size.
    pub(crate) fn shrink(&mut self, bytes: u64) {
        let less = self.bytes.saturating_sub(bytes);
        if less > 0 {
            self.budget.held.fetch_sub(less, Ordering::Relaxed);
            self.bytes -= less;
        }
    }

    /// Returns whether a share of this size is within the bound.
    pub(crate) fn may_cover(&self, bytes: u64) -> bool {
        bytes <= self.budget.limit.load(Ordering::Relaxed)
    }

    /// Returns whether the share is not empty.
    pub(crate) fn is_held(&self) -> bool {
        self.bytes > 0
    }

    /// Moves the share out; an empty one stays.
    pub(crate) fn take(&mut self) -> Share {
        Share { budget: Arc::clone(&self.budget), bytes: std::mem::take(&mut self.bytes) }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_stay_within_the_bound_and_are_given_back() {
        let budget = Budget::new(100);
        let mut first = budget.share(60).unwrap();
        assert!(budget.share(41).is_none());
        assert!(budget.is_half_held());
        let second = budget.share(40).unwrap();
        assert!(first.may_cover(100) && !first.may_cover(101));
        assert!(!first.cover(61) && first.cover(60) && first.cover(10));
        drop(second);
        first.shrink(70);
        assert_eq!(budget.held(), 60);
        first.shrink(10);
        assert_eq!(budget.held(), 10);
        assert!(first.cover(100));
        assert_eq!(budget.held(), 100);
        budget.set_limit(50);
        assert!(budget.share(1).is_none() && !budget.nothing().is_held());
        drop(first);
        assert_eq!(budget.held(), 0);
    }
}
