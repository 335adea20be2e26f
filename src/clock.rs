//! The clocks of the process: the only file that reads the wall clock.
//!
//! - [`wall`] and [`unix_seconds`]: the time of day, for dates, tickets, cookies and logs. It may be set forwards or
//!   backwards, so a decision that must be right uses a clock that is never set.
//! - [`BootTime`]: continues while the machine sleeps, for claims that other processes time too.
//! - [`steady_millis`]: an [`Instant`] as a number that fits into an atomic. Deadlines use [`Instant`] itself.
//! - [`poll_time`]: one time for all steps of a task's poll, which so reads the clock once.
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
    static POLL_TIME: Cell<PollTime> = const { Cell::new(PollTime::Outside) };
    static POLL_AGAIN_BY: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The state of [`poll_time`].
#[derive(Clone, Copy)]
enum PollTime {
    /// No [`TaskPoll`] lives: each call reads the clock.
    Outside,
    /// The first call reads the clock.
    Unread,
    Read(Instant),
}

/// One poll of a task. While this value lives, [`poll_time`] returns one time on this thread. Its owner polls all
/// futures again by the time that [`TaskPoll::poll_again_by`] returns, so that they need no timers of their own.
pub(crate) struct TaskPoll(());

impl TaskPoll {
    pub(crate) fn begin() -> TaskPoll {
        POLL_TIME.set(PollTime::Unread);
        POLL_AGAIN_BY.set(None);
        TaskPoll(())
    }

    /// Returns the earliest time that was passed to [`poll_again_by`] since the last call.
    pub(crate) fn poll_again_by(&self) -> Option<Instant> {
        POLL_AGAIN_BY.take()
    }
}

impl Drop for TaskPoll {
    fn drop(&mut self) {
        POLL_TIME.set(PollTime::Outside);
    }
}

/// Has the owner of the current [`TaskPoll`] poll again by this time. Returns `false` outside of one: the caller needs a
/// timer then.
pub(crate) fn poll_again_by(time: Instant) -> bool {
    if matches!(POLL_TIME.get(), PollTime::Outside) {
        return false;
    }
    POLL_AGAIN_BY.set(Some(POLL_AGAIN_BY.get().map_or(time, |earlier| earlier.min(time))));
    true
}

/// Returns the time at which the current [`TaskPoll`] was first asked for it; outside of one, the present time. For times
/// of activity and deadlines: it is some microseconds early.
pub(crate) fn poll_time() -> Instant {
    match POLL_TIME.get() {
        PollTime::Read(time) => time,
        PollTime::Unread => new_poll_time(),
        PollTime::Outside => Instant::now(),
    }
}

/// Returns the present time, and makes it that of the current [`TaskPoll`]. For the end of a measurement.
pub(crate) fn new_poll_time() -> Instant {
    let now = Instant::now();
    if !matches!(POLL_TIME.get(), PollTime::Outside) {
        POLL_TIME.set(PollTime::Read(now));
    }
    now
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poll_has_one_time_until_it_is_read_anew() {
        let poll = TaskPoll::begin();
        let first = poll_time();
        while Instant::now() == first {}
        assert_eq!(poll_time(), first);
        let end = new_poll_time();
        assert!(end > first);
        assert_eq!(poll_time(), end);
        drop(poll);
        while Instant::now() == end {}
        assert!(poll_time() > end, "no poll has its time from the one before");
    }

    #[test]
    fn a_poll_is_followed_by_another_by_the_earliest_time() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        assert!(!poll_again_by(now), "no owner polls again");
        let poll = TaskPoll::begin();
        assert!(poll_again_by(now + second) && poll_again_by(now) && poll_again_by(now + 2 * second));
        assert_eq!(poll.poll_again_by(), Some(now));
        assert_eq!(poll.poll_again_by(), None, "until something is polled again");
        assert!(poll_again_by(now));
        drop(poll);
        assert_eq!(TaskPoll::begin().poll_again_by(), None);
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
