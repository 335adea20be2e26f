//! The context of a worker: the state that the steps of the pipeline share on its thread.

use super::exchange::RequestRecorder;
use super::snapshot::Snapshot;
use crate::cache::Cache;
use crate::consistency::Causality;
use crate::fleet::Bus;
use crate::fleet::quorum::{QuorumClient, QuorumRules};
use crate::http::budget::Budget;
use crate::http::trace::Identifiers;
use crate::upstream::NodeConnections;
use arc_swap::ArcSwap;
use std::cell::{OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;

/// The configuration, connections, cache, recorder and budgets of one worker.
pub(crate) struct WorkerContext {
    latest: RefCell<Latest>,
    pub(crate) recorder: Rc<RequestRecorder>,
    pub(crate) connections: Rc<NodeConnections>,
    pub(super) random: RefCell<fastrand::Rng>,
    pub(super) identifiers: RefCell<Identifiers>,
    pub(super) cache: Arc<Cache>,
    /// The order of answers on causal routes, as far as the process knows it.
    pub(super) causality: Arc<Causality>,
    /// The bus of the fleet, where the process is in one.
    pub(super) bus: Option<Bus>,
    /// The nodes that verify strong reads, once they are needed.
    quorum: OnceCell<Rc<QuorumClient>>,
    /// The bytes of bodies that the process may buffer.
    pub(crate) budget: Arc<Budget>,
    /// Held by every task that must end well before the worker does.
    pub(super) tasks: Rc<()>,
    /// When the process began to end.
    leaving: watch::Sender<Option<Instant>>,
}

/// The snapshot in force, as a handle that costs no shared counter a request.
type Latest = arc_swap::Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>;

impl WorkerContext {
    pub(crate) fn new(
        snapshot: Arc<ArcSwap<Snapshot>>,
        cache: Arc<Cache>,
        (causality, bus): (Arc<Causality>, Option<Bus>),
        budget: Arc<Budget>,
        recorder: RequestRecorder,
    ) -> WorkerContext {
        WorkerContext {
            latest: RefCell::new(Latest::new(snapshot)),
            recorder: Rc::new(recorder),
            connections: Rc::new(NodeConnections::new(Arc::clone(&budget))),
            random: RefCell::new(fastrand::Rng::new()),
            identifiers: RefCell::default(),
            cache,
            causality,
            bus,
            quorum: OnceCell::new(),
            budget,
            tasks: Rc::default(),
            leaving: watch::Sender::default(),
        }
    }

    /// Has the tasks of the worker come to an end.
    pub(crate) fn leave(&self) {
        self.leaving.send_replace(Some(Instant::now()));
    }

    /// Returns when the process began to end, where it does.
    pub(super) fn leaving_since(&self) -> Option<Instant> {
        *self.leaving.borrow()
    }

    /// Returns once the process begins to end.
    pub(super) async fn leaving(&self) {
        let mut leaving = self.leaving.subscribe();
        // The sender lives as long as this.
        let _ = leaving.wait_for(Option::is_some).await;
    }

    /// Returns whether no work is left that must be completed.
    pub(crate) fn is_quiet(&self) -> bool {
        Rc::strong_count(&self.tasks) == 1
    }

    /// Returns the worker's connections to the nodes that verify strong reads.
    pub(super) fn quorum(&self, rules: &Arc<QuorumRules>) -> Rc<QuorumClient> {
        let start = || QuorumClient::start(rules, self.recorder.metrics(), false);
        Rc::clone(self.quorum.get_or_init(start))
    }

    /// Connects to the nodes that verify the strong reads of the configuration in force, or goes on by its rules.
    /// Returns the connections; `None` where it needs none.
    pub(crate) fn follow_quorum(&self) -> Option<Rc<QuorumClient>> {
        self.with_snapshot(|snapshot| {
            let Some(strong) = &snapshot.strong else {
                self.quorum.get().iter().for_each(|client| client.rest());
                return None;
            };
            let client = self.quorum(&strong.rules);
            client.follow(&strong.rules);
            Some(client)
        })
    }

    /// Returns the configuration in force.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(self.latest.borrow_mut().load())
    }

    /// Returns the result of a function on the current configuration, without a shared counter.
    pub(super) fn with_snapshot<T>(&self, work: impl FnOnce(&Arc<Snapshot>) -> T) -> T {
        work(self.latest.borrow_mut().load())
    }
}
