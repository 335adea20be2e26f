//! The thread of the bus: one runtime, which publishes to all nodes, reads from all, and hands what arrives to the
//! listener.

use super::bus::{Bus, Outgoing, QUEUE, Shared};
use super::event::{Event, HeardRange, Heartbeat, MAX_ITEMS, ProcessId};
use super::gaps::{Finding, Gaps, Moment};
use super::node;
use super::queue::{Encoded, Entry as TableEntry, Queue};
use super::stream::{Entry, Keys};
use super::window::Window;
use super::{Heard, Listener};
use crate::clock;
use crate::config::Quorum;
use crate::control::BusNodeStatus;
use crate::io::redis::Login;
use crate::ring::{Member, Ring, Seed};
use crate::telemetry::metrics::Metrics;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::MissedTickBehavior;

/// The interval of looks at silence, members and the queue.
const TICK: Duration = Duration::from_millis(250);
/// A node that has not been read for this long is silent.
const SILENT_AFTER: Moment = 1_500;
/// The time after which members with different configurations are worth a warning.
pub(super) const ROLLOUT: Duration = Duration::from_secs(600);
/// The longest wait for the last events at the end.
const FAREWELL: Duration = Duration::from_millis(250);

/// The place of the bus, and the secrets to reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BusSettings {
    pub(crate) fleet: String,
    pub(crate) lease: Duration,
    pub(crate) quorum: Quorum,
    /// The identity and the address of each node.
    pub(crate) nodes: Vec<(String, String)>,
    pub(crate) login: Login,
}

impl BusSettings {
    /// Returns whether a running process cannot follow a change to other settings: all but addresses and the login.
    pub(crate) fn is_another(&self, other: &BusSettings) -> bool {
        let ids = |settings: &BusSettings| settings.nodes.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>();
        (&self.fleet, self.lease, self.quorum) != (&other.fleet, other.lease, other.quorum) || ids(self) != ids(other)
    }

    /// Returns the nodes that hold the stream.
    fn chosen(&self) -> Vec<(String, String)> {
        if self.nodes.len() <= self.quorum.replicas {
            return self.nodes.clone();
        }
        let members: Vec<Member<'_>> = self.nodes.iter().map(|(id, _)| Member { id, weight: 1 }).collect();
        let ring = Ring::build(Seed::new("ringway fleet"), 256, &members);
        ring.walk(ring.hash_key(b"bus")).take(self.quorum.replicas).map(|at| self.nodes[at].clone()).collect()
    }
}

/// The control of the thread's settings.
#[derive(Clone)]
pub(crate) struct BusControl(Arc<watch::Sender<BusSettings>>);

impl BusControl {
    /// Lets the bus go on at other addresses, or with another login.
    pub(crate) fn reconfigure(&self, settings: &BusSettings) {
        self.0.send_if_modified(|now| {
            let differs = now != settings;
            settings.clone_into(now);
            differs
        });
    }

    /// Returns whether other settings need a restart.
    pub(crate) fn is_another(&self, settings: &BusSettings) -> bool {
        self.0.borrow().is_another(settings)
    }
}

