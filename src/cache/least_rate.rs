//! The least rate of a reader for which other readers wait.

use std::time::Duration;

/// The least rate of a reader that other readers wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeastRate {
    /// Bytes per second; 0 for any rate.
    pub(crate) bytes: u64,
    /// The time that is not counted.
    pub(crate) grace: Duration,
}
