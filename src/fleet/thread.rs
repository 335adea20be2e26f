//! The thread of the bus: one runtime, on which the connections of all nodes work, and the timers.

use super::Listener;
use super::bus::{Bus, Outgoing, QUEUE, Shared};
use super::core::{Core, NodeState, TICK};
use super::event::{Event, ProcessId};
use super::node;
use super::settings::{BusControl, BusSettings};
use crate::telemetry::metrics::Metrics;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

/// The longest wait for the last events at the end.
const FAREWELL: Duration = Duration::from_millis(250);
/// The pause before a task begins anew.
const AGAIN: Duration = Duration::from_secs(1);
/// The pause between two acknowledgements.
const GATHER: Duration = Duration::from_millis(10);

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
        let _ended = Ended(Arc::clone(&here), Arc::clone(&listener));
        let tasks = tokio::task::LocalSet::new();
        tasks.block_on(&runtime, async move { run(Core::new(here, listener, settings), orders).await });
    })?;
    Ok((Bus { shared, queue }, BusControl(Arc::new(control))))
}

/// Says where the thread ends in a panic: nothing travels any more.
struct Ended(Arc<Shared>, Arc<dyn Listener>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.works.send_replace(false);
        if std::thread::panicking() {
            // Events are missed from now on.
            self.1.missed();
            self.1.changed(false);
            tracing::error!("the thread of the bus has ended in a panic: no purge travels before a restart");
        }
    }
}

/// Keeps a task of a node going, should it end in a panic.
async fn keep<F: Future<Output = ()> + 'static>(core: Rc<Core>, at: usize, task: fn(Rc<Core>, usize) -> F) {
    loop {
        let ended = tokio::task::spawn_local(task(Rc::clone(&core), at)).await;
        tracing::error!(
            node = core.nodes[at].id,
            panic = ended.is_err(),
            "a task of the bus has ended; it begins anew"
        );
        tokio::time::sleep(AGAIN).await;
    }
}

/// Works until all handles are gone.
async fn run(core: Rc<Core>, mut orders: mpsc::Receiver<Outgoing>) {
    for at in 0..core.nodes.len() {
        tokio::task::spawn_local(keep(Rc::clone(&core), at, node::publish));
        tokio::task::spawn_local(keep(Rc::clone(&core), at, node::read));
    }
    tokio::task::spawn_local(acknowledge(Rc::clone(&core)));
    let lease = core.settings.borrow().lease;
    let mut beats = tokio::time::interval(lease / 3);
    let mut ticks = tokio::time::interval(TICK);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(order) => carry_out(&core, order),
                // The process ends.
                None => return,
            },
            _ = beats.tick() => core.beat(lease),
            _ = ticks.tick() => core.tick(),
        }
        if core.shared.has_dropped.swap(false, Ordering::AcqRel) {
            core.publish(core.shared.number(), &Event::Missed);
        }
    }
}

/// Publishes acknowledgements, many in one event.
async fn acknowledge(core: Rc<Core>) {
    loop {
        core.has_heard.notified().await;
        core.acknowledge();
        tokio::time::sleep(GATHER).await;
    }
}

fn carry_out(core: &Rc<Core>, order: Outgoing) {
    match order {
        Outgoing::Event { number, event } => core.publish(number, &event),
        Outgoing::Leave(done) => {
            core.leave();
            let core = Rc::clone(core);
            tokio::task::spawn_local(async move {
                let deadline = Instant::now() + FAREWELL;
                let is_sent = |node: &&NodeState| node.queue.borrow().len() == 0;
                // At each node: one that did not hear it would tell others of this process for a day.
                while !core.nodes.iter().all(|node| is_sent(&node)) && Instant::now() < deadline {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                // The caller may have gone.
                let _ = done.send(());
            });
        }
    }
}
