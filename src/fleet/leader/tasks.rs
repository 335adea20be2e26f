//! The tasks that keep the lease, the watch, and this process's key as a member.

use super::core::{Core, Part};
use super::election::{Event, Lease};
use super::values::Keys;
use crate::clock::BootTime;
use crate::fleet::etcd::{Client, EtcdError, Txn, Watch};
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

/// The pause before a failed call is made again.
pub(super) const AGAIN: Duration = Duration::from_millis(250);
/// A watch that is silent for this long is made anew: a leader publishes a beat every second.
const SILENCE: Duration = Duration::from_secs(3);

/// Keeps the lease of this process, for as long as the thread runs.
pub(super) async fn keep_lease(core: Rc<Core>) {
    let mut client = core.client().within(core.between_keep_alives());
    while !core.has_left.get() {
        let lease = core.election().lease();
        let done = match lease {
            None => grant(&core, &mut client).await,
            Some(lease) => renew(&core, &mut client, lease.id).await,
        };
        let endpoint = client.endpoint();
        core.note(Part::Lease, done.as_ref().map(|()| &*endpoint));
        let pause = if done.is_ok() { core.between_keep_alives() } else { AGAIN };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = core.wants_lease.notified() => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Gets a lease, and registers this process as a member with it: before it reads the states of nodes, so that no order
/// that it does not read is carried out without it.
async fn grant(core: &Core, client: &mut Client) -> Result<(), EtcdError> {
    let (id, ttl, sent) = client.grant(core.ttl).await?;
    let process = core.shared.process.to_string();
    let value = serde_json::to_vec(&core.member()).unwrap_or_default();
    let (live, member) = (core.keys.live(&process), core.keys.member(&process));
    let registered = client.txn(&Txn::default().put(&live, b"", id).put(&member, &value, 0)).await;
    if registered.is_err() || core.has_left.get() {
        // A lease that nobody uses would stay for its whole life.
        let _ = client.revoke(id).await;
        return registered.map(drop);
    }
    core.step(Event::Granted(Lease { id, ttl: ttl * 1000, sent: sent.millis() }));
    core.has_lease.notify_waiters();
    Ok(())
}

async fn renew(core: &Core, client: &mut Client, id: u64) -> Result<(), EtcdError> {
    let (ttl, sent): (u64, BootTime) = client.keep_alive(id).await?;
    if ttl == 0 {
        tracing::warn!("the lease of this proxy in etcd is over; it gets a new one");
    }
    core.step(Event::Renewed(Lease { id, ttl: ttl * 1000, sent: sent.millis() }));
    Ok(())
}

/// Watches the keys of the fleet, for as long as the thread runs.
pub(super) async fn watch(core: Rc<Core>) {
    let mut client = core.client();
    loop {
        let registered = core.has_lease.notified();
        if core.election().lease().is_none() && !*core.shared.ready.borrow() {
            registered.await;
        }
        if let Err(Some(error)) = watch_once(&core, &mut client).await {
            core.note(Part::Watch, Err(&error));
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Reads all keys, and then their changes. Returns why the changes end; no error where they have been silent.
async fn watch_once(core: &Core, client: &mut Client) -> Result<Infallible, Option<EtcdError>> {
    let (header, all) = client.range(&core.keys.prefix).await?;
    core.replace(header, all);
    let mut watch = Watch::open(client, &core.keys.prefix, header.revision + 1).await?;
    core.note(Part::Watch, Ok(&client.endpoint()));
    if !core.has_looked.replace(true)
        && let Ok(Some(warning)) = core.client().version_warning().await
    {
        tracing::warn!("{warning}");
    }
    loop {
        match tokio::time::timeout(SILENCE, watch.next()).await {
            Ok(batch) => core.take(&batch?),
            Err(_) => {
                client.next_endpoint();
                return Err(None);
            }
        }
    }
}

/// Keeps this process's key as a member right, for as long as the thread runs.
pub(super) async fn keep_member(core: Rc<Core>) {
    let mut client = core.client();
    let process = core.shared.process.to_string();
    let (live, member) = (core.keys.live(&process), core.keys.member(&process));
    loop {
        core.wants_member.notified().await;
        // Without a lease, the next one registers it.
        let Some(lease) = core.election().lease().filter(|_| !core.has_left.get()) else { continue };
        let value = core.member();
        let bytes = serde_json::to_vec(&value).unwrap_or_default();
        // etcd refuses the sign of life with a lease that is over: a copy that comes late brings no process back.
        let put = match client.txn(&Txn::default().exists(&live).put(&member, &bytes, 0)).await {
            Ok(done) if !done.succeeded => {
                client.txn(&Txn::default().put(&live, b"", lease.id).put(&member, &bytes, 0)).await
            }
            put => put,
        };
        if put.is_err() {
            tokio::time::sleep(AGAIN).await;
            core.wants_member.notify_one();
        }
    }
}

/// Removes the keys of this process.
pub(super) async fn leave(core: &Core) -> Result<(), EtcdError> {
    core.has_left.set(true);
    let mut client = core.client();
    // The lease first: without it, no registration that is on its way brings the keys back.
    if let Some(lease) = core.election().lease() {
        client.revoke(lease.id).await?;
    }
    client.txn(&Txn::default().delete(&core.keys.member(&core.shared.process.to_string()))).await.map(drop)
}

/// Returns the name of a process from the name of its key below the prefix.
pub(super) fn process_of<'a>(prefix: &str, key: &'a str) -> Option<&'a str> {
    key.strip_prefix(prefix)?.strip_prefix(Keys::MEMBER)
}
