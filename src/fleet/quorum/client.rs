//! All nodes, for one thread: the looks of its readers, the marks of its writes, and stamps without a mark.

use super::check::{Asked, Check, PATIENCE};
use super::debts::Debts;
use super::link::NodeLink;
use super::messages::WriteOrder;
use super::rules::{QuorumRules, millis};
use crate::clock;
use crate::consistency::quorum::{Millis, NodeSet, Slot, Slots};
use crate::telemetry::metrics::Metrics;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// A part of the refusal of a node that does not know the configuration of this process.
const UNREGISTERED: &str = "UNREGISTERED";

/// The connections of one thread to the nodes of its fleet.
pub(crate) struct QuorumClient {
    pub(super) links: Vec<NodeLink>,
    pub(super) rules: watch::Sender<Arc<QuorumRules>>,
    pub(super) metrics: Arc<Metrics>,
    /// Told whenever a node is connected.
    pub(super) connected: Notify,
    pub(super) debts: RefCell<Debts>,
    /// Told of debts that can be paid at once.
    pub(super) owed: Notify,
    /// It writes to the process's log.
    pub(super) speaks: bool,
    /// A strong route needs it: its configuration is registered at the nodes.
    pub(super) is_needed: Cell<bool>,
    /// A part of the names of writes, and the number of the last one.
    process: u64,
    last: Cell<u64>,
}

impl QuorumClient {
    /// Returns a client whose nodes are not connected.
    pub(super) fn new(rules: &Arc<QuorumRules>, metrics: &Arc<Metrics>, speaks: bool) -> QuorumClient {
        let (sender, _) = watch::channel(Arc::clone(rules));
        QuorumClient {
            links: (0..rules.settings.ids.len() as u8).map(NodeLink::new).collect(),
            rules: sender,
            metrics: Arc::clone(metrics),
            connected: Notify::new(),
            debts: RefCell::default(),
            owed: Notify::new(),
            speaks,
            is_needed: Cell::new(true),
            process: getrandom::u64().unwrap_or_else(|_| fastrand::u64(..)),
            last: Cell::new(0),
        }
    }

    /// Goes on by other rules, of the same nodes.
    pub(crate) fn follow(&self, rules: &Arc<QuorumRules>) {
        let has_rested = !self.is_needed.replace(true);
        self.rules.send_if_modified(|now| {
            let differs = !Arc::ptr_eq(now, rules)
                && now.settings != rules.settings
                && now.settings.ids.len() == rules.settings.ids.len();
            if differs {
                *now = Arc::clone(rules);
            }
            // It registers at once.
            differs || has_rested
        });
    }

    /// Registers no more, for no strong route is left: proxies with others would take its last one for one in force.
    pub(crate) fn rest(&self) {
        if self.is_needed.replace(false) {
            self.metrics.consistency_config_skew.set(0);
        }
    }

    /// Waits until W nodes of each slot can be reached, or for that long.
    pub(crate) async fn ready(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let needs = self.rules.borrow().writes(&[crate::consistency::quorum::ALL]);
        loop {
            let connected = self.connected.notified();
            let open: NodeSet = self.links.iter().filter(|link| link.open().is_some()).map(|link| link.node).collect();
            if needs.are_met_by(open) || tokio::time::timeout_at(deadline.into(), connected).await.is_err() {
                return;
            }
        }
    }

    /// Returns whether the nodes are asked by the same rules as a request has.
    pub(crate) fn has_rules(&self, rules: &QuorumRules) -> bool {
        self.rules.borrow().digest == rules.digest
    }

    /// Begins to look at the slots of a reader, by its rules: no reply is older than this call.
    pub(crate) fn look(&self, rules: &QuorumRules, slots: &Slots) -> Check {
        let look = rules.reads(slots);
        let nodes = look.needs.nodes();
        let asked = Rc::new(Asked::new(look));
        for node in nodes.iter() {
            if let Some(link) = self.links.get(usize::from(node)) {
                link.ask(&asked);
            }
        }
        Check::new(asked, Instant::now())
    }

    /// Returns the nodes that have the configuration of this process.
    pub(super) fn registered(&self, now: Millis, lease: Millis) -> NodeSet {
        self.links.iter().filter(|link| link.is_registered(now, lease)).map(|link| link.node).collect()
    }

    /// Returns a name for a write, which no other one has.
    pub(super) fn name(&self) -> String {
        self.last.set(self.last.get() + 1);
        format!("{:016x}-{:x}", self.process, self.last.get())
    }

    /// Sends an operation to nodes, each its slots. `done` is called for each node that has carried it out.
    pub(super) fn send(
        &self,
        rules: &Arc<QuorumRules>,
        (order, slots): (WriteOrder, &[Slot]),
        nodes: NodeSet,
        done: &Rc<dyn Fn(u8)>,
    ) {
        for node in nodes.iter() {
            let Some(open) = self.links.get(usize::from(node)).and_then(NodeLink::open) else { continue };
            let own: Vec<Slot> = slots.iter().copied().filter(|slot| rules.nodes(*slot).contains(node)).collect();
            let (order, done) = (WriteOrder { slots: own, ..order.clone() }, Rc::clone(done));
            let rules = Arc::clone(rules);
            tokio::task::spawn_local(async move {
                let mut written = open.connection.write(&order).await;
                // The node has lost what it had: the configuration is registered anew first.
                if written.as_ref().is_err_and(|error| error.contains(UNREGISTERED))
                    && open.connection.register(&rules).await.is_ok()
                {
                    written = open.connection.write(&order).await;
                }
                match written {
                    Ok(()) => done(node),
                    Err(error) => tracing::debug!(node, error, flags = order.flags, "a node did not take an operation"),
                }
            });
        }
    }

    /// Puts new stamps on slots, without a mark. Returns whether W nodes of each have them in time; otherwise they are
    /// stamped once the quorum is back.
    pub(crate) async fn stamp(self: &Rc<Self>, slots: &[Slot]) -> bool {
        let is_stamped = self.try_stamp(slots).await;
        if !is_stamped {
            self.debts.borrow_mut().stamps.extend(slots);
        }
        is_stamped
    }

    /// Puts new stamps on slots. Returns whether W nodes of each have them in time.
    pub(super) async fn try_stamp(&self, slots: &[Slot]) -> bool {
        let rules = Arc::clone(&self.rules.borrow());
        let needs = rules.writes(slots);
        let order = self.order(&rules, "s", String::new(), 0);
        let (stamped, told) = (Rc::new(Cell::new(NodeSet::default())), Rc::new(Notify::new()));
        let (here, teller) = (Rc::clone(&stamped), Rc::clone(&told));
        let done: Rc<dyn Fn(u8)> = Rc::new(move |node| {
            let mut all = here.get();
            all.insert(node);
            here.set(all);
            teller.notify_one();
        });
        self.send(&rules, (order, slots), needs.nodes(), &done);
        let deadline = Instant::now() + PATIENCE;
        while !needs.are_met_by(stamped.get()) {
            if tokio::time::timeout_at(deadline.into(), told.notified()).await.is_err() {
                return false;
            }
        }
        true
    }

    pub(super) fn order(&self, rules: &QuorumRules, flags: &'static str, write: String, life: Millis) -> WriteOrder {
        WriteOrder { flags, write, life, digest: rules.digest, slots: Vec::new() }
    }
}

/// Returns the time of CLOCK_BOOTTIME.
pub(super) fn now() -> Millis {
    millis(clock::since_boot())
}
