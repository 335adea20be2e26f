//! Active health: the verdict of a node's health checks.
//!
//! The verdict changes only after several consecutive checks with the other result. It belongs to the node and not to a
//! configuration: a reload changes neither verdict nor counts.

use crate::clock::SteadyMillis;
use crate::config::{HealthCheck, Initially};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// The health of one node.
#[derive(Debug, Default)]
pub(super) struct Health {
    unhealthy: AtomicBool,
    checks: Mutex<Checks>,
}

/// The checks of a node, the last ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checks {
    /// The node is healthy.
    is_bad: bool,
    /// In a row, up to now; one of them is 0.
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    /// Why the last one failed.
    pub(crate) failure: Option<String>,
    /// When the last one ended.
    pub(crate) at: Option<SteadyMillis>,
}

impl Checks {
    /// Counts a check; returns the verdict where it changes. `is_last`: no node of the pool is healthy, so that one
    /// passed check is enough.
    fn record(
        &mut self,
        result: Result<(), String>,
        rules: &HealthCheck,
        is_last: bool,
        now: SteadyMillis,
    ) -> Option<bool> {
        self.at = Some(now);
        match result {
            Ok(()) => (self.passed, self.failed) = (self.passed.saturating_add(1), 0),
            Err(_) => (self.passed, self.failed) = (0, self.failed.saturating_add(1)),
        }
        self.failure = result.err();
        let is_bad = match self.is_bad {
            true => self.passed < if is_last { 1 } else { rules.healthy_after },
            false => self.failed >= rules.unhealthy_after,
        };
        let changed = is_bad != self.is_bad;
        self.is_bad = is_bad;
        changed.then_some(!is_bad)
    }
}

impl Health {
    pub(super) fn is_healthy(&self) -> bool {
        !self.unhealthy.load(Ordering::Relaxed)
    }

    /// The result of the health checks.
    pub(super) fn checks(&self) -> Checks {
        self.checks.lock().clone()
    }

    /// A node that is new.
    pub(super) fn begin(&self, rules: &HealthCheck) {
        self.set(|checks| checks.is_bad = rules.initially == Initially::Down);
    }

    /// The node's name cannot be resolved.
    pub(super) fn is_unresolved(&self, cause: &str) {
        self.set(|checks| {
            checks.is_bad = true;
            checks.failure = Some(cause.to_owned());
        });
    }

    /// Notes that the node is checked no more.
    pub(super) fn forget(&self) {
        if self.checks.lock().at.is_some() || !self.is_healthy() {
            self.set(|checks| *checks = Checks::default());
        }
    }

    /// Takes the verdict of another process; returns the health of the node where it changes.
    pub(super) fn follow(&self, is_healthy: bool, failure: Option<&str>, now: SteadyMillis) -> Option<bool> {
        self.set(|checks| {
            let changed = checks.is_bad == is_healthy;
            let failure = failure.map(str::to_owned);
            *checks = Checks { is_bad: !is_healthy, passed: 0, failed: 0, failure, at: Some(now) };
            changed.then_some(is_healthy)
        })
    }

    /// Counts a check; returns the health of the node where it changes.
    pub(super) fn record(
        &self,
        result: Result<(), String>,
        rules: &HealthCheck,
        is_last: bool,
        now: SteadyMillis,
    ) -> Option<bool> {
        self.set(|checks| checks.record(result, rules, is_last, now))
    }

    fn set<T>(&self, change: impl FnOnce(&mut Checks) -> T) -> T {
        let mut checks = self.checks.lock();
        let told = change(&mut checks);
        self.unhealthy.store(checks.is_bad, Ordering::Relaxed);
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rules(healthy_after: u32, unhealthy_after: u32) -> HealthCheck {
        let rules: HealthCheck = crate::config::read::default_value("{}");
        HealthCheck { healthy_after, unhealthy_after, ..rules }
    }

    fn record(health: &Health, passed: bool, rules: &HealthCheck, is_last: bool) -> Option<bool> {
        health.record(if passed { Ok(()) } else { Err("it did not".into()) }, rules, is_last, 1)
    }

    #[test]
    fn a_verdict_takes_several_checks_in_a_row() {
        let (health, rules) = (Health::default(), rules(2, 3));
        let told: Vec<Option<bool>> = [false, false, true, false, false, false, true, false, true, true]
            .map(|passed| record(&health, passed, &rules, false))
            .into();
        assert_eq!(told, [None, None, None, None, None, Some(false), None, None, None, Some(true)]);
    }

    #[test]
    fn where_no_node_is_well_one_check_is_enough() {
        let (health, rules) = (Health::default(), rules(5, 1));
        assert_eq!(record(&health, false, &rules, true), Some(false));
        assert_eq!(record(&health, true, &rules, true), Some(true));
        assert!(health.is_healthy());
    }

    #[test]
    fn a_new_node_may_have_to_pass_first() {
        let (health, mut rules) = (Health::default(), rules(1, 1));
        rules.initially = Initially::Down;
        health.begin(&rules);
        assert!(!health.is_healthy());
        assert_eq!(record(&health, true, &rules, false), Some(true));
        record(&health, false, &rules, false);
        health.forget();
        assert!(health.is_healthy() && health.checks() == Checks::default());
    }

    #[test]
    fn the_verdict_of_another_process_counts_at_once_and_own_checks_go_on_from_there() {
        let (health, rules) = (Health::default(), rules(2, 2));
        assert_eq!(health.follow(true, None, 1), None);
        assert_eq!(health.follow(false, Some("refused"), 2), Some(false));
        assert_eq!(health.checks().failure.as_deref(), Some("refused"));
        assert_eq!(record(&health, true, &rules, false), None);
        assert_eq!(record(&health, true, &rules, false), Some(true));
        assert_eq!(record(&health, false, &rules, false), None);
        assert_eq!(health.follow(true, None, 3), None);
        assert_eq!(record(&health, false, &rules, false), None, "counts begin anew");
    }

    proptest! {
        /// The verdict is the result of the last sufficiently long run of equal results.
        #[test]
        fn it_is_the_last_long_run_that_counts(
            results in prop::collection::vec(any::<bool>(), 0..40), up in 1u32..5, down in 1u32..5,
        ) {
            let (health, rules) = (Health::default(), rules(up, down));
            let (mut expected, mut run, mut last) = (true, 0, None);
            for passed in results {
                run = if last == Some(passed) { run + 1 } else { 1 };
                last = Some(passed);
                if run >= if passed { up } else { down } {
                    expected = passed;
                }
                record(&health, passed, &rules, false);
                prop_assert_eq!(health.is_healthy(), expected);
            }
        }
    }
}
