//! The time as nodes' states keep it: a number that fits into an atomic.

use std::sync::OnceLock;
use std::time::Instant;

/// Milliseconds since the process first asked; never 0, which stands for "never".
pub(crate) type Millis = u64;

/// Returns an instant as a number. Instants before the first call are that call's own.
pub(crate) fn millis(at: Instant) -> Millis {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    let since = at.saturating_duration_since(*FIRST.get_or_init(|| at));
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX - 1) + 1
}
