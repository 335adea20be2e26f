//! The handle of the bus, for workers and the admin API.
//!
//! `publish` never waits: the event goes into a bounded queue of the thread of the bus. An event that cannot be
//! published, because that queue or the one of a node is full, is replaced by [`Event::Missed`]: the other members then
//! validate what they have stored, so that no event is lost silently.

use super::event::{Event, HeardRange, ProcessId, Purge};
use super::members::Members;
use crate::config::Quorum;
use crate::control::{BusNodeStatus, HeardBy};
use crate::telemetry::metrics::Metrics;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};

/// The most events that wait for the thread of the bus.
pub(super) const QUEUE: usize = 8192;
/// The most purges that wait for members at the same time.
const MAX_WAITING: usize = 4096;

/// The bus of a fleet: cheap to clone, for any thread.
#[derive(Clone)]
pub(crate) struct Bus {
    pub(super) shared: Arc<Shared>,
    pub(super) queue: mpsc::Sender<Outgoing>,
}

/// An order to the thread of the bus.
pub(super) enum Outgoing {
    Event {
        number: u64,
        event: Event,
    },
    /// Says good-bye, and answers once it is published.
    Leave(std::sync::mpsc::SyncSender<()>),
}

/// The state that the handle and the thread of the bus share.
pub(super) struct Shared {
    pub(super) fleet: String,
    pub(super) process: ProcessId,
    pub(super) quorum: Quorum,
    pub(super) metrics: Arc<Metrics>,
    /// The number of the next event.
    next: AtomicU64,
    /// The queue of the thread was full.
    pub(super) has_dropped: AtomicBool,
    pub(super) members: Mutex<Members>,
    waiting: Mutex<HashMap<u64, Waiting>>,
    pub(super) board: Mutex<Board>,
    pub(super) started: Instant,
    /// The bus works: no gap is open.
    pub(super) works: watch::Sender<bool>,
}

/// The state of the bus, for operators.
#[derive(Clone, Debug, Default)]
pub(super) struct Board {
    pub(super) nodes: Vec<BusNodeStatus>,
    /// The version and the persistence of each node, in words.
    pub(super) facts: Vec<Option<String>>,
    /// The moment of the last complete reading of each node.
    pub(super) read: Vec<u64>,
    pub(super) doubts: u64,
    /// The time that an event of this process takes to come back, in milliseconds.
    pub(super) lag: u64,
    /// The heartbeat of this process.
    pub(super) own: super::event::Heartbeat,
    /// Since when members have differed in their configuration.
    pub(super) skewed_since: Option<Instant>,
}

/// A purge that waits for members.
struct Waiting {
    missing: BTreeSet<ProcessId>,
    nodes: BTreeSet<usize>,
    changed: Arc<Notify>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bus({})", self.shared.process)
    }
}

impl Bus {
    /// Returns the identity of this process.
    pub(crate) fn process(&self) -> ProcessId {
        self.shared.process
    }

    /// Publishes an event. Never waits: where the queue is full, all members are told that they have missed something.
    pub(crate) fn publish(&self, event: Event) {
        self.send(self.shared.number(), event);
    }

    fn send(&self, number: u64, event: Event) {
        let kind = event.kind();
        if self.queue.try_send(Outgoing::Event { number, event }).is_err() {
            self.shared.has_dropped.store(true, Ordering::Release);
            self.shared.count(kind, "dropped");
        }
    }

    /// Publishes a purge that this process has applied, and waits for so long until all members have.
    pub(crate) async fn purge(&self, purge: Purge, patience: Duration) -> HeardBy {
        let number = self.shared.number();
        let (known, changed) = self.shared.wait_for(number);
        let guard = Forget { shared: &self.shared, number };
        self.send(number, Event::Purge(purge));
        let all = async {
            loop {
                let changed = changed.notified();
                if self.shared.heard_by(number, &known).complete {
                    return;
                }
                changed.await;
            }
        };
        // Not all have: the answer tells which.
        let _ = tokio::time::timeout(patience, all).await;
        let heard_by = self.shared.heard_by(number, &known);
        drop(guard);
        heard_by
    }

    /// Removes a member that is gone for good, on all members. Returns whether this process knew it.
    pub(crate) fn forget(&self, process: ProcessId) -> bool {
        let was_known = self.shared.members.lock().note(self.process(), &Event::Forget(process), self.shared.now());
        self.publish(Event::Forget(process));
        was_known
    }

    /// Says good-bye, so that no member waits for this process. Blocks for so long at most.
    pub(crate) fn leave(&self, patience: Duration) {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        if self.queue.try_send(Outgoing::Leave(sender)).is_ok() {
            // Without an answer the others will miss it after a lease.
            let _ = receiver.recv_timeout(patience);
        }
    }

