//! The work of the leader: it campaigns and resigns, publishes tables and beats, and looks after members that are gone.
//!
//! Every publication compares the term, and the revision of the last publication: one that was sent twice, and whose
//! copy comes late, changes nothing.

use super::core::Core;
use super::election::{Effect, Event, Holder};
use super::health::{SHORTEST_BEAT, between_beats};
use super::tasks::AGAIN;
use super::values::{Beat, LeaderValue, Table};
use crate::fleet::etcd::{Client, EtcdError, KeyValue, Txn};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The most bytes, and keys, of a publication, and of one table; etcd takes requests of 1.5 MiB.
const MAX_BYTES: usize = 1 << 20;
const MAX_KEYS: usize = 64;
/// The time for which a member that is gone is remembered, in seconds.
pub(super) const REMEMBERED: u64 = 24 * 3600;
/// The time between two looks for members that are gone.
const LOOK: Duration = Duration::from_secs(2);

/// The publications of a leader in its term.
#[derive(Default)]
struct Office {
    term: u64,
    /// The revision of the last publication.
    revision: u64,
    number: u64,
    tables: BTreeMap<String, Table>,
    /// The pools whose tables etcd does not take, as it was logged.
    oversized: BTreeSet<String>,
    beat: Option<Instant>,
    looked: Option<Instant>,
}

/// Works for as long as the thread runs.
pub(super) async fn work(core: Rc<Core>) {
    let mut client = core.client().within(core.between_keep_alives());
    let mut office = Office::default();
    loop {
        let effect = core.effects.borrow_mut().pop_front();
        if let Some(effect) = effect {
            carry_out(&core, &mut client, effect).await;
            continue;
        }
        if let Some(term) = core.acting()
            && let Err(error) = office.publish(&core, &mut client, term).await
        {
            tracing::debug!(%error, "a publication was not acknowledged");
        }
        tokio::select! {
            () = tokio::time::sleep(SHORTEST_BEAT) => {}
            () = core.has_effects.notified() => {}
        }
    }
}

async fn carry_out(core: &Core, client: &mut Client, effect: Effect) {
    let leader = core.keys.leader();
    match effect {
        Effect::Grant => {}
        Effect::Campaign { lease } => {
            let value = LeaderValue { process: core.shared.process.to_string(), name: core.shared.name.clone() };
            let value = serde_json::to_vec(&value).unwrap_or_default();
            let txn = Txn::default().created_at(&leader, 0).put(&leader, &value, lease).or_read(&leader);
            match client.txn(&txn).await {
                Ok(done) => {
                    let found = done.found.first().map(holder);
                    let holder = match done.succeeded {
                        true => Some(Holder { term: done.header.revision, lease }),
                        false => found,
                    };
                    core.step(Event::Key { holder, revision: done.header.revision });
                    // A campaign that was overtaken is not repeated at once.
                    if core.acting().is_none() {
                        tokio::time::sleep(AGAIN).await;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "a campaign was not answered");
                    tokio::time::sleep(AGAIN).await;
                    core.step(Event::Unanswered);
                }
            }
        }
        Effect::Resign { term } => {
            let resigned = client.txn(&Txn::default().created_at(&leader, term).delete(&leader)).await;
            if let Err(error) = resigned {
                tracing::warn!(%error, "cannot hand leadership over; the next leader comes after the lease");
            }
        }
    }
}

fn holder(key: &KeyValue) -> Holder {
    Holder { term: key.create_revision, lease: key.lease }
}

