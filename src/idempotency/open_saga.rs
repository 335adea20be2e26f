//! A saga that this process owns, and the sagas that it may go on with.
//!
//! An append is repeated until the store has heard of it, or says that another process owns the saga. What the store
//! answers gives the store's time, and the time by which a byte may be sent: before any other process may take this one
//! for dead.

use super::clock::millis;
use super::identity::Id;
use super::open_sagas::{DecidedSaga, Decision};
use super::record::{Finish, Millis, Token};
use super::records::{PATIENCE, Records, ask};
use super::response::StoredResponse;
use super::saga::{Append, Appended, SagaEnd, SagaQuery, SagaRow, Seen};
use super::store::StoreError;
use crate::clock::BootTime;
use crate::saga::log::{Entry, Standing, encode};
use crate::saga::machine::Event;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Between two attempts to append: at first, and at most.
const RETRY: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];

/// This process does not own the saga any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another process owns the saga")]
pub(crate) struct LostSaga;

/// A saga that this process has taken over.
pub(crate) struct TakenSaga {
    pub(crate) row: SagaRow,
    pub(crate) open: OpenSaga,
    /// A person's decision, where it was stuck.
    pub(crate) decision: Option<Decision>,
}

/// A saga that this process owns.
pub(crate) struct OpenSaga {
    records: Arc<Records>,
    pub(crate) id: Id,
    token: Token,
    epoch: u64,
    sequence: u64,
    standing: Standing,
    lease: Duration,
    pub(crate) created: Millis,
    /// The store's time at a time of this machine.
    anchor: (Millis, BootTime),
    /// When the last call was sent that showed the store that this process lives.
    sent: BootTime,
}

impl OpenSaga {
    /// Returns the saga that has begun with a claim, which was sent and has begun at these times.
    pub(super) fn begun(
        records: &Arc<Records>,
        id: Id,
        token: Token,
        lease: Duration,
        (began, sent): (Option<Millis>, BootTime),
    ) -> OpenSaga {
        let created = began.unwrap_or_default();
        records.sagas.enter(id, 0);
        OpenSaga {
            records: Arc::clone(records),
            id,
            token,
            epoch: 0,
            sequence: 0,
            standing: Standing::Running,
            lease,
            created,
            anchor: (created, BootTime::now()),
            sent,
        }
    }

    fn taken(records: &Arc<Records>, row: &SagaRow, sent: BootTime) -> OpenSaga {
        records.opened(row.lease);
        records.sagas.enter(row.id, row.epoch);
        OpenSaga {
            records: Arc::clone(records),
            id: row.id,
            token: row.token,
            epoch: row.epoch,
            sequence: row.sequence,
            standing: row.standing,
            lease: row.lease,
            created: row.created,
            anchor: (row.now, BootTime::now()),
            sent,
        }
    }

    /// Returns the store's time.
    pub(crate) fn now(&self) -> Millis {
        let (at, then) = self.anchor;
        at.saturating_add(millis(BootTime::now().since(then)))
    }

    /// Returns the time by which the first byte of an attempt must be sent.
    pub(crate) fn send_by(&self) -> BootTime {
        self.sent + self.lease / 2
    }

    /// Returns whether a byte may be sent for some time to come.
    pub(crate) fn may_send(&self) -> bool {
        BootTime::now().since(self.sent) < self.lease / 4
    }

    /// Makes entries durable; with the record's answer, in one transaction, where they end the saga.
    ///
    /// # Errors
    /// Another process owns the saga.
    pub(crate) async fn append(
        &mut self,
        entries: &[Entry],
        standing: Standing,
        end: Option<StoredResponse>,
    ) -> Result<(), LostSaga> {
        let end = end.map(|response| SagaEnd { finish: Finish::Done, response: Some(response) });
        self.standing = standing;
        self.write(Some(encode(entries)), end, false).await?;
        self.sequence += 1;
        Ok(())
    }

    /// Shows the store that this process lives, and makes sure that it owns the saga.
    ///
    /// # Errors
    /// Another process does.
    pub(crate) async fn renew(&mut self) -> Result<(), LostSaga> {
        self.write(None, None, false).await
    }

    /// Leaves the saga to whichever process comes first.
    pub(crate) async fn give_up(mut self) {
        if self.write(None, None, true).await.is_ok() {
            tracing::debug!(id = %self.id, "a saga is left to another process");
        }
    }

    async fn write(&mut self, entries: Option<String>, end: Option<SagaEnd>, gives_up: bool) -> Result<(), LostSaga> {
        let OpenSaga { id, token, epoch, sequence, standing, lease, .. } = *self;
        let append = Append { id, token, epoch, sequence, entries, standing, gives_up, lease, end };
        let records = Arc::clone(&self.records);
        let mut pause = RETRY[0];
        loop {
            let appended = ask(&records.calls.append, PATIENCE, |done| records.store.append(append.clone(), done));
            match appended.await {
                Ok(Some(Appended { now, sent })) => {
                    (self.anchor, self.sent) = ((now, BootTime::now()), sent);
                    return Ok(());
                }
                Ok(None) => return Err(LostSaga),
                // The next owner begins from what the store has.
                Err(StoreError::Ended) => return Err(LostSaga),
                // To be left, the saga needs no entry: its owner will be dead.
                Err(_) if gives_up => return Err(LostSaga),
                Err(error) => {
                    tracing::debug!(%error, %id, "an append to a saga's log failed, and is repeated");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY[1]);
                }
            }
        }
    }
}

