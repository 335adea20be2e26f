//! The thread of the leader's room: one runtime, on which its calls of etcd and its timers work.

use super::core::Core;
use super::election::{Election, Event};
use super::shared::{Leadership, Order, Shared};
use super::{Host, office, orders, tasks};
use crate::fleet::ProcessId;
use crate::fleet::etcd::EtcdSettings;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

/// The interval of looks at time that has passed, and at drains.
const TICK: Duration = Duration::from_millis(250);
/// The most orders that wait.
const ORDERS: usize = 256;
/// The pause before a task begins anew.
const AGAIN: Duration = Duration::from_secs(1);

/// Starts the thread, which connects by itself.
///
/// # Errors
/// No thread can be started.
pub(crate) fn start(settings: &EtcdSettings, process: ProcessId, host: Arc<dyn Host>) -> io::Result<Leadership> {
    let shared = Arc::new(Shared::new(settings.fleet.clone(), process));
    let (sender, receiver) = mpsc::channel(ORDERS);
    let (control, settings) = watch::channel(settings.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let here = Arc::clone(&shared);
    std::thread::Builder::new().name("etcd".to_owned()).spawn(move || {
        let _ended = Ended(Arc::clone(&here));
        let tasks = tokio::task::LocalSet::new();
        tasks.block_on(&runtime, async move { run(Core::new(here, host, settings), receiver).await });
    })?;
    Ok(Leadership { shared, orders: sender, control: Arc::new(control) })
}

/// Says where the thread ends in a panic: this process leads no more.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.board.lock().is_up = false;
        *self.0.election.lock() = Election::default();
        if std::thread::panicking() {
            tracing::error!("the thread of etcd has ended in a panic: no state of a node arrives before a restart");
        }
    }
}

/// Keeps a task going, should it end in a panic.
async fn keep<F: Future<Output = ()> + 'static>(core: Rc<Core>, task: fn(Rc<Core>) -> F) {
    loop {
        let ended = tokio::task::spawn_local(task(Rc::clone(&core))).await;
        if core.has_left.get() {
            return;
        }
        tracing::error!(panic = ended.is_err(), "a task of the leader's room has ended; it begins anew");
        tokio::time::sleep(AGAIN).await;
    }
}

/// Works until all handles are gone.
async fn run(core: Rc<Core>, mut waiting: mpsc::Receiver<Order>) {
    tokio::task::spawn_local(keep(Rc::clone(&core), tasks::keep_lease));
    tokio::task::spawn_local(keep(Rc::clone(&core), tasks::watch));
    tokio::task::spawn_local(keep(Rc::clone(&core), tasks::keep_member));
    tokio::task::spawn_local(keep(Rc::clone(&core), office::work));
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            order = waiting.recv() => match order {
                Some(order) => carry_out(&core, order),
                // The process ends.
                None => return,
            },
            _ = ticks.tick() => {
                core.step(Event::Tick);
                core.look_at_health();
                core.look_at_drains();
            }
        }
    }
}

fn carry_out(core: &Rc<Core>, order: Order) {
    let core = Rc::clone(core);
    match order {
        Order::Set { order, reply } => {
            // The requester may have gone.
            tokio::task::spawn_local(async move { drop(reply.send(orders::set(&core, order).await)) });
        }
        Order::Forget { process, reply } => {
            tokio::task::spawn_local(async move { drop(reply.send(orders::forget(&core, process).await)) });
        }
        Order::Retire => core.step(Event::Retire),
        Order::Leave(done) => {
            tokio::task::spawn_local(async move {
                if let Err(error) = tasks::leave(&core).await {
                    tracing::warn!(%error, "this proxy cannot leave the fleet in etcd; others see it as gone");
                }
                // The caller may have gone.
                let _ = done.send(());
            });
        }
    }
}
