//! The state of the thread of the leader's room: what it knows, and what follows for this process.

use super::election::{Effect, Election, Event};
use super::health::{Prober, Why, prober};
use super::shared::Shared;
use super::values::{Keys, MemberValue, Table};
use super::view::Changes;
use super::{Host, SharedPool};
use crate::clock::BootTime;
use crate::fleet::etcd::{Batch, Client, EtcdError, EtcdSettings, Header, KeyValue};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// The state of the thread.
pub(super) struct Core {
    pub(super) shared: Arc<Shared>,
    pub(super) host: Arc<dyn Host>,
    settings: watch::Receiver<EtcdSettings>,
    pub(super) keys: Keys,
    /// The time to live of leases, in seconds.
    pub(super) ttl: u64,
    /// The next call of the election to etcd, for the task that carries it out.
    pub(super) effects: RefCell<VecDeque<Effect>>,
    pub(super) has_effects: Notify,
    /// Notified when the lease is to be looked at.
    pub(super) wants_lease: Notify,
    /// Notified when the process has a lease.
    pub(super) has_lease: Notify,
    /// Notified when this process's own key as a member is to be looked at.
    pub(super) wants_member: Notify,
    /// The nodes that drain for the fleet and have nothing left here.
    drained: RefCell<Vec<(String, String)>>,
    /// The version of etcd was looked at.
    pub(super) has_looked: Cell<bool>,
    /// The revision of the last beat that was noted.
    noted: Cell<u64>,
    /// The term in which the process acted at the last look.
    acted: Cell<Option<u64>>,
    failures: RefCell<Failures>,
    pub(super) has_left: Cell<bool>,
}

/// The last errors of the lease and of the watch; `None` while they work.
#[derive(Default)]
struct Failures {
    lease: Option<String>,
    watch: Option<String>,
    was_told: bool,
}

/// The part of the work that has succeeded or failed.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Lease,
    Watch,
}

impl Core {
    pub(super) fn new(shared: Arc<Shared>, host: Arc<dyn Host>, settings: watch::Receiver<EtcdSettings>) -> Rc<Core> {
        let (prefix, ttl) = (settings.borrow().prefix(), settings.borrow().ttl_seconds());
        let pending = || Some("not connected yet".to_owned());
        Rc::new(Core {
            shared,
            host,
            settings,
            keys: Keys { prefix },
            ttl,
            effects: RefCell::default(),
            has_effects: Notify::new(),
            wants_lease: Notify::new(),
            has_lease: Notify::new(),
            wants_member: Notify::new(),
            drained: RefCell::default(),
            has_looked: Cell::default(),
            noted: Cell::default(),
            acted: Cell::default(),
            failures: RefCell::new(Failures { lease: pending(), watch: pending(), was_told: false }),
            has_left: Cell::default(),
        })
    }

    pub(super) fn client(&self) -> Client {
        Client::new(self.settings.clone())
    }

    /// Returns the wait between two keep-alives.
    pub(super) fn between_keep_alives(&self) -> Duration {
        Duration::from_secs(self.ttl) / 3
    }

    pub(super) fn election(&self) -> Election {
        self.shared.election.lock().clone()
    }

    /// Returns the term in which this process may publish now.
    pub(super) fn acting(&self) -> Option<u64> {
        self.shared.election.lock().acting(BootTime::now().millis())
    }

    /// Hands an event to the election.
    pub(super) fn step(&self, event: Event) {
        let effect = {
            let mut election = self.shared.election.lock();
            let (next, effect) = election.step(event, BootTime::now().millis());
            *election = next;
            effect
        };
        match effect {
            Some(Effect::Grant) => self.wants_lease.notify_one(),
            Some(effect) => {
                self.effects.borrow_mut().push_back(effect);
                self.has_effects.notify_one();
            }
            None => {}
        }
        self.look_at_leader();
    }

    /// Takes all keys, as of a revision.
    pub(super) fn replace(&self, header: Header, all: Vec<KeyValue>) {
        let changes = self.shared.view.lock().replace(&self.keys.prefix, header, all);
        if changes.kept > 0 {
            tracing::warn!(
                states = changes.kept,
                "etcd has lost states of nodes for the fleet; they stay in force here: set them anew with `--fleet`"
            );
        }
        self.changed(changes, true);
        self.wants_member.notify_one();
        self.shared.ready.send_replace(true);
    }

    /// Takes the changes of a message of the watch.
    pub(super) fn take(&self, batch: &Batch) {
        let changes = self.shared.view.lock().apply(&self.keys.prefix, batch);
        let own = self.keys.member(&self.shared.process.to_string());
        let is_own = |(key, _): &&(KeyValue, bool)| key.key == own;
        self.changed(changes, false);
        if let Some((key, is_set)) = batch.changes.iter().rev().find(is_own) {
            // Removed by an operator, or set by a copy that comes late.
            let found = serde_json::from_slice::<MemberValue>(&key.value).ok().filter(|_| *is_set);
            if found.as_ref() != Some(&self.member()) {
                self.wants_member.notify_one();
            }
        }
    }