impl Drop for OpenSaga {
    fn drop(&mut self) {
        self.records.sagas.leave(self.id, self.epoch);
        self.records.tell(self.id);
    }
}

impl Records {
    /// Returns whether the store keeps sagas.
    pub(crate) fn keeps_sagas(&self) -> bool {
        self.store.keeps_sagas()
    }

    /// Returns a saga.
    ///
    /// # Errors
    /// The store does not answer, or keeps none.
    pub(crate) async fn saga(&self, id: Id) -> Result<Option<SagaRow>, StoreError> {
        Ok(self.query(SagaQuery::One(id)).await?.pop())
    }

    /// Returns sagas of a state, or all; the youngest first.
    ///
    /// # Errors
    /// The store does not answer, or keeps none.
    pub(crate) async fn sagas(&self, standing: Option<Standing>) -> Result<Vec<SagaRow>, StoreError> {
        self.query(SagaQuery::Standing(standing)).await
    }

    /// Returns how many sagas are stuck, where the store keeps any.
    pub(crate) fn stuck_sagas(&self) -> Option<u64> {
        self.store.keeps_sagas().then(|| self.sagas.stuck())
    }

    /// Has sagas without an owner be looked for more often.
    pub(crate) fn expect_sagas(&self) {
        self.sagas.expect();
    }

    async fn query(&self, query: SagaQuery) -> Result<Vec<SagaRow>, StoreError> {
        ask(&self.calls.sagas, PATIENCE, |done| self.store.sagas(query, done)).await
    }

    /// Offers sagas without an owner to the workers.
    pub(super) async fn find_orphans(&self) {
        if !self.store.keeps_sagas() {
            return;
        }
        if let Ok(orphaned) = self.query(SagaQuery::Orphaned).await {
            self.sagas.offer(orphaned);
        }
    }

    /// Counts the sagas that are stuck, and offers those of this process that no task works on: their takeover was
    /// confirmed too late.
    pub(super) async fn find_lost_sagas(&self) {
        if !self.store.keeps_sagas() {
            return;
        }
        if let Ok(stuck) = self.query(SagaQuery::Standing(Some(Standing::Stuck))).await {
            self.sagas.note_stuck(stuck.len());
        }
        let Ok(owned) = self.query(SagaQuery::Owned).await else { return };
        // A claim that may yet be released has no entry.
        self.sagas.offer(owned.into_iter().filter(|row| !self.claims.contains(row.token)));
    }

    /// Returns whether this process works on as many sagas as it may: others are left to other processes, and no new
    /// one begins.
    pub(crate) fn is_full_of_sagas(&self) -> bool {
        self.sagas.are_full()
    }

    /// Notes a saga whose row cannot be read here. Returns whether that is to be logged.
    pub(crate) fn note_unreadable_saga(&self, id: Id) -> bool {
        self.sagas.note_unreadable(id)
    }

    /// Returns a saga without an owner, as it was seen, for [`Records::take_over`] or [`Records::decline`].
    pub(crate) fn offered_saga(&self) -> Option<SagaRow> {
        self.sagas.offered()
    }

    /// Returns a saga that a person has decided about.
    pub(crate) fn decided_saga(self: &Arc<Self>) -> Option<TakenSaga> {
        let DecidedSaga { row, sent, decision } = self.sagas.decided()?;
        let open = OpenSaga::taken(self, &row, sent);
        Some(TakenSaga { row, open, decision: Some(decision) })
    }

    /// Leaves a saga that was offered to other processes.
    pub(crate) fn decline(&self, row: &SagaRow) {
        self.sagas.settle(row.id);
    }

    /// Takes over a saga that was offered; nothing where another process was faster.
    pub(crate) async fn take_over(self: &Arc<Self>, row: SagaRow) -> Option<TakenSaga> {
        let taken = self.take(Seen { id: row.id, epoch: row.epoch }).await.ok().flatten();
        let taken = taken.map(|(row, sent)| {
            let open = OpenSaga::taken(self, &row, sent);
            TakenSaga { row, open, decision: None }
        });
        self.decline(&row);
        taken
    }

    async fn take(&self, seen: Seen) -> Result<Option<(SagaRow, BootTime)>, StoreError> {
        let sent = BootTime::now();
        let row = ask(&self.calls.sagas, PATIENCE, |done| self.store.take_over(seen, done)).await?;
        Ok(row.map(|row| (row, sent)))
    }

    /// Has a stuck saga go on as a person has decided. Returns whether it was stuck, once the decision is durable.
    ///
    /// # Errors
    /// The store does not answer, or keeps no sagas; or nothing here goes on with the saga.
    pub(crate) async fn decide(&self, id: Id, event: Event) -> Result<bool, StoreError> {
        let logged = {
            // Two decisions that see the same epoch would both find the saga to be this process's own.
            let Some(_turn) = self.sagas.decide_on(id) else { return Ok(false) };
            let Some(row) = self.saga(id).await?.filter(|row| row.standing == Standing::Stuck) else {
                return Ok(false);
            };
            let Some((row, sent)) = self.take(Seen { id, epoch: row.epoch }).await? else { return Ok(false) };
            let (told, logged) = oneshot::channel();
            self.sagas.decide(DecidedSaga { row, sent, decision: Decision { event, logged: told } });
            logged
        };
        match tokio::time::timeout(PATIENCE, logged).await {
            Ok(Ok(())) => Ok(true),
            _ => Err(StoreError::Torn("the decision is not in the log yet: look at the saga again".to_owned())),
        }
    }
}
