//! The observers of finished requests: the stream of `ringway tap` and the counters of `ringway top`. While neither has
//! a reader, a request pays one relaxed load for both.

use super::access_log::Entry;
use super::tap::Tap;
use super::top::Top;
use super::watched::{Skipped, Watched};
use std::sync::Arc;

/// The observers of a process.
pub(crate) struct Observers {
    watched: Watched,
    pub(crate) tap: Tap,
    pub(crate) top: Top,
}

impl Observers {
    pub(crate) fn new() -> Arc<Observers> {
        let watched = Watched::default();
        Arc::new(Observers { tap: Tap::new(watched.clone()), top: Top::new(watched.clone()), watched })
    }

    /// Returns whether requests are recorded for a reader.
    pub(crate) fn is_watched(&self) -> bool {
        self.watched.is_watched()
    }

    /// Offers a finished request to the readers.
    pub(crate) fn observe(&self, entry: &Entry<'_>, skipped: &Skipped) {
        self.tap.observe(entry);
        self.top.observe(entry, skipped);
    }
}
