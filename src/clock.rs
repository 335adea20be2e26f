//! The clocks of the process: the only file that reads the wall clock.
//!
//! - [`wall`] and [`unix_seconds`]: the time of day, for dates, tickets, cookies and logs. It may be set forwards or
//!   backwards, so a decision that must be right uses a clock that is never set.
//! - [`BootTime`]: continues while the machine sleeps, for claims that other processes time too.
//! - [`steady_millis`]: an [`Instant`] as a number that fits into an atomic. Deadlines use [`Instant`] itself.
//! - [`turn_time`]: the time of a task's turn, for what happens in it. A turn reads the clock once, not at each step.
//!
//! Debug builds read `RINGWAY_CLOCK_OFFSET`, a signed number of seconds that is added to the wall clock of the process,
//! so that a test runs proxies whose clocks disagree. (The checks of certificates inside rustls use the real time.)

use rustix::time::{ClockId, clock_gettime};
use std::cell::Cell;
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Returns the time of the wall clock.
pub(crate) fn wall() -> SystemTime {
    #[expect(clippy::disallowed_methods, reason = "here is the place")]
    let time = SystemTime::now();
    if cfg!(debug_assertions) { shifted(time, *OFFSET) } else { time }
}

/// Returns the time of the wall clock in seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    since_1970().as_secs()
}

/// Returns the time of the wall clock since 1970.
pub(crate) fn since_1970() -> Duration {
    wall().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The offset of the wall clock in a test, in seconds.
static OFFSET: LazyLock<i64> = LazyLock::new(|| {
    let text = std::env::var("RINGWAY_CLOCK_OFFSET");
    text.ok().and_then(|text| text.parse().ok()).unwrap_or(0)
});

fn shifted(time: SystemTime, seconds: i64) -> SystemTime {
    let by = Duration::from_secs(seconds.unsigned_abs());
    let shifted = if seconds < 0 { time.checked_sub(by) } else { time.checked_add(by) };
    shifted.unwrap_or(time)
}

/// A time of CLOCK_BOOTTIME, which continues while the machine sleeps or the process is stopped, and is never set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BootTime(Duration);

impl BootTime {
    /// Returns the present time.
    pub(crate) fn now() -> BootTime {
        BootTime(since_boot())
    }

    /// Returns it in milliseconds since the boot.
    pub(crate) fn millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns the time that is left until it; zero once it has passed.
    pub(crate) fn left(self) -> Duration {
        self.0.saturating_sub(since_boot())
    }

    /// Returns the time since an earlier one; none since a later one.
    pub(crate) fn since(self, earlier: BootTime) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for BootTime {
    type Output = BootTime;

    fn add(self, duration: Duration) -> BootTime {
        BootTime(self.0.saturating_add(duration))
    }
}

/// Returns the time since the machine was booted, including sleep.
pub(crate) fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Milliseconds since the first call of [`steady_millis`]; never 0, which stands for "never".
pub(crate) type SteadyMillis = u64;

/// Returns an instant as a number. Instants before the first call count as the time of that call.
pub(crate) fn steady_millis(at: Instant) -> SteadyMillis {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    let since = at.saturating_duration_since(*FIRST.get_or_init(|| at));
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX - 1) + 1
}

thread_local! {
    static TURN: Cell<Time> = const { Cell::new(Time::Unshared) };
    static POLL_AGAIN_BY: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// What [`turn_time`] returns.
#[derive(Clone, Copy)]
enum Time {
    /// The time of the call.
    Unshared,
    /// The time of the first call, which is still to come.
    Unread,
    At(Instant),
}

/// A turn of a task: a poll in which nothing waits. While it lives, [`turn_time`] returns one time on this thread. Its
/// owner polls everything once more by the time that [`Turn::poll_again_by`] returns, so that what is polled in the turn
/// needs no timer of its own.
pub(crate) struct Turn(());

impl Turn {
    pub(crate) fn begin() -> Turn {
        TURN.set(Time::Unread);
        POLL_AGAIN_BY.set(None);
        Turn(())
    }

    /// Returns the earliest time by which something that was polled since the last call asks to be polled again.
    pub(crate) fn poll_again_by(&self) -> Option<Instant> {
        POLL_AGAIN_BY.take()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TURN.set(Time::Unshared);
    }
}

/// Asks the owner of this turn to poll again by a time. Returns `false` outside of a turn, where nobody would.
pub(crate) fn poll_again_by(time: Instant) -> bool {
    if matches!(TURN.get(), Time::Unshared) {
        return false;
    }
    POLL_AGAIN_BY.set(Some(POLL_AGAIN_BY.get().map_or(time, |earlier| earlier.min(time))));
    true
}

/// Returns the time at which this was first asked for in the task's turn; outside of a turn, the present time. For times
/// of activity and deadlines: it is as much too early as the turn has taken since, some microseconds.
pub(crate) fn turn_time() -> Instant {
    match TURN.get() {
        Time::At(time) => time,
        Time::Unread => new_turn_time(),
        Time::Unshared => Instant::now(),
    }
}

/// Returns the present time, which is the turn's from here on. For the end of what is measured.
pub(crate) fn new_turn_time() -> Instant {
    let now = Instant::now();
    if !matches!(TURN.get(), Time::Unshared) {
        TURN.set(Time::At(now));
    }
    now
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_has_one_time_until_it_is_read_anew() {
        let turn = Turn::begin();
        let first = turn_time();
        while Instant::now() == first {}
        assert_eq!(turn_time(), first);
        let end = new_turn_time();
        assert!(end > first);
        assert_eq!(turn_time(), end);
        drop(turn);
        while Instant::now() == end {}
        assert!(turn_time() > end, "no turn has its time from the one before");
    }

    #[test]
    fn a_turn_is_asked_for_the_next_by_the_earliest_time() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        assert!(!poll_again_by(now), "outside of a turn nobody would poll again");
        let turn = Turn::begin();
        assert!(poll_again_by(now + second) && poll_again_by(now) && poll_again_by(now + 2 * second));
        assert_eq!(turn.poll_again_by(), Some(now));
        assert_eq!(turn.poll_again_by(), None, "until something is polled again");
        assert!(poll_again_by(now));
        drop(turn);
        assert_eq!(Turn::begin().poll_again_by(), None);
    }

    #[test]
    fn the_wall_is_off_by_the_offset() {
        let noon = UNIX_EPOCH + Duration::from_secs(1_000_000);
        assert_eq!(shifted(noon, 86_400), noon + Duration::from_secs(86_400));
        assert_eq!(shifted(noon, -60), noon - Duration::from_secs(60));
        assert_eq!("+86400".parse(), Ok(86_400));
        assert_eq!(shifted(noon, i64::MAX), noon, "a time that cannot be told");
    }
}
