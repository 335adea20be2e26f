//! Retries: which failed requests may be tried at the next node, and the budget for that.

use crate::clock::SteadyMillis;
use crate::config::Retries;
use crate::config::values::{Percent, RetryOn};
use http::{Method, StatusCode};
use std::sync::atomic::{AtomicU64, Ordering};

/// The retry rules of a pool.
#[derive(Clone, Debug)]
pub(crate) struct RetryRules {
    /// After the first one.
    pub(crate) attempts: u32,
    pub(crate) budget: Percent,
    /// The largest body that is kept for a retry.
    pub(crate) max_body: u64,
    on: Vec<RetryOn>,
}

/// The number of times that a request may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetrySafety {
    /// Twice, where its method is idempotent (RFC 9110 9.2.2).
    ByMethod,
    /// At most once: it is sent again only where it has certainly not run, and only on recently used connections.
    AtMostOnce,
}

impl RetrySafety {
    /// Returns whether a request of this method may run twice.
    pub(super) fn may_run_twice(self, method: &Method) -> bool {
        self == RetrySafety::ByMethod && is_idempotent(method)
    }
}

/// The result of an attempt that may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setback {
    /// Not one byte was sent.
    NotSent,
    /// Something was sent, and the connection ended before the answer began.
    Reset,
    /// The same on a connection that was kept from an earlier request, before any byte of an answer: the node has
    /// most likely closed it while it was idle.
    StaleConnection,
    /// The node has declared that it did not begin with the request (RFC 9113 8.7).
    UnprocessedStream,
    /// Something was sent, and no answer began in time.
    Late,
    /// The node's answer.
    Status(StatusCode),
}

impl RetryRules {
    /// Without a block: once, and only where nothing was sent.
    pub(super) fn of(settings: Option<&Retries>) -> RetryRules {
        let defaults = || crate::config::read::default_value::<Retries>("{ attempts: 1, on: [connect_failure] }");
        let settings = settings.cloned().unwrap_or_else(defaults);
        RetryRules {
            attempts: settings.attempts,
            budget: settings.budget,
            max_body: settings.max_body.0,
            on: settings.on,
        }
    }

    /// Returns whether these rules retry any attempt that sent something on a new connection.
    pub(super) fn reach_beyond_sending(&self) -> bool {
        self.attempts > 0 && self.on.iter().any(|on| *on != RetryOn::ConnectFailure)
    }

    /// Returns whether a request is retried after this. `repeatable`: it may run twice, and its body is complete.
    pub(super) fn cover(&self, setback: Setback, repeatable: bool) -> bool {
        let (needed, harmless) = match setback {
            // Regardless of `on`: kept connections end this way without a fault.
            Setback::StaleConnection => return self.attempts > 0 && repeatable,
            Setback::UnprocessedStream => return self.attempts > 0,
            Setback::NotSent => (RetryOn::ConnectFailure, true),
            Setback::Reset => (RetryOn::Reset, false),
            Setback::Late => (RetryOn::Timeout, false),
            Setback::Status(status) => (RetryOn::Status(status), false),
        };
        (harmless || repeatable) && self.on.contains(&needed)
    }
}

impl Setback {
    /// Returns whether the same node may get the request again, where there is no other.
    pub(super) fn leaves_the_node(self) -> bool {
        matches!(self, Setback::StaleConnection | Setback::UnprocessedStream)
    }

    /// The reason in metrics, where it is not that of the failure.
    pub(super) fn reason(self) -> Option<&'static str> {
        match self {
            Setback::StaleConnection => Some("stale_connection"),
            Setback::UnprocessedStream => Some("unprocessed_stream"),
            _ => None,
        }
    }
}

/// Returns whether a method is idempotent (RFC 9110 9.2.2).
pub(super) fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE)
}

/// One retry, in the parts that a [`Percent`] is counted in.
const TOKEN: u64 = 100_000;
/// The most that may be saved.
const CAPACITY: u64 = 10 * TOKEN;
/// The tokens that come by themselves: one a second.
const PER_MILLISECOND: u64 = TOKEN / 1000;

/// The retry budget of a pool: a token bucket, shared by all workers.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    tokens: AtomicU64,
    /// When the last part of the floor was paid in.
    paid: AtomicU64,
}

impl Default for RetryBudget {
    /// Full.
    fn default() -> RetryBudget {
        RetryBudget { tokens: AtomicU64::new(CAPACITY), paid: AtomicU64::new(0) }
    }
}

impl RetryBudget {
    /// A first attempt pays its share in.
    pub(crate) fn deposit(&self, share: Percent) {
        // Nearly always it is full already.
        if self.tokens.load(Ordering::Relaxed) < CAPACITY {
            self.add((share.ratio() * TOKEN as f64) as u64);
        }
    }

