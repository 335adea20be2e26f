//! A worker: a thread with a runtime of its own that accepts and serves, and shares no task with
//! another.

use crate::cache::Cache;
use crate::consistency::Causality;
use crate::fleet::Bus;
use crate::http::budget::Budget;
use crate::proxy::{RequestRecorder, Snapshot, WorkerContext, recover};
use crate::server::balance::{Accepted, Balance, HANDED_A_TICK, Handed, Place};
use crate::server::connection;
use crate::server::connection::address_limit::Addresses;
use crate::server::connection::context::{Context, Handshake};
use crate::server::connection::limit::{ConnectionPermit, ConnectionPermits};
use crate::server::idle_memory::IdleMemory;
use crate::server::listener::accept::{Accepting, accept};
use crate::server::listener::open::{Open, Uses};
use crate::server::listener::socket_set::{is_exhaustion, refuse_syns};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::observers::Observers;
use arc_swap::ArcSwap;
use prometheus::{IntCounter, IntGauge};
use socket2::SockRef;
use std::cell::Cell;
use std::net::{SocketAddr, TcpStream};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

/// The period at which a worker hands over its log lines and closes idle connections.
const TICK: Duration = Duration::from_millis(200);
const SWEEP_EVERY: u32 = 5;
/// The number of tasks that run between two polls of the sockets: with many ready tasks (a flood), a larger number
/// delays all other connections.
const TASKS_BETWEEN_EVENTS: u32 = 8;
/// The number of connections that are accepted before other tasks run.
const ACCEPTED_AT_ONCE: u32 = 8;
/// A pause after the kernel had no descriptors left.
const EXHAUSTED: Duration = Duration::from_millis(50);

/// The longest wait for other threads to close the sockets of a removed listener.
const LET_GO: Duration = Duration::from_secs(1);

/// The longest wait for the nodes that verify strong reads before the first connection is accepted.
const QUORUM: Duration = Duration::from_millis(500);

/// The time for the handshakes that have begun when a removed listener takes no more.
const HANDSHAKES: Duration = Duration::from_millis(50);

/// The stage of the process between serving and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::server) enum Stage {
    Serving,
    /// Not ready any more, so that load balancers stop sending; still serving.
    Leaving,
    /// No new connections; every answer closes its connection.
    Draining,
    /// The connections that are left are dropped.
    Stopped,
}

/// The state that all workers share.
#[derive(Clone)]
pub(in crate::server) struct WorkerShared {
    /// The number of workers.
    pub(in crate::server) workers: usize,
    pub(in crate::server) balance: Arc<Balance>,
    pub(in crate::server) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(in crate::server) metrics: Arc<Metrics>,
    pub(in crate::server) observers: Arc<Observers>,
    pub(in crate::server) cache: Arc<Cache>,
    pub(in crate::server) causality: Arc<Causality>,
    pub(in crate::server) bus: Option<Bus>,
    pub(in crate::server) budget: Arc<Budget>,
    pub(in crate::server) permits: Arc<ConnectionPermits>,
    pub(in crate::server) addresses: Arc<Addresses>,
    pub(in crate::server) stage: watch::Receiver<Stage>,
    /// The listeners in force; none while draining.
    pub(in crate::server) open: watch::Receiver<Vec<Open>>,
}

/// Runs a worker until it is stopped or, while draining, until it has no connection left. `handed` brings connections
/// that other workers have accepted.
pub(in crate::server) fn run(number: usize, shared: WorkerShared, handed: UnboundedReceiver<Handed>) {
    let mut runtime = Builder::new_current_thread();
    runtime.enable_io().enable_time().event_interval(TASKS_BETWEEN_EVENTS);
    let runtime = runtime.build_local(LocalOptions::default());
    match runtime {
        Ok(runtime) => runtime.block_on(Worker::new(number, shared).work(handed)),
        Err(error) => tracing::error!(%error, "a worker cannot start"),
    }
}

struct Worker {
    number: usize,
    shared: WorkerShared,
    context: Rc<WorkerContext>,
    /// The sockets that this worker accepts from.
    accepting: Vec<(Open, Rc<Context>)>,
    /// Held by every acceptor and connection.
    here: Rc<()>,
    ticks: u32,
    idle_memory: IdleMemory,
    /// The connections that may still be handed over in this tick.
    may_hand_over: Rc<Cell<u32>>,
}

impl Worker {
    fn new(number: usize, shared: WorkerShared) -> Worker {
        let recorder = RequestRecorder::new(Arc::clone(&shared.metrics), Arc::clone(&shared.observers));
        let (snapshot, cache) = (Arc::clone(&shared.snapshot), Arc::clone(&shared.cache));
        let fleet = (Arc::clone(&shared.causality), shared.bus.clone());
        let context = Rc::new(WorkerContext::new(snapshot, cache, fleet, Arc::clone(&shared.budget), recorder));
        Worker {
            number,
            shared,
            context,
            accepting: Vec::new(),
            here: Rc::default(),
            ticks: 0,
            idle_memory: IdleMemory::default(),
            may_hand_over: Rc::default(),
        }
    }

