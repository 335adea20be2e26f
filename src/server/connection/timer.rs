//! A timer that is cheap to poll: the runtime is asked only when the timer was moved or has fired.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::time::Sleep;

/// A timer of one task, which always polls it with the same waker.
pub(super) struct Timer<'a> {
    sleep: Pin<&'a mut Sleep>,
    /// The runtime wakes the task at the deadline.
    is_armed: bool,
}

impl<'a> Timer<'a> {
    pub(super) fn over(sleep: Pin<&'a mut Sleep>) -> Timer<'a> {
        Timer { sleep, is_armed: false }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.sleep.deadline().into_std()
    }

    /// Sets another deadline.
    pub(super) fn reset(&mut self, deadline: Instant) {
        self.sleep.as_mut().reset(deadline.into());
        self.is_armed = false;
    }

    /// Returns whether the deadline has passed. The task is woken when it has.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_armed && !self.sleep.is_elapsed() {
            return Poll::Pending;
        }
        // Without the task's budget: an exhausted one would leave the timer unarmed.
        let polled = pin!(tokio::task::unconstrained(self.sleep.as_mut())).poll(cx);
        self.is_armed = polled.is_pending();
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::time::Duration;

    const SHORT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn it_wakes_its_task_at_the_deadline_and_again_at_a_new_one() {
        let sleep = pin!(tokio::time::sleep(SHORT));
        let mut timer = Timer::over(sleep);
        for _ in 0..2 {
            let (deadline, mut polls) = (timer.deadline(), 0);
            poll_fn(|cx| {
                polls += 1;
                // The second call finds it armed.
                if timer.poll(cx).is_pending() { timer.poll(cx) } else { Poll::Ready(()) }
            })
            .await;
            assert!(Instant::now() >= deadline);
            assert_eq!(polls, 2, "one that arms it, and one at the deadline");
            timer.reset(Instant::now() + SHORT);
        }
    }

    #[tokio::test]
    async fn a_spent_budget_does_not_leave_it_unarmed() {
        let sleep = pin!(tokio::time::sleep(SHORT));
        let mut timer = Timer::over(sleep);
        let spends_its_budget = poll_fn(|cx| {
            while let Poll::Ready(step) = tokio::task::coop::poll_proceed(cx) {
                step.made_progress();
            }
            timer.poll(cx)
        });
        tokio::time::timeout(Duration::from_secs(10), spends_its_budget).await.expect("it fires");
    }
}
