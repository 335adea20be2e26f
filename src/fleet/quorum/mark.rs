//! The mark of one write: it is set before the first byte, renewed while the write is under way, and ended before the
//! client has its answer.

use super::check::PATIENCE;
use super::client::{QuorumClient, now};
use super::debts;
use super::messages::WriteOrder;
use super::rules::{QuorumRules, millis};
use crate::clock::BootTime;
use crate::consistency::quorum::{Begun, Farewell, Millis, NodeSet, Op, Outcome, Slots, Writer};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Fewer than W nodes of a slot have taken the mark in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MarkLost;

/// The mark has ceased to protect the write: its connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lapsed;

/// The end of a write at the nodes of its fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// No stored response from before it is served by any proxy.
    Done,
    /// The same, for as long as its mark is there, which outlasts every response from before it.
    Protected,
    /// Other proxies may serve a stored response from before it.
    Unmarked,
    /// It was answered, and nothing protects the answer: it must not leave.
    Lost,
}

/// A write that is under way.
pub(crate) struct Mark {
    client: Rc<QuorumClient>,
    rules: Arc<QuorumRules>,
    slots: Slots,
    state: Rc<State>,
    write: String,
    settle: Duration,
    began: Instant,
    /// It goes on without W nodes.
    goes_on: bool,
    is_unmarked: Cell<bool>,
    may_be_sent: Cell<bool>,
    is_over: Cell<bool>,
}

struct State {
    writer: RefCell<Writer>,
    told: Notify,
}

impl Mark {
    /// Marks the slots of a write. With `goes_on` it is made without W nodes, too; then it is unmarked.
    ///
    /// # Errors
    /// Fewer than W nodes have taken the mark in time.
    pub(crate) async fn begin(
        client: &Rc<QuorumClient>,
        rules: &Arc<QuorumRules>,
        slots: Slots,
        (settle, goes_on): (Duration, bool),
    ) -> Result<Mark, MarkLost> {
        let began = Instant::now();
        let writer = Writer::begin(rules.writes(&slots), rules.lease(), now());
        let metrics = &client.metrics;
        metrics.consistency_marked_slots.add(slots.len().cast_signed() as i64);
        let mark = Mark {
            client: Rc::clone(client),
            rules: Arc::clone(rules),
            slots,
            state: Rc::new(State { writer: RefCell::new(writer), told: Notify::new() }),
            write: client.name(),
            settle,
            began,
            goes_on,
            is_unmarked: Cell::new(false),
            may_be_sent: Cell::new(false),
            is_over: Cell::new(false),
        };
        mark.send_marks(Op::Begin, 0);
        let deadline = began + PATIENCE;
        loop {
            let time = now();
            let is_registered = rules.is_registered(client.registered(time, rules.lease()));
            let begun = mark.state.writer.borrow().begun(time);
            match begun {
                Begun::Marked if is_registered => return Ok(mark),
                Begun::Lost => break,
                Begun::Marked | Begun::Waiting => {}
            }
            if tokio::time::timeout_at(deadline.into(), mark.state.told.notified()).await.is_err() {
                break;
            }
        }
        if !goes_on {
            // Dropped, it takes off what nodes have taken.
            return Err(MarkLost);
        }
        mark.is_unmarked.set(true);
        Ok(mark)
    }

    /// Returns the time from which nothing of it is sent that was not before; `None` where it is unmarked.
    pub(crate) fn send_by(&self) -> Option<BootTime> {
        let left = self.state.writer.borrow().send_by().saturating_sub(now());
        (!self.is_unmarked.get() && !self.goes_on).then(|| BootTime::now() + Duration::from_millis(left))
    }

    /// Returns whether it protects nothing any more.
    pub(crate) fn has_lapsed(&self) -> bool {
        !self.goes_on && self.state.writer.borrow().has_lapsed(now())
    }

    /// Returns a test for each piece of the write: whether it must not be sent any more.
    pub(crate) fn lapse(&self) -> Rc<dyn Fn() -> bool> {
        let (state, goes_on) = (Rc::clone(&self.state), self.goes_on);
        Rc::new(move || !goes_on && state.writer.borrow().has_lapsed(now()))
    }

    fn send_marks(&self, op: Op, round: u32) {
        let state = Rc::clone(&self.state);
        let done: Rc<dyn Fn(u8)> = Rc::new(move |node| {
            state.writer.borrow_mut().marked(round, node);
            state.told.notify_one();
        });
        let order = self.client.order(&self.rules, flags(op), self.write.clone(), self.rules.life());
        let nodes = self.state.writer.borrow().nodes();
        self.client.send(&self.rules, (order, &self.slots), nodes, &done);
    }

    /// Does the work of the write, and renews the mark meanwhile.
    ///
    /// # Errors
    /// The mark has ceased to protect it; the work is dropped. A write that goes on without W nodes is unmarked instead.
    pub(crate) async fn protect<T>(&self, work: impl Future<Output = T>) -> Result<T, Lapsed> {
        let mut work = pin!(work);
        self.may_be_sent.set(true);
        loop {
            let time = now();
            if let Some(round) = self.renewal(time) {
                self.send_marks(Op::Renew, round);
            }
            let next = {
                let writer = self.state.writer.borrow();
                let lapse = if self.is_unmarked.get() { Millis::MAX } else { writer.lapses_at() };
                writer.renews_at().min(lapse).saturating_sub(time).max(1)
            };
            // Before each poll of the work, for the process may have been stopped meanwhile.
            let guarded = poll_fn(|cx| match self.must_end() {
                true => Poll::Ready(Err(Lapsed)),
                false => work.as_mut().poll(cx).map(Ok),
            });
            tokio::select! {
                biased;
                done = guarded => return done,
                () = tokio::time::sleep(Duration::from_millis(next)) => {}
            }
        }
    }