    async fn work(mut self, mut handed: UnboundedReceiver<Handed>) {
        self.follow_snapshot();
        if let Some(quorum) = self.context.follow_quorum() {
            quorum.ready(QUORUM).await;
        }
        self.follow_listeners();
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stage = self.shared.stage.clone();
        let mut open = self.shared.open.clone();
        let mut draining = false;
        loop {
            tokio::select! {
                changed = stage.changed() => {
                    let now = *stage.borrow_and_update();
                    if changed.is_err() || now == Stage::Stopped {
                        break;
                    }
                    if now == Stage::Draining {
                        draining = true;
                        self.accepting.drain(..).for_each(|(_, context)| context.leave());
                        self.context.leave();
                    }
                }
                Ok(()) = open.changed(), if !draining => {
                    open.mark_unchanged();
                    self.follow_snapshot();
                    self.follow_listeners();
                }
                Some(handed) = handed.recv() => self.take_over(handed),
                _ = interval.tick() => self.tick(),
            }
            if draining && Rc::strong_count(&self.here) == 1 && self.context.is_quiet() {
                // None is on its way here any more.
                handed.close();
                match handed.try_recv() {
                    Ok(handed) => self.take_over(handed),
                    Err(_) => break,
                }
            }
        }
        self.context.recorder.flush();
    }

    fn tick(&mut self) {
        self.ticks = self.ticks.wrapping_add(1);
        self.may_hand_over.set(HANDED_A_TICK);
        self.follow_snapshot();
        self.context.recorder.flush();
        recover(&self.context);
        if self.ticks.is_multiple_of(SWEEP_EVERY) {
            let snapshot = self.context.snapshot();
            if self.number == 0 {
                snapshot.routes.iter().filter_map(|route| route.rate_limit.as_ref()).for_each(|limit| limit.tidy());
            }
            let nodes = snapshot.pools.iter().flat_map(|pool| pool.nodes.iter().map(move |node| (node, pool)));
            let mut idle: Vec<(u64, Duration)> =
                nodes.map(|(node, pool)| (node.runtime.serial, pool.connections.idle_timeout)).collect();
            idle.sort_unstable();
            let found = |serial| idle.binary_search_by_key(&serial, |(serial, _)| *serial).ok();
            self.idle_memory.look(self.shared.cache.weight());
            self.context.connections.sweep(Instant::now(), |serial| found(serial).map(|index| idle[index].1));
        }
    }

    /// Uses the access log of the current configuration.
    fn follow_snapshot(&self) {
        self.context.follow_quorum();
        self.context.recorder.log_to(self.context.snapshot().log.as_ref());
    }

    /// Accepts from new listeners, and drains removed ones.
    fn follow_listeners(&mut self) {
        let wanted: Vec<Open> = self.shared.open.borrow().clone();
        self.accepting.retain(|(open, context)| {
            // A listener that was renamed goes on under its new name; its connections drain.
            let stays = wanted.iter().any(|other| other.is(open) && other.name == open.name);
            if !stays {
                context.leave();
            }
            stays
        });
        for open in wanted {
            if !self.accepting.iter().any(|(other, _)| other.is(&open)) {
                self.accept_from(open);
            }
        }
    }

    fn accept_from(&mut self, open: Open) {
        let context = Rc::new(Context::new(&self.context, &open.name, &self.shared.addresses));
        for socket in open.sockets_of(self.number, self.shared.workers) {
            match socket.and_then(Accepting::from) {
                Ok(listener) => {
                    let acceptor = Acceptor {
                        number: self.number,
                        balance: Arc::clone(&self.shared.balance),
                        may_hand_over: Rc::clone(&self.may_hand_over),
                        permits: Arc::clone(&self.shared.permits),
                        context: Rc::clone(&context),
                        uses: open.uses(),
                        in_force: self.shared.open.clone(),
                        stage: self.shared.stage.clone(),
                        here: Rc::clone(&self.here),
                        open: self.gauge(&open.name),
                        accepted: self.shared.metrics.connections_total.with_label_values(&[&*open.name]),
                    };
                    tokio::task::spawn_local(acceptor.accept_all(listener));
                }
                Err(error) => tracing::error!(%error, listener = &*open.name, "cannot accept connections"),
            }
        }
        self.accepting.push((open, context));
    }

    fn gauge(&self, listener: &str) -> IntGauge {
        self.shared.metrics.connections.with_label_values(&[listener])
    }

