//! The tasks of a client: one for each node, and one that pays debts.

use super::client::QuorumClient;
use super::debts::Ending;
use super::rules::QuorumRules;
use super::serving::serve;
use crate::consistency::quorum::Slot;
use crate::telemetry::metrics::Metrics;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two attempts to pay.
const ATTEMPT: Duration = Duration::from_millis(250);
/// The most slots of one attempt.
const BATCH: usize = 512;

impl QuorumClient {
    /// Returns a client that connects by itself, on this thread. One that `speaks` writes to the process's log.
    pub(crate) fn start(rules: &Arc<QuorumRules>, metrics: &Arc<Metrics>, speaks: bool) -> Rc<QuorumClient> {
        let client = Rc::new(QuorumClient::new(rules, metrics, speaks));
        for place in 0..client.links.len() {
            tokio::task::spawn_local(serve(Rc::clone(&client), place));
        }
        tokio::task::spawn_local(pay(Rc::clone(&client)));
        client
    }
}

/// Pays debts, for as long as the thread runs.
pub(super) async fn pay(client: Rc<QuorumClient>) {
    loop {
        // An operation is sent at once, the rest is tried again.
        let _ = tokio::time::timeout(ATTEMPT, client.owed.notified()).await;
        let endings = client.debts.borrow_mut().take_endings();
        for Ending { rules, order, slots } in endings {
            let nodes = rules.writes(&slots).nodes();
            let done: Rc<dyn Fn(u8)> = Rc::new(|_| ());
            client.send(&rules, (order, &slots), nodes, &done);
        }
        client.debts.borrow_mut().come_due(Instant::now());
        loop {
            let batch: Vec<Slot> = client.debts.borrow().stamps.iter().copied().take(BATCH).collect();
            if batch.is_empty() {
                break;
            }
            // Removed first: a slot that is written to meanwhile is owed again.
            batch.iter().for_each(|slot| _ = client.debts.borrow_mut().stamps.remove(slot));
            if !client.try_stamp(&batch).await {
                client.debts.borrow_mut().stamps.extend(batch);
                break;
            }
            tracing::info!(slots = batch.len(), "slots that were written to without a quorum are stamped now");
        }
    }
}
