//! The time for which an engine behind a network may be silent.

use std::time::Duration;

/// A connection that is silent for this long with calls on it is replaced.
pub(crate) const SILENCE: Duration = Duration::from_secs(1);

/// Returns the time for which the server may be silent during results of that size: they travel at 4 MiB a second or
/// more.
#[cfg_attr(not(any(feature = "postgres", feature = "redis")), allow(dead_code))]
pub(crate) fn silence_for(bytes: usize) -> Duration {
    SILENCE + Duration::from_millis(bytes as u64 / 4096)
}
