//! The part of a node that outlives a configuration: its state, health and load, and its requests in flight.

use super::circuit::{Circuit, Fitness};
use super::group::Group;
use super::health::{Checks, Health};
use super::pick::Skip;
use super::queue::Queue;
use super::ramp::Ramp;
use super::sessions::Sessions;
use crate::clock::{SteadyMillis, steady_millis};
use crate::config::{HealthCheck, NodeState};
use crate::control::Event;
use crate::fleet::NodeVerdict;
use crate::telemetry::metrics::Metrics;
use prometheus::{Histogram, IntCounter};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// A node's state that outlives reloads, shared by all workers.
pub(crate) struct NodeRuntime {
    /// Unique in the process; the key of a worker's idle connections.
    pub(crate) serial: u64,
    /// The nodes that share its pool.
    pub(crate) group: Arc<Group>,
    pub(crate) id: Arc<str>,
    /// The [`NodeState`] in force, as `state_code` has it.
    state: AtomicU8,
    /// It is in no configuration that is in force.
    is_gone: AtomicBool,
    in_flight: AtomicU32,
    pub(super) idle: AtomicU32,
    pub(super) health: Health,
    pub(super) circuit: Circuit,
    pub(super) ramp: Ramp,
    pub(crate) sessions: Sessions,
    /// Strict sessions that wait for room at this node.
    pub(crate) queue: Queue,
    metrics: Arc<Metrics>,
    pub(super) duration: Histogram,
    /// The counter that nearly every attempt needs.
    answered: OnceLock<IntCounter>,
    /// The time of the last logged warning that does not concern its health.
    warned: AtomicU64,
}

/// The shortest time between two such lines in the log.
const WARN_EVERY: SteadyMillis = 10_000;

impl NodeRuntime {
    /// Returns a node that gets no requests before its configuration is in force.
    pub(super) fn new(serial: u64, group: Arc<Group>, id: Arc<str>, metrics: Arc<Metrics>) -> NodeRuntime {
        NodeRuntime {
            serial,
            state: AtomicU8::new(state_code(NodeState::Down)),
            is_gone: AtomicBool::new(false),
            in_flight: AtomicU32::new(0),
            idle: AtomicU32::new(0),
            health: Health::default(),
            circuit: Circuit::default(),
            ramp: Ramp::default(),
            sessions: Sessions::default(),
            queue: Queue::default(),
            duration: metrics.upstream_duration.with_label_values(&[&*group.name, &*id]),
            answered: OnceLock::new(),
            warned: AtomicU64::new(0),
            group,
            id,
            metrics,
        }
    }

    /// Returns the administrative state: that of the file, or a later one of an operator.
    pub(crate) fn state(&self) -> NodeState {
        match self.state.load(Ordering::Relaxed) {
            0 => NodeState::Up,
            1 => NodeState::Drain,
            _ => NodeState::Down,
        }
    }

    /// The node is in no configuration any more.
    pub(super) fn leave(&self) {
        self.is_gone.store(true, Ordering::Relaxed);
    }

    /// A node that takes requests again gets its keys one by one.
    pub(super) fn set_state(&self, state: NodeState) {
        let before = self.state.swap(state_code(state), Ordering::Relaxed);
        if state == NodeState::Up && before != state_code(NodeState::Up) {
            self.ramp.begin(steady_millis(Instant::now()));
            self.wake_waiting();
        }
    }

    /// Requests and tunnels that this node is working on.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Connections to this node that wait for a request.
    pub(crate) fn idle(&self) -> u32 {
        self.idle.load(Ordering::Relaxed)
    }

    /// Returns whether the node passes its checks and is not ejected.
    pub(crate) fn is_healthy(&self, now: SteadyMillis) -> bool {
        self.health.is_healthy() && self.circuit.left(now).is_none_or(|left| left == 0)
    }

    /// Returns whether the sessions of the node may stay with it.
    pub(crate) fn takes_sessions(&self, now: SteadyMillis) -> bool {
        self.state() != NodeState::Down && self.is_healthy(now)
    }

    /// The result of its health checks.
    pub(crate) fn checks(&self) -> Checks {
        self.health.checks()
    }

    /// Returns the number of consecutive failures, and the remaining time of the ejection in milliseconds.
    pub(crate) fn ejection(&self, now: SteadyMillis) -> (u32, Option<u64>) {
        (self.circuit.failures(), self.circuit.left(now))
    }

    /// Returns the progress of its slow start, from 0 to 1.
    pub(crate) fn ramp_progress(&self, now: SteadyMillis, length: Duration) -> f64 {
        self.ramp.progress(now, length)
    }

    /// Returns whether requests may go to the node according to its health; `true` for a trial.
    pub(super) fn fitness(&self, now: SteadyMillis) -> Result<bool, Skip> {
        if !self.health.is_healthy() {
            return Err(Skip::Unhealthy);
        }
        match self.circuit.fitness(now) {
            Fitness::Closed => Ok(false),
            Fitness::HalfOpen => Ok(true),
            Fitness::Open => Err(Skip::Ejected),
        }
    }

    /// Takes one of the node's permits; `None` where all are taken, or another request tries the node already.
    pub(super) fn begin(self: &Arc<Self>, limit: u32, is_trial: bool, now: SteadyMillis) -> Option<InFlight> {
        if is_trial && !self.circuit.begin_trial(now) {
            return None;
        }
        let taken = |in_flight: u32| (in_flight < limit).then_some(in_flight + 1);
        if self.in_flight.fetch_update(Ordering::SeqCst, Ordering::Relaxed, taken).is_err() {
            self.circuit.end_trial(now);
            return None;
        }
        Some(InFlight { node: Arc::clone(self), trial: is_trial.then_some(now), has_failed: false, outcome: None })
    }

