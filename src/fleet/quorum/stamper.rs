//! Stamps for purges: a client on a thread of its own, for those who are on no worker.

use super::client::QuorumClient;
use super::rules::QuorumRules;
use crate::consistency::quorum::Slots;
use crate::telemetry::metrics::Metrics;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// The most orders that wait.
const QUEUE: usize = 1024;
/// The longest wait for the nodes by the first order.
const READY: Duration = Duration::from_millis(250);

/// Slots to stamp, and the call to answer.
type Order = (Slots, oneshot::Sender<bool>);

/// The handle of the thread, which starts with the first configuration that needs it.
#[derive(Default)]
pub(crate) struct Stamper(Mutex<Option<Started>>);

struct Started {
    orders: mpsc::Sender<Order>,
    /// `None` where no strong route is left.
    rules: watch::Sender<Option<Arc<QuorumRules>>>,
}

impl Stamper {
    /// Goes on by the rules of a configuration.
    pub(crate) fn follow(&self, rules: &Arc<QuorumRules>, metrics: &Arc<Metrics>) {
        let mut started = self.0.lock();
        match &*started {
            Some(started) => _ = started.rules.send_replace(Some(Arc::clone(rules))),
            None => match start(rules, metrics) {
                Ok(new) => *started = Some(new),
                Err(error) => tracing::error!(%error, "purges cannot be stamped: no thread can be started"),
            },
        }
    }

    /// Notes that no strong route is left.
    pub(crate) fn rest(&self) {
        if let Some(started) = &*self.0.lock() {
            started.rules.send_replace(None);
        }
    }

    /// Stamps slots. Returns whether W nodes of each have the stamps; where they have not, they get them later.
    pub(crate) async fn stamp(&self, slots: Slots) -> bool {
        let orders = self.0.lock().as_ref().map(|started| started.orders.clone());
        let (done, told) = oneshot::channel();
        match orders {
            Some(orders) if orders.send((slots, done)).await.is_ok() => told.await.unwrap_or(false),
            _ => false,
        }
    }
}

fn start(rules: &Arc<QuorumRules>, metrics: &Arc<Metrics>) -> std::io::Result<Started> {
    let (orders, mut queue) = mpsc::channel::<Order>(QUEUE);
    let (sender, mut receiver) = watch::channel(Some(Arc::clone(rules)));
    let (rules, metrics) = (Arc::clone(rules), Arc::clone(metrics));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("stamps".to_owned()).spawn(move || {
        let tasks = tokio::task::LocalSet::new();
        tasks.block_on(&runtime, async move {
            let client = QuorumClient::start(&rules, &metrics, true);
            client.ready(READY).await;
            loop {
                tokio::select! {
                    order = queue.recv() => {
                        // The process ends.
                        let Some((slots, done)) = order else { return };
                        let client = std::rc::Rc::clone(&client);
                        tokio::task::spawn_local(async move { done.send(client.stamp(&slots).await) });
                    }
                    Ok(()) = receiver.changed() => match &*receiver.borrow_and_update() {
                        Some(rules) => client.follow(rules),
                        None => client.rest(),
                    },
                }
            }
        });
    })?;
    Ok(Started { orders, rules: sender })
}
