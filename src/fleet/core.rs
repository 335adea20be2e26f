//! The state of the thread of the bus: what it publishes, what it has heard, and what follows from both.

use super::bus::Shared;
use super::encoding::MAX_ITEMS;
use super::event::{Event, HeardRange, Heartbeat, ProcessId};
use super::gaps::{Finding, Gaps, Moment};
use super::queue::{Encoded, Entry as TableEntry, Queue};
use super::settings::BusSettings;
use super::stream::{Entry, Keys};
use super::window::Window;
use super::{Heard, Listener};
use crate::clock;
use crate::control::BusNodeStatus;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// The interval of looks at silence, members and the queue.
pub(super) const TICK: Duration = Duration::from_millis(250);
/// A node that has not been read for this long is silent.
const SILENT_AFTER: Moment = 1_500;
/// The time after which members with different configurations are worth a warning.
const ROLLOUT: Duration = Duration::from_secs(600);

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
    /// The purges that were applied and not acknowledged yet.
    acknowledged: RefCell<Vec<HeardRange>>,
    /// Notified when there are some.
    pub(super) has_heard: Notify,
    /// The moment of the last tick.
    ticked: Cell<Moment>,
    /// The last tick came late.
    came_late: Cell<bool>,
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
    /// Returns the state of a process that has read nothing.
    pub(super) fn new(
        shared: Arc<Shared>,
        listener: Arc<dyn Listener>,
        settings: watch::Receiver<BusSettings>,
    ) -> Rc<Core> {
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
            BusNodeStatus { id, address, up: false, error: None, read_seconds: 0.0, waiting: 0 }
        };
        {
            let mut board = shared.board.lock();
            board.nodes = chosen.iter().map(status).collect();
            board.facts = vec![None; chosen.len()];
            board.read = vec![shared.now(); chosen.len()];
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
            acknowledged: RefCell::default(),
            has_heard: Notify::new(),
            ticked: Cell::default(),
            came_late: Cell::default(),
            has_left: Cell::default(),
            has_warned: Cell::default(),
        })
    }

    /// Says good-bye.
    pub(super) fn leave(&self) {
        self.has_left.set(true);
        self.publish(self.shared.number(), &Event::Leave);
    }

    /// Puts an event into the queue of every node.
    pub(super) fn publish(&self, number: u64, event: &Event) {
        let Some(bytes) = event.encode(self.shared.process, number) else {
            if let Event::Heartbeat(beat) = event
                && !beat.rings.is_empty()
            {
                let short = Heartbeat { rings: Vec::new(), ..(**beat).clone() };
                return self.publish(number, &Event::Heartbeat(Box::new(short)));
            }
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
        // A node that has been away for long misses nothing that counts, where enough others take events.
        let taking = self.nodes.iter().filter(|node| !node.queue.borrow().is_half_full()).count();
        for node in &self.nodes {
            let is_full = node.queue.borrow_mut().push(Encoded { number, bytes: bytes.clone(), entry });
            if is_full && taking < self.shared.quorum.write {
                self.shared.count(event.kind(), "dropped");
                let number = self.shared.number();
                if let Some(bytes) = Event::Missed.encode(self.shared.process, number) {
                    node.queue.borrow_mut().push(Encoded { number, bytes, entry: TableEntry::Stays });
                }
            }
            node.filled.notify_one();
        }
    }

    /// Publishes a sign of life.
    pub(super) fn beat(&self, lease: Duration) {
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

    /// Looks for nodes that are silent, and keeps what operators see current.
    pub(super) fn tick(&self) {
        let now = self.shared.now();
        // After a pause of this process, what has arrived meanwhile is read first.
        // One such tick is passed over: a thread that always comes late must look, too.
        let is_late = now.saturating_sub(self.ticked.replace(now)) > 3 * TICK.as_millis() as Moment;
        let came_late = self.came_late.replace(is_late);
        let was_away = is_late && !came_late;
        for at in (0..self.nodes.len()).filter(|_| !was_away) {
            let is_silent = now.saturating_sub(self.gaps.borrow().read(at)) > SILENT_AFTER;
            if is_silent && !self.gaps.borrow().is_silent(at) {
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
        if let Finding::Read(moment) = finding {
            self.shared.board.lock().read[at] = moment;
        }
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
            self.listener.changed(works);
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
            let (from, number, event) = match Event::decode(&entry.event) {
                Ok(decoded) => decoded,
                Err(error) => {
                    // Its meaning is unknown, so that it may have been a purge.
                    self.shared.count("malformed", "heard");
                    has_missed |= error.may_matter();
                    continue;
                }
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
        if !acknowledged.is_empty() {
            self.acknowledged.borrow_mut().extend(acknowledged);
            self.has_heard.notify_one();
        }
        is_new
    }

    /// Publishes which purges this process has applied since the last time.
    pub(super) fn acknowledge(&self) {
        let acknowledged = std::mem::take(&mut *self.acknowledged.borrow_mut());
        for ranges in acknowledged.chunks(MAX_ITEMS) {
            self.publish(self.shared.number(), &Event::Heard(ranges.to_vec()));
        }
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
}