    /// Takes the cost of one retry; `false` where the budget does not have it.
    pub(crate) fn withdraw(&self, now: SteadyMillis) -> bool {
        let paid = self.paid.fetch_max(now, Ordering::Relaxed);
        self.add(now.saturating_sub(paid).saturating_mul(PER_MILLISECOND));
        let take = |tokens: u64| tokens.checked_sub(TOKEN);
        self.tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Returns the budget in tokens.
    pub(crate) fn tokens(&self, now: SteadyMillis) -> f64 {
        let due = now.saturating_sub(self.paid.load(Ordering::Relaxed)).saturating_mul(PER_MILLISECOND);
        self.tokens.load(Ordering::Relaxed).saturating_add(due).min(CAPACITY) as f64 / TOKEN as f64
    }

    fn add(&self, parts: u64) {
        let added = |tokens: u64| Some(tokens.saturating_add(parts).min(CAPACITY));
        let _ = self.tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, added);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::read::default_value;
    use proptest::prelude::*;

    #[test]
    fn without_a_block_only_what_was_not_sent_is_tried_again() {
        let rules = RetryRules::of(None);
        assert_eq!((rules.attempts, rules.budget.ratio()), (1, 0.2));
        assert!(rules.cover(Setback::NotSent, false));
        for setback in [Setback::Reset, Setback::Late, Setback::Status(StatusCode::SERVICE_UNAVAILABLE)] {
            assert!(!rules.cover(setback, true), "{setback:?}");
        }
        assert!(!rules.reach_beyond_sending());
        assert!(rules.cover(Setback::StaleConnection, true) && rules.cover(Setback::UnprocessedStream, false));
    }

    #[test]
    fn a_block_covers_what_it_says_where_the_request_may_run_twice() {
        let rules = RetryRules::of(Some(&default_value("{}")));
        assert_eq!(rules.attempts, 2);
        assert!(rules.reach_beyond_sending());
        for (setback, covered) in [
            (Setback::Reset, true),
            (Setback::Late, false),
            (Setback::Status(StatusCode::BAD_GATEWAY), true),
            (Setback::Status(StatusCode::SERVICE_UNAVAILABLE), true),
            (Setback::Status(StatusCode::GATEWAY_TIMEOUT), false),
            (Setback::Status(StatusCode::INTERNAL_SERVER_ERROR), false),
            (Setback::Status(StatusCode::OK), false),
        ] {
            assert_eq!(rules.cover(setback, true), covered, "{setback:?}");
            assert!(!rules.cover(setback, false), "{setback:?}");
        }
        assert!(rules.cover(Setback::StaleConnection, true) && !rules.cover(Setback::StaleConnection, false));
        assert!(rules.cover(Setback::UnprocessedStream, false));
        let never = RetryRules::of(Some(&default_value("{ attempts: 0 }")));
        assert!(!never.reach_beyond_sending());
        assert!(!never.cover(Setback::StaleConnection, true) && !never.cover(Setback::UnprocessedStream, true));
    }

    #[test]
    fn the_budget_is_ten_tokens_a_share_of_requests_and_one_a_second() {
        let (budget, share) = (RetryBudget::default(), default_value("20%"));
        let spend = |now| (0..100).take_while(|_| budget.withdraw(now)).count();
        assert_eq!(spend(1000), 10, "what was saved");
        (0..20).for_each(|_| budget.deposit(share));
        assert_eq!(spend(1000), 4, "a fifth of twenty requests");
        assert_eq!(spend(3500), 2, "one a second");
        assert_eq!(spend(4000), 1, "the half that was left, and half a second");
        (0..1000).for_each(|_| budget.deposit(share));
        assert_eq!(spend(999_999), 10, "no more than ten are saved");
    }

    proptest! {
        /// For any order of events, an outage is not multiplied.
        #[test]
        fn retries_stay_within_the_budget(steps in prop::collection::vec((any::<bool>(), 0u64..200), 1..300)) {
            let (budget, share) = (RetryBudget::default(), default_value("20%"));
            let (mut now, mut requests, mut retries) = (1, 0u64, 0u64);
            budget.withdraw(now);
            retries += 1;
            for (is_request, wait) in steps {
                now += wait;
                match is_request {
                    true => { budget.deposit(share); requests += 1; }
                    false => retries += u64::from(budget.withdraw(now)),
                }
                let allowed = 10.0 + requests as f64 * 0.2 + now as f64 / 1000.0;
                prop_assert!(retries as f64 <= allowed + 0.001, "{retries} retries, {allowed} allowed");
            }
        }
    }
}