    /// Returns whether a warning about the node is due: warnings are rate limited.
    pub(crate) fn may_warn(&self, now: Instant) -> bool {
        let now = steady_millis(now);
        let last = self.warned.load(Ordering::Relaxed);
        let is_due = last == 0 || now.saturating_sub(last) >= WARN_EVERY;
        is_due && self.warned.compare_exchange(last, now.max(1), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Counts the outcome of an attempt.
    pub(crate) fn count(&self, outcome: &str) {
        // A removed node has no series, and must not get them back.
        if self.is_gone.load(Ordering::Relaxed) {
            return;
        }
        let counter =
            |outcome| self.metrics.upstream_requests.with_label_values(&[&*self.group.name, &*self.id, outcome]);
        match outcome {
            "answer" => self.answered.get_or_init(|| counter("answer")).inc(),
            _ => counter(outcome).inc(),
        }
    }

    /// Counts a response with a status from 500 to 599.
    pub(crate) fn count_server_error(&self) {
        if !self.is_gone.load(Ordering::Relaxed) {
            self.metrics.upstream_server_errors.with_label_values(&[&*self.group.name, &*self.id]).inc();
        }
    }

    /// Wakes requests that wait for the node.
    fn wake_waiting(&self) {
        self.queue.wake_all();
        self.group.queue.wake_all();
    }

    /// Records the verdict of the health checks.
    fn verdict(&self, healthy: bool, error: Option<String>) {
        let [pool, node] = [&*self.group.name, &*self.id].map(str::to_owned);
        self.group.events.record(Event::NodeHealth { pool, node, healthy, error });
    }

    /// Takes the result of a check: why it failed, if it did.
    pub(super) fn checked(&self, result: Result<(), String>, rules: &HealthCheck) {
        let now = steady_millis(Instant::now());
        let failure = result.as_ref().err().cloned().unwrap_or_default();
        let changed = self.health.record(result, rules, self.group.is_all_unhealthy(), now);
        self.judged(changed, failure, now);
    }

    /// Takes the verdict of the process that checks the node for the fleet.
    pub(super) fn follow(&self, verdict: &NodeVerdict) {
        let now = steady_millis(Instant::now());
        let changed = self.health.follow(verdict.healthy, verdict.failure.as_deref(), now);
        self.judged(changed, verdict.failure.clone().unwrap_or_default(), now);
    }

    /// Draws the conclusions from a verdict that has changed.
    fn judged(&self, changed: Option<bool>, failure: String, now: SteadyMillis) {
        let (pool, node) = (&*self.group.name, &*self.id);
        match changed {
            Some(true) => {
                tracing::info!(pool, node, "the node is well again: its health checks pass");
                self.verdict(true, None);
                // The node was unavailable, so that earlier failures say little.
                self.circuit.half_open(now);
                self.ramp.begin(now);
                self.wake_waiting();
            }
            Some(false) => {
                tracing::warn!(pool, node, failure, "the node takes no requests: its health checks fail");
                self.verdict(false, Some(failure));
                self.group.hold_bound();
            }
            None => {}
        }
    }
}

/// A permit for a request in flight to a node, returned on drop; it gets the result of the request.
pub(crate) struct InFlight {
    node: Arc<NodeRuntime>,
    /// The begin of the trial, for a trial request.
    trial: Option<SteadyMillis>,
    has_failed: bool,
    /// The outcome of the attempt, counted at its end.
    outcome: Option<&'static str>,
}

impl InFlight {
    /// Counts the attempt now, and not only when it is over.
    pub(crate) fn count_now(&mut self) {
        if let Some(outcome) = self.outcome.take() {
            self.node.count(outcome);
        }
    }

    /// Sets the result of the attempt, in place of an earlier one.
    pub(crate) fn set_outcome(&mut self, outcome: &'static str) {
        self.outcome = Some(outcome);
    }

    pub(crate) fn node(&self) -> &Arc<NodeRuntime> {
        &self.node
    }

    /// The node has begun to answer as a node that works does.
    pub(crate) fn answered(&mut self) {
        if let Some(began) = self.trial.take() {
            let now = steady_millis(Instant::now());
            let opened = self.node.circuit.close(now);
            self.node.circuit.end_trial(began);
            self.node.ramp.begin_since(opened, now);
            self.node.wake_waiting();
            tracing::info!(
                pool = &*self.node.group.name,
                node = &*self.node.id,
                "a request tried the node: it is back"
            );
            self.node.group.ejection(&self.node.id, false, "a request tried it", None);
        }
    }

    /// Records a complete response, or one that the client has ended.
    pub(crate) fn finished(&mut self) {
        if !self.has_failed {
            self.node.circuit.succeeded();
        }
    }

    /// Records a failure of the node: no connection, no complete response, or 502, 503 or 504.
    pub(crate) fn failed(&mut self) {
        if !std::mem::replace(&mut self.has_failed, true) {
            let trial = self.trial.take();
            self.node.group.failed(&self.node, trial.is_some());
            if let Some(began) = trial {
                self.node.circuit.end_trial(began);
            }
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(outcome) = self.outcome {
            self.node.count(outcome);
        }
        if let Some(began) = self.trial {
            self.node.circuit.end_trial(began);
        }
        self.node.in_flight.fetch_sub(1, Ordering::SeqCst);
        if !self.node.queue.wake_one() {
            self.node.group.queue.wake_one();
        }
    }
}

fn state_code(state: NodeState) -> u8 {
    match state {
        NodeState::Up => 0,
        NodeState::Drain => 1,
        NodeState::Down => 2,
    }
}