/// Starts the thread of the bus, which connects by itself.
///
/// # Errors
/// No thread can be started.
pub(crate) fn start(
    settings: &BusSettings,
    process: ProcessId,
    listener: Arc<dyn Listener>,
    metrics: &Arc<Metrics>,
) -> io::Result<(Bus, BusControl)> {
    let shared = Arc::new(Shared::new(settings.fleet.clone(), process, settings.quorum, Arc::clone(metrics)));
    let (queue, orders) = mpsc::channel(QUEUE);
    let (control, settings) = watch::channel(settings.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let here = Arc::clone(&shared);
    std::thread::Builder::new().name("bus".to_owned()).spawn(move || {
        let tasks = tokio::task::LocalSet::new();
        tasks.block_on(&runtime, async move { Core::new(here, listener, settings).run(orders).await });
    })?;
    Ok((Bus { shared, queue }, BusControl(Arc::new(control))))
}

/// The state of the thread.
pub(super) struct Core {
    pub(super) shared: Arc<Shared>,
    listener: Arc<dyn Listener>,
    pub(super) settings: watch::Receiver<BusSettings>,
    pub(super) keys: Keys,
    pub(super) nodes: Vec<NodeState>,
    gaps: RefCell<Gaps>,
    window: RefCell<Window>,
    /// The number and the moment of the last heartbeat, until it comes back.
    beat: Cell<Option<(u64, Moment)>>,
    /// The moment of the last tick.
    ticked: Cell<Moment>,
    has_left: Cell<bool>,
    has_warned: Cell<bool>,
}

/// A node that holds the stream.
pub(super) struct NodeState {
    pub(super) id: String,
    pub(super) queue: RefCell<Queue>,
    /// Notified when events wait.
    pub(super) filled: Notify,
    /// The run of the server that the connection reaches.
    pub(super) run: RefCell<Option<String>>,
    /// The connection that publishes works, and the one that reads.
    pub(super) works: Cell<(bool, bool)>,
}

impl Core {
    fn new(shared: Arc<Shared>, listener: Arc<dyn Listener>, settings: watch::Receiver<BusSettings>) -> Rc<Core> {
        let (keys, chosen, quorum) = {
            let settings = settings.borrow();
            (Keys::new(&settings.fleet), settings.chosen(), settings.quorum)
        };
        let node = |(id, _): &(String, String)| NodeState {
            id: id.clone(),
            queue: RefCell::default(),
            filled: Notify::new(),
            run: RefCell::default(),
            works: Cell::default(),
        };
        let status = |(id, address): &(String, String)| {
            let (id, address) = (id.clone(), address.clone());
            BusNodeStatus { id, address, up: false, error: None, waiting: 0 }
        };
        {
            let mut board = shared.board.lock();
            board.nodes = chosen.iter().map(status).collect();
            board.facts = vec![None; chosen.len()];
        }
        let gaps = Gaps::new(quorum.replicas, quorum.write, quorum.read, shared.now());
        Rc::new(Core {
            nodes: chosen.iter().map(node).collect(),
            shared,
            listener,
            settings,
            keys,
            gaps: RefCell::new(gaps),
            window: RefCell::default(),
            beat: Cell::default(),
            ticked: Cell::default(),
            has_left: Cell::default(),
            has_warned: Cell::default(),
        })
    }

    async fn run(self: Rc<Core>, mut orders: mpsc::Receiver<Outgoing>) {
        for at in 0..self.nodes.len() {
            tokio::task::spawn_local(node::publish(Rc::clone(&self), at));
            tokio::task::spawn_local(node::read(Rc::clone(&self), at));
        }
        let lease = self.settings.borrow().lease;
        let mut beats = tokio::time::interval(lease / 3);
        let mut ticks = tokio::time::interval(TICK);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.carry_out(order),
                    // The process ends.
                    None => return,
                },
                _ = beats.tick() => self.beat(lease),
                _ = ticks.tick() => self.tick(),
            }
            if self.shared.has_dropped.swap(false, Ordering::AcqRel) {
                self.publish(self.shared.number(), &Event::Missed);
            }
        }
    }

    fn carry_out(self: &Rc<Core>, order: Outgoing) {
        match order {
            Outgoing::Event { number, event } => self.publish(number, &event),
            Outgoing::Leave(done) => {
                self.has_left.set(true);
                self.publish(self.shared.number(), &Event::Leave);
                let core = Rc::clone(self);
                tokio::task::spawn_local(async move {
                    let deadline = Instant::now() + FAREWELL;
                    let is_sent = |node: &&NodeState| node.queue.borrow().len() == 0;
                    while core.nodes.iter().filter(is_sent).count() < core.shared.quorum.write
                        && Instant::now() < deadline
                    {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                    // The caller may have gone.
                    let _ = done.send(());
                });
            }
        }
    }

    /// Puts an event into the queue of every node.
    fn publish(&self, number: u64, event: &Event) {
        let Some(bytes) = event.encode(self.shared.process, number) else {
            self.shared.count(event.kind(), "dropped");
            tracing::error!(kind = event.kind(), "an event exceeds its bound; the other proxies validate instead");
            return self.publish(self.shared.number(), &Event::Missed);
        };
        self.shared.count(event.kind(), "published");
        let entry = match event {
            Event::Heartbeat(_) => TableEntry::IsBeat,
            Event::Leave => TableEntry::Gone(self.shared.process),
            Event::Forget(process) => TableEntry::Gone(*process),
            _ => TableEntry::Stays,
        };
        for node in &self.nodes {
            let mut queue = node.queue.borrow_mut();
            if queue.push(Encoded { number, bytes: bytes.clone(), entry }) {
                self.shared.count(event.kind(), "dropped");
                let number = self.shared.number();
                if let Some(bytes) = Event::Missed.encode(self.shared.process, number) {
                    queue.push(Encoded { number, bytes, entry: TableEntry::Stays });
                }
            }
            drop(queue);
            node.filled.notify_one();
        }
    }

    fn beat(&self, lease: Duration) {
        if self.has_left.get() {
            return;
        }
        let digests = self.listener.digests();
        let millis = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
        let mut board = self.shared.board.lock();
        let beat = Heartbeat {
            name: name(),
            address: digests.address,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config: digests.config,
            rings: digests.rings,
            clock: u64::try_from(clock::since_1970().as_millis()).unwrap_or(u64::MAX),
            lag: u32::try_from(board.lag).unwrap_or(u32::MAX),
            lease: millis(lease),
        };
        board.own = beat.clone();
        drop(board);
        let number = self.shared.number();
        // One that does not come back counts from its sending.
        if self.beat.get().is_none() {
            self.beat.set(Some((number, self.shared.now())));
        }
        self.publish(number, &Event::Heartbeat(Box::new(beat)));
    }

    fn tick(&self) {
        let now = self.shared.now();
        // After a pause of this process, what has arrived meanwhile is read first.
        let was_away = now.saturating_sub(self.ticked.replace(now)) > 3 * TICK.as_millis() as Moment;
        for at in (0..self.nodes.len()).filter(|_| !was_away) {
            let is_late = now.saturating_sub(self.gaps.borrow().read(at)) > SILENT_AFTER;
            if is_late && !self.gaps.borrow().is_silent(at) {
                tracing::warn!(node = self.nodes[at].id, "a node of the bus is silent");
                self.shared.metrics.fleet_gaps.inc();
                self.note(at, Finding::Silent(now));
            }
        }
        self.shared.members.lock().tend(now);
        self.look_at_skew();
        let mut board = self.shared.board.lock();
        if let Some((_, sent)) = self.beat.get() {
            board.lag = board.lag.max(now.saturating_sub(sent));
        }
        for (node, status) in self.nodes.iter().zip(&mut board.nodes) {
            status.waiting = node.queue.borrow().len();
        }
    }

    /// Warns once where members have had different configurations for longer than a rollout takes.
    fn look_at_skew(&self) {
        let now = self.shared.now();
        let own = self.shared.board.lock().own.config;
        let is_skewed = self.shared.members.lock().iter().any(|(_, it)| !it.is_missed(now) && it.beat.config != own);
        let mut board = self.shared.board.lock();
        board.skewed_since = if is_skewed { board.skewed_since.or_else(|| Some(Instant::now())) } else { None };
        let is_long = board.skewed_since.is_some_and(|since| since.elapsed() > ROLLOUT);
        if is_long && !self.has_warned.replace(is_long) {
            tracing::warn!(
                "the proxies of the fleet have had different configurations for {ROLLOUT:?}: see `ringway fleet`"
            );
        }
        self.has_warned.set(is_long);
    }

    /// Notes a finding of a node, and what follows from it.
    pub(super) fn note(&self, at: usize, finding: Finding) {
        let is_doubt = self.gaps.borrow_mut().note(at, finding);
        if is_doubt {
            self.shared.board.lock().doubts += 1;
            self.listener.missed();
        }
        let works = !self.gaps.borrow().is_open();
        if self.shared.works.send_replace(works) != works {
            match works {
                true => tracing::info!("the bus works: purges reach the fleet"),
                false => {
                    tracing::error!("the bus does not work: stored responses are validated before they are served")
                }
            }
            self.shared.look_again();
        }
    }

    /// Notes that entries of a node may be lost.
    pub(super) fn lost(&self, at: usize, reason: &str) {
        tracing::warn!(node = self.nodes[at].id, reason, "a node of the bus may have lost events");
        self.shared.metrics.fleet_gaps.inc();
        self.note(at, Finding::Lost(self.shared.now()));
    }

    /// Notes what a connection of a node has come to.
    pub(super) fn state(&self, at: usize, works: (Option<bool>, Option<bool>), error: Option<&str>) {
        let node = &self.nodes[at];
        let before = node.works.get();
        let after = (works.0.unwrap_or(before.0), works.1.unwrap_or(before.1));
        node.works.set(after);
        let (was_up, is_up) = (before == (true, true), after == (true, true));
        let mut board = self.shared.board.lock();
        let status = &mut board.nodes[at];
        let is_first = status.error.is_none();
        status.up = is_up;
        status.error = if is_up { None } else { error.map(str::to_owned).or(status.error.take()) };
        match (was_up, is_up) {
            (false, true) => tracing::info!(node = node.id, "a node of the bus works"),
            (_, false) if is_first && error.is_some() => {
                tracing::error!(node = node.id, error, "a node of the bus cannot be used");
            }
            _ => {}
        }
    }

    /// Takes the entries of a reply of a node. Returns whether any of them were new to this process.
    pub(super) fn take(&self, entries: &[Entry]) -> bool {
        let (mut batch, mut acknowledged, mut has_missed, mut is_new) = (Vec::new(), Vec::new(), false, false);
        for entry in entries {
            let Ok((from, number, event)) = Event::decode(&entry.event) else {
                // Its meaning is unknown, so that it may have been a purge.
                self.shared.count("malformed", "heard");
                has_missed = true;
                continue;
            };
            if from == self.shared.process {
                self.came_back(number);
                continue;
            }
            if !self.window.borrow_mut().is_new(from, number) {
                continue;
            }
            is_new = true;
            self.shared.count(event.kind(), "heard");
            if self.shared.members.lock().note(from, &event, self.shared.now()) {
                self.shared.look_again();
            }
            match event {
                Event::Purge(_) => {
                    add(&mut acknowledged, from, number);
                    batch.push(Heard { from, number, event });
                }
                Event::Write { .. } | Event::Fills { .. } => batch.push(Heard { from, number, event }),
                Event::Heard(ranges) => self.shared.heard(from, &ranges),
                Event::Missed => has_missed = true,
                Event::Heartbeat(_) | Event::Forget(_) | Event::Leave => {}
            }
        }
        if !batch.is_empty() {
            self.listener.apply(&batch);
        }
        if has_missed {
            self.shared.board.lock().doubts += 1;
            self.listener.missed();
        }
        for ranges in acknowledged.chunks(MAX_ITEMS) {
            self.publish(self.shared.number(), &Event::Heard(ranges.to_vec()));
        }
        is_new
    }

    /// Notes that an event of this process has come back.
    fn came_back(&self, number: u64) {
        if let Some((beat, sent)) = self.beat.get()
            && beat <= number
        {
            self.beat.set(None);
            self.shared.board.lock().lag = self.shared.now().saturating_sub(sent);
        }
    }
}