    /// Draws the conclusions from changes.
    fn changed(&self, changes: Changes, is_whole: bool) {
        if changes.leader {
            let (holder, revision) = {
                let view = self.shared.view.lock();
                (view.leader.as_ref().map(|(holder, _)| *holder), view.revision)
            };
            if is_whole && revision < self.election().seen() {
                self.step(Event::Lost);
            }
            self.step(Event::Key { holder, revision });
        }
        if changes.orders {
            let (orders, revision) = {
                let view = self.shared.view.lock();
                (view.orders(), view.revision)
            };
            self.host.apply(&orders);
            let mut applied = self.shared.applied.lock();
            // Another cluster counts anew.
            *applied = if is_whole { revision } else { revision.max(*applied) };
            drop(applied);
            self.look_at_drains();
            self.wants_member.notify_one();
        }
        if changes.beat {
            self.note_beat(is_whole);
            self.look_at_health();
        }
    }

    /// Notes the moment of a beat for each pool that it is for. One that was found by a range may be of a leader that is
    /// gone, unless its key is there.
    fn note_beat(&self, is_whole: bool) {
        let view = self.shared.view.lock();
        let is_current = view.leader.as_ref().is_some_and(|(holder, _)| holder.term == view.beat.term);
        // A range that finds the same beat again says nothing new.
        if self.noted.replace(view.beat_revision) == view.beat_revision || (is_whole && !is_current) {
            return;
        }
        let now = BootTime::now();
        let mut heard = self.shared.heard.lock();
        heard.retain(|pool, _| view.beat.pools.contains(pool) || self.shared.probers.lock().contains_key(pool));
        for pool in &view.beat.pools {
            heard.insert(pool.clone(), now);
        }
    }

    /// Determines the prober of each pool with shared health, and applies its verdicts.
    pub(super) fn look_at_health(&self) {
        let pools = self.host.shared_pools();
        let (is_leader, now) = (self.acting().is_some(), BootTime::now());
        for SharedPool { name, interval } in &pools {
            let age = self.shared.heard.lock().get(name).map(|heard| now.since(*heard));
            let table = self.shared.view.lock().tables.get(name).cloned();
            let next = prober(is_leader, age, *interval, table.as_ref());
            let before = self.shared.probers.lock().insert(name.clone(), next);
            self.follow(name, next, table.as_ref());
            if before != Some(next) {
                log_prober(name, next, before.is_none());
            }
        }
        self.shared.probers.lock().retain(|name, _| pools.iter().any(|pool| pool.name == *name));
    }

    fn follow(&self, pool: &str, prober: Prober, table: Option<&Table>) {
        match (prober, table) {
            (Prober::Leader, Some(table)) => self.host.follow(pool, Some(&table.nodes)),
            _ => self.host.follow(pool, None),
        }
    }

    /// Notes whether this process has begun or ceased to act as the leader.
    pub(super) fn look_at_leader(&self) {
        let acting = self.acting();
        let before = self.acted.replace(acting);
        match (before, acting) {
            (before, Some(term)) if before != Some(term) => {
                tracing::info!(term, "this proxy is the leader of the fleet");
            }
            (Some(term), None) => tracing::info!(term, "this proxy is not the leader of the fleet any more"),
            _ => return,
        }
        self.look_at_health();
        self.has_effects.notify_one();
    }

    /// Looks for nodes that drain for the fleet and have nothing left here.
    pub(super) fn look_at_drains(&self) {
        let orders = self.shared.view.lock().orders();
        let drains = orders.into_iter().filter(|order| order.state == crate::config::NodeState::Drain);
        let drained = drains.filter(|order| self.host.is_drained(&order.pool, &order.node));
        let drained: Vec<_> = drained.map(|order| (order.pool, order.node)).collect();
        if *self.drained.borrow() != drained {
            self.drained.replace(drained);
            self.wants_member.notify_one();
        }
    }

    /// Returns what the key of this process as a member is to say.
    pub(super) fn member(&self) -> MemberValue {
        MemberValue {
            name: self.shared.name.clone(),
            address: self.host.address(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            applied: *self.shared.applied.lock(),
            drained: self.drained.borrow().clone(),
        }
    }

    /// Notes that a part of the work has succeeded at an endpoint, or failed; the log says so once.
    pub(super) fn note(&self, part: Part, result: Result<&str, &EtcdError>) {
        let mut failures = self.failures.borrow_mut();
        let failure = match part {
            Part::Lease => &mut failures.lease,
            Part::Watch => &mut failures.watch,
        };
        *failure = result.err().map(ToString::to_string);
        let failure = failures.lease.clone().or_else(|| failures.watch.clone());
        let mut board = self.shared.board.lock();
        if let Ok(endpoint) = result {
            endpoint.clone_into(&mut board.endpoint);
        }
        board.error.clone_from(&failure);
        let is_up = failure.is_none();
        let was_up = std::mem::replace(&mut board.is_up, is_up);
        drop(board);
        match failure {
            None if !was_up => {
                failures.was_told = false;
                tracing::info!("etcd works: the fleet has a leader, and states of nodes reach all its proxies");
                self.host.changed(None);
            }
            Some(error) if !failures.was_told && result.is_err() => {
                failures.was_told = true;
                tracing::warn!(
                    error,
                    "etcd is away: this proxy checks nodes by itself, and keeps the states of nodes that it knows"
                );
                self.host.changed(Some(error));
            }
            _ => {}
        }
    }
}

fn log_prober(pool: &str, prober: Prober, is_first: bool) {
    match prober {
        Prober::Own => tracing::info!(pool, "this proxy checks the nodes for the fleet"),
        Prober::Leader => tracing::info!(pool, "the leader of the fleet checks the nodes"),
        // Nothing is wrong yet.
        Prober::Local(Why::Late) if is_first => {}
        Prober::Local(why) => tracing::warn!(pool, "this proxy checks the nodes for itself: {}", why.words()),
    }
}