    /// Returns once the bus works, or after so long.
    pub(crate) async fn ready(&self, patience: Duration) {
        let mut works = self.shared.works.subscribe();
        // The sender lives as long as this.
        let _ = tokio::time::timeout(patience, works.wait_for(|works| *works)).await;
    }

    /// Returns the number of members that are alive, this process among them.
    pub(crate) fn members(&self) -> usize {
        let now = self.shared.now();
        1 + self.shared.members.lock().iter().filter(|(_, member)| !member.is_missed(now)).count()
    }

    /// Returns the time that an event takes to come back to this process.
    pub(crate) fn lag(&self) -> Duration {
        Duration::from_millis(self.shared.board.lock().lag)
    }

    /// Returns the nodes of the bus, and whether each works.
    pub(crate) fn nodes(&self) -> Vec<(String, bool)> {
        self.shared.board.lock().nodes.iter().map(|node| (node.id.clone(), node.up)).collect()
    }
}

/// Ends the wait of a purge.
struct Forget<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.waiting.lock().remove(&self.number);
    }
}

impl Shared {
    pub(super) fn new(fleet: String, process: ProcessId, quorum: Quorum, metrics: Arc<Metrics>) -> Shared {
        Shared {
            fleet,
            process,
            quorum,
            metrics,
            next: AtomicU64::new(1),
            has_dropped: AtomicBool::new(false),
            members: Mutex::default(),
            waiting: Mutex::default(),
            board: Mutex::default(),
            started: Instant::now(),
            works: watch::Sender::new(false),
        }
    }

    /// Returns the number of a new event.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns the present moment in milliseconds. The start of the process is not 0, so that a member can have been
    /// heard before it.
    pub(super) fn now(&self) -> u64 {
        2 * super::members::REMEMBERED + u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX / 2)
    }

    pub(super) fn count(&self, kind: &str, direction: &str) {
        self.metrics.fleet_events.with_label_values(&[kind, direction]).inc();
    }

    /// Begins to wait for a purge. Returns the members that are known.
    fn wait_for(&self, number: u64) -> (BTreeSet<ProcessId>, Arc<Notify>) {
        let known: BTreeSet<ProcessId> = self.members.lock().iter().map(|(process, _)| process).collect();
        let changed = Arc::new(Notify::new());
        let mut waiting = self.waiting.lock();
        if waiting.len() < MAX_WAITING {
            let missing = known.clone();
            waiting.insert(number, Waiting { missing, nodes: BTreeSet::new(), changed: Arc::clone(&changed) });
        }
        (known, changed)
    }

    /// Returns the members that have applied a purge, of those that were known at its time and have not left since.
    fn heard_by(&self, number: u64, known: &BTreeSet<ProcessId>) -> HeardBy {
        let (missing, published) = match self.waiting.lock().get(&number) {
            Some(waiting) => (waiting.missing.clone(), waiting.nodes.len() >= self.quorum.write),
            None => (known.clone(), false),
        };
        let members = self.members.lock();
        let missing = missing.iter().filter_map(|process| members.iter().find(|(known, _)| known == process));
        let missing: Vec<String> =
            missing.map(|(process, member)| format!("{} ({process})", member.beat.name)).collect();
        let of = 1 + known.iter().filter(|process| members.contains(**process)).count();
        let complete = missing.is_empty() && published && *self.works.borrow();
        HeardBy { members: of - missing.len(), of, missing, complete, published }
    }

    /// Notes that a node has events of this process.
    pub(super) fn published(&self, node: usize, numbers: impl Iterator<Item = u64>) {
        let mut waiting = self.waiting.lock();
        if waiting.is_empty() {
            return;
        }
        for number in numbers {
            if let Some(waiting) = waiting.get_mut(&number) {
                waiting.nodes.insert(node);
                waiting.changed.notify_one();
            }
        }
    }

    /// Notes that a member has applied purges.
    pub(super) fn heard(&self, from: ProcessId, ranges: &[HeardRange]) {
        let mut waiting = self.waiting.lock();
        let own = |number: &u64| {
            let mut ranges = ranges.iter().filter(|range| range.process == self.process);
            ranges.any(|range| (range.first..=range.last).contains(number))
        };
        for (_, waiting) in waiting.iter_mut().filter(|(number, _)| own(number)) {
            waiting.missing.remove(&from);
            waiting.changed.notify_one();
        }
    }

    /// Has purges that wait look again, as members have left or the bus works again.
    pub(super) fn look_again(&self) {
        self.waiting.lock().values().for_each(|waiting| waiting.changed.notify_one());
    }
}