    fn renewal(&self, time: Millis) -> Option<u32> {
        self.state.writer.borrow_mut().renew(time)
    }

    /// Returns whether the write must end. One that goes on is unmarked from then on.
    fn must_end(&self) -> bool {
        let has_lapsed = !self.is_unmarked.get() && self.state.writer.borrow().has_lapsed(now());
        if has_lapsed && self.goes_on {
            self.is_unmarked.set(true);
            return false;
        }
        has_lapsed
    }

    /// Ends the write. Returns whether its client may have the answer, and what it is worth.
    pub(crate) async fn end(self, outcome: Outcome) -> Ending {
        self.finish(outcome);
        let deadline = Instant::now() + self.rules.settings.lease + PATIENCE;
        loop {
            let farewell = self.state.writer.borrow().farewell(now());
            match farewell {
                Farewell::Ended if self.is_unmarked.get() => return Ending::Unmarked,
                Farewell::Ended => return Ending::Done,
                Farewell::Protected if !self.is_unmarked.get() => {
                    tokio::task::spawn_local(self.go_on(outcome));
                    return Ending::Protected;
                }
                Farewell::Protected | Farewell::Wait => {}
            }
            let patience = Instant::now() + PATIENCE;
            let is_late = tokio::time::timeout_at(patience.into(), self.state.told.notified()).await.is_err();
            if is_late && self.is_unmarked.get() {
                self.owe(outcome);
                return Ending::Unmarked;
            }
            if Instant::now() >= deadline {
                return Ending::Lost;
            }
            if is_late {
                self.send_again(outcome);
            }
        }
    }

    /// Ends the write at the nodes that come back while its mark is still there.
    async fn go_on(self, outcome: Outcome) {
        let deadline = Instant::now() + Duration::from_millis(self.rules.life());
        while Instant::now() < deadline && self.state.writer.borrow().farewell(now()) != Farewell::Ended {
            tokio::time::sleep(PATIENCE).await;
            self.send_again(outcome);
        }
    }

    /// Has the slots of an unmarked write stamped once the quorum is back, and again once it can have no effect any more.
    fn owe(&self, outcome: Outcome) {
        let mut debts = self.client.debts.borrow_mut();
        if outcome != Outcome::NotSent {
            debts.stamps.extend(self.slots.iter().copied());
        }
        if outcome == Outcome::Unknown {
            let due = Instant::now() + self.linger();
            debts.later.extend(self.slots.iter().map(|slot| (*slot, due)));
        }
    }

    /// Sends the last operation.
    fn finish(&self, outcome: Outcome) {
        self.state.writer.borrow_mut().finish(outcome, now());
        self.send_again(outcome);
        self.close();
    }

    /// Notes that the write has ended.
    fn close(&self) {
        self.is_over.set(true);
        let metrics = &self.client.metrics;
        metrics.consistency_marked_slots.sub(self.slots.len().cast_signed() as i64);
        metrics.consistency_marked_seconds.inc_by(self.began.elapsed().as_secs_f64() * self.slots.len() as f64);
    }

    /// Returns the time for which the mark of an unknown outcome stays: pieces of a body may go out for a lease, and the
    /// node may carry the request out for `settle` after its connection has broken.
    fn linger(&self) -> Duration {
        self.rules.settings.lease + self.settle
    }

    fn last_order(&self, outcome: Outcome) -> WriteOrder {
        self.client.order(&self.rules, flags(Op::of(outcome)), self.write.clone(), millis(self.linger()))
    }

    fn send_again(&self, outcome: Outcome) {
        let state = Rc::clone(&self.state);
        let done: Rc<dyn Fn(u8)> = Rc::new(move |node| {
            state.writer.borrow_mut().ended(node);
            state.told.notify_one();
        });
        let order = self.last_order(outcome);
        let nodes: NodeSet = self.state.writer.borrow().nodes();
        self.client.send(&self.rules, (order, &self.slots), nodes, &done);
    }
}

/// Returns the flags by which the script of writes knows an operation.
fn flags(op: Op) -> &'static str {
    match op {
        Op::Begin => "smd",
        Op::Renew => "m",
        Op::End => "su",
        Op::Linger => "sm",
        Op::Unmark => "u",
    }
}

impl Drop for Mark {
    /// Ends a write whose client has gone, or that was never sent. At the end of the thread the mark ends by itself.
    fn drop(&mut self) {
        if self.is_over.get() {
            return;
        }
        let outcome = if self.may_be_sent.get() { Outcome::Unknown } else { Outcome::NotSent };
        self.close();
        if self.is_unmarked.get() {
            self.owe(outcome);
        }
        let order = self.last_order(outcome);
        let (rules, slots) = (Arc::clone(&self.rules), self.slots.clone());
        self.client.debts.borrow_mut().end(debts::Ending { rules, order, slots });
        self.client.owed.notify_one();
    }
}