    /// Serves a connection that another worker has accepted.
    fn take_over(&mut self, handed: Handed) {
        let Handed { accepted: Accepted { listener, handshake, stream, peer, permit }, place } = handed;
        // The worker that has accepted it may know a newer configuration.
        self.follow_snapshot();
        self.follow_listeners();
        let known = self.accepting.iter().find(|(open, _)| open.name == listener);
        let context = known.map(|(_, context)| Rc::clone(context)).unwrap_or_else(|| {
            Rc::new(Context::of_removed(&self.context, &listener, &self.shared.addresses, handshake))
        });
        let held = (permit, place, Counted::new(&self.gauge(&listener)), Rc::clone(&self.here));
        serve(context, (stream, peer), held);
    }
}

/// Serves a connection in a task of its own, which keeps what it holds until its end.
fn serve(
    context: Rc<Context>,
    (stream, peer): (TcpStream, SocketAddr),
    held: (ConnectionPermit, Place, Counted, Rc<()>),
) {
    tokio::task::spawn_local(async move {
        connection::serve(context, stream, peer).await;
        drop(held);
    });
}

struct Acceptor {
    number: usize,
    balance: Arc<Balance>,
    may_hand_over: Rc<Cell<u32>>,
    permits: Arc<ConnectionPermits>,
    context: Rc<Context>,
    uses: Uses,
    in_force: watch::Receiver<Vec<Open>>,
    stage: watch::Receiver<Stage>,
    here: Rc<()>,
    open: IntGauge,
    accepted: IntCounter,
}

impl Acceptor {
    /// Accepts until the listener is removed, and then the connections that are queued in the kernel. At the limit a
    /// connection waits for a permit before the next one is accepted.
    async fn accept_all(self, listener: Accepting) {
        let mut left = pin!(self.context.left());
        let mut turns = 0u32;
        loop {
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(ACCEPTED_AT_ONCE) {
                tokio::task::yield_now().await;
            }
            let accepted = tokio::select! {
                biased;
                () = &mut left => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.serve(stream, peer).await,
                Err(error) if is_exhaustion(&error) => {
                    tracing::warn!(%error, listener = &*self.context.name, "cannot accept a connection");
                    tokio::time::sleep(EXHAUSTED).await;
                }
                // The client was gone before it was accepted.
                Err(_) => {}
            }
        }
        let is_removed = *self.stage.borrow() == Stage::Serving && !self.uses.are_in_force(&self.in_force.borrow());
        if is_removed {
            self.let_go(&listener).await;
        }
        // No task runs between the last check of the queue and the close, which would reset the connections in it.
        let listener = listener.into_socket();
        while let Ok((stream, peer)) = accept(&listener) {
            self.serve(stream, peer).await;
        }
    }

    /// Serves the connections that still arrive at a removed listener, until its sockets can be closed without loss:
    /// another listener may have the address now, which gets no connections before.
    async fn let_go(&self, listener: &Accepting) {
        let until = Instant::now() + LET_GO;
        while self.uses.are_left() && Instant::now() < until {
            self.empty_queue(listener).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if let Err(error) = refuse_syns(&SockRef::from(listener.socket())) {
            tracing::debug!(%error, "a listener is closed while clients may be about to connect");
            return;
        }
        tokio::time::sleep(HANDSHAKES).await;
        self.empty_queue(listener).await;
    }

    async fn empty_queue(&self, listener: &Accepting) {
        while let Ok(Ok((stream, peer))) = tokio::time::timeout(Duration::ZERO, listener.accept()).await {
            self.serve(stream, peer).await;
        }
    }

    async fn serve(&self, stream: TcpStream, peer: SocketAddr) {
        let permit = match self.permits.try_take() {
            Some(permit) => Some(permit),
            None => tokio::select! {
                biased;
                permit = self.permits.take() => permit,
                // A listener that is going away keeps no client waiting.
                () = self.context.left() => None,
            },
        };
        let Some(mut permit) = permit else { return };
        let mut stream = stream;
        self.accepted.inc();
        if let Some(left) = self.may_hand_over.get().checked_sub(1)
            && let Some(worker) = self.balance.better(self.number)
        {
            self.may_hand_over.set(left);
            let (listener, handshake) = (Arc::clone(&self.context.name), Handshake::of(&self.context));
            match self.balance.hand_over(worker, Accepted { listener, handshake, stream, peer, permit }) {
                Err(back) => (stream, permit) = (back.stream, back.permit),
                Ok(()) => return,
            }
        }
        let held = (permit, self.balance.enter(self.number), Counted::new(&self.open), Rc::clone(&self.here));
        serve(Rc::clone(&self.context), (stream, peer), held);
    }
}

/// One open connection in the gauge.
struct Counted(IntGauge);

impl Counted {
    fn new(gauge: &IntGauge) -> Counted {
        gauge.inc();
        Counted(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
