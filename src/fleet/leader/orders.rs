//! Orders of operators: states of nodes for the fleet, and members to forget.

use super::core::Core;
use super::office::REMEMBERED;
use super::tasks::process_of;
use super::values::{Keys, MemberValue, StateOrder};
use crate::control::AppliedBy;
use crate::fleet::ProcessId;
use crate::fleet::etcd::{Client, EtcdError, Txn};
use std::time::{Duration, Instant};

/// The longest wait for all members to apply a state.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause between two looks at the members.
const LOOK: Duration = Duration::from_millis(10);
/// The most states of nodes for the fleet.
const MAX_ORDERS: usize = 4096;
/// The most attempts where others set the state of the node at the same time.
const ATTEMPTS: usize = 8;

/// Sets a state of a node, and waits until all members have applied it.
pub(super) async fn set(core: &Core, mut order: StateOrder) -> Result<AppliedBy, String> {
    let mut client = core.client();
    let key = core.keys.state(&order.pool, &order.node);
    let is_full = {
        let view = core.shared.view.lock();
        view.count_orders() >= MAX_ORDERS && !view.has_order(&key[core.keys.prefix.len()..])
    };
    if is_full {
        return Err(format!(
            "the fleet has {MAX_ORDERS} states of nodes already: set nodes `up --fleet` whose file says `up`, which \
             removes their states after a day"
        ));
    }
    order.number = fastrand::u64(..);
    let set = put(core, &mut client, &order).await;
    let revision = set.map_err(|error| format!("the state may not be set: {error}; send it again"))?;
    let deadline = Instant::now() + PATIENCE;
    let mut applied = AppliedBy { revision, ..AppliedBy::default() };
    loop {
        match members(core, &mut client, revision).await {
            Ok(now) => applied = now,
            // The last answer counts.
            Err(_) if applied.of > 0 => {}
            Err(error) => tracing::debug!(%error, "the members of the fleet cannot be read"),
        }
        if applied.complete || Instant::now() >= deadline {
            return Ok(applied);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Writes the order. Returns its revision. Two operators at a time come one after the other; a copy that comes late
/// changes nothing.
async fn put(core: &Core, client: &mut Client, order: &StateOrder) -> Result<u64, EtcdError> {
    let key = core.keys.state(&order.pool, &order.node);
    let value = serde_json::to_vec(order).unwrap_or_default();
    // One that says what the file says is of use only as long as members may not have applied it.
    let lease = match order.state == order.file {
        true => client.grant(REMEMBERED).await?.0,
        false => 0,
    };
    let (_, mut found) = client.get(&key).await?;
    for _ in 0..ATTEMPTS {
        let before = found.as_ref().map_or(0, |found| found.mod_revision);
        let txn = Txn::default().changed_at(&key, before).put(&key, &value, lease).or_read(&key);
        let done = client.txn(&txn).await?;
        if done.succeeded {
            return Ok(done.header.revision);
        }
        found = done.found.into_iter().next();
        // An earlier sending without a reply has been carried out.
        if let Some(own) = found.as_ref().filter(|found| found.value == value) {
            return Ok(own.mod_revision);
        }
    }
    Err(EtcdError::Malformed("others set the state of the node at the same time".to_owned()))
}

/// Returns which members have applied a revision.
async fn members(core: &Core, client: &mut Client, revision: u64) -> Result<AppliedBy, EtcdError> {
    let (_, all) = client.range(&format!("{}{}", core.keys.prefix, Keys::MEMBER)).await?;
    let mut missing = Vec::new();
    for key in &all {
        let value: MemberValue = serde_json::from_slice(&key.value).unwrap_or_default();
        if value.applied < revision {
            let process = process_of(&core.keys.prefix, &key.key).unwrap_or_default();
            missing.push(format!("{} ({process})", value.name));
        }
    }
    let complete = missing.is_empty() && !all.is_empty();
    Ok(AppliedBy { revision, members: all.len() - missing.len(), of: all.len(), missing, complete })
}

/// Removes a member. Returns whether there was one.
pub(super) async fn forget(core: &Core, process: ProcessId) -> Result<bool, String> {
    let (mut client, name) = (core.client(), process.to_string());
    let key = core.keys.member(&name);
    let removed = async {
        let (_, found) = client.get(&key).await?;
        client.txn(&Txn::default().delete(&key).delete(&core.keys.live(&name))).await?;
        Ok::<bool, EtcdError>(found.is_some())
    };
    removed.await.map_err(|error| error.to_string())
}
