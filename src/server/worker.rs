//! A worker: a thread with a runtime of its own that accepts and serves, and shares no task with
//! another.

use super::connection::{self, Context};
use super::listen::is_exhaustion;
use crate::proxy::{Client, Engine, Ledger, Snapshot};
use crate::telemetry::access_log::{AccessLog, Sink};
use crate::telemetry::metrics::Metrics;
use arc_swap::ArcSwap;
use prometheus::{IntCounter, IntGauge};
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Notify, Semaphore, watch};

/// How often a worker hands over its log lines and looks after idle connections.
const TICK: Duration = Duration::from_millis(200);
const SWEEP_EVERY: u32 = 5;
/// A pause after the kernel had no descriptors left.
const EXHAUSTED: Duration = Duration::from_millis(50);

/// How far the process is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Serving,
    /// Not ready any more, for load balancers to see; serving as before.
    Leaving,
    /// No new connections; every answer closes its connection.
    Draining,
    /// What is left is dropped.
    Stopped,
}

/// What all workers share.
pub(super) struct Shared {
    pub(super) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) log: Option<Arc<Sink>>,
    /// A permit a client connection.
    pub(super) connections: Arc<Semaphore>,
    pub(super) draining: Arc<AtomicBool>,
}

/// One member of a listening set.
pub(super) struct Socket {
    pub(super) name: Arc<str>,
    pub(super) listener: TcpListener,
}

/// Runs a worker until the stage says stop or, while draining, until no connection is left.
pub(super) fn run(shared: &Arc<Shared>, sockets: Vec<Socket>, stage: watch::Receiver<Stage>) {
    let runtime = Builder::new_current_thread().enable_io().enable_time().build_local(LocalOptions::default());
    match runtime {
        Ok(runtime) => runtime.block_on(work(shared, sockets, stage)),
        Err(error) => tracing::error!(%error, "a worker cannot start"),
    }
}

async fn work(shared: &Arc<Shared>, sockets: Vec<Socket>, mut stage: watch::Receiver<Stage>) {
    let log = shared.log.as_ref().map(|sink| AccessLog::new(Arc::clone(sink)));
    let ledger = Ledger::new(Arc::clone(&shared.metrics), log);
    let engine = Rc::new(Engine::new(Arc::clone(&shared.snapshot), ledger, Arc::clone(&shared.draining)));
    let context = Rc::new(Context { engine: Rc::clone(&engine), drain: Notify::new() });
    let here = Rc::new(());
    for socket in sockets {
        match tokio::net::TcpListener::from_std(socket.listener) {
            Ok(listener) => {
                let acceptor = Acceptor::new(shared, &context, &here, socket.name);
                tokio::task::spawn_local(acceptor.accept_all(listener, stage.clone()));
            }
            Err(error) => tracing::error!(%error, listener = &*socket.name, "cannot accept connections"),
        }
    }

    let mut ticks = 0u32;
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
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
                    context.drain.notify_waiters();
                }
            }
            _ = interval.tick() => {
                ticks = ticks.wrapping_add(1);
                engine.ledger.flush();
                if ticks.is_multiple_of(SWEEP_EVERY) {
                    let snapshot = engine.snapshot();
                    let known = |serial| snapshot.pools.iter().flat_map(|pool| &pool.nodes).any(|node| node.runtime.serial == serial);
                    engine.links.sweep(Instant::now(), known);
                }
            }
        }
        // Every connection and acceptor holds one; this function holds another.
        if draining && Rc::strong_count(&here) == 1 {
            break;
        }
    }
    engine.ledger.flush();
}

struct Acceptor {
    connections: Arc<Semaphore>,
    context: Rc<Context>,
    here: Rc<()>,
    name: Arc<str>,
    open: IntGauge,
    accepted: IntCounter,
}

impl Acceptor {
    fn new(shared: &Shared, context: &Rc<Context>, here: &Rc<()>, name: Arc<str>) -> Acceptor {
        Acceptor {
            connections: Arc::clone(&shared.connections),
            context: Rc::clone(context),
            here: Rc::clone(here),
            open: shared.metrics.connections.with_label_values(&[&*name]),
            accepted: shared.metrics.connections_total.with_label_values(&[&*name]),
            name,
        }
    }

    /// Accepts until a drain begins, and then what the kernel had accepted already.
    async fn accept_all(self, listener: tokio::net::TcpListener, mut stage: watch::Receiver<Stage>) {
        loop {
            let permit = tokio::select! {
                biased;
                _ = stage.wait_for(|stage| *stage >= Stage::Draining) => break,
                permit = Arc::clone(&self.connections).acquire_owned() => permit,
            };
            let Ok(permit) = permit else { return };
            tokio::select! {
                biased;
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => self.serve(stream, peer, permit),
                    Err(error) if is_exhaustion(&error) => {
                        tracing::warn!(%error, listener = &*self.name, "cannot accept a connection");
                        tokio::time::sleep(EXHAUSTED).await;
                    }
                    // The client was gone before it was accepted.
                    Err(_) => {}
                },
                _ = stage.wait_for(|stage| *stage >= Stage::Draining) => break,
            }
        }
        // Closing would reset the connections that wait in the queue.
        while let Ok(Ok((stream, peer))) = tokio::time::timeout(Duration::ZERO, listener.accept()).await {
            let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else { return };
            self.serve(stream, peer, permit);
        }
    }

    fn serve(
        &self,
        stream: tokio::net::TcpStream,
        peer: std::net::SocketAddr,
        permit: tokio::sync::OwnedSemaphorePermit,
    ) {
        // Answers are written whole; waiting for more would only delay them.
        let _ = stream.set_nodelay(true);
        self.accepted.inc();
        let counted = Counted::new(&self.open);
        let client = Rc::new(Client::new(peer, Arc::clone(&self.name)));
        let (context, here) = (Rc::clone(&self.context), Rc::clone(&self.here));
        tokio::task::spawn_local(async move {
            connection::serve(context, stream, client).await;
            drop((permit, counted, here));
        });
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

impl Shared {
    pub(super) fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}