impl Office {
    /// Publishes the tables that have changed, and a beat where one is due.
    async fn publish(&mut self, core: &Core, client: &mut Client, term: u64) -> Result<(), EtcdError> {
        if self.term != term {
            let (_, beat) = client.get(&core.keys.beat()).await?;
            *self = Office { term, revision: beat.map_or(0, |beat| beat.mod_revision), ..Office::default() };
        }
        let pools = core.host.shared_pools();
        let every = between_beats(pools.iter().map(|pool| pool.interval));
        let mut changed = BTreeMap::new();
        let (mut txn, mut size) = (Txn::default(), 0);
        for pool in &pools {
            let table = Table { term, nodes: core.host.verdicts(&pool.name) };
            if self.tables.get(&pool.name) == Some(&table) || changed.len() >= MAX_KEYS {
                continue;
            }
            let bytes = serde_json::to_vec(&table).unwrap_or_default();
            if bytes.len() > MAX_BYTES {
                // The beat names the pool no more: what the others have of it is older than this.
                self.tables.remove(&pool.name);
                if self.oversized.insert(pool.name.clone()) {
                    tracing::warn!(
                        pool = pool.name,
                        "the pool has too many nodes for etcd; each proxy checks for itself"
                    );
                }
                continue;
            }
            self.oversized.remove(&pool.name);
            if size + bytes.len() <= MAX_BYTES {
                size += bytes.len();
                txn = txn.put(&core.keys.table(&pool.name), &bytes, 0);
                changed.insert(pool.name.clone(), table);
            }
        }
        let is_due = self.beat.is_none_or(|beat| beat.elapsed() + SHORTEST_BEAT / 2 >= every);
        if changed.is_empty() && !is_due {
            return Ok(());
        }
        let published = |name: &String| changed.contains_key(name) || self.tables.contains_key(name);
        let pools = pools.iter().map(|pool| pool.name.clone()).filter(published).collect();
        let beat = Beat { term, number: self.number, pools };
        let (leader, key) = (core.keys.leader(), core.keys.beat());
        let txn = txn
            .created_at(&leader, term)
            .changed_at(&key, self.revision)
            .put(&key, &serde_json::to_vec(&beat).unwrap_or_default(), 0)
            .or_read(&leader)
            .or_read(&key);
        // The check and the sending are one step: a process that is stopped in between is refused by etcd.
        if core.acting() != Some(term) {
            return Ok(());
        }
        let done = client.txn(&txn).await?;
        if done.succeeded {
            (self.revision, self.number, self.beat) = (done.header.revision, self.number + 1, Some(Instant::now()));
            self.tables.extend(changed);
            return self.look_after_members(core, client).await;
        }
        match done.found.iter().find(|found| found.key == leader && found.create_revision == term) {
            // An earlier publication without a reply has been carried out.
            Some(_) => {
                let beat = done.found.iter().find(|found| found.key == key);
                self.revision = beat.map_or(0, |beat| beat.mod_revision);
                self.tables.clear();
            }
            None => {
                tracing::warn!(term, "etcd refuses a publication: another proxy leads the fleet");
                core.step(Event::Refused { term });
            }
        }
        Ok(())
    }

    /// Has etcd forget members whose sign of life has ended, after a day. One that comes back registers anew.
    async fn look_after_members(&mut self, core: &Core, client: &mut Client) -> Result<(), EtcdError> {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        let gone = {
            let view = core.shared.view.lock();
            let gone = view.members.iter().find(|(process, it)| it.lease == 0 && !view.live.contains(*process));
            gone.map(|(process, member)| (process.clone(), member.clone()))
        };
        let Some((process, member)) = gone else { return Ok(()) };
        let (lease, ..) = client.grant(REMEMBERED).await?;
        let (key, value) = (core.keys.member(&process), serde_json::to_vec(&member.value).unwrap_or_default());
        let txn = Txn::default()
            .created_at(&core.keys.leader(), self.term)
            .created_at(&core.keys.live(&process), 0)
            .changed_at(&key, member.revision)
            .put(&key, &value, lease);
        let done = client.txn(&txn).await;
        if done.as_ref().is_ok_and(|done| done.succeeded) {
            tracing::warn!(process, name = member.value.name, "a member vanished; it is forgotten after a day");
            return Ok(());
        }
        // A lease that nobody uses would stay for its whole life.
        client.revoke(lease).await?;
        done.map(drop)
    }
}
