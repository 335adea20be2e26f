//! The number of readers that finished requests are recorded for.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The number of readers.
#[derive(Clone, Default)]
pub(super) struct Watched(Arc<AtomicU32>);

impl Watched {
    pub(super) fn begin(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn is_watched(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }
}

/// The number of requests that a worker leaves out before it counts the next one for `ringway top`.
#[derive(Default)]
pub(crate) struct Skipped(pub(super) Cell<u32>);