/// Adds an event to ranges.
fn add(ranges: &mut Vec<HeardRange>, process: ProcessId, number: u64) {
    match ranges.last_mut() {
        Some(range) if range.process == process && range.last.checked_add(1) == Some(number) => range.last = number,
        _ => ranges.push(HeardRange { process, first: number, last: number }),
    }
}

/// Returns the name of this process for operators: its host and process id.
fn name() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}/{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_are_ranges() {
        let mut ranges = Vec::new();
        for (process, number) in [(1, 5), (1, 6), (2, 7), (1, 7), (1, 9)] {
            add(&mut ranges, ProcessId(process), number);
        }
        let found: Vec<(u64, u64, u64)> = ranges.iter().map(|it| (it.process.0, it.first, it.last)).collect();
        assert_eq!(found, [(1, 5, 6), (2, 7, 7), (1, 7, 7), (1, 9, 9)]);
    }

    #[test]
    fn more_nodes_than_replicas_share_by_the_ring() {
        let nodes = |order: &[u8]| order.iter().map(|id| (format!("r{id}"), format!("10.0.0.{id}:1"))).collect();
        let settings = |order: &[u8]| BusSettings {
            fleet: "f".to_owned(),
            lease: Duration::from_secs(10),
            quorum: Quorum { replicas: 3, write: 2, read: 2 },
            nodes: nodes(order),
            login: Login::default(),
        };
        let chosen = |order: &[u8]| -> Vec<String> { settings(order).chosen().into_iter().map(|(id, _)| id).collect() };
        assert_eq!(chosen(&[1, 2, 3, 4, 5]).len(), 3);
        assert_eq!(chosen(&[1, 2, 3, 4, 5]), chosen(&[5, 4, 3, 2, 1]), "in any order of the file");
        let mut moved = settings(&[1, 2, 3]);
        moved.nodes[0].1 = "10.9.9.9:1".to_owned();
        assert!(!moved.is_another(&settings(&[1, 2, 3])));
        assert!(settings(&[1, 2, 4]).is_another(&settings(&[1, 2, 3])));
    }
}
